package cli

import (
	"time"

	"github.com/spf13/cobra"
)

func newRollback() *cobra.Command {
	var state, reason string
	var pause bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "rollback [ID] --reason TEXT --state DIR",
		Short: "Put an earlier applied state back on the engine",
		Long: `rollback brings a state that was applied before back to the engine: the one with
the given snapshot id, or the previous one. What ran and what the source
declares is then held: it is not tried again until the source declares something
else, or until agent resume. With --pause nothing is tried until agent resume.

Exit codes: 0 applied; 4 rejected by the engine, which is then brought back to
what is applied; 1 not possible, or still pending: the message says whether it is
on record, and so goes on also over a restart of the agent.`,
		Example: `  agent rollback --reason "latency doubled" --state /var/lib/dtesn-agent
  agent rollback snapshot_1699123456_0014 --reason "last good" --pause --state /var/lib/dtesn-agent`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := order{Reason: reason, Pause: pause, Timeout: timeout.Seconds()}
			if len(args) > 0 {
				o.ID = args[0]
			}
			return give(cmd, state, "rollback", o)
		},
	}
	stateFlag(cmd, &state)
	cmd.ValidArgsFunction = completeID(&state)
	needReason(cmd, &reason)
	timeoutFlag(cmd, &timeout)
	cmd.Flags().BoolVar(&pause, "pause", false, "try nothing afterwards, until agent resume")
	return cmd
}
