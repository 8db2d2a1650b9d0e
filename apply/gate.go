package apply

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

// byHook is who rejects what a required hook vetoed.
const byHook = "hook"

// hookLeast is the first wait after required hooks did not say whether they agree.
const hookLeast = 15 * time.Second

// takenBackText begins the description of the revert of a change that required hooks did not
// answer about; " again" follows where its Document was taken back before.
const takenBackText = "taken back"

// TakenBack reports whether it was ended because required hooks did not answer.
func (a *Attempt) TakenBack() bool {
	return a.Outcome == record.Superseded && strings.HasPrefix(a.Reason, takenBackText)
}

// tellTakenBack tells that the engine is back from a change that required hooks did not
// answer about, once a Document, and counts it each time.
func (r *Reconciler) tellTakenBack(ctx context.Context, revert *record.Record) {
	if revert.OutcomeOf == nil || !strings.HasPrefix(revert.Description, takenBackText) {
		return
	}
	var change *record.Record
	if row, err := r.opt.Store.Lookup(ctx, revert.OutcomeOf.ID); err == nil {
		change = &row.Record
	}
	events := RecordEvents(&record.Row{Record: *revert, Outcome: record.Applied}, change)
	for _, e := range events {
		r.state.emitEvent(notice{Event: e})
	}
	if len(events) == 0 {
		r.state.count(eventWayBack, byHook)
	}
}

// A Veto is the error of a Gate that rejects a change.
type Veto struct{ Reason string }

// Error returns the reason.
func (v *Veto) Error() string { return v.Reason }

// An asking is what the required hooks are asked about the candidate that runs, and what
// they said. A restart of the agent asks again.
type asking struct {
	names   []string // of the hooks
	since   time.Time
	until   time.Time // when it ends at the latest
	agreed  bool
	failure string // why it is unknown whether they agree, "" while they are asked
}

// An opinion is what the required hooks said of a candidate.
type opinion struct {
	of  *asking
	err error
}

// isGated reports whether a record is one that required hooks are asked about: a change
// that changes something. A way back is never asked for.
func (s *State) isGated(rec *record.Record) bool {
	return s.opt.Gate != nil && rec.Kind == record.KindChange && len(rec.Changes) > 0
}

// awaitsHooks reports whether required hooks have yet to agree to the candidate.
func (s *State) awaitsHooks() bool {
	a := s.pending.asking
	return s.isGated(s.head) && (a == nil || !a.agreed)
}

// askHooks begins to ask the required hooks about the candidate. What they say arrives
// in the inbox.
func (r *Reconciler) askHooks(ctx context.Context) {
	s, p := r.state, r.state.pending
	names, wait := r.opt.Gate.Required()
	a := &asking{names: names, since: time.Now(), until: time.Now().Add(wait)}
	if p.asking = a; len(a.names) == 0 {
		a.agreed, p.probation.passed = true, s.opt.Probation == 0
		return
	}
	s.log(slog.LevelInfo, "asking required hooks", "snapshot", s.head.ID, "hooks", strings.Join(a.names, ", "), "changes", changesText(s.head.Changes))
	r.endAsking(p) // about another one, if that was superseded in this turn
	ctx, r.cancelAsking = context.WithCancel(ctx)
	r.currentAsking = a
	change := s.head
	r.askings.Go(func() {
		err := r.opt.Gate.Ask(ctx, change)
		r.arrive(func(in *arrivals) { in.opinions = append(in.opinions, opinion{a, err}) })
	})
}

// endAsking ends the asking about what is not the candidate p.
func (r *Reconciler) endAsking(p *pending) {
	if r.currentAsking != nil && (p == nil || p.asking != r.currentAsking) {
		r.cancelAsking()
		r.currentAsking = nil
	}
}

// foldOpinion folds what the required hooks said of the candidate.
func (s *State) foldOpinion(err error, now time.Time) {
	p, veto := s.pending, (*Veto)(nil)
	s.engine.due = true // it is confirmed, or brought back, by evidence of now
	switch {
	case err == nil:
		p.asking.agreed = true
		if p.probation != nil {
			p.probation.until = now.Add(s.opt.Probation)
		}
	case p.rejection != nil:
	case errors.As(err, &veto):
		p.verified, p.rejection = false, &rejection{by: byHook, reason: problem.Line(veto.Reason, 1<<10)}
	default:
		begin, of := takenBackText, s.head.Source.Revision
		if s.blocked(stageHook) && s.takenBackRevision == of {
			begin += " again"
		}
		s.takenBackRevision = of
		p.asking.failure = begin + ", because it is unknown whether the required hooks agree: " + problem.Line(err.Error(), 1<<10)
		f := s.block(stageHook, newProblem(s.head.ID+" was "+p.asking.failure, "look at the hook's receiver; the change is tried again by itself, and at once by `agent sync`"))
		f.retryAt = now.Add(double(hookLeast, f.tries))
	}
}

// askingProblem says that the required hooks are asked about the candidate.
func (s *State) askingProblem() *problem.Error {
	a := s.pending.asking
	clock := func(t time.Time) string { return t.UTC().Format("15:04:05Z") }
	names := strings.Join(a.names, ", ")
	return newProblem(fmt.Sprintf("%s runs, and is applied once the required hooks agree (%s), which are asked since %s, until %s at most", s.head.ID, names, clock(a.since), clock(a.until)),
		"see that the receiver answers ("+names+"); after "+clock(a.until)+" the change is taken back, and tried again later; "+stopHint(s.applied))
}
