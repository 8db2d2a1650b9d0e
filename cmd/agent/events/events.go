// Package events keeps what happened in <state>/events.jsonl: one apply.Event a line, as
// JSON, with rising sequence numbers. Who follows events, such as hooks and the HTTP
// endpoint, reads them here, so that an event has one number for all, and keeps it.
//
// An event is durable before anybody is told. Those that a record of the history is
// evidence of are never missing: what a kill or a full disk kept out of the log is taken
// from the history. Others may be dropped, which is counted.
package events

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

const (
	// File in the state directory is what events are appended to. Once it has segmentSize
	// bytes it takes the place of oldFile, and a new one begins.
	File, oldFile = "events.jsonl", "events.1.jsonl"

	maxLine = 256 << 10 // bytes of an event
	// maxSequence bounds the numbers: JavaScript knows no larger ones.
	maxSequence = 1 << 53
	maxRecent   = 256  // events in memory
	maxQueued   = 1024 // events that wait for a disk
	maxMissed   = 1000 // records that are searched for missing events
	retry       = time.Second
	// burst is how long an event waits for others to be written with, so that they take
	// the disk from the transaction once.
	burst = 50 * time.Millisecond
)

// segmentSize is variable for tests.
var segmentSize int64 = 4 << 20

// A History lists records, newest first, behind the one named before.
type History interface {
	List(ctx context.Context, before string, limit int) ([]record.Row, error)
}

// Options are what a Log is made of.
type Options struct {
	Dir     string  // the state directory
	History History // read by Open
	// Told is the number of the newest event that anybody is known to have been told.
	Told int64
	// Holding reports whether the state directory is there and the agent's. Nothing is
	// written while it is not.
	Holding func() bool
	Logger  *slog.Logger
}

// A Log is the one writer of a log of events. Its methods are safe from any goroutine.
type Log struct {
	opt Options

	mu      sync.Mutex
	recent  []apply.Event // the newest events, at most maxRecent
	last    int64         // sequence number of the newest event
	changed chan struct{} // closed when there is a newer one

	failing error      // why the last write failed
	reading sync.Mutex // held while the files are read for somebody

	// What follows belongs to Open and then to Run.
	queue      []apply.Event // not written yet
	keys       []string      // of the newest events with a record; see key
	first      int64         // number of the first line that was read
	begin      apply.Event   // the last line without a type that was read; see beginning
	incomplete bool          // events with a record may be missing
	dropped    atomic.Int64
	waiting    atomic.Bool // something is queued
	from       atomic.Pointer[apply.Subscription]
}

// Open reads the log, and adds the events that the history is evidence of and the log
// lacks. Where a history has none, it begins with what happens from now on. A log that
// cannot be read or written is logged, and tried again: it keeps no agent from running.
func Open(ctx context.Context, opt Options) *Log {
	l := &Log{opt: opt, changed: make(chan struct{}), incomplete: true}
	err := readAll(opt.Dir, -1, func(e apply.Event) bool { l.note(e); return true })
	if err != nil {
		l.fail(err)
	}
	switch {
	case err != nil || l.last == 0, l.first > 1 && len(l.keys) == 0 && l.begin.Sequence == 0: // the beginning is gone
		l.start(ctx)
	case l.last < opt.Told: // events are missing at its end
		l.last = max(opt.Told, time.Now().UnixMilli())
	}
	l.write(ctx)
	return l
}

// start begins a log that is missing, empty or cannot be read. Behind a history its numbers
// begin where those of a log that was lost did not come to.
func (l *Log) start(ctx context.Context) {
	rows, err := l.opt.History.List(ctx, "", 10)
	if i := slices.IndexFunc(rows, func(row record.Row) bool { return row.Outcome != record.Pending }); i >= 0 || err != nil {
		begin := apply.Event{Sequence: max(l.opt.Told, time.Now().UnixMilli())}
		if err == nil {
			begin.Record = rows[i].ID
		}
		l.incomplete = err == nil
		l.note(begin)
	}
	if err == nil && l.opt.Holding() {
		err = appendDurably(l.opt.Dir, nil, l.beginning()) // also behind what cannot be read
	}
	if err != nil {
		l.fail(err)
	}
}

// fail notes that the log cannot be used, and logs it once; nil is that it can again.
func (l *Log) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failing == nil && err != nil {
		l.opt.Logger.Warn("events cannot be recorded", "directory", l.opt.Dir, "error", err)
	}
	l.failing = err
}

// Problem returns why events cannot be recorded, nil if they can.
func (l *Log) Problem() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failing
}

// Read yields the events of the log in a state directory that are newer than after, the
// oldest first. A line that was cut short is left out.
func Read(dir string, after int64) iter.Seq2[apply.Event, error] {
	return func(yield func(apply.Event, error) bool) {
		err := readAll(dir, after, func(e apply.Event) bool {
			if e.Sequence <= after || e.Type == "" {
				return true
			}
			after = e.Sequence
			return yield(e, nil)
		})
		if err != nil {
			yield(apply.Event{}, err)
		}
	}
}

// readAll visits the lines with a number above after, until visit returns false.
func readAll(dir string, after int64, visit func(apply.Event) bool) error {
	var segments []*os.File
	for _, name := range []string{File, oldFile} { // in this order none is missed that changes its name meanwhile
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return readError(dir, name, err)
		}
		defer f.Close()
		segments = append(segments, f)
	}
	for _, f := range slices.Backward(segments) {
		r := bufio.NewReaderSize(io.LimitReader(f, 2*segmentSize+maxLine), maxLine)
		for isOver := false; ; { // isOver: the line began too long ago to be an event
			line, err := r.ReadSlice('\n')
			isLong := errors.Is(err, bufio.ErrBufferFull)
			if err != nil && !isLong && !errors.Is(err, io.EOF) {
				return readError(dir, filepath.Base(f.Name()), err)
			}
			var e apply.Event
			if !isLong && !isOver && isAfter(line, after) && json.Unmarshal(line, &e) == nil && e.Sequence > 0 && e.Sequence < maxSequence && !visit(e) {
				return nil
			}
			if isOver = isLong; errors.Is(err, io.EOF) {
				break
			}
		}
	}
	return nil
}

// isAfter reports whether a line may have a number above after: to decode each takes long.
func isAfter(line []byte, after int64) bool {
	digits, _, _ := bytes.Cut(bytes.TrimPrefix(line, []byte(`{"sequence":`)), []byte{','})
	n, err := strconv.ParseInt(string(digits), 10, 64)
	return err != nil || n > after
}

func readError(dir, name string, err error) error {
	return &problem.Error{Op: "read events in", Place: filepath.Join(dir, name), Err: problem.Bare(err), Hint: "run this as the user that runs the agent"}
}

// beginning is the first line of a segment, nil if nothing precedes it. It has no type, but
// the newest record that there was an event of, and as reason which: so that nothing is told
// again once the segment with them is gone. Behind an older history, of which nothing was
// told, there is no reason.
func (l *Log) beginning() []byte {
	begin := apply.Event{Sequence: l.last, Record: l.begin.Record, Reason: l.begin.Reason}
	if n := len(l.keys); n > 0 {
		var types []string
		_, begin.Record, _ = strings.Cut(l.keys[n-1], " ")
		for _, k := range l.keys {
			if kind, id, _ := strings.Cut(k, " "); id == begin.Record {
				types = append(types, kind)
			}
		}
		begin.Reason = strings.Join(types, " ")
	}
	if begin.Sequence == 0 {
		return nil
	}
	line, _ := json.Marshal(begin)
	return append(line, '\n')
}

// note keeps a line that is on the disk.
func (l *Log) note(e apply.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.first = cmp.Or(l.first, e.Sequence)
	if e.Type == "" {
		l.begin, l.last = e, max(l.last, e.Sequence)
		for kind := range strings.FieldsSeq(e.Reason) {
			l.keys = append(l.keys, kind+" "+e.Record)
		}
		return
	}
	if e.Sequence <= l.last {
		return
	}
	l.last = e.Sequence
	if len(l.recent) == maxRecent {
		l.recent = slices.Delete(l.recent, 0, maxRecent/4)
	}
	l.recent = append(l.recent, e)
	if k := key(&e); k != "" {
		if len(l.keys) == 2*maxMissed {
			l.keys = slices.Delete(l.keys, 0, maxMissed)
		}
		l.keys = append(l.keys, k)
	}
}

// key identifies an event that a record is evidence of, which happens once; "" for others.
func key(e *apply.Event) string {
	if e.Record == "" || e.Type == apply.EventDrifted {
		return ""
	}
	return string(e.Type) + " " + e.Record
}

// Last returns the sequence number of the newest event, and a channel that is closed when
// there is a newer one.
func (l *Log) Last() (sequence int64, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last, l.changed
}

// Dropped returns how many events were dropped, because the disk did not take them.
func (l *Log) Dropped() int64 { return l.dropped.Load() }

// After returns the next events after a sequence number, at most limit.
func (l *Log) After(after int64, limit int) (events []apply.Event, err error) {
	l.mu.Lock()
	if len(l.recent) > 0 && l.recent[0].Sequence <= after+1 {
		i := slices.IndexFunc(l.recent, func(e apply.Event) bool { return e.Sequence > after })
		if i >= 0 {
			events = slices.Clone(l.recent[i:min(len(l.recent), i+limit)])
		}
		l.mu.Unlock()
		return events, nil
	}
	l.mu.Unlock()
	l.reading.Lock() // one at a time: it takes the processor
	defer l.reading.Unlock()
	for e, err := range Read(l.opt.Dir, after) {
		if err != nil {
			return events, err
		}
		if events = append(events, e); len(events) == limit {
			break
		}
	}
	if len(events) == 0 && !l.opt.Holding() {
		return nil, errors.New("the state directory is away")
	}
	return events, nil
}

// Run appends the events of a subscription until that is closed, or ctx ends. It reads the
// history beside its writer.
func (l *Log) Run(ctx context.Context, from *apply.Subscription, history History) error {
	l.opt.History = history
	l.from.Store(from)
	lost := from.Dropped()
	for ended := false; !ended; {
		ended = l.collect(ctx, from.Events)
		if n := from.Dropped(); n != lost {
			l.dropped.Add(n - lost)
			lost, l.incomplete = n, true
		}
		if len(l.queue) > 0 || l.incomplete {
			l.write(context.WithoutCancel(ctx))
		}
	}
	return nil
}

// Busy reports whether there are events that Last does not know yet.
func (l *Log) Busy() bool {
	from := l.from.Load()
	return l.waiting.Load() || from != nil && len(from.Events) > 0
}

// collect queues events until burst after the first one, or for retry. It reports whether
// these were the last.
func (l *Log) collect(ctx context.Context, events <-chan apply.Event) (ended bool) {
	timeout, isFirst := time.NewTimer(retry), true
	defer timeout.Stop()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return true
			}
			if isFirst {
				timeout.Reset(burst)
				isFirst = false
			}
			l.enqueue(e)
		case <-timeout.C:
			return false
		case <-ctx.Done():
			for len(events) > 0 {
				if e, ok := <-events; ok {
					l.enqueue(e)
				}
			}
			return true
		}
	}
}

// enqueue queues an event. If the disk does not take any for long, the oldest go.
func (l *Log) enqueue(e apply.Event) {
	if len(l.queue) == maxQueued {
		l.incomplete = l.incomplete || key(&l.queue[0]) != ""
		l.queue = slices.Delete(l.queue, 0, 1)
		l.dropped.Add(1)
	}
	l.queue = append(l.queue, e)
	l.waiting.Store(true)
}

// write writes what is queued, after what was missed.
func (l *Log) write(ctx context.Context) {
	if !l.opt.Holding() {
		return
	}
	events := l.queue
	var err error
	if l.incomplete {
		var missing []apply.Event
		missing, err = l.missing(ctx)
		events = append(missing, events...)
	}
	if err == nil {
		err = l.append(events)
	}
	if err != nil {
		l.fail(err)
		return
	}
	l.queue, l.incomplete = nil, false
	l.waiting.Store(false)
	l.fail(nil)
}

// missing returns the events that the newest records are evidence of and the log lacks,
// the oldest first.
func (l *Log) missing(ctx context.Context) (events []apply.Event, err error) {
	rows, err := l.opt.History.List(ctx, "", 10)
	for err == nil && len(rows) > 0 && len(rows) < maxMissed && !slices.ContainsFunc(rows, l.hasEventOf) { // what is older is told, too
		var more []record.Row
		if more, err = l.opt.History.List(ctx, rows[len(rows)-1].ID, 50); len(more) == 0 {
			break
		}
		rows = append(rows, more...)
	}
	if err != nil {
		return nil, fmt.Errorf("search the history for events: %w", err)
	}
	if i := slices.IndexFunc(rows, func(row record.Row) bool { return row.ID == l.begin.Record }); i >= 0 {
		rows = rows[:i+1]
		if l.begin.Reason == "" {
			for _, e := range apply.RecordEvents(&rows[i], nil) {
				l.keys = append(l.keys, key(&e))
			}
		}
	}
	for i := len(rows) - 1; i >= 0; i-- {
		var parent *record.Record
		if i+1 < len(rows) {
			parent = &rows[i+1].Record
		} else if rows[i].Parent != "" {
			continue // what it changed is not known
		}
		for _, e := range apply.RecordEvents(&rows[i], parent) {
			if !slices.Contains(l.keys, key(&e)) {
				events = append(events, e)
			}
		}
	}
	return events, nil
}

// hasEventOf reports whether the log has an event of a record, or begins behind it.
func (l *Log) hasEventOf(row record.Row) bool {
	if row.ID == l.begin.Record {
		return true
	}
	events := apply.RecordEvents(&row, nil)
	return len(events) > 0 && slices.Contains(l.keys, key(&events[len(events)-1]))
}

// append writes events, durably, and then tells who waits. An event that is there is left
// out.
func (l *Log) append(events []apply.Event) error {
	var b bytes.Buffer
	var written []apply.Event
	next := l.last
	for _, e := range events {
		k := key(&e)
		if k != "" && (slices.Contains(l.keys, k) || slices.ContainsFunc(written, func(w apply.Event) bool { return key(&w) == k })) {
			continue
		}
		next++
		e.Sequence = next
		text, err := json.Marshal(e)
		if err != nil || len(text) >= maxLine {
			l.dropped.Add(1)
			continue
		}
		b.Write(append(text, '\n'))
		written = append(written, e)
	}
	if len(written) == 0 {
		return nil
	}
	if err := appendDurably(l.opt.Dir, l.beginning(), b.Bytes()); err != nil {
		return err
	}
	for _, e := range written {
		l.note(e)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}

// appendDurably appends lines to the live segment, or to a new one behind begin. No file stays open, so that the disk
// can be unmounted. After an error nothing was appended, or a part that is left out when
// it is read.
func appendDurably(dir string, begin, lines []byte) error {
	path := filepath.Join(dir, File)
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	isNew := errors.Is(err, fs.ErrNotExist)
	if err == nil && st.Size >= segmentSize {
		err, isNew = os.Rename(path, filepath.Join(dir, oldFile)), true
	}
	if err != nil && !isNew {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	end, err := f.Seek(0, io.SeekEnd)
	if last := []byte{'\n'}; err == nil && end > 0 {
		if _, err = f.ReadAt(last, end-1); err == nil && last[0] != '\n' { // a write was cut short
			lines = append([]byte{'\n'}, lines...)
		}
	}
	if end == 0 {
		lines = append(begin, lines...)
	}
	if err == nil {
		if _, err = f.WriteAt(lines, end); err != nil {
			err = errors.Join(err, f.Truncate(end)) // a full disk
		}
	}
	if err == nil {
		err = unix.Fdatasync(int(f.Fd()))
	}
	err = errors.Join(err, f.Close())
	if err == nil && isNew {
		var d *os.File
		if d, err = os.Open(dir); err == nil {
			err = errors.Join(d.Sync(), d.Close())
		}
	}
	return err
}
