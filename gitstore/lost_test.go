package gitstore

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dtesn-agent/gitstore/record"
)

// lost holds that the Store, and the file that the next one reads, say whether
// the history is lost.
func (f *fixture) lost(s *Store, want bool) {
	f.t.Helper()
	text, err := os.ReadFile(filepath.Join(f.dir, lostFile))
	h := s.Lost()
	if !want {
		if h != nil || !os.IsNotExist(err) {
			f.t.Errorf("the history counts as lost: %+v, %q %v", h, text, err)
		}
		return
	}
	var loss lossJSON
	if err == nil {
		err = json.Unmarshal(text, &loss)
	}
	if h == nil || !h.Paused || h.By != "agent" || h.Since == 0 || h.Reason != loss.Reason || h.Since != loss.Since || err != nil ||
		!strings.HasPrefix(h.Reason, "the history in "+f.repo()+" cannot be read: ") || strings.Contains(h.Reason, "agent resume") {
		f.t.Errorf("of a lost history is said %+v, %q %v", h, text, err)
	}
}

// clearLost does what agent resume does.
func (f *fixture) clearLost(s *Store) {
	f.t.Helper()
	if err := s.ClearLost(f.t.Context()); err != nil {
		f.t.Errorf("clear lost: %v", err)
	}
	f.lost(s, false)
}

// TestLost takes a history away, and looks whether that is told from a directory
// in which there never was one, over two starts, until somebody says to go on.
func TestLost(t *testing.T) {
	file := func(f *fixture, name string) string { return filepath.Join(f.dir, name) }
	torn := func(f *fixture, subs ...string) {
		for _, sub := range subs {
			f.eachFile(sub, func(path string) { f.write(path, "") })
		}
	}
	started := func(f *fixture, records int, confirmed bool) {
		s, _ := f.open()
		for i := range records {
			rec := change(512 + i)
			if i > 0 && !confirmed {
				rec.OutcomeOf = &record.Settlement{ID: s.Head().ID, Outcome: record.Superseded}
			}
			commit(f.t, s, rec)
			if confirmed {
				confirm(f.t, s)
			}
		}
		if err := s.Close(); err != nil {
			f.t.Fatal(err)
		}
	}
	for name, row := range map[string]struct {
		make func(f *fixture)
		want bool
	}{
		"new":                          {func(*fixture) {}, false},
		"new, the directory is there":  {func(f *fixture) { f.write(file(f, "lost+found/x"), "") }, false},
		"new, a file is in the way":    {func(f *fixture) { f.write(f.repo(), "x") }, false},
		"started":                      {func(f *fixture) { started(f, 0, true) }, false},
		"started, killed before marks": {func(f *fixture) { started(f, 0, true); f.remove(file(f, formatFile)); f.remove(file(f, identityFile)) }, false},
		"started, killed before format": {func(f *fixture) {
			started(f, 0, true)
			f.remove(file(f, formatFile))
		}, false},
		"started, and the repository removed": {func(f *fixture) { started(f, 0, true); f.remove(f.repo()) }, true},
		"a first candidate":                   {func(f *fixture) { started(f, 1, false) }, false},
		"a first candidate, torn by a power cut": {func(f *fixture) {
			started(f, 1, false)
			torn(f, "objects", "refs")
		}, false},
		"a first candidate, of which nothing is left": {func(f *fixture) {
			started(f, 1, false)
			f.remove(f.ref("heads/production"))
			f.eachFile("objects", func(path string) { f.remove(path) })
		}, false},
		"a first candidate, torn, and the refs removed": {func(f *fixture) {
			started(f, 1, false)
			torn(f, "objects")
			f.remove(f.repo("refs"))
		}, true},
		"two candidates, torn":             {func(f *fixture) { started(f, 2, false); torn(f, "objects", "refs") }, true},
		"one applied, torn":                {func(f *fixture) { started(f, 1, true); torn(f, "objects", "refs"); f.remove(file(f, appliedFile)) }, true},
		"one applied, the note alone left": {func(f *fixture) { started(f, 1, true); f.remove(f.repo()); f.git("init", "-q", "--bare", f.repo()) }, true},
		"marks torn, repository removed": {func(f *fixture) {
			started(f, 1, true)
			f.remove(f.repo())
			f.write(file(f, formatFile), "")
			f.write(file(f, identityFile), zeros)
		}, true},
		"format a directory, identity and repository removed": {func(f *fixture) {
			started(f, 1, true)
			f.remove(f.repo())
			toDir(f.t, file(f, formatFile))
			f.remove(file(f, identityFile))
		}, true},
		"lost, and the file torn": {func(f *fixture) { started(f, 0, true); f.write(file(f, lostFile), "") }, true},
		"lost, and the file a directory": {func(f *fixture) {
			started(f, 0, true)
			f.write(filepath.Join(file(f, lostFile), "x"), "x")
		}, true},
		"lost, and the file a pipe": {func(f *fixture) {
			started(f, 0, true)
			f.pipe(file(f, lostFile))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newMemory(t)
			row.make(f)
			s, _ := f.open()
			check := f.lost
			if strings.HasPrefix(name, "lost, ") { // it cannot say more
				check = func(s *Store, want bool) {
					if h := s.Lost(); h == nil || !h.Paused || !strings.Contains(h.Reason, "cannot be read") {
						t.Errorf("a damaged file lost: %+v", h)
					}
				}
			}
			check(s, row.want)
			first := s.Lost()
			s, _ = f.reopen(s)
			check(s, row.want)
			if row.want && !strings.HasPrefix(name, "lost, ") && (s.Lost().Reason != first.Reason || s.Lost().Since != first.Since) {
				t.Errorf("the second start says %+v, the first %+v", s.Lost(), first)
			}
			if row.want && s.Head() != nil {
				t.Errorf("lost, with the head %s", idOf(s.Head()))
			}
			f.clearLost(s)
			s, repairs := f.reopen(s)
			noRepairs(t, repairs)
			f.lost(s, false)
			applied(t, s, 2048)
			s, repairs = f.reopen(s)
			noRepairs(t, repairs)
			f.lost(s, false)
		})
	}
}

// TestLostIsRestored puts the history back: it and its pause are in force again.
func TestLostIsRestored(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 1024)
	onPause(t, s)
	head := s.Head()
	away := f.dir + "-away"
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(f.repo(), away); err != nil {
		t.Fatal(err)
	}
	s, _ = f.open()
	f.lost(s, true)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f.remove(f.repo())
	if err := os.Rename(away, f.repo()); err != nil {
		t.Fatal(err)
	}
	s, repairs := f.open()
	if commitOf(s.Head()) != head.Commit || !s.Head().Hold().Paused || len(repairs) != 1 || !strings.Contains(repairs[0].String(), "could not be read before: it goes on from note ") {
		t.Errorf("the head is %s, repairs: %v", idOf(s.Head()), repairs)
	}
	f.lost(s, false)
	_, repairs = f.reopen(s)
	noRepairs(t, repairs)
}

// TestLostUnderAStore replaces the state directory by that of an agent which
// never recorded anything, and takes it away while the history is lost.
func TestLostUnderAStore(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 1024)
	other := newFixture(t)
	o, _ := other.open()
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	swap := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	swap(f.dir, f.dir+"-away")
	swap(other.dir, f.dir)
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.lost(s, true)
	swap(f.dir, other.dir)
	if err := s.ClearLost(t.Context()); err == nil || s.Lost() == nil {
		t.Errorf("cleared while the directory is away: %v, %+v", err, s.Lost())
	}
	swap(f.dir+"-away", f.dir)
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.lost(s, false)
	if s.Applied() == nil {
		t.Error("nothing is applied")
	}
}

// TestFirstStartIsKilled kills the first start anywhere: the next one begins a
// history, and none counts as lost.
func TestFirstStartIsKilled(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("DTESN_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs strace")
	}
	kills := 0
	for _, call := range []string{"mkdirat", "renameat", "fsync", "write"} {
		for n := 1; ; n++ {
			f := newMemory(t)
			if !f.openOnce(t, call, n) {
				break
			}
			kills++
			s, repairs := f.open()
			noRepairs(t, repairs)
			f.lost(s, false)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if t.Failed() {
				t.Fatalf("killed at %s %d", call, n)
			}
			if os.Getenv("DTESN_TEST_KILLS") != "all" {
				n += rand.IntN(3)
			}
		}
	}
	if kills < 8 {
		t.Errorf("only %d kills", kills)
	}
}
