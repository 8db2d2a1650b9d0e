package apply

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

// byProbation is who rejects what did not pass it.
const byProbation = "probation"

const (
	// healthEvery is how often the engine is asked for its health, at most a
	// fifth of the window.
	healthEvery = time.Second
	// badReads is how many failed health reads in a row fail a probation.
	badReads = 2
	// undoings is how often the engine may go back to something else by itself.
	undoings = 2
	// lateness is how late a health read may be: an agent that was stopped so long
	// has not watched.
	lateness = 3 * time.Second
)

// A probation is the window in which the engine must stay healthy on a change
// that it runs. A restart of the agent begins a new one.
type probation struct {
	since, until time.Time
	next         time.Time // the next health read
	peer         api.Peer
	bad          int    // failed health reads in a row
	why          string // the last of them
	passed       bool
}

// onProbation reports whether the candidate that runs has yet to prove itself.
// An operator's rollback has not: its target ran before, and who goes back to it
// because the engine is unwell must not be kept from it because of that.
func (r *Reconciler) onProbation(f *flight) bool {
	head := r.opt.Store.Head()
	return r.opt.Probation > 0 && head.Kind == record.KindChange && head.ID == f.id && (f.probation == nil || !f.probation.passed)
}

// probate watches the engine's health while the candidate runs. It rejects it,
// or lets it pass, or looks again later; what displaces a candidate ends it.
func (r *Reconciler) probate(ctx context.Context, f *flight) (more bool) {
	head := r.opt.Store.Head()
	if f.probation == nil {
		r.beginProbation(f)
		r.log.Event(slog.LevelInfo, "on probation", "snapshot", head.ID, "window", r.opt.Probation.String(), "changes", changesText(head.Changes))
		r.publish()
	}
	if done, more := r.displace(ctx, head, f); done {
		return more
	}
	p := f.probation
	if late := time.Since(p.next); !p.next.IsZero() && late > lateness && !r.blocked(byProbation) {
		r.log.Event(slog.LevelInfo, "the probation begins anew: the engine was not watched", "snapshot", head.ID, "late", late.Round(time.Millisecond).String())
		bad, why := p.bad, p.why
		r.beginProbation(f)
		p = f.probation
		p.bad, p.why = bad, why
	}
	if time.Now().Before(p.next) && (!r.engine.due || p.bad > 0) { // two hints do not make two failures of one
		r.wakeAt(p.next)
		return false
	}
	p.next = time.Now().Add(min(healthEvery, r.opt.Probation/5))
	r.wakeAt(p.next)
	why := r.examine(ctx, f)
	if now := time.Now(); now.After(p.next) {
		p.next = now // a reading that takes its time is no lack of watching
	}
	if why != "" {
		f.verified, f.verdict = false, &verdict{by: byProbation, reason: why}
		return true
	}
	if p.bad > 0 || !f.verified || r.blocked(byProbation) {
		r.publish()
		return !f.verified
	}
	return p.passed
}

// beginProbation starts the window anew.
func (r *Reconciler) beginProbation(f *flight) {
	now := time.Now()
	f.probation = &probation{since: now, until: now.Add(r.opt.Probation), peer: r.engine.reading.Peer}
}

// examine reads the engine's health, and what it runs when that is due, may have
// changed or decides: only both at the end of the window pass. It returns why
// the candidate is rejected, "" if it is not.
func (r *Reconciler) examine(ctx context.Context, f *flight) (verdict string) {
	health, err := r.health(ctx)
	p := f.probation
	var foreign *api.ForeignError
	switch {
	case errors.As(err, &foreign) && health.Peer == p.peer:
		// It runs the candidate, and cannot say how it is: no fault of the change.
		fault := r.block(byProbation, "the engine cannot be asked for its health, which --probation needs: "+foreign.Reason,
			"give the server GET /v1/config/health, or run the agent without --probation; until then the change is not confirmed")
		if r.readDue() { // the engine is not forgotten meanwhile
			verdict = r.stillRuns(ctx, f)
		}
		p.next = earlier(fault.retryAt, r.engine.next)
		return verdict
	case gone(err):
		return "the engine ended while the change was on probation"
	case err == nil && health.Peer != p.peer:
		return "the engine was restarted while the change was on probation"
	case errors.Is(err, errOrder):
		return "" // given up for an operator, or for a newer Document
	case err != nil:
		health = api.Health{Reason: problem.Text(err)}
	}
	if r.blocked(byProbation) {
		r.clear(byProbation)
		r.beginProbation(f) // a whole window
		p = f.probation
	}
	if !health.Healthy {
		p.bad, p.why = p.bad+1, health.Reason
		r.log.Warn("probation", "a health read failed on probation", "snapshot", f.id, "reason", p.why)
		if p.bad < badReads {
			return ""
		}
		return fmt.Sprintf("the engine was not healthy on it, %d times in a row: %s", p.bad, p.why)
	}
	p.bad, p.why = 0, ""
	r.log.Clear("probation")
	if time.Now().Before(p.until) && !r.readDue() && r.engine.reachable {
		return ""
	}
	if verdict = r.stillRuns(ctx, f); verdict == "" && f.verified && p.bad == 0 {
		p.passed = !time.Now().Before(p.until)
	}
	return verdict
}

// stillRuns reads whether the engine runs the candidate on probation. One that
// went back to something else by itself is sent it once more, for a whole window.
func (r *Reconciler) stillRuns(ctx context.Context, f *flight) (verdict string) {
	p := f.probation
	reading, err := r.read(ctx)
	switch {
	case errors.Is(err, errOrder):
	case err != nil:
		p.bad, p.why = 1, err.Error()
	case reading.Peer != p.peer:
		return "the engine was restarted while the change was on probation"
	case !r.runs(reading, r.opt.Store.Head().Config):
		changes := changesText(r.differences(reading, r.opt.Store.Head().Config))
		if f.undone++; f.undone >= undoings {
			return "the engine did not keep it through the probation, twice: " + changes
		}
		r.log.Event(slog.LevelWarn, "the engine runs something else while the change is on probation; it is sent once more", "snapshot", f.id, "changes", changes)
		f.verified, f.acked, f.probation = false, false, nil
	}
	return ""
}

// health asks the engine how it is.
func (r *Reconciler) health(ctx context.Context) (api.Health, error) {
	r.stamp.Store(time.Now().UnixNano())
	call, done := r.orders.interruptible(ctx)
	defer done()
	r.orders.mayYield()
	health, err := r.opt.Engine.Health(call)
	if err != nil {
		r.opt.Metrics.StageFailure("read")
	}
	return health, err
}

// probationText says how the probation of head goes.
func (r *Reconciler) probationText(head *record.Record) (reason, hint string) {
	p := r.flight.probation
	reason = fmt.Sprintf("%s runs on probation until %s: %s of health", head.ID, p.until.UTC().Format("15:04:05Z"), r.opt.Probation)
	if p.bad > 0 {
		reason += "; the last health read failed: " + p.why
	}
	return reason, "two failed health reads in a row, or a restart of the engine, bring back the state before; " + stopHint(r.opt.Store.Applied())
}
