package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dtesn-agent/schema"
)

const maxSnapshots = 50

// Options say what kind of engine it is.
type Options struct {
	// Environment pins the label: POST environment of another one answers 409,
	// and an update for another one 403. Empty: `development`, until told.
	Environment string
	// MemoryLimit is in bytes; 0 means DefaultMemoryLimit.
	MemoryLimit int64
	// Logger hears of changes and refusals; nil for nobody.
	Logger *slog.Logger
	// Seed makes the weights. Engines of equal seed and parameters predict
	// alike.
	Seed uint64
}

// An Engine serves one configuration at a time. All methods are safe for
// concurrent use.
type Engine struct {
	limit  int64
	seed   uint64
	pinned bool
	log    *slog.Logger

	current atomic.Pointer[state]
	held    atomic.Int64 // bytes of the networks that live

	changing sync.Mutex               // one change at a time
	desk     desk                     // under changing
	building atomic.Pointer[Building] // nil while nothing is built
	retired  []*life                  // swapped out and perhaps still in use; under changing
}

// A state is all that requests see. It is immutable but for what says
// otherwise, and swapped whole.
type state struct {
	values      schema.Parameters
	params      parameters // of values
	environment string
	network     *network
	generation  uint64
	since       time.Time
	cache       *cache     // nil while caching is off; has its own lock
	latencies   *latencies // nil while monitoring is off; atomic
	snapshots   []Snapshot
	sequence    int // of the newest snapshot
}

// New builds an engine that runs the schema's defaults.
func New(options Options) (*Engine, error) {
	e := &Engine{limit: options.MemoryLimit, seed: options.Seed, log: options.Logger}
	if e.limit == 0 {
		e.limit = DefaultMemoryLimit
	}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	label := startLabel
	if options.Environment != "" {
		environment, err := schema.Default().ParseEnvironment(options.Environment)
		if err != nil {
			return nil, fmt.Errorf("start the engine: %w", err)
		}
		label, e.pinned = string(environment), true
	}
	params := defaults()
	if e.reserve(e.need(params)) != nil {
		return nil, fmt.Errorf("start the engine: its defaults take %s while they are built, the memory limit is %s: raise --memory-limit",
			mebibytes(fixedBytes+e.need(params)), mebibytes(e.limit))
	}
	network, err := e.construct(context.Background(), params)
	if err != nil {
		return nil, fmt.Errorf("start the engine: %w", err)
	}
	first := &state{environment: label, network: network, generation: 1}
	e.current.Store(first.follow(rules().Defaults(), change{description: "Start with the defaults"}))
	return e, nil
}

// A change is a wish: values to lay over what runs, and its story.
type change struct {
	values                            map[string]schema.Value
	description, snapshotID, revision string
}

// errGone: the client left before its change began.
var errGone = errors.New("the client left")

// apply makes the engine run what is wished for, all of it or nothing. The
// reasons are why not, for people.
func (e *Engine) apply(ctx context.Context, wish change) (before, after *state, reasons []string, err error) {
	e.changing.Lock()
	defer e.changing.Unlock()
	if ctx.Err() != nil {
		return nil, nil, nil, errGone // and perhaps has sent something newer
	}
	before = e.current.Load()
	values, reasons := overlay(before.values, wish.values)
	if reasons != nil {
		return before, nil, reasons, nil
	}
	built := *before
	if reinitialized(before.values, values) != nil {
		e.building.Store(&Building{Revision: wish.revision, Since: unixSeconds(time.Now())})
		defer e.building.Store(nil)
		if built.network, reasons, err = e.rebuild(ctx, parametersOf(values)); reasons != nil || err != nil {
			e.log.Warn("change refused", "reason", strings.Join(reasons, "; "), "error", err)
			return before, nil, reasons, err
		}
		built.generation++
		built.cache = nil
	}
	after = built.follow(values, wish)
	e.swap(before, after)
	e.log.Info("configuration changed", "snapshot", after.active().SnapshotID, "generation", after.generation,
		"changes", fmt.Sprint(rules().Diff(before.values, values)))
	return before, after, nil, nil
}

// swap is the moment from which requests see after.
func (e *Engine) swap(before, after *state) {
	e.current.Store(after)
	if old := before.network; old != after.network {
		old.retire(&e.held)
		e.retired = append(e.retired, old.life)
	}
}

// rebuild builds the network for p beside the one that runs. reasons are a
// verdict on p; an error is none.
func (e *Engine) rebuild(ctx context.Context, p parameters) (n *network, reasons []string, err error) {
	switch err := e.reserve(e.need(p)); {
	case errors.Is(err, errTooLarge):
		return nil, []string{e.tooLarge(p)}, nil
	case err != nil:
		return nil, nil, err
	}
	if n, err = e.construct(ctx, p); err != nil {
		return nil, nil, errGone
	}
	return n, nil, nil
}

// construct builds and trains a network whose building is reserved, and gives
// back what only that takes. No request ever sees a network that is not whole.
func (e *Engine) construct(ctx context.Context, p parameters) (*network, error) {
	if e.deskGrowth(p) > 0 {
		e.desk = nil // the old one goes before the new one comes
		e.desk = newDesk(min(p.ESNReservoirSize, maxFeatures))
	}
	t := &turn{ctx: ctx, most: rebuildTurn, began: time.Now()}
	n, err := build(t, p, e.seed)
	if err == nil {
		err = n.train(t, e.desk)
	}
	if err != nil {
		e.held.Add(-building(p))
		return nil, err
	}
	e.held.Add(-schooling(p))
	return n, nil
}

// relabel sets the environment label; it reports false if another is pinned.
func (e *Engine) relabel(environment schema.Environment) (previous string, ok bool) {
	e.changing.Lock()
	defer e.changing.Unlock()
	before := e.current.Load()
	if before.environment == string(environment) {
		return before.environment, true
	}
	if e.pinned {
		return before.environment, false
	}
	after := *before
	after.environment = string(environment)
	e.current.Store(&after)
	e.log.Info("environment set", "environment", environment, "before", before.environment)
	return before.environment, true
}

// enter returns what runs now and counts the caller in on its network; it must
// leave it.
func (e *Engine) enter() *state {
	for {
		now := e.current.Load()
		now.network.enter()
		if e.current.Load().network == now.network {
			return now // not retired before it was entered
		}
		now.network.leave()
	}
}

var snapshotID = regexp.MustCompile(`^snapshot_[0-9]{1,20}_[0-9]{1,20}$`)

// follow is the state after s that runs p, with a snapshot more. An id that
// the wish brings is kept, so that the engine's history reads as the agent's
// does.
func (s state) follow(p schema.Parameters, wish change) *state {
	s.values, s.params, s.since = p, parametersOf(p), time.Now()
	if !s.params.EnableCaching {
		s.cache = nil
	} else if s.cache == nil {
		s.cache = newCache()
	}
	if !s.params.EnablePerformanceMonitoring {
		s.latencies = nil
	} else if s.latencies == nil {
		s.latencies = new(latencies)
	}
	s.sequence++
	id := wish.snapshotID
	if !snapshotID.MatchString(id) {
		id = fmt.Sprintf("snapshot_%d_%04d", s.since.Unix(), s.sequence)
	}
	wish.description, wish.revision = clip(wish.description), clip(wish.revision)
	kept := s.snapshots[max(0, len(s.snapshots)+1-maxSnapshots):]
	s.snapshots = append(slices.Clone(kept), Snapshot{
		SnapshotID: id, Timestamp: unixSeconds(s.since), Description: wish.description,
		Environment: s.environment, ConfigData: p, Revision: wish.revision,
	})
	return &s
}

// clip bounds what a snapshot keeps of a text that a client sent.
func clip(text string) string {
	const most = 200
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") // a rune may be cut
	}
	return strings.Clone(text)
}

// active is the snapshot that runs.
func (s *state) active() *Snapshot { return &s.snapshots[len(s.snapshots)-1] }

// snapshot finds the newest snapshot of that id; "" is the one before the
// active one.
func (s *state) snapshot(id string) (Snapshot, bool) {
	if id == "" && len(s.snapshots) > 1 {
		return s.snapshots[len(s.snapshots)-2], true
	}
	for _, snapshot := range slices.Backward(s.snapshots) {
		if snapshot.SnapshotID == id {
			return snapshot, true
		}
	}
	return Snapshot{}, false
}
