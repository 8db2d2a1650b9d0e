package apply

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"dtesn-agent/gitstore/record"
)

// An EventType says what happened.
type EventType string

// The types of events. Each is emitted once the fact is durable, and published in the
// status.
const (
	EventApplied    EventType = "applied"     // a change was confirmed
	EventRolledBack EventType = "rolled_back" // a rollback was confirmed
	EventRejected   EventType = "rejected"    // the rejection of a candidate is on record
	EventReverted   EventType = "reverted"    // the engine is back on the last good state
	EventHeld       EventType = "held"        // a Document is not tried
	EventReleased   EventType = "released"    // entries of a hold ended by an order
	EventPaused     EventType = "paused"
	EventResumed    EventType = "resumed"
	EventInvalid    EventType = "invalid"
	EventRefused    EventType = "refused" // the source does not trust a revision
	EventDrifted    EventType = "drifted"
	EventEngineDown EventType = "engine_down"
	EventEngineUp   EventType = "engine_up"

	// The rest is for the log and the metrics alone.
	EventLine    EventType = "line"    // of the log
	EventOver    EventType = "over"    // a condition that was logged under Key ended
	EventOutcome EventType = "outcome" // of an attempt
	EventPhase   EventType = "phase"   // of a transaction; Cause names it
	EventFailure EventType = "failure" // of a stage; Cause names it
	EventSuccess EventType = "success" // of a loop; Cause names it
)

// An Event is something that happened. Fields that do not apply are zero.
type Event struct {
	Type    EventType
	At      time.Time
	Record  *record.Record // the record that it is about
	Outcome record.Outcome
	Cause   string   // who rolled back or rejected: engine, operator, probation
	Names   []string // the parameters of an invalid Document; "" for the Document itself
	Took    time.Duration

	// The line of the log; without Text there is none. With Key the line is about a
	// condition that lasts, and is repeated at each tenfold while Same stays the same.
	Level     slog.Level
	Text      string
	Attrs     []any
	Key, Same string
}

// isTold reports whether somebody who sees the effect of e would look for it in the
// status.
func (e *Event) isTold() bool {
	switch e.Type {
	case EventOver, EventPhase, EventFailure, EventSuccess:
		return false
	}
	return e.Type != EventLine || e.Key == ""
}

// Metrics counts what happens. Its methods return at once.
type Metrics interface {
	Outcome(record.Outcome)
	// ValidationFailures counts an invalid Document, once for each parameter
	// concerned; "" stands for the Document itself.
	ValidationFailures(parameters []string)
	// Rollback counts a return to an earlier state: engine, operator or probation.
	Rollback(cause string)
	// Phase observes how long a phase took: load, commit, engine, confirm, total.
	Phase(phase string, d time.Duration)
	// StageFailure counts a failure: source, load, commit, send, read, confirm,
	// revert, assert.
	StageFailure(stage string)
	Drift()
	// Success notes the last success of a loop: source, engine, transaction.
	Success(loop string)
}

// flush publishes what changed and then tells it: who hears of a fact finds it in the
// status.
func (r *Reconciler) flush() {
	out := &r.state.outbox
	if out.changed || len(out.replies) > 0 || slices.ContainsFunc(out.events, func(e Event) bool { return e.isTold() }) {
		r.publish()
	}
	events, replies := out.events, out.replies
	out.events, out.replies = nil, nil
	for i := range events {
		count(r.opt.Metrics, &events[i])
		r.log.event(&events[i])
	}
	for _, reply := range replies {
		reply()
	}
}

// count keeps the metrics.
func count(m Metrics, e *Event) {
	switch e.Type {
	case EventOutcome:
		m.Outcome(e.Outcome)
	case EventPhase:
		m.Phase(e.Cause, e.Took)
	case EventFailure:
		m.StageFailure(e.Cause)
	case EventSuccess:
		m.Success(e.Cause)
	case EventInvalid:
		m.ValidationFailures(e.Names)
	case EventDrifted:
		m.Drift()
	case EventRolledBack, EventReverted:
		if e.Cause != "" {
			m.Rollback(e.Cause)
		}
	}
}

// A repeater logs the same text under the same key once, then at each tenfold: an engine
// that is down for a night is five lines, not a hundred thousand. It belongs to one
// goroutine.
type repeater struct {
	*slog.Logger
	last map[string]repetition
}

type repetition struct {
	same  string
	count int
	at    time.Time
}

// occasional is the time after which something that happens again is news.
const occasional = time.Minute

func newRepeater(l *slog.Logger) *repeater {
	return &repeater{Logger: l, last: map[string]repetition{}}
}

// event logs the line of an event.
func (p *repeater) event(e *Event) {
	switch {
	case e.Type == EventOver:
		delete(p.last, e.Key)
	case e.Text == "":
	case e.Key == "":
		p.Log(context.Background(), e.Level, e.Text, e.Attrs...)
	default:
		p.condition(e)
	}
}

func (p *repeater) condition(e *Event) {
	seen := p.last[e.Key]
	if seen.same != e.Same || e.Type != EventLine && e.At.Sub(seen.at) > occasional {
		seen = repetition{same: e.Same}
	}
	seen.count++
	seen.at = e.At
	p.last[e.Key] = seen
	for n := seen.count; n > 1; n /= 10 {
		if n%10 != 0 {
			return
		}
	}
	attrs := e.Attrs
	if seen.count > 1 {
		attrs = append(slices.Clone(attrs), "times", seen.count)
	}
	p.Log(context.Background(), e.Level, e.Text, attrs...)
}

// errorsIn returns the texts of the errors among the attributes of a line.
func errorsIn(attrs []any) (text string) {
	for _, a := range attrs {
		if err, ok := a.(error); ok {
			text += err.Error()
		}
	}
	return text
}
