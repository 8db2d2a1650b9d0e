package watcher

import (
	"context"
	"log/slog"
	"time"

	"dtesn-agent/schema"
	"dtesn-agent/watcher/document"
)

// A Sink takes what a source has to say. Its methods are called from one
// goroutine and return at once.
type Sink interface {
	// Document takes a Document that differs from the one taken before, or
	// that is the first to be read after a SourceError.
	Document(doc *document.Document)
	// SourceError says that the source cannot be read, once for each new
	// message. The next Document says that it can be read again.
	SourceError(err error)
}

// The modes of a source.
const (
	ModeInotify = "inotify" // changes are seen when they are made
	ModePoll    = "poll"    // changes are looked for
)

// How long the loop waits for things.
const (
	// pollEvery is how often a directory is polled that cannot be watched, and
	// how often the loop turns at least.
	pollEvery = time.Second
	// busyAfter is after how many times Settle it is reported that a source
	// changes without a pause.
	busyAfter = 20
	// pauses: the first of two readings is taken when events have paused for
	// this fraction of Settle.
	pauses = 20
	// clockGrain is how much older than true the time stamp of a file may be.
	clockGrain = 20 * time.Millisecond
)

// FilesOptions are what a source of files is made of.
type FilesOptions struct {
	// Root is the configuration directory, or a link to it.
	Root        string
	Environment schema.Environment
	// Settle is how long files must be quiet before they are taken; 50 ms if 0.
	Settle time.Duration
	// Resync is how often the files are read without any hint; 30 s if 0.
	Resync time.Duration
	// OnRead, if set, is called after a reading that found nothing new, so that
	// its time can be told; it must return at once.
	OnRead func()
	// Logger gets what is of no use to the Sink; nil discards it.
	Logger *slog.Logger
}

// Files is a directory as a source of Documents. Make it with NewFiles, start
// it with Run; the other methods are safe from any goroutine.
type Files struct {
	opt FilesOptions
	// newWatch makes a watch; tests put one in its place that fails.
	newWatch func(s statPass, envFile string) (*watch, error)
	sync     chan struct{}
	sourceState
}

// NewFiles makes a source; it does nothing until Run.
func NewFiles(opt FilesOptions) *Files {
	if opt.Settle <= 0 {
		opt.Settle = 50 * time.Millisecond
	}
	if opt.Resync <= 0 {
		opt.Resync = 30 * time.Second
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	return &Files{opt: opt, newWatch: newWatch, sync: make(chan struct{}, 1), sourceState: sourceState{mode: ModePoll, stamp: time.Now()}}
}

// Sync makes the loop read now, and returns at once. What it finds is
// delivered by the rules of the package: one Settle later at most, if it is
// quiet.
func (f *Files) Sync() {
	poke(f.sync)
}

// CheckSigner returns nil: files are not signed.
func (f *Files) CheckSigner(document.Source) (*document.Refusal, error) { return nil, nil }

// Run reads and watches the directory until ctx ends, then returns nil. It is
// called once.
func (f *Files) Run(ctx context.Context, sink Sink) error {
	l := &loop{
		Files: f, sink: sink, timer: time.NewTimer(time.Hour),
		wanted: []string{f.opt.Environment.File(), schema.BaseFile},
	}
	l.timer.Stop()
	defer l.timer.Stop()
	defer l.dropWatch()
	turn := time.NewTicker(min(pollEvery, f.opt.Resync))
	defer turn.Stop()

	l.look()
	for {
		l.heartbeat()
		var events chan struct{} // nil without a watch
		if l.watch != nil {
			events = l.watch.wake
		}
		select {
		case <-ctx.Done():
			return nil
		case <-events:
			l.event()
		case <-l.timer.C:
			l.due = false
			l.look()
		case <-f.sync:
			l.look()
		case <-turn.C:
			l.poll()
		}
	}
}
