package apply_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

var (
	stateA = size(1024) // applied before every case
	stateB = size(2048) // the change under test
	stateC = size(4096) // the next, different Document
)

func fsck(t *testing.T, dir string) {
	t.Helper()
	out, err := exec.Command("git", "--git-dir", filepath.Join(dir, "snapshots.git"), "fsck", "--strict").CombinedOutput()
	if err != nil {
		t.Errorf("git fsck: %v\n%s", err, out)
	}
}

// bubble runs a story in a world of its own, with A applied.
func bubble(t *testing.T, story func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, t.TempDir())
		w.declare(stateA, "")
		w.check("before", want{runs: stateA, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
		story(t, w)
		w.end()
	})
}

func TestRejectedIsHeldUntilSomethingElseIsApplied(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, refuse)
		w.declare(stateB, "")
		w.check("rejected", want{runs: stateA, outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB}})
		if by := w.r.Status().Held.By; by != "engine" {
			t.Errorf("held by %s", by)
		}
		total := w.store.Total()
		w.engine.ban(stateB)
		w.declare(stateB, "a comment")
		w.check("a comment", want{runs: stateA, outcome: record.Held, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB}})
		w.restart()
		w.declare(stateB, "after a restart")
		w.check("after a restart", want{runs: stateA, outcome: record.Held, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB}})
		if w.store.Total() != total {
			t.Errorf("%d records more", w.store.Total()-total)
		}
		// What is applied, declared again, ends nothing.
		w.declare(stateA, "back")
		w.check("back", want{runs: stateA, outcome: record.Unchanged, state: apply.StateInSync, inSync: true, ready: true, held: []schema.Parameters{stateB}})
		if got := w.counts.rolledBack(); len(got) != 1 || got[0] != "engine" {
			t.Errorf("rollbacks counted: %v, want one by the engine", got)
		}
		if w.store.Total() != total {
			t.Errorf("%d records more", w.store.Total()-total)
		}
		w.declare(stateB, "and forth")
		w.check("and forth", want{runs: stateA, outcome: record.Held, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB}})
		w.declare(stateC, "")
		w.check("something else", want{runs: stateC, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
		w.engine.allow(stateB)
		w.engine.will(stateB, accept)
		w.declare(stateB, "again")
		w.check("again", want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

func TestFirstDocumentRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, t.TempDir())
		w.engine.will(stateB, refuse)
		w.declare(stateB, "")
		w.check("rejected", want{runs: rules.Defaults(), outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB}})
		if _, err := w.do(&apply.Rollback{Reason: "x"}); err == nil {
			t.Error("there is a state to roll back to")
		}
		if _, err := w.do(&apply.Rollback{ID: w.store.Head().ID, Reason: "x"}); err == nil {
			t.Error("what the engine ran before is a rollback point")
		}
		w.declare(stateC, "")
		w.check("a fix", want{runs: stateC, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
		w.end()
	})
}

func TestDownIsNoRejection(t *testing.T) {
	night := 8 * time.Hour
	if raceDetector { // make test lets the night pass without it
		night = 30 * time.Minute
	}
	bubble(t, func(t *testing.T, w *world) {
		w.engine.tell(func(e *scripted) { e.down = true })
		w.r.EngineHint()
		w.declare(stateB, "")
		s := w.r.Status()
		if s.State != apply.StateWaiting || s.Ready || s.InSync || s.Attempted.Outcome != record.Pending {
			t.Errorf("down: %s, ready %v, in sync %v, %s", s.State, s.Ready, s.InSync, s.Attempted.Outcome)
		}
		w.pass(night)
		if got := w.r.Status().Attempted.Outcome; got != record.Pending {
			t.Errorf("after a night: %s", got)
		}
		w.engine.tell((*scripted).restart)
		w.pass(time.Second)
		w.check("up", want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

func TestPendingIsSupersededByAFixAndByTheWayBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, busy)
		w.declare(stateB, "")
		if s := w.r.Status(); s.Attempted.Outcome != record.Pending || s.State != apply.StateDegraded {
			t.Errorf("busy: %s %s", s.Attempted.Outcome, s.State)
		}
		w.declare(stateC, "")
		w.check("a fix", want{runs: stateC, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
		w.declare(stateB, "")
		w.declare(stateC, "the way back")
		w.check("the way back", want{runs: stateC, outcome: record.Unchanged, state: apply.StateInSync, inSync: true, ready: true})
		if got := w.counts.outcome(record.Superseded); got != 2 {
			t.Errorf("%d superseded, want 2", got)
		}
	})
}

func TestLateRequestDoesNotStay(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, hangBefore)
		w.declare(stateB, "")
		w.pass(12 * time.Second)
		w.declare(stateA, "withdrawn")
		w.pass(15 * time.Second)
		w.engine.tell(func(e *scripted) { e.runs = stateB }) // the request that hung lands now
		w.pass(1500 * time.Millisecond)
		w.check("landed late", want{runs: stateA, outcome: record.Unchanged, state: apply.StateInSync, inSync: true, ready: true})
	})
}

func TestDiesTwiceIsRejectedEvenAcrossARestart(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, die)
		w.declare(stateB, "")
		w.pass(10 * time.Second)
		w.check("died", want{runs: stateA, outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB}})
		if n := w.engine.sent(stateB); n != 2 {
			t.Errorf("sent %d times", n)
		}
		w.engine.will(stateC, die)
		w.m.plan("send", fine, crashAfter)
		w.declare(stateC, "") // dies once; A is asserted; then the agent dies with the second
		w.pass(10 * time.Second)
		if !w.crashed() {
			w.m.plan("send", crashAfter)
			w.pass(time.Minute)
		}
		w.restart()
		w.pass(10 * time.Second)
		w.declare(stateC, "")
		if n := w.engine.sent(stateC); n > 2 {
			t.Errorf("sent %d times across the restart", n)
		}
		w.check("across", want{runs: stateA, outcome: w.r.Status().Attempted.Outcome, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB, stateC}})
	})
}

func TestDropsAreNotDeaths(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.tell(func(e *scripted) { e.queue = []manner{dropBefore, dropBefore, dropBefore, accept} })
		w.declare(stateB, "")
		w.pass(30 * time.Second)
		w.check("after three drops", want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
		w.engine.tell(func(e *scripted) { e.queue = []manner{dropAfter} })
		w.declare(stateC, "")
		w.check("the reply was lost", want{runs: stateC, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
		if n := w.engine.sent(stateC); n != 1 {
			t.Errorf("sent %d times", n)
		}
	})
}

func TestForeignServerIsNotARejection(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, foreign)
		w.declare(stateB, "")
		w.pass(time.Minute)
		s := w.r.Status()
		if s.State != apply.StateDegraded || s.Attempted.Outcome != record.Pending || s.Held != nil {
			t.Errorf("%s %s %v", s.State, s.Attempted.Outcome, s.Held)
		}
		w.engine.will(stateB, accept)
		w.pass(5 * time.Minute)
		w.check("the right one", want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

func TestEngineRestartIsAssertedWithinASecond(t *testing.T) {
	for _, mode := range []apply.DriftMode{apply.DriftCorrect, apply.DriftReport} {
		bubble(t, func(t *testing.T, w *world) {
			w.drift = mode
			w.restart()
			w.declare(stateA, "")
			w.engine.tell((*scripted).restart)
			w.r.EngineHint()
			w.pass(time.Second)
			w.check(string(mode), want{runs: stateA, outcome: record.Unchanged, state: apply.StateInSync, inSync: true, ready: true})
			if w.counts.drifts != 0 {
				t.Error("a restart was counted as drift")
			}
		})
	}
}

func TestDrift(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		total := w.store.Total()
		w.engine.tell(func(e *scripted) { e.runs = stateC }) // past the agent
		w.pass(31 * time.Second)
		w.check("corrected", want{runs: stateA, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
		w.drift = apply.DriftReport
		w.restart()
		w.declare(stateA, "")
		w.engine.tell(func(e *scripted) { e.runs = stateC })
		w.pass(31 * time.Second)
		w.check("reported", want{runs: stateC, outcome: record.Unchanged, state: apply.StateDrifted, ready: true})
		if w.counts.drifts != 2 || w.store.Total() != total {
			t.Errorf("%d drifts, %d records more", w.counts.drifts, w.store.Total()-total)
		}
		w.declare(stateB, "a change goes on")
		w.check("a change", want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

func TestRollback(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		res, err := w.do(&apply.Rollback{Reason: "slow", Requester: record.Requester{UID: 7}})
		if err != nil || res.Outcome != record.Applied {
			t.Fatal(res, err)
		}
		held := want{runs: stateA, outcome: record.Applied, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB}}
		w.check("rolled back", held)
		if by := w.store.Head().RequestedBy; by == nil || *by != 7 {
			t.Errorf("requested by %v", by)
		}
		w.restart()
		w.engine.ban(stateB)
		w.declare(stateB, "")
		held.outcome = record.Held
		w.check("after a restart", held)
		w.engine.allow(stateB)
		w.declare(stateC, "")
		w.check("something else", want{runs: stateC, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})

		w.engine.will(stateB, refuse)
		id := ""
		for _, rec := range must(w.store.List(t.Context(), "", 50)) {
			if rec.Config.Equal(stateB) && rec.Outcome == record.Applied {
				id = rec.ID
			}
		}
		res, err = w.do(&apply.Rollback{ID: id, Reason: "no good"})
		if err != nil || res.Outcome != record.Rejected {
			t.Fatal(res, err)
		}
		w.check("rejected", want{runs: stateC, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestRollbackWhileTheEngineIsDown(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		w.engine.tell(func(e *scripted) { e.down = true })
		w.r.EngineHint()
		w.declare(stateC, "")
		res, err := w.do(&apply.Rollback{Reason: "slow"})
		if err != nil || res.Outcome != record.Pending {
			t.Fatal(res, err)
		}
		w.restart()
		w.declare(stateC, "")
		w.engine.tell((*scripted).restart)
		w.engine.ban(stateC)
		w.pass(10 * time.Second)
		s := w.r.Status()
		// The state before what was pending, not one before what ran.
		if !w.engine.running().Equal(stateB) || s.State != apply.StateHeld || !s.Ready {
			t.Errorf("runs %v, %s, %s", w.engine.running(), s.State, s.Reason)
		}
	})
}

func TestPauseAndResume(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		if _, err := w.do(&apply.Pause{Reason: "load test"}); err != nil {
			t.Fatal(err)
		}
		w.engine.ban(stateB)
		w.declare(stateB, "")
		w.restart()
		w.declare(stateB, "")
		s := w.r.Status()
		if s.State != apply.StateHeld || !s.Held.Paused || s.Attempted.Outcome != record.Held || s.InSync || !s.Ready {
			t.Errorf("%+v", s)
		}
		if _, err := w.do(&apply.Pause{Reason: "twice"}); err == nil {
			t.Error("paused twice")
		}
		w.engine.tell((*scripted).restart)
		w.r.EngineHint()
		w.pass(time.Second)
		if !w.engine.running().Equal(stateA) {
			t.Error("a restarted engine is not looked after while paused")
		}
		w.engine.allow(stateB)
		if _, err := w.do(&apply.Resume{}); err != nil {
			t.Fatal(err)
		}
		w.check("resumed", want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
		if _, err := w.do(&apply.Resume{}); err == nil {
			t.Error("nothing was held, and it was resumed")
		}
	})
}

func TestInvalidTouchesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		total := w.store.Total()
		bad := size(1)
		w.declare(bad, "")
		w.check("invalid", want{runs: stateA, outcome: record.Invalid, state: apply.StateInvalid, ready: true})
		w.declare(stateA, "")
		w.check("good again", want{runs: stateA, outcome: record.Unchanged, state: apply.StateInSync, inSync: true, ready: true})
		if w.store.Total() != total {
			t.Error("an invalid Document made a record")
		}
	})
}

func TestLastGoodRunsWithoutASource(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.end()
		w.engine.tell((*scripted).restart)
		w.start()
		w.pass(6 * time.Second)
		if !w.engine.running().Equal(stateA) || !w.r.Status().Ready {
			t.Errorf("runs %v; %s", w.engine.running(), w.r.Status().Unready)
		}
	})
}

// TestAPauseThatIsRecordedSaysThatTheDiskTakesIt, though a moment ago it did not.
func TestAPauseThatIsRecordedSaysThatTheDiskTakesIt(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.m.plan("probe", fails, fails)
		for range 40 {
			if w.pass(time.Second); strings.Contains(w.r.Status().Reason, "nothing can be recorded") {
				break
			}
		}
		if _, err := w.do(&apply.Pause{Reason: "night"}); err != nil {
			t.Fatal(err)
		}
		if s := w.r.Status(); s.State != apply.StateHeld || strings.Contains(s.Reason, "nothing can be recorded") {
			t.Errorf("%s (%s)", s.State, s.Reason)
		}
	})
}
