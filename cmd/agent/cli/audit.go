package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/events"
	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

func newAudit() *cobra.Command {
	var state string
	var types []string
	var since string
	var asJSON, follow, verify bool
	cmd := &cobra.Command{
		Use:   "audit --state DIR",
		Short: "List what happened: who changed or ordered what, and what came of it",
		Long: `audit lists the events of an agent, the oldest first: what was applied,
rejected, rolled back, held, paused or changed past the agent; when; by which
author, signer or user; and why. It reads <state>/events.jsonl, which keeps the
last 4 to 8 MiB, and needs no running agent. The records themselves: agent
snapshots.

With --verify it reads the whole history instead, checks each object against its
hash and each record against the one before, and exits 1 if one is damaged.`,
		Example: `  agent audit --state /var/lib/dtesn-agent --since 24h
  agent audit --state /var/lib/dtesn-agent --type rolled_back,paused --json
  agent audit --state /var/lib/dtesn-agent --follow
  agent audit --state /var/lib/dtesn-agent --verify`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, t := range types {
				if !slices.Contains(apply.EventTypes(), apply.EventType(t)) {
					return usageHint("one of "+eventTypes(), "--type: unknown type %q", t)
				}
			}
			begin, err := parseSince(since, time.Now())
			if err != nil {
				return err
			}
			if verify {
				return verifyHistory(cmd, state)
			}
			wanted := func(e *apply.Event) bool {
				return e.At >= begin && (len(types) == 0 || slices.Contains(types, string(e.Type)))
			}
			return listEvents(cmd.Context(), cmd.OutOrStdout(), state, wanted, asJSON, follow)
		},
	}
	stateFlag(cmd, &state)
	f := cmd.Flags()
	f.StringSliceVar(&types, "type", nil, "only these `types`: "+eventTypes())
	f.StringVar(&since, "since", "", "only events of this last `time`, such as 24h or 7d, or since 2026-11-30T20:16")
	f.BoolVar(&asJSON, "json", false, "print each event as a line of JSON")
	f.BoolVarP(&follow, "follow", "f", false, "go on with the events to come, until interrupted")
	f.BoolVar(&verify, "verify", false, "check the whole history, and exit 1 if a record is damaged")
	for _, name := range []string{"follow", "json", "type", "since"} {
		exclusive(cmd, "verify", name)
	}
	complete(cmd, "type", strings.Split(eventTypes(), ", ")...)
	return cmd
}

// parseSince returns when a time of --since begins, in Unix seconds: how long ago, or a time,
// as the list has it, in UTC.
func parseSince(text string, now time.Time) (float64, error) {
	if text == "" {
		return 0, nil
	}
	ago, err := time.ParseDuration(text)
	if days, isDays := strings.CutSuffix(text, "d"); isDays {
		var n int
		n, err = strconv.Atoi(days)
		ago = time.Duration(min(n, 36500)) * 24 * time.Hour
	}
	if err == nil && ago >= 0 {
		return record.Unix(now.Add(-ago)), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04Z07:00", "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateOnly} {
		if at, err := time.Parse(layout, text); err == nil {
			return record.Unix(at), nil
		}
	}
	return 0, usageHint("such as 24h, 7d or 2026-11-30T20:16 (UTC)", "--since: %q is no time", text)
}

func eventTypes() string {
	var names []string
	for _, t := range apply.EventTypes() {
		names = append(names, string(t))
	}
	return strings.Join(names, ", ")
}

// followEvery is how often it is looked whether there are newer events.
const followEvery = 250 * time.Millisecond

func listEvents(ctx context.Context, w io.Writer, state string, wanted func(*apply.Event) bool, asJSON, follow bool) error {
	if _, err := os.Stat(state); err != nil {
		return &problem.Error{Op: "read events in", Place: state, Err: problem.Bare(err), Hint: "check --state; it is the one `agent run` was given"}
	}
	last, isEmpty := int64(0), true
	t := &table{w: w, widths: []int{20, 11, 24}} // of those that are followed, most have room
	var seen os.FileInfo
	for {
		info, _ := os.Stat(filepath.Join(state, events.File))
		if seen != nil && info != nil && !os.SameFile(info, seen) {
			newest := int64(0)
			for e := range events.Read(state, 0) {
				newest = e.Sequence
			}
			if newest > 0 && newest < last { // another log is in its place
				last = 0
			}
		}
		if seen == nil || info == nil || info.Size() != seen.Size() || !os.SameFile(info, seen) {
			for e, err := range events.Read(state, last) {
				if err != nil {
					return err
				}
				last = e.Sequence
				if !wanted(&e) {
					continue
				}
				if isEmpty && !asJSON {
					t.add("WHEN", "EVENT", "RECORD", "BY", "WHAT")
				}
				isEmpty = false
				if asJSON {
					if err := eventJSON(w, &e); err != nil {
						return err
					}
				} else {
					eventLine(t, &e)
				}
			}
			if err := t.flush(); err != nil {
				return err
			}
			seen = info
		}
		if !follow {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
	}
	if isEmpty && !asJSON {
		_, err := fmt.Fprintln(w, "no such event was recorded")
		return err
	}
	return nil
}

func eventJSON(w io.Writer, e *apply.Event) error {
	text, err := json.Marshal(e)
	if err == nil {
		_, err = fmt.Fprintf(w, "%s\n", text)
	}
	return err
}

func eventLine(t *table, e *apply.Event) {
	t.add(date(e.At), status.Plain(string(e.Type)), cmp.Or(status.Plain(e.Record), "-"), cmp.Or(cutFor(t.w, status.Plain(e.Doer()), 80), "-"), cutFor(t.w, status.Plain(e.Summary()), 200))
}

// verifyHistory reads each record, which checks its objects against their hashes.
func verifyHistory(cmd *cobra.Command, state string) error {
	r, err := gitstore.OpenReader(state)
	if err != nil {
		return err
	}
	const page = 1000
	newest, before, count := "", "", 0
	total := 0
	if head, err := r.List(cmd.Context(), "", 1); err == nil && len(head) > 0 {
		first, _ := r.First()
		total = head[0].Index - first + 1
	}
	var read atomic.Int64
	end := (&progress{w: cmd.ErrOrStderr()}).show(func() string {
		return fmt.Sprintf("audit: verifying records, %d of %d", read.Load(), total)
	})
	defer end()
	var damaged []string
	for {
		rows, err := r.List(cmd.Context(), before, page)
		for i := range rows {
			row := &rows[i]
			if before = row.ID; newest == "" {
				newest = row.Commit
			}
			if count++; row.IsDamaged() {
				damaged = append(damaged, fmt.Sprintf("record %d (%s): %s", row.Index, row.Commit, strings.Join(row.Errors, "; ")))
			}
		}
		read.Store(int64(count))
		if err != nil {
			return problem.New("", fmt.Errorf("the history cannot be followed behind record %s: %w", before, err), "see Damaged history in docs/history.md")
		}
		if len(rows) < page {
			break
		}
	}
	end()
	if len(damaged) > 0 {
		return problem.New("", fmt.Errorf("%d of %d records are damaged: %s", len(damaged), count, strings.Join(damaged[:min(len(damaged), 10)], "; ")), "see Damaged history in docs/history.md")
	}
	if count == 0 {
		_, err = fmt.Fprintln(cmd.OutOrStdout(), "nothing was recorded yet")
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d records verified, from %s back to %s\n", count, newest, before)
	return err
}
