package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dtesn-agent/schema/problem"
)

// mustParse makes a Schema of the text of a file.
func mustParse(t testing.TB, text string) *Schema {
	t.Helper()
	s, err := read("schema.cue", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const extends = "package dtesn\n\n#extends: \"dtesn\"\n"

// ofAllTypes extends the embedded schema by a parameter of each type, and by
// optional ones.
const ofAllTypes = extends + `
#Parameters: {
	scheduler_budget!: int & >=1 & <=1000    @dtesn(apply=rebuild, unit="ms", description="Time of one step")
	max_tokens?:       int & >=1 & <=4096    @dtesn(description="Longest answer", impact="latency")
	temperature?:      number & >=0 & <=1.50 @dtesn(managed, description="Randomness")
	top_p?:            number & >=0 & <=1    @dtesn(description="Nucleus")
	quantisation?:     "none" | "int8" | "int4" @dtesn(managed, apply=rebuild, description="Bits of a weight")
	streaming?:        bool                  @dtesn(description="Answer in parts")

	#rules: tokens_fit_budget: {
		rule: "max_tokens <= scheduler_budget * 10"
		operands: ["max_tokens", "scheduler_budget"]
		holds:   max_tokens <= scheduler_budget*10
		message: "\(max_tokens) tokens do not fit into \(scheduler_budget) ms"
		hint:    "set max_tokens to \(scheduler_budget*10) or less"
	}
}
#defaults: {
	scheduler_budget: 100
	temperature:      0.70
	top_p:            0.9
	quantisation:     "int8"
}
#environments: canary: label: "production"
`

// oneParameterMore returns the embedded schema, and with one parameter more of
// each sort. What does not name that parameter must not notice it.
func oneParameterMore(t *testing.T) map[string]*Schema {
	return map[string]*Schema{
		"as it is":  Default(),
		"optional":  mustParse(t, extends+"#Parameters: a_first?: int & >=5 & <=9 @dtesn(description=\"x\")\n"),
		"managed":   mustParse(t, extends+"#Parameters: a_first?: bool @dtesn(managed, description=\"x\")\n#defaults: a_first: true\n"),
		"required":  mustParse(t, extends+"#Parameters: a_first!: int & >=5 & <=9 @dtesn(description=\"x\")\n#defaults: a_first: 7\n"),
		"last":      mustParse(t, extends+"#Parameters: z_last!: \"p\" | \"q\" @dtesn(description=\"x\")\n#defaults: z_last: \"p\"\n"),
		"six more ": mustParse(t, ofAllTypes),
	}
}

// replacement is a schema that has nothing of the embedded one.
const replacement = `package other

#environments: {
	blue: {}
	"prod-eu": {label: "production"}
}
#environment: string
#percent:     int & >=0 & <=50
#Parameters: {
	threads!: int & >=1 & <=64 @dtesn(description="Threads")
	share?:   number & >=-1 & <=1 @dtesn(description="Share")
	if #environment == "prod-eu" {
		threads!: >=8
		#rules: shared: {
			rule: "share is set"
			operands: ["share", "threads"]
			holds:   share != _|_
			message: "share must be set in \(#environment)"
			hint:    "set share"
		}
	}
	#rules: [string]: {...}
}
#defaults: {
	threads: 8
	share:   0
}
`

func load(t *testing.T, s *Schema, env Environment, parameters string) (Parameters, *Violations) {
	t.Helper()
	base := "parameters:\n" + indented(s.For(env).Defaults())
	c, v := s.For(env).Load(Input{Files: []File{
		NewFile(BaseFile, []byte(base)),
		NewFile(env.File(), []byte("environment: "+string(env)+"\nparameters: {"+parameters+"}\n")),
	}})
	if v != nil {
		return Parameters{}, v
	}
	return c.Parameters, nil
}

// placeIn is the place of a managed parameter in the base.yaml of load.
func placeIn(s *Schema, name string) string {
	return fmt.Sprintf("%d:%d", slices.Index(s.For("production").Defaults().Names(), name)+2, len("  "+name+": ")+1)
}

// A value is one type, from the file to the record.
func TestNumbersAndTexts(t *testing.T) {
	s := mustParse(t, ofAllTypes)
	p, v := load(t, s, "production", "temperature: 1.50, quantisation: 'int4'")
	if v != nil {
		t.Fatal(v)
	}
	q, v := load(t, s, "production", "temperature: 1.5, quantisation: int4")
	if v != nil {
		t.Fatal(v)
	}
	text, err := json.Marshal(p)
	if err != nil || !strings.Contains(string(text), `"quantisation":"int4"`) || !strings.Contains(string(text), `"temperature":1.50`) {
		t.Errorf("JSON %s, %v", text, err)
	}
	if yaml := string(p.YAML()); !strings.Contains(yaml, "\nquantisation: \"int4\"\n") || !strings.Contains(yaml, "\ntemperature: 1.50\n") {
		t.Errorf("YAML %s", yaml)
	}
	if got := p.Map()["temperature"].String(); got != "1.50" {
		t.Errorf("Map has %s", got)
	}
	if !p.Equal(q) || p.Digest() != q.Digest() || s.For("production").Diff(p, q) != nil {
		t.Errorf("%v and %v differ", p, q)
	}

	for given, want := range map[string]string{
		"temperature: 0":         "",
		"temperature: 1.50":      "",
		"temperature: 15e-1":     "",
		"temperature: 1.51":      `temperature: Invalid value for temperature: 1.51 (rule: 0-1.50); use a number from 0 to 1.50; the default is 0.70`,
		"temperature: -0.1":      `temperature: Invalid value for temperature: -0.1 (rule: 0-1.50); use a number from 0 to 1.50; the default is 0.70`,
		"temperature: '1'":       `temperature: Invalid value for temperature: "1" (rule: a number in decimal digits, as in JSON); write 1`,
		"temperature: .5":        `temperature: Invalid value for temperature: .5 (rule: a number in decimal digits, as in JSON); write 0.5`,
		"temperature: 1e999":     `temperature: Invalid value for temperature: 1e999 (rule: a number in decimal digits, as in JSON); use a number from 0 to 1.50; the default is 0.70`,
		"temperature: .nan":      `temperature: Invalid value for temperature: .nan (rule: a number in decimal digits, as in JSON); use a number from 0 to 1.50; the default is 0.70`,
		"temperature: true":      `temperature: Invalid value for temperature: true (rule: a number in decimal digits, as in JSON); use a number from 0 to 1.50; the default is 0.70`,
		"max_tokens: 1.0":        `max_tokens: Invalid value for max_tokens: 1.0 (rule: an integer in plain decimal digits); write 1`,
		"quantisation: none":     "",
		`quantisation: "none"`:   "",
		"quantisation: in8":      `quantisation: Invalid value for quantisation: in8 (rule: none|int8|int4); did you mean int8?; the default is int8`,
		"quantisation: INT4":     `quantisation: Invalid value for quantisation: INT4 (rule: none|int8|int4); did you mean int4?; the default is int8`,
		"quantisation: ''":       `quantisation: Invalid value for quantisation: "" (rule: none|int8|int4); use none, int8, int4; the default is int8`,
		"quantisation: 8":        `quantisation: Invalid value for quantisation: 8 (rule: none|int8|int4); use none, int8, int4; the default is int8`,
		"quantisation: $QUANT":   `quantisation: Invalid value for quantisation: "$QUANT" (rule: none|int8|int4); use none, int8, int4; the default is int8`,
		"quantisation: [int8]":   `quantisation: Invalid value for quantisation: a list (rule: none|int8|int4); use none, int8, int4; the default is int8`,
		"quantisation: ":         `parameters.quantisation has no value (rule: no empty values); give it a value or remove it`,
		"quantisaton: int8":      `parameters.quantisaton: unknown key quantisaton (rule: known keys only); did you mean quantisation?`,
		"streaming: no":          `streaming: Invalid value for streaming: no (rule: true or false, without quotes); write false`,
		"max_tokens: 1001":       `max_tokens: 1001 tokens do not fit into 100 ms (rule: max_tokens <= scheduler_budget * 10); set max_tokens to 1000 or less [see base.yaml:` + placeIn(s, "scheduler_budget") + `]`,
		"scheduler_budget: 99":   "", // without max_tokens nothing is to be compared
		"parameters: {depth: 1}": `parameters.parameters: unknown key parameters (rule: known keys only); it is one of ` + strings.Join(s.Names(), ", ") + "; others need --schema FILE.cue",
	} {
		_, v := load(t, s, "production", given)
		got := ""
		if v != nil {
			got = regexp.MustCompile(`^production\.yaml:2:\d+: `).ReplaceAllString(v.Error(), "")
		}
		if got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", given, got, want)
		}
	}
}

// A parameter that is neither required nor managed is not there until a layer
// sets it.
func TestUnmanagedParameters(t *testing.T) {
	s := mustParse(t, ofAllTypes)
	r := s.For("production")
	p, v := load(t, s, "production", "")
	if v != nil {
		t.Fatal(v)
	}
	for _, info := range r.Parameters() {
		if p.Get(info.Name).IsZero() == info.Managed {
			t.Errorf("%s, managed %v, is %v", info.Name, info.Managed, p.Get(info.Name))
		}
	}
	if !p.Equal(r.Defaults()) || !p.Equal(r.Complete(Parameters{})) {
		t.Errorf("%v is not what is managed", p)
	}
	if p, _ := load(t, s, "production", "top_p: 0.95, streaming: true"); p.Get("top_p").String() != "0.95" || !p.Get("streaming").Bool() || p.Len() != len(r.Defaults().Names())+2 {
		t.Errorf("set: %v", p)
	}
	c, _ := r.Load(Input{Files: []File{
		NewFile(BaseFile, []byte(baseText+"  scheduler_budget: 50\n")),
		NewFile("production.yaml", []byte("environment: production\n")),
	}})
	if c.Provenance["quantisation"].Layer != layerSchema || c.Provenance["scheduler_budget"].Layer != layerBase || len(c.Provenance) != c.Parameters.Len() {
		t.Errorf("provenance %+v", c.Provenance)
	}
}

// Records of other schemas, older and newer, have a meaning under this one.
func TestKnownCompleteDiff(t *testing.T) {
	older, newer := production(), mustParse(t, ofAllTypes).For("production")
	p := older.Defaults().With("max_membrane_depth", Int(8))

	if got := newer.Complete(p); !got.Contains(p) || got.Len() != len(newer.Defaults().Names()) || got.Get("quantisation") != Text("int8") {
		t.Errorf("upwards: %v", got)
	}
	q := newer.Complete(p).With("top_p", Int(1))
	if got := older.Complete(q); !got.Equal(p) {
		t.Errorf("downwards: %v", got)
	}
	if got := older.Known(q); !got.Equal(p) {
		t.Errorf("Known: %v", got)
	}
	if v := older.CheckParameters(q); v != nil {
		t.Errorf("what a newer schema has is a violation: %v", v)
	}
	if v := newer.CheckParameters(p); len(v) != 1 || v[0].Parameter != "scheduler_budget" {
		t.Errorf("what is missing: %v", v)
	}
	if !q.Contains(p) || p.Contains(q) {
		t.Error("Contains")
	}
	var got []string
	for _, c := range newer.Diff(p, q) {
		got = append(got, c.String()+" "+c.Apply)
	}
	want := []string{"quantisation unset -> int8 (critical) rebuild", "scheduler_budget unset -> 100 (critical) rebuild", "temperature unset -> 0.70 hot", "top_p unset -> 1 hot"}
	if !slices.Equal(got, want) {
		t.Errorf("Diff %q, want %q", got, want)
	}
	if c := older.Diff(p, q); len(c) != 4 || c[0].Apply != "" || c[0].Critical {
		t.Errorf("of unknown parameters: %+v", c)
	}
}

// Bounds and rules may depend on the environment.
func TestRulesKnowTheirEnvironment(t *testing.T) {
	s := mustParse(t, extends+`
#Parameters: {
	if #environment == "production" {
		esn_reservoir_size!: <=8192
		#rules: production_measures: {
			rule: "production measures"
			operands: ["enable_performance_monitoring"]
			holds:   enable_performance_monitoring
			message: "monitoring is off in \(#environment)"
			hint:    "set enable_performance_monitoring to true"
		}
	}
}
`)
	for _, env := range s.Environments() {
		refused := ""
		for given, want := range map[string]string{
			"esn_reservoir_size: 16384":            "Invalid value for esn_reservoir_size: 16384 (rule: 64-8192); use an integer from 64 to 8192; the default is 512",
			"enable_performance_monitoring: false": "monitoring is off in production (rule: production measures); set enable_performance_monitoring to true",
		} {
			_, v := load(t, s, env, given)
			if v != nil {
				refused += given
			}
			if env == "production" && (v == nil || !strings.HasSuffix(v.Error(), want)) {
				t.Errorf("%s: %v, want %s", given, v, want)
			}
		}
		if env != "production" && refused != "" {
			t.Errorf("%s refuses %s", env, refused)
		}
	}
	if n, m := len(s.For("production").relations), len(s.For("staging").relations); n != m+1 {
		t.Errorf("%d and %d rules", n, m)
	}

	// base.yaml serves all environments: an editor takes what one of them takes.
	editor := compileJSONSchema(t, s)
	for text, want := range map[string]bool{"parameters: {esn_reservoir_size: 16384}\n": true, "parameters: {esn_reservoir_size: 16385}\n": false} {
		v, err := asJSON(t, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := editor.Validate(v); (err == nil) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
	if list := s.Relations("`%s`"); !slices.Contains(list, "`production measures` (production)") {
		t.Errorf("Relations says nothing of it: %q", list)
	}
}

func TestFurtherEnvironments(t *testing.T) {
	s := mustParse(t, extends+"#environments: {\n\tcanary: label: \"production\"\n\t\"prod-eu\": {}\n}\n")
	if got := s.Environments(); !slices.Equal(got, append(Default().Environments(), "canary", "prod-eu")) {
		t.Errorf("environments %v", got)
	}
	for env, want := range map[Environment]string{"canary": "production", "prod-eu": "prod-eu", "staging": "staging", "unknown": "unknown"} {
		if got := s.Label(env); got != want {
			t.Errorf("label of %s: %s", env, got)
		}
	}
	if _, v := load(t, s, "canary", "max_membrane_depth: 8"); v != nil {
		t.Error(v)
	}
	if _, err := s.ParseEnvironment("prod-us"); err == nil || !strings.Contains(err.Error(), "did you mean prod-eu?") {
		t.Error(err)
	}
}

func TestReplacement(t *testing.T) {
	s := mustParse(t, replacement)
	if !slices.Equal(s.Environments(), []Environment{"blue", "prod-eu"}) || !slices.Equal(s.Names(), []string{"share", "threads"}) || s.Label("prod-eu") != "production" {
		t.Errorf("%v %v", s.Environments(), s.Names())
	}
	if p, v := load(t, s, "blue", "threads: 2"); v != nil || p.String() != "threads: 2" {
		t.Errorf("%v, %v", p, v)
	}
	for given, want := range map[string]string{
		"threads: 2, share: 0": "Invalid value for threads: 2 (rule: 8-64)",
		"threads: 9":           "share must be set in prod-eu (rule: share is set)",
	} {
		if _, v := load(t, s, "prod-eu", given); v == nil || !strings.Contains(v.Error(), want) {
			t.Errorf("%s: %v", given, v)
		}
	}
	_, v := s.For("blue").Load(Input{Files: []File{
		NewFile(BaseFile, []byte("parameters: {threads: 1}\n")),
		NewFile("blue.yaml", []byte("environment: blue\nexperiments: [{name: a, percent: 51, parameters: {threads: 2}}]\n")),
	}})
	if v == nil || !strings.Contains(v.Error(), "Invalid value for percent: 51 (rule: 0-50)") {
		t.Errorf("percent: %v", v)
	}
}

// What CUE prints is a schema file that means the same.
func TestCUEIsReadBack(t *testing.T) {
	texts := map[string]string{"embedded": string(embedded), "replacement": replacement, "all types": ofAllTypes}
	paths, err := filepath.Glob("../examples/schema/*.cue")
	if err != nil || len(paths) < 2 {
		t.Fatalf("%d examples, %v", len(paths), err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.Base(path)] = string(text)
	}
	for name, text := range texts {
		t.Run(name, func(t *testing.T) {
			first := mustParse(t, text)
			path := filepath.Join(t.TempDir(), "printed.cue")
			if err := os.WriteFile(path, first.CUE(), 0o600); err != nil {
				t.Fatal(err)
			}
			second, err := Open(path)
			if err != nil {
				t.Fatal(problem.Text(err))
			}
			if !bytes.Equal(first.CUE(), second.CUE()) || first.Digest() != second.Digest() {
				t.Errorf("printed again it is\n%s", second.CUE())
			}
			if !slices.Equal(first.Environments(), second.Environments()) || !slices.Equal(first.Relations("%s"), second.Relations("%s")) {
				t.Errorf("%v\n%q", second.Environments(), second.Relations("%s"))
			}
			for _, env := range first.Environments() {
				a, b := first.For(env), second.For(env)
				if !reflect.DeepEqual(a.Parameters(), b.Parameters()) || !reflect.DeepEqual(a.relations, b.relations) || first.Label(env) != second.Label(env) {
					t.Errorf("%s differs", env)
				}
			}
			a, err := first.JSONSchema()
			b, err2 := second.JSONSchema()
			if err != nil || err2 != nil || !bytes.Equal(a, b) {
				t.Errorf("the JSON Schema differs: %v, %v", err, err2)
			}
		})
	}
}

// A rule that cannot be evaluated for some values is broken by them, not kept.
func TestRuleThatFailsLater(t *testing.T) {
	s := mustParse(t, extends+`
#Parameters: {
	divisor!: int & >=0 & <=9 @dtesn(description="x")
	#rules: "divide-it": {
		rule: "512 / divisor is 100 at least"
		operands: ["divisor"]
		holds:   div(512, divisor) >= 100
		message: "too large"
		hint:    "less"
	}
}
#defaults: divisor: 1
`)
	for given, want := range map[string]string{
		"divisor: 5": "",
		"divisor: 6": "too large (rule: 512 / divisor is 100 at least); less",
		"divisor: 0": "division by zero (rule: 512 / divisor is 100 at least); correct the rule divide-it in the schema",
	} {
		_, v := load(t, s, "production", given)
		if want == "" && v != nil || want != "" && (v == nil || !strings.HasSuffix(v.Error(), want)) {
			t.Errorf("%s: %v, want %s", given, v, want)
		}
	}
}

// The embedded schema is read for its first environment only: as a file, which is
// read for each, it says the same.
func TestEmbeddedIsTheSameEverywhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "schema.cue")
	if err := os.WriteFile(path, Default().CUE(), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, env := range Default().Environments() {
		if !reflect.DeepEqual(s.For(env).Parameters(), Default().For(env).Parameters()) || !reflect.DeepEqual(s.For(env).relations, Default().For(env).relations) {
			t.Errorf("%s differs", env)
		}
	}
}
