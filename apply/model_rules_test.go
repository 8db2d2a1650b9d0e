package apply_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// A model is the transaction as the design describes it, without any of the
// how: what was offered, what is on record, and what the engine answered. It
// is told of everything that passes between the agent, its store and its
// engine, knows which records, sends and confirmations are due or allowed at
// each moment, and what must be true once nothing is left to do.
type model struct {
	probation time.Duration
	drift     apply.DriftMode
	gate      *jury     // of the required hooks, nil for none
	nudged    time.Time // when something last came that may be acted upon at once

	offered []declared    // by the source since the agent was last idle; the last one counts
	orders  []apply.Order // that may be carried out now
	joined  string        // the rollback that was under way when the last order came, its commit
	records []entry       // records[i] has the index i+1
	applied int           // the index of the applied record, 0 for none
	life    life          // what the process that runs now was answered
	commits int           // since the last step began
	starts  int           // since the last step began
	calls   int           // that go on now
	// obeyed: a record was made that an order may have made; carriedOut: that
	// nothing but an order can have made.
	obeyed, carriedOut bool
	broken             []string   // rules that were broken
	turns              sync.Mutex // see fence
}

// declared is one state of the source: Parameters, or neither valid nor
// trusted ones.
type declared struct {
	revision string
	config   schema.Parameters
	bad      record.Outcome // invalid, refused, or "" for valid
}

// An entry is one record, as the model says it must be.
type entry struct {
	kind    record.Kind
	config  schema.Parameters
	hold    *hold // in force while it is the head
	settles record.Outcome
	outcome record.Outcome
	// of the store
	id, commit, revision string
	before               schema.Parameters // what the engine ran when it was made
	point                bool              // a state to go back to
	ordered, needed      bool              // an order allows it, and nothing else does
	gated                bool              // required hooks must agree to it
}

// A hold is what must not be tried.
type hold struct {
	digests []schema.Digest
	paused  bool
}

func (h *hold) holds(p schema.Parameters) bool {
	return h != nil && (h.paused || slices.Contains(h.digests, p.Digest()))
}

func holding(paused bool, digests ...schema.Digest) *hold {
	slices.Sort(digests)
	if digests = slices.Compact(digests); len(digests) == 0 && !paused {
		return nil
	}
	return &hold{digests, paused}
}

func (h *hold) list() []schema.Digest {
	if h == nil {
		return nil
	}
	return slices.Clone(h.digests)
}

func (h *hold) String() string {
	if h == nil {
		return "nothing"
	}
	return fmt.Sprintf("%.6s, paused %v", h.digests, h.paused)
}

// life is what one process was answered about the candidate at the head. All
// but the engine's reading begins anew with each candidate and each process.
type life struct {
	reading api.Reading
	known   bool // it read the engine at least once
	reached bool // the last call reached it
	fresh   bool // read since the last send

	// own: a start of either side, or a send of ours, may be why it runs
	// something else than what is applied.
	own  bool
	late time.Time // until then a lost request of ours may still land
	// wayBackRefused: the engine's last word on a state it was to be brought back to.
	// waysBack is how often in a row it was sent that and did not run it since.
	wayBackRefused bool
	waysBack       int

	found bool // the candidate was committed by an earlier process
	// repeats: it is recorded once more, by an order of its own or with more in its
	// record. In the second case what the engine did with it counts on.
	repeats bool
	cut     bool // and was marked as sent twice
	overdue bool // and was then read not to run
	sends   int
	refused bool
	acked   bool
	lies    int
	deaths  int
	broken  bool
	sentTo  api.Peer
	trial   time.Time // when its probation began
	ill     int       // health reads that failed in a row
	gone    bool      // the engine ended or restarted on probation
	unwell  bool      // it was ill twice in a row: that stands, whatever comes
	asked   bool      // the required hooks were, about the candidate
	excused bool      // none were required then
}

func (m *model) failf(format string, args ...any) {
	m.broken = append(m.broken, fmt.Sprintf(format, args...))
}

func (m *model) head() *entry {
	if len(m.records) == 0 {
		return nil
	}
	return &m.records[len(m.records)-1]
}

func (m *model) state() *entry {
	if m.applied == 0 {
		return nil
	}
	return &m.records[m.applied-1]
}

func (m *model) open() bool { return m.applied != len(m.records) }

// candidate is the record that is open, if it asks for new Parameters.
func (m *model) candidate() *entry {
	if h := m.head(); m.open() && h.kind.Candidate() {
		return h
	}
	return nil
}

// holdNow is the hold in force. A change that is applied ended it.
func (m *model) holdNow() *hold {
	h := m.head()
	if h == nil || h.kind == record.KindChange && !m.open() {
		return nil
	}
	return h.hold
}

// condemned: the candidate must not be sent again, nor be confirmed.
func (m *model) condemned() bool {
	l := &m.life
	if said, isVeto := m.vetoed(); isVeto && said.at.Before(time.Now()) { // else it may not be known yet
		return true
	}
	return l.refused || l.deaths >= 2 || (l.found && l.deaths >= 1) || l.unwell || l.gone
}

// rejectable: there is evidence that allows a rejection.
func (m *model) rejectable() bool {
	l := &m.life
	if _, isVeto := m.vetoed(); isVeto {
		return true
	}
	return m.condemned() || l.lies >= 2 || l.overdue || l.repeats && l.deaths+l.lies >= 1
}

// allowed lists every record that may follow the head now.
func (m *model) allowed() (may []entry) {
	for _, d := range m.offered {
		may = append(may, m.after(d)...)
	}
	if c := m.candidate(); c != nil && m.rejectable() {
		h := m.holdBefore()
		if c.kind == record.KindChange {
			h = holding(false, append(h.list(), c.config.Digest())...)
		}
		may = append(may, m.back(record.Rejected, h))
	}
	if said, ok := m.said(); ok && said.err != nil { // it is unknown whether they agree
		may = append(may, m.back(record.Superseded, m.head().hold))
	}
	if m.state() == nil {
		return may // no order can be carried out
	}
	now := m.holdNow()
	for _, order := range m.orders {
		var e []entry
		switch order := order.(type) {
		case *apply.Rollback:
			e = m.rollbacks(order)
			switch {
			case order.ID != "" || !order.Pause:
			case m.rollingBack():
				e = append(e, m.paused()) // the one that is under way
			case m.joined == m.head().commit: // it was under way, and is applied by now
				e = append(e, m.noteOrBack(holding(true, now.list()...)))
			}
		case *apply.Pause:
			switch {
			case now != nil && now.paused:
			case m.rollingBack():
				e = []entry{m.paused()}
			default:
				e = []entry{m.noteOrBack(holding(true, now.list()...))}
			}
		case *apply.Resume:
			if now != nil {
				e = []entry{m.noteOrBack(nil)}
			}
		}
		for i := range e {
			e[i].ordered = true
		}
		may = append(may, e...)
	}
	return may
}

// after is what may be recorded because the source declares d.
func (m *model) after(d declared) []entry {
	head, state, now, c := m.head(), m.state(), m.holdNow(), m.candidate()
	change := entry{kind: record.KindChange, config: d.config, point: true, hold: now}
	if m.open() {
		change.settles = record.Superseded
	}
	switch {
	case d.bad == record.Refused && c != nil && c.kind == record.KindChange && c.revision == d.revision:
		return []entry{m.back(record.Superseded, now)} // not trusted any more
	case d.bad != "":
	case c != nil && m.life.found && !m.life.known: // first it is asked whether the engine runs it
	case c != nil && c.kind == record.KindChange && state != nil && d.config.Equal(state.config):
		return []entry{m.back(record.Superseded, now)} // the source went back
	case now.holds(d.config):
	case c != nil && state != nil && d.config.Equal(state.config):
		return []entry{m.back(record.Superseded, now)} // the source went back
	case !m.open() && state != nil && d.config.Equal(state.config):
	case m.open() && d.config.Equal(head.config):
	case m.open() && c == nil && !m.life.wayBackRefused: // first the way back
	default:
		return []entry{change}
	}
	return nil
}

// back is the revert of the candidate.
func (m *model) back(o record.Outcome, h *hold) entry {
	e := entry{kind: record.KindRevert, config: m.head().before, hold: h, settles: o}
	if state := m.state(); state != nil {
		e.config, e.point = state.config, state.point
	}
	return e
}

func (m *model) noteOrBack(h *hold) entry {
	if m.candidate() != nil {
		return m.back(record.Superseded, h)
	}
	e := entry{kind: record.KindNote, config: m.head().config, hold: h, point: m.head().point}
	if m.open() {
		e.settles = record.Superseded
	}
	return e
}

func (m *model) rollingBack() bool {
	c := m.candidate()
	return c != nil && c.kind == record.KindRollback
}

// paused is the rollback under way, with a pause.
func (m *model) paused() entry {
	return entry{kind: record.KindRollback, config: m.head().config, point: true, settles: record.Superseded, hold: holding(true, m.holdNow().list()...)}
}

// holdBefore is the hold that a rejected candidate leaves as it was; rollbacks whose
// place it took held nothing either.
func (m *model) holdBefore() *hold {
	if m.head().kind != record.KindRollback {
		return m.head().hold
	}
	var before *hold
	for i := len(m.records) - 2; i >= 0; i-- {
		if e := &m.records[i]; e.kind != record.KindRollback || e.outcome == record.Applied {
			if e.kind != record.KindChange || e.outcome != record.Applied {
				before = e.hold
			}
			break
		}
	}
	if now := m.head().hold; now != nil && now.paused && (before == nil || !before.paused) {
		return holding(true, before.list()...)
	}
	return before
}

// rollbacks are the records an order to go back may make: it holds what is applied or
// pending, what is declared and what was held before, but not its target.
func (m *model) rollbacks(order *apply.Rollback) (may []entry) {
	target := m.target(order.ID)
	if target == nil {
		return nil
	}
	declares := []*declared{nil}
	for i := range m.offered {
		declares = append(declares, &m.offered[i])
	}
	for _, d := range declares {
		digests := append(m.holdNow().list(), m.head().config.Digest(), m.state().config.Digest())
		if d != nil && d.bad == "" {
			digests = append(digests, d.config.Digest())
		}
		digests = slices.DeleteFunc(digests, func(d schema.Digest) bool { return d == target.config.Digest() })
		now := m.holdNow()
		e := entry{kind: record.KindRollback, config: target.config, point: true, hold: holding(order.Pause || (now != nil && now.paused), digests...)}
		if m.open() {
			e.settles = record.Superseded
		}
		may = append(may, e)
	}
	return may
}

// target is the state to go back to: the one named, or the newest that was
// applied, differs from the head and is not held.
func (m *model) target(id string) *entry {
	head := m.head()
	for i := len(m.records) - 1; i >= 0; i-- {
		e := &m.records[i]
		switch {
		case e.outcome != record.Applied || !e.point:
		case id != "" && e.id == id:
			return e
		case id == "" && e.kind.Candidate() && !e.config.Equal(head.config) && !slices.Contains(m.holdNow().list(), e.config.Digest()):
			return e
		}
	}
	return nil
}

// mayCommit judges a record that is about to be written, and returns what the
// model says of it.
func (m *model) mayCommit(rec record.Record) entry {
	got := entry{kind: rec.Kind, config: rec.Config, point: rec.RollbackPoint}
	got.gated = m.gate != nil && rec.Kind == record.KindChange && len(rec.Changes) > 0
	m.mayRetry(&got)
	if rec.Held != nil {
		got.hold = holding(rec.Held.Paused, heldSets(rec.Held)...)
	}
	if rec.OutcomeOf != nil {
		got.settles = rec.OutcomeOf.Outcome
	}
	may := m.allowed()
	fits := slices.DeleteFunc(slices.Clone(may), func(e entry) bool {
		return e.kind != got.kind || !e.config.Equal(got.config) || e.point != got.point || e.settles != got.settles || e.hold.String() != got.hold.String()
	})
	ordered := func(e entry) bool { return e.ordered }
	if len(fits) > 0 {
		got.ordered = slices.ContainsFunc(fits, ordered)
		got.needed = got.ordered && !slices.ContainsFunc(fits, func(e entry) bool { return !e.ordered })
		return got
	}
	var texts []string
	for _, e := range may {
		texts = append(texts, e.String())
	}
	m.failf("committed %s upon %s; allowed: [%s]; answers so far: %s", &got, m.head(), strings.Join(texts, " | "), m.life)
	return got
}

// said returns what the required hooks said of the candidate, false while that is nothing.
func (m *model) said() (said, bool) {
	if c := m.candidate(); c != nil && c.gated {
		return m.gate.answer(c.commit)
	}
	return said{}, false
}

func (m *model) vetoed() (said, bool) {
	s, ok := m.said()
	var veto *apply.Veto
	return s, ok && errors.As(s.err, &veto)
}

// agreed reports whether nobody stands in the way of the candidate, and has not for the
// whole of its probation.
func (m *model) agreed() bool {
	c := m.candidate()
	if c == nil || !c.gated || m.life.excused {
		return true
	}
	s, ok := m.said()
	return ok && s.err == nil && time.Since(s.at) >= m.probation
}

// mayAsk judges that the required hooks are about to be asked: about a change that was
// read to run, once.
func (m *model) mayAsk(names []string) {
	m.fence()
	c, l := m.candidate(), &m.life
	switch {
	case c == nil || !c.gated || !l.fresh || !l.reading.Parameters.Equal(c.config):
		m.failf("asked about %s: %s", m.head(), l)
	case m.condemned():
		m.failf("asked about %s, which is rejected: %s", c, l)
	case l.asked:
		m.failf("asked about %s again", c)
	}
	l.asked, l.excused = true, len(names) == 0
}

// mayRetry judges that what the required hooks did not answer about is tried again: not at
// once, unless something else came since.
func (m *model) mayRetry(e *entry) {
	h := m.head()
	if !e.gated || m.open() || h == nil || h.kind != record.KindRevert || len(m.records) < 2 {
		return
	}
	before := m.records[len(m.records)-2]
	s, ok := m.gate.answer(before.commit)
	if ok && s.err != nil && before.outcome == record.Superseded && before.config.Equal(e.config) && time.Since(s.at) < 15*time.Second && s.at.Sub(m.nudged) > 5*time.Minute {
		m.failf("tried %s again %s after nobody answered", e, time.Since(s.at))
	}
}

func (l life) String() string {
	return fmt.Sprintf("known %v runs %v, found %v, cut %v, sends %d, refused %v, lies %d, deaths %d, unwell %v, gone %v", l.known,
		l.reading.Parameters.Get(reservoir), l.found, l.cut, l.sends, l.refused, l.lies, l.deaths, l.unwell, l.gone)
}

func (e *entry) String() string {
	if e == nil {
		return "nothing"
	}
	return fmt.Sprintf("%s %v (settles %q, holds %s)", e.kind, e.config.Get(reservoir), e.settles, e.hold)
}

// committed notes a record that stands.
func (m *model) committed(e entry, snap *record.Record) {
	if snap.Index != len(m.records)+1 {
		m.failf("record %d follows record %d", snap.Index, len(m.records))
	}
	if h := m.head(); h != nil {
		if snap.Parent != h.commit {
			m.failf("%s does not stand on %s", snap.ID, h.id)
		}
		if e.settles != "" {
			h.outcome = e.settles
		}
	}
	if h := m.head(); h != nil && m.applied == 0 {
		e.before = h.before // whatever the candidates before it did to the engine
	} else if m.life.known {
		e.before = m.life.reading.Parameters
	}
	h := m.candidate()
	isRepeated := h != nil && e.kind == h.kind && e.config.Equal(h.config)
	e.id, e.commit, e.revision, e.outcome = snap.ID, snap.Commit, snap.Source.Revision, record.Pending
	m.records = append(m.records, e)
	m.commits++
	m.obeyed = m.obeyed || e.ordered
	m.carriedOut = m.carriedOut || e.needed
	l := m.life
	m.life = life{repeats: isRepeated, reading: l.reading, known: l.known, reached: l.reached, fresh: l.fresh, own: l.own, late: l.late, wayBackRefused: l.wayBackRefused, waysBack: l.waysBack}
}

// mayConfirm judges that the head is about to be called applied: the engine was
// read to run it after the last send, nothing speaks against it, and its
// probation is over.
func (m *model) mayConfirm() {
	head, l := m.head(), &m.life
	runs := l.known && l.fresh && l.reading.Parameters.Equal(head.config)
	switch {
	case !m.open():
	case m.candidate() == nil:
		if !runs && (head.kind != record.KindNote || m.drift != apply.DriftReport) {
			m.failf("confirmed %s, which the engine was not read to run", head)
		}
	case !runs:
		m.failf("confirmed %s, which the engine was not read to run: %s", head, l)
	case m.condemned():
		m.failf("confirmed %s, which is rejected: %s", head, l)
	case !m.agreed():
		m.failf("confirmed %s, to which the required hooks did not agree: %s", head, l)
	case m.probation > 0 && head.kind == record.KindChange && (l.trial.IsZero() || time.Since(l.trial) < m.probation || l.ill > 0):
		m.failf("confirmed %s %s into its probation, %d bad health reads", head, time.Since(l.trial), l.ill)
	}
}

// confirmed notes that the applied ref names the head.
func (m *model) confirmed() {
	m.applied = len(m.records)
	if h := m.head(); h.outcome == record.Pending {
		h.outcome = record.Applied
	}
	for i := range m.records { // what stands behind it and was never settled
		if m.records[i].outcome == record.Pending {
			m.records[i].outcome = record.Applied
		}
	}
}
