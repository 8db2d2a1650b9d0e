package cli

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"text/template"

	"github.com/spf13/cobra"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

//go:embed newrepo
var newRepository embed.FS

// newFiles are the files of a new repository, by the template that makes each.
var newFiles = []struct {
	path, from string
	mode       fs.FileMode
}{
	{"README.md", "readme.md", 0o644},
	{".editorconfig", "editorconfig", 0o644},
	{".github/CODEOWNERS", "codeowners", 0o644},
	{".github/workflows/dtesn-config.yaml", "workflow.yaml", 0o644},
	{".githooks/pre-commit", "pre-commit", 0o755},
	{".vscode/settings.json", "vscode.json", 0o644},
	{"config/base.yaml", "base.yaml", 0o644},
	{"config/templates/serving.yaml", "template.yaml", 0o644},
}

// served are the environments that extend the template, where the schema has them.
var served = []schema.Environment{"staging", "production"}

// A newRepo is what the templates of a new repository are filled with.
type newRepo struct {
	Environments, Served []schema.Environment
	Last                 schema.Environment // the one that examples are about
	Parameters           []schema.Parameter
	First                schema.Parameter
	SchemaFlag           string

	Environment schema.Environment // of an environment's file
	Extends     bool
}

func newInit() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init [DIR]",
		Short: "Write a repository for a new configuration",
		Long: `init writes what a repository of configurations needs into DIR, which must be
empty but for .git: base.yaml with the defaults of the schema, a file for each
environment, a template, the JSON Schema and settings for editors, a workflow
for pull requests, a pre-commit hook, CODEOWNERS and a README. With --schema it
also has that schema. Lines marked <-- are to be filled in.`,
		Example: `  agent init dtesn-parameters
  agent init --schema schema.cue dtesn-parameters`,
		Args: cobra.MaximumNArgs(1),
	}
	open := schemaOf(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		dir := "."
		if len(args) > 0 {
			if dir = args[0]; dir == "" {
				return usageHint("name a directory, or none for this one", "DIR is empty")
			}
		}
		s, err := open()
		if err != nil {
			return err
		}
		if err := checkEmpty(dir); err != nil {
			return err
		}
		written, err := writeRepository(dir, s)
		if err != nil {
			return &problem.Error{Op: "write", Place: dir, Err: problem.Bare(err), Hint: "remove what was written, and try again"}
		}
		for _, path := range written {
			fmt.Fprintln(cmd.OutOrStdout(), filepath.Join(dir, path))
		}
		w := &workspaceEdit{flags: &editFlags{root: filepath.Join(dir, "config")}, schema: s}
		for _, env := range s.Environments() {
			if _, _, err := w.load(env, false); err != nil {
				if found := (*schema.Violations)(nil); errors.As(err, &found) {
					w.printViolations(cmd, found)
				}
				return problem.New("", fmt.Errorf("the defaults of the schema are not valid for %s", env), "correct the values in "+filepath.Join(dir, "config"))
			}
		}
		word := problem.ShellWord(dir)
		fmt.Fprintf(cmd.ErrOrStderr(), "next: git -C %s init -b main && git -C %s config core.hooksPath .githooks; then fill in the lines marked <--\n", word, word)
		return nil
	}
	return cmd
}

// checkEmpty holds that nothing of anybody's stands in the directory.
func checkEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &problem.Error{Op: "read directory", Place: dir, Err: problem.Bare(err), Hint: "name a directory that is empty, or that does not exist yet"}
	}
	for _, e := range entries {
		if e.Name() != ".git" {
			return problem.New("", fmt.Errorf("%s is not empty: it has %s", dir, e.Name()), "name a directory that is empty, or that does not exist yet")
		}
	}
	return nil
}

// writeRepository writes the files and returns their paths.
func writeRepository(dir string, s *schema.Schema) (written []string, err error) {
	data := newRepo{Environments: s.Environments(), Parameters: s.For(s.Environments()[0]).Parameters()}
	for _, env := range data.Environments {
		if slices.Contains(served, env) {
			data.Served = append(data.Served, env)
		}
	}
	if len(data.Served) == 0 {
		data.Served = data.Environments[:1]
	}
	data.Last = data.Served[len(data.Served)-1]
	data.First = data.Parameters[max(0, slices.IndexFunc(data.Parameters, func(p schema.Parameter) bool { return p.Required }))]
	data.Parameters = slices.DeleteFunc(data.Parameters, func(p schema.Parameter) bool { return p.Default.IsZero() })
	isOwn := s.Digest() != schema.Default().Digest()
	if isOwn {
		data.SchemaFlag = " --schema schema.cue"
	}
	write := func(path string, text []byte, mode fs.FileMode) error {
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(full, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return err
		}
		_, err = f.Write(text)
		written = append(written, path)
		return errors.Join(err, f.Close())
	}
	templates, err := template.New("").Delims("[[", "]]").Funcs(template.FuncMap{
		"title": func(p schema.Parameter) string { return problem.Line(p.Title(), 100) },
		"yaml":  func(v schema.Value) (string, error) { text, err := v.MarshalJSON(); return string(text), err },
	}).ParseFS(newRepository, "newrepo/*")
	if err != nil {
		return nil, err
	}
	fill := func(path, from string, mode fs.FileMode) error {
		var b bytes.Buffer
		if err := templates.ExecuteTemplate(&b, from, data); err != nil {
			return err
		}
		return write(path, b.Bytes(), mode)
	}
	for _, f := range newFiles {
		if err := fill(f.path, f.from, f.mode); err != nil {
			return written, err
		}
	}
	for _, env := range data.Environments {
		data.Environment, data.Extends = env, slices.Contains(data.Served, env)
		if err := fill("config/"+env.File(), "environment.yaml", 0o644); err != nil {
			return written, err
		}
	}
	text, err := s.JSONSchema()
	if err == nil {
		err = write("config/dtesn.schema.json", text, 0o644)
	}
	if err == nil && isOwn {
		err = write("schema.cue", s.CUE(), 0o644)
	}
	return written, err
}
