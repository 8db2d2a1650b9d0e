package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/codehost"
	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher"
)

// An instanceOutcome is the result of a merge on one instance. The comment keeps a list of
// them as hidden JSON.
type instanceOutcome struct {
	Environment schema.Environment `json:"environment"`
	Instance    string             `json:"instance"`
	Type        apply.EventType    `json:"type"`
	At          float64            `json:"at"` // Unix seconds
	Reason      string             `json:"reason,omitempty"`
	// IsOverlaid: it was applied together with later merges, which may have other values.
	IsOverlaid bool `json:"overlaid,omitempty"`
}

const (
	outcomesBegin = "<!-- dtesn-agent outcomes "
	outcomesEnd   = "<!-- end of outcomes -->"
	// maxReason bounds a reason, in bytes.
	maxReason = 300
	// crowdTime is for how long after an outcome other instances are likely to post theirs.
	crowdTime = 2 * time.Minute
)

// isOf reports whether both are of the same instance.
func (o instanceOutcome) isOf(other instanceOutcome) bool {
	return o.Environment == other.Environment && o.Instance == other.Instance
}

// isRefusal reports whether the values were never in use.
func (o instanceOutcome) isRefusal() bool {
	return slices.Contains([]apply.EventType{apply.EventRejected, apply.EventRefused, apply.EventInvalid}, o.Type)
}

// tellOutcome adds an event to the comments of the pull requests that brought its commit.
func (c *commenter) tellOutcome(cmd *cobra.Command) error {
	e, err := readEvent(cmd.InOrStdin())
	if err != nil {
		return err
	}
	earlier, commit, err := c.commits(cmd, e)
	if err != nil {
		return err
	}
	if commit == "" {
		fmt.Fprintf(cmd.OutOrStdout(), "%s: nothing to post\n", status.Plain(string(e.Type)))
		return nil
	}
	outcome := instanceOutcome{Environment: e.Environment, Instance: e.Instance, Type: e.Type, At: e.At, Reason: problem.Line(e.Reason, maxReason)}
	if e.Type == apply.EventInSync {
		outcome.Type = apply.EventApplied
	}
	if outcome.Type == apply.EventApplied {
		outcome.Reason = ""
	}
	host, err := c.connect()
	if err != nil {
		return err
	}
	own, all := []int{c.number}, []int{c.number}
	if c.number == 0 {
		if own, err = host.PullsOf(cmd.Context(), "", commit); err == nil {
			all, err = host.PullsOf(cmd.Context(), earlier, commit)
		}
		if err != nil {
			return err
		}
	}
	if len(all) == 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "%.12s: no pull request brought it\n", commit)
	}
	for _, number := range all {
		outcome.IsOverlaid = !slices.Contains(own, number)
		err := c.addOutcome(cmd, host, number, outcome, e.Type == apply.EventInSync)
		if codehost.IsRefusal(err) && c.number == 0 { // a retry would fail as well, and later events wait for this one
			fmt.Fprintln(cmd.ErrOrStderr(), status.Plain(fmt.Sprintf("warning: pull request %d: %s", number, problem.Text(err))))
		} else if err != nil {
			return err
		}
	}
	return nil
}

// readEvent reads an event as a hook gets it, or as the log of events has it.
func readEvent(r io.Reader) (*apply.Event, error) {
	const (
		maxEvent = 1 << 20
		latest   = 1e11 // the year 5138
	)
	text, err := io.ReadAll(io.LimitReader(r, maxEvent))
	var told struct{ Data *apply.Event }
	if err == nil {
		err = json.Unmarshal(text, &told)
	}
	e := told.Data
	if err == nil && e == nil {
		e = &apply.Event{}
		err = json.Unmarshal(text, e)
	}
	if err != nil || e.Type == "" || e.Instance == "" || e.At < 0 || e.At > latest {
		return nil, usageHint("a hook gets one (command: [agent, comment, --outcome, …]); or a line of <state>/events.jsonl", "--outcome: standard input has no event of an agent")
	}
	return e, nil
}

// commits returns the range of commits that an event is about: those after earlier, up to
// commit. An empty commit means that the event is not posted, an empty earlier that it is
// about commit alone.
func (c *commenter) commits(cmd *cobra.Command, e *apply.Event) (earlier, commit string, err error) {
	if e.Source != nil {
		commit = e.Source.Commit
	}
	switch e.Type {
	case apply.EventRejected, apply.EventRefused, apply.EventInvalid, apply.EventHeld:
		return "", commit, nil
	case apply.EventInSync:
		if watcher.IsCommit(e.Revision) {
			commit = e.Revision
		}
		return "", commit, nil
	case apply.EventApplied, apply.EventRolledBack:
	default:
		return "", "", nil
	}
	before := ""
	if c.state != "" && e.Record != "" {
		if before, err = commitBefore(cmd.Context(), c.state, e.Record, commit); err != nil {
			return "", "", err
		}
	}
	if e.Type == apply.EventApplied {
		return before, commit, nil
	}
	if c.state == "" {
		return "", "", usageHint("add --state, the directory of the agent", "--outcome: only the history knows what was rolled back from")
	}
	return commit, before, nil
}

// commitBefore returns the source commit of the newest change that was applied before a
// record, other than except; "" if there is none.
func commitBefore(ctx context.Context, state, id, except string) (string, error) {
	r, err := gitstore.OpenReader(state)
	if err != nil {
		return "", err
	}
	defer r.Close()
	const most = 500
	rows, err := r.List(ctx, id, most)
	if err != nil {
		return "", fmt.Errorf("read what was before %s: %w", id, err)
	}
	for _, row := range rows {
		if row.Kind == record.KindChange && row.Outcome == record.Applied && watcher.IsCommit(row.Source.Revision) && row.Source.Revision != except {
			return row.Source.Revision, nil
		}
	}
	return "", nil
}

// addOutcome edits the comment until it has the outcome. Other instances may edit it at the
// same time, and the hosts have no conditional write, so it is read again after each write.
// With isAgain an outcome of the same type is kept.
func (c *commenter) addOutcome(cmd *cobra.Command, host *codehost.Repository, number int, outcome instanceOutcome, isAgain bool) error {
	ctx, marker := cmd.Context(), markerOf(path.Join(c.config))
	pause := func(least, most time.Duration) error {
		select {
		case <-time.After(least + rand.N(most-least)):
			return nil
		case <-ctx.Done():
			return problem.New("", fmt.Errorf("pull request %d: too many concurrent edits of the comment", number), "run it again; a hook with --fail does")
		}
	}
	for isSeen, attempt := false, time.Duration(1); ; {
		old, err := host.Find(ctx, number, marker)
		if err != nil {
			return err
		}
		known, rest := mergeOutcomes(old, marker)
		i := slices.IndexFunc(known, outcome.isOf)
		switch {
		case i >= 0 && outcome.IsOverlaid && known[i].isRefusal(): // a later merge repaired it
			fmt.Fprintf(cmd.OutOrStdout(), "pull request %d: stays %s\n", number, known[i].Type)
			return nil
		case i >= 0 && (known[i].At > outcome.At || isAgain && known[i].Type == outcome.Type):
			fmt.Fprintf(cmd.OutOrStdout(), "pull request %d: has a newer outcome\n", number)
			return nil
		case len(old) == 1 && i >= 0 && known[i] == outcome:
			isCrowd := slices.ContainsFunc(known, func(o instanceOutcome) bool {
				return !o.isOf(outcome) && record.Unix(time.Now())-o.At < crowdTime.Seconds()
			})
			if isSeen || !isCrowd {
				fmt.Fprintf(cmd.OutOrStdout(), "pull request %d: %s\n", number, status.Plain(outcome.String()))
				return nil
			}
			isSeen = true // once more: an instance that read before this write may still write
			err = pause(2*time.Second, 4*time.Second)
		default:
			isSeen = false
			known = append(slices.DeleteFunc(known, outcome.isOf), outcome)
			if err := host.Write(ctx, number, old, marker+"\n"+withOutcomes(known, rest)); err != nil {
				return err
			}
			err = pause(0, attempt*time.Second)
			attempt = min(2*attempt, 8)
		}
		if err != nil {
			return err
		}
	}
}

// mergeOutcomes returns the newest outcome of each instance in the comments, and the rest of
// the first comment. Only the beginning of a comment is read: the rest quotes other texts.
func mergeOutcomes(comments []codehost.Comment, marker string) (known []instanceOutcome, rest string) {
	for i, c := range comments {
		body := strings.TrimSpace(strings.TrimPrefix(strings.ReplaceAll(c.Body, "\r\n", "\n"), marker))
		var these []instanceOutcome
		list, ok := strings.CutPrefix(body, outcomesBegin)
		text, after, ends := strings.Cut(list, outcomesEnd)
		text, _, isClosed := strings.Cut(text, " -->")
		if ok && ends && isClosed && json.Unmarshal([]byte(text), &these) == nil {
			body = strings.TrimSpace(after)
		}
		for _, o := range these {
			j := slices.IndexFunc(known, o.isOf)
			if j >= 0 && known[j].At >= o.At {
				continue
			}
			known = append(slices.DeleteFunc(known, o.isOf), o)
		}
		if i == 0 {
			rest = body
		}
	}
	return known, rest
}

// withOutcomes returns the text of a comment: the outcomes, failures first, and the rest. If
// that is too long it omits the details of the rest, then the oldest outcomes.
func withOutcomes(list []instanceOutcome, rest string) string {
	slices.SortFunc(list, func(a, b instanceOutcome) int {
		rank := func(o instanceOutcome) int {
			if o.Type == apply.EventApplied {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(b.At, a.At))
	})
	for {
		text := outcomesText(list)
		if len(text)+len(rest) > maxMarkdown {
			rest, _, _ = strings.Cut(rest, "\n") // the summary
			rest = problem.Cut(rest, maxMarkdown/4)
		}
		if len(text)+len(rest) <= maxMarkdown {
			return strings.TrimSpace(text + "\n" + rest)
		}
		list = list[:len(list)*9/10]
	}
}

func outcomesText(list []instanceOutcome) string {
	hidden, _ := json.Marshal(list) // which escapes > and cannot fail
	live := 0
	var lines []string
	for _, o := range list {
		if o.Type == apply.EventApplied {
			live++
		}
		lines = append(lines, "* "+o.String())
	}
	if more := len(lines) - maxNamed; more > 0 {
		lines = append(lines[:maxNamed], fmt.Sprintf("* and %d more", more))
	}
	head := fmt.Sprintf("**Live on %d of %d instances that reported**", live, len(list))
	return outcomesBegin + string(hidden) + " -->\n" + head + "\n\n" + strings.Join(lines, "\n") + "\n\n" + outcomesEnd
}

// String returns the outcome in Markdown.
func (o instanceOutcome) String() string {
	at, where := record.FromUnix(o.At).UTC().Format("2006-01-02 15:04 UTC"), fmt.Sprintf("%s (%s)", code(o.Instance), strings.Trim(code(string(o.Environment)), "`"))
	switch o.Type {
	case apply.EventApplied:
		text := fmt.Sprintf("live on %s since %s", where, at)
		if o.IsOverlaid {
			text += ", with what was merged after it"
		}
		return text
	case apply.EventRolledBack:
		return fmt.Sprintf("**rolled back** on %s at %s: %s; its values are held: declare other ones, or run `agent resume` beside the server", where, at, code(o.Reason))
	case apply.EventHeld:
		return fmt.Sprintf("**held** on %s since %s: %s; declare other values, or run `agent resume` beside the server", where, at, code(o.Reason))
	}
	return fmt.Sprintf("**%s** on %s at %s: %s", strings.ReplaceAll(string(o.Type), "_", " "), where, at, code(o.Reason))
}
