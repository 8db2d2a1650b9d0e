package apply_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/watcher/document"
)

// The stories here are scripts that the model found, as short as it left them.

func TestWithdrawnOnProbationIsBroughtBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onTrial(t)
		w.declare(size(512), "back")
		if !w.engine.running().Equal(size(512)) || w.counts.drifted() != 0 {
			t.Errorf("runs %v, %d drifts; want 512 and none", w.engine.running().Get(reservoir), w.counts.drifted())
		}
		w.end()
	})
}

func TestAFaultThatNothingWaitsForIsOver(t *testing.T) {
	for name, story := range map[string]func(w *world){
		"an order that could not be written": func(w *world) {
			if res, err := w.do(&apply.Pause{Reason: "night"}); err == nil {
				w.t.Errorf("paused on a full disk: %+v", res)
			}
		},
		"a document that was taken back": func(w *world) {
			w.declare(stateB, "")
			w.declare(stateA, "again")
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.m.plan("commit", fails)
				story(w)
				w.pass(time.Minute)
				if s := w.r.Status(); s.State != apply.StateInSync || !s.InSync {
					t.Errorf("%s (%s), in sync %v", s.State, s.Reason, s.InSync)
				}
			})
		})
	}
}

func TestAResumeThatCouldNotBeWrittenIsOver(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		if _, err := w.do(&apply.Pause{Reason: "night"}); err != nil {
			t.Error(err)
		}
		w.m.plan("commit", fails)
		if res, err := w.do(&apply.Resume{}); err == nil {
			t.Errorf("resumed on a full disk: %+v", res)
		}
		w.pass(time.Minute)
		if s := w.r.Status(); s.State != apply.StateHeld || s.Held == nil || !s.Held.Paused {
			t.Errorf("%s (%s), held %+v; want it paused, and no fault", s.State, s.Reason, s.Held)
		}
	})
}

func TestARollbackThatFailedAndHappenedIsCarriedOut(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		w.m.plan("commit", happens)
		res, err := w.do(&apply.Rollback{Reason: "night"})
		if err != nil || res.Outcome != record.Applied || !w.engine.running().Equal(stateA) {
			t.Errorf("%+v, %v; runs %v", res, err, w.engine.running().Get(reservoir))
		}
	})
}

func TestTheSourceIsTrustedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		doc := documentOf(stateA, "signed")
		refused := &document.Document{Environment: production, Source: doc.Source, Refused: &document.Refusal{Reason: "the key was revoked"}}
		for _, d := range []*document.Document{doc, refused, doc} {
			w.r.Document(d)
			w.pass(time.Second)
		}
		w.check("trusted again", want{runs: stateA, outcome: record.Unchanged, state: apply.StateInSync, inSync: true, ready: true})
	})
}

func TestARecordThatIsFoundDoesNotSpeakForAnInvalidDocument(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateB, hangAfter)
		w.engine.tell(func(e *scripted) { e.down = true })
		w.declare(stateB, "")
		w.engine.tell((*scripted).restart)
		w.restart()
		w.declare(size(1), "")
		w.pass(time.Minute)
		if s := w.r.Status(); s.Attempted == nil || s.Attempted.Outcome != record.Invalid || s.State != apply.StateInvalid {
			t.Errorf("%s, attempted %+v", s.State, s.Attempted)
		}
	})
}

func TestTheFirstDocumentIsReplacedBeforeTheEngineIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, t.TempDir())
		w.engine.will(stateA, busy)
		w.engine.will(stateB, refuse)
		w.declare(stateA, "never answered")
		w.engine.tell(func(e *scripted) { e.down = true })
		w.restart()
		w.declare(stateB, "refused")
		w.engine.tell((*scripted).restart)
		w.pass(time.Minute)
		if head := w.store.Head(); head.Kind != record.KindRevert || !head.Config.Equal(rules.Defaults()) || !w.engine.running().Equal(head.Config) {
			t.Errorf("%s goes back to %v, the engine runs %v; want what ran before", head.Kind, head.Config.Get(reservoir), w.engine.running().Get(reservoir))
		}
		if n := w.engine.sent(stateB); n != 1 {
			t.Errorf("what is rejected was sent %d times", n)
		}
		w.end()
	})
}

// A rollback is ordered again when a newer document has just taken the place of the
// first: it is carried out, and not only told what became of that one.
func TestARollbackThatWasSupersededIsOrderedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		w.engine.tell(func(e *scripted) { e.hung = true })
		w.order(&apply.Rollback{ID: "1", Reason: "night"})
		w.offer(documentOf(stateC, ""))
		w.order(&apply.Rollback{Reason: "night, again"})
		w.engine.tell(func(e *scripted) { e.hung = false })
		w.pass(time.Minute)
		if head := w.store.Head(); head.Kind != record.KindRollback || !strings.Contains(head.Description, "night") || w.engine.running().Equal(stateC) {
			t.Errorf("the head is a %s (%s), the engine runs %v", head.Kind, head.Description, w.engine.running().Get(reservoir))
		}
	})
}

// A refused first change that somebody else then gave the engine is what runs.
func TestARejectedChangeRunsAfterAResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.engine.tell(func(e *scripted) { e.down = true })
		w.engine.will(stateB, refuse)
		w.start()
		w.declare(stateB, "")
		w.engine.tell(func(e *scripted) { e.down, e.runs = false, stateB })
		w.pass(time.Minute)
		if a := w.r.Status().Attempted; a == nil || a.Outcome != record.Rejected {
			t.Fatalf("attempted %+v", a)
		}
		w.must(&apply.Resume{})
		w.pass(time.Minute)
		w.check("resumed", want{runs: stateB, outcome: record.Unchanged, state: apply.StateInSync, inSync: true, ready: true})
		w.end()
	})
}

// A confirmation of a note that failed and happened is repeated until it succeeds.
func TestAConfirmationThatHappenedIsRepeated(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.must(&apply.Pause{Reason: "night"})
		w.m.plan("settle", happens, happens, happens)
		if _, err := w.do(&apply.Resume{}); err != nil {
			t.Fatal(err)
		}
		w.pass(5 * time.Minute)
		w.check("resumed", inSync(stateA))
	})
}

// A rejection that is settled after a restart does not hide that its revision is refused.
func TestARefusalIsShownOverAnEarlierRejection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, t.TempDir())
		w.declare(size(512), "")
		w.probation = 10 * time.Second
		w.restart()
		doc := documentOf(size(1024), "")
		w.m.plan("settle", crashBefore)
		w.engine.tell(func(e *scripted) { e.ill = "memory" })
		w.r.Document(doc)
		w.pass(time.Minute)
		if !w.crashed() {
			t.Fatal("it did not crash")
		}
		w.engine.tell(func(e *scripted) { e.ill = "" })
		w.restart()
		w.r.Document(&document.Document{Environment: production, Source: doc.Source, Refused: &document.Refusal{Reason: "the key was revoked"}})
		w.pass(time.Minute)
		if s := w.r.Status(); s.Attempted == nil || s.Attempted.Outcome != record.Refused || s.State != apply.StateRefused {
			t.Errorf("%s, attempted %+v", s.State, s.Attempted)
		}
		w.end()
	})
}

// What passed its probation and waits for the disk is confirmed by evidence of now: not
// right after a failed reading.
func TestConfirmedByPresentEvidence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onTrial(t)
		defer w.end()
		w.m.plan("confirm", stallsFails, stallsFails)
		w.pass(150 * time.Second) // it passed, and the disk hangs for the second time
		w.engine.tell(func(e *scripted) { e.hung = true })
		w.pass(time.Minute)
		if w.store.Applied().Config.Equal(size(1024)) {
			t.Error("it was confirmed while the engine hangs")
		}
		w.engine.tell(func(e *scripted) { e.hung, e.ill = false, "memory" })
		w.pass(time.Minute)
		w.check("rejected", want{runs: size(512), outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{size(1024)}})
	})
}

// An engine that restarts while a change waits for the disk has not kept it, although the
// window of its probation was over.
func TestARestartBeforeTheConfirmationFailsTheProbation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onTrial(t)
		defer w.end()
		w.m.plan("confirm", stallsFails)
		w.pass(47 * time.Second)
		w.engine.tell((*scripted).restart)
		w.pass(2 * time.Minute)
		w.check("rejected", want{runs: size(512), outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{size(1024)}})
	})
}

// A refusal is not believed while nobody knows whether the engine refuses what it runs as
// well: the change is sent again.
func TestARefusalIsNotBelievedWithoutAnAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.engine.will(stateA, dropAfter)
		w.engine.will(stateB, refuseAll)
		w.declare(stateB, "")
		w.pass(time.Second)
		w.check("refused", want{runs: stateA, outcome: record.Pending, state: apply.StateDegraded, ready: true, open: true})
		w.engine.will(stateA, accept)
		w.engine.will(stateB, accept)
		w.pass(6 * time.Minute)
		w.check("mended", inSync(stateB))
	})
}

// A candidate of an earlier process that is recorded once more, because what ran before was
// not known yet, has no more tries than it had: one death of the engine rejects it.
func TestARepeatedRecordHasNoMoreTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, t.TempDir())
		w.declare(size(1024), "")
		first := w.store.Applied().ID
		w.m.plan("commit", crashAfter)
		w.engine.tell(func(e *scripted) { e.hung = true })
		w.pass(47 * time.Second)
		w.order(&apply.Rollback{ID: first, Reason: "night"})
		w.pass(7 * time.Second)
		if !w.crashed() {
			t.Fatal("the agent did not crash")
		}
		w.engine.tell(func(e *scripted) { e.hung, e.down = false, true })
		w.restart()
		w.order(&apply.Pause{Reason: "it is recorded once more"})
		w.engine.tell(func(e *scripted) { e.restart(); e.queue = []manner{die} })
		w.pass(time.Minute)
		if head := w.store.Head(); head.Kind != record.KindRevert || head.OutcomeOf.Outcome != record.Rejected || !w.engine.running().Equal(size(1024)) {
			t.Errorf("the head is a %s, the engine runs %v", head.Kind, w.engine.running().Get(reservoir))
		}
		w.end()
	})
}

// An engine that goes back to something else twice on probation has not kept the change,
// although the agent that found it running sent it only once.
func TestAFoundChangeIsUndoneTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onTrial(t)
		defer w.end()
		w.restart()
		w.r.Document(documentOf(size(1024), ""))
		w.pass(100 * time.Millisecond)
		for _, stranger := range []int{4096, 700} {
			w.engine.tell(func(e *scripted) { e.runs = size(stranger) })
			w.r.EngineHint()
			w.pass(1300 * time.Millisecond)
		}
		w.pass(time.Minute)
		w.check("rejected", want{runs: size(512), outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{size(1024)}})
	})
}
