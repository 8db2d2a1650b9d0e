package apply_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

// A policy does as it is told: it denies what more than doubles the reservoir, and
// experiments that begin with more than 25 %.
type policy struct {
	mu    sync.Mutex
	most  int // times the reservoir
	err   error
	takes time.Duration
	asked []schema.Proposal
}

var errPolicy = problem.New("policy", errors.New("deny is missing"), "write deny")

func (p *policy) tell(change func()) { p.mu.Lock(); defer p.mu.Unlock(); change() }

func (p *policy) Status() (s apply.PolicyStatus) {
	p.tell(func() {
		if s.Usable = p.err == nil; p.err != nil {
			s.Error, s.Hint = p.err.Error(), problem.Hint(p.err)
		}
	})
	return s
}

func (p *policy) Judge(ctx context.Context, of schema.Proposal) (denied []schema.Denial, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, of)
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(p.takes):
	}
	if p.err != nil {
		return nil, p.err
	}
	now, _ := of.New.Get(reservoir).Int()
	if of.Old != nil {
		if old, _ := of.Old.Get(reservoir).Int(); now > p.most*old {
			denied = append(denied, schema.Denial{Name: "growth", Parameters: []string{reservoir}, Message: "at most doubles", Hint: "go in two steps"})
		}
	}
	for _, e := range of.Experiments {
		if e.Was == 0 && e.Percent > 25 {
			denied = append(denied, schema.Denial{Name: "share", Message: "begins with 25 %"})
		}
	}
	return denied, nil
}

// governed is a world in which size(512) is applied, and what more than doubles it denied.
func governed(t *testing.T) *world {
	w := newWorld(t, t.TempDir())
	w.declare(size(512), "")
	w.policy = &policy{most: 2}
	w.restart()
	w.declare(size(512), "")
	return w
}

func TestPolicy(t *testing.T) {
	kept := want{runs: size(512), outcome: record.Refused, state: apply.StateRefused, ready: true}
	for name, c := range map[string]struct {
		do   func(w *world)
		want want
	}{
		"allowed":                 {func(w *world) { w.declare(size(1024), "") }, inSync(size(1024))},
		"denied":                  {func(w *world) { w.declare(size(2048), "") }, kept},
		"denied, and then a fix":  {func(w *world) { w.declare(size(2048), ""); w.declare(size(700), "") }, inSync(size(700))},
		"in steps":                {func(w *world) { w.declare(size(1024), ""); w.declare(size(2048), "") }, inSync(size(2048))},
		"denied, and a look":      {func(w *world) { w.declare(size(2048), ""); w.r.Sync(); w.pass(time.Minute) }, kept},
		"denied, over a restart":  {func(w *world) { w.declare(size(2048), ""); w.restart(); w.declare(size(2048), "") }, kept},
		"denied at first, undone": {func(w *world) { w.declare(size(2048), ""); w.declare(size(512), "again") }, want{runs: size(512), outcome: record.Unchanged, state: apply.StateInSync, inSync: true, ready: true}},
		"another policy lets it through": {func(w *world) {
			w.declare(size(2048), "")
			w.policy.tell(func() { w.policy.most = 8 })
			w.r.PolicyChanged()
			w.pass(time.Second)
		}, inSync(size(2048))},
		"a stricter policy leaves what is applied": {func(w *world) {
			w.declare(size(1024), "")
			w.policy.tell(func() { w.policy.most = 1 })
			w.r.PolicyChanged()
			w.pass(time.Second)
		}, inSync(size(1024))},
		"a policy that is broken refuses": {func(w *world) {
			w.policy.tell(func() { w.policy.err = errPolicy })
			w.r.PolicyChanged()
			w.declare(size(700), "")
		}, kept},
		"a policy that breaks and mends by itself": {func(w *world) {
			w.policy.tell(func() { w.policy.err = errPolicy })
			w.declare(size(700), "")
			w.check("refused", kept)
			w.policy.tell(func() { w.policy.err = nil })
			w.pass(31 * time.Second)
		}, inSync(size(700))},
		"a policy that mends, and a sync": {func(w *world) {
			w.policy.tell(func() { w.policy.err = errPolicy })
			w.declare(size(700), "")
			w.policy.tell(func() { w.policy.err = nil })
			w.r.Sync()
			w.pass(time.Second)
		}, inSync(size(700))},
		"a policy that hangs": {func(w *world) {
			w.policy.tell(func() { w.policy.takes = time.Hour })
			w.declare(size(700), "")
			w.pass(7 * time.Second)
		}, kept},
		"the engine restarts while it is denied": {func(w *world) {
			w.declare(size(2048), "")
			w.engine.tell((*scripted).restart)
			w.r.EngineHint()
			w.pass(2 * time.Second)
		}, kept},
		"the engine restarts, and then the agent": {func(w *world) {
			w.engine.tell((*scripted).restart)
			w.end()
			w.start()
			w.declare(size(2048), "")
			w.pass(2 * time.Second)
		}, kept},
		"what is pending is not displaced": {func(w *world) {
			w.engine.tell(func(e *scripted) { e.down = true })
			w.r.EngineHint()
			w.declare(size(1024), "")
			w.declare(size(4096), "")
			w.engine.tell(func(e *scripted) { e.down = false })
			w.pass(time.Minute)
		}, want{runs: size(1024), outcome: record.Refused, state: apply.StateRefused, ready: true}},
		"a rollback goes on": {func(w *world) {
			w.declare(size(300), "")
			w.policy.tell(func() { w.policy.most = 1 })
			w.r.PolicyChanged()
			for _, o := range []*apply.Rollback{{Reason: "night", DryRun: true}, {Reason: "night"}} {
				if res := w.must(o); !strings.Contains(res.Text, "the policy would deny it as an unsigned change, which does not stop a rollback: growth: at most doubles") {
					w.t.Errorf("the rollback answers %q", res.Text)
				}
			}
		}, want{runs: size(512), outcome: record.Applied, state: apply.StateHeld, ready: true, held: []schema.Parameters{size(300)}}},
		"a rollback waits a second for a policy that hangs": {func(w *world) {
			w.declare(size(300), "")
			w.policy.tell(func() { w.policy.takes = time.Hour })
			before := time.Now()
			if res := w.must(&apply.Rollback{Reason: "night"}); !strings.Contains(res.Text, "the policy cannot judge it") || time.Since(before) > 2*time.Second {
				w.t.Errorf("after %s the rollback answers %q", time.Since(before), res.Text)
			}
		}, want{runs: size(512), outcome: record.Applied, state: apply.StateHeld, ready: true, held: []schema.Parameters{size(300)}}},
		"a pause while it is denied": {func(w *world) {
			w.declare(size(2048), "")
			w.must(&apply.Pause{Reason: "night"})
			w.declare(size(4096), "")
		}, want{runs: size(512), outcome: record.Held, state: apply.StateHeld, ready: true}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := governed(t)
				defer w.end()
				total := w.store.Total()
				c.do(w)
				w.check(name, c.want)
				if name == "denied" {
					s := w.r.Status()
					a := s.Attempted
					if a.Cause != "policy" || len(a.Policy) != 1 || a.Policy[0].Name != "growth" || s.Hint != "go in two steps" || s.Held != nil {
						t.Errorf("%+v, %q", a, s.Hint)
					}
					if want := "denied by the policy: growth: at most doubles (" + reservoir + "); judged as one change from " + s.Applied.ID; s.Reason != want {
						t.Errorf("%q, want %q", s.Reason, want)
					}
					if w.counts.denials != 1 || w.store.Total() != total {
						t.Errorf("%d denials, %d records", w.counts.denials, w.store.Total()-total)
					}
				}
			})
		})
	}
}

// TestPolicyAtTheFirstRecord: nothing is known of before, so that nothing grew.
func TestPolicyAtTheFirstRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.policy = &policy{most: 2}
		w.start()
		defer w.end()
		w.declare(size(8192), "")
		w.check("first", inSync(size(8192)))
		if of := w.policy.asked; len(of) != 1 || of[0].Old != nil {
			t.Errorf("asked %+v", of)
		}
	})
}

// shared declares p with an experiment that this instance is not in.
func (w *world) shared(p schema.Parameters, percent int) {
	doc := documentOf(p, "")
	text := "environment: production\nexperiments: [{name: none, percent: " + schema.Int(percent).String() + ", parameters: {max_membrane_depth: 3}}]\n"
	doc.Files[1] = schema.NewFile("production.yaml", []byte(text))
	doc.Source.Revision = document.FilesRevision(doc.Files)
	w.r.Document(doc)
	w.pass(100 * time.Millisecond)
}

// TestPolicyOfExperiments: one that begins elsewhere is judged, and remembered as what the
// next change begins with, also over a restart.
func TestPolicyOfExperiments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := governed(t)
		defer func() { w.end() }()
		unchanged := want{runs: size(512), outcome: record.Unchanged, state: apply.StateInSync, inSync: true, ready: true}
		w.shared(size(512), 40)
		w.check("begins with too much", want{runs: size(512), outcome: record.Refused, state: apply.StateRefused, ready: true})
		w.shared(size(512), 1)
		w.check("begins", unchanged)
		w.pass(time.Minute)
		w.restart()
		w.shared(size(512), 2)
		w.check("goes on", unchanged)
		if of := w.policy.asked[len(w.policy.asked)-1]; of.Experiments[0].Was != 1 || of.Experiments[0].Percent != 2 {
			t.Errorf("asked %+v", of.Experiments)
		}
		w.shared(size(512), 40) // grows from what was accepted
		w.check("grows", unchanged)
		for _, order := range []apply.Order{&apply.Pause{Reason: "x"}, &apply.Resume{}} { // records that change nothing
			if _, err := w.do(order); err != nil {
				t.Fatal(err)
			}
		}
		w.restart()
		w.shared(size(512), 40)
		w.check("is not judged again", unchanged)
		w.declare(size(512), "it ends")
		w.check("ends", unchanged)
		for _, order := range []apply.Order{&apply.Pause{Reason: "x"}, &apply.Resume{}} {
			if _, err := w.do(order); err != nil {
				t.Fatal(err)
			}
		}
		w.shared(size(512), 40)
		w.check("begins anew", want{runs: size(512), outcome: record.Refused, state: apply.StateRefused, ready: true})
	})
}

// TestPolicyOfSeveralCommits: what was merged meanwhile is one change, and that is said.
func TestPolicyOfSeveralCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		commit := func(n string) string { return strings.Repeat(n, 40) }
		w := emptyWorld(t, t.TempDir())
		w.policy = &policy{most: 2}
		w.start()
		defer w.end()
		git := func(p schema.Parameters, at, parent, follows string) {
			doc := documentOf(p, "")
			doc.Source = document.Source{Kind: "git", Revision: at, Signer: "ada"}
			doc.Parents, doc.Follows = []string{parent}, follows
			w.r.Document(doc)
			w.pass(100 * time.Millisecond)
		}
		git(size(512), commit("a"), commit("0"), "")
		w.check("first", inSync(size(512)))
		git(size(2048), commit("b"), commit("a"), commit("a"))
		if s := w.r.Status(); strings.Contains(s.Reason, "several commits") || s.State != apply.StateRefused {
			t.Errorf("one commit: %s %q", s.State, s.Reason)
		}
		git(size(2048), commit("c"), commit("b"), commit("a"))
		s := w.r.Status()
		if want := ", which declares commit aaaaaaaaaaaa, several commits before cccccccccccc"; !strings.HasSuffix(s.Reason, want) || !strings.Contains(s.Hint, "apply them in steps") {
			t.Errorf("two commits: %q, %q", s.Reason, s.Hint)
		}
		if of := w.policy.asked[len(w.policy.asked)-1]; of.Signer != "ada" {
			t.Errorf("asked %+v", of)
		}
	})
}

func TestPolicyObserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := governed(t)
		w.observe = true
		w.restart()
		defer w.end()
		w.declare(size(2048), "")
		w.pass(time.Second)
		if s := w.r.Status(); s.State != apply.StateObserving || !strings.HasPrefix(s.Reason, "would refuse it: denied by the policy: growth") {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
	})
}

// TestPolicyThatDeniesAsWell: while another policy judges, the status says what the one
// before said.
func TestPolicyThatDeniesAsWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := governed(t)
		defer w.end()
		w.declare(size(4096), "")
		w.policy.tell(func() { w.policy.most, w.policy.takes = 3, time.Second })
		from := w.r.Latest()
		w.r.PolicyChanged()
		w.pass(3 * time.Second)
		for u := from; u != nil; u = u.Next() {
			if u.Status.State != apply.StateRefused {
				t.Errorf("%s: %s", u.Status.State, u.Status.Reason)
			}
		}
		if n := len(w.policy.asked); n != 2 || w.counts.denials != 1 {
			t.Errorf("asked %d times, %d denials", n, w.counts.denials)
		}
	})
}
