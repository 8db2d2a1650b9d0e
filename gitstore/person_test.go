package gitstore

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What people do to the state directory with git and with other tools, of which
// nothing may be lost.

// longHistory makes a history of several packs, and stops as asked.
func longHistory(t *testing.T, clean bool) *fixture {
	t.Helper()
	often(t)
	f := newMemory(t)
	s, _ := f.open()
	for i := range 23 {
		applied(t, s, 64+i)
		idle(s)
	}
	stop := s.Close
	if !clean {
		stop = func() error { return errors.Join(s.join(), s.letGo(false)) }
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	return f
}

// whole holds that a start finds all of a long history, and has nothing to say.
func (f *fixture) whole() *Store {
	f.t.Helper()
	s, repairs := f.open()
	noRepairs(f.t, repairs)
	if s.Lost() != nil || s.Total() != 23 {
		f.t.Errorf("%d records, lost %v", s.Total(), s.Lost())
	}
	f.fsck()
	f.refsAgree(s)
	return s
}

// The agent is killed, a person's gc has written its pack and is about to remove the
// others when the agent starts.
func TestStartInAGc(t *testing.T) {
	f := longHistory(t, false)
	olds := must(filepath.Glob(f.repo("objects", "pack", "pack-*")))
	saved := map[string][]byte{}
	for _, path := range olds {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		saved[path] = data
	}
	f.git("gc", "-q", "--prune=now")
	for path, data := range saved {
		f.write(path, string(data))
	}
	s := f.whole()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for path := range saved {
		_ = os.Remove(path) // the start has removed some
	}
	f.whole()
}

// Packs that are named when they are looked for are gone when they are read.
func TestPacksVanish(t *testing.T) {
	f := longHistory(t, true)
	r := newRepo(f.dir, "production")
	first := f.git("rev-list", "--max-parents=0", "production")
	if err := r.packs.list(r.packDir()); err != nil {
		t.Fatal(err)
	}
	f.git("gc", "-q")
	h, _ := parseHash(first)
	if _, err := r.snapshot(h); err != nil {
		t.Error(err)
	}
}

// git maintenance names packs otherwise.
func TestPacksOfMaintenance(t *testing.T) {
	f := longHistory(t, true)
	for _, path := range must(filepath.Glob(f.repo("objects", "pack", "pack-*"))) {
		if err := os.Rename(path, strings.Replace(path, "pack/pack-", "pack/loose-", 1)); err != nil {
			t.Fatal(err)
		}
	}
	f.whole()
}

// An index that is missing proves nothing: the repository stays, and git can make the
// index again.
func TestIndexMissing(t *testing.T) {
	f := longHistory(t, true)
	for _, path := range must(filepath.Glob(f.repo("objects", "pack", "pack-*.idx"))) {
		f.remove(path)
	}
	s, repairs := f.open()
	noRepairs(t, repairs)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range must(filepath.Glob(f.repo("objects", "pack", "pack-*.pack"))) {
		f.git("index-pack", path)
	}
	f.whole()
}

// git reads the head although the pack that has it is damaged.
func TestHeadInADamagedPack(t *testing.T) {
	f := longHistory(t, true)
	for _, path := range must(filepath.Glob(f.repo("objects", "pack", "pack-*.pack"))) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := 20; at < len(data)-20; at += 40 {
			data[at] ^= 0x10
		}
		f.write(path, string(data))
	}
	s, _ := f.open()
	if text := f.gitMay("cat-file", "-p", "production:"+snapshotFile); !strings.Contains(text, s.Head().ID) {
		t.Errorf("git cat-file: %s", text)
	}
}

// git gc takes the packs that pruning would drop, and writes a graph of commits.
func TestPruneAfterGc(t *testing.T) {
	often(t)
	f := newMemory(t)
	s := f.keeping(8)
	for i := range 80 {
		applied(t, s, 64+i)
		idle(s)
		if i%7 == 6 {
			f.git("gc", "-q", "--prune=now")
		}
	}
	idle(s)
	if total := s.Total(); total < 8 || total > 9+3*checkpointRecords {
		t.Errorf("%d records are kept of 80", total)
	}
	f.fsck()
	f.refsAgree(s)
	s, repairs := f.reopen(s)
	noRepairs(t, repairs)
	f.refsAgree(s)
}

// A journal of which a file is removed, cut or in the way goes on in a running agent.
func TestJournalFileRemoved(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"live removed": os.Remove,
		"live cut":     func(path string) error { return os.Truncate(path, 5*blockSize) },
		"a pipe": func(path string) error {
			if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
				return err
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newMemory(t)
			s, _ := f.open()
			applied(t, s, 512)
			path := segmentPath(f.dir, s.journal.live)
			if err := damage(path); err != nil {
				t.Fatal(err)
			}
			if name == "a pipe" {
				if _, err := s.Commit(t.Context(), change(1024)); err == nil {
					t.Error("a pipe took a record")
				}
				f.remove(path)
			}
			want := applied(t, s, 2048)
			if err := errors.Join(s.join(), s.letGo(false)); err != nil { // a kill
				t.Fatal(err)
			}
			s, repairs := f.open()
			noRepairs(t, repairs)
			expect(t, s, want, want)
			if s.Lost() != nil {
				t.Error("it is lost")
			}
		})
	}
}

// A backup that makes holes of zeros takes the journal's reserve away, until a start.
func TestSparseJournal(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	want := applied(t, s, 512)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		file, err := os.OpenFile(segmentPath(f.dir, i), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		if err := errors.Join(unix.Fallocate(int(file.Fd()), punch, segmentSize/2, segmentSize/2), file.Close()); err != nil {
			t.Skip("no holes here: ", err)
		}
	}
	s, repairs := f.open()
	noRepairs(t, repairs)
	expect(t, s, want, want)
	if s.journal.isTorn(true) {
		t.Error("it has holes still")
	}
}

// The history lies behind a link, and what it leads to is not mounted.
func TestLinkToAnEmptyPlace(t *testing.T) {
	f := newMemory(t)
	disk, away := t.TempDir(), t.TempDir()
	if err := errors.Join(os.Mkdir(f.dir, 0o700), os.Symlink(disk, f.repo())); err != nil {
		t.Fatal(err)
	}
	s, _ := f.open() // an empty place is good for a first start
	want := applied(t, s, 512)
	if err := errors.Join(s.Close(), os.Remove(f.repo()), os.Symlink(away, f.repo())); err != nil {
		t.Fatal(err)
	}
	if s, _, err := Open(t.Context(), f.options()); err == nil || !strings.Contains(err.Error(), "where no repository is") {
		t.Errorf("opened %v, %v", s, err)
	}
	if err := errors.Join(os.Remove(f.repo()), os.Symlink(disk, f.repo())); err != nil {
		t.Fatal(err)
	}
	s, repairs := f.open()
	noRepairs(t, repairs)
	expect(t, s, want, want)
}

// A person's gc keeps the oldest pack and takes those behind it: what must stay of them
// is not cut off.
func TestPruneAcrossAGap(t *testing.T) {
	often(t)
	f := newMemory(t)
	s := f.keeping(20)
	for i := range 6 {
		applied(t, s, 64+i)
		idle(s)
	}
	for _, p := range s.ledger.Packs {
		f.write(f.repo("objects", "pack", p.Name+".keep"), "")
	}
	for i := range 15 {
		applied(t, s, 164+i)
		idle(s)
	}
	f.git("tag", "mine", "production~4")
	f.git("gc", "-q")
	for i := range 24 {
		applied(t, s, 264+i)
		idle(s)
		if s.Total() < min(20, s.Head().Index) {
			t.Fatalf("%d records stay at %d", s.Total(), s.Head().Index)
		}
	}
	if n := f.git("rev-list", "--count", "mine..production"); n != "28" {
		t.Errorf("%s records follow the tag, want 28", n)
	}
	f.fsck()
	f.refsAgree(s)
}

// A pack that a person wants kept is not removed.
func TestPackWithKeep(t *testing.T) {
	often(t)
	f := newMemory(t)
	s := f.keeping(8)
	for i := range 9 {
		applied(t, s, 64+i)
		idle(s)
	}
	base := f.repo("objects", "pack", s.ledger.Packs[0].Name)
	f.write(base+".keep", "")
	for i := range 30 {
		applied(t, s, 164+i)
		idle(s)
	}
	if there, err := exists(base + ".pack"); err != nil || !there {
		t.Errorf("there: %v, %v", there, err)
	}
}

// A person moves the branch back and lets gc remove what follows, with packs of which
// the agent has read the indexes.
func TestBranchBackAndGc(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	for i := range 6 {
		applied(t, s, 64+i)
	}
	look := func() {
		t.Helper()
		if err := s.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Prepare(t.Context(), target(s))
	}
	f.git("gc", "-q", "--prune=now")
	look()
	f.git("update-ref", "refs/heads/production", "production~3")
	f.git("update-ref", "-d", "refs/dtesn/applied/production")
	f.git("gc", "-q", "--prune=now")
	look()
	look()
	f.fsck()
	f.refsAgree(s)
}

// The pause of a damaged history outlives a clean stop, and the journal.
func TestLostOutlivesTheJournal(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	applied(t, s, 512)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(segmentPath(f.dir, s.journal.live), blockSize); err != nil {
		t.Fatal(err)
	}
	for _, damage := range []func(){func() {}, func() { f.remove(segmentPath(f.dir, 0)); f.remove(segmentPath(f.dir, 1)) }} {
		damage()
		s, _ = f.open()
		if s.Lost() == nil {
			t.Error("it is not paused")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A file of the journal that is removed or cut before a clean stop is no damage.
func TestJournalFileRemovedBeforeAStop(t *testing.T) {
	for name, damage := range map[string]func(f *fixture, live int) error{
		"live":  func(f *fixture, live int) error { return os.Remove(segmentPath(f.dir, live)) },
		"other": func(f *fixture, live int) error { return os.Remove(segmentPath(f.dir, 1-live)) },
		"cut":   func(f *fixture, live int) error { return os.Truncate(segmentPath(f.dir, 1-live), blockSize) },
		"both": func(f *fixture, live int) error {
			return errors.Join(os.Remove(segmentPath(f.dir, live)), os.Remove(segmentPath(f.dir, 1-live)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newMemory(t)
			s, _ := f.open()
			applied(t, s, 512)
			if err := damage(f, s.journal.live); err != nil {
				t.Fatal(err)
			}
			s, repairs := f.reopen(s)
			noRepairs(t, repairs)
			if s.Lost() != nil {
				t.Error("it is paused")
			}
		})
	}
}

// A journal and a repository of a backup, and the lock of now, which knows a later head.
func TestOlderJournal(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	applied(t, s, 512)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	older := f.dir + "-older"
	if err := os.CopyFS(older, os.DirFS(f.dir)); err != nil {
		t.Fatal(err)
	}
	s, _ = f.open()
	applied(t, s, 1024)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{repoDir, filepath.Base(segmentPath(f.dir, 0)), filepath.Base(segmentPath(f.dir, 1))} {
		f.remove(filepath.Join(f.dir, name))
		if err := os.Rename(filepath.Join(older, name), filepath.Join(f.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if s, _ = f.open(); s.Lost() == nil {
		t.Error("it is not paused")
	}
}

// Somebody appended to a file of the journal: what it has counts, and it is cut again.
func TestJournalWithMore(t *testing.T) {
	for _, name := range []string{"journal.0", "journal.1"} {
		f := longHistory(t, true)
		path := filepath.Join(f.dir, name)
		f.write(path, f.read(path)+"x")
		s := f.whole()
		applied(t, s, 512)
		if size := len(f.read(path)); size != segmentSize || len(s.Repairs()) != 0 {
			t.Errorf("%s: %d bytes, repaired %v", name, size, s.Repairs())
		}
	}
}

// What is not the agent's stays, whatever its name begins with.
func TestTempOfOthersStays(t *testing.T) {
	f := longHistory(t, true)
	for _, path := range []string{filepath.Join(f.dir, "tmp-mirror.git"), f.repo("mine"), f.repo("tmp-" + strings.Repeat("B", 26))} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := f.whole().Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

// An agent that is refused changes nothing, nor where the lock leads.
func TestRefusedBeforeTheLock(t *testing.T) {
	f := longHistory(t, true)
	lock := filepath.Join(f.dir, lockFile)
	before := f.read(lock)
	if _, _, err := Open(t.Context(), Options{Dir: f.dir, Environment: "staging", Instance: "another"}); err == nil {
		t.Error("the history of another is opened")
	}
	if after := f.read(lock); after != before {
		t.Errorf("the lock says %q, said %q", after, before)
	}
	precious := filepath.Join(t.TempDir(), "precious")
	f.write(precious, "precious")
	open := filepath.Join(filepath.Dir(precious), "state")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777), os.Link(precious, filepath.Join(open, lockFile))); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(t.Context(), Options{Dir: open, Environment: "production", Instance: "one"}); err == nil {
		t.Error("a directory that others can write into is opened")
	}
	if data := f.read(precious); data != "precious" {
		t.Errorf("what the lock was a link to says %q", data)
	}
}

// A reader needs no repository for what the journal has.
func TestReaderWithoutTheRepository(t *testing.T) {
	f := longHistory(t, true)
	f.remove(f.repo())
	r, err := OpenReader(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	if head, err := r.Head(); err != nil || head == nil || head.Index != 23 {
		t.Errorf("the head is %+v: %v", head, err)
	}
}

func (f *fixture) read(path string) string {
	f.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(data)
}

// A directory that others can write into is refused also while the agent runs, until it
// is mended; nothing is lost.
func TestADirectoryIsOpenedToOthers(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 1024)
	if err := os.Chmod(f.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), change(2048)); err == nil || !strings.Contains(err.Error(), "mode 0777") {
		t.Errorf("a commit: %v", err)
	}
	if err := s.Probe(t.Context()); err == nil {
		t.Error("the probe finds nothing")
	}
	if err := os.Chmod(f.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	applied(t, s, 2048)
	if head := s.Head(); head.Index != 2 {
		t.Errorf("the head is %+v", head)
	}
}
