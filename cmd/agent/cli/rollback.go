package cli

import (
	"time"

	"github.com/spf13/cobra"
)

func newRollback() *cobra.Command {
	var state, reason string
	var pause, dryRun bool
	var hold []string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "rollback [ID] --reason TEXT --state DIR",
		Short: "Put an earlier applied state back on the engine",
		Long: `rollback brings a state that was applied before back to the engine: the one with
the given snapshot id, or the newest applied one that differs from what is
applied and is not held. While a change is pending it is what is applied.

Each value that ran, or that the source declares, and that is not the target's
is then held: what has such a value is not tried, whatever else it changes,
until another value was applied or until agent resume. --hold NAME holds the
values of that parameter alone. With --pause nothing is tried until agent
resume. --dry-run shows the target, the values and what would be held.

Exit codes: 0 applied; 4 rejected by the engine, which is then brought back to
what is applied; 1 not possible, or still pending: the message says whether it
is on record, and so goes on also over a restart of the agent.`,
		Example: `  agent rollback --reason "latency doubled" --state /var/lib/dtesn-agent
  agent rollback snapshot_1699123456_0014 --reason "last good" --pause \
    --state /var/lib/dtesn-agent`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := order{Reason: reason, Pause: pause, Hold: hold, DryRun: dryRun, Timeout: timeout.Seconds()}
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
	cmd.Flags().StringSliceVar(&hold, "hold", nil, "the `parameter` whose values to hold; all that differ if not given")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would be done")
	cmd.Flags().BoolVar(&pause, "pause", false, "try nothing afterwards, until agent resume")
	return cmd
}
