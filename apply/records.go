package apply

import (
	"cmp"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

func (s *State) changeRecord() record.Record {
	c := s.declared.config
	return s.fill(record.Record{
		Kind: record.KindChange, Description: c.Description, Config: c.Parameters,
		Source: record.Source(s.declared.doc.Source), Provenance: c.Provenance, Experiments: c.Experiments, RollbackPoint: true,
		Held: s.hold(),
	})
}

// candidateAgain returns the candidate at the head as a new record, with another hold or
// requester.
func (s *State) candidateAgain(hold *record.Hold, uid *int, who *record.Requester) record.Record {
	rec := s.fill(s.recordLike(s.head, s.head.Kind, s.head.Description, hold))
	rec.RequestedBy, rec.Requester = uid, who
	return rec
}

// recordLike returns a record with the parameters of another one.
func (s *State) recordLike(of *record.Record, kind record.Kind, description string, hold *record.Hold) record.Record {
	experiments := of.Experiments
	if s.applied != nil && of.Commit == s.applied.Commit { // what was accepted since is not forgotten
		_, experiments = s.lastAccepted()
	}
	return record.Record{
		Kind: kind, Description: description, Held: hold, Config: of.Config, Source: of.Source,
		Provenance: of.Provenance, Experiments: experiments, RollbackPoint: of.RollbackPoint,
	}
}

// revertRecord returns a record that repeats the applied state over the candidate at the
// head. Before anything was applied that is what the engine ran, which is no state to
// roll back to.
func (s *State) revertRecord(outcome record.Outcome, reason string, hold *record.Hold) record.Record {
	back := s.applied
	if back == nil {
		back = &record.Record{Config: s.head.Config, Source: record.Source{Kind: "engine"}}
		if s.head.Before != nil {
			back.Config = *s.head.Before
		}
	}
	rec := s.fill(s.recordLike(back, record.KindRevert, reason, hold))
	rec.OutcomeOf = &record.Settlement{ID: s.head.ID, Outcome: outcome}
	if outcome == record.Rejected {
		if rec.Errors = s.pending.rejection.errors; len(rec.Errors) == 0 {
			rec.Errors = []string{reason}
		}
	}
	return rec
}

// fill returns rec with what every record has: where it belongs, what it takes the place
// of, what ran before (while nothing is applied: before the first candidate), and what
// changes against the applied record.
func (s *State) fill(rec record.Record) record.Record {
	if s.head != nil && !s.isSettled() {
		rec.OutcomeOf = &record.Settlement{ID: s.head.ID, Outcome: record.Superseded}
	}
	rec.Environment, rec.Instance = s.opt.Rules.Environment(), s.opt.Instance
	rec.AgentVersion, rec.SchemaDigest = s.opt.AgentVersion, s.opt.Rules.Schema().Digest()
	e := &s.engine
	switch {
	case s.applied == nil && s.head != nil && s.head.Before != nil:
		before := *s.head.Before // its rejection goes back there; what runs now may be the candidate before it
		for _, name := range rec.Config.Names() {
			if before.Get(name).IsZero() && e.known {
				before = before.With(name, e.reading.Parameters.Get(name))
			}
		}
		rec.Before = &before
	case e.known:
		before := e.reading.Parameters.Select(func(name string) bool { return !rec.Config.Get(name).IsZero() })
		rec.Before = &before
	}
	switch {
	case s.applied != nil:
		rec.Changes = s.opt.Rules.Diff(s.applied.Config, rec.Config)
	case rec.Before != nil:
		rec.Changes = s.opt.Rules.Diff(*rec.Before, rec.Config)
	}
	return rec
}

// completeBefore returns what ran before the candidate at the head, with what the engine
// reports now and did not when it was committed: only the record of what is sent can say
// where a rejection goes back to. It is nil if nothing is missing.
func (s *State) completeBefore() *schema.Parameters {
	var before *schema.Parameters
	for _, name := range s.known(s.head.Config).Names() {
		v := s.engine.reading.Parameters.Get(name)
		if v.IsZero() || !s.valueIn(s.head.Before, name).IsZero() || s.has(s.applied, name) {
			continue
		}
		completed := cmp.Or(before, s.head.Before, new(schema.Parameters)).With(name, v)
		before = &completed
	}
	return before
}
