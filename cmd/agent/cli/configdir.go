package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher"
)

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

// A reading is a file, or why it could not be read.
type reading struct {
	file schema.File
	err  error
}

// templatesOf returns the names of the templates among files below templates/.
func templatesOf(files []string) (templates []string) {
	for _, name := range files {
		if stem, ok := schema.ParseTemplatePath(templatesDir + "/" + name); ok {
			templates = append(templates, stem)
		}
	}
	return templates
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

// near returns the directory beside one without an environment's file that has one: below
// it, or above. It is "" if there is none.
func (r *review) near() string {
	if len(r.environmentsIn(r.root)) > 0 {
		return ""
	}
	for _, name := range append(namesIn(r.root), "..") {
		if near := filepath.Join(r.root, name); len(r.environmentsIn(near)) > 0 {
			return near
		}
	}
	return ""
}

// configHint names the --config that was probably meant, or returns otherwise.
func configHint(s *schema.Schema, root, otherwise string) string {
	if near := (&review{schema: s, root: root}).near(); near != "" {
		return "did you mean --config " + problem.ShellWord(near) + "?"
	}
	return otherwise
}

// meantBy returns the environment, or base, that the name of a file probably means.
func meantBy(s *schema.Schema, stem string) (string, bool) {
	known := []string{yamlStem(schema.BaseFile)}
	for _, env := range s.Environments() {
		known = append(known, string(env))
	}
	return schema.Suggest(stem, known)
}

// yamlStem returns the name of a file without .yaml or .yml.
func yamlStem(name string) string {
	return strings.TrimSuffix(strings.TrimSuffix(name, ".yml"), yamlExtension)
}

// exists reports whether there is something at a path.
func exists(path string) bool { _, err := os.Lstat(path); return err == nil }

// resolved follows the links of a path as far as it exists.
func resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	if dir := filepath.Dir(path); dir != path {
		return filepath.Join(resolved(dir), filepath.Base(path))
	}
	return path
}
