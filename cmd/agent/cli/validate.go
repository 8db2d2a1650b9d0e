package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"dtesn-agent/schema"
	"dtesn-agent/watcher"
)

const (
	templatesDir  = "templates"
	yamlExtension = ".yaml"
)

const validateHelp = `validate checks what the agent would check, offline, with the agent's own loader
and for every instance of a fleet. Every violation is shown with file, line,
column, rule and what to do.

For a directory (the current one if none is named) it checks every environment
that has a file there, and the templates that none of them extends. For a file
it checks what depends on it: an environment's file that environment, base.yaml
all of them, a template those that extend it. A file that is none of these is
passed over with a note.

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

Exit codes: 0 all valid, 3 not valid, 1 something could not be checked.`

func newValidate() *cobra.Command {
	r := &review{seen: map[string]bool{}}
	var environment, format string
	cmd := &cobra.Command{
		Use:   "validate [DIR|FILE…]",
		Short: "Check configuration files without an engine",
		Long:  validateHelp,
		Example: `  agent validate examples/config
  agent validate config/production.yaml config/templates/low-memory.yaml
  agent validate config --environment production --format json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			write, ok := reviewFormats[format]
			if !ok {
				return usage("--format: %q is none of text, json, github", format)
			}
			if environment != "" {
				if r.all {
					return usage("--all and --environment: give one of them")
				}
				env, err := schema.ParseEnvironment(environment)
				if err != nil {
					return usage("--environment: %w", err)
				}
				r.only = env
			}
			if len(args) == 0 {
				args = []string{"."}
			}
			r.run(args)
			if err := write(cmd, r); err != nil {
				return fmt.Errorf("writing the result: %w", err)
			}
			return r.outcome(cmd)
		},
	}
	f := cmd.Flags()
	f.StringVar(&environment, "environment", "", "check only this environment")
	f.BoolVar(&r.all, "all", false, "check every environment of the directories, also those that do not depend on the named files")
	f.StringVar(&format, "format", "text", "text, json or github (annotations of a pull request)")
	completeEnvironment(cmd)
	complete(cmd, "format", "text", "json", "github")
	return cmd
}

// A review is what validate is asked for, and what it finds.
type review struct {
	only schema.Environment // the one to check, "" for all
	all  bool               // whatever files are named

	verdicts []verdict
	notes    []note
	faults   []error
	// skipped are the named files that are no configuration.
	skipped []note
	seen    map[string]bool // verdicts and notes, each once
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

// run checks what each argument stands for, each once. What cannot be checked
// does not keep the rest from being checked.
func (r *review) run(args []string) {
	for _, arg := range args {
		if err := r.argument(arg); err != nil {
			r.faults = append(r.faults, err)
		}
	}
	// A hook may name only files that are none of ours; a person who names a YAML
	// file wants it checked.
	if i := slices.IndexFunc(r.skipped, note.yaml); i >= 0 && len(r.verdicts) == 0 && len(r.faults) == 0 {
		r.faults = append(r.faults, r.skipped[i].fault())
		return
	}
	r.notes = append(r.notes, r.skipped...)
}

// yaml reports whether the file is named like one of configuration.
func (n note) yaml() bool {
	return strings.HasSuffix(n.File, yamlExtension) || strings.HasSuffix(n.File, ".yml")
}

func (n note) fault() error { return fault(errors.New(n.String()), n.Hint) }

// outcome says which exit code the review has, and what could not be checked.
func (r *review) outcome(cmd *cobra.Command) error {
	for _, err := range r.faults {
		complain(cmd.ErrOrStderr(), err)
	}
	switch {
	case !r.valid():
		return quiet(exitInvalid)
	case len(r.faults) > 0:
		return quiet(exitFault)
	}
	return nil
}

func (r *review) valid() bool {
	return !slices.ContainsFunc(r.verdicts, func(v verdict) bool { return !v.Valid })
}

// argument checks what one argument stands for.
func (r *review) argument(arg string) error {
	root, path, err := locate(arg)
	if err != nil {
		return err
	}
	present := environmentsIn(root)
	if r.all {
		path = ""
	}
	switch env, isEnvironment := environmentOf(path); {
	case path == "" && r.only != "":
		return r.environments(root, r.only)
	case path == "":
		return r.directory(root, present)
	case path == schema.BaseFile && len(present) == 0:
		return noEnvironment(root)
	case path == schema.BaseFile:
		return r.filtered(arg, root, present)
	case isEnvironment:
		return r.filtered(arg, root, []schema.Environment{env})
	}
	if isTemplate(path) {
		return r.template(arg, root, path, present)
	}
	n, mistaken := misfit(root, path)
	if mistaken {
		return n.fault()
	}
	r.skipped = append(r.skipped, n)
	return nil
}

// locate splits an argument into a configuration directory and the path of a
// file in it, "" for the directory itself. The file may be gone, as it is in a
// change that removes it.
func locate(arg string) (root, path string, err error) {
	info, err := os.Stat(arg)
	gone := errors.Is(err, fs.ErrNotExist)
	if err != nil && !gone {
		return "", "", fault(err, "")
	}
	// What ".." means behind a link, the kernel says: it is not taken out.
	root = tidy(arg)
	if gone || !info.IsDir() {
		root, path = filepath.Split(root)
		root = tidy(root)
	}
	if abs, err := filepath.Abs(root); err == nil && filepath.Base(abs) == templatesDir {
		above := filepath.Dir(root)
		if filepath.Base(root) != templatesDir {
			above = tidy(root + "/..") // it is the current directory, or so
		}
		if isConfiguration(above) {
			root = above
			if path != "" {
				path = templatesDir + "/" + path
			}
		}
	}
	if _, isEnvironment := environmentOf(path); gone && (!isConfiguration(root) || !isEnvironment && path != schema.BaseFile && !strings.Contains(path, "/")) {
		return "", "", noSuchFile(arg, root, path)
	}
	return root, path, nil
}

// under is filepath.Join of a root and a path below it, and leaves ".." in the
// root be.
func under(parts ...string) string {
	root, path := parts[0], filepath.Join(parts[1:]...)
	if root == "." || path == "" {
		return filepath.Join(parts...)
	}
	return strings.TrimRight(root, "/") + "/" + path
}

// tidy is filepath.Clean, unless that would name another directory: ".." behind
// a link is not where the link stands.
func tidy(path string) string {
	clean := filepath.Clean(path)
	if slices.Contains(strings.Split(path, "/"), "..") {
		there, err := filepath.EvalSymlinks(path)
		here, errHere := filepath.EvalSymlinks(clean)
		if err == nil && (errHere != nil || here != there) {
			return strings.TrimRight(path, "/")
		}
	}
	return clean
}

func noSuchFile(arg, root, path string) error {
	hint := "name a directory with base.yaml, or a file in one"
	if env, err := schema.ParseEnvironment(arg); err == nil {
		hint = fmt.Sprintf("to check one environment: agent validate DIR --environment %s", env)
	} else if near, ok := schema.Suggest(path, filesOf(root)); ok {
		hint = "did you mean " + filepath.Join(root, near) + "?"
	}
	return fault(fmt.Errorf("there is no %s", arg), hint)
}

// filesOf lists the configuration files that root holds.
func filesOf(root string) (paths []string) {
	for _, env := range environmentsIn(root) {
		paths = append(paths, env.File())
	}
	for _, name := range namesIn(filepath.Join(root, templatesDir)) {
		if path := templatesDir + "/" + name; isTemplate(path) {
			paths = append(paths, path)
		}
	}
	return append(paths, schema.BaseFile)
}

func isTemplate(path string) bool {
	_, ok := schema.ParseTemplatePath(path)
	return ok
}

func namesIn(dir string) (names []string) {
	entries, _ := os.ReadDir(dir) // what cannot be read makes no suggestion
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// environmentOf says whose file a path is.
func environmentOf(path string) (schema.Environment, bool) {
	name, isYAML := strings.CutSuffix(path, yamlExtension)
	env, err := schema.ParseEnvironment(name)
	return env, isYAML && err == nil
}

func environmentsIn(root string) (present []schema.Environment) {
	for _, env := range schema.Environments() {
		if _, err := os.Lstat(filepath.Join(root, env.File())); err == nil {
			present = append(present, env)
		}
	}
	return present
}

func isConfiguration(root string) bool {
	_, err := os.Lstat(filepath.Join(root, schema.BaseFile))
	return err == nil || len(environmentsIn(root)) > 0
}

func noEnvironment(root string) error {
	hint := "name the configuration directory, the one with base.yaml"
	for _, name := range namesIn(root) {
		if inside := filepath.Join(root, name); len(environmentsIn(inside)) > 0 {
			hint = "did you mean `agent validate " + inside + "`?"
			break
		}
	}
	return fault(fmt.Errorf("%s has no environment's file (development.yaml, testing.yaml, staging.yaml, production.yaml)", root), hint)
}

// directory checks all that a directory holds, and notes the files that were
// probably meant to be read and are not.
func (r *review) directory(root string, present []schema.Environment) error {
	for _, dir := range []string{"", templatesDir} {
		for _, name := range namesIn(filepath.Join(root, dir)) {
			path := filepath.ToSlash(filepath.Join(dir, name))
			if n, mistaken := misfit(root, path); mistaken && !r.done(n.File, "note") {
				r.notes = append(r.notes, n)
			}
		}
	}
	if len(present) == 0 {
		return noEnvironment(root)
	}
	if err := r.environments(root, present...); err != nil {
		return err
	}
	for _, name := range namesIn(filepath.Join(root, templatesDir)) {
		path := templatesDir + "/" + name
		if isTemplate(path) && len(extending(root, path, present)) == 0 {
			if err := r.lone(root, path); err != nil {
				return err
			}
		}
	}
	return nil
}

// template checks the environments that extend a template, or it alone.
func (r *review) template(arg, root, path string, present []schema.Environment) error {
	if users := extending(root, path, present); len(users) > 0 {
		return r.filtered(arg, root, users)
	}
	if _, err := os.Lstat(filepath.Join(root, filepath.FromSlash(path))); err != nil {
		if _, near := schema.Suggest(path, filesOf(root)); near {
			return noSuchFile(arg, root, path) // mistyped, rather than removed
		}
		r.notes = append(r.notes, note{File: arg, Message: "is gone, and no environment extends it: nothing to check"})
		return nil
	}
	return r.lone(root, path)
}

// extending lists the environments that extend a template.
func extending(root, path string, present []schema.Environment) (users []schema.Environment) {
	for _, env := range present {
		f, err := watcher.ReadFile(root, env.File())
		if err == nil && slices.Contains(schema.Extends(f.Bytes), path) {
			users = append(users, env)
		}
	}
	return users
}

// filtered checks the environments that were asked for, of those that depend on
// a file.
func (r *review) filtered(arg, root string, envs []schema.Environment) error {
	if r.only == "" {
		return r.environments(root, envs...)
	}
	if slices.Contains(envs, r.only) {
		return r.environments(root, r.only)
	}
	r.notes = append(r.notes, note{File: arg, Message: fmt.Sprintf("does not concern %s: not checked", r.only)})
	return nil
}

func (r *review) done(parts ...string) bool {
	key := strings.Join(parts, "\x00")
	was := r.seen[key]
	r.seen[key] = true
	return was
}

func (r *review) environments(root string, envs ...schema.Environment) error {
	for _, env := range envs {
		if r.done(root, string(env)) {
			continue
		}
		doc, err := watcher.Read(root, env)
		if err != nil {
			return fault(err, "")
		}
		v := verdict{Root: root, Environment: env}
		config, violations := schema.Load(doc, schema.Everywhere)
		if config != nil {
			v.Parameters, v.Provenance = &config.Parameters, config.Provenance
		}
		r.verdicts = append(r.verdicts, v.with(violations))
	}
	return nil
}

// lone checks a template that no environment extends, so that the first one to
// extend it finds it valid.
func (r *review) lone(root, path string) error {
	if r.only != "" || r.done(root, path) {
		return nil
	}
	f, err := watcher.ReadFile(root, path)
	if err != nil {
		return fault(err, "")
	}
	v := verdict{Root: root, Template: path}
	r.verdicts = append(r.verdicts, v.with(schema.CheckTemplate(f)))
	return nil
}

func (v verdict) with(violations *schema.Violations) verdict {
	v.Valid, v.Violations = violations == nil, []schema.Violation{}
	if violations != nil {
		v.Violations, v.Total = violations.List, violations.Total
	}
	return v
}

// misfit says of a file that no agent reads why not. It is mistaken if it was
// probably meant to be read: prodution.yaml, production.yml, templates/Big.yaml.
func misfit(root, path string) (n note, mistaken bool) {
	n = note{
		File: filepath.Join(root, filepath.FromSlash(path)), Message: "is no configuration file: not checked",
		Hint: "name base.yaml, an environment's file, a template, or their directory",
	}
	dir, name := filepath.Split(path)
	stem := strings.TrimSuffix(strings.TrimSuffix(name, ".yml"), yamlExtension)
	_, isEnvironment := environmentOf(path)
	if stem == name || strings.HasPrefix(name, ".") || isEnvironment || isTemplate(path) || path == schema.BaseFile {
		return n, false
	}
	if dir != "" {
		n.Message = "is no template that could be extended: not checked"
		n.Hint = "rename it: a template is templates/NAME.yaml, its name in a-z 0-9 - _"
		return n, true
	}
	meant := []string{"base"}
	for _, env := range schema.Environments() {
		meant = append(meant, string(env))
	}
	near, ok := schema.Suggest(stem, meant)
	if ok {
		n.Message = "is read by no agent: not checked"
		n.Hint = fmt.Sprintf("did you mean %s? rename it", near+yamlExtension)
	}
	return n, ok
}
