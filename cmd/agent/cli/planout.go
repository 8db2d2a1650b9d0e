package cli

import (
	"cmp"
	"fmt"
	"html"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// planFormats write a plan, one function a --format.
var planFormats = map[string]func(*cobra.Command, *planResult) error{
	"text": planText, "markdown": planMarkdown,
	"json": func(cmd *cobra.Command, r *planResult) error { return printJSON(cmd, r) },
}

func planMarkdown(cmd *cobra.Command, r *planResult) error {
	_, err := fmt.Fprintln(cmd.OutOrStdout(), r.markdown())
	return err
}

func planText(cmd *cobra.Command, r *planResult) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	line := func(format string, cells ...any) {
		for i, c := range cells {
			cells[i] = status.Plain(fmt.Sprint(c))
		}
		fmt.Fprintf(w, format+"\n", cells...)
	}
	line("%s", r.title)
	for i := range r.Environments {
		e := &r.Environments[i]
		line("%s: %s", e.Name, e.Summary(status.Plain))
		for _, c := range e.changes() {
			line("  %s\t%s -> %s\t%s\t%s", c.Parameter, e.old(c), c.New, c.Apply, at(c))
		}
		if m := e.memory(); m != "" {
			line("  memory\t%s", m)
		}
		for _, x := range e.changedExperiments() {
			line("  experiment %s\t%s\t%s", x.Name, share(x), strings.Join(e.experimentSets(x), ", "))
			if who := cohort(x); who != "" {
				line("    %s", who)
			}
		}
		for _, v := range e.Violations {
			line("  %s", v)
		}
		for _, d := range e.Policy {
			line("  %s", denied(d))
		}
		for _, h := range e.Held {
			line("  %s", held(h))
		}
	}
	return w.Flush()
}

// changes are those of the parameters that engines get.
func (e *environmentPlan) changes() []schema.PlannedChange {
	if e.Status == schema.PlanRemoved { // its engines keep theirs
		return nil
	}
	return e.Changes
}

// old is the value before a change, as people read it.
func (e *environmentPlan) old(c schema.PlannedChange) string {
	if e.Note != "" {
		return "?"
	}
	return c.Old.String()
}

// at is where a change stands.
func at(c schema.PlannedChange) string {
	if c.File == "" {
		return "default of the schema"
	}
	return fmt.Sprintf("%s:%d", c.File, c.Line)
}

// memory says how the memory changes, "" if it does not or is unknown.
func (e *environmentPlan) memory() string {
	was, now := e.Memory.Old, e.Memory.New
	switch {
	case now == nil || e.Status == schema.PlanUnchanged:
		return ""
	case was == nil:
		return "about " + mebibytes(*now)
	case *was == *now:
		return ""
	}
	return fmt.Sprintf("about %s -> about %s", mebibytes(*was), mebibytes(*now))
}

func mebibytes(n int64) string {
	digits := 1
	if n >= 10<<20 {
		digits = 0
	}
	return fmt.Sprintf("%.*f MiB", digits, float64(n)/(1<<20))
}

// changedExperiments are those that people are shown.
func (e *environmentPlan) changedExperiments() []schema.PlannedExperiment {
	if e.Status == schema.PlanRemoved { // its engines keep theirs
		return nil
	}
	return slices.DeleteFunc(slices.Clone(e.Experiments), func(x schema.PlannedExperiment) bool { return !x.Changed && e.Status != schema.PlanAdded })
}

func share(x schema.PlannedExperiment) string {
	if x.Was == x.Percent {
		return fmt.Sprintf("%d %%", x.Percent)
	}
	return fmt.Sprintf("%d %% -> %d %%", x.Was, x.Percent)
}

// experimentSets lists what an experiment sets, with the value outside of it.
func (e *environmentPlan) experimentSets(x schema.PlannedExperiment) (texts []string) {
	for _, c := range x.Sets {
		text := fmt.Sprintf("%s %v", c.Parameter, c.New)
		if !c.Old.IsZero() && !c.Old.Equal(c.New) {
			text = fmt.Sprintf("%s %v -> %v", c.Parameter, c.Old, c.New)
		}
		if e.Now != nil && !c.New.IsZero() {
			if v := e.Now.Parameters.Get(c.Parameter); !v.IsZero() && !v.Equal(c.New) {
				text += fmt.Sprintf(" (else %v)", v)
			}
		}
		texts = append(texts, text)
	}
	return texts
}

// maxNamed bounds the names in a list for people.
const maxNamed = 20

// cohort says which of the named instances an experiment has, those that join
// first; "" if none was named.
func cohort(x schema.PlannedExperiment) string {
	var parts []string
	for _, part := range []struct {
		what  string
		names []string
	}{
		{"joining", x.Joining},
		{"staying", without(x.Instances, x.Joining)},
		{"leaving", x.Leaving},
	} {
		if len(part.names) > 0 {
			parts = append(parts, part.what+": "+firstNames(part.names))
		}
	}
	return strings.Join(parts, "; ")
}

// firstNames joins names, at most maxNamed of them.
func firstNames(names []string) string {
	text := strings.Join(names[:min(len(names), maxNamed)], ", ")
	if more := len(names) - maxNamed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// without returns the names that are not in others; both are sorted.
func without(names, others []string) (rest []string) {
	for _, name := range names {
		if _, ok := slices.BinarySearch(others, name); !ok {
			rest = append(rest, name)
		}
	}
	return rest
}

// denied says which rule of the policy denies a plan.
func denied(d schema.Denial) string {
	text := "denied by the policy: " + d.String()
	if d.Hint != "" {
		text += "; " + d.Hint
	}
	return text
}

// held says what the agent holds of a plan.
func held(h record.Entry) string {
	why := fmt.Sprintf("by %s: %s", h.By, h.Reason)
	if h.Values == nil && h.Digest == "" {
		return "paused " + why + "; nothing is applied until `agent resume`"
	}
	return fmt.Sprintf("held: %s, %s; not applied until `agent resume`", h.String(), why)
}

// maxMarkdown bounds a comment, in bytes; GitHub takes 65,536 characters.
const maxMarkdown = 65_000

// nothingChanges is the Markdown of a plan in which nothing changes.
const nothingChanges = "No environment changes."

// markdown is the text of a comment. Names and texts from elsewhere are code, so that
// they mention nobody and are no markup.
func (r *planResult) markdown() string {
	type head struct {
		names   []string
		summary string
	}
	var heads []head
	var sections strings.Builder
	left := 0
	byHead, shown := map[string]int{}, map[string]bool{}
	for i := range r.Environments {
		e := &r.Environments[i]
		if e.Status == schema.PlanUnchanged && len(e.Held) == 0 && len(e.Policy) == 0 {
			continue
		}
		summary := e.headline()
		if j, ok := byHead[summary]; ok { // said once of all that it is true of
			heads[j].names = append(heads[j].names, string(e.Name))
		} else {
			byHead[summary] = len(heads)
			heads = append(heads, head{[]string{string(e.Name)}, summary})
		}
		if section := e.details(shown); sections.Len()+len(section) < maxMarkdown*3/4 {
			sections.WriteString(section)
		} else {
			left++
		}
	}
	if len(heads) == 0 {
		return nothingChanges
	}
	var lines []string
	for _, h := range heads[:min(len(heads), maxNamed)] {
		lines = append(lines, fmt.Sprintf("**%s**: %s", firstNames(h.names), h.summary))
	}
	if more := len(heads) - maxNamed; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more like these", more))
	}
	text := strings.Join(lines, " · ") + "\n\n" + sections.String()
	if left > 0 {
		text += fmt.Sprintf("The details of %d environments are too long for a comment; `agent plan` prints them.\n", left)
	}
	if r.isUnsigned && slices.ContainsFunc(r.Environments, func(e environmentPlan) bool { return len(e.Policy) > 0 }) {
		text += "Who signs is not known here. Rules about the signer are judged once it is merged.\n"
	}
	text = strings.TrimRight(text, "\n") + "\n\n<sub>" + code(r.title)
	if slices.ContainsFunc(r.Environments, func(e environmentPlan) bool { return e.Status == schema.PlanInvalid }) {
		text += "; to try a correction: " + code("agent validate "+problem.ShellWord(cmp.Or(r.dir, ".")))
	}
	return text + "</sub>"
}

// headline is the first line about an environment in Markdown.
func (e *environmentPlan) headline() string {
	text := e.Summary(code)
	if len(e.Policy) > 0 { // nothing of that will happen
		text = "**denied by the policy, nothing is applied**: " + code(strings.TrimSuffix(e.Policy[0].Message+"; "+e.Policy[0].Hint, "; "))
		if more := len(e.Policy) - 1; more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
	}
	if len(e.Held) > 0 {
		text += "; **held by the agent**"
	}
	if was, now := e.Memory.Old, e.Memory.New; was != nil && now != nil && *now > *was+*was/2 {
		text += "; memory " + arrows(e.memory())
	}
	return text
}

func arrows(text string) string { return strings.ReplaceAll(text, "->", "→") }

// maxRows bounds the lines of an environment in a comment.
const maxRows = 100

// details is an environment's part of a comment. shown are the violations that earlier
// parts have.
func (e *environmentPlan) details(shown map[string]bool) string {
	var rows []string
	for _, c := range e.changes() {
		rows = append(rows, fmt.Sprintf("| %s | %s | %s | %s | %s |", code(c.Parameter), code(e.old(c)), code(c.New.String()), c.Apply, code(at(c))))
	}
	if len(rows) > 0 {
		rows = append([]string{"| parameter | now | after | applied | set in |", "|---|---|---|---|---|"}, rows...)
		rows = append(rows, "")
	}
	if m := e.memory(); m != "" {
		row := "Memory of a server: " + arrows(m)
		if slices.ContainsFunc(e.Changes, func(c schema.PlannedChange) bool { return c.Apply == schema.ApplyRebuild }) && e.Memory.Old != nil {
			row += "; both together while it rebuilds"
		}
		rows = append(rows, row, "")
	}
	for _, x := range e.changedExperiments() {
		row := fmt.Sprintf("* Experiment %s: %s of the instances", code(x.Name), arrows(share(x)))
		if sets := e.experimentSets(x); len(sets) > 0 {
			row += ", sets " + code(strings.Join(sets, ", "))
		}
		if who := cohort(x); who != "" {
			row += "; " + code(who)
		}
		rows = append(rows, row)
	}
	rows = append(rows, e.violationRows(shown)...)
	for _, d := range e.Policy {
		rows = append(rows, "* "+code(denied(d)))
	}
	for _, h := range e.Held {
		rows = append(rows, "* "+code(strings.ReplaceAll(held(h), "`", "")))
	}
	if more := len(rows) - maxRows; more > 0 {
		rows = append(rows[:maxRows], "", fmt.Sprintf("and %d lines more: `agent plan` prints them", more))
	}
	open := ""
	if e.Status == schema.PlanInvalid || len(e.Policy) > 0 { // what has to be done is not hidden
		open = " open"
	}
	title := string(e.Name)
	if changes := e.changes(); len(changes) == 1 || len(changes) == 2 {
		for i, c := range changes {
			title += []string{": ", ", "}[i] + fmt.Sprintf("%s %s → %s", c.Parameter, html.EscapeString(e.old(c)), html.EscapeString(c.New.String()))
		}
	}
	return fmt.Sprintf("<details%s><summary>%s</summary>\n\n%s\n\n</details>\n\n", open, title, strings.TrimRight(strings.Join(rows, "\n"), "\n"))
}

// violationRows lists the violations that are not shown yet, and what ends them.
func (e *environmentPlan) violationRows(shown map[string]bool) (rows []string) {
	again := 0
	args := map[string][]string{} // of agent set, by file
	for i, v := range e.Violations {
		if shown[v.String()] {
			again++
			continue
		}
		shown[v.String()] = true
		row := "* " + code(v.String())
		if e.IsOld(v) {
			row += " (it was there before)"
		}
		rows = append(rows, row)
		r := remedy{}
		if i < len(e.remedies) {
			r = e.remedies[i]
		}
		switch {
		case r.text != "":
			rows = append(rows, "  "+r.text)
		case r.args != nil:
			args[r.layer] = append(args[r.layer], r.args...)
		}
	}
	if again > 0 {
		rows = append(rows, fmt.Sprintf("* and %d shown above", again))
	}
	for _, layer := range slices.Sorted(maps.Keys(args)) {
		words := slices.Concat([]string{"agent", "set"}, args[layer], e.set)
		if layer != e.Name.File() {
			words = append(words, "--layer", layer)
		}
		for i, word := range words {
			words[i] = problem.ShellWord(word)
		}
		if command := strings.Join(words, " "); code(command) == "`"+command+"`" { // else it would be another one
			rows = append(rows, "", "To correct that: `"+command+"`")
		}
	}
	return rows
}

// code makes text a code span of Markdown, also within a table. No text can end it, or
// begin a comment of HTML, by which we find our own.
func code(text string) string {
	const most = 500 // bytes
	text = strings.NewReplacer("`", "'", "|", "¦", "<!--", "<! --").Replace(status.Plain(text))
	return "`" + cmp.Or(problem.Cut(strings.TrimSpace(text), most), "-") + "`"
}
