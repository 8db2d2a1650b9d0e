package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
)

// completeID offers the newest snapshots' ids to a shell.
func completeID(state *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		var ids []string
		if *state == "" {
			*state = os.Getenv(envName("state"))
		}
		if r, err := gitstore.OpenReader(*state); err == nil {
			records, _ := r.List(cmd.Context(), "", 50)
			for i := range records {
				ids = append(ids, cobra.CompletionWithDesc(records[i].ID, string(records[i].Outcome)+" "+status.Plain(records[i].Description)))
			}
		}
		return ids, cobra.ShellCompDirectiveNoFileComp
	}
}

func newSnapshots() *cobra.Command {
	var state, before string
	var asJSON bool
	var limit int
	cmd := &cobra.Command{
		Use:   "snapshots --state DIR",
		Short: "List what was recorded, newest first",
		Long: `snapshots lists the records of the snapshot repository, newest first: when, what
came of it, and what changed. It needs no running agent.`,
		Example: `  agent snapshots --state /var/lib/dtesn-agent
  agent snapshots --state /var/lib/dtesn-agent --limit 200 --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > 1000 {
				return usage("--limit: %d is out of range: 1 to 1000", limit)
			}
			r, err := gitstore.OpenReader(state)
			if err != nil {
				return err
			}
			end := waitFor(cmd, "reading the history")
			records, listErr := r.List(cmd.Context(), before, limit)
			end()
			if listErr != nil && len(records) == 0 {
				return listErr
			}
			note := beginning(r, records)
			if asJSON {
				list := make([]json.RawMessage, len(records))
				for i := range records {
					if list[i], err = status.RecordJSON(records[i]); err != nil {
						return err
					}
				}
				answer := map[string]any{"success": listErr == nil, "snapshots": list}
				if note != "" {
					answer["note"] = note
				}
				if err := printJSON(cmd, answer); err != nil {
					return err
				}
			} else if err := listText(cmd.OutOrStdout(), records, note); err != nil {
				return err
			}
			if listErr != nil { // what could be read is shown all the same
				return fmt.Errorf("list older records: %w", listErr)
			}
			return nil
		},
	}
	stateFlag(cmd, &state)
	f := cmd.Flags()
	f.IntVar(&limit, "limit", 50, "how many, 1 to 1000")
	f.StringVar(&before, "before", "", "begin behind the record with this `id`")
	f.BoolVar(&asJSON, "json", false, "print JSON, as GET /v1/config/snapshots")
	return cmd
}

// cut shortens s to at most n characters, and says so.
func cut(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// beginning says, below a page that ends with the oldest record, that there were
// older ones; "" if there were none, or they are on the next page.
func beginning(r *gitstore.Reader, records []record.Row) string {
	first, err := r.First()
	if err != nil || first == 1 || len(records) == 0 || records[len(records)-1].Index != first {
		return ""
	}
	return fmt.Sprintf("the history begins here: records 1 to %d are not kept (pruned, or lost to damage)", first-1)
}

func listText(w io.Writer, records []record.Row, note string) error {
	if len(records) == 0 {
		_, err := fmt.Fprintln(w, "nothing was recorded yet")
		return err
	}
	t := &table{w: w}
	t.add("SNAPSHOT", "WHEN", "KIND", "OUTCOME", "CHANGES", "DESCRIPTION", "BY")
	for i := range records {
		rec := &records[i]
		mark := ""
		if rec.IsActive {
			mark = " (active)"
		}
		var changes []string
		for _, c := range rec.Changes {
			changes = append(changes, fmt.Sprintf("%s %v -> %v", c.Parameter, c.Old, c.New))
		}
		if len(changes) == 0 {
			changes = []string{"-"}
		}
		t.add(rec.ID, date(rec.Timestamp), string(rec.Kind), string(rec.Outcome)+mark,
			cutFor(w, status.Plain(strings.Join(changes, ", ")), 70), cutFor(w, status.Plain(rec.Description), 80), cutFor(w, status.Plain(status.Doer(rec)), 100))
	}
	if err := t.flush(); err != nil || note == "" {
		return err
	}
	_, err := fmt.Fprintln(w, note)
	return err
}
