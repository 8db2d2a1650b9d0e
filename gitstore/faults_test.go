package gitstore

import (
	"context"
	"errors"
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
	snap, err := s.prepare(revert(b, a, "no"))
	if err != nil {
		t.Fatal(err)
	}
	e, _, err := s.encode(snap)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.journal.append(frameRecord, e.payload(), true); err != nil {
		t.Fatal(err)
	}
	s.ledger.add(e)
	s.unwritten = append(s.unwritten, e)
	failSync(t, s)
	if err := s.sync(); err == nil {
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
	f.write(path, string(data)+"too large")
	for range 2 {
		if err := s.Probe(t.Context()); err == nil {
			t.Error("a journal that is too large is read")
		}
		if _, err := s.Commit(t.Context(), change(600)); err == nil {
			t.Error("a record is committed to what cannot be read")
		}
		expect(t, s, a, a)
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
	if h := s.Head().Hold(); h == nil || len(h.Entries) == 0 {
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
		e := record.EntryOf(sized(3000 + k))
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
