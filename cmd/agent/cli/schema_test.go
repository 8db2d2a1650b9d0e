package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dtesn-agent/schema"
)

// more extends the embedded schema by an environment and two parameters.
const more = `package dtesn
#extends: "dtesn"
#environments: canary: {label: "production"}
#Parameters: {
	quantization?: "int8" | "int4" | "none" @dtesn(apply=rebuild, description="Weights")
	temperature?:  number & >=0 & <=2       @dtesn(description="Sampling temperature")
}
`

// command runs one command line.
func command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = Run(t.Context(), args, &out, &err)
	return code, out.String(), err.String()
}

// expect runs a command line and checks its exit code and texts of its output,
// of which those with "! " must be absent.
func expect(t *testing.T, want int, texts []string, args ...string) (stdout string) {
	t.Helper()
	code, stdout, stderr := command(t, args...)
	if code != want {
		t.Errorf("agent %v: exit code %d, want %d\n%s%s", args, code, want, stdout, stderr)
	}
	for _, text := range texts {
		absent, isAbsent := strings.CutPrefix(text, "! ")
		if isAbsent && strings.Contains(stdout+stderr, absent) || !isAbsent && !strings.Contains(stdout+stderr, text) {
			t.Errorf("agent %v, want %q:\n%s%s", args, text, stdout, stderr)
		}
	}
	return stdout
}

// files makes a directory with these files, base.yaml with all that the embedded
// schema requires among them, and goes there.
func files(t *testing.T, texts map[string]string) {
	t.Helper()
	t.Chdir(t.TempDir())
	base := "parameters:\n"
	defaults := schema.Default().For("production").Defaults()
	for line := range strings.Lines(string(defaults.YAML())) {
		base += "  " + line
	}
	write(t, "config/base.yaml", base)
	for path, text := range texts {
		write(t, path, text)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestSchemaTakesBackWhatItPrints(t *testing.T) {
	files(t, map[string]string{"more.cue": more})
	for _, args := range [][]string{nil, {"--schema", "more.cue"}} {
		printed := expect(t, 0, nil, append(args, "schema", "--format", "cue")...)
		write(t, "whole.cue", printed)
		if again := expect(t, 0, nil, "schema", "--schema", "whole.cue", "--format", "cue"); again != printed {
			t.Errorf("%v: printed another schema:\n%s", args, again)
		}
		want := expect(t, 0, nil, append(args, "schema", "--format", "markdown")...)
		if got := expect(t, 0, nil, "schema", "--schema", "whole.cue", "--format", "markdown"); got != want {
			t.Errorf("%v: the table is\n%s\nwant\n%s", args, got, want)
		}
		names := []string{`"esn_reservoir_size"`, `"temperature"`, `"canary"`}
		if args == nil {
			names = []string{`"esn_reservoir_size"`, `! "temperature"`, `! "canary"`}
		}
		expect(t, 0, names, "schema", "--schema", "whole.cue", "--format", "jsonschema")
	}
	expect(t, 0, []string{schema.Default().Digest()[:12]}, "version")
}

func TestSchemaTable(t *testing.T) {
	files(t, map[string]string{"more.cue": `package dtesn
#extends: "dtesn"
#Parameters: {
	quantisation?: "none" | "int8" | "int4" @dtesn(managed, apply=rebuild, description="Bits of a weight")
	temperature?:  number & >=0 & <=1.50    @dtesn(managed, description="Randomness")
	max_tokens?:   int & >=1 & <=4096       @dtesn(unit="tokens", description="Longest answer", impact="latency")
	if #environment == "production" {
		esn_reservoir_size!: <=8192
		#rules: measures: {
			rule: "production measures"
			operands: ["enable_performance_monitoring"]
			holds:   enable_performance_monitoring
			message: "monitoring is off"
			hint:    "set it to true"
		}
	}
}
#defaults: {
	quantisation: "int8"
	temperature:  0.70
}
`})
	expect(t, 0, []string{
		"| `esn_reservoir_size` | int | 64-16384 (production: 64-8192) | 512 | required | yes | ",
		"| `enable_caching` | bool | true/false | true | required | no | ",
		"| `quantisation` | string | none, int8, int4 | int8 | managed | yes | ",
		"| `temperature` | number | 0-1.50 | 0.70 | managed | no | ",
		"| `max_tokens` | int | 1-4096 | none | optional | no | Longest answer (tokens) | latency |\n",
		"* `esn_reservoir_size >= max_membrane_depth * 32`\n",
		"* `production measures` (production)\n",
		"* `development`, to the server `development`\n",
	}, "schema", "--schema", "more.cue", "--format", "markdown")
}

// TestSchemaExtendsEveryCommand: environments and parameters of the file are
// those of the commands.
func TestSchemaExtendsEveryCommand(t *testing.T) {
	files(t, map[string]string{
		"more.cue":              more,
		"config/canary.yaml":    "environment: canary\nparameters: {temperature: 1.50, quantization: int5}\n",
		"config/productio.yaml": "environment: production\n",
	})
	bad := []string{
		"config/canary.yaml:2:47: quantization: Invalid value for quantization: int5 (rule: int8|int4|none); did you mean int8?",
		"canary is not valid: 1 violation", "did you mean production.yaml? rename it",
	}
	expect(t, 3, bad, "validate", "config", "--schema", "more.cue")
	expect(t, 3, bad[:2], "validate", "config", "--schema", "more.cue", "--environment", "canary")
	expect(t, 2, []string{"no environment is named canray: did you mean canary?"}, "validate", "config", "--schema", "more.cue", "--environment", "canray")
	expect(t, 2, []string{"it is one of development, staging, production, testing", "! canary,"}, "validate", "config", "--environment", "canary")
	expect(t, 2, []string{"--environment is needed", "one of development, staging, production, testing, canary"}, "run", "--schema", "more.cue")
	expect(t, 2, []string{"--environment is needed", "one of development"}, "run")
	expect(t, 0, []string{"canary\n"}, "__complete", "run", "--schema", "more.cue", "--environment", "")
	expect(t, 0, []string{"production\n", "! canary\n"}, "__complete", "validate", "--environment", "")

	write(t, "config/canary.yaml", "environment: canary\nparameters: {temperature: 1.50, quantization: int8}\n")
	t.Setenv("DTESN_AGENT_SCHEMA", "more.cue")
	expect(t, 0, []string{"canary\n"}, "__complete", "validate", "--environment", "")
	var answer struct {
		Results []struct {
			Environment string
			Parameters  map[string]json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(expect(t, 0, nil, "validate", "config", "--environment", "canary", "--format", "json")), &answer); err != nil {
		t.Fatal(err)
	}
	if r := answer.Results; len(r) != 1 || r[0].Environment != "canary" || string(r[0].Parameters["temperature"]) != "1.50" || string(r[0].Parameters["quantization"]) != `"int8"` {
		t.Errorf("%+v", r)
	}
	expect(t, 0, []string{"quantization"}, "schema")
}

// TestABadSchemaEndsTheStart holds that it does so before anything is touched.
func TestABadSchemaEndsTheStart(t *testing.T) {
	files(t, map[string]string{
		"bad.cue":                "package dtesn\n#extends: \"dtesn\"\n#Parameters: {\n\ttemperature?: number & >=0 @dtesn(description=\"T\")\n}\n",
		"agent.yaml":             "schema: bad.cue\n",
		"config/production.yaml": "environment: production\n",
	})
	run := []string{"run", "--once", "--environment", "production", "--config", "config", "--embedded-engine", "--state", "state", "--listen", "127.0.0.1:0"}
	wrong := []string{"agent: read schema bad.cue:4:2: parameter temperature has no bounds\n", "\nhint: "}
	for _, args := range [][]string{
		{"validate", "config", "--schema", "bad.cue"},
		{"schema", "--schema", "bad.cue"},
		append(slices.Clone(run), "--schema", "bad.cue"),
		append(slices.Clone(run), "--settings", "agent.yaml"),
	} {
		expect(t, 2, wrong, args...)
	}
	t.Setenv("DTESN_AGENT_SCHEMA", "bad.cue")
	expect(t, 2, wrong, run...)
	expect(t, 2, wrong, "validate", "config")
	t.Setenv("DTESN_AGENT_SCHEMA", "none.cue")
	expect(t, 2, []string{"none.cue: no such file", "hint: "}, run...)
	if _, err := os.Stat("state"); !os.IsNotExist(err) {
		t.Errorf("the state directory was touched: %v", err)
	}
}

// TestRunWithASchema brings an environment of a schema file to a real engine. A
// parameter that this one does not have is told as such, and its record is shown
// by commands that know no schema.
func TestRunWithASchema(t *testing.T) {
	files(t, map[string]string{"more.cue": more, "config/canary.yaml": "environment: canary\ndescription: the six\n"})
	run := []string{"run", "--once", "--environment", "canary", "--config", "config", "--embedded-engine", "--state", "state", "--listen", "127.0.0.1:0", "--schema", "more.cue"}
	expect(t, 0, nil, run...)
	expect(t, 0, []string{"the six", "! quantization"}, "show", "1", "--state", "state")

	write(t, "config/canary.yaml", "environment: canary\nparameters: {quantization: int8}\n")
	expect(t, 1, []string{"the engine does not know quantization"}, append(run, "--once-timeout", "2s")...)
	expect(t, 0, []string{"quantization                   int8     config/canary.yaml:2:28"[:40], "canary.yaml:2:", "quantization unset -> int8"}, "show", "2", "--state", "state")
	expect(t, 0, []string{"quantization unset -> int8"}, "diff", "1", "2", "--state", "state")
}
