package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher"
)

// A side is one of the two configurations.
type side struct {
	id, title string
	dir       string // where its files are, as people name them
	elsewhere string
	revision  *watcher.Revision // nil for a directory
	file      func(path string) (schema.File, error)
	names     []string // of the files in it
	templates []string
	set       []string // flags of agent set, to edit it
}

// side opens what a flag names.
func (p *planner) side(flag, value string) (*side, error) {
	if strings.HasPrefix(value, ".") || strings.HasPrefix(value, "/") {
		root, err := directory(p.schema, value)
		if err != nil {
			return nil, err
		}
		r := &review{schema: p.schema, root: root, read: map[string]reading{}}
		return &side{id: value, title: value, dir: root, file: r.file, names: namesIn(root), templates: templatesOf(namesIn(filepath.Join(root, templatesDir))), set: p.setFlags(root)}, nil
	}
	if value == "" {
		return nil, usageHint("name a revision, such as main, or a directory, such as ./config", "%s is empty", flag)
	}
	if p.opened == nil {
		opened, around, err := watcher.OpenRepository(p.repo)
		if err != nil {
			return nil, err
		}
		p.opened, p.around = opened, around
	}
	revision, err := p.opened.Revision(value)
	if info, serr := os.Stat(value); err != nil && serr == nil && info.IsDir() {
		err = problem.New("", err, "for the directory write ./"+value)
	}
	if err != nil {
		return nil, err
	}
	s := &side{id: revision.Commit(), title: fmt.Sprintf("%s (%s)", value, revision.Commit()[:12]), dir: path.Join(p.around, p.config), revision: revision}
	s.set = p.setFlags(s.dir)
	dir, err := revision.Directory(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		s.file = func(string) (schema.File, error) { return schema.File{}, fs.ErrNotExist }
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	s.file, s.elsewhere, s.names, s.templates = dir.File, dir.Elsewhere(), dir.Names(""), templatesOf(dir.Names(templatesDir))
	return s, nil
}

// misnamed says which file was probably meant to be that of an environment, "" for none.
func (s *side) misnamed(declared *schema.Schema, env schema.Environment) string {
	for _, name := range s.names {
		if stem := yamlStem(name); stem != name && name != env.File() {
			if meant, _ := meantBy(declared, stem); meant == string(env) {
				return fmt.Sprintf("%s is read by no agent: did you mean %s? rename it", path.Join(filepath.ToSlash(s.dir), name), env.File())
			}
		}
	}
	return ""
}

// setFlags are what agent set needs to edit dir.
func (p *planner) setFlags(dir string) (flags []string) {
	if dir != "" {
		flags = append(flags, "--config", dir)
	}
	if p.schema.File() != schema.Default().File() {
		flags = append(flags, "--"+schemaFlag, p.schema.File())
	}
	return flags
}

// input collects the files of an environment, nil if it does not exist.
func (s *side) input(env schema.Environment) (*schema.Input, error) {
	if _, err := s.file(env.File()); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	in, _, err := input(env, s.file)
	in.Templates = s.templates
	return &in, err
}
