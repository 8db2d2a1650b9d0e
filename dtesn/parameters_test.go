package dtesn

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/schema"
)

// extended returns the rules for canary of a schema with parameters of all
// types, whose servers are told that they are production.
func extended(t *testing.T) *schema.Rules {
	t.Helper()
	path := filepath.Join(t.TempDir(), "more.cue")
	if err := os.WriteFile(path, []byte(`package dtesn
#extends: "dtesn"
#environments: canary: {label: "production"}
#Parameters: {
	quantization?: "int8" | "int4" | "none" @dtesn(apply=rebuild, description="Weights")
	temperature?:  number & >=0 & <=2       @dtesn(description="Sampling temperature")
}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := schema.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s.For("canary")
}

func number(t *testing.T, text string) schema.Value {
	t.Helper()
	v, ok := schema.Number(text)
	if !ok {
		t.Fatalf("%s is not a number", text)
	}
	return v
}

// A batch has what it was given and nothing else, with the label of the
// environment and the digits as they are written.
func TestSendKeepsDigitsAndTexts(t *testing.T) {
	t.Parallel()
	m := (&misbehaver{}).start(t)
	c := New(Options{Socket: m.socket, Rules: extended(t)})
	sent := api.Batch{SnapshotID: "snapshot_1_0001", Parameters: schema.NewParameters(map[string]schema.Value{
		"temperature": number(t, "1.50"), "quantization": schema.Text("int8"), "max_membrane_depth": schema.Int(4), "enable_caching": schema.Bool(false),
	})}
	if answer := c.Send(t.Context(), sent); answer.Verdict != api.VerdictAccepted {
		t.Fatal(answer.Err)
	}
	want := `{"updates":[{"parameter":"enable_caching","value":false,"environment":"production"},{"parameter":"max_membrane_depth","value":4,"environment":"production"},{"parameter":"quantization","value":"int8","environment":"production"},{"parameter":"temperature","value":1.50,"environment":"production"}],"snapshot_id":"snapshot_1_0001"}`
	if got := string(*m.body.Load()); got != want {
		t.Errorf("sent %s\nwant %s", got, want)
	}
	if label := *m.label.Load(); label != "production" {
		t.Errorf("the server was told that it is %q", label)
	}
}

// A Reading has the parameters that the schema has and the engine reports.
func TestReadByName(t *testing.T) {
	t.Parallel()
	more := extended(t)
	with := func(values map[string]schema.Value) schema.Parameters {
		all := running.Map()
		maps.Copy(all, values)
		return schema.NewParameters(all)
	}
	for name, row := range map[string]struct {
		rules  *schema.Rules
		change map[string]any
		want   schema.Parameters
	}{
		"as the schema":          {rules, nil, running},
		"one less":               {rules, map[string]any{"bseries_max_order": "gone"}, with(map[string]schema.Value{"bseries_max_order": {}})},
		"one null":               {rules, map[string]any{"esn_reservoir_size": nil}, with(map[string]schema.Value{"esn_reservoir_size": {}})},
		"one more":               {rules, map[string]any{"temperature": "hot", "a\x1b": []int{1}}, running},
		"another case":           {rules, map[string]any{"BSERIES_MAX_ORDER": 1}, running},
		"optional, not reported": {more, nil, running},
		"all types": {
			more,
			map[string]any{"temperature": json.Number("0.70"), "quantization": "int4"},
			with(map[string]schema.Value{"temperature": number(t, "0.7"), "quantization": schema.Text("int4")}),
		},
		"a whole float":               {rules, map[string]any{"esn_reservoir_size": json.Number("512.0")}, with(map[string]schema.Value{"esn_reservoir_size": schema.Int(512)})},
		"a whole exponent":            {rules, map[string]any{"esn_reservoir_size": json.Number("5.12e2")}, with(map[string]schema.Value{"esn_reservoir_size": schema.Int(512)})},
		"a number may be an integer":  {more, map[string]any{"temperature": 1}, with(map[string]schema.Value{"temperature": schema.Int(1)})},
		"beyond what the schema says": {more, map[string]any{"temperature": 9, "quantization": "fp8", "max_membrane_depth": -1}, with(map[string]schema.Value{"temperature": schema.Int(9), "quantization": schema.Text("fp8"), "max_membrane_depth": schema.Int(-1)})},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := (&misbehaver{onCurrent: replies(200, currentAnswer("production", row.change))}).start(t)
			reading, err := New(Options{Socket: m.socket, Rules: row.rules}).Read(t.Context())
			if err != nil || !reading.Parameters.Equal(row.want) || reading.Relabelled != "" {
				t.Errorf("read %v, %v; want %v", reading.Parameters, err, row.want)
			}
		})
	}
	for name, row := range map[string]struct {
		change map[string]any
		says   string
	}{
		"a string for a number":  {map[string]any{"temperature": "0.7"}, `"0.7"`},
		"a bool for a number":    {map[string]any{"temperature": true}, `true`},
		"beyond float64":         {map[string]any{"temperature": json.Number("1e400")}, `1e400`},
		"a number without end":   {map[string]any{"temperature": json.Number("1." + strings.Repeat("0", 1000))}, `1.000`},
		"a number for a string":  {map[string]any{"quantization": 4}, `4`},
		"a list for a string":    {map[string]any{"quantization": []string{"int4"}}, `["int4"]`},
		"a string of two lines":  {map[string]any{"quantization": "int4\n\x1b[31m"}, `"int4\n\u001b[31m"`},
		"a string without end":   {map[string]any{"quantization": strings.Repeat("x", 10_000)}, `"xxx`},
		"an object for a number": {map[string]any{"temperature": map[string]any{}}, `{}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := (&misbehaver{onCurrent: replies(200, currentAnswer("production", row.change))}).start(t)
			reading, err := New(Options{Socket: m.socket, Rules: more}).Read(t.Context())
			for name := range row.change {
				if err != nil || !reading.Parameters.Equal(running) || reading.Knows(name) || !strings.HasPrefix(reading.Mistyped[name], row.says) || len(reading.Mistyped[name]) > maxReason {
					t.Errorf("%+v %v, want %q of %s", reading, err, row.says, name)
				}
			}
		})
	}
}

// A null is a parameter that the engine has.
func TestReadNull(t *testing.T) {
	t.Parallel()
	m := (&misbehaver{onCurrent: replies(200, currentAnswer("production", map[string]any{"temperature": nil}))}).start(t)
	reading, err := New(Options{Socket: m.socket, Rules: extended(t)}).Read(t.Context())
	if err != nil || !reading.Parameters.Equal(running) || !reading.Knows("temperature") || reading.Knows("quantization") {
		t.Errorf("%+v %v", reading, err)
	}
}
