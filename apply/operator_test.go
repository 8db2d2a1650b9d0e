package apply_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// The stories here began as ways to wedge the agent, to make it lie or to make
// it forget a hold.

func TestTheEngineRefusesTheWayBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateC, "")
		w.engine.will(stateB, refuse)
		w.engine.will(stateC, refuse) // it came back smaller
		w.engine.tell((*scripted).restart)
		w.declare(stateB, "")
		w.pass(time.Minute)
		s := w.r.Status()
		if s.State != apply.StateDegraded || s.Ready {
			t.Errorf("%s, ready %v", s.State, s.Ready)
		}
		w.declare(stateA, "a fix that fits")
		w.check("a fix", want{runs: stateA, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
		if got := w.counts.outcome(record.Rejected); got != 1 {
			t.Errorf("%d rejected, want 1", got)
		}
	})
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateC, "")
		w.engine.will(stateB, refuse)
		w.engine.will(stateC, refuse)
		w.engine.tell((*scripted).restart)
		w.declare(stateB, "")
		w.pass(time.Minute)
		w.restart()
		w.declare(stateB, "")
		first := must(w.store.List(t.Context(), "", 50))
		res, err := w.do(&apply.Rollback{ID: first[len(first)-1].ID, Reason: "night"})
		if err != nil || res.Outcome != record.Applied || !w.engine.running().Equal(stateA) {
			t.Errorf("rollback: %+v %v, runs %v", res, err, w.engine.running())
		}
	})
}

// While it is not known what becomes of the way back nothing is committed. Once
// the engine has failed to take it three times, a fix need not wait for more: an
// engine that dies on the good state, or answers 500 to it, would bar it for good.
func TestNothingIsCommittedWhileTheWayBackIsUnknown(t *testing.T) {
	for _, how := range []manner{busy, die, dieAWhile, dropBefore} {
		bubble(t, func(t *testing.T, w *world) {
			w.engine.will(stateB, refuse)
			w.engine.will(stateA, how)
			w.engine.tell(func(e *scripted) { e.runs = stateC }) // something else runs by then
			w.declare(stateB, "")
			w.pass(100 * time.Millisecond)
			total := w.store.Total()
			w.declare(size(3000), "no further commits, yet")
			w.pass(100 * time.Millisecond)
			if w.store.Total() != total {
				t.Errorf("%s: a commit was made while the engine could not be brought back", how)
			}
			if s := w.r.Status(); s.State != apply.StateDegraded || s.Ready {
				t.Errorf("%s: %s, ready %v", how, s.State, s.Ready)
			}
			w.pass(time.Minute)
			w.check("at last", want{runs: size(3000), outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
			if n := w.engine.sent(stateA); n > 6 {
				t.Errorf("%s: the state it does not take was sent %d times", how, n)
			}
		})
	}
}

// TestAnEngineThatDiesOnWhatIsApplied is brought back ever more rarely, and the
// status says who kills whom; a fix that it takes ends it.
func TestAnEngineThatDiesOnWhatIsApplied(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateA, dieAWhile)
		w.engine.tell((*scripted).restart)
		w.r.EngineHint()
		for range 3000 { // as who watches the socket does
			w.pass(200 * time.Millisecond)
			w.r.EngineHint()
		}
		if n := w.engine.sent(stateA); n > 14 {
			t.Errorf("it was killed %d times in ten minutes", n)
		}
		if s := w.r.Status(); s.State != apply.StateDegraded || !strings.Contains(s.Reason, w.store.Applied().ID) {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
		w.declare(stateB, "a fix")
		w.pass(2 * time.Second) // it may die once more
		w.check("a fix", want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

func TestOperatorWhileTheEngineIsDown(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		w.engine.tell(func(e *scripted) { e.down = true })
		w.r.EngineHint()
		w.pass(time.Second)
		for _, verb := range []string{"pause", "resume", "pause", "resume"} {
			if _, err := w.do(orderOf(verb, "night")); err != nil {
				t.Errorf("%s: %v", verb, err)
			}
		}
		if _, err := w.do(&apply.Pause{Reason: "night"}); err != nil {
			t.Error(err)
		}
		res, err := w.do(&apply.Rollback{Reason: "night"})
		if err != nil || res.Outcome != record.Pending || res.SnapshotID == "" || !strings.Contains(res.Text, "on record as "+res.SnapshotID) {
			t.Errorf("rollback: %+v %v", res, err)
		}
		w.engine.tell((*scripted).restart)
		w.pass(time.Second)
		if s := w.r.Status(); !w.engine.running().Equal(stateA) || s.Held == nil || !s.Held.Paused {
			t.Errorf("runs %v, held %+v", w.engine.running(), s.Held)
		}
	})
}

// Who gives up before the agent came to the order is not told that it goes on
// whatever happens, nor that it can be carried out at all.
func TestAnOrderThatWasNotLookedAt(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.tell(func(e *scripted) { e.hung = true })
		w.restart()
		w.declare(stateA, "")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // the first reading is given up after two
		defer cancel()
		w.r.EngineHint() // so that it is read again before the order
		res, err := w.r.Do(ctx, &apply.Rollback{ID: "no such record", Reason: "night"})
		if err != nil || res.Outcome != record.Pending || res.SnapshotID != "" ||
			!strings.Contains(res.Text, "not yet looked at") || !strings.Contains(res.Text, "on no record") {
			t.Errorf("%+v %v", res, err)
		}
		if s := w.r.Status(); !strings.Contains(s.Reason, "the engine hangs: it did not answer within 2s") || !strings.Contains(s.Hint, "hangs") {
			t.Errorf("%s, %s", s.Reason, s.Hint)
		}
	})
}

func TestAWrongServerIsNoRejectionAcrossRestarts(t *testing.T) {
	for _, how := range []manner{foreign, wrongLabel, busy} {
		bubble(t, func(t *testing.T, w *world) {
			w.engine.will(stateB, how)
			w.declare(stateB, "")
			for range 3 {
				w.pass(5 * time.Second)
				w.restart()
				w.declare(stateB, "")
			}
			if s := w.r.Status(); s.Held != nil || s.Attempted.Outcome != record.Pending {
				t.Errorf("%s: %+v, held %+v", how, s.Attempted, s.Held)
			}
			if s := w.r.Status(); how == wrongLabel && s.Checks(time.Now()).EngineEnvironment {
				t.Error("the label was refused, and the environment is said to be right")
			}
			w.engine.will(stateB, accept)
			w.pass(6 * time.Minute)
			w.check(string(how), want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
		})
	}
}

func TestSeveralEnginesAreNoRejection(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		// Three connections of four meet the same worker, so that two readings
		// agree by chance now and then.
		w.engine.tell(func(e *scripted) { e.workers = []schema.Parameters{stateA, stateC, stateA, stateA} })
		w.declare(stateB, "")
		w.pass(20 * time.Minute)
		if s := w.r.Status(); s.Attempted.Outcome != record.Pending || s.Held != nil || s.State != apply.StateDegraded {
			t.Errorf("%+v, %s", s.Attempted, s.State)
		}
		w.engine.tell(func(e *scripted) { e.workers = nil }) // --workers 1
		w.pass(20 * time.Minute)
		w.check("one worker", want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

func TestAHoldOutlivesARollbackUnderAnInvalidSource(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateC, "")
		w.engine.will(stateB, refuse)
		w.declare(stateB, "")
		bad := size(1)
		w.declare(bad, "")
		if _, err := w.do(&apply.Rollback{Reason: "night"}); err != nil {
			t.Fatal(err)
		}
		w.engine.ban(stateB)
		w.declare(stateB, "")
		w.check("still held", want{runs: stateA, outcome: record.Held, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB, stateC}})
	})
}

func TestAHoldStaysWhileTheEngineIsDown(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		if _, err := w.do(&apply.Rollback{Reason: "night"}); err != nil {
			t.Fatal(err)
		}
		w.engine.tell(func(e *scripted) { e.down = true })
		w.r.EngineHint()
		w.pass(time.Second)
		w.declare(stateA, "outside the held set")
		w.engine.ban(stateB)
		w.declare(stateB, "back")
		w.engine.tell((*scripted).restart)
		w.pass(time.Second)
		w.check("still held", want{runs: stateA, outcome: record.Held, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB}})
	})
}

func TestRollbackTwiceGoesFurtherBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		w.declare(stateC, "")
		for _, back := range []schema.Parameters{stateB, stateA} {
			if res, err := w.do(&apply.Rollback{Reason: "still bad"}); err != nil || res.Outcome != record.Applied || !w.engine.running().Equal(back) {
				t.Fatalf("%+v %v, runs %v, want %v", res, err, w.engine.running(), back)
			}
		}
		if _, err := w.do(&apply.Rollback{Reason: "once more"}); err == nil {
			t.Error("there was something further back")
		}
		w.check("held", want{runs: stateA, outcome: record.Applied, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB, stateC}})
	})
}

func TestAPauseLeavesReportedDriftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, t.TempDir())
		w.drift = apply.DriftReport
		w.restart()
		w.declare(stateA, "")
		w.engine.tell(func(e *scripted) { e.runs = stateC })
		w.pass(31 * time.Second)
		if _, err := w.do(&apply.Pause{Reason: "night"}); err != nil {
			t.Fatal(err)
		}
		s := w.r.Status()
		if !w.engine.running().Equal(stateC) || s.Drift == nil || s.Held == nil || !s.Ready {
			t.Errorf("runs %v, drift %v, held %v, ready %v", w.engine.running(), s.Drift, s.Held, s.Ready)
		}
		w.end()
	})
}

func TestAPauseAndAResumeOutliveARejectedRollback(t *testing.T) {
	for _, resumed := range []bool{false, true} {
		bubble(t, func(t *testing.T, w *world) {
			w.declare(stateB, "")
			if resumed {
				if _, err := w.do(&apply.Pause{Reason: "night"}); err != nil {
					t.Fatal(err)
				}
			}
			w.engine.tell(func(e *scripted) { e.down = true })
			w.r.EngineHint()
			w.pass(time.Second)
			verb := map[bool]string{false: "pause", true: "resume"}[resumed]
			if _, err := w.do(orderOf(verb, "night")); err != nil {
				t.Fatal(err)
			}
			if s := w.r.Status(); s.InSync || (s.Held == nil) != resumed {
				t.Errorf("right after %s: in sync %v, held %+v", verb, s.InSync, s.Held)
			}
			if res, err := w.do(&apply.Rollback{Reason: "night"}); err != nil || res.Outcome != record.Pending || res.SnapshotID == "" {
				t.Fatal(res, err)
			}
			w.engine.will(stateA, refuse)
			w.engine.tell((*scripted).restart)
			w.pass(10 * time.Second)
			s := w.r.Status()
			if !w.engine.running().Equal(stateB) || (s.Held != nil && s.Held.Paused) == resumed {
				t.Errorf("%s, then a rejected rollback: runs %v, held %+v", verb, w.engine.running(), s.Held)
			}
		})
	}
}

func TestACandidateThatFitsPassesAStateThatDoesNot(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, busy)
		w.declare(stateB, "")
		w.engine.will(stateA, refuse)
		w.engine.will(stateB, accept)
		w.engine.tell((*scripted).restart)
		w.r.EngineHint()
		w.pass(time.Minute)
		w.check("it fits", want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

func TestABusyServerIsNoRejectionWhenTheAgentIsKilled(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, busy)
		w.declare(stateB, "")
		w.pass(3 * time.Second) // the second send is over
		w.m.plan("read", crashBefore)
		w.pass(time.Minute)
		if !w.crashed() {
			t.Fatal("not killed")
		}
		w.engine.will(stateB, accept)
		w.restart()
		w.declare(stateB, "")
		w.pass(time.Minute)
		w.check("well again", want{runs: stateB, outcome: w.r.Status().Attempted.Outcome, state: apply.StateInSync, inSync: true, ready: true})
	})
}

func TestAPauseNoticesDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, t.TempDir())
		w.drift = apply.DriftReport
		w.restart()
		w.declare(stateA, "")
		w.engine.tell(func(e *scripted) { e.runs = stateC }) // nobody has looked yet
		if _, err := w.do(&apply.Pause{Reason: "night"}); err != nil {
			t.Fatal(err)
		}
		if s := w.r.Status(); !w.engine.running().Equal(stateC) || s.Drift == nil || w.counts.drifts != 1 {
			t.Errorf("runs %v, drift %v, %d counted", w.engine.running(), s.Drift, w.counts.drifts)
		}
		w.end()
	})
}

func TestARejectedRollbackWithoutAWayBackIsAnswered(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		w.engine.will(stateA, refuse)
		w.engine.will(stateB, refuse)
		w.engine.tell(func(e *scripted) { e.runs = stateC })
		res, err := w.do(&apply.Rollback{Reason: "night"})
		if err != nil || res.Outcome != record.Rejected {
			t.Errorf("%+v %v", res, err)
		}
		// What never ran is never called applied.
		for _, verb := range []string{"pause", "resume", "pause", "resume"} {
			if _, err := w.do(orderOf(verb, "night")); err != nil {
				t.Fatal(verb, err)
			}
		}
		w.declare(size(700), "")
		for _, rec := range must(w.store.List(t.Context(), "", 50)) {
			if ran := rec.Kind == record.KindChange; (rec.Outcome == record.Applied) != ran {
				t.Errorf("%s %s is %s", rec.Kind, rec.ID, rec.Outcome)
			}
		}
	})
}
