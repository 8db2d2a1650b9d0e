package apply

import (
	"slices"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/watcher/document"
)

// Plan returns the next step. It is pure, and the only place where it is decided what to
// do: each step is followed by another plan, until there is nothing left to do but wait.
func Plan(s *State, now time.Time) Step {
	step := s.plan(now)
	if step.Kind == Wait {
		step = s.planRest(now)
	}
	return step
}

func (s *State) plan(now time.Time) Step {
	switch {
	case s.order != nil:
		return s.planOrder(now)
	case s.opt.Observe || s.isRival():
		if step := s.planObserved(now); step.Kind != Wait {
			return step
		}
		return s.readIfDue(forStatus, now)
	case !s.recovered && !s.source.answered && now.Before(s.started.Add(sourceWait)):
		return Step{} // it may declare what an earlier process had begun
	case s.lost != nil:
		return s.planLost(now)
	case s.isVerified() && s.engine.isBuilding():
		return s.readIfDue(forBuilding, now) // what it builds would take the place of what runs
	case s.isVerified() && s.onProbation():
		return s.planProbation(now)
	case s.isVerified():
		return s.planConfirm(now)
	case s.isOpenSettlement():
		return s.planSettlement(now)
	case s.head == nil || s.isSettled():
		return s.planIdle(now)
	}
	return s.planCandidate(now)
}

// planRest plans what may wait until nothing else is to be done.
func (s *State) planRest(now time.Time) Step {
	every := probeEvery
	if s.disk.err != nil {
		every = probeSoon
	}
	switch {
	case now.Sub(s.disk.probed) >= every:
		return Step{Kind: Probe}
	case s.applied != nil && (s.summary.at != s.position() || s.summary.reported != s.reported()):
		return Step{Kind: Summarize}
	case len(s.facts.values) > 0 && !now.Before(s.facts.next):
		return Step{Kind: SaveFacts}
	case s.compareDue(now):
		return Step{Kind: CompareEngine}
	}
	return Step{Until: s.wake(now)}
}

func (s *State) wake(now time.Time) time.Time {
	wake := now.Add(heartbeat)
	at := func(t time.Time) {
		if t.After(now) && t.Before(wake) {
			wake = t
		}
	}
	at(s.engine.next)
	for _, f := range s.faults {
		at(f.retryAt)
	}
	if s.pending != nil && s.pending.probation != nil {
		at(s.pending.probation.next)
	}
	if !s.recovered {
		at(s.started.Add(sourceWait))
	}
	if s.disk.err != nil {
		at(s.disk.probed.Add(probeSoon))
	}
	at(s.engine.retryAt)
	at(s.facts.next)
	if s.isDenied() && s.policy.err != nil {
		at(s.policy.retryAt)
	}
	return wake
}

func (s *State) readDue(now time.Time) bool { return s.engine.due || !now.Before(s.engine.next) }

// readIfDue plans a reading if it is due, or if a failed assertion is to be tried again.
func (s *State) readIfDue(what purpose, now time.Time) Step {
	if s.readDue(now) || s.rereadDue(now) && what != forStatus && what != forConfirm {
		return Step{Kind: ReadEngine, For: what}
	}
	return Step{}
}

// rereadDue reports whether a failed assertion is to be tried again, and what runs was not
// read since it may be.
func (s *State) rereadDue(now time.Time) bool {
	f := s.faults[stageAssert]
	return f != nil && s.engine.reachable && s.ready(stageAssert, now) && s.engine.at.Before(f.retryAt)
}

// planLost plans for an agent that lost its history: it reads the engine and sends
// nothing.
func (s *State) planLost(now time.Time) Step {
	step := s.readIfDue(forStatus, now)
	if step.Kind == Wait && s.recovered && s.declared.config != nil && s.isNewlyHeld() {
		return Step{Kind: ReportHeld}
	}
	return step
}

// planIdle plans while nothing is pending: the engine is kept on the applied record, then
// what is declared is compared with it.
func (s *State) planIdle(now time.Time) Step {
	if s.engine.isBuilding() {
		return s.readIfDue(forBuilding, now)
	}
	if s.isProposed() && !s.isHeld(true) {
		if step, _ := s.planPolicy(now); step.Kind != Wait {
			return step
		}
	}
	differs, tryable := s.declaredDiffers()
	if step := s.planKeepApplied(!s.recovered && tryable, now); step.Kind != Wait {
		return step
	}
	e, c := &s.engine, s.declared.config
	switch {
	case !e.reachable && (!s.recovered || s.applied == nil):
		return Step{} // the first record needs what the engine runs: a rejection goes back there
	case s.pending != nil: // its confirmation was committed despite an error
		return s.planConfirm(now)
	case c == nil:
		return Step{}
	case s.isHeld(differs):
		if s.isNewlyHeld() {
			return Step{Kind: ReportHeld}
		}
	case s.isDenied():
		return Step{}
	case differs:
		return s.planChange(now)
	case e.reachable && !s.hasOutcome(s.declared.doc.Revision()):
		switch {
		case e.at.Before(s.declared.at):
			return Step{Kind: ReadEngine, For: forApplied}
		case s.runsAll(e.reading, s.applied.Config):
			return Step{Kind: ReportSame}
		}
	}
	return Step{}
}

// isHeld reports whether what is declared is held. What is applied is held only by an
// entry of which it has all values, also those that today's schema does not know.
func (s *State) isHeld(differs bool) bool {
	hold := s.hold()
	if !differs && hold != nil && !hold.Paused {
		return s.match(hold, s.declared.config, true) != nil
	}
	return s.holds(hold, s.declared.config)
}

// planKeepApplied plans to keep the engine on the applied record while nothing is pending,
// or the candidate cannot be sent or ended. At a start what is about to be sent spares the
// engine the applied record. Before a candidate was sent, a difference may be drift.
func (s *State) planKeepApplied(spare bool, now time.Time) Step {
	e, p, applied := &s.engine, s.pending, s.applied
	isOpen := s.isCandidateOpen()
	isTouched := isOpen && (!p.fresh || p.sends > 0)
	switch {
	case !e.unchecked:
		return s.readIfDue(forApplied, now)
	case applied == nil,
		s.runsKnown(e.reading, applied.Config) && (isOpen || !e.reread || !e.several),
		isOpen && s.runsAll(e.reading, s.head.Config):
		return Step{Kind: Accept}
	case spare:
		return Step{Kind: Leave}
	case s.isOwnDoing(applied, now), isTouched, isOpen && s.opt.Drift == DriftCorrect:
		return s.planAssert(applied, forApplied, now)
	case !isOpen && !e.several && !e.reread:
		return Step{Kind: ReadAgain, For: forApplied}
	case !e.several && !e.noted:
		return Step{Kind: NoteDrift, Target: applied}
	case s.opt.Drift == DriftReport, !s.mayCorrect(now):
		return Step{Kind: Leave}
	}
	return s.planAssert(applied, forApplied, now)
}

// planAssert plans to bring the engine to a recorded state, once that may be tried.
func (s *State) planAssert(target *record.Record, what purpose, now time.Time) Step {
	if s.engine.isBuilding() {
		return s.readIfDue(forBuilding, now) // it takes one after the other
	}
	if !s.ready(stageAssert, now) {
		return Step{Kind: Leave}
	}
	return Step{Kind: Assert, Target: target, For: what}
}

// isOwnDoing reports whether a restart, or a late request of ours, explains that the
// engine runs something else than should.
func (s *State) isOwnDoing(should *record.Record, now time.Time) bool {
	e := &s.engine
	return e.returned || e.inflight.explains(e.reading.Parameters, s.differences(e.reading, should.Config), now)
}

// planChange plans to make what is declared the candidate. While it waited something else
// may have been applied, which it need not descend from, or a signer removed. Then the
// source is asked to check it again.
func (s *State) planChange(now time.Time) Step {
	doc, commit := s.declared.doc, appliedCommit(s.applied)
	if doc.Source.Kind != "git" {
		return s.planDeclared(now)
	}
	if doc.Follows == commit || doc.Source.Revision == commit {
		switch step, known := s.planSigner(doc.Source, doc.Source.Revision, now); {
		case !known:
			return step
		case s.signer.trusted:
			return s.planDeclared(now)
		}
	}
	if s.source.rechecked != doc {
		return Step{Kind: AskSource}
	}
	return Step{}
}

// planDeclared plans to commit what is declared, if the policy allows it.
func (s *State) planDeclared(now time.Time) Step {
	if step, allowed := s.planPolicy(now); !allowed {
		return step
	}
	return s.planCommit(s.changeRecord(), now)
}

// planObserved plans to ask the policy about what an agent that only observes would apply.
func (s *State) planObserved(now time.Time) (step Step) {
	if s.opt.Observe && s.engine.known && s.isProposed() {
		step, _ = s.planPolicy(now)
	}
	return step
}

// planSigner reports whether the source said in this turn if it trusts the signer of a
// revision, and plans to ask it. It is unknown while the signers cannot be read.
func (s *State) planSigner(source document.Source, of string, now time.Time) (step Step, known bool) {
	switch {
	case s.signer.of == of:
		return Step{}, true
	case !s.ready(stageSigner, now):
		return Step{}, false
	}
	return Step{Kind: CheckSigner, Source: source, Of: of}, false
}

// planCommit plans to commit a candidate. An engine that was not asked yet which values
// it accepts is asked before the first one.
func (s *State) planCommit(rec record.Record, now time.Time) Step {
	e := &s.engine
	switch {
	case !s.ready(stageCommit, now), !s.ready(stageHook, now):
		return Step{}
	case e.tries == 0 && e.differences == nil && s.compareDue(now):
		return Step{Kind: CompareEngine}
	}
	return Step{Kind: Commit, Record: rec}
}

// compareDue reports whether the engine process is to be asked which values it accepts.
func (s *State) compareDue(now time.Time) bool {
	e := &s.engine
	return e.reachable && !s.isRival() && e.peer != e.reading.Peer && !now.Before(e.retryAt)
}

func (s *State) planCandidate(now time.Time) Step {
	p, e, head := s.pending, &s.engine, s.head
	switch {
	case p == nil || p.id != head.ID:
		return Step{Kind: Adopt}
	case p.rejection != nil:
		return s.planRejection(now)
	case p.owed && !e.isBuilding():
		return Step{Kind: ReadEngine, For: forCandidate}
	case p.mismatch:
		return Step{Kind: ReadAgain, For: forCandidate}
	}
	if step, displaced := s.planSupersede(now); displaced {
		if step.Kind == Wait {
			return s.planKeepApplied(false, now)
		}
		return step
	}
	if e.isBuilding() {
		return s.readIfDue(forCandidate, now)
	}
	if p.doubted != nil {
		return s.planDoubt(now)
	}
	if s.unknownToEngine(head.Config) != nil {
		return s.planUnknownParameters(now)
	}
	if !p.fresh || p.sends > 0 || !e.reachable {
		if step, done := s.planBeforeSend(now); done {
			return step
		}
	}
	before := s.completeBefore()
	isIncomplete := before != nil && p.sends == 0 && !s.retried
	switch {
	case !s.ready(stageSend, now), isIncomplete && !s.ready(stageCommit, now):
		return s.planUnsent(now)
	case isIncomplete:
		rec := s.candidateAgain(head.Held, head.RequestedBy, head.Requester)
		rec.Before = before
		return Step{Kind: Recommit, Record: rec}
	case p.fresh && p.sends == 0 || p.marked:
		return Step{Kind: Send}
	case s.retried: // whoever set the mark was cut short: this would be the third time
		return Step{Kind: Reject, Reason: "cut twice while being applied"}
	}
	return Step{Kind: MarkRetried}
}

// planUnsent plans to look after the engine while the candidate cannot be sent.
func (s *State) planUnsent(now time.Time) Step {
	if s.pending.sends > 0 { // planBeforeSend does
		return Step{}
	}
	if !s.engine.unchecked {
		return s.readIfDue(forCandidate, now)
	}
	return s.planKeepApplied(false, now)
}

// planDoubt plans to find out whether the engine refuses what it runs as well, or only the
// candidate. That is done while it runs the applied record; otherwise it is believed.
func (s *State) planDoubt(now time.Time) Step {
	e := &s.engine
	switch {
	case e.at.Before(s.pending.sent) && (e.reachable || s.readDue(now)):
		return Step{Kind: ReadEngine, For: forHead}
	case e.at.Before(s.pending.sent):
		return Step{}
	case s.runsKnown(e.reading, s.applied.Config):
		return Step{Kind: Recheck}
	}
	return Step{Kind: Reject}
}

// planBeforeSend plans to read whether the candidate runs, and what follows before it is
// sent. It is done if it is not to be sent now.
func (s *State) planBeforeSend(now time.Time) (step Step, done bool) {
	p, e := s.pending, &s.engine
	isKnown := p.fresh || p.wasRead
	if s.readDue(now) || e.reachable && !isKnown || !e.unchecked && s.rereadDue(now) {
		return Step{Kind: ReadEngine, For: forCandidate}, true
	}
	if !e.reachable || p.accepted || p.broken {
		return Step{}, true
	}
	if s.mustRestoreFirst() && !s.isRefused() {
		if e.unchecked {
			return s.planAssert(s.applied, forCandidate, now), true
		}
		return Step{}, s.blocked(stageAssert)
	}
	return Step{}, false
}

// mustRestoreFirst reports whether an engine that came back without the candidate, after
// it had been sent, is brought to the applied record first.
func (s *State) mustRestoreFirst() bool {
	return s.engine.returned && s.pending.sends > 0 && s.applied != nil && !s.runsKnown(s.engine.reading, s.applied.Config) &&
		!s.same(s.head.Config, s.applied.Config)
}

// planSupersede plans to end the candidate where something else is to run: its source
// or the rules changed since it was committed, or a newer valid Document is declared that
// is not held. One that was found at the start is first compared with what the engine
// runs.
func (s *State) planSupersede(now time.Time) (step Step, displaced bool) {
	p, head, c := s.pending, s.head, s.declared.config
	if p.asking != nil && p.asking.failure != "" {
		return s.planWithdrawal(p.asking.failure, head.Held, now), true
	}
	if why := s.declared.refusal; why != nil && head.Kind == record.KindChange && head.Source.Revision == s.declared.doc.Revision() {
		return s.planWithdrawal("its source is not trusted any more: "+why.Reason, head.Held, now), true
	}
	justCommitted := p.fresh && p.sends == 0 && now.Sub(p.started) < signerFresh
	if head.Kind == record.KindChange && head.Source.Kind == "git" && !justCommitted {
		switch step, known := s.planSigner(document.Source(head.Source), head.ID, now); {
		case !known:
			return step, true
		case !s.signer.trusted:
			return s.planWithdrawal("its source is not trusted any more", head.Held, now), true
		}
	}
	if !p.fresh && !s.valid(head.Config) {
		if head.Kind == record.KindRollback && s.isBacklogStale() {
			return Step{Kind: ListBacklog}, true
		}
		why := "found at start, and no longer valid: " + s.check(head.Config)[0].Message
		hold := s.holdBefore()
		if head.Kind == record.KindRollback && head.Held != nil { // not rejected: what the operator holds stays held
			hold = undoneHold(head.Held, why)
		}
		return s.planWithdrawal(why, hold, now), true
	}
	if c == nil || s.same(c.Parameters, head.Config) {
		return Step{}, false
	}
	isBack := s.applied != nil && s.same(c.Parameters, s.applied.Config)
	// What an operator rolls back from is held although it is still applied.
	isHeld := s.holds(head.Held, c) && !(isBack && head.Kind == record.KindChange)
	switch {
	case isHeld, !p.fresh && !p.wasRead:
		return Step{}, false
	case isBack:
		return s.planWithdrawal("the source went back to what is applied", head.Held, now), true
	}
	if step, allowed := s.planPolicy(now); !allowed {
		return step, step.Kind != Wait // a change that is denied does not end the candidate
	}
	return s.planCommit(s.changeRecord(), now), true
}

func (s *State) planWithdrawal(reason string, hold *record.Hold, now time.Time) Step {
	if !s.ready(stageRevert, now) {
		return Step{}
	}
	return Step{Kind: Revert, Record: s.revertRecord(record.Superseded, reason, hold)}
}

// planUnknownParameters plans for an engine that does not know all of the candidate. Nothing of a
// change is sent. Of a rollback it is sent what it knows: going back must not wait.
func (s *State) planUnknownParameters(now time.Time) Step {
	e, p, head := &s.engine, s.pending, s.head
	isRollback := head.Kind == record.KindRollback
	var step Step
	switch {
	case !e.unchecked && (p.unknown || !isRollback):
		step = s.readIfDue(forUnknown, now)
	case !isRollback:
		step = s.planKeepApplied(false, now)
	case !s.runsKnown(e.reading, head.Config) && s.ready(stageAssert, now):
		step = Step{Kind: Assert, Target: head, For: forUnknown}
	case p.unknown:
		step = Step{Kind: Leave}
	}
	isAwaited := slices.ContainsFunc(s.waiters, func(q *request) bool { return q.id() == head.ID })
	if step.Kind == Wait && (!p.unknown || isAwaited) {
		return Step{Kind: ReportUnknown}
	}
	return step
}

// planConfirm plans to confirm the candidate that runs. While the disk fails the engine
// is not forgotten.
func (s *State) planConfirm(now time.Time) Step {
	if s.ready(stageConfirm, now) {
		return Step{Kind: Confirm}
	}
	if s.isSettled() {
		return Step{}
	}
	return s.readIfDue(forConfirm, now)
}

// planRejection plans to record that the candidate is rejected. While the disk fails the
// engine is brought back first.
func (s *State) planRejection(now time.Time) Step {
	why, head := s.pending.rejection, s.head
	if head.Kind == record.KindRollback && s.isBacklogStale() {
		return Step{Kind: ListBacklog}
	}
	hold := s.holdBefore()
	if head.Kind == record.KindChange {
		hold = s.rejectionHold(head, s.applied, why, now)
	}
	rec := s.revertRecord(record.Rejected, why.reason, hold)
	if s.ready(stageRevert, now) {
		return Step{Kind: Revert, Record: rec}
	}
	origin := head // whose `before` it is
	if s.applied != nil {
		origin = s.applied
	}
	rec.ID, rec.Commit = origin.ID, origin.Commit
	return s.planRestore(&rec, now)
}

// planSettlement plans to finish a head that is a revert or a note: the engine is brought
// to it, then it is confirmed. It is never reverted. While the engine cannot be brought
// to it nothing else is committed, with one exception: where the engine refuses that
// state, a valid Document that is not held takes its place.
func (s *State) planSettlement(now time.Time) Step {
	head, c := s.head, s.declared.config
	if s.asserted == head.ID {
		if s.ready(stageConfirm, now) {
			return Step{Kind: Confirm}
		}
		return Step{}
	}
	if s.isRefused() && c != nil && !s.same(c.Parameters, head.Config) && !s.holds(head.Held, c) {
		if step := s.planDeclared(now); step.Kind != Wait {
			return step
		}
	}
	return s.planRestore(head, now)
}

// planRestore plans to bring the engine to a revert or note: the head, or what becomes it
// once the disk accepts that.
func (s *State) planRestore(to *record.Record, now time.Time) Step {
	e, isNote := &s.engine, to.Kind == record.KindNote
	if !e.unchecked || e.isBuilding() {
		return s.readIfDue(forHead, now)
	}
	back := s.restored(to)
	switch {
	case back == nil, isNote && s.isBacklogStale():
		return Step{Kind: ListBacklog}
	case s.runsKnown(e.reading, back.Config) && s.isCandidateOpen():
		return Step{Kind: Leave}
	case s.runsKnown(e.reading, back.Config):
		return Step{Kind: AcceptHead}
	case isNote && !s.isOwnDoing(to, now) && len(s.backlog.candidates) == 0 && s.backlog.whole: // a pause does not end reported drift
		if !e.noted {
			return Step{Kind: NoteDrift, Target: to}
		}
		if s.opt.Drift == DriftReport {
			return Step{Kind: AcceptHead}
		}
	}
	return s.planAssert(back, forHead, now)
}

func (s *State) planProbation(now time.Time) Step {
	p, e := s.pending.probation, &s.engine
	if p == nil {
		return Step{Kind: BeginProbation}
	}
	isLate := !p.next.IsZero() && now.Sub(p.next) > lateness && !s.blocked(stageProbation)
	step, displaced := s.planSupersede(now)
	if displaced && step.Kind != Wait {
		return step
	}
	what := forProbation
	if displaced { // it cannot be ended yet: it must not pass, and may still fail
		what = forApplied
	}
	switch {
	case s.awaitsHooks() && s.pending.asking == nil && !displaced:
		return Step{Kind: AskHooks}
	case s.awaitsHooks(), s.opt.Probation == 0:
		return s.readIfDue(what, now)
	case isLate:
		return Step{Kind: BeginProbation}
	case p.readOwed:
		return Step{Kind: ReadEngine, For: forProbation}
	case now.Before(p.next) && !e.due:
		return Step{}
	case now.Before(p.next) && p.bad > 0: // two hints do not make two failures of one
		return Step{Kind: ReadEngine, For: forProbation}
	}
	return Step{Kind: ReadHealth, For: what}
}
