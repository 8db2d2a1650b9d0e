package apply_test

import (
	"slices"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/watcher/document"
)

// distrust offers what declare offers, from a source that cannot be trusted
// with it.
func (w *world) distrust(p schema.Parameters, comment, why string) {
	doc := documentOf(p, comment)
	doc.Files, doc.Refused = nil, &document.Refusal{Reason: why, Hint: "sign it"}
	w.r.Document(doc)
	w.pass(100 * time.Millisecond)
}

var (
	trusted   = want{runs: stateA, outcome: record.Applied, state: apply.StateInSync, inSync: true, ready: true}
	untrusted = want{runs: stateA, outcome: record.Refused, state: apply.StateRefused, ready: true}
)

// refusedAttempts are the reasons of the attempts that were refused, newest
// first.
func (w *world) refusedAttempts() (reasons []string) {
	for _, a := range w.r.Status().Attempts {
		if a.Outcome == record.Refused {
			reasons = append(reasons, a.Reason)
		}
	}
	return reasons
}

func TestRefusedTouchesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		total := w.store.Total()
		w.engine.ban(stateB)
		w.distrust(stateB, "", "unsigned")
		w.check("refused", untrusted)
		if s := w.r.Status(); s.Reason != "unsigned" || s.Hint != "sign it" || s.Attempted.Revision != s.Seen.Revision {
			t.Errorf("%q, %q, %+v, seen %+v", s.Reason, s.Hint, s.Attempted, s.Seen)
		}
		w.distrust(stateB, "", "unsigned")
		w.distrust(stateB, "", "signed by nobody")
		if got := w.refusedAttempts(); !slices.Equal(got, []string{"signed by nobody", "unsigned"}) {
			t.Errorf("on record are %q", got)
		}
		w.engine.tell((*scripted).restart) // what is applied is looked after all the same
		w.r.EngineHint()
		w.pass(time.Second)
		w.check("after the engine's restart", untrusted)
		w.restart()
		w.distrust(stateB, "", "signed by nobody")
		w.check("after a restart of ours", untrusted)
		if w.store.Total() != total {
			t.Errorf("%d records, had %d", w.store.Total(), total)
		}
		w.engine.allow(stateB)
		w.declare(stateB, "")
		x := trusted
		x.runs = stateB
		w.check("trusted", x)
	})
}

// TestRefusedRevisionThatRuns: what was applied loses its trust, keeps running,
// and is as before once it is trusted again, under the same revision.
func TestRefusedRevisionThatRuns(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		again := trusted
		again.outcome = record.Unchanged
		for range 2 {
			w.distrust(stateA, "", "the key expired")
			w.check("refused", untrusted)
			w.declare(stateA, "")
			w.check("trusted again", again)
		}
		w.distrust(stateA, "", "the key expired")
		w.restart()
		w.distrust(stateA, "", "the key expired")
		w.check("refused at the start", untrusted)
		w.declare(stateA, "")
		w.check("trusted by the new process", again)
		if n := w.store.Total(); n != 1 {
			t.Errorf("%d records, want 1", n)
		}
	})
}

// TestRefusedWhilePending: a candidate whose own revision lost its trust is
// withdrawn before it is sent again, also by the next process; one that another
// revision's refusal has nothing to do with goes on.
func TestRefusedWhilePending(t *testing.T) {
	down := func(e *scripted) { e.down = true }
	for _, restart := range []bool{false, true} {
		bubble(t, func(t *testing.T, w *world) {
			w.engine.tell(down)
			w.r.EngineHint()
			w.declare(stateB, "")
			w.engine.ban(stateB)
			if restart {
				w.restart()
			}
			w.distrust(stateB, "", "the key was revoked")
			w.engine.tell((*scripted).restart)
			w.pass(2 * time.Second)
			x := untrusted
			if restart {
				x.outcome = record.Superseded // the new process knows of one attempt only
			}
			w.check("withdrawn", x)
			list := must(w.store.List(t.Context(), "", 50))
			if list[0].Kind != record.KindRevert || list[1].Outcome != record.Superseded {
				t.Errorf("records %s, %s %s", list[0].Kind, list[1].Kind, list[1].Outcome)
			}
			if s := w.r.Status(); s.Held != nil {
				t.Errorf("held: %+v", s.Held)
			}
			w.engine.allow(stateB)
			w.declare(stateB, "")
			x = trusted
			x.runs = stateB
			w.check("trusted after all", x)
		})
	}
	bubble(t, func(t *testing.T, w *world) {
		w.engine.tell(down)
		w.r.EngineHint()
		w.declare(stateB, "")
		w.engine.ban(stateC)
		w.distrust(stateC, "", "unsigned")
		w.engine.tell((*scripted).restart)
		w.pass(2 * time.Second)
		if s := w.r.Status(); !w.engine.running().Equal(stateB) || s.State != apply.StateRefused || s.InSync || !s.Ready {
			t.Errorf("runs %v units, %s, in sync %v, ready %v", w.engine.running().Get(reservoir), s.State, s.InSync, s.Ready)
		}
	})
}

// TestRefusedAndTheOperator: going back works while the source is not trusted;
// what is held stays held.
func TestRefusedAndTheOperator(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		w.distrust(stateC, "", "unsigned")
		res, err := w.do(&apply.Rollback{Reason: "night"})
		if err != nil || res.Outcome != record.Applied || !w.engine.running().Equal(stateA) {
			t.Errorf("%+v %v", res, err)
		}
		if s := w.r.Status(); s.State != apply.StateRefused || s.Held == nil {
			t.Errorf("%s, held %+v", s.State, s.Held)
		}
		w.declare(stateB, "")
		if s := w.r.Status(); s.State != apply.StateHeld || !w.engine.running().Equal(stateA) || s.Attempted.Outcome != record.Held {
			t.Errorf("%s, %+v", s.State, s.Attempted)
		}
	})
}
