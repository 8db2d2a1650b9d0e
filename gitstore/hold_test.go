package gitstore

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

// TestDirectoryThatMoves takes the state directory away from a Store, and puts
// it, or another, back: nothing is written elsewhere, no other's directory is
// taken, and the Store goes on by itself with what is there.
func TestDirectoryThatMoves(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 1024)
	away := f.dir + "-away"
	gone := func(want, hint string) {
		t.Helper()
		for what, err := range map[string]error{"probe": s.Probe(t.Context()), "confirm": s.Confirm(t.Context())} {
			if err == nil && what == "confirm" { // what is confirmed is confirmed
				continue
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s says %v, not %q", what, err, want)
			}
		}
		if _, err := s.Commit(t.Context(), change(2048)); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(problem.Hint(err), hint) {
			t.Errorf("commit says %v, not %q; its hint %q", err, want, problem.Hint(err))
		}
		if s.Holding() || s.Head() == nil || s.Applied() == nil {
			t.Errorf("holding %v, head %v, applied %v", s.Holding(), s.Head(), s.Applied())
		}
		s.Prepare(t.Context(), "")
	}
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}

	move(f.dir, away)
	gone("there is no history in "+f.dir+" any more", "mount its disk or put it back")
	if err := os.Mkdir(f.dir, 0o700); err != nil { // as below a mount point
		t.Fatal(err)
	}
	gone("there is no history in", "mount its disk or put it back")
	if left, err := os.ReadDir(f.dir); err != nil || len(left) > 0 {
		t.Errorf("in the place of the directory lies %v %v", left, err)
	}
	if err := os.Remove(f.dir); err != nil {
		t.Fatal(err)
	}
	other := &fixture{t: t, dir: away, now: f.now} // the lock was given up
	o, _ := other.open()
	held := applied(t, o, 4096)
	move(away, f.dir)
	gone("in use by another agent", "stop that one")
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Probe(t.Context()); err != nil || !s.Holding() || s.Applied().ID != held.ID {
		t.Errorf("the directory is back: %v, applied %s, want %s", err, idOf(s.Applied()), held.ID)
	}
	next := applied(t, s, 512)
	f.fsck()

	if err := os.Remove(filepath.Join(f.dir, lockFile)); err != nil {
		t.Fatal(err)
	}
	if got := applied(t, s, 300); got.Parent != next.Commit {
		t.Errorf("the lock was removed, and the next record stands on %s", got.Parent)
	}
	if _, _, err := Open(t.Context(), f.options()); err == nil || !strings.Contains(err.Error(), "in use by another agent") {
		t.Errorf("another may open it: %v", err)
	}
	applied(t, s, 256)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

// TestLeftByAnother: a Store that lost its directory leaves the lock that
// another took there alone when it ends.
func TestLeftByAnother(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 1024)
	if err := os.RemoveAll(f.dir); err != nil {
		t.Fatal(err)
	}
	o, _ := f.open()
	applied(t, o, 2048)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(f.dir, lockFile)); err != nil || len(data) == 0 {
		t.Errorf("the other's lock says %q %v", data, err)
	}
	applied(t, o, 4096)
}

// A mirror of an older state takes the place of a history with a hold or a pause,
// while the agent is stopped or runs: what is held stays held.
func TestHoldIsCarriedOver(t *testing.T) {
	for _, running := range []bool{false, true} {
		for name, hold := range map[string]func(t *testing.T, s *Store){"pause": onPause, "rejection": rejected} {
			t.Run(fmt.Sprint(name, ", running ", running), func(t *testing.T) {
				f := newMemory(t)
				s, _ := f.open()
				applied(t, s, 512)
				applied(t, s, 600)
				mirror := f.mirror()
				hold(t, s)
				held := s.Head().Held
				if err := s.Probe(t.Context()); err != nil { // git has it, too
					t.Fatal(err)
				}
				if !running {
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}
				f.putBack(mirror)
				if running {
					if err := s.Probe(t.Context()); err != nil {
						t.Error(err)
					}
				} else {
					s, _ = f.open()
				}
				got := s.Head().Held
				if got == nil || got.Paused != held.Paused || len(got.Entries) != len(held.Entries) || s.Head().Kind != record.KindNote || s.Head().Index != 3 {
					t.Errorf("the head is %s, with %+v; held was %+v", idOf(s.Head()), got, held)
				}
				if err := s.Confirm(t.Context()); err != nil {
					t.Error(err)
				}
				f.fsck()
				f.refsAgree(s)
				head := s.Head()
				s, repairs := f.reopen(s)
				noRepairs(t, repairs)
				expect(t, s, head, head)
			})
		}
	}
}

// An older copy of the repository, made with cp, is brought up to date: the journal
// has what it lacks.
func TestOlderCopy(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	applied(t, s, 512)
	backup := filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(backup, os.DirFS(f.repo())); err != nil {
		t.Fatal(err)
	}
	applied(t, s, 600)
	onPause(t, s)
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.putBack(backup)
	last := applied(t, s, 700)
	expect(t, s, last, last)
	f.fsck()
	f.refsAgree(s)
	if n := f.git("rev-list", "--count", "production"); n != "4" {
		t.Errorf("git counts %s records", n)
	}
}

// The history that is put in place may hold something itself: both stay in force.
func TestBothHoldsStay(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	applied(t, s, 512)
	onPause(t, s)
	confirm(t, s)
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	mirror := f.mirror()
	commit(t, s, record.Record{Kind: record.KindNote, Config: s.Head().Config, RollbackPoint: true, Held: holding(sized(1024))})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f.putBack(mirror)
	s, _ = f.open()
	h := s.Head().Held
	if h == nil || !h.Paused || h.By != "operator" || h.Match(sized(1024), anyName) == nil {
		t.Errorf("the hold is %+v", h)
	}
}
