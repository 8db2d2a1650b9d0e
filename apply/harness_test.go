package apply_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore"
	"dtesn-agent/schema"
)

// The world of these tests: a real store in a temporary directory, the real
// Reconciler, and between them and it the two fakes whose only purpose is to
// misbehave: faulty, around the store, and scripted, the engine. Time is the
// bubble's, so a night of backoff takes no time.

const production = schema.Environment("production")

// size makes Parameters that differ in the reservoir only.
func size(n int) schema.Parameters {
	p := schema.Defaults()
	p.ESNReservoirSize = n
	return p
}

// document declares p; the comment makes another revision of the same.
func document(p schema.Parameters, comment string) *schema.Document {
	base := "parameters:\n"
	for _, name := range schema.Names() {
		base += fmt.Sprintf("  %s: %v\n", name, p.Get(name))
	}
	files := []schema.File{
		{Path: "base.yaml", Bytes: []byte(base)},
		{Path: "production.yaml", Bytes: []byte("environment: production\n# " + comment + "\n")},
	}
	return &schema.Document{
		Environment: production, Files: files,
		Source: schema.Source{Kind: "file", Location: "test", Revision: schema.FilesRevision(files)},
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
)

func (m mishap) String() string {
	return [...]string{"fine", "fails", "fails but happened", "crash before", "crash after"}[m]
}

// mishaps are planned by the name of the call, one for each call to come.
type mishaps struct {
	mu      sync.Mutex
	planned map[string][]mishap
	hit     int
}

func (m *mishaps) plan(call string, what ...mishap) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.planned[call] = append(m.planned[call], what...)
}

func (m *mishaps) next(call string) mishap {
	m.mu.Lock()
	defer m.mu.Unlock()
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

var errDisk = fmt.Errorf("write: %w", syscall.ENOSPC)

// around does work with the mishap planned for call. A crash ends the
// goroutine, which is the Reconciler's: nothing it knew survives.
func (m *mishaps) around(call string, work func() error) error {
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
	}
	return work()
}

// faulty is a store that fails as planned. Its lock lets the test look at the
// store that is the Reconciler's.
type faulty struct {
	*gitstore.Store
	m  *mishaps
	mu *sync.Mutex
}

func (f faulty) Head() *schema.Snapshot { f.mu.Lock(); defer f.mu.Unlock(); return f.Store.Head() }

func (f faulty) Applied() *schema.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Store.Applied()
}

func (f faulty) Total() int { f.mu.Lock(); defer f.mu.Unlock(); return f.Store.Total() }

// Prepare is left away: hundreds of worlds would make 256 directories each.
func (f faulty) Prepare() {}

func (f faulty) List(ctx context.Context, before string, limit int) ([]schema.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Store.List(ctx, before, limit)
}

func (f faulty) Commit(ctx context.Context, rec schema.Snapshot) (snap *schema.Snapshot, err error) {
	call := "commit"
	if rec.Kind == schema.KindRevert {
		call = "revert"
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	err = f.m.around(call, func() (err error) { snap, err = f.Store.Commit(ctx, rec); return err })
	if err != nil {
		return nil, err
	}
	return snap, nil
}

func (f faulty) Confirm(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m.around("confirm", func() error { return f.Store.Confirm(ctx) })
}

func (f faulty) SetRetried(ctx context.Context, on bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m.around("mark", func() error { return f.Store.SetRetried(ctx, on) })
}

// world is one test's world.
type world struct {
	t      *testing.T
	dir    string
	m      *mishaps
	engine *scripted
	drift  apply.DriftMode
	counts *counts
	// probation of the processes to come.
	probation time.Duration

	store  faulty
	r      *apply.Reconciler
	stop   context.CancelFunc
	joined chan struct{}
}

// newWorld starts an agent over an engine with its defaults. It must be called
// inside a bubble.
func newWorld(t *testing.T, dir string) *world {
	m := &mishaps{planned: map[string][]mishap{}}
	w := &world{t: t, dir: dir, m: m, drift: apply.DriftCorrect, counts: &counts{outcomes: map[schema.Outcome]int{}}}
	w.engine = &scripted{
		t: t, m: m, runs: schema.Defaults(), peer: 1,
		always: map[schema.Parameters]manner{}, sends: map[schema.Parameters]int{}, banned: map[schema.Parameters]bool{},
	}
	w.start()
	return w
}

func (w *world) start() {
	w.t.Helper()
	store, _, err := gitstore.Open(w.t.Context(), gitstore.Options{
		Dir: w.dir, Environment: production, Instance: "one", MaxSnapshots: 50, Logger: slog.New(slog.DiscardHandler), AgentVersion: "test",
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.store = faulty{store, w.m, &sync.Mutex{}}
	w.engine.tell(func(e *scripted) { e.store = w.store })
	w.r = apply.New(apply.Options{
		Environment: production, Instance: "one", AgentVersion: "test",
		Store: w.store, Engine: w.engine, Metrics: w.counts, Logger: slog.New(slog.DiscardHandler),
		Source:      apply.SourceStatus{Kind: "file"},
		ReadSource:  func() (string, time.Time, error) { return "inotify", time.Now(), nil },
		SourceStale: time.Minute, Socket: "engine.sock", StateDir: w.dir, MaxSnapshots: 50,
		Drift: w.drift, DriftInterval: 30 * time.Second, Probation: w.probation,
	})
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
	select {
	case <-time.After(d):
	case <-w.joined:
	}
	synctest.Wait()
}

func (w *world) declare(p schema.Parameters, comment string) {
	w.r.Document(document(p, comment))
	w.pass(100 * time.Millisecond)
}

// do gives the running agent an order and lets it work.
func (w *world) do(c apply.Command) (apply.Result, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	res, err := w.r.Do(ctx, c)
	w.pass(100 * time.Millisecond)
	return res, err
}

// want holds the whole state against what it should be.
type want struct {
	runs    schema.Parameters
	outcome schema.Outcome
	state   apply.State
	inSync  bool
	ready   bool
	held    []schema.Parameters
	open    bool // a candidate is open: head is not applied
}

func (w *world) check(name string, x want) {
	w.t.Helper()
	s := w.r.Status()
	if w.engine.running() != x.runs {
		w.t.Errorf("%s: the engine runs %d units, want %d", name, w.engine.running().ESNReservoirSize, x.runs.ESNReservoirSize)
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
	var held []schema.Digest
	for _, p := range x.held {
		held = append(held, p.Digest())
	}
	slices.Sort(held)
	var got []schema.Digest
	if s.Held != nil {
		got = s.Held.Digests
	}
	if !slices.Equal(held, got) {
		w.t.Errorf("%s: held %v, want %v", name, got, held)
	}
	head, applied := w.store.Head(), w.store.Applied()
	if open := applied == nil || head.Commit != applied.Commit; open != x.open {
		w.t.Errorf("%s: a candidate is open: %v, want %v (head %s %s)", name, open, x.open, head.Kind, head.ID)
	}
	if s.Current == nil || *s.Current != w.engine.running() {
		w.t.Errorf("%s: status says %v runs, the engine runs %v", name, s.Current, w.engine.running())
	}
	if !x.open && x.runs == applied.Config && (s.Running.SnapshotID != applied.ID || !s.Running.Confirmed) {
		w.t.Errorf("%s: running %+v, want %s confirmed", name, s.Running, applied.ID)
	}
	if s.Attempted != nil && s.Attempted.Outcome != schema.Pending && w.counts.outcome(s.Attempted.Outcome) == 0 {
		w.t.Errorf("%s: %s is not counted", name, s.Attempted.Outcome)
	}
}

// counts is a Metrics that remembers.
type counts struct {
	mu        sync.Mutex
	outcomes  map[schema.Outcome]int
	rollbacks []string
	drifts    int
	stages    []string
}

func (c *counts) Outcome(o schema.Outcome) { c.mu.Lock(); defer c.mu.Unlock(); c.outcomes[o]++ }
func (c *counts) outcome(o schema.Outcome) int {
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
func (c *counts) ValidationFailures([]string) {}
func (c *counts) Phase(string, time.Duration) {}
func (c *counts) Success(string)              {}
