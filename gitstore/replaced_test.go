package gitstore

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dtesn-agent/gitstore/record"
)

// backedUp is a history of two applied records, of which a backup holds the
// first, with the store open.
func backedUp(t *testing.T) (f *fixture, s *Store, backup string, first, second *record.Record) {
	f = newMemory(t)
	s, _ = f.open()
	first = applied(t, s, 1024)
	backup = filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(backup, os.DirFS(f.repo())); err != nil {
		t.Fatal(err)
	}
	return f, s, backup, first, applied(t, s, 2048)
}

// putBack copies the backup to where the repository was, or over it.
func (f *fixture) putBack(backup string, over bool) {
	f.t.Helper()
	if over {
		// As cp does: files of the backup over those that are there.
		err := filepath.WalkDir(backup, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(backup, path)
			f.write(f.repo(rel), string(data))
			return err
		})
		if err != nil {
			f.t.Fatal(err)
		}
		return
	}
	f.remove(f.repo())
	if err := os.CopyFS(f.repo(), os.DirFS(backup)); err != nil {
		f.t.Fatal(err)
	}
}

// TestChangedByHand removes the repository under a Store, and puts a backup in
// its place or over it: whatever the Store does next says so, nothing stands on
// what is not there, what was left behind is told of and kept where it can be,
// and the Store goes on from what lies there.
func TestChangedByHand(t *testing.T) {
	acts := map[string]func(t *testing.T, s *Store) error{
		"commit":  func(t *testing.T, s *Store) error { _, err := s.Commit(t.Context(), change(3072)); return err },
		"confirm": func(t *testing.T, s *Store) error { return s.Confirm(t.Context()) },
		"retried": func(t *testing.T, s *Store) error { return s.SetRetried(t.Context(), true) },
		"probe":   func(t *testing.T, s *Store) error { return s.Probe(t.Context()) },
	}
	for what, act := range acts {
		for name, row := range map[string]struct {
			damage func(f *fixture, backup string)
			index  int // of the head afterwards
			said   int // repairs
			kept   bool
		}{
			"a backup instead": {func(f *fixture, backup string) { f.putBack(backup, false) }, 1, 1, false},
			"a backup over it": {func(f *fixture, backup string) { f.putBack(backup, true) }, 1, 1, true},
			"nothing":          {func(f *fixture, _ string) { f.remove(f.repo()) }, 0, 2, false},
		} {
			t.Run(what+", "+name, func(t *testing.T) {
				f, s, backup, _, _ := backedUp(t)
				left := commit(t, s, change(512))
				row.damage(f, backup)
				if err := act(t, s); what != "probe" && (err == nil || !strings.Contains(err.Error(), "changed by somebody else")) || what == "probe" && err != nil {
					t.Fatalf("it says %v", err)
				}
				if got := s.Total(); got != row.index {
					t.Fatalf("%d records are there", got)
				}
				all := s.Repairs()
				last := all[len(all)-1]
				said(t, s, "the history was changed by somebody else while the agent ran, at change "+left.ID, "read anew: ")
				if len(all) != row.said || row.kept != (last.Kept != "") {
					t.Errorf("the repairs are %v", all)
				}
				if row.kept && f.git("rev-parse", last.Kept) != left.Commit {
					t.Errorf("%s is not what was left behind", last.Kept)
				}
				f.lost(s, row.index == 0)
				f.clearLost(s)
				if got := applied(t, s, 3072); got.Index != row.index+1 {
					t.Errorf("the next is record %d", got.Index)
				}
				f.fsck()
				s, repairs := f.reopen(s) // which may be the first that somebody looks at
				if len(repairs) != 1 || !strings.HasPrefix(repairs[0].Found, replaced+left.ID) {
					t.Errorf("the next start says %v", repairs)
				}
				_, repairs = f.reopen(s)
				noRepairs(t, repairs)
			})
		}
	}
}

// TestGoneUntold: a history that went away under a Store which ended before it
// could say so, or before anything was recorded, is told of at the next start.
func TestGoneUntold(t *testing.T) {
	f, s, _, _, second := backedUp(t)
	f.remove(f.repo())
	if _, err := s.Commit(t.Context(), change(3072)); err == nil {
		t.Fatal("committed into a history that is gone")
	}
	for range 2 {
		var repairs []Repair
		s, repairs = f.reopen(s)
		if len(repairs) != 1 || !strings.HasPrefix(repairs[0].Found, replaced+second.ID) || !strings.Contains(repairs[0].Did, "starts anew") {
			t.Errorf("repairs: %v", repairs)
		}
		f.lost(s, true)
	}
	f.clearLost(s)
	applied(t, s, 3072)
	_, repairs := f.reopen(s)
	noRepairs(t, repairs)
}

// TestGivenUpStaysSo: when both refs are lost, a history that a backup took the
// place of does not come back, though its records lie there with higher numbers.
func TestGivenUpStaysSo(t *testing.T) {
	f, s, backup, _, second := backedUp(t)
	third := applied(t, s, 512)
	f.putBack(backup, true)
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	now := applied(t, s, 4096)
	if now.Index != second.Index || now.Commit == second.Commit {
		t.Fatalf("the new record is %d", now.Index)
	}
	f.write(f.ref("heads/production"), "")
	f.write(f.ref("dtesn/applied/production"), "")
	s, repairs := f.reopen(s)
	expect(t, s, now, now)
	if kept := f.git("for-each-ref", "--format=%(objectname)", setAsideRefs); len(repairs) != 2 || kept != third.Commit {
		t.Errorf("kept is %q, want %s; repairs: %v", kept, third.Commit, repairs)
	}
	f.fsck()
}

// TestPushedUnderAStore: what a person pushes to a ref of the agent's while it
// runs is kept, and the history is what it was.
func TestPushedUnderAStore(t *testing.T) {
	for _, refs := range [][]string{{"heads"}, {"dtesn/applied"}, {"dtesn/retried"}, {"heads", "dtesn/applied", "dtesn/retried"}} {
		t.Run(strings.Join(refs, " "), func(t *testing.T) {
			f, s, _, _, second := backedUp(t)
			pushed := f.git("-c", "user.name=P", "-c", "user.email=p@example.org", "commit-tree", "-m", "by hand", "-p", second.Commit, second.Commit+"^{tree}")
			for _, ref := range refs {
				f.git("update-ref", "refs/"+ref+"/production", pushed)
			}
			if err := s.Probe(t.Context()); err != nil {
				t.Fatal(err)
			}
			expect(t, s, second, second)
			if kept := f.git("for-each-ref", "--format=%(objectname)", setAsideRefs); kept != pushed {
				t.Errorf("kept is %q, pushed was %s", kept, pushed)
			}
			applied(t, s, 3072)
			f.fsck()
			_, repairs := f.reopen(s)
			noRepairs(t, repairs)
		})
	}
}

// TestReplacedByAnOlderHistory: what an operator held stays held where a backup
// from before the hold is put back, over restarts, until somebody resumes. A backup
// that takes no hold away is taken as it is.
func TestReplacedByAnOlderHistory(t *testing.T) {
	for name, held := range map[string]bool{"a hold": true, "none": false} {
		for _, running := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", running ", running), func(t *testing.T) {
				f, s, backup, first, _ := backedUp(t)
				rec := change(3072)
				if held {
					entry := record.EntryOf(sized(2048))
					rec.Held = &record.Hold{By: "operator", Reason: "order 20 is bad", Since: 1, Entries: []record.Entry{entry}}
				}
				if _, err := s.Commit(t.Context(), rec); err != nil {
					t.Fatal(err)
				}
				if err := s.Confirm(t.Context()); err != nil {
					t.Fatal(err)
				}
				if !running {
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}
				f.putBack(backup, false)
				if running {
					if err := s.Probe(t.Context()); err != nil {
						t.Fatal(err)
					}
				} else {
					s, _ = f.open()
				}
				for range 3 {
					lost := s.Lost()
					if held != (lost != nil) || held && !strings.Contains(lost.Reason, "was replaced by one without") || s.Applied().ID != first.ID {
						t.Fatalf("lost %+v, applied %s", lost, s.Applied().ID)
					}
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
					s, _ = f.open()
				}
				if err := s.ClearLost(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if s, _ = f.open(); s.Lost() != nil {
					t.Errorf("after resume: %+v", s.Lost())
				}
			})
		}
	}
}
