package watcher

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

// A loop is what Run knows; all of it belongs to Run's goroutine.
type loop struct {
	*Files
	sink  Sink
	watch *watch // nil while there is no inotify
	// again: the environment's file was renamed while it was being read.
	again chan struct{}
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
	// candidateAt is when its reading ended. No event said since that anything
	// was written; touched: one said that a file's mode, owner or times changed.
	candidate   *reading
	candidateAt time.Time
	touched     bool
}

// happened takes the news of the watch, and forgets what they make doubtful.
func (l *loop) happened() (n news) {
	if l.watch != nil {
		n = l.watch.happened()
	}
	if n.gone {
		l.dropWatch() // even if a directory of the same name and number follows
	}
	if n.gone || n.renamed || n.written {
		l.candidate = nil
	}
	l.touched = l.touched || n.touched
	return n
}

// event takes news. A rename onto the environment's file is taken at once, if
// no other file is being written.
func (l *loop) event(n news) {
	switch {
	case n.gone, n.written && !n.renamed:
		l.changed()
	case n.renamed && !l.takeRename():
		l.changed()
	case n.touched && !l.due:
		l.changed() // it may be read now, or no longer
	}
}

func (l *loop) dropWatch() {
	if l.watch != nil {
		l.watch.close()
		l.watch = nil
	}
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

// poll is the turn without a hint.
func (l *loop) poll() {
	every := min(pollEvery, l.opt.Resync)
	if l.watch != nil && l.reported == "" {
		every = l.opt.Resync
		if !l.watch.covers(findTrail(l.opt.Root, l.wanted)) {
			l.changed() // something was mounted or replaced above, of which inotify does not tell
		}
	}
	_, lastRead, _ := l.Status()
	// Half a period of grace: a ticker and a clock never agree.
	if !l.due && time.Since(lastRead) > every-min(pollEvery, l.opt.Resync)/2 {
		l.look()
	}
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
	n := l.happened()
	same := l.candidate != nil && l.unwritten(r)
	// What was not changed for long before the first reading is whole.
	first := !l.looked && l.watch != nil && r.old(start, l.opt.Settle)
	l.looked = true
	switch {
	case n.gone || n.renamed || n.written:
		l.reportBusy(start)
		l.changed()
	case first, same && start.Sub(l.candidateAt) >= l.opt.Settle:
		l.deliver(r.doc)
	case same:
		if !l.due {
			l.lookIn(l.opt.Settle - time.Since(l.candidateAt))
		}
	default:
		l.reportBusy(start)
		l.candidate, l.candidateAt, l.touched = r, time.Now(), false
		if l.burst.IsZero() {
			l.burst = start
		}
		l.lookIn(l.opt.Settle)
	}
}

// unwritten reports whether r is the candidate, not written since. That no event
// said so is not enough: the kernel reports a write after it was made, and of some
// it reports nothing. But a touch explains other times.
func (l *loop) unwritten(r *reading) bool {
	return sameFiles(l.candidate.files, r.files) && (l.touched || maps.Equal(l.candidate.times, r.times))
}

// reportBusy reports that the files change without a pause, if they do.
func (l *loop) reportBusy(now time.Time) {
	if l.busy(now) {
		l.report(&problem.Error{
			Op: opDirectory, Place: l.opt.Root, Hint: hintRename,
			Err: fmt.Errorf("its files have been changing for more than %s without a pause of %s", busyAfter*l.opt.Settle, l.opt.Settle),
		})
	}
}

// read reads the files along a watch that sees all of them: a change after the
// reading is an event. The watch follows the trail, a few times at most.
func (l *loop) read() (r *reading, err error) {
	for range 3 {
		if l.looked {
			r, err = readPass(l.opt.Root, l.opt.Environment, l.known())
		} else {
			r, err = readFiles(l.opt.Root, l.opt.Environment)
		}
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

// known are the files that the sink has and those of the candidate, each with its
// parse.
func (l *loop) known() (files []schema.File) {
	if l.candidate != nil {
		files = l.candidate.files
	}
	if l.delivered != nil {
		files = slices.Concat(files, l.delivered.Files)
	}
	return files
}

// follow makes the watch cover t. It reports whether there is a new watch, so
// that what was read before it must be read again.
func (l *loop) follow(t trail) bool {
	if l.watch != nil && l.watch.covers(t) {
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
	r, err := readPass(l.opt.Root, l.opt.Environment, l.known())
	if err != nil || !l.watch.covers(findTrail(l.opt.Root, r.wanted)) {
		return false
	}
	for _, file := range r.files {
		own := file.Path == l.opt.Environment.File()
		if own && len(file.Bytes) == 0 { // renamed and then truncated, perhaps
			return false
		}
		known := l.delivered != nil && slices.ContainsFunc(l.delivered.Files, func(f schema.File) bool { return sameFile(f, file) })
		if !own && !known && !r.oldFile(file, start, l.opt.Settle) {
			return false
		}
	}
	n := l.happened()
	if n.gone || n.written {
		return false
	}
	if n.renamed { // what was read is whole; the next one is read right away
		poke(l.again)
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
	if mode != l.mode {
		l.opt.Logger.Info("source mode", "root", l.opt.Root, "mode", mode)
		l.setMode(mode)
	}
	l.wasRead(err)
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
	l.wasRead(err)
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
