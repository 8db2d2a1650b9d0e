package apply

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

var errSeveral = newProblem("readings on fresh connections disagree: there are several engines behind one socket",
	"run the server with one worker (--workers 1): each worker has a configuration of its own, and a change reaches whichever answers")

const (
	// moreReadings is how often the engine is read again before a difference is
	// called drift: of two workers that answer in turn or at random both are met.
	moreReadings = 5
	// agreement is how many readings in a row must agree before several engines are no
	// longer reported. A new process ends it at once.
	agreement = 20
	// contested is the number of drifts in a row, each soon after the last correction,
	// from which on they are not an accident.
	contested = 3
)

type driftState struct {
	now     *Drift     // nil for none
	last    *LastDrift // also of earlier processes; nil for none
	contest contest
}

// A contest is what is known of whoever keeps changing the engine past the agent: another
// agent, a script, a person. Two who both correct at once would never stop, so from the
// contested-th round on each correction waits longer than the one before.
type contest struct {
	rounds      int       // drifts in a row, each soon after a correction
	corrections int       // of them
	corrected   time.Time // the last correction of drift
	label       string    // the environment that was found on the engine meanwhile
	isUrgent    bool      // an operator wants a correction now
}

// wait returns how long after the last correction the next one may come: at once for an
// accident, then after the drift interval, doubled each round up to backoffMost.
func (c *contest) wait(interval time.Duration) time.Duration {
	if c.rounds < contested {
		return 0
	}
	return max(interval, double(interval, c.rounds-contested))
}

// isSoon reports whether a drift seen now counts as the next round. The other side may be
// waiting as well.
func (c *contest) isSoon(interval time.Duration, now time.Time) bool {
	return !c.corrected.IsZero() && now.Sub(c.corrected) < 3*interval+2*c.wait(interval)
}

func (s *State) nextCorrection() time.Time {
	c := &s.drift.contest
	return c.corrected.Add(c.wait(s.opt.DriftInterval))
}

func (s *State) mayCorrect(now time.Time) bool {
	return s.drift.contest.isUrgent || s.engine.returned || s.engine.several || !now.Before(s.nextCorrection())
}

// foldAccept notes that the engine runs what it should. While nothing is pending, that
// ends drift. While somebody contests it, the drift only counts as corrected.
func (s *State) foldAccept(now time.Time) {
	s.engine.unchecked = false
	if s.applied == nil || !s.isSettled() {
		s.engine.returned = false
		s.clear(stageAssert)
		return
	}
	d := &s.drift
	if s.engine.returned && s.engine.since.at != 0 {
		s.runsSince(s.applied.Config, true, now)
	}
	s.engine.returned, d.contest.isUrgent = false, false
	s.clear(stageAssert)
	drift := d.now
	if drift == nil {
		return
	}
	if !drift.Corrected {
		s.log(slog.LevelInfo, "the drift is over: the engine runs the applied snapshot")
	}
	s.endDrift(now)
	if d.contest.rounds >= contested && d.contest.isSoon(s.opt.DriftInterval, now) {
		d.now = &Drift{Since: drift.Since, Corrected: true, Differences: drift.Differences}
	}
}

// endDrift notes that there is no drift: it ended, or something else is to run.
func (s *State) endDrift(now time.Time) {
	if last := s.drift.last; s.drift.now != nil && last != nil && last.Until == 0 {
		s.noteLastDrift(&LastDrift{At: last.At, Until: record.Unix(now), Differences: last.Differences})
	}
	s.drift.now = nil
}

func (s *State) foldDrift(target *record.Record, now time.Time) {
	e, d := &s.engine, &s.drift
	e.noted = true
	differences := slices.DeleteFunc(s.differences(e.reading, target.Config), func(c schema.Change) bool {
		return c.New.IsZero() && !e.reading.Knows(c.Parameter) // the engine does not know it, which is reported elsewhere
	})
	c := &d.contest
	if e.reading.Relabelled != "" {
		c.label = e.reading.Relabelled
	}
	since := record.Unix(now)
	if d.now == nil || d.now.Corrected {
		if c.isSoon(s.opt.DriftInterval, now) {
			c.rounds++
		} else {
			*c = contest{label: e.reading.Relabelled, isUrgent: c.isUrgent}
		}
		event := Event{
			Type: EventDrifted, Record: target, Level: slog.LevelWarn, Text: "the engine runs something else than the applied snapshot, and it did not restart",
			Attrs: []any{"snapshot", target.ID, "differences", changesText(differences), "mode", string(s.opt.Drift)},
		}
		if c.rounds >= contested {
			event.Key, event.Same = "drift", "contested"
			s.repeatKind(slog.LevelWarn, "contest", "contested", "something else keeps changing the engine", "hint", s.contestProblem().Hint, "rounds", c.rounds)
		}
		s.emit(event)
		s.noteLastDrift(&LastDrift{At: since, Differences: differences})
	}
	if d.now != nil {
		since = d.now.Since
	}
	d.now = &Drift{Since: since, Differences: differences}
}

// lastDriftFact is the name under which the Store keeps the last drift.
const lastDriftFact = "last-drift"

func (s *State) noteLastDrift(last *LastDrift) {
	last.Differences = last.Differences[:min(len(last.Differences), 16)] // a fact is at most 4 KiB
	s.drift.last = last
	text, _ := json.Marshal(last) // of strings and numbers
	s.facts.keep(lastDriftFact, text)
}

func (s *State) loadLastDrift() {
	last := new(LastDrift)
	if text := s.opt.Store.Fact(lastDriftFact); text != nil && json.Unmarshal(text, last) == nil {
		s.drift.last = last
	}
}

func (s *State) contestProblem() *problem.Error {
	c := &s.drift.contest
	hint := "look for another agent on this socket, a script or a person: one engine has one agent"
	if c.label != "" {
		hint += fmt.Sprintf("; somebody labels it %q", c.label)
	}
	hint += fmt.Sprintf("; until then corrections are at least %s apart, `agent sync` brings one at once", c.wait(s.opt.DriftInterval))
	return newProblem(fmt.Sprintf("something else keeps changing the engine: it was brought back %d times in a row and changed again soon after each", c.corrections), hint)
}

func (s *State) driftProblem() *problem.Error {
	d := s.drift.now
	if s.drift.contest.rounds < contested {
		hint := "find out who changed it past the agent; "
		if rec := s.applied; rec != nil && rec.RollbackPoint {
			hint += "`agent rollback " + rec.ID + "` brings it back once, --drift correct always"
		} else {
			hint += "--drift correct brings it back"
		}
		return newProblem("the engine runs something else than the applied snapshot: "+changesText(d.Differences), hint)
	}
	contest, what := s.contestProblem(), "; now it runs something else again: "
	if d.Corrected {
		what = "; now it runs the applied snapshot, before: "
	}
	return newProblem(contest.Error()+what+changesText(d.Differences), contest.Hint)
}
