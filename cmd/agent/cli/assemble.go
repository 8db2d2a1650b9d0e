package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/dtesn"
	"dtesn-agent/dtesn/engine"
	"dtesn-agent/gitstore"
	"dtesn-agent/schema"
	"dtesn-agent/watcher"
)

// An agent is the wired parts of one `agent run`.
type agent struct {
	settings     *settings
	log          *slog.Logger
	store        *gitstore.Store
	files        *watcher.Files
	client       *dtesn.Client
	reconciler   *apply.Reconciler
	web          *status.Server
	control      *control
	embedded     *engine.Engine
	socket       string
	repository   string
	httpAddr     string
	foreignOwner bool
	once         *once

	listener, healthListener, engineListener net.Listener
	closers                                  []func() error
}

// assemble takes everything an agent needs or says what is in the way: the
// state directory first, for it is what two agents must not share.
func assemble(ctx context.Context, s *settings, logger *slog.Logger) (a *agent, err error) {
	a = &agent{settings: s, log: logger}
	defer func() {
		if err != nil {
			a.close()
			a = nil
		}
	}()
	env := schema.Environment(s.environment)
	if err := a.openStore(ctx, env); err != nil {
		return a, err
	}
	if err := a.openEngine(env); err != nil {
		return a, err
	}
	metrics := status.NewMetrics(version(), env)
	a.files = watcher.NewFiles(watcher.FilesOptions{
		Root: s.config, Environment: env, Settle: s.settle, Resync: s.resync, Logger: logger,
		OnRead: func() { a.reconciler.SourceRead() },
	})
	opt := apply.Options{
		Environment: env, Instance: s.instance, AgentVersion: version(),
		Store: a.store, Engine: a.client, Metrics: metrics, Logger: logger,
		Source:      apply.SourceStatus{Kind: "file", Location: s.config},
		ReadSource:  a.files.Status,
		SourceStale: 3 * s.resync, Socket: a.socket, StateDir: s.state, MaxSnapshots: s.maxSnapshots,
		Drift: apply.DriftMode(s.drift), DriftInterval: s.driftInterval, Observe: s.observe,
	}
	if s.once {
		a.once = newOnce()
		opt.OnStatus = a.once.status
	}
	a.reconciler = apply.New(opt)
	reader, err := gitstore.OpenReader(s.state)
	if err != nil {
		return a, err
	}
	a.web = status.New(status.Options{
		Source: a.reconciler, History: reader, Metrics: metrics, Loops: a.loops,
		Stuck: max(15*time.Second, s.engineTimeout+5*time.Second), Logger: logger,
	})
	return a, a.listen()
}

func (a *agent) openStore(ctx context.Context, env schema.Environment) error {
	s := a.settings
	store, repairs, err := gitstore.Open(ctx, gitstore.Options{
		Dir: s.state, Environment: env, Instance: s.instance, MaxSnapshots: s.maxSnapshots,
		Logger: a.log, AgentVersion: version(),
	})
	if err != nil {
		return fault(err, "")
	}
	a.store = store
	a.closers = append(a.closers, store.Close)
	for _, r := range repairs {
		a.log.Warn("repaired the snapshot repository", "what", r.String())
	}
	a.repository = filepath.Join(s.state, "snapshots.git")
	if info, err := os.Stat(a.repository); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			a.foreignOwner = int(st.Uid) != os.Geteuid()
		}
	}
	return nil
}

func (a *agent) openEngine(env schema.Environment) error {
	s := a.settings
	a.socket = s.engine
	if s.embedded {
		a.socket = filepath.Join(s.state, "engine.sock")
		// What it does the agent says already, and in the agent's words.
		e, err := engine.New(engine.Options{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return fault(err, "")
		}
		if a.engineListener, err = engine.Listen(a.socket); err != nil {
			return fault(err, "")
		}
		a.embedded = e
		a.closers = append(a.closers, a.engineListener.Close)
	}
	a.client = dtesn.New(dtesn.Options{Socket: a.socket, Environment: env, Timeout: s.engineTimeout, ReadOnly: s.observe})
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
	a.closers = append(a.closers, a.control.listener.Close)
	if a.listener, err = status.Listen(s.listen, true); err != nil {
		return err
	}
	a.closers = append(a.closers, a.listener.Close)
	a.httpAddr = a.listener.Addr().String()
	if s.healthListen != "" {
		if a.healthListener, err = status.Listen(s.healthListen, false); err != nil {
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

// stages are the parts in the order they stop: the sources first, then the
// transaction, which finishes what is in flight, then who tells about it, and
// the embedded engine last.
func (a *agent) stages(ctx context.Context) [][]part {
	sources := []part{
		{"files", func(ctx context.Context) error { return a.files.Run(ctx, a.reconciler) }},
		{"engine watch", func(ctx context.Context) error {
			return a.client.Watch(ctx, 200*time.Millisecond, func(bool) { a.reconciler.EngineHint() })
		}},
		{"signals", a.hangups},
	}
	if a.once != nil {
		sources = append(sources, part{"once", a.once.wait})
	}
	transaction := []part{{"transaction", a.reconciler.Run}}
	tellers := []part{
		{"http", func(ctx context.Context) error { return a.web.Serve(ctx, a.listener, a.web.Handler()) }},
		{"control", a.control.serve},
	}
	if a.healthListener != nil {
		tellers = append(tellers, part{"health", func(ctx context.Context) error {
			return a.web.Serve(ctx, a.healthListener, a.web.HealthHandler())
		}})
	}
	stages := [][]part{sources, transaction, tellers}
	if a.embedded != nil {
		stages = append(stages, []part{{"engine", func(ctx context.Context) error { return a.embedded.Serve(ctx, a.engineListener) }}})
	}
	return stages
}

// hangups reads the source at each SIGHUP.
func (a *agent) hangups(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			a.sync()
		}
	}
}

// sync reads the source and the engine now.
func (a *agent) sync() {
	a.log.Info("the source and the engine are read on request")
	a.files.Sync()
	a.reconciler.EngineHint()
}

// loops are the loops that must turn for the agent to live.
func (a *agent) loops() map[string]time.Time {
	return map[string]time.Time{"transaction": a.reconciler.Stamp(), "files": a.files.Stamp()}
}

// once ends `agent run --once` when the Document it saw has an outcome.
type once struct {
	over    chan struct{}
	outcome schema.Outcome
	reason  string
	by      string // who holds it
}

func newOnce() *once { return &once{over: make(chan struct{})} }

// status looks for a final outcome; it is called on one goroutine.
func (o *once) status(s *apply.Status) {
	if o.outcome == "" && s.Seen.Revision == "" && s.Source.LastError != "" {
		o.outcome, o.reason = "unreadable", s.Source.LastError
		close(o.over)
	}
	a := s.Attempted
	if o.outcome != "" || a == nil || a.Outcome == schema.Pending || a.Revision != s.Seen.Revision {
		return
	}
	if (a.Outcome == schema.Applied || a.Outcome == schema.Unchanged) && !s.InSync {
		return
	}
	o.outcome, o.reason = a.Outcome, a.Reason
	if s.Held != nil && !s.Held.Paused {
		o.by = s.Held.By
	}
	close(o.over)
}

func (o *once) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-o.over:
	}
	return nil
}

func (o *once) result() error {
	select {
	case <-o.over:
	default:
		return fault(errors.New("stopped before the configuration had an outcome"), "the log above says what it waited for")
	}
	err := fmt.Errorf("%s: %s", o.outcome, o.reason)
	switch o.outcome {
	case schema.Applied, schema.Unchanged:
		return nil
	case schema.Invalid:
		return &failure{code: exitInvalid, err: err}
	case schema.Rejected:
		return &failure{code: exitRejected, err: err}
	case schema.Held:
		code := exitFault
		if o.by == "engine" {
			code = exitRejected
		}
		return &failure{code: code, err: err, hint: "declare other parameters; or run the agent without --once and use agent resume"}
	}
	return fault(err, "")
}
