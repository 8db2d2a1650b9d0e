package apply

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// A flight is what this process knows of the open candidate. Losing it loses
// no promise: a restart starts a new flight from the refs.
type flight struct {
	id      string
	fresh   bool      // committed by this process
	asked   bool      // the engine was read since it was found
	started time.Time // when its Document was seen
	sends   int       // batches that reached the engine
	deaths  int       // sends the engine died on
	// broken: the connection of the last send broke and it is not yet known
	// whether the engine died; sentTo is whom it was sent to.
	broken bool
	sentTo api.Peer
	// acked: the engine accepted and the read-back is still owed; lies counts
	// read-backs that showed something else.
	acked bool
	lies  int
	// undone counts how often it went back to something else on probation.
	undone int
	// marked: the retried ref names it, and this process set it.
	marked bool
	// verified: the engine was read to run it; only probation and Confirm are
	// missing.
	verified  bool
	probation *probation // nil before it began
	// verdict is set once it is rejected, until the revert is on record.
	verdict *verdict
}

// A verdict is why a candidate is rejected.
type verdict struct {
	by     string // "engine" or "probation"
	reason string
	errors []string
}

// flightOf returns the flight of the open candidate, a new one if this process
// did not commit it.
func (r *Reconciler) flightOf(head *record.Record) *flight {
	if r.flight == nil || r.flight.id != head.ID {
		r.flight = &flight{id: head.ID, started: time.Now()}
		r.recordPending(head)
		r.log.Event(slog.LevelInfo, "found a candidate that is not settled; asking the engine", "snapshot", head.ID)
	}
	return r.flight
}

// begin commits what the source declares as the candidate and drives it.
func (r *Reconciler) begin(ctx context.Context, applied *record.Record) (more bool) {
	if !r.engine.reachable && (applied == nil || !r.recovered) {
		// Without an applied snapshot the record needs what the engine runs, for
		// that is where a rejection goes back to.
		return false
	}
	snap, ok := r.commit(ctx, r.changeRecord(applied))
	if !ok {
		return false
	}
	return r.drive(ctx, snap)
}

// changeRecord is the record of what the source declares.
func (r *Reconciler) changeRecord(applied *record.Record) record.Record {
	c := r.seen.config
	rec := record.Record{
		Kind: record.KindChange, Description: c.Description, Config: c.Parameters,
		Source: record.Source(r.seen.doc.Source), Provenance: c.Provenance, Experiments: c.Experiments, RollbackPoint: true,
		Held: r.hold(),
	}
	r.fill(&rec, applied)
	return rec
}

// fill gives rec what every record says: where it belongs, what ran before (while
// nothing is applied yet: before the first candidate), and what changes against
// the applied snapshot.
func (r *Reconciler) fill(rec *record.Record, applied *record.Record) {
	rec.Environment, rec.Instance = r.opt.Rules.Environment(), r.opt.Instance
	rec.AgentVersion, rec.SchemaDigest = r.opt.AgentVersion, r.opt.Rules.Schema().Digest()
	head := r.opt.Store.Head()
	switch {
	case applied == nil && head != nil && head.Before != nil:
		before := *head.Before // its rejection goes back there; what runs now may be the candidate before it
		for _, name := range rec.Config.Names() {
			if before.Get(name).IsZero() && r.engine.known {
				before = before.With(name, r.engine.reading.Parameters.Get(name))
			}
		}
		rec.Before = &before
	case r.engine.known:
		before := r.engine.reading.Parameters.Select(func(name string) bool { return !rec.Config.Get(name).IsZero() })
		rec.Before = &before
	}
	switch {
	case applied != nil:
		rec.Changes = r.opt.Rules.Diff(applied.Config, rec.Config)
	case rec.Before != nil:
		rec.Changes = r.opt.Rules.Diff(*rec.Before, rec.Config)
	}
}

// commit writes a candidate to the head and opens its flight.
func (r *Reconciler) commit(ctx context.Context, rec record.Record) (*record.Record, bool) {
	if !r.ready("commit") {
		return nil, false
	}
	if e := &r.engine; e.reachable {
		if e.differences == nil && e.compareTries == 0 { // tighter bounds are reported before the first change
			r.compareSchema(ctx)
		}
		r.opt.Engine.Prepare()
	}
	start, before := time.Now(), r.opt.Store.Head()
	snap, err := r.opt.Store.Commit(ctx, rec)
	if err != nil {
		if snap = r.happened(before); snap == nil {
			r.diskFailed("commit", err, "the change cannot be recorded, so it was not sent")
			return nil, false
		}
	}
	r.opt.Metrics.Phase("commit", time.Since(start))
	r.writable = true
	r.clear("commit", "send", "assert", "probation", "vouch") // the last of a settlement that this takes the place of
	r.settled, r.drift = "", nil                              // what runs from here on is our doing
	if rec.OutcomeOf != nil {
		r.finish(rec.OutcomeOf.ID, record.Superseded, "a newer one took its place: "+snap.ID)
	}
	r.flight = &flight{id: snap.ID, fresh: true, started: start}
	if rec.Kind == record.KindChange {
		r.flight.started = r.seen.since
	}
	r.recordPending(snap)
	r.publish() // the engine may take its time
	if !r.engine.reachable {
		r.log.Event(slog.LevelInfo, "on record; it goes to the engine as soon as that answers", "snapshot", snap.ID, "changes", changesText(snap.Changes))
	}
	return snap, true
}

// happened is the record that a Commit over before made although it failed; nil
// if it made none. A head that does not follow before is somebody else's.
func (r *Reconciler) happened(before *record.Record) *record.Record {
	head, parent := r.opt.Store.Head(), ""
	if before != nil {
		parent = before.Commit
	}
	if head == nil || head.Parent != parent || head.Commit == parent {
		return nil
	}
	return head
}

// drive brings the open candidate one step further.
func (r *Reconciler) drive(ctx context.Context, head *record.Record) (more bool) {
	f := r.flightOf(head)
	if f.verdict != nil {
		return r.reject(ctx, head, f)
	}
	if done, more := r.displace(ctx, head, f); done {
		if !more && !r.rival() {
			r.lookAfter(ctx, head)
		}
		return more
	}
	r.recovered = true
	if (!f.fresh || f.sends > 0 || !r.engine.reachable) && r.unknownToEngine(head.Config) == nil {
		if known, more := r.ask(ctx, head, f); !known {
			return more
		}
	}
	if unknown := r.unknownToEngine(head.Config); unknown != nil {
		return r.waitForUpgrade(ctx, head, f, unknown)
	}
	r.log.Clear("unknown")
	if !r.ready("send") || r.rival() {
		return false
	}
	if before := r.completeBefore(head); before != nil && f.sends == 0 && !r.opt.Store.Retried() {
		if !r.commitAgain(ctx, head, record.Record{Held: head.Held, RequestedBy: head.RequestedBy, Requester: head.Requester, Before: before}) {
			return false
		}
		r.flight.fresh, r.flight.asked = f.fresh, f.asked // one that was found may have been sent
		return true
	}
	if !f.fresh || f.sends > 0 {
		if ok, more := r.mark(ctx, f); !ok {
			return more
		}
	}
	return r.deliver(ctx, head, f)
}

// completeBefore returns what ran before the candidate head with what the engine
// did not report when it was committed, and reports now: only the record of what
// is sent can say where a rejection goes back to. It is nil if nothing is missing.
func (r *Reconciler) completeBefore(head *record.Record) *schema.Parameters {
	applied := r.opt.Store.Applied()
	var before *schema.Parameters
	for _, name := range r.known(head.Config).Names() {
		v := r.engine.reading.Parameters.Get(name)
		if v.IsZero() || !r.valueIn(head.Before, name).IsZero() || applied != nil && !r.valueIn(&applied.Config, name).IsZero() {
			continue
		}
		if before == nil {
			before = new(schema.Parameters)
			if head.Before != nil {
				*before = *head.Before
			}
		}
		*before = before.With(name, v)
	}
	return before
}

// commitAgain commits the candidate head anew, with what rec says of the hold, of
// who asked for it, and of what ran before, nil for what was read last. Who waits
// for the one before waits for the new one. It reports whether that is on record.
func (r *Reconciler) commitAgain(ctx context.Context, head *record.Record, rec record.Record) bool {
	before := rec.Before
	rec.Kind, rec.Description, rec.Config, rec.Source = head.Kind, head.Description, head.Config, head.Source
	rec.Provenance, rec.Experiments, rec.RollbackPoint = head.Provenance, head.Experiments, true
	rec.OutcomeOf = &record.Settlement{ID: head.ID, Outcome: record.Superseded}
	r.fill(&rec, r.opt.Store.Applied())
	if before != nil {
		rec.Before = before
	}
	waiters, old := r.waiters, r.flightOf(head)
	r.waiters = nil
	snap, ok := r.commit(ctx, rec)
	r.waiters = waiters
	if !ok {
		return false
	}
	f := r.flight // and what the engine did counts on
	f.sends, f.deaths, f.lies, f.verdict, f.broken, f.sentTo = old.sends, old.deaths, old.lies, old.verdict, old.broken, old.sentTo
	for _, w := range waiters {
		if w.id == head.ID {
			w.id = snap.ID
			w.recorded.Store(&snap.ID)
		}
	}
	return true
}

// waitForUpgrade looks after an engine that does not know all of the candidate,
// which is not sent. It reports whether another one came that does.
func (r *Reconciler) waitForUpgrade(ctx context.Context, head *record.Record, f *flight, unknown []string) (more bool) {
	reason, hint := r.unknownText(unknown)
	r.log.Warn("unknown", reason, "snapshot", head.ID, "hint", hint)
	f.asked = true // it does not run it
	if r.readDue() || r.retryDue("assert") {
		if _, err := r.read(ctx); err != nil {
			return false
		}
		if r.unknownToEngine(head.Config) == nil {
			return true
		}
	}
	if head.Kind != record.KindRollback {
		r.keepApplied(ctx, head)
		return false
	}
	// Who goes back is not kept waiting: what the engine knows of it is sent.
	if !r.agrees(r.engine.reading, head.Config) && r.ready("assert") {
		r.assert(ctx, head)
	}
	r.resolve(head.ID, record.Pending, reason+": it runs the rest of "+head.ID+", which stays pending; "+hint)
	return false
}

// displace ends the candidate when something else is to run: rules that changed
// since it was committed, or a newer valid Document that nothing holds. For the
// latter one that was found at start is first held against what the engine runs,
// for it may be what was applied.
func (r *Reconciler) displace(ctx context.Context, head *record.Record, f *flight) (done, more bool) {
	if why := r.seen.refusal; why != nil && head.Kind == record.KindChange && head.Source.Revision == r.seen.doc.Revision() {
		recorded, _ := r.withdraw(ctx, head, "its source is not trusted any more: "+why.Reason, head.Held, nil)
		return true, recorded
	}
	if done, more := r.distrusted(ctx, head, f); done {
		return done, more
	}
	if !f.fresh && !r.valid(head.Config) {
		why := "found at start, and no longer valid: " + r.check(head.Config)[0].Message
		hold := r.holdBefore(ctx, head)
		if head.Kind == record.KindRollback && head.Held != nil { // no verdict on it: what the operator holds stays held
			held := *head.Held
			held.Entries = slices.Clone(held.Entries)
			for i := range held.Entries {
				if e := &held.Entries[i]; e.Since == held.Since {
					e.Reason += " (the rollback did not happen: " + why + ")"
				}
			}
			held.Reason += " (the rollback did not happen: " + why + ")"
			hold = &held
		}
		recorded, _ := r.withdraw(ctx, head, why, hold, nil)
		return true, recorded
	}
	c, applied := r.seen.config, r.opt.Store.Applied()
	if c == nil || r.same(c.Parameters, head.Config) {
		return false, false
	}
	back := applied != nil && r.same(c.Parameters, applied.Config)
	// What an operator goes back from is held although it is still applied.
	if r.holds(head.Held, c) && !(back && head.Kind == record.KindChange) {
		return false, false
	}
	if !f.fresh && !f.asked {
		return false, false
	}
	if back {
		recorded, _ := r.withdraw(ctx, head, "the source went back to what is applied", head.Held, nil)
		return true, recorded
	}
	rec := r.changeRecord(applied)
	rec.OutcomeOf = &record.Settlement{ID: head.ID, Outcome: record.Superseded}
	_, ok := r.commit(ctx, rec)
	return true, ok
}

// lookAfter does not let the engine be forgotten while something stands in the
// way of the record: it is read when that is due, and brought back to the applied
// snapshot if it runs neither that nor the candidate.
func (r *Reconciler) lookAfter(ctx context.Context, head *record.Record) {
	if !r.readDue() && !r.retryDue("assert") {
		return
	}
	if _, err := r.read(ctx); err == nil {
		r.keepApplied(ctx, head)
	}
}

// keepApplied brings the engine back to the applied snapshot if it was read to run
// neither that nor the candidate head.
func (r *Reconciler) keepApplied(ctx context.Context, head *record.Record) {
	reading, applied := r.engine.reading, r.opt.Store.Applied()
	switch {
	case applied == nil:
	case r.agrees(reading, applied.Config) || r.runs(reading, head.Config):
		r.engine.returned = false
		r.clear("assert")
	case r.opt.Drift == DriftReport && !r.ownDoing(reading, applied) && (r.flight == nil || r.flight.fresh && r.flight.sends == 0):
		r.noteDrift(reading, applied)
	case r.ready("assert") && r.assert(ctx, applied):
		r.engine.returned = false
	}
}

// ask settles what is not known of the candidate by reading the engine. It
// reports whether the candidate is still to be sent.
func (r *Reconciler) ask(ctx context.Context, head *record.Record, f *flight) (toSend, more bool) {
	if (f.fresh || f.asked) && !r.readDue() && !r.retryDue("assert") {
		// Nothing new is known; a send may be due all the same, unless the state
		// that is known to be good goes first.
		first := r.engine.returned && f.sends > 0 && r.blocked("assert") && !r.refused()
		return r.engine.reachable && !f.acked && !f.broken && !first, false
	}
	reading, err := r.read(ctx)
	if err != nil {
		if f.broken && gone(err) {
			r.died(f)
		}
		return false, f.verdict != nil
	}
	news := !f.asked
	f.asked = true
	if f.broken && reading.Peer != f.sentTo {
		r.died(f)
	}
	f.broken = false
	switch {
	case r.runs(reading, head.Config):
		f.verified = true
		return false, true
	case f.verdict != nil:
		return false, true
	case f.acked:
		return false, r.lied(ctx, head, f, reading)
	}
	// The engine came back without the candidate after it had been sent: first
	// the state that is known to be good, then, when its time comes, once more.
	applied := r.opt.Store.Applied()
	if r.engine.returned && f.sends > 0 && applied != nil && !r.agrees(reading, applied.Config) && !r.same(head.Config, applied.Config) {
		// An engine that refuses that state may well take the candidate.
		if (!r.ready("assert") || !r.assert(ctx, applied)) && !r.refused() {
			return false, false
		}
	}
	if r.unknownToEngine(head.Config) == nil { // else it is brought back meanwhile
		r.engine.returned = false
	}
	if news && !f.fresh {
		return false, true // what is declared may displace it now
	}
	return true, false
}

// died counts an engine that died on the candidate; twice is a rejection.
func (r *Reconciler) died(f *flight) {
	f.broken = false
	f.deaths++
	r.log.Event(slog.LevelWarn, "the engine died while it was taking the candidate", "snapshot", f.id, "deaths", f.deaths)
	switch {
	case f.deaths >= 2:
		f.verdict = &verdict{by: "engine", reason: "the engine died twice while taking it"}
	case !f.fresh:
		// Whoever committed it may have met a death too and been cut before the
		// mark: no restart shall make the engine die a third time.
		f.verdict = &verdict{by: "engine", reason: "the engine died while taking it, and an earlier try by an agent that was cut short may have ended the same way"}
	}
}

// mark makes it durable that a candidate is sent a second time. Who finds the
// mark without having set it does not send: that would be the third.
func (r *Reconciler) mark(ctx context.Context, f *flight) (ok, more bool) {
	if f.marked {
		return true, false
	}
	if r.opt.Store.Retried() {
		f.verdict = &verdict{by: "engine", reason: "cut twice while being applied"}
		return false, true
	}
	f.marked = true // even if the next line fails: it may have happened
	if err := r.opt.Store.SetRetried(ctx, true); err != nil {
		r.diskFailed("commit", err, "the second try cannot be recorded, so it was not made")
		r.block("send", "the second try cannot be recorded, so it was not made: "+errorText(err), "see what is said of the disk")
		f.marked = r.opt.Store.Retried()
		return f.marked, false
	}
	return true, false
}

// unmark takes back a mark under which the engine came to no harm: nothing was
// sent, or the connection held, whatever the answer or the lack of one. If it
// cannot be taken back it stays, which is safe.
func (r *Reconciler) unmark(ctx context.Context, f *flight) {
	if f.marked && f.deaths == 0 && !f.broken {
		_ = r.opt.Store.SetRetried(ctx, false) // it may have failed and happened all the same
		f.marked = r.opt.Store.Retried()
	}
}

// deliver sends the candidate and follows up on the answer.
func (r *Reconciler) deliver(ctx context.Context, head *record.Record, f *flight) (more bool) {
	start, answered := time.Now(), r.engine.reachable
	answer := r.send(ctx, head)
	if answer.Verdict != api.VerdictNotSent && answer.Verdict != api.VerdictForeign {
		f.sends++
	}
	switch answer.Verdict {
	case api.VerdictAccepted:
		f.acked = true
		r.unmark(ctx, f)
		reading, err := r.read(ctx)
		if err != nil {
			return false // still owed; ask settles it
		}
		if !r.runs(reading, head.Config) {
			return r.lied(ctx, head, f, reading)
		}
		r.opt.Metrics.Phase("engine", time.Since(start))
		r.clear("send", "assert")
		f.verified = true
		return true
	case api.VerdictRejected:
		f.verdict = &verdict{by: "engine", reason: strings.Join(answer.Errors, "; "), errors: answer.Errors}
		return true
	case api.VerdictNotSent:
		r.unmark(ctx, f)
		if answered && !gone(answer.Err) { // it can be read, and does not take anything
			r.block("send", "the change was not sent: "+answer.Err.Error(), cmp.Or(problem.Hint(answer.Err), "look at the engine's log")+again)
		}
		return false
	case api.VerdictForeign:
		r.unmark(ctx, f)
		r.block("send", answer.Err.Error(), foreignHint(answer.Err))
		return false
	default:
		f.broken, f.sentTo, f.acked = answer.Broken, answer.Peer, false
		r.unmark(ctx, f)
		r.suspect("send", "what became of the change is not known: "+errorText(answer.Err), "look at the engine's log; the agent reads what runs and sends again; "+stopHint(r.opt.Store.Applied()))
		return true // the read is due now
	}
}

// lied deals with an engine that accepted and runs something else. Read-backs
// that disagree are several engines, not a verdict; one that took its time and
// runs it now did not lie; the same lie twice is a rejection.
func (r *Reconciler) lied(ctx context.Context, head *record.Record, f *flight, first api.Reading) (more bool) {
	last, err := r.readAgain(ctx, first)
	if err != nil {
		return false
	}
	if !r.engine.several && r.runs(last, head.Config) {
		f.verified = true
		return true
	}
	f.acked = false
	if r.engine.several || !r.managed(last).Equal(r.managed(first)) {
		r.engine.several = true
		r.block("send", severalReason, severalHint)
		return false
	}
	if f.lies++; f.lies < 2 {
		r.log.Event(slog.LevelWarn, "the engine accepted and runs something else; sending once more", "snapshot", head.ID)
		r.clear("send")
		return true
	}
	text := "the engine accepted it twice and runs something else: " + changesText(r.differences(first, head.Config))
	f.verdict = &verdict{by: "engine", reason: text, errors: []string{text}}
	return true
}

// confirm makes the candidate that runs the applied one, durably. Nothing is
// told before it returned.
func (r *Reconciler) confirm(ctx context.Context) (more bool) {
	f := r.flight
	if !r.ready("confirm") {
		// The disk does not take it yet; the engine must not be forgotten.
		if head := r.opt.Store.Head(); r.readDue() {
			if reading, err := r.read(ctx); err == nil && !r.runs(reading, head.Config) {
				f.verified, f.acked = false, false // it ran it: whatever this is, it is no lie
				return true
			}
		}
		return false
	}
	start := time.Now()
	if err := r.opt.Store.Confirm(ctx); err != nil {
		r.diskFailed("confirm", err, "the engine runs the change, but it cannot be put on record durably")
		return false
	}
	r.opt.Metrics.Phase("confirm", time.Since(start))
	r.writable = true
	r.clear("confirm", "send", "assert", "probation")
	r.flight, r.drift, r.engine.returned = nil, nil, false
	head := r.opt.Store.Head()
	r.runsSince(head.Config, false)
	if head.Kind == record.KindRollback {
		r.opt.Metrics.Rollback("operator")
	}
	r.opt.Metrics.Phase("total", time.Since(f.started))
	r.opt.Metrics.Success("transaction")
	r.finish(head.ID, record.Applied, r.appliedText(head)) // who reads it in the log finds it in the status
	r.finishRest(ctx)
	r.log.Event(slog.LevelInfo, "applied", append([]any{
		"snapshot", head.ID, "kind", string(head.Kind), "changes", changesText(head.Changes), "description", head.Description,
		"took", time.Since(f.started).Round(10 * time.Microsecond).String(),
	}, commitOf(head)...)...)
	if hold := r.hold(); hold != nil {
		r.log.Event(slog.LevelInfo, r.heldText(hold))
	}
	return true
}

// commitOf says for a log which commit declared s; nothing for files.
func commitOf(s *record.Record) []any {
	if s.Source.Kind != "git" {
		return nil
	}
	return []any{"revision", s.Source.Revision, "subject", s.Source.Subject}
}

// appliedText says what an applied candidate changed, and what it holds.
func (r *Reconciler) appliedText(s *record.Record) string {
	text := changesText(s.Changes)
	if text == "" && s.Before != nil { // of what is applied; a candidate may have run
		text = changesText(r.opt.Rules.Diff(*s.Before, s.Config))
	}
	if text == "" {
		text = "nothing changed"
	}
	var left []string
	for _, c := range s.Changes {
		if c.New.IsZero() {
			left = append(left, c.Parameter)
		}
	}
	if left != nil {
		text += "; the engine keeps its value of " + strings.Join(left, ", ")
	}
	if hold := r.hold(); hold != nil {
		text += "; " + r.heldText(hold)
	}
	return text
}
