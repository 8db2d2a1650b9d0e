package schema

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
)

// with returns the defaults with some values changed; nil removes one.
func with(changes map[string]any) map[string]any {
	values := map[string]any{}
	for name, v := range production().Defaults().Map() {
		values[name] = v
	}
	for name, value := range changes {
		values[name] = value
		if value == absent {
			delete(values, name)
		}
	}
	return values
}

var absent = new(int)

func TestCheck(t *testing.T) {
	const (
		useDepth = "; use an integer from 1 to 64; the default is 4"
		useOrder = "; use an integer from 1 to 32; the default is 8"
	)
	for _, c := range []struct {
		name    string
		changes map[string]any
		want    []string
	}{
		{"defaults", nil, nil},
		{"float64", map[string]any{"max_membrane_depth": 8.0, "esn_reservoir_size": 2048.0}, nil},
		{"json.Number", map[string]any{"max_membrane_depth": json.Number("8")}, nil},
		{"other ints", map[string]any{"max_membrane_depth": int64(8), "bseries_max_order": uint8(3)}, nil},
		{"ttl absent, caching off", map[string]any{"cache_ttl_seconds": absent, "enable_caching": false}, nil},
		{"out of range", map[string]any{"max_membrane_depth": 100}, []string{"Invalid value for max_membrane_depth: 100 (rule: 1-64)" + useDepth}},
		{"fraction", map[string]any{"max_membrane_depth": 4.5}, []string{"Invalid value for max_membrane_depth: 4.5 (rule: 1-64)" + useDepth}},
		{"number with a fraction", map[string]any{"max_membrane_depth": json.Number("4.0")}, []string{"Invalid value for max_membrane_depth: 4.0 (rule: 1-64)" + useDepth}},
		{"huge float", map[string]any{"max_membrane_depth": 1e300}, []string{"Invalid value for max_membrane_depth: 1e+300 (rule: 1-64)" + useDepth}},
		{"NaN", map[string]any{"max_membrane_depth": math.NaN()}, []string{"Invalid value for max_membrane_depth: NaN (rule: 1-64)" + useDepth}},
		{"huge uint", map[string]any{"max_membrane_depth": uint64(math.MaxUint64)}, []string{"Invalid value for max_membrane_depth: 18446744073709551615 (rule: 1-64)" + useDepth}},
		{"string", map[string]any{"max_membrane_depth": "8"}, []string{`Invalid value for max_membrane_depth: "8" (rule: 1-64)` + useDepth}},
		{"bool for int", map[string]any{"bseries_max_order": true}, []string{"Invalid value for bseries_max_order: true (rule: 1-32)" + useOrder}},
		{"null", map[string]any{"bseries_max_order": nil}, []string{"Invalid value for bseries_max_order: null (rule: 1-32)" + useOrder}},
		{"list", map[string]any{"bseries_max_order": []any{1}}, []string{"Invalid value for bseries_max_order: a list (rule: 1-32)" + useOrder}},
		{"object", map[string]any{"bseries_max_order": map[string]any{}}, []string{"Invalid value for bseries_max_order: an object (rule: 1-32)" + useOrder}},
		{"struct", map[string]any{"bseries_max_order": struct{}{}}, []string{"Invalid value for bseries_max_order: an object (rule: 1-32)" + useOrder}},
		{"int for bool", map[string]any{"enable_caching": 1}, []string{"Invalid value for enable_caching: 1 (rule: true/false); use true or false; the default is true"}},
		{"string for bool", map[string]any{"enable_caching": "true"}, []string{`Invalid value for enable_caching: "true" (rule: true/false); use true or false; the default is true`}},
		{"missing", map[string]any{"bseries_max_order": absent}, []string{"bseries_max_order is missing (rule: every required parameter is set); set it, for instance to the default, 8"}},
		{"unknown", map[string]any{"esn_resevoir_size": 5}, []string{"no parameter is named esn_resevoir_size (rule: known parameters only); did you mean esn_reservoir_size?"}},
		{
			"capacity",
			map[string]any{"esn_reservoir_size": 64},
			[]string{"esn_reservoir_size: ESN reservoir size (64) should be at least 128 for membrane depth 4 (rule: esn_reservoir_size >= max_membrane_depth * 32); set esn_reservoir_size to 128 or more, or max_membrane_depth to 2 or less"},
		},
		{
			"ttl absent, caching on",
			map[string]any{"cache_ttl_seconds": absent},
			[]string{"cache_ttl_seconds must be set while enable_caching is true (rule: enable_caching true needs cache_ttl_seconds); set cache_ttl_seconds, for instance to 300, or enable_caching to false"},
		},
		{
			"a rule about a broken value is not judged",
			map[string]any{"max_membrane_depth": 100, "esn_reservoir_size": 64, "cache_ttl_seconds": 0},
			[]string{
				"Invalid value for cache_ttl_seconds: 0 (rule: 1-86400); use an integer from 1 to 86400; the default is 300",
				"Invalid value for max_membrane_depth: 100 (rule: 1-64)" + useDepth,
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, violations := production().Check(with(c.changes))
			var got []string
			for _, v := range violations {
				got = append(got, v.String())
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			if len(violations) == 0 && len(production().CheckParameters(p)) > 0 {
				t.Errorf("%+v is not valid", p)
			}
		})
	}
	p, _ := production().Check(with(map[string]any{"esn_reservoir_size": 2048.0, "enable_caching": false, "cache_ttl_seconds": absent}))
	want := production().Defaults().With("esn_reservoir_size", Int(2048)).With("enable_caching", Bool(false))
	if !p.Equal(want) {
		t.Errorf("got %v, want %v", p, want)
	}
	_, violations := production().Check(nil)
	for _, p := range production().Parameters() {
		if i := slices.IndexFunc(violations, func(v Violation) bool { return v.Parameter == p.Name }); p.Required != (i >= 0) && p.Name != "cache_ttl_seconds" {
			t.Errorf("nothing at all: of %s %v", p.Name, violations)
		}
	}
}

func TestCheckShowsForeignTextSafely(t *testing.T) {
	_, violations := production().Check(with(map[string]any{
		"max_membrane_depth":              strings.Repeat("\x1b]0;evil\a\n", 1000),
		strings.Repeat("x\n", 1<<16):      1,
		"\xff\xfe" + "max_membrane_depth": 1,
		"tab\tseparated \u202e reversed":  1,
	}))
	if len(violations) != 4 {
		t.Fatalf("got %v", violations)
	}
	for _, v := range violations {
		if s := v.String(); len(s) > 500 || strings.ContainsAny(s, "\n\t\a\x1b\u202e") {
			t.Errorf("%d bytes: %.500q", len(s), s)
		}
		if len(v.Value) > maxForeign || len(v.Path) > maxForeign {
			t.Errorf("value %q, path %q", v.Value, v.Path)
		}
	}
}

func TestCheckParametersOfAnOlderSchema(t *testing.T) {
	p := production().Defaults().With("max_membrane_depth", Int(65)).With("abolished", Text("x"))
	if v := production().CheckParameters(p); len(v) != 1 || v[0].Parameter != "max_membrane_depth" {
		t.Errorf("got %v", v)
	}
	if _, nothing := production().Check(nil); !slices.EqualFunc(production().CheckParameters(Parameters{}), nothing, func(a, b Violation) bool { return a.String() == b.String() }) {
		t.Errorf("the zero value: %v", production().CheckParameters(Parameters{}))
	}
}

func TestSuggest(t *testing.T) {
	names := strings.Fields("bseries_max_order cache_ttl_seconds enable_caching enable_performance_monitoring esn_reservoir_size max_membrane_depth")
	for word, want := range map[string]string{
		"esn_resevoir_size":     "esn_reservoir_size",
		"esn-reservoir-size":    "esn_reservoir_size",
		"ESN_RESERVOIR_SIZE":    "esn_reservoir_size",
		"reservoir_size":        "esn_reservoir_size",
		"max_membrane_dpeth":    "max_membrane_depth",
		"depth":                 "max_membrane_depth",
		"ttl":                   "cache_ttl_seconds",
		"enable":                "", // two contain it
		"spectral_radius":       "",
		"":                      "",
		"x":                     "",
		strings.Repeat("x", 99): "",
	} {
		got, ok := Suggest(word, names)
		if got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", word, got, ok, want)
		}
	}
	if got, ok := Suggest(strings.Repeat("\xff", maxWord), []string{strings.Repeat("\xfe", maxWord), strings.Repeat("İ", maxWord/2)}); ok {
		t.Errorf("bytes that are no text: got %q", got) // lower case takes more bytes
	}
	if got, _ := Suggest("snapshot", []string{"show", "snapshots", "schema"}); got != "snapshots" {
		t.Errorf("snapshot: got %q", got)
	}
}

func TestQuote(t *testing.T) {
	for given, want := range map[string]string{
		"plain":                  "plain",
		"":                       `""`,
		"two words":              `"two words"`,
		"a\"b\\c\n":              `"a\"b\\c\n"`,
		strings.Repeat("ü", 100): `"` + strings.Repeat("ü", 37) + `…"`,
		strings.Repeat("a", 80):  strings.Repeat("a", 80),
		strings.Repeat("a", 81):  `"` + strings.Repeat("a", 75) + `…"`,
	} {
		if got := quote(given); got != want || len(got) > maxForeign {
			t.Errorf("%q: got %s (%d bytes), want %s", given, got, len(got), want)
		}
	}
}
