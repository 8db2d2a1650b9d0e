package apply_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

func inSync(p schema.Parameters) want {
	return want{runs: p, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true}
}

func (c *counts) drifted() int { c.mu.Lock(); defer c.mu.Unlock(); return c.drifts }

func TestDriftIsCorrectedWithoutACommit(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		total := w.store.Total()
		w.engine.tell(func(e *scripted) { e.runs = stateC })
		w.pass(31 * time.Second)
		w.check("corrected", inSync(stateA))
		if w.store.Total() != total || w.counts.drifted() != 1 {
			t.Errorf("%d commits, %d drifts", w.store.Total()-total, w.counts.drifted())
		}
		w.engine.tell(func(e *scripted) { e.runs = stateC })
		w.r.Sync()
		w.pass(time.Second)
		w.check("by sync", inSync(stateA))
	})
}

func TestDriftIsCorrectedWhileHeld(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, refuse)
		w.declare(stateB, "")
		w.engine.tell(func(e *scripted) { e.runs = stateC })
		w.pass(31 * time.Second)
		w.check("held", want{runs: stateA, outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB}})
		if w.counts.drifted() != 1 {
			t.Errorf("%d drifts", w.counts.drifted())
		}
	})
}

// Two agents that correct each other, or a script that insists: said, and ever
// rarer, until somebody ends it.
func TestAContestIsSaidAndBacksOff(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		total := w.store.Total()
		before := w.engine.sent(stateA)
		contest := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); w.pass(10 * time.Second) {
				w.engine.tell(func(e *scripted) { e.runs, e.label = stateC, "staging" })
			}
		}
		contest(5 * time.Minute)
		s := w.r.Status()
		if s.State != apply.StateDrifted || s.Drift == nil || s.InSync {
			t.Fatalf("%s (%s), drift %+v", s.State, s.Reason, s.Drift)
		}
		if !strings.Contains(s.Reason, "something else keeps changing the engine") ||
			!strings.Contains(s.Hint, "another agent") || !strings.Contains(s.Hint, `"staging"`) {
			t.Errorf("reason %q, hint %q", s.Reason, s.Hint)
		}
		contest(2 * time.Hour)
		if n := w.engine.sent(stateA) - before; n < 20 || n > 40 {
			t.Errorf("corrected %d times in two hours", n)
		}
		if n := w.counts.drifted(); n < 20 || w.store.Total() != total {
			t.Errorf("%d drifts counted, %d commits", n, w.store.Total()-total)
		}
		w.engine.tell(func(e *scripted) { e.runs = stateC })
		w.r.Sync()
		w.pass(time.Second)
		s = w.r.Status()
		if !w.engine.running().Equal(stateA) || s.Drift == nil || !s.Drift.Corrected || s.State != apply.StateDrifted || !s.Ready {
			t.Errorf("after sync: runs %v, %s, drift %+v", w.engine.running(), s.State, s.Drift)
		}
		w.engine.tell(func(e *scripted) { e.label = "" })
		w.pass(15 * time.Minute)
		w.check("left alone", inSync(stateA))
		w.engine.tell(func(e *scripted) { e.runs = stateC })
		w.pass(31 * time.Second)
		w.check("drift once more", inSync(stateA))
	})
}

func TestSeveralEnginesAtRestAreNoDrift(t *testing.T) {
	for _, mode := range []apply.DriftMode{apply.DriftCorrect, apply.DriftReport} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, t.TempDir())
			w.drift = mode
			w.restart()
			w.declare(stateA, "")
			before := w.engine.sent(stateA)
			w.engine.tell(func(e *scripted) { e.workers = []schema.Parameters{stateC, stateA, stateA} })
			w.pass(time.Hour)
			s := w.r.Status()
			if s.State != apply.StateDegraded || !strings.Contains(s.Reason, "several engines behind one socket") || !strings.Contains(s.Hint, "--workers 1") {
				t.Errorf("%s: %s: %s; %s", mode, s.State, s.Reason, s.Hint)
			}
			if s.InSync || w.counts.drifted() > 0 {
				t.Errorf("%s: in sync %v, %d drifts", mode, s.InSync, w.counts.drifted())
			}
			if n := w.engine.sent(stateA) - before; (mode == apply.DriftReport) != (n == 0) || n > 130 {
				t.Errorf("%s: sent %d times in an hour", mode, n)
			}
			w.engine.tell(func(e *scripted) { e.workers, e.runs = nil, stateA })
			w.pass(11 * time.Minute)
			w.check("one worker", inSync(stateA))
			w.end()
		})
	}
}

// One change by hand between two readings is drift, not a second engine.
func TestAChangeBetweenTwoReadingsIsOneEngine(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.tell(func(e *scripted) { e.runs = stateC; e.later = map[int]schema.Parameters{e.reads + 2: stateB} })
		w.r.EngineHint()
		w.pass(time.Second)
		w.check("corrected", inSync(stateA))
		if w.counts.drifted() != 1 {
			t.Errorf("%d drifts", w.counts.drifted())
		}
	})
}

// An engine that acknowledges before it is done did not lie.
func TestAnEngineThatTakesItsTimeIsBelieved(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.tell(func(e *scripted) {
			e.queue = []manner{lie}
			e.later = map[int]schema.Parameters{e.reads + 2: stateB}
		})
		w.declare(stateB, "")
		w.check("applied", inSync(stateB))
		if n := w.engine.sent(stateB); n != 1 {
			t.Errorf("sent %d times", n)
		}
	})
}

func TestARestartBetweenTwoReadingsIsNoDrift(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.tell(func(e *scripted) { e.runs = stateC; e.restartAt = e.reads + 2 })
		w.r.EngineHint()
		w.pass(time.Second)
		w.check("asserted", inSync(stateA))
		if w.counts.drifted() != 0 {
			t.Errorf("%d drifts", w.counts.drifted())
		}
	})
}

// An engine that hangs does not keep the operator waiting, whatever the agent
// is asking it at that moment.
func TestOrdersDoNotWaitForAnEngineThatHangs(t *testing.T) {
	for name, hang := range map[string]func(w *world){
		"at rest": func(w *world) { w.r.EngineHint() },
		"taking a batch": func(w *world) {
			w.engine.will(stateB, hangBefore)
			w.r.Document(documentOf(stateB, ""))
		},
		"having taken a batch": func(w *world) {
			w.engine.will(stateB, hangAfter)
			w.r.Document(documentOf(stateB, ""))
		},
	} {
		for _, verb := range []string{"pause", "rollback"} {
			bubble(t, func(t *testing.T, w *world) {
				w.declare(stateC, "")
				w.engine.tell(func(e *scripted) { e.hung = name == "at rest" })
				hang(w)
				w.pass(100 * time.Millisecond)
				w.engine.tell(func(e *scripted) { e.hung = true })
				begun := time.Now()
				if verb == "rollback" { // its caller waits for the engine; on record it is at once
					go func() { _, _ = w.do(orderOf(verb, "night")) }()
					for w.store.Head().Kind != record.KindRollback && time.Since(begun) < time.Minute {
						w.pass(10 * time.Millisecond)
					}
				} else if _, err := w.r.Do(t.Context(), orderOf(verb, "night")); err != nil {
					t.Fatalf("%s, %s: %v", name, verb, err)
				}
				if took := time.Since(begun); took > 5*time.Second {
					t.Errorf("%s: %s took %s", name, verb, took)
				}
				w.engine.will(stateB, accept)
				w.engine.tell(func(e *scripted) { e.hung = false })
				w.pass(2 * time.Minute)
				want := stateC
				if verb == "rollback" && name == "at rest" {
					want = stateA // else what is pending is what is left
				}
				if s := w.r.Status(); !w.engine.running().Equal(want) || s.Held == nil || s.Held.Paused != (verb == "pause") || !s.Ready {
					t.Errorf("%s, %s: runs %v, held %+v, %s (%s)", name, verb, w.engine.running(), s.Held, s.State, s.Reason)
				}
			})
		}
	}
}

// TestLastDrift: what drifted is shown afterwards, also by the next process.
func TestLastDrift(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		if last := w.r.Status().LastDrift; last != nil {
			t.Fatalf("before any: %+v", last)
		}
		w.engine.tell(func(e *scripted) { e.runs = stateB })
		w.pass(time.Minute)
		w.check("corrected", inSync(stateA))
		for _, when := range []string{"corrected", "after a restart"} {
			last := w.r.Status().LastDrift
			if last == nil || last.At == 0 || last.Until < last.At || len(last.Differences) != 1 || last.Differences[0].Parameter != reservoir {
				t.Errorf("%s: %+v", when, last)
			}
			w.restart()
			w.pass(time.Second)
		}
	})
}
