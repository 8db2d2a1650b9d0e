package apply_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/schema"
)

// TestNoSequenceWedges plays random sequences of edits, operator's orders,
// engine behaviours, crashes and restarts, then heals everything: whatever
// happened before, what is declared then runs, nothing is open, and no
// acknowledged pause was forgotten on the way. A failure prints its script.
func TestNoSequenceWedges(t *testing.T) {
	seeds := 100
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) { randomStory(t, dir, uint64(seed)) })
			fsck(t, dir)
		})
	}
}

func randomStory(t *testing.T, dir string, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, dir)
	w.declare(stateA, "")
	states := []schema.Parameters{stateA, stateB, stateC, size(3000), size(700)}
	manners := []manner{accept, accept, refuse, lie, hangBefore, hangAfter, dropBefore, dropAfter, die, busy, foreign}
	last, paused := stateA, false
	var script []string
	for range 5 + random.IntN(20) {
		op := ""
		switch n := random.IntN(12); n {
		case 0, 1, 2, 3:
			last = states[random.IntN(len(states))]
			op = fmt.Sprintf("declare %d", last.ESNReservoirSize)
			w.declare(last, op)
		case 4, 5:
			p, how := states[random.IntN(len(states))], manners[random.IntN(len(manners))]
			op = fmt.Sprintf("engine will %s %d", how, p.ESNReservoirSize)
			w.engine.will(p, how)
		case 6:
			op = "engine restarts"
			w.engine.tell((*scripted).restart)
			w.r.EngineHint()
		case 7:
			op = "engine down"
			w.engine.tell(func(e *scripted) { e.down = true })
			w.r.EngineHint()
		case 8, 9:
			verb := []string{"pause", "resume", "rollback"}[random.IntN(3)]
			res, err := w.do(apply.Command{Verb: verb, Reason: "random"})
			if err == nil && res.Outcome == schema.Applied && verb != "rollback" {
				paused = verb == "pause"
			}
			op = fmt.Sprintf("%s (%v)", verb, err)
		case 10:
			op = "restart"
			w.restart()
			w.declare(last, "again")
		case 11:
			call := []string{"commit", "revert", "confirm", "mark", "send", "read"}[random.IntN(6)]
			what := mishap(1 + random.IntN(4))
			op = fmt.Sprintf("%s %s", call, what)
			w.m.plan(call, what)
		}
		w.pass(time.Duration(random.IntN(5000)) * time.Millisecond)
		if w.crashed() {
			op += ", crashed"
			// An order may have been carried out and not answered, or not.
			paused = paused && !strings.HasPrefix(op, "pause") && !strings.HasPrefix(op, "resume")
			w.restart()
			w.declare(last, "again")
		}
		script = append(script, op)
		if s := w.r.Status(); paused && s.State != apply.StateStarting && (s.Held == nil || !s.Held.Paused) && !w.crashed() {
			t.Fatalf("an acknowledged pause is gone after %q", script)
		}
	}
	heal(w)
	w.do(apply.Command{Verb: "resume"}) // nothing may be held
	w.declare(size(5000), "healed")
	w.pass(15 * time.Minute)
	s, head, applied := w.r.Status(), w.store.Head(), w.store.Applied()
	if w.engine.running() != size(5000) || !s.InSync || !s.Ready || head.Commit != applied.Commit {
		t.Errorf("after %q: runs %d, %s (%s), in sync %v, ready %v", script, w.engine.running().ESNReservoirSize, s.State, s.Reason, s.InSync, s.Ready)
	}
	for _, a := range s.Attempts {
		if a.Outcome == schema.Pending {
			t.Errorf("after %q: an attempt is pending for ever: %+v", script, a)
		}
	}
	w.end()
}

// heal makes engine and disk well, and starts an agent that had crashed.
func heal(w *world) {
	w.m.mu.Lock()
	clear(w.m.planned)
	w.m.mu.Unlock()
	w.engine.tell(func(e *scripted) { clear(e.always); e.queue, e.down = nil, false })
	w.pass(10 * time.Minute)
	if w.crashed() {
		w.restart()
	}
}
