package test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// Parameters are data: these tests change a schema file, and nothing else.

// extra is a parameter that the program has never heard of.
const (
	extra    = "scheduler_budget_ms"
	extraCUE = `package dtesn

#extends: "dtesn"

#Parameters: scheduler_budget_ms!: int & >=1 & <=1000 @dtesn(unit="ms", description="Time the scheduler may spend on a batch")
#defaults: scheduler_budget_ms: 20
`
)

// A grown is a rig whose agents may be given a schema that has more parameters,
// beside a server that has them.
type grown struct {
	*rig
	e     *impostor
	file  string        // the schema
	rules *schema.Rules // what it says
}

func newGrown(t *testing.T, cue string) *grown {
	t.Helper()
	r := newBareRig(t)
	g := &grown{rig: r, file: filepath.Join(r.dir, "grown.cue")}
	g.rules = rulesOf(t, g.file, cue)
	all := map[string]schema.Value{} // a server has what is optional as well
	for _, p := range g.rules.Parameters() {
		all[p.Name] = p.Default
	}
	g.e = newImpostorWith(t, r.socket, schema.NewParameters(all))
	g.base(g.rules)
	return g
}

// rulesOf writes a schema file and returns what it says for production.
func rulesOf(t *testing.T, file, cue string) *schema.Rules {
	t.Helper()
	ok(t, os.WriteFile(file, []byte(cue), 0o644))
	s, err := schema.Open(file)
	ok(t, err)
	return s.For("production")
}

// base declares the default of every parameter of a schema.
func (g *grown) base(rules *schema.Rules) {
	g.write("base.yaml", "parameters:\n"+indent(rules.Defaults()))
}

// set declares values for production.
func (g *grown) set(values map[string]schema.Value) {
	g.t.Helper()
	g.write("production.yaml", "environment: production\nparameters:\n"+indent(schema.NewParameters(values)))
}

// two declares a size, and a budget if it is not 0.
func (g *grown) two(size, budget int) {
	g.t.Helper()
	values := map[string]schema.Value{sizeName: schema.Int(size)}
	if budget != 0 {
		values[extra] = schema.Int(budget)
	}
	g.set(values)
}

// large and small start an agent with the schema that has more, and without.
func (g *grown) large(flags ...string) { g.t.Helper(); g.agent(append(flags, "--schema", g.file)...) }
func (g *grown) small(flags ...string) { g.t.Helper(); g.agent(flags...) }

// stop ends the newest agent politely.
func (r *rig) stop() {
	r.t.Helper()
	ok(r.t, r.running.Process.Signal(syscall.SIGTERM))
	if err := r.running.Wait(); err != nil {
		r.t.Errorf("the agent ended with %v\n%s", err, r.evidence())
	}
}

// awaitBoth waits until the agent says that both values are applied, and holds
// that the engine runs them.
func (g *grown) awaitBoth(size, budget int) view {
	g.t.Helper()
	v := g.await(fmt.Sprintf("size %d and budget %d applied", size, budget), func(v view) bool {
		unknown := v.Current != nil && v.Current.Get(extra).IsZero() // to an agent without the schema
		return v.State == apply.StateInSync && v.InSync && v.Ready && v.size() == size && (unknown || intOf(*v.Current, extra) == budget)
	})
	g.runsBoth(size, budget)
	return v
}

func (g *grown) runsBoth(size, budget int) {
	g.t.Helper()
	if p := g.e.running(); sizeOf(p) != size || intOf(p, extra) != budget {
		g.t.Errorf("the engine runs %v, want size %d and budget %d", p, size, budget)
	}
}

// git runs git on the history.
func (r *rig) git(args ...string) string {
	r.t.Helper()
	out, err := exec.Command("git", append([]string{"-c", "safe.directory=*", "--git-dir", filepath.Join(r.state, "snapshots.git")}, args...)...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// decoded is a JSON text as values that can be compared.
func decoded(t *testing.T, text string) (v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %.300q", err, text)
	}
	return v
}

// heldIn is the member "held" of an object.
func heldIn(t *testing.T, object any) map[string]any {
	t.Helper()
	held, _ := object.(map[string]any)["held"].(map[string]any)
	if held == nil {
		t.Fatalf("nothing is held in %.300v", object)
	}
	return held
}

// holds is the hold in force, which must be the same in status, over HTTP, in
// git and in `agent snapshots`.
func (r *rig) holds(what string) map[string]any {
	r.t.Helper()
	var control, web struct{ Status any }
	ok(r.t, over(filepath.Join(r.state, "agent.sock"), http.MethodGet, "/status", "", &control))
	if _, err := r.httpSays("/v1/config/status", &web); err != nil {
		r.t.Fatal(err)
	}
	_, listed := agent("snapshots", "--state", r.state, "--json", "--limit", "1")
	held := heldIn(r.t, control.Status)
	for where, other := range map[string]any{
		"over HTTP":          heldIn(r.t, web.Status),
		"in git":             heldIn(r.t, decoded(r.t, r.git("show", "production:snapshot.json"))),
		"in agent snapshots": heldIn(r.t, decoded(r.t, listed).(map[string]any)["snapshots"].([]any)[0]),
	} {
		if !reflect.DeepEqual(other, any(held)) {
			r.t.Errorf("%s: the hold %s is\n%v\nin status\n%v", what, where, other, held)
		}
	}
	return held
}

// intact holds that the history has so many records, and that nothing of it was
// repaired or set aside.
func (r *rig) intact(what string, records int) {
	r.t.Helper()
	r.whole(what, records)
	if v, err := r.view(); err != nil || len(v.Repairs) != 0 {
		r.t.Errorf("%s: repairs %+v %v", what, v.Repairs, err)
	}
}

// whole holds that the history has so many records, and that nothing of it was
// set aside.
func (r *rig) whole(what string, records int) {
	r.t.Helper()
	if list := r.snapshots(); len(list) != records {
		r.t.Errorf("%s: %d records, want %d: %+v", what, len(list), records, list)
	}
	if n := strings.Count(r.git("rev-list", "production"), "\n"); n != records {
		r.t.Errorf("%s: git lists %d records, want %d", what, n, records)
	}
	if refs := r.git("for-each-ref"); strings.Contains(refs, "set-aside") {
		r.t.Errorf("%s: refs were set aside\n%s", what, refs)
	}
	if _, err := os.Stat(filepath.Join(r.state, "set-aside")); err == nil {
		r.t.Errorf("%s: files were set aside", what)
	}
	r.git("fsck", "--strict")
}

// TestSeventhParameter gives an agent a schema with one parameter more. All that
// it does follows: validate, JSON Schema, status, metrics, history, rollback.
// Then the schema goes and comes back, with a hold and with a pause in force:
// both stay, and the history is whole.
func TestSeventhParameter(t *testing.T) {
	t.Parallel()
	needs(t, "git")
	g := newGrown(t, extraCUE)
	g.offline()
	g.two(1024, 30)
	g.large()
	g.awaitBoth(1024, 30)
	g.two(2048, 40)
	g.awaitBoth(2048, 40)
	g.isShown()
	g.order("rollback", "--reason", "too slow")
	g.intact("rolled back", 3)
	g.isHeld("rolled back")

	g.without("held", 2048, g.isHeld)
	g.with("held", 2048, 40, g.isHeld)
	g.order("resume")
	g.awaitBoth(2048, 40)

	g.order("pause", "--reason", "night")
	g.two(3072, 60)
	g.isPaused("paused")
	g.without("paused", 3072, g.isPaused)
	g.with("paused", 3072, 60, g.isPaused)
	g.order("resume")
	g.awaitBoth(3072, 60)

	g.acrossSchemas()
	g.dormant()
}

// offline holds what needs no agent that runs.
func (g *grown) offline() {
	t := g.t
	t.Helper()
	g.two(1024, 30)
	if code, out := agent("validate", g.config, "--schema", g.file); code != 0 || !strings.Contains(out, "production is valid") {
		t.Errorf("a good value: exit %d\n%s", code, out)
	}
	g.two(1024, 5000)
	code, out := agent("validate", g.config, "--schema", g.file)
	if code != 3 || !strings.Contains(out, filepath.Join(g.config, "production.yaml")+":4:24: "+extra+": Invalid value for "+extra+": 5000 (rule: 1-1000); use an integer from 1 to 1000; the default is 20") {
		t.Errorf("a bad value: exit %d\n%s", code, out)
	}
	if code, out := agent("validate", g.config); code != 3 || !strings.Contains(out, "unknown key "+extra) {
		t.Errorf("without the schema: exit %d\n%s", code, out)
	}
	g.write("base.yaml", baseYAML)
	g.two(1024, 0)
	if code, out := agent("validate", g.config, "--schema", g.file); code != 3 || !strings.Contains(out, extra) {
		t.Errorf("a required parameter is not set: exit %d\n%s", code, out)
	}
	g.base(g.rules)

	for _, c := range []struct {
		flags []string
		value any
		valid bool
	}{
		{[]string{"--schema", g.file}, 30, true},
		{[]string{"--schema", g.file}, 5000, false},
		{[]string{"--schema", g.file}, "30", false},
		{nil, 30, false}, // an unknown key
	} {
		_, text := agent(append([]string{"schema", "--format", "jsonschema"}, c.flags...)...)
		compiler := jsonschema.NewCompiler()
		ok(t, compiler.AddResource("schema.json", decoded(t, text)))
		s, err := compiler.Compile("schema.json")
		ok(t, err)
		err = s.Validate(map[string]any{"environment": "production", "parameters": map[string]any{extra: c.value}})
		if (err == nil) != c.valid {
			t.Errorf("JSON Schema %v of %v: %v", c.flags, c.value, err)
		}
	}
	for _, format := range []string{"cue", "markdown"} {
		if code, out := agent("schema", "--format", format, "--schema", g.file); code != 0 || !strings.Contains(out, extra) {
			t.Errorf("agent schema --format %s: exit %d\n%s", format, code, out)
		}
	}
}

// isShown holds that a change of 30 to 40 is to be seen everywhere.
func (g *grown) isShown() {
	t := g.t
	t.Helper()
	g.wantMetric(fmt.Sprintf("dtesn_agent_parameter{parameter=%q}", extra), 40)
	if v, err := g.view(); err != nil || intOf(*v.Current, extra) != 40 || !regexp.MustCompile(`(?m)^ *`+extra+` +40`).MatchString(v.Text) {
		t.Errorf("status: %v %v\n%s", v.Current, err, v.Text)
	}
	digest := g.rules.Schema().Digest()
	if v, err := g.view(); err != nil || v.Schema != (apply.SchemaStatus{File: g.file, Digest: digest}) || !strings.Contains(v.Text, "schema     "+g.file+", digest "+digest[:12]+"\n") {
		t.Errorf("status: schema %+v %v\n%s", v.Schema, err, v.Text)
	}
	var current struct{ Configuration schema.Parameters }
	var rules struct {
		Info map[string]schema.Parameter `json:"parameter_info"`
	}
	if _, err := g.httpSays("/v1/config/current", &current); err != nil || intOf(current.Configuration, extra) != 40 {
		t.Errorf("GET current: %v %v", current.Configuration, err)
	}
	if _, err := g.httpSays("/v1/config/schema", &rules); err != nil || rules.Info[extra].Range != "1-1000" || rules.Info[extra].Unit != "ms" {
		t.Errorf("GET schema: %+v %v", rules.Info[extra], err)
	}
	records := g.snapshots()
	if !slices.ContainsFunc(records[0].Changes, func(c schema.Change) bool {
		return c.Parameter == extra && c.Old.Equal(schema.Int(30)) && c.New.Equal(schema.Int(40))
	}) || intOf(records[0].ConfigData, extra) != 40 || intOf(records[1].ConfigData, extra) != 30 {
		t.Errorf("the history: %+v", records)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"snapshots", "--wide"}, extra + ` 30 -> 40`},
		{[]string{"show", "2"}, extra + ` +40 +production.yaml:4:24`},
		{[]string{"diff", "1"}, extra + ` 30 -> 40`},
	} {
		if out := g.order(c.args...); !regexp.MustCompile(c.want).MatchString(out) {
			t.Errorf("agent %v does not say %s:\n%s", c.args, c.want, out)
		}
	}
	if tree := g.git("show", "production:parameters.yaml"); !strings.Contains(tree, extra+": 40\n") {
		t.Errorf("parameters.yaml is\n%s", tree)
	}
}

// isHeld holds that 2048 and 40 are held, while the engine runs 1024 and 30.
func (g *grown) isHeld(what string) {
	t := g.t
	t.Helper()
	v := g.await(what+": held", func(v view) bool { return v.State == apply.StateHeld && v.Ready && v.Current != nil })
	if v.Held.Paused || v.Held.By != "operator" || v.Held.Reason != "too slow" || v.InSync || v.Held.Requester == nil {
		t.Errorf("%s: held %+v, in sync %v", what, v.Held, v.InSync)
	}
	held := g.holds(what)
	entries, _ := held["entries"].([]any)
	if len(entries) == 0 || len(held["digests"].([]any)) == 0 {
		t.Fatalf("%s: the hold is %v", what, held)
	}
	values := map[string]any{}
	for _, e := range entries {
		for name, value := range e.(map[string]any)["values"].(map[string]any) {
			values[name] = value
		}
	}
	if values[sizeName] != 2048.0 || values[extra] != 40.0 {
		t.Errorf("%s: held are %v", what, values)
	}
	if out := g.order("snapshots", "--wide"); !strings.Contains(out, "rollback") || !strings.Contains(out, extra+" 40 -> 30") {
		t.Errorf("%s: agent snapshots says\n%s", what, out)
	}
	g.runsBoth(1024, 30)
}

// isPaused holds that an operator's pause is in force, while the engine runs
// 2048 and 40.
func (g *grown) isPaused(what string) {
	t := g.t
	t.Helper()
	v := g.await(what, func(v view) bool {
		return v.State == apply.StateHeld && v.Attempted != nil && v.Attempted.Outcome == record.Held && v.Ready && v.Current != nil
	})
	if held := g.holds(what); held["paused"] != true || held["by"] != "operator" || held["reason"] != "night" || v.InSync {
		t.Errorf("%s: held %v, in sync %v", what, held, v.InSync)
	}
	if out := g.order("snapshots", "--wide"); !strings.Contains(out, "Pause: night") || !strings.Contains(out, extra+" 30 -> 40") {
		t.Errorf("%s: agent snapshots says\n%s", what, out)
	}
	g.runsBoth(2048, 40)
}

// without starts the agent anew under the program's own schema, and with under
// the one that has more. What is to hold must do so, nothing may be sent, and
// the history stays as it is.
func (g *grown) without(what string, size int, holds func(string)) {
	g.t.Helper()
	g.anew(what+", after a downgrade", production, size, 0, holds, g.small)
}

func (g *grown) with(what string, size, budget int, holds func(string)) {
	g.t.Helper()
	g.anew(what+", after an upgrade", g.rules, size, budget, holds, g.large)
}

func (g *grown) anew(what string, rules *schema.Rules, size, budget int, holds func(string), start func(...string)) {
	g.t.Helper()
	records, sent := len(g.snapshots()), g.e.sent()
	g.stop()
	g.base(rules)
	g.two(size, budget)
	start()
	holds(what)
	g.intact(what, records)
	if n := g.e.sent(); n != sent {
		g.t.Errorf("%s: %d batches were sent", what, n-sent)
	}
}

// acrossSchemas goes back to records of the other schema, both ways.
func (g *grown) acrossSchemas() {
	t := g.t
	t.Helper()
	g.stop()
	g.base(production)
	g.two(640, 0)
	g.small()
	g.awaitBoth(640, 60) // what the schema does not know is the engine's own
	if out := g.order("show", "1"); !regexp.MustCompile(extra + ` +30\b`).MatchString(out) {
		t.Errorf("agent show says of a record of the larger schema\n%s", out)
	}
	records := len(g.snapshots())
	g.order("rollback", "1", "--reason", "as it was")
	g.await("rolled back", func(v view) bool { return v.State == apply.StateHeld && v.size() == 1024 })
	g.runsBoth(1024, 60)
	g.intact("rolled back to a record that has more", records+1)

	// A document that has all values of what is held is held, whatever it has
	// besides.
	g.stop()
	g.base(g.rules)
	g.two(640, 80)
	g.large()
	v := g.await("held", func(v view) bool { return v.State == apply.StateHeld && v.Attempted.Outcome == record.Held })
	if v.Held.By != "operator" || v.Held.Reason != "as it was" {
		t.Errorf("held %+v", v.Held)
	}
	g.two(704, 80)
	g.awaitBoth(704, 80)

	// What a record lacks, a rollback takes from the schema's defaults.
	at := slices.IndexFunc(g.snapshots(), func(s snap) bool { return s.Kind == "change" && sizeOf(s.ConfigData) == 640 })
	if at < 0 || !g.snapshots()[at].ConfigData.Get(extra).IsZero() {
		t.Fatalf("no record of the smaller schema: %+v", g.snapshots())
	}
	g.order("rollback", g.snapshots()[at].ID, "--reason", "as it was without")
	g.await("rolled back", func(v view) bool { return v.State == apply.StateHeld && v.size() == 640 && v.Ready })
	def, _ := g.rules.Parameter(extra).Default.Int()
	g.runsBoth(640, def)
	g.intact("rolled back to a record that has less", records+3)
}

// dormant holds a value of the parameter that the smaller schema does not know:
// the hold stays on record there, and is in force again afterwards.
func (g *grown) dormant() {
	t := g.t
	t.Helper()
	g.two(712, 90)
	g.awaitBoth(712, 90)
	g.two(712, 95)
	g.awaitBoth(712, 95)
	g.order("rollback", "--reason", "late")
	g.await("rolled back", func(v view) bool { return v.State == apply.StateHeld && intOf(*v.Current, extra) == 90 })
	isHeld := func(what string) {
		t.Helper()
		v := g.await(what, func(v view) bool {
			return v.Held != nil && v.Ready && v.Attempted != nil && v.Attempted.Revision == v.Seen.Revision && v.Current != nil
		})
		if held := g.holds(what); held["by"] != "operator" || held["reason"] != "late" || held["paused"] != false {
			t.Errorf("%s: held %v, state %s", what, held, v.State)
		}
		g.runsBoth(712, 90)
	}
	g.without("a value that is unknown is held", 712, func(what string) {
		isHeld(what)
		g.await(what, func(v view) bool { return v.InSync }) // what it declares is what is applied
	})
	g.with("a value that was unknown is held", 712, 95, func(what string) {
		isHeld(what)
		g.await(what, func(v view) bool { return v.State == apply.StateHeld && v.Attempted.Outcome == record.Held })
	})
	g.two(712, 96)
	g.awaitBoth(712, 96)
}

// sent is the value of a parameter in the newest batch, with its digits, nil if
// it was not in it.
func (e *impostor) sentValue(name string) (v any) {
	e.t.Helper()
	var batch struct {
		Updates []struct {
			Parameter string
			Value     any
		}
	}
	e.change(func() {
		digits := json.NewDecoder(strings.NewReader(e.body))
		digits.UseNumber()
		if err := digits.Decode(&batch); err != nil {
			e.t.Errorf("%v: %s", err, e.body)
		}
	})
	for _, u := range batch.Updates {
		if u.Parameter == name {
			v = u.Value
		}
	}
	return v
}

// TestModelServing runs the example of a schema for model serving: a number
// keeps its decimals on the wire, a string is one of a list, and what is
// optional is the server's own until it is set.
func TestModelServing(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../examples/schema/model-serving.cue")
	ok(t, err)
	g := newGrown(t, string(text))
	find := func(what string, is func(p schema.Parameter) bool) schema.Parameter {
		t.Helper()
		all := g.rules.Parameters()
		i := slices.IndexFunc(all, func(p schema.Parameter) bool { return !production.Has(p.Name) && is(p) })
		if i < 0 {
			t.Fatalf("the example has no %s", what)
		}
		return all[i]
	}
	number := find("optional number", func(p schema.Parameter) bool { return p.Type == "number" && !p.Managed })
	choice := find("optional string", func(p schema.Parameter) bool { return p.Type == "string" && len(p.Values) > 1 && !p.Managed })
	managed := find("managed int", func(p schema.Parameter) bool { return p.Type == "int" && p.Managed && !p.Required })
	last := choice.Values[len(choice.Values)-1]
	n := func(s string) schema.Value {
		v, ok := schema.Number(s)
		if !ok {
			t.Fatalf("%s is no number", s)
		}
		return v
	}
	applied := func(values map[string]schema.Value) view {
		t.Helper()
		return g.await(fmt.Sprint(values), func(v view) bool {
			return v.State == apply.StateInSync && v.InSync && v.Current.Contains(schema.NewParameters(values))
		})
	}
	wasSent := func(name string, want any) {
		t.Helper()
		if got := g.e.sentValue(name); got != want {
			t.Errorf("%s was sent as %v, want %v", name, got, want)
		}
	}

	// No layer sets what is managed, and the server is told its default.
	g.write("base.yaml", baseYAML)
	values := map[string]schema.Value{number.Name: n("0.70")}
	g.set(values)
	g.large("--drift-interval", "100ms")
	applied(values)
	wasSent(number.Name, json.Number("0.70"))
	wasSent(choice.Name, nil)
	wasSent(managed.Name, json.Number(managed.Default.String()))
	g.wantMetric(fmt.Sprintf("dtesn_agent_parameter{parameter=%q}", number.Name), 0.7)

	// What is equal is no change.
	sent := g.e.sent()
	g.set(map[string]schema.Value{number.Name: n("7e-1")})
	g.await("unchanged", func(v view) bool { return v.Attempted.Outcome == record.Unchanged && v.InSync })
	if g.e.sent() != sent || len(g.snapshots()) != 1 {
		t.Error("0.70 and 7e-1 are one number, and something was sent or recorded")
	}

	// What is not possible names its place and rule.
	for _, c := range []struct{ line, rule string }{
		{choice.Name + `: "no such"`, choice.Range},
		{number.Name + ": " + number.Maximum.String() + "1.5", number.Range},
		{number.Name + `: "0.7"`, "a number in decimal digits, as in JSON"},
	} {
		g.write("production.yaml", "environment: production\nparameters:\n  "+c.line+"\n")
		v := g.await(c.line, func(v view) bool {
			return v.State == apply.StateInvalid && v.Attempted.Revision == v.Seen.Revision && strings.Contains(c.line, v.Attempted.Violations[0].Value)
		})
		if x := v.Attempted.Violations[0]; x.Line != 3 || x.File != "production.yaml" || x.Rule != c.rule || x.Hint == "" {
			t.Errorf("%s: %+v", c.line, x)
		}
	}
	if g.e.sent() != sent {
		t.Error("something invalid was sent")
	}

	// What is optional is sent once it is set, and the server's own afterwards.
	values = map[string]schema.Value{number.Name: n("0.250"), choice.Name: schema.Text(last)}
	g.set(values)
	applied(values)
	wasSent(number.Name, json.Number("0.250"))
	wasSent(choice.Name, last)
	g.wantMetric(fmt.Sprintf("dtesn_agent_parameter_info{parameter=%q,value=%q}", choice.Name, last), 1)
	values = map[string]schema.Value{number.Name: n("0.5")}
	g.set(values)
	applied(values)
	wasSent(choice.Name, nil)
	if got := g.e.running().Get(choice.Name); !got.Equal(schema.Text(last)) {
		t.Errorf("%s is not set any more, and the server runs %v", choice.Name, got)
	}
	sent = g.e.sent()
	g.e.change(func() { g.e.asked, g.e.runs = 0, g.e.runs.With(choice.Name, schema.Text(choice.Values[0])) })
	g.until("it was read again", func() (read bool) { g.e.change(func() { read = g.e.asked > 2 }); return read })
	if v, err := g.view(); err != nil || !v.InSync || v.Drift != nil || g.e.sent() != sent {
		t.Errorf("the server changed what is its own: in sync %v, drift %+v %v", v.InSync, v.Drift, err)
	}

	g.order("rollback", "1", "--reason", "colder")
	g.await("rolled back", func(v view) bool { return v.State == apply.StateHeld && v.Current.Get(number.Name).Equal(n("0.7")) })
	wasSent(number.Name, json.Number("0.70"))
	wasSent(choice.Name, nil)
	if out := g.order("show", "1"); !regexp.MustCompile(number.Name + ` +0\.70\b`).MatchString(out) {
		t.Errorf("agent show 1 says %s", out)
	}
	g.wantMetric("dtesn_agent_drift_total", 0)
}
