package cli

import (
	"time"

	"github.com/spf13/cobra"
)

func newResume() *cobra.Command {
	var state, reason string
	var dryRun bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "resume [NAME] --state DIR",
		Short: "End a pause or a hold; what the source declares is tried again",
		Long: `resume ends a pause and all that is held; with the name of a parameter, only
what is held with a value of it. What the source declares is tried again at
once, also what the engine rejected before. --dry-run shows what would be
tried. Where nothing is held and nothing is paused it says so, with exit code
1.`,
		Example: `  agent resume --state /var/lib/dtesn-agent
  agent resume NAME --reason "fixed in the server" --state /var/lib/dtesn-agent`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := order{Reason: reason, DryRun: dryRun, Timeout: timeout.Seconds()}
			if len(args) > 0 {
				o.Name = args[0]
			}
			return give(cmd, state, "resume", o)
		},
	}
	stateFlag(cmd, &state)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would be done")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for who reads the history")
	timeoutFlag(cmd, &timeout)
	return cmd
}
