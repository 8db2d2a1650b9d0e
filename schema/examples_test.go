package schema

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cuelang.org/go/cue/format"

	"dtesn-agent/schema/problem"
)

func openExample(t *testing.T, name string) *Schema {
	t.Helper()
	s, err := Open(filepath.Join("../examples/schema", name))
	if err != nil {
		t.Fatal(problem.Text(err))
	}
	return s
}

// exampleInput are the files of examples/config for an environment. A parameter
// that was added to the embedded schema since has its default.
func exampleInput(t *testing.T, env Environment) Input {
	t.Helper()
	in := Input{Instance: "node-1"}
	add := func(path string) {
		text, err := os.ReadFile(filepath.Join("../examples/config", path))
		if err != nil {
			t.Fatal(err)
		}
		in.Files = append(in.Files, NewFile(path, text))
	}
	add(BaseFile)
	add(env.File())
	for _, path := range Extends(in.Files[1]) {
		add(path)
	}
	for _, p := range Default().For(env).Parameters() {
		if p.Required && !names(string(in.Files[0].Bytes), p.Name) {
			in = withText(in, fmt.Sprintf("%s: %v", p.Name, p.Default))
		}
	}
	return in
}

// withText adds lines to the parameters of base.yaml.
func withText(in Input, lines ...string) Input {
	base := strings.TrimRight(string(in.Files[0].Bytes), "\n") + "\n"
	for _, line := range lines {
		base += "  " + line + "\n"
	}
	in.Files[0] = NewFile(BaseFile, []byte(base))
	return in
}

func TestExampleSchemas(t *testing.T) {
	paths, err := filepath.Glob("../examples/schema/*.cue")
	if err != nil || len(paths) != 2 {
		t.Fatalf("%v, %v; each needs a test of what its comments say", paths, err)
	}
	readme, err := os.ReadFile("../examples/schema/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		formatted, err := format.Source(text)
		if err != nil || string(formatted) != string(text) {
			t.Errorf("%s is not formatted (%v); cue fmt makes it\n%s", path, err, formatted)
		}
		if name := filepath.Base(path); !strings.Contains(string(readme), "`"+name+"`") || !strings.Contains(string(text), "--schema examples/schema/"+name) {
			t.Errorf("README or the file itself does not say how to use %s", name)
		}
	}
}

func TestModelServing(t *testing.T) {
	s := openExample(t, "model-serving.cue")
	for _, env := range Default().Environments() {
		old, v := Default().For(env).Load(exampleInput(t, env))
		if v != nil {
			t.Fatal(v)
		}
		c, v := s.For(env).Load(exampleInput(t, env))
		if v != nil {
			t.Fatalf("examples/config is invalid in %s: %v", env, v)
		}
		want := old.Parameters.With("scheduler_budget", Int(8192)).With("max_tokens", Int(1024))
		if !c.Parameters.Equal(want) {
			t.Errorf("%s: got %v, want %v", env, c.Parameters, want)
		}
	}
	r := s.For("production")
	c, v := r.Load(withText(exampleInput(t, "production"), "default_temperature: 0.50", "quantisation: int4", "max_tokens: 8192"))
	if v != nil || c.Parameters.Get("default_temperature").String() != "0.50" || c.Parameters.Get("quantisation") != Text("int4") {
		t.Errorf("%v, %v", c, v)
	}
	if !r.Parameter("quantisation").Critical || r.Parameter("max_tokens").Critical {
		t.Error("how they are applied")
	}
	for lines, want := range map[string]string{
		"default_temperature: 1.5":                     "",
		"quantisation: int4":                           "",
		"quantisation: int4\n  default_temperature: 1": "",
		"quantisation: int4\n  default_temperature: 2": "default_temperature is 2, and int4 answers above 1 are noise",
		"quantisation: in4":                            "did you mean int4?",
		"max_tokens: 20000\n  scheduler_budget: 30000": "",
		"max_tokens: 20000\n  scheduler_budget: 10000": "an answer of 20000 tokens does not fit into a step of 10000",
		"max_tokens: 20000":                            "an answer of 20000 tokens does not fit into a step of 8192",
		"scheduler_budget: 512":                        "an answer of 1024 tokens does not fit into a step of 512",
	} {
		_, v := r.Load(withText(exampleInput(t, "production"), lines))
		if want == "" && v != nil || want != "" && (v == nil || v.Total != 1 || !strings.Contains(v.Error(), want) || v.List[0].File != BaseFile) {
			t.Errorf("%s: %v, want %s", lines, v, want)
		}
	}
}

func TestStrictProduction(t *testing.T) {
	s := openExample(t, "strict-production.cue")
	for _, env := range Default().Environments() {
		_, v := s.For(env).Load(exampleInput(t, env))
		if env != "production" {
			if v != nil {
				t.Errorf("%s: %v", env, v)
			}
			continue
		}
		want := "templates/high-throughput.yaml:16:34: enable_performance_monitoring: enable_performance_monitoring is off in production (rule: production needs enable_performance_monitoring true); set it to true in production.yaml; a template may leave it off for others"
		if v == nil || v.Error() != want {
			t.Errorf("got  %v\nwant %s", v, want)
		}
	}
	canary := func(parameters string) Input {
		return Input{Files: []File{NewFile(BaseFile, []byte(baseText)), NewFile("canary.yaml", []byte("environment: canary\nparameters: {"+parameters+"}\n"))}}
	}
	if s.Label("canary") != "production" {
		t.Errorf("the canary is told that it is in %s", s.Label("canary"))
	}
	for parameters, want := range map[string]string{
		"esn_reservoir_size: 8192":             "",
		"esn_reservoir_size: 8193":             "(rule: 64-8192)",
		"enable_performance_monitoring: false": "off in canary",
	} {
		_, v := s.For("canary").Load(canary(parameters))
		if want == "" && v != nil || want != "" && (v == nil || !strings.Contains(v.Error(), want)) {
			t.Errorf("%s: %v, want %s", parameters, v, want)
		}
	}
}
