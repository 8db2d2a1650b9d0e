package cli

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/term"
)

const (
	// maxQueued bounds what waits for a slow reader, in bytes.
	maxQueued = 1 << 20
	// flushTime is how long the end of the process waits for such a reader.
	flushTime = time.Second
)

// An output passes lines on to a reader that may be slow, stopped or gone: nothing of
// the agent waits for that. Write never blocks and never fails. Lines that do not fit,
// or cannot be written, are dropped and counted; a line says so once one can be written
// again.
type output struct {
	w       io.Writer
	dropped atomic.Int64 // lines

	mu      sync.Mutex
	changed *sync.Cond
	queue   []byte // whole lines
	writing bool
	lost    int64                    // lines dropped since the last notice
	notice  func(lines int64) []byte // what to write of that; nil for nothing
}

func newOutput(w io.Writer) *output {
	o := &output{w: w}
	o.changed = sync.NewCond(&o.mu)
	go o.run()
	return o
}

// Write queues p, which is whole lines.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue)+len(p) > maxQueued {
		o.drop(p)
	} else {
		o.queue = append(o.queue, p...)
		o.changed.Broadcast()
	}
	return len(p), nil
}

func (o *output) drop(p []byte) {
	n := int64(bytes.Count(p, []byte("\n")))
	o.lost += n
	o.dropped.Add(n)
}

// run writes what is queued, as long as the process lives.
func (o *output) run() {
	o.mu.Lock()
	for {
		for len(o.queue) == 0 {
			o.writing = false
			o.changed.Broadcast()
			o.changed.Wait()
		}
		text := o.queue
		o.queue, o.writing = nil, true
		if o.write(text) && o.lost > 0 && o.notice != nil {
			if lost := o.lost; o.write(o.notice(lost)) {
				o.lost -= lost
			}
		}
	}
}

// write writes text without the lock, and reports whether all of it was written.
func (o *output) write(text []byte) bool {
	o.mu.Unlock()
	n, err := o.w.Write(text)
	o.mu.Lock()
	if err != nil {
		o.drop(text[n:])
	}
	return err == nil
}

// flush waits until all is written, at most for the time given.
func (o *output) flush(timeout time.Duration) {
	expired := false
	timer := time.AfterFunc(timeout, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		expired = true
		o.changed.Broadcast()
	})
	defer timer.Stop()
	o.mu.Lock()
	defer o.mu.Unlock()
	for (len(o.queue) > 0 || o.writing) && !expired {
		o.changed.Wait()
	}
}

// queueOf returns the output that w writes to, nil if it is none.
func queueOf(w io.Writer) *output {
	if p, ok := w.(*progress); ok {
		w = p.w
	}
	o, _ := w.(*output)
	return o
}

// terminal returns the terminal that w writes to, where people read it as it is written;
// nil if it is none.
func terminal(w io.Writer) *os.File {
	if p, ok := w.(*progress); ok {
		w = p.w
	}
	if o := queueOf(w); o != nil {
		w = o.w
	}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// logger returns the logger that the settings ask for, which writes to w.
func (s *settings) logger(w io.Writer) (*slog.Logger, error) {
	least, err := parseLevel(s.logLevel)
	if err != nil {
		return nil, usage("--log-level: %w", err)
	}
	level := new(slog.LevelVar)
	level.Set(least)
	s.level = level
	handler := func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}) }
	switch s.logFormat {
	case "text":
		if terminal(w) != nil {
			handler = func(w io.Writer) slog.Handler {
				return tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: time.TimeOnly, NoColor: os.Getenv("NO_COLOR") != ""}) // no-color.org
			}
		}
	case "logfmt":
	case "json":
		handler = func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}) }
	default:
		return nil, usage("--log-format: %q is none of text, logfmt, json", s.logFormat)
	}
	if o := queueOf(w); o != nil {
		s.dropped = &o.dropped
		o.mu.Lock()
		defer o.mu.Unlock()
		o.notice = func(lines int64) []byte {
			var b bytes.Buffer
			slog.New(handler(&b)).Warn("log lines dropped", "lines", lines)
			return b.Bytes()
		}
	}
	return slog.New(handler(w)), nil
}
