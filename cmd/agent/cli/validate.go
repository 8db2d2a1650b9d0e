package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher"
)

const (
	templatesDir  = "templates"
	yamlExtension = ".yaml"
)

const validateHelp = `validate checks what the agent would check, offline, with the agent's own loader
and for every instance of a fleet: every environment that has a file in the
directory (the current one if none is named), and the templates that none of
them extends. Every violation is shown with file, line, column, rule and what to
do. A file that was probably meant to be read and is not is a note. The rules are
those of --schema, or of DTESN_AGENT_SCHEMA, or the embedded ones.

Output, with --format
  text    a line a violation, as compilers write it, and a line an environment
  json    {"success", "results": [{"root", "environment" or "template", "valid",
          "parameters", "provenance", "violations": [{"file", "line", "column",
          "path", "parameter", "value", "rule", "message", "hint", "related"}],
          "violations_total"}], "notes": [{"file", "message", "hint"}],
          "errors": ["…"]}; a violation's files are relative to its root
  github  an ::error command a violation, which GitHub shows at its line of the
          pull request; paths are relative to $GITHUB_WORKSPACE or else to the
          current directory. A summary goes to standard error.

Exit codes: 0 all valid, 3 not valid, 2 wrong usage or schema, 1 something could
not be checked.`

func newValidate() *cobra.Command {
	var environment, format string
	cmd := &cobra.Command{
		Use:   "validate [DIR]",
		Short: "Check a configuration directory without an engine",
		Long:  validateHelp,
		Example: `  agent validate examples/config
  agent validate config --environment production --format json
  agent validate config --schema schema.cue`,
		Args: cobra.MaximumNArgs(1),
	}
	open := schemaOf(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		write, ok := reviewFormats[format]
		if !ok {
			return usage("--format: %q is none of text, json, github", format)
		}
		s, err := open()
		if err != nil {
			return err
		}
		r := &review{schema: s, root: ".", read: map[string]reading{}}
		if environment != "" {
			if r.only, err = s.ParseEnvironment(environment); err != nil {
				return usage("--environment: %w", err)
			}
		}
		if len(args) > 0 {
			r.root, err = directory(s, args[0])
		}
		if wrong := (*failure)(nil); errors.As(err, &wrong) {
			return err
		}
		if err == nil {
			err = r.run()
		}
		return r.report(cmd, write, err)
	}
	f := cmd.Flags()
	f.StringVar(&environment, "environment", "", "check only this environment")
	f.StringVar(&format, "format", "text", "text, json or github (annotations of a pull request)")
	completeEnvironment(cmd)
	complete(cmd, "format", "text", "json", "github")
	return cmd
}

// directory returns the configuration directory that an argument names, so that
// filepath.Join can be used on it: ".." behind a link is not where
// filepath.Clean puts it.
func directory(s *schema.Schema, arg string) (string, error) {
	info, err := os.Stat(arg)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint := "name the directory with " + schema.BaseFile
		if env, err := s.ParseEnvironment(arg); err == nil {
			hint = fmt.Sprintf("to check one environment: agent validate DIR --environment %s", env)
		}
		return "", problem.New("", fmt.Errorf("there is no %s", arg), hint)
	case err != nil:
		return "", err
	case !info.IsDir():
		return "", usageHint("agent validate DIR checks a whole directory, such as "+problem.ShellWord(filepath.Dir(arg)), "%s is not a directory", arg)
	case slices.Contains(strings.Split(arg, "/"), ".."):
		return filepath.EvalSymlinks(arg)
	}
	return filepath.Clean(arg), nil
}

// A review checks a directory.
type review struct {
	schema *schema.Schema
	root   string
	only   schema.Environment // the one to check, "" for all
	read   map[string]reading // the files by path, each read once

	verdicts []verdict
	notes    []note
	failed   error // what kept the review from its end
}

// A reading is a file, or why it could not be read.
type reading struct {
	file schema.File
	err  error
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
	Violations  []schema.Violation `json:"violations"`
	Total       int                `json:"violations_total"`
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

// run checks the environment that was asked for, or all that the directory
// holds.
func (r *review) run() error {
	if r.only != "" {
		_, err := r.environment(r.only)
		return err
	}
	for _, dir := range []string{"", templatesDir} {
		for _, name := range namesIn(filepath.Join(r.root, dir)) {
			if n, ok := r.misfit(dir, name); ok {
				r.notes = append(r.notes, n)
			}
		}
	}
	present := r.environmentsIn(r.root)
	if len(present) == 0 {
		return r.noEnvironment()
	}
	extended := map[string]bool{}
	for _, env := range present {
		templates, err := r.environment(env)
		if err != nil {
			return err
		}
		for _, path := range templates {
			extended[path] = true
		}
	}
	for _, name := range namesIn(filepath.Join(r.root, templatesDir)) {
		path := templatesDir + "/" + name
		if _, ok := schema.ParseTemplatePath(path); ok && !extended[path] {
			if err := r.template(path, present); err != nil {
				return err
			}
		}
	}
	return nil
}

// file reads a file of the directory, once. It is fs.ErrNotExist if there is
// none.
func (r *review) file(path string) (schema.File, error) {
	got, ok := r.read[path]
	if !ok {
		got.file, got.err = watcher.ReadFile(r.root, path)
		if errors.Is(got.err, syscall.ENOTDIR) { // templates is a file
			got.err = fs.ErrNotExist
		}
		r.read[path] = got
	}
	return got.file, got.err
}

// input collects the files of an environment, and the templates that it extends.
func input(env schema.Environment, file func(path string) (schema.File, error)) (in schema.Input, templates []string, err error) {
	paths := []string{env.File(), schema.BaseFile}
	for i := 0; i < len(paths); i++ {
		f, err := file(paths[i])
		if errors.Is(err, fs.ErrNotExist) {
			continue // a violation, and no error
		}
		if err != nil {
			return in, nil, err
		}
		if i == 0 {
			templates = schema.Extends(f)
			paths = append(paths, templates...)
		}
		in.Files = append(in.Files, f)
	}
	return in, templates, nil
}

// environment checks one environment and returns the templates that it extends.
func (r *review) environment(env schema.Environment) (templates []string, err error) {
	in, templates, err := input(env, r.file)
	if err != nil {
		return nil, err
	}
	v := verdict{Root: r.root, Environment: env}
	config, violations := r.schema.For(env).Review(in)
	if config != nil {
		v.Parameters, v.Provenance = &config.Parameters, config.Provenance
	}
	r.verdicts = append(r.verdicts, v.with(violations))
	return templates, nil
}

// template checks a template that no environment extends, so that the first one
// to extend it finds it valid: one of those that are present must take it.
func (r *review) template(path string, present []schema.Environment) error {
	f, err := r.file(path)
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

func namesIn(dir string) (names []string) {
	entries, _ := os.ReadDir(dir) // what is missing or unreadable has no names
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (r *review) environmentsIn(dir string) (present []schema.Environment) {
	for _, env := range r.schema.Environments() {
		if _, err := os.Lstat(filepath.Join(dir, env.File())); err == nil {
			present = append(present, env)
		}
	}
	return present
}

func (r *review) noEnvironment() error {
	hint := "name the configuration directory, the one with " + schema.BaseFile
	for _, name := range append(namesIn(r.root), "..") {
		if near := filepath.Join(r.root, name); len(r.environmentsIn(near)) > 0 {
			hint = "did you mean `agent validate " + problem.ShellWord(near) + "`?"
			break
		}
	}
	var files []string
	for _, env := range r.schema.Environments() {
		files = append(files, env.File())
	}
	return problem.New("", fmt.Errorf("%s has no environment's file (%s)", r.root, strings.Join(files, ", ")), hint)
}

// misfit notes a file that no agent reads although it was probably meant to be
// read: prodution.yaml, production.yml, templates/Big.yaml.
func (r *review) misfit(dir, name string) (n note, ok bool) {
	n.File = filepath.Join(r.root, dir, name)
	stem := strings.TrimSuffix(strings.TrimSuffix(name, ".yml"), yamlExtension)
	if stem == name || strings.HasPrefix(name, ".") {
		return n, false
	}
	if dir != "" {
		n.Message = "is no template that could be extended: not checked"
		n.Hint = "rename it: a template is templates/NAME.yaml, its name in a-z 0-9 - _"
		_, isTemplate := schema.ParseTemplatePath(dir + "/" + name)
		return n, !isTemplate
	}
	n.Message = "is read by no agent: not checked"
	known := []string{strings.TrimSuffix(schema.BaseFile, yamlExtension)}
	for _, env := range r.schema.Environments() {
		known = append(known, string(env))
	}
	if near, ok := schema.Suggest(stem, known); ok {
		n.Hint = fmt.Sprintf("did you mean %s? rename it", near+yamlExtension)
		return n, name != near+yamlExtension
	}
	n.Hint = fmt.Sprintf("the schema has no environment %s: name another schema with --schema", stem)
	f, err := r.file(name)
	return n, err == nil && environmentKey.Match(f.Bytes)
}

// environmentKey finds what only the file of an environment has.
var environmentKey = regexp.MustCompile(`(?m)^environment:`)
