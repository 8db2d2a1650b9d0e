package gitstore

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// script writes a journal of changes that are committed and confirmed, and
// returns it with what it should say after each append, by the segment's length.
func script(t testing.TB, dir string, changes int) (*journal, map[int64]string) {
	t.Helper()
	j := &journal{dir: dir, live: -1}
	l := &ledger{identity: identity{"production", "web-1"}, First: 1, Facts: map[string][]byte{}}
	state, err := l.payload()
	if err != nil {
		t.Fatal(err)
	}
	if err := j.begin(state); err != nil {
		t.Fatal(err)
	}
	want := map[int64]string{j.end: told(l)}
	add := func(kind frameKind, payload []byte) {
		t.Helper()
		if err := errors.Join(j.append(kind, payload, false), j.sync()); err != nil {
			t.Fatal(err)
		}
		if err := l.apply(frame{kind, payload}); err != nil {
			t.Fatal(err)
		}
		want[j.end] = told(l)
	}
	for i := range changes {
		e := sampleEntry(i)
		add(frameRecord, e.payload())
		add(frameMark, markPayload(markApplied, e.commit.String()))
		if i%5 == 4 {
			add(frameSet, setPayload("accepted", fmt.Appendf(nil, "head %d", i)))
			add(frameMark, markPayload(markRetried, ""))
		}
	}
	return j, want
}

func sampleEntry(i int) entry {
	return newEntry([4][]byte{
		fmt.Appendf(nil, "size: %d\n", i%3), bytes.Repeat([]byte{byte('a' + i%26)}, 2000+i), []byte("tree " + fmt.Sprint(i)), []byte("commit " + fmt.Sprint(i)),
	})
}

// told is what a ledger says, on one line.
func told(l *ledger) string {
	var names []string
	for _, e := range l.entries {
		names = append(names, e.commit.String()[:8])
	}
	return fmt.Sprintf("head %.8s applied %.8s retried %.8s facts %s entries %s", l.Head, l.Applied, l.Retried, l.Facts, strings.Join(names, " "))
}

// readLedger is what a new process finds.
func ledgerIn(t testing.TB, dir string) (segment, string) {
	t.Helper()
	s, live, err := readJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	if live < 0 {
		return s, ""
	}
	l, err := replay(s.frames)
	if err != nil {
		t.Fatal(err)
	}
	return s, told(l)
}

func TestJournalReadsBack(t *testing.T) {
	dir := t.TempDir()
	j, want := script(t, dir, 12)
	s, got := ledgerIn(t, dir)
	if got != want[j.end] || s.torn || s.damaged || s.end != j.end {
		t.Fatalf("read %s (%+v), want %s", got, s.end, want[j.end])
	}
	// The next segment takes over, the one before stays readable until then.
	l, err := replay(s.frames)
	if err != nil {
		t.Fatal(err)
	}
	state, err := l.trim(len(l.unpacked())).payload()
	if err != nil {
		t.Fatal(err)
	}
	if err := j.begin(state); err != nil {
		t.Fatal(err)
	}
	next, got := ledgerIn(t, dir)
	if next.generation != s.generation+1 || len(next.frames) != 1 || !strings.HasPrefix(got, want[s.end][:strings.Index(want[s.end], " entries")]) {
		t.Errorf("the next segment says %s, the one before %s", got, want[s.end])
	}
	if err := os.Remove(segmentPath(dir, j.live)); err != nil {
		t.Fatal(err)
	}
	if _, got := ledgerIn(t, dir); got != want[s.end] {
		t.Errorf("without the newest segment: %s", got)
	}
}

// A write that was cut short is not believed, and what stood before it is: at
// every byte.
func TestJournalTorn(t *testing.T) {
	plainly(t)
	dir := t.TempDir()
	j, want := script(t, dir, 6)
	path := segmentPath(dir, j.live)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	step := int64(97)
	for cut := int64(blockSize); cut < j.end; cut += step {
		data := bytes.Clone(whole)
		clear(data[cut:])
		s, ok := parseSegment(data)
		if !ok {
			t.Fatalf("cut at %d: the state is lost", cut)
		}
		l, err := replay(s.frames)
		if err != nil {
			t.Fatal(err)
		}
		if got := told(l); got != want[s.end] || s.damaged || s.end > cut+blockSize {
			t.Errorf("cut at %d: %s, damaged %v, want %s", cut, got, s.damaged, want[s.end])
		}
	}
}

// A flipped bit anywhere is noticed: nothing older is taken for the newest.
func TestJournalFlipped(t *testing.T) {
	plainly(t)
	dir := t.TempDir()
	j, want := script(t, dir, 4)
	whole, err := os.ReadFile(segmentPath(dir, j.live))
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 1_500 {
		at, bit := rng.Int64N(segmentSize), byte(1)<<rng.IntN(8)
		data := bytes.Clone(whole)
		data[at] ^= bit
		s, ok := parseSegment(data)
		if !ok {
			if !s.damaged {
				t.Fatalf("seed %d, byte %d: the first frame is bad, and it is not called damage", seed, at)
			}
			continue
		}
		l, err := replay(s.frames)
		if err != nil {
			t.Fatal(err)
		}
		if got := told(l); got != want[j.end] && !s.damaged && !s.torn {
			t.Fatalf("seed %d, bit %d of byte %d: read as %s without a word, want %s", seed, bit, at, got, want[j.end])
		}
	}
}

// A newer segment that cannot be read does not let the older one win in silence.
func TestJournalNewerSegmentBad(t *testing.T) {
	dir := t.TempDir()
	j, _ := script(t, dir, 3)
	s, _ := ledgerIn(t, dir)
	l, err := replay(s.frames)
	if err != nil {
		t.Fatal(err)
	}
	state, err := l.payload()
	if err != nil {
		t.Fatal(err)
	}
	if err := j.begin(state); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.append(frameMark, markPayload(markRetried, strings.Repeat("a", 40)), false), j.sync()); err != nil {
		t.Fatal(err)
	}
	path := segmentPath(dir, j.live)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[frameHead+3] ^= 4
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	got, live, err := readJournal(dir)
	if err != nil || live == j.live || !got.damaged || got.generation != j.generation {
		t.Errorf("read generation %d of file %d, damaged %v, %v", got.generation, live, got.damaged, err)
	}
}

func TestJournalFull(t *testing.T) {
	dir := t.TempDir()
	j, _ := script(t, dir, 1)
	big := bytes.Repeat([]byte("x"), maxFact)
	var err error
	for err == nil {
		err = errors.Join(j.append(frameSet, setPayload("a", big), false), j.sync())
	}
	if !errors.Is(err, errJournalFull) {
		t.Fatal(err)
	}
	reserved := 0
	for j.append(frameSet, setPayload("a", big), true) == nil {
		if err := j.sync(); err != nil {
			t.Fatal(err)
		}
		reserved++
	}
	if reserved < 30 {
		t.Errorf("%d appends in the reserve, want 30", reserved)
	}
	if s, _ := ledgerIn(t, dir); s.torn || s.damaged || s.end != j.end {
		t.Errorf("a full segment reads as %+v", s.end)
	}
}

// Nothing goes to a segment of which a sync failed, nor to the one before when
// the next cannot be begun.
func TestJournalFailedSync(t *testing.T) {
	dir := t.TempDir()
	j, want := script(t, dir, 2)
	before := j.end
	if err := j.append(frameSet, setPayload("a", []byte("1")), false); err != nil {
		t.Fatal(err)
	}
	// A pipe cannot be synced: EINVAL.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_ = j.unsynced.Close()
	j.unsynced = w
	if err := j.sync(); !errors.Is(err, unix.EINVAL) || !j.failed {
		t.Fatalf("sync: %v", err)
	}
	if err := j.append(frameSet, setPayload("a", []byte("2")), false); err == nil {
		t.Fatal("an append to a segment of which a sync failed")
	}
	other := segmentPath(dir, 1-j.live)
	if err := os.Remove(other); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	l := &ledger{Facts: map[string][]byte{"a": []byte("3")}}
	state, _ := l.payload()
	if err := j.begin(state); err == nil {
		t.Fatal("a segment begun in a directory")
	}
	if err := j.append(frameSet, nil, false); err == nil {
		t.Fatal("an append after a segment could not be begun")
	}
	generation := j.generation
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	if err := j.begin(state); err != nil {
		t.Fatal(err)
	}
	if s, got := ledgerIn(t, dir); got != told(l) || s.generation <= generation || s.generation != j.generation {
		t.Errorf("begun anew, it says %s of generation %d", got, s.generation)
	}
	if err := os.Remove(segmentPath(dir, j.live)); err != nil {
		t.Fatal(err)
	}
	if s, got := ledgerIn(t, dir); got != want[before] && s.end > before+blockSize {
		t.Errorf("the old segment says %s", got)
	}
}

func FuzzSegment(f *testing.F) {
	dir := f.TempDir()
	j, _ := script(f, dir, 3)
	data, err := os.ReadFile(segmentPath(dir, j.live))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data[:j.end])
	f.Fuzz(func(t *testing.T, data []byte) {
		s, ok := parseSegment(data)
		if s.end > int64(len(data))+blockSize || s.torn && s.damaged {
			t.Errorf("end %d of %d bytes, torn %v, damaged %v", s.end, len(data), s.torn, s.damaged)
		}
		if ok {
			_, _ = replay(s.frames)
		}
	})
}
