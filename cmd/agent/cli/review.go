package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher"
)

// A review checks a directory.
type review struct {
	policy policyCheck

	schema *schema.Schema
	root   string
	only   schema.Environment // the one to check, "" for all
	read   map[string]reading // the files by path, each read once

	instance, base string
	allowMissing   bool
	templates      []string            // the names of all that there are
	opened         *watcher.Repository // of the base
	before         *watcher.Directory  // of the base, nil if there is none
	baseCommit     string

	verdicts []verdict
	notes    []note
	failed   error // what kept the review from its end
}

// A verdict is what validate says of one environment of one directory, or of a
// template that no environment extends.
type verdict struct {
	Root        string             `json:"root"`
	Environment schema.Environment `json:"environment,omitempty"`
	Template    string             `json:"template,omitempty"`
	Valid       bool               `json:"valid"`
	Parameters  *schema.Parameters `json:"parameters,omitempty"`
	Provenance  schema.Provenance  `json:"provenance,omitempty"`
	Experiments []trial            `json:"experiments,omitempty"`
	Violations  []schema.Violation `json:"violations"`
	Total       int                `json:"violations_total"`
}

// A trial is an experiment of an environment.
type trial struct {
	Name       string            `json:"name"`
	Percent    int               `json:"percent"`
	Parameters schema.Parameters `json:"parameters"`
	Member     *bool             `json:"member,omitempty"` // nil unless it is about one instance
}

// A note is about a file that no agent reads.
type note struct {
	File    string `json:"file"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (n note) String() string { return n.File + " " + n.Message }

// report writes what was found and returns the exit code for it; failed is what
// could not be checked.
func (r *review) report(cmd *cobra.Command, write func(*cobra.Command, *review) error, failed error) error {
	r.failed = failed
	if err := write(cmd, r); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	switch {
	case failed != nil && r.valid():
		return failed
	case failed != nil:
		complain(cmd.ErrOrStderr(), failed)
		fallthrough
	case !r.valid():
		return quiet(exitInvalid)
	}
	return nil
}

func (r *review) valid() bool {
	return !slices.ContainsFunc(r.verdicts, func(v verdict) bool { return !v.Valid })
}

// maxTemplates bounds the templates that are checked although no environment
// extends them.
const maxTemplates = 1000

// run checks the environment that was asked for, or all that the directory
// holds.
func (r *review) run(ctx context.Context) error {
	if err := r.openBase(); err != nil {
		return err
	}
	if r.opened != nil {
		defer r.opened.Close()
	}
	names := namesIn(filepath.Join(r.root, templatesDir))
	r.templates = templatesOf(names)
	if r.only != "" {
		_, err := r.environment(ctx, r.only)
		return err
	}
	present := r.environmentsIn(r.root)
	files := map[string][]string{} // by the name that they were probably meant to have
	for _, name := range namesIn(r.root) {
		if stem := yamlStem(name); stem != name && !strings.HasPrefix(name, ".") {
			meant, _ := meantBy(r.schema, stem)
			files[meant] = append(files[meant], name)
		}
	}
	for _, meant := range slices.Sorted(maps.Keys(files)) {
		for _, name := range files[meant] {
			r.misfit(name, meant, len(files[meant]) == 1)
		}
	}
	for _, name := range names {
		r.templateMisfit(name)
	}
	r.gone(present)
	if len(present) == 0 && len(r.verdicts) == 0 {
		return r.noEnvironment()
	}
	extended := map[string]bool{}
	for _, env := range present {
		templates, err := r.environment(ctx, env)
		if err != nil {
			return err
		}
		for _, path := range templates {
			extended[path] = true
		}
	}
	checked := 0
	for _, name := range r.templates {
		path := templatesDir + "/" + name + yamlExtension
		if extended[path] || len(present) == 0 {
			continue
		}
		if checked++; checked > maxTemplates {
			return problem.New("", fmt.Errorf("%s has %d templates; of those that no environment extends only %d were checked",
				filepath.Join(r.root, templatesDir), len(r.templates), maxTemplates), "remove the templates that are not used")
		}
		if err := r.template(path, present); err != nil {
			return err
		}
	}
	return nil
}

// openBase opens the directory as it is in the base.
func (r *review) openBase() error {
	if r.base == "" || r.allowMissing && r.policy.dir == "" {
		return nil
	}
	repository, dir, err := watcher.OpenRepository(r.root)
	if err != nil {
		return err
	}
	r.opened = repository
	revision, err := repository.Revision(r.base)
	if err != nil {
		return err
	}
	r.baseCommit = revision.Commit()
	r.before, err = revision.Directory(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is new
	}
	return err
}

// judgeChange returns what the policy denies of the change from the base.
func (r *review) judgeChange(ctx context.Context, env schema.Environment, now schema.Input) (denied []schema.Violation, err error) {
	if r.baseCommit == "" || r.policy.dir == "" {
		return nil, nil
	}
	var from *schema.Input // nil if it is new
	if r.before != nil && slices.Contains(r.before.Names(""), env.File()) {
		was, _, err := input(env, r.before.File)
		if err != nil {
			return nil, err
		}
		from = &was
	}
	plan := r.schema.For(env).Plan(from, &now, nil)
	if err := r.policy.apply(ctx, &plan); err != nil {
		return nil, err
	}
	for _, d := range plan.Policy {
		v := schema.Violation{Position: schema.Position{File: env.File()}, Rule: "policy " + d.Name, Message: "denied by the policy: " + d.Message, Hint: d.Hint}
		for _, c := range plan.Changes {
			if slices.Contains(d.Parameters, c.Parameter) {
				v.Parameter, v.Value = c.Parameter, c.New.String()
				if c.File != "" && !c.New.IsZero() {
					v.Position = schema.Position{File: c.File, Line: c.Line, Column: 1}
				}
				break
			}
		}
		denied = append(denied, v)
	}
	return denied, nil
}

// gone reports the environments that the base has and the directory has not.
func (r *review) gone(present []schema.Environment) {
	if r.before == nil || r.allowMissing {
		return
	}
	for _, env := range r.schema.Environments() {
		isReported := slices.ContainsFunc(r.verdicts, func(v verdict) bool { return v.Environment == env })
		if !slices.Contains(r.before.Names(""), env.File()) || slices.Contains(present, env) || isReported {
			continue
		}
		from := r.base
		if strings.ContainsAny(from, "^~@") || from == "HEAD" { // it may be another one where the hint is read
			from = r.baseCommit[:12]
		}
		r.missing(env, env.File(), fmt.Sprintf("the file is gone; %s has it", from),
			fmt.Sprintf("put it back with git checkout %s -- %s; or, if the environment ends, check with --allow-missing",
				problem.ShellWord(from), problem.ShellWord(filepath.Join(r.root, env.File()))))
	}
}

// missing reports that an environment has no file of its name; file is where that
// is seen.
func (r *review) missing(env schema.Environment, file, message, hint string) {
	v := schema.Violation{Position: schema.Position{File: file}, Rule: "each environment has a file of its name", Message: message, Hint: hint}
	r.verdicts = append(r.verdicts, verdict{Root: r.root, Environment: env, Violations: []schema.Violation{v}, Total: 1})
}

// environment checks one environment and returns the templates that it extends.
func (r *review) environment(ctx context.Context, env schema.Environment) (templates []string, err error) {
	in, templates, err := input(env, r.file)
	if err != nil {
		return nil, err
	}
	v := verdict{Root: r.root, Environment: env}
	in.Templates, in.Instance = r.templates, r.instance
	check := r.schema.For(env).Review
	if r.instance != "" {
		check = r.schema.For(env).Load
	}
	config, violations := check(in)
	if config != nil {
		v.Parameters, v.Provenance = &config.Parameters, config.Provenance
		for i, m := range config.Experiments {
			t := trial{Name: m.Name, Percent: m.Percent, Parameters: config.Sets(i)}
			if r.instance != "" {
				t.Member = &m.Member
			}
			v.Experiments = append(v.Experiments, t)
		}
	}
	if v = v.with(violations); v.Valid {
		denied, err := r.judgeChange(ctx, env, in)
		if err != nil {
			return templates, err
		}
		v.Violations, v.Total, v.Valid = append(v.Violations, denied...), len(denied), len(denied) == 0
	}
	r.verdicts = append(r.verdicts, v)
	return templates, nil
}

// template checks a template that no environment extends, so that the first one
// to extend it finds it valid: one of those that are present must take it.
func (r *review) template(path string, present []schema.Environment) error {
	f, err := watcher.ReadFile(r.root, path) // once, so that it need not be kept
	if err != nil {
		return err
	}
	var violations *schema.Violations
	for _, env := range present {
		if violations = r.schema.For(env).CheckTemplate(f); violations == nil {
			break
		}
	}
	r.verdicts = append(r.verdicts, verdict{Root: r.root, Template: path}.with(violations))
	return nil
}

func (v verdict) with(violations *schema.Violations) verdict {
	v.Valid, v.Violations = violations == nil, []schema.Violation{}
	if violations != nil {
		v.Violations, v.Total = violations.List, violations.Total
	}
	return v
}

func (r *review) noEnvironment() error {
	hint := "name the configuration directory, the one with " + schema.BaseFile
	if near := r.near(); near != "" {
		hint = "did you mean `agent validate " + problem.ShellWord(near) + "`?"
	}
	var files []string
	for _, env := range r.schema.Environments() {
		files = append(files, env.File())
	}
	return problem.New("", fmt.Errorf("%s has no environment's file (%s)", r.root, strings.Join(files, ", ")), hint)
}

// misfit reports a file that no agent reads although it was probably meant to be
// read: prodution.yaml, production.yml. It is an error where the environment that
// was probably meant has no file. alone: no other file may be meant.
func (r *review) misfit(name, meant string, alone bool) {
	right := meant + yamlExtension
	n := note{File: filepath.Join(r.root, name), Message: "is read by no agent: not checked"}
	rename := fmt.Sprintf("did you mean %s? rename it", right)
	if !alone {
		rename = fmt.Sprintf("several files may be meant: give %s what it should say", right)
	}
	switch {
	case name == right:
		return
	case meant == "":
		n.Hint = fmt.Sprintf("the schema has no environment %s: name another schema with --schema", yamlStem(name))
		if f, err := r.file(name); err != nil || !environmentKey.Match(f.Bytes) {
			return
		}
	case exists(filepath.Join(r.root, right)): // which a rename would overwrite
		n.Hint = right + " is there too, and is read: compare the two"
	case right == schema.BaseFile || r.allowMissing:
		n.Hint = rename
	default:
		r.missing(schema.Environment(meant), name, "the file is read by no agent, and there is no "+right, rename+", or say --allow-missing")
		return
	}
	r.notes = append(r.notes, n)
}

// templateMisfit notes a file below templates/ that could not be extended:
// templates/Big.yaml.
func (r *review) templateMisfit(name string) {
	stem := yamlStem(name)
	if _, isTemplate := schema.ParseTemplatePath(templatesDir + "/" + name); isTemplate || stem == name || strings.HasPrefix(name, ".") {
		return
	}
	n := note{
		File: filepath.Join(r.root, templatesDir, name), Message: "is no template that could be extended: not checked",
		Hint: "rename it: a template is templates/NAME.yaml, its name in a-z 0-9 - _",
	}
	if same := strings.ToLower(stem); slices.Contains(r.templates, same) {
		n.Hint = fmt.Sprintf("templates/%s.yaml is there too: compare the two", same)
	}
	r.notes = append(r.notes, n)
}

// environmentKey finds what only the file of an environment has.
var environmentKey = regexp.MustCompile(`(?m)^environment:`)
