package cli

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/events"
	"dtesn-agent/cmd/agent/hooks"
	"dtesn-agent/cmd/agent/policy"
	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/dtesn"
	"dtesn-agent/dtesn/engine"
	"dtesn-agent/gitstore"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher"
)

// An agent is the wired parts of one `agent run`.
type agent struct {
	settings     *settings
	log          *slog.Logger
	store        *gitstore.Store
	reader       *gitstore.Reader // of what the web shows
	source       source
	location     string // of the source, for people
	client       *dtesn.Client
	reconciler   *apply.Reconciler
	events       *events.Log
	subscription *apply.Subscription // of the log of events
	hooks        *hooks.Set
	policy       *policy.Evaluator // nil without --policy
	hooksError   atomic.Pointer[error]
	unsigned     []string // names of hooks
	reloads      tally    // of the file of hooks
	reloaded     string   // how the last that was logged ended
	web          *status.Server
	access       *status.Access
	control      *control
	embedded     *engine.Engine
	socket       string
	repository   string
	url          string // of the HTTP endpoint
	foreignOwner bool
	once         *once
	notify       *notifier
	asked        tally // of reading now

	listener, healthListener, engineListener net.Listener
	enginePlace                              place
	closers                                  []func() error
}

// assemble takes everything an agent needs or says what is in the way: the
// state directory before all but files, for it is what two agents must not share.
func assemble(ctx context.Context, s *settings, logger *slog.Logger) (a *agent, err error) {
	a = &agent{settings: s, log: logger, notify: newNotifier(logger)}
	defer func() {
		if err != nil {
			a.close()
			a = nil
		}
	}()
	if a.access, err = status.OpenAccess(s.access, logger); err != nil {
		return a, err
	}
	if err := a.openStore(ctx); err != nil {
		return a, err
	}
	if err := a.openEngine(); err != nil {
		return a, err
	}
	metrics := status.NewMetrics(version(), s.rules)
	if s.dropped != nil {
		metrics.DroppedLines = s.dropped
	}
	kind, stale, err := a.openSource()
	if err != nil {
		return a, err
	}
	opt := apply.Options{
		Rules: s.rules, Instance: s.instance, AgentVersion: version(),
		Store: a.store, Engine: a.client, Metrics: metrics, Logger: logger,
		Source: a.source, SourceKind: kind, SourceLocation: a.location, SourceStale: stale, Socket: a.socket, StateDir: s.state, MaxSnapshots: s.maxSnapshots,
		Drift: apply.DriftMode(s.drift), DriftInterval: s.driftInterval, Probation: s.probation, Observe: s.observe,
	}
	if opt.Volatile = volatile(s.state); opt.Volatile != "" && !s.observe {
		logger.Warn("state directory is volatile", "directory", s.state, "reason", opt.Volatile, "hint", "holds and pauses end with it: put --state on a persistent volume")
	}
	if rec := a.store.Applied(); rec != nil {
		metrics.Restore(rec.Timestamp)
	}
	a.events = events.Open(ctx, events.Options{Dir: s.state, History: a.store, Told: hooks.Furthest(a.store.Fact), Holding: a.store.Holding, Logger: logger})
	metrics.DroppedEvents = a.events.Dropped
	a.hooks = hooks.New(hooks.Options{Events: a.events, Fact: a.store.Fact, Keep: func(name string, value []byte) { a.keep(ctx, name, value) }, Logger: logger})
	if err := a.loadHooks(); err != nil {
		return a, err
	}
	if s.hooks != "" {
		opt.Gate = a.hooks
	}
	if s.policy != "" {
		a.policy = policy.New(policy.Options{Dir: s.policy, Schema: s.rules.Schema(), Watched: s.watchedDirectories, Changed: func() { a.reconciler.PolicyChanged() }, Logger: logger})
		a.closers = append(a.closers, a.policy.Close)
		opt.Policy = a.policy
	}
	a.reconciler = apply.New(opt)
	if s.once {
		a.once = newOnce(s.onceTimeout, a.reconciler.Latest())
	}
	if a.reader, err = gitstore.OpenReader(s.state); err != nil {
		return a, err
	}
	a.subscription = a.reconciler.Subscribe(1024)
	a.web = status.New(status.Options{
		Hooks: a.hooks.Status, HookErrors: a.hookErrors, Source: a.reconciler, History: a.reader, Events: a.events, Rules: s.rules, Metrics: metrics, Loops: a.loops,
		Stuck: max(15*time.Second, s.engineTimeout+5*time.Second), Logger: logger, AllowedHosts: s.allowedHosts, Access: a.access, SourceURL: s.sourceURL,
	})
	return a, a.listen()
}

func (a *agent) openStore(ctx context.Context) error {
	s := a.settings
	store, _, err := gitstore.Open(ctx, gitstore.Options{
		Dir: s.state, Environment: s.rules.Environment(), Instance: s.instance,
		KeepSnapshots: s.keep, Logger: a.log, AgentVersion: version(),
	})
	if err != nil {
		return err
	}
	a.store = store
	a.closers = append(a.closers, store.Close)
	a.repository = filepath.Join(s.state, "snapshots.git")
	if info, err := os.Stat(a.repository); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			a.foreignOwner = int(st.Uid) != os.Geteuid()
		}
	}
	return nil
}

// keep keeps a fact: before the transaction runs, at once, for after a kill a hook would be
// new again, and not told what happened meanwhile.
func (a *agent) keep(ctx context.Context, name string, value []byte) {
	if a.reconciler != nil {
		a.reconciler.Keep(name, value)
	} else if err := a.store.SetFact(ctx, name, value); err != nil {
		a.log.Warn("a fact cannot be kept", "name", name, "error", err)
	}
}

// loadHooks reads the file of hooks. One with a mistake leaves in force what was read before.
func (a *agent) loadHooks() error {
	if a.settings.hooks == "" {
		return nil
	}
	list, err := hooks.Load(a.settings.hooks)
	for i := range list {
		if h := &list[i]; err == nil && a.settings.once && h.Required && h.Timeout >= a.settings.onceTimeout {
			err = usage("--once-timeout: %s leaves no time for the required hook %s, whose timeout is %s", a.settings.onceTimeout, h.Name, h.Timeout)
		}
	}
	a.hooksError.Store(&err)
	if err != nil {
		return err
	}
	a.hooks.Replace(list)
	var unsigned []string
	for _, h := range list {
		if h.URL != "" && h.SecretFile == "" {
			unsigned = append(unsigned, h.Name)
		}
	}
	if len(unsigned) > 0 && !slices.Equal(unsigned, a.unsigned) {
		a.log.Warn("hook requests are not signed", "hooks", strings.Join(unsigned, ","), "hint", "give each a secret_file, by which the receiver knows them")
	}
	a.unsigned = unsigned
	return nil
}

// reloadHooks reads the file of hooks again. A storm of the same is one line in the log each
// second.
func (a *agent) reloadHooks() {
	err := a.loadHooks()
	said := problem.Text(err)
	if n := a.reloads.count(time.Now()); a.settings.hooks == "" || n == 0 && said == a.reloaded {
		return
	}
	a.reloaded = said
	if err != nil {
		a.log.Error("hooks are as they were", "error", err, "hint", problem.Hint(err))
		return
	}
	var names []string
	for _, h := range a.hooks.Status() {
		names = append(names, h.Name)
	}
	a.log.Info("hooks read again", "hooks", strings.Join(names, ","))
}

// hookErrors returns what is wrong with the file of hooks.
func (a *agent) hookErrors() []error {
	if err := a.hooksError.Load(); err != nil && *err != nil {
		return []error{*err}
	}
	return nil
}

func (a *agent) openEngine() error {
	s := a.settings
	a.socket = s.engine
	if s.embedded {
		a.socket = filepath.Join(s.state, "engine.sock")
		// What it does the agent says already, and in the agent's words.
		e, err := engine.New(engine.Options{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		if err := a.listenEngine(); err != nil {
			return err
		}
		a.embedded = e
		a.closers = append(a.closers, func() error { return a.engineListener.Close() })
	}
	opt := dtesn.Options{Socket: a.socket, Rules: s.rules, Timeout: s.engineTimeout, ReadOnly: s.observe}
	if s.engineUID >= 0 {
		uid := uint32(s.engineUID)
		opt.UID = &uid
	}
	a.client = dtesn.New(opt)
	a.closers = append(a.closers, a.client.Close)
	return nil
}

// listen takes the addresses, so that one that is in use ends the start
// before the engine was touched.
func (a *agent) listen() (err error) {
	s := a.settings
	if a.control, err = newControl(filepath.Join(s.state, "agent.sock"), a); err != nil {
		return err
	}
	a.closers = append(a.closers, a.control.close)
	if a.listener, err = status.Listen("--listen", s.listen); err != nil {
		return err
	}
	a.closers = append(a.closers, a.listener.Close)
	addr := a.listener.Addr().String() // where localhost leads is for the host's files to say
	if err := s.access.Check(addr); err != nil {
		return err
	}
	a.listener = a.access.Listener(a.listener)
	a.url = "http://" + addr
	if a.access.HasTLS() {
		a.url = "https://" + addr
	}
	if s.healthListen != "" {
		if a.healthListener, err = status.Listen("--health-listen", s.healthListen); err != nil {
			return err
		}
		a.closers = append(a.closers, a.healthListener.Close)
	}
	return nil
}

// close gives back what assemble took; what its part has closed already may be
// closed twice.
func (a *agent) close() {
	for i := len(a.closers) - 1; i >= 0; i-- {
		if err := a.closers[i](); err != nil && !errors.Is(err, net.ErrClosed) {
			a.log.Warn("closing", "error", err)
		}
	}
	a.closers = nil
}

// sink is who hears the source.
func (a *agent) sink() watcher.Sink {
	if a.once != nil {
		return &onceSink{Sink: a.reconciler, once: a.once}
	}
	return a.reconciler
}

// stages are the parts in the order they stop: the sources first, then the
// transaction, which finishes what is in flight, then who tells about it, and
// the embedded engine last.
func (a *agent) stages(ctx context.Context) [][]part {
	begun := a.reconciler.Stamp() // before anything runs
	sources := []part{
		{"source", func(ctx context.Context) error { return a.source.Run(ctx, a.sink()) }},
		{"engine watch", func(ctx context.Context) error {
			return a.client.Watch(ctx, 200*time.Millisecond, func(bool) { a.reconciler.EngineHint() })
		}},
		{"signals", func(ctx context.Context) error { return a.signals(ctx, begun) }},
	}
	if a.once != nil {
		sources = append(sources, part{"once", func(ctx context.Context) error {
			err := a.once.wait(ctx)
			a.hooks.Settle(ctx)
			return err
		}})
	}
	transaction := []part{{"transaction", a.reconciler.Run}}
	tellers := []part{
		{"events", func(ctx context.Context) error { return a.events.Run(ctx, a.subscription, a.reader) }},
		{"hooks", a.hooks.Run},
		{"http", func(ctx context.Context) error { return a.web.Serve(ctx, a.listener, a.web.Handler()) }},
		{"control", a.control.serve},
	}
	if a.healthListener != nil {
		tellers = append(tellers, part{"health", func(ctx context.Context) error {
			return a.web.Serve(ctx, a.healthListener, a.web.HealthHandler())
		}})
	}
	if a.policy != nil { // the transaction asks it until its end
		tellers = append(tellers, part{"policy", a.policy.Run})
	}
	stages := [][]part{sources, transaction, tellers}
	if a.embedded != nil {
		stages = append(stages, []part{{"engine", a.serveEngine}})
	}
	return stages
}

// sync reads the source and the engine now. Requests that come in a storm are
// one reading, and one line in the log each second.
func (a *agent) sync() {
	switch n := a.asked.count(time.Now()); n {
	case 0:
	case 1:
		a.log.Info("the source and the engine are read on request")
	default:
		a.log.Info("the source and the engine are read on request", "times", n)
	}
	a.source.Sync()
	a.reconciler.Sync()
}

// A tally counts what may come in a storm, for a log.
type tally struct {
	mu     sync.Mutex
	untold int
	told   time.Time
}

// count counts one more. It returns how many there are to tell of, 0 if a second
// has not passed since the last time.
func (t *tally) count(now time.Time) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.untold++
	if !t.told.IsZero() && now.Sub(t.told) < time.Second {
		return 0
	}
	n, t.untold, t.told = t.untold, 0, now
	return n
}

// loops are the loops that must turn for the agent to live.
func (a *agent) loops() map[string]time.Time {
	return map[string]time.Time{"transaction": a.reconciler.Stamp(), "source": a.source.Stamp()}
}
