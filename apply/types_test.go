package apply_test

import (
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// otherType is a world in which mt was an int, set to 7, and is a bool from now on:
// for the schema, and for the engine, which has false. It ran 50 before it was set.
func otherType(t *testing.T, before, story func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.rules = withMt(t, mtOptional)
		w.engine.upgrade(mt(rules.Defaults(), schema.Int(50)))
		w.start()
		w.declare(stateA, "")
		w.declare(mt(stateB, schema.Int(7)), "")
		w.check("before", inSync(mt(stateB, schema.Int(7))))
		before(w)
		w.end()
		w.engine.tell(func(e *scripted) { e.upgrade(mt(rules.Defaults(), schema.Bool(false))) })
		for _, n := range []int{7, 50} {
			w.engine.ban(schema.NewParameters(map[string]schema.Value{"mt": schema.Int(n)}))
		}
		w.rules = withMt(t, mtOptionalBool)
		w.start()
		story(w)
		w.end()
		fsck(t, w.dir)
	})
}

// TestRollbackAcrossATypeChange: records from before it are targets, without their
// values of the other type.
func TestRollbackAcrossATypeChange(t *testing.T) {
	changed := mt(stateC, schema.Bool(true))
	for name, c := range map[string]struct {
		id   string
		want schema.Parameters
	}{
		"without an id":            {"", stateB},
		"to one with a value":      {"2", stateB},
		"to one that never had it": {"1", stateA},
	} {
		t.Run(name, func(t *testing.T) {
			otherType(t, func(*world) {}, func(w *world) {
				w.declare(changed, "")
				w.check("changed", inSync(changed))
				res, err := w.do(&apply.Rollback{ID: c.id, Reason: "slow"})
				if err != nil || res.Outcome != record.Applied {
					t.Fatalf("%+v %v", res, err)
				}
				w.check("back", want{
					runs: mt(c.want, schema.Bool(false)), outcome: record.Applied, state: apply.StateHeld, ready: true,
					held: []schema.Parameters{changed},
				})
			})
		})
	}
}

// TestATypeChangeWhilePaused: an engine that restarts gets the rest of what is
// applied.
func TestATypeChangeWhilePaused(t *testing.T) {
	otherType(t, func(w *world) { w.order(&apply.Pause{Reason: "night"}) }, func(w *world) {
		sends := w.engine.allSends()
		w.declare(mt(stateB, schema.Bool(true)), "")
		w.pass(10 * time.Minute)
		w.check("restarted", want{runs: mt(stateB, schema.Bool(false)), outcome: record.Held, state: apply.StateHeld, ready: true})
		if n := w.engine.allSends() - sends; n != 1 {
			w.t.Errorf("%d batches were sent", n)
		}
		w.order(&apply.Resume{})
		w.check("resumed", inSync(mt(stateB, schema.Bool(true))))
	})
}

// TestARejectionAfterATypeChange takes back what the engine took of it.
func TestARejectionAfterATypeChange(t *testing.T) {
	otherType(t, func(*world) {}, func(w *world) {
		changed := mt(stateC, schema.Bool(true))
		w.engine.will(changed, callback)
		w.declare(changed, "")
		w.pass(10 * time.Second)
		w.check("rejected", want{
			runs: mt(stateB, schema.Bool(false)), outcome: record.Rejected, state: apply.StateHeld, ready: true,
			held: []schema.Parameters{changed},
		})
	})
}
