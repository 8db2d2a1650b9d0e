package apply_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// The stories here began as ways to make the agent forget the engine while
// something else stood in its way, to have it lose count, or to make it take
// somebody else's record for its own.

// longTime is more failures than a test waits for.
var longTime = slices.Repeat([]mishap{fails}, 200)

// TestTheEngineIsWatchedWhileTheDiskFails lets the disk refuse what ends a
// transaction, for long: the engine is read all the same, brought back when it
// restarts, and not called ready when it is gone.
func TestTheEngineIsWatchedWhileTheDiskFails(t *testing.T) {
	for name, c := range map[string]struct {
		call string
		do   func(w *world)
	}{
		"a rejection that cannot be confirmed": {"settle", func(w *world) {
			w.engine.will(stateB, refuse)
			w.declare(stateB, "")
		}},
		"a pause that cannot be confirmed": {"settle", func(w *world) {
			_, _ = w.do(&apply.Pause{Reason: "night"})
		}},
		"a rejection that cannot be recorded": {"revert", func(w *world) {
			w.engine.will(stateB, refuse)
			w.declare(stateB, "")
		}},
		"a candidate that cannot be withdrawn": {"withdraw", func(w *world) {
			w.engine.will(stateB, busy)
			w.declare(stateB, "")
			w.declare(stateA, "back")
		}},
		"a candidate that cannot be replaced": {"commit", func(w *world) {
			w.engine.will(stateB, busy)
			w.m.plan("commit", fine)
			w.declare(stateB, "")
			w.m.plan("commit", longTime...)
			w.declare(stateC, "")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				if c.call != "commit" {
					w.m.plan(c.call, longTime...)
				}
				c.do(w)
				w.pass(10 * time.Second)
				w.engine.tell((*scripted).restart)
				w.r.EngineHint()
				w.pass(5 * time.Second)
				if s := w.r.Status(); !w.engine.running().Equal(stateA) || s.State != apply.StateDegraded {
					t.Errorf("after a restart the engine runs %v units, %s: %s", w.engine.running().Get(reservoir), s.State, s.Reason)
				}
				w.engine.tell(func(e *scripted) { e.runs = stateC }) // a late request, or a person
				w.pass(31 * time.Second)
				if !w.engine.running().Equal(stateA) {
					t.Errorf("half a minute later it still runs %v units", w.engine.running().Get(reservoir))
				}
				w.engine.tell(func(e *scripted) { e.down = true })
				w.r.EngineHint()
				w.pass(time.Second)
				if s := w.r.Status(); s.Ready || s.Engine.Reachable {
					t.Errorf("it is down: ready %v, reachable %v", s.Ready, s.Engine.Reachable)
				}
			})
		})
	}
}

// TestBackoffsDoNotTakeEachOthersPlace: an engine that dies on the candidate and
// is not up to take the good state at first must not be sent the candidate ever
// and again without a wait.
func TestBackoffsDoNotTakeEachOthersPlace(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, busy)
		w.engine.tell(func(e *scripted) { e.queue = slices.Repeat([]manner{busy, accept}, 100) })
		w.declare(stateB, "")
		for range 90 {
			w.engine.tell(func(e *scripted) { // it exits after each try, without breaking the connection
				if !e.runs.Equal(stateA) {
					return
				}
				e.restart()
			})
			w.r.EngineHint()
			w.pass(time.Second)
		}
		if n := w.engine.sent(stateB); n > 8 {
			t.Errorf("the candidate was sent %d times in 90 s", n)
		}
	})
}

// TestAMarkEndsWithTheAnswer: who was accepted came to no harm, and restarts of
// the pod later do not make it "cut twice".
func TestAMarkEndsWithTheAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.probation = 10 * time.Second
		w.restart()
		w.engine.tell(func(e *scripted) { e.queue = []manner{accept, busy, accept} }) // first what is applied
		w.engine.tell((*scripted).restart)
		w.r.EngineHint()
		w.pass(time.Second)
		w.declare(stateB, "")
		for range 4 { // each in the middle of its probation
			w.pass(4 * time.Second)
			w.end()
			w.engine.tell((*scripted).restart)
			w.start()
			w.declare(stateB, "")
		}
		w.pass(15 * time.Second)
		w.check("at last", want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

// TestARestartBeforeConfirmIsNoLie: the disk does not confirm, and the engine
// restarts meanwhile, twice.
func TestARestartBeforeConfirmIsNoLie(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.m.plan("confirm", slices.Repeat([]mishap{fails}, 5)...)
		w.declare(stateB, "")
		for range 3 {
			w.engine.tell((*scripted).restart)
			w.r.EngineHint()
			w.pass(2 * time.Second)
		}
		w.pass(2 * time.Minute)
		w.check("the disk is well", want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

// TestAnEngineThatUndoes goes back by itself during each probation: the change is
// sent once more, and then rejected.
func TestAnEngineThatUndoes(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.probation = 4 * time.Second
		w.restart()
		w.declare(stateA, "")
		w.declare(stateB, "")
		for range 30 {
			w.pass(1500 * time.Millisecond)
			w.engine.tell(func(e *scripted) { e.runs = stateA })
		}
		if n := w.engine.sent(stateB); n != 2 {
			t.Errorf("it was sent %d times", n)
		}
		w.check("undone twice", want{runs: stateA, outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB}})
	})
}

// TestProbationNeedsWatching: an agent that did not turn for most of the window,
// as one that was stopped, has not seen the engine well.
func TestProbationNeedsWatching(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.probation = 10 * time.Second
		w.restart()
		w.declare(stateA, "")
		w.m.plan("list", stalls)
		w.declare(stateB, "")
		w.pass(stallTime + 2*time.Second)
		if s := w.r.Status(); s.State != apply.StateProbation {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
		w.pass(10 * time.Second)
		w.check("watched", want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

// TestAForeignHealthDoesNotHideTheEngine: it cannot say how it is, and runs
// something else by now.
func TestAForeignHealthDoesNotHideTheEngine(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.probation = 4 * time.Second
		w.restart()
		w.declare(stateA, "")
		w.engine.tell(func(e *scripted) { e.ill = "404" })
		w.declare(stateB, "")
		w.pass(2 * time.Second)
		w.engine.tell(func(e *scripted) { e.runs = stateC })
		w.pass(45 * time.Second)
		if !w.engine.running().Equal(stateB) {
			t.Errorf("the engine runs %v units, and nobody looked", w.engine.running().Get(reservoir))
		}
	})
}

// TestALabelThatIsRefusedForAWhile: the engine can be read and takes nothing; it
// is not asked each second for ever.
func TestALabelThatIsRefusedForAWhile(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, notSent)
		w.declare(stateB, "")
		w.pass(10 * time.Minute)
		if n := w.engine.tried(stateB); n > 14 {
			t.Errorf("tried %d times in ten minutes", n)
		}
		if s := w.r.Status(); s.State != apply.StateDegraded || !strings.Contains(s.Reason, "was not sent: HTTP 503") {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
	})
}

// TestARejectedRollbackHoldsNothing, nor does one whose place it took.
func TestARejectedRollbackHoldsNothing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		w.declare(stateC, "")
		all := must(w.store.List(t.Context(), "", 50))
		first, second := all[2].ID, all[1].ID
		w.engine.will(all[2].Config, busy)
		w.engine.will(all[1].Config, refuse)
		go func() { _, _ = w.r.Do(t.Context(), &apply.Rollback{ID: first, Reason: "night"}) }()
		w.pass(500 * time.Millisecond)
		res, err := w.do(&apply.Rollback{ID: second, Reason: "another"})
		if err != nil || res.Outcome != record.Rejected {
			t.Fatalf("%+v %v", res, err)
		}
		w.pass(time.Minute)
		w.check("as before", want{runs: stateC, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
		if by := w.counts.rolledBack(); slices.Contains(by, "probation") {
			t.Errorf("rollbacks by %q", by)
		}
	})
}

// TestAskedTwiceIsOnce: who repeats a rollback that is under way means the same.
func TestAskedTwiceIsOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		w.declare(stateC, "")
		w.engine.will(stateB, busy)
		go func() { _, _ = w.r.Do(t.Context(), &apply.Rollback{Reason: "night"}) }()
		w.pass(500 * time.Millisecond)
		w.engine.will(stateB, accept)
		res, err := w.do(&apply.Rollback{Reason: "night, I say"})
		if err != nil || res.Outcome != record.Applied || !w.engine.running().Equal(stateB) {
			t.Errorf("%+v %v, runs %v", res, err, w.engine.running())
		}
		if res, err = w.do(&apply.Rollback{Reason: "further"}); err != nil || !w.engine.running().Equal(stateA) {
			t.Errorf("%+v %v, runs %v", res, err, w.engine.running())
		}
	})
}

// TestAnOrderThatTheDiskRefusesLeavesNothing: it is not tried again, so that
// nothing is degraded by it, and what is pending is none of its business.
func TestAnOrderThatTheDiskRefusesLeavesNothing(t *testing.T) {
	for _, c := range []apply.Order{orderOf("pause", "night"), orderOf("rollback", "night")} {
		bubble(t, func(t *testing.T, w *world) {
			w.declare(stateB, "")
			w.m.plan("note", fails)
			w.m.plan("rollback", fails)
			if _, err := w.do(c); err == nil || !strings.Contains(err.Error(), "nothing was changed") || !strings.HasSuffix(problem.Hint(err), "then repeat the command") {
				t.Errorf("%s: %v", verbOf(c), err)
			}
			w.check(verbOf(c), want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
			if _, err := w.do(c); err != nil {
				t.Errorf("%s again: %v", verbOf(c), err)
			}
		})
	}
}

// TestFiftyInvalidDocuments do not push out what is pending.
func TestFiftyInvalidDocuments(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, busy)
		w.declare(stateB, "")
		for i := range 60 {
			w.r.Document(documentOf(size(i-60), ""))
			w.pass(10 * time.Millisecond)
		}
		applied := w.counts.outcome(record.Applied)
		w.engine.will(stateB, accept)
		w.declare(stateB, "")
		w.pass(time.Minute)
		w.check("back", want{runs: stateB, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
		if n := w.counts.outcome(record.Applied) - applied; n != 1 {
			t.Errorf("counted as applied %d times", n)
		}
		if n := len(w.r.Status().Attempts); n != 50 {
			t.Errorf("%d attempts are kept", n)
		}
	})
}

// TestFoundToRun: a candidate found at start that the engine runs was applied,
// whatever is declared meanwhile: it is confirmed, and then the newer one comes.
func TestFoundToRun(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.m.plan("confirm", crashBefore)
		w.declare(stateB, "")
		if !w.crashed() {
			t.Fatal("it lives")
		}
		found := w.store.Head().ID
		w.restart()
		w.declare(stateC, "")
		w.check("the newer one", want{runs: stateC, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
		if rec := must(w.store.Lookup(t.Context(), found)); rec.Outcome != record.Applied {
			t.Errorf("what was found to run is %s", rec.Outcome)
		}
	})
}

// TestTheHistoryIsReplaced by an older one, or by nothing, under the agent: no
// record of it is taken for what the agent just tried. Whether the agent puts its
// own back or goes on from the other, an order that is answered as done is in
// force and on record, one that is answered with an error is not, and in the end
// store, git, engine and status agree.
func TestTheHistoryIsReplaced(t *testing.T) {
	acts := map[string]func(w *world) error{
		"a change": func(w *world) error { w.declare(size(3000), ""); return errors.New("not an order") },
		"a pause":  func(w *world) error { _, err := w.do(&apply.Pause{Reason: "night"}); return err },
		"a rollback": func(w *world) error {
			_, err := w.do(&apply.Rollback{Reason: "night"})
			return err
		},
		"a rejection": func(w *world) error {
			w.engine.will(size(3000), refuse)
			w.declare(size(3000), "")
			return errors.New("not an order")
		},
	}
	for name, act := range acts {
		for _, older := range []bool{true, false} {
			bubble(t, func(t *testing.T, w *world) {
				repo, backup := filepath.Join(w.dir, "snapshots.git"), t.TempDir()
				w.declare(stateB, "")
				was := w.store.Head().ID
				if err := os.CopyFS(backup, os.DirFS(repo)); err != nil {
					t.Fatal(err)
				}
				w.declare(stateC, "")
				if err := os.RemoveAll(repo); err != nil {
					t.Fatal(err)
				}
				if older {
					if err := os.CopyFS(repo, os.DirFS(backup)); err != nil {
						t.Fatal(err)
					}
				}
				answer := act(w)
				w.pass(5 * time.Minute)
				if w.crashed() {
					t.Fatalf("%s, older %v: it died", name, older)
				}
				h := w.r.Status().Held
				paused := h != nil && h.Paused && h.By == "operator"
				rolledBack := slices.ContainsFunc(must(w.store.List(t.Context(), "", 50)), func(rec record.Row) bool {
					return rec.Kind == record.KindRollback && rec.Outcome == record.Applied
				})
				if done := answer == nil; paused != (done && name == "a pause") || rolledBack != (done && name == "a rollback") {
					t.Errorf("%s, older %v: answered %v; paused %v, rolled back %v", name, older, answer, paused, rolledBack)
				}
				lost := w.store.Head() == nil
				if lost { // what was held is not known
					if h == nil || !h.Paused || h.By != "agent" {
						t.Errorf("%s, older %v: held %+v, and there is no history", name, older, h)
					}
					if _, err := w.do(&apply.Resume{}); err != nil {
						t.Errorf("%s: %v", name, err)
					}
					w.pass(5 * time.Minute)
				} else if rec := must(w.store.Lookup(t.Context(), was)); rec.Outcome != record.Applied {
					t.Errorf("%s: %s, which was applied, is %s", name, was, rec.Outcome)
				}
				if lost && older {
					t.Errorf("%s: the older history was not read", name)
				}
				synctest.Wait()
				w.auditRefs(w.store.Head())
				s := w.r.Status()
				if s.Held == nil && !s.InSync || !w.engine.running().Equal(w.store.Applied().Config) || w.store.Head().Commit != w.store.Applied().Commit {
					t.Errorf("%s, older %v: %s: %s; the engine runs %v units", name, older, s.State, s.Reason, w.engine.running().Get(reservoir))
				}
			})
		}
	}
}

// trialWith runs 1024 on a probation of ten minutes, and then story.
func trialWith(t *testing.T, story func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, t.TempDir())
		w.declare(size(512), "")
		w.probation = 10 * time.Minute
		w.restart()
		w.declare(size(1024), "")
		story(w)
		w.end()
	})
}

// An order and a stop do not wait for a probation whose health reads take their time, and
// the status is not left behind.
func TestSlowHealthKeepsNobodyWaiting(t *testing.T) {
	slow := func(w *world) time.Time {
		w.engine.tell(func(e *scripted) { e.slowHealth = 1500 * time.Millisecond })
		w.pass(20 * time.Second)
		return time.Now()
	}
	trialWith(t, func(w *world) {
		begun := slow(w)
		if res, err := w.do(&apply.Rollback{Reason: "night"}); err != nil || res.Outcome != record.Applied || time.Since(begun) > 5*time.Second {
			t.Errorf("a rollback: %+v %v after %s", res, err, time.Since(begun))
		}
	})
	trialWith(t, func(w *world) {
		begun := slow(w)
		w.stop()
		<-w.joined
		if time.Since(begun) > 5*time.Second {
			t.Errorf("a stop took %s", time.Since(begun))
		}
	})
	trialWith(t, func(w *world) {
		slow(w)
		w.pass(5 * time.Minute)
		if s := w.r.Status(); time.Since(record.FromUnix(s.Source.LastRead)) > 10*time.Second || !s.Checks(time.Now()).SourceFresh {
			t.Errorf("the source was last read %s ago", time.Since(record.FromUnix(s.Source.LastRead)))
		}
	})
	trialWith(t, func(w *world) {
		w.engine.tell(func(e *scripted) { e.hung = true })
		w.pass(1100 * time.Millisecond)
		go func() { _, _ = w.r.Do(w.t.Context(), &apply.Rollback{Reason: "night"}) }()
		w.pass(10 * time.Second)
		if kind := w.store.Head().Kind; kind != record.KindRollback {
			t.Errorf("an engine that hangs: the head is a %s", kind)
		}
		w.engine.tell(func(e *scripted) { e.hung = false })
		w.pass(time.Minute)
	})
}

// A stop while the disk takes the revert: the engine is brought back first.
func TestAStopBringsTheEngineBack(t *testing.T) {
	trialWith(t, func(w *world) {
		w.m.plan("revert", stalls)
		w.engine.tell(func(e *scripted) { e.ill = "memory" })
		w.pass(5 * time.Second)
		w.stop()
		<-w.joined
		if w.store.Head().Commit != w.store.Applied().Commit || !w.engine.running().Equal(size(512)) {
			t.Errorf("the head is a %s, the engine runs %v", w.store.Head().Kind, w.engine.running().Get(reservoir))
		}
	})
}

// A way back that the engine does not take keeps neither a stop nor an order.
func TestAFailingWayBackKeepsNobodyWaiting(t *testing.T) {
	for _, how := range []string{"stop", "order"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, t.TempDir())
			w.declare(stateA, "")
			w.engine.will(stateB, callback)
			w.engine.will(stateA, lie)
			w.m.plan("revert", stalls)
			w.declare(stateB, "")
			w.pass(10 * time.Second)
			begun := time.Now()
			if how == "order" {
				if _, err := w.r.Do(t.Context(), &apply.Pause{Reason: "x"}); err != nil {
					t.Error(err)
				}
			}
			w.stop()
			<-w.joined
			if time.Since(begun) > stallTime+10*time.Second {
				t.Errorf("%s: it took %s", how, time.Since(begun))
			}
			w.end()
		})
	}
}

// What changes nothing does not keep an unhealthy engine on probation, nor make the engine
// be asked more often.
func TestEditsThatChangeNothing(t *testing.T) {
	trialWith(t, func(w *world) {
		w.engine.tell(func(e *scripted) { e.slowHealth, e.ill = 1200*time.Millisecond, "memory" })
		for range 10 {
			w.declare(size(-1), fmt.Sprint(time.Now()))
			w.pass(900 * time.Millisecond)
		}
		if !w.engine.running().Equal(size(512)) {
			t.Errorf("the engine runs %v units", w.engine.running().Get(reservoir))
		}
	})
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, busy)
		w.declare(stateB, "")
		w.pass(10 * time.Second)
		before := w.engine.sent(stateB)
		for i := range 100 {
			w.r.Document(documentOf(size(-1), fmt.Sprint(i)))
			w.pass(50 * time.Millisecond)
		}
		if n := w.engine.sent(stateB) - before; n > 3 {
			t.Errorf("%d batches in five seconds", n)
		}
	})
}

// A probation is not passed while the candidate is to be ended and that cannot be recorded.
func TestNothingPassesWhileItIsToEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onTrial(t)
		defer w.end()
		w.m.plan("withdraw", slices.Repeat([]mishap{fails}, 20)...)
		w.declare(size(512), "back")
		w.pass(20 * time.Second)
		if w.store.Applied().Config.Equal(size(1024)) {
			t.Error("what is not declared any more was applied")
		}
		w.engine.tell(func(e *scripted) { e.ill = "memory" })
		w.pass(time.Minute)
		if !w.engine.running().Equal(size(512)) {
			t.Errorf("the engine runs %v units", w.engine.running().Get(reservoir))
		}
	})
}

// An engine that takes no batch is looked after all the same.
func TestAnEngineThatTakesNothingIsWatched(t *testing.T) {
	for _, how := range []manner{foreign, notSent} {
		bubble(t, func(t *testing.T, w *world) {
			w.engine.will(stateB, how)
			w.declare(stateB, "")
			w.pass(40 * time.Second)
			w.engine.tell(func(e *scripted) { e.restart(); e.runs = stateC })
			w.pass(31 * time.Second)
			if !w.engine.running().Equal(stateA) {
				t.Errorf("%s: the engine runs %v units", how, w.engine.running().Get(reservoir))
			}
		})
	}
}

// A stop does not wait for a reading that hangs and is about no change.
func TestAStopCutsAReading(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.tell(func(e *scripted) { e.hung = true })
		w.r.EngineHint()
		w.pass(time.Second)
		begun := time.Now()
		w.stop()
		<-w.joined
		if took := time.Since(begun); took > time.Second {
			t.Errorf("it took %s", took)
		}
		w.engine.tell(func(e *scripted) { e.hung = false })
		w.end()
		w.start()
	})
}
