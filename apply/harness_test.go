package apply_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/watcher/document"
)

// The world of these tests: a real store in a temporary directory, the real
// Reconciler, and between them and it the two fakes whose only purpose is to
// misbehave: faulty, around the store, and scripted, the engine. Time is the
// bubble's, so a night of backoff takes no time.

const production = schema.Environment("production")

// rules are the ones that most worlds have.
var rules = schema.Default().For(production)

// reservoir is the parameter in which the states of these tests differ.
const reservoir = "esn_reservoir_size"

// size makes Parameters that differ in the reservoir only.
func size(n int) schema.Parameters { return rules.Defaults().With(reservoir, schema.Int(n)) }

// documentOf declares p; the comment makes another revision of the same.
func documentOf(p schema.Parameters, comment string) *document.Document {
	base := "parameters:\n"
	for line := range bytes.Lines(p.YAML()) {
		base += "  " + string(line)
	}
	files := []schema.File{
		schema.NewFile("base.yaml", []byte(base)),
		schema.NewFile("production.yaml", []byte("environment: production\n# "+comment+"\n")),
	}
	return &document.Document{
		Environment: production, Files: files,
		Source: document.Source{Kind: "file", Location: "test", Revision: document.FilesRevision(files)},
	}
}

// A mishap is what a call does instead of its work.
type mishap int

const (
	fine        mishap = iota
	fails              // an error, and nothing happened
	happens            // an error, and it happened all the same
	crashBefore        // the process dies before it happened
	crashAfter         // the process dies after it happened
	stalls             // it hangs; a disk then does it, an engine has done it
	stallsFails        // it hangs, and then fails
)

func (m mishap) String() string {
	return [...]string{"fine", "fails", "fails but happened", "crash before", "crash after", "hangs and happens", "hangs and fails"}[m]
}

// stallTime is how long a disk that hangs does so.
const stallTime = 90 * time.Second

// kindOf are calls that are planned by a more general name as well.
var kindOf = map[string]string{
	"rollback": "commit", "note": "commit", "withdraw": "revert", "settle": "confirm",
	"assert send": "send", "assert read": "read", "unmark": "mark",
}

// Hundreds of worlds make much garbage, and there is memory for it.
func init() { debug.SetGCPercent(400) }

// mishaps are planned by the name of the call, one for each call to come.
type mishaps struct {
	mu      sync.Mutex
	planned map[string][]mishap
	hit     int
	stalled atomic.Bool  // a disk call hangs now
	target  atomic.Value // string: what the store was told to keep
}

func (m *mishaps) plan(call string, what ...mishap) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.planned[call] = append(m.planned[call], what...)
}

func (m *mishaps) next(call string) mishap {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.planned[call]) == 0 {
		call = kindOf[call]
	}
	q := m.planned[call]
	if len(q) == 0 {
		return fine
	}
	m.planned[call] = q[1:]
	if q[0] != fine {
		m.hit++
	}
	return q[0]
}

// hits is how many mishaps took place.
func (m *mishaps) hits() int { m.mu.Lock(); defer m.mu.Unlock(); return m.hit }

var errDisk = fmt.Errorf("write: %w", syscall.ENOSPC)

// onDisk does work with the mishap planned for call. A crash ends the
// goroutine, which is the Reconciler's: nothing it knew survives.
func (m *mishaps) onDisk(call string, work func() error) error {
	return m.around(call, work, func() error {
		m.stalled.Store(true)
		time.Sleep(stallTime) // the bubble's: what hangs without a bound is Sleep's only use here
		m.stalled.Store(false)
		return nil
	})
}

// around does work with the mishap planned for call; stall hangs.
func (m *mishaps) around(call string, work, stall func() error) error {
	switch m.next(call) {
	case fails:
		return errDisk
	case happens:
		if err := work(); err != nil {
			return err
		}
		return errDisk
	case crashBefore:
		runtime.Goexit()
	case crashAfter:
		if err := work(); err != nil {
			return err
		}
		runtime.Goexit()
	case stalls:
		if err := stall(); err != nil {
			return errors.Join(work(), err) // an engine's own time was over
		}
	case stallsFails:
		if err := stall(); err != nil {
			return err
		}
		return errDisk
	}
	return work()
}

// faulty is a store that fails as planned. Its lock lets the test look at the
// store that is the Reconciler's, also while that hangs.
type faulty struct {
	*gitstore.Store
	m  *mishaps
	mu *sync.Mutex
}

func (f faulty) locked(work func()) { f.mu.Lock(); defer f.mu.Unlock(); work() }

func (f faulty) Head() (s *record.Record)    { f.locked(func() { s = f.Store.Head() }); return s }
func (f faulty) Applied() (s *record.Record) { f.locked(func() { s = f.Store.Applied() }); return s }

func (f faulty) Lost() (h *record.Hold) { f.locked(func() { h = f.Store.Lost() }); return h }

func (f faulty) ClearLost(ctx context.Context) (err error) {
	return f.m.onDisk("clear lost", func() error { f.locked(func() { err = f.Store.ClearLost(ctx) }); return err })
}

func (f faulty) Total() (n int) { f.locked(func() { n = f.Store.Total() }); return n }

func (f faulty) Retried() (yes bool) { f.locked(func() { yes = f.Store.Retried() }); return yes }

// Prepare notes what it would keep, and no more: hundreds of worlds would make files
// ahead.
func (f faulty) Prepare(_ context.Context, target string) { f.m.target.Store(target) }

func (f faulty) Probe(ctx context.Context) (err error) {
	return f.m.onDisk("probe", func() error { f.locked(func() { err = f.Store.Probe(ctx) }); return err })
}

func (f faulty) List(ctx context.Context, before string, limit int) (page []record.Row, err error) {
	err = f.m.onDisk("list", func() error { page, err = f.list(ctx, before, limit); return err })
	return page, err
}

// list is List for the test, without mishaps.
func (f faulty) list(ctx context.Context, before string, limit int) (page []record.Row, err error) {
	f.locked(func() { page, err = f.Store.List(ctx, before, limit) })
	return page, err
}

func (f faulty) Lookup(ctx context.Context, id string) (rec record.Row, err error) {
	err = f.m.onDisk("lookup", func() error {
		f.locked(func() { rec, err = f.Store.Lookup(ctx, id) })
		return err
	})
	return rec, err
}

func (f faulty) Commit(ctx context.Context, rec record.Record) (snap *record.Record, err error) {
	call := "commit"
	switch {
	case rec.Kind == record.KindRevert && rec.OutcomeOf.Outcome == record.Superseded:
		call = "withdraw"
	case rec.Kind != record.KindChange:
		call = string(rec.Kind)
	}
	err = f.m.onDisk(call, func() error {
		f.locked(func() { snap, err = f.Store.Commit(ctx, rec) })
		return err
	})
	if err != nil {
		return nil, err
	}
	return snap, nil
}

func (f faulty) Confirm(ctx context.Context) (err error) {
	call := "confirm"
	if head := f.Head(); head != nil && !head.Kind.Candidate() {
		call = "settle"
	}
	return f.m.onDisk(call, func() error { f.locked(func() { err = f.Store.Confirm(ctx) }); return err })
}

func (f faulty) SetRetried(ctx context.Context, on bool) (err error) {
	call := "mark"
	if !on {
		call = "unmark"
	}
	return f.m.onDisk(call, func() error { f.locked(func() { err = f.Store.SetRetried(ctx, on) }); return err })
}

// A tester is a test, or one sequence of a property.
type tester interface {
	Helper()
	Context() context.Context
	Error(...any)
	Errorf(string, ...any)
	Fatal(...any)
	Fatalf(string, ...any)
}

// world is one test's world.
type world struct {
	t      tester
	dir    string
	m      *mishaps
	engine *scripted
	rules  *schema.Rules // of the processes to come
	drift  apply.DriftMode
	counts *counts
	// probation of the processes to come.
	probation time.Duration
	gate      *jury   // that they have; nil for none
	policy    *policy // that they have; nil for none
	observe   bool
	// refused gets what the last order was answered with, if that is an error.
	refused chan error
	judge   *model // sees what passes between the agent, its store and its engine; nil for none
	packs   bool   // the history is packed as in a real agent; for a judged world
	listed  int    // records that a listing shows

	store  faulty
	r      *apply.Reconciler
	stop   context.CancelFunc
	joined chan struct{}
	source apply.Source
}

// newWorld starts an agent over an engine with its defaults. It must be called
// inside a bubble.
func newWorld(t tester, dir string) *world {
	w := emptyWorld(t, dir)
	w.start()
	return w
}

// emptyWorld is a world without an agent.
func emptyWorld(t tester, dir string) *world {
	m := &mishaps{planned: map[string][]mishap{}}
	w := &world{t: t, dir: dir, m: m, rules: rules, drift: apply.DriftCorrect, listed: 50, source: readable{}, counts: &counts{outcomes: map[record.Outcome]int{}}}
	w.engine = &scripted{
		t: t, m: m, runs: rules.Defaults(), defaults: rules.Defaults(), peer: 1,
		always: map[schema.Digest]manner{}, sends: map[schema.Digest]int{}, tries: map[schema.Digest]int{},
	}
	return w
}

func (w *world) start() {
	w.t.Helper()
	store, _, err := gitstore.Open(w.t.Context(), gitstore.Options{
		Dir: w.dir, Environment: production, Instance: "one", Logger: slog.New(slog.DiscardHandler), AgentVersion: "test",
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.store = faulty{store, w.m, &sync.Mutex{}}
	w.engine.tell(func(e *scripted) { e.store = w.store })
	w.counts.begin()
	seenStore, seenEngine := w.judged()
	opt := apply.Options{
		Rules: w.rules, Instance: "one", AgentVersion: "test",
		Store: seenStore, Engine: seenEngine, Metrics: w.counts, Logger: slog.New(slog.DiscardHandler),
		Source: w.source, SourceKind: "file", SourceStale: time.Minute, Socket: "engine.sock", StateDir: w.dir, MaxSnapshots: w.listed,
		Drift: w.drift, DriftInterval: 30 * time.Second, Probation: w.probation, Observe: w.observe,
	}
	if w.policy != nil {
		opt.Policy = w.policy
	}
	if w.gate != nil {
		opt.Gate = w.gate
	}
	w.r = apply.New(opt)
	ctx, cancel := context.WithCancel(w.t.Context())
	w.stop, w.joined = cancel, make(chan struct{})
	go func() {
		defer close(w.joined) // runs after a crash, too
		if err := w.r.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
}

// end stops the process, or cleans up after one that crashed.
func (w *world) end() {
	w.judge.fence()
	w.stop()
	<-w.joined
	if err := w.store.Close(); err != nil {
		w.t.Error(err)
	}
}

func (w *world) restart() { w.t.Helper(); w.end(); w.start() }

// crashed reports whether the process died of a planned crash.
func (w *world) crashed() bool {
	select {
	case <-w.joined:
		return true
	default:
		return false
	}
}

// pass lets time pass until everything that waits has had its turn.
func (w *world) pass(d time.Duration) {
	w.judge.fence()
	select {
	case <-time.After(d):
	case <-w.joined:
	}
	synctest.Wait()
}

func (w *world) declare(p schema.Parameters, comment string) {
	w.r.Document(documentOf(p, comment))
	w.pass(100 * time.Millisecond)
}

// do gives the running agent an order and lets it work.
func (w *world) do(c apply.Order) (apply.Result, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	w.judge.fence()
	res, err := w.r.Do(ctx, c)
	w.pass(100 * time.Millisecond)
	return res, err
}

// want holds the whole state against what it should be.
type want struct {
	runs    schema.Parameters
	outcome record.Outcome
	state   apply.Condition
	inSync  bool
	ready   bool
	held    []schema.Parameters
	open    bool // a candidate is open: head is not applied
}

func (w *world) check(name string, x want) {
	w.t.Helper()
	s := w.r.Status()
	if !w.engine.running().Equal(x.runs) {
		w.t.Errorf("%s: the engine runs %v units, want %v", name, w.engine.running().Get(reservoir), x.runs.Get(reservoir))
	}
	if s.State != x.state {
		w.t.Errorf("%s: state %s (%s), want %s", name, s.State, s.Reason, x.state)
	}
	if s.InSync != x.inSync || s.Ready != x.ready {
		w.t.Errorf("%s: in_sync %v, ready %v (%s), want %v, %v", name, s.InSync, s.Ready, s.Unready, x.inSync, x.ready)
	}
	if s.Attempted == nil || s.Attempted.Outcome != x.outcome {
		w.t.Errorf("%s: attempted %+v, want %s", name, s.Attempted, x.outcome)
	}
	anyName := func(string) bool { return true }
	for _, p := range x.held {
		if s.Held.Match(p, anyName) == nil {
			w.t.Errorf("%s: no entry of %+v matches %s", name, s.Held, p)
		}
	}
	if s.Held != nil {
		for _, e := range s.Held.Entries {
			if !slices.ContainsFunc(x.held, func(p schema.Parameters) bool { return e.Matches(p, anyName) }) {
				w.t.Errorf("%s: held %+v, which matches none of %v", name, e, x.held)
			}
		}
	}
	head, applied := w.store.Head(), w.store.Applied()
	if head == nil {
		w.t.Fatalf("%s: there is no record: %s (%s)", name, s.State, s.Reason)
	}
	if open := applied == nil || head.Commit != applied.Commit; open != x.open {
		w.t.Errorf("%s: a candidate is open: %v, want %v (head %s %s)", name, open, x.open, head.Kind, head.ID)
	}
	if s.Current == nil || !s.Current.Equal(w.engine.running()) {
		w.t.Errorf("%s: status says %v runs, the engine runs %v", name, s.Current, w.engine.running())
	}
	if !x.open && applied != nil && x.runs.Equal(applied.Config) && (s.Running.SnapshotID != applied.ID || !s.Running.Confirmed) {
		w.t.Errorf("%s: running %+v, want %s confirmed", name, s.Running, applied.ID)
	}
	if s.Attempted != nil && s.Attempted.Outcome != record.Pending && w.counts.outcome(s.Attempted.Outcome) == 0 {
		w.t.Errorf("%s: %s is not counted", name, s.Attempted.Outcome)
	}
}

// heldSets lists the parameter sets that a hold has as entries, by digest. An entry with
// some values stands for the set with all others as the tests have them.
func heldSets(h *record.Hold) (sets []schema.Digest) {
	if h == nil {
		return nil
	}
	for _, e := range h.Entries {
		p := schema.NewParameters(e.Values)
		if len(e.Values) < stateA.Len() {
			p = stateA
			for name, v := range e.Values {
				p = p.With(name, v)
			}
		}
		sets = append(sets, p.Digest())
	}
	slices.Sort(sets)
	return slices.Compact(sets) // one value may be held besides the set that has it
}

// counts is a Metrics that remembers.
type counts struct {
	mu        sync.Mutex
	outcomes  map[record.Outcome]int
	rollbacks []string
	drifts    int
	denials   int
	stages    []string
	base      *counts // when the process that runs now began
}

// begin says that a new process counts from zero.
func (c *counts) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.base = &counts{outcomes: maps.Clone(c.outcomes), rollbacks: slices.Clone(c.rollbacks)}
}

// sinceStart is what the process that runs now has counted.
func (c *counts) sinceStart() *counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := &counts{outcomes: maps.Clone(c.outcomes), rollbacks: c.rollbacks[len(c.base.rollbacks):]}
	for o, before := range c.base.outcomes {
		n.outcomes[o] -= before
	}
	return n
}

func (c *counts) Outcome(o record.Outcome) { c.mu.Lock(); defer c.mu.Unlock(); c.outcomes[o]++ }
func (c *counts) outcome(o record.Outcome) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.outcomes[o]
}

func (c *counts) Rollback(cause string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rollbacks = append(c.rollbacks, cause)
}

func (c *counts) rolledBack() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.rollbacks)
}

func (c *counts) StageFailure(stage string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stages = append(c.stages, stage)
}
func (c *counts) Drift()                      { c.mu.Lock(); defer c.mu.Unlock(); c.drifts++ }
func (c *counts) PolicyRefusal()              { c.mu.Lock(); defer c.mu.Unlock(); c.denials++ }
func (c *counts) ValidationFailures([]string) {}
func (c *counts) Phase(string, time.Duration) {}
func (c *counts) Success(string)              {}

// orderOf returns the order with a verb and a reason.
func orderOf(verb, reason string) apply.Order {
	switch verb {
	case "rollback":
		return &apply.Rollback{Reason: reason}
	case "pause":
		return &apply.Pause{Reason: reason}
	}
	return &apply.Resume{Reason: reason}
}

// verbOf returns the verb of an order.
func verbOf(o apply.Order) string {
	return strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", o), "*apply."))
}

// readable is a source that can be read and trusts everything.
type readable struct{}

func (readable) Status() (string, time.Time, error)                     { return "inotify", time.Now(), nil }
func (readable) CheckSigner(document.Source) (*document.Refusal, error) { return nil, nil }
func (readable) Sync()                                                  {}
