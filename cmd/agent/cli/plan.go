package cli

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher"
)

const planHelp = `plan shows, before a merge, what comes of it: for each environment which
parameters change, from what to what and in which line, whether engines rebuild,
about how much memory they then take, and which experiments reach whom.

It compares two revisions of a git repository of this machine, a work tree or a
bare one, of which nothing needs to be checked out. A value that begins with .
or / is a configuration directory instead. With --against it compares with what
an agent runs: the state directory of one on this machine, or the http(s)
address that it listens on.

A revision is a branch, a tag, a commit, HEAD or FETCH_HEAD, with ~N or ^N
behind. In a pull request of GitHub, checked out with fetch-depth: 2, compare
HEAD^1 with HEAD, which is the merge.

Output, with --format
  text      a line an environment, and a line a change
  markdown  for a comment: first what happens to whom, then details to open; one
            short line where nothing changes; at most 65,000 bytes
  json      {"from", "to", "environments": [{"name", "status": "unchanged",
            "changed", "added", "removed" or "invalid", "changes":
            [{"parameter", "old", "new", "apply": "hot" or "rebuild", "file",
            "line"}],
            "experiments": [{"name", "percent", "was", "instances", "joining",
            "leaving", "sets": […]}], "memory_bytes": {"old", "new", "limit"},
            "policy": [{"name", "parameters", "message", "hint"}],
            "violations", "held"}]}

With --policy each change is judged by the operators' rules, and "policy" lists
those that deny it. Who will sign is unknown before a merge: give --signer.

Exit codes: 0 done, 3 an environment would not be valid or the policy denies a
change, 10 with --exit-code if something changes, 2 wrong usage, schema or
policy, 1 something could not be compared.`

// A planner is the flags of one plan.
type planner struct {
	from, to, repo, config, against, token, instances string

	policy policyCheck

	open   func() (*schema.Schema, error)
	schema *schema.Schema
	opened *watcher.Repository
	around string // where --repo is in its repository
}

func newPlan() *cobra.Command {
	var p planner
	var format string
	var exitCode bool
	cmd := &cobra.Command{
		Use:   "plan --from REV [--to REV] [--config DIR]",
		Short: "Show what a change of the configuration would do, and to whom",
		Long:  planHelp,
		Example: `  agent plan --from main --to HEAD --config config
  agent plan --from HEAD --to ./config --config config
  agent plan --against /var/lib/dtesn-agent --to ./config
  agent plan --from HEAD^1 --config config --format markdown
  agent plan --from main --config config --policy ../policy --signer ada`,
	}
	p.flags(cmd)
	checkFormat := formatFlag(cmd, &format, "text, markdown or json", "text", "markdown", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkFormat(); err != nil {
			return err
		}
		switch {
		case (p.from == "") == (p.against == ""):
			return usageHint("compare with a revision or directory (--from), or with what runs (--against)", "need either --from or --against")
		case p.token != "" && !isAddress(p.against):
			return usage("--token-file is for an address: name it with --against")
		}
		result, err := p.plan(cmd)
		if err = errors.Join(err, p.close()); err != nil {
			return err
		}
		if err := planFormats[format](cmd, result); err != nil {
			return fmt.Errorf("write the plan: %w", err)
		}
		changes := false
		for _, e := range result.Environments {
			if e.Status == schema.PlanInvalid || len(e.Policy) > 0 {
				return quiet(exitInvalid)
			}
			changes = changes || e.Status != schema.PlanUnchanged
		}
		if changes && exitCode {
			return quiet(exitChanges)
		}
		return nil
	}
	f := cmd.Flags()
	f.StringVar(&p.against, "against", "", "compare what this agent runs: its state `directory` or address")
	f.StringVar(&p.token, "token-file", "", "a `file` with the token of an agent that is asked over https")
	f.BoolVar(&exitCode, "exit-code", false, "exit 10 if something changes")
	return cmd
}

// flags adds those that say what is compared.
func (p *planner) flags(cmd *cobra.Command) {
	p.open = schemaOf(cmd)
	f := cmd.Flags()
	f.StringVar(&p.from, "from", "", "compare this `revision`, or directory that begins with . or /")
	f.StringVar(&p.to, "to", "HEAD", "with this `revision` or directory")
	f.StringVar(&p.repo, "repo", ".", "the git `repository` of the revisions, or a directory in it")
	f.StringVar(&p.config, "config", "", "the configuration `directory` within the repository (default: its root)")
	f.StringVar(&p.instances, "instances", "", "a `file` with the names of the instances, one a line, to show who is in an experiment")
	p.policy.flags(f)
}

// plan makes the plan that the flags ask for. The repository stays open until close.
func (p *planner) plan(cmd *cobra.Command) (result *planResult, err error) {
	if p.schema, err = p.open(); err != nil {
		return nil, err
	}
	if err := p.policy.open(cmd, p.schema); err != nil {
		return nil, err
	}
	if result, err = p.run(cmd); err != nil {
		return nil, err
	}
	result.isUnsigned = p.policy.loaded.UsesSigner && p.policy.signer == ""
	return result, p.judgeAll(cmd, result)
}

func (p *planner) close() error {
	err := p.policy.close()
	if p.opened != nil {
		err = errors.Join(err, p.opened.Close())
	}
	return err
}

// judgeAll judges all environments of a plan by the policy.
func (p *planner) judgeAll(cmd *cobra.Command, result *planResult) error {
	p.policy.noteSigner(cmd)
	for i := range result.Environments {
		if err := p.policy.apply(cmd.Context(), &result.Environments[i].Plan); err != nil {
			return err
		}
	}
	return nil
}

// A planResult is the whole of a plan.
type planResult struct {
	From         string            `json:"from"`
	To           string            `json:"to"`
	Environments []environmentPlan `json:"environments"`

	title string
	dir   string // of what it compares with, in the repository
	// isUnsigned: the policy has rules about who signs, and that is not known.
	isUnsigned bool
}

// An environmentPlan is the plan of one environment, with the values that it would
// declare although the agent holds them.
type environmentPlan struct {
	schema.Plan
	Held []record.Entry `json:"held"`

	remedies []remedy // of the violations
	set      []string // flags of agent set, for the remedies
}

func (p *planner) run(cmd *cobra.Command) (*planResult, error) {
	names, err := readNames(p.instances)
	if err != nil {
		return nil, err
	}
	to, err := p.side("--to", p.to)
	if err != nil {
		return nil, err
	}
	p.noteEdits(cmd, to)
	if p.against != "" {
		return p.compareRunning(cmd, to)
	}
	from, err := p.side("--from", p.from)
	if err != nil {
		return nil, err
	}
	if err := p.relate(cmd, from, to); err != nil {
		return nil, err
	}
	result := &planResult{From: from.id, To: to.id, title: from.title + " -> " + to.title, dir: to.dir, Environments: []environmentPlan{}}
	for _, env := range p.schema.Environments() {
		old, err := from.input(env)
		if err != nil {
			return nil, err
		}
		now, err := to.input(env)
		if err != nil {
			return nil, err
		}
		if old == nil && now == nil {
			continue
		}
		plan := p.schema.For(env).Plan(old, now, names)
		if plan.Status == schema.PlanRemoved {
			if plan.Note = to.misnamed(p.schema, env); plan.Note == "" && from.revision != nil {
				plan.Note = fmt.Sprintf("git checkout %.12s -- %s puts it back", from.id, problem.ShellWord(path.Join(from.dir, env.File())))
			}
		}
		result.Environments = append(result.Environments, locate(plan, from, to))
	}
	if len(result.Environments) == 0 {
		return nil, p.nothing(from, to)
	}
	return result, nil
}

// nothing explains that neither side has a file of an environment.
func (p *planner) nothing(from, to *side) error {
	hint := "name the directory with " + schema.BaseFile + ": --config for revisions, ./DIR for a directory"
	if elsewhere := cmp.Or(to.elsewhere, from.elsewhere); elsewhere != "" {
		hint = "did you mean --config " + problem.ShellWord(path.Join(p.config, elsewhere)) + "?"
	}
	return problem.New("", fmt.Errorf("neither %s nor %s has an environment's file in %s", from.title, to.title, cmp.Or(to.dir, "the root")), hint)
}

// relate refuses revisions without a common history, and says if from has what to
// lacks: that shows as undone.
func (p *planner) relate(cmd *cobra.Command, from, to *side) error {
	if from.revision == nil || to.revision == nil {
		return nil
	}
	relation, err := p.opened.Relation(from.revision, to.revision)
	switch {
	case err != nil:
		return err
	case relation == watcher.RelationUnrelated:
		return problem.New("", fmt.Errorf("%s and %s have no common history", from.title, to.title),
			"name two revisions of one history; to compare others, check them out and give two directories")
	case relation == watcher.RelationDiverged:
		fmt.Fprintf(cmd.ErrOrStderr(), "note: %s does not descend from %s: what only the latter has shows as undone; compare from `git merge-base`, or to the merge\n",
			p.to, p.from)
	}
	return nil
}

// noteEdits says that the configuration of the work tree is not the one of HEAD.
func (p *planner) noteEdits(cmd *cobra.Command, to *side) {
	root := filepath.Join(p.repo, p.config)
	if p.to != "HEAD" || to.revision == nil || p.opened.IsBare() || !exists(root) {
		return
	}
	paths := []string{schema.BaseFile}
	for _, env := range p.schema.Environments() {
		paths = append(paths, env.File())
	}
	for _, name := range append(templatesOf(namesIn(filepath.Join(root, templatesDir))), to.templates...) {
		paths = append(paths, templatesDir+"/"+name+yamlExtension)
	}
	for _, path := range paths {
		now, errNow := watcher.ReadFile(root, path)
		committed, errThen := to.file(path)
		if bytes.Equal(now.Bytes, committed.Bytes) && (errNow == nil) == (errThen == nil) {
			continue
		}
		if !strings.HasPrefix(root, ".") && !filepath.IsAbs(root) {
			root = "./" + root
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "note: the work tree has changes that are not committed; to see them: --to %s\n", problem.ShellWord(root))
		return
	}
}

// locate names the files of a plan from where the reader stands.
func locate(plan schema.Plan, from, to *side) environmentPlan {
	in := func(changes []schema.PlannedChange) {
		for i, c := range changes {
			if dir := to.dir; c.File != "" {
				if c.New.IsZero() && from != nil {
					dir = from.dir
				}
				changes[i].File = path.Join(filepath.ToSlash(dir), c.File)
			}
		}
	}
	in(plan.Changes)
	for _, e := range plan.Experiments {
		in(e.Sets)
	}
	for i, v := range plan.Violations {
		plan.Violations[i] = verdict{Root: to.dir}.placed(v, filepath.Join)
	}
	e := environmentPlan{Plan: plan, Held: []record.Entry{}}
	for _, v := range plan.Violations {
		e.remedies = append(e.remedies, remedyOf(to.dir, v))
	}
	e.set = slices.Concat([]string{"--environment", string(plan.Name)}, to.set)
	return e
}

// maxInstances bounds the names that are read.
const maxInstances = 10_000

// readNames reads names, one a line; empty lines and those that begin with # do not count.
func readNames(file string) (names []string, err error) {
	if file == "" {
		return nil, nil
	}
	text, err := readSmallFile(file)
	if err != nil {
		return nil, usageHint("name a file with one instance a line", "--instances: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if name := strings.TrimSpace(line); name != "" && name[0] != '#' && !slices.Contains(names[max(0, len(names)-1):], name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) > maxInstances {
		return nil, usage("--instances: %s has more than %d names", file, maxInstances)
	}
	return names, nil
}
