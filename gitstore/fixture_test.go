package gitstore

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

var params = schema.Default().For("production").Defaults()

const sizeName = "esn_reservoir_size"

func sized(n int) schema.Parameters { return params.With(sizeName, schema.Int(n)) }

// anyName is for a schema that knows every parameter.
func anyName(string) bool { return true }

// holding is a hold of the values of each p, by the engine.
func holding(list ...schema.Parameters) *record.Hold {
	h := &record.Hold{By: "engine", Reason: "refused", Since: 1}
	for _, p := range list {
		e := record.Entry{Values: p.Map()}
		e.By, e.Reason, e.Since = h.By, h.Reason, h.Since
		h.Entries = append(h.Entries, e)
	}
	return h
}

// fixture is a state directory that tests open again and again.
type fixture struct {
	t   testing.TB
	dir string
	now time.Time
}

func newFixture(t testing.TB) *fixture {
	return &fixture{t: t, dir: filepath.Join(t.TempDir(), "state"), now: time.Now()}
}

// newMemory is a fixture in memory, where there is such a place: for long
// histories, of which the disk's syncs would be most of the time.
func newMemory(t testing.TB) *fixture {
	const memory = "/dev/shm"
	if info, err := os.Stat(memory); err != nil || !info.IsDir() {
		return newFixture(t)
	}
	dir, err := os.MkdirTemp(memory, "gitstore-")
	if err != nil {
		return newFixture(t)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "001"), 0o755); err != nil { // as t.TempDir has it
		t.Fatal(err)
	}
	return &fixture{t: t, dir: filepath.Join(dir, "001", "state"), now: time.Now()}
}

func (f *fixture) options() Options {
	return Options{Dir: f.dir, Environment: "production", Instance: "web-1", AgentVersion: "test", Now: func() time.Time {
		f.now = f.now.Add(1001 * time.Millisecond)
		return f.now
	}}
}

// open opens the store; it is closed when the test ends at the latest.
func (f *fixture) open() (*Store, []record.Repair) {
	f.t.Helper()
	s, repairs, err := Open(context.Background(), f.options())
	if err != nil {
		f.t.Fatalf("open: %v", err)
	}
	f.t.Cleanup(func() { _ = s.Close() })
	return s, repairs
}

// reopen does what a kill and a new start do.
func (f *fixture) reopen(s *Store) (*Store, []record.Repair) {
	f.t.Helper()
	if err := s.Close(); err != nil {
		f.t.Fatal(err)
	}
	return f.open()
}

func (f *fixture) repo(elem ...string) string {
	return filepath.Join(append([]string{f.dir, repoDir}, elem...)...)
}

// git runs the real git on the repository.
func (f *fixture) git(args ...string) string {
	f.t.Helper()
	out, err := exec.Command("git", append([]string{"--git-dir", f.repo()}, args...)...).CombinedOutput()
	if err != nil {
		f.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// gitFrom runs git with the content of a file as its input.
func (f *fixture) gitFrom(path string, args ...string) string {
	f.t.Helper()
	in, err := os.Open(path)
	if err != nil {
		f.t.Fatal(err)
	}
	defer in.Close()
	cmd := exec.Command("git", append([]string{"--git-dir", f.repo()}, args...)...)
	cmd.Stdin = in
	out, err := cmd.CombinedOutput()
	if err != nil {
		f.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// gitMay is git where a failure is an answer.
func (f *fixture) gitMay(args ...string) string {
	f.t.Helper()
	out, _ := exec.Command("git", append([]string{"--git-dir", f.repo()}, args...)...).CombinedOutput()
	return string(out)
}

// fsck is the judgement of git: no word of complaint but of what is dangling, and
// nothing dangling that a person made.
func (f *fixture) fsck() {
	f.t.Helper()
	repo := newRepo(f.dir, "production")
	defer repo.closePacks()
	for line := range strings.Lines(f.git("fsck", "--strict")) {
		if !strings.HasPrefix(line, "dangling ") && !strings.HasPrefix(line, "notice: ") {
			f.t.Errorf("git fsck: %s", line)
		}
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "dangling commit ")
		if c, err := repo.commit(plumbing.NewHash(name)); ok && (err != nil || c.Message == "by hand\n") || strings.HasPrefix(line, "dangling tag ") {
			f.t.Errorf("what a person made is kept by nothing: %s %v", line, err)
		}
	}
}

func (f *fixture) write(path, content string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	_ = os.Remove(path) // objects are read-only
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func change(n int) record.Record {
	return record.Record{Kind: record.KindChange, Config: sized(n), RollbackPoint: true}
}

func commit(t testing.TB, s *Store, rec record.Record) *record.Record {
	t.Helper()
	snap, err := s.Commit(context.Background(), rec)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	if s.Head() != snap {
		t.Fatalf("the head is %+v after a commit of %+v", s.Head(), snap)
	}
	return snap
}

func confirm(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Confirm(context.Background()); err != nil {
		t.Fatalf("confirm: %v", err)
	}
	if s.Applied() == nil || s.Applied().Commit != s.Head().Commit {
		t.Fatalf("applied is %+v after confirm", s.Applied())
	}
}

// applied commits and confirms a change.
func applied(t testing.TB, s *Store, n int) *record.Record {
	t.Helper()
	snap := commit(t, s, change(n))
	confirm(t, s)
	return snap
}

// revert settles the head as rejected, back to the parameters of to.
func revert(head, to *record.Record, why ...string) record.Record {
	return record.Record{
		Kind: record.KindRevert, Description: "the engine refused it", Config: to.Config, Errors: why, RollbackPoint: true,
		OutcomeOf: &record.Settlement{ID: head.ID, Outcome: record.Rejected},
		Held:      holding(head.Config),
	}
}

func commitOf(s *record.Record) string {
	if s == nil {
		return ""
	}
	return s.Commit
}

func expect(t testing.TB, s *Store, head, applied *record.Record) {
	t.Helper()
	if commitOf(s.Head()) != commitOf(head) {
		t.Errorf("head is %s, want %s", idOf(s.Head()), idOf(head))
	}
	if commitOf(s.Applied()) != commitOf(applied) {
		t.Errorf("applied is %s, want %s", idOf(s.Applied()), idOf(applied))
	}
}

func noRepairs(t testing.TB, repairs []record.Repair) {
	t.Helper()
	if len(repairs) != 0 {
		t.Errorf("repairs where nothing was amiss: %v", repairs)
	}
}

// plainly skips a test of one goroutine under the race detector: `make test` runs it
// without.
func plainly(t *testing.T) {
	t.Helper()
	if raceDetector {
		t.Skip("runs without the race detector only; make test does both")
	}
}

// Head is the newest record that a Reader has, nil while there is none.
func (r *Reader) Head() (*record.Record, error) {
	v, err := r.view()
	return v.head, err
}

// Total is the number of records that a Reader has.
func (r *Reader) Total() (int, error) {
	v, err := r.view()
	return v.total(), err
}
