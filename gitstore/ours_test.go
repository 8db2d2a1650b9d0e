package gitstore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
)

// vouching are the calls by which a Store says on the disk what it knows of the
// head.
var vouching = map[string]func(*Store) error{
	"confirm":     func(s *Store) error { return s.Confirm(context.Background()) },
	"set retried": func(s *Store) error { return s.SetRetried(context.Background(), true) },
	"commit":      func(s *Store) error { _, err := s.Commit(context.Background(), change(4096)); return err },
}

// replace puts a copy of a repository in the place of the Store's.
func (f *fixture) replace(by string) {
	f.t.Helper()
	if err := errors.Join(os.RemoveAll(f.repo()), os.CopyFS(f.repo(), os.DirFS(by))); err != nil {
		f.t.Fatal(err)
	}
}

// backup copies the repository.
func (f *fixture) backup() string {
	f.t.Helper()
	path := filepath.Join(f.t.TempDir(), "backup")
	if err := os.CopyFS(path, os.DirFS(f.repo())); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// said holds that the last repair found and did what is wanted.
func said(t *testing.T, s *Store, found, did string) {
	t.Helper()
	all := s.Repairs()
	if len(all) == 0 || !strings.Contains(all[len(all)-1].Found, found) || !strings.Contains(all[len(all)-1].Did, did) {
		t.Errorf("repairs: %v; the last should say %q: %q", all, found, did)
	}
}

// TestBackupUnderACandidate puts an older backup in the place of the repository
// while a candidate is open: nothing vouches for the candidate any more, what the
// backup holds stands, and it is said.
func TestBackupUnderACandidate(t *testing.T) {
	for name, vouch := range vouching {
		for _, packed := range []bool{false, true} {
			t.Run(map[bool]string{true: "packed, "}[packed]+name, func(t *testing.T) {
				t.Parallel()
				f := newMemory(t)
				s, _ := f.open()
				applied(t, s, 512)
				b := applied(t, s, 1024)
				if packed {
					f.git("gc", "-q")
				}
				backup := f.backup()
				applied(t, s, 2048)
				commit(t, s, change(3072))
				f.replace(backup)
				if err := vouch(s); err == nil || !strings.Contains(err.Error(), "read anew, from change "+b.ID) {
					t.Errorf("%s says %v", name, err)
				}
				expect(t, s, b, b)
				said(t, s, "changed by somebody else while the agent ran, at change", "of 2 records the head is change "+b.ID+", and "+b.ID+" is applied")
				f.fsck()
				next := applied(t, s, 4096)
				s, repairs := f.reopen(s)
				if len(repairs) != 1 || !strings.HasPrefix(repairs[0].Found, replaced) {
					t.Errorf("the next start says %v", repairs)
				}
				expect(t, s, next, next)
				f.beginsAt(s, next, 1)
			})
		}
	}
}

// TestCommitOnACandidate: what a person commits on top of an open candidate is
// kept, and the candidate stays open.
func TestCommitOnACandidate(t *testing.T) {
	for name, vouch := range vouching {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newMemory(t)
			s, _ := f.open()
			a := applied(t, s, 512)
			b := commit(t, s, change(1024))
			f.foreign("P", map[string][]byte{"note": []byte("hours of work")})
			theirs := f.git("rev-parse", "production")
			if err := vouch(s); err == nil || !strings.Contains(err.Error(), "changed by somebody else") {
				t.Errorf("%s says %v", name, err)
			}
			expect(t, s, b, a)
			if got := f.git("for-each-ref", "--format=%(objectname)", setAsideRefs); got != theirs {
				t.Errorf("kept is %q, not %s", got, theirs)
			}
			said(t, s, "names "+theirs+", which is not the agent's", "the head is "+b.ID+" again")
			confirm(t, s)
			f.fsck()
		})
	}
}

// TestHeadRefIsLost takes the head ref away, as a disk or a race with `git
// pack-refs` does, not a person: what stands on the record that it named goes on.
func TestHeadRefIsLost(t *testing.T) {
	for name, lose := range map[string]func(f *fixture, before *record.Record){
		"removed":     func(f *fixture, _ *record.Record) { f.remove(f.ref("heads/production")) },
		"torn":        func(f *fixture, _ *record.Record) { f.write(f.ref("heads/production"), "") },
		"a directory": func(f *fixture, _ *record.Record) { toDir(f.t, f.ref("heads/production")) },
		"packed as it was before": func(f *fixture, before *record.Record) {
			f.git("update-ref", "refs/heads/production", before.Commit)
			f.git("pack-refs", "--all")
		},
		"packed": func(f *fixture, _ *record.Record) { f.git("pack-refs", "--all") },
		"gc":     func(f *fixture, _ *record.Record) { f.git("gc", "-q", "--prune=now") },
	} {
		for by, vouch := range vouching {
			t.Run(name+", "+by, func(t *testing.T) {
				t.Parallel()
				f := newMemory(t)
				s, _ := f.open()
				a := applied(t, s, 512)
				b := commit(t, s, change(1024))
				lose(f, a)
				if err := vouch(s); err != nil {
					t.Fatal(err)
				}
				ours := name == "packed" || name == "gc"
				if repairs := s.Repairs(); ours {
					noRepairs(t, repairs)
				} else {
					said(t, s, "the head ref was lost while the agent ran", "it names change "+b.ID+" again")
				}
				confirm(t, s)
				if by == "commit" && s.Head().Parent != b.Commit || by != "commit" && s.Head() != b {
					t.Errorf("the head is %s", idOf(s.Head()))
				}
				f.fsck()
				head := s.Head()
				s, repairs := f.reopen(s)
				noRepairs(t, repairs)
				expect(t, s, head, head)
			})
		}
	}
}

// TestBranchIsReset: a person sets the branch back, and an open candidate is one
// no more.
func TestBranchIsReset(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	applied(t, s, 512)
	b := applied(t, s, 1024)
	commit(t, s, change(2048))
	f.git("update-ref", "refs/heads/production", b.Commit)
	if err := s.Confirm(t.Context()); err == nil {
		t.Error("confirmed over a branch that a person set back")
	}
	expect(t, s, b, b)
	said(t, s, "changed by somebody else", "the head is change "+b.ID)
}

// TestReadAnewFails: a history that was replaced by one that cannot be used
// leaves what is known as it was, all of it; and once the old one is back, the
// Store goes on, with what was not synced yet.
func TestReadAnewFails(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	a := applied(t, s, 512)
	b := commit(t, s, change(1024))
	if err := s.SetRetried(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	unsynced := commit(t, s, record.Record{Kind: record.KindChange, Config: sized(2048), OutcomeOf: &record.Settlement{ID: b.ID, Outcome: record.Superseded}})
	f.write(filepath.Join(f.dir, formatFile), "99\n") // a newer agent was here
	f.write(f.ref("heads/production"), a.Commit+"\n")
	for name, vouch := range vouching {
		if err := vouch(s); err == nil || !strings.Contains(err.Error(), "cannot be read anew: ") {
			t.Errorf("%s says %v", name, err)
		}
		expect(t, s, unsynced, a)
		if s.Total() != 3 || s.Retried() {
			t.Errorf("after %s, %d records, retried %v", name, s.Total(), s.Retried())
		}
		s.Prepare()
	}
	f.write(f.ref("heads/production"), unsynced.Commit+"\n")
	f.write(filepath.Join(f.dir, formatFile), "1\n")
	f.remove(f.file(unsynced.Commit))
	if err := s.Confirm(t.Context()); err == nil || !strings.Contains(err.Error(), "was written again") {
		t.Errorf("the bytes are not there any more: %v", err)
	}
	confirm(t, s)
	f.fsck()
}

// TestRepositoryIsRemoved: a head that is known from a pack which is still open
// is not there any more when its repository is removed.
func TestRepositoryIsRemoved(t *testing.T) {
	for name, vouch := range vouching {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newMemory(t)
			s, _ := f.open()
			applied(t, s, 512)
			b := commit(t, s, change(1024))
			f.git("gc", "-q")
			if there, err := s.repo.stillHas(plumbing.NewHash(b.Commit)); !there || err != nil {
				t.Fatal(there, err) // the pack is open now
			}
			f.remove(f.repo())
			if err := vouch(s); err == nil || !strings.Contains(err.Error(), "read anew, from an empty history on") {
				t.Errorf("%s says %v", name, err)
			}
			expect(t, s, nil, nil)
			said(t, s, "changed by somebody else while the agent ran, at change "+b.ID, "it is empty now")
			applied(t, s, 2048)
			f.fsck()
		})
	}
}

// A ref of ours that was lost, torn or moved back while the agent ran is put back
// where the Store left it, and told of; what `agent snapshots` says is right again.
func TestPutsItsRefsBack(t *testing.T) {
	for name, spoil := range map[string]func(f *fixture, ref string, all []*record.Record){
		"lost":       func(f *fixture, ref string, _ []*record.Record) { f.remove(f.ref(ref)) },
		"torn":       func(f *fixture, ref string, _ []*record.Record) { f.write(f.ref(ref), "") },
		"moved back": func(f *fixture, ref string, all []*record.Record) { f.git("update-ref", "refs/"+ref, all[0].Commit) },
		"to nothing": func(f *fixture, ref string, _ []*record.Record) { f.write(f.ref(ref), strings.Repeat("1", 40)+"\n") },
		"old packed": func(f *fixture, ref string, all []*record.Record) {
			f.write(f.repo("packed-refs"), "# pack-refs with: peeled fully-peeled sorted \n"+all[0].Commit+" refs/"+ref+"\n")
			f.remove(f.ref(ref))
		},
	} {
		for _, ref := range []string{"dtesn/applied/production", "dtesn/retried/production"} {
			t.Run(name+" "+ref, func(t *testing.T) {
				f := newFixture(t)
				s, _ := f.open()
				all := []*record.Record{applied(t, s, 512), applied(t, s, 576)}
				if err := s.SetRetried(t.Context(), true); err != nil {
					t.Fatal(err)
				}
				spoil(f, ref, all)
				if err := s.Probe(t.Context()); err != nil {
					t.Fatal(err)
				}
				said(t, s, " ref was lost while the agent ran", "it names change "+all[1].ID+" again")
				if got := f.git("rev-parse", "refs/"+ref); got != all[1].Commit {
					t.Errorf("it names %s", got)
				}
				before := len(s.Repairs())
				s, repairs := f.reopen(s)
				noRepairs(t, repairs)
				expect(t, s, all[1], all[1])
				if !s.Retried() || before != 1 {
					t.Errorf("%d repairs; retried: %v", before, s.Retried())
				}
			})
		}
	}
}
