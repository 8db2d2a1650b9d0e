package watcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Two kinds of Settle: short is waited out often; long is so long that what
// comes before half of it was taken at once.
const (
	short = 50 * time.Millisecond
	long  = time.Second
)

func TestFirstDocumentOfQuietFilesComesAtOnce(t *testing.T) {
	root := config(t)
	const settle = 100 * time.Millisecond
	await(t, "the files are old", func() bool {
		r, err := readPass(root, "production", nil)
		must(t, err)
		return r.old(time.Now(), settle)
	})
	begin := time.Now()
	f, sink := start(t, FilesOptions{Root: root, Settle: settle})
	if took := sink.document(t, "production.yaml", "env 1\n").at.Sub(begin); took > settle {
		t.Errorf("the first Document took %s", took)
	}
	if mode, read, err := f.Status(); mode != ModeInotify || read.Before(begin) || err != nil {
		t.Errorf("status %s, %s, %v", mode, read, err)
	}
}

func TestFirstDocumentOfFreshFilesWaits(t *testing.T) {
	root := config(t)
	begin := time.Now()
	_, sink := start(t, FilesOptions{Root: root, Settle: 200 * time.Millisecond})
	if took := sink.document(t, "production.yaml", "env 1\n").at.Sub(begin); took < 150*time.Millisecond {
		t.Errorf("files just written were taken after %s", took)
	}
}

func TestRenameIsTakenAtOnce(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, root, text string)
	}{
		{"in the directory", func(t *testing.T, root, text string) { rename(t, root, "production.yaml", text) }},
		{"from another directory", func(t *testing.T, root, text string) {
			put(t, filepath.Dir(root), "elsewhere", text)
			must(t, os.Rename(filepath.Join(filepath.Dir(root), "elsewhere"), filepath.Join(root, "production.yaml")))
		}},
		{"where there was none", func(t *testing.T, root, text string) { rename(t, root, "production.yaml", text) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			root := config(t)
			if c.name == "where there was none" {
				must(t, os.Remove(filepath.Join(root, "production.yaml")))
			}
			_, sink := start(t, FilesOptions{Root: root, Settle: long})
			sink.next(t)
			for i := range 3 {
				text := fmt.Sprintf("env %d\n", i+2)
				begin := time.Now()
				c.make(t, root, text)
				if took := sink.document(t, "production.yaml", text).at.Sub(begin); took > long/2 {
					t.Errorf("rename %d was delivered after %s", i, took)
				}
			}
		})
	}
}

// A file that is created in place is not whole at once, as one is that is
// renamed into place.
func TestCreationIsNoRename(t *testing.T) {
	t.Parallel()
	root := config(t)
	_, sink := start(t, FilesOptions{Root: root, Settle: 300 * time.Millisecond})
	sink.next(t)
	path := filepath.Join(root, "production.yaml")
	must(t, os.Remove(path))
	if _, there := sink.next(t).doc.File("production.yaml"); there {
		t.Fatal("the file was removed and is delivered")
	}
	file, err := os.Create(path) // with nothing else to wait for
	must(t, err)
	defer file.Close()
	for _, half := range []string{"env ", "2\n"} {
		_, err = file.WriteString(half)
		must(t, err)
		sink.silent(t, 200*time.Millisecond)
	}
	sink.document(t, "production.yaml", "env 2\n")
}

func TestNoHalfOfAnInPlaceWrite(t *testing.T) {
	for _, mode := range []string{ModeInotify, ModePoll} {
		for _, path := range []string{"production.yaml", "base.yaml", "templates/wide.yaml"} {
			t.Run(mode+" "+path, func(t *testing.T) {
				t.Parallel()
				root := config(t)
				put(t, root, "production.yaml", "extends: [wide]\n")
				put(t, root, "templates/wide.yaml", "wide 1\n")
				f, sink := start(t, FilesOptions{Root: root, Settle: 300 * time.Millisecond, Resync: 10 * time.Millisecond}, func(f *Files) {
					if mode == ModePoll {
						f.newWatch = noInotify
					}
				})
				sink.next(t)
				if got, _, _ := f.Status(); got != mode {
					t.Fatalf("mode %s, want %s", got, mode)
				}
				file, err := os.OpenFile(filepath.Join(root, path), os.O_WRONLY|os.O_TRUNC, 0)
				must(t, err)
				defer file.Close()
				for _, part := range []string{"", "extends: [wide]\n", "# more\n", "# end\n"} {
					_, err = file.WriteString(part)
					must(t, err)
					f.Sync() // asking does not hurry it
					sink.silent(t, 200*time.Millisecond)
				}
				sink.document(t, path, "extends: [wide]\n# more\n# end\n")
			})
		}
	}
}

func noInotify(statPass, string) (*watch, error) { return nil, syscall.EMFILE }

// A rename of the environment's file does not carry along another file that
// is being written.
func TestRenameWaitsForAnotherFilesWrite(t *testing.T) {
	t.Parallel()
	root := config(t)
	_, sink := start(t, FilesOptions{Root: root, Settle: 300 * time.Millisecond})
	sink.next(t)
	file, err := os.OpenFile(filepath.Join(root, "base.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
	must(t, err)
	defer file.Close()
	_, err = file.WriteString("base ")
	must(t, err)
	rename(t, root, "production.yaml", "env 2\n")
	sink.silent(t, 200*time.Millisecond)
	_, err = file.WriteString("2\n")
	must(t, err)
	got := sink.document(t, "production.yaml", "env 2\n")
	if base, _ := got.doc.File("base.yaml"); string(base) != "base 2\n" {
		t.Errorf("base.yaml = %q", base)
	}
}

func TestEveryFileOfTheDocumentIsWatched(t *testing.T) {
	t.Parallel()
	root := config(t)
	put(t, root, "production.yaml", "extends: [wide]\n")
	_, sink := start(t, FilesOptions{Root: root, Settle: short})
	sink.document(t, "base.yaml", "base 1\n")
	steps := []struct{ name, path, text string }{
		{"base in place", "base.yaml", "base 2\n"},
		{"the first template, with its folder", "templates/wide.yaml", "wide 1\n"},
		{"a template", "templates/wide.yaml", "wide 2\n"},
		{"the environment in place", "production.yaml", "extends: [wide, deep]\n"},
		{"a template that is new", "templates/deep.yaml", "deep 1\n"},
		{"that template", "templates/deep.yaml", "deep 2\n"},
	}
	for _, s := range steps {
		put(t, root, s.path, s.text)
		sink.document(t, s.path, s.text)
	}

	for _, path := range []string{"templates/deep.yaml", "templates", "base.yaml", "production.yaml"} {
		must(t, os.RemoveAll(filepath.Join(root, path)))
		if _, there := sink.next(t).doc.File(path); there {
			t.Errorf("%s was deleted and is delivered", path)
		}
	}
	put(t, root, "production.yaml", "env 9\n")
	sink.document(t, "production.yaml", "env 9\n")
}

func TestWhatDoesNotConcernTheDocumentIsNotDelivered(t *testing.T) {
	t.Parallel()
	root := config(t)
	_, sink := start(t, FilesOptions{Root: root, Settle: short})
	sink.next(t)
	put(t, root, "staging.yaml", "another environment\n")
	put(t, root, "production.yaml.swp", "an editor's\n")
	put(t, root, "templates/wide.yaml", "not extended\n")
	put(t, root, "base.yaml", "base 1\n") // the same again
	rename(t, root, "production.yaml", "env 1\n")
	must(t, os.Chmod(filepath.Join(root, "base.yaml"), 0o600))
	put(t, root, "base.yaml", "sentinel\n")
	sink.document(t, "base.yaml", "sentinel\n")
}

// A file that is written again and again without a pause is no state, and the
// sink is told; touching one does not keep others from being taken.
func TestBusyFiles(t *testing.T) {
	t.Parallel()
	const settle = 150 * time.Millisecond
	for _, write := range []bool{false, true} {
		root := config(t)
		_, sink := start(t, FilesOptions{Root: root, Settle: settle})
		sink.next(t)
		put(t, root, "production.yaml", "env 2\n")
		last := time.Now()
		for i, got := 0, (said{}); got.at.IsZero(); i++ {
			if write {
				put(t, root, "base.yaml", fmt.Sprintf("base %d\n", i))
			} else {
				must(t, os.Chtimes(filepath.Join(root, "base.yaml"), time.Now(), time.Now()))
			}
			if write && time.Since(last) > settle {
				t.Skip("this machine has too much to do to write without a pause")
			}
			last = time.Now()
			select {
			case got = <-sink:
				if write != (got.err != nil) {
					t.Errorf("writing %v: error %v", write, got.err)
				}
			case <-time.After(short / 5):
			}
		}
		put(t, root, "base.yaml", "sentinel\n")
		sink.document(t, "base.yaml", "sentinel\n")
	}
}

// What is half written is never believed, however long it goes on and whoever
// touches the file meanwhile; the sink is told once.
func TestHalvesWithoutAPause(t *testing.T) {
	for _, mode := range []string{ModeInotify, ModePoll} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			root := config(t)
			const settle = 200 * time.Millisecond
			_, sink := start(t, FilesOptions{Root: root, Settle: settle, Resync: 20 * time.Millisecond}, func(f *Files) {
				if mode == ModePoll {
					f.newWatch = noInotify
				}
			})
			sink.next(t)
			path := filepath.Join(root, "production.yaml")
			told := 0
			for end := time.Now().Add(2 * busyAfter * settle); time.Now().Before(end); {
				begin := time.Now()
				put(t, root, "production.yaml", "half")
				must(t, os.Chtimes(path, time.Now(), time.Now()))
				time.Sleep(30 * time.Millisecond)
				put(t, root, "production.yaml", "half and half")
				time.Sleep(30 * time.Millisecond)
				if time.Since(begin) > settle {
					t.Skip("this machine has too much to do to write without a pause")
				}
				select {
				case got := <-sink:
					if told++; got.err == nil || told > 1 {
						t.Fatalf("said %+v", got)
					}
				default:
				}
			}
			if told != 1 {
				t.Error("the sink was not told")
			}
			sink.document(t, "production.yaml", "half and half")
		})
	}
}

// Whole files that are renamed into place without a pause are taken as they come,
// also after another file was written.
func TestRenamesWithoutAPause(t *testing.T) {
	t.Parallel()
	root := config(t)
	_, sink := start(t, FilesOptions{Root: root, Settle: 200 * time.Millisecond})
	sink.next(t)
	put(t, root, "base.yaml", "base 2\n")
	taken := 0
	for i := range 100 {
		rename(t, root, "production.yaml", fmt.Sprintf("env %d\n", i))
		select {
		case got := <-sink:
			if base, _ := got.doc.File("base.yaml"); string(base) != "base 2\n" {
				t.Fatalf("base.yaml = %q", base)
			}
			taken++
		case <-time.After(20 * time.Millisecond):
		}
	}
	if taken < 10 {
		t.Errorf("%d of 100 renames were taken", taken)
	}
}

// Other files that are renamed into place without a pause are taken once a second,
// but not while one is being written.
func TestRenamesOfOtherFilesWithoutAPause(t *testing.T) {
	for _, write := range []bool{false, true} {
		t.Run(fmt.Sprintf("writing %v", write), func(t *testing.T) {
			t.Parallel()
			root := config(t)
			_, sink := start(t, FilesOptions{Root: root, Settle: 200 * time.Millisecond})
			sink.next(t)
			taken := 0
			for i, end := 0, time.Now().Add(4*pollEvery); time.Now().Before(end); i++ {
				begin := time.Now()
				rename(t, root, "base.yaml", fmt.Sprintf("base %d\n", i))
				if write {
					put(t, root, "production.yaml", []string{"half", "half and half"}[i%2])
				}
				time.Sleep(20 * time.Millisecond)
				if time.Since(begin) > 100*time.Millisecond {
					t.Skip("this machine has too much to do to write without a pause")
				}
				for len(sink) > 0 {
					if got := <-sink; got.err == nil {
						taken++
					}
				}
			}
			if write && taken > 0 || !write && taken < 2 {
				t.Errorf("%d states were taken in %s", taken, 4*pollEvery)
			}
		})
	}
}

func TestSync(t *testing.T) {
	t.Parallel()
	root := config(t)
	f, sink := start(t, FilesOptions{Root: root, Settle: short}, func(f *Files) { f.newWatch = noInotify })
	sink.next(t)
	for i := range 5 {
		text := fmt.Sprintf("env %d\n", i+2)
		put(t, root, "production.yaml", text)
		f.Sync()
		sink.document(t, "production.yaml", text)
	}
}

func TestStampAndPollWithoutInotify(t *testing.T) {
	t.Parallel()
	root := config(t)
	f, sink := start(t, FilesOptions{Root: root, Settle: short, Resync: 20 * time.Millisecond}, func(f *Files) { f.newWatch = noInotify })
	sink.next(t)
	if mode, _, err := f.Status(); mode != ModePoll || err != nil {
		t.Errorf("status %s, %v", mode, err)
	}
	rename(t, root, "production.yaml", "env 2\n")
	sink.document(t, "production.yaml", "env 2\n")
	put(t, root, "templates/x.yaml", "x\n")
	put(t, root, "production.yaml", "extends: [x]\n")
	sink.document(t, "templates/x.yaml", "x\n")
	stamp, read := f.Stamp(), time.Now()
	await(t, "the loop turns and reads", func() bool {
		_, last, _ := f.Status()
		return f.Stamp().After(stamp) && last.After(read)
	})
}

func TestInotifyComesBack(t *testing.T) {
	t.Parallel()
	root := config(t)
	fails := 3
	f, sink := start(t, FilesOptions{Root: root, Settle: short, Resync: 20 * time.Millisecond}, func(f *Files) {
		f.newWatch = func(s statPass, envFile string) (*watch, error) {
			if fails--; fails >= 0 {
				return nil, errors.New("no inotify")
			}
			return newWatch(s, envFile)
		}
	})
	sink.next(t)
	await(t, "inotify is tried again", func() bool { mode, _, _ := f.Status(); return mode == ModeInotify })
}
