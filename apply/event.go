package apply

import (
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

// needsStatus reports whether the status is published before e is told: who sees e would
// look for it there.
func (e *Event) needsStatus() bool {
	switch e.Type {
	case EventOver, EventPhase, EventFailure, EventSuccess:
		return false
	}
	return e.Type != EventLine || e.Key == ""
}

// flush publishes what changed and then tells it: who hears of a fact finds it in the
// status.
func (r *Reconciler) flush() {
	out := &r.state.outbox
	if out.changed || len(out.replies) > 0 || slices.ContainsFunc(out.events, func(e Event) bool { return e.needsStatus() }) {
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

func (o *outbox) emit(e Event) {
	e.At = time.Now()
	o.events = append(o.events, e)
}

// log emits a line of the log that is written each time.
func (o *outbox) log(level slog.Level, text string, attrs ...any) {
	o.emit(Event{Type: EventLine, Level: level, Text: text, Attrs: attrs})
}

// repeat emits a line for the log about a condition that lasts. See repeater.
func (o *outbox) repeat(level slog.Level, key, text string, attrs ...any) {
	kind := text
	for _, a := range attrs {
		if err, ok := a.(error); ok {
			kind += err.Error()
		}
	}
	o.repeatKind(level, key, kind, text, attrs...)
}

// repeatKind is repeat for what is the same by its kind, whatever its text.
func (o *outbox) repeatKind(level slog.Level, key, kind, text string, attrs ...any) {
	o.emit(Event{Type: EventLine, Level: level, Text: text, Attrs: attrs, Key: key, Same: kind})
}

// endRepeat ends a condition: its next line under key is written at once.
func (o *outbox) endRepeat(key string) { o.emit(Event{Type: EventOver, Key: key}) }

func (o *outbox) failed(stage string) { o.emit(Event{Type: EventFailure, Cause: stage}) }

func (o *outbox) succeeded(loop string) { o.emit(Event{Type: EventSuccess, Cause: loop}) }

func (o *outbox) phase(phase string, took time.Duration) {
	o.emit(Event{Type: EventPhase, Cause: phase, Took: took})
}

func (o *outbox) counted(outcome record.Outcome) { o.emit(Event{Type: EventOutcome, Outcome: outcome}) }

func (o *outbox) reply(q *request, res Result, err error) {
	o.replies = append(o.replies, func() { q.reply <- reply{res, err} })
}
