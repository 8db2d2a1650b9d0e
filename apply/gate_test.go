package apply_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// A response is what a jury says, and how long that takes.
type response struct {
	after time.Duration
	err   error
}

var (
	agrees = response{}
	slow   = response{after: 3 * time.Second}
	vetoes = response{err: &apply.Veto{Reason: "hook policy rejected it: not on\nFridays"}}
	later  = response{3 * time.Second, vetoes.err}
	fault  = response{err: errors.New("hook policy did not answer within 1s: 503")}
	silent = response{30 * time.Second, errors.New("hook policy did not answer within 30s")}
)

// A jury is a Gate that does as it is told.
type jury struct {
	mu     sync.Mutex
	names  []string
	always map[schema.Digest]response // else it agrees at once
	asked  []string                   // commits
	said   map[string]said            // by commit
	begins func(names []string)       // called in the loop, before each asking
	silent int                        // how often nobody answered
}

// said is what was answered, and when.
type said struct {
	response
	at time.Time
}

func newJury() *jury {
	return &jury{names: []string{"policy"}, always: map[schema.Digest]response{}, said: map[string]said{}}
}

func (j *jury) Required() []string {
	j.mu.Lock()
	names := slices.Clone(j.names)
	j.mu.Unlock()
	if j.begins != nil {
		j.begins(names)
	}
	return names
}

func (j *jury) Ask(ctx context.Context, change *record.Record) error {
	j.mu.Lock()
	j.asked = append(j.asked, change.Commit)
	r := j.always[change.Config.Digest()]
	j.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(r.after):
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.said[change.Commit] = said{r, time.Now()}
	if r == fault || r == silent {
		j.silent++
	}
	return r.err
}

// tell changes what it does.
func (j *jury) tell(change func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change()
}

func (j *jury) will(p schema.Parameters, r response) {
	j.tell(func() { j.always[p.Digest()] = r })
}

// askedAbout returns the commits of all askings.
func (j *jury) askedAbout() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.asked)
}

// answer returns what was said of a commit, false while nothing was.
func (j *jury) answer(commit string) (said, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	s, ok := j.said[commit]
	return s, ok
}

// forget forgets what was said to an earlier process.
func (j *jury) forget() { j.tell(func() { clear(j.said) }) }

// silences returns how often nobody answered.
func (j *jury) silences() (n int) {
	j.tell(func() { n = j.silent })
	return n
}

// gated is a world in which size(512) is applied and size(1024) is asked about.
func gated(t *testing.T, r response, probation time.Duration) *world {
	w := newWorld(t, t.TempDir())
	w.declare(size(512), "")
	w.gate = newJury()
	w.gate.will(size(1024), r)
	w.probation = probation
	w.restart()
	w.declare(size(1024), "")
	return w
}

func TestRequiredHooks(t *testing.T) {
	back := want{runs: size(512), outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{size(1024)}}
	asked := want{runs: size(1024), outcome: record.Pending, state: apply.StateProbation, ready: true, open: true}
	waits := want{runs: size(512), outcome: record.Superseded, state: apply.StateDegraded, ready: true}
	for name, c := range map[string]struct {
		response  response
		probation time.Duration
		during    func(w *world)
		wait      time.Duration
		want      want
		asked     int
	}{
		"agrees":                         {agrees, 0, nil, 0, inSync(size(1024)), 1},
		"agrees after a while":           {slow, 0, nil, 3 * time.Second, inSync(size(1024)), 1},
		"is asked":                       {slow, 0, nil, 2 * time.Second, asked, 1},
		"before the probation":           {slow, 10 * time.Second, nil, 12500 * time.Millisecond, asked, 1},
		"and then on probation":          {slow, 10 * time.Second, nil, 14 * time.Second, inSync(size(1024)), 1},
		"vetoes":                         {vetoes, 0, nil, 0, back, 1},
		"vetoes after a while":           {later, 0, nil, 3 * time.Second, back, 1},
		"does not answer":                {silent, 0, nil, 31 * time.Second, waits, 1},
		"is asked again":                 {silent, 0, nil, 50 * time.Second, asked, 2},
		"is asked ever more rarely":      {silent, 0, nil, 10 * time.Minute, waits, 5},
		"fails, and then agrees":         {fault, 0, func(w *world) { w.gate.will(size(1024), agrees) }, 20 * time.Second, inSync(size(1024)), 2},
		"fails, and a sync asks at once": {fault, 0, func(w *world) { w.gate.will(size(1024), agrees); w.r.Sync() }, time.Second, inSync(size(1024)), 2},
		"nobody is required": {vetoes, 0, func(w *world) {
			w.gate.names = nil
			w.must(&apply.Resume{})
		}, time.Second, inSync(size(1024)), 1},
		"the engine refuses the way back": {silent, 0, func(w *world) { w.engine.will(size(512), refuse) }, 10 * time.Minute, want{
			runs: size(1024), outcome: record.Superseded, state: apply.StateDegraded, open: true,
		}, 5},
		"a fix that is asked about as well": {silent, 0, func(w *world) {
			w.gate.will(size(2048), slow)
			w.declare(size(2048), "")
		}, 4 * time.Second, inSync(size(2048)), 2},
		"a fix while it is asked":        {silent, 0, func(w *world) { w.declare(size(2048), "") }, 0, inSync(size(2048)), 2},
		"a fix while it waits":           {fault, 0, func(w *world) { w.declare(size(2048), "") }, 0, inSync(size(2048)), 2},
		"the way back while it is asked": {silent, 0, func(w *world) { w.declare(size(512), "again") }, time.Second, want{runs: size(512), outcome: record.Unchanged, state: apply.StateInSync, inSync: true, ready: true}, 1},
		"the way back while it waits":    {fault, 0, func(w *world) { w.declare(size(512), "again") }, time.Second, want{runs: size(512), outcome: record.Unchanged, state: apply.StateInSync, inSync: true, ready: true}, 1},
		"an invalid document ends nothing": {slow, 0, func(w *world) {
			w.declare(size(1), "")
			w.declare(size(1024), "")
		}, 4 * time.Second, inSync(size(1024)), 1},
		"a rollback": {silent, 0, func(w *world) { w.must(&apply.Rollback{Reason: "night"}) }, time.Minute, want{
			runs: size(512), outcome: record.Held, state: apply.StateHeld, ready: true, held: []schema.Parameters{size(1024)},
		}, 1},
		"a rollback to what was asked about": {agrees, 0, func(w *world) {
			w.gate.will(size(512), vetoes)
			w.must(&apply.Rollback{Reason: "night"})
		}, time.Minute, want{
			runs: size(512), outcome: record.Applied, state: apply.StateHeld, ready: true, held: []schema.Parameters{size(1024)},
		}, 1},
		"a pause": {silent, 0, func(w *world) { w.must(&apply.Pause{Reason: "night"}) }, time.Minute, want{runs: size(512), outcome: record.Held, state: apply.StateHeld, ready: true}, 1},
		"the engine restarts": {silent, 0, func(w *world) {
			w.engine.tell((*scripted).restart)
			w.r.EngineHint()
		}, time.Second, back, 1},
		"the engine is down and comes back": {silent, 0, func(w *world) {
			w.engine.tell(func(e *scripted) { e.down = true })
			w.r.EngineHint()
			w.pass(3 * time.Second)
			w.engine.tell((*scripted).restart)
		}, 3 * time.Second, back, 1},
		"somebody changes the engine": {response{after: 20 * time.Second}, 0, func(w *world) {
			w.engine.tell(func(e *scripted) { e.runs = size(256) })
			w.r.EngineHint()
		}, 21 * time.Second, inSync(size(1024)), 1},
		"somebody changes the engine just before": {slow, 0, func(w *world) {
			w.pass(2 * time.Second)
			w.engine.tell(func(e *scripted) { e.runs = size(256) })
		}, 2 * time.Second, inSync(size(1024)), 1},
		"the engine hangs when it agrees": {slow, 0, func(w *world) {
			w.engine.tell(func(e *scripted) { e.hung = true })
			w.pass(20 * time.Second)
			w.engine.tell(func(e *scripted) { e.hung = false })
		}, 15 * time.Second, inSync(size(1024)), 1},
		"the agent restarts": {slow, 0, func(w *world) {
			w.pass(time.Second)
			w.restart()
			w.declare(size(1024), "")
		}, 4 * time.Second, inSync(size(1024)), 2},
		"the disk refuses the veto": {later, 0, func(w *world) {
			w.m.plan("revert", fails, fails)
			w.pass(3 * time.Second)
			if s := w.r.Status(); s.State != apply.StateDegraded || !w.engine.running().Equal(size(512)) {
				w.t.Errorf("%s (%s), runs %v", s.State, s.Reason, w.engine.running().Get(reservoir))
			}
		}, 10 * time.Second, back, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := gated(t, c.response, c.probation)
				defer func() { w.end(); fsck(t, w.dir) }()
				if c.during != nil {
					c.during(w)
				}
				w.pass(c.wait)
				w.check(name, c.want)
				s, ids := w.r.Status(), w.gate.askedAbout()
				if len(ids) != c.asked {
					t.Errorf("asked %d times: %.7q", len(ids), ids)
				}
				if isVeto := c.response == vetoes || c.response == later; isVeto && c.want.outcome == record.Rejected {
					if s.Held == nil || s.Held.By != "hook" || len(s.Held.Entries) != 1 || len(s.Held.Entries[0].Values) != 1 ||
						s.Held.Reason != "hook policy rejected it: not on Fridays" || !slices.Equal(w.counts.rolledBack(), []string{"hook"}) {
						t.Errorf("held %+v, counted %q", s.Held, w.counts.rolledBack())
					}
				}
				switch c.want.state {
				case apply.StateProbation, apply.StateDegraded:
					if c.probation == 0 && !strings.Contains(s.Reason, "policy") || s.Hint == "" {
						t.Errorf("%s: %s; %s", s.State, s.Reason, s.Hint)
					}
				}
			})
		})
	}
}

// A killed agent asks again about the same record.
func TestAskedAgainAfterAKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := gated(t, vetoes, 0)
		defer func() { w.end() }()
		w.gate.will(size(2048), slow)
		w.declare(size(2048), "")
		w.gate.will(size(3000), silent)
		w.pass(3 * time.Second)
		w.check("agreed", inSync(size(2048)))
		w.m.plan("commit", crashAfter)
		w.r.Document(documentOf(size(3000), ""))
		w.pass(time.Second)
		w.restart()
		w.declare(size(3000), "")
		w.pass(time.Second) // it is asked
		w.m.plan("read", crashBefore)
		w.r.EngineHint()
		w.pass(time.Second)
		if !w.crashed() {
			t.Fatal("it did not crash")
		}
		w.gate.will(size(3000), agrees)
		w.restart()
		w.declare(size(3000), "")
		w.check("asked again", inSync(size(3000)))
		if ids := w.gate.askedAbout(); len(ids) != 4 || ids[2] != ids[3] || ids[2] != w.store.Head().Commit {
			t.Errorf("asked about %.7q", ids)
		}
	})
}

// What runs already when an agent comes changes nothing, so nobody is asked about it.
func TestNobodyIsAskedAboutWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.gate = newJury()
		w.gate.will(rules.Defaults(), vetoes)
		w.gate.will(size(1024), vetoes)
		w.start()
		w.declare(rules.Defaults(), "")
		w.check("found", inSync(rules.Defaults()))
		w.declare(size(1024), "")
		w.check("vetoed", want{runs: rules.Defaults(), outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{size(1024)}})
		w.end()
		if ids := w.gate.askedAbout(); len(ids) != 1 {
			t.Errorf("asked about %.7q", ids)
		}
	})
}

// A veto of the first change of all brings back what ran before.
func TestAVetoOfTheFirstChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.gate = newJury()
		w.gate.will(size(1024), later)
		w.start()
		w.declare(size(1024), "")
		w.pass(10 * time.Second)
		w.check("vetoed", want{runs: rules.Defaults(), outcome: record.Rejected, state: apply.StateHeld, ready: true, held: []schema.Parameters{size(1024)}})
		w.end()
	})
}
