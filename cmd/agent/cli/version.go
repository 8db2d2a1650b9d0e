package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of the agent and of its schema",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "agent %s (snapshot format %d, schema %.12s, %s %s/%s)\n",
				version(), record.FormatByName, schema.Default().Digest(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
