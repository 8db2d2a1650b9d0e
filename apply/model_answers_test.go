package apply_test

import (
	"strings"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
)

// asks reports whether a batch is the candidate's, not one that brings the
// engine back from it to what ran before the first Document.
func (m *model) asks(b api.Batch) bool {
	c := m.candidate()
	return c != nil && b.Revision == c.commit && (m.state() != nil || !m.rejectable() || !b.Parameters.Equal(c.before))
}

// maySend judges a batch that is about to be sent: the candidate, never after
// a verdict and never a second time unmarked, or the state that is applied.
func (m *model) maySend(b api.Batch, marked bool) {
	c, l := m.candidate(), &m.life
	if m.asks(b) {
		switch {
		case !b.Parameters.Equal(c.config):
			m.failf("sent %v as %s", b.Parameters.Get(reservoir), c)
		case m.condemned():
			m.failf("sent %s, which is rejected: %s", c, l)
		case (l.sends > 0 || l.found) && !marked:
			m.failf("sent %s again without a mark: %s", c, l)
		case l.cut:
			m.failf("sent %s, which was found marked as sent twice", c)
		}
		return
	}
	state := m.state()
	switch {
	case state != nil && b.Parameters.Equal(state.config):
		if m.drift == apply.DriftReport && !m.open() && !l.own && time.Now().After(l.late) {
			m.failf("sent %s, though drift is only to be reported", state)
		}
	case c == nil && m.open() && b.Parameters.Equal(m.head().config):
	case state == nil && c != nil && b.Parameters.Equal(c.before):
	default:
		m.failf("sent %v, which is neither the candidate (%s) nor applied (%s)", b.Parameters.Get(reservoir), c, state)
	}
}

// answered notes the engine's answer to a batch.
func (m *model) answered(b api.Batch, a api.Answer) {
	l := &m.life
	l.reached = a.Verdict != api.VerdictNotSent
	if !m.asks(b) {
		l.waysBack++
	}
	if state := m.state(); !m.asks(b) && l.refused && a.Verdict != api.VerdictAccepted && b.Parameters.Equal(state.config) && l.reading.Parameters.Equal(state.config) {
		l.refused = false // it refuses what it runs, or nobody knows: no verdict on the candidate
	}
	if a.Verdict == api.VerdictNotSent || a.Verdict == api.VerdictForeign {
		return
	}
	l.fresh, l.own = false, true
	if a.Verdict == api.VerdictUnknown {
		l.late = time.Now().Add(time.Minute)
	}
	if !m.asks(b) {
		l.wayBackRefused = a.Verdict == api.VerdictRejected || l.waysBack >= 3
		return
	}
	l.sends++
	l.acked = a.Verdict == api.VerdictAccepted
	l.refused = a.Verdict == api.VerdictRejected
	l.broken, l.sentTo = a.Broken, a.Peer
}

// read notes what the engine was read to run.
func (m *model) read(r api.Reading, err error) {
	l, c := &m.life, m.candidate()
	l.reached = err == nil
	if err != nil {
		l.own = l.own || isGone(err)
		if l.broken && isGone(err) {
			l.broken = false
			l.deaths++
		}
		if !l.trial.IsZero() {
			l.ill = max(l.ill, 1)
		}
		return
	}
	if l.broken && r.Peer != l.sentTo {
		l.deaths++
	}
	l.gone = l.gone || (!l.trial.IsZero() && r.Peer != l.reading.Peer)
	l.own = (l.own || r.Peer != l.reading.Peer) && (m.state() == nil || m.open() || !r.Parameters.Equal(m.state().config))
	l.broken, l.reading, l.known, l.fresh = false, r, true, true
	if h := m.head(); h != nil && c == nil && r.Parameters.Equal(h.config) {
		l.waysBack = 0
	}
	if c == nil {
		return
	}
	l.overdue = l.overdue || (l.cut && !r.Parameters.Equal(c.config))
	switch runs := r.Parameters.Equal(c.config); {
	case !runs && (l.acked || !l.trial.IsZero()): // it accepted it, or ran it on probation
		l.lies++
		l.acked = false
		fallthrough
	case !runs:
		l.trial, l.ill = time.Time{}, 0
	case (m.probation > 0 && c.kind == record.KindChange || c.gated) && l.trial.IsZero():
		l.trial = time.Now()
	}
}

// health notes how the engine said it is while a candidate was on probation.
func (m *model) health(h api.Health, err error) {
	l := &m.life
	switch {
	case l.trial.IsZero():
	case err != nil && isGone(err), err == nil && h.Peer != l.reading.Peer:
		l.gone = true
	case err != nil && strings.Contains(err.Error(), "an operator's order"): // given up for it
	case err != nil || !h.Healthy:
		l.ill++
		l.unwell = l.unwell || l.ill >= 2
	default:
		l.ill = 0
	}
}

// begins notes the start of a process, and what it finds.
func (m *model) begins(marked bool) {
	// What an earlier process sent a moment ago may land late.
	m.life = life{own: true, late: time.Now().Add(time.Minute), found: m.candidate() != nil, cut: m.candidate() != nil && marked}
	m.offered, m.orders, m.calls, m.nudged = nil, nil, 0, time.Now()
	if m.gate != nil {
		m.gate.forget()
	}
	m.starts++
}
