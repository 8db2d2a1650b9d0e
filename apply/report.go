package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

// probeEvery is how old the last write to the state directory may be before
// it is probed; probeSoon is the same while it cannot even be probed.
const probeEvery, probeSoon = 30 * time.Second, 2 * time.Second

// ledger is what listings say of the records up to applied, kept so that a
// status needs no walk through the history.
type ledger struct {
	head     string // commit
	applied  string // commit
	active   int    // applied states within the default page
	previous string // where `agent rollback` without an id goes
	reported string // the parameters that the engine reported then, which decide on that
}

// makeReady asks a new engine for its schema and lets the store get ready, after
// everything was told: nobody waits for it.
func (r *Reconciler) makeReady(ctx context.Context) {
	if before := r.engine.differences; r.engine.reachable && !r.rival() {
		if r.compareSchema(ctx); !slices.Equal(before, r.engine.differences) {
			r.publish()
		}
	}
	r.opt.Store.Prepare(ctx, r.ledger.previous)
}

// account brings the ledger up to date, after the outcome was told.
func (r *Reconciler) account(ctx context.Context) {
	head, applied := r.opt.Store.Head(), r.opt.Store.Applied()
	reported := strings.Join(slices.DeleteFunc(r.opt.Rules.Names(), func(name string) bool { return !r.engine.reading.Knows(name) }), ",")
	if applied == nil || (r.ledger.head == head.Commit && r.ledger.applied == applied.Commit && r.ledger.reported == reported) {
		return
	}
	l := ledger{head: head.Commit, applied: applied.Commit, reported: reported}
	page, err := r.opt.Store.List(ctx, "", r.opt.MaxSnapshots)
	if err != nil {
		r.log.Warn("list", "the snapshots cannot be listed", "error", err)
	}
	for i := range page {
		if page[i].Outcome == record.Applied && page[i].RollbackPoint {
			l.active++
		}
	}
	if rec, err := r.previous(ctx, head); err == nil && rec != nil {
		l.previous = rec.ID
	}
	r.ledger = l
}

// probe finds out whether the state directory can be written, when the last
// write is old or failed.
func (r *Reconciler) probe(ctx context.Context) {
	every := probeEvery
	if r.noProbe != nil {
		every = probeSoon
	}
	if time.Since(r.probed) >= every {
		r.probeNow(ctx)
	}
	if r.noProbe != nil {
		r.wakeAt(r.probed.Add(probeSoon))
	}
}

func (r *Reconciler) probeNow(ctx context.Context) {
	r.probed = time.Now()
	head := r.opt.Store.Head()
	err := r.opt.Store.Probe(ctx)
	anew := r.opt.Store.Head() != head
	if anew { // it was read anew, and what was on its way is found there, or is not
		r.flight, r.settled = nil, ""
		r.clear("send", byProbation)
	}
	if err == nil && (anew || r.noProbe != nil) {
		r.finishGone(ctx)
	}
	if err == nil && (!r.writable || anew) {
		r.retryStages("revert", "commit", "confirm", "vouch") // what the disk refused may go through now
		r.wake = time.Now()
	}
	r.writable, r.noProbe = err == nil, err
	if err != nil {
		r.log.WarnOf("probe", diskKind(err), "the state directory cannot be written", "directory", r.opt.StateDir, "error", err, "hint", diskHint(err, r.opt.StateDir))
	} else {
		r.log.Clear("probe")
	}
}

// rival reports whether another agent has the state directory, which was away.
// Then the engine is that one's.
func (r *Reconciler) rival() bool { return errors.Is(r.noProbe, record.ErrInUse) }

// observe is the whole turn of an agent that only looks.
func (r *Reconciler) observe(ctx context.Context) (more bool) {
	r.recovered = r.recovered || r.opt.Observe
	if r.readDue() {
		_, _ = r.read(ctx) // the status says how it went
	}
	return false
}

// publish swaps in a new status.
func (r *Reconciler) publish() {
	r.noteApplied()
	r.underWay.Store(r.openRollback())
	r.inbox.Lock()
	hasNew := r.inbox.doc
	r.inbox.Unlock()
	source, lastGood := r.sourceStatus()
	head, applied := r.opt.Store.Head(), r.opt.Store.Applied()
	declared := r.opt.Rules.Schema()
	s := &Status{
		Environment: r.opt.Rules.Environment(), Instance: r.opt.Instance, Schema: SchemaStatus{declared.File(), declared.Digest()},
		TotalSnapshots: r.opt.Store.Total(), MaxSnapshots: r.opt.MaxSnapshots,
		BackupDirectory: r.opt.StateDir, AutoBackupEnabled: true,
		Attempts: r.attempts, Held: r.hold(), Drift: r.drift, Source: source,
		Experiments: []schema.Membership{}, Engine: r.engineStatus(),
	}
	if r.attempts == nil {
		s.Attempts = []Attempt{}
	}
	if r.opt.Repairs != nil {
		s.Repairs = r.opt.Repairs()
	}
	if s.Repairs == nil {
		s.Repairs = []Repair{}
	}
	if a := r.last(); a != nil {
		copied := *a
		s.Attempted = &copied
	}
	if d := r.seen.doc; d != nil {
		s.Seen = Seen{Revision: d.Revision(), At: record.Unix(r.seen.at)}
		s.Source.Revision, s.Source.Origin = d.Revision(), originOf(d.Source)
	}
	if hasNew != nil {
		s.Seen = Seen{Revision: hasNew.Revision(), At: record.Unix(time.Now())}
	}
	if c := r.seen.config; c != nil && c.Experiments != nil {
		s.Experiments = c.Experiments
	}
	if r.engine.known {
		runs := r.engine.reading.Parameters
		s.Current = &runs
	}
	settled := head != nil && applied != nil && head.Commit == applied.Commit
	s.Running, s.Applied = r.running(head, applied), applied
	s.ActiveSnapshots = r.ledger.active
	s.InSync = r.inSync(s, settled, applied)
	s.Ready, s.Unready = r.readiness(settled, applied)
	s.State, s.Reason, s.Hint = r.word(s, settled, head)
	r.addBroken(s)
	r.addDisk(s)
	r.addSource(s)
	s.checks = r.checks(applied)
	s.sourceStaleAt = lastGood.Add(r.opt.SourceStale)
	r.status.Store(s)
	if r.opt.OnStatus != nil {
		r.opt.OnStatus(s)
	}
}

// checks are the health checks, but for the one that the clock decides.
func (r *Reconciler) checks(applied *record.Record) Checks {
	ours := r.engine.reading.Environment == r.label()
	return Checks{ // who only observes makes no snapshot and sets no label
		ConfigManagerInitialized: r.recovered,
		ConfigLoaded:             (applied != nil || r.opt.Observe) && r.engine.known && r.valid(r.engine.reading.Parameters),
		SnapshotsAvailable:       applied != nil || r.opt.Observe,
		BackupDirectoryWritable:  r.writable,
		EngineReachable:          r.engine.reachable,
		EngineEnvironment:        r.engine.reachable && !r.engine.wrongLabel && (ours || r.opt.Observe),
	}
}

func (r *Reconciler) sourceStatus() (s SourceStatus, lastGood time.Time) {
	s = r.opt.Source
	mode, lastGood, err := r.opt.ReadSource()
	s.Mode, s.LastError, s.Hint = mode, errorText(err), problem.Hint(err)
	if !lastGood.IsZero() {
		s.LastRead = record.Unix(lastGood)
	}
	r.noteSource(lastGood, err)
	if !r.sourceLost.IsZero() {
		s.FailingSince = record.Unix(r.sourceLost)
	}
	return s, lastGood
}

// noteSource keeps since when the source cannot be read, and says when it can
// again.
func (r *Reconciler) noteSource(lastGood time.Time, err error) {
	switch {
	case err != nil && r.sourceLost.IsZero():
		r.sourceLost = time.Now()
	case err == nil && !r.sourceLost.IsZero() && !lastGood.IsZero():
		r.log.Event(slog.LevelInfo, "the configuration can be read again", "after", time.Since(r.sourceLost).Round(time.Millisecond).String())
		r.log.Clear("source") // the same fault is news again
		r.sourceLost = time.Time{}
	}
	if err == nil && lastGood.After(r.sourceGood) {
		r.sourceGood = lastGood
		r.opt.Metrics.Success("source")
	}
}

func (r *Reconciler) engineStatus() EngineStatus {
	e := EngineStatus{Socket: r.opt.Socket, Reachable: r.engine.reachable, LastError: errorText(r.engine.err), Hint: problem.Hint(r.engine.err), Differences: append([]string{}, r.engine.differences...)}
	if r.engine.known {
		e.Environment, e.LastRead = r.engine.reading.Environment, record.Unix(r.engine.at)
	}
	switch failing := !e.Reachable && r.engine.err != nil; {
	case !failing:
		r.engineLost = time.Time{}
	case r.engineLost.IsZero():
		r.engineLost = time.Now()
		fallthrough
	default:
		e.FailingSince, e.Word = record.Unix(r.engineLost), engineWord(r.engine.err)
	}
	return e
}

// running names the record of what the engine was last read to run.
func (r *Reconciler) running(head, applied *record.Record) Running {
	run := Running{}
	if applied != nil && r.ledger.applied == applied.Commit && r.ledger.head == head.Commit {
		run.RollbackSnapshot = r.ledger.previous
	}
	if !r.engine.known {
		return run
	}
	for _, s := range []*record.Record{applied, head} {
		if s != nil && (r.runs(r.engine.reading, s.Config) || s == applied && r.agrees(r.engine.reading, s.Config)) {
			run.SnapshotID, run.Revision, run.SourceRevision = s.ID, s.Commit, s.Source.Revision
			run.Origin = originOf(document.Source(s.Source))
			run.Since, run.Confirmed = s.Timestamp, s == applied
			if r.since.at == 0 { // it ran when this process came; the record says since when
				r.since.config, r.since.at = s.Config, s.Timestamp
			}
			if r.same(r.since.config, s.Config) {
				run.Since = r.since.at
			}
			break
		}
	}
	return run
}

// valid reports whether p is valid under the present rules.
func (r *Reconciler) valid(p schema.Parameters) bool { return len(r.check(p)) == 0 }

// check lists the rules that p breaks, with the default of each parameter that it
// does not have; a value of another type than today's breaks one. A status is made
// several times a change, so the last few answers are kept.
func (r *Reconciler) check(p schema.Parameters) []schema.Violation {
	broken, known := r.broken[r.opt.Rules.Known(p).Digest()]
	if !known {
		broken = r.opt.Rules.CheckParameters(r.opt.Rules.Complete(p))
		r.noteBroken(p, broken)
	}
	return broken
}

func (r *Reconciler) noteBroken(p schema.Parameters, broken []schema.Violation) {
	if len(r.broken) >= 64 {
		clear(r.broken)
	}
	r.broken[r.opt.Rules.Known(p).Digest()] = broken
}

func (r *Reconciler) inSync(s *Status, settled bool, applied *record.Record) bool {
	if r.opt.Observe { // nothing is attempted, and what runs is all that counts
		return r.engine.reachable && r.seen.config != nil && s.Seen.Revision == r.seen.doc.Revision() && !r.holds(s.Held, r.seen.config) &&
			r.runs(r.engine.reading, r.seen.config.Parameters)
	}
	a := s.Attempted
	return settled && r.engine.reachable && !r.engine.several && !r.rival() && r.runs(r.engine.reading, applied.Config) &&
		(s.Held == nil || !s.Held.Paused) && s.Drift == nil && r.seen.config != nil && r.same(r.seen.config.Parameters, applied.Config) &&
		a != nil && a.Revision == s.Seen.Revision && (a.Outcome == record.Applied || a.Outcome == record.Unchanged)
}

// readiness is the answer of /readyz: the engine answers and runs the applied,
// valid set, whatever the source says; or drift is being reported.
func (r *Reconciler) readiness(settled bool, applied *record.Record) (ready bool, why string) {
	switch {
	case !r.engine.reachable && r.engine.err != nil:
		return false, "the engine " + engineWord(r.engine.err)
	case !r.recovered:
		return false, "starting: the engine was not asked yet"
	case r.opt.Observe:
		return true, ""
	case r.rival():
		return false, "another agent has the state directory"
	case r.opt.Store.Lost() != nil && r.valid(r.engine.reading.Parameters):
		return true, ""
	case applied == nil:
		return false, "nothing was applied yet"
	case r.agrees(r.engine.reading, applied.Config):
		return true, ""
	case r.flight != nil && r.flight.verified:
		return true, "" // it runs what only the disk has yet to confirm
	case r.drift != nil && settled && r.opt.Drift == DriftReport:
		return true, ""
	}
	reason, _ := r.obstacles()
	return false, cmp.Or(reason, "the engine does not run the applied snapshot")
}

// word finds the one word for how things stand, with its reason and hint.
func (r *Reconciler) word(s *Status, settled bool, head *record.Record) (State, string, string) {
	obstacles, hint := r.obstacles()
	switch {
	case r.opt.Observe:
		return StateObserving, r.observation(r.hold()), r.observationHint()
	case r.rival():
		return StateDegraded, "nothing is sent to the engine: " + r.noProbe.Error(), "one engine and one state directory have one agent; this one goes on by itself when the other has ended"
	case obstacles != "" && !r.awaited():
		return StateDegraded, obstacles, hint
	case !r.engine.reachable && r.engine.err != nil:
		reason, waiting := waitingText(r.engine.err)
		if obstacles != "" {
			return StateWaiting, reason + "; " + obstacles, hint
		}
		return StateWaiting, reason, waiting
	case r.engine.several:
		return StateDegraded, severalReason, severalHint
	case head != nil && r.unknownToEngine(head.Config) != nil:
		reason, hint := r.unknownText(r.unknownToEngine(head.Config))
		return StateDegraded, reason, hint
	case !r.recovered:
		return StateStarting, "waiting for the source and the engine", ""
	case r.opt.Store.Lost() != nil && r.seen.violations == nil && r.seen.refusal == nil:
		return StateHeld, r.heldReason(s.Held, r.seen.config), r.heldHint(s.Held, r.seen.config)
	case head != nil && !settled && r.flight != nil && r.flight.probation != nil && r.flight.verified:
		reason, hint := r.probationText(head)
		return StateProbation, reason, hint
	case head != nil && !settled:
		return StateApplying, head.ID + " is on its way to the engine", ""
	case s.Drift != nil:
		reason, hint := r.driftText(s.Drift)
		return StateDrifted, reason, hint
	case r.seen.refusal != nil:
		return StateRefused, r.seen.refusal.Reason, r.seen.refusal.Hint
	case r.seen.violations != nil:
		return StateInvalid, r.seen.violations.Error(), "correct the file; `agent validate DIR` shows every violation; the engine keeps what it has"
	case s.Held != nil && (s.Held.Paused || r.seen.config == nil || !s.InSync && r.holds(s.Held, r.seen.config)):
		return StateHeld, r.heldReason(s.Held, r.seen.config), r.heldHint(s.Held, r.seen.config)
	case s.InSync:
		return StateInSync, "the engine runs what the source declares", ""
	case r.seen.doc == nil:
		return StateStarting, "the source showed no document yet", "check --config and --environment"
	}
	if s.Source.LastError != "" {
		return StateApplying, "what was declared last is judged again before it is tried, and the source cannot be read: " + s.Source.LastError, sourceHint(s.Source)
	}
	return StateApplying, "a newer document is being looked at", ""
}

// awaited reports whether all that stands in the way is an engine that does not
// answer: it was sent a change, and cannot be asked since.
func (r *Reconciler) awaited() bool {
	return r.blocked("send") && len(r.faults) == 1 && !r.engine.reachable && r.engine.err != nil
}

// addBroken adds that what is applied breaks the schema of today, which may be
// newer. It keeps running: a pod is not unready because of it.
func (r *Reconciler) addBroken(s *Status) {
	if s.Applied == nil {
		return
	}
	if s.Running.Violations = r.check(s.Applied.Config); len(s.Running.Violations) > 0 {
		s.Reason += "; what is applied is not valid under the present rules: " + s.Running.Violations[0].Message
	}
}

// addDisk adds to what does not wait for the disk that nothing could be recorded:
// the next change would find out.
func (r *Reconciler) addDisk(s *Status) {
	if err := r.opt.Store.Behind(); err != nil && !r.opt.Observe {
		s.Reason += "; the git repository lacks the newest records: " + err.Error()
		if s.Hint == "" {
			s.Hint = diskHint(err, r.opt.StateDir) + "; they are written as soon as that is possible"
		}
	}
	if r.noProbe == nil || r.opt.Observe || s.State == StateDegraded {
		return
	}
	if s.State == StateInSync {
		s.State = StateDegraded
	}
	s.Reason += "; nothing can be recorded: " + r.noProbe.Error()
	hint := diskHint(r.noProbe, r.opt.StateDir) + again
	if s.Hint != "" {
		hint += "; " + s.Hint
	}
	s.Hint = hint
}

// addSource adds to what is at rest, or waits for the source, that the source
// cannot be read: what was last seen of it may not be what it has now.
func (r *Reconciler) addSource(s *Status) {
	if s.Source.LastError == "" {
		return
	}
	switch s.State {
	case StateStarting, StateInSync, StateRefused, StateInvalid, StateHeld, StateObserving:
		s.Reason += "; now the source cannot be read: " + s.Source.LastError
		s.Hint = sourceHint(s.Source)
	}
}

// observation is what an observing agent would do under hold.
func (r *Reconciler) observation(hold *record.Hold) string {
	switch {
	case r.seen.refusal != nil:
		return "would not trust the source: " + r.seen.refusal.Reason
	case r.seen.violations != nil:
		return "would refuse the document: " + r.seen.violations.Error()
	case !r.engine.reachable && r.engine.err != nil:
		reason, _ := waitingText(r.engine.err)
		return reason
	case !r.engine.reachable:
		return "the engine was not asked yet"
	case r.seen.config == nil:
		return "the source showed no document yet"
	}
	changes := reversed(r.differences(r.engine.reading, r.seen.config.Parameters))
	switch {
	case r.holds(hold, r.seen.config):
		return "would not try it, held: " + r.heldReason(hold, r.seen.config)
	case len(changes) > 0:
		return "would apply: " + changesText(changes)
	}
	return "the engine runs what the source declares"
}

// reversed returns the changes back: from what runs to what is declared.
func reversed(changes []schema.Change) []schema.Change {
	for i := range changes {
		changes[i].Old, changes[i].New = changes[i].New, changes[i].Old
	}
	return changes
}

// label is the environment label that the engine is to have.
func (r *Reconciler) label() string { return r.opt.Rules.Schema().Label(r.opt.Rules.Environment()) }

// observationHint says what to do about an engine that cannot be asked, or what
// an observing agent leaves undone besides.
func (r *Reconciler) observationHint() string {
	if !r.engine.reachable && r.engine.err != nil {
		_, hint := waitingText(r.engine.err)
		return hint
	}
	if e := r.engine.reading.Environment; r.engine.reachable && e != r.label() {
		return fmt.Sprintf("the engine is labelled %q; an agent without --observe would label it %s", e, r.label())
	}
	return ""
}
