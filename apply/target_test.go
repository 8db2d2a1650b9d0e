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

// TestARollbackGoesWhereTheStatusSays: what is applied lacks a parameter that a
// newer schema manages. That is no difference from itself: a rollback goes to the
// state before, whatever the engine has of the parameter, and since when.
func TestARollbackGoesWhereTheStatusSays(t *testing.T) {
	for name, c := range map[string]struct {
		first, then schema.Value // what the engine has of mt, when the agent starts and when it rolls back
	}{
		"another value":     {schema.Int(50), schema.Int(50)},
		"the default":       {schema.Int(5), schema.Int(5)},
		"upgraded later":    {schema.Value{}, schema.Int(50)},
		"it stays unknown":  {},
		"downgraded anyway": {schema.Int(50), schema.Value{}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := emptyWorld(t, t.TempDir())
				w.start()
				w.declare(stateA, "")
				a := w.store.Applied().ID
				w.declare(stateB, "")
				w.end()
				w.engine.tell(func(e *scripted) { e.upgrade(mt(stateB, c.first)) })
				w.rules = withMt(t, mtFive)
				w.start()
				w.pass(10 * time.Second) // the source shows nothing
				w.engine.tell(func(e *scripted) { e.upgrade(mt(stateB, c.then)) })
				w.r.EngineHint()
				w.pass(time.Second)
				if got := w.r.Status().Running.RollbackSnapshot; got != a {
					t.Errorf("the status says %s, want %s", got, a)
				}
				if got := w.m.target.Load(); got != a {
					t.Errorf("the store is told to keep %v, want %s", got, a)
				}
				res, err := w.do(&apply.Rollback{Reason: "slow"})
				if err != nil || res.Outcome != record.Applied {
					t.Fatalf("%+v %v", res, err)
				}
				want := stateA
				if !c.then.IsZero() {
					want = mt(stateA, schema.Int(5)) // the default of what the target lacks
				}
				if runs, head := w.engine.running(), w.store.Head(); !runs.Equal(want) || !strings.HasPrefix(head.Description, "Rollback to "+a+":") {
					t.Errorf("%s, and it runs %s", head.Description, runs)
				}
				if h := w.store.Head().Held; len(h.Entries) != 1 || h.Match(stateB, w.rules.Has) == nil {
					t.Errorf("held %+v", h)
				}
				w.end()
			})
		})
	}
}

// TestARollbackToMoreThanTheSchemaKnows: the engine runs all that the schema knows
// of the target.
func TestARollbackToMoreThanTheSchemaKnows(t *testing.T) {
	schemas(t, larger(t), func(t *testing.T, w *world) {
		id := w.store.Applied().ID
		w.declare(at(stateA, "1.25"), "")
		w.under(rules)
		w.declare(stateA, "")
		_, err := w.do(&apply.Rollback{ID: id, Reason: "hot"})
		if err == nil || !strings.Contains(err.Error(), "the schema does not know temperature of "+id) {
			t.Error(err)
		}
	})
}

// TestAPendingRollbackThatIsNotValidAnyMore: what the operator goes back from stays
// held, and the status says that the rollback did not happen.
func TestAPendingRollbackThatIsNotValidAnyMore(t *testing.T) {
	small := size(600)
	bubble(t, func(t *testing.T, w *world) {
		w.declare(small, "")
		w.engine.tell(func(e *scripted) { e.hung = true })
		w.order(&apply.Rollback{Reason: "too small"})
		w.pass(10 * time.Second)
		if head := w.store.Head(); head.Kind != record.KindRollback {
			t.Fatalf("the head is a %s", head.Kind)
		}
		w.end()
		w.engine.tell(func(e *scripted) { e.hung = false })
		w.rules = extended(t, "#Parameters: {esn_reservoir_size!: <=1000}\n")
		w.start()
		w.declare(small, "")
		w.pass(10 * time.Second)
		w.check("tighter", want{runs: small, outcome: record.Held, state: apply.StateHeld, ready: true, held: []schema.Parameters{small}})
		if s := w.r.Status(); !strings.Contains(s.Reason, "too small (the rollback did not happen: ") || s.Held.By != "operator" {
			t.Errorf("%s, held %+v", s.Reason, s.Held)
		}
		w.restart()
		w.declare(size(700), "")
		w.check("something else", inSync(size(700)))
	})
}
