package watcher

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// watching is a watch over base.yaml and production.yaml in root.
func watching(t *testing.T, root string) *watch {
	t.Helper()
	r, err := readFiles(root, "production")
	must(t, err)
	w, err := newWatch(findTrail(root, r.wanted), "production.yaml")
	must(t, err)
	t.Cleanup(w.close)
	return w
}

func TestRenameIsToldFromACreation(t *testing.T) {
	root := config(t)
	path := filepath.Join(root, "production.yaml")
	w := watching(t, root)
	for _, c := range []struct {
		name             string
		do               func()
		renamed, written bool
	}{
		{"nothing", func() {}, false, false},
		{"rename inside", func() { rename(t, root, "production.yaml", "x") }, true, false},
		{"rename from elsewhere", func() {
			put(t, filepath.Dir(root), "elsewhere", "x")
			must(t, os.Rename(filepath.Join(filepath.Dir(root), "elsewhere"), path))
		}, true, false},
		{"write in place", func() { put(t, root, "production.yaml", "y") }, false, true},
		{"removal", func() { must(t, os.Remove(path)) }, false, true},
		{"creation in place", func() { put(t, root, "production.yaml", "z") }, false, true},
		{"rename, then a write", func() { rename(t, root, "production.yaml", "x"); put(t, root, "base.yaml", "y") }, true, true},
		{"a write, then the rename over it", func() { put(t, root, "production.yaml", "half"); rename(t, root, "production.yaml", "x") }, true, false},
		{"a touch", func() { must(t, os.Chtimes(path, time.Now(), time.Now())) }, false, false},
		{"rename of another file", func() { rename(t, root, "base.yaml", "x") }, false, true},
		{"what does not concern the Document", func() { put(t, root, "notes.txt", "x") }, false, false},
	} {
		c.do()
		if n := w.happened(); n.renamed != c.renamed || n.written != c.written {
			t.Errorf("%s: %+v; want renamed %v, written %v", c.name, n, c.renamed, c.written)
		}
	}
}

// A rename is not taken at once when there is any doubt about the files around
// it. What no event said yet, such as a truncation that the
// kernel is still busy with, is played by events that were taken before.
func TestRenameIsDoubted(t *testing.T) {
	for _, c := range []struct {
		name  string
		do    func(t *testing.T, root string, w *watch)
		taken bool
	}{
		{"no doubt", func(t *testing.T, root string, w *watch) {}, true},
		{"another file is not what was delivered", func(t *testing.T, root string, w *watch) {
			put(t, root, "base.yaml", "base")
			w.happened()
		}, false},
		{"a template is new and fresh", func(t *testing.T, root string, w *watch) {
			put(t, root, "templates/wide.yaml", "half")
			rename(t, root, "production.yaml", "extends: [wide]\n")
			w.happened()
		}, false},
		{"a template is new and old enough", func(t *testing.T, root string, w *watch) {
			rename(t, root, "production.yaml", "extends: [other]\n")
			w.happened()
			await(t, "the template is old", func() bool {
				r, err := readFiles(root, "production")
				must(t, err)
				return time.Since(r.times["templates/other.yaml"]) > 50*time.Millisecond+clockGrain
			})
		}, true},
		{"the file is empty", func(t *testing.T, root string, w *watch) {
			put(t, root, "production.yaml", "")
			w.happened()
		}, false},
		{"something happened since", func(t *testing.T, root string, w *watch) {
			put(t, root, "base.yaml", "base 1\n") // the same bytes
		}, false},
		{"the way leads elsewhere", func(t *testing.T, root string, w *watch) {
			put(t, root, "elsewhere/production.yaml", "env 3\n")
			link(t, "elsewhere/production.yaml", filepath.Join(root, "production.yaml"))
			w.happened()
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := config(t)
			put(t, root, "templates/other.yaml", "other\n")
			r, err := readFiles(root, "production")
			must(t, err)
			sink := make(chanSink, 1)
			l := &loop{again: make(chan struct{}, 1), Files: NewFiles(FilesOptions{Root: root, Environment: "production"}), sink: sink, delivered: r.doc, watch: watching(t, root), settle: stopped()}
			rename(t, root, "production.yaml", "env 2\n")
			l.watch.happened()
			c.do(t, root, l.watch)
			if taken := l.takeRename(); taken != c.taken || len(sink) != map[bool]int{true: 1}[taken] {
				t.Errorf("taken %v with %d Documents, want %v", taken, len(sink), c.taken)
			}
		})
	}
}

// Above the configuration directory only names count: what a neighbour writes
// all the time would keep the queue from ever being empty.
func TestWritesOfNeighboursMakeNoEvents(t *testing.T) {
	t.Parallel()
	for _, contents := range []bool{false, true} {
		dir := t.TempDir()
		put(t, dir, "log", "")
		j, err := newInotify()
		must(t, err)
		defer j.close()
		must(t, j.add(dir, contents))
		file, err := os.OpenFile(filepath.Join(dir, "log"), os.O_WRONLY, 0)
		must(t, err)
		_, err = file.WriteString("a line\n")
		must(t, errors.Join(err, file.Close()))
		written := false
		j.take(func(path string, _ happening) { written = written || path == dir+"/log" })
		if written != contents {
			t.Errorf("contents %v: the write is an event: %v", contents, written)
		}
		rename(t, dir, "link", "")
		renamed := false
		j.take(func(path string, what happening) { renamed = renamed || path == dir+"/link" && what == movedIn })
		if !renamed {
			t.Error("the rename is no event")
		}
	}
}
