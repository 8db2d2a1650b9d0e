package apply_test

import (
	"slices"
	"testing"
	"time"

	"dtesn-agent/apply"
)

// TestConditionEvents holds that what ends without a record is told, and what is degraded,
// once.
func TestConditionEvents(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		events := w.r.Subscribe(100)
		story := func(name string, want ...apply.EventType) {
			t.Helper()
			var got []apply.EventType
			for len(events.Events) > 0 {
				e := <-events.Events
				if e.Type == apply.EventDegraded && (e.Reason == "" || e.Revision == "") {
					t.Errorf("%s: %+v", name, e)
				}
				got = append(got, e.Type)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: told %q, want %q", name, got, want)
			}
		}
		w.declare(stateB, "")
		story("a change", apply.EventApplied)
		w.declare(size(1), "")
		story("invalid", apply.EventInvalid)
		w.declare(stateB, "as before")
		story("corrected", apply.EventInSync)
		w.engine.tell(func(e *scripted) { e.runs = size(256) })
		w.r.EngineHint()
		w.pass(time.Minute)
		story("drift", apply.EventDrifted, apply.EventInSync)
		begun := time.Now()
		w.engine.will(stateB, refuse)
		w.engine.tell((*scripted).restart)
		w.r.EngineHint()
		w.pass(10 * time.Minute)
		if s := w.r.Status(); s.State != apply.StateDegraded || s.Ready || s.Since < float64(begun.Unix()) || s.Since > float64(begun.Unix())+5 {
			t.Errorf("%s since %f, begun %d", s.State, s.Since, begun.Unix())
		}
		story("the engine refuses what is applied", apply.EventDegraded)
		w.engine.tell(func(e *scripted) { delete(e.always, stateB.Digest()) })
		w.r.Sync()
		w.pass(10 * time.Minute)
		story("no more", apply.EventInSync)
	})
}
