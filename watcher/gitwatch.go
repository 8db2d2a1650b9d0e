package watcher

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"dtesn-agent/watcher/local"
)

// A refWatch watches the refs of a local repository, wherever its path leads at
// the moment. The truth is a stat of their files once a second, events make it
// quick. While the files cannot be watched, each second is a hint.
type refWatch struct {
	path  string
	names []string
	mode  func(mode string)
	log   *slog.Logger

	hints   chan struct{}
	files   map[string]stamp // the files of the refs, whether they exist or not
	dirs    map[string]stamp // what is watched
	watcher *fsnotify.Watcher
	told    string // why it is nil, as it was logged
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
		if w.watcher != nil {
			events, errs = w.watcher.Events, w.watcher.Errors
		}
		select {
		case <-ctx.Done():
			return
		case <-turn.C:
			w.renew()
		case ev := <-events:
			if _, ours := w.files[ev.Name]; ours {
				poke(w.hints)
			}
		case <-errs: // events were lost
			w.close()
			w.renew()
		}
	}
}

// renew stats the files of the refs, and watches their directories unless they
// are watched.
func (w *refWatch) renew() {
	r, err := local.Find(w.path)
	files, dirs := map[string]stamp{}, map[string]stamp{}
	if err == nil {
		for _, path := range r.Files(w.names) {
			files[path] = stampAt(path)
			for dir := filepath.Dir(path); inside(dir, r.Dir) || inside(dir, r.Common); dir = filepath.Dir(dir) {
				if at := stampAt(dir); at.mode.IsDir() {
					dirs[dir] = at
				}
			}
		}
	}
	if !maps.Equal(files, w.files) {
		w.files = files
		poke(w.hints)
	}
	if err == nil && w.watcher != nil && maps.Equal(dirs, w.dirs) && len(w.watcher.WatchList()) == len(dirs) {
		return
	}
	w.close()
	if err == nil {
		w.dirs = dirs
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

func (w *refWatch) begin() (err error) {
	if w.watcher, err = fsnotify.NewWatcher(); err != nil {
		return fmt.Errorf("start inotify: %w", err)
	}
	for dir := range w.dirs {
		if err := checkFilesystem(dir); err != nil {
			return err
		}
		if err := w.watcher.Add(dir); err != nil {
			return fmt.Errorf("watch %s with inotify: %w", dir, err)
		}
	}
	return nil
}

func (w *refWatch) close() {
	if w.watcher != nil {
		_ = w.watcher.Close()
		w.watcher = nil
	}
}

// stampAt returns the stamp of what path leads to.
func stampAt(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stampOf(info)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
