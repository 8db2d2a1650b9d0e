// Package policy judges changes by the operators' policy, which is CUE. CUE may compute
// without end and cannot be stopped, so that it is evaluated in a child process: this
// program, run with a hidden command, bounded in time, memory and output.
//
// The child has loaded the policy and waits for the next change, for to start one takes
// longer than all else. It reads no file: the Evaluator reads the directory and
// sends what it read. A child that ends is replaced at the next change.
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

// How long the child may take.
const (
	loadTime  = 5 * time.Second // to start, and to run the cases
	judgeTime = 2 * time.Second // to judge a change
)

// Options are what an Evaluator is made of.
type Options struct {
	Dir    string
	Schema *schema.Schema
	// Watched are directories that no file of the policy may be in.
	Watched []string
	// Changed is called by Run when another policy is in force.
	Changed func()
	Logger  *slog.Logger
}

// An Evaluator judges changes by the policy in a directory. Its methods are safe from any
// goroutine.
type Evaluator struct {
	opt    Options
	turn   chan struct{} // holds one token for whoever uses what follows
	source schema.PolicySource
	err    error // why the policy cannot be used, until its files change
	child  *child
	loaded Loaded

	seen   string // signature of the directory when it was read, "" before
	status atomic.Pointer[apply.PolicyStatus]
}

// Loaded is what is known of a policy that can be used.
type Loaded struct {
	Cases      int  `json:"cases"`
	UsesSigner bool `json:"uses_signer"`
}

// New returns an Evaluator, which reads nothing before Run, Load or Judge.
func New(opt Options) *Evaluator {
	e := &Evaluator{opt: opt, turn: make(chan struct{}, 1)}
	e.turn <- struct{}{}
	e.status.Store(&apply.PolicyStatus{Directory: opt.Dir})
	return e
}

// Status returns the policy in force, and why it cannot be used.
func (e *Evaluator) Status() apply.PolicyStatus { return *e.status.Load() }

// locked calls do once nobody else uses the child.
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

// read reads the directory. What was in force before is not used any more.
func (e *Evaluator) read() {
	e.stop()
	e.seen, e.loaded = signature(e.opt.Dir), Loaded{} // what changes from here on is seen later
	e.source = schema.PolicySource{Dir: e.opt.Dir, Parameters: e.opt.Schema.Names()}
	for _, env := range e.opt.Schema.Environments() {
		e.source.Environments = append(e.source.Environments, string(env))
	}
	e.source.Files, e.err = readFiles(e.opt.Dir, e.opt.Watched)
	e.note(e.err)
}

// note publishes whether the policy can be used.
func (e *Evaluator) note(err error) {
	s := apply.PolicyStatus{Directory: e.opt.Dir, Cases: e.loaded.Cases, Usable: e.child != nil && err == nil}
	if e.source.Files != nil {
		s.Digest = document.FilesRevision(e.source.Files)
	}
	if err != nil {
		s.Error, s.Hint = err.Error(), problem.Hint(err)
	}
	e.status.Store(&s)
}

// ensure has a child that loaded the policy.
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
		e.note(err)
		return err
	}
	e.child = c
	r, err := e.ask(ctx, request{Load: &e.source})
	if err == nil {
		e.loaded, err = r.Loaded, r.failure()
		e.err = err // the policy's own fault, until it changes
	}
	if err != nil {
		e.stop()
	}
	e.note(err)
	return err
}

// ask has the child respond. One that does not is ended.
func (e *Evaluator) ask(ctx context.Context, q request) (response, error) {
	r, why := e.child.ask(ctx, q)
	if why == nil {
		return r, nil
	}
	e.stop()
	return r, &problem.Error{Op: "policy", Place: e.opt.Dir, Err: why, Hint: "simplify what the policy computes; until then every change is refused"}
}

// stop ends the child.
func (e *Evaluator) stop() {
	if e.child != nil {
		e.child.stop()
		e.child = nil
	}
}

// Judge returns the rules that deny a change. With an error that is unknown. It returns
// soon after ctx ends.
func (e *Evaluator) Judge(ctx context.Context, p schema.Proposal) (denied []schema.Denial, err error) {
	err = e.locked(ctx, func() error {
		var r response
		wasWarm := e.child != nil
		for range 2 { // a child that was ended meanwhile, by whomever, says nothing of the policy
			if err := e.ensure(ctx); err != nil {
				return err
			}
			call, cancel := context.WithTimeoutCause(ctx, judgeTime, fmt.Errorf("not evaluated within %s", judgeTime))
			r, err = e.ask(call, request{Judge: &p})
			isLate := call.Err() != nil
			cancel()
			if err == nil || isLate || !wasWarm {
				break
			}
			wasWarm = false
		}
		if err != nil {
			return err
		}
		denied = r.Denied
		return r.failure()
	})
	return denied, err
}

// Close ends the child.
func (e *Evaluator) Close() error {
	return e.locked(context.Background(), func() error { e.stop(); return nil })
}

const (
	lookEvery = time.Second
	quiet     = 50 * time.Millisecond // files must not have changed for, before they are read
)

// Run follows the directory until ctx ends.
func (e *Evaluator) Run(ctx context.Context) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for told := (apply.PolicyStatus{}); ; {
		if e.isOther(ctx) {
			_, _ = e.Load(ctx) // the status has the error
		}
		if now := e.Status(); ctx.Err() == nil && (now.Digest != told.Digest || now.Error != told.Error) {
			told = now
			e.tell(now)
		}
		select {
		case <-ctx.Done():
			return e.Close()
		case <-ticker.C:
		}
	}
}

// isOther reports whether the directory is another one than was read, once it is quiet.
func (e *Evaluator) isOther(ctx context.Context) bool {
	seen := ""
	if e.locked(ctx, func() error { seen = e.seen; return nil }) != nil {
		return false
	}
	now := signature(e.opt.Dir)
	if now == seen {
		return false
	}
	for before := ""; before != now; before, now = now, signature(e.opt.Dir) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(quiet):
		}
	}
	return true
}

// tell says that another policy is in force, or none.
func (e *Evaluator) tell(s apply.PolicyStatus) {
	if s.Error != "" {
		e.opt.Logger.Error("policy cannot be used", "directory", e.opt.Dir, "error", s.Error, "hint", s.Hint, "effect", "every change is refused")
	} else {
		e.opt.Logger.Info("policy loaded", "directory", e.opt.Dir, "digest", s.Digest, "cases", s.Cases)
	}
	e.opt.Changed()
}
