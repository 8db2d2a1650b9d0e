package gitstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dtesn-agent/gitstore/record"
)

// failSync makes the sync of the last append fail: a pipe cannot be synced.
func failSync(t *testing.T, s *Store) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	_ = s.journal.unsynced.Close()
	s.journal.unsynced = w
}

// blockSegment puts a directory in the place of the next segment, so that it cannot
// be begun; what it returns takes it away.
func (f *fixture) blockSegment(s *Store) (unblock func()) {
	f.t.Helper()
	path := segmentPath(f.dir, 1-s.journal.live)
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		f.t.Fatal(err)
	}
	return func() { f.remove(path) }
}

// Git never gets what the journal does not have durably: a sync failed, and the next
// segment could not be begun.
func TestNothingToGitAfterAFailedSync(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	a := applied(t, s, 512)
	b := commit(t, s, change(600))
	if err := s.join(); err != nil {
		t.Fatal(err)
	}
	unblock := f.blockSegment(s)
	_, e, err := s.prepare(revert(b, a, "no"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.journal.append(frameRecord, e.payload(), true); err != nil {
		t.Fatal(err)
	}
	s.ledger.add(e)
	failSync(t, s)
	s.project(e)
	if err := s.join(); err == nil {
		t.Fatal("the sync succeeded")
	}
	s.Prepare(t.Context(), "")
	_ = s.Probe(t.Context())
	if got := strings.TrimSpace(f.gitMay("cat-file", "-t", e.commit.String())); got == "commit" {
		t.Error("git has what the journal does not hold durably")
	}
	unblock()
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	s.Prepare(t.Context(), "")
	f.fsck()
}

// A damaged pack of old records costs those records, not the next ones.
func TestDamagedPackDoesNotBlock(t *testing.T) {
	plainly(t)
	often(t)
	f := newMemory(t)
	s, _ := f.open()
	for i := range 6 {
		applied(t, s, 64+i)
		idle(s)
	}
	packs, err := filepath.Glob(f.repo("objects", "pack", "*.pack"))
	if err != nil || len(packs) != 1 {
		t.Fatal(packs, err)
	}
	data, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := 100; i < len(data)-30; i += 50 {
		data[i] ^= 0x55
	}
	f.write(packs[0], string(data))
	for n := range 120 { // more than the journal holds
		applied(t, s, 100+n)
		if n%checkpointRecords == 0 {
			idle(s)
		}
	}
	idle(s)
	if n := len(s.ledger.unpacked()); n > 2*checkpointRecords {
		t.Errorf("%d records are not packed", n)
	}
}

// An applied record far below the head does not confuse packing when the repository
// is begun anew.
func TestRebuildWithAnOldAppliedRecord(t *testing.T) {
	plainly(t)
	often(t)
	f := newMemory(t)
	s, _ := f.open()
	a := applied(t, s, 64)
	for i := range 12 {
		commit(t, s, change(100+i))
		idle(s)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f.remove(f.repo())
	s, _ = f.open()
	if s.Applied().Commit != a.Commit {
		t.Errorf("applied is %s", idOf(s.Applied()))
	}
	for n := range 220 {
		commit(t, s, change(300+n))
		if n%checkpointRecords == 0 {
			idle(s)
		}
	}
	idle(s)
	if n := len(s.ledger.unpacked()); n > 2*checkpointRecords {
		t.Errorf("%d records are not packed", n)
	}
	confirm(t, s)
	f.fsck()
	f.refsAgree(s)
}

// A start that fails leaves what was known, and the next attempt reads all anew.
func TestOpenFailsWhileItRuns(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	a := applied(t, s, 512)
	f.write(f.repo(markerFile), "x")
	path := segmentPath(f.dir, s.journal.live)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Probe(t.Context()); err == nil {
			t.Error("a directory is read as a journal")
		}
		if _, err := s.Commit(t.Context(), change(600)); err == nil {
			t.Error("a record is committed to what cannot be read")
		}
		expect(t, s, a, a)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.write(path, string(data))
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := applied(t, s, 600)
	if b.Parent != a.Commit {
		t.Errorf("the next record stands on %s", b.Parent)
	}
}

// A hold is carried over although the start that takes another history ends half-way.
func TestHoldIsCarriedOverAKill(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 512)
	applied(t, s, 600)
	mirror := f.mirror()
	rejected(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f.putBack(mirror)
	ctx, cancel := context.WithCancel(t.Context())
	o := f.options()
	now := o.Now
	o.Now = func() time.Time { cancel(); return now() } // once it says what it found
	if _, _, err := Open(ctx, o); !errors.Is(err, context.Canceled) {
		t.Fatalf("the first start: %v", err)
	}
	s, _ = f.open()
	if h := s.Head().Held; h == nil || len(h.Entries) == 0 {
		t.Errorf("the hold is lost: %s", idOf(s.Head()))
	}
}

// A journal that was filled to its end is read, whatever its tail looks like.
func TestFullJournalOpens(t *testing.T) {
	plainly(t)
	f := newFixture(t)
	s, _ := f.open()
	a := applied(t, s, 1)
	held := holding()
	for k := range 60 {
		e := record.Entry{Values: sized(3000 + k).Map()}
		e.By, e.Reason, e.Since = "engine", strings.Repeat("r", 150), float64(k)
		held.Entries = append(held.Entries, e)
	}
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		s.behind = errors.New("the disk is full") // no checkpoint
		if _, err = s.Commit(t.Context(), record.Record{Kind: record.KindRollback, Config: sized(i + 2), Held: held}); err == nil {
			err = s.join()
		}
	}
	if !errors.Is(err, errJournalFull) {
		t.Fatal(err)
	}
	head := s.Head()
	if err := s.letGo(false); err != nil {
		t.Fatal(err)
	}
	s, _ = f.open()
	expect(t, s, head, a)
	confirm(t, s)
	f.fsck()
}

// Facts and marks that were replaced take no space for good, and no operator's.
func TestFactsLeaveSpace(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	a := applied(t, s, 1)
	b := commit(t, s, change(2))
	for n := range 600 {
		s.behind = errors.New("the disk is full")
		if err := s.SetFact(t.Context(), "cursor", []byte{byte(n), byte(n >> 8), 1}); err != nil {
			t.Fatal(n, err)
		}
	}
	commit(t, s, revert(b, a, "no"))
	confirm(t, s)
}

// Nothing is written below a mount point, not even what a failed sync asks for.
func TestNothingIsWrittenElsewhere(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 64)
	commit(t, s, change(65))
	if err := errors.Join(s.join(), s.journal.append(frameSet, setPayload("x", []byte("y")), true)); err != nil {
		t.Fatal(err)
	}
	failSync(t, s)
	s.project()
	if err := errors.Join(os.Rename(f.dir, f.dir+"-away"), os.Mkdir(f.dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), change(66)); err == nil {
		t.Error("committed without a directory")
	}
	s.Prepare(t.Context(), "")
	_ = s.Probe(t.Context())
	if left, err := os.ReadDir(f.dir); err != nil || len(left) > 0 {
		t.Errorf("in the place of the directory lies %v %v", left, err)
	}
}

// A kill, or a full disk, between the two files of the first journal is no damage.
func TestAnUpgradeIsKilled(t *testing.T) {
	st := newStory(t)
	st.dropJournal()
	st.write(filepath.Join(st.dir, formatFile), "1\n")
	s, _ := st.open()
	st.lost(s, false)
	state, err := s.ledger.payload()
	if err = errors.Join(err, s.join(), s.letGo(false), writeSegment(st.dir, 0, encodeFrame(1, 0, frameState, state)), os.Remove(segmentPath(st.dir, 1))); err != nil {
		t.Fatal(err)
	}
	st.write(filepath.Join(st.dir, formatFile), "1\n")
	s, _ = st.open()
	st.lost(s, false)
	expect(t, s, st.d, st.b)
}

// A repository that was begun anew with an old applied record is not given up again,
// nor is what follows it.
func TestRebuiltOnce(t *testing.T) {
	often(t)
	f := newMemory(t)
	s, _ := f.open()
	applied(t, s, 100)
	for i := range 20 {
		commit(t, s, change(200+i))
		idle(s)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f.remove(f.repo())
	s, _ = f.open()
	for i := range 20 {
		commit(t, s, change(300+i))
		idle(s)
		if i%5 == 0 {
			var repairs []record.Repair
			s, repairs = f.reopen(s)
			noRepairs(t, repairs)
		}
	}
	if s.Total() < 20 {
		t.Errorf("%d records are left", s.Total())
	}
}

// Facts alone make no pack, and no segment at each Prepare.
func TestFactsMakeNoCheckpoint(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	applied(t, s, 100)
	s.makeCheckpoint()
	packs := len(s.ledger.Packs)
	for i := range 140 {
		if err := s.SetFact(t.Context(), fmt.Sprint("hook", i), bytes.Repeat([]byte{1}, 3900)); err != nil {
			break
		}
	}
	before := s.journal.generation
	for range 5 {
		idle(s)
	}
	if s.journal.generation > before+1 || len(s.ledger.Packs) > packs {
		t.Errorf("%d segments, packs %v", s.journal.generation-before, s.ledger.Packs)
	}
}

// What a person puts in the place of the branch is not touched: the agent says that git
// is behind, also after a start, and git catches up once it is out of the way.
func TestARefBecomesADirectory(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	a := applied(t, s, 100)
	idle(s) // makes spare files
	path := f.repo("refs", "heads", "production")
	f.remove(path)
	f.write(filepath.Join(path, "mine"), a.Commit+"\n")
	b := applied(t, s, 101)
	if s.Behind() == nil {
		t.Error("nothing is said of it")
	}
	s, _ = f.reopen(s)
	expect(t, s, b, b)
	if err := s.Behind(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a start says %v", err)
	}
	if text := f.read(filepath.Join(path, "mine")); text != a.Commit+"\n" {
		t.Errorf("the file is %q", text)
	}
	f.remove(path)
	if err := s.Probe(t.Context()); err != nil || s.Behind() != nil {
		t.Error(err, s.Behind())
	}
	f.refsAgree(s)
	f.fsck()
}

// A frame that a failing disk cut short is no damage to the process that wrote it.
func TestTornInProcess(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	applied(t, s, 100)
	s, _ = f.reopen(s) // a clean start
	applied(t, s, 101)
	live, other := segmentPath(f.dir, s.journal.live), segmentPath(f.dir, 1-s.journal.live)
	b := encodeFrame(s.journal.generation, s.journal.sequence, frameSet, setPayload("x", make([]byte, 3000)))
	file, err := os.OpenFile(live, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = file.WriteAt(b[:1000], s.journal.end)
	s.journal.failed = true
	// No new segment can begin, and the repository is to be read again.
	if err = errors.Join(err, file.Close(), os.Rename(other, other+".x"), os.Mkdir(other, 0o700), os.Remove(f.repo(markerFile))); err != nil {
		t.Fatal(err)
	}
	if err := s.Probe(t.Context()); err == nil {
		t.Error("a segment could begin")
	}
	if err := errors.Join(os.Remove(other), os.Rename(other+".x", other)); err != nil {
		t.Fatal(err)
	}
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.lost(s, false)
}

// Only a stop that left everything on the disk is called one.
func TestNoCleanStop(t *testing.T) {
	for name, spoil := range map[string]func(s *Store){
		"to be read again":  func(s *Store) { s.reload = true },
		"a sync failed":     func(s *Store) { s.torn = true },
		"config not mended": func(s *Store) { s.mendError = errAway },
	} {
		f := newMemory(t)
		s, _ := f.open()
		applied(t, s, 100)
		spoil(s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(filepath.Join(f.dir, lockFile)); err != nil || strings.TrimSpace(string(text)) == cleanStop {
			t.Errorf("%s: the lock says %q %v", name, text, err)
		}
	}
}

// What git cannot work with is said until it is mended.
func TestUnmended(t *testing.T) {
	st := newStory(t)
	st.write(st.repo("packed-refs"), "x\n")
	if err := os.Truncate(st.repo("packed-refs"), maxPacked+1); err != nil {
		t.Fatal(err)
	}
	s, _ := st.open()
	for range 2 {
		if err := s.Probe(t.Context()); err != nil || s.Behind() == nil {
			t.Errorf("%v, behind %v", err, s.Behind())
		}
	}
	st.remove(st.repo("packed-refs"))
	if err := s.Probe(t.Context()); err != nil || s.Behind() != nil {
		t.Errorf("%v, behind %v", err, s.Behind())
	}
}

// A ref of format 1 does not keep records from being pruned.
func TestRetriedRefOfFormat1(t *testing.T) {
	often(t)
	f := newMemory(t)
	s := f.keeping(6)
	a := applied(t, s, 100)
	f.git("update-ref", retriedRef("production"), a.Commit)
	f.git("pack-refs", "--all")
	for i := range 60 {
		applied(t, s, 200+i%9)
		idle(s)
	}
	if s.ledger.First == 1 {
		t.Error("nothing was pruned")
	}
}
