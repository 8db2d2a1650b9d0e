// Package policy judges changes by the operators' policy, which is CUE. Evaluating CUE may
// never end and cannot be cancelled. So a child process does it: this program, run with a
// hidden command, with limits on its time, memory and output.
//
// The child loads the policy and then waits for changes, because starting one takes longer
// than judging. It reads no files: the Evaluator reads the directory and sends the files.
// When the child ends, the next change starts another one.
package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

// Timeouts of the child.
const (
	loadTime  = 5 * time.Second // to start, and to run the cases
	judgeTime = 2 * time.Second // to judge a change
)

// Options are the options of New. Changed and Logger are for Run.
type Options struct {
	Dir    string
	Schema *schema.Schema
	// Watched returns the directories that may not contain a file of the policy; nil for
	// none.
	Watched func() []string
	// Changed is called by Run when the policy changed, or cannot be used any more.
	Changed func()
	Logger  *slog.Logger
}

// An Evaluator judges changes by the policy in a directory. It is safe for concurrent use.
type Evaluator struct {
	opt    Options
	status atomic.Pointer[apply.PolicyStatus]

	turn   chan struct{} // a lock with a timeout: it holds a token while nobody uses what follows
	source schema.PolicySource
	err    error  // of the policy itself, so that it stays until the files change
	child  *child // that loaded the policy, nil if none runs
	loaded Loaded
	seen   string // signature of the directory when it was read, "" before
}

// Loaded describes a policy that was loaded; its fields are those of schema.Policy.
type Loaded struct {
	Cases      int  `json:"cases"`
	UsesSigner bool `json:"uses_signer"`
}

// New returns an Evaluator. Run, Load or Judge read the directory.
func New(opt Options) *Evaluator {
	if opt.Watched == nil {
		opt.Watched = func() []string { return nil }
	}
	e := &Evaluator{opt: opt, turn: make(chan struct{}, 1)}
	e.turn <- struct{}{}
	e.status.Store(&apply.PolicyStatus{Directory: opt.Dir})
	return e
}

// Status returns the policy in force, or why it cannot be used.
func (e *Evaluator) Status() apply.PolicyStatus { return *e.status.Load() }

// locked calls do while nobody else uses the child.
func (e *Evaluator) locked(ctx context.Context, do func() error) error {
	select {
	case <-e.turn:
		defer func() { e.turn <- struct{}{} }()
		return do()
	case <-ctx.Done():
		return problem.New("judge by the policy", errors.New("it is busy with another change"), "see what the policy computes")
	}
}

// Load reads the directory and loads the policy.
func (e *Evaluator) Load(ctx context.Context) (loaded Loaded, err error) {
	err = e.locked(ctx, func() error {
		e.read()
		err := e.ensure(ctx)
		loaded = e.loaded
		return err
	})
	return loaded, err
}

// read stops the child and reads the directory.
func (e *Evaluator) read() {
	e.stop()
	e.seen, e.loaded = signature(e.opt.Dir, e.opt.Watched()), Loaded{} // a later change is seen by hasChanged
	e.source = schema.PolicySource{Dir: e.opt.Dir, Parameters: e.opt.Schema.Names()}
	for _, env := range e.opt.Schema.Environments() {
		e.source.Environments = append(e.source.Environments, string(env))
	}
	e.source.Files, e.err = readFiles(e.opt.Dir, e.opt.Watched())
	e.publish(e.err)
}

// publish sets the status. err is why the policy cannot be used, or nil.
func (e *Evaluator) publish(err error) {
	s := apply.PolicyStatus{Directory: e.opt.Dir, Cases: e.loaded.Cases, Usable: e.child != nil && err == nil}
	if e.source.Files != nil {
		s.Digest = document.FilesRevision(e.source.Files)
	}
	if err != nil {
		s.Error, s.Hint = err.Error(), problem.Hint(err)
	}
	e.status.Store(&s)
}

// ensure starts a child, unless one is running, and makes it load the policy.
func (e *Evaluator) ensure(ctx context.Context) error {
	if e.seen == "" {
		e.read()
	}
	if e.err != nil || e.child != nil {
		return e.err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, loadTime, fmt.Errorf("not loaded within %s", loadTime))
	defer cancel()
	c, err := startChild()
	if err != nil {
		err = &problem.Error{Op: "start the evaluator of policy", Place: e.opt.Dir, Err: err, Hint: "let the agent's user run " + selfPath}
		e.publish(err)
		return err
	}
	e.child = c
	r, err := e.ask(ctx, request{Load: &e.source})
	if err == nil {
		e.loaded, err = r.Loaded, r.failure()
		e.err = err
	}
	if err != nil {
		e.stop()
	}
	e.publish(err)
	return err
}

// ask sends q to the child and returns its response. If there is none, it stops the child.
func (e *Evaluator) ask(ctx context.Context, q request) (response, error) {
	r, why := e.child.ask(ctx, q)
	if why == nil {
		return r, nil
	}
	e.stop()
	return r, &problem.Error{Op: "policy", Place: e.opt.Dir, Err: why, Hint: "simplify what the policy computes; until then every change is refused"}
}

// stop stops the child.
func (e *Evaluator) stop() {
	if e.child != nil {
		e.child.stop()
		e.child = nil
	}
}

// Judge returns the rules that deny a change. After an error it is unknown whether one does.
// It returns soon after ctx ends.
func (e *Evaluator) Judge(ctx context.Context, p schema.Proposal) (denied []schema.Denial, err error) {
	err = e.locked(ctx, func() error {
		isRunning := e.child != nil
		r, isLate, err := e.judgeOnce(ctx, p)
		if err != nil && isRunning && !isLate { // the child may have been killed while it waited
			r, _, err = e.judgeOnce(ctx, p)
		}
		if err != nil {
			return err
		}
		denied = r.Denied
		return r.failure()
	})
	return denied, err
}

// judgeOnce asks the child, and reports whether it took too long.
func (e *Evaluator) judgeOnce(ctx context.Context, p schema.Proposal) (r response, isLate bool, err error) {
	if err := e.ensure(ctx); err != nil {
		return r, false, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, judgeTime, fmt.Errorf("not evaluated within %s", judgeTime))
	defer cancel()
	r, err = e.ask(ctx, request{Judge: &p})
	return r, ctx.Err() != nil, err
}

// Close stops the child.
func (e *Evaluator) Close() error {
	return e.locked(context.Background(), func() error { e.stop(); return nil })
}

const (
	pollInterval = time.Second
	settleTime   = 50 * time.Millisecond // the files are read after they did not change for this long
)

// Run reloads the policy when its directory changes, until ctx ends. It then stops the child.
func (e *Evaluator) Run(ctx context.Context) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for announced := (apply.PolicyStatus{}); ; {
		if e.hasChanged(ctx) {
			_, _ = e.Load(ctx) // which publishes the error
		}
		if now := e.Status(); ctx.Err() == nil && (now.Digest != announced.Digest || now.Error != announced.Error) {
			announced = now
			e.announce(now)
		}
		select {
		case <-ctx.Done():
			return e.Close()
		case <-ticker.C:
		}
	}
}

// hasChanged reports whether the directory changed since it was read. If it did, it waits
// until the files settle.
func (e *Evaluator) hasChanged(ctx context.Context) bool {
	seen := ""
	if e.locked(ctx, func() error { seen = e.seen; return nil }) != nil {
		return false
	}
	now := signature(e.opt.Dir, e.opt.Watched())
	return now != seen && e.settle(ctx, now)
}

// settle waits until the signature of the directory, which is now, stays the same. It
// reports false if ctx ends before.
func (e *Evaluator) settle(ctx context.Context, now string) bool {
	for before := ""; before != now; before, now = now, signature(e.opt.Dir, e.opt.Watched()) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(settleTime):
		}
	}
	return true
}

// announce logs a new status and calls Changed.
func (e *Evaluator) announce(s apply.PolicyStatus) {
	if s.Error != "" {
		e.opt.Logger.Error("policy cannot be used", "directory", e.opt.Dir, "error", s.Error, "hint", s.Hint, "effect", "every change is refused")
	} else {
		e.opt.Logger.Info("policy loaded", "directory", e.opt.Dir, "digest", s.Digest, "cases", s.Cases)
	}
	e.opt.Changed()
}
