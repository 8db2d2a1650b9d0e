package apply

import (
	"errors"
	"regexp"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/watcher/document"
)

// A State is what the Reconciler knows. The inbox and the results of steps change it.
// Plan and View only read it.
type State struct {
	opt     *Options
	started time.Time
	// recovered: the first look at the engine is over, or was not needed.
	recovered bool

	rules
	history
	faults
	disk     diskState
	facts    unsavedFacts
	declared declared
	source   sourceState
	engine   engineState
	drift    driftState

	pending *pending // the candidate at the head that is not settled yet, if this process knows it
	// asserted is the id of the revert or note at the head that the engine was read
	// to run. It is confirmed next.
	asserted string
	signer   signerCheck
	policy   policyState
	// takenBackRevision is the revision that required hooks did not answer about last.
	takenBackRevision string

	order   *request   // the order that is carried out now
	waiters []*request // rollbacks on record whose callers wait for the outcome

	report report
	// degraded was told; outOfSync: so was something that in sync ends.
	degraded, outOfSync bool
	shown               Condition // published last
	shownSince          time.Time
	outbox
}

// history is what the Store had after the last call.
type history struct {
	head, applied *record.Record
	lost          *record.Hold // see Store.Lost
	retried       bool
	total         int
	behind        error
	repairs       []record.Repair

	summary summary
	backlog backlog
}

// summary is what a listing says of the records up to head.
type summary struct {
	at       position
	active   int    // applied records within the default page
	previous string // the target of a rollback without one
	// reported are the parameters that the engine reported then. The target depends on
	// them.
	reported string
}

// backlog is what lies between the applied record and the head.
type backlog struct {
	at         position
	candidates []record.Row // newest first
	whole      bool         // all candidates could be read
	held       *record.Hold // in force before the rollbacks at the head
	failed     bool         // not all could be read: it is listed again in the next turn
}

// A position has the commits of the head and of the applied record, "" for none.
type position struct{ head, applied string }

func (h *history) position() position { return position{commitOf(h.head), commitOf(h.applied)} }

func commitOf(rec *record.Record) string {
	if rec == nil {
		return ""
	}
	return rec.Commit
}

// unsavedFacts are small facts that are recorded once nothing else is to be done.
type unsavedFacts struct {
	values map[string][]byte
	next   time.Time // when to try
}

// keep has a fact recorded. What is on record already costs nothing.
func (f *unsavedFacts) keep(name string, value []byte) {
	if f.values == nil {
		f.values = map[string][]byte{}
	}
	f.values[name] = value
}

type diskState struct {
	writable bool
	probed   time.Time
	err      error // of the last probe, nil if it succeeded
}

// declared is the newest Document, and what loading it returned.
type declared struct {
	doc        *document.Document
	at         time.Time
	since      time.Time             // when it could first be tried: received, or no longer held
	config     *schema.Configuration // nil while invalid or refused
	violations *schema.Violations
	refusal    *document.Refusal // why the source does not trust it
}

type sourceState struct {
	answered  bool   // it delivered a Document or an error since the start
	next      string // revision of a Document that is in the inbox, "" for none
	mode      string
	lastGood  time.Time
	err       error
	counted   time.Time          // the last good read that was counted
	lost      time.Time          // since when it cannot be read, zero while it can
	rechecked *document.Document // the last one that it was asked to check again
}

type engineState struct {
	reading   api.Reading // the last one; valid while known
	known     bool
	reachable bool
	err       error // of the last attempt, nil if it succeeded
	at        time.Time
	lost      time.Time // since when it is unreachable, zero while it is not
	due       bool      // read it now
	next      time.Time // read it then at the latest
	// unchecked: no step followed from the reading yet. reread: it is the last of
	// several in a row. noted: its drift was recorded.
	unchecked, reread, noted bool
	// returned: the process changed, or was gone, since it was last read to run what
	// it should. So a difference is not drift.
	returned  bool
	asserting bool // a recorded state is being sent
	inflight  inflight
	lastSent  schema.Parameters // of the last batch
	// foreign counts the attempts in a row that met a wrong server. wrongLabel: the
	// engine refused our environment.
	foreign    int
	wrongLabel bool
	// several: readings disagreed, so there are several engines behind the socket.
	// agree counts the readings in a row that agreed.
	several bool
	agree   int
	compared
	since runsSince
}

// isBuilding reports whether the engine was last read to build something that it does not
// run yet.
func (e *engineState) isBuilding() bool { return e.reachable && e.reading.Building != nil }

// compared is what an engine process says of the values that it accepts.
type compared struct {
	peer        api.Peer
	bounds      map[string]api.Bounds
	differences []string // from the schema of the agent
	tries       int      // without a response
	retryAt     time.Time
}

// runsSince says since when the engine runs config.
type runsSince struct {
	config schema.Parameters
	at     float64 // Unix seconds; 0 while unknown
}

// signerCheck is the last result of asking the source whom it trusts. It holds for one
// turn of the loop.
type signerCheck struct {
	of      string // a revision, or the id of a record; "" for none
	trusted bool
}

// A pending is what this process knows of the candidate at the head. A restart loses
// it, and begins again from the records.
type pending struct {
	id      string
	fresh   bool      // committed by this process
	wasRead bool      // the engine was read since it was found
	started time.Time // when its Document was received
	delivery
	undone    int  // how often the engine went back by itself during probation
	unknown   bool // it was reported that the engine lacks a parameter of it
	verified  bool // the engine was read to run it
	probation *probation
	asking    *asking    // nil until the required hooks are asked
	rejection *rejection // why it is rejected, until the revert is recorded
	// doubted is a rejection that names no parameter of the change. It is not believed
	// before the engine accepted what it runs.
	doubted *rejection
}

// A delivery is what became of sending a candidate.
type delivery struct {
	marked  bool      // this process marked it as being sent again
	sent    time.Time // when the last send began
	sends   int       // batches that reached the engine
	crashes int       // sends during which the engine ended
	// broken: the connection of the last send broke, and it is unknown whether the
	// engine ended. sentTo is the process that it was sent to.
	broken bool
	sentTo api.Peer
	// accepted: the engine accepted it. owed: it is read back next. mismatch: the last
	// reading after that showed something else; mismatches counts them.
	accepted, owed, mismatch bool
	mismatches               int
}

type rejection struct {
	by     string // "engine", "probation" or "hook"
	reason string
	errors []string
}

func newState(opt *Options, now time.Time) *State {
	return &State{
		opt: opt, started: now, disk: diskState{writable: true}, faults: faults{},
		report: report{attempts: []Attempt{}, shown: -1}, rules: rules{opt.Rules, map[schema.Digest][]schema.Violation{}},
	}
}

func (s *State) foldStore() {
	st := s.opt.Store
	s.head, s.applied, s.lost, s.retried = st.Head(), st.Applied(), st.Lost(), st.Retried()
}

// isSettled reports whether no candidate, revert or note waits to be confirmed.
func (s *State) isSettled() bool {
	return s.head != nil && s.applied != nil && s.head.Commit == s.applied.Commit
}

// isCandidateOpen reports whether the head is a candidate that is not settled.
func (s *State) isCandidateOpen() bool {
	return s.head != nil && s.head.Kind.Candidate() && !s.isSettled()
}

// isVerified reports whether the engine was read to run the candidate at the head.
func (s *State) isVerified() bool {
	return s.pending != nil && s.pending.verified && s.head != nil && s.pending.id == s.head.ID
}

// isRecording reports whether a step puts on record what the engine responded to a
// candidate, or brings it back while the disk refuses that. A stop or an order waits for
// it.
func (s *State) isRecording(step Step) bool {
	p := s.pending
	switch step.Kind {
	case Confirm, Recheck, Reject, Revert, ListBacklog:
		return true
	case ReadEngine, Assert, AcceptHead:
		return p != nil && (p.owed || p.doubted != nil || p.rejection != nil)
	}
	return false
}

// openRollback returns the id of the rollback at the head that is not settled, or "".
func (s *State) openRollback() string {
	if !s.isCandidateOpen() || s.head.Kind != record.KindRollback {
		return ""
	}
	return s.head.ID
}

// isPaused reports whether an operator paused the agent.
func (s *State) isPaused() bool { hold := s.hold(); return hold != nil && hold.Paused }

// isRival reports whether another agent has the state directory, which was away. Then
// the engine is that agent's.
func (s *State) isRival() bool { return errors.Is(s.disk.err, record.ErrInUse) }

// gitCommit tells a commit from the digest of files.
var gitCommit = regexp.MustCompile(`^[0-9a-f]{40}$`)

// appliedCommit returns the source's commit that the applied record came from, or "".
func appliedCommit(applied *record.Record) string {
	if applied == nil || !gitCommit.MatchString(applied.Source.Revision) {
		return ""
	}
	return applied.Source.Revision
}

// refresh folds what follows from the facts alone, before each plan.
func (s *State) refresh(now time.Time) {
	if s.head == nil { // the history is gone
		s.pending, s.drift.now = nil, nil
	}
	if s.lost != nil {
		s.pending, s.asserted, s.drift.now = nil, "", nil
		return
	}
	if s.opt.Observe || s.isRival() {
		s.recovered = s.recovered || s.opt.Observe
		return
	}
	if s.isVerified() && s.isSettled() && s.onProbation() {
		s.pending = nil // somebody else confirmed it while the directory was away
	}
	if s.isOpenSettlement() && s.asserted == s.head.ID && s.blocked(stageConfirm) && s.readDue(now) {
		s.asserted = "" // until the disk accepts it, the engine is looked after
	}
	if s.head != nil && !s.isSettled() || s.isVerified() || s.isOpenSettlement() {
		return
	}
	s.clear(stageSend, stageProbation)               // nothing is pending
	if _, tryable := s.declaredDiffers(); !tryable { // the failed change is no longer declared
		s.clear(stageSigner, stageHook)
		if s.disk.writable {
			s.clear(stageCommit, stageRevert)
		}
	}
	if s.engine.reachable && !s.engine.unchecked {
		s.recovered = true
	}
}

// isOpenSettlement reports whether the head is a revert or note to be confirmed, maybe
// once more: a confirmation that failed may have happened all the same.
func (s *State) isOpenSettlement() bool {
	return s.head != nil && !s.head.Kind.Candidate() && (!s.isSettled() || s.asserted == s.head.ID || s.blocked(stageConfirm))
}

// declaredDiffers reports whether what is declared differs from what is applied, and
// whether it may also be tried.
func (s *State) declaredDiffers() (differs, tryable bool) {
	c := s.declared.config
	differs = c != nil && (s.applied == nil || !s.same(c.Parameters, s.applied.Config))
	return differs, differs && !s.holds(s.hold(), c) && !s.isDenied()
}

// An outbox has what is to be told once the status is published.
type outbox struct {
	notices []notice
	replies []func()
	changed bool // what changed is published even without an event
}
