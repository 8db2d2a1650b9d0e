package gitstore

import (
	"os"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
)

// After a failed sync the kernel may call pages clean that never reached the
// disk, so Confirm must put the bytes into new files before it syncs again. A
// new file has another inode; a reused one would be vouched for by nothing.
func TestConfirmWritesAgainAfterAFailedSync(t *testing.T) {
	for name, row := range map[string]struct{ restart, pack bool }{
		"in the same process": {},
		"after a restart":     {restart: true}, // the bytes are read back from the files
		"packed meanwhile":    {restart: true, pack: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			s, _ := f.open()
			applied(t, s, 1024)
			snap := commit(t, s, change(2048))
			if row.restart {
				s, _ = f.reopen(s)
			}
			if row.pack {
				f.git("gc", "-q", "--prune=now")
			}
			path := s.repo.objectPath(plumbing.NewHash(snap.Commit))
			before, err := os.Lstat(path)
			if (err == nil) == row.pack {
				t.Fatalf("the loose commit before: %v", err)
			}
			s.objects.suspect = true // as a sync that failed leaves it
			confirm(t, s)
			if s.objects.suspect || len(s.objects.unsynced) != 0 {
				t.Errorf("still suspect=%v with %d objects unsynced", s.objects.suspect, len(s.objects.unsynced))
			}
			if after, err := os.Lstat(path); !row.pack && (err != nil || os.SameFile(before, after)) {
				t.Errorf("the commit was not written again: %v", err)
			}
			f.fsck()
			s, repairs := f.reopen(s)
			noRepairs(t, repairs)
			expect(t, s, snap, snap)
		})
	}
}

// Objects that went away between Commit and Confirm must never be vouched for:
// Confirm fails, writes them again from memory, and is then retried.
func TestConfirmDoesNotVouchForObjectsThatAreGone(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	first := applied(t, s, 1024)
	snap := commit(t, s, change(2048))
	for _, file := range s.objects.unsynced {
		if err := os.Remove(s.repo.objectPath(file.hash)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Confirm(t.Context()); err == nil {
		t.Fatal("confirmed, and its objects are gone")
	}
	expect(t, s, snap, first)
	if got := f.git("rev-parse", "refs/dtesn/applied/production"); got != first.Commit {
		t.Errorf("the applied ref is %s, want %s", got, first.Commit)
	}
	confirm(t, s)
	f.fsck()
}

// TestPrepare holds that files made ahead change nothing but the time: records
// written into them, or after somebody has removed them, read back; and none
// is left by Close, or after a kill by the next Open.
func TestPrepare(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	left := func() int {
		entries, err := os.ReadDir(f.repo("tmp"))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	s.Prepare()
	s.Prepare() // twice is once
	if n := left(); n != 12 {
		t.Fatalf("%d files made ahead, want 12", n)
	}
	applied(t, s, 1024)
	if n := left(); n != 6 {
		t.Errorf("%d left after a commit and its confirmation", n)
	}
	s.Prepare()
	if err := os.RemoveAll(f.repo("tmp")); err != nil {
		t.Fatal(err)
	}
	applied(t, s, 2048)
	s.Prepare()
	s, _ = f.reopen(s)
	if n := left(); n != 0 {
		t.Errorf("%d left by Close", n)
	}
	f.fsck()
	if got := sizeOf(s.Applied().Config); got != 2048 {
		t.Errorf("applied %d, want 2048", got)
	}
}
