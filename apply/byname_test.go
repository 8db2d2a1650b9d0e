package apply_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// temperature is the parameter that the larger schemas of these tests have
// besides those of the default one.
const temperature = "temperature"

// extended returns the rules of the default schema with what text adds to it.
func extended(t *testing.T, text string) *schema.Rules {
	t.Helper()
	path := filepath.Join(t.TempDir(), "schema.cue")
	if err := os.WriteFile(path, []byte("package dtesn\n#extends: \"dtesn\"\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := schema.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s.For(production)
}

// larger returns rules that require a temperature.
func larger(t *testing.T) *schema.Rules {
	return extended(t, `
#Parameters: {temperature!: number & >=0 & <=2 @dtesn(description="Temperature")}
#defaults: {temperature: 0.5}
`)
}

// optional returns rules that have a temperature, which a document may leave out.
func optional(t *testing.T) *schema.Rules {
	return extended(t, `
#Parameters: {temperature?: number & >=0 & <=2 @dtesn(description="Temperature")}
#defaults: {temperature: 0.5}
`)
}

// at returns p with a temperature.
func at(p schema.Parameters, degrees string) schema.Parameters {
	v, ok := schema.Number(degrees)
	if !ok {
		panic(degrees)
	}
	return p.With(temperature, v)
}

// under restarts the agent with other rules.
func (w *world) under(r *schema.Rules) {
	w.t.Helper()
	w.end()
	w.rules = r
	w.start()
}

// schemas runs a story in a world whose engine has a temperature and whose agent
// begins under the rules first; A is applied.
func schemas(t *testing.T, first *schema.Rules, story func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.rules = first
		w.engine.upgrade(at(rules.Defaults(), "0.5"))
		w.start()
		a := first.Known(at(stateA, "1.5"))
		w.declare(a, "")
		w.check("before", inSync(at(stateA, ifHas(first, "1.5"))))
		story(t, w)
		w.end()
		fsck(t, w.dir)
	})
}

// ifHas is the temperature, or that of an engine that was never told one.
func ifHas(r *schema.Rules, degrees string) string {
	if r.Has(temperature) {
		return degrees
	}
	return "0.5"
}

// A crossing is a change from one schema to another.
type crossing struct {
	name        string
	first, then *schema.Rules
}

func crossings(t *testing.T) []crossing {
	more := larger(t)
	return []crossing{{"one more", rules, more}, {"one less", more, rules}}
}

// TestRecordsByName: a history is continued under a schema with one parameter
// more or less, and back, and no record of it is lost or changed.
func TestRecordsByName(t *testing.T) {
	for _, c := range crossings(t) {
		t.Run(c.name, func(t *testing.T) {
			schemas(t, c.first, func(t *testing.T, w *world) {
				first := must(w.store.List(t.Context(), "", 50))
				w.under(c.then)
				w.declare(c.then.Known(at(stateA, "1.5")), "")
				x := inSync(at(stateA, "1.5"))
				if !c.then.Has(temperature) {
					x.outcome = record.Unchanged // there is nothing to change
				}
				w.check("the same", x)
				if grew := w.store.Total() > 1; grew != c.then.Has(temperature) {
					t.Errorf("%d records", w.store.Total())
				}
				w.declare(c.then.Known(at(stateB, "1.25")), "")
				w.check("continued", inSync(at(stateB, map[bool]string{true: "1.25", false: "1.5"}[c.then.Has(temperature)])))
				w.under(c.first)
				w.declare(c.first.Known(at(stateC, "1.75")), "")
				w.check("and back", inSync(at(stateC, map[bool]string{true: "1.75", false: "1.25"}[c.first.Has(temperature)])))
				all := must(w.store.List(t.Context(), "", 50))
				last := all[len(all)-1]
				if last.ID != first[0].ID || last.Commit != first[0].Commit || !last.Config.Equal(first[0].Config) || last.Outcome != record.Applied {
					t.Errorf("the first record was %+v, and is %+v", first[0], last)
				}
				for _, rec := range all {
					if rec.Outcome != record.Applied {
						t.Errorf("%s is %s", rec.ID, rec.Outcome)
					}
				}
				if w.counts.drifted() != 0 {
					t.Errorf("%d drifts", w.counts.drifted())
				}
			})
		})
	}
}

// TestRollbackAcrossSchemas: the target has a parameter more or less than today's
// schema. What it lacks is sent as the schema's default, what is unknown is not
// sent.
func TestRollbackAcrossSchemas(t *testing.T) {
	for _, c := range crossings(t) {
		for _, named := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, named %v", c.name, named), func(t *testing.T) {
				schemas(t, c.first, func(t *testing.T, w *world) {
					target := w.store.Applied()
					w.under(c.then)
					w.declare(c.then.Known(at(stateB, "1.25")), "")
					ran := w.engine.running()
					order := &apply.Rollback{Reason: "slow"}
					if named {
						order.ID = target.ID
					}
					res, err := w.do(order)
					if err != nil || res.Outcome != record.Applied {
						t.Fatalf("%+v %v", res, err)
					}
					degrees := map[bool]string{true: "0.5", false: "1.5"}[c.then.Has(temperature)] // the default, or as it was
					w.check("rolled back", want{
						runs: at(stateA, degrees), outcome: record.Applied, state: apply.StateHeld, ready: true,
						held: []schema.Parameters{c.then.Known(ran)},
					})
					if rec := w.store.Applied(); !rec.Config.Equal(c.then.Known(at(stateA, degrees))) || len(rec.Provenance) != rec.Config.Len() {
						t.Errorf("on record is %s of %+v", rec.Config, rec.Provenance)
					}
					if rec := must(w.store.Lookup(t.Context(), target.ID)); !rec.Config.Equal(target.Config) {
						t.Errorf("%s was %s, and is %s", rec.ID, target.Config, rec.Config)
					}
				})
			})
		}
	}
}

// TestHeldAcrossSchemas: what an operator rolled back from, and paused, is not
// tried under another schema, nor after coming back to the first.
func TestHeldAcrossSchemas(t *testing.T) {
	for _, c := range crossings(t) {
		for _, pause := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, paused %v", c.name, pause), func(t *testing.T) {
				schemas(t, c.first, func(t *testing.T, w *world) {
					b := c.first.Known(at(stateB, "1.25"))
					w.declare(b, "")
					if _, err := w.do(&apply.Rollback{Reason: "slow", Pause: pause, Requester: record.Requester{UID: 7}}); err != nil {
						t.Fatal(err)
					}
					held := want{runs: at(stateA, ifHas(c.first, "1.5")), outcome: record.Held, state: apply.StateHeld, ready: true, held: []schema.Parameters{b}}
					total := w.store.Total()
					w.engine.ban(stateB)
					for i, r := range []*schema.Rules{c.then, c.first, c.then, c.first} {
						w.under(r)
						w.declare(r.Known(at(stateB, "1.25")), fmt.Sprint(i))
						w.check(fmt.Sprintf("start %d", i), held)
						s := w.r.Status()
						if s.Held.Paused != pause || s.Held.By != "operator" || s.Held.Reason != "slow" || s.Held.Requester == nil || s.Held.Requester.UID != 7 {
							t.Errorf("start %d: held %+v", i, s.Held)
						}
					}
					if w.store.Total() != total {
						t.Errorf("%d records more", w.store.Total()-total)
					}
					w.engine.allow(stateB)
					w.under(c.then)
					w.declare(c.then.Known(at(stateB, "1.25")), "")
					if _, err := w.do(&apply.Resume{}); err != nil {
						t.Fatal(err)
					}
					w.check("resumed", inSync(at(stateB, map[bool]string{true: "1.25", false: "1.5"}[c.then.Has(temperature)])))
					if s := w.r.Status(); s.Held != nil {
						t.Errorf("held %+v", s.Held)
					}
				})
			})
		}
	}
}

// TestAPauseAcrossSchemas stays until resume, and lets nothing through.
func TestAPauseAcrossSchemas(t *testing.T) {
	for _, c := range crossings(t) {
		t.Run(c.name, func(t *testing.T) {
			schemas(t, c.first, func(t *testing.T, w *world) {
				if _, err := w.do(&apply.Pause{Reason: "load test"}); err != nil {
					t.Fatal(err)
				}
				sends := w.engine.allSends()
				for _, r := range []*schema.Rules{c.then, c.first, c.then} {
					w.under(r)
					w.declare(r.Known(at(stateB, "1.25")), "")
					w.check("paused", want{runs: at(stateA, ifHas(c.first, "1.5")), outcome: record.Held, state: apply.StateHeld, ready: true})
					if s := w.r.Status(); s.Held == nil || !s.Held.Paused || s.Held.Reason != "load test" {
						t.Errorf("held %+v", s.Held)
					}
				}
				if n := w.engine.allSends() - sends; n != 0 {
					t.Errorf("%d batches were sent", n)
				}
				if _, err := w.do(&apply.Resume{}); err != nil {
					t.Fatal(err)
				}
				w.check("resumed", inSync(at(stateB, map[bool]string{true: "1.25", false: "1.5"}[c.then.Has(temperature)])))
			})
		})
	}
}

// TestHeldForAParameterThatIsUnknown: what is held differs from what is applied
// only in a parameter that the smaller schema does not have. It is in sync there,
// forgets nothing, and the larger schema finds the hold as it was.
func TestHeldForAParameterThatIsUnknown(t *testing.T) {
	more := larger(t)
	for name, between := range map[string]func(t *testing.T, w *world){
		"nothing": func(*testing.T, *world) {},
		"a document that says the same": func(t *testing.T, w *world) {
			w.declare(stateA, "again")
			x := inSync(at(stateA, "1.5"))
			x.outcome, x.held = record.Unchanged, []schema.Parameters{at(stateA, "1.25")}
			w.check("under the smaller one", x)
			if s := w.r.Status(); s.Held.Paused {
				t.Errorf("held %+v", s.Held)
			}
		},
		"changes": func(t *testing.T, w *world) {
			w.declare(stateB, "")
			x := inSync(at(stateB, "1.5"))
			x.held = []schema.Parameters{at(stateA, "1.25")}
			w.check("a change", x)
			w.declare(stateC, "")
			x.runs = at(stateC, "1.5")
			w.check("another change", x)
		},
		"a rejected change": func(t *testing.T, w *world) {
			w.engine.will(stateB, refuse)
			w.declare(stateB, "")
			w.check("rejected", want{
				runs: at(stateA, "1.5"), outcome: record.Rejected, state: apply.StateHeld, ready: true,
				held: []schema.Parameters{stateB, at(stateA, "1.25")},
			})
		},
		"a withdrawn change": func(t *testing.T, w *world) {
			w.engine.will(stateB, busy)
			w.declare(stateB, "")
			w.declare(stateA, "the way back")
			x := inSync(at(stateA, "1.5"))
			x.outcome, x.held = record.Unchanged, []schema.Parameters{at(stateA, "1.25")}
			w.check("withdrawn", x)
		},
		"a change that is not trusted any more": func(t *testing.T, w *world) {
			w.engine.will(stateB, busy)
			w.declare(stateB, "")
			w.distrust(stateB, "", "the key was revoked")
			x := untrusted
			x.runs, x.held = at(stateA, "1.5"), []schema.Parameters{at(stateA, "1.25")}
			w.check("not trusted", x)
		},
		"a change that is found to be no longer valid": func(t *testing.T, w *world) {
			w.declare(stateA, "again")
			w.engine.tell(func(e *scripted) { e.down = true })
			w.r.EngineHint()
			w.declare(stateB, "")
			w.under(extended(t, "#Parameters: {esn_reservoir_size!: <=2000}\n"))
			w.engine.tell(func(e *scripted) { e.down = false })
			w.declare(stateA, "")
			w.pass(10 * time.Second)
			x := inSync(at(stateA, "1.5"))
			x.outcome, x.held = record.Unchanged, []schema.Parameters{at(stateA, "1.25")}
			w.check("no longer valid", x)
			if head := w.store.Head(); head.Kind != record.KindRevert {
				t.Errorf("the head is a %s", head.Kind)
			}
		},
		"a rollback": func(t *testing.T, w *world) {
			w.declare(stateB, "")
			if _, err := w.do(&apply.Rollback{ID: "1", Reason: "night"}); err != nil {
				t.Fatal(err)
			}
			w.check("rolled back", want{
				runs: at(stateA, "1.5"), outcome: record.Applied, state: apply.StateHeld, ready: true,
				held: []schema.Parameters{stateB, at(stateA, "1.25")},
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			schemas(t, more, func(t *testing.T, w *world) {
				w.declare(at(stateA, "1.25"), "hot")
				if _, err := w.do(&apply.Rollback{Reason: "hot"}); err != nil {
					t.Fatal(err)
				}
				w.under(rules)
				between(t, w)
				w.under(more)
				w.engine.ban(at(stateA, "1.25"))
				w.declare(at(stateA, "1.25"), "hot")
				if s := w.r.Status(); s.State != apply.StateHeld || s.Attempted.Outcome != record.Held || !s.Ready || s.InSync ||
					s.Held.Match(at(stateA, "1.25"), more.Has) == nil || s.Held.Match(at(stateA, "1.5"), more.Has) != nil {
					t.Errorf("%s (%s), held %+v", s.State, s.Reason, s.Held)
				}
			})
		})
	}
}

// TestAnUntrustedCandidateEndsNoHold: the signer of a change is removed while it
// waits for the engine, and what an operator held under another schema stays held.
func TestAnUntrustedCandidateEndsNoHold(t *testing.T) {
	more := larger(t)
	schemas(t, more, func(t *testing.T, w *world) {
		w.declare(at(stateA, "1.25"), "hot")
		if _, err := w.do(&apply.Rollback{Reason: "hot"}); err != nil {
			t.Fatal(err)
		}
		s := &signers{keys: "ada"}
		w.source = s
		w.under(rules)
		w.declare(stateA, "")
		w.engine.tell(func(e *scripted) { e.down = true })
		w.r.EngineHint()
		w.pass(time.Second)
		w.offer(signed(stateB, "b", "", "ada"))
		w.engine.ban(stateB)
		s.tell(func() { s.keys = "" })
		w.pass(10 * time.Second)
		w.engine.tell(func(e *scripted) { e.down = false })
		w.pass(10 * time.Second)
		if head := w.store.Head(); head.Kind != record.KindRevert || head.Held.Match(at(stateA, "1.25"), more.Has) == nil {
			t.Errorf("the head is a %s, held %+v", head.Kind, head.Held)
		}
	})
}

// TestRolledBackUnderASmallerSchema: what ran, or what is held already, has a
// parameter that the smaller schema does not know. What is declared there is held
// whatever the larger schema says of that parameter.
func TestRolledBackUnderASmallerSchema(t *testing.T) {
	more := larger(t)
	for _, heldBefore := range []bool{false, true} {
		schemas(t, more, func(t *testing.T, w *world) {
			held := []schema.Parameters{stateB}
			if w.declare(at(stateB, "1.25"), ""); heldBefore {
				w.declare(at(stateC, "1.25"), "")
				w.declare(at(stateB, "1.25"), "again")
				if _, err := w.do(&apply.Rollback{Reason: "slow"}); err != nil {
					t.Fatal(err)
				}
				w.check("held", want{
					runs: at(stateC, "1.25"), outcome: record.Applied, state: apply.StateHeld, ready: true,
					held: []schema.Parameters{at(stateB, "1.25")},
				})
				held = []schema.Parameters{at(stateB, "1.25"), stateB, stateC}
			}
			w.under(rules)
			w.declare(stateB, "")
			if _, err := w.do(&apply.Rollback{ID: "1", Reason: "slow"}); err != nil {
				t.Fatal(err)
			}
			x := want{runs: at(stateA, "1.25"), outcome: record.Held, state: apply.StateHeld, ready: true, held: held}
			w.engine.ban(stateB)
			w.restart()
			w.declare(stateB, "")
			w.check("under the smaller one", x)
			w.under(more)
			w.declare(at(stateB, "0.75"), "")
			w.check("under the larger one", x)
		})
	}
}

// TestNoRollbackThatTheDefaultsMakeInvalid: what is sent is checked, not only what
// the target has.
func TestNoRollbackThatTheDefaultsMakeInvalid(t *testing.T) {
	cool := extended(t, `
#Parameters: {
	temperature?: number & >=0 & <=2 @dtesn(description="Temperature")
	#rules: large_is_cool: {
		rule: "esn_reservoir_size above 2000 needs temperature at 0.4 or less"
		operands: ["temperature", "esn_reservoir_size"]
		holds:   esn_reservoir_size <= 2000 || temperature <= 0.4
		message: "too hot"
		hint:    "set temperature to 0.4"
	}
}
#defaults: {temperature: 0.5}
`)
	schemas(t, rules, func(t *testing.T, w *world) {
		w.declare(stateB, "")
		hot, a := w.store.Head().ID, must(w.store.Lookup(t.Context(), "1"))
		w.under(cool)
		w.declare(at(stateC, "0.25"), "")
		w.engine.ban(at(stateB, "0.5"))
		if _, err := w.do(&apply.Rollback{ID: hot, Reason: "night"}); err == nil || !strings.Contains(err.Error(), "too hot") {
			t.Errorf("rolled back to what breaks a rule: %v", err)
		}
		w.check("nothing was changed", inSync(at(stateC, "0.25")))
		if res, err := w.do(&apply.Rollback{ID: a.ID, Reason: "night"}); err != nil || res.Outcome != record.Applied || !w.engine.running().Equal(at(stateA, "0.5")) {
			t.Errorf("%+v %v", res, err)
		}
	})
}

// TestUnset: an optional parameter that the files do not set any more is recorded
// as unset and not sent; then the engine may do with it what it likes.
func TestUnset(t *testing.T) {
	schemas(t, optional(t), func(t *testing.T, w *world) {
		batches := w.engine.batchesSince()
		w.declare(stateA, "removed")
		w.check("removed", inSync(at(stateA, "1.5")))
		head := w.store.Head()
		if head.Kind != record.KindChange || !head.Config.Equal(stateA) {
			t.Errorf("on record is %s of %s", head.Kind, head.Config)
		}
		if len(head.Changes) != 1 || head.Changes[0].Parameter != temperature || head.Changes[0].Old.String() != "1.5" || !head.Changes[0].New.IsZero() {
			t.Errorf("changes %v", head.Changes)
		}
		for _, b := range batches() {
			if !b.Get(temperature).IsZero() {
				t.Errorf("sent %s", b)
			}
		}
		total, sends := w.store.Total(), w.engine.allSends()
		w.engine.tell(func(e *scripted) { e.runs = at(e.runs, "0.25") })
		w.pass(2 * time.Minute)
		w.check("it changes by itself", inSync(at(stateA, "0.25")))
		if w.store.Total() != total || w.engine.allSends() != sends || w.counts.drifted() != 0 {
			t.Errorf("%d records more, %d batches more, %d drifts", w.store.Total()-total, w.engine.allSends()-sends, w.counts.drifted())
		}
		w.declare(at(stateA, "1"), "set again")
		w.check("set again", inSync(at(stateA, "1")))
		res, err := w.do(&apply.Rollback{Reason: "hot"})
		if err != nil || res.Outcome != record.Applied {
			t.Fatalf("%+v %v", res, err)
		}
		if runs := w.engine.running(); !runs.Equal(at(stateA, "0.5")) { // the target leaves it out
			t.Errorf("rolled back to %s", runs)
		}
	})
}

// TestARejectedOptionalParameterIsTakenBack, though what is applied does not have
// it: the engine ran something before.
func TestARejectedOptionalParameterIsTakenBack(t *testing.T) {
	more := optional(t)
	for _, how := range []string{"refused and run", "unwell on probation", "withdrawn on probation", "paused on probation"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := emptyWorld(t, t.TempDir())
				w.rules = more
				w.engine.upgrade(at(rules.Defaults(), "0.75"))
				w.start()
				defer w.end()
				w.declare(stateA, "")
				w.check("before", inSync(at(stateA, "0.75")))
				if how != "refused and run" {
					w.probation = time.Minute
					w.restart()
				}
				switch how {
				case "refused and run":
					w.engine.will(at(stateB, "1.5"), callback)
				case "unwell on probation":
					w.engine.tell(func(e *scripted) { e.illOn = at(stateB, "1.5") })
				}
				w.declare(at(stateB, "1.5"), "")
				switch how {
				case "withdrawn on probation":
					w.declare(stateA, "the way back")
				case "paused on probation":
					if _, err := w.do(&apply.Pause{Reason: "night"}); err != nil {
						t.Fatal(err)
					}
				}
				w.pass(10 * time.Second)
				s := w.r.Status()
				if runs := w.engine.running(); !runs.Equal(at(stateA, "0.75")) || !s.Ready || s.Drift != nil {
					t.Errorf("it runs %s: %s (%s)", runs, s.State, s.Reason)
				}
				if head, applied := w.store.Head(), w.store.Applied(); head.Commit != applied.Commit {
					t.Errorf("%s is open", head.ID)
				}
			})
		})
	}
}

// TestTheWayBackBeforeTheFirstHasAllParameters, also those that only a later
// candidate has.
func TestTheWayBackBeforeTheFirstHasAllParameters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.rules = optional(t)
		w.engine.upgrade(at(rules.Defaults(), "0.75"))
		w.engine.will(stateA, busy)
		w.engine.will(at(stateB, "1.5"), callback)
		w.start()
		w.declare(stateA, "")
		w.declare(at(stateB, "1.5"), "")
		w.pass(time.Minute)
		w.check("rejected", want{
			runs: at(rules.Defaults(), "0.75"), outcome: record.Rejected, state: apply.StateHeld, ready: true,
			held: []schema.Parameters{at(stateB, "1.5")},
		})
		w.end()
	})
}

// TestNothingSentIsNotTakenBack: a parameter of a candidate that was never sent is
// not made one that the agent manages.
func TestNothingSentIsNotTakenBack(t *testing.T) {
	schemas(t, optional(t), func(t *testing.T, w *world) {
		w.declare(stateA, "removed")
		w.engine.tell(func(e *scripted) { e.down = true })
		w.r.EngineHint()
		w.declare(at(stateA, "1"), "")
		w.declare(stateA, "the way back")
		w.engine.tell(func(e *scripted) { e.down = false })
		w.pass(10 * time.Second)
		x := inSync(at(stateA, "1.5"))
		x.outcome = record.Unchanged
		w.check("withdrawn", x)
		if head := w.store.Head(); head.Kind != record.KindRevert || !head.Config.Equal(stateA) {
			t.Errorf("on record is %s of %s", head.Kind, head.Config)
		}
	})
}

// TestATighterSchema: what is applied breaks a newer schema. It keeps running, the
// pod stays ready, and the status says so, whatever the source shows.
func TestATighterSchema(t *testing.T) {
	tight := extended(t, "#Parameters: {esn_reservoir_size!: <=1000}\n")
	for name, c := range map[string]struct {
		before func(w *world)
		source func(w *world)
		state  apply.Condition
	}{
		"declared as before":  {func(*world) {}, func(w *world) { w.declare(stateA, "") }, apply.StateInvalid},
		"no document":         {func(*world) {}, func(w *world) { w.pass(10 * time.Second) }, apply.StateStarting},
		"an untrusted source": {func(*world) {}, func(w *world) { w.distrust(stateA, "", "unsigned") }, apply.StateRefused},
		"paused": {func(w *world) {
			if _, err := w.do(&apply.Pause{Reason: "night"}); err != nil {
				w.t.Fatal(err)
			}
		}, func(w *world) { w.declare(size(500), "") }, apply.StateHeld},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				if s := w.r.Status(); len(s.Running.Violations) != 0 || strings.Contains(s.Reason, "not valid") {
					t.Errorf("before: %+v, %s", s.Running.Violations, s.Reason)
				}
				c.before(w)
				w.under(tight)
				c.source(w)
				w.engine.tell((*scripted).restart) // it is looked after all the same
				w.r.EngineHint()
				w.pass(time.Second)
				s := w.r.Status()
				if !s.Ready || s.State != c.state || s.InSync || !w.engine.running().Equal(stateA) {
					t.Errorf("ready %v (%s), %s (%s), in sync %v", s.Ready, s.Unready, s.State, s.Reason, s.InSync)
				}
				if len(s.Running.Violations) != 1 || s.Running.Violations[0].Parameter != reservoir ||
					!strings.Contains(s.Reason, "what is applied is not valid under the present rules: "+s.Running.Violations[0].Message) {
					t.Errorf("%s: %+v", s.Reason, s.Running.Violations)
				}
				if checks := s.Checks(time.Now()); checks.ConfigLoaded {
					t.Error("health says that what runs is valid")
				}
				if _, err := w.do(&apply.Resume{}); (err == nil) != (name == "paused") {
					t.Error(err)
				}
				w.declare(size(900), "valid again")
				w.check("valid again", inSync(size(900)))
				if s := w.r.Status(); len(s.Running.Violations) != 0 || strings.Contains(s.Reason, "not valid") {
					t.Errorf("%s: %+v", s.Reason, s.Running.Violations)
				}
				records := must(w.store.List(t.Context(), "", 50))
				_, err := w.do(&apply.Rollback{ID: records[len(records)-1].ID, Reason: "night"})
				if err == nil || !strings.Contains(err.Error(), "not valid under the present rules") {
					t.Errorf("rolled back to what the schema refuses: %v", err)
				}
				if n := len(slices.DeleteFunc(records, func(r record.Row) bool { return r.Outcome == record.Applied })); n != 0 {
					t.Errorf("%d records came to nothing", n)
				}
			})
		})
	}
}
