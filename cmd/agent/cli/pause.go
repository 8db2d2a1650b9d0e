package cli

import (
	"time"

	"github.com/spf13/cobra"
)

func newPause() *cobra.Command {
	var state, reason string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "pause --reason TEXT --state DIR",
		Short: "Try nothing until agent resume",
		Long: `pause keeps the engine on what is applied, whatever the source declares, until
agent resume. A change that is pending is withdrawn. The engine is still looked
after: a restart or a drift is corrected. The pause is on record and outlives a
restart of the agent.`,
		Example: `  agent pause --reason "load test until noon" --state /var/lib/dtesn-agent`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return give(cmd, state, "pause", order{Reason: reason, Timeout: timeout.Seconds()})
		},
	}
	stateFlag(cmd, &state)
	needReason(cmd, &reason)
	timeoutFlag(cmd, &timeout)
	return cmd
}
