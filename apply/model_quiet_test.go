package apply_test

import (
	"slices"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// told is what one process and its predecessors said of candidates: an outcome
// that is final never changes.
type told map[string]record.Outcome

// check holds what is on record and what the status says against the model,
// whenever the agent has nothing to do at once.
func (m *model) check(s *apply.Status, recs []record.Row, c *counts, said told) {
	m.checkRecords(recs, said)
	if m.calls > 0 {
		return // the status is as old as the call that goes on
	}
	m.checkAttempts(s, c, said)
	head, state, l := m.head(), m.state(), &m.life
	if got := heldIn(s); got.String() != m.holdNow().String() {
		m.failf("status says that %s is held, the head says %s", got, m.holdNow())
	}
	runs := l.known && l.reached && state != nil && l.reading.Parameters.Equal(state.config)
	if l.known && (s.Current == nil || !s.Current.Equal(l.reading.Parameters)) {
		m.failf("status says that %v runs, read was %v", s.Current, l.reading.Parameters)
	}
	if s.InSync {
		a, d := s.Attempted, m.newest()
		switch {
		case m.open() || !runs || s.Drift != nil:
			m.failf("in sync, with open %v, the engine on it %v, drift %v", m.open(), runs, s.Drift)
		case d != nil && m.holdNow().holds(d.config):
			m.failf("in sync, and %s is held", m.holdNow())
		case d == nil || d.bad != "" || !d.config.Equal(state.config) || a == nil || a.Revision != d.revision:
			m.failf("in sync, while the source declares %+v and attempted is %+v", d, a)
		}
	}
	if verified := m.candidate() != nil && l.reading.Parameters.Equal(head.config); s.Ready && !runs && !(l.reached && (verified || m.drift == apply.DriftReport && s.Drift != nil && !m.open())) {
		m.failf("ready, while the engine runs %v and %s is applied", l.reading.Parameters.Get(reservoir), state)
	}
	m.offered = m.offered[max(0, len(m.offered)-1):]
}

func heldIn(s *apply.Status) *hold {
	if s.Held == nil {
		return nil
	}
	return &hold{heldSets(s.Held), s.Held.Paused}
}

// checkRecords: every record is there, as it was, with the outcome that the
// model gives it; nothing that was applied is lost, one candidate is open.
func (m *model) checkRecords(recs []record.Row, said told) {
	if len(recs) != len(m.records) {
		m.failf("%d records are listed, want %d", len(recs), len(m.records))
		return
	}
	for i := range recs {
		rec, e := &recs[i], &m.records[len(recs)-1-i]
		if rec.ID != e.id || rec.Commit != e.commit || rec.Index != len(recs)-i || rec.Kind != e.kind || !rec.Config.Equal(e.config) {
			m.failf("record %d is %s, want %s", len(recs)-i, rec.ID, e.id)
		}
		if rec.Outcome != e.outcome {
			m.failf("%s is listed as %s, want %s", e, rec.Outcome, e.outcome)
		}
		if rec.Outcome == record.Pending && i > 0 {
			m.failf("%s is open behind the head", e)
		}
		if before, ok := said[rec.ID]; ok && before != rec.Outcome {
			m.failf("%s was told to be %s, and is %s", e, before, rec.Outcome)
		}
	}
}

// checkAttempts: what is told of a record is what stands, and each outcome is
// counted once.
func (m *model) checkAttempts(s *apply.Status, c *counts, said told) {
	counted := map[record.Outcome]int{}
	for _, a := range s.Attempts {
		if a.Outcome == record.Pending {
			continue
		}
		counted[a.Outcome]++
		i := slices.IndexFunc(m.records, func(e entry) bool { return e.id == a.SnapshotID })
		if i < 0 || a.Outcome == record.Unchanged {
			continue
		}
		if m.records[i].outcome != a.Outcome {
			m.failf("%s was told to be %s and is %s", &m.records[i], a.Outcome, m.records[i].outcome)
		}
		said[a.SnapshotID] = a.Outcome
	}
	for _, o := range record.Outcomes() {
		if n := c.outcome(o); len(s.Attempts) < 50 && n != counted[o] {
			m.failf("%s was counted %d times and told %d times", o, n, counted[o])
		}
	}
}

// recall takes over the history that a play begins with.
func (m *model) recall(recs []record.Row) {
	for _, rec := range slices.Backward(recs) {
		m.records = append(m.records, entry{
			kind: rec.Kind, config: rec.Config, outcome: rec.Outcome, point: rec.RollbackPoint, id: rec.ID, commit: rec.Commit,
		})
	}
	m.applied = len(recs)
}

func (m *model) newest() *declared {
	if len(m.offered) == 0 {
		return nil
	}
	return &m.offered[len(m.offered)-1]
}

// A rest is what must be once nothing is left to do: no fault stands, and
// time has passed.
type rest struct {
	runs    schema.Parameters
	state   apply.Condition
	outcome []record.Outcome // of what is declared, any of these
	inSync  bool
	ready   bool
}

// rests predicts the rest from what is on record, what is declared, and how
// the engine treats what it is sent; runs is what it runs, drifted whether
// somebody else made it.
func (m *model) rests(runs schema.Parameters, drifted bool, takes func(schema.Parameters) bool) (x rest) {
	state, now, d := m.state(), m.holdNow(), m.newest()
	if state == nil {
		x.runs, x.state = runs, apply.StateStarting
	} else {
		x.runs, x.ready = state.config, true
	}
	valid := d != nil && d.bad == ""
	way := state
	if way == nil && m.open() {
		way = m.head() // back to what ran before the first Document
	}
	switch {
	case way != nil && !runs.Equal(way.config) && !takes(way.config):
		x.runs, x.ready, x.state = runs, false, apply.StateDegraded // it refuses the way back
	case state != nil && !runs.Equal(state.config) && drifted && m.drift == apply.DriftReport:
		x.runs, x.state = runs, apply.StateDrifted
	case d != nil && d.bad == record.Refused:
		x.state = apply.StateRefused
	case d != nil && d.bad != "":
		x.state = apply.StateInvalid
	case now != nil && (d == nil || now.holds(d.config)):
		x.state = apply.StateHeld
	case d == nil:
		x.state = apply.StateStarting
	case valid && state != nil:
		x.inSync, x.state = true, apply.StateInSync
	}
	switch {
	case d == nil, x.state == apply.StateDegraded: // the way back comes first
	case d.bad == record.Refused: // a new process may know of what it withdrew for it alone
		x.outcome = []record.Outcome{record.Refused, record.Superseded}
	case d.bad != "":
		x.outcome = []record.Outcome{d.bad}
	case now.holds(d.config):
		x.outcome = []record.Outcome{record.Held, record.Rejected, record.Applied, record.Unchanged}
	case x.runs.Equal(state.config):
		x.outcome = []record.Outcome{record.Applied, record.Unchanged}
	}
	return x
}

// checkRest holds the agent against the rest, and sees that nothing is open.
func (m *model) checkRest(x rest, s *apply.Status, runs schema.Parameters) {
	switch {
	case m.open() && x.state != apply.StateDegraded:
		m.failf("at rest %s is open: %s (%s)", m.head(), s.State, s.Reason)
	case m.candidate() != nil:
		m.failf("at rest the candidate %s is open: %s (%s)", m.head(), s.State, s.Reason)
	}
	if d := m.newest(); d != nil && d.bad == "" && x.state != apply.StateDegraded && !m.holdNow().holds(d.config) && (m.state() == nil || !m.state().config.Equal(d.config)) {
		m.failf("at rest %v is declared, not held and not applied: %s (%s)", d.config.Get(reservoir), s.State, s.Reason)
	}
	if !runs.Equal(x.runs) {
		m.failf("at rest the engine runs %v, want %v: %s (%s)", runs.Get(reservoir), x.runs.Get(reservoir), s.State, s.Reason)
	}
	if s.State != x.state || s.InSync != x.inSync || s.Ready != x.ready {
		m.failf("at rest: %s (%s), in sync %v, ready %v (%s); want %s, %v, %v", s.State, s.Reason, s.InSync, s.Ready, s.Unready, x.state, x.inSync, x.ready)
	}
	if x.outcome != nil && (s.Attempted == nil || !slices.Contains(x.outcome, s.Attempted.Outcome)) {
		m.failf("at rest attempted is %+v, want one of %s", s.Attempted, x.outcome)
	}
	for _, a := range s.Attempts {
		if a.Outcome == record.Pending && !m.open() {
			m.failf("at rest an attempt is pending for ever: %+v", a)
		}
	}
}
