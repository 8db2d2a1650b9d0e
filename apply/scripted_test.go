package apply_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/schema"
)

// A manner is how the engine treats a batch.
type manner string

const (
	accept     manner = "accept"
	refuse     manner = "refuse"
	callback   manner = "refuse it and run it all the same"
	lie        manner = "accept and do nothing"
	partly     manner = "accept and take a part"
	hangBefore manner = "hang, and do nothing"
	hangAfter  manner = "hang after taking it"
	dropBefore manner = "drop the connection"
	dropAfter  manner = "take it and drop the reply"
	die        manner = "die"
	dieAWhile  manner = "die, and be up again after a while"
	busy       manner = "answer 500"
	foreign    manner = "be another program"
	wrongLabel manner = "refuse our environment"
	notSent    manner = "answer 503 to our environment"
	blame      manner = "refuse for a parameter that was not sent"
	refuseAll  manner = "refuse without a name"
	build      manner = "build for 24 s, longer than the timeout"
	buildFails manner = "build for 24 s, and fail"
	buildLater manner = "accept, and build for 24 s"
)

// scripted is an engine that treats batches as told: first the queue, then by
// Parameters, then it accepts. It fails the test on a batch that must not be.
type scripted struct {
	t          tester
	m          *mishaps
	store      faulty // of the process that runs now
	mu         sync.Mutex
	runs       schema.Parameters
	peer       int32
	down       bool
	hung       bool              // readings get no answer
	ill        string            // why it is not healthy
	slowHealth time.Duration     // how long a health read takes
	illOn      schema.Parameters // it is not healthy on these
	label      string            // what somebody else labels it again and again
	reads      int
	// asserting: an assert was accepted, and the read-back is owed.
	asserting bool
	// What happens just before a reading, by its number.
	later     map[int]schema.Parameters
	restartAt int
	queue     []manner
	workers   []schema.Parameters // what each of several engines runs, in turn
	always    map[schema.Digest]manner
	sends     map[schema.Digest]int
	tries     map[schema.Digest]int // what did not get there included
	banned    []schema.Parameters   // no batch may have all values of one
	batches   []schema.Parameters   // that reached it, oldest first
	// defaults are what it has and begins with. It knows no other parameters.
	defaults schema.Parameters
	// nulls are parameters that it has besides, and begins without a value of;
	// mistyped is what it reports of those that it has of another type.
	nulls    []string
	mistyped map[string]string
	// bounds is what its own schema says; asked counts who wanted to know.
	bounds    map[string]api.Bounds
	boundsErr error
	asked     int
	onAsk     func() // just before it answers
	building  *api.Building
	limited   time.Time // until then it asks to wait
}

func (e *scripted) Read(ctx context.Context) (r api.Reading, err error) {
	call := "read"
	e.tell(func(e *scripted) {
		if e.asserting { // what the last batch did is asked
			call, e.asserting = "assert read", false
		}
	})
	err = e.m.around(call, func() error {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.hung {
			e.mu.Unlock()
			defer e.mu.Lock()
			return hang(ctx)
		}
		e.reads++
		if p, ok := e.later[e.reads]; ok {
			e.runs = p
		}
		if e.reads == e.restartAt {
			e.restart()
		}
		if e.down {
			return fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
		}
		if err := e.asksToWait(); err != nil {
			return err
		}
		if len(e.workers) > 0 { // one connection, one worker
			e.runs, e.workers = e.workers[0], append(e.workers[1:], e.workers[0])
		}
		r = api.Reading{Parameters: e.runs, Unset: e.unset(), Mistyped: e.mistyped, Environment: string(production), Relabelled: e.label, Building: e.building, Peer: api.Peer{PID: e.peer}}
		return nil
	}, func() error { return hang(ctx) })
	return r, err
}

// unset lists the parameters that it has no value of now.
func (e *scripted) unset() []string {
	return slices.DeleteFunc(slices.Clone(e.nulls), func(name string) bool { return !e.runs.Get(name).IsZero() })
}

func (e *scripted) Prepare() {}

// Health follows mishaps, a hung and a down engine as Read does.
func (e *scripted) Health(ctx context.Context) (h api.Health, err error) {
	var slow time.Duration
	e.tell(func(e *scripted) { slow = e.slowHealth })
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return h, context.Cause(ctx)
	}
	err = e.m.around("health", func() error {
		e.mu.Lock()
		defer e.mu.Unlock()
		h.Peer = api.Peer{PID: e.peer}
		switch {
		case e.hung:
			e.mu.Unlock()
			defer e.mu.Lock()
			return hang(ctx)
		case e.down:
			return fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
		case e.ill == "404":
			return &api.ForeignError{Reason: "HTTP 404"}
		case e.asksToWait() != nil:
			return e.asksToWait()
		}
		h.Healthy, h.Reason = e.ill == "", e.ill
		if e.illOn.Len() > 0 && e.runs.Equal(e.illOn) {
			h = api.Health{Reason: "memory", Peer: h.Peer}
		}
		return nil
	}, func() error { return hang(ctx) })
	return h, err
}

// hang is an operation that gets no answer within the engine timeout.
func hang(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	<-ctx.Done()
	return context.Cause(ctx)
}

func (e *scripted) Send(ctx context.Context, b api.Batch) (a api.Answer) {
	call := "send"
	head, applied := e.store.Head(), e.store.Applied()
	if head.Commit != b.Revision || !head.Kind.Candidate() || (applied != nil && applied.Commit == head.Commit) {
		call = "assert send"
	}
	err := e.m.around(call, func() error { a = e.take(b); return nil }, func() error { return hang(ctx) })
	e.tell(func(e *scripted) { e.asserting = call == "assert send" && a.Verdict == api.VerdictAccepted })
	if err != nil {
		a = api.Answer{Verdict: api.VerdictUnknown, Err: err, Peer: api.Peer{PID: e.peer}}
	}
	if errors.Is(a.Err, context.DeadlineExceeded) {
		a.Err = hang(ctx)
	}
	return a
}

func (e *scripted) take(b api.Batch) api.Answer {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.down {
		return api.Answer{Verdict: api.VerdictNotSent, Err: fmt.Errorf("dial: %w", syscall.ECONNREFUSED)}
	}
	head, applied := e.store.Head(), e.store.Applied()
	if head.Commit != b.Revision && (applied == nil || applied.Commit != b.Revision) {
		e.t.Errorf("a batch was sent that no record names: %+v", b)
	}
	if slices.ContainsFunc(e.banned, b.Parameters.Contains) {
		e.t.Errorf("Parameters were sent that must not be: %+v", b)
	}
	for _, name := range b.Parameters.Names() {
		if e.defaults.Get(name).IsZero() && !slices.Contains(e.nulls, name) {
			e.t.Errorf("%s was sent to an engine that does not have it: %+v", name, b)
		}
	}
	how := accept
	if m, ok := e.always[b.Parameters.Digest()]; ok {
		how = m
	} else if len(e.queue) > 0 {
		how, e.queue = e.queue[0], e.queue[1:]
	}
	peer := api.Peer{PID: e.peer}
	unknown := func(err error, broken bool) api.Answer {
		return api.Answer{Verdict: api.VerdictUnknown, Err: err, Broken: broken, Peer: peer}
	}
	e.batches = append(e.batches, b.Parameters)
	e.tries[b.Parameters.Digest()]++
	if how != foreign && how != wrongLabel && how != notSent {
		e.sends[b.Parameters.Digest()]++
	}
	switch how {
	case accept:
		e.runs = merged(e.runs, b.Parameters)
	case partly:
		e.runs = e.runs.With(reservoir, b.Parameters.Get(reservoir)).With("cache_ttl_seconds", schema.Int(86400))
	case refuse:
		return api.Answer{Verdict: api.VerdictRejected, Errors: []string{reservoir + ": it does not fit"}, Peer: peer}
	case callback:
		e.runs = merged(e.runs, b.Parameters)
		return api.Answer{Verdict: api.VerdictRejected, Errors: []string{reservoir + ": a callback failed"}, Peer: peer}
	case blame:
		return api.Answer{Verdict: api.VerdictRejected, Errors: []string{"Unknown parameter: allowed_origins"}, Blamed: "allowed_origins", Peer: peer}
	case refuseAll:
		return api.Answer{Verdict: api.VerdictRejected, Errors: []string{"no"}, Peer: peer}
	case build, buildFails, buildLater:
		e.building = &api.Building{Revision: b.Revision, Since: time.Now()}
		time.AfterFunc(24*time.Second, func() {
			e.tell(func(e *scripted) {
				if e.building = nil; how != buildFails {
					e.runs = merged(e.runs, b.Parameters)
				}
			})
		})
		if how == buildLater {
			return api.Answer{Verdict: api.VerdictAccepted, Peer: peer}
		}
		return unknown(context.DeadlineExceeded, false)
	case hangBefore:
		return unknown(context.DeadlineExceeded, false)
	case hangAfter:
		e.runs = merged(e.runs, b.Parameters)
		return unknown(context.DeadlineExceeded, false)
	case dropBefore:
		return unknown(io.ErrUnexpectedEOF, true)
	case dropAfter:
		e.runs = merged(e.runs, b.Parameters)
		return unknown(io.ErrUnexpectedEOF, true)
	case die, dieAWhile:
		e.restart()
		if how == dieAWhile {
			e.down = true
			time.AfterFunc(300*time.Millisecond, func() { e.tell(func(e *scripted) { e.down = false }) })
		}
		return unknown(io.ErrUnexpectedEOF, true)
	case busy:
		return unknown(errors.New("HTTP 500"), false)
	case wrongLabel:
		return api.Answer{Verdict: api.VerdictForeign, Err: &api.ForeignError{Reason: "HTTP 404", Environment: true}}
	case notSent:
		return api.Answer{Verdict: api.VerdictNotSent, Err: errors.New("HTTP 503")}
	case foreign:
		return api.Answer{Verdict: api.VerdictForeign, Err: &api.ForeignError{Reason: "HTTP 404"}}
	}
	return api.Answer{Verdict: api.VerdictAccepted, Peer: peer}
}

// asksToWait returns the error of a request that is not answered now.
func (e *scripted) asksToWait() error {
	if !time.Now().Before(e.limited) {
		return nil
	}
	return &api.LaterError{Reason: "HTTP 429", Until: e.limited, Peer: api.Peer{PID: e.peer}}
}

// restart is a new process with its defaults, as a supervisor makes one.
func (e *scripted) restart() {
	e.peer++
	e.runs, e.down = e.defaults, false
}

// upgrade is a new process of another version, with the parameters of defaults.
func (e *scripted) upgrade(defaults schema.Parameters) {
	e.defaults = defaults
	e.restart()
}

// merged is p with the values of q.
func merged(p, q schema.Parameters) schema.Parameters {
	values := p.Map()
	maps.Copy(values, q.Map())
	return schema.NewParameters(values)
}

// tell changes the script while the Reconciler runs.
func (e *scripted) tell(change func(*scripted)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(e)
}

func (e *scripted) running() (p schema.Parameters) {
	e.tell(func(e *scripted) { p = e.runs })
	return p
}

func (e *scripted) sent(p schema.Parameters) (n int) {
	e.tell(func(e *scripted) { n = e.sends[p.Digest()] })
	return n
}

// batchesSince returns a function that lists the batches from now on.
func (e *scripted) batchesSince() func() []schema.Parameters {
	n := 0
	e.tell(func(e *scripted) { n = len(e.batches) })
	return func() (batches []schema.Parameters) {
		e.tell(func(e *scripted) { batches = slices.Clone(e.batches[n:]) })
		return batches
	}
}

func (e *scripted) tried(p schema.Parameters) (n int) {
	e.tell(func(e *scripted) { n = e.tries[p.Digest()] })
	return n
}

func (e *scripted) allSends() (n int) {
	e.tell(func(e *scripted) {
		for _, sent := range e.sends {
			n += sent
		}
	})
	return n
}

// will makes the engine treat p so each time, or as usual again.
func (e *scripted) will(p schema.Parameters, how manner) {
	e.tell(func(e *scripted) { e.always[p.Digest()] = how })
}

// ban fails the test when p is sent, with other parameters besides or without;
// allow ends it.
func (e *scripted) ban(p schema.Parameters) {
	e.tell(func(e *scripted) { e.banned = append(e.banned, p) })
}

func (e *scripted) allow(p schema.Parameters) {
	e.tell(func(e *scripted) { e.banned = slices.DeleteFunc(e.banned, p.Equal) })
}

// Bounds gives what the test sets.
func (e *scripted) Bounds(context.Context) (bounds map[string]api.Bounds, err error) {
	e.tell(func(e *scripted) {
		if e.asked++; e.onAsk != nil {
			e.onAsk()
		}
		bounds, err = e.bounds, e.boundsErr
	})
	return bounds, err
}
