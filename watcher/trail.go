package watcher

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"dtesn-agent/schema/problem"
)

// templatesDir is the one folder below the configuration directory.
const templatesDir = "templates"

// maxLinks is how many links are followed, as Linux does.
const maxLinks = 40

// A step is one name on the way to a file: if the directory's entry of that
// name changes, so may what is read.
type step struct {
	dir  string      // a real path: no part of it is a link
	info os.FileInfo // identifies the directory
	name string      // empty: any *.yaml in dir
}

func (s step) path() string { return s.dir + "/" + s.name }

// A trail is every step from the root of the file system to the files of a
// Document. It is how far a watch must see. What inotify does not tell of, a
// mount or an ancestor that is renamed, shows in a trail that differs.
type trail struct {
	root  string // the configuration directory's real path; empty if it is none
	steps []step
}

// findTrail finds the way to the configuration directory and from there to
// each wanted path. On the way to the directory only links, what is missing
// and the directory's own entry are steps: an ancestor that is replaced leads
// to another trail, as does a mount. Inside, everything is a step.
func findTrail(root string, wanted []string) trail {
	var t trail
	absolute := root // not cleaned: what ".." means behind a link, the walk says
	if !filepath.IsAbs(root) {
		here, err := os.Getwd()
		if err != nil {
			return t
		}
		absolute = here + "/" + root
	}
	w := walker{steps: &t.steps}
	if t.root = w.walk("/", absolute); t.root == "" {
		return t
	}
	for _, path := range wanted {
		inside := walker{steps: &t.steps, within: t.root}
		if dir := inside.walk(t.root, path); path == templatesDir && dir != "" {
			inside.add(dir, "")
		}
	}
	return t
}

// trusted returns an error if inotify does not tell of every change inside the
// configuration directory.
func (t trail) trusted() error {
	var mounts []string
	var remote error
	seen := map[string]bool{}
	for _, s := range t.steps {
		if !inside(s.dir, t.root) {
			continue
		}
		if s.name != "" && pinned(s.path()) && !slices.Contains(mounts, s.path()) {
			mounts = append(mounts, s.path())
		}
		if !seen[s.dir] {
			seen[s.dir] = true
			if err := trusted(s.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				remote = err
			}
		}
	}
	if len(mounts) > 0 {
		return &problem.Error{
			Place: strings.Join(mounts, ", "),
			Err:   errors.New("a mount of its own (a Kubernetes subPath, or one file bound into the container), so a file that takes its place where it comes from is never seen here"),
			Hint:  "mount the directory instead",
		}
	}
	return remote
}

// inside reports whether the directory dir is root, or below it.
func inside(dir, root string) bool {
	return root != "" && (dir == root || strings.HasPrefix(dir, strings.TrimSuffix(root, "/")+"/"))
}

// A walker resolves a path by hand, as the kernel does, and notes the steps.
type walker struct {
	steps *[]step
	// within: do not leave this directory, whose every entry on the way counts.
	within string
}

// walk follows path from the real directory dir. It returns the real path of
// the directory where the path ends, or "" if it does not end in one.
func (w walker) walk(dir, path string) string {
	links := 0
	rest := strings.Split(path, "/")
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			dir = filepath.Dir(dir)
			continue
		}
		if w.within != "" && !inside(dir, w.within) {
			return ""
		}
		full := filepath.Join(dir, name)
		info, err := os.Lstat(full)
		link := err == nil && info.Mode()&os.ModeSymlink != 0
		if w.within != "" || link || err != nil || len(rest) == 0 {
			w.add(dir, name)
		}
		switch {
		case err != nil:
			return ""
		case link:
			target, err := os.Readlink(full)
			if links++; err != nil || links > maxLinks {
				return ""
			}
			if filepath.IsAbs(target) {
				dir = "/"
			}
			rest = append(strings.Split(target, "/"), rest...)
		case !info.IsDir():
			return ""
		default:
			dir = full
		}
	}
	return dir
}

// add notes a step once.
func (w walker) add(dir, name string) {
	if slices.ContainsFunc(*w.steps, func(s step) bool { return s.dir == dir && s.name == name }) {
		return
	}
	info, err := os.Stat(dir)
	if err != nil {
		return // gone since: its own entry is a step, or the next poll finds out
	}
	*w.steps = append(*w.steps, step{dir: dir, info: info, name: name})
}
