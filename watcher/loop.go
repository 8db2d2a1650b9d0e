package watcher

import (
	"fmt"
	"maps"
	"time"

	"github.com/fsnotify/fsnotify"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

// A loop is what Run knows; all of it belongs to Run's goroutine.
type loop struct {
	*Files
	sink  Sink
	watch *watch // nil while there is no inotify
	// wanted are the paths that the watch's trail leads to.
	wanted []string
	// tried and refused: when inotify last could not be had, and why.
	tried   time.Time
	refused string
	// looked: the first reading is over.
	looked bool

	delivered *document.Document // what the sink has; nil before the first
	reported  string             // the error the sink has; empty: none
	// failing is since when nothing can be read, zero while it can: an error
	// is reported once it has lasted for Settle.
	failing time.Time

	// settle fires when the next look is due.
	settle *time.Timer
	due    bool
	// burst is the first sign of a change that nothing has settled yet.
	burst time.Time
	// candidate differs from what was delivered, and must be read again;
	// candidateAt is when its reading ended.
	candidate   *reading
	candidateAt time.Time
}

func (l *loop) turned() {
	l.mu.Lock()
	l.stamp = time.Now()
	l.mu.Unlock()
}

// channels are those of the watch; nil ones, which never speak, without.
func (l *loop) channels() (chan fsnotify.Event, chan error) {
	if l.watch == nil {
		return nil, nil
	}
	return l.watch.events.Events, l.watch.events.Errors
}

// event takes one hint of fsnotify. A rename onto the environment's file is
// taken at once, if nothing else waits to be settled.
func (l *loop) event(ev fsnotify.Event, ok bool) {
	if !ok {
		l.dropWatch()
		l.changed()
		return
	}
	if !l.watch.relevant(ev.Name) {
		return
	}
	if ev.Has(fsnotify.Create) && ev.Name == l.watch.env && !l.due {
		if renamed, other := l.watch.happened(); renamed && !other && l.takeRename() {
			return
		}
	}
	if l.watch.dirs[ev.Name] && (ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename)) {
		l.dropWatch() // even if one of the same name and number follows
	}
	l.changed()
}

// lost takes an error of fsnotify: events may have been lost, so all that is
// known is that something changed.
func (l *loop) lost(err error, ok bool) {
	if ok {
		l.opt.Logger.Warn("inotify lost events, reading again", "root", l.opt.Root, "error", err)
	}
	l.dropWatch()
	l.changed()
}

func (l *loop) dropWatch() {
	l.watch.close()
	l.watch = nil
}

// changed makes a reading due as soon as the events pause for a moment: the
// first of two readings that must agree is best taken after the last event. A
// burst that goes on and on does not put it off any more.
func (l *loop) changed() {
	now := time.Now()
	if l.burst.IsZero() {
		l.burst = now
	}
	if !l.due || !l.busy(now) {
		l.lookIn(l.opt.Settle / pauses)
	}
}

func (l *loop) busy(now time.Time) bool {
	return !l.burst.IsZero() && now.Sub(l.burst) > busyAfter*l.opt.Settle
}

func (l *loop) lookIn(d time.Duration) {
	l.settle.Reset(d)
	l.due = true
}

// poll is the turn without a hint. It keeps the journal short, which must not
// forget what it says.
func (l *loop) poll() {
	every := min(pollEvery, l.opt.Resync)
	if l.watch != nil && l.reported == "" {
		every = l.opt.Resync
		if renamed, other := l.watch.happened(); renamed || other || l.strayed() {
			l.changed()
		}
	}
	l.mu.Lock()
	lastRead := l.lastRead
	l.mu.Unlock()
	// Half a period of grace: a ticker and a clock never agree.
	if !l.due && time.Since(lastRead) > every-min(pollEvery, l.opt.Resync)/2 {
		l.look()
	}
}

// strayed reports whether the way to the files is no longer the one that is
// watched: something was mounted, unmounted or replaced above it, of which
// inotify does not tell.
func (l *loop) strayed() bool {
	return !l.watch.intact() || !l.watch.trail.equal(findTrail(l.opt.Root, l.wanted))
}

// look reads everything and delivers it if it differs and is known to be
// whole; else it says when to look again.
func (l *loop) look() {
	start := time.Now()
	r, err := l.read()
	l.note(err)
	if err != nil {
		l.fail(err)
		return
	}
	l.failing = time.Time{}
	if l.current(r.doc) {
		l.calm()
		if l.opt.OnRead != nil {
			l.opt.OnRead()
		}
		return
	}
	if l.whole(r, start) {
		l.deliver(r.doc)
		return
	}
	if l.isCandidate(r, start) {
		if !l.due {
			l.lookIn(l.opt.Settle - time.Since(l.candidateAt))
		}
		return
	}
	if l.candidate != nil && l.busy(start) {
		l.report(&problem.Error{
			Op: opDirectory, Place: l.opt.Root, Hint: hintRename,
			Err: fmt.Errorf("its files have been changing for more than %s without a pause of %s", busyAfter*l.opt.Settle, l.opt.Settle),
		})
	}
	l.candidate, l.candidateAt = r, time.Now()
	if l.burst.IsZero() {
		l.burst = start
	}
	l.lookIn(l.opt.Settle)
}

// isCandidate reports whether r is the candidate, not written since. Of files
// that are touched all the time only the bytes count.
func (l *loop) isCandidate(r *reading, start time.Time) bool {
	return l.candidate != nil && sameFiles(l.candidate.doc.Files, r.doc.Files) &&
		(l.busy(start) || maps.Equal(l.candidate.times, r.times))
}

// whole reports whether a reading that began at start holds no half of a
// write. See the package documentation for the ways to know.
//
// That no event was seen is no way to know: the kernel reports a write after
// it was made, and a truncation that frees blocks can be read for a while
// before it is reported.
func (l *loop) whole(r *reading, start time.Time) bool {
	first := !l.looked && l.watch != nil && r.old(start, l.opt.Settle)
	l.looked = true
	if !first && !(l.isCandidate(r, start) && start.Sub(l.candidateAt) >= l.opt.Settle) {
		return false
	}
	if l.watch != nil && !l.busy(start) {
		if renamed, other := l.watch.happened(); renamed || other {
			l.changed()
			return false
		}
	}
	return true
}

// read reads the files along a watch that sees all of them: a change after the
// reading is an event. The watch follows the trail, a few times at most.
func (l *loop) read() (r *reading, err error) {
	for range 3 {
		r, err = readFiles(l.opt.Root, l.opt.Environment)
		l.wanted = []string{schema.BaseFile, l.opt.Environment.File(), templatesDir}
		if err == nil {
			l.wanted = r.wanted
		}
		if !l.follow(findTrail(l.opt.Root, l.wanted)) {
			return r, err
		}
	}
	return r, err
}

// follow makes the watch cover t. It reports whether there is a new watch, so
// that what was read before it must be read again.
func (l *loop) follow(t trail) bool {
	if l.watch != nil && l.watch.trail.equal(t) && l.watch.intact() {
		return false
	}
	if l.watch == nil && time.Since(l.tried) < min(pollEvery, l.opt.Resync)/2 {
		return false
	}
	l.dropWatch()
	w, err := l.Files.newWatch(t, l.opt.Environment.File())
	if err != nil {
		l.tried = time.Now()
		if l.refused != err.Error() {
			l.refused = err.Error()
			l.opt.Logger.Warn("polling, because inotify cannot be had or cannot be relied on",
				append([]any{"root", l.opt.Root, "every", min(pollEvery, l.opt.Resync)}, logged(err)...)...)
		}
		return false
	}
	l.watch, l.refused = w, ""
	return true
}

// takeRename delivers what a rename onto the environment's file made, and
// reports whether it could: the watch sees all of the way, the other files are
// not being written, and nothing else has happened up to the end of the reading.
func (l *loop) takeRename() bool {
	start := time.Now()
	r, err := readFiles(l.opt.Root, l.opt.Environment)
	if err != nil || !l.watch.covers(findTrail(l.opt.Root, r.wanted)) {
		return false
	}
	for _, file := range r.doc.Files {
		if file.Path == l.opt.Environment.File() {
			if len(file.Bytes) == 0 {
				return false // renamed and then truncated, perhaps
			}
			continue
		}
		known := l.delivered != nil && hasFile(l.delivered, file)
		if !known && !r.oldFile(file, start, l.opt.Settle) {
			return false
		}
	}
	if renamed, other := l.watch.happened(); renamed || other {
		return false
	}
	l.note(nil)
	l.failing = time.Time{}
	if l.current(r.doc) {
		l.calm()
	} else {
		l.deliver(r.doc)
	}
	return true
}

// current reports whether the sink has doc, and does not think that the source
// cannot be read.
func (l *loop) current(doc *document.Document) bool {
	return l.delivered != nil && l.reported == "" && sameFiles(l.delivered.Files, doc.Files)
}

func (l *loop) deliver(doc *document.Document) {
	l.delivered, l.reported = doc, ""
	l.calm()
	l.sink.Document(doc)
}

// calm ends every wait.
func (l *loop) calm() {
	l.settle.Stop()
	l.due = false
	l.burst = time.Time{}
	l.candidate = nil
}

// note puts the outcome of a reading where Status finds it.
func (l *loop) note(err error) {
	mode := ModePoll
	if l.watch != nil && l.watch.trail.root != "" {
		mode = ModeInotify
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if mode != l.mode {
		l.opt.Logger.Info("source mode", "root", l.opt.Root, "mode", mode)
	}
	l.mode, l.lastErr = mode, err
	if err == nil {
		l.lastRead = time.Now()
	}
}

// fail reports an error that has lasted for Settle: a directory that is being
// replaced is missing for a moment.
func (l *loop) fail(err error) {
	now := time.Now()
	l.candidate = nil
	l.burst = time.Time{}
	if l.failing.IsZero() {
		l.failing = now
	}
	if now.Sub(l.failing) < l.opt.Settle {
		l.lookIn(l.opt.Settle)
		return
	}
	l.report(err)
}

// report tells the sink of an error, once.
func (l *loop) report(err error) {
	l.mu.Lock()
	l.lastErr = err
	l.mu.Unlock()
	if l.reported == problem.Text(err) {
		return
	}
	l.reported = problem.Text(err)
	l.sink.SourceError(err)
}

// logged returns the attributes of an error in the log: error, and hint if it
// has one.
func logged(err error) []any {
	attributes := []any{"error", err}
	if hint := problem.Hint(err); hint != "" {
		attributes = append(attributes, "hint", hint)
	}
	return attributes
}
