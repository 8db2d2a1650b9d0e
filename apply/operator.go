package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// A Command is what an operator asks a running agent to do.
type Command struct {
	// Verb is "rollback", "pause" or "resume".
	Verb string
	// ID is the rollback's target; "" for the newest applied state that differs from
	// what is applied and is not held.
	ID     string
	Reason string
	// Pause makes a rollback pause as well.
	Pause bool
	// Hold are the parameters of which a rollback holds the values; empty for all that
	// differ.
	Hold []string
	// Name is the parameter of which resume ends the entries; "" ends everything.
	Name string
	// DryRun asks what a rollback or resume would do.
	DryRun    bool
	Requester record.Requester
}

// A Result is what came of a Command.
type Result struct {
	// Outcome is Applied for what took effect; Pending, Rejected or Superseded
	// for a rollback that did not (yet).
	Outcome    record.Outcome
	SnapshotID string
	// Text is one line for the operator.
	Text string
}

// errStopping answers a command that a stopping agent did not get to.
var errStopping = problem.New("", errors.New("the agent is stopping"), "repeat the command once it runs")

type request struct {
	Command
	ctx   context.Context // of the caller, who gives up at its end
	reply chan reply      // capacity 1
	id    string          // the rollback's record, once committed
	found string          // the rollback that was under way when it was taken up, "" for none
	// recorded is id, for the caller that gives up waiting.
	recorded atomic.Pointer[string]
}

type reply struct {
	Result
	err error
}

// forgotten is the answer to an order whose caller gave up before it was begun.
func (q *request) forgotten() error {
	return fmt.Errorf("%s was not begun, and is forgotten: the agent was busy until its deadline: %w", q.Verb, context.Cause(q.ctx))
}

func (q *request) answer(res Result, err error) { q.reply <- reply{res, err} }

// Do carries out a command and waits for its outcome, or until ctx ends. Then what is
// on record goes on, and the Result says pending; what is not begun by then is
// forgotten. An error means that the command was not carried out, and nothing was
// changed.
func (r *Reconciler) Do(ctx context.Context, c Command) (Result, error) {
	if r.opt.Observe {
		return Result{}, errors.New("this agent only observes (--observe): it changes nothing")
	}
	q := &request{Command: c, ctx: ctx, reply: make(chan reply, 1)}
	if ctx.Err() != nil {
		return Result{}, q.forgotten()
	}
	q.found, _ = r.underWay.Load().(string)
	r.orders.wait(1)
	select {
	case r.requests <- q:
	case <-ctx.Done():
		r.orders.wait(-1)
		return Result{}, q.forgotten()
	case <-r.ended:
		r.orders.wait(-1)
		return Result{}, errStopping
	}
	select {
	case a := <-q.reply:
		return a.Result, a.err
	case <-ctx.Done():
		id := ""
		if recorded := q.recorded.Load(); recorded != nil {
			id = *recorded
		}
		return unsettled(r.Status().Attempts, id, pendingText(id)), nil
	}
}

// serve carries out one request on the Reconciler's goroutine.
func (r *Reconciler) serve(ctx context.Context, q *request) {
	r.retryNow()
	head, applied := r.opt.Store.Head(), r.opt.Store.Applied()
	if f := r.flight; f != nil && f.verified && head != nil && f.id == head.ID && !r.onProbation(f) {
		r.confirm(ctx) // first what the engine runs already
		head, applied = r.opt.Store.Head(), r.opt.Store.Applied()
	}
	if q.Verb == "resume" && r.opt.Store.Lost() != nil {
		r.resumeLost(ctx, q)
		return
	}
	if lost := r.opt.Store.Lost(); lost != nil {
		q.answer(Result{}, problem.New(q.Verb, errors.New(lost.Text()), r.heldHint(lost, nil)))
		return
	}
	if applied == nil {
		q.answer(Result{}, problem.New(q.Verb, errors.New("nothing was applied yet, so there is no state to keep or to go back to"), "correct the configuration, or stop the agent"))
		return
	}
	switch q.Verb {
	case "rollback":
		if err := r.checkNames(q.Hold); err != nil {
			q.answer(Result{}, err)
			return
		}
		q.found = r.rollbackToJoin(ctx, q.found)
		switch under := q.ID == "" && !q.DryRun && q.found != ""; {
		case under && q.Pause && r.openRollback() != "":
			if r.pauseRollback(ctx, q, head) {
				r.waiters = append(r.waiters, q)
			}
		case under && q.Pause && applied.ID == q.found && !r.isPaused():
			r.pause(ctx, q, head, applied) // the first has ended well meanwhile
		case under:
			r.join(ctx, q)
		default:
			r.rollback(ctx, q, head, applied)
		}
	case "pause":
		r.pause(ctx, q, head, applied)
	case "resume":
		r.resume(ctx, q, head, applied)
	default:
		q.answer(Result{}, fmt.Errorf("unknown command %q", q.Verb))
	}
}

// openRollback is the rollback that is on record and not settled, "" if none is.
func (r *Reconciler) openRollback() string {
	head, applied := r.opt.Store.Head(), r.opt.Store.Applied()
	if head == nil || applied == nil || head.Kind != record.KindRollback || head.Commit == applied.Commit {
		return ""
	}
	return head.ID
}

// isPaused reports whether an operator paused the agent.
func (r *Reconciler) isPaused() bool { hold := r.hold(); return hold != nil && hold.Paused }

// checkNames reports a name that is no parameter.
func (r *Reconciler) checkNames(names []string) error {
	for _, name := range names {
		if r.opt.Rules.Parameter(name) == nil {
			hint := "one of " + strings.Join(r.opt.Rules.Names(), ", ")
			if near, ok := schema.Suggest(name, r.opt.Rules.Names()); ok {
				hint = "did you mean " + near + "?"
			}
			return problem.New("", fmt.Errorf("unknown parameter %.80q", name), hint)
		}
	}
	return nil
}

// rollbackToJoin returns the rollback that an order without a target joins, "" for none:
// the one that is under way, maybe put on record anew since the order found it, or that
// came to its end meanwhile. What a newer document took the place of did not.
func (r *Reconciler) rollbackToJoin(ctx context.Context, found string) string {
	if open := r.openRollback(); found == "" || open != "" {
		return open
	}
	if rec, err := r.opt.Store.Lookup(ctx, found); err == nil && rec.Outcome == record.Superseded {
		return ""
	}
	return found
}

// join lets an order for a rollback to the state before wait for the one that
// was under way when it came: who asks again means the same one.
func (r *Reconciler) join(ctx context.Context, q *request) {
	q.id = q.found
	q.recorded.Store(&q.found)
	r.waiters = append(r.waiters, q)
	if rec, err := r.opt.Store.Lookup(ctx, q.id); err == nil && rec.Outcome != record.Pending {
		r.resolve(q.id, rec.Outcome, "it was under way when this order came")
	}
}

// rollback commits a candidate of kind rollback; the same road as a change
// leads it to the engine. It supersedes what is pending.
func (r *Reconciler) rollback(ctx context.Context, q *request, head, applied *record.Record) {
	open := head.Commit != applied.Commit
	target, err := r.target(ctx, q.ID, head)
	if err != nil {
		q.answer(Result{}, err)
		return
	}
	config := r.complete(ctx, &target.Record)
	if r.same(config, r.complete(ctx, applied)) && !open && r.engine.reachable && r.runs(r.engine.reading, config) {
		q.answer(Result{}, problem.New(q.Verb, r.alreadyRuns(target), "to keep it whatever the source declares: agent pause --reason TEXT"))
		return
	}
	rec := record.Record{
		Kind: record.KindRollback, Description: "Rollback to " + target.ID + ": " + q.Reason, Config: config,
		Source:     record.Source{Kind: "operator", Location: target.Source.Location, Revision: target.Source.Revision},
		Provenance: provenanceOf(config, &target.Record), Experiments: target.Experiments, RollbackPoint: true,
		RequestedBy: &q.Requester.UID, Requester: &q.Requester, Held: r.rollbackHold(q, config, target, head, applied),
	}
	r.fill(&rec, applied)
	for _, name := range q.Hold {
		if rec.Held == nil || !slices.ContainsFunc(rec.Held.Entries, func(e record.Entry) bool { _, there := e.Values[name]; return there }) {
			q.answer(Result{}, problem.New("rollback", fmt.Errorf("--hold %s: it has the same value in %s", name, target.ID), "name a parameter that differs: agent rollback --dry-run lists them"))
			return
		}
	}
	if q.DryRun {
		q.answer(Result{Outcome: record.Applied, SnapshotID: target.ID, Text: r.rollbackPlan(target, &rec)}, nil)
		return
	}
	if open {
		rec.OutcomeOf = &record.Settlement{ID: head.ID, Outcome: record.Superseded}
	}
	r.clear("commit")
	snap, ok := r.commit(ctx, rec)
	if !ok {
		q.answer(Result{}, r.notRecorded(q, "commit"))
		return
	}
	if open && !head.Kind.Candidate() {
		r.tellSettled(ctx, head)
	}
	q.id = snap.ID
	q.recorded.Store(&snap.ID)
	r.waiters = append(r.waiters, q)
}

// rollbackPlan says what a rollback to target would do, a line each.
func (r *Reconciler) rollbackPlan(target *record.Row, rec *record.Record) string {
	lines := []string{"would roll back to " + target.ID + ": " + target.Description}
	for _, c := range rec.Changes {
		lines = append(lines, "  "+c.String())
	}
	if len(rec.Changes) == 0 {
		lines = append(lines, "  nothing changes against what is applied")
	}
	if rec.Held != nil {
		for i := range rec.Held.Entries {
			lines = append(lines, "would hold "+rec.Held.Entries[i].String())
		}
		if rec.Held.Paused {
			lines = append(lines, "would pause until agent resume")
		}
	}
	return strings.Join(lines, "\n")
}

// alreadyRuns says that the engine runs the target, as far as the schema knows it.
func (r *Reconciler) alreadyRuns(target *record.Row) error {
	unknown := slices.DeleteFunc(target.Config.Names(), func(name string) bool { return r.knows(name, target.Config.Get(name)) })
	if len(unknown) == 0 {
		return fmt.Errorf("the engine already runs the state of %s", target.ID)
	}
	return fmt.Errorf("the schema does not know %s of %s, and the engine already runs the rest", strings.Join(unknown, ", "), target.ID)
}

// provenanceOf returns the provenance of a rollback's parameters: that of the
// target, and the schema for the values that it did not have.
func provenanceOf(p schema.Parameters, target *record.Record) schema.Provenance {
	all := schema.Provenance{}
	for _, name := range p.Names() {
		if origin, ok := target.Provenance[name]; !target.Config.Get(name).Equal(p.Get(name)) {
			all[name] = schema.Origin{Layer: bySchema}
		} else if ok {
			all[name] = origin
		}
	}
	return all
}

// resumeLost ends the pause of an agent that found no history it could read.
func (r *Reconciler) resumeLost(ctx context.Context, q *request) {
	err := r.opt.Store.ClearLost(ctx)
	if err != nil && r.opt.Store.Lost() != nil {
		r.diskFailed("commit", err, "the end of the pause cannot be recorded")
		q.answer(Result{}, r.notRecorded(q, "commit"))
		return
	}
	r.log.Event(slog.LevelInfo, "Resume: "+cmp.Or(q.Reason, "by the operator"))
	r.seen.since = time.Now()
	r.publish()
	text := "resumed: what the source declares is tried"
	switch own := r.hold(); {
	case own != nil:
		text = "resumed; what is on record stays in force: " + own.Text() + "; it ends with another `agent resume`"
	case r.opt.Store.Head() == nil:
		text += ", and begins a new history"
	}
	q.answer(inForce(Result{Outcome: record.Applied, Text: text}, err), nil)
}

// target finds the state to go back to: the one named, or the newest applied
// one that differs from the head and is not held: twice in a row goes further
// back. While a candidate is open it is the state before it, what is applied.
func (r *Reconciler) target(ctx context.Context, id string, head *record.Record) (*record.Row, error) {
	var found *record.Row
	if id != "" {
		rec, err := r.opt.Store.Lookup(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("rollback: %w", err)
		}
		found = &rec
	} else {
		rec, err := r.previous(ctx, head)
		if err != nil {
			return nil, fmt.Errorf("rollback: %w", err)
		}
		if rec == nil {
			return nil, problem.New("rollback", errors.New("no earlier state was applied that is not held"), "choose an id from `agent snapshots`")
		}
		found = rec
	}
	switch {
	case found.Environment != r.opt.Rules.Environment():
		return nil, fmt.Errorf("rollback: %s belongs to environment %s, this agent to %s", found.ID, found.Environment, r.opt.Rules.Environment())
	case found.Outcome != record.Applied || !found.RollbackPoint:
		return nil, problem.New("rollback", fmt.Errorf("%s was never applied (%s)", found.ID, found.Outcome), "choose one that `agent snapshots` shows as applied")
	}
	if broken := r.check(r.complete(ctx, &found.Record)); len(broken) > 0 {
		return nil, problem.New("rollback", fmt.Errorf("%s is not valid under the present rules: %s", found.ID, broken[0]), "choose another id from `agent snapshots`")
	}
	return found, nil
}

// previous is the newest applied state that differs from that of head and that
// head does not hold; nil if there is none. What is damaged is no rollback point.
// A parameter that head lacks as well, and that both are completed with, is no
// difference.
func (r *Reconciler) previous(ctx context.Context, head *record.Record) (*record.Row, error) {
	now, hold := r.complete(ctx, head), r.hold()
	for rec, err := range r.history(ctx) {
		if err != nil { // what came before it is good
			return nil, err
		}
		if rec.Outcome != record.Applied || !rec.RollbackPoint || !rec.Kind.Candidate() {
			continue
		}
		config := r.complete(ctx, &rec.Record)
		to := &schema.Configuration{Parameters: config, Provenance: provenanceOf(config, &rec.Record)}
		if !r.same(config, now) && r.valid(config) && r.match(hold, to, false) == nil {
			return rec, nil
		}
	}
	return nil, nil
}

// pauseRollback puts the rollback under way on record anew, with a pause: what the
// operator asked for first goes on. It reports whether it is on record.
func (r *Reconciler) pauseRollback(ctx context.Context, q *request, head *record.Record) bool {
	hold := *r.pauseOf(q)
	if head.Held != nil {
		hold.Reason += " (rolled back before: " + head.Held.Reason + ")"
	}
	r.clear("commit")
	if !r.commitAgain(ctx, head, record.Record{Held: &hold, RequestedBy: &q.Requester.UID, Requester: &q.Requester}) {
		q.answer(Result{}, r.notRecorded(q, "commit"))
		return false
	}
	id := r.flight.id
	q.id = id
	q.recorded.Store(&id)
	return true
}

// pause records that nothing may be tried until resume. A change that is pending
// is withdrawn; a rollback goes on.
func (r *Reconciler) pause(ctx context.Context, q *request, head, applied *record.Record) {
	if r.isPaused() {
		q.answer(Result{}, fmt.Errorf("already paused since %s: %s", record.FromUnix(head.Held.Since).UTC().Format(time.RFC3339), head.Held.Reason))
		return
	}
	if r.openRollback() != "" {
		if r.pauseRollback(ctx, q, head) {
			q.answer(Result{Outcome: record.Applied, SnapshotID: q.id, Text: "paused: nothing is tried until `agent resume`, but for the rollback under way, which goes on as " + q.id}, nil)
		}
		return
	}
	r.putHold(ctx, q, head, applied, r.pauseOf(q), "Pause: "+q.Reason, "paused: nothing is tried until `agent resume`")
}

// resume ends any hold and any pause; a pending rollback is withdrawn.
func (r *Reconciler) resume(ctx context.Context, q *request, head, applied *record.Record) {
	hold := r.hold()
	if hold == nil {
		q.answer(Result{}, errors.New("nothing is held and nothing is paused"))
		return
	}
	left, why, text := (*record.Hold)(nil), "Resume: ", "resumed: what the source declares is tried again"
	if q.Name != "" {
		why, text = "Resume "+q.Name+": ", "resumed: what was held with a value of "+q.Name+" is tried again"
		rest := *hold
		rest.Entries = slices.DeleteFunc(slices.Clone(hold.Entries), func(e record.Entry) bool {
			_, there := e.Values[q.Name]
			return there || slices.Contains(e.Names, q.Name)
		})
		switch {
		case len(rest.Entries) == len(hold.Entries):
			err := cmp.Or(r.checkNames([]string{q.Name}), fmt.Errorf("no value of %.80s is held", q.Name))
			q.answer(Result{}, problem.New("resume", err, cmp.Or(problem.Hint(err), "what is held: agent status")))
			return
		case rest.Paused:
			text = "what was held with a value of " + q.Name + " is held no more; the pause goes on"
			left = &rest
		case len(rest.Entries) > 0:
			left = &rest
		}
	}
	if q.DryRun {
		q.answer(Result{Outcome: record.Applied, Text: r.resumePlan(hold, left)}, nil)
		return
	}
	r.putHold(ctx, q, head, applied, left, why+cmp.Or(q.Reason, "by the operator"), text)
}

// resumePlan says what would end if left remained of hold, and what would be tried.
func (r *Reconciler) resumePlan(hold, left *record.Hold) string {
	var lines []string
	if hold.Paused && left == nil {
		lines = append(lines, "would end the pause: "+hold.Reason)
	}
	for i := range hold.Entries {
		if e := &hold.Entries[i]; left == nil || !slices.ContainsFunc(left.Entries, func(l record.Entry) bool { return l.String() == e.String() }) {
			lines = append(lines, "would no longer hold "+e.String()+": "+e.Reason)
		}
	}
	c, applied := r.seen.config, r.opt.Store.Applied()
	switch {
	case c == nil:
		lines = append(lines, "would try nothing: the source declares nothing valid")
	case r.holds(left, c):
		lines = append(lines, "would try nothing: what the source declares is still held: "+r.heldReason(left, c))
	case applied != nil && r.same(c.Parameters, applied.Config):
		lines = append(lines, "would try nothing: the source declares what is applied")
	case applied != nil:
		lines = append(lines, "would try: "+changesText(r.opt.Rules.Diff(applied.Config, c.Parameters)))
	}
	return strings.Join(lines, "\n")
}

// putHold puts a new hold, or the end of one, on record.
func (r *Reconciler) putHold(ctx context.Context, q *request, head, applied *record.Record, hold *record.Hold, why, text string) {
	put := r.commitNote
	if head.Kind.Candidate() && head.Commit != applied.Commit {
		put = func(ctx context.Context, hold *record.Hold, why string, who *record.Requester) (bool, error) {
			return r.withdraw(ctx, head, why, hold, who)
		}
	}
	r.clear("commit", "revert")
	recorded, err := put(ctx, hold, why, &q.Requester)
	if !recorded {
		q.answer(Result{}, r.notRecorded(q, "commit", "revert"))
		return
	}
	r.seen.since = time.Now()
	r.publish() // who asks for the status after the answer must see it
	q.answer(inForce(Result{Outcome: record.Applied, SnapshotID: r.opt.Store.Head().ID, Text: text}, err), nil)
}

// inForce is res, or pending if the disk took it with an error.
func inForce(res Result, err error) Result {
	if err != nil {
		res.Outcome, res.Text = record.Pending, "it is in force, but a power cut may undo it until the disk takes it: "+problem.Text(err)
	}
	return res
}

// notRecorded is the answer to an order that the disk did not take: it is not
// tried again by itself, so that nothing lasting is made of it.
func (r *Reconciler) notRecorded(q *request, stages ...string) error {
	reason, hint := "the disk does not take it", diskHint(nil, r.opt.StateDir)
	for _, stage := range stages {
		if f := r.faults[stage]; f != nil {
			reason, hint = f.reason, strings.TrimSuffix(f.hint, again)
		}
	}
	r.clear(stages...)
	return problem.New(q.Verb, fmt.Errorf("%s; nothing was changed", reason), hint+", then repeat the command")
}

// resolve answers the callers that wait for the record id.
func (r *Reconciler) resolve(id string, outcome record.Outcome, reason string) {
	r.waiters = slices.DeleteFunc(r.waiters, func(q *request) bool {
		if q.id != id {
			return false
		}
		q.answer(Result{Outcome: outcome, SnapshotID: id, Text: reason}, nil)
		return true
	})
}

// abandonWaiters answers everybody who waits when the agent stops.
func (r *Reconciler) abandonWaiters() {
	for _, q := range r.waiters {
		q.answer(unsettled(r.attempts, q.id, "the agent is stopping; the rollback is on record and goes on at its next start"), nil)
	}
	r.waiters = nil
	for {
		select {
		case q := <-r.requests:
			q.answer(Result{}, errStopping)
		default:
			return
		}
	}
}
