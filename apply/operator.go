package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"dtesn-agent/schema"
)

// A Command is what an operator asks a running agent to do.
type Command struct {
	// Verb is "rollback", "pause" or "resume".
	Verb string
	// ID is the rollback's target; "" for the previous applied state.
	ID     string
	Reason string
	// Pause makes a rollback pause as well.
	Pause bool
	// UID asked for it.
	UID int
}

// A Result is what came of a Command.
type Result struct {
	// Outcome is Applied for what took effect; Pending, Rejected or Superseded
	// for a rollback that did not (yet).
	Outcome    schema.Outcome
	SnapshotID string
	// Text is one line for the operator.
	Text string
}

// errStopping answers a command that a stopping agent did not get to.
var errStopping = errors.New("the agent is stopping; ask again once it runs")

type request struct {
	Command
	reply chan reply // capacity 1
	id    string     // the rollback's record, once committed
	found string     // the rollback that was under way when it was taken up, "" for none
	// recorded is id, for the caller that gives up waiting.
	recorded atomic.Pointer[string]
}

type reply struct {
	Result
	err error
}

func (q *request) answer(res Result, err error) { q.reply <- reply{res, err} }

// Do carries out a command and waits for its outcome, or until ctx ends; then
// the Result says pending and the command goes on. An error means that the
// command was not carried out, and nothing was changed.
func (r *Reconciler) Do(ctx context.Context, c Command) (Result, error) {
	if r.opt.Observe {
		return Result{}, errors.New("this agent only observes (--observe): it changes nothing")
	}
	q := &request{Command: c, reply: make(chan reply, 1)}
	q.found, _ = r.underWay.Load().(string)
	r.orders.wait(1)
	select {
	case r.requests <- q:
	case <-ctx.Done():
		r.orders.wait(-1)
		return Result{}, fmt.Errorf("%s was not begun, and is forgotten: the agent is busy with the engine: %w", c.Verb, context.Cause(ctx))
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
	if applied == nil {
		q.answer(Result{}, fmt.Errorf("%s: nothing was applied yet, so there is no state to keep or to go back to; correct the configuration, or stop the agent", q.Verb))
		return
	}
	switch q.Verb {
	case "rollback":
		switch under := q.ID == "" && q.found != ""; {
		case under && q.Pause && r.openRollback() != "":
			if r.pauseRollback(ctx, q, head, applied) {
				r.waiters = append(r.waiters, q)
			}
		case under && q.Pause && applied.ID == q.found && !(head.Held != nil && head.Held.Paused):
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

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// openRollback is the rollback that is on record and not settled, "" if none is.
func (r *Reconciler) openRollback() string {
	head, applied := r.opt.Store.Head(), r.opt.Store.Applied()
	if head == nil || applied == nil || head.Kind != schema.KindRollback || head.Commit == applied.Commit {
		return ""
	}
	return head.ID
}

// join lets an order for a rollback to the state before wait for the one that
// was under way when it came: who asks again means the same one.
func (r *Reconciler) join(ctx context.Context, q *request) {
	q.id = q.found
	q.recorded.Store(&q.id)
	r.waiters = append(r.waiters, q)
	if rec, err := r.opt.Store.Lookup(ctx, q.id); err == nil && rec.Outcome != schema.Pending {
		r.resolve(q.id, rec.Outcome, "it was under way when this order came")
	}
}

// rollback commits a candidate of kind rollback; the same road as a change
// leads it to the engine. It supersedes what is pending.
func (r *Reconciler) rollback(ctx context.Context, q *request, head, applied *schema.Snapshot) {
	open := head.Commit != applied.Commit
	target, err := r.target(ctx, q.ID, head)
	if err != nil {
		q.answer(Result{}, err)
		return
	}
	if target.Config == applied.Config && !open && r.engine.reachable && r.engine.reading.Parameters == target.Config {
		q.answer(Result{}, fmt.Errorf("the engine already runs the state of %s; to keep it whatever the source declares: agent pause --reason TEXT", target.ID))
		return
	}
	rec := schema.Snapshot{
		Kind: schema.KindRollback, Description: "Rollback to " + target.ID + ": " + q.Reason, Config: target.Config,
		Source:     schema.Source{Kind: "operator", Location: target.Source.Location, Revision: target.Source.Revision},
		Provenance: target.Provenance, Experiments: target.Experiments, RollbackPoint: true,
		RequestedBy: &q.UID, Held: r.rollbackHold(q, target, head, applied),
	}
	r.fill(&rec, applied)
	if open {
		rec.OutcomeOf = &schema.Settlement{ID: head.ID, Outcome: schema.Superseded}
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

// rollbackHold is what an operator's rollback holds: what ran, what the source
// declares, and what was held before, but not the target itself.
func (r *Reconciler) rollbackHold(q *request, target *schema.Record, head, applied *schema.Snapshot) *schema.Hold {
	hold := &schema.Hold{
		Reason: q.Reason, Since: schema.Unix(time.Now()), By: "operator",
		Paused: q.Pause || (head.Held != nil && head.Held.Paused),
	}
	held := []schema.Digest{applied.Digest(), head.Digest()}
	if head.Held != nil {
		held = append(held, head.Held.Digests...)
	}
	if r.engine.known {
		held = append(held, r.engine.reading.Parameters.Digest())
	}
	if r.seen.config != nil {
		held = append(held, r.seen.config.Parameters.Digest())
	}
	slices.Sort(held)
	hold.Digests = slices.DeleteFunc(slices.Compact(held), func(d schema.Digest) bool { return d == target.Digest() })
	if h := head.Held; h != nil && h.Paused {
		hold.Reason += " (paused before: " + h.Reason + ")"
	}
	if len(hold.Digests) == 0 && !hold.Paused {
		return nil
	}
	return hold
}

// target finds the state to go back to: the one named, or the newest applied
// one that differs from the head and is not held: twice in a row goes further
// back. While a candidate is open it is the state before it, what is applied.
func (r *Reconciler) target(ctx context.Context, id string, head *schema.Snapshot) (*schema.Record, error) {
	var found *schema.Record
	if id != "" {
		rec, err := r.opt.Store.Lookup(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("rollback: %w", err)
		}
		found = &rec
	} else {
		rec, err := previous(ctx, r.opt.Store, head)
		if err != nil {
			return nil, fmt.Errorf("rollback: %w", err)
		}
		if rec == nil {
			return nil, errors.New("rollback: no earlier state was applied that is not held; `agent snapshots` lists what there is, and an id goes anywhere")
		}
		found = rec
	}
	switch {
	case found.Environment != r.opt.Environment:
		return nil, fmt.Errorf("rollback: %s belongs to environment %s, this agent to %s", found.ID, found.Environment, r.opt.Environment)
	case found.Outcome != schema.Applied || !found.RollbackPoint:
		return nil, fmt.Errorf("rollback: %s was never applied (%s); `agent snapshots` shows which were", found.ID, found.Outcome)
	}
	if broken := schema.CheckParameters(found.Config); len(broken) > 0 {
		return nil, fmt.Errorf("rollback: %s is not valid under the present rules: %s", found.ID, broken[0].Message)
	}
	return found, nil
}

// previous is the newest applied state that differs from that of head and that
// head does not hold; nil if there is none. What is damaged is no rollback point.
func previous(ctx context.Context, s Store, head *schema.Snapshot) (*schema.Record, error) {
	for before := ""; ; {
		page, err := s.List(ctx, before, 50)
		for i := range page { // what came before an error is good
			rec := &page[i]
			held := head.Held != nil && slices.Contains(head.Held.Digests, rec.Digest())
			if rec.Outcome == schema.Applied && rec.RollbackPoint && rec.Kind.Candidate() && rec.Config != head.Config && !held {
				return rec, nil
			}
		}
		if err != nil || len(page) == 0 {
			return nil, err
		}
		before = page[len(page)-1].ID
	}
}

// pauseRollback puts the rollback under way on record anew, with a pause: what the
// operator asked for first goes on. It reports whether it is on record.
func (r *Reconciler) pauseRollback(ctx context.Context, q *request, head, applied *schema.Snapshot) bool {
	hold := schema.Hold{Digests: []schema.Digest{}, Paused: true, Reason: q.Reason, Since: schema.Unix(time.Now()), By: "operator"}
	if head.Held != nil {
		hold.Digests = head.Held.Digests
		hold.Reason += " (rolled back before: " + head.Held.Reason + ")"
	}
	rec := schema.Snapshot{
		Kind: schema.KindRollback, Description: head.Description, Config: head.Config, Source: head.Source,
		Provenance: head.Provenance, Experiments: head.Experiments, RollbackPoint: true,
		RequestedBy: &q.UID, Held: &hold, OutcomeOf: &schema.Settlement{ID: head.ID, Outcome: schema.Superseded},
	}
	r.fill(&rec, applied)
	waiters, before := r.waiters, r.flightOf(head)
	r.waiters = nil // they wait for the new record
	r.clear("commit")
	snap, ok := r.commit(ctx, rec)
	r.waiters = waiters
	if !ok {
		q.answer(Result{}, r.notRecorded(q, "commit"))
		return false
	}
	f := r.flight // and what the engine did counts on
	f.sends, f.deaths, f.lies, f.verdict, f.broken, f.sentTo = before.sends, before.deaths, before.lies, before.verdict, before.broken, before.sentTo
	for _, w := range append(waiters, q) {
		w.id = snap.ID
		w.recorded.Store(&snap.ID)
	}
	return true
}

// pause records that nothing may be tried until resume. A change that is pending
// is withdrawn; a rollback goes on.
func (r *Reconciler) pause(ctx context.Context, q *request, head, applied *schema.Snapshot) {
	if head.Held != nil && head.Held.Paused {
		q.answer(Result{}, fmt.Errorf("already paused since %s: %s", schema.FromUnix(head.Held.Since).UTC().Format(time.RFC3339), head.Held.Reason))
		return
	}
	if r.openRollback() != "" {
		if r.pauseRollback(ctx, q, head, applied) {
			q.answer(Result{Outcome: schema.Applied, SnapshotID: q.id, Text: "paused: nothing is tried until `agent resume`, but for the rollback under way, which goes on as " + q.id}, nil)
		}
		return
	}
	hold := &schema.Hold{Digests: []schema.Digest{}, Paused: true, Reason: q.Reason, Since: schema.Unix(time.Now()), By: "operator"}
	if head.Held != nil {
		hold.Digests = head.Held.Digests
	}
	r.hold(ctx, q, head, applied, hold, "Pause: "+q.Reason, "paused: nothing is tried until `agent resume`")
}

// resume ends any hold and any pause; a pending rollback is withdrawn.
func (r *Reconciler) resume(ctx context.Context, q *request, head, applied *schema.Snapshot) {
	if head.Held == nil {
		q.answer(Result{}, errors.New("nothing is held and nothing is paused"))
		return
	}
	r.hold(ctx, q, head, applied, nil, "Resume: "+cmpOr(q.Reason, "by the operator"), "resumed: what the source declares is tried again")
}

// hold puts a new hold, or the end of one, on record.
func (r *Reconciler) hold(ctx context.Context, q *request, head, applied *schema.Snapshot, hold *schema.Hold, why, text string) {
	record := r.commitNote
	if head.Kind.Candidate() && head.Commit != applied.Commit {
		record = func(ctx context.Context, hold *schema.Hold, why string) (bool, error) {
			return r.withdraw(ctx, head, why, hold)
		}
	}
	r.clear("commit", "revert")
	recorded, err := record(ctx, hold, why)
	if !recorded {
		q.answer(Result{}, r.notRecorded(q, "commit", "revert"))
		return
	}
	r.seen.since = time.Now()
	r.publish() // who asks for the status after the answer must see it
	res := Result{Outcome: schema.Applied, SnapshotID: r.opt.Store.Head().ID, Text: text}
	if err != nil {
		res.Outcome, res.Text = schema.Pending, "it is in force, but a power cut may undo it until the disk takes it: "+errorText(err)
	}
	q.answer(res, nil)
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
	return fmt.Errorf("%s: %s; nothing was changed: %s, then repeat the command", q.Verb, reason, hint)
}

// resolve answers the callers that wait for the record id.
func (r *Reconciler) resolve(id string, outcome schema.Outcome, reason string) {
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
