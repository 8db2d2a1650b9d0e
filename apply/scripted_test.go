package apply_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

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
)

// scripted is an engine that treats batches as told: first the queue, then by
// Parameters, then it accepts. It fails the test on a batch that must not be.
type scripted struct {
	t     tester
	m     *mishaps
	store faulty // of the process that runs now
	mu    sync.Mutex
	runs  schema.Parameters
	peer  int32
	down  bool
	hung  bool              // readings get no answer
	ill   string            // why it is not healthy
	illOn schema.Parameters // it is not healthy on these
	label string            // what somebody else labels it again and again
	reads int
	// asserting: an assert was accepted, and the read-back is owed.
	asserting bool
	// What happens just before a reading, by its number.
	later     map[int]schema.Parameters
	restartAt int
	queue     []manner
	workers   []schema.Parameters // what each of several engines runs, in turn
	always    map[schema.Parameters]manner
	sends     map[schema.Parameters]int
	tries     map[schema.Parameters]int // what did not get there included
	banned    map[schema.Parameters]bool
}

func (e *scripted) Read(ctx context.Context) (r schema.Reading, err error) {
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
		if len(e.workers) > 0 { // one connection, one worker
			e.runs, e.workers = e.workers[0], append(e.workers[1:], e.workers[0])
		}
		r = schema.Reading{Parameters: e.runs, Environment: string(production), Relabelled: e.label, Peer: schema.Peer{PID: e.peer}}
		return nil
	}, func() error { return hang(ctx) })
	return r, err
}

func (e *scripted) Prepare() {}

// Health follows mishaps, a hung and a down engine as Read does.
func (e *scripted) Health(ctx context.Context) (h schema.Health, err error) {
	err = e.m.around("health", func() error {
		e.mu.Lock()
		defer e.mu.Unlock()
		h.Peer = schema.Peer{PID: e.peer}
		switch {
		case e.hung:
			e.mu.Unlock()
			defer e.mu.Lock()
			return hang(ctx)
		case e.down:
			return fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
		case e.ill == "404":
			return &schema.ForeignError{Reason: "HTTP 404"}
		}
		h.Healthy, h.Reason = e.ill == "", e.ill
		if e.runs == e.illOn {
			h = schema.Health{Reason: "memory", Peer: h.Peer}
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

func (e *scripted) Send(ctx context.Context, b schema.Batch) (a schema.Answer) {
	call := "send"
	head, applied := e.store.Head(), e.store.Applied()
	if head.Commit != b.Revision || !head.Kind.Candidate() || (applied != nil && applied.Commit == head.Commit) {
		call = "assert send"
	}
	err := e.m.around(call, func() error { a = e.take(b); return nil }, func() error { return hang(ctx) })
	e.tell(func(e *scripted) { e.asserting = call == "assert send" && a.Verdict == schema.VerdictAccepted })
	if err != nil {
		a = schema.Answer{Verdict: schema.VerdictUnknown, Err: err, Peer: schema.Peer{PID: e.peer}}
	}
	if errors.Is(a.Err, context.DeadlineExceeded) {
		a.Err = hang(ctx)
	}
	return a
}

func (e *scripted) take(b schema.Batch) schema.Answer {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.down {
		return schema.Answer{Verdict: schema.VerdictNotSent, Err: fmt.Errorf("dial: %w", syscall.ECONNREFUSED)}
	}
	head, applied := e.store.Head(), e.store.Applied()
	if head.Commit != b.Revision && (applied == nil || applied.Commit != b.Revision) {
		e.t.Errorf("a batch was sent that no record names: %+v", b)
	}
	if e.banned[b.Parameters] {
		e.t.Errorf("Parameters were sent that must not be: %+v", b)
	}
	how := accept
	if m, ok := e.always[b.Parameters]; ok {
		how = m
	} else if len(e.queue) > 0 {
		how, e.queue = e.queue[0], e.queue[1:]
	}
	peer := schema.Peer{PID: e.peer}
	unknown := func(err error, broken bool) schema.Answer {
		return schema.Answer{Verdict: schema.VerdictUnknown, Err: err, Broken: broken, Peer: peer}
	}
	e.tries[b.Parameters]++
	if how != foreign && how != wrongLabel && how != notSent {
		e.sends[b.Parameters]++
	}
	switch how {
	case accept:
		e.runs = b.Parameters
	case partly:
		e.runs.ESNReservoirSize = b.Parameters.ESNReservoirSize
		e.runs.CacheTTLSeconds = 86400
	case refuse:
		return schema.Answer{Verdict: schema.VerdictRejected, Errors: []string{"it does not fit"}, Peer: peer}
	case callback:
		e.runs = b.Parameters
		return schema.Answer{Verdict: schema.VerdictRejected, Errors: []string{"a callback failed"}, Peer: peer}
	case hangBefore:
		return unknown(context.DeadlineExceeded, false)
	case hangAfter:
		e.runs = b.Parameters
		return unknown(context.DeadlineExceeded, false)
	case dropBefore:
		return unknown(io.ErrUnexpectedEOF, true)
	case dropAfter:
		e.runs = b.Parameters
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
		return schema.Answer{Verdict: schema.VerdictForeign, Err: &schema.ForeignError{Reason: "HTTP 404", Environment: true}}
	case notSent:
		return schema.Answer{Verdict: schema.VerdictNotSent, Err: errors.New("HTTP 503")}
	case foreign:
		return schema.Answer{Verdict: schema.VerdictForeign, Err: &schema.ForeignError{Reason: "HTTP 404"}}
	}
	return schema.Answer{Verdict: schema.VerdictAccepted, Peer: peer}
}

// restart is a new process with its defaults, as a supervisor makes one.
func (e *scripted) restart() {
	e.peer++
	e.runs, e.down = schema.Defaults(), false
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
	e.tell(func(e *scripted) { n = e.sends[p] })
	return n
}

func (e *scripted) tried(p schema.Parameters) (n int) {
	e.tell(func(e *scripted) { n = e.tries[p] })
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
	e.tell(func(e *scripted) { e.always[p] = how })
}

// ban fails the test when p is sent; allow ends it.
func (e *scripted) ban(p schema.Parameters)   { e.tell(func(e *scripted) { e.banned[p] = true }) }
func (e *scripted) allow(p schema.Parameters) { e.tell(func(e *scripted) { delete(e.banned, p) }) }
