package apply

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/watcher/document"
)

// declares reports whether revision is what the source declares now.
func (r *Reconciler) declares(revision string) bool {
	return r.seen.doc != nil && r.seen.doc.Revision() == revision
}

// record puts a new attempt on top and makes it the attempted one if it is
// about what the source declares, or the one shown is not.
func (r *Reconciler) record(a Attempt) {
	if a.At == 0 {
		a.At = record.Unix(time.Now())
	}
	if a.Violations == nil {
		a.Violations = []schema.Violation{}
	}
	shown := r.last()
	current := shown == nil || r.declares(a.Revision) || (a.Revision != "" && !r.declares(shown.Revision))
	attempts := append([]Attempt{a}, r.attempts...)
	if current {
		r.attempted = 0
	} else {
		r.attempted++
	}
	for i := len(attempts) - 1; i > 0 && len(attempts) > defaultAttempts; i-- {
		if attempts[i].Outcome == record.Pending {
			continue // its outcome is yet to come
		}
		attempts = slices.Delete(attempts, i, i+1)
		switch {
		case r.attempted == i:
			r.attempted = -1
		case r.attempted > i:
			r.attempted--
		}
	}
	r.attempts = attempts
	if a.Outcome != record.Pending {
		r.opt.Metrics.Outcome(a.Outcome)
	}
}

// showPending makes the attempt at revision the attempted one if it is pending:
// the source is back at it.
func (r *Reconciler) showPending(revision string) {
	i := slices.IndexFunc(r.attempts, func(a Attempt) bool { return a.Revision == revision && a.Outcome == record.Pending })
	if i >= 0 {
		r.attempted = i
	}
}

// rejecting notes that the rejection of record id stands, and the engine is still
// to be brought back.
func (r *Reconciler) rejecting(id, why string) {
	attempts := slices.Clone(r.attempts) // a published status shares the old one
	for i := range attempts {
		if a := &attempts[i]; a.SnapshotID == id && a.Outcome == record.Pending {
			a.rejected, a.Reason = why, "rejected, and the engine is being brought back: "+why
		}
	}
	r.attempts = attempts
}

// unsettled is what is told of record id to who does not wait for its outcome.
func unsettled(attempts []Attempt, id, pending string) Result {
	res := Result{Outcome: record.Pending, SnapshotID: id, Text: pending}
	for i := range attempts {
		if a := &attempts[i]; id != "" && a.SnapshotID == id && a.Rejecting() != "" {
			res.Outcome, res.Text = record.Rejected, a.Rejecting()+"; it is still to be brought back to what is applied, which goes on by itself"
		}
	}
	return res
}

// last is the attempt that `attempted` shows, nil if there is none.
func (r *Reconciler) last() *Attempt {
	if r.attempted < 0 {
		return nil
	}
	return &r.attempts[r.attempted]
}

func (r *Reconciler) recordInvalid(doc *document.Document, v *schema.Violations) {
	var parameters []string
	for _, violation := range v.List {
		if !slices.Contains(parameters, violation.Parameter) {
			parameters = append(parameters, violation.Parameter)
		}
	}
	r.opt.Metrics.ValidationFailures(parameters)
	r.record(Attempt{
		Revision: doc.Revision(), Outcome: record.Invalid, Reason: v.Error(),
		Violations: v.List, ViolationsTotal: v.Total,
	})
	first := v.List[0].String()
	if v.List[0].File != "" && r.opt.Source.Kind == "file" { // for a terminal to open
		first = filepath.Join(r.opt.Source.Location, ".") + "/" + first
	}
	r.log.Event(slog.LevelWarn, "the configuration is not valid; the engine keeps what it has",
		"revision", doc.Revision(), "violations", v.Total, "violation", first)
}

// recordRefused puts on record that the source cannot be trusted.
func (r *Reconciler) recordRefused(doc *document.Document) {
	r.record(Attempt{Revision: doc.Revision(), Outcome: record.Refused, Reason: doc.Refused.Reason})
	r.log.Event(slog.LevelWarn, "the source is not trusted with this revision; the engine keeps what it has",
		"revision", doc.Revision(), "reason", doc.Refused.Reason, "hint", doc.Refused.Hint)
}

// settledFor reports whether the attempt at revision has an outcome that a
// second look at the same revision must not rewrite.
func (r *Reconciler) settledFor(revision string) bool {
	a := r.last()
	if a == nil || a.Revision != revision {
		return false
	}
	switch a.Outcome {
	case record.Held, record.Pending, record.Superseded:
		return false
	case record.Refused:
		return r.seen.refusal != nil // it may be trusted later, as it is
	}
	return true
}

func (r *Reconciler) recordHeld(hold *record.Hold) {
	revision := r.seen.doc.Revision()
	if a := r.last(); r.settledFor(revision) || (a != nil && a.Revision == revision && a.Outcome == record.Held) {
		return
	}
	reason := r.heldReason(hold, r.seen.config)
	by := hold.By
	if e := r.match(hold, r.seen.config, false); e != nil && !hold.Paused {
		by = e.By
	}
	r.record(Attempt{Revision: revision, Outcome: record.Held, Reason: reason, HeldBy: by})
	r.log.Event(slog.LevelWarn, "not tried: "+reason, "revision", revision, "hint", r.heldHint(hold, r.seen.config))
}

// recordUnchanged notes that what the source declares is what is applied and,
// by a fresh reading, runs.
func (r *Reconciler) recordUnchanged(ctx context.Context) (more bool) {
	revision := r.seen.doc.Revision()
	if r.settledFor(revision) {
		return false
	}
	applied := r.opt.Store.Applied()
	if r.engine.at.Before(r.seen.at) {
		r.engine.due = true
		return true
	}
	if !r.runs(r.engine.reading, applied.Config) {
		return false
	}
	r.record(Attempt{Revision: revision, Outcome: record.Unchanged, SnapshotID: applied.ID, Reason: "equal to what is applied and runs"})
	r.log.Event(slog.LevelInfo, "unchanged: the engine already runs what is declared", "snapshot", applied.ID)
	r.opt.Metrics.Success("transaction")
	return false
}

// recordPending notes a candidate that is committed.
func (r *Reconciler) recordPending(s *record.Record) {
	a := Attempt{Outcome: record.Pending, SnapshotID: s.ID, Changes: s.Changes, Reason: "on record, not yet applied"}
	if s.Kind == record.KindChange {
		a.Revision = s.Source.Revision
	}
	r.record(a)
}

// ensureAttempt makes an attempt for the record id if this process has none:
// it was settled after a restart.
func (r *Reconciler) ensureAttempt(ctx context.Context, id string) {
	if slices.ContainsFunc(r.attempts, func(a Attempt) bool { return a.SnapshotID == id }) {
		return
	}
	if rec, err := r.opt.Store.Lookup(ctx, id); err == nil && rec.Kind.Candidate() {
		r.recordPending(&rec.Record)
	}
}

// finish gives the attempt of record id its outcome, and answers who waits. It
// reports whether the outcome is new.
func (r *Reconciler) finish(id string, outcome record.Outcome, reason string) (news bool) {
	attempts := slices.Clone(r.attempts) // a published status shares the old one
	for i := range attempts {
		a := &attempts[i]
		if a.SnapshotID == id && a.Outcome == record.Pending {
			a.Outcome, a.Reason, a.At = outcome, reason, record.Unix(time.Now())
			r.opt.Metrics.Outcome(outcome)
			news = true
			if outcome == record.Superseded {
				r.log.Event(slog.LevelInfo, "superseded", "snapshot", id, "reason", reason)
			}
		}
	}
	r.attempts = attempts
	r.publish()
	r.resolve(id, outcome, reason)
	return news
}

// finishGone finishes what was pending and is on no record any more: somebody
// replaced the history.
func (r *Reconciler) finishGone(ctx context.Context) {
	for _, a := range r.attempts {
		if a.Outcome != record.Pending {
			continue
		}
		if _, err := r.opt.Store.Lookup(ctx, a.SnapshotID); errors.Is(err, fs.ErrNotExist) {
			r.finish(a.SnapshotID, record.Superseded, "its record is gone: the history was replaced under the agent")
		}
	}
}

// finishRest finishes what was confirmed together with the head: a record whose
// own confirmation failed and happened all the same.
func (r *Reconciler) finishRest(ctx context.Context) {
	for _, a := range r.attempts {
		if a.Outcome != record.Pending {
			continue
		}
		if rec, err := r.opt.Store.Lookup(ctx, a.SnapshotID); err == nil && rec.Outcome != record.Pending {
			r.finish(rec.ID, rec.Outcome, "on record as "+string(rec.Outcome))
		}
	}
}
