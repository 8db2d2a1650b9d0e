package watcher

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// A watch is inotify along one trail. Its directories never change: when the
// trail turns, a new watch takes its place.
type watch struct {
	*inotify
	trail   trail
	dirs    map[string]bool // whether it could be watched
	names   map[string]bool // the paths of the steps
	anyYAML string          // each *.yaml in this directory counts; empty: none
	env     string          // path of the environment's file
}

// A happening is what inotify says of a path.
type happening int

const (
	written happening = iota // created, removed, or its bytes changed
	movedIn                  // renamed to there
	touched                  // its mode, owner or times changed, not its bytes
	gone                     // a watched directory is no longer there, or events were lost
)

// News are what happened since a watch was last asked.
type news struct {
	renamed bool // the environment's file, whole, and it was not written since
	written bool // anything else that can change what is read
	touched bool
	gone    bool
}

// newWatch watches every directory of the trail. It is an error if what is
// inside the configuration directory cannot be watched, or if inotify does not
// tell of every change there; of what is above it the polls take care.
func newWatch(t trail, envFile string) (*watch, error) {
	if err := t.trusted(); err != nil {
		return nil, err
	}
	n, err := newInotify()
	if err != nil {
		return nil, err
	}
	w := &watch{inotify: n, trail: t, dirs: map[string]bool{}, names: map[string]bool{}}
	if t.root != "" {
		w.env = filepath.Join(t.root, envFile)
	}
	for _, s := range t.steps {
		if err := w.add(s); err != nil {
			w.close()
			return nil, err
		}
	}
	return w, nil
}

// add watches a step. A directory that has gone since is no error: the next
// reading finds another trail.
func (w *watch) add(s step) error {
	if s.name == "" {
		w.anyYAML = s.dir
	} else {
		w.names[s.path()] = true
	}
	if _, done := w.dirs[s.dir]; done {
		return nil
	}
	err := w.inotify.add(s.dir, inside(s.dir, w.trail.root))
	w.dirs[s.dir] = err == nil
	if err != nil && inside(s.dir, w.trail.root) && (s.dir == w.trail.root || !errors.Is(err, fs.ErrNotExist)) {
		return fmt.Errorf("watch %s with inotify: %w", s.dir, err)
	}
	return nil
}

// relevant reports whether a change at path can change what is read.
func (w *watch) relevant(path string) bool {
	_, watched := w.dirs[path]
	return watched || w.names[path] || w.anyYAML != "" && filepath.Ext(path) == ".yaml" && filepath.Dir(path) == w.anyYAML
}

// covers reports whether the watch sees every step of t, though it may have
// been made for another trail.
func (w *watch) covers(t trail) bool {
	return t.root == w.trail.root && !slices.ContainsFunc(t.steps, func(s step) bool {
		same := func(own step) bool { return own.dir == s.dir && os.SameFile(own.info, s.info) }
		return !slices.ContainsFunc(w.trail.steps, same) || inside(s.dir, t.root) && !w.dirs[s.dir] || s.name != "" && !w.relevant(s.path())
	})
}

// happened takes the news since it was last asked.
func (w *watch) happened() (n news) {
	env := false // was written
	w.take(func(path string, what happening) {
		switch {
		case what == gone:
			n.gone = true
		case path == w.env && what == movedIn:
			n.renamed, env = true, false
		case !w.relevant(path):
		case what == touched:
			n.touched = true
		case path == w.env:
			env = true
		default:
			n.written = true
		}
	})
	n.written = n.written || env
	return n
}
