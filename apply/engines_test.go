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
	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// The engines here are of another version than the agent's schema: they lack a
// parameter, have one more, or bound one more tightly.

// lacking is a world under the rules r whose engine has no temperature; A was
// applied under the default rules, and w.drift is mode.
func lacking(t *testing.T, r *schema.Rules, mode apply.DriftMode, story func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.drift = mode
		w.start()
		w.declare(stateA, "")
		w.check("before", inSync(stateA))
		w.under(r)
		story(t, w)
		w.end()
		fsck(t, w.dir)
	})
}

// isUnknown holds that the status says that the engine does not know the
// temperature, and what to do.
func (w *world) isUnknown(name string) {
	w.t.Helper()
	s, hint := w.r.Status(), "upgrade the engine, or take temperature out of the files"
	if w.rules.Parameter(temperature).Managed {
		hint = "upgrade the engine, or run the agent with a schema (--schema) that does not require temperature"
	}
	if s.Reason != "the engine does not know temperature" || !strings.HasPrefix(s.Hint, hint) {
		w.t.Errorf("%s: %s (%s; %s)", name, s.State, s.Reason, s.Hint)
	}
	if s.Held != nil || s.Drift != nil || w.counts.drifted() != 0 {
		w.t.Errorf("%s: held %+v, drift %+v, %d drifts", name, s.Held, s.Drift, w.counts.drifted())
	}
}

// unknown is how a change stands that has a parameter the engine does not know.
var unknown = want{runs: stateA, outcome: record.Pending, state: apply.StateDegraded, ready: true, open: true}

var modes = []apply.DriftMode{apply.DriftCorrect, apply.DriftReport}

// TestAChangeThatTheEngineDoesNotKnow waits, and nothing is sent, until the engine
// is another. A restart of the agent changes nothing about it.
func TestAChangeThatTheEngineDoesNotKnow(t *testing.T) {
	more := larger(t)
	for _, mode := range modes {
		for _, restart := range []bool{false, true} {
			lacking(t, more, mode, func(t *testing.T, w *world) {
				sends, total := w.engine.allSends(), w.store.Total()
				b := at(stateB, "1.25")
				w.declare(b, "")
				w.check("declared", unknown)
				w.isUnknown("declared")
				w.pass(10 * time.Minute)
				if restart {
					w.restart()
					w.declare(b, "")
				}
				w.pass(10 * time.Minute)
				w.check("later", unknown)
				w.isUnknown("later")
				if n, grew := w.engine.allSends()-sends, w.store.Total()-total; n != 0 || grew != 1 {
					t.Errorf("%d batches, %d records more", n, grew)
				}
				// One that restarts is still brought to what is applied, which it knows.
				w.engine.tell((*scripted).restart)
				w.r.EngineHint()
				w.pass(time.Second)
				w.check("restarted", unknown)
				w.isUnknown("restarted")
				if n := w.engine.allSends() - sends; n != 1 || w.engine.sent(b) != 0 {
					t.Errorf("%d batches, %d of the change", n, w.engine.sent(b))
				}
				w.engine.tell(func(e *scripted) { e.down = true })
				w.r.EngineHint()
				w.pass(time.Second)
				if s := w.r.Status(); s.State != apply.StateWaiting || s.Ready || s.Attempted.Outcome != record.Pending {
					t.Errorf("down: %s (%s), ready %v", s.State, s.Reason, s.Ready)
				}
				batches := w.engine.batchesSince()
				w.engine.tell(func(e *scripted) { e.upgrade(more.Defaults()) })
				w.pass(time.Second)
				w.check("upgraded", inSync(b))
				if got := batches(); !slices.EqualFunc(got, []schema.Parameters{b}, schema.Parameters.Equal) {
					t.Errorf("the new engine was sent %v", got)
				}
				if w.store.Total() != total+2 || w.counts.drifted() != 0 { // the second says what the new engine ran before
					t.Errorf("%d records more, %d drifts", w.store.Total()-total, w.counts.drifted())
				}
			})
		}
	}
}

// TestAnEngineComesBackWithoutAParameter that the change which waits for it has: it
// is brought to what is applied, for it restarted and did not drift.
func TestAnEngineComesBackWithoutAParameter(t *testing.T) {
	for _, mode := range modes {
		lacking(t, larger(t), mode, func(t *testing.T, w *world) {
			w.declare(at(stateA, "1"), "known for once")
			w.engine.tell(func(e *scripted) { e.down = true })
			w.r.EngineHint()
			w.declare(at(stateB, "1.25"), "")
			w.engine.tell((*scripted).restart)
			w.pass(time.Second)
			w.check("came back", unknown)
			w.isUnknown("came back")
		})
	}
}

// TestAFirstDocumentThatTheEngineDoesNotKnow is not said to run, though the engine
// runs all of it that it knows.
func TestAFirstDocumentThatTheEngineDoesNotKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.rules = larger(t)
		w.start()
		w.declare(w.rules.Defaults(), "")
		w.pass(time.Minute)
		x := unknown
		x.runs, x.ready = rules.Defaults(), false
		w.check("first", x)
		w.isUnknown("first")
		if s := w.r.Status(); s.Running.SnapshotID != "" || s.Unready != "nothing was applied yet" || w.engine.allSends() != 0 {
			t.Errorf("running %+v, %s, %d batches", s.Running, s.Unready, w.engine.allSends())
		}
		w.engine.tell(func(e *scripted) { e.upgrade(w.rules.Defaults()) })
		w.r.EngineHint()
		w.pass(time.Second)
		w.check("upgraded", inSync(w.rules.Defaults()))
		w.end()
	})
}

// TestWhatTheEngineDoesNotKnowIsSuperseded by a document without it, and by an
// operator, whether or not the schema requires it.
func TestWhatTheEngineDoesNotKnowIsSuperseded(t *testing.T) {
	for name, c := range map[string]struct {
		rules *schema.Rules
		do    func(w *world)
		want  want
	}{
		"another document": {optional(t), func(w *world) { w.declare(stateC, "") }, inSync(stateC)},
		"the way back": {optional(t), func(w *world) { w.declare(stateA, "") }, want{
			runs: stateA, outcome: record.Unchanged, state: apply.StateInSync, inSync: true, ready: true,
		}},
		"a rollback": {optional(t), func(w *world) { w.order(&apply.Rollback{Reason: "night"}) }, want{
			runs: stateA, outcome: record.Held, state: apply.StateHeld, ready: true, held: []schema.Parameters{at(stateB, "1.25")},
		}},
		"a rollback under a schema that requires it": {larger(t), func(w *world) { w.order(&apply.Rollback{Reason: "night"}) }, want{
			runs: stateA, outcome: record.Held, state: apply.StateHeld, ready: true, held: []schema.Parameters{at(stateB, "1.25")},
		}},
		"another document that it does not know": {larger(t), func(w *world) { w.declare(at(stateC, "1"), "") }, unknown},
	} {
		t.Run(name, func(t *testing.T) {
			lacking(t, c.rules, apply.DriftCorrect, func(t *testing.T, w *world) {
				w.declare(at(stateB, "1.25"), "")
				w.check("declared", unknown)
				pending := w.store.Head().ID
				c.do(w)
				w.pass(10 * time.Second)
				w.check(name, c.want)
				if rec := must(w.store.Lookup(t.Context(), pending)); rec.Outcome != record.Superseded {
					t.Errorf("%s is %s", rec.ID, rec.Outcome)
				}
				if n := w.engine.sent(at(stateB, "1.25")); n != 0 {
					t.Errorf("it was sent %d times", n)
				}
				select {
				case err := <-w.refused:
					t.Error(err)
				default:
				}
			})
		})
	}
}

// TestAnEngineIsDowngraded: what is applied has a parameter that the new engine
// does not know. That is no drift, and it is ready as long as it runs the rest.
func TestAnEngineIsDowngraded(t *testing.T) {
	more := optional(t)
	for _, mode := range modes {
		synctest.Test(t, func(t *testing.T) {
			w := emptyWorld(t, t.TempDir())
			w.rules, w.drift = more, mode
			w.engine.upgrade(more.Defaults().With(temperature, at(stateA, "0.5").Get(temperature)))
			w.start()
			w.declare(at(stateA, "1.5"), "")
			w.check("before", inSync(at(stateA, "1.5")))
			total, sends := w.store.Total(), w.engine.allSends()
			w.engine.tell(func(e *scripted) { e.upgrade(stateA) })
			w.r.EngineHint()
			less := want{runs: stateA, outcome: record.Applied, state: apply.StateDegraded, ready: true}
			for i, d := range []time.Duration{time.Second, 10 * time.Minute} {
				w.pass(d)
				w.check(fmt.Sprint("downgraded ", i), less)
				w.isUnknown("downgraded")
			}
			if s := w.r.Status(); s.Running.SnapshotID != w.store.Applied().ID {
				t.Errorf("running %+v", s.Running)
			}
			w.restart()
			w.declare(at(stateA, "1.5"), "")
			if s := w.r.Status(); s.State != apply.StateDegraded || !s.Ready || s.InSync {
				t.Errorf("after a restart: %s (%s), ready %v", s.State, s.Reason, s.Ready)
			}
			w.isUnknown("after a restart")
			// One with other values restarted, and is brought to what it knows of it.
			w.engine.tell(func(e *scripted) { e.upgrade(rules.Defaults()) })
			w.r.EngineHint()
			w.pass(time.Minute)
			if s := w.r.Status(); s.State != apply.StateDegraded || !s.Ready || s.InSync || !w.engine.running().Equal(stateA) {
				t.Errorf("other values: %s (%s), ready %v", s.State, s.Reason, s.Ready)
			}
			w.isUnknown("other values")
			if w.store.Total() != total || w.engine.allSends() != sends+1 {
				t.Errorf("%d records, %d batches more", w.store.Total()-total, w.engine.allSends()-sends)
			}
			w.declare(stateA, "removed")
			w.check("removed", inSync(stateA))
			w.end()
		})
	}
}

// TestAnEngineThatKnowsNothingOfWhatIsApplied is not ready.
func TestAnEngineThatKnowsNothingOfWhatIsApplied(t *testing.T) {
	schemas(t, optional(t), func(t *testing.T, w *world) {
		w.declare(stateA, "removed")
		sends := w.engine.allSends()
		w.engine.tell(func(e *scripted) { e.upgrade(at(schema.Parameters{}, "0.5")) })
		w.r.EngineHint()
		w.pass(time.Minute)
		if s := w.r.Status(); s.Ready || s.InSync || s.State != apply.StateDegraded || !strings.Contains(s.Reason, "the engine does not know") || w.engine.allSends() != sends {
			t.Errorf("%s (%s), ready %v, %d batches", s.State, s.Reason, s.Ready, w.engine.allSends()-sends)
		}
	})
}

// TestDriftOfAnEngineThatLacksAParameter names what was changed, not what the
// engine does not know.
func TestDriftOfAnEngineThatLacksAParameter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.rules, w.drift = larger(t), apply.DriftReport
		w.engine.upgrade(w.rules.Defaults())
		w.start()
		w.declare(at(stateA, "1.5"), "")
		w.engine.tell(func(e *scripted) { e.upgrade(stateA) })
		w.r.EngineHint()
		w.pass(time.Second)
		w.engine.tell(func(e *scripted) { e.runs = stateC })
		w.pass(31 * time.Second)
		s := w.r.Status()
		if s.Drift == nil || len(s.Drift.Differences) != 1 || s.Drift.Differences[0].Parameter != reservoir || w.counts.drifted() != 1 {
			t.Errorf("%s (%s), drift %+v", s.State, s.Reason, s.Drift)
		}
		w.end()
	})
}

// TestASettlementThatTheEngineDoesNotKnow is no dead end: a document that the
// engine can take replaces it.
func TestASettlementThatTheEngineDoesNotKnow(t *testing.T) {
	more := optional(t)
	schemas(t, more, func(t *testing.T, w *world) {
		w.engine.will(at(stateB, "1.5"), callback)
		w.engine.will(at(stateA, "1.5"), busy)
		w.declare(at(stateB, "1.5"), "")
		w.pass(time.Second)
		if head := w.store.Head(); head.Kind != record.KindRevert || head.Commit == w.store.Applied().Commit {
			t.Fatalf("the head is %+v", head)
		}
		w.engine.tell(func(e *scripted) { e.upgrade(rules.Defaults()) })
		w.r.EngineHint()
		w.pass(time.Second)
		s := w.r.Status()
		if s.State != apply.StateDegraded || !s.Ready || !strings.Contains(s.Reason, "the engine does not know temperature") || !w.engine.running().Equal(stateA) {
			t.Errorf("%s (%s), ready %v", s.State, s.Reason, s.Ready)
		}
		sends := w.engine.allSends() // the part that it knows was sent
		w.pass(10 * time.Minute)
		if n := w.engine.allSends() - sends; n != 0 {
			t.Errorf("%d batches were sent", n)
		}
		w.declare(stateC, "without it")
		w.check("without it", inSync(stateC))
	})
}

// TestAnEngineWithAParameterMore that the schema does not have: it is not sent, and
// what the engine does with it is its own.
func TestAnEngineWithAParameterMore(t *testing.T) {
	for _, mode := range modes {
		schemas(t, rules, func(t *testing.T, w *world) {
			w.drift = mode
			w.restart()
			w.declare(stateA, "")
			total, sends := w.store.Total(), w.engine.allSends()
			for i := range 5 {
				w.engine.tell(func(e *scripted) { e.runs = at(stateA, fmt.Sprint(i)) })
				w.pass(31 * time.Second)
			}
			x := inSync(at(stateA, "4"))
			x.outcome = record.Unchanged
			w.check("it changes", x)
			w.engine.tell(func(e *scripted) { e.workers = []schema.Parameters{at(stateA, "1"), at(stateA, "2")} })
			w.pass(10 * time.Minute)
			w.engine.tell(func(e *scripted) { e.workers = nil })
			x.runs = w.engine.running()
			w.r.EngineHint()
			w.pass(time.Second)
			w.check("it changes at each reading", x)
			if w.store.Total() != total || w.engine.allSends() != sends || w.counts.drifted() != 0 {
				t.Errorf("%d records, %d batches more, %d drifts", w.store.Total()-total, w.engine.allSends()-sends, w.counts.drifted())
			}
			batches := w.engine.batchesSince()
			w.declare(stateB, "")
			w.check("a change", inSync(stateB.With(temperature, x.runs.Get(temperature))))
			if got := batches(); len(got) != 1 || !got[0].Equal(stateB) {
				t.Errorf("sent %v", got)
			}
			w.engine.will(stateC, refuse)
			w.declare(stateC, "")
			w.check("a rejected one", want{
				runs: stateB.With(temperature, x.runs.Get(temperature)), outcome: record.Rejected, state: apply.StateHeld, ready: true,
				held: []schema.Parameters{stateC},
			})
			if rec := w.store.Head(); !rec.Config.Equal(stateB) || rec.Before == nil || !rec.Before.Get(temperature).IsZero() {
				t.Errorf("on record is %s, before %s", rec.Config, rec.Before)
			}
		})
	}
}

// TestAnUnknownParameterOfARecordIsNotWatched: the smaller schema does not compare
// what it does not know, though what is applied has it. Readings that differ in
// that alone are of one engine.
func TestAnUnknownParameterOfARecordIsNotWatched(t *testing.T) {
	schemas(t, larger(t), func(t *testing.T, w *world) {
		w.drift = apply.DriftReport
		w.under(rules)
		w.declare(stateA, "")
		sends := w.engine.allSends()
		w.engine.tell(func(e *scripted) { e.workers = []schema.Parameters{at(stateA, "1"), at(stateA, "2")} })
		w.pass(10 * time.Minute)
		s := w.r.Status()
		if s.State != apply.StateInSync || w.engine.allSends() != sends || w.counts.drifted() != 0 {
			t.Errorf("%s (%s), %d batches, %d drifts", s.State, s.Reason, w.engine.allSends()-sends, w.counts.drifted())
		}
		w.engine.tell(func(e *scripted) { e.workers = []schema.Parameters{at(stateC, "1"), at(stateC, "2")} })
		w.pass(31 * time.Second)
		s = w.r.Status()
		if s.State != apply.StateDrifted || s.Drift == nil || len(s.Drift.Differences) != 1 || s.Drift.Differences[0].Parameter != reservoir {
			t.Errorf("%s (%s), drift %+v", s.State, s.Reason, s.Drift)
		}
		batches := w.engine.batchesSince()
		w.engine.tell(func(e *scripted) { e.workers = nil; e.restart() })
		w.r.EngineHint()
		w.pass(time.Second)
		if got := batches(); len(got) != 1 || !got[0].Equal(stateA) || !w.engine.running().Equal(at(stateA, "0.5")) {
			t.Errorf("a restarted engine was sent %v and runs %s", got, w.engine.running())
		}
	})
}

// TestAReplacedHistoryThatTheEngineDoesNotKnow: a change in the history that took
// the place of another one under the agent is superseded as any other.
func TestAReplacedHistoryThatTheEngineDoesNotKnow(t *testing.T) {
	lacking(t, optional(t), apply.DriftCorrect, func(t *testing.T, w *world) {
		repo, backup := filepath.Join(w.dir, "snapshots.git"), t.TempDir()
		w.declare(at(stateB, "1.25"), "")
		w.check("declared", unknown)
		if err := os.CopyFS(backup, os.DirFS(repo)); err != nil {
			t.Fatal(err)
		}
		w.declare(stateA, "the way back")
		w.pass(time.Second)
		if err := errors.Join(os.RemoveAll(repo), os.CopyFS(repo, os.DirFS(backup))); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Minute)
		x := inSync(stateA)
		x.outcome = record.Unchanged
		w.check("replaced", x)
		if head := w.store.Head(); head.Kind != record.KindRevert {
			t.Errorf("the head is a %s", head.Kind)
		}
	})
}

// narrow is what an engine with less memory accepts.
var narrow = map[string]api.Bounds{reservoir: {Type: "int", Maximum: schema.Int(1500)}}

// TestTighterBounds: each process of the engine is asked once how its schema
// differs, and no change waits for that; the status says so.
func TestTighterBounds(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		tighter := []string{reservoir + ": the engine accepts 64-1500, the schema 64-16384"}
		differences := func() []string { return w.r.Status().Engine.Differences }
		asked := func() (n int) { w.engine.tell(func(e *scripted) { n = e.asked }); return n }
		if n := asked(); n != 1 || differences() == nil || len(differences()) != 0 {
			t.Errorf("asked %d times: %q", n, differences())
		}
		w.pass(10 * time.Minute)
		w.declare(stateB, "")
		if n := asked(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		w.engine.tell(func(e *scripted) { e.bounds = narrow; e.restart() })
		w.r.EngineHint()
		w.pass(time.Second)
		if n := asked(); n != 2 || !slices.Equal(differences(), tighter) {
			t.Errorf("a new process was asked %d times: %q", n-1, differences())
		}
		x := inSync(stateB)
		w.check("a difference is no fault", x)

		// A restart that is seen together with the change.
		records := -1
		w.engine.tell(func(e *scripted) {
			e.bounds, e.onAsk = nil, func() { records = e.store.Total() }
			e.restart()
		})
		total := w.store.Total()
		w.r.EngineHint()
		w.declare(stateC, "")
		w.check("a change", inSync(stateC))
		if n := asked(); n != 3 || records < total || len(differences()) != 0 {
			t.Errorf("asked %d times, with %d records of %d: %q", n, records, total, differences())
		}
		w.restart() // a new agent knows nothing
		w.declare(stateC, "")
		if n := asked(); n != 4 {
			t.Errorf("asked %d times", n)
		}
	})
}

// TestTighterBoundsBeforeTheFirstChange of a process that was met while something
// else went on, and was not read since.
func TestTighterBoundsBeforeTheFirstChange(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		tighter := []string{reservoir + ": the engine accepts 64-1500, the schema 64-16384"}
		w.engine.will(stateB, busy)
		w.declare(stateB, "")
		w.engine.tell(func(e *scripted) { e.bounds = narrow; e.restart() })
		w.r.EngineHint()
		w.pass(time.Second)
		if got := w.r.Status().Engine.Differences; !slices.Equal(got, tighter) {
			t.Errorf("before the change: %q", got)
		}
		w.declare(stateC, "")
		w.check("a fix", inSync(stateC))
	})
}

// TestBoundsOfAnOptionalParameter: that the engine does not know it is said while
// something sets it.
func TestBoundsOfAnOptionalParameter(t *testing.T) {
	lacking(t, optional(t), apply.DriftCorrect, func(t *testing.T, w *world) {
		tighter, missing := reservoir+": the engine accepts 64-1500, the schema 64-16384", "the engine does not know temperature"
		says := func(lines ...string) {
			t.Helper()
			if got := w.r.Status().Engine.Differences; !slices.Equal(got, lines) {
				t.Errorf("differences %q, want %q", got, lines)
			}
		}
		w.engine.tell(func(e *scripted) { e.bounds = narrow })
		w.declare(stateA, "")
		says(tighter)
		w.declare(at(stateB, "1.25"), "")
		w.check("declared", unknown)
		says(tighter, missing)
		w.declare(stateA, "the way back")
		w.pass(time.Minute)
		x := inSync(stateA)
		x.outcome = record.Unchanged
		w.check("back", x)
		says(tighter)
	})
}

// TestAnErrorOfTheComparisonIsNoFault: the engine is asked again later and later,
// and no change waits for it.
func TestAnErrorOfTheComparisonIsNoFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.engine.bounds = narrow
		w.start()
		w.declare(stateA, "")
		if got := w.r.Status().Engine.Differences; len(got) != 1 {
			t.Errorf("differences %q", got)
		}
		w.engine.tell(func(e *scripted) { e.boundsErr = errors.New("HTTP 500"); e.restart() })
		w.r.EngineHint()
		w.pass(time.Second)
		w.check("it cannot say", inSync(stateA))
		s := w.r.Status()
		if len(s.Engine.Differences) != 0 || !s.Engine.Reachable || s.Engine.LastError != "" { // those were another engine's
			t.Errorf("%+v", s.Engine)
		}
		w.declare(stateB, "")
		w.check("a change", inSync(stateB))
		asked := 0
		w.engine.tell(func(e *scripted) { asked = e.asked })
		for i := range 120 { // readings and changes do not hasten it
			w.declare(size(1000+i), "")
			w.pass(30 * time.Second)
		}
		w.engine.tell(func(e *scripted) { asked = e.asked - asked; e.boundsErr = nil })
		if asked < 10 || asked > 20 {
			t.Errorf("asked %d times in an hour", asked)
		}
		w.pass(5 * time.Minute)
		if got := w.r.Status().Engine.Differences; len(got) != 1 {
			t.Errorf("differences %q", got)
		}
		w.engine.tell(func(e *scripted) { e.boundsErr = errors.New("HTTP 500"); e.asked = 0; e.restart() })
		w.r.EngineHint()
		w.pass(time.Second)
		w.engine.tell(func(e *scripted) { asked = e.asked })
		if asked != 1 {
			t.Errorf("a new process was asked %d times", asked)
		}
		w.end()
	})
}

// TestARollbackBringsBackAnOptionalParameter to what the engine ran before it was
// set, where the target does not have it and the schema has no default.
func TestARollbackBringsBackAnOptionalParameter(t *testing.T) {
	bare := extended(t, "#Parameters: temperature?: number & >=0 & <=2 @dtesn(description=\"x\")\n")
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.rules = bare
		w.engine.upgrade(at(stateC, "0.25"))
		w.start()
		w.declare(stateA, "")
		w.check("without it", inSync(at(stateA, "0.25")))
		w.declare(at(stateA, "1.5"), "")
		w.check("with it", inSync(at(stateA, "1.5")))
		if res, err := w.do(&apply.Rollback{Reason: "1.5 is bad"}); err != nil || res.Outcome != record.Applied {
			t.Fatalf("%+v, %v", res, err)
		}
		if got := w.engine.running(); !got.Equal(at(stateA, "0.25")) {
			t.Errorf("the engine runs %s", got)
		}
		w.end()
	})
}

// TestAnUnrelatedParameterEndsNoHold: a value that was rolled back from is held with
// whatever else is declared beside it, and the reason names it, who holds it and why.
func TestAnUnrelatedParameterEndsNoHold(t *testing.T) {
	schemas(t, optional(t), func(t *testing.T, w *world) {
		w.declare(stateA, "")
		w.declare(stateB, "")
		if _, err := w.do(&apply.Rollback{Reason: "b is bad", Requester: record.Requester{UID: 7, User: "ada"}}); err != nil {
			t.Fatal(err)
		}
		w.engine.ban(at(stateB, "1.5"))
		w.declare(at(stateB, "1.5"), "")
		w.check("another", want{runs: w.engine.running(), outcome: record.Held, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB}})
		if s := w.r.Status(); s.Reason != "esn_reservoir_size 2048 is held by the operator ada (uid 7): b is bad" || s.Attempted.HeldBy != "operator" {
			t.Errorf("%s; %+v", s.Reason, s.Attempted)
		}
		w.declare(at(stateC, "1.5"), "")
		w.check("another value", inSync(at(stateC, "1.5")))
		w.engine.allow(at(stateB, "1.5"))
		w.declare(at(stateB, "1.5"), "")
		w.check("the value again", inSync(at(stateB, "1.5")))
	})
}

// TestAParameterThatTheEngineHasUnset: it reports null, and can be given a value.
func TestAParameterThatTheEngineHasUnset(t *testing.T) {
	for _, mode := range modes {
		lacking(t, optional(t), mode, func(t *testing.T, w *world) {
			w.engine.tell(func(e *scripted) { e.nulls = []string{temperature} })
			w.r.EngineHint()
			w.declare(at(stateB, "1.25"), "")
			w.check("declared", inSync(at(stateB, "1.25")))
			w.engine.tell((*scripted).restart) // it begins without
			w.r.EngineHint()
			w.pass(time.Second)
			x := inSync(at(stateB, "1.25"))
			w.check("restarted", x)
			w.engine.tell(func(e *scripted) { e.runs = stateB })
			w.pass(31 * time.Second)
			s := w.r.Status()
			if drifted := s.State == apply.StateDrifted; drifted != (mode == apply.DriftReport) || w.counts.drifted() != 1 {
				t.Errorf("unset by somebody: %s (%s), %d drifts", s.State, s.Reason, w.counts.drifted())
			}
			if drifted := s.Drift != nil; drifted && (len(s.Drift.Differences) != 1 || !s.Drift.Differences[0].New.IsZero()) {
				t.Errorf("drift %+v", s.Drift)
			}
		})
	}
}

// TestAnotherTypeThanTheEngineHas: a parameter that nobody sets makes the engine no
// other server; one that is set waits, as one that the engine does not know.
func TestAnotherTypeThanTheEngineHas(t *testing.T) {
	lacking(t, optional(t), apply.DriftCorrect, func(t *testing.T, w *world) {
		const says = `temperature: the schema says number, the engine reports "hot": correct the schema or the engine`
		w.engine.tell(func(e *scripted) { e.mistyped = map[string]string{temperature: `"hot"`} })
		w.r.EngineHint()
		w.declare(stateB, "")
		w.check("nobody sets it", inSync(stateB))
		if got := w.r.Status().Engine.Differences; !slices.Equal(got, []string{says}) {
			t.Errorf("differences %q", got)
		}
		sends := w.engine.allSends()
		w.declare(at(stateC, "1.25"), "")
		x := unknown
		x.runs = stateB
		w.check("somebody sets it", x)
		if s := w.r.Status(); s.Reason != says || !strings.Contains(s.Hint, "take temperature out of the files") || w.engine.allSends() != sends {
			t.Errorf("%s (%s), %d batches", s.Reason, s.Hint, w.engine.allSends()-sends)
		}
		w.declare(stateC, "")
		w.check("nobody any more", inSync(stateC))
	})
}

// TestTheServerIsAtFault: a refusal that cannot be about the change is not believed.
func TestTheServerIsAtFault(t *testing.T) {
	for name, row := range map[string]struct {
		how  manner
		says string
	}{
		"it names a parameter that was not sent": {blame, "it calls the parameter allowed_origins unknown, which was not sent"},
		"it refuses what it runs":                {refuseAll, "it refuses what it runs already, too: no"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.engine.will(stateA, row.how)
				w.engine.will(stateB, row.how)
				w.declare(stateB, "")
				w.pass(10 * time.Second)
				w.check("refused", want{runs: stateA, outcome: record.Pending, state: apply.StateDegraded, ready: true, open: true})
				if s := w.r.Status(); !strings.Contains(s.Reason, row.says) || !strings.Contains(s.Hint, "fault of the DTESN server") || s.Held != nil {
					t.Errorf("%s; hint %s; held %+v", s.Reason, s.Hint, s.Held)
				}
				w.engine.will(stateA, accept)
				w.engine.will(stateB, accept)
				w.pass(6 * time.Minute)
				w.check("mended", inSync(stateB))
			})
		})
	}
}

// TestARefusalIsBelieved where the engine accepts what it runs.
func TestARefusalIsBelieved(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, refuseAll)
		w.declare(stateB, "")
		w.pass(time.Second)
		w.check("rejected", want{runs: stateA, outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{stateB}})
		if n := w.engine.sent(stateB); n != 1 {
			t.Errorf("the change was sent %d times", n)
		}
	})
}

// A rollback does not wait for the next reading of an engine that lacks a parameter of it.
func TestARollbackIsSentToAnEngineThatLacksAParameter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.rules = optional(t)
		w.engine.upgrade(at(w.rules.Defaults(), "0.5"))
		w.start()
		w.declare(at(stateA, "1.5"), "")
		w.declare(at(stateB, "1.5"), "")
		w.engine.tell(func(e *scripted) { e.upgrade(stateA) })
		w.r.EngineHint()
		w.pass(37 * time.Second)
		sends := w.engine.allSends()
		if res, err := w.do(&apply.Rollback{Reason: "night"}); err != nil || res.Outcome != record.Pending || w.engine.allSends() == sends {
			t.Errorf("%+v %v, %d batches", res, err, w.engine.allSends()-sends)
		}
		w.end()
	})
}

// goesBack is an order during a build, of which nothing may be told before it is over.
func goesBack(w *world) {
	w.t.Helper()
	w.order(&apply.Rollback{Reason: "too large"})
	w.pass(5 * time.Second)
	if s := w.r.Status(); w.store.Applied().Commit == w.store.Head().Commit {
		w.t.Errorf("applied during the build: %s (%s)", s.State, s.Reason)
	}
}

// TestABuildTakesItsTime: an engine that says that it builds is waited for; nothing is sent
// meanwhile, and nothing is wrong.
func TestABuildTakesItsTime(t *testing.T) {
	building := func(w *world) {
		w.t.Helper()
		w.pass(15 * time.Second)
		if s := w.r.Status(); s.State != apply.StateApplying || !strings.Contains(s.Reason, "the engine builds snapshot_") || s.InSync {
			w.t.Errorf("%s (%s), in sync %v", s.State, s.Reason, s.InSync)
		}
	}
	for name, row := range map[string]struct {
		how   manner
		story func(w *world)
		runs  schema.Parameters
		sends int
	}{
		"it succeeds": {build, func(*world) {}, stateB, 1},
		"it fails":    {buildFails, func(w *world) { w.engine.will(stateB, accept) }, stateB, 2},
		"it is not wanted any more": {build, func(w *world) {
			w.declare(stateA, "back")
			w.pass(time.Second)
			if s := w.r.Status(); s.InSync || s.State != apply.StateApplying {
				w.t.Errorf("%s (%s), in sync %v", s.State, s.Reason, s.InSync)
			}
		}, stateA, 1},
		"an operator goes back": {build, goesBack, stateA, 1},
		"it is accepted first":  {buildLater, func(*world) {}, stateB, 1},
		"accepted, and not wanted any more": {buildLater, func(w *world) {
			w.declare(stateA, "back")
		}, stateA, 1},
		"accepted, and an operator goes back": {buildLater, goesBack, stateA, 1},
	} {
		for _, mode := range modes {
			t.Run(fmt.Sprintf("%s, %s", name, mode), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, t.TempDir())
					defer w.end()
					w.drift = mode
					w.restart()
					w.declare(stateA, "")
					w.engine.will(stateB, row.how)
					w.declare(stateB, "")
					building(w)
					row.story(w)
					w.pass(time.Minute)
					if !w.engine.running().Equal(row.runs) || w.counts.drifted() != 0 {
						t.Errorf("runs %v, %d drifts", w.engine.running().Get(reservoir), w.counts.drifted())
					}
					if n := w.engine.sent(stateB); n != row.sends {
						t.Errorf("it was sent %d times, want %d", n, row.sends)
					}
					if s := w.r.Status(); s.Applied == nil || !s.Applied.Config.Equal(row.runs) {
						t.Errorf("%s (%s)", s.State, s.Reason)
					}
				})
			})
		}
	}
}

// TestARestartIsSeenDuringACooldown: an engine that asks not to be asked for its health, after
// a read that failed, is not trusted blindly: a hint that it restarted is followed.
func TestARestartIsSeenDuringACooldown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onTrial(t)
		defer w.end()
		w.engine.tell(func(e *scripted) { e.ill = "memory" })
		w.r.EngineHint()
		w.pass(10 * time.Millisecond)
		w.engine.tell(func(e *scripted) { e.ill, e.limited = "", time.Now().Add(time.Minute) })
		w.pass(2 * time.Second)
		w.engine.tell(func(e *scripted) { e.restart(); e.limited = time.Time{} }) // another process has no limit yet
		w.r.EngineHint()
		w.pass(5 * time.Second)
		w.check("rejected", want{runs: size(512), outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{size(1024)}})
	})
}

// TestAskedToWait: an engine that asks to wait is asked again then, and has said nothing
// about the change on probation.
func TestAskedToWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onTrial(t)
		defer w.end()
		w.engine.tell(func(e *scripted) { e.limited = time.Now().Add(30 * time.Second) })
		w.pass(time.Second)
		reads := 0
		w.engine.tell(func(e *scripted) { reads = e.reads })
		w.pass(20 * time.Second)
		w.engine.tell(func(e *scripted) {
			if e.reads > reads+1 {
				t.Errorf("it was read %d times meanwhile", e.reads-reads)
			}
		})
		if s := w.r.Status(); !s.Ready || s.State != apply.StateProbation || !strings.HasSuffix(s.Reason, "until the engine says how it is: HTTP 429") {
			t.Errorf("ready %v (%s), %s: %s", s.Ready, s.Unready, s.State, s.Reason)
		}
		w.pass(2 * time.Minute)
		w.check("passed", inSync(size(1024)))
		w.engine.tell(func(e *scripted) { e.limited = time.Now().Add(30 * time.Second) })
		w.r.EngineHint()
		w.pass(time.Second)
		if s := w.r.Status(); !s.Ready || s.State != apply.StateWaiting || strings.Count(s.Reason, "HTTP 429") != 1 { // who asks to wait has responded
			t.Errorf("ready %v (%s), %s: %s", s.Ready, s.Unready, s.State, s.Reason)
		}
		w.pass(time.Minute)
		w.check("in sync", inSync(size(1024)))

		w.engine.tell(func(e *scripted) { e.limited = time.Now().Add(time.Hour) })
		w.r.EngineHint()
		w.pass(2 * time.Minute)
		if s := w.r.Status(); s.Ready { // nobody knows any more
			t.Error("ready, and the engine was not read for two minutes")
		}
		w.engine.tell(func(e *scripted) { e.limited = time.Time{} })
		w.pass(time.Hour)
		w.engine.tell(func(e *scripted) { e.restart(); e.limited = time.Now().Add(30 * time.Second) })
		w.r.EngineHint()
		w.pass(time.Second)
		if s := w.r.Status(); s.Ready { // it may run its defaults
			t.Error("ready, and a restarted engine was not read")
		}
	})
}
