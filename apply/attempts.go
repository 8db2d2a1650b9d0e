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

// A report has the attempts that the status shows.
type report struct {
	attempts []Attempt // newest first; a published status shares the slice
	shown    int       // index of the one in Status.Attempted; -1 for none
}

// last returns the attempt that the status shows as attempted, nil if there is none.
func (p *report) last() *Attempt {
	if p.shown < 0 {
		return nil
	}
	return &p.attempts[p.shown]
}

// update changes a copy of the attempts that are pending about record id.
func (p *report) update(id string, change func(*Attempt)) (changed bool) {
	attempts := slices.Clone(p.attempts)
	for i := range attempts {
		if a := &attempts[i]; a.SnapshotID == id && a.Outcome == record.Pending {
			change(a)
			changed = true
		}
	}
	p.attempts = attempts
	return changed
}

// declares reports whether revision is what the source declares now.
func (s *State) declares(revision string) bool {
	return s.declared.doc != nil && s.declared.doc.Revision() == revision
}

// attempted adds a new attempt, and shows it if it is about what the source declares, or
// if the one shown is not.
func (s *State) attempted(a Attempt) {
	a.At, a.Violations = record.Unix(time.Now()), append([]schema.Violation{}, a.Violations...)
	p := &s.report
	attempts := append([]Attempt{a}, p.attempts...)
	if shown := p.last(); shown == nil || s.declares(a.Revision) || a.Revision != "" && !s.declares(shown.Revision) {
		p.shown = 0
	} else {
		p.shown++
	}
	for i := len(attempts) - 1; i > 0 && len(attempts) > defaultAttempts; i-- {
		if attempts[i].Outcome == record.Pending {
			continue // its outcome is yet to come
		}
		attempts = slices.Delete(attempts, i, i+1)
		switch {
		case p.shown == i:
			p.shown = -1
		case p.shown > i:
			p.shown--
		}
	}
	p.attempts = attempts
	if a.Outcome != record.Pending {
		s.counted(a.Outcome)
	}
}

// showPending shows the attempt at revision if it is pending: the source is back at it.
func (s *State) showPending(revision string) {
	if i := slices.IndexFunc(s.report.attempts, func(a Attempt) bool { return a.Revision == revision && a.Outcome == record.Pending }); i >= 0 {
		s.report.shown = i
	}
}

// hasOutcome reports whether the attempt at revision has an outcome that a second look at
// the same revision must not rewrite.
func (s *State) hasOutcome(revision string) bool {
	a := s.report.last()
	if a == nil || a.Revision != revision {
		return false
	}
	switch a.Outcome {
	case record.Held, record.Pending, record.Superseded:
		return false
	case record.Rejected: // until it is held no more: then it may be what runs
		return s.declared.config == nil || s.holds(s.hold(), s.declared.config)
	case record.Refused:
		return s.declared.refusal != nil || s.isDenied() // it may be trusted or allowed later, as it is
	}
	return true
}

// isNewlyHeld reports whether it was not reported yet that the declared revision is held.
func (s *State) isNewlyHeld() bool {
	revision, a := s.declared.doc.Revision(), s.report.last()
	return !s.hasOutcome(revision) && (a == nil || a.Revision != revision || a.Outcome != record.Held)
}

func (s *State) attemptInvalid(doc *document.Document, v *schema.Violations) {
	var names []string
	for _, violation := range v.List {
		if !slices.Contains(names, violation.Parameter) {
			names = append(names, violation.Parameter)
		}
	}
	s.attempted(Attempt{
		Revision: doc.Revision(), Outcome: record.Invalid, Reason: v.Error(),
		Violations: v.List, ViolationsTotal: v.Total,
	})
	first := v.List[0].String()
	if v.List[0].File != "" && s.opt.SourceKind == "file" { // for a terminal to open
		first = filepath.Join(s.opt.SourceLocation, ".") + "/" + first
	}
	s.emitEvent(notice{
		Event: s.declaredEvent(EventInvalid, record.Invalid, v.List[0].String()), names: names, level: slog.LevelWarn, key: "invalid", same: first,
		text:  "the configuration is not valid; the engine keeps what it has",
		attrs: []any{"revision", doc.Revision(), "violations", v.Total, "violation", first},
	})
}

func (s *State) attemptRefused(doc *document.Document) {
	s.attempted(Attempt{Revision: doc.Revision(), Outcome: record.Refused, Reason: doc.Refused.Reason})
	s.emitEvent(notice{
		Event: s.declaredEvent(EventRefused, record.Refused, doc.Refused.Reason), level: slog.LevelWarn, key: "refused", same: doc.Refused.Hint,
		text:  "the source is not trusted with this revision; the engine keeps what it has",
		attrs: []any{"revision", doc.Revision(), "reason", doc.Refused.Reason, "hint", doc.Refused.Hint},
	})
}

func (s *State) attemptHeld() {
	hold, c := s.hold(), s.declared.config
	if s.lost != nil {
		hold = s.lost
	}
	why, by := s.heldProblem(hold, c), hold.By
	if e := s.match(hold, c, false); e != nil && !hold.Paused {
		by = e.By
	}
	revision := s.declared.doc.Revision()
	s.attempted(Attempt{Revision: revision, Outcome: record.Held, Reason: why.Error(), HeldBy: by})
	event := s.declaredEvent(EventHeld, record.Held, why.Error())
	event.Cause = by
	s.emitEvent(notice{Event: event, level: slog.LevelWarn, text: "not tried: " + why.Error(), attrs: []any{"revision", revision, "hint", why.Hint}})
}

// attemptUnchanged notes that what the source declares is what is applied and, by a fresh
// reading, runs.
func (s *State) attemptUnchanged() {
	s.attempted(Attempt{Revision: s.declared.doc.Revision(), Outcome: record.Unchanged, SnapshotID: s.applied.ID, Reason: "equal to what is applied and runs"})
	s.log(slog.LevelInfo, "unchanged: the engine already runs what is declared", "snapshot", s.applied.ID)
	s.succeeded("transaction")
}

func (s *State) attemptPending(rec *record.Record) {
	a := Attempt{Outcome: record.Pending, SnapshotID: rec.ID, Changes: rec.Changes, Reason: "on record, not yet applied"}
	if rec.Kind == record.KindChange {
		a.Revision = rec.Source.Revision
	}
	s.attempted(a)
}

// finish gives the attempt of record id its outcome, and answers who waits for it. It
// reports whether the outcome is new.
func (s *State) finish(id string, outcome record.Outcome, reason string) (isNew bool) {
	isNew = s.report.update(id, func(a *Attempt) {
		a.Outcome, a.Reason, a.At = outcome, reason, record.Unix(time.Now())
		s.counted(outcome)
		if outcome == record.Superseded {
			s.log(slog.LevelInfo, "superseded", "snapshot", id, "reason", reason)
		}
	})
	s.resolve(id, outcome, reason)
	return isNew
}

// resolve answers the callers that wait for record id.
func (s *State) resolve(id string, outcome record.Outcome, reason string) {
	s.waiters = slices.DeleteFunc(s.waiters, func(q *request) bool {
		if q.id() == id {
			s.reply(q, Result{Outcome: outcome, SnapshotID: id, Text: reason}, nil)
		}
		return q.id() == id
	})
}

// tellSettled gives the candidate that rec settles its outcome, once.
func (r *Reconciler) tellSettled(ctx context.Context, rec *record.Record) {
	s, o := r.state, rec.OutcomeOf
	if o == nil {
		return
	}
	if !slices.ContainsFunc(s.report.attempts, func(a Attempt) bool { return a.SnapshotID == o.ID }) { // settled after a restart
		if row, err := r.opt.Store.Lookup(ctx, o.ID); err == nil && row.Kind.Candidate() {
			shown := s.report.shown
			s.attemptPending(&row.Record)
			if s.declared.refusal != nil && shown >= 0 { // an earlier try of what is not trusted now
				s.report.shown = min(shown+1, len(s.report.attempts)-1)
			}
		}
	}
	if s.finish(o.ID, o.Outcome, rec.Description) && o.Outcome == record.Rejected {
		cause := "engine"
		if row, err := r.opt.Store.Lookup(ctx, o.ID); err == nil {
			cause = record.RejectedBy(&row.Record, rec)
		}
		event := RecordEvent(EventReverted, rec)
		event.Outcome, event.Cause = o.Outcome, cause
		s.emitEvent(notice{Event: event})
	}
}

// finishRest finishes attempts that the Store says more of: a record that was confirmed
// with the head although its own confirmation returned an error, or whose history was
// replaced.
func (r *Reconciler) finishRest(ctx context.Context) {
	for _, a := range r.state.report.attempts {
		if a.Outcome != record.Pending {
			continue
		}
		row, err := r.opt.Store.Lookup(ctx, a.SnapshotID)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			r.state.finish(a.SnapshotID, record.Superseded, "its record is gone: the history was replaced under the agent")
		case err == nil && row.Outcome != record.Pending:
			r.state.finish(row.ID, row.Outcome, "on record as "+string(row.Outcome))
		}
	}
}
