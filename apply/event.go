package apply

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

// An EventType says what happened.
type EventType string

// The types of events.
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
	EventRefused    EventType = "refused" // the source does not trust a revision, or the policy denies it
	EventDrifted    EventType = "drifted" // Changes are from what is applied to what runs
	EventEngineDown EventType = "engine_down"
	EventEngineUp   EventType = "engine_up"
	EventDegraded   EventType = "degraded" // once until it is in sync again
	EventInSync     EventType = "in_sync"  // again, after any event that says that it is not

	// EventProposed is what required hooks are asked about, and nobody else is told.
	EventProposed EventType = "proposed"

	// The rest is for the log and the metrics alone.
	eventLine    EventType = "line"    // of the log
	eventOver    EventType = "over"    // a condition that was logged under key ended
	eventOutcome EventType = "outcome" // of an attempt
	eventPhase   EventType = "phase"   // of a transaction; Cause names it
	eventFailure EventType = "failure" // of a stage; Cause names it
	eventSuccess EventType = "success" // of a loop; Cause names it
	eventWayBack EventType = "wayback" // to an earlier state, of which no event tells; Cause is why
)

// EventTypes returns the types of events that subscribers are told.
func EventTypes() []EventType {
	return []EventType{
		EventApplied, EventRolledBack, EventRejected, EventReverted, EventHeld, EventReleased, EventPaused, EventResumed,
		EventInvalid, EventRefused, EventDrifted, EventEngineDown, EventEngineUp,
		EventDegraded, EventInSync,
	}
}

// An Event is something that happened. It is told once the fact is durable, or for what
// is on no record, such as drift, once it is known; the status has it by then. Fields
// that do not apply are zero.
type Event struct {
	// Sequence is the number in the log of events, where numbers rise; 0 before it is there.
	Sequence    int64              `json:"sequence"`
	Type        EventType          `json:"type"`
	At          float64            `json:"at"` // Unix seconds
	Instance    string             `json:"instance"`
	Environment schema.Environment `json:"environment"`
	Record      string             `json:"record,omitempty"`   // id of the record that it is about
	Kind        record.Kind        `json:"kind,omitempty"`     // of that record
	Revision    string             `json:"revision,omitempty"` // of the Document that it is about
	Source      *EventSource       `json:"source,omitempty"`   // nil unless that came from git
	Changes     []EventChange      `json:"changes,omitempty"`
	Outcome     record.Outcome     `json:"outcome,omitempty"`
	// Cause is who rejected, held, refused or ordered: engine, operator, probation, hook,
	// agent, policy.
	Cause       string            `json:"cause,omitempty"`
	Reason      string            `json:"reason,omitempty"`      // one line
	Description string            `json:"description,omitempty"` // of a record that was rejected
	By          *record.Requester `json:"by,omitempty"`          // who ordered it; nil if nobody did
	// Released are the entries that an order ended; one without values is the pause.
	Released []record.Entry `json:"released,omitempty"`
	Agreed   []string       `json:"agreed,omitempty"` // required hooks that agreed to a change; no record has them
}

// An EventSource is the commit that declared a Document.
type EventSource struct {
	Commit  string `json:"commit"`
	Author  string `json:"author,omitempty"` // "Name <mail>"
	Subject string `json:"subject,omitempty"`
	Signer  string `json:"signer,omitempty"` // where signatures are asked for
}

// An EventChange is a parameter that changed. An unset value is null.
type EventChange struct {
	Parameter string       `json:"parameter"`
	Old       schema.Value `json:"old"`
	New       schema.Value `json:"new"`
	Apply     string       `json:"apply,omitempty"` // schema.ApplyHot or schema.ApplyRebuild
}

// String returns the changes as the log has them, or else the reason.
func (e *Event) String() string {
	var texts []string
	for _, c := range e.Changes {
		texts = append(texts, fmt.Sprintf("%s %v -> %v", c.Parameter, c.Old, c.New))
	}
	return cmp.Or(strings.Join(texts, ", "), e.Reason)
}

// Summary returns on one line what happened: what changed or ended, and why.
func (e *Event) Summary() string {
	if e.Type == EventRejected && e.Kind == record.KindRollback {
		return e.Description + ": rejected: " + e.Reason
	}
	what := cmp.Or(releasedText(e.Released), e.String())
	if what != e.Reason && e.Reason != "" {
		what += ": " + e.Reason
	}
	return what
}

// releasedText returns what an order ended, and who had held it: "a 1 (held by root: slow)".
func releasedText(entries []record.Entry) string {
	var texts []string
	for i := range entries {
		e := &entries[i]
		what, verb, by := e.String(), "held", e.By
		if what == "" {
			what, verb = "pause", "paused"
		}
		if q := e.Requester; q != nil {
			by = cmp.Or(q.User, fmt.Sprintf("uid %d", q.UID))
		}
		texts = append(texts, fmt.Sprintf("%s (%s by %s: %s)", what, verb, by, e.Reason))
	}
	return strings.Join(texts, ", ")
}

// Doer returns who is behind the event, as people read it: who gave the order, else the
// author and the signer of the commit, "" if neither is known.
func (e *Event) Doer() string {
	if e.By != nil {
		return e.By.String()
	}
	if e.Source == nil || e.Source.Author == "" {
		return ""
	}
	name, _, _ := strings.Cut(e.Source.Author, " <")
	if e.Source.Signer != "" && e.Source.Signer != name {
		name += " (signed by " + e.Source.Signer + ")"
	}
	return fmt.Sprintf("%s: %s (%.12s)", name, e.Source.Subject, e.Source.Commit)
}

// RecordEvent returns the event of a type about a record.
func RecordEvent(t EventType, rec *record.Record) Event {
	return Event{
		Type: t, At: rec.Timestamp, Instance: rec.Instance, Environment: rec.Environment, Record: rec.ID, Kind: rec.Kind, Revision: rec.Source.Revision,
		Source: eventSource(document.Source(rec.Source)), Changes: eventChanges(rec.Changes), Reason: rec.Description, By: rec.Requester,
	}
}

// releasedEntries returns what rec, which came after parent, holds no more.
func releasedEntries(rec, parent *record.Record) (list []record.Entry) {
	if old := parent.Held; old != nil && old.Paused && (rec.Held == nil || !rec.Held.Paused) {
		list = []record.Entry{old.Entry(nil)}
	}
	return append(list, endedEntries(parent.Held, rec.Held)...)
}

// holdEvent returns the event of a record that an order made to begin or to end a hold;
// parent is the record before it.
func holdEvent(rec, parent *record.Record) Event {
	e, before := RecordEvent(EventReleased, rec), parent.Held
	switch isPaused, wasPaused := rec.Held != nil && rec.Held.Paused, before != nil && before.Paused; {
	case isPaused && !wasPaused:
		e.Type, e.Reason = EventPaused, rec.Held.Reason
	case wasPaused && !isPaused:
		e.Type = EventResumed
	}
	if e.Type != EventPaused {
		e.Released = releasedEntries(rec, parent)
	}
	e.Changes, e.Cause = nil, byOperator
	if _, reason, ok := strings.Cut(e.Reason, ": "); ok && e.Type != EventPaused { // "Resume: "
		e.Reason = reason
	}
	return e
}

// RecordEvents returns the events that a record is evidence of, for who missed them;
// parent is the record before it, nil if it is the first.
func RecordEvents(row *record.Row, parent *record.Record) (events []Event) {
	rec := &row.Record
	known := cmp.Or(parent, new(record.Record))
	before := known.Held
	isPause := rec.Held != nil && rec.Held.Paused && (before == nil || !before.Paused)
	isOrder := rec.Kind == record.KindNote || rec.Kind == record.KindRevert
	if rec.Requester != nil && (isOrder || isPause) {
		events = append(events, holdEvent(rec, known))
	}
	e := RecordEvent(EventApplied, rec)
	e.Outcome = row.Outcome
	switch {
	case rec.Kind.Candidate() && row.Outcome == record.Rejected:
		e.Type, e.Cause, e.Description, e.Reason = EventRejected, row.RejectedBy, e.Reason, cmp.Or(strings.Join(row.ValidationErrors, "; "), e.Reason)
	case row.Outcome != record.Applied:
		return events
	case rec.Kind == record.KindRollback:
		e.Type, e.Cause = EventRolledBack, byOperator
	case rec.Kind == record.KindRevert && rec.OutcomeOf != nil && rec.OutcomeOf.Outcome == record.Rejected:
		if e.Type, e.Outcome = EventReverted, record.Rejected; parent != nil {
			e.Cause = record.RejectedBy(parent, rec)
		}
	case rec.Kind == record.KindRevert && strings.HasPrefix(rec.Description, takenBackText+","):
		of := RecordEvent(EventReverted, known)
		e.Type, e.Outcome, e.Cause = EventReverted, record.Superseded, byHook
		e.Revision, e.Source, e.Changes = of.Revision, of.Source, of.Changes
	case rec.Kind != record.KindChange:
		return events
	}
	return append(events, e)
}

func eventSource(s document.Source) *EventSource {
	if s.Kind != "git" {
		return nil
	}
	return &EventSource{Commit: s.Revision, Author: s.Author, Subject: s.Subject, Signer: s.Signer}
}

func eventChanges(changes []schema.Change) (list []EventChange) {
	for _, c := range changes {
		list = append(list, EventChange{c.Parameter, c.Old, c.New, c.Apply})
	}
	return list
}

// A notice is an Event, or something that only the log and the metrics are told.
type notice struct {
	Event
	time  time.Time
	names []string // the parameters of an invalid Document; "" for the Document itself
	took  time.Duration

	// The line of the log; without text there is none. With key the line is about a
	// condition that lasts, and is repeated at each tenfold while same stays the same.
	level     slog.Level
	text      string
	attrs     []any
	key, same string
}

// isEvent reports whether subscribers are told.
func (n *notice) isEvent() bool { return slices.Contains(EventTypes(), n.Type) }

// needsStatus reports whether the status is published before n is told: who sees it would
// look for it there.
func (n *notice) needsStatus() bool {
	return n.isEvent() || n.Type == eventOutcome || n.Type == eventLine && n.key == ""
}

// A Subscription receives events. At most as many as its size wait in it; more are
// dropped and counted, so that a slow reader costs nobody anything.
type Subscription struct {
	// Events is closed at the end of Run, or by Close.
	Events  <-chan Event
	events  chan Event
	dropped atomic.Int64
	from    *Reconciler
}

// Dropped returns how many events were dropped.
func (s *Subscription) Dropped() int64 { return s.dropped.Load() }

// Close ends the subscription.
func (s *Subscription) Close() {
	s.from.mu.Lock()
	defer s.from.mu.Unlock()
	if i := slices.Index(s.from.subscriptions, s); i >= 0 {
		s.from.subscriptions = slices.Delete(s.from.subscriptions, i, i+1)
		close(s.events)
	}
}

// Subscribe returns a subscription to the events from now on, of which size may wait.
func (r *Reconciler) Subscribe(size int) *Subscription {
	events := make(chan Event, size)
	s := &Subscription{Events: events, events: events, from: r}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.subscriptions = append(r.subscriptions, s)
	return s
}

// tell passes an event to the subscribers.
func (r *Reconciler) tell(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.subscriptions {
		select {
		case s.events <- e:
		default:
			s.dropped.Add(1)
		}
	}
}

// flush publishes what changed and then tells it: who hears of a fact finds it in the
// status.
func (r *Reconciler) flush() {
	out := &r.state.outbox
	if out.changed || len(out.replies) > 0 || slices.ContainsFunc(out.notices, func(n notice) bool { return n.needsStatus() }) {
		r.publish()
	}
	notices, replies := out.notices, out.replies
	out.notices, out.replies = nil, nil
	for i := range notices {
		n := &notices[i]
		count(r.opt.Metrics, n)
		r.log.line(n)
		if n.isEvent() {
			r.tell(n.Event)
		}
	}
	for _, reply := range replies {
		reply()
	}
}

func count(m Metrics, e *notice) {
	switch e.Type {
	case eventOutcome:
		m.Outcome(e.Outcome)
	case eventPhase:
		m.Phase(e.Cause, e.took)
	case eventFailure:
		m.StageFailure(e.Cause)
	case eventSuccess:
		m.Success(e.Cause)
	case EventInvalid:
		m.ValidationFailures(e.names)
	case EventDrifted:
		m.Drift()
	case EventRefused:
		if e.Cause == byPolicy {
			m.PolicyRefusal()
		}
	case EventRolledBack, EventReverted, eventWayBack:
		if e.Cause != "" {
			m.Rollback(e.Cause)
		}
	}
}

// emit emits an event or a line.
func (o *outbox) emit(n notice) {
	n.time = time.Now()
	o.notices = append(o.notices, n)
}

// emitEvent emits an event, with what all events have.
func (s *State) emitEvent(n notice) {
	n.At = record.Unix(time.Now())
	n.Instance, n.Environment = s.opt.Instance, s.opt.Rules.Environment()
	n.Reason = problem.Line(n.Reason, 1<<10)
	s.outOfSync = s.outOfSync || !slices.Contains([]EventType{EventApplied, EventReleased, EventResumed, EventEngineDown, EventEngineUp}, n.Type)
	s.emit(n)
}

// tellCondition tells that the status became degraded, or is in sync again.
func (s *State) tellCondition(v *Status) {
	switch e := (Event{Reason: v.Reason, Revision: v.Seen.Revision}); {
	case v.State == StateDegraded && !s.degraded:
		s.degraded, e.Type = true, EventDegraded
		s.emitEvent(notice{Event: e})
	case v.State == StateInSync && s.outOfSync:
		e.Type = EventInSync
		s.emitEvent(notice{Event: e})
		s.degraded, s.outOfSync = false, false
	}
}

// declaredEvent returns the event of a type about what the source declares.
func (s *State) declaredEvent(t EventType, outcome record.Outcome, reason string) Event {
	src := s.declared.doc.Source
	return Event{Type: t, Revision: src.Revision, Source: eventSource(src), Outcome: outcome, Reason: reason}
}

// log emits a line of the log that is written each time.
func (o *outbox) log(level slog.Level, text string, attrs ...any) {
	o.emit(notice{Event: Event{Type: eventLine}, level: level, text: text, attrs: attrs})
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
	o.emit(notice{Event: Event{Type: eventLine}, level: level, text: text, attrs: attrs, key: key, same: kind})
}

// endRepeat ends a condition: its next line under key is written at once.
func (o *outbox) endRepeat(key string) { o.emit(notice{Event: Event{Type: eventOver}, key: key}) }

// count emits what only the metrics are told.
func (o *outbox) count(t EventType, what string) { o.emit(notice{Event: Event{Type: t, Cause: what}}) }

func (o *outbox) failed(stage string) { o.count(eventFailure, stage) }

func (o *outbox) succeeded(loop string) { o.count(eventSuccess, loop) }

func (o *outbox) phase(phase string, took time.Duration) {
	o.emit(notice{Event: Event{Type: eventPhase, Cause: phase}, took: took})
}

func (o *outbox) counted(outcome record.Outcome) {
	o.emit(notice{Event: Event{Type: eventOutcome, Outcome: outcome}})
}

func (o *outbox) reply(q *request, res Result, err error) {
	if q.policy != "" && res.SnapshotID != "" && !strings.Contains(res.Text, q.policy) {
		res.Text += "; " + q.policy
	}
	o.replies = append(o.replies, func() { q.reply <- reply{res, err} })
}
