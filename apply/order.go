package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// An Order is what an operator asks a running agent to do: *Rollback, *Pause or *Resume.
type Order interface {
	verb() string
}

// A Rollback goes back to an earlier record.
type Rollback struct {
	// ID is the target; "" for the newest applied record that differs from what is
	// applied and is not held.
	ID     string
	Reason string
	Pause  bool // pause as well
	// Hold are the parameters of which the values are held; empty for all that differ.
	Hold      []string
	DryRun    bool // only say what would be done
	Requester record.Requester
}

// A Pause keeps everything from being applied until a Resume.
type Pause struct {
	Reason    string
	Requester record.Requester
}

// A Resume ends holds and pauses.
type Resume struct {
	Name      string // the parameter of which entries end; "" for all, and the pause
	Reason    string
	DryRun    bool // only say what would be tried
	Requester record.Requester
}

func (*Rollback) verb() string { return "rollback" }
func (*Pause) verb() string    { return "pause" }
func (*Resume) verb() string   { return "resume" }

// A Result is what came of an Order.
type Result struct {
	// Outcome is Applied for what took effect; Pending, Rejected or Superseded
	// for a rollback that did not (yet).
	Outcome    record.Outcome
	SnapshotID string
	// Text is for the operator.
	Text string
}

// errStopping answers an order that a stopping agent did not begin.
var errStopping = problem.New("", errors.New("the agent is stopping"), "repeat the command once it runs")

// A request is an order with its caller.
type request struct {
	Order
	ctx   context.Context // of the caller, who gives up at its end
	reply chan reply      // capacity 1
	// record is the id of the rollback's record, once it is committed or joined. The
	// caller that gives up waiting reads it as well.
	record atomic.Value

	// open is the rollback that was under way when the order was given, or "".
	open string
	facts
}

// facts are what an order needs to know of the history.
type facts struct {
	known       bool
	openOutcome record.Outcome // of request.open, "" if it is unknown
	target      *record.Row    // nil if there is none
	err         error          // why there is none
	config      schema.Parameters
	// declared is what the source declared then: a fix that arrives meanwhile is not
	// held.
	declared *schema.Configuration
	applied  schema.Parameters // the applied record, completed
	isJudged bool
	policy   string // the verdict of the policy on the rollback, as a clause of its text
}

type reply struct {
	Result
	err error
}

// id returns the id of the rollback's record, "" while there is none.
func (q *request) id() string {
	id, _ := q.record.Load().(string)
	return id
}

// givenUp returns why the caller no longer waits, or nil. The clock decides, and not the
// context's timer: that of a process which was stopped (SIGSTOP, a suspended machine)
// may run after what else was due.
func (q *request) givenUp() error {
	if err := context.Cause(q.ctx); err != nil {
		return err
	}
	if deadline, ok := q.ctx.Deadline(); ok && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return nil
}

// forgotten returns the error for a caller that gave up, as why says, before the order
// was begun.
func (q *request) forgotten(why error) error {
	return fmt.Errorf("%s was not begun, and is forgotten: the agent was busy until its deadline: %w", q.verb(), why)
}

// Do carries out an order and waits for its outcome, or until ctx ends. Then what is
// on record goes on, and the Result says pending; what is not begun by then is
// forgotten. An error means that the order was not carried out, and nothing was
// changed.
func (r *Reconciler) Do(ctx context.Context, order Order) (Result, error) {
	if r.opt.Observe {
		return Result{}, errors.New("this agent only observes (--observe): it changes nothing")
	}
	q := &request{Order: order, ctx: ctx, reply: make(chan reply, 1)}
	if why := q.givenUp(); why != nil {
		return Result{}, q.forgotten(why)
	}
	q.open = r.Status().openRollback
	r.calls.wait(1)
	select {
	case r.requests <- q:
	case <-ctx.Done():
		r.calls.wait(-1)
		return Result{}, q.forgotten(context.Cause(ctx))
	case <-r.ended:
		r.calls.wait(-1)
		return Result{}, errStopping
	}
	select {
	case a := <-q.reply:
		return a.Result, a.err
	case <-ctx.Done():
		id := q.id()
		return unsettled(r.Status().Attempts, id, pendingText(id)), nil
	}
}

// planOrder plans the next step of the order.
func (s *State) planOrder(now time.Time) Step {
	q := s.order
	resume, isResume := q.Order.(*Resume)
	switch {
	case s.isVerified() && !s.onProbation() && s.ready(stageConfirm, now) && !s.isRival():
		return Step{Kind: Confirm} // first what the engine runs already
	case s.lost != nil && isResume && resume.DryRun:
		return answer("would end the pause: " + s.lost.Reason)
	case s.lost != nil && isResume && resume.Name == "":
		return Step{Kind: ClearLost}
	case s.lost != nil:
		return refuse(problem.New(q.verb(), errors.New(s.lost.Text()), s.heldProblem(s.lost, nil).Hint))
	case s.applied == nil:
		return refuse(problem.New(q.verb(), errors.New("nothing was applied yet, so there is no state to keep or to go back to"), "correct the configuration, or stop the agent"))
	case isResume:
		return s.planResume(resume)
	}
	if pause, ok := q.Order.(*Pause); ok {
		return s.planPause(pause, now)
	}
	return s.planRollback(q, q.Order.(*Rollback), now)
}

func refuse(err error) Step { return Step{Kind: Answer, Err: err} }

// answer returns the answer to a dry run.
func answer(text string) Step {
	return Step{Kind: Answer, Result: Result{Outcome: record.Applied, Text: text}}
}

// checkNames reports a name that is not a parameter.
func (r *rules) checkNames(names []string) error {
	for _, name := range names {
		if r.schema.Parameter(name) == nil {
			hint := "one of " + strings.Join(r.schema.Names(), ", ")
			if near, ok := schema.Suggest(name, r.schema.Names()); ok {
				hint = "did you mean " + near + "?"
			}
			return problem.New("", fmt.Errorf("unknown parameter %.80q", name), hint)
		}
	}
	return nil
}

// planRollback plans a rollback. One without a target joins the rollback that is under
// way, or that came to its end since the order was given: who asks again means the same.
func (s *State) planRollback(q *request, o *Rollback, now time.Time) Step {
	if err := s.checkNames(o.Hold); err != nil {
		return refuse(err)
	}
	if !q.known {
		return Step{Kind: FindTarget}
	}
	join := s.openRollback()
	if join == "" && q.openOutcome != record.Superseded { // what a newer document took the place of did not end well
		join = q.open
	}
	pause := &Pause{o.Reason, o.Requester}
	switch {
	case o.ID != "" || o.DryRun || join == "":
		return s.planTarget(q, o, now)
	case o.Pause && s.openRollback() != "":
		return s.pauseOpenRollback(pause, now)
	case o.Pause && s.applied.ID == join && !s.isPaused():
		return s.planPause(pause, now)
	}
	return Step{Kind: Join, Of: join}
}

// planTarget plans to commit a rollback to the target that was found. It takes the place
// of what is pending.
func (s *State) planTarget(q *request, o *Rollback, now time.Time) Step {
	if q.err != nil {
		return refuse(q.err)
	}
	target, config := q.target, q.config
	if s.same(config, q.applied) && s.isSettled() && s.engine.reachable && s.runsAll(s.engine.reading, config) {
		return refuse(problem.New("rollback", s.alreadyRuns(target), "to keep it whatever the source declares: agent pause --reason TEXT"))
	}
	rec := s.fill(record.Record{
		Kind: record.KindRollback, Description: "Rollback to " + target.ID + ": " + o.Reason, Config: config,
		Source:     record.Source{Kind: "operator", Location: target.Source.Location, Revision: target.Source.Revision},
		Provenance: provenanceOf(config, &target.Record), Experiments: target.Experiments, RollbackPoint: true,
		RequestedBy: &o.Requester.UID, Requester: &o.Requester, Held: s.rollbackHold(q, o, now),
	})
	for _, name := range o.Hold {
		if !slices.ContainsFunc(entriesOf(rec.Held), func(e record.Entry) bool { _, there := e.Values[name]; return there }) {
			return refuse(problem.New("rollback", fmt.Errorf("--hold %s: it has the same value in %s", name, target.ID), "name a parameter that differs: agent rollback --dry-run lists them"))
		}
	}
	if s.opt.Policy != nil && !q.isJudged {
		return Step{Kind: JudgeRollback, Record: rec}
	}
	if o.DryRun {
		text := rollbackPlan(target, &rec)
		if q.policy != "" {
			text += "\n" + q.policy
		}
		step := answer(text)
		step.Result.SnapshotID = target.ID
		return step
	}
	return Step{Kind: Commit, Record: rec}
}

// rollbackPlan returns what a rollback to target would do, one line each.
func rollbackPlan(target *record.Row, rec *record.Record) string {
	lines := []string{"would roll back to " + target.ID + ": " + target.Description}
	for _, c := range rec.Changes {
		lines = append(lines, "  "+c.String())
	}
	if len(rec.Changes) == 0 {
		lines = append(lines, "  nothing changes against what is applied")
	}
	for _, text := range textsOf(entriesOf(rec.Held)) {
		lines = append(lines, "would hold "+text)
	}
	if rec.Held != nil && rec.Held.Paused {
		lines = append(lines, "would pause until agent resume")
	}
	return strings.Join(lines, "\n")
}

// alreadyRuns returns the error for a target that the engine runs, as far as the schema
// knows it.
func (s *State) alreadyRuns(target *record.Row) error {
	unknown := slices.DeleteFunc(target.Config.Names(), func(name string) bool { return s.knows(name, target.Config.Get(name)) })
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

// planPause plans to put a pause on record. A change that is pending is withdrawn; a
// rollback goes on.
func (s *State) planPause(o *Pause, now time.Time) Step {
	if s.isPaused() {
		return refuse(fmt.Errorf("already paused since %s: %s", record.FromUnix(s.head.Held.Since).UTC().Format(time.RFC3339), s.head.Held.Reason))
	}
	if s.openRollback() != "" {
		return s.pauseOpenRollback(o, now)
	}
	return s.planHold(s.pauseHold(o, now), "Pause: "+o.Reason, o.Requester, "paused: nothing is tried until `agent resume`")
}

// pauseOpenRollback plans to commit the rollback under way again, with a pause.
func (s *State) pauseOpenRollback(o *Pause, now time.Time) Step {
	hold, who := s.pauseHold(o, now), o.Requester
	if s.head.Held != nil {
		hold.Reason += " (rolled back before: " + s.head.Held.Reason + ")"
	}
	return Step{Kind: Recommit, Record: s.candidateAgain(hold, &who.UID, &who)}
}

// planHold plans to put a hold, or the end of one, on record. A pending change is
// withdrawn.
func (s *State) planHold(hold *record.Hold, why string, who record.Requester, text string) Step {
	kind, rec := Note, s.fill(s.recordLike(s.head, record.KindNote, why, hold))
	if s.isCandidateOpen() {
		kind, rec = Revert, s.revertRecord(record.Superseded, why, hold)
	}
	rec.Requester = &who
	return Step{Kind: kind, Record: rec, Result: Result{Outcome: record.Applied, Text: text}}
}

// planResume plans to end a pause and entries; a pending rollback is withdrawn.
func (s *State) planResume(o *Resume) Step {
	hold := s.hold()
	if hold == nil {
		return refuse(errors.New("nothing is held and nothing is paused"))
	}
	left, why := (*record.Hold)(nil), "Resume: "
	if o.Name != "" {
		why = "Resume " + o.Name + ": "
		rest := *hold
		rest.Entries = without(hold.Entries, func(e record.Entry) bool {
			_, there := e.Values[o.Name]
			return there || slices.Contains(e.Names, o.Name)
		})
		if len(rest.Entries) == len(hold.Entries) {
			err := cmp.Or(s.checkNames([]string{o.Name}), fmt.Errorf("no value of %.80s is held", o.Name))
			return refuse(problem.New("resume", err, cmp.Or(problem.Hint(err), "what is held: agent status")))
		}
		if rest.Paused || len(rest.Entries) > 0 {
			left = &rest
		}
	}
	if o.DryRun {
		return answer(resumePlan(hold, left) + s.nextTry(left, "nothing would be tried", "would try: "))
	}
	text := "resumed"
	if left != nil {
		text = "no longer held: " + strings.Join(textsOf(endedEntries(hold, left)), "; ")
	}
	text += "; " + s.nextTry(left, "nothing is tried yet", "tried now: ")
	return s.planHold(left, why+cmp.Or(o.Reason, "by the operator"), o.Requester, text)
}

// endedEntries returns the entries of hold that left, which may be nil, does not have.
func endedEntries(hold, left *record.Hold) []record.Entry {
	return without(entriesOf(hold), func(e record.Entry) bool {
		return slices.ContainsFunc(entriesOf(left), func(o record.Entry) bool { return o.Since == e.Since && o.By == e.By && o.String() == e.String() })
	})
}

// resumePlan returns what would end if left remained of hold, one line each.
func resumePlan(hold, left *record.Hold) (lines string) {
	if hold.Paused && left == nil {
		lines = "would end the pause: " + hold.Reason + "\n"
	}
	for _, e := range endedEntries(hold, left) {
		lines += "would no longer hold " + e.String() + ": " + e.Reason + "\n"
	}
	return lines
}

// nextTry returns what is tried under the hold left, or why nothing is.
func (s *State) nextTry(left *record.Hold, nothing, tries string) string {
	switch c := s.declared.config; {
	case left != nil && left.Paused:
		return "still paused, so " + nothing + ": " + left.Reason
	case c == nil:
		return nothing + ": the source declares nothing valid"
	case s.holds(left, c):
		return "still held, so " + nothing + ": " + strings.Join(textsOf(s.matchingEntries(left, c)), "; ")
	case s.same(c.Parameters, s.applied.Config):
		return nothing + ": the source declares what is applied"
	default:
		return tries + changesText(s.opt.Rules.Diff(s.applied.Config, c.Parameters))
	}
}

// unsettled returns what is told of record id to a caller that does not wait for its
// outcome.
func unsettled(attempts []Attempt, id, pending string) Result {
	res := Result{Outcome: record.Pending, SnapshotID: id, Text: pending}
	for i := range attempts {
		if a := &attempts[i]; id != "" && a.SnapshotID == id && a.Rejecting() != "" {
			res.Outcome, res.Text = record.Rejected, a.Rejecting()+"; it is still to be brought back to what is applied, which goes on by itself"
		}
	}
	return res
}
