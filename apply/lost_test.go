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

// loseHistory ends the agent, removes its history, and starts it again.
func (w *world) loseHistory() {
	w.t.Helper()
	w.end()
	w.removeHistory()
	w.start()
}

// removeHistory leaves of the state directory what says that an agent was here,
// and nothing of what it did.
func (w *world) removeHistory() {
	w.t.Helper()
	there, err := os.ReadDir(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range there {
		if slices.Contains([]string{"format", "identity", "lock"}, e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(w.dir, e.Name())); err != nil {
			w.t.Fatal(err)
		}
	}
}

// isLost holds that the agent is paused because of a lost history and leaves the
// engine alone, which runs p.
func (w *world) isLost(name string, p schema.Parameters, ready bool) {
	w.t.Helper()
	s := w.r.Status()
	if s.State != apply.StateHeld || s.InSync || s.Ready != ready || !strings.Contains(s.Reason, "paused: the history in") || !strings.Contains(s.Reason, "cannot be read") || !strings.HasSuffix(s.Hint, "agent resume") {
		w.t.Errorf("%s: %s (%s; %s), in sync %v, ready %v (%s)", name, s.State, s.Reason, s.Hint, s.InSync, s.Ready, s.Unready)
	}
	if h := s.Held; h == nil || !h.Paused || h.By != "agent" || !strings.Contains(h.Reason, "cannot be read") || h.Since == 0 {
		w.t.Errorf("%s: held %+v", name, h)
	}
	if runs := w.engine.running(); !runs.Equal(p) {
		w.t.Errorf("%s: it runs %s, want %s", name, runs, p)
	}
	if w.store.Head() != nil || w.store.Total() != 0 {
		w.t.Errorf("%s: there are %d records", name, w.store.Total())
	}
}

// TestALostHistoryPauses, over restarts of either side, until a person resumes;
// what an operator had rolled back from is not tried.
func TestALostHistoryPauses(t *testing.T) {
	for _, mode := range modes {
		bubble(t, func(t *testing.T, w *world) {
			w.drift = mode
			w.declare(stateB, "")
			if _, err := w.do(&apply.Rollback{Reason: "slow"}); err != nil {
				t.Fatal(err)
			}
			w.loseHistory()
			sends := w.engine.allSends()
			w.declare(stateB, "")
			w.isLost("lost", stateA, true)
			if a := w.r.Status().Attempted; a == nil || a.Outcome != record.Held || !strings.Contains(a.Reason, "cannot be read") {
				t.Errorf("attempted %+v", a)
			}
			w.pass(time.Hour)
			w.restart()
			w.pass(10 * time.Second)
			w.isLost("restarted, no document", stateA, true)
			w.declare(stateC, "something else")
			w.isLost("something else is declared", stateA, true)
			w.declare(stateA, "what runs")
			w.isLost("what runs is declared", stateA, true)
			w.engine.tell((*scripted).restart)
			w.r.EngineHint()
			w.pass(time.Minute)
			w.isLost("the engine restarted", rules.Defaults(), true)
			w.engine.tell(func(e *scripted) { e.runs = size(1) })
			w.r.EngineHint()
			w.pass(time.Minute)
			w.isLost("it runs nonsense", size(1), false)
			for _, verb := range []string{"rollback", "pause"} {
				if _, err := w.do(orderOf(verb, "night")); err == nil || !strings.Contains(err.Error(), "cannot be read") || !strings.Contains(problem.Hint(err), "agent resume") {
					t.Errorf("%s: %v", verb, err)
				}
			}
			w.declare(size(2), "")
			if s := w.r.Status(); s.State != apply.StateInvalid {
				t.Errorf("an invalid document: %s (%s)", s.State, s.Reason)
			}
			if n := w.engine.allSends() - sends; n != 0 || w.counts.drifted() != 0 {
				t.Errorf("%d batches were sent, %d drifts", n, w.counts.drifted())
			}
			w.declare(stateB, "")
			res, err := w.do(&apply.Resume{Reason: "day"})
			if err != nil || res.Outcome != record.Applied {
				t.Fatalf("%+v %v", res, err)
			}
			w.check("resumed", inSync(stateB))
			if s := w.r.Status(); s.Held != nil {
				t.Errorf("held %+v", s.Held)
			}
			if _, err := w.do(&apply.Resume{Reason: "twice"}); err == nil {
				t.Error("nothing is paused, and it was resumed")
			}
			w.restart()
			w.declare(stateB, "")
			x := inSync(stateB)
			x.outcome = record.Unchanged
			w.check("restarted", x)
			w.declare(stateC, "")
			w.check("it goes on", inSync(stateC))
		})
	}
}

// TestResumeWithoutADocument: the history begins with what is declared later, also
// after a restart.
func TestResumeWithoutADocument(t *testing.T) {
	for _, restart := range []bool{false, true} {
		bubble(t, func(t *testing.T, w *world) {
			w.loseHistory()
			w.pass(10 * time.Second)
			w.isLost("lost", stateA, true)
			if _, err := w.do(&apply.Resume{}); err != nil {
				t.Fatal(err)
			}
			if restart {
				w.restart()
				w.pass(10 * time.Second)
			}
			if s := w.r.Status(); s.Held != nil || s.State != apply.StateStarting || s.Ready {
				t.Errorf("held %+v, %s (%s)", s.Held, s.State, s.Reason)
			}
			w.declare(stateB, "")
			w.check("declared", inSync(stateB))
		})
	}
}

// TestResumeOnAFullDisk: who is told that it failed is still paused; who is told
// that it is in force is not.
func TestResumeOnAFullDisk(t *testing.T) {
	for _, how := range []mishap{fails, happens, crashBefore, crashAfter} {
		t.Run(fmt.Sprint(how), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.loseHistory()
				w.declare(stateB, "")
				w.m.plan("clear lost", how)
				res, err := w.do(&apply.Resume{})
				if w.crashed() {
					w.restart()
					w.declare(stateB, "")
				}
				switch how {
				case fails:
					if err == nil || !strings.Contains(err.Error(), "nothing was changed") || !strings.HasSuffix(problem.Hint(err), "then repeat the command") {
						t.Errorf("%+v %v", res, err)
					}
					fallthrough
				case crashBefore:
					w.pass(time.Minute)
					w.isLost("not resumed", stateA, true)
					if _, err := w.do(&apply.Resume{}); err != nil {
						t.Error(err)
					}
				case happens:
					if err != nil || res.Outcome != record.Pending || !strings.Contains(res.Text, "in force") {
						t.Errorf("%+v %v", res, err)
					}
				}
				w.pass(time.Minute)
				w.check("resumed", inSync(stateB))
			})
		})
	}
}

// TestANewStateDirectoryIsNotPaused, nor is one whose first start was killed.
func TestANewStateDirectoryIsNotPaused(t *testing.T) {
	first := func(w *world) { w.start(); w.end() }
	for name, begin := range map[string]func(w *world){
		"missing": func(*world) {},
		"empty": func(w *world) {
			if err := os.Mkdir(w.dir, 0o700); err != nil {
				w.t.Fatal(err)
			}
		},
		"a first start that was stopped": first,
		"a first start that was killed": func(w *world) {
			first(w)
			for _, last := range []string{"format", "identity"} {
				if err := os.Remove(filepath.Join(w.dir, last)); err != nil {
					w.t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := emptyWorld(t, filepath.Join(t.TempDir(), "state"))
				begin(w)
				w.start()
				w.pass(10 * time.Second)
				if s := w.r.Status(); s.Held != nil || s.State != apply.StateStarting {
					t.Errorf("held %+v, %s (%s)", s.Held, s.State, s.Reason)
				}
				w.declare(stateA, "")
				w.check("declared", inSync(stateA))
				w.end()
			})
		})
	}
}

// TestTheHistoryIsLostWhileItRuns: the agent pauses, and leaves the engine alone;
// or it still knows the history, and it is there again.
func TestTheHistoryIsLostWhileItRuns(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		total := w.store.Total()
		w.removeHistory()
		w.pass(time.Minute)
		if w.store.Lost() == nil {
			w.declare(stateB, "")
			w.check("it goes on", inSync(stateB))
			w.auditRefs(w.store.Head())
			if n := w.store.Total(); n != total+1 {
				t.Errorf("%d records, there were %d before the change", n, total)
			}
			return
		}
		w.engine.ban(stateB)
		w.declare(stateB, "")
		w.isLost("lost", stateA, true)
		w.engine.allow(stateB)
		if _, err := w.do(&apply.Resume{}); err != nil {
			t.Fatal(err)
		}
		w.check("resumed", inSync(stateB))
	})
}

// TestAnOlderHistoryIsPutBack in place of one with a hold: what was rolled back is
// applied in it, and does not come back to the engine before somebody resumes.
func TestAnOlderHistoryIsPutBack(t *testing.T) {
	schemas(t, rules, func(t *testing.T, w *world) {
		w.declare(stateA, "")
		w.declare(stateB, "")
		repo, backup := filepath.Join(w.dir, "snapshots.git"), t.TempDir()
		if err := os.CopyFS(backup, os.DirFS(repo)); err != nil {
			t.Fatal(err)
		}
		if _, err := w.do(&apply.Rollback{Reason: "b is bad"}); err != nil {
			t.Fatal(err)
		}
		w.end()
		if err := errors.Join(os.RemoveAll(repo), os.CopyFS(repo, os.DirFS(backup))); err != nil {
			t.Fatal(err)
		}
		sends := w.engine.allSends()
		w.start()
		w.declare(stateB, "")
		w.pass(10 * time.Minute)
		s := w.r.Status()
		// Either the hold is known all the same, or that it cannot be is said.
		why := strings.Contains(s.Reason, "was replaced by one without") || s.Held != nil && s.Held.Reason == "b is bad"
		if s.State != apply.StateHeld || !s.Ready || s.InSync || !why {
			t.Errorf("%s (%s), ready %v", s.State, s.Reason, s.Ready)
		}
		if n := w.engine.allSends() - sends; n != 0 || !w.engine.running().Contains(stateA) {
			t.Errorf("%d batches, the engine runs %s", n, w.engine.running())
		}
		if _, err := w.do(&apply.Resume{}); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Minute)
		if s := w.r.Status(); !s.InSync || !w.engine.running().Contains(stateB) {
			t.Errorf("resumed: %s (%s)", s.State, s.Reason)
		}
	})
}
