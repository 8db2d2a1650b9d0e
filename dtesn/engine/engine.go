package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dtesn-agent/dtesn"
	"dtesn-agent/schema"
)

const (
	// DefaultMemoryLimit lets the largest network follow the largest network.
	DefaultMemoryLimit = 512 << 20

	maxSnapshots = 50
	// fixedBytes are accounted whatever runs: one training, the cache, figures
	// and history.
	fixedBytes = trainingBytes + cacheBytes + 64<<10
	// drainTime is how long a change that does not fit waits for requests on
	// networks that were swapped out.
	drainTime = 5 * time.Second
)

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

	changing sync.Mutex // one change at a time
	retired  []*life    // swapped out and perhaps still in use; under changing
}

// A state is all that requests see. It is immutable but for what says
// otherwise, and swapped whole.
type state struct {
	params      schema.Parameters
	environment string
	network     *network
	generation  uint64
	since       time.Time
	cache       *cache     // nil while caching is off; has its own lock
	latencies   *latencies // nil while monitoring is off; atomic
	snapshots   []dtesn.Snapshot
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
	label := "development"
	if options.Environment != "" {
		environment, err := schema.ParseEnvironment(options.Environment)
		if err != nil {
			return nil, fmt.Errorf("start the engine: %w", err)
		}
		label, e.pinned = string(environment), true
	}
	params := schema.Defaults()
	if need := fixedBytes + footprint(params); need > e.limit {
		return nil, fmt.Errorf("start the engine: its defaults take %s, the memory limit is %s: raise --memory-limit", mebibytes(need), mebibytes(e.limit))
	}
	first := &state{environment: label, network: build(params, e.seed), generation: 1}
	e.held.Store(first.network.bytes)
	e.current.Store(first.follow(params, change{description: "Start with the defaults"}))
	return e, nil
}

// A change is a wish: values to lay over what runs, and its story.
type change struct {
	values                            map[string]any
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
	params, reasons := overlay(before.params, wish.values)
	if reasons != nil {
		return before, nil, reasons, nil
	}
	built := *before
	if reinitialized(before.params, params) != nil {
		if built.network, reasons = e.rebuild(ctx, before.network, params); reasons != nil {
			e.log.Warn("change refused", "reason", reasons[0])
			return before, nil, reasons, nil
		}
		built.generation++
		built.cache = nil
	}
	after = built.follow(params, wish)
	e.swap(before, after)
	e.log.Info("configuration changed", "snapshot", after.active().SnapshotID, "generation", after.generation,
		"changes", fmt.Sprint(params.Diff(before.params)))
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

// overlay lays values over p and judges the whole.
func overlay(p schema.Parameters, values map[string]any) (schema.Parameters, []string) {
	all := p.Map()
	maps.Copy(all, values)
	p, violations := schema.Check(all)
	var reasons []string
	for _, v := range violations {
		reasons = append(reasons, v.Message)
	}
	return p, reasons
}

// reinitialized lists the critical parameters that differ.
func reinitialized(old, p schema.Parameters) []string {
	var names []string
	for _, c := range p.Diff(old) {
		if c.Critical {
			names = append(names, c.Parameter)
		}
	}
	return names
}

// rebuild builds the network for p beside the one that runs.
func (e *Engine) rebuild(ctx context.Context, old *network, p schema.Parameters) (*network, []string) {
	need := footprint(p)
	if !e.reserve(need) {
		held := fixedBytes + e.held.Load()
		return nil, []string{fmt.Sprintf(
			"esn_reservoir_size %d needs %s beside the %s in use while it is built, %s together; the memory limit is %s",
			p.ESNReservoirSize, mebibytes(need), mebibytes(held), mebibytes(need+held), mebibytes(e.limit))}
	}
	n := build(p, e.seed)
	if old.used.Load() {
		if err := n.prepare(ctx); err != nil {
			e.held.Add(-need)
			return nil, []string{"the client left while the readout was trained"}
		}
	}
	return n, nil
}

// reserve accounts for need bytes, if they fit. Requests that still run on
// networks swapped out before are waited for, for a while, if that helps.
func (e *Engine) reserve(need int64) bool {
	timer := time.NewTimer(drainTime)
	defer timer.Stop()
	for {
		waited := e.sweep()
		free := e.limit - fixedBytes - e.held.Load()
		if need <= free {
			e.held.Add(need)
			return true
		}
		if need > free+waited {
			return false
		}
		select {
		case <-e.retired[0].drained:
		case <-timer.C:
			return false
		}
	}
}

// sweep forgets the networks that nobody uses any more, and says how many
// bytes the others will give back.
func (e *Engine) sweep() (waited int64) {
	e.retired = slices.DeleteFunc(e.retired, func(l *life) bool {
		select {
		case <-l.drained:
			return true
		default:
			waited += l.bytes
			return false
		}
	})
	return waited
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
	s.params, s.since = p, time.Now()
	if !p.EnableCaching {
		s.cache = nil
	} else if s.cache == nil {
		s.cache = newCache()
	}
	if !p.EnablePerformanceMonitoring {
		s.latencies = nil
	} else if s.latencies == nil {
		s.latencies = new(latencies)
	}
	s.sequence++
	id := wish.snapshotID
	if !snapshotID.MatchString(id) {
		id = fmt.Sprintf("snapshot_%d_%04d", s.since.Unix(), s.sequence)
	}
	kept := s.snapshots[max(0, len(s.snapshots)+1-maxSnapshots):]
	s.snapshots = append(slices.Clone(kept), dtesn.Snapshot{
		SnapshotID: id, Timestamp: schema.Unix(s.since), Description: wish.description,
		Environment: s.environment, ConfigData: p, Revision: wish.revision,
	})
	return &s
}

// active is the snapshot that runs.
func (s *state) active() *dtesn.Snapshot { return &s.snapshots[len(s.snapshots)-1] }

// snapshot finds the newest snapshot of that id; "" is the one before the
// active one.
func (s *state) snapshot(id string) (dtesn.Snapshot, bool) {
	if id == "" && len(s.snapshots) > 1 {
		return s.snapshots[len(s.snapshots)-2], true
	}
	for _, snapshot := range slices.Backward(s.snapshots) {
		if snapshot.SnapshotID == id {
			return snapshot, true
		}
	}
	return dtesn.Snapshot{}, false
}

func mebibytes(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
