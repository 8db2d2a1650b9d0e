package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

func newDiff() *cobra.Command {
	var state string
	var asJSON bool
	var open func() (*schema.Schema, error)
	cmd := &cobra.Command{
		Use:   "diff ID [ID] --state DIR",
		Short: "Show what differs between a record and what is applied, or between two",
		Long: `diff compares the parameters of a record with the applied ones, or those of two
records, the first as the old side. It needs no running agent. The schema says
which changes are critical: give --schema where the agent has it.`,
		Example: `  agent diff snapshot_1699123456_0014 --state /var/lib/dtesn-agent
  agent diff 14 15 --state /var/lib/dtesn-agent`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := open()
			if err != nil {
				return err
			}
			r, err := gitstore.OpenReader(state)
			if err != nil {
				return err
			}
			old, current, err := sides(cmd, r, args)
			if err != nil {
				return err
			}
			changes := current.Config.Diff(old.Config)
			if rules := s.For(current.Environment); rules != nil {
				changes = rules.Diff(old.Config, current.Config) // which knows what is critical
			}
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
				fmt.Fprintln(cmd.OutOrStdout(), status.Plain(c.String()))
			}
			if len(changes) == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s and %s have the same parameters\n", old.ID, current.ID)
			}
			return nil
		},
	}
	open = schemaOf(cmd)
	stateFlag(cmd, &state)
	cmd.ValidArgsFunction = completeID(&state)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, as GET /v1/config/diff/{id}")
	return cmd
}

// sides are the two records of a diff.
func sides(cmd *cobra.Command, r *gitstore.Reader, args []string) (old, current record.Row, err error) {
	defer waitFor(cmd, "reading the history")()
	if old, err = r.Lookup(cmd.Context(), args[0]); err != nil {
		return old, current, err
	}
	if len(args) == 2 {
		current, err = r.Lookup(cmd.Context(), args[1])
		return old, current, err
	}
	applied, err := r.Applied()
	if err != nil {
		return old, current, err
	}
	if applied == nil {
		return old, current, problem.New("", errors.New("nothing was applied yet, so there is nothing to compare with"), "name two records")
	}
	return old, record.Row{Record: *applied}, nil
}
