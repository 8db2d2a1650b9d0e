package apply_test

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/watcher/document"
)

var modelSteps = flag.Int("model.steps", 0, "how many steps TestModel plays at least, each time others; 0 for the same few")

// TestModel plays random sequences of edits, refusals, the engine's answers,
// crashes, restarts, orders and faults with the real agent over the real
// store, and holds every record, send and confirmation, and the status after
// every step, against a model of the transaction. A failure prints the
// shortest sequence found, as a script, and how to play it again.
func TestModel(t *testing.T) {
	tally := map[string]int{}
	steps, sequences, failing, most := 0, 0, false, *modelSteps
	if most == 0 {
		most = 800
		if raceDetector { // make test plays all without it
			most = 200
		}
		set(t, "rapid.seed", "4")
	}
	set(t, "rapid.checks", fmt.Sprint(most)) // at most; see below
	set(t, "rapid.steps", "40")
	history := pastOf(t)
	rapid.Check(t, func(rt *rapid.T) {
		if steps >= most && !failing {
			return // enough were played
		}
		dir := scratch(rt)
		well := false
		defer func() {
			switch {
			case failing:
			case well:
				sequences++
			default:
				failing = true
				t.Logf("found at step %d, in sequence %d", steps, sequences+1)
			}
		}()
		rapid.SyncTest(rt, func(rt *rapid.T) {
			p := newPlay(rt, dir, history)
			defer func() {
				if !failing {
					steps += len(p.script)
					for kind, n := range p.tally {
						tally[kind] += n
					}
					for _, e := range p.judge.records[p.past:] {
						tally[fmt.Sprintf("record: %s %s", e.kind, e.outcome)]++
					}
				}
			}()
			rt.Repeat(p.actions())
			p.step(rt, "rest", func() string { p.rest(); return "" })
		})
		if out := git(dir, "fsck", "--strict"); out != "" {
			rt.Fatalf("git fsck: %s", out)
		}
		well = true
	})
	t.Logf("%d steps in %d sequences", steps, sequences)
	for _, kind := range slices.Sorted(maps.Keys(tally)) {
		t.Logf("%6d %s", tally[kind], kind)
	}
}

// set sets a flag of rapid's for this test, unless the command line did.
func set(t *testing.T, name, value string) {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	if given {
		return
	}
	if err := flag.Set(name, value); err != nil {
		t.Fatal(err)
	}
}

// A play is one sequence: a world, the model that judges it, and the script of
// what was done.
type play struct {
	*world
	rt      *rapid.T
	source  *document.Document // what the source holds, nil before it held anything
	trusted *document.Document // the last one that was not refused
	unread  bool               // it cannot be read
	last    schema.Parameters
	n       int // revisions so far
	past    int // records before the first step
	said    told
	script  []string
	tally   map[string]int
	// clean: no fault was made since the last rest, so that the next step
	// comes out as it should without a rest.
	clean   bool
	drifted bool
}

var (
	modelStates  = []schema.Parameters{stateA, stateB, stateC, size(700), size(3000)}
	verdicts     = []manner{accept, refuse, callback, lie, partly} // settled at once
	manners      = append(slices.Clone(verdicts), hangBefore, hangAfter, dropBefore, dropAfter, die, busy, foreign, wrongLabel)
	waits        = []time.Duration{101, 7, 1303, 7001, 47003, 660007} // milliseconds
	storeCalls   = []string{"commit", "revert", "confirm", "mark"}
	engineCalls  = []string{"send", "read", "health"}
	errNoSource  = errors.New("open base.yaml: no such file or directory")
	modelRefusal = &document.Refusal{Reason: "the commit is not signed", Hint: "sign it"}
)

func newPlay(rt *rapid.T, dir, history string) *play {
	w := emptyWorld(rt, dir)
	w.judge = &model{}
	if rapid.IntRange(0, 3).Draw(rt, "on probation") == 3 {
		w.probation = 10 * time.Second
	}
	if rapid.IntRange(0, 4).Draw(rt, "reports drift") == 4 {
		w.drift = apply.DriftReport
	}
	if rapid.Bool().Draw(rt, "with required hooks") {
		w.gate = newJury()
	}
	w.judge.probation, w.judge.drift = w.probation, w.drift
	p := &play{world: w, rt: rt, said: told{}, tally: map[string]int{}, clean: true}
	if rapid.IntRange(0, 5).Draw(rt, "with a history") == 5 {
		if err := os.CopyFS(dir, os.DirFS(history)); err != nil {
			rt.Fatal(err)
		}
		p.packs, p.past = true, pastRecords
	}
	w.start()
	p.judge.recall(must(p.store.List(rt.Context(), "", 1000)))
	rt.Cleanup(func() { p.end() })
	p.script = append(p.script, fmt.Sprintf("an agent starts with --probation %s --drift %s, required hooks %v, over %d records", w.probation, w.drift, w.gate != nil, p.past))
	return p
}

// step does one thing, lets time pass, brings back an agent that crashed, and
// holds everything against the model.
func (p *play) step(rt *rapid.T, kind string, do func() string) {
	m := p.judge
	m.commits, m.starts = 0, 0
	silences := 0
	if p.gate != nil {
		silences = -p.gate.silences()
	}
	wait := rapid.SampledFrom(waits).Draw(rt, "wait") * time.Millisecond
	text := kind
	if more := do(); more != "" {
		text += " " + more
	}
	p.pass(wait)
	p.script = append(p.script, fmt.Sprintf("%s, then %s pass", text, wait))
	p.tally[kind]++
	if p.crashed() {
		p.script = append(p.script, "  it crashed and is started again")
		p.tally["(crashed)"]++
		p.again(true)
		p.pass(101 * time.Millisecond)
	}
	if !p.crashed() {
		m.check(p.r.Status(), must(p.store.List(rt.Context(), "", 1000)), p.counts, p.said)
		if settled := 5*time.Second + 2*p.probation; p.clean && wait > settled {
			p.checkRest() // nothing but patience was missing
		}
	}
	// A step may have to make up for some before it, in which a disk hung.
	if p.gate != nil {
		silences += p.gate.silences()
	}
	if silences > 12 {
		m.failf("the required hooks were asked %d times in one step", silences)
	}
	if most := 8 + 4*m.starts + 2*silences; m.commits > most {
		m.failf("%d commits came of one step", m.commits)
	}
	if len(m.broken) > 0 {
		rt.Fatalf("%s\n\nafter:\n  %s\n", strings.Join(m.broken, "\n"), strings.Join(p.script, "\n  "))
	}
}

// again starts the agent anew, as a supervisor would, and the source tells it
// what it holds, if it says anything.
func (p *play) again(answers bool) {
	p.counts = &counts{outcomes: map[record.Outcome]int{}}
	p.restart()
	if answers {
		p.offer()
	}
}

// offer lets the source say what it holds.
func (p *play) offer() {
	p.judge.nudged = time.Now()
	if p.source == nil || p.unread {
		p.r.SourceError(errNoSource)
		return
	}
	d := declared{revision: p.source.Revision()}
	if c, bad := p.rules.Load(p.source.Input("one")); p.source.Refused != nil {
		d.bad = record.Refused
	} else if bad != nil {
		d.bad = record.Invalid
	} else {
		d.config = c.Parameters
	}
	p.judge.offered = append(p.judge.offered, d)
	p.r.Document(p.source)
}

// declares makes the source hold doc, and say so.
func (p *play) declares(doc *document.Document) {
	if p.source, p.unread = doc, false; doc.Refused == nil {
		p.trusted = doc
	}
	p.offer()
}

// states declares valid Parameters under a new revision.
func (p *play) states(c schema.Parameters) string {
	p.n++
	p.last = c
	p.declares(documentOf(c, fmt.Sprint(p.n)))
	return fmt.Sprintf("%v as revision %d", c.Get(reservoir), p.n)
}

// order gives the agent an order; what is said to have failed must have
// changed nothing, and what is said to be done must stand.
func (p *play) order(c apply.Order) string {
	m := p.judge
	m.nudged = time.Now()
	m.orders, m.obeyed, m.carriedOut = append(m.orders, c), false, false
	open := m.candidate() // who asks twice means the one that is under way
	back, isRollback := c.(*apply.Rollback)
	verb, id := verbOf(c), ""
	if isRollback {
		id = back.ID
	}
	if m.joined = ""; isRollback && id == "" && open != nil && open.kind == record.KindRollback {
		m.joined = open.commit
	}
	joins := isRollback && id == "" && !back.Pause && open != nil && open.kind == record.KindRollback
	res, err := p.do(c)
	text := fmt.Sprintf("%s (%s)", id, res.Outcome)
	if err != nil {
		text = fmt.Sprintf("%s (%v)", id, err)
	}
	if p.crashed() {
		return text // it was carried out, or not
	}
	if err != nil && m.carriedOut && len(m.orders) == 1 {
		m.failf("%s was answered by %q, and carried out", verb, err)
	}
	if err == nil && !m.obeyed && !joins && res.Outcome != record.Pending && len(m.orders) == 1 {
		m.failf("%s was answered by %+v, and not carried out", verb, res)
	}
	if err != nil || res.Outcome != record.Pending || res.SnapshotID != "" {
		m.orders = m.orders[:len(m.orders)-1]
	}
	return text
}

// rest ends every fault, lets twenty minutes pass, four times the longest wait,
// and holds the agent against what the model says must be then.
func (p *play) rest() {
	p.m.mu.Lock()
	clear(p.m.planned)
	p.m.mu.Unlock()
	p.engine.tell(func(e *scripted) {
		maps.DeleteFunc(e.always, func(_ schema.Digest, how manner) bool { return !slices.Contains(verdicts, how) })
		e.queue, e.down, e.hung, e.ill = nil, false, false, ""
	})
	if p.gate != nil {
		p.gate.tell(func() {
			maps.DeleteFunc(p.gate.always, func(_ schema.Digest, r response) bool { return r == fault || r == silent })
		})
	}
	p.r.EngineHint()
	p.pass(20 * time.Minute)
	if p.crashed() {
		p.again(true)
		p.pass(20 * time.Minute)
	}
	p.judge.check(p.r.Status(), must(p.store.List(p.rt.Context(), "", 1000)), p.counts, p.said)
	p.checkRest()
	p.clean, p.judge.orders = true, nil
}

func (p *play) checkRest() {
	runs, state := p.engine.running(), p.judge.state()
	if p.drifted && p.drift == apply.DriftReport && state != nil && !p.takes(state.config) {
		return // whether the way back was tried, and refused, depends on who looked first
	}
	x := p.judge.rests(runs, p.drifted, p.takes)
	p.judge.checkRest(x, p.r.Status(), runs)
}

// takes reports whether the engine takes c and then runs it.
func (p *play) takes(c schema.Parameters) bool {
	how, set := p.engine.always[c.Digest()]
	return !set || how == accept
}
