package apply

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

// A DriftMode says what to do about an engine that runs something else than the applied
// record although it did not restart.
type DriftMode string

// The drift modes.
const (
	DriftCorrect DriftMode = "correct" // bring the applied record back
	DriftReport  DriftMode = "report"  // only report it
)

// Options are what a Reconciler is made of.
type Options struct {
	// Rules are those of the parameters in this environment.
	Rules        *schema.Rules
	Instance     string
	AgentVersion string

	Store   Store
	Engine  Engine
	Source  Source
	Metrics Metrics
	Logger  *slog.Logger

	// SourceKind ("file" or "git") and SourceLocation are shown in the status.
	SourceKind, SourceLocation string
	// SourceStale is the age of the last good read from which on the source is not fresh.
	SourceStale time.Duration
	// Socket and StateDir are shown in the status.
	Socket, StateDir string
	// Volatile is why the state directory does not outlive the pod, "" if it does.
	Volatile     string
	MaxSnapshots int

	Drift         DriftMode
	DriftInterval time.Duration
	// Probation is how long the engine must stay healthy on a change before that is
	// confirmed; 0 for no probation.
	Probation time.Duration
	// Gate has others agree to each change; nil for none.
	Gate Gate
	// Policy says which changes are allowed; nil for all.
	Policy Policy
	// Observe: read, validate, compare and report; never send or commit.
	Observe bool
}

// How long the Reconciler waits.
const (
	// engineDownPoll is how often an engine that is down is read. It must be brought to
	// the applied record within 1 s of its first response.
	engineDownPoll = 250 * time.Millisecond
	// lateWatch is how long after an unknown result the engine is read each lateEvery,
	// because the request may still take effect.
	lateWatch, lateEvery = time.Minute, time.Second
	// backoffLeast and backoffMost bound the wait after a failure.
	backoffLeast, backoffMost = time.Second, 5 * time.Minute
	// readyUnread is how long a pod stays ready whose engine asks to wait.
	readyUnread = time.Minute
	// compareLeast is the first wait after an engine did not say which values it
	// accepts.
	compareLeast = 10 * time.Second
	// signerFresh is how long after its Document was received a change is sent without
	// asking the source again.
	signerFresh = time.Second
	// sourceWait is how long a start waits for the first word of the source.
	sourceWait = 5 * time.Second
	// heartbeat is how often the loop turns at least, so that it is seen to live.
	heartbeat = 5 * time.Second
	// probeEvery is how old the last write to the state directory may be before it is
	// probed; probeSoon is the same while that fails.
	probeEvery, probeSoon = 30 * time.Second, 2 * time.Second
)

// A Reconciler owns the transaction. Make one with New, start it with Run. The other
// exported methods are safe from any goroutine, and return at once unless they say
// otherwise.
type Reconciler struct {
	opt Options
	log *repeater

	kick      chan struct{}
	requests  chan *request
	ended     chan struct{} // closed at the end of Run
	published atomic.Pointer[Update]
	stamp     atomic.Int64 // Unix nanoseconds of the last step
	calls     calls
	stopping  atomic.Bool // Run is to end

	currentAsking *asking // the last that was begun
	cancelAsking  context.CancelFunc
	askings       sync.WaitGroup

	mu            sync.Mutex
	inbox         arrivals
	answered      bool // the source delivered something since the start
	subscriptions []*Subscription

	state *State // belongs to the goroutine of Run
}

// arrivals are what came since the last turn.
type arrivals struct {
	doc      *document.Document
	docAt    time.Time
	failures []error // of the source
	facts    map[string][]byte
	opinions []opinion
	hint     bool // the engine may have moved
	asked    bool // an operator wants a look now
	policy   bool // another one is in force
}

// An Update is a published Status and the way to the next one: who follows it misses
// none.
type Update struct {
	Status   *Status
	replaced chan struct{}
	next     *Update
}

// Replaced returns a channel that is closed once there is a newer one.
func (u *Update) Replaced() <-chan struct{} { return u.replaced }

// Next returns the following one, nil while there is none.
func (u *Update) Next() *Update {
	select {
	case <-u.replaced:
		return u.next
	default:
		return nil
	}
}

// New makes a Reconciler. It does nothing until Run.
func New(opt Options) *Reconciler {
	r := &Reconciler{
		opt: opt, log: &repeater{opt.Logger, map[string]repetition{}},
		kick: make(chan struct{}, 1), requests: make(chan *request), ended: make(chan struct{}),
	}
	now := time.Now()
	r.state = newState(&r.opt, now)
	r.state.foldStore()
	r.stamp.Store(now.UnixNano())
	r.publish()
	return r
}

// Document offers the newest Document. An older one that was not yet taken is forgotten.
// The Document must not change afterwards.
func (r *Reconciler) Document(doc *document.Document) {
	r.arrive(func(in *arrivals) { in.doc, in.docAt, r.answered = doc, time.Now(), true })
	r.calls.newer()
}

// SourceError says that the source cannot be read. What it last declared stays declared.
func (r *Reconciler) SourceError(err error) {
	r.arrive(func(in *arrivals) {
		r.answered = true
		if len(in.failures) < 100 {
			in.failures = append(in.failures, err)
		}
	})
}

// SourceRead says that the source was read and has nothing new.
func (r *Reconciler) SourceRead() { r.arrive(func(*arrivals) {}) }

// EngineHint says that the engine may have come, gone or restarted.
func (r *Reconciler) EngineHint() { r.arrive(func(in *arrivals) { in.hint = true }) }

// Sync is EngineHint from an operator: what waits for its time is tried again now, a
// correction of drift too.
func (r *Reconciler) Sync() { r.arrive(func(in *arrivals) { in.hint, in.asked = true, true }) }

// Keep records a small fact of another part durably, such as the last commit that a
// source accepted, once nothing else is to be done. Store.Fact returns it to a later
// process.
func (r *Reconciler) Keep(name string, value []byte) {
	r.arrive(func(in *arrivals) {
		if in.facts == nil {
			in.facts = map[string][]byte{}
		}
		in.facts[name] = value
	})
}

// arrive changes what is in the inbox, and wakes the loop.
func (r *Reconciler) arrive(change func(*arrivals)) {
	r.mu.Lock()
	change(&r.inbox)
	r.mu.Unlock()
	select {
	case r.kick <- struct{}{}:
	default: // a wake-up is already waiting
	}
}

// AppliedCommit returns the source's commit that the applied record came from, "" if it
// came from none. It is known from New on.
func (r *Reconciler) AppliedCommit() string { return appliedCommit(r.Status().Applied) }

// Status returns how things stand: never nil, immutable, read without a lock.
func (r *Reconciler) Status() *Status { return r.published.Load().Status }

// Latest returns the status with the way to the ones to come.
func (r *Reconciler) Latest() *Update { return r.published.Load() }

// Stamp returns when the loop last did something, for liveness.
func (r *Reconciler) Stamp() time.Time { return time.Unix(0, r.stamp.Load()) }

func (r *Reconciler) publish() {
	s := r.state
	s.history.total, s.history.behind = r.opt.Store.Total(), r.opt.Store.Behind()
	s.repairs = r.opt.Store.Repairs()
	s.source.mode, s.source.lastGood, s.source.err = r.opt.Source.Status()
	if r.opt.Policy != nil {
		status := r.opt.Policy.Status()
		s.policy.status = &status
	}
	now := time.Now()
	s.foldSource(now)
	r.mu.Lock()
	s.source.next = ""
	if r.inbox.doc != nil {
		s.source.next = r.inbox.doc.Revision()
	}
	r.mu.Unlock()
	s.outbox.changed = false
	v := View(s, now)
	update := &Update{Status: v, replaced: make(chan struct{})}
	if s.shown != v.State {
		s.shown, s.shownSince = v.State, now
	}
	v.Since = unixOrNever(s.shownSince)
	if old := r.published.Swap(update); old != nil {
		old.next = update
		close(old.replaced)
	}
}

// foldSource notes since when the source cannot be read, and that it can again.
func (s *State) foldSource(now time.Time) {
	src := &s.source
	switch {
	case src.err != nil && src.lost.IsZero():
		src.lost = now
	case src.err == nil && !src.lost.IsZero() && !src.lastGood.IsZero():
		s.log(slog.LevelInfo, "the configuration can be read again", "after", now.Sub(src.lost).Round(time.Millisecond).String())
		s.endRepeat("source") // the same failure is news again
		src.lost = time.Time{}
	}
	if src.err == nil && src.lastGood.After(src.counted) {
		src.counted = src.lastGood
		s.succeeded("source")
	}
}

// Run reconciles until ctx ends; it is called once. The step in flight is finished first,
// within its own time limits, so that an engine is not left half asked.
func (r *Reconciler) Run(ctx context.Context) error {
	work := context.WithoutCancel(ctx)
	defer r.end()
	defer context.AfterFunc(ctx, func() {
		r.stopping.Store(true)
		r.calls.stop()
	})()
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer r.askings.Wait()
	defer r.endAsking(nil)
	r.state.loadRecentSends(work, time.Now())
	r.state.loadLastDrift()
	r.state.loadAccepted()
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
		if ctx.Err() != nil {
			r.stop(work, order)
			return nil
		}
		if order != nil {
			r.take(work, order)
		}
		timer.Reset(max(0, time.Until(r.turn(work))))
	}
}

// end tells who waits for events or for the loop that there is nothing to come.
func (r *Reconciler) end() {
	close(r.ended)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.subscriptions {
		close(s.events)
	}
	r.subscriptions = nil
}

// turn does one step after another until there is nothing left to do but wait, and
// returns until when. Once it is to stop, or an order waits, it begins nothing new; but
// what the engine has responded is put on record.
func (r *Reconciler) turn(ctx context.Context) (wake time.Time) {
	s := r.state
	s.signer = signerCheck{}
	if s.backlog.failed {
		s.backlog = backlog{}
	}
	wake = r.advance(ctx, func(step Step, isFirst bool) bool {
		return isFirst || s.order != nil || s.isRecording(step) || !r.stopping.Load() && !r.calls.isAwaited()
	})
	r.endAsking(s.pending)
	s.foldBounds()
	r.publish()
	s.tellCondition(r.Status())
	r.flush()
	if !r.stopping.Load() {
		r.opt.Store.Prepare(ctx, s.defaultTarget())
	}
	return wake
}

// advance does the planned steps until one is to wait, or is not to begin now. It returns
// until when to wait.
func (r *Reconciler) advance(ctx context.Context, mayBegin func(step Step, isFirst bool) bool) (wake time.Time) {
	for isFirst := true; ; isFirst = false {
		r.foldInbox()
		r.flush()
		now := time.Now()
		r.stamp.Store(now.UnixNano())
		r.state.refresh(now)
		step := Plan(r.state, now)
		if step.Kind == Wait || !mayBegin(step, isFirst) {
			return step.Until
		}
		r.do(ctx, step)
	}
}

// take begins an order. The step that was next, and what the engine has responded, go
// first.
func (r *Reconciler) take(ctx context.Context, order *request) {
	s := r.state
	order.open = cmp.Or(order.open, s.openRollback())
	s.signer = signerCheck{}
	r.advance(ctx, func(step Step, isFirst bool) bool { return !step.Kind.isRest() && (isFirst || s.isRecording(step)) })
	r.calls.wait(-1) // from here on its own calls have their time
	if why := order.givenUp(); why != nil {
		s.reply(order, Result{}, order.forgotten(why))
		r.flush()
		return
	}
	s.retryNow(stages...)
	s.order = order
}

// stop answers everybody who waits.
func (r *Reconciler) stop(ctx context.Context, order *request) {
	s := r.state
	if s.pending != nil && !s.pending.accepted {
		r.unmark(ctx) // a restart of ours is not a cut
	}
	if order != nil {
		s.reply(order, Result{}, errStopping)
	}
	for _, q := range s.waiters {
		s.reply(q, unsettled(s.report.attempts, q.id(), "the agent is stopping; the rollback is on record and goes on at its next start"), nil)
	}
	s.waiters = nil
	r.flush()
}

// foldInbox takes what arrived. A Document is loaded; an invalid one touches nothing.
func (r *Reconciler) foldInbox() {
	s := r.state
	r.mu.Lock()
	in := r.inbox
	r.inbox, s.source.answered = arrivals{}, r.answered
	r.mu.Unlock()
	for _, err := range in.failures {
		s.failed("source")
		s.repeatKind(slog.LevelError, "source", problem.Text(err), "the configuration cannot be read; the engine keeps what it has", "error", err, "hint", problem.Hint(err))
	}
	if in.asked {
		s.drift.contest.isUrgent = true
		s.retryNow(stages...)
	}
	if in.policy || in.asked && s.policy.err != nil {
		s.policy.isStale = true
		s.outbox.changed = true
	}
	for name, value := range in.facts {
		s.facts.keep(name, value)
	}
	s.engine.due = s.engine.due || in.hint
	for _, o := range in.opinions {
		if s.pending != nil && s.pending.asking == o.of {
			s.foldOpinion(o.err, time.Now())
		}
	}
	if in.doc != nil {
		r.foldDocument(in.doc, in.docAt)
	}
}

func (r *Reconciler) foldDocument(doc *document.Document, at time.Time) {
	s, e := r.state, &r.state.engine
	// The connection for the batch is opened while the Document is loaded and put on
	// record, if nothing is to be asked of the engine before.
	if s.isSettled() && doc.Refused == nil && !r.opt.Observe && !s.isRival() && e.reachable && e.peer == e.reading.Peer && !s.readDue(time.Now()) {
		r.opt.Engine.Prepare()
	}
	before := s.declared
	s.declared = declared{at: at, since: at, refusal: doc.Refused}
	if doc.Refused == nil {
		start := time.Now()
		s.declared.config, s.declared.violations = r.opt.Rules.Load(doc.Input(r.opt.Instance))
		s.phase("load", time.Since(start))
		s.endRepeat("refused")
	}
	if c := s.declared.config; c != nil {
		s.endRepeat("invalid")
		s.noteBroken(c.Parameters, nil)
		if before.config == nil || !s.same(before.config.Parameters, c.Parameters) {
			s.retryNow(stages...) // it may be the fix of what waits for its time
			s.clear(stageHook)
		}
	}
	loaded := *doc
	loaded.Files = nil // with what was parsed of them
	doc, s.declared.doc = &loaded, &loaded
	isNew := before.doc == nil || before.doc.Revision() != doc.Revision()
	if isNew {
		s.showPending(doc.Revision())
	}
	switch why, v := s.declared.refusal, s.declared.violations; {
	case why != nil && (isNew || before.refusal == nil || *before.refusal != *why):
		s.attemptRefused(doc)
	case v != nil && (isNew || before.refusal != nil):
		s.attemptInvalid(doc, v)
	}
	s.outbox.changed = true
}
