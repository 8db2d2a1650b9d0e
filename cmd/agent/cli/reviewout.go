package cli

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// reviewFormats write what validate found, one function a --format.
var reviewFormats = map[string]func(*cobra.Command, *review) error{
	"text": reviewText, "json": reviewJSON, "github": reviewGitHub, "gitlab": reviewGitLab,
}

func reviewJSON(cmd *cobra.Command, r *review) error {
	failed := []string{}
	if r.failed != nil {
		failed = append(failed, problem.Text(r.failed))
	}
	result := map[string]any{
		"success": r.valid() && len(failed) == 0,
		"results": append([]verdict{}, r.verdicts...), // a list, empty or not
		"notes":   append([]note{}, r.notes...),
		"errors":  failed,
	}
	if r.policy.dir != "" {
		result["policy"] = map[string]any{"directory": r.policy.dir, "cases": r.policy.loaded.Cases}
	}
	return printJSON(cmd, result)
}

func reviewText(cmd *cobra.Command, r *review) error {
	printed := map[string]bool{}
	for _, v := range r.verdicts {
		again := 0
		for _, violation := range v.Violations {
			line := v.placed(violation, filepath.Join).String()
			if printed[line] {
				again++
				continue
			}
			printed[line] = true
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), status.Plain(line)); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), status.Plain(v.summary(again))); err != nil {
			return err
		}
	}
	if r.policy.dir != "" {
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: the policy can be used, %d cases pass\n", status.Plain(r.policy.dir), r.policy.loaded.Cases); err != nil {
			return err
		}
	}
	return writeNotes(cmd.ErrOrStderr(), r.notes)
}

func writeNotes(w io.Writer, notes []note) error {
	for _, n := range notes {
		line := "note: " + n.String()
		if n.Hint != "" {
			line += "; " + n.Hint
		}
		if _, err := fmt.Fprintln(w, status.Plain(line)); err != nil {
			return err
		}
	}
	return nil
}

// summary is the verdict on one line; again counts the violations that were
// shown for an earlier environment.
func (v verdict) summary(again int) string {
	subject := string(v.Environment)
	if v.Template != "" {
		subject = v.Template + ", which no environment extends,"
	}
	if v.Valid {
		s := fmt.Sprintf("%s: %s is valid", v.Root, subject)
		for _, t := range v.Experiments {
			if t.Member != nil && *t.Member {
				s += ", in the experiment " + t.Name
			}
		}
		return s
	}
	s := fmt.Sprintf("%s: %s is not valid: %d violations", v.Root, subject, v.Total)
	if v.Total == 1 {
		s = strings.TrimSuffix(s, "s")
	}
	if again > 0 {
		s += fmt.Sprintf(", %d shown above", again)
	}
	if hidden := v.Total - len(v.Violations); hidden > 0 {
		s += fmt.Sprintf(", %d not shown", hidden)
	}
	return s
}

// placed returns a violation whose files are named from where the reader
// stands; in joins the root and a file.
func (v verdict) placed(violation schema.Violation, in func(...string) string) schema.Violation {
	violation.File = in(v.Root, violation.File)
	violation.Related = slices.Clone(violation.Related)
	for i := range violation.Related {
		violation.Related[i].File = in(v.Root, violation.Related[i].File)
	}
	if violation.Fix != nil {
		fix := *violation.Fix
		fix.File = violation.File
		violation.Fix = &fix
	}
	return violation
}

// An annotation is a violation and whom it concerns.
type annotation struct {
	schema.Violation
	of []string
}

// annotations lists each violation once: one in base.yaml is one of every
// environment.
func annotations(verdicts []verdict, in func(...string) string) (all []*annotation) {
	known := map[string]*annotation{}
	for _, v := range verdicts {
		of := string(v.Environment)
		if v.Template != "" {
			of = v.Template
		}
		for _, violation := range v.Violations {
			violation = v.placed(violation, in)
			key := violation.String()
			if known[key] == nil {
				known[key] = &annotation{Violation: violation}
				all = append(all, known[key])
			}
			known[key].of = append(known[key].of, of)
		}
	}
	return all
}

// reviewGitHub writes workflow commands, which GitHub shows at the lines of a
// pull request: an error a violation, a warning a file that no agent reads. A
// runner takes commands from both streams, so what is not a command goes to
// standard error, on lines that do not begin with a name.
// https://docs.github.com/actions/reference/workflow-commands-for-github-actions
func reviewGitHub(cmd *cobra.Command, r *review) error {
	base, err := workspace("GITHUB_WORKSPACE")
	if err != nil {
		return err
	}
	in := func(parts ...string) string { return fromWorkspace(base, filepath.Join(parts...)) }
	const most = 10 // GitHub shows no more of a step
	for i, a := range annotations(r.verdicts, in) {
		if i >= most {
			if _, err := fmt.Fprintln(cmd.ErrOrStderr(), "validate: "+status.Plain(a.String())); err != nil {
				return err
			}
			continue
		}
		properties := []string{"file=" + commandProperty(a.File)}
		if a.Line > 0 {
			properties = append(properties, fmt.Sprintf("line=%d", a.Line), fmt.Sprintf("col=%d", a.Column))
		}
		properties = append(properties, "title="+commandProperty(strings.Join(a.of, ", ")+": "+a.Rule))
		if err := writeCommand(cmd, "error", properties, a.text()); err != nil {
			return err
		}
	}
	for _, n := range r.notes {
		properties := []string{"file=" + commandProperty(in(n.File)), "title=" + commandProperty("not checked")}
		if err := writeCommand(cmd, "warning", properties, n.String()+"\n"+n.Hint); err != nil {
			return err
		}
	}
	for _, v := range r.verdicts {
		if _, err := fmt.Fprintln(cmd.ErrOrStderr(), "validate: "+status.Plain(v.summary(0))); err != nil {
			return err
		}
	}
	return nil
}

// text is what an annotation says below its title: what is wrong, what to do,
// where else to look.
func (a *annotation) text() string {
	text := a.Message
	if !strings.Contains(text, a.Path) && (a.Parameter == "" || !strings.Contains(text, a.Parameter)) {
		text = a.Path + ": " + text
	}
	if a.Hint != "" {
		text += "\n" + a.Hint
	}
	for _, at := range a.Related {
		text += "\nsee " + at.String()
	}
	return text
}

func writeCommand(cmd *cobra.Command, name string, properties []string, text string) error {
	command := fmt.Sprintf("::%s %s::%s", name, strings.Join(properties, ","), commandData.Replace(strings.TrimSpace(text)))
	_, err := fmt.Fprintln(cmd.OutOrStdout(), status.Plain(command)) // who runs it by hand has a terminal
	return err
}

// The escapes of GitHub's own toolkit, for the text of a command and for a
// property of it.
// https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts
var (
	commandData       = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	commandProperties = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
)

func commandProperty(s string) string { return commandProperties.Replace(s) }

// A codeQualityIssue is an entry of GitLab's Code Quality report.
// https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format
type codeQualityIssue struct {
	Description string `json:"description"`
	CheckName   string `json:"check_name"`
	Fingerprint string `json:"fingerprint"`
	Severity    string `json:"severity"`
	Location    struct {
		Path  string `json:"path"`
		Lines struct {
			Begin int `json:"begin"`
		} `json:"lines"`
	} `json:"location"`
}

// reviewGitLab writes a Code Quality report, which GitLab shows in a merge
// request: a major issue a violation, a minor one a file that no agent reads.
func reviewGitLab(cmd *cobra.Command, r *review) error {
	base, err := workspace("CI_PROJECT_DIR")
	if err != nil {
		return err
	}
	in := func(parts ...string) string { return fromWorkspace(base, filepath.Join(parts...)) }
	report := []codeQualityIssue{}
	add := func(file string, line int, rule, severity, text string) {
		f := codeQualityIssue{Description: status.Plain(strings.ReplaceAll(text, "\n", "; ")), CheckName: rule, Severity: severity}
		f.Location.Path, f.Location.Lines.Begin = file, max(1, line)
		f.Fingerprint = fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join([]string{file, rule, text}, "\x00"))))
		report = append(report, f)
	}
	for _, a := range annotations(r.verdicts, in) {
		add(a.File, a.Line, a.Rule, "major", strings.Join(a.of, ", ")+": "+a.text())
	}
	for _, n := range r.notes {
		add(in(n.File), 1, "not checked", "minor", n.String()+"\n"+n.Hint)
	}
	return printJSON(cmd, report)
}

// workspace is the directory that annotations name files from: that of a variable, or
// else the current one.
func workspace(variable string) (string, error) {
	base := os.Getenv(variable)
	if base == "" {
		base = "."
	}
	base, err := filepath.Abs(base)
	if err != nil {
		return "", fmt.Errorf("finding the workspace: %w", err)
	}
	return base, nil
}

// fromWorkspace is a file as seen from base, with slashes. It follows links,
// for the lines shown are those of the file they lead to; a file outside keeps
// its full path.
func fromWorkspace(base, file string) string {
	full, err := filepath.Abs(file)
	if err != nil {
		return filepath.ToSlash(file)
	}
	for _, path := range [][2]string{{resolved(base), resolved(full)}, {base, full}} {
		if inside, err := filepath.Rel(path[0], path[1]); err == nil && filepath.IsLocal(inside) {
			return filepath.ToSlash(inside)
		}
	}
	return filepath.ToSlash(full)
}
