package apply_test

import (
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// The schemas here differ in what they say of one parameter that no file sets.

// mt returns p with a value of the parameter mt.
func mt(p schema.Parameters, v schema.Value) schema.Parameters { return p.With("mt", v) }

// withMt returns rules that have mt, declared as text says.
func withMt(t *testing.T, text string) *schema.Rules {
	return extended(t, "#Parameters: {"+text+"}\n")
}

// The schemas of mt.
const (
	mtOptional = `mt?: int & >=1 & <=100 @dtesn(description="x")`
	mtFive     = `mt?: int & >=1 & <=100 @dtesn(managed, description="x")
}
#defaults: {mt: 5`
	mtSix = `mt?: int & >=1 & <=100 @dtesn(managed, description="x")
}
#defaults: {mt: 6`
	mtRequired = `mt!: int & >=1 & <=100 @dtesn(description="x")
}
#defaults: {mt: 5`
	mtBool = `mt?: bool @dtesn(managed, description="x")
}
#defaults: {mt: true`
	mtOptionalBool = `mt?: bool @dtesn(description="x")`
)

// TestHeldWhateverTheSchemaGives: the files stay as they are, and the schema begins
// or ceases to give a parameter that they do not set, or gives another value. What
// was held stays held.
func TestHeldWhateverTheSchemaGives(t *testing.T) {
	for name, c := range map[string]struct {
		first, then string
		value       schema.Value      // what the engine has of mt under the second schema
		files       schema.Parameters // what is declared under it
		applied     bool
	}{
		"optional, then managed":    {mtOptional, mtFive, schema.Int(5), stateB, false},
		"another managed default":   {mtFive, mtSix, schema.Int(6), stateB, false},
		"managed, then optional":    {mtFive, mtOptional, schema.Int(5), stateB, false},
		"another type":              {mtFive, mtBool, schema.Bool(true), stateB, false},
		"the default is written":    {mtFive, mtFive, schema.Int(5), mt(stateB, schema.Int(5)), false},
		"required, and the default": {mtFive, mtRequired, schema.Int(5), mt(stateB, schema.Int(5)), false},
		"something else is written": {mtFive, mtFive, schema.Int(5), mt(stateB, schema.Int(7)), true},
	} {
		for _, by := range []string{"operator", "engine"} {
			t.Run(name+", by the "+by, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := emptyWorld(t, t.TempDir())
					w.rules = withMt(t, c.first)
					w.engine.upgrade(mt(rules.Defaults(), schema.Int(5)))
					w.start()
					w.declare(stateA, "")
					if by == "engine" {
						w.engine.tell(func(e *scripted) { e.queue = []manner{refuse} })
					}
					w.declare(stateB, "")
					if by == "operator" {
						w.order(&apply.Rollback{Reason: "b is bad"})
					}
					if s := w.r.Status(); s.State != apply.StateHeld {
						t.Fatalf("before: %s (%s)", s.State, s.Reason)
					}
					w.end()
					w.engine.tell(func(e *scripted) { e.upgrade(mt(stateA, c.value)) })
					applied := c.applied && by == "engine" // an operator's hold is of the one value
					if !applied {
						w.engine.ban(stateB)
					}
					w.rules = withMt(t, c.then)
					w.start()
					w.declare(c.files, "the same")
					w.pass(time.Minute)
					s := w.r.Status()
					if held := s.State == apply.StateHeld && s.Attempted.Outcome == record.Held && !s.Held.Paused; held == applied {
						t.Errorf("%s (%s), held %+v", s.State, s.Reason, s.Held)
					}
					if runs := w.engine.running().Contains(stateB); runs != applied {
						t.Errorf("it runs %s", w.engine.running())
					}
					w.end()
				})
			})
		}
	}
}

// TestAHoldSparesWhatIsApplied: a refused default is held by its value, for the
// files are those of what is applied.
func TestAHoldSparesWhatIsApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := emptyWorld(t, t.TempDir())
		w.rules = withMt(t, mtFive)
		w.engine.upgrade(mt(rules.Defaults(), schema.Int(5)))
		w.start()
		w.declare(stateA, "")
		w.engine.will(mt(stateA, schema.Int(6)), refuse)
		w.under(withMt(t, mtSix))
		w.declare(stateA, "")
		w.pass(time.Second)
		w.check("refused", want{
			runs: mt(stateA, schema.Int(5)), outcome: record.Rejected, state: apply.StateHeld, ready: true,
			held: []schema.Parameters{mt(stateA, schema.Int(6))},
		})
		w.under(withMt(t, mtFive))
		w.declare(stateA, "")
		w.pass(time.Second)
		x := inSync(mt(stateA, schema.Int(5)))
		x.outcome, x.held = record.Unchanged, []schema.Parameters{mt(stateA, schema.Int(6))}
		w.check("the first schema", x)
		w.end()
	})
}
