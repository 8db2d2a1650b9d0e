package gitstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dtesn-agent/gitstore/record"
)

// often makes checkpoints due after a few records.
func often(t testing.TB) {
	records := checkpointRecords
	checkpointRecords = 5
	t.Cleanup(func() { checkpointRecords = records })
}

// idle is what the agent does between two changes.
func idle(s *Store) {
	for range 3 {
		s.Prepare(context.Background(), target(s))
		if s.checkpoint != nil {
			<-s.checkpoint.done
		}
	}
}

// target is the newest applied record of other parameters.
func target(s *Store) string {
	rows, _ := s.List(context.Background(), "", 1<<20)
	for _, row := range rows {
		if row.Outcome == record.Applied && !row.Config.Equal(s.applied.Config) {
			return row.ID
		}
	}
	return ""
}

func (f *fixture) keeping(n int) *Store {
	f.t.Helper()
	o := f.options()
	o.KeepSnapshots = n
	s, _, err := Open(f.t.Context(), o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = s.Close() })
	return s
}

// packs counts packs and loose objects.
func (f *fixture) packs() (packs, loose int) {
	f.t.Helper()
	for line := range strings.Lines(f.git("count-objects", "-v") + "\n") {
		_, _ = fmt.Sscanf(line, "packs: %d", &packs)
		_, _ = fmt.Sscanf(line, "count: %d", &loose)
	}
	return packs, loose
}

// A long history stays small: few packs, few loose files, little in the journal,
// and every record readable, by git too.
func TestCheckpoints(t *testing.T) {
	often(t)
	f := newMemory(t)
	s, _ := f.open()
	var all []*record.Record
	for i := range 120 {
		all = append(all, applied(t, s, 64+i%7))
		if i%2 == 0 {
			idle(s)
		}
		if i%25 == 24 {
			all = append(all, commit(t, s, change(2000+i)))
			all = append(all, commit(t, s, revert(s.Head(), s.Applied(), "no")))
			confirm(t, s)
		}
	}
	idle(s)
	f.fsck()
	if packs, loose := f.packs(); packs > 9 || loose > 4*2*checkpointRecords {
		t.Errorf("%d packs, %d loose objects", packs, loose)
	}
	if n := len(s.ledger.entries); n > 2*checkpointRecords+2 {
		t.Errorf("the journal has %d records", n)
	}
	check := func(s *Store) {
		t.Helper()
		for _, want := range all {
			got, err := s.Lookup(t.Context(), want.ID)
			if err != nil || got.Commit != want.Commit || !got.Config.Equal(want.Config) {
				t.Fatalf("%s: %v", want.ID, err)
			}
		}
		f.refsAgree(s)
	}
	check(s)
	s, repairs := f.reopen(s)
	noRepairs(t, repairs)
	check(s)
	if _, loose := f.packs(); loose != 0 {
		t.Errorf("%d loose objects after a clean stop", loose)
	}
	f.fsck()
	// What the journal does not have any more is in git alone.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f.dropJournal()
	s, _ = f.open()
	check(s)
	if s.Lost() != nil {
		t.Errorf("lost after a clean stop: %+v", s.Lost())
	}
}

// A record costs less than 1 KB and 0.05 files once it is packed.
func TestRecordsAreSmall(t *testing.T) {
	plainly(t)
	f := newMemory(t)
	s, _ := f.open()
	const records = 320
	for i := range records {
		applied(t, s, 64+i)
		if i%16 == 0 {
			idle(s)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, size := 0, int64(0)
	err := filepath.WalkDir(f.repo(), func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			files, size = files+1, size+info.Size()
		}
		return err
	})
	if err != nil || size > records*1000 || files > 12+records/20 {
		t.Errorf("%d bytes in %d files for %d records: %v", size, files, records, err)
	}
}

// Pruning keeps what it must: the newest records, what is applied, and where a
// rollback goes; git is content with what is left, and a clone too.
func TestPrune(t *testing.T) {
	often(t)
	f := newMemory(t)
	s := f.keeping(12)
	target := applied(t, s, 9000) // the only other state
	for range 3 {
		applied(t, s, 512)
		idle(s)
	}
	for i := range 60 {
		applied(t, s, 512+i%2)
		idle(s)
	}
	if s.ledger.First == 1 {
		t.Fatal("nothing was pruned")
	}
	if _, err := s.Lookup(t.Context(), target.ID); err == nil || !strings.Contains(err.Error(), "the history begins at record") {
		t.Errorf("the oldest record: %v", err)
	}
	if s.Total() < 12 || s.Total() > 12+2*checkpointRecords {
		t.Errorf("%d records are left", s.Total())
	}
	f.fsck()
	f.refsAgree(s)
	clone := filepath.Join(t.TempDir(), "clone")
	f.git("clone", "-q", "--mirror", f.repo(), clone)
	if got := f.git("rev-list", "--count", "production"); got != fmt.Sprint(s.Total()) {
		t.Errorf("git counts %s records, the Store %d", got, s.Total())
	}
	s, repairs := f.reopen(s)
	noRepairs(t, repairs)
	if walked := len(s.repo.parents.values); walked > 2 {
		t.Errorf("a start walked %d records down", walked)
	}
	f.refsAgree(s)
	f.fsck()
}

// What a rollback goes to stays, however old it is; so does what a person's ref
// names, with all that follows it. A ref to anything else keeps everything.
func TestPruneKeeps(t *testing.T) {
	plainly(t)
	often(t)
	for name, row := range map[string]struct {
		prepare func(f *fixture, s *Store, old *record.Record)
		oldest  bool // the first record stays
	}{
		"a rollback target": {func(*fixture, *Store, *record.Record) {}, true},
		"a tag":             {func(f *fixture, _ *Store, old *record.Record) { f.git("tag", "good", old.Commit) }, true},
		"an annotated tag": {func(f *fixture, _ *Store, old *record.Record) {
			f.git("-c", "user.name=a", "-c", "user.email=a@b", "tag", "-a", "-m", "good", "good", old.Commit)
		}, true},
		"a person's own branch": {func(f *fixture, _ *Store, _ *record.Record) {
			f.git("branch", "mine", f.commitTree("production^{tree}"))
		}, true},
		"nothing": {func(*fixture, *Store, *record.Record) {}, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newMemory(t)
			s := f.keeping(10)
			old := applied(t, s, 9000)
			row.prepare(f, s, old)
			for i := range 60 {
				size := 512
				if name == "nothing" { // a rollback goes to the record before
					size += i % 2
				}
				applied(t, s, size)
				idle(s)
			}
			if _, err := s.Lookup(t.Context(), old.ID); (err == nil) != row.oldest {
				t.Errorf("the oldest record: %v; the history begins at %d", err, s.ledger.First)
			}
			f.fsck()
		})
	}
}

// An annotated tag keeps its record and what follows, and no more.
func TestPruneBeforeAnAnnotatedTag(t *testing.T) {
	plainly(t)
	often(t)
	f := newMemory(t)
	s := f.keeping(10)
	var tagged *record.Record
	for i := range 60 {
		rec := applied(t, s, 512+i%2)
		if i == 30 {
			tagged = rec
			f.git("-c", "user.name=a", "-c", "user.email=a@b", "tag", "-a", "-m", "good", "good", rec.Commit)
		}
		idle(s)
	}
	if _, err := s.Lookup(t.Context(), tagged.ID); err != nil || s.ledger.First == 1 || s.ledger.First > tagged.Index {
		t.Errorf("the tagged record %d: %v; the history begins at %d", tagged.Index, err, s.ledger.First)
	}
	f.fsck()
}

// While records are packed nobody waits: the pack takes as long as it takes.
func TestBesideACheckpoint(t *testing.T) {
	often(t)
	f := newMemory(t)
	s, _ := f.open()
	for i := range 5 {
		applied(t, s, 512+i)
	}
	hung := &checkpoint{done: make(chan struct{}), err: errors.New("the disk hangs")}
	s.checkpoint = hung
	for i := range 5 {
		rec := applied(t, s, 600+i)
		s.Prepare(t.Context(), target(s))
		if err := s.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		expect(t, s, rec, rec)
	}
	if s.checkpoint != hung {
		t.Fatal("another one was begun")
	}
	close(hung.done)
	idle(s)
	if n := len(s.ledger.unpacked()); n != 0 || s.Behind() != nil {
		t.Errorf("%d records are not packed; %v", n, s.Behind())
	}
	f.fsck()
	f.refsAgree(s)
}

// A checkpoint that fails leaves everything as it was, and the next one succeeds.
func TestCheckpointFails(t *testing.T) {
	often(t)
	f := newMemory(t)
	s, _ := f.open()
	pack := f.repo("objects", "pack")
	if err := errors.Join(os.Remove(pack), os.WriteFile(pack, nil, 0o600)); err != nil {
		t.Fatal(err) // what is in the way
	}
	for i := range 12 {
		applied(t, s, 512+i)
		idle(s)
	}
	if n := len(s.ledger.unpacked()); n != 12 {
		t.Errorf("%d records are not packed", n)
	}
	if s.Behind() == nil {
		t.Error("nothing is said of it")
	}
	if err := os.Remove(pack); err != nil {
		t.Fatal(err)
	}
	idle(s)
	if n := len(s.ledger.unpacked()); n != 0 {
		t.Errorf("%d records are not packed after the second attempt", n)
	}
	if s.Behind() != nil {
		t.Error(s.Behind())
	}
	f.fsck()
	f.refsAgree(s)
}

// Beside a person's `git gc --prune=now` nothing that was told is lost. It may remove
// what is newer than its own look at the refs, so a mirror is whole once the Store has
// looked again.
func TestBesideGC(t *testing.T) {
	often(t)
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 64)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_ = f.gitMay("gc", "-q", "--prune=now")
			}
		}
	}()
	for i := range 60 {
		applied(t, s, 65+i)
		s.Prepare(t.Context(), "")
		if i%20 == 19 {
			var mirror string
			for try := 1; ; try++ {
				mirror = filepath.Join(t.TempDir(), "mirror")
				out, err := exec.Command("git", "clone", "-q", "--mirror", f.repo(), mirror).CombinedOutput() // beside a gc it fails, too
				if err == nil {
					out, err = exec.Command("git", "--git-dir", mirror, "fsck", "--strict").CombinedOutput()
				}
				if err != nil && try < 10 {
					s.Prepare(t.Context(), "")
					continue
				}
				if err != nil {
					t.Errorf("a mirror: %v\n%s", err, out)
				}
				break
			}
			if n := f.git("--git-dir", mirror, "rev-list", "--count", "production"); n != fmt.Sprint(i+2) {
				t.Errorf("a mirror has %s records of %d", n, i+2)
			}
		}
	}
	close(stop)
	<-done
	if err := s.Probe(t.Context()); err != nil || s.Behind() != nil {
		t.Error(err, s.Behind())
	}
	f.fsck()
	f.refsAgree(s)
	if n := f.git("rev-list", "--count", "production"); n != "61" {
		t.Errorf("git counts %s records", n)
	}
}

// A commit that a person pushes while the agent runs is kept, and the branch is
// ours again; what was committed stays.
func TestForeignCommitWhileOpen(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	a := applied(t, s, 512)
	f.foreign("P", map[string][]byte{"note": nil})
	foreign := f.git("rev-parse", "production")
	b := applied(t, s, 1024)
	expect(t, s, b, b)
	if b.Parent != a.Commit {
		t.Errorf("the record stands on %s", b.Parent)
	}
	if kept := f.git("for-each-ref", "--format=%(objectname)", setAsideRefs); kept != foreign {
		t.Errorf("kept %q, want %s", kept, foreign)
	}
	if r := s.Repairs(); len(r) != 1 || !strings.Contains(r[0].String(), "somebody else's commit") {
		t.Errorf("repairs %v", r)
	}
	f.refsAgree(s)
	// At rest too.
	f.foreign("Q", map[string][]byte{"more": nil})
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	f.refsAgree(s)
	f.fsck()
}

// While the repository cannot be written the journal goes on, and Behind says so;
// then the repository catches up.
func TestBehind(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	applied(t, s, 512)
	heads := f.repo("refs", "heads")
	if err := errors.Join(os.RemoveAll(heads), os.WriteFile(heads, nil, 0o600)); err != nil {
		t.Fatal(err) // what is in the way
	}
	for i := range 5 {
		applied(t, s, 600+i)
	}
	if s.Behind() == nil {
		t.Error("the repository is not said to be behind")
	}
	want := s.Head()
	r := f.reader()
	if head, err := r.Head(); err != nil || head.Commit != want.Commit {
		t.Errorf("a Reader has %s, %v", idOf(head), err)
	}
	if rand.IntN(2) == 0 {
		if err := errors.Join(s.join(), s.letGo(false)); err != nil { // a kill
			t.Fatal(err)
		}
		s, _ = f.open()
		expect(t, s, want, want)
	}
	if err := os.Remove(heads); err != nil {
		t.Fatal(err)
	}
	if err := s.Probe(t.Context()); err != nil || s.Behind() != nil {
		t.Errorf("%v, behind %v", err, s.Behind())
	}
	f.refsAgree(s)
	f.fsck()
}

// Facts are durable, and unknown ones are carried over checkpoints.
func TestFacts(t *testing.T) {
	often(t)
	f := newMemory(t)
	s, _ := f.open()
	if err := s.SetFact(t.Context(), "accepted/main", []byte("abc")); err != nil {
		t.Fatal(err)
	}
	if err := s.SetFact(t.Context(), "big", make([]byte, maxFact)); err == nil {
		t.Error("a fact that is too large is taken")
	}
	for i := range 12 {
		applied(t, s, 64+i)
		idle(s)
	}
	s, _ = f.reopen(s)
	if got := s.Fact("accepted/main"); !bytes.Equal(got, []byte("abc")) || s.Fact("other") != nil {
		t.Errorf("the fact is %q", got)
	}
	if err := s.SetFact(t.Context(), "accepted/main", nil); err != nil {
		t.Fatal(err)
	}
	if s, _ = f.reopen(s); s.Fact("accepted/main") != nil {
		t.Error("a fact that was removed is back")
	}
}

// Packs that were joined, and whose removal a kill or a power cut undid, go at the
// next start; a person's pack stays.
func TestPacksLeftByAKill(t *testing.T) {
	often(t)
	f := newMemory(t)
	s, _ := f.open()
	saved := t.TempDir()
	for i := range 60 {
		applied(t, s, 64+i)
		if i%5 == 4 {
			for _, path := range must(filepath.Glob(f.repo("objects", "pack", "pack-*"))) {
				if data, err := os.ReadFile(path); err == nil {
					f.write(filepath.Join(saved, filepath.Base(path)), string(data))
				}
			}
		}
		idle(s)
	}
	want, _ := f.packs()
	list := filepath.Join(t.TempDir(), "list")
	f.write(list, "a person's\n")
	blob := f.git("hash-object", "-w", list)
	f.git("tag", "mine", blob)
	f.write(list, blob+"\n")
	f.gitFrom(list, "pack-objects", "-q", f.repo("objects", "pack", "pack"))
	if err := errors.Join(s.join(), s.letGo(false)); err != nil { // a kill
		t.Fatal(err)
	}
	for _, path := range must(filepath.Glob(filepath.Join(saved, "*"))) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f.write(f.repo("objects", "pack", filepath.Base(path)), string(data))
	}
	s, repairs := f.open()
	noRepairs(t, repairs)
	if got, _ := f.packs(); got > want+1 {
		t.Errorf("%d packs are left, there were %d and a person's", got, want)
	}
	f.git("cat-file", "-e", blob)
	f.fsck()
	f.refsAgree(s)
}

func must(paths []string, err error) []string {
	if err != nil {
		panic(err)
	}
	return paths
}

// Where a pack is gone, its neighbours are not joined across it, and a checkpoint ends.
func TestPacksBesideAGap(t *testing.T) {
	plainly(t)
	f := newMemory(t)
	s := f.keeping(100)
	several := func(n int) {
		for range n {
			applied(t, s, s.ledger.First+s.Total()+100)
		}
		idle(s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = f.keeping(100)
	}
	several(5)
	several(checkpointRecords)
	several(2) // what the newest record stands on is there
	lost := s.ledger.Packs[1]
	for _, ext := range []string{".pack", ".idx"} {
		if err := os.Remove(filepath.Join(s.repo.packDir(), lost.Name+ext)); err != nil {
			t.Fatal(err)
		}
	}
	for range 9 {
		several(1)
	}
	if slices.ContainsFunc(s.ledger.Packs, func(info packInfo) bool { return info.Low <= lost.Low && info.High >= lost.High }) {
		t.Errorf("joined across the gap: %v", s.ledger.Packs)
	}
}
