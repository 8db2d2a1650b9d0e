package cli

import (
	"cmp"
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
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// An instanceOutcome is what came of a merge on one instance. The comment keeps them, as JSON
// that is not shown.
type instanceOutcome struct {
	Environment schema.Environment `json:"environment"`
	Instance    string             `json:"instance"`
	Type        apply.EventType    `json:"type"`
	At          float64            `json:"at"` // Unix seconds
	Reason      string             `json:"reason,omitempty"`
}

const (
	outcomesBegin = "<!-- dtesn-agent outcomes "
	outcomesEnd   = "<!-- end of outcomes -->"
	// maxOutcomes bounds the instances that a comment remembers: about 40 KiB.
	maxOutcomes = 300
)

// isOf reports whether both are of one instance.
func (o instanceOutcome) isOf(other instanceOutcome) bool {
	return o.Environment == other.Environment && o.Instance == other.Instance
}

// tellOutcome puts an event into the comment of the pull request that brought its commit.
func (c *commenter) tellOutcome(cmd *cobra.Command) error {
	var told struct{ Data *apply.Event }
	const maxEvent = 1 << 20
	err := json.NewDecoder(io.LimitReader(cmd.InOrStdin(), maxEvent)).Decode(&told)
	if e := told.Data; err != nil || e == nil || e.Type == "" || e.Instance == "" {
		return usageHint("a hook gets one: command: [agent, comment, --outcome, …]", "--outcome: standard input has no event of an agent")
	}
	e := told.Data
	saysSo := []apply.EventType{apply.EventApplied, apply.EventRejected, apply.EventRefused, apply.EventInvalid, apply.EventHeld}
	if !slices.Contains(saysSo, e.Type) || e.Source == nil {
		fmt.Fprintf(cmd.OutOrStdout(), "%s: nothing to say below a pull request\n", e.Type)
		return nil
	}
	host, err := c.connect()
	if err != nil {
		return err
	}
	numbers := []int{c.number}
	if c.number == 0 {
		if numbers, err = host.PullsOf(cmd.Context(), e.Source.Commit); err != nil {
			return err
		}
	}
	if len(numbers) == 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "%.12s: no pull request brought it\n", e.Source.Commit)
	}
	outcome := instanceOutcome{e.Environment, e.Instance, e.Type, e.At, problem.Line(e.Reason, 200)}
	for _, number := range numbers {
		if err := c.addOutcome(cmd, host, number, outcome); err != nil {
			return err
		}
	}
	return nil
}

// addOutcome edits the comment, and again where another instance did so at the same time: the
// last one to write wins.
func (c *commenter) addOutcome(cmd *cobra.Command, host *codehost.Repository, number int, outcome instanceOutcome) error {
	marker := markerOf(path.Join(c.config))
	const attempts = 6
	for range attempts {
		old, err := host.Find(cmd.Context(), number, marker)
		if err != nil {
			return err
		}
		id, body := int64(0), marker
		if len(old) > 0 {
			id, body = old[0].ID, strings.ReplaceAll(old[0].Body, "\r\n", "\n")
		}
		known, rest := readOutcomes(strings.TrimPrefix(body, marker))
		if i := slices.IndexFunc(known, outcome.isOf); i >= 0 && known[i].At >= outcome.At {
			fmt.Fprintf(cmd.OutOrStdout(), "pull request %d: %s\n", number, outcome)
			return nil
		}
		known = append(slices.DeleteFunc(known, outcome.isOf), outcome)
		outcomes := writeOutcomes(known)
		if len(outcomes)+len(rest) > maxMarkdown {
			rest, _, _ = strings.Cut(rest, "\n") // what happens to whom
		}
		text := marker + "\n" + outcomes + "\n" + rest
		if err := host.Write(cmd.Context(), number, id, strings.TrimSpace(text)); err != nil {
			return err
		}
		select {
		case <-time.After(rand.N(2 * time.Second)):
		case <-cmd.Context().Done():
			return cmd.Context().Err()
		}
	}
	return problem.New("", fmt.Errorf("pull request %d: others edit the comment all the time", number), "the hook tries again later")
}

// readOutcomes returns what a comment remembers, and the rest of it. Only its beginning
// counts: further down stand texts of others.
func readOutcomes(body string) (known []instanceOutcome, rest string) {
	body = strings.TrimSpace(body)
	list, ok := strings.CutPrefix(body, outcomesBegin)
	text, after, ends := strings.Cut(list, outcomesEnd)
	text, _, isClosed := strings.Cut(text, " -->")
	if !ok || !ends || !isClosed || json.Unmarshal([]byte(text), &known) != nil {
		return nil, body
	}
	return known, strings.TrimSpace(after)
}

// writeOutcomes shows the outcomes, those that failed first, and keeps the newest of them.
func writeOutcomes(list []instanceOutcome) string {
	slices.SortFunc(list, func(a, b instanceOutcome) int {
		rank := func(o instanceOutcome) int {
			if o.Type == apply.EventApplied {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(b.At, a.At))
	})
	list = list[:min(len(list), maxOutcomes)]
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

// String says what came of a merge on an instance, in Markdown.
func (o instanceOutcome) String() string {
	at := record.FromUnix(o.At).UTC().Format("2006-01-02 15:04 UTC")
	if o.Type == apply.EventApplied {
		return fmt.Sprintf("live on %s (%s) since %s", code(o.Instance), o.Environment, at)
	}
	return fmt.Sprintf("**%s** on %s (%s) at %s: %s", o.Type, code(o.Instance), o.Environment, at, code(o.Reason))
}
