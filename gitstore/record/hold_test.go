package record

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"dtesn-agent/schema"
)

func values(pairs ...any) map[string]schema.Value {
	m := map[string]schema.Value{}
	for i := 0; i < len(pairs); i += 2 {
		switch v := pairs[i+1].(type) {
		case int:
			m[pairs[i].(string)] = schema.Int(v)
		case bool:
			m[pairs[i].(string)] = schema.Bool(v)
		case string:
			m[pairs[i].(string)] = schema.Text(v)
		default:
			m[pairs[i].(string)] = schema.Value{}
		}
	}
	return m
}

func parameters(pairs ...any) schema.Parameters { return schema.NewParameters(values(pairs...)) }

// knows is a schema that has these parameters.
func knows(names ...string) func(string) bool {
	return func(name string) bool { return slices.Contains(names, name) }
}

// A hold reads back as it was written, and again.
func TestHoldJSON(t *testing.T) {
	number, _ := schema.Number("1.50")
	who := &Requester{UID: 1000, User: "ada", Login: "ada"}
	whole := parameters("a", 1, "b", true, "c", "int8")
	for name, row := range map[string]struct {
		hold Hold
		want string
	}{
		"nothing": {Hold{}, `{"paused":false,"by":"","reason":"","since":0,"requester":null,"entries":[],"digests":[]}`},
		"a pause": {
			Hold{Paused: true, By: "operator", Reason: "night", Since: 1.5, Requester: &Requester{UID: 0}},
			`{"paused":true,"by":"operator","reason":"night","since":1.5,"requester":{"uid":0},"entries":[],"digests":[]}`,
		},
		"entries": {
			Hold{By: "engine", Reason: "a & b", Since: 2, Requester: who, Entries: []Entry{
				{Values: whole.Map(), By: "engine", Reason: "refused", Since: 2},
				{Values: map[string]schema.Value{"d": number, "e": {}}, By: "operator", Reason: "slow", Since: 1, Requester: who},
			}},
			`{"paused":false,"by":"engine","reason":"a & b","since":2,"requester":{"uid":1000,"user":"ada","login":"ada"},"entries":[` +
				`{"values":{"a":1,"b":true,"c":"int8"},"by":"engine","reason":"refused","since":2,"requester":null},` +
				`{"values":{"d":1.50,"e":null},"by":"operator","reason":"slow","since":1,"requester":{"uid":1000,"user":"ada","login":"ada"}}],"digests":`,
		},
		"a digest": {
			Hold{By: "engine", Entries: []Entry{{Digest: whole.Digest(), Names: []string{"a", "b", "c"}}}},
			`{"paused":false,"by":"engine","reason":"","since":0,"requester":null,"entries":[{"values":null,"by":"","reason":"","since":0,"requester":null,` +
				`"digest":"` + string(whole.Digest()) + `","parameters":["a","b","c"]}],"digests":["` + string(whole.Digest()) + `"]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := row.hold.MarshalJSON()
			if err != nil || !strings.HasPrefix(string(text), row.want) {
				t.Errorf("written as\n%s %v, want\n%s", text, err, row.want)
			}
			var back, again Hold
			if err := json.Unmarshal(text, &back); err != nil {
				t.Fatal(err)
			}
			if row.hold.Entries == nil {
				row.hold.Entries = []Entry{}
			}
			if !reflect.DeepEqual(back, row.hold) {
				t.Errorf("reads back as\n%+v, was\n%+v", back, row.hold)
			}
			if text, err = json.Marshal(back); err == nil {
				err = json.Unmarshal(text, &again)
			}
			if err != nil || !reflect.DeepEqual(again, back) {
				t.Errorf("reads back again as\n%+v, was\n%+v: %v", again, back, err)
			}
		})
	}
}

// What older agents wrote is entries by digest, which cover the parameters of
// their record.
func TestHoldOfOlderAgents(t *testing.T) {
	p, q := parameters("a", 1, "b", true), parameters("a", 2, "b", true)
	var h Hold
	text := `{"digests": ["` + string(p.Digest()) + `", "` + string(q.Digest()) + `"], "paused": false, "reason": "slow", "since": 3.5, "by": "operator"}`
	if err := json.Unmarshal([]byte(text), &h); err != nil {
		t.Fatal(err)
	}
	h.Cover(p.Names())
	if h.Paused || h.By != "operator" || h.Reason != "slow" || h.Since != 3.5 || len(h.Entries) != 2 {
		t.Fatalf("read as %+v", h)
	}
	for _, row := range []struct {
		p     schema.Parameters
		known func(string) bool
		want  bool
	}{
		{p, knows("a", "b"), true},
		{q, knows("a", "b"), true},
		{parameters("a", 3, "b", true), knows("a", "b"), false},
		{p.With("c", schema.Int(1)), knows("a", "b", "c"), true}, // one more
		{parameters("a", 1), knows("a"), true},                   // one less: nobody can tell
		{parameters("a", 3), knows("a"), true},
		{p, knows("a"), true}, // out of the history
		{parameters("a", 3, "b", true), knows("a"), false},
	} {
		if got := h.Match(row.p, row.known) != nil; got != row.want || h.Holds(row.p, row.known) != row.want {
			t.Errorf("%s is held: %v, want %v", row.p, got, row.want)
		}
	}
	if e := h.Entries[0]; e.By != "operator" || e.Reason != "slow" || e.Since != 3.5 || !strings.HasPrefix(e.String(), "digest "+string(e.Digest[:12])) {
		t.Errorf("an entry is %+v, %s", e, e.String())
	}
}

// A digest that no entry has is kept beside them.
func TestHoldWithAForeignDigest(t *testing.T) {
	var h Hold
	p := parameters("a", 1)
	text := `{"entries": [{"values": {"a": 2}, "by": "hook"}], "digests": ["` + string(p.Digest()) + `"], "by": "engine"}`
	if err := json.Unmarshal([]byte(text), &h); err != nil {
		t.Fatal(err)
	}
	h.Cover([]string{"a"})
	if len(h.Entries) != 2 || h.Paused || !h.Holds(p, knows("a")) || !h.Holds(parameters("a", 2), knows("a")) || h.Holds(parameters("a", 3), knows("a")) {
		t.Errorf("read as %+v", h)
	}
}

// What is not understood is a pause, and what can be read of it is kept.
func TestHoldUnknownContent(t *testing.T) {
	for text, says := range map[string]string{
		`"x"`:                             "string",
		`[]`:                              "array",
		`7`:                               "number",
		`{"until": 5}`:                    `unknown field "until"`,
		`{"paused": "no"}`:                "string",
		`{"paused": 0}`:                   "number",
		`{"since": "yesterday"}`:          "string",
		`{"since": 1e999}`:                "1e999",
		`{"requester": 1000}`:             "number",
		`{"requester": {"pid": 1}}`:       `unknown field "pid"`,
		`{"digests": 1}`:                  "number",
		`{"digests": [1]}`:                "number",
		`{"digests": [""]}`:               "an entry without values",
		`{"entries": {}}`:                 "object",
		`{"entries": [1]}`:                "number",
		`{"entries": [null]}`:             "an entry without values",
		`{"entries": [{}]}`:               "an entry without values",
		`{"entries": [{"values": {}}]}`:   "an entry without values",
		`{"entries": [{"values": null}]}`: "an entry without values",
		`{"entries": [{"values": [1]}]}`:  "array",
		`{"entries": [{"values": {"a": 1}, "until": 5}]}`:          `unknown field "until"`,
		`{"entries": [{"values": {"a": 1}}, {"by": "engine"}]}`:    "an entry without values",
		`{"entries": [{"values": {"a": 1, "b": [1, 2]}}]}`:         "b = [1,2]",
		`{"entries": [{"values": {"a": 1, "b": {"least": 1}}}]}`:   `b = {"least":1}`,
		`{"entries": [{"values": {"a": 1e999}}]}`:                  "a = 1e999",
		`{"entries": [{"values": {"a": 1}, "parameters": "all"}]}`: "string",
	} {
		t.Run(text, func(t *testing.T) {
			rec := new(Record)
			if err := json.Unmarshal([]byte(`{"index": 7, "held": `+text+`, "config_data": {"a": 1}}`), rec); err != nil {
				t.Fatalf("the record is lost: %v", err)
			}
			h := rec.Held
			if h == nil || !h.Paused || !strings.Contains(h.Reason, "unknown content") || !strings.Contains(h.Reason, says) || strings.Contains(h.Text(), "\n") {
				t.Fatalf("read as %+v", h)
			}
			if rec.Index != 7 || !rec.Config.Equal(parameters("a", 1)) || !h.Holds(parameters("z", 1), knows("z")) {
				t.Errorf("the record is %+v", rec)
			}
			if strings.Contains(text, `"values": {"a": 1`) && !strings.Contains(text, "999") && (len(h.Entries) == 0 || !h.Entries[0].Values["a"].Equal(schema.Int(1))) {
				t.Errorf("the entries are %+v", h.Entries)
			}
			again := new(Hold)
			if text, err := json.Marshal(h); err != nil || json.Unmarshal(text, again) != nil || !again.Paused || again.Reason != h.Reason {
				t.Errorf("written again: %s %v", text, err)
			}
		})
	}
	for text, want := range map[string]*Hold{
		`null`:               nil,
		`{}`:                 {},
		`{"entries": []}`:    {Entries: []Entry{}},
		`{"paused": true}`:   {Paused: true},
		`{"digests": []}`:    {},
		`{"requester":null}`: {},
	} {
		rec := new(Record)
		if err := json.Unmarshal([]byte(`{"held": `+text+`}`), rec); err != nil || !reflect.DeepEqual(rec.Held, want) {
			t.Errorf("%s is read as %+v %v", text, rec.Held, err)
		}
	}
}

// An entry matches what has all its values, whatever else the schema knows.
func TestEntryMatches(t *testing.T) {
	whole := parameters("a", 1, "b", true, "c", "int8")
	for name, row := range map[string]struct {
		entry map[string]schema.Value
		p     schema.Parameters
		known func(string) bool
		want  bool
	}{
		"the whole set":                   {whole.Map(), whole, knows("a", "b", "c"), true},
		"the whole set, another value":    {whole.Map(), whole.With("a", schema.Int(2)), knows("a", "b", "c"), false},
		"the whole set, one more":         {whole.Map(), whole.With("d", schema.Int(1)), knows("a", "b", "c", "d"), true},
		"the whole set, one less":         {whole.Map(), parameters("a", 1, "b", true), knows("a", "b"), true},
		"the whole set, one less, other":  {whole.Map(), parameters("a", 1, "b", false), knows("a", "b"), false},
		"the whole set, one is unset":     {whole.Map(), parameters("a", 1, "b", true), knows("a", "b", "c"), false},
		"one value":                       {values("a", 1), whole, knows("a", "b", "c"), true},
		"one value, another":              {values("a", 2), whole, knows("a", "b", "c"), false},
		"a text that looks like a number": {values("a", "1"), whole, knows("a", "b", "c"), false},
		"unknown alone":                   {values("z", 1), parameters("z", 1), knows("a"), false},
		"unknown beside a known one":      {values("a", 1, "z", 1), whole, knows("a"), true},
		"unset, as wanted":                {values("d", nil), whole, knows("a", "d"), true},
		"unset, and set":                  {values("a", nil), whole, knows("a"), false},
		"unset, and a value":              {values("a", 1, "d", nil), whole.With("d", schema.Int(1)), knows("a", "d"), false},
		"unset and unknown":               {values("d", nil), whole, knows("a"), false},
		"no values":                       {nil, whole, knows("a"), false},
	} {
		t.Run(name, func(t *testing.T) {
			h := &Hold{Entries: []Entry{{Values: row.entry}}}
			matched := h.Match(row.p, row.known) != nil
			if matched != row.want || h.Holds(row.p, row.known) != row.want {
				t.Errorf("%s matches %s: %v", h.Entries[0].String(), row.p, matched)
			}
			h.Paused = true
			if !h.Holds(row.p, row.known) || (h.Match(row.p, row.known) != nil) != row.want {
				t.Error("a pause changes what an entry matches, or holds nothing")
			}
		})
	}
	three, _ := schema.Number("3.0")
	if e := (&Entry{Values: values("a", 3)}); !e.Matches(schema.NewParameters(map[string]schema.Value{"a": three}), knows("a")) {
		t.Error("3.0 is not 3")
	}
	var none *Hold
	if none.Match(whole, knows("a")) != nil || none.Holds(whole, knows("a")) {
		t.Error("no hold holds")
	}
	none.Cover([]string{"a"})
	if got := (&Entry{Values: values("b", nil, "a", "int8")}).String(); got != "a int8, b unset" {
		t.Errorf("an entry is %q", got)
	}
}

// TestFormatOf: a record with the parameters of the first release is one that its
// agents read; one with others is not.
func TestFormatOf(t *testing.T) {
	var first schema.Parameters
	if err := first.UnmarshalJSON([]byte(`{"bseries_max_order": 8, "cache_ttl_seconds": 300, "enable_caching": true, "enable_performance_monitoring": true, "esn_reservoir_size": 512, "max_membrane_depth": 4}`)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		p    schema.Parameters
		want int
	}{
		{first, 1},
		{first.With("z", schema.Int(1)), 2},
		{first.With("esn_reservoir_size", schema.Value{}), 2},
	} {
		if got := FormatOf(c.p); got != c.want {
			t.Errorf("%s: format %d, want %d", c.p, got, c.want)
		}
	}
}
