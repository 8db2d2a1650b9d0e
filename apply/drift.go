package apply

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// What is said of several engines behind one socket.
const (
	severalReason = "readings on fresh connections disagree: there are several engines behind one socket"
	severalHint   = "run the server with one worker (--workers 1): each worker has a configuration of its own, and a change reaches whichever answers"
)

const (
	// moreReadings is how often the engine is read again before a difference is
	// called drift: of two workers that answer in turn or at random both are met.
	moreReadings = 5
	// agreement is how many readings in a row must say the same before it is no
	// longer said that there are several engines; a new process ends it at once.
	agreement = 20
	// contested is the number of drifts in a row, each soon after the last
	// correction, from which on it is no accident.
	contested = 3
)

// A contest is what is known of whoever changes the engine past the agent
// again and again: another agent, a script, a person. Two who both correct at
// once would never stop, so from the contested-th round on each correction
// waits longer than the one before.
type contest struct {
	rounds    int       // drifts in a row, each soon after a correction
	corrected time.Time // the last correction of drift
	label     string    // the environment that was found on the engine meanwhile
	asked     bool      // an operator wants a correction now
}

// wait is how long after the last correction the next one must not come: none
// for an accident, then the drift interval, doubled each round up to backoffMost.
func (c *contest) wait(interval time.Duration) time.Duration {
	n := c.rounds - contested
	switch {
	case n < 0:
		return 0
	case n > 20:
		return max(interval, backoffMost)
	}
	return max(interval, min(interval<<n, backoffMost))
}

// soon reports whether now is so soon after the last correction that a drift
// seen now counts as the next round. The other side may be waiting as well.
func (c *contest) soon(interval time.Duration) bool {
	return !c.corrected.IsZero() && time.Since(c.corrected) < 3*interval+2*c.wait(interval)
}

// on reports whether the contest goes on.
func (c *contest) on(interval time.Duration) bool { return c.rounds >= contested && c.soon(interval) }

// upkeep keeps the engine on the applied snapshot: it reads when a reading is
// due and, if the engine runs something else, asserts the applied snapshot
// after a restart always, after drift unless drift is only to be reported.
// With spare set a difference is left alone: the caller sends right away. It
// reports whether what the engine runs is known.
func (r *Reconciler) upkeep(ctx context.Context, applied *record.Record, spare bool) (known bool) {
	if !r.readDue() && !r.retryDue("assert") {
		return r.engine.reachable
	}
	reading, err := r.read(ctx)
	switch {
	case err != nil:
		return false
	case applied == nil:
		r.engine.returned = false
		return true
	case r.agrees(reading, applied.Config):
		r.engineInOrder(applied)
		return true
	case spare:
		return true
	case !r.ownDoing(reading, applied):
		return r.drifted(ctx, reading, applied)
	}
	if r.ready("assert") && r.assert(ctx, applied) {
		r.engineInOrder(applied)
	}
	return r.engine.reachable
}

// ownDoing reports whether a restart, or a late request of ours, explains that
// the engine runs something else than should.
func (r *Reconciler) ownDoing(reading api.Reading, should *record.Record) bool {
	return r.engine.returned || r.engine.late.explains(reading.Parameters, r.differences(reading, should.Config))
}

// drifted deals with an engine that runs something else and did not restart:
// it looks again, says what it found, and brings the applied snapshot back
// unless that is not wanted, or not yet.
func (r *Reconciler) drifted(ctx context.Context, reading api.Reading, applied *record.Record) (known bool) {
	if !r.engine.several {
		var err error
		if reading, err = r.readAgain(ctx, reading); err != nil {
			return false
		}
		if r.agrees(reading, applied.Config) && !r.engine.several {
			r.engineInOrder(applied)
			return true
		}
	}
	switch {
	case r.engine.several:
		r.log.Warn("several", severalReason, "hint", severalHint)
	case !r.ownDoing(reading, applied): // it may have restarted between two readings
		r.noteDrift(reading, applied)
	}
	if r.opt.Drift == DriftReport && !r.engine.returned || !r.mayCorrect() {
		return true
	}
	if r.ready("assert") && r.assert(ctx, applied) {
		r.contest.corrected = time.Now()
		r.engineInOrder(applied)
	}
	return r.engine.reachable
}

// mayCorrect reports whether drift may be corrected now, and plans the next
// turn if not.
func (r *Reconciler) mayCorrect() bool {
	at := r.contest.corrected.Add(r.contest.wait(r.opt.DriftInterval))
	if r.contest.asked || r.engine.returned || r.engine.several || !time.Now().Before(at) {
		return true
	}
	r.engine.next = earlier(r.engine.next, at)
	r.wakeAt(at)
	return false
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// readAgain reads the engine a few times more, each on a fresh connection. One
// engine may have been changed in between, once; a state that comes back after
// another one was read is another engine's. The last reading is returned. Who
// waits with an order, or to stop, does not wait for all of them.
func (r *Reconciler) readAgain(ctx context.Context, first api.Reading) (last api.Reading, err error) {
	last = first
	var before []schema.Parameters // states that were read before the last one
	for range moreReadings {
		if r.orders.any() || r.stopping.Load() {
			r.engine.due = true
			return last, errOrder
		}
		next, err := r.read(ctx)
		if err != nil {
			return last, err
		}
		if next.Peer != last.Peer {
			return next, nil // another process: nothing to compare
		}
		if runs := r.managed(next); !runs.Equal(r.managed(last)) {
			before = append(before, r.managed(last))
			if slices.ContainsFunc(before, runs.Equal) {
				r.engine.several = true
			}
		}
		last = next
	}
	return last, nil
}

// countAgreement counts how many readings in a row said the same; it is called
// before the reading is noted.
func (r *Reconciler) countAgreement(reading api.Reading) {
	e := &r.engine
	if !e.known || reading.Peer != e.reading.Peer || !r.managed(reading).Equal(r.managed(e.reading)) {
		e.agree = 0
	}
	if e.agree++; e.several && e.agree >= agreement {
		e.several = false
		r.log.Clear("several")
		r.log.Event(slog.LevelInfo, "the readings agree again")
	}
}

// engineInOrder notes that the engine runs the applied snapshot. While somebody
// contests it, that does not end the drift: it is corrected, for now.
func (r *Reconciler) engineInOrder(applied *record.Record) {
	if r.drift != nil && !r.drift.Corrected {
		r.log.Event(slog.LevelInfo, "the drift is over: the engine runs the applied snapshot")
	}
	if r.engine.returned && r.since.at != 0 {
		r.runsSince(applied.Config, true)
	}
	r.engine.returned, r.contest.asked = false, false
	switch {
	case r.drift != nil && r.contest.on(r.opt.DriftInterval):
		r.drift = &Drift{Since: r.drift.Since, Corrected: true, Differences: r.drift.Differences}
	case r.drift != nil:
		r.drift = nil
	}
	r.clear("assert")
}

// noteDrift puts what the engine runs instead of the applied snapshot on
// record, and counts it when it is new.
func (r *Reconciler) noteDrift(reading api.Reading, applied *record.Record) {
	differences := slices.DeleteFunc(r.differences(reading, applied.Config), func(c schema.Change) bool {
		return c.New.IsZero() && !reading.Knows(c.Parameter) // the engine does not know it, which is said elsewhere
	})
	c := &r.contest
	if reading.Relabelled != "" {
		c.label = reading.Relabelled
	}
	since := record.Unix(time.Now())
	if r.drift == nil || r.drift.Corrected {
		if c.soon(r.opt.DriftInterval) {
			c.rounds++
		} else {
			*c = contest{label: reading.Relabelled, asked: c.asked}
		}
		r.opt.Metrics.Drift()
		r.log.Event(slog.LevelWarn, "the engine runs something else than the applied snapshot, and it did not restart",
			"snapshot", applied.ID, "differences", changesText(differences), "mode", string(r.opt.Drift))
		if c.rounds >= contested {
			_, hint := r.contestText()
			r.log.Warn("contest", "something else keeps changing the engine", "hint", hint, "rounds", c.rounds)
		}
	}
	if r.drift != nil {
		since = r.drift.Since
	}
	r.drift = &Drift{Since: since, Differences: differences}
	r.publish()
}

// contestText says that something else keeps changing the engine, and what.
func (r *Reconciler) contestText() (reason, hint string) {
	reason = fmt.Sprintf("something else keeps changing the engine: it was brought back %d times in a row and changed again soon after each", r.contest.rounds)
	hint = "look for another agent on this socket, a script or a person: one engine has one agent"
	if r.contest.label != "" {
		hint += fmt.Sprintf("; somebody labels it %q", r.contest.label)
	}
	wait := r.contest.wait(r.opt.DriftInterval)
	return reason, hint + fmt.Sprintf("; until then corrections are at least %s apart, `agent sync` brings one at once", wait)
}

// driftText says what drifted, for the status.
func (r *Reconciler) driftText(d *Drift) (reason, hint string) {
	if r.contest.rounds < contested {
		hint = "find out who changed it past the agent; "
		if s := r.opt.Store.Applied(); s != nil && s.RollbackPoint {
			hint += "`agent rollback " + s.ID + "` brings it back once, --drift correct always"
		} else {
			hint += "--drift correct brings it back"
		}
		return "the engine runs something else than the applied snapshot: " + changesText(d.Differences), hint
	}
	reason, hint = r.contestText()
	what := "; now it runs something else again: "
	if d.Corrected {
		what = "; now it runs the applied snapshot, before: "
	}
	return reason + what + changesText(d.Differences), hint
}
