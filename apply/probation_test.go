package apply_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// onTrial is a world in which size(512) is applied and size(1024) has been on
// probation, of ten seconds, for a tenth of one.
func onTrial(t *testing.T) *world {
	w := newWorld(t, t.TempDir())
	w.declare(size(512), "")
	w.probation = 10 * time.Second
	w.restart()
	w.declare(size(1024), "")
	w.check("on probation", want{runs: size(1024), outcome: record.Pending, state: apply.StateProbation, ready: true, open: true})
	return w
}

func TestProbation(t *testing.T) {
	back := want{runs: size(512), outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{size(1024)}}
	passed := want{runs: size(1024), outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true}
	cases := map[string]struct {
		during func(w *world)
		wait   time.Duration
		want   want
		why    string // in the hold, for what is rejected
	}{
		"healthy for the whole window": {func(*world) {}, 10500 * time.Millisecond, passed, ""},
		"not confirmed before its end": {func(*world) {}, 9 * time.Second, want{runs: size(1024), outcome: record.Pending, state: apply.StateProbation, ready: true, open: true}, ""},
		"one failed health read": {func(w *world) {
			w.m.plan("health", fails)
		}, 11 * time.Second, passed, ""},
		"hints while a health read fails": {func(w *world) {
			w.engine.tell(func(e *scripted) { e.ill = "for a moment" })
			for range 5 {
				w.r.EngineHint()
				w.pass(20 * time.Millisecond)
			}
			w.engine.tell(func(e *scripted) { e.ill = "" })
		}, 11 * time.Second, passed, ""},
		"a failed health read, a good one, a failed one": {func(w *world) {
			w.m.plan("health", fails, fine, fails, fine)
		}, 11 * time.Second, passed, ""},
		"two failed health reads in a row": {func(w *world) {
			w.m.plan("health", fails, fails)
		}, 3 * time.Second, back, "not healthy on it, 2 times in a row: write: no space"},
		"it says that it is not healthy": {func(w *world) {
			w.engine.tell(func(e *scripted) { e.ill = "memory" })
		}, 3 * time.Second, back, "not healthy on it, 2 times in a row: memory"},
		"it fails at the very end": {func(w *world) {
			w.pass(9500 * time.Millisecond)
			w.engine.tell(func(e *scripted) { e.ill = "memory" })
		}, 3 * time.Second, back, "memory"},
		"it hangs": {func(w *world) {
			w.engine.tell(func(e *scripted) { e.hung = true })
			w.pass(25 * time.Second)
			if s := w.r.Status(); s.State != apply.StateApplying {
				w.t.Errorf("while it hangs on the way back: %s (%s)", s.State, s.Reason)
			}
			w.engine.tell(func(e *scripted) { e.hung = false })
		}, 15 * time.Second, back, "not healthy on it"},
		"it restarts with its defaults": {func(w *world) {
			w.engine.tell((*scripted).restart)
		}, 3 * time.Second, back, "restarted while the change was on probation"},
		"it restarts with what it ran": {func(w *world) {
			w.engine.tell(func(e *scripted) { e.peer++ })
			w.r.EngineHint()
		}, time.Second, back, "restarted while the change was on probation"},
		"it ends": {func(w *world) {
			w.engine.tell(func(e *scripted) { e.down = true })
			w.pass(3 * time.Second)
			w.engine.tell((*scripted).restart)
		}, 3 * time.Second, back, "ended while the change was on probation"},
		"somebody changes it": {func(w *world) {
			w.engine.tell(func(e *scripted) { e.runs = size(256) })
			w.r.EngineHint()
		}, 25 * time.Second, passed, ""},
		"a fix": {func(w *world) {
			w.declare(size(2048), "")
		}, 11 * time.Second, want{runs: size(2048), outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true}, ""},
		"the way back": {func(w *world) {
			w.declare(size(512), "again")
		}, time.Second, want{runs: size(512), outcome: record.Unchanged, state: apply.StateInSync, inSync: true, ready: true}, ""},
		"an invalid document ends nothing": {func(w *world) {
			w.declare(size(1), "")
			w.declare(size(1024), "")
		}, 11 * time.Second, want{runs: size(1024), outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true}, ""},
		"a restart of the agent": {func(w *world) {
			w.pass(8 * time.Second)
			w.restart()
			w.declare(size(1024), "")
			w.pass(9 * time.Second) // a whole window again
			w.check("after the restart", want{runs: size(1024), outcome: record.Pending, state: apply.StateProbation, ready: true, open: true})
		}, 2 * time.Second, passed, ""},
		"a restart, and then it is not healthy": {func(w *world) {
			w.restart()
			w.engine.tell(func(e *scripted) { e.ill = "memory" })
			w.declare(size(1024), "")
		}, 3 * time.Second, back, "memory"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := onTrial(t)
				defer w.end()
				c.during(w)
				w.pass(c.wait)
				w.check(name, c.want)
				if c.why == "" {
					return
				}
				s := w.r.Status()
				if s.Held == nil || s.Held.By != "probation" || !strings.Contains(s.Held.Reason, c.why) {
					t.Errorf("held %+v, want by probation, because of %q", s.Held, c.why)
				}
				if got := w.counts.rolledBack(); !slices.Equal(got, []string{"probation"}) {
					t.Errorf("rollbacks counted: %q", got)
				}
			})
		})
	}
}

// What went wrong on the way to the engine is over once it runs the change.
func TestProbationAfterAFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, t.TempDir())
		defer w.end()
		w.declare(size(512), "")
		w.probation = 10 * time.Second
		w.restart()
		w.engine.tell(func(e *scripted) { e.queue = []manner{busy} })
		w.declare(size(1024), "")
		w.pass(3 * time.Second)
		w.check("on probation", want{runs: size(1024), outcome: record.Pending, state: apply.StateProbation, ready: true, open: true})
	})
}

// What ran before the first document is held if that says the same and is
// rejected: it is the document that is not tried again.
func TestARejectedFirstDocumentThatRanBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.probation = 10 * time.Second
		w.engine.tell(func(e *scripted) { e.runs, e.ill = stateB, "memory" })
		w.start()
		w.declare(stateB, "")
		w.pass(time.Minute)
		x := want{runs: stateB, outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB}}
		w.check("rejected", x)
		w.restart()
		w.declare(stateB, "")
		x.outcome = record.Held
		w.check("after a restart", x)
		w.end()
	})
}

// A rollback ends a probation, and is on none itself.
func TestRollbackDuringProbation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onTrial(t)
		defer w.end()
		w.engine.tell(func(e *scripted) { e.ill = "memory" })
		res, err := w.do(&apply.Rollback{Reason: "it burns"})
		if err != nil || res.Outcome != record.Applied || !strings.Contains(res.Text, "esn_reservoir_size 1024 -> 512") {
			t.Fatal(res, err) // against what is applied nothing changed
		}
		w.pass(3 * time.Second)
		w.check("rolled back", want{
			runs: size(512), outcome: record.Held, state: apply.StateHeld, ready: true,
			held: []schema.Parameters{size(1024)},
		})
	})
}

// A server without the question is no reason to reject; the change waits.
func TestProbationWithoutHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onTrial(t)
		defer w.end()
		w.engine.tell(func(e *scripted) { e.ill = "404" })
		w.pass(time.Minute)
		w.check("no such question", want{runs: size(1024), outcome: record.Pending, state: apply.StateDegraded, ready: true, open: true})
		w.engine.tell(func(e *scripted) { e.ill = "" })
		w.pass(2 * time.Minute)
		w.check("it came", want{runs: size(1024), outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

// A health read that is given up for an order proves nothing.
func TestAnOrderDoesNotPassAProbation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onTrial(t)
		defer w.end()
		w.pass(9500 * time.Millisecond)
		w.engine.tell(func(e *scripted) { e.hung = true })
		w.pass(time.Second) // the window is over, and the last health read hangs
		if _, err := w.do(&apply.Resume{}); err == nil {
			t.Error("nothing is held, and it was resumed")
		}
		if applied := w.store.Applied(); !applied.Config.Equal(size(512)) {
			t.Errorf("it was applied: %s", w.r.Status().Reason)
		}
		w.pass(25 * time.Second)
		w.engine.tell(func(e *scripted) { e.hung = false })
		w.pass(15 * time.Second)
		w.check("rejected", want{runs: size(512), outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{size(1024)}})
	})
}

// A fix waits two seconds for a health read that hangs, as an order does.
func TestAFixDoesNotWaitForAHealthRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onTrial(t)
		defer w.end()
		w.m.plan("health", stallsFails)
		w.pass(2 * time.Second)
		w.declare(size(2048), "")
		w.pass(2 * time.Second)
		w.check("two seconds later", want{runs: size(2048), outcome: record.Pending, state: apply.StateProbation, ready: true, open: true})
		if got := w.counts.outcome(record.Superseded); got != 1 {
			t.Errorf("%d superseded", got)
		}
	})
}

// What is withdrawn while it runs is not drift, and is brought back also where
// drift is only reported.
func TestWithdrawnOnProbationIsNoDrift(t *testing.T) {
	for _, verb := range []string{"", "pause"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, t.TempDir())
			defer func() { w.end() }()
			w.declare(size(512), "")
			w.probation, w.drift = 10*time.Second, apply.DriftReport
			w.restart()
			w.declare(size(1024), "")
			if verb == "" {
				w.declare(size(512), "again")
			} else if _, err := w.do(orderOf(verb, "night")); err != nil {
				t.Fatal(err)
			}
			w.pass(time.Second)
			if s := w.r.Status(); !w.engine.running().Equal(size(512)) || s.Drift != nil || w.counts.drifted() != 0 || !s.Ready {
				t.Errorf("%q: runs %+v, drift %+v, %d counted", verb, w.engine.running(), s.Drift, w.counts.drifted())
			}
		})
	}
}
