package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// rows yields the records, newest first. An error, with a nil record, is its end.
func (r *Reconciler) rows(ctx context.Context) iter.Seq2[*record.Row, error] {
	return func(yield func(*record.Row, error) bool) {
		before, limit := "", 4 // the first ones are most often enough
		for {
			page, err := r.opt.Store.List(ctx, before, limit)
			for i := range page {
				if !yield(&page[i], nil) {
					return
				}
			}
			if err != nil {
				yield(nil, err)
			}
			if err != nil || len(page) == 0 {
				return
			}
			before, limit = page[len(page)-1].ID, 50
		}
	}
}

// listBacklog lists what is between the applied record and the head, and the hold that was
// in force before the rollbacks at the head.
func (r *Reconciler) listBacklog(ctx context.Context) {
	s := r.state
	b := backlog{at: s.position()}
	isFound := false
	for row, err := range r.rows(ctx) {
		if err != nil {
			s.repeat(slog.LevelWarn, "list", "the snapshots cannot be listed", "error", err)
			b.failed = true
			break
		}
		if !isFound && row.Index < s.head.Index && (row.Kind != record.KindRollback || row.Outcome == record.Applied) {
			b.held, isFound = s.heldSince(&row.Record, row.Outcome == record.Applied), true
		}
		if s.applied != nil && row.ID == s.applied.ID {
			b.whole = true
		}
		if s.applied == nil || b.whole {
			if isFound {
				break
			}
			continue
		}
		if row.Kind.Candidate() {
			b.candidates = append(b.candidates, *row)
		}
	}
	if !isFound && s.applied != nil {
		b.held = s.heldSince(s.applied, true)
	}
	s.backlog = b
}

// reported returns the parameters that the engine reported.
func (s *State) reported() string {
	return strings.Join(slices.DeleteFunc(s.opt.Rules.Names(), func(name string) bool { return !s.engine.reading.Knows(name) }), ",")
}

func (r *Reconciler) summarize(ctx context.Context) {
	s := r.state
	l := summary{at: s.position(), reported: s.reported()}
	page, err := r.opt.Store.List(ctx, "", r.opt.MaxSnapshots)
	if err != nil {
		s.repeat(slog.LevelWarn, "list", "the snapshots cannot be listed", "error", err)
	}
	for i := range page {
		if page[i].Outcome == record.Applied && page[i].RollbackPoint {
			l.active++
		}
	}
	if row, err := r.previous(ctx); err == nil && row != nil {
		l.previous = row.ID
	}
	s.summary = l
}

// complete returns what a record means as the target of a rollback: with a value for
// each managed parameter that the record lacks. That is the schema's default, or else
// what the engine ran before the parameter was set. What was never applied is left out
// for an engine that does not know the parameter.
func (r *Reconciler) complete(ctx context.Context, rec *record.Record) schema.Parameters {
	s := r.state
	p := s.opt.Rules.Complete(s.known(rec.Config))
	for _, now := range []*record.Record{s.head, s.applied} {
		if now == nil {
			continue
		}
		for _, name := range s.known(now.Config).Names() {
			if p.Get(name).IsZero() {
				value := s.opt.Rules.Parameter(name).Default
				if value.IsZero() {
					value = r.valueBefore(ctx, name)
				}
				p = p.With(name, value)
			}
		}
	}
	for _, name := range p.Names() {
		if s.engine.known && !s.engine.reading.Knows(name) && !s.has(rec, name) && !s.has(s.applied, name) {
			p = p.With(name, schema.Value{})
		}
	}
	return p
}

// valueBefore returns what the engine ran before the newest records began to set a
// parameter, the zero Value if that is not on record. A record that was not sent may not
// know it: see completeBefore.
func (r *Reconciler) valueBefore(ctx context.Context, name string) (v schema.Value) {
	s := r.state
	for row, err := range r.rows(ctx) {
		if err != nil || !s.has(&row.Record, name) {
			break
		}
		if before := s.valueIn(row.Before, name); !before.IsZero() || row.Outcome != record.Superseded {
			v = before
		}
	}
	return v
}

// findTarget finds what the order needs to know of the history: the outcome of the
// rollback that it may join, and the target.
func (r *Reconciler) findTarget(ctx context.Context) {
	s, q := r.state, r.state.order
	q.facts = facts{known: true, declared: s.declared.config}
	if q.open != "" {
		if row, err := r.opt.Store.Lookup(ctx, q.open); err == nil {
			q.openOutcome = row.Outcome
		}
	}
	if q.target, q.err = r.target(ctx, q.Order.(*Rollback).ID); q.err == nil {
		q.config, q.applied = r.complete(ctx, &q.target.Record), r.complete(ctx, s.applied)
	}
}

// target returns the record to go back to: the one named, or the default. While a
// candidate is open that is what is applied.
func (r *Reconciler) target(ctx context.Context, id string) (found *record.Row, err error) {
	s := r.state
	if id != "" {
		row, lerr := r.opt.Store.Lookup(ctx, id)
		found, err = &row, lerr
	} else {
		found, err = r.previous(ctx)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("rollback: %w", err)
	case found == nil:
		return nil, problem.New("rollback", errors.New("no earlier state was applied that is not held"), "choose an id from `agent snapshots`")
	case found.Environment != s.opt.Rules.Environment():
		return nil, fmt.Errorf("rollback: %s belongs to environment %s, this agent to %s", found.ID, found.Environment, s.opt.Rules.Environment())
	case found.Outcome != record.Applied || !found.RollbackPoint:
		return nil, problem.New("rollback", fmt.Errorf("%s was never applied (%s)", found.ID, found.Outcome), "choose one that `agent snapshots` shows as applied")
	}
	if broken := s.check(r.complete(ctx, &found.Record)); len(broken) > 0 {
		return nil, problem.New("rollback", fmt.Errorf("%s is not valid under the present rules: %s", found.ID, broken[0]), "choose another id from `agent snapshots`")
	}
	return found, nil
}

// previous returns the newest applied record that differs from the head and that is not
// held; nil if there is none. What is damaged is no rollback point. A parameter that the
// head lacks as well, and that both are completed with, is no difference.
func (r *Reconciler) previous(ctx context.Context) (*record.Row, error) {
	s := r.state
	now, hold := r.complete(ctx, s.head), s.hold()
	for row, err := range r.rows(ctx) {
		if err != nil { // what came before it is good
			return nil, err
		}
		if row.Outcome != record.Applied || !row.RollbackPoint || !row.Kind.Candidate() {
			continue
		}
		config := r.complete(ctx, &row.Record)
		to := &schema.Configuration{Parameters: config, Provenance: provenanceOf(config, &row.Record)}
		if !s.same(config, now) && s.valid(config) && s.match(hold, to, false) == nil {
			return row, nil
		}
	}
	return nil, nil
}

// restored returns the settlement rec with the earlier value of each parameter that only
// candidates on top of the applied record have, where the engine runs the value of such a
// candidate. It is nil if that needs the backlog, which is not listed yet.
func (s *State) restored(rec *record.Record) *record.Record {
	back := *rec
	for _, name := range s.opt.Rules.Names() {
		runs := s.engine.reading.Parameters.Get(name)
		if runs.IsZero() || s.has(rec, name) {
			continue
		}
		if s.isBacklogStale() {
			return nil
		}
		var before schema.Value
		isTaken := false
		for _, c := range slices.Backward(s.backlog.candidates) { // the oldest that was sent knows what ran before all of them
			if s.has(&c.Record, name) {
				before = cmp.Or(before, s.valueIn(c.Before, name))
				isTaken = isTaken || s.valueIn(&c.Config, name).Equal(runs)
			}
		}
		if isTaken {
			back.Config = back.Config.With(name, cmp.Or(before, s.opt.Rules.Parameter(name).Default))
		}
	}
	return &back
}

// isBacklogStale reports whether the backlog must be listed again.
func (s *State) isBacklogStale() bool { return s.backlog.at != s.position() }

// defaultTarget returns the id of what a rollback without one goes to, "" while it is
// unknown.
func (s *State) defaultTarget() string {
	if s.applied == nil || s.summary.at != s.position() {
		return ""
	}
	return s.summary.previous
}
