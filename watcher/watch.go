package watcher

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/fsnotify/fsnotify"
)

// A watch is inotify along one trail. Its directories never change: when the
// trail turns, a new watch takes its place.
type watch struct {
	trail   trail
	events  *fsnotify.Watcher
	journal *journal
	dirs    map[string]bool // whether it could be watched
	watched int             // how many directories fsnotify watches
	names   map[string]bool // the paths of the steps
	anyYAML string          // each *.yaml in this directory counts; empty: none
	env     string          // path of the environment's file
}

// newWatch watches every directory of the trail. It is an error if what is
// inside the configuration directory cannot be watched, or if inotify does not
// tell of every change there; of what is above it the polls take care.
func newWatch(t trail, envFile string) (*watch, error) {
	if err := t.trusted(); err != nil {
		return nil, err
	}
	w := &watch{trail: t, dirs: map[string]bool{}, names: map[string]bool{}}
	if t.root != "" {
		w.env = filepath.Join(t.root, envFile)
	}
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("start inotify: %w", err)
	}
	w.events = events
	if w.journal, err = newJournal(); err != nil {
		w.close()
		return nil, err
	}
	for _, s := range t.steps {
		if err := w.add(s); err != nil {
			w.close()
			return nil, err
		}
	}
	w.watched = len(events.WatchList())
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
	err := w.events.Add(s.dir)
	if err == nil {
		err = w.journal.add(s.dir, inside(s.dir, w.trail.root))
	}
	w.dirs[s.dir] = err == nil
	if err != nil && inside(s.dir, w.trail.root) && (s.dir == w.trail.root || !errors.Is(err, fs.ErrNotExist)) {
		return fmt.Errorf("watch %s with inotify: %w", s.dir, err)
	}
	return nil
}

// close ends the watch. A nil watch is closed.
func (w *watch) close() {
	if w == nil {
		return
	}
	w.events.Close()
	if w.journal != nil {
		w.journal.close()
	}
}

// intact reports whether the kernel still watches every directory: it drops
// one that was deleted or unmounted.
func (w *watch) intact() bool { return len(w.events.WatchList()) == w.watched }

// relevant reports whether a change at path can change what is read.
func (w *watch) relevant(path string) bool {
	if w.names[path] {
		return true
	}
	if _, ok := w.dirs[path]; ok {
		return true
	}
	return w.anyYAML != "" && filepath.Ext(path) == ".yaml" && filepath.Dir(path) == w.anyYAML
}

// covers reports whether the watch sees every step of t, though it may have
// been made for another trail.
func (w *watch) covers(t trail) bool {
	if t.root != w.trail.root {
		return false
	}
	for _, s := range t.steps {
		same := slices.ContainsFunc(w.trail.steps, func(own step) bool { return own.dir == s.dir && os.SameFile(own.info, s.info) })
		if !same || !w.dirs[s.dir] || (s.name != "" && !w.relevant(s.path())) {
			return false
		}
	}
	return true
}

// happened asks the journal what happened since it was last asked: whether the
// environment's file was renamed into place, and whether there was anything
// else that can change what is read.
func (w *watch) happened() (renamed, other bool) {
	w.journal.take(func(path string, movedIn bool) {
		switch {
		case path == "":
			other = true
		case movedIn && path == w.env:
			renamed = true
		case w.relevant(path):
			other = true
		}
	})
	return renamed, other
}
