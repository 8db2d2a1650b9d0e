package cli

import "github.com/spf13/cobra"

func newSync() *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use:   "sync --state DIR",
		Short: "Read the source and the engine now",
		Long: `sync makes the running agent read its source at once, and what the engine runs,
as SIGHUP does. It does not wait for what comes of it: agent status says that.`,
		Example: `  agent sync --state /var/lib/dtesn-agent`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return give(cmd, state, "sync", order{})
		},
	}
	stateFlag(cmd, &state)
	return cmd
}
