package cli

import (
	"time"

	"github.com/spf13/cobra"
)

func newResume() *cobra.Command {
	var state, reason string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "resume --state DIR",
		Short: "End a pause or a hold; what the source declares is tried again",
		Long: `resume ends a pause and any hold. What the source declares is tried again at
once, also what the engine rejected before. Where nothing is held and nothing is
paused it says so, with exit code 1.`,
		Example: `  agent resume --state /var/lib/dtesn-agent`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return give(cmd, state, "resume", order{Reason: reason, Timeout: timeout.Seconds()})
		},
	}
	stateFlag(cmd, &state)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for who reads the history")
	timeoutFlag(cmd, &timeout)
	return cmd
}
