package gitstore

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"dtesn-agent/gitstore/record"
)

// story is the history that tests damage: a and b are applied,
// c and d are candidates, c superseded by d.
type story struct {
	*fixture
	a, b, c, d *record.Record
}

// newStory copies the one story that is told, for telling it takes a while.
func newStory(t *testing.T) *story {
	t.Helper()
	told := tell()
	if told.err != nil {
		t.Fatal(told.err)
	}
	st := told.story
	st.fixture = newMemory(t)
	st.now = told.now
	if err := os.CopyFS(st.dir, told.files); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(st.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return &st
}

// A template is the story, and the files it left.
type template struct {
	story
	files fstest.MapFS
	err   error
}

var tell = sync.OnceValue(func() (told template) {
	var dir string
	if dir, told.err = os.MkdirTemp("", "gitstore-story-"); told.err != nil {
		return told
	}
	defer func() { told.err = errors.Join(told.err, os.RemoveAll(dir)) }()
	told.fixture = &fixture{dir: dir, now: time.Now()}
	var s *Store
	if s, _, told.err = Open(context.Background(), told.options()); told.err != nil {
		return told
	}
	add := func(rec record.Record, confirm bool) *record.Record {
		snap, err := s.Commit(context.Background(), rec)
		if err == nil && confirm {
			err = s.Confirm(context.Background())
		}
		told.err = errors.Join(told.err, err)
		return snap
	}
	told.a, told.b, told.c = add(change(512), true), add(change(1024), true), add(change(2048), false)
	if told.err == nil {
		rec := change(4096)
		rec.OutcomeOf = &record.Settlement{ID: told.c.ID, Outcome: record.Superseded}
		told.d = add(rec, false)
	}
	if told.err = errors.Join(told.err, s.join(), s.syncProjection(), s.letGo(false)); told.err == nil { // as a kill leaves it
		told.files, told.err = readAll(dir)
	}
	return told
})

// readAll reads a directory into memory.
func readAll(dir string) (fstest.MapFS, error) {
	files := fstest.MapFS{}
	root := os.DirFS(dir)
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		file := &fstest.MapFile{Mode: info.Mode(), ModTime: info.ModTime()}
		if !d.IsDir() {
			file.Data, err = fs.ReadFile(root, path)
		}
		files[path] = file
		return err
	})
	return files, err
}

// file is the loose file of what a git expression names.
func (f *fixture) file(expr string) string {
	f.t.Helper()
	hex := f.git("rev-parse", "--verify", expr)
	return f.repo("objects", hex[:2], hex[2:])
}

func (f *fixture) remove(path string) {
	f.t.Helper()
	if _, err := os.Lstat(path); err != nil {
		f.t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		f.t.Fatal(err)
	}
}

// halve leaves the first half of a file.
func (f *fixture) halve(path string) {
	f.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(path, string(data[:len(data)/2]))
}

func (f *fixture) ref(name string) string { return f.repo("refs", filepath.FromSlash(name)) }

// eachFile calls do for every regular file below a directory of the repository.
func (f *fixture) eachFile(sub string, do func(path string)) {
	f.t.Helper()
	err := filepath.WalkDir(f.repo(sub), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			do(path)
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// foreign puts a commit with the files on the branch, as a person's clone does.
func (f *fixture) foreign(committer string, files map[string][]byte) {
	f.t.Helper()
	work := filepath.Join(f.t.TempDir(), "work")
	f.git("clone", "-q", f.repo(), work)
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(work, name), data, 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"add", "."}, {"-c", "user.name=P", "-c", "user.email=p@example.org", "commit", "-qm", "by hand"}, {"push", "-q"}} {
		cmd := exec.Command("git", append([]string{"-C", work}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_NAME="+committer)
		if out, err := cmd.CombinedOutput(); err != nil {
			f.t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
}

// commitTree makes a commit of what lies in a tree of the repository.
func (f *fixture) commitTree(tree string) string {
	f.t.Helper()
	return f.git("-c", "user.name=P", "-c", "user.email=p@example.org", "commit-tree", "-m", "by hand", tree)
}

// tree is every file below the state directory but the lock, with its content.
func (f *fixture) tree() map[string]string {
	f.t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(f.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Type() == os.ModeSymlink || path == filepath.Join(f.dir, lockFile) {
			return err
		}
		data, err := os.ReadFile(path)
		files[path] = string(data)
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return files
}

// lost holds that the Store, and the next one, say whether the history is lost.
func (f *fixture) lost(s *Store, want bool) {
	f.t.Helper()
	h := s.Lost()
	if (h != nil) != want || (s.ledger.Facts[lostFact] != nil) != want {
		f.t.Errorf("lost: %+v, want %v", h, want)
	}
	if h != nil && (!h.Paused || h.By != "agent" || h.Since == 0 || strings.Contains(h.Reason, "agent resume")) {
		f.t.Errorf("of a lost history is said %+v", h)
	}
}

// dropJournal removes the journal, as somebody does who copies the repository alone.
func (f *fixture) dropJournal() {
	f.t.Helper()
	for i := range 2 {
		if err := os.Remove(segmentPath(f.dir, i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.t.Fatal(err)
		}
	}
}

// rejected has 1024 rejected, and its revert applied.
func rejected(t *testing.T, s *Store) {
	before := s.Applied()
	commit(t, s, revert(commit(t, s, change(1024)), before, "refused"))
	confirm(t, s)
}

// onPause has an operator pause, without a Confirm.
func onPause(t *testing.T, s *Store) {
	held := &record.Hold{Paused: true, Reason: "incident", By: "operator", Since: 1}
	commit(t, s, record.Record{Kind: record.KindNote, Description: "Pause", Config: s.Head().Config, RollbackPoint: true, Held: held})
}
