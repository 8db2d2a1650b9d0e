package apply

import (
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
	// healthEvery is how often the engine is asked for its health, at most a fifth of
	// the window.
	healthEvery = time.Second
	// healthPause is the least time between two health reads, for other work.
	healthPause = 10 * time.Millisecond
	// badReads is how many failed health reads in a row fail a probation.
	badReads = 2
	// undoings is how often the engine may go back to something else by itself.
	undoings = 2
	// lateness is how late a health read may be. An agent that was stopped for longer
	// has not watched.
	lateness = 3 * time.Second
)

// A probation is the time in which the required hooks must agree to a change that the
// engine runs, and then the window in which the engine must stay healthy on it. A restart
// of the agent begins a new one.
type probation struct {
	until    time.Time
	next     time.Time // the next health read
	peer     api.Peer
	bad      int    // failed health reads in a row
	why      string // the last of them
	later    string // the engine's last word on its health, if that is to ask later
	readOwed bool   // what runs is to be read as well
	passed   bool
}

// onProbation reports whether the candidate that runs has yet to prove itself: first to
// the required hooks, then by its health. A rollback has not: its target ran before, and
// neither a hook nor an unhealthy engine must keep an operator from going back.
func (s *State) onProbation() bool {
	p := s.pending
	isDue := s.opt.Probation > 0 && s.head.Kind == record.KindChange || s.isGated(s.head)
	return isDue && s.head.ID == p.id && (p.probation == nil || !p.probation.passed)
}

// foldBegin begins the window, or begins it again because the engine was not watched.
func (s *State) foldBegin(now time.Time) {
	before, p := s.pending.probation, s.newProbation(now)
	s.pending.probation = p
	if s.opt.Probation == 0 {
		p.passed = !s.awaitsHooks()
		return
	}
	if before == nil {
		s.log(slog.LevelInfo, "on probation", "snapshot", s.head.ID, "window", s.opt.Probation.String(), "changes", changesText(s.head.Changes))
		return
	}
	p.bad, p.why = before.bad, before.why
	s.log(slog.LevelInfo, "the probation begins anew: the engine was not watched", "snapshot", s.head.ID, "late", now.Sub(before.next).Round(time.Millisecond).String())
}

func (s *State) newProbation(now time.Time) *probation {
	return &probation{until: now.Add(s.opt.Probation), peer: s.engine.reading.Peer}
}

func (s *State) failProbation(why string) {
	s.pending.verified, s.pending.rejection = false, &rejection{by: byProbation, reason: why}
}

// foldHealth folds a health read that began at the time given. What runs is read as well
// when that is due, may have changed or decides: only both at the end of the window pass.
func (s *State) foldHealth(health api.Health, err error, began, now time.Time) {
	p := s.pending.probation
	p.later = ""
	p.next = began.Add(min(healthEvery, s.opt.Probation/5))
	if !now.Before(p.next) {
		p.next = now.Add(healthPause) // a reading that takes its time is not a lack of watching
	}
	var foreign *api.ForeignError
	var later *api.LaterError
	switch {
	case errors.As(err, &foreign) && health.Peer == p.peer:
		// It runs the candidate, and cannot report its health: that is not the fault of the change.
		f := s.block(stageProbation, newProblem("the engine cannot be asked for its health, which --probation needs: "+foreign.Reason,
			"give the server GET /v1/config/health, or run the agent without --probation; until then the change is not confirmed"))
		p.readOwed = s.readDue(now)
		p.next = earlier(f.retryAt, s.engine.next)
		return
	case isGone(err):
		s.failProbation("the engine ended while the change was on probation")
		return
	case err == nil && health.Peer != p.peer:
		s.failProbation("the engine was restarted while the change was on probation")
		return
	case errors.Is(err, errInterrupted):
		return
	case errors.As(err, &later): // no verdict
		p.next, p.later = later.Until, later.Reason
		return
	case err != nil:
		health = api.Health{Reason: problem.Text(err)}
	}
	if s.blocked(stageProbation) {
		s.clear(stageProbation)
		next := p.next
		*p = *s.newProbation(now) // a whole window
		p.next = next
	}
	if !health.Healthy {
		p.bad, p.why = p.bad+1, health.Reason
		s.repeat(slog.LevelWarn, "probation", "a health read failed on probation", "snapshot", s.pending.id, "reason", p.why)
		if p.bad >= badReads {
			s.failProbation(fmt.Sprintf("the engine was not healthy on it, %d times in a row: %s", p.bad, p.why))
		}
		return
	}
	p.bad, p.why = 0, ""
	s.endRepeat("probation")
	p.readOwed = !now.Before(p.until) || s.readDue(now) || !s.engine.reachable
}

// foldProbation folds a reading during probation. An engine that went back to something
// else by itself is sent the candidate once more, for a whole window.
func (s *State) foldProbation(reading api.Reading, err error, now time.Time) {
	pending := s.pending
	p := pending.probation
	p.readOwed = false
	if f := s.faults[stageProbation]; f != nil {
		p.next = earlier(f.retryAt, s.engine.next)
	} else if !now.Before(p.next) {
		p.next = now.Add(healthPause)
	}
	var later *api.LaterError
	switch {
	case errors.Is(err, errInterrupted):
	case errors.As(err, &later):
		p.next = later.Until
	case err != nil && s.opt.Probation == 0: // it is read again
	case err != nil:
		p.bad, p.why = 1, err.Error()
	case reading.Peer != p.peer:
		s.failProbation("the engine was restarted while the change was on probation")
	case !s.runsAll(reading, s.head.Config):
		changes := changesText(s.differences(reading, s.head.Config))
		if pending.undone++; pending.undone >= undoings {
			s.failProbation("the engine did not keep it through the probation, twice: " + changes)
			return
		}
		s.log(slog.LevelWarn, "the engine runs something else while the change is on probation; it is sent once more", "snapshot", pending.id, "changes", changes)
		pending.verified, pending.accepted, pending.probation = false, false, nil
	default:
		s.engine.unchecked = false
		p.passed = p.bad == 0 && !s.awaitsHooks() && !now.Before(p.until) && !s.blocked(stageProbation)
	}
}

// probationProblem returns how the probation of the head goes.
func (s *State) probationProblem() *problem.Error {
	p := s.pending.probation
	if s.pending.asking != nil && s.awaitsHooks() {
		return s.askingProblem()
	}
	if p.later != "" {
		return newProblem(s.head.ID+" runs on probation until the engine says how it is: "+p.later,
			"exempt the agent's socket from the server's rate limit, or run the agent without --probation; "+stopHint(s.applied))
	}
	reason := fmt.Sprintf("%s runs on probation until %s: %s of health", s.head.ID, p.until.UTC().Format("15:04:05Z"), s.opt.Probation)
	if p.bad > 0 {
		reason += "; the last health read failed: " + p.why
	}
	return newProblem(reason, "two failed health reads in a row, or a restart of the engine, bring back the state before; "+stopHint(s.applied))
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
