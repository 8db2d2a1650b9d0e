package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
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
				ids = append(ids, cobra.CompletionWithDesc(records[i].ID, string(records[i].Outcome)+" "+status.Plain(records[i].Subject)))
			}
		}
		return ids, cobra.ShellCompDirectiveNoFileComp
	}
}

func newSnapshots() *cobra.Command {
	var state, before, since string
	var asJSON, wide bool
	var limit int
	var only filter
	cmd := &cobra.Command{
		Use:   "snapshots --state DIR",
		Short: "List what was recorded, newest first",
		Long: `snapshots lists the records of the snapshot repository, newest first: when,
what came of it, what changed and why, and who did it. A line has 100 columns
at most; * marks the applied record. It needs no running agent.

--wide shows ids, kinds and all changes. --since, --outcome and --parameter
choose records; those that are listed match all of them.`,
		Example: `  agent snapshots --state /var/lib/dtesn-agent --since 24h
  agent snapshots --state /var/lib/dtesn-agent --outcome rejected,superseded \
    --wide
  agent snapshots --state /var/lib/dtesn-agent --limit 200 --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > 1000 {
				return usage("--limit: %d is out of range: 1 to 1000", limit)
			}
			var err error
			if only.begin, err = parseSince(since, time.Now()); err != nil {
				return err
			}
			if err := only.check(); err != nil {
				return err
			}
			r, err := gitstore.OpenReader(state)
			if err != nil {
				return err
			}
			end := waitFor(cmd, "reading the history")
			records, note, listErr := only.list(cmd.Context(), r, before, limit)
			end()
			if listErr != nil && len(records) == 0 {
				return listErr
			}
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
			} else if err := listText(cmd.OutOrStdout(), records, only, wide, note); err != nil {
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
	f.StringVar(&since, "since", "", "only records of this last `time`, such as 24h or 7d, or since 2026-11-30T20:16")
	f.StringSliceVar(&only.outcomes, "outcome", nil, "only these `outcomes`: "+strings.Join(recordOutcomes, ", "))
	f.StringSliceVar(&only.parameters, "parameter", nil, "only records that change one of these `parameters`")
	f.BoolVar(&wide, "wide", false, "show ids, kinds and all changes, however long the lines are")
	f.BoolVar(&asJSON, "json", false, "print JSON, as GET /v1/config/snapshots")
	complete(cmd, "outcome", recordOutcomes...)
	return cmd
}

// recordOutcomes are the outcomes that a record may have.
var recordOutcomes = []string{string(record.Applied), string(record.Pending), string(record.Rejected), string(record.Superseded)}

// A filter chooses records.
type filter struct {
	begin                float64 // Unix seconds; 0 is the first record
	outcomes, parameters []string
}

func (f *filter) isEmpty() bool {
	return f.begin == 0 && len(f.outcomes) == 0 && len(f.parameters) == 0
}

func (f *filter) check() error {
	for _, o := range f.outcomes {
		if !slices.Contains(recordOutcomes, o) {
			return usageHint("one of "+strings.Join(recordOutcomes, ", "), "--outcome: unknown outcome %q", o)
		}
	}
	return nil
}

func (f *filter) matches(row *record.Row) bool {
	isNamed := func(c schema.Change) bool { return slices.Contains(f.parameters, c.Parameter) }
	return (len(f.outcomes) == 0 || slices.Contains(f.outcomes, string(row.Outcome))) &&
		(len(f.parameters) == 0 || slices.ContainsFunc(row.Changes, isNamed))
}

// list returns at most limit records that match, behind the record named before. Records
// that could be read come with an error too. The note says why older ones are missing.
func (f *filter) list(ctx context.Context, r *gitstore.Reader, before string, limit int) (found []record.Row, note string, err error) {
	const page = 200
	size := page
	if f.isEmpty() {
		size = limit
	}
	for {
		rows, err := r.List(ctx, before, size)
		isOver := len(rows) < size || err != nil
		recent := 0
		for i := range rows {
			row := &rows[i]
			before = row.ID
			if row.Timestamp < f.begin {
				continue
			}
			if recent++; f.matches(row) {
				found = append(found, *row)
			}
			if len(found) == limit {
				return found, beginning(r, row), err
			}
		}
		switch {
		case recent == 0 && f.begin > 0: // a clock that went back is not older than a page
			return found, "", err
		case isOver && len(rows) > 0:
			note = beginning(r, &rows[len(rows)-1])
			fallthrough
		case isOver:
			return found, note, err
		}
	}
}

// beginning says, below a page that ends with the oldest record, that there were
// older ones; "" if there were none, or they are on the next page.
func beginning(r *gitstore.Reader, last *record.Row) string {
	first, err := r.First()
	if err != nil || first == 1 || last.Index != first {
		return ""
	}
	return fmt.Sprintf("the history begins here: records 1 to %d are not kept (pruned, or lost to damage)", first-1)
}

func listText(w io.Writer, records []record.Row, only filter, wide bool, note string) error {
	var err error
	switch {
	case len(records) > 0 && wide:
		err = listWide(w, records)
	case len(records) > 0:
		err = listNarrow(w, records)
	case only.isEmpty():
		_, err = fmt.Fprintln(w, "nothing was recorded yet")
	default:
		_, err = fmt.Fprintln(w, "no such record")
	}
	if err == nil && note != "" {
		_, err = fmt.Fprintln(w, note)
	}
	return err
}

const (
	listColumns = 100
	maxDoer     = 16 // columns of who did it
)

// listNarrow writes a line of at most listColumns a record.
func listNarrow(w io.Writer, records []record.Row) error {
	number, outcome, by := len("NO"), len("OUTCOME"), len("BY")
	doers := make([]string, len(records))
	for i := range records {
		rec := &records[i]
		doers[i] = cut(cmp.Or(strings.TrimSpace(status.Plain(doerName(rec))), "-"), maxDoer)
		number, outcome = max(number, len(strconv.Itoa(rec.Index))), max(outcome, len(rec.Outcome))
		by = max(by, columns(doers[i]))
	}
	const when = "2006-01-02 15:04"
	what := listColumns - len("* ") - number - 2 - len(when) - 2 - outcome - 2 - by - 2
	line := func(mark, no, at, came, who, text string) error {
		_, err := fmt.Fprintf(w, "%s %*s  %-*s  %-*s  %s%*s  %s\n", mark, number, no, len(when), at, outcome, came, who, by-columns(who), "", cut(status.Plain(text), what))
		return err
	}
	if err := line(" ", "NO", "WHEN (UTC)", "OUTCOME", "BY", "WHAT AND WHY"); err != nil {
		return err
	}
	for i := range records {
		rec, mark := &records[i], " "
		if rec.IsActive {
			mark = "*"
		}
		err := line(mark, strconv.Itoa(rec.Index), record.FromUnix(rec.Timestamp).UTC().Format(when), string(rec.Outcome), doers[i], rec.Subject)
		if err != nil {
			return err
		}
	}
	return nil
}

// doerName is the name alone of who brought a record about.
func doerName(rec *record.Row) string {
	switch {
	case rec.Requester != nil:
		return cmp.Or(rec.Requester.User, fmt.Sprintf("uid %d", rec.Requester.UID))
	case rec.Kind == record.KindChange:
		name, _, _ := strings.Cut(rec.Source.Author, " <")
		return name
	}
	return status.Doer(rec)
}

func listWide(w io.Writer, records []record.Row) error {
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
			status.Plain(strings.Join(changes, ", ")), status.Plain(rec.Description), status.Plain(status.Doer(rec)))
	}
	return t.flush()
}
