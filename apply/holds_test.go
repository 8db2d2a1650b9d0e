package apply_test

import (
	"fmt"
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

// two makes Parameters that differ in two.
func two(n, ttl int) schema.Parameters {
	return size(n).With("cache_ttl_seconds", schema.Int(ttl))
}

// entries lists what is held, a line each.
func (w *world) entries() (lines []string) {
	if h := w.r.Status().Held; h != nil {
		for i := range h.Entries {
			lines = append(lines, h.Entries[i].String())
		}
	}
	return lines
}

func (w *world) wantEntries(want ...string) {
	w.t.Helper()
	if got := w.entries(); strings.Join(got, "; ") != strings.Join(want, "; ") {
		w.t.Errorf("held %q, want %q", got, want)
	}
}

// must carries out an order that is to take effect.
func (w *world) must(c apply.Order) apply.Result {
	w.t.Helper()
	res, err := w.do(c)
	if err != nil || res.Outcome != record.Applied {
		w.t.Fatalf("%+v: %+v, %v", c, res, err)
	}
	return res
}

func (w *world) wantHeld(because string) {
	w.t.Helper()
	s := w.r.Status()
	if s.State != apply.StateHeld || !strings.Contains(s.Reason, because) || s.InSync {
		w.t.Errorf("%s (%s), attempted %+v; want it held: %s", s.State, s.Reason, s.Attempted, because)
	}
}

// A rollback holds each value that differs from the target's, and goes where none of
// them is.
func TestRollbackHoldsValues(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(two(1024, 400), "")
		w.declare(two(2048, 500), "") // 2048 is bad
		w.declare(two(2048, 600), "")
		w.must(&apply.Rollback{ID: "3", Reason: "order 2048 is bad"}) // to 2048, 500
		w.wantEntries("cache_ttl_seconds 600")
		w.must(&apply.Rollback{ID: "2", Reason: "2048 is bad"})
		w.wantEntries("cache_ttl_seconds 600", "cache_ttl_seconds 500", "esn_reservoir_size 2048")
		for _, unrelated := range []schema.Parameters{two(2048, 700), two(512, 600)} {
			w.engine.ban(unrelated)
			w.declare(unrelated, "")
			w.wantHeld(" is held by the operator (uid 0): ")
			w.restart()
			w.declare(unrelated, "after a restart")
			w.wantHeld(" is held by the operator (uid 0): ")
		}
		// Without an id: the newest that has none of it.
		w.must(&apply.Rollback{Reason: "further"})
		if got := w.engine.running(); !got.Equal(stateA) {
			t.Errorf("the engine runs %s", got)
		}
		w.declare(two(513, 700), "a fix")
		w.check("a fix", want{runs: two(513, 700), outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

// An operator narrows a hold to a parameter, and ends what is held of one.
func TestHoldOfOneParameter(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(two(1024, 400), "")
		w.declare(two(2048, 500), "")
		for _, c := range []struct{ name, hint string }{{"esn_reservoir_sizes", "did you mean esn_reservoir_size?"}, {"max_membrane_depth", "agent rollback --dry-run"}} {
			if _, err := w.do(&apply.Rollback{Reason: "x", Hold: []string{c.name}}); err == nil || !strings.Contains(problem.Hint(err), c.hint) {
				t.Errorf("%v, hint %q", err, problem.Hint(err))
			}
		}
		w.must(&apply.Rollback{Reason: "slow", Hold: []string{reservoir}})
		w.wantEntries("esn_reservoir_size 2048")
		w.declare(two(1024, 500), "")
		w.check("the other value", want{runs: two(1024, 500), outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})

		w.declare(two(4096, 600), "")
		w.must(&apply.Rollback{Reason: "both"})
		w.wantEntries("cache_ttl_seconds 600", "esn_reservoir_size 4096")
		w.wantHeld("cache_ttl_seconds 600, esn_reservoir_size 4096 are held by the operator (uid 0): both")
		if hint := w.r.Status().Hint; hint != "declare other values, or try all of these with: agent resume" {
			t.Error(hint)
		}
		total := w.store.Total()
		plan := w.must(&apply.Resume{Name: reservoir, DryRun: true}).Text
		if !strings.Contains(plan, "would no longer hold esn_reservoir_size 4096") || !strings.Contains(plan, "still held, so nothing would be tried: cache_ttl_seconds 600") || w.store.Total() != total {
			t.Errorf("%s; %d records more", plan, w.store.Total()-total)
		}
		if _, err := w.do(&apply.Resume{Name: "max_membrane_depth"}); err == nil || !strings.Contains(err.Error(), "no value of max_membrane_depth is held") {
			t.Error(err)
		}
		resumed := func(o apply.Resume, want string) {
			if got := w.must(&o).Text; got != want {
				t.Errorf("%+v: %q, want %q", o, got, want)
			}
		}
		resumed(apply.Resume{Name: reservoir}, "no longer held: esn_reservoir_size 4096; still held, so nothing is tried yet: cache_ttl_seconds 600")
		w.wantEntries("cache_ttl_seconds 600")
		w.wantHeld("cache_ttl_seconds 600 is held")
		if hint := w.r.Status().Hint; hint != "declare another cache_ttl_seconds, or try this one with: agent resume cache_ttl_seconds" {
			t.Error(hint)
		}
		w.must(&apply.Pause{Reason: "night"})
		resumed(apply.Resume{Name: "cache_ttl_seconds", DryRun: true}, "would no longer hold cache_ttl_seconds 600: both\nstill paused, so nothing would be tried: night")
		resumed(apply.Resume{Name: "cache_ttl_seconds"}, "no longer held: cache_ttl_seconds 600; still paused, so nothing is tried yet: night")
		w.wantEntries()
		w.wantHeld("paused by the operator (uid 0): night")
		resumed(apply.Resume{}, "resumed; tried now: cache_ttl_seconds 500 -> 600, esn_reservoir_size 1024 -> 4096")
		w.check("resumed", want{runs: two(4096, 600), outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true})
	})
}

// What would be done is said, and not done.
func TestDryRun(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(two(2048, 500), "")
		total, sends := w.store.Total(), w.engine.allSends()
		res := w.must(&apply.Rollback{DryRun: true, Pause: true})
		for _, line := range []string{"would roll back to " + must(w.store.Lookup(t.Context(), "1")).ID, "  esn_reservoir_size 2048 -> 1024", "would hold esn_reservoir_size 2048", "would hold cache_ttl_seconds 500", "would pause"} {
			if !strings.Contains(res.Text, line) {
				t.Errorf("no %q in\n%s", line, res.Text)
			}
		}
		if w.store.Total() != total || w.engine.allSends() != sends || w.r.Status().Held != nil {
			t.Error("something was done")
		}
		w.must(&apply.Rollback{Reason: "slow"})
		res = w.must(&apply.Resume{DryRun: true})
		if !strings.Contains(res.Text, "would try: ") || !strings.Contains(res.Text, "esn_reservoir_size 1024 -> 2048") {
			t.Error(res.Text)
		}
		w.wantEntries("cache_ttl_seconds 500", "esn_reservoir_size 2048")
	})
}

// What did not pass its probation is held by the values that it brought, and a fix that
// is refused ends nothing.
func TestProbationHoldsWhatWasBrought(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.probation = 10 * time.Second
		w.restart()
		w.declare(stateA, "")
		w.engine.tell(func(e *scripted) { e.ill = "memory" })
		w.declare(stateB, "")
		w.pass(time.Minute)
		w.engine.tell(func(e *scripted) { e.ill = "" })
		w.wantEntries("esn_reservoir_size 2048")
		w.engine.ban(two(2048, 500))
		w.declare(two(2048, 500), "")
		w.pass(time.Minute)
		w.wantHeld("esn_reservoir_size 2048 did not pass the probation: ")
		w.engine.will(two(512, 500), refuse)
		w.declare(two(512, 500), "")
		w.pass(time.Minute)
		if got := w.entries(); len(got) != 2 || got[0] != "esn_reservoir_size 2048" {
			t.Errorf("held %q after a fix was refused", got)
		}
		w.declare(two(2048, 500), "again")
		w.pass(time.Minute)
		w.wantHeld("esn_reservoir_size 2048 did not pass the probation: ")
	})
}

// Who gave an order stands in the record and in what it holds.
func TestRequester(t *testing.T) {
	ada := record.Requester{UID: 7, User: "ada", Login: "root"}
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		for _, c := range []apply.Order{
			&apply.Rollback{Reason: "slow", Requester: ada}, &apply.Pause{Reason: "night", Requester: ada}, &apply.Resume{Requester: ada},
		} {
			res := w.must(c)
			if q := must(w.store.Lookup(t.Context(), res.SnapshotID)).Requester; q == nil || *q != ada {
				t.Errorf("%s: the record says %+v", verbOf(c), q)
			}
			if h := w.r.Status().Held; h != nil && (h.Requester == nil || *h.Requester != ada) {
				t.Errorf("%s: held by %+v", verbOf(c), h.Requester)
			}
		}
	})
}

// An order after the end of the loop is answered at once.
func TestOrderAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, t.TempDir())
		w.declare(stateA, "")
		r := w.r
		w.end()
		begun := time.Now()
		if _, err := r.Do(t.Context(), &apply.Pause{Reason: "x"}); err == nil || !strings.Contains(err.Error(), "the agent is stopping") || time.Since(begun) > 0 {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
	})
}

// What is held stays held: over a restart, drift, an engine that restarts, an invalid
// document and a fix that is rejected, whoever holds it; and a held document comes to the
// outcome that `agent run --once` takes its exit code from.
func TestHoldsStay(t *testing.T) {
	const operator, engine = "operator", "engine"
	for name, row := range map[string]struct {
		hold func(w *world) // from 1024 with a TTL of 300 applied
		doc  schema.Parameters
		by   string
	}{
		"a rollback, an unrelated merge": {func(w *world) {
			w.declare(two(2048, 300), "")
			w.must(&apply.Rollback{Reason: "2048 is bad"})
		}, two(2048, 400), operator},
		"a probation": {func(w *world) {
			w.probation = 5 * time.Second
			w.restart()
			w.declare(two(2048, 300), "")
			w.engine.tell(func(e *scripted) { e.ill = "memory" })
			w.pass(time.Minute)
			w.engine.tell(func(e *scripted) { e.ill = "" })
		}, two(2048, 400), "probation"},
		"a refusal": {func(w *world) {
			w.engine.will(two(2048, 300), refuse)
			w.declare(two(2048, 300), "")
		}, two(2048, 300), engine},
		"two at once": {func(w *world) {
			w.declare(two(2048, 300), "")
			w.must(&apply.Rollback{Reason: "2048 is bad"})
			w.engine.will(two(512, 300), refuse)
			w.declare(two(512, 300), "")
		}, two(2048, 400), operator},
		"resume of the other name": {func(w *world) {
			w.declare(two(2048, 600), "")
			w.must(&apply.Rollback{Reason: "both are bad"})
			w.must(&apply.Resume{Name: "cache_ttl_seconds"})
		}, two(2048, 600), operator},
		"a rollback of a rollback": {func(w *world) {
			w.declare(two(2048, 300), "")
			w.must(&apply.Rollback{Reason: "2048 is bad"})
			w.must(&apply.Rollback{ID: "1", Reason: "so is 1024"})
		}, two(2048, 400), operator},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, t.TempDir())
				w.declare(two(512, 200), "")
				w.declare(two(1024, 300), "")
				row.hold(w)
				held, runs := w.entries(), w.engine.running()
				if len(held) == 0 {
					t.Fatal("nothing is held")
				}
				w.engine.ban(row.doc)
				w.engine.will(two(700, 300), refuse)
				for what, happens := range map[string]func(){
					"a restart":             w.restart,
					"drift":                 func() { w.engine.tell(func(e *scripted) { e.runs = stateC }) },
					"the engine restarts":   func() { w.engine.tell((*scripted).restart); w.r.EngineHint() },
					"an invalid document":   func() { w.declare(size(-1), "") },
					"a fix that is refused": func() { w.declare(two(700, 300), "") },
				} {
					happens()
					w.pass(time.Minute)
					if got := w.entries(); !slices.Equal(got, held) && (what != "a fix that is refused" || !containsAll(got, held)) {
						t.Errorf("%s: held %q, was %q", what, got, held)
					}
					w.declare(row.doc, what)
					w.pass(time.Minute)
					if a := w.r.Status().Attempted; a == nil || a.Outcome != record.Held || a.HeldBy != row.by {
						t.Errorf("%s: attempted %+v, want it held by %s", what, a, row.by)
					}
					if !w.engine.running().Equal(runs) {
						t.Errorf("%s: the engine runs %v", what, w.engine.running())
					}
					held = w.entries()
				}
				w.end()
			})
		})
	}
}

func containsAll(list, part []string) bool {
	return !slices.ContainsFunc(part, func(s string) bool { return !slices.Contains(list, s) })
}

// TestOrderEvents holds that events name what an order ended and whose rollback was
// refused, and that the history tells the same.
func TestOrderEvents(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		events := w.r.Subscribe(100)
		root := record.Requester{UID: 0, User: "root"}
		w.declare(two(2048, 500), "")
		w.must(&apply.Rollback{Reason: "again", Requester: root})
		w.must(&apply.Pause{Reason: "night", Requester: record.Requester{UID: 7}})
		w.must(&apply.Resume{Name: reservoir, Requester: root})
		w.must(&apply.Resume{Reason: "day", Requester: root})
		w.engine.will(stateA, refuse)
		if res, err := w.do(&apply.Rollback{Reason: "z", Requester: root}); err != nil || res.Outcome != record.Rejected {
			t.Errorf("%+v, %v", res, err)
		}
		told := map[string]string{} // by type and record
		var list []string
		text := func(e apply.Event) (text string) {
			for _, r := range e.Released {
				text += fmt.Sprintf("%s, by %s: %s; ", r.String(), r.By, r.Reason)
			}
			return text + e.String()
		}
		for len(events.Events) > 0 {
			e := <-events.Events
			told[string(e.Type)+e.Record] = text(e)
			switch e.Type {
			case apply.EventReleased, apply.EventResumed:
				list = append(list, text(e))
			case apply.EventRejected:
				if e.Kind != record.KindRollback || !strings.HasPrefix(e.Description, "Rollback to snapshot_") || !strings.HasSuffix(e.Description, ": z") || e.Reason == e.Description || e.By.User != "root" {
					t.Errorf("%+v", e)
				}
			}
		}
		want := []string{"esn_reservoir_size 2048, by operator: again; by the operator", ", by operator: night; cache_ttl_seconds 500, by operator: again; day"}
		if !slices.Equal(list, want) {
			t.Errorf("told %q, want %q", list, want)
		}
		rows := must(w.store.List(t.Context(), "", 50))
		for i := range len(rows) - 1 {
			for _, e := range apply.RecordEvents(&rows[i], &rows[i+1].Record) {
				if was, ok := told[string(e.Type)+e.Record]; ok && was != text(e) {
					t.Errorf("%s: from the history %q, told %q", e.Type, text(e), was)
				}
				if e.Type == apply.EventRejected && (e.Kind != record.KindRollback || !strings.HasSuffix(e.Description, ": z") || e.Reason == e.Description) {
					t.Errorf("from the history %+v", e)
				}
			}
		}
	})
}
