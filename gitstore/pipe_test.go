package gitstore

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pipe puts a named pipe, which nobody writes into, in the place of a file.
func (f *fixture) pipe(path string) {
	f.t.Helper()
	if err := os.RemoveAll(path); err != nil {
		f.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := unix.Mkfifo(path, 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// ends holds that do does not wait for somebody to write into the pipe at path.
func (f *fixture) ends(path string, do func()) {
	f.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		f.t.Errorf("%s is waited for", path)
		for { // let them go
			if w, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
				_ = w.Close()
			}
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

// TestPipes puts a named pipe in the place of each file below the state
// directory: neither Open nor a Reader waits for it, nor does git afterwards.
func TestPipes(t *testing.T) {
	const head, applied = "snapshots.git/refs/heads/production", "snapshots.git/refs/dtesn/applied/production"
	for name, row := range map[string]struct{ head, found string }{
		formatFile:                    {"d", "a named pipe where format belongs"},
		identityFile:                  {"d", "a named pipe where identity belongs"},
		reserveFile:                   {"d", "a named pipe where reserve belongs"},
		walkedFile:                    {"d", "a named pipe where walked belongs"},
		appliedFile:                   {"d", "a named pipe where applied belongs"},
		lockFile:                      {"d", "a named pipe where lock belongs"},
		"snapshots.git/HEAD":          {"d", "a named pipe where HEAD belongs"},
		"snapshots.git/config":        {"d", "a named pipe where config belongs"},
		"snapshots.git/shallow":       {"d", "a named pipe where shallow belongs"},
		"snapshots.git/" + packedRefs: {"d", "a named pipe where packed-refs belongs"},
		head:                          {"b", "a named pipe where refs/heads/production belongs"},
		applied:                       {"d", "a named pipe where refs/dtesn/applied/production belongs"},
		"snapshots.git/refs/dtesn/retried/production":           {"d", "a named pipe where refs/dtesn/retried/production belongs"},
		"snapshots.git/refs/tags/mine":                          {"d", "a named pipe where refs/tags/mine belongs"},
		"snapshots.git/objects/pack/pack-" + zeroHash + ".idx":  {"d", "a named pipe where objects/pack/pack-"},
		"snapshots.git/objects/pack/pack-" + zeroHash + ".pack": {"d", "a named pipe where objects/pack/pack-"},
		"object of the head":                                    {"b", setAside},
	} {
		t.Run(strings.ReplaceAll(name, "/", "-"), func(t *testing.T) {
			t.Parallel()
			st := newStory(t)
			path := filepath.Join(st.dir, name)
			if name == "object of the head" {
				path = st.file("production:snapshot.json")
			}
			st.pipe(path)
			st.ends(path, func() { // whatever it says
				if r, err := OpenReader(st.dir); err == nil {
					_, _ = r.List(context.Background(), "", 10)
					_ = r.Close()
				}
			})
			var s *Store
			var repairs []Repair
			st.ends(path, func() { s, repairs, _ = Open(context.Background(), st.options()) })
			if s == nil {
				t.Fatal("not opened")
			}
			t.Cleanup(func() { _ = s.Close() })
			if len(repairs) == 0 || !strings.HasPrefix(repairs[0].Found, row.found) || repairs[0].Kept == "" {
				t.Errorf("repairs: %v", repairs)
			}
			if want := map[string]string{"b": st.b.ID, "d": st.d.ID}[row.head]; s.Head() == nil || s.Head().ID != want || s.Applied().ID != st.b.ID {
				t.Errorf("head %s, applied %s", idOf(s.Head()), idOf(s.Applied()))
			}
			if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
				t.Errorf("%s is still a pipe", path)
			} else if err == nil || name != "object of the head" {
				st.fsck()
			}
		})
	}
}

const zeroHash = "0000000000000000000000000000000000000000"

// TestPipesWhileOpen: a pipe that takes the place of a file under an open Store
// is damage, not a wait.
func TestPipesWhileOpen(t *testing.T) {
	for name, path := range map[string]func(f *fixture, s *Store) string{
		"head ref":       func(f *fixture, _ *Store) string { return f.ref("heads/production") },
		"packed refs":    func(f *fixture, _ *Store) string { f.git("pack-refs", "--all"); return f.repo(packedRefs) },
		"shallow":        func(f *fixture, _ *Store) string { return f.repo(shallowFile) },
		"an object":      func(f *fixture, s *Store) string { return f.file(s.Applied().Commit) },
		"another object": func(f *fixture, s *Store) string { return f.file("production:snapshot.json") },
		"lock":           func(f *fixture, _ *Store) string { return filepath.Join(f.dir, lockFile) },
		"an index": func(f *fixture, _ *Store) string {
			return f.repo("objects", "pack", "pack-"+zeroHash+".idx")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			s, _ := f.open()
			applied(t, s, 1024)
			commit(t, s, change(2048))
			at := path(f, s)
			f.pipe(at)
			ctx := context.Background()
			f.ends(at, func() {
				_ = s.Confirm(ctx)
				_ = s.SetRetried(ctx, true)
				_ = s.Probe(ctx)
				_, _ = s.Commit(ctx, change(4096))
				_ = s.Confirm(ctx)
				_, _ = s.List(ctx, "", 10)
				if r, err := OpenReader(f.dir); err == nil {
					_, _ = r.List(ctx, "", 10)
					_ = r.Close()
				}
			})
			if s.Head() == nil || s.Applied() == nil {
				t.Errorf("head %s, applied %s", idOf(s.Head()), idOf(s.Applied()))
			}
		})
	}
}
