package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"dtesn-agent/gitstore"
	"dtesn-agent/schema"
)

func newDiff() *cobra.Command {
	var state string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "diff ID [ID] --state DIR",
		Short: "Show what differs between a record and what is applied, or between two",
		Long: `diff compares the parameters of a record with the applied ones, or those of two
records, the first as the old side. It needs no running agent.`,
		Example: `  agent diff snapshot_1699123456_0014 --state /var/lib/dtesn-agent
  agent diff 14 15 --state /var/lib/dtesn-agent`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := history(state)
			if err != nil {
				return err
			}
			old, current, err := sides(cmd, r, args)
			if err != nil {
				return err
			}
			changes := current.Config.Diff(old.Config)
			if asJSON {
				differences := map[string]any{}
				for _, c := range changes {
					differences[c.Parameter] = map[string]any{"current": c.New, "snapshot": c.Old, "changed": true}
				}
				return printJSON(cmd, map[string]any{
					"success": true, "snapshot_id": old.ID, "current_id": current.ID, "differences": differences, "total_changes": len(changes),
				})
			}
			for _, c := range changes {
				fmt.Fprintln(cmd.OutOrStdout(), c)
			}
			if len(changes) == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s and %s have the same parameters\n", old.ID, current.ID)
			}
			return nil
		},
	}
	stateFlag(cmd, &state)
	cmd.ValidArgsFunction = completeID(&state)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, as GET /v1/config/diff/{id}")
	return cmd
}

// sides are the two records of a diff.
func sides(cmd *cobra.Command, r *gitstore.Reader, args []string) (old, current schema.Record, err error) {
	if old, err = r.Lookup(cmd.Context(), args[0]); err != nil {
		return old, current, fault(err, "")
	}
	if len(args) == 2 {
		if current, err = r.Lookup(cmd.Context(), args[1]); err != nil {
			return old, current, fault(err, "")
		}
		return old, current, nil
	}
	applied, err := r.Applied()
	if err != nil {
		return old, current, fault(err, "")
	}
	if applied == nil {
		return old, current, fault(errors.New("nothing was applied yet, so there is nothing to compare with"), "name two records")
	}
	return old, schema.Record{Snapshot: *applied}, nil
}
