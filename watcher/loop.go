package watcher

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
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
	// renamed: the environment's file was renamed into place, and neither written
	// nor read since.
	renamed bool
	// wanted are the paths that the last reading looked for, pass what was there
	// before it.
	wanted []string
	pass   statPass
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

	// timer fires when the next look is due.
	timer *time.Timer
	due   bool
	// burst is the first sign of a change that was not delivered yet, written the
	// last sign of one that was no rename.
	burst, written time.Time
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
	if l.renamed = l.renamed || n.renamed; n.gone || n.written {
		l.written, l.renamed = time.Now(), false
	}
	if n.changed() {
		l.candidate = nil
	}
	l.touched = l.touched || n.touched
	return n
}

// event takes news. A rename onto the environment's file is looked at at once.
func (l *loop) event() {
	switch n := l.happened(); {
	case l.renamed:
		l.look()
	case n.changed(), n.touched && !l.due: // what was touched may be read now, or no longer
		l.changed()
	}
}

func (l *loop) dropWatch() {
	if l.watch != nil {
		l.watch.close()
		l.watch, l.renamed = nil, false
	}
}

// changed makes a reading due as soon as the events pause for a moment: the
// first of two readings that must agree is best taken after the last event. A
// burst puts it off for a second at most.
func (l *loop) changed() {
	now := time.Now()
	if l.burst.IsZero() {
		l.burst = now
	}
	if !l.due || now.Sub(l.burst) < pollEvery {
		l.lookIn(l.opt.Settle / pauses)
	}
}

func (l *loop) lookIn(d time.Duration) {
	l.timer.Reset(d)
	l.due = true
}

// poll is the turn without a hint.
func (l *loop) poll() {
	every := min(pollEvery, l.opt.Resync)
	if l.watch != nil && l.reported == "" {
		every = l.opt.Resync
		if now := statFiles(l.opt.Root, l.wanted); !maps.Equal(now.names, l.pass.names) || !l.watch.covers(now) {
			l.changed()
		}
	}
	_, lastRead, _ := l.Status()
	// Allow half a period of ticker jitter.
	if !l.due && time.Since(lastRead) > every-min(pollEvery, l.opt.Resync)/2 {
		l.look()
	}
}

// look reads everything and delivers it if it differs and is known to be whole;
// else it makes another look due.
func (l *loop) look() {
	start := time.Now()
	r, err := l.read()
	renamed := l.renamed
	l.renamed = false
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
	first := !l.looked
	l.looked = true
	n := l.happened()
	same := l.candidate != nil && l.unwritten(r)
	switch {
	case n.gone || n.written:
		l.reportBusy(start)
		l.changed()
	case l.watch != nil && (first && r.old(start, l.opt.Settle) || renamed && l.whole(r, start) || l.onlyRenames(start)),
		same && start.Sub(l.candidateAt) >= l.opt.Settle:
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
	if l.renamed { // again, while it was being read
		l.lookIn(0)
	}
}

// unwritten reports whether r is the candidate, not written since. That no event
// said so is not enough: the kernel reports a write after it was made, and does not
// report every one. But a touch explains other times.
func (l *loop) unwritten(r *reading) bool {
	return sameFiles(l.candidate.doc.Files, r.doc.Files) && (l.touched || maps.Equal(l.candidate.pass.names, r.pass.names))
}

// whole reports whether r, which was begun at start after a rename of the
// environment's file and up to whose end nothing was written, is whole: the file
// is what was renamed, and no other one is fresh.
func (l *loop) whole(r *reading, start time.Time) bool {
	info, err := os.Lstat(filepath.Join(r.pass.root, l.opt.Environment.File()))
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	for _, file := range r.doc.Files {
		own := file.Path == l.opt.Environment.File()
		if own && len(file.Bytes) == 0 { // renamed and then truncated, perhaps
			return false
		}
		known := l.delivered != nil && slices.ContainsFunc(l.delivered.Files, func(f schema.File) bool { return sameFile(f, file) })
		if !own && !known && !r.oldFile(file, start, l.opt.Settle) {
			return false
		}
	}
	return true
}

// onlyRenames reports whether files were renamed into place for a second and more,
// and none was written for Settle: then they are whole, and will not pause.
func (l *loop) onlyRenames(start time.Time) bool {
	return !l.burst.IsZero() && start.Sub(l.burst) > pollEvery && start.Sub(l.written) > l.opt.Settle
}

// reportBusy reports that the files change without a pause, if they do.
func (l *loop) reportBusy(now time.Time) {
	if !l.burst.IsZero() && now.Sub(l.burst) > busyAfter*l.opt.Settle {
		l.report(&problem.Error{
			Op: opDirectory, Place: l.opt.Root, Hint: hintRename,
			Err: fmt.Errorf("its files have been changing for more than %s without a pause of %s", busyAfter*l.opt.Settle, l.opt.Settle),
		})
	}
}

// read makes a stat pass, watches its directories and then reads the files, so
// that a change after the reading is an event. It repeats that when the files lead
// to other ones.
func (l *loop) read() (r *reading, err error) {
	for range 3 {
		before := l.pass
		l.pass = statFiles(l.opt.Root, l.wanted)
		l.follow(l.pass)
		if before.rewritten(l.pass) {
			l.written = time.Now()
		}
		if r, err = readPass(l.opt.Root, l.opt.Environment, l.known()); err != nil {
			return nil, err
		}
		r.pass = l.pass
		if slices.Equal(r.wanted, l.wanted) {
			break
		}
		l.wanted = r.wanted
	}
	return r, nil
}

// known are the files that the sink has and those of the candidate, each with its
// parse.
func (l *loop) known() (files []schema.File) {
	if l.candidate != nil {
		files = l.candidate.doc.Files
	}
	if l.delivered != nil {
		files = slices.Concat(files, l.delivered.Files)
	}
	return files
}

// follow makes the watch cover s.
func (l *loop) follow(s statPass) {
	switch {
	case l.watch != nil && l.watch.covers(s),
		l.watch == nil && time.Since(l.tried) < min(pollEvery, l.opt.Resync)/2:
		return
	}
	l.dropWatch()
	w, err := l.newWatch(s, l.opt.Environment.File())
	if err == nil {
		l.watch, l.refused = w, ""
		l.candidate, l.written = nil, time.Now() // what happened before it is not known
		return
	}
	l.tried = time.Now()
	if l.refused != err.Error() {
		l.refused = err.Error()
		l.opt.Logger.Warn("polling, because inotify cannot be had or cannot be relied on",
			append([]any{"root", l.opt.Root, "every", min(pollEvery, l.opt.Resync)}, logged(err)...)...)
	}
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
	l.timer.Stop()
	l.due = false
	l.burst = time.Time{}
	l.candidate = nil
}

// note puts the outcome of a reading where Status finds it.
func (l *loop) note(err error) {
	mode := ModePoll
	if l.watch != nil && l.watch.pass.root != "" {
		mode = ModeInotify
	}
	if mode != l.mode {
		l.opt.Logger.Info("source mode", "root", l.opt.Root, "mode", mode)
		l.setMode(mode)
	}
	l.recordRead(err)
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
	l.recordRead(err)
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
