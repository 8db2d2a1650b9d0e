package apply_test

import (
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// TestWhatRanBeforeIsOnRecordBeforeItIsSent: the engine does not report a parameter
// when the change is committed, and does before it is sent. Each way back restores
// what it ran then.
func TestWhatRanBeforeIsOnRecordBeforeItIsSent(t *testing.T) {
	seven := mt(stateB, schema.Int(7))
	for name, c := range map[string]struct {
		probation time.Duration
		back      func(w *world)
		outcome   record.Outcome
	}{
		"refused and run": {0, func(w *world) { w.engine.will(seven, callback) }, record.Rejected},
		"unwell on probation": {5 * time.Second, func(w *world) {
			w.engine.tell(func(e *scripted) { e.illOn = seven })
		}, record.Rejected},
		"rolled back": {0, nil, record.Applied},
	} {
		for _, restart := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := emptyWorld(t, t.TempDir())
					w.rules, w.probation = withMt(t, mtOptional), c.probation
					w.start()
					w.declare(stateA, "")
					w.pass(time.Minute)
					w.declare(seven, "")
					if s := w.r.Status(); s.Reason != "the engine does not know mt" || s.Attempted.Outcome != record.Pending {
						t.Fatalf("%s (%s)", s.State, s.Reason)
					}
					if c.back != nil {
						c.back(w)
					}
					pending := w.store.Head().ID
					if restart {
						w.restart()
						w.declare(seven, "")
					}
					w.engine.tell(func(e *scripted) {
						e.runs, e.defaults = mt(e.runs, schema.Int(50)), mt(e.defaults, schema.Int(50))
					})
					w.r.EngineHint()
					w.pass(time.Minute)
					if c.back == nil {
						w.check("applied", inSync(seven))
						if res, err := w.do(&apply.Rollback{Reason: "7 is bad"}); err != nil || res.Outcome != record.Applied {
							t.Fatalf("%+v %v", res, err)
						}
					}
					w.check("back", want{runs: mt(stateA, schema.Int(50)), outcome: c.outcome, state: apply.StateHeld, ready: true, held: []schema.Parameters{seven}})
					if rec := must(w.store.Lookup(t.Context(), pending)); rec.Outcome != record.Superseded {
						t.Errorf("%s is %s", rec.ID, rec.Outcome)
					}
					if w.engine.sent(seven) != 1 {
						t.Errorf("it was sent %d times", w.engine.sent(seven))
					}
					w.end()
					fsck(t, w.dir)
				})
			})
		}
	}
}
