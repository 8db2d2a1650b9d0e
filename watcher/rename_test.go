package watcher

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watching is a watch over base.yaml and production.yaml in root.
func watching(t *testing.T, root string) *watch {
	t.Helper()
	w, err := newWatch(statFiles(root, []string{"base.yaml", "production.yaml"}), "production.yaml")
	must(t, err)
	t.Cleanup(w.close)
	return w
}

func TestRenameIsToldFromACreation(t *testing.T) {
	root := config(t)
	path := filepath.Join(root, "production.yaml")
	w := watching(t, root)
	for _, c := range []struct {
		name string
		do   func()
		want news
	}{
		{"nothing", func() {}, news{}},
		{"rename inside", func() { rename(t, root, "production.yaml", "x") }, news{renamed: true}},
		{"rename from elsewhere", func() {
			put(t, filepath.Dir(root), "elsewhere", "x")
			must(t, os.Rename(filepath.Join(filepath.Dir(root), "elsewhere"), path))
		}, news{renamed: true}},
		{"write in place", func() { put(t, root, "production.yaml", "y") }, news{written: true}},
		{"removal", func() { must(t, os.Remove(path)) }, news{written: true}},
		{"creation in place", func() { put(t, root, "production.yaml", "z") }, news{written: true}},
		{"rename, then a write", func() { rename(t, root, "production.yaml", "x"); put(t, root, "base.yaml", "y") }, news{renamed: true, written: true}},
		{"a write, then the rename over it", func() { put(t, root, "production.yaml", "half"); rename(t, root, "production.yaml", "x") }, news{renamed: true}},
		{"a touch", func() { must(t, os.Chtimes(path, time.Now(), time.Now())) }, news{touched: true}},
		{"rename of another file", func() { rename(t, root, "base.yaml", "x") }, news{moved: true}},
		{"what does not concern the Document", func() { put(t, root, "notes.txt", "x") }, news{}},
	} {
		c.do()
		got := w.happened()
		got.envWritten = false // it is in written
		if got.written {
			got.touched = false // some ways of writing touch as well
		}
		if got != c.want {
			t.Errorf("%s: %+v; want %+v", c.name, got, c.want)
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
				r, err := readPass(root, "production", nil)
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
			sink := make(chanSink, 2)
			l := &loop{Files: NewFiles(FilesOptions{Root: root, Environment: "production"}), sink: sink, timer: stopped()}
			l.look()
			if l.delivered == nil {
				await(t, "the files are quiet", func() bool { l.look(); return l.delivered != nil })
			}
			<-sink
			rename(t, root, "production.yaml", "env 2\n")
			l.watch.happened()
			c.do(t, root, l.watch)
			l.renamed = true
			l.look()
			if taken := len(sink) == 1; taken != c.taken {
				t.Errorf("taken %v, want %v", taken, c.taken)
			}
			l.dropWatch()
		})
	}
}

// Above the configuration directory only names count: what a neighbour writes
// all the time would keep the queue from ever being empty.
func TestWritesOfNeighboursMakeNoEvents(t *testing.T) {
	root := config(t)
	put(t, root, "log", "")
	put(t, filepath.Dir(root), "log", "")
	w := watching(t, root)
	for _, dir := range []string{filepath.Dir(root), root} {
		file, err := os.OpenFile(filepath.Join(dir, "log"), os.O_WRONLY, 0)
		must(t, err)
		_, err = file.WriteString("a line\n")
		must(t, errors.Join(err, file.Close()))
		n, err := unix.Read(w.fd, w.buf)
		if got := n > 0 && err == nil; got != (dir == root) {
			t.Errorf("a write in %s made an event: %v", dir, got)
		}
	}
	rename(t, filepath.Dir(root), "other", "")
	if n, err := unix.Read(w.fd, w.buf); n <= 0 || err != nil {
		t.Errorf("a rename beside the directory made no event: %v", err)
	}
}
