package schema

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func TestValue(t *testing.T) {
	type kinds struct {
		Zero   bool
		Int    bool
		Bool   bool
		Text   bool
		String string
		Float  any
	}
	for text, want := range map[string]kinds{
		"null":       {Zero: true, String: "unset"},
		"5":          {Int: true, String: "5", Float: 5.0},
		"-5":         {Int: true, String: "-5", Float: -5.0},
		"1.50":       {String: "1.50", Float: 1.5},
		"1e3":        {String: "1e3", Float: 1000.0},
		"1e999":      {String: "1e999"},
		"true":       {Bool: true, String: "true", Float: 1.0},
		"false":      {String: "false", Float: 0.0},
		`"int8"`:     {Text: true, String: "int8"},
		`"5"`:        {Text: true, String: "5"},
		`"<\u00e9"`:  {Text: true, String: "<é"},
		"[1,{}]":     {String: "[1,{}]"},
		`{"a":null}`: {String: `{"a":null}`},
	} {
		var v Value
		if err := json.Unmarshal([]byte(" "+text+"\n"), &v); err != nil {
			t.Fatal(err)
		}
		got := kinds{Zero: v.IsZero(), Bool: v.Bool(), String: v.String()}
		_, got.Int = v.Int()
		_, got.Text = v.Text()
		if f, ok := v.Float(); ok {
			got.Float = f
		}
		if got != want {
			t.Errorf("%s: got %+v, want %+v", text, got, want)
		}
		if back, err := json.Marshal(v); err != nil || string(back) != strings.ReplaceAll(text, "<", `\u003c`) {
			t.Errorf("%s is written %s (%v)", text, back, err)
		}
		if !v.Equal(v) || v.Equal(Text("another")) {
			t.Errorf("%s: Equal", text)
		}
	}
	if err := new(Value).UnmarshalJSON(nil); err == nil {
		t.Error("nothing is a value")
	}
	for text, want := range map[string]bool{"5": true, "-0.50": true, "1e-3": true, "1e308": true, "1e309": false, "": false, "+5": false, "05": false, ".5": false, "5.": false, "0x5": false, "NaN": false, "5 ": false, "-": false, "true": false, `"5"`: false} {
		if v, ok := Number(text); ok != want || ok && v.String() != text || !ok && !v.IsZero() {
			t.Errorf("Number(%q): %v, %v", text, v, ok)
		}
	}
}

func TestValueEqual(t *testing.T) {
	for _, same := range [][]string{
		{"1.5", "1.50", "15e-1", "0.15e1"},
		{"0", "-0", "0.0"},
		{"100", "1e2", "100.00"},
		{`"a"`, `"\u0061"`},
		{"9007199254740993"},
		{"9007199254740992"},
		{"true"},
		{"1"},
		{`"1"`},
		{"null"},
		{`"true"`},
		{`""`},
		{"1.25"},
		{"1e999"},
	} {
		for _, other := range [][]string{{"1.5", "0", "100", `"a"`, "9007199254740993", "9007199254740992", "true", "1", `"1"`, "null", `"true"`, `""`, "1.25", "1e999"}} {
			for _, a := range same {
				for _, b := range append(slices.Clone(other), same...) {
					var v, w Value
					if json.Unmarshal([]byte(a), &v) != nil || json.Unmarshal([]byte(b), &w) != nil {
						t.Fatal(a, b)
					}
					want := slices.Contains(same, b)
					if v.Equal(w) != want || w.Equal(v) != want {
						t.Errorf("%s and %s: equal %v, want %v", a, b, v.Equal(w), want)
					}
					p, q := NewParameters(map[string]Value{"x": v}), NewParameters(map[string]Value{"x": w})
					if p.Equal(q) != want || (p.Digest() == q.Digest()) != want || (p.Diff(q) == nil) != want {
						t.Errorf("%s and %s: parameters", a, b)
					}
				}
			}
		}
	}
}

func TestParameters(t *testing.T) {
	number, _ := Number("1.50")
	p := NewParameters(map[string]Value{"b": number, "a": Int(5), "d": Text("int8"), "c": Bool(false), "none": {}})
	if got := p.Names(); !slices.Equal(got, []string{"a", "b", "c", "d"}) || p.Len() != 4 {
		t.Errorf("names %v", got)
	}
	const yaml = "a: 5\nb: 1.50\nc: false\nd: \"int8\"\n"
	if got := string(p.YAML()); got != yaml {
		t.Errorf("YAML %q", got)
	}
	text, err := json.Marshal(map[string]any{"p": p, "zero": Parameters{}})
	if want := `{"p":{"a":5,"b":1.50,"c":false,"d":"int8"},"zero":{}}`; err != nil || string(text) != want {
		t.Errorf("JSON %s, %v", text, err)
	}
	var q Parameters
	if err := json.Unmarshal([]byte(`{"d":"int8","b":1.5,"a":5,"c":false,"none":null}`), &q); err != nil || !q.Equal(p) || q.Digest() != p.Digest() {
		t.Errorf("from JSON: %v, %v", q, err)
	}
	if err := json.Unmarshal([]byte(`[]`), &q); err == nil {
		t.Error("a list is parameters")
	}
	if s := p.String(); s != `a: 5, b: 1.50, c: false, d: "int8"` {
		t.Errorf("String %s", s)
	}

	r := p.With("a", Int(6)).With("b", Value{}).With("e", Int(1))
	if p.Get("a") != Int(5) || r.Get("a") != Int(6) || !r.Get("b").IsZero() || r.Len() != 4 {
		t.Errorf("With: %v of %v", r, p)
	}
	p.Map()["a"] = Int(9)
	if p.Get("a") != Int(5) {
		t.Error("Map is no copy")
	}
	var changes []string
	for _, c := range r.Diff(p) {
		changes = append(changes, c.String())
	}
	if want := []string{"a 5 -> 6", "b 1.50 -> unset", "e unset -> 1"}; !slices.Equal(changes, want) {
		t.Errorf("Diff %v, want %v", changes, want)
	}

	sub := p.Select(func(name string) bool { return name < "c" })
	for _, c := range []struct {
		name     string
		p, q     Parameters
		contains bool
	}{
		{"itself", p, p, true},
		{"a part", p, sub, true},
		{"more", sub, p, false},
		{"another value", p, sub.With("b", Int(2)), false},
		{"the same number otherwise written", p, sub.With("b", Value{"15e-1"}), true},
		{"nothing", p, Parameters{}, true},
		{"of nothing", Parameters{}, p, false},
		{"apart", p, NewParameters(map[string]Value{"x": Int(1)}), false},
	} {
		if got := c.p.Contains(c.q); got != c.contains {
			t.Errorf("%s: Contains %v", c.name, got)
		}
	}
	if z := NewParameters(map[string]Value{"a": {}}); !z.Equal(Parameters{}) || z.Digest() != (Parameters{}).Digest() || z.Get("a") != (Value{}) {
		t.Errorf("without a value: %v", z)
	}
}
