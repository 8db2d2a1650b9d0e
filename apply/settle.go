package apply

import (
	"context"
	"log/slog"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
)

// reject puts the rejection of the candidate on record: a revert whose tree is
// the last applied one, with the hold. If the disk refuses it, the engine is
// brought back first and the record is tried again.
func (r *Reconciler) reject(ctx context.Context, head *record.Record, f *flight) (more bool) {
	applied := r.opt.Store.Applied()
	hold := r.holdBefore(ctx, head)
	if head.Kind == record.KindChange {
		hold = r.rejectionHold(head, applied, f.verdict)
	}
	rec := r.revertRecord(head, applied, f.verdict.reason, hold)
	rec.OutcomeOf = &record.Settlement{ID: head.ID, Outcome: record.Rejected}
	rec.Errors = f.verdict.errors
	if len(rec.Errors) == 0 {
		rec.Errors = []string{f.verdict.reason}
	}
	if r.ready("revert") {
		start := time.Now()
		if _, err := r.opt.Store.Commit(ctx, rec); err == nil {
			r.opt.Metrics.Phase("commit", time.Since(start))
			r.clear("revert", "send", "probation", "vouch")
			r.engine.due = true
			by := "by the engine"
			if f.verdict.by == byProbation {
				by = "on probation"
			}
			r.log.Event(slog.LevelWarn, "rejected "+by+"; going back to the last good state", append([]any{
				"snapshot", head.ID, "reason", f.verdict.reason, "changes", changesText(head.Changes),
			}, commitOf(head)...)...)
			r.rejecting(head.ID, f.verdict.reason)
			r.publish() // the engine may take its time
			return true
		} else if r.happened(head) != nil {
			r.engine.due = true
			return true // it failed and happened all the same
		} else {
			r.diskFailed("revert", err, "the rejection cannot be recorded; the engine is brought back first")
		}
	}
	if !r.readDue() {
		return false
	}
	reading, err := r.read(ctx)
	if err != nil {
		return false
	}
	if back := r.restored(ctx, &rec, reading); !r.agrees(reading, back.Config) && r.ready("assert") {
		back := *back
		back.ID, back.Commit = head.ID, head.Commit // whose `before` it is
		if applied != nil {
			back.ID, back.Commit = applied.ID, applied.Commit
		}
		r.assert(ctx, &back)
	}
	return false
}

// withdraw ends the open candidate without a verdict: a revert that says
// superseded, with the hold given (nil for none), ordered by who (nil for nobody).
// recorded with an error: it is the head, but a power cut may undo it until it is
// confirmed.
func (r *Reconciler) withdraw(ctx context.Context, head *record.Record, reason string, hold *record.Hold, who *record.Requester) (recorded bool, err error) {
	if !r.ready("revert") {
		return false, nil
	}
	rec := r.revertRecord(head, r.opt.Store.Applied(), reason, hold)
	rec.OutcomeOf, rec.Requester = &record.Settlement{ID: head.ID, Outcome: record.Superseded}, who
	if _, err = r.opt.Store.Commit(ctx, rec); err != nil && r.happened(head) == nil {
		r.diskFailed("revert", err, "the candidate cannot be withdrawn on record")
		return false, err
	}
	r.clear("revert", "send", "probation", "vouch")
	r.flight, r.engine.due = nil, true     // it may run: on probation it did
	r.tellSettled(ctx, r.opt.Store.Head()) // final, whatever the engine does
	return true, err
}

// revertRecord repeats the last applied state over the candidate head. Before
// anything was applied that is what the engine ran, which is no state to roll
// back to.
func (r *Reconciler) revertRecord(head, applied *record.Record, reason string, hold *record.Hold) record.Record {
	rec := record.Record{
		Kind: record.KindRevert, Description: reason, Held: hold,
		Source: record.Source{Kind: "engine"}, Config: head.Config,
	}
	switch {
	case applied != nil:
		rec.Config, rec.Source, rec.Provenance = applied.Config, applied.Source, applied.Provenance
		rec.Experiments, rec.RollbackPoint = applied.Experiments, applied.RollbackPoint
	case head.Before != nil:
		rec.Config = *head.Before
	}
	r.fill(&rec, applied)
	return rec
}

// commitNote records the beginning or the end of a hold or a pause: the Parameters of
// the head again, under the hold given. Only while no candidate is open; its results are
// those of withdraw.
func (r *Reconciler) commitNote(ctx context.Context, hold *record.Hold, why string, who *record.Requester) (recorded bool, err error) {
	head := r.opt.Store.Head()
	rec := record.Record{
		Kind: record.KindNote, Description: why, Config: head.Config, Held: hold, Source: head.Source,
		Provenance: head.Provenance, Experiments: head.Experiments, RollbackPoint: head.RollbackPoint, Requester: who,
	}
	applied := r.opt.Store.Applied()
	r.fill(&rec, applied)
	open := applied == nil || applied.Commit != head.Commit
	if open {
		// It takes the place of a settlement that the engine never ran.
		rec.OutcomeOf = &record.Settlement{ID: head.ID, Outcome: record.Superseded}
	}
	if _, err = r.opt.Store.Commit(ctx, rec); err != nil && r.happened(head) == nil {
		r.diskFailed("commit", err, "the hold cannot be recorded")
		return false, err
	}
	if open {
		r.tellSettled(ctx, head)
	}
	r.clear("commit")
	if r.engine.due = true; err == nil {
		r.writable, r.noProbe = true, nil
	}
	r.log.Event(slog.LevelInfo, why)
	return true, err
}

// settle finishes a head that is a revert or a note: the engine is asserted to
// run it, then it is confirmed. It is never reverted, so that what a crash
// leaves here ends in one way only. While the engine cannot be brought back
// nothing else is committed, but for what the engine itself makes necessary: see
// replaceRefused.
func (r *Reconciler) settle(ctx context.Context, head *record.Record) (more bool) {
	if r.settled == head.ID && r.blocked("confirm") && r.readDue() {
		r.settled = "" // the disk does not take it yet; the engine must not be forgotten
	}
	if r.settled != head.ID {
		if done, more := r.bringBack(ctx, head); !done {
			return more
		}
		r.settled = head.ID
	}
	if !r.ready("confirm") {
		return false
	}
	if err := r.opt.Store.Confirm(ctx); err != nil {
		r.diskFailed("confirm", err, "the engine was brought back, but that cannot be put on record durably")
		return false
	}
	r.writable = true
	r.clear("confirm", "assert", "send", "revert", "commit")
	r.flight, r.settled, r.recovered, r.engine.returned = nil, "", true, false
	if r.agrees(r.engine.reading, head.Config) {
		r.drift = nil
	}
	r.runsSince(head.Config, false)
	if s := head.OutcomeOf; s != nil && s.Outcome == record.Rejected {
		r.log.Event(slog.LevelInfo, "the engine is back on the last good state", "rejected", s.ID, "revert", head.ID)
	}
	r.tellSettled(ctx, head)
	r.finishRest(ctx)
	return true
}

// bringBack makes the engine run the settlement head, or leaves reported drift
// alone; done if the engine was read to be as it should.
func (r *Reconciler) bringBack(ctx context.Context, head *record.Record) (done, more bool) {
	if done, more := r.replaceRefused(ctx, head); done {
		return false, more
	}
	if !r.readDue() && !r.retryDue("assert") {
		return false, false
	}
	reading, err := r.read(ctx)
	if err != nil {
		return false, false
	}
	back := r.restored(ctx, head, reading)
	if r.agrees(reading, back.Config) || r.reportedDrift(ctx, reading, head) || (r.ready("assert") && r.assert(ctx, back)) {
		return true, false
	}
	if r.refused() {
		r.tellSettled(ctx, head) // waiting changes nothing about the verdict
	}
	return false, r.refused() && r.replaceable(head)
}

// reportedDrift reports whether the reading is drift that is only to be
// reported: a pause is no reason to end it. What a candidate left on the engine,
// which the pause found not yet brought back, is none.
func (r *Reconciler) reportedDrift(ctx context.Context, reading api.Reading, head *record.Record) bool {
	if head.Kind != record.KindNote || r.ownDoing(reading, head) || r.candidateBelow(ctx) {
		return false
	}
	r.noteDrift(reading, head)
	return r.opt.Drift == DriftReport
}

// candidateBelow reports whether a candidate stands between the applied snapshot
// and the head.
func (r *Reconciler) candidateBelow(ctx context.Context) bool {
	candidates, whole := r.candidatesBelow(ctx)
	return len(candidates) > 0 || !whole
}

// candidatesBelow lists the candidates on top of the applied snapshot, newest
// first; it is not whole if not all could be read, or if nothing is applied.
func (r *Reconciler) candidatesBelow(ctx context.Context) (candidates []record.Row, whole bool) {
	applied := r.opt.Store.Applied()
	for rec, err := range r.history(ctx) {
		if err != nil || applied == nil {
			break
		}
		if rec.ID == applied.ID {
			return candidates, true
		}
		if rec.Kind.Candidate() {
			candidates = append(candidates, *rec)
		}
	}
	return candidates, false
}

// tellSettled gives the candidate that head settles its outcome, once.
func (r *Reconciler) tellSettled(ctx context.Context, head *record.Record) {
	s := head.OutcomeOf
	if s == nil {
		return
	}
	r.ensureAttempt(ctx, s.ID)
	if r.finish(s.ID, s.Outcome, head.Description) && s.Outcome == record.Rejected {
		cause := "engine"
		if rec, err := r.opt.Store.Lookup(ctx, s.ID); err == nil && rec.Kind == record.KindChange && head.Held != nil && head.Held.By == byProbation {
			cause = byProbation // only changes are on it; a rollback leaves a hold as it was
		}
		r.opt.Metrics.Rollback(cause)
	}
}

// replaceRefused lets a fix through when the engine does not take the very state
// it is to be brought back to: it came back smaller, say. Waiting would cure
// nothing; a valid Document that nothing holds takes the settlement's place.
func (r *Reconciler) replaceRefused(ctx context.Context, head *record.Record) (done, more bool) {
	if !r.refused() || !r.replaceable(head) {
		return false, false
	}
	rec := r.changeRecord(r.opt.Store.Applied())
	rec.OutcomeOf = &record.Settlement{ID: head.ID, Outcome: record.Superseded}
	_, ok := r.commit(ctx, rec)
	if ok {
		r.tellSettled(ctx, head)
	}
	return ok, ok
}

// replaceable reports whether the source declares something that may take the
// place of the settlement head.
func (r *Reconciler) replaceable(head *record.Record) bool {
	c := r.seen.config
	return c != nil && !r.same(c.Parameters, head.Config) && !r.holds(head.Held, c)
}
