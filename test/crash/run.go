//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"dtesn-agent/apply"
)

// tell lets a story happen, killed as the planner says.
func (w *world) tell(s *story, plan planner) error {
	if err := w.declare(s.first); err != nil {
		return err
	}
	for i, step := range s.steps {
		if plan.enough() {
			return nil
		}
		if err := w.step(s, i, plan); err != nil {
			return fmt.Errorf("story %s, step %d (%s): %w", s.name, i, step.name, err)
		}
	}
	return nil
}

// step does one step, kills it, starts the agent again, kills that too as
// often as the step says, and checks what came of it all.
func (w *world) step(s *story, i int, plan planner) error {
	own := s.steps[i]
	st := &own
	phase := s.prefix + st.phase
	at := plan.next(i, 0, phase)
	w.ordered, w.tries = false, 0
	if st.start {
		if st.do != nil {
			if err := st.do(w); err != nil {
				return err
			}
		}
		if err := w.start(at); err != nil {
			return err
		}
	} else {
		w.agent.arm(at)
		if err := st.do(w); err != nil {
			return err
		}
	}
	v, err := w.rest(st)
	for try := 1; err == nil && v == nil; try++ {
		if done, err := w.died(st, plan, phase, at); done || err != nil {
			return err
		}
		if at = nil; try <= st.again {
			phase = s.prefix + startAfter + st.after()
			at = plan.next(i, try, phase)
		}
		if try == 1 && st.down != nil {
			if err := st.down(w); err != nil {
				return err
			}
			st.want, st.fresh = st.downWant, false
		}
		if err := w.start(at); err != nil {
			return err
		}
		v, err = w.rest(st)
	}
	if err != nil {
		return err
	}
	calls, _ := w.agent.calls()
	plan.learn(phase, calls)
	if err := w.checkAtRest(v); err != nil {
		return err
	}
	if !st.want.met(v) {
		if v, err = w.onceMore(st, v); err != nil {
			return err
		}
	}
	w.seen = v.Seen.Revision
	return nil
}

// onceMore is for what two kills ended rightly before its end: an order that was
// not on record is given again, and a candidate that was cut twice while it was
// sent, which nobody sends a third time, is tried again on the operator's word.
func (w *world) onceMore(st *step, v *apply.Status) (*apply.Status, error) {
	w.agent.arm(nil)
	again := st.do
	if cutTwice(v) && st.or == nil {
		again = func(w *world) error { return w.order(false, "resume") }
	}
	if err := again(w); err != nil {
		return nil, err
	}
	v, err := w.rest(&step{want: st.want})
	if err == nil && v == nil {
		err = errors.New("the agent ended by itself")
	}
	if err == nil {
		err = w.checkAtRest(v)
	}
	return v, err
}

// checkAtRest checks, again if the agent turned out not to be at rest: git, for
// one, does not bear that a history is packed under its hands.
func (w *world) checkAtRest(v *apply.Status) error {
	for deadline := time.Now().Add(patience); ; {
		begun := time.Now()
		err := w.check(v)
		if _, quiet := w.agent.calls(); err == nil || quiet > time.Since(begun)+settled || time.Now().After(deadline) {
			return err
		}
		<-time.After(settled)
	}
}

// cutTwice reports whether the agent gave a candidate up because two kills left
// it not knowing whether the engine died on it.
func cutTwice(v *apply.Status) bool {
	return v.State == apply.StateHeld && strings.Contains(v.Reason, "cut twice while being applied")
}

// after is what the starts after a kill have in common.
func (s *step) after() string {
	switch s.phase {
	case "rejection", "packing", "rollback":
		return s.phase
	}
	return "kill"
}

// died looks how the agent ended: at its point, or at a stop by itself.
func (w *world) died(st *step, plan planner, phase string, at *point) (done bool, err error) {
	_, hit := w.agent.dead()
	if !hit && st.stop && w.agent.status.Exited() && w.agent.status.ExitStatus() == 0 {
		calls, _ := w.agent.calls()
		plan.learn(phase, calls)
		return true, w.readLog()
	}
	if !hit && w.agent.status.ExitStatus() == launchFailed {
		return false, errNoTrace
	}
	if !hit {
		return false, fmt.Errorf("the agent ended by itself, status %#x", w.agent.status)
	}
	w.kills++
	w.tries++
	plan.hit(phase, *at)
	if err := w.readLog(); err != nil {
		return false, err
	}
	return st.stop, nil
}

// settled is how long the agent must have written nothing to be at rest: longer than an
// event waits for others to be written with, and the cursor of a hook.
const settled = 130 * time.Millisecond

// rest waits until the step is over; the status is nil if the agent has ended.
func (w *world) rest(st *step) (*apply.Status, error) {
	var last *apply.Status
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-time.After(3 * time.Millisecond) {
		if ended, _ := w.agent.dead(); ended {
			return nil, nil
		}
		if st.stop {
			continue
		}
		v, err := w.view()
		if err != nil {
			continue
		}
		last = v
		if _, quiet := w.agent.calls(); quiet < settled || w.lags || !w.over(st, v) {
			continue
		}
		if engine, err := w.runs(); err == nil && v.Current != nil && engine.Equal(*v.Current) && v.TotalSnapshots > 0 {
			if w.agent.disarm() {
				<-w.agent.done
				return nil, nil
			}
			return v, nil
		}
	}
	log, _ := os.ReadFile(w.logFile)
	said := "nothing"
	if last != nil {
		said = fmt.Sprintf("%s (%s), running %v, seen %s", last.State, last.Reason, last.Current, last.Seen.Revision)
	}
	return nil, fmt.Errorf("not at %+v within %s; the status says %s\n%s", st.want, patience, said, log[max(0, len(log)-2000):])
}

// over reports whether the status is where the step leads.
func (w *world) over(st *step, v *apply.Status) bool {
	if st.fresh && v.Seen.Revision == w.seen {
		return false
	}
	return st.want.met(v) || st.or != nil && !w.ordered && st.or.met(v) || w.tries >= 2 && cutTwice(v)
}
