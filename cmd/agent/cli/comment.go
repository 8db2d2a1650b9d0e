package cli

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dtesn-agent/cmd/agent/codehost"
	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

const commentHelp = `comment posts the plan of a change on its GitHub pull request, or GitLab merge
request. There is one comment, which is edited when the plan changes. If
nothing changes, none is posted. A correction that is certain is suggested at
its line if the pull request shows that line; otherwise the comment has the
command for it.

In a job of GitHub Actions or GitLab CI the pull request, the repository and
the address come from the environment, and the token from $GITHUB_TOKEN or
$GITLAB_TOKEN. The plan is also written to $GITHUB_STEP_SUMMARY, because the
token of a pull request from a fork is read-only.

With --outcome, comment adds the result of the merge on each instance to the
same comment, failures first. It reads an event from standard input: what a
hook gets, or a line of <state>/events.jsonl. --config is then the directory as
seen from the root of the repository, as in agent run.

If the comment cannot be posted, a warning is printed; with --fail it is an
error. To fail a build for an invalid configuration, run agent validate as
well.

Exit codes: 0 done, or a warning; 2 wrong usage or schema; 1 the plan could not
be made, or with --fail the comment could not be posted.`

// commentTime bounds all requests of one command.
const commentTime = 2 * time.Minute

// A commenter has the flags of agent comment.
type commenter struct {
	planner
	number               int
	repository, host     string
	hostToken            string // the file
	state                string
	outcome, mustSucceed bool
}

func newComment() *cobra.Command {
	var c commenter
	cmd := &cobra.Command{
		Use:   "comment --from REV [--pr N] [--config DIR]",
		Short: "Post the plan of a change, or its outcome, on a pull request",
		Long:  commentHelp,
		Example: `  agent comment --from HEAD^1 --config config
  agent comment --from main --config config --pr 412 \
    --repository https://github.com/OWNER/NAME
  agent comment --outcome --config config \
    --repository https://github.com/OWNER/NAME <event.json`,
	}
	c.flags(cmd)
	f := cmd.Flags()
	f.IntVar(&c.number, "pr", 0, "the `number` of the pull request (default that of the CI job)")
	f.StringVar(&c.repository, "repository", "", "the `URL` of the repository on the host (default that of the CI job)")
	f.StringVar(&c.host, "host", "", strings.Join(codehost.Kinds(), " or ")+", if the URL does not show it")
	f.StringVar(&c.hostToken, "token-file", "", "a `file` with the token in its first line (default $GITHUB_TOKEN or $GITLAB_TOKEN)")
	f.BoolVar(&c.outcome, "outcome", false, "add the result of the merge: an event on standard input")
	f.StringVar(&c.state, "state", "", "with --outcome, the state `directory` of the agent, to find earlier merges and rolled back changes")
	f.BoolVar(&c.mustSucceed, "fail", false, "exit 1 if the comment cannot be posted")
	complete(cmd, "host", codehost.Kinds()...)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		defer func() { err = errors.Join(err, c.close()) }()
		ctx, cancel := context.WithTimeout(cmd.Context(), commentTime)
		defer cancel()
		cmd.SetContext(ctx)
		if kinds := codehost.Kinds(); c.host != "" && !slices.Contains(kinds, c.host) {
			return usage("--host: %q is none of %s", c.host, strings.Join(kinds, ", "))
		}
		if c.outcome {
			return c.warn(cmd, c.tellOutcome(cmd))
		}
		if c.from == "" {
			return usageHint("in a checkout of GitHub's merge it is HEAD^1, in one of GitLab $CI_MERGE_REQUEST_DIFF_BASE_SHA", "--from is needed")
		}
		if c.number = cmp.Or(c.number, codehost.Number(os.Getenv)); c.number <= 0 {
			return usageHint("give its number: --pr N", "not a CI job of a pull request")
		}
		result, err := c.plan(cmd)
		if err != nil {
			return err
		}
		text := result.markdown()
		return c.warn(cmd, errors.Join(summarize(text), c.comment(cmd, result, text)))
	}
	return cmd
}

// warn prints an error of posting as a warning, unless --fail is given.
func (c *commenter) warn(cmd *cobra.Command, err error) error {
	if wrong := (*failure)(nil); err == nil || c.mustSucceed || errors.As(err, &wrong) {
		return err
	}
	if os.Getenv("GITHUB_ACTIONS") == "true" {
		return writeCommand(cmd, "warning", []string{"title=" + commandProperty("No comment was posted")}, err.Error()+"\n"+problem.Hint(err))
	}
	fmt.Fprintln(cmd.ErrOrStderr(), status.Plain("warning: "+problem.Text(err)))
	return nil
}

// summarize appends text to the job summary of GitHub Actions, if there is one.
func summarize(text string) error {
	name := os.Getenv("GITHUB_STEP_SUMMARY")
	if name == "" {
		return nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644) // #nosec G304: the runner names it
	if err != nil {
		return fmt.Errorf("write the summary of the job: %w", err)
	}
	_, err = fmt.Fprintln(f, text)
	return errors.Join(err, f.Close())
}

// connect opens the repository that the flags or the job name.
func (c *commenter) connect() (*codehost.Repository, error) {
	opt := codehost.Options{URL: c.repository, Kind: c.host}
	if c.hostToken != "" {
		token, err := readToken(c.hostToken)
		if err != nil {
			return nil, err
		}
		opt.Token = token
	}
	return codehost.Open(opt, os.Getenv)
}

// markerOf returns the hidden text by which the comment about a configuration directory
// is found again.
func markerOf(dir string) string {
	return fmt.Sprintf("<!-- dtesn-agent: %x -->", sha256.Sum256([]byte(dir)))
}

// comment posts the comment of a plan, unless it is up to date.
func (c *commenter) comment(cmd *cobra.Command, result *planResult, text string) error {
	host, err := c.connect()
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	marker := markerOf(result.dir)
	old, err := host.Find(ctx, c.number, marker)
	if err != nil {
		return err
	}
	if len(old) == 0 && text == nothingChanges {
		fmt.Fprintln(cmd.OutOrStdout(), "nothing changes: no comment")
		return nil
	}
	suggested, err := c.suggest(ctx, host, result)
	if suggested > 0 {
		text = result.markdown()
	}
	if known, _ := mergeOutcomes(old, marker); len(known) > 0 { // keep the outcomes when a job runs again
		text = withOutcomes(known, text)
	}
	if err != nil { // the comment has the commands instead
		fmt.Fprintln(cmd.ErrOrStderr(), status.Plain("note: no suggestions: "+problem.Text(err)))
	}
	body := marker + "\n" + text
	if len(old) != 1 || strings.TrimSpace(strings.ReplaceAll(old[0].Body, "\r\n", "\n")) != body {
		if err := host.Write(ctx, c.number, old, body); err != nil {
			return err
		}
	}
	fmt.Fprintf(cmd.OutOrStdout(), "pull request %d: %s\n", c.number, firstLine(text))
	return nil
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return status.Plain(line)
}

// maxSuggestions bounds the comments at lines: more would be noise.
const maxSuggestions = 10

// A fixPlace is a line with a certain fix, and the violations that it ends.
type fixPlace struct {
	fix      schema.Fix
	text     string
	remedies []*remedy
}

// fixPlaces lists the fixes of a plan in files of the repository, each once. Two fixes of one
// line are left out: each would keep the mistake of the other.
func fixPlaces(result *planResult) (list []*fixPlace) {
	for i := range result.Environments {
		e := &result.Environments[i]
		for j, v := range e.Violations {
			if v.Fix == nil || path.IsAbs(v.File) || strings.HasPrefix(v.File, ".") {
				continue
			}
			at := slices.IndexFunc(list, func(p *fixPlace) bool { return p.fix == *v.Fix })
			if at < 0 {
				at = len(list)
				list = append(list, &fixPlace{fix: *v.Fix, text: v.Message + "; " + v.Hint})
			}
			list[at].remedies = append(list[at].remedies, &e.remedies[j])
		}
	}
	all := slices.Clone(list)
	return slices.DeleteFunc(list, func(p *fixPlace) bool {
		return slices.ContainsFunc(all, func(o *fixPlace) bool { return o != p && o.fix.File == p.fix.File && o.fix.Line == p.fix.Line })
	})
}

// suggest posts each certain fix at its line, once. The comment then has no remedy for it.
func (c *commenter) suggest(ctx context.Context, host *codehost.Repository, result *planResult) (made int, err error) {
	list := fixPlaces(result)
	if len(list) == 0 {
		return 0, nil
	}
	pull, err := host.Pull(ctx, c.number)
	if err != nil {
		return 0, err
	}
	known, err := host.Suggestions(ctx, c.number, suggestionMarker)
	if err != nil {
		return 0, err
	}
	for _, p := range list[:min(len(list), maxSuggestions)] {
		if !c.isInHead(pull, p.fix) {
			continue
		}
		marker := fmt.Sprintf("%s%x -->", suggestionMarker, sha256.Sum256(fmt.Append(nil, p.fix.File, p.fix.Old, "\n", p.fix.New)))
		if !slices.ContainsFunc(known, func(k codehost.Comment) bool { return strings.Contains(k.Body, marker) }) {
			err := host.Suggest(ctx, pull, p.fix.File, p.fix.Line, marker+"\n"+code(p.text), p.fix.New)
			if errors.Is(err, codehost.ErrNotInDiff) {
				continue
			} else if err != nil {
				return made, err
			}
		}
		made++
		for _, r := range p.remedies {
			*r = remedy{text: "suggested at its line"}
		}
	}
	return made, nil
}

const suggestionMarker = "<!-- dtesn-agent suggests "

// isInHead reports whether the head of the pull request has the line of a fix. The plan is
// of its merge with the target branch, where the line may have another number.
func (c *commenter) isInHead(pull *codehost.Pull, fix schema.Fix) bool {
	if c.opened == nil {
		return false
	}
	revision, err := c.opened.Revision(pull.Head)
	if err != nil {
		return false
	}
	dir, err := revision.Directory(path.Dir(fix.File))
	if err != nil {
		return false
	}
	f, err := dir.File(path.Base(fix.File))
	lines := strings.Split(string(f.Bytes), "\n")
	return err == nil && fix.Line <= len(lines) && strings.TrimSuffix(lines[fix.Line-1], "\r") == strings.TrimSuffix(fix.Old, "\r")
}
