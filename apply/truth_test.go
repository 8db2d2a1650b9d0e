package apply_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
)

// The stories here began as ways to make the agent say what is not so, or to keep
// on the engine what was never good.

// reporting is bubble for an agent that only reports drift.
func reporting(t *testing.T, story func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.drift = apply.DriftReport
		w.start()
		w.declare(stateA, "")
		story(t, w)
		w.end()
	})
}

// TestTheWayBackBeforeTheFirst: while nothing was applied, a rejection goes back
// to what the engine ran before the first candidate, not to what that left on it.
func TestTheWayBackBeforeTheFirst(t *testing.T) {
	for name, first := range map[string]manner{"refused and run": callback, "taken in part": partly, "taken without a word": busy} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := emptyWorld(t, t.TempDir())
				w.engine.will(stateA, first)
				w.engine.will(stateB, refuse)
				w.engine.will(rules.Defaults(), refuse) // so that the first rejection is not over
				w.start()
				w.declare(stateA, "")
				if first == busy {
					w.engine.tell(func(e *scripted) { e.runs = size(1025) })
				}
				w.pass(10 * time.Second)
				w.declare(stateB, "")
				w.engine.will(rules.Defaults(), accept)
				w.pass(10 * time.Minute)
				s := w.r.Status()
				if !w.engine.running().Equal(rules.Defaults()) || s.State != apply.StateHeld {
					t.Errorf("it runs %v, %s (%s)", w.engine.running(), s.State, s.Reason)
				}
				w.engine.tell((*scripted).restart)
				w.r.EngineHint()
				w.pass(time.Minute)
				if !w.engine.running().Equal(rules.Defaults()) {
					t.Errorf("after a restart it runs %v", w.engine.running())
				}
				w.end()
			})
		})
	}
}

// TestInSyncIsWhatIsDeclared: a hold that ended makes what is declared due again,
// and until it runs nothing is in sync.
func TestInSyncIsWhatIsDeclared(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		if _, err := w.do(&apply.Rollback{Reason: "night"}); err != nil {
			t.Fatal(err)
		}
		w.m.plan("note", fine)
		w.m.plan("commit", longTime...)
		if _, err := w.do(&apply.Resume{Reason: "day"}); err != nil {
			t.Fatal(err)
		}
		if s := w.r.Status(); s.InSync || !w.engine.running().Equal(stateA) || s.Held != nil {
			t.Errorf("in sync %v on %v units, held %v", s.InSync, w.engine.running().Get(reservoir), s.Held)
		}
	})
}

// TestDriftIsNoExcuse: drift that was reported does not make an engine ready that
// runs what it refused and cannot be brought back from.
func TestDriftIsNoExcuse(t *testing.T) {
	reporting(t, func(t *testing.T, w *world) {
		w.engine.tell(func(e *scripted) { e.runs = stateC })
		w.pass(time.Minute)
		if s := w.r.Status(); s.State != apply.StateDrifted || !s.Ready {
			t.Fatalf("%s, ready %v", s.State, s.Ready)
		}
		w.engine.will(stateA, refuse)
		w.engine.will(stateB, callback)
		w.declare(stateB, "")
		w.pass(time.Second)
		if s := w.r.Status(); s.Ready || s.Drift != nil || s.State != apply.StateDegraded {
			t.Errorf("it runs what it refused: ready %v, drift %+v, %s", s.Ready, s.Drift, s.State)
		}
	})
}

// TestAShortListing: a pause between a rejection and the way back does not make
// what was rejected somebody else's drift, however few records a listing shows.
func TestAShortListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.drift, w.listed = apply.DriftReport, 1
		w.start()
		w.declare(stateA, "")
		w.engine.will(stateA, refuse)
		w.engine.will(stateB, callback)
		w.declare(stateB, "")
		if _, err := w.do(&apply.Pause{Reason: "night"}); err != nil {
			t.Fatal(err)
		}
		w.engine.will(stateA, accept)
		w.pass(6 * time.Minute)
		if s := w.r.Status(); !w.engine.running().Equal(stateA) || s.Drift != nil {
			t.Errorf("it runs %v units, drift %+v", w.engine.running().Get(reservoir), s.Drift)
		}
		w.end()
	})
}

// TestANewEngineIsBroughtBackAtOnce, whatever the one before refused; but for one
// that dies of what it is brought back to.
func TestANewEngineIsBroughtBackAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateA, refuse)
		w.engine.tell((*scripted).restart)
		w.r.EngineHint()
		w.pass(2 * time.Minute)
		w.engine.will(stateA, accept)
		w.engine.tell((*scripted).restart)
		w.r.EngineHint()
		w.pass(time.Second)
		if !w.engine.running().Equal(stateA) {
			t.Errorf("a second after its start it runs %v units", w.engine.running().Get(reservoir))
		}
		before := w.engine.sent(stateA)
		w.engine.will(stateA, die)
		w.engine.tell((*scripted).restart)
		w.r.EngineHint()
		w.pass(time.Minute)
		if n := w.engine.sent(stateA) - before; n > 8 {
			t.Errorf("it died %d times in a minute", n)
		}
	})
}

// TestARejectedRollbackIsNotPending, though the disk or the engine keeps the agent
// from the end of it.
func TestARejectedRollbackIsNotPending(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		w.engine.will(stateA, refuse)
		w.m.plan("settle", longTime...)
		res, err := w.do(&apply.Rollback{Reason: "night"})
		if err != nil || res.Outcome != record.Rejected || !strings.Contains(res.Text, "still to be brought back") {
			t.Errorf("it is answered %+v, %v", res, err)
		}
	})
}

// TestLateIsWhatWasSent: for a minute after a request without an answer the engine
// may come to run that, and nothing else, without it being drift.
func TestLateIsWhatWasSent(t *testing.T) {
	reporting(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, hangBefore)
		w.declare(stateB, "")
		w.pass(12 * time.Second)
		w.declare(stateA, "back")
		w.pass(time.Second)
		w.restart() // which forgets nothing
		w.declare(stateA, "back")
		w.pass(5 * time.Second)
		w.engine.tell(func(e *scripted) { e.runs = stateB })
		w.pass(3 * time.Second)
		if s := w.r.Status(); !w.engine.running().Equal(stateA) || s.Drift != nil {
			t.Errorf("the late request landed: it runs %v units, drift %+v", w.engine.running().Get(reservoir), s.Drift)
		}
		sends := w.engine.allSends()
		w.engine.tell(func(e *scripted) { e.runs = stateC })
		w.pass(3 * time.Second)
		if s := w.r.Status(); w.engine.allSends() != sends || s.Drift == nil || !w.engine.running().Equal(stateC) {
			t.Errorf("somebody changed it: %d sends, drift %+v", w.engine.allSends()-sends, s.Drift)
		}
	})
}

// TestAPauseLetsARollbackGoOn: whoever gave the one order meant it.
func TestAPauseLetsARollbackGoOn(t *testing.T) {
	for _, second := range []apply.Order{&apply.Pause{Reason: "stop"}, &apply.Rollback{Reason: "stop", Pause: true}} {
		bubble(t, func(t *testing.T, w *world) {
			w.declare(stateB, "")
			w.declare(stateC, "")
			w.engine.will(stateB, busy)
			first := make(chan apply.Result, 1)
			go func() {
				res, _ := w.r.Do(t.Context(), &apply.Rollback{Reason: "night"})
				first <- res
			}()
			w.pass(100 * time.Millisecond)
			res, err := w.do(second)
			if err != nil {
				t.Fatal(verbOf(second), err)
			}
			w.engine.will(stateB, accept)
			w.pass(5 * time.Minute)
			s := w.r.Status()
			if !w.engine.running().Equal(stateB) || s.Held == nil || !s.Held.Paused || s.Running.SnapshotID != res.SnapshotID {
				t.Errorf("%s: it runs %v units (%s), held %+v", verbOf(second), w.engine.running().Get(reservoir), s.Running.SnapshotID, s.Held)
			}
			if got := <-first; got.Outcome != record.Applied {
				t.Errorf("%s: the first caller is told %+v", verbOf(second), got)
			}
		})
	}
}

// TestAnotherAgentHasTheDirectory: then the engine is that one's, and nothing is
// sent to it until it has gone.
func TestAnotherAgentHasTheDirectory(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		if err := os.Remove(filepath.Join(w.dir, "lock")); err != nil {
			t.Fatal(err)
		}
		other, _, err := gitstore.Open(t.Context(), gitstore.Options{
			Dir: w.dir, Environment: production, Instance: "one", AgentVersion: "test",
		})
		if err != nil {
			t.Fatal(err)
		}
		w.pass(31 * time.Second)
		sends := w.engine.allSends()
		w.engine.tell(func(e *scripted) { e.runs = stateC })
		w.declare(stateB, "")
		w.pass(time.Minute)
		if s := w.r.Status(); w.engine.allSends() != sends || s.State != apply.StateDegraded || s.InSync || s.Ready {
			t.Errorf("%d sends, %s (%s), ready %v", w.engine.allSends()-sends, s.State, s.Reason, s.Ready)
		}
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
		w.pass(10 * time.Second)
		w.check("it has gone", inSync(stateB))
	})
}

// TestADiskIsToldAtRest: who only looks at the status learns that the next change
// could not be recorded, and soon that it can.
func TestADiskIsToldAtRest(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.m.plan("probe", slices.Repeat([]mishap{fails}, 20)...)
		w.pass(31 * time.Second)
		s := w.r.Status()
		if s.State != apply.StateDegraded || !s.InSync || !s.Ready || !strings.Contains(s.Reason, "nothing can be recorded") || !strings.HasPrefix(s.Hint, "free space") {
			t.Errorf("%s (%s; %s), in sync %v", s.State, s.Reason, s.Hint, s.InSync)
		}
		w.pass(45 * time.Second)
		w.check("it can be written again", inSync(stateA))
	})
}

// TestAHangIsWaitedFor: an engine that hangs is waited for, whether it was asked
// or told when it began.
func TestAHangIsWaitedFor(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, hangBefore)
		w.engine.tell(func(e *scripted) { e.hung = true })
		w.declare(stateB, "")
		w.pass(25 * time.Second)
		if s := w.r.Status(); s.State != apply.StateWaiting || s.Ready || !strings.Contains(s.Hint, "to stop it") {
			t.Errorf("%s (%s; %s)", s.State, s.Reason, s.Hint)
		}
		w.engine.will(stateB, accept)
		w.engine.tell(func(e *scripted) { e.hung = false })
		w.pass(5 * time.Minute)
		w.check("it answers", inSync(stateB))
	})
}

// TestNoRollbackToWhatIsDamaged: the state before the damaged one is the target.
func TestNoRollbackToWhatIsDamaged(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		damaged := w.store.Head()
		w.declare(stateC, "")
		w.end()
		loseObject(t, filepath.Join(w.dir, "snapshots.git"), damaged.Commit+":snapshot.json")
		w.start()
		w.declare(stateC, "")
		w.pass(time.Second)
		res, err := w.do(&apply.Rollback{Reason: "night"})
		if err != nil || res.Outcome != record.Applied || !w.engine.running().Equal(stateA) {
			t.Errorf("it runs %v units: %+v, %v", w.engine.running().Get(reservoir), res, err)
		}
	})
}

// loseObject takes an object out of a repository at rest, packed or not.
func loseObject(t *testing.T, repo, name string) {
	t.Helper()
	git := func(in io.Reader, args ...string) string {
		cmd := exec.Command("git", append([]string{"--git-dir", repo}, args...)...)
		cmd.Stdin = in
		return strings.TrimSpace(string(must(cmd.Output())))
	}
	hash := git(nil, "rev-parse", name)
	away := t.TempDir() // git unpacks no object that it has
	for _, pack := range must(filepath.Glob(filepath.Join(repo, "objects/pack/*"))) {
		if err := os.Rename(pack, filepath.Join(away, filepath.Base(pack))); err != nil {
			t.Fatal(err)
		}
	}
	for _, pack := range must(filepath.Glob(filepath.Join(away, "*.pack"))) {
		git(bytes.NewReader(must(os.ReadFile(pack))), "unpack-objects", "-q")
	}
	if err := os.Remove(filepath.Join(repo, "objects", hash[:2], hash[2:])); err != nil {
		t.Fatal(err)
	}
}

// TestAPauseOutlivesTheRollback that it was given beside: only resume ends it.
func TestAPauseOutlivesTheRollback(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		w.engine.will(stateA, busy)
		go func() { _, _ = w.r.Do(t.Context(), &apply.Rollback{Reason: "night"}) }()
		w.pass(100 * time.Millisecond)
		if _, err := w.do(&apply.Pause{Reason: "stop"}); err != nil {
			t.Fatal(err)
		}
		w.engine.will(stateA, refuse)
		w.pass(time.Minute)
		w.engine.ban(stateC)
		w.declare(stateC, "")
		if s := w.r.Status(); !w.engine.running().Equal(stateB) || s.Held == nil || !s.Held.Paused {
			t.Errorf("the rollback was rejected: it runs %v units, held %+v", w.engine.running().Get(reservoir), s.Held)
		}
	})
}

// TestDeathsCountOn: a pause beside a rollback gives the engine no more deaths of
// it than two.
func TestDeathsCountOn(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		w.engine.will(stateA, dieAWhile)
		go func() { _, _ = w.r.Do(t.Context(), &apply.Rollback{Reason: "night"}) }()
		w.pass(100 * time.Millisecond)
		if _, err := w.do(&apply.Pause{Reason: "stop"}); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Minute)
		if n := w.engine.sent(stateA); n != 3 { // two, and the one that was applied before
			t.Errorf("it was sent %d times", n)
		}
	})
}

// TestAFixGetsThroughToAnEngineThatHangsAndRestarts: each process hangs on the last
// good state and is restarted by its supervisor.
func TestAFixGetsThroughToAnEngineThatHangsAndRestarts(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, callback)
		w.engine.will(stateA, hangBefore)
		w.declare(stateB, "")
		for i := range 90 {
			if i == 5 {
				w.declare(stateC, "")
			}
			before := w.engine.sent(stateA)
			w.pass(2 * time.Second)
			if w.engine.sent(stateA) > before {
				w.engine.tell((*scripted).restart)
				w.r.EngineHint()
			}
		}
		if n := w.engine.sent(stateA); n > 10 {
			t.Errorf("the last good state was sent %d times", n)
		}
		w.check("a fix", inSync(stateC))
	})
}

// TestTheSecondOrderIsTheFirst though the first was applied before it was taken up.
func TestTheSecondOrderIsTheFirst(t *testing.T) {
	for _, pauses := range [][]bool{{false, false}, {false, true}, {true, true}} {
		bubble(t, func(t *testing.T, w *world) {
			w.declare(stateB, "")
			w.declare(stateC, "")
			w.engine.will(stateB, hangAfter) // the answer comes late, and it runs
			answers := make(chan error, 2)
			for _, pause := range pauses {
				go func() {
					_, err := w.r.Do(t.Context(), &apply.Rollback{Reason: "night", Pause: pause})
					answers <- err
				}()
				w.pass(time.Second)
			}
			w.pass(time.Minute)
			if err := errors.Join(<-answers, <-answers); err != nil || !w.engine.running().Equal(stateB) {
				t.Errorf("%v: it runs %v units, %v", pauses, w.engine.running().Get(reservoir), err)
			}
			if held := w.r.Status().Held; held == nil || held.Paused != pauses[1] {
				t.Errorf("%v: held %+v", pauses, held)
			}
		})
	}
}

// TestTheDirectoryComesBackOtherwise: empty, or with the change under way confirmed
// by another agent; what is told is what stands there.
func TestTheDirectoryComesBackOtherwise(t *testing.T) {
	for name, other := range map[string]func(t *testing.T, dir, away string){
		"empty": func(t *testing.T, dir, _ string) {
			if err := os.MkdirAll(filepath.Join(dir, "snapshots.git"), 0o700); err != nil {
				t.Fatal(err)
			}
		},
		"confirmed": func(t *testing.T, dir, away string) {
			store, _, err := gitstore.Open(t.Context(), gitstore.Options{Dir: away, Environment: production, Instance: "one", AgentVersion: "test"})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(store.Confirm(t.Context()), store.Close(), os.Rename(away, dir)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := emptyWorld(t, filepath.Join(t.TempDir(), "state"))
				w.start()
				w.declare(stateA, "")
				w.end()
				w.probation = 5 * time.Minute
				w.start()
				w.declare(stateA, "")
				w.declare(stateB, "")
				away := w.dir + "-away"
				if err := os.Rename(w.dir, away); err != nil {
					t.Fatal(err)
				}
				w.pass(31 * time.Second)
				other(t, w.dir, away)
				w.pass(10 * time.Second)
				w.declare(stateC, "")
				w.pass(10 * time.Minute)
				if name == "empty" { // what was held is not known
					w.isLost(name, stateB, true)
					if _, err := w.do(&apply.Resume{}); err != nil {
						t.Fatal(err)
					}
					w.pass(5 * time.Minute)
				}
				w.check("it goes on", inSync(stateC))
				for _, a := range w.r.Status().Attempts {
					if a.Outcome == record.Pending {
						t.Errorf("%+v is told as pending", a)
					}
				}
				page, err := w.store.List(t.Context(), "", 50)
				if err != nil {
					t.Fatal(err)
				}
				for _, rec := range page {
					if rec.Config.Equal(stateB) && name == "confirmed" && rec.Outcome != record.Applied {
						t.Errorf("%s was applied, and is %s", rec.ID, rec.Outcome)
					}
				}
				w.end()
			})
		})
	}
}

// TestUnrecorded: the status says whether a change waits for the disk.
func TestUnrecorded(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.m.plan("commit", fails, fails)
		w.declare(stateB, "")
		w.pass(100 * time.Millisecond)
		if s := w.r.Status(); !s.Unrecorded {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
		w.pass(time.Minute)
		if s := w.r.Status(); s.Unrecorded {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
		w.check("applied", inSync(stateB))
	})
}

// TestSubscription: subscribers are told each event once it is in the status; a slow one
// loses some, which is counted, and nobody waits for it.
func TestSubscription(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		fast, slow, closed := w.r.Subscribe(10), w.r.Subscribe(1), w.r.Subscribe(1)
		closed.Close()
		closed.Close()
		if _, ok := <-closed.Events; ok {
			t.Error("a closed subscription has an event")
		}
		w.declare(stateB, "")
		w.must(&apply.Rollback{Reason: "night"})
		for _, want := range []apply.EventType{apply.EventApplied, apply.EventRolledBack} {
			e := <-fast.Events
			if e.Type != want || e.Record == "" || len(e.Changes) == 0 || e.Instance == "" {
				t.Errorf("got %+v, want %s", e, want)
			}
		}
		if slow.Dropped() != 1 || len(slow.Events) != 1 || fast.Dropped() != 0 {
			t.Errorf("%d and %d dropped", slow.Dropped(), fast.Dropped())
		}
		w.end()
		if _, ok := <-fast.Events; ok {
			t.Error("there are events after the end")
		}
	})
}
