package apply_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// actions are the steps of a play. Each draws all it needs from rapid, so that
// a sequence can be shrunk and played again.
func (p *play) actions() map[string]func(*rapid.T) {
	all := map[string]func(*rapid.T) string{}
	p.edits(all)
	p.engines(all)
	p.operators(all)
	p.faults(all)
	p.hooks(all)
	steps := map[string]func(*rapid.T){}
	for kind, do := range all {
		steps[kind] = func(rt *rapid.T) { p.step(rt, kind, func() string { return do(rt) }) }
	}
	return steps
}

func oneOf[T any](rt *rapid.T, what string, from []T) T {
	return rapid.SampledFrom(from).Draw(rt, what)
}

// edits are what people do to the source.
func (p *play) edits(all map[string]func(*rapid.T) string) {
	declare := func(rt *rapid.T) string { return p.states(oneOf(rt, "state", modelStates)) }
	all["declare"] = declare
	all["declare, as often"] = declare
	all["declare the same anew"] = func(*rapid.T) string {
		if p.last.Len() == 0 {
			return "(nothing yet)"
		}
		return p.states(p.last)
	}
	all["declare what is applied"] = func(*rapid.T) string {
		if state := p.judge.state(); state != nil {
			return p.states(state.config)
		}
		return "(nothing yet)"
	}
	all["declare nonsense"] = func(rt *rapid.T) string {
		p.n++
		c := oneOf(rt, "state", modelStates)
		c = c.With("max_membrane_depth", schema.Int(64*oneOf(rt, "depth", []int{1, 2}))).With(reservoir, schema.Int(2047))
		p.declares(documentOf(c, fmt.Sprint(p.n)))
		return fmt.Sprintf("as revision %d", p.n)
	}
	all["the source is not trusted"] = func(rt *rapid.T) string {
		doc := documentOf(stateA, "refused "+fmt.Sprint(p.n))
		if rapid.Bool().Draw(rt, "the same revision") && p.trusted != nil {
			doc.Source = p.trusted.Source
		}
		doc.Files, doc.Refused = nil, modelRefusal
		p.declares(doc)
		return "with " + doc.Revision()[:8]
	}
	all["the source is trusted again"] = func(*rapid.T) string {
		if p.trusted == nil || p.source.Refused == nil || p.source.Source != p.trusted.Source {
			return "(it was not of this revision)"
		}
		p.declares(p.trusted)
		return ""
	}
	all["the source cannot be read"] = func(*rapid.T) string {
		p.unread = true
		p.offer()
		return ""
	}
	all["the source says the same"] = func(*rapid.T) string {
		p.unread = false
		p.offer()
		return ""
	}
}

// engines are what happens to the engine, and how it will treat what it gets.
func (p *play) engines(all map[string]func(*rapid.T) string) {
	will := func(rt *rapid.T) string {
		c, how := oneOf(rt, "state", modelStates), oneOf(rt, "manner", manners)
		p.engine.will(c, how)
		if state := p.judge.state(); !slices.Contains(verdicts, how) || (state != nil && state.config.Equal(c)) {
			p.clean = false
		}
		return fmt.Sprintf("%s at %v", how, c.Get(reservoir))
	}
	all["the engine will"] = will
	all["the engine will, as often"] = will
	all["the engine will next"] = func(rt *rapid.T) string {
		how := oneOf(rt, "manner", manners)
		p.engine.tell(func(e *scripted) { e.queue = append(e.queue, how) })
		p.clean = false
		return string(how)
	}
	all["the engine restarts"] = func(rt *rapid.T) string {
		p.engine.tell((*scripted).restart)
		p.drifted = false
		p.r.EngineHint()
		return ""
	}
	all["the engine goes down"] = func(*rapid.T) string {
		p.engine.tell(func(e *scripted) { e.down = true })
		p.clean = false
		p.r.EngineHint()
		return ""
	}
	all["the engine comes up"] = func(rt *rapid.T) string {
		p.engine.tell(func(e *scripted) {
			if e.down {
				e.restart()
			}
			e.hung, e.ill = false, ""
		})
		p.r.EngineHint()
		return ""
	}
	all["the engine hangs"] = func(*rapid.T) string {
		p.engine.tell(func(e *scripted) { e.hung = true })
		p.clean = false
		return ""
	}
	all["the engine is unwell"] = func(*rapid.T) string {
		p.engine.tell(func(e *scripted) { e.ill = "memory" })
		p.clean = false
		return ""
	}
	all["somebody changes the engine"] = func(rt *rapid.T) string {
		c := oneOf(rt, "state", modelStates)
		p.engine.tell(func(e *scripted) { e.runs = c })
		p.clean, p.drifted = false, true
		return fmt.Sprintf("to %v", c.Get(reservoir))
	}
}

// operators are orders, and what else a person does to the agent.
func (p *play) operators(all map[string]func(*rapid.T) string) {
	all["rollback"] = func(rt *rapid.T) string {
		return p.order(&apply.Rollback{Reason: "night", Pause: rapid.IntRange(0, 3).Draw(rt, "pause") == 3})
	}
	all["rollback to"] = func(rt *rapid.T) string {
		id := "9999"
		if n := len(p.judge.records); n > 0 {
			id = p.judge.records[rapid.IntRange(0, n-1).Draw(rt, "target")].id
		}
		return p.order(&apply.Rollback{ID: id, Reason: "night"})
	}
	all["pause"] = func(*rapid.T) string { return p.order(&apply.Pause{Reason: "night"}) }
	all["resume"] = func(*rapid.T) string { return p.order(&apply.Resume{Reason: "day"}) }
	all["sync"] = func(*rapid.T) string {
		p.judge.nudged = time.Now()
		p.r.Sync()
		return ""
	}
	all["restart the agent"] = func(rt *rapid.T) string {
		answers := rapid.IntRange(0, 3).Draw(rt, "the source is silent") < 3
		p.again(answers)
		if !answers {
			return "while the source says nothing"
		}
		return ""
	}
	all["time passes"] = func(*rapid.T) string { p.pass(17 * 60 * 1e9); return "" }
	all["rest"] = func(*rapid.T) string { p.rest(); return "" }
}

// faults are what fails, before or after it was done, and what crashes.
func (p *play) faults(all map[string]func(*rapid.T) string) {
	plan := func(rt *rapid.T, calls []string, what []mishap, most int) string {
		call, how, n := oneOf(rt, "call", calls), oneOf(rt, "mishap", what), rapid.IntRange(1, most).Draw(rt, "times")
		for range n {
			p.m.plan(call, how)
		}
		p.clean = false
		return fmt.Sprintf("at %s: %s, %d times", call, how, n)
	}
	all["the disk will fail"] = func(rt *rapid.T) string {
		return plan(rt, storeCalls, []mishap{fails, happens, stalls, stallsFails}, 6)
	}
	all["a call to the engine will fail"] = func(rt *rapid.T) string {
		return plan(rt, engineCalls, []mishap{fails, happens}, 3)
	}
	all["the agent will crash"] = func(rt *rapid.T) string {
		return plan(rt, append(engineCalls, storeCalls...), []mishap{crashBefore, crashAfter}, 1)
	}
}

// hooks are what the required hooks will say, most often about what is declared next.
func (p *play) hooks(all map[string]func(*rapid.T) string) {
	if p.gate == nil {
		return
	}
	will := func(rt *rapid.T) (schema.Parameters, string) {
		c, r := oneOf(rt, "state", modelStates), oneOf(rt, "response", []response{agrees, agrees, slow, slow, vetoes, later, fault, silent})
		p.gate.will(c, r)
		if r == fault || r == silent {
			p.clean = false
		}
		return c, fmt.Sprintf("%v after %s at %v", r.err, r.after, c.Get(reservoir))
	}
	all["the hooks will"] = func(rt *rapid.T) string { _, text := will(rt); return text }
	declare := func(rt *rapid.T) string {
		c, text := will(rt)
		return p.states(c) + ", the hooks: " + text
	}
	all["declare, as often"] = declare
	all["declare, and once more"] = declare
	all["the hooks change"] = func(*rapid.T) string {
		names := []string{"policy"}
		p.gate.tell(func() {
			if len(p.gate.names) > 0 {
				names = nil
			}
			p.gate.names = names
		})
		return fmt.Sprintf("to %q", names)
	}
}

// scratch is a directory for one play. The play is about the order of things,
// not about the disk, so it lies in memory where it can.
func scratch(rt *rapid.T) string {
	parent := "/dev/shm"
	if _, err := os.Stat(parent); err != nil {
		parent = ""
	}
	dir, err := os.MkdirTemp(parent, "dtesn-model-")
	if err != nil {
		rt.Fatal(err)
	}
	rt.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// pastRecords are enough to be packed.
const pastRecords = 90

// pastOf makes a history to begin with.
func pastOf(t *testing.T) string {
	dir, past := t.TempDir(), filepath.Join(t.TempDir(), "past")
	synctest.Test(t, func(t *testing.T) {
		store, _, err := gitstore.Open(t.Context(), gitstore.Options{
			Dir: dir, Environment: production, Instance: "one", Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range pastRecords {
			must(store.Commit(t.Context(), record.Record{Kind: record.KindChange, Config: modelStates[i%len(modelStates)], RollbackPoint: true}))
		}
		// A copy of the open store: Close would pack what is to be packed later.
		if err := errors.Join(store.Confirm(t.Context()), os.CopyFS(past, os.DirFS(dir)), store.Close()); err != nil {
			t.Fatal(err)
		}
	})
	return past
}

// git is what git says of the history in dir, "" if all is well.
func git(dir string, args ...string) string {
	out, err := exec.Command("git", append([]string{"--git-dir", filepath.Join(dir, "snapshots.git")}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	return ""
}
