package apply

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

// View returns the status of a State. It is pure.
func View(s *State, now time.Time) *Status {
	declared := s.opt.Rules.Schema()
	v := &Status{
		Environment: s.opt.Rules.Environment(), Instance: s.opt.Instance, Schema: SchemaStatus{declared.File(), declared.Digest()},
		TotalSnapshots: s.total, MaxSnapshots: s.opt.MaxSnapshots, ActiveSnapshots: s.summary.active,
		BackupDirectory: s.opt.StateDir, AutoBackupEnabled: true, StateVolatile: s.opt.Volatile,
		Attempts: s.report.attempts, Held: s.hold(), Drift: s.drift.now, LastDrift: s.drift.last,
		Source: s.viewSource(), Experiments: []schema.Membership{}, Engine: s.viewEngine(), Repairs: append([]record.Repair{}, s.repairs...),
		Running: s.viewRunning(), Applied: s.applied, Policy: s.policy.status, Unrecorded: s.faults[stageCommit] != nil, openRollback: s.openRollback(),
		checks: s.viewChecks(), sourceStaleAt: s.source.lastGood.Add(s.opt.SourceStale),
	}
	if a := s.report.last(); a != nil {
		copied := *a
		v.Attempted = &copied
	}
	if doc := s.declared.doc; doc != nil {
		v.Seen = Seen{Revision: doc.Revision(), At: record.Unix(s.declared.at)}
	}
	if s.source.next != "" {
		v.Seen = Seen{Revision: s.source.next, At: record.Unix(now)}
	}
	if c := s.declared.config; c != nil && c.Experiments != nil {
		v.Experiments = c.Experiments
	}
	if s.engine.known {
		runs := s.engine.reading.Parameters
		v.Current = &runs
	}
	v.InSync = s.inSync(v)
	v.Unready = s.unready(now)
	v.Ready = v.Unready == ""
	state, why := s.word(v)
	v.State, v.Reason, v.Hint = state, why.Error(), why.Hint
	s.addBroken(v)
	s.addDisk(v)
	s.addSource(v)
	s.addPolicy(v)
	return v
}

// viewChecks returns the health checks, but for the one that the clock decides. An agent
// that only observes makes no snapshot and sets no label.
func (s *State) viewChecks() Checks {
	e := &s.engine
	ours := e.reading.Environment == s.label()
	return Checks{
		ConfigManagerInitialized: s.recovered,
		ConfigLoaded:             (s.applied != nil || s.opt.Observe) && e.known && s.valid(e.reading.Parameters),
		SnapshotsAvailable:       s.applied != nil || s.opt.Observe,
		BackupDirectoryWritable:  s.disk.writable,
		EngineReachable:          e.reachable,
		EngineEnvironment:        e.reachable && !e.wrongLabel && (ours || s.opt.Observe),
	}
}

func (s *State) viewSource() SourceStatus {
	src := &s.source
	v := SourceStatus{
		Kind: s.opt.SourceKind, Location: s.opt.SourceLocation, Mode: src.mode, LastRead: unixOrNever(src.lastGood),
		LastError: errorText(src.err), Hint: problem.Hint(src.err), FailingSince: unixOrNever(src.lost),
	}
	if doc := s.declared.doc; doc != nil {
		v.Revision, v.Origin = doc.Revision(), originOf(doc.Source)
	}
	return v
}

func (s *State) viewEngine() EngineStatus {
	e := &s.engine
	v := EngineStatus{
		Socket: s.opt.Socket, Reachable: e.reachable, Environment: e.reading.Environment, LastRead: unixOrNever(e.at),
		LastError: errorText(e.err), Hint: problem.Hint(e.err), FailingSince: unixOrNever(e.lost), Differences: append([]string{}, e.differences...),
	}
	if !e.lost.IsZero() {
		v.Word = engineWord(e.err)
	}
	return v
}

func unixOrNever(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return record.Unix(t)
}

// viewRunning returns the record of what the engine was last read to run.
func (s *State) viewRunning() Running {
	v, rec := Running{RollbackSnapshot: s.defaultTarget()}, s.runningRecord()
	if rec == nil {
		return v
	}
	v.SnapshotID, v.Revision, v.SourceRevision = rec.ID, rec.Commit, rec.Source.Revision
	v.Origin = originOf(document.Source(rec.Source))
	v.Since, v.Confirmed = rec.Timestamp, rec == s.applied
	if since := s.engine.since; since.at != 0 && s.same(since.config, rec.Config) {
		v.Since = since.at
	}
	return v
}

// inSync reports whether what is declared is applied and was read to run, and nothing is
// held or pending. For an agent that only observes what runs is all that counts.
func (s *State) inSync(v *Status) bool {
	c, e := s.declared.config, &s.engine
	if s.opt.Observe {
		return e.reachable && c != nil && v.Seen.Revision == s.declared.doc.Revision() && !s.holds(v.Held, c) && s.runsAll(e.reading, c.Parameters)
	}
	a := v.Attempted
	return s.isSettled() && e.reachable && !e.isBuilding() && !e.several && !s.isRival() && s.runsAll(e.reading, s.applied.Config) &&
		(v.Held == nil || !v.Held.Paused) && v.Drift == nil && c != nil && s.same(c.Parameters, s.applied.Config) &&
		a != nil && a.Revision == v.Seen.Revision && (a.Outcome == record.Applied || a.Outcome == record.Unchanged)
}

// unready says why /readyz does not succeed, "" if it does: the engine responds and runs
// the applied, valid set, whatever the source declares; or drift is only reported.
func (s *State) unready(now time.Time) string {
	e := &s.engine
	switch {
	case !e.reachable && e.err != nil && !e.asksToWait(now):
		return "the engine " + engineWord(e.err)
	case !s.recovered:
		return "starting: the engine was not asked yet"
	case s.opt.Observe:
		return ""
	case s.isRival():
		return "another agent has the state directory"
	case s.lost != nil && s.valid(e.reading.Parameters):
		return ""
	case s.applied == nil:
		return "nothing was applied yet"
	case s.runsKnown(e.reading, s.applied.Config),
		s.pending != nil && s.pending.verified, // it runs what only the disk has yet to confirm
		s.drift.now != nil && s.isSettled() && s.opt.Drift == DriftReport:
		return ""
	}
	if why := s.obstacles(); why != nil {
		return why.Error()
	}
	return "the engine does not run the applied snapshot"
}

// word returns the one word for how things stand, and why.
func (s *State) word(v *Status) (Condition, *problem.Error) {
	obstacles := s.obstacles()
	e, head, d := &s.engine, s.head, &s.declared
	isOpen := head != nil && !s.isSettled()
	isLost := !e.reachable && e.err != nil
	isOnlySent := s.blocked(stageSend) && len(s.faults) == 1 // a change, and the engine cannot be read since
	switch {
	case s.opt.Observe:
		return StateObserving, s.observation()
	case s.isRival():
		return StateDegraded, newProblem("nothing is sent to the engine: "+s.disk.err.Error(),
			"one engine and one state directory have one agent; this one goes on by itself when the other has ended")
	case e.isBuilding() && (obstacles == nil || isOnlySent):
		return StateApplying, s.buildingProblem()
	case obstacles != nil && !(isLost && isOnlySent):
		return StateDegraded, obstacles
	case isLost:
		why := waitingProblem(e.err)
		switch {
		case obstacles != nil && strings.Contains(obstacles.Error(), rootText(e.err)): // the same response
			why = newProblem(why.Error(), why.Hint+"; "+stopHint(s.applied))
		case obstacles != nil:
			why = newProblem(why.Error()+"; "+obstacles.Error(), obstacles.Hint)
		}
		return StateWaiting, why
	case e.several:
		return StateDegraded, errSeveral
	case head != nil && s.unknownToEngine(head.Config) != nil:
		return StateDegraded, s.unknownProblem(s.unknownToEngine(head.Config))
	case !s.recovered:
		return StateStarting, newProblem("waiting for the source and the engine", "")
	case s.lost != nil && d.violations == nil && d.refusal == nil:
		return StateHeld, s.heldProblem(v.Held, d.config)
	case isOpen && s.isVerified() && s.pending.probation != nil:
		return StateProbation, s.probationProblem()
	case isOpen:
		return StateApplying, newProblem(head.ID+" is on its way to the engine", "")
	case v.Drift != nil:
		return StateDrifted, s.driftProblem()
	case d.refusal != nil:
		return StateRefused, newProblem(d.refusal.Reason, d.refusal.Hint)
	case d.violations != nil:
		hint := "correct the file"
		if first := d.violations.List[0]; first.Line == 0 && first.Hint != "" { // a file that is missing, or not to be read
			hint = first.Hint
		}
		return StateInvalid, newProblem(d.violations.Error(), hint+"; `agent validate DIR` shows every violation; the engine keeps what it has")
	case s.isDenied() && !(v.Held != nil && v.Held.Paused):
		return StateRefused, s.policyProblem()
	case v.Held != nil && (v.Held.Paused || d.config == nil || !v.InSync && s.holds(v.Held, d.config)):
		return StateHeld, s.heldProblem(v.Held, d.config)
	case v.InSync:
		return StateInSync, newProblem("the engine runs what the source declares", "")
	case d.doc == nil:
		return StateStarting, newProblem("the source showed no document yet", "check --config and --environment")
	case v.Source.LastError != "":
		return StateApplying, newProblem("what was declared last is judged again before it is tried, and the source cannot be read: "+v.Source.LastError, sourceHint(v.Source))
	}
	return StateApplying, newProblem("a newer document is being looked at", "")
}

// buildingProblem says what the engine builds.
func (s *State) buildingProblem() *problem.Error {
	b := s.engine.reading.Building
	what := "something"
	if b.Revision != "" {
		what = problem.Cut(b.Revision, 12)
	}
	if s.head != nil && b.Revision == s.head.Commit {
		what = s.head.ID
	}
	reason := "the engine builds " + what
	if !b.Since.IsZero() {
		reason += " since " + b.Since.UTC().Format(time.RFC3339)
	}
	return newProblem(reason, "")
}

// addBroken adds that what is applied breaks today's schema, which may be newer. It keeps
// running: a pod is not unready because of it.
func (s *State) addBroken(v *Status) {
	if v.Applied == nil {
		return
	}
	if v.Running.Violations = s.check(v.Applied.Config); len(v.Running.Violations) > 0 {
		v.Reason += "; what is applied is not valid under the present rules: " + v.Running.Violations[0].Message
	}
}

// addDisk adds that nothing could be recorded to what does not wait for the disk: the
// next change would find out.
func (s *State) addDisk(v *Status) {
	if s.opt.Observe {
		return
	}
	if s.behind != nil {
		v.Reason += "; the git repository lacks the newest records: " + s.behind.Error()
		v.Hint = cmp.Or(v.Hint, diskHint(s.behind, s.opt.StateDir)+"; they are written as soon as that is possible")
	}
	if s.disk.err == nil || v.State == StateDegraded {
		return
	}
	if v.State == StateInSync {
		v.State = StateDegraded
	}
	v.Reason += "; nothing can be recorded: " + s.disk.err.Error()
	v.Hint = strings.TrimSuffix(diskHint(s.disk.err, s.opt.StateDir)+again+"; "+v.Hint, "; ")
}

// addSource adds that the source cannot be read to what is at rest, or waits for the
// source: what was last seen of it may not be what it has now.
func (s *State) addSource(v *Status) {
	if v.Source.LastError == "" {
		return
	}
	switch v.State {
	case StateStarting, StateInSync, StateRefused, StateInvalid, StateHeld, StateObserving:
		v.Reason += "; now the source cannot be read: " + v.Source.LastError
		v.Hint = sourceHint(v.Source)
	}
}

func (s *State) observation() *problem.Error {
	e, d := &s.engine, &s.declared
	waiting := newProblem("the engine was not asked yet", "")
	switch {
	case !e.reachable && e.err != nil:
		waiting = waitingProblem(e.err)
	case e.reachable && e.reading.Environment != s.label():
		waiting.Hint = fmt.Sprintf("the engine is labelled %q; an agent without --observe would label it %s", e.reading.Environment, s.label())
	}
	switch {
	case d.refusal != nil:
		return newProblem("would not trust the source: "+d.refusal.Reason, waiting.Hint)
	case d.violations != nil:
		return newProblem("would refuse the document: "+d.violations.Error(), waiting.Hint)
	case !e.reachable:
		return waiting
	case d.config == nil:
		return newProblem("the source showed no document yet", waiting.Hint)
	case s.holds(s.hold(), d.config):
		return newProblem("would not try it, held: "+s.heldProblem(s.hold(), d.config).Error(), waiting.Hint)
	}
	if s.isDenied() {
		why := s.policyProblem()
		return newProblem("would refuse it: "+why.Error(), why.Hint)
	}
	changes := s.differences(e.reading, d.config.Parameters)
	for i := range changes { // from what runs to what is declared
		changes[i].Old, changes[i].New = changes[i].New, changes[i].Old
	}
	if len(changes) > 0 {
		return newProblem("would apply: "+changesText(changes), waiting.Hint)
	}
	return newProblem("the engine runs what the source declares", waiting.Hint)
}
