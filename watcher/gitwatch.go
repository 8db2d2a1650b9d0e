package watcher

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/local"
)

// A refWatch watches the refs of a local repository, wherever its path leads at
// the moment. A directory that was replaced is silent, and one that does not
// exist cannot be watched: so once a second the way is walked again, which
// costs a few stats. While it cannot be watched, each of these walks is a hint.
type refWatch struct {
	path  string
	names []string
	mode  func(mode string)
	log   *slog.Logger

	hints  chan struct{}
	common string                 // of the repository that is watched
	dirs   map[string]os.FileInfo // what is watched
	events *fsnotify.Watcher      // nil while nothing is
	told   string                 // why not, as it was logged
}

// run hands out hints until ctx ends.
func (w *refWatch) run(ctx context.Context) {
	turn := time.NewTicker(pollEvery)
	defer turn.Stop()
	defer func() { w.close() }()
	w.renew()
	for {
		var events <-chan fsnotify.Event
		var errs <-chan error
		if w.events != nil {
			events, errs = w.events.Events, w.events.Errors
		}
		select {
		case <-ctx.Done():
			return
		case <-turn.C:
			w.renew()
		case ev, ok := <-events:
			if !ok || w.turns(ev) {
				w.renew()
			}
			if moves(w.common, ev.Name) {
				poke(w.hints)
			}
		case <-errs: // events were lost
			w.renew()
			poke(w.hints)
		}
	}
}

// turns reports whether after ev other directories may have to be watched: one
// of them is gone, or a new one may belong to them.
func (w *refWatch) turns(ev fsnotify.Event) bool {
	if _, watched := w.dirs[ev.Name]; watched {
		return true
	}
	if !ev.Has(fsnotify.Create) {
		return false
	}
	info, err := os.Stat(ev.Name)
	return err == nil && info.IsDir()
}

// renew watches what there is now, unless it is what is watched.
func (w *refWatch) renew() {
	common, dirs, err := w.layout()
	if err == nil && w.covers(dirs) {
		return
	}
	w.close()
	if err == nil {
		w.common, w.dirs = common, dirs
		err = w.begin()
	}
	if err == nil {
		w.told = ""
		w.mode(ModeInotify)
	} else {
		w.close()
		w.mode(ModePoll)
		if text := err.Error(); text != w.told {
			w.told = text
			w.log.Warn("the repository cannot be watched; it is looked at once a second", append([]any{"repo", w.path}, logged(err)...)...)
		}
	}
	poke(w.hints)
}

// layout is the directories that are to be watched, as they are now.
func (w *refWatch) layout() (common string, dirs map[string]os.FileInfo, err error) {
	r, err := local.Find(w.path)
	if err != nil {
		return "", nil, err
	}
	dirs = map[string]os.FileInfo{}
	for _, dir := range r.Watch(w.names) {
		info, err := os.Stat(dir)
		if err != nil {
			return "", nil, fmt.Errorf("look at %s: %w", dir, problem.Bare(err))
		}
		dirs[dir] = info
	}
	return r.Common, dirs, nil
}

// covers reports whether these directories are the ones that are watched. The
// kernel drops one that was deleted from the list.
func (w *refWatch) covers(dirs map[string]os.FileInfo) bool {
	if w.events == nil || len(dirs) != len(w.dirs) || len(w.events.WatchList()) != len(dirs) {
		return false
	}
	for dir, info := range dirs {
		if own, ok := w.dirs[dir]; !ok || !os.SameFile(own, info) {
			return false
		}
	}
	return true
}

func (w *refWatch) begin() (err error) {
	if w.events, err = fsnotify.NewWatcher(); err != nil {
		return fmt.Errorf("start inotify: %w", err)
	}
	for dir := range w.dirs {
		if err := trusted(dir); err != nil {
			return err
		}
		if err := w.events.Add(dir); err != nil {
			return fmt.Errorf("watch %s with inotify: %w", dir, err)
		}
	}
	return nil
}

func (w *refWatch) close() {
	if w.events != nil {
		_ = w.events.Close()
		w.events = nil
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// moves reports whether a change at path can be one of a ref of the repository
// whose files lie in common.
func moves(common, path string) bool {
	if strings.HasSuffix(path, ".lock") {
		return false
	}
	name := filepath.Base(path)
	return name == "HEAD" || name == "packed-refs" || strings.HasPrefix(path, filepath.Join(common, "refs")+"/")
}
