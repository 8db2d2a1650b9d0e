package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// do carries out a step and folds its result into the State. No other function asks the
// engine or the source, or writes to the store.
func (r *Reconciler) do(ctx context.Context, step Step) {
	defer r.flush()
	s, now := r.state, time.Now()
	defer func() { r.log.Debug("step", "kind", step.Kind.String(), "took", time.Since(now)) }()
	switch step.Kind {
	case ReadEngine:
		reading, err := r.read(ctx)
		s.foldPurpose(step.For, reading, err)
	case ReadAgain:
		r.doReadAgain(ctx, step.For)
	case ReadHealth:
		call, done := r.calls.begin(ctx, true)
		health, err := r.opt.Engine.Health(call)
		done()
		if err != nil {
			s.failed("read")
		}
		s.foldHealth(health, err, now, time.Now())
		if p := s.pending.probation; p != nil && step.For != forProbation {
			p.until = time.Now().Add(r.opt.Probation)
		}
	case CompareEngine:
		r.publish() // the engine may take its time
		r.compareEngine(ctx)
	case Send:
		r.doSend(ctx)
	case Recheck:
		r.doRecheck(ctx)
	case Assert:
		r.doAssert(ctx, step)
	case JudgeChange:
		r.judgeChange(ctx)
	case JudgeRollback:
		r.judgeRollback(ctx, &step.Record)
	case CheckSigner:
		r.checkSigner(step)
	case AskSource:
		s.source.rechecked = s.declared.doc
		r.publish() // the source asks what is applied
		r.opt.Source.Sync()
	case Commit, Recommit:
		r.doCommit(ctx, step)
	case Revert:
		r.doRevert(ctx, step)
	case Note:
		r.doNote(ctx, step)
	case MarkRetried:
		r.doMark(ctx)
	case AskHooks:
		r.askHooks(ctx)
	case Confirm:
		r.doConfirm(ctx)
	case ClearLost:
		r.doClearLost(ctx)
	case Probe:
		r.doProbe(ctx)
	case FindTarget:
		r.findTarget(ctx)
	case ListBacklog:
		r.listBacklog(ctx)
	case Summarize:
		r.summarize(ctx)
	case SaveFacts:
		for _, name := range slices.Sorted(maps.Keys(s.facts.values)) {
			if err := r.opt.Store.SetFact(ctx, name, s.facts.values[name]); err != nil {
				s.repeat(slog.LevelWarn, "fact", "fact not recorded", "fact", name, "error", err)
				s.facts.next = now.Add(probeEvery)
				s.disk.probed = time.Time{} // the directory may be another
				break
			}
			delete(s.facts.values, name)
		}
	case Adopt:
		s.pending = &pending{id: s.head.ID, started: now}
		s.recovered = true
		if !slices.ContainsFunc(s.report.attempts, func(a Attempt) bool { return a.SnapshotID == s.head.ID && a.Outcome == record.Pending }) {
			s.attemptPending(s.head)
		}
		s.log(slog.LevelInfo, "found a candidate that is not settled; asking the engine", "snapshot", s.head.ID)
	case Reject:
		s.pending.rejection = cmp.Or(s.pending.doubted, &rejection{by: "engine", reason: step.Reason})
		s.pending.doubted = nil
	case Accept:
		s.foldAccept(now)
	case Leave:
		s.engine.unchecked = false
		if next := s.nextCorrection(); next.After(now) { // drift is corrected then
			s.engine.next = earlier(s.engine.next, next)
		}
	case NoteDrift:
		s.foldDrift(step.Target, now)
	case AcceptHead:
		s.asserted, s.engine.unchecked = s.head.ID, false
	case BeginProbation:
		s.foldBegin(now)
	case ReportUnknown:
		s.foldUnknown()
	case ReportHeld:
		s.attemptHeld()
	case ReportSame:
		s.attemptUnchanged()
		s.keepAccepted()
	case Join:
		outcome := s.order.openOutcome
		s.await(step.Of)
		if step.Of != s.openRollback() && outcome != "" && outcome != record.Pending {
			s.resolve(step.Of, outcome, "it was under way when this order came")
		}
	case Answer:
		s.answer(step.Result, step.Err)
	}
}

func (s *State) answer(res Result, err error) {
	s.reply(s.order, res, err)
	s.order = nil
}

// await makes the caller of the order wait for record id.
func (s *State) await(id string) {
	s.order.record.Store(id)
	s.waiters = append(s.waiters, s.order)
	s.order = nil
}

func (s *State) foldPurpose(what purpose, reading api.Reading, err error) {
	p := s.pending
	switch what {
	case forCandidate:
		s.foldCandidate(reading, err)
	case forProbation:
		s.foldProbation(reading, err, time.Now())
	case forConfirm:
		switch {
		case errors.Is(err, errInterrupted):
		case p.probation != nil: // it is confirmed by evidence of now
			p.probation.passed = false
			s.foldProbation(reading, err, time.Now())
		case err == nil && !s.runsAll(reading, s.head.Config):
			p.verified, p.accepted = false, false // it ran it before, so this is not a false accept
		}
	case forUnknown:
		p.wasRead = p.wasRead || err == nil
	case forBuilding:
		if err == nil && p != nil && p.verified && !s.runsAll(reading, s.head.Config) {
			p.verified, p.accepted = false, false
		}
	case forStatus:
		s.engine.unchecked = false
		if s.lost != nil && err == nil {
			s.recovered, s.engine.returned = true, false
		}
	}
}

// foldCandidate folds a reading that was to tell whether the candidate runs.
func (s *State) foldCandidate(reading api.Reading, err error) {
	p := s.pending
	isPrompt := p.owed
	p.owed = false
	if err != nil {
		if p.broken && isGone(err) {
			s.foldCrash()
		}
		return
	}
	p.wasRead = true
	if p.broken && reading.Peer != p.sentTo {
		s.foldCrash()
	}
	p.broken = false
	switch {
	case p.rejection != nil && !s.runsAll(reading, s.head.Config):
	case reading.Building != nil:
		p.owed = p.accepted
	case s.runsAll(reading, s.head.Config):
		if isPrompt {
			s.phase("engine", time.Since(p.sent))
		}
		s.foldVerified()
	case p.accepted:
		p.mismatch = true
	case !s.mustRestoreFirst() && s.unknownToEngine(s.head.Config) == nil: // else it is brought back meanwhile
		s.engine.returned = false
	}
}

func (s *State) foldVerified() {
	p := s.pending
	if p.accepted {
		s.clear(stageSend, stageAssert)
	}
	p.verified, p.mismatch, s.engine.unchecked = true, false, false
}

// foldCrash counts an engine that ended while it was taking the candidate. Twice is a
// rejection.
func (s *State) foldCrash() {
	p := s.pending
	p.broken = false
	p.crashes++
	s.log(slog.LevelWarn, "the engine died while it was taking the candidate", "snapshot", p.id, "deaths", p.crashes)
	switch {
	case p.crashes >= 2:
		p.rejection = &rejection{by: "engine", reason: "the engine died twice while taking it"}
	case !p.fresh:
		// Whoever committed it may have met a crash too and been cut before the mark.
		// No restart of the agent may crash the engine a third time.
		p.rejection = &rejection{by: "engine", reason: "the engine died while taking it, and an earlier try by an agent that was cut short may have ended the same way"}
	}
}

// doReadAgain reads the engine several times. For a candidate that was accepted: readings
// that disagree are several engines, not a rejection; one that runs it now took its time;
// the same mismatch twice is a rejection.
func (r *Reconciler) doReadAgain(ctx context.Context, what purpose) {
	s, p, e := r.state, r.state.pending, &r.state.engine
	first := e.reading
	err := r.readAgain(ctx)
	if what != forCandidate {
		return
	}
	p.mismatch = false
	switch {
	case err != nil: // the next reading tells
		return
	case !e.several && s.runsAll(e.reading, s.head.Config):
		s.foldVerified()
		return
	}
	p.accepted = false
	if e.several || !s.managed(e.reading).Equal(s.managed(first)) {
		e.several = true
		s.block(stageSend, errSeveral)
		return
	}
	if p.mismatches++; p.mismatches < 2 {
		s.log(slog.LevelWarn, "the engine accepted and runs something else; sending once more", "snapshot", s.head.ID)
		s.clear(stageSend)
		return
	}
	text := "the engine accepted it twice and runs something else: " + changesText(s.differences(first, s.head.Config))
	p.rejection = &rejection{by: "engine", reason: text, errors: []string{text}}
}

// doSend sends the candidate. What the engine accepts is read back next.
func (r *Reconciler) doSend(ctx context.Context) {
	s, p := r.state, r.state.pending
	wasReachable := s.engine.reachable
	p.sent = time.Now()
	s.endRepeat("unknown")
	answer := r.sendRecord(ctx, s.head)
	if answer.Verdict != api.VerdictNotSent && answer.Verdict != api.VerdictForeign {
		p.sends++
	}
	switch answer.Verdict {
	case api.VerdictAccepted:
		p.accepted, p.owed = true, true
	case api.VerdictRejected:
		if why := answer.Blamed; why != "" && s.known(s.head.Config).Get(why).IsZero() {
			s.blameServer("it calls the parameter " + why + " unknown, which was not sent: " + strings.Join(answer.Errors, "; "))
			s.engine.due = true
			break
		}
		why := &rejection{by: "engine", reason: strings.Join(answer.Errors, "; "), errors: answer.Errors}
		isNamed := slices.ContainsFunc(s.head.Changes, func(c schema.Change) bool { return strings.Contains(why.reason, c.Parameter) })
		if isNamed || s.applied == nil || s.unknownToEngine(s.applied.Config) != nil {
			p.rejection = why
		} else {
			p.doubted = why
		}
		return
	case api.VerdictNotSent:
		if wasReachable && !isGone(answer.Err) { // it can be read, and does not accept anything
			hint := cmp.Or(problem.Hint(answer.Err), "look at the engine's log") + again
			s.block(stageSend, newProblem("the change was not sent: "+answer.Err.Error(), hint)).server = true
			s.engine.due = true // it is looked after meanwhile
		}
	case api.VerdictForeign:
		s.block(stageSend, foreignProblem(answer.Err)).server = true
		s.engine.due = true
	default:
		p.broken, p.sentTo, p.accepted = answer.Broken, answer.Peer, false
		s.suspect(stageSend, newProblem("what became of the change is not known: "+errorText(answer.Err),
			"look at the engine's log; the agent reads what runs and sends again; "+stopHint(s.applied)))
	}
	r.unmark(ctx)
}

// blameServer notes that the engine refuses everything, which is not the fault of the
// change: it stays pending.
func (s *State) blameServer(why string) {
	s.block(stageSend, newProblem("the engine accepts no change at all: "+why,
		"this is a fault of the DTESN server, not of the configuration: show it to whoever runs the server"+again+"; "+stopHint(s.applied))).server = true
}

// doRecheck sends the applied record, which runs, to an engine whose refusal of the
// candidate names none of its changes. If it refuses that too, the server is at fault.
func (r *Reconciler) doRecheck(ctx context.Context) {
	s, p := r.state, r.state.pending
	why := p.doubted
	p.doubted = nil
	answer := r.sendRecord(ctx, s.applied)
	s.engine.due = true
	switch answer.Verdict {
	case api.VerdictAccepted:
		p.rejection = why
		return
	case api.VerdictRejected:
		s.blameServer("it refuses what it runs already, too: " + why.reason)
	default:
		s.suspect(stageSend, newProblem("whether the engine refuses the change is not known: "+errorText(answer.Err),
			"look at the engine's log; the agent sends again; "+stopHint(s.applied)))
	}
	r.unmark(ctx)
}

// doMark makes it durable that the candidate is sent again. Who finds the mark without
// having set it does not send: that would be the third time.
func (r *Reconciler) doMark(ctx context.Context) {
	s, p := r.state, r.state.pending
	p.marked = true // even if the next line fails: it may have happened
	err := r.opt.Store.SetRetried(ctx, true)
	s.foldStore()
	if err != nil {
		const failure = "the second try cannot be recorded, so it was not made"
		s.diskFailed(stageCommit, err, failure)
		s.block(stageSend, newProblem(failure+": "+err.Error(), "see what is said of the disk"))
		p.marked = s.retried
	}
}

// unmark takes back a mark where nothing was sent, or the connection held. If that fails
// the mark stays, which is safe.
func (r *Reconciler) unmark(ctx context.Context) {
	s, p := r.state, r.state.pending
	if p.marked && p.crashes == 0 && !p.broken {
		_ = r.opt.Store.SetRetried(ctx, false) // committed despite an error, maybe
		s.foldStore()
		p.marked = s.retried
	}
}

func (r *Reconciler) doAssert(ctx context.Context, step Step) {
	s, e := r.state, &r.state.engine
	wasDrift := step.For == forApplied && s.isSettled() && (e.reread || e.several || !s.isOwnDoing(step.Target, time.Now()))
	done := r.assert(ctx, step.Target)
	now := time.Now()
	switch step.For {
	case forApplied:
		if done && wasDrift {
			s.drift.contest.corrected = now
			s.drift.contest.corrections++
		}
		if done {
			s.foldAccept(now)
		}
	case forCandidate:
		if done || s.isRefused() {
			e.returned = false
		}
	case forHead:
		switch {
		case s.isCandidateOpen(): // the disk does not take its revert yet
		case done:
			s.asserted = s.head.ID
		case s.isRefused():
			r.tellSettled(ctx, s.head) // waiting does not change the outcome
		}
	}
}

func (r *Reconciler) checkSigner(step Step) {
	s := r.state
	why, err := r.opt.Source.CheckSigner(step.Source)
	if err != nil {
		hint := cmp.Or(problem.Hint(err), "give the agent the file back") + "; it goes on by itself"
		s.block(stageSigner, newProblem(step.Of+" is not sent, for whether its signer is trusted cannot be told: "+err.Error(), hint))
		return
	}
	s.clear(stageSigner)
	s.signer = signerCheck{step.Of, why == nil}
}

// commit appends a record. If it is not on record, the stage failed and snap is nil; with
// an error it may be on record all the same.
func (r *Reconciler) commit(ctx context.Context, rec record.Record, st stage, failure string) (snap *record.Record, err error) {
	s, before := r.state, commitOf(r.state.head)
	snap, err = r.opt.Store.Commit(ctx, rec)
	s.foldStore()
	if err != nil {
		snap = nil
		if s.head != nil && s.head.Parent == before && s.head.Commit != before { // else it is somebody else's
			snap = s.head
		}
	}
	if snap == nil {
		s.diskFailed(st, err, failure)
		s.answerNotRecorded(st)
	}
	return snap, err
}

func (r *Reconciler) doCommit(ctx context.Context, step Step) {
	s, before, start := r.state, r.state.head, time.Now()
	wasSettled, old := s.isSettled(), s.pending
	if s.engine.reachable {
		r.opt.Engine.Prepare()
	}
	snap, _ := r.commit(ctx, step.Record, stageCommit, "the change cannot be recorded, so it was not sent")
	if snap == nil {
		return
	}
	s.phase("commit", time.Since(start))
	s.disk.writable = true
	s.clear(stageCommit, stageSend, stageAssert, stageProbation, stageSigner) // the last of a settlement whose place it takes
	s.endDrift(time.Now())                                                    // what runs from here on is the agent's doing
	s.asserted, s.engine.unchecked = "", false
	s.pending = &pending{id: snap.ID, fresh: true, started: start}
	if snap.Kind == record.KindChange {
		s.pending.started = s.declared.since
	}
	if step.Kind == Recommit { // who waits for the one before waits for this one, and what the engine did counts on
		p := s.pending
		if p.fresh = false; old != nil && old.id == before.ID {
			p.fresh, p.wasRead, p.sends, p.crashes, p.mismatches = old.fresh, old.wasRead, old.sends, old.crashes, old.mismatches
			p.rejection, p.broken, p.sentTo = old.rejection, old.broken, old.sentTo
		}
		for _, w := range s.waiters {
			if w.id() == before.ID {
				w.record.Store(snap.ID)
			}
		}
	}
	if snap.OutcomeOf != nil {
		s.finish(snap.OutcomeOf.ID, record.Superseded, "a newer one took its place: "+snap.ID)
	}
	s.attemptPending(snap)
	if before != nil && !wasSettled && !before.Kind.Candidate() {
		r.tellSettled(ctx, before)
	}
	if !s.engine.reachable {
		s.log(slog.LevelInfo, "on record; it goes to the engine as soon as that answers", "snapshot", snap.ID, "changes", changesText(snap.Changes))
	}
	if s.order == nil {
		return
	}
	if snap.Held != nil && snap.Held.Paused && (before.Held == nil || !before.Held.Paused) {
		s.emitEvent(notice{Event: holdEvent(snap, before), level: slog.LevelInfo, text: "Pause: " + snap.Held.Reason})
	}
	if _, ok := s.order.Order.(*Pause); ok {
		s.answer(Result{Outcome: record.Applied, SnapshotID: snap.ID, Text: "paused: nothing is tried until `agent resume`, but for the rollback under way, which goes on as " + snap.ID}, nil)
		return
	}
	s.await(snap.ID)
}

func (r *Reconciler) doRevert(ctx context.Context, step Step) {
	s, candidate, start := r.state, r.state.head, time.Now()
	rejected := step.Record.OutcomeOf.Outcome == record.Rejected
	failure := "the candidate cannot be withdrawn on record"
	if rejected {
		failure = "the rejection cannot be recorded; the engine is brought back first"
	}
	snap, err := r.commit(ctx, step.Record, stageRevert, failure)
	if snap == nil {
		return
	}
	s.clear(stageRevert, stageSend, stageProbation, stageSigner)
	s.engine.due, s.engine.unchecked = true, false // the candidate may run
	if rejected {
		s.phase("commit", time.Since(start))
		why, text := s.pending.rejection, "rejected by the engine; going back to the last good state"
		switch why.by {
		case byProbation:
			text = "rejected on probation; going back to the last good state"
		case byHook:
			text = "rejected by a required hook; going back to the last good state"
		}
		s.report.update(candidate.ID, func(a *Attempt) {
			a.rejected, a.Reason = why.reason, "rejected, and the engine is being brought back: "+why.reason
		})
		event := RecordEvent(EventRejected, candidate)
		event.Outcome, event.Cause, event.Description, event.Reason = record.Rejected, why.by, event.Reason, why.reason
		s.emitEvent(notice{
			Event: event, level: slog.LevelWarn, text: text,
			attrs: append([]any{"snapshot", candidate.ID, "reason", why.reason, "changes", changesText(candidate.Changes)}, sourceAttrs(candidate)...),
		})
		return
	}
	s.pending = nil
	r.tellSettled(ctx, snap) // final, whatever the engine does
	r.answerHold(step, snap, candidate, err)
}

func (r *Reconciler) doNote(ctx context.Context, step Step) {
	s, before, wasSettled := r.state, r.state.head, r.state.isSettled()
	snap, err := r.commit(ctx, step.Record, stageCommit, "the hold cannot be recorded")
	if snap == nil {
		return
	}
	if !wasSettled {
		r.tellSettled(ctx, before)
	}
	s.clear(stageCommit)
	s.engine.due, s.engine.unchecked = true, false
	if err == nil {
		s.disk.writable, s.disk.err = true, nil
	}
	r.answerHold(step, snap, before, err)
}

// answerHold emits what an order did to the hold of the record before, and answers it.
func (r *Reconciler) answerHold(step Step, snap, before *record.Record, err error) {
	s := r.state
	if s.order == nil {
		return
	}
	s.emitEvent(notice{Event: holdEvent(snap, before), level: slog.LevelInfo, text: snap.Description})
	s.declared.since = time.Now()
	step.Result.SnapshotID = snap.ID
	s.answer(inForce(step.Result, err), nil)
}

// inForce returns res, or pending if the disk took it with an error.
func inForce(res Result, err error) Result {
	if err != nil {
		res.Outcome, res.Text = record.Pending, "it is in force, but a power cut may undo it until the disk takes it: "+problem.Text(err)
	}
	return res
}

// answerNotRecorded answers the order, if there is one, that the disk did not take. It is
// not tried again by itself.
func (s *State) answerNotRecorded(st stage) {
	if s.order == nil {
		return
	}
	why := s.faults[st].why
	s.clear(st)
	s.answer(Result{}, problem.New(s.order.verb(), fmt.Errorf("%w; nothing was changed", why), strings.TrimSuffix(why.Hint, again)+", then repeat the command"))
}

// doConfirm makes what runs the applied record, durably. Nothing is told before.
func (r *Reconciler) doConfirm(ctx context.Context) {
	s, p, head := r.state, r.state.pending, r.state.head
	isCandidate := s.isVerified()
	isRepeated := !isCandidate && s.asserted != head.ID // it was committed despite an error
	start := time.Now()
	err := r.opt.Store.Confirm(ctx)
	s.foldStore()
	if err != nil {
		what := "the engine runs the change, but it cannot be put on record durably"
		if !isCandidate && !isRepeated {
			what = "the engine was brought back, but that cannot be put on record durably"
		}
		s.diskFailed(stageConfirm, err, what)
		return
	}
	if isRepeated {
		s.clear(stageConfirm)
		s.pending = nil
		r.finishRest(ctx)
		return
	}
	now := time.Now()
	s.disk.writable = true
	s.clear(stageConfirm, stageSend, stageAssert)
	s.pending, s.engine.returned, s.recovered = nil, false, true
	s.runsSince(head.Config, false, now)
	if !isCandidate {
		r.foldSettled(ctx, head)
		return
	}
	s.clear(stageProbation, stageHook)
	s.endDrift(now)
	s.phase("confirm", now.Sub(start))
	s.phase("total", now.Sub(p.started))
	s.succeeded("transaction")
	s.finish(head.ID, record.Applied, s.appliedText(head))
	event := RecordEvent(EventApplied, head)
	if p.asking != nil {
		event.Agreed = p.asking.names
	}
	if event.Outcome = record.Applied; head.Kind == record.KindRollback {
		event.Type, event.Cause = EventRolledBack, byOperator
	}
	s.emitEvent(notice{
		Event: event, level: slog.LevelInfo, text: "applied",
		attrs: append([]any{
			"snapshot", head.ID, "kind", string(head.Kind), "changes", changesText(head.Changes), "description", head.Description,
			"took", now.Sub(p.started).Round(10 * time.Microsecond).String(),
		}, sourceAttrs(head)...),
	})
	r.finishRest(ctx)
	if hold := s.hold(); hold != nil {
		s.log(slog.LevelInfo, s.heldText(hold))
	}
}

// foldSettled folds that a revert or a note is confirmed.
func (r *Reconciler) foldSettled(ctx context.Context, head *record.Record) {
	s := r.state
	s.asserted = ""
	s.clear(stageRevert, stageCommit)
	if s.runsKnown(s.engine.reading, head.Config) {
		s.endDrift(time.Now())
	}
	if o := head.OutcomeOf; o != nil && o.Outcome == record.Rejected {
		s.log(slog.LevelInfo, "the engine is back on the last good state", "rejected", o.ID, "revert", head.ID)
	}
	r.tellSettled(ctx, head)
	r.tellTakenBack(ctx, head)
	r.finishRest(ctx)
}

// foldUnknown reports that the engine lacks parameters of the candidate, and answers who
// waits for it.
func (s *State) foldUnknown() {
	p := s.pending
	p.wasRead, p.unknown = true, true // it does not run it
	why := s.unknownProblem(s.unknownToEngine(s.head.Config))
	s.repeat(slog.LevelWarn, "unknown", why.Error(), "snapshot", s.head.ID, "hint", why.Hint)
	if s.head.Kind == record.KindRollback {
		s.resolve(s.head.ID, record.Pending, why.Error()+": it runs the rest of "+s.head.ID+", which stays pending; "+why.Hint)
	}
}

// doClearLost ends the pause of an agent that found no history that it could read.
func (r *Reconciler) doClearLost(ctx context.Context) {
	s := r.state
	lost := s.lost.Entry(nil)
	err := r.opt.Store.ClearLost(ctx)
	s.foldStore()
	if err != nil && s.lost != nil {
		s.diskFailed(stageCommit, err, "the end of the pause cannot be recorded")
		s.answerNotRecorded(stageCommit)
		return
	}
	o := s.order.Order.(*Resume)
	reason := cmp.Or(o.Reason, "by the operator")
	s.emitEvent(notice{Event: Event{Type: EventResumed, Cause: byOperator, Reason: reason, By: &o.Requester, Released: []record.Entry{lost}}, level: slog.LevelInfo, text: "Resume: " + reason})
	s.declared.since = time.Now()
	text := "resumed: what the source declares is tried"
	switch own := s.hold(); {
	case own != nil:
		text = "resumed; what is on record stays in force: " + own.Text() + "; it ends with another `agent resume`"
	case s.head == nil:
		text += ", and begins a new history"
	}
	s.answer(inForce(Result{Outcome: record.Applied, Text: text}, err), nil)
}

// doProbe finds out whether the state directory can be written. One that was away, or was
// replaced, is read again.
func (r *Reconciler) doProbe(ctx context.Context) {
	s, before := r.state, r.state.head
	s.disk.probed = time.Now()
	err := r.opt.Store.Probe(ctx)
	s.foldStore()
	isOther := s.head != before
	if isOther { // what was pending is found there, or is not
		s.pending, s.asserted = nil, ""
		s.clear(stageSend, stageProbation, stageConfirm)
	}
	if err != nil {
		s.repeatKind(slog.LevelWarn, "probe", diskKind(err), "the state directory cannot be written", "directory", r.opt.StateDir, "error", err, "hint", diskHint(err, r.opt.StateDir))
	} else {
		if isOther || s.disk.err != nil {
			r.finishRest(ctx)
		}
		if isOther || !s.disk.writable {
			s.retryNow(stageRevert, stageCommit, stageConfirm, stageSigner) // what the disk refused may succeed now
		}
		s.endRepeat("probe")
	}
	s.disk.writable, s.disk.err = err == nil, err
}
