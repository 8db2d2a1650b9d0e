package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// past is a history in memory, newest first.
type past struct {
	rows   []record.Row
	err    error
	listed int
}

func (p *past) List(_ context.Context, before string, limit int) ([]record.Row, error) {
	p.listed += limit
	from := 0
	if before != "" {
		from = 1 + slices.IndexFunc(p.rows, func(r record.Row) bool { return r.ID == before })
	}
	return p.rows[from:min(len(p.rows), from+limit)], p.err
}

func (p *past) add(kind record.Kind, outcome record.Outcome) *record.Row {
	n := len(p.rows) + 1
	row := record.Row{Record: record.Record{ID: fmt.Sprint("snapshot_", n), Index: n, Kind: kind, Timestamp: float64(n)}, Outcome: outcome}
	if n > 1 {
		row.Parent = p.rows[0].ID
	}
	p.rows = append([]record.Row{row}, p.rows...)
	return &p.rows[0]
}

type fixture struct {
	*testing.T
	dir  string
	past past
	away bool
	// highest is the number of the newest event that somebody was told
	highest int64
}

func (f *fixture) open() *Log {
	f.Helper()
	return Open(f.Context(), Options{Dir: f.dir, History: &f.past, Told: f.highest, Holding: func() bool { return !f.away }, Logger: slog.New(slog.DiscardHandler)})
}

// told is what is in the log, as "SEQUENCE TYPE RECORD".
func (f *fixture) told() (list []string) {
	f.Helper()
	for e, err := range Read(f.dir, 0) {
		if err != nil {
			f.Fatal(err)
		}
		list = append(list, strings.TrimSpace(fmt.Sprint(e.Sequence, " ", e.Type, " ", strings.TrimPrefix(e.Record, "snapshot_"))))
	}
	return list
}

func (f *fixture) want(want ...string) {
	f.Helper()
	if got := f.told(); !slices.Equal(got, want) {
		f.Errorf("the log has %q, want %q", got, want)
	}
}

func (l *Log) take(events ...apply.Event) {
	for _, e := range events {
		l.enqueue(e)
	}
	l.write(context.Background())
}

func about(t apply.EventType, row *record.Row) apply.Event { return apply.RecordEvent(t, &row.Record) }

// What an agent that was killed did not write comes from the history, once.
func TestMissedEventsComeFromTheHistory(t *testing.T) {
	f := &fixture{T: t, dir: t.TempDir()}
	l := f.open()
	one := *f.past.add(record.KindChange, record.Applied)
	l.take(about(apply.EventApplied, &one), apply.Event{Type: apply.EventEngineDown})
	f.past.add(record.KindChange, record.Rejected)
	f.past.add(record.KindRevert, record.Applied).OutcomeOf = &record.Settlement{ID: "snapshot_2", Outcome: record.Rejected}
	pause := f.past.add(record.KindNote, record.Applied)
	pause.Held, pause.Requester = &record.Hold{Paused: true, Reason: "night"}, &record.Requester{UID: 7}
	f.past.add(record.KindChange, record.Pending)
	want := []string{"1 applied 1", "2 engine_down", "3 rejected 2", "4 reverted 3", "5 paused 4"}
	f.open()
	f.want(want...)
	l = f.open()
	f.want(want...)
	if events, err := l.After(4, 10); err != nil || len(events) != 1 || events[0].By.UID != 7 || events[0].Reason != "night" {
		t.Errorf("%+v, %v", events, err)
	}
	f.past.rows[0].Outcome = record.Applied
	last := about(apply.EventApplied, &f.past.rows[0])
	l.take(last, last)
	f.want(append(want, "6 applied 5")...)
}

// A history that is older than the log is not told again, and a log that was lost begins
// with numbers that were never used.
func TestALogBeginsBehindAHistory(t *testing.T) {
	f := &fixture{T: t, dir: t.TempDir()}
	for range 300 {
		f.past.add(record.KindChange, record.Applied)
	}
	f.past.add(record.KindChange, record.Pending)
	f.open()
	f.want()
	if f.past.listed > 100 {
		t.Errorf("it read %d records of a history that is older than the log", f.past.listed)
	}
	f.past.rows[0].Outcome = record.Applied // by a process that was killed before it told anybody
	l := f.open()
	events, err := l.After(0, 10)
	if err != nil || len(events) != 1 || events[0].Record != "snapshot_301" || events[0].Sequence < 1e12 {
		t.Errorf("%+v, %v", events, err)
	}
}

// A line that was cut short is left out, and its number is used for what follows.
func TestACutLine(t *testing.T) {
	f := &fixture{T: t, dir: t.TempDir()}
	l := f.open()
	l.take(apply.Event{Type: apply.EventDrifted}, apply.Event{Type: apply.EventEngineDown})
	path := filepath.Join(f.dir, File)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(text) {
		if err := os.WriteFile(path, text[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		l = f.open()
		before := f.told()
		l.take(apply.Event{Type: apply.EventEngineUp})
		f.want(append(before, fmt.Sprint(len(before)+1, " engine_up"))...)
	}
}

// Two segments are kept, and who asks for what is gone gets the oldest.
func TestSegments(t *testing.T) {
	segmentSize = 8 << 10
	defer func() { segmentSize = 4 << 20 }()
	f := &fixture{T: t, dir: t.TempDir()}
	l := f.open()
	const n = 1000
	for i := range n {
		l.take(apply.Event{Type: apply.EventEngineDown, Reason: fmt.Sprint("event ", i+1)})
	}
	for _, name := range []string{File, oldFile} {
		if info, err := os.Stat(filepath.Join(f.dir, name)); err != nil || info.Size() > segmentSize+1000 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	for _, l := range []*Log{l, f.open()} {
		for after := range int64(n + 1) {
			events, err := l.After(after, 5)
			want := min(5, n-after)
			if err != nil || int64(len(events)) != want || want > 0 && (events[0].Sequence <= after || events[0].Reason != fmt.Sprint("event ", events[0].Sequence)) {
				t.Fatalf("after %d: %v, %v", after, events, err)
			}
		}
	}
}

// What the disk does not take is kept for later; of too much the oldest go, but not what
// the history has.
func TestTheDiskIsAway(t *testing.T) {
	f := &fixture{T: t, dir: t.TempDir()}
	l := f.open()
	f.away = true
	l.take(about(apply.EventApplied, f.past.add(record.KindChange, record.Applied)))
	for range maxQueued {
		l.take(apply.Event{Type: apply.EventDrifted})
	}
	f.want()
	f.away = false
	l.take()
	if got := f.told(); len(got) != maxQueued+1 || got[0] != "1 applied 1" || l.Dropped() != 1 {
		t.Errorf("%d events, the first is %q, %d dropped", len(got), got[0], l.Dropped())
	}
	if err := os.Remove(filepath.Join(f.dir, File)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(f.dir, File), 0o700); err != nil {
		t.Fatal(err)
	}
	l.take(apply.Event{Type: apply.EventEngineUp})
	if last, _ := l.Last(); last != maxQueued+1 || len(l.queue) != 1 {
		t.Errorf("the last is %d, %d wait", last, len(l.queue))
	}
}

// A log that cannot be read keeps nobody from running, and its numbers do not come again.
func TestALogThatCannotBeRead(t *testing.T) {
	f := &fixture{T: t, dir: t.TempDir()}
	l := f.open()
	l.take(about(apply.EventApplied, f.past.add(record.KindChange, record.Applied)))
	path := filepath.Join(f.dir, File)
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	l = f.open()
	l.take(apply.Event{Type: apply.EventEngineUp})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l.take()
	if events, err := l.After(0, 10); err != nil || len(events) != 1 || events[0].Sequence < 1e12 || events[0].Type != apply.EventEngineUp {
		t.Errorf("%+v, %v", events, err)
	}
	f.past.err = errors.New("unreadable")
	f.dir = t.TempDir()
	l = f.open()
	f.past.err = nil
	l.take(about(apply.EventApplied, f.past.add(record.KindChange, record.Applied)))
	if events, err := l.After(0, 10); err != nil || len(events) != 1 || events[0].Sequence < 1e12 || events[0].Record != "snapshot_2" {
		t.Errorf("%+v, %v", events, err)
	}
}

// What was told is not told again once the segments with it are gone, nor under a number
// that something else had.
func TestToldOnce(t *testing.T) {
	segmentSize = 8 << 10
	defer func() { segmentSize = 4 << 20 }()
	f := &fixture{T: t, dir: t.TempDir()}
	l := f.open()
	for range 30 {
		l.take(about(apply.EventApplied, f.past.add(record.KindChange, record.Applied)))
	}
	pause := f.past.add(record.KindNote, record.Applied)
	pause.Held, pause.Requester = &record.Hold{Paused: true, Reason: "night"}, &record.Requester{UID: 7}
	l.take(about(apply.EventPaused, pause))
	for i := range 1000 {
		l.take(apply.Event{Type: []apply.EventType{apply.EventEngineDown, apply.EventEngineUp}[i%2]})
	}
	before := f.told()
	l = f.open()
	f.want(before...)
	l.take(about(apply.EventApplied, f.past.add(record.KindChange, record.Applied)))
	f.want(append(before, "1032 applied 32")...)

	if err := os.Truncate(filepath.Join(f.dir, File), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(f.dir, oldFile)); err != nil {
		t.Fatal(err)
	}
	l = f.open()
	f.want()
	l.take(apply.Event{Type: apply.EventDrifted})
	if last, _ := l.Last(); last < 1e12 {
		t.Errorf("the number %d was that of another event", last)
	}

	f.highest = 1e15
	l = f.open()
	l.take(apply.Event{Type: apply.EventDrifted})
	if last, _ := l.Last(); last != 1e15+1 {
		t.Errorf("the number %d follows one that was told", last)
	}
}

// Lines that are no events are left out: too long ones, and numbers that cannot be.
func TestForeignLines(t *testing.T) {
	f := &fixture{T: t, dir: t.TempDir()}
	f.open().take(apply.Event{Type: apply.EventDrifted})
	path := filepath.Join(f.dir, File)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = slices.Concat(text, make([]byte, 2*maxLine+5), []byte("\n{\"sequence\":9223372036854775807,\"type\":\"drifted\"}\n[]\n"))
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	l := f.open()
	l.take(apply.Event{Type: apply.EventEngineUp})
	f.want("1 drifted", "2 engine_up")
	f.open().take(apply.Event{Type: apply.EventEngineDown})
	f.want("1 drifted", "2 engine_up", "3 engine_down")
}

// A log that cannot be read, or whose beginning is gone, goes on behind the history: also
// after the next start nothing is told again.
func TestADamagedLog(t *testing.T) {
	for name, damage := range map[string]func(text []byte) []byte{
		"garbage":       func([]byte) []byte { return []byte("garbage\n") },
		"empty":         func([]byte) []byte { return nil },
		"the last line": func(text []byte) []byte { return text[bytes.LastIndexByte(bytes.TrimSpace(text), '\n')+1:] },
	} {
		t.Run(name, func(t *testing.T) {
			f := &fixture{T: t, dir: t.TempDir()}
			l := f.open()
			for range 5 {
				l.take(about(apply.EventApplied, f.past.add(record.KindChange, record.Applied)))
			}
			l.take(apply.Event{Type: apply.EventEngineUp})
			path := filepath.Join(f.dir, File)
			text, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, damage(text), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			before := len(f.told())
			f.open().take(apply.Event{Type: apply.EventInvalid}, apply.Event{Type: apply.EventInSync})
			f.open()
			if told := f.told(); len(told) != before+2 || !strings.HasSuffix(told[before+1], " in_sync") {
				t.Errorf("the log has %q", told)
			}
		})
	}
}
