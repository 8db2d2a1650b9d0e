package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// release is the version of a release, which its build sets.
var release string

// version returns the version of a release, that of the module, or "devel".
func version() string {
	info, ok := debug.ReadBuildInfo()
	switch {
	case release != "":
		return release
	case !ok || info.Main.Version == "" || info.Main.Version == "(devel)":
		return "devel"
	}
	return info.Main.Version
}

// commit returns the commit that the program was built from, with "+" behind it if files
// differed from it, or "" if the build did not know it.
func commit() (text string) {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		return ""
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			text = fmt.Sprintf("%.12s", s.Value) + text
		case s.Key == "vcs.modified" && s.Value == "true":
			text += "+"
		}
	}
	return strings.TrimPrefix(text, "+")
}

// versionLine is what `agent version` and `agent --version` print.
func versionLine() string {
	var from string
	if c := commit(); c != "" {
		from = "commit " + c + ", "
	}
	return fmt.Sprintf("agent %s (%ssnapshot format %d, schema %.12s, %s %s/%s)\n",
		version(), from, record.FormatByName, schema.Default().Digest(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of the agent and of its schema",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), versionLine())
			return err
		},
	}
}
