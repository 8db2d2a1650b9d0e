package apply

import (
	"cmp"
	"context"
	"log/slog"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

// A DriftMode says what to do about an engine that runs something else than
// the applied snapshot although it did not restart.
type DriftMode string

// The drift modes.
const (
	DriftCorrect DriftMode = "correct" // assert the applied snapshot
	DriftReport  DriftMode = "report"  // only say so
)

// Metrics counts what the transaction does. Implementations are safe for use
// from the Reconciler's goroutine while others read.
type Metrics interface {
	Outcome(record.Outcome)
	// ValidationFailures counts an invalid Document, once for each parameter
	// concerned; "" stands for the Document itself.
	ValidationFailures(parameters []string)
	// Rollback counts a return to an earlier state: engine, operator, probation
	// or hook.
	Rollback(cause string)
	// Phase observes how long a phase took: load, commit, engine, confirm, total.
	Phase(phase string, d time.Duration)
	// StageFailure counts a fault: source, load, commit, send, read, confirm,
	// revert, assert.
	StageFailure(stage string)
	Drift()
	// Success stamps a loop's last success: source, engine, transaction.
	Success(loop string)
}

// Options are what a Reconciler is made of; all fields but Repairs, OnStatus and Observe are needed.
type Options struct {
	// Rules say what the parameters may be in this environment.
	Rules        *schema.Rules
	Instance     string
	AgentVersion string

	Store   Store
	Engine  Engine
	Metrics Metrics
	Logger  *slog.Logger

	// Source describes where Documents come from, for status, and ReadSource
	// says how it is read ("inotify" or "poll"), when it was last read well, and
	// the error of the last try. SourceStale is the age of the last good read
	// from which on the source is not fresh.
	Source      SourceStatus
	ReadSource  func() (mode string, lastGood time.Time, err error)
	SourceStale time.Duration
	// Judge, if set, is asked whether what came from the source is trusted.
	Judge Judge
	// Socket and StateDir are shown in status.
	Socket, StateDir string
	MaxSnapshots     int

	Drift         DriftMode
	DriftInterval time.Duration
	// Probation is how long the engine must stay healthy on a change before
	// that is confirmed; 0 for no probation.
	Probation time.Duration
	// Repairs, if set, says what was found amiss in the history and put right,
	// oldest first; it is called on the Reconciler's goroutine.
	Repairs func() []Repair
	// OnStatus, if set, is called with each new status, on the Reconciler's
	// goroutine; it must return at once.
	OnStatus func(*Status)
	// Observe: read, validate, compare and report; never send or commit.
	Observe bool
}

// How long the Reconciler waits for things.
const (
	// engineDownPoll is how often an engine that is down is asked: it must be
	// asserted within 1 s of its first answer.
	engineDownPoll = 250 * time.Millisecond
	// lateWatch is how long after an unknown answer the engine is read each
	// lateEvery, because the request may still land.
	lateWatch, lateEvery = time.Minute, time.Second
	// backoffLeast and backoffMost bound the wait after a fault that waiting
	// may cure.
	backoffLeast, backoffMost = time.Second, 5 * time.Minute
	// compareLeast is how long an engine that could not say which values it accepts
	// is first left alone with that.
	compareLeast = 10 * time.Second
	// sourceWait is how long Recover waits for the first word of the source.
	sourceWait = 5 * time.Second
	// heartbeat is how often the loop turns at least, so that liveness shows.
	heartbeat = 5 * time.Second
)

// A Reconciler owns the transaction. Make one with New, start it with Run;
// the other exported methods are safe from any goroutine and return at once
// unless they say otherwise.
type Reconciler struct {
	opt Options
	log *repeater

	kick     chan struct{}
	requests chan *request
	ended    chan struct{} // closed at the end of Run
	status   atomic.Pointer[Status]
	stamp    atomic.Int64 // Unix nanoseconds of the last turn
	// appliedCommit is what AppliedCommit says, a string.
	appliedCommit atomic.Value
	// underWay is the rollback that is on record and not settled, a string.
	underWay atomic.Value

	inbox struct {
		sync.Mutex
		doc      *document.Document
		docAt    time.Time
		answered bool // the source said something since start
		hint     bool // the engine may have moved
		asked    bool // an operator wants a look now
	}
	orders   orders
	stopping atomic.Bool // Run is to end

	// All below belongs to the goroutine of Run.

	started   time.Time
	recovered bool // the first turn with an engine, or without need of one, is over
	seen      declared
	rejudged  *document.Document // the last one that the source was asked to judge again
	attempts  []Attempt          // newest first
	attempted int                // index into attempts of what `attempted` shows; -1 for none
	engine    engineView
	flight    *flight
	settled   string            // the settlement at the head that the engine was read to run, until it is confirmed
	faults    map[string]*fault // what stands in the way now, by stage
	drift     *Drift
	contest   contest
	ledger    ledger
	waiters   []*request // rollbacks whose caller waits for the outcome
	wake      time.Time  // when to turn next at the latest
	writable  bool
	since     struct { // since when the engine runs config, Unix seconds; 0: not known
		config schema.Parameters
		at     float64
	}
	broken  map[schema.Digest][]schema.Violation // the last few answers of check
	probed  time.Time
	noProbe error // of the last probe of the state directory, nil when it went well
	// sourceGood is the source's last good read that was counted; sourceLost is
	// since when it cannot be read, zero while it can.
	sourceGood, sourceLost time.Time
	engineLost             time.Time // since when the engine cannot be asked
}

// declared is what the source declares: the newest Document and what became
// of loading it.
type declared struct {
	doc        *document.Document
	at         time.Time
	since      time.Time             // when it could first be tried: seen, or no longer held
	config     *schema.Configuration // nil while invalid or refused
	violations *schema.Violations
	refusal    *document.Refusal // why the source cannot be trusted with it
}

// New makes a Reconciler; it does nothing until Run.
func New(opt Options) *Reconciler {
	r := &Reconciler{
		opt: opt, log: newRepeater(opt.Logger),
		kick: make(chan struct{}, 1), requests: make(chan *request), ended: make(chan struct{}),
		attempted: -1, writable: true, faults: map[string]*fault{}, broken: map[schema.Digest][]schema.Violation{},
	}
	r.started = time.Now()
	r.stamp.Store(r.started.UnixNano())
	r.publish()
	return r
}

// Document offers the newest Document; an older one that was not yet taken is
// forgotten. The Document must not change afterwards.
func (r *Reconciler) Document(doc *document.Document) {
	r.inbox.Lock()
	r.inbox.doc, r.inbox.docAt, r.inbox.answered = doc, time.Now(), true
	r.inbox.Unlock()
	r.orders.newer()
	r.poke()
}

// SourceError says that the source cannot be read. What it last declared stays
// declared.
func (r *Reconciler) SourceError(err error) {
	r.inbox.Lock()
	r.inbox.answered = true
	r.inbox.Unlock()
	r.opt.Metrics.StageFailure("source")
	r.log.ErrorOf("source", problem.Text(err), "the configuration cannot be read; the engine keeps what it has", "error", err, "hint", problem.Hint(err))
	r.poke()
}

// SourceRead says that the source was read and has nothing new.
func (r *Reconciler) SourceRead() { r.poke() }

// EngineHint says that the engine may have come, gone or restarted.
func (r *Reconciler) EngineHint() {
	r.inbox.Lock()
	r.inbox.hint = true
	r.inbox.Unlock()
	r.poke()
}

// Sync is EngineHint from an operator: what waits for its time is tried again
// now, a correction of drift too.
func (r *Reconciler) Sync() {
	r.inbox.Lock()
	r.inbox.hint, r.inbox.asked = true, true
	r.inbox.Unlock()
	r.poke()
}

// AppliedCommit is the source's commit that the applied snapshot came from, ""
// if it came from none. It is known from New on, and may be called from any
// goroutine.
func (r *Reconciler) AppliedCommit() string {
	commit, _ := r.appliedCommit.Load().(string)
	return commit
}

// noteApplied remembers where the applied snapshot came from.
func (r *Reconciler) noteApplied() {
	commit := ""
	if s := r.opt.Store.Applied(); s != nil && gitCommit.MatchString(s.Source.Revision) {
		commit = s.Source.Revision
	}
	r.appliedCommit.Store(commit)
}

// gitCommit tells a commit from the digest of files.
var gitCommit = regexp.MustCompile(`^[0-9a-f]{40}$`)

// Status is how things stand: never nil, immutable, read without a lock.
func (r *Reconciler) Status() *Status { return r.status.Load() }

// Stamp is when the loop last turned, for liveness.
func (r *Reconciler) Stamp() time.Time { return time.Unix(0, r.stamp.Load()) }

func (r *Reconciler) poke() {
	select {
	case r.kick <- struct{}{}:
	default: // a wake-up is already waiting
	}
}

// Run reconciles until ctx ends; it is called once. The step in flight is finished
// first, within its own time limits, so that an engine is not left half asked.
func (r *Reconciler) Run(ctx context.Context) error {
	work := context.WithoutCancel(ctx)
	defer close(r.ended)
	defer context.AfterFunc(ctx, func() { r.stopping.Store(true) })()
	timer := time.NewTimer(0)
	defer timer.Stop()
	r.recall(work)
	for {
		var order *request
		select { // an order goes before what only waits for its time
		case order = <-r.requests:
		default:
			select {
			case order = <-r.requests:
			case <-ctx.Done():
			case <-r.kick:
			case <-timer.C:
			}
		}
		switch {
		case ctx.Err() != nil:
			if r.flight != nil && !r.flight.acked {
				r.unmark(work, r.flight) // a restart of ours is no cut
			}
			if order != nil {
				order.answer(Result{}, errStopping)
			}
			r.abandonWaiters()
			return nil
		case order != nil:
			order.found = cmp.Or(order.found, r.openRollback())
			r.turnOnce(work)
			r.orders.wait(-1) // from here on its own calls have their time
			if order.ctx.Err() != nil {
				order.answer(Result{}, order.forgotten())
			} else {
				r.serve(work, order)
			}
		}
		r.turn(work, ctx.Done())
		timer.Reset(max(0, time.Until(r.wake)))
	}
}

// turn does one thing after another until there is nothing left to do now,
// then says when to look again. Once it is to stop, or an order waits, it
// begins nothing new, but what the engine has answered is put on record.
func (r *Reconciler) turn(ctx context.Context, stop <-chan struct{}) {
	for r.turnOnce(ctx) {
		if f := r.flight; f != nil && (f.verified || f.verdict != nil) {
			continue
		}
		select {
		case <-stop:
			return
		default:
		}
		if r.orders.any() {
			r.wake = time.Now() // go on behind the order
			break
		}
	}
	r.probe(ctx)
	r.account(ctx)
	r.publish()
	r.makeReady(ctx)
}

// turnOnce looks at the facts and does the next thing; it reports whether
// there may be more to do at once.
func (r *Reconciler) turnOnce(ctx context.Context) (more bool) {
	now := time.Now()
	r.stamp.Store(now.UnixNano())
	r.wake = now.Add(heartbeat)
	r.takeInbox()
	if r.opt.Observe || r.rival() {
		return r.observe(ctx)
	}
	if !r.recovered && !r.sourceAnswered() && now.Before(r.started.Add(sourceWait)) {
		r.wakeAt(r.started.Add(sourceWait))
		return false
	}
	head, applied := r.opt.Store.Head(), r.opt.Store.Applied()
	if head == nil {
		r.flight, r.drift = nil, nil // the history is gone
	}
	if lost := r.opt.Store.Lost(); lost != nil {
		r.waitForResume(ctx, lost)
		return false
	}
	if f := r.flight; f != nil && f.verified && f.id == head.ID {
		settled := applied != nil && head.Commit == applied.Commit
		switch {
		case settled && r.onProbation(f):
			r.flight = nil // somebody else confirmed it, while the directory was away
			return true
		case r.onProbation(f):
			return r.probate(ctx, f)
		}
		return r.confirm(ctx)
	}
	switch {
	case head != nil && r.settled == head.ID:
		return r.settle(ctx, head)
	case head == nil || (applied != nil && head.Commit == applied.Commit):
		return r.compare(ctx)
	case head.Kind.Candidate():
		return r.drive(ctx, head)
	default:
		return r.settle(ctx, head)
	}
}

// waitForResume is the turn of an agent that lost its history: it reads the engine
// and sends nothing, whatever stands in the place of that history.
func (r *Reconciler) waitForResume(ctx context.Context, lost *record.Hold) {
	r.flight, r.settled, r.drift = nil, "", nil
	if r.readDue() {
		if _, err := r.read(ctx); err == nil {
			r.recovered, r.engine.returned = true, false
		}
	}
	if r.recovered && r.seen.config != nil {
		r.recordHeld(lost)
	}
}

// wakeAt makes the next turn come at t at the latest.
func (r *Reconciler) wakeAt(t time.Time) {
	if t.Before(r.wake) {
		r.wake = t
	}
}

func (r *Reconciler) sourceAnswered() bool {
	r.inbox.Lock()
	defer r.inbox.Unlock()
	return r.inbox.answered
}

// takeInbox takes the newest Document and loads it. An invalid one is put on
// record and touches nothing.
func (r *Reconciler) takeInbox() {
	r.inbox.Lock()
	doc, at, hint, asked := r.inbox.doc, r.inbox.docAt, r.inbox.hint, r.inbox.asked
	r.inbox.doc, r.inbox.hint, r.inbox.asked = nil, false, false
	r.inbox.Unlock()
	if asked {
		r.contest.asked = true
		r.retryNow()
	}
	if hint {
		r.engine.due = true
	}
	if doc == nil {
		return
	}
	before := r.seen
	r.prepareSend(doc)
	r.seen = r.load(doc, at)
	loaded := *doc
	loaded.Files = nil // with what was parsed of them
	doc, r.seen.doc = &loaded, &loaded
	changed := before.doc == nil || before.doc.Revision() != doc.Revision()
	if changed {
		r.retryNow() // what waits for its time may have been cured by hand
		r.showPending(doc.Revision())
	}
	switch {
	case r.seen.refusal != nil:
		if changed || before.refusal == nil || *before.refusal != *r.seen.refusal {
			r.recordRefused(doc)
		}
	case r.seen.violations != nil:
		if changed || before.refusal != nil {
			r.recordInvalid(doc, r.seen.violations)
		}
	}
	r.publish()
}

// prepareSend opens the connection for the batch while doc is loaded and put on
// record, if nothing is to be asked of the engine before.
func (r *Reconciler) prepareSend(doc *document.Document) {
	head, applied, e := r.opt.Store.Head(), r.opt.Store.Applied(), &r.engine
	settled := applied != nil && head.Commit == applied.Commit
	if settled && doc.Refused == nil && !r.opt.Observe && !r.rival() && e.reachable && e.compared == e.reading.Peer && !r.readDue() {
		r.opt.Engine.Prepare()
	}
}

// load makes Parameters, or violations, of a Document; of one that its source
// cannot be trusted with, nothing.
func (r *Reconciler) load(doc *document.Document, at time.Time) declared {
	seen := declared{doc: doc, at: at, since: at, refusal: doc.Refused}
	if doc.Refused != nil {
		return seen
	}
	start := time.Now()
	seen.config, seen.violations = r.opt.Rules.Load(doc.Input(r.opt.Instance))
	r.opt.Metrics.Phase("load", time.Since(start))
	if seen.config != nil {
		r.noteBroken(seen.config.Parameters, nil)
	}
	return seen
}

// compare is the turn while nothing is open: it looks after the engine, then
// holds what is declared against what is applied.
func (r *Reconciler) compare(ctx context.Context) (more bool) {
	applied, hold := r.opt.Store.Applied(), r.hold()
	differs := r.seen.config != nil && (applied == nil || !r.same(r.seen.config.Parameters, applied.Config))
	held := r.seen.config != nil && hold != nil && r.holds(hold, r.seen.config)
	if held && !differs && !hold.Paused { // what is applied is held only by all that an entry has
		held = r.match(hold, r.seen.config, true) != nil
	}
	tryable := differs && !held
	r.clear("send", byProbation) // nothing is on its way
	if !tryable && r.writable {
		r.clear("commit", "revert") // what could not be recorded is not wanted any more
	}
	// At start a Document that is about to be sent spares the engine the
	// applied snapshot; afterwards an engine is never left on what is not ours.
	known := r.upkeep(ctx, applied, !r.recovered && tryable)
	if !known && (!r.recovered || applied == nil) {
		return false
	}
	r.recovered = true
	if r.flight != nil && !r.confirmAgain(ctx) || r.seen.config == nil {
		return false
	}
	switch {
	case held:
		r.recordHeld(hold)
		return false
	case differs && !r.judged():
		return false // it is being looked at
	case differs:
		return r.begin(ctx, applied)
	case known:
		return r.recordUnchanged(ctx)
	}
	return false
}

// confirmAgain repeats a confirmation that failed and happened all the same, so
// that it is durable before it is told.
func (r *Reconciler) confirmAgain(ctx context.Context) bool {
	if !r.ready("confirm") {
		return false
	}
	if err := r.opt.Store.Confirm(ctx); err != nil {
		r.diskFailed("confirm", err, "the engine runs the change, but it cannot be put on record durably")
		return false
	}
	r.clear("confirm")
	r.flight = nil
	r.finishRest(ctx)
	return true
}
