package schema

import (
	"fmt"
	"slices"
	"testing"
)

// TestMemoryBytes: a schema may give another expression, which may need what a
// configuration does not set.
func TestMemoryBytes(t *testing.T) {
	d := Default().For("production").Defaults()
	if n, ok := Default().For("production").MemoryBytes(d); !ok || n < 1<<20 || n > 4<<20 {
		t.Errorf("the defaults take %d bytes, %v", n, ok)
	}
	for expression, want := range map[string]int64{"4096 * esn_reservoir_size": 4096 * 512, "1e6": 1e6, "0.5 * budget": 2} {
		rules := mustParse(t, extends+`#Parameters: {
	budget?: int & >=1 & <=9 @dtesn(description="B")
	#memory_bytes: `+expression+`
}
#defaults: budget: 5
`).For("production")
		with := d.With("budget", Int(5)).With("unknown", Bool(true))
		if n, ok := rules.MemoryBytes(with); !ok || n != want {
			t.Errorf("%s: %d, %v; want %d", expression, n, ok, want)
		}
		if _, ok := rules.MemoryBytes(d); ok != (expression != "0.5 * budget") {
			t.Errorf("%s without a budget: ok is %v", expression, ok)
		}
	}
}

// planInput is an Input with a base that sets every default.
func planInput(environment string) *Input {
	base := "parameters:\n"
	for _, name := range Default().For("production").Defaults().Names() {
		base += fmt.Sprintf("  %s: %v\n", name, Default().For("production").Defaults().Get(name))
	}
	return &Input{Files: []File{NewFile(BaseFile, []byte(base)), NewFile("production.yaml", []byte("environment: production\n"+environment))}}
}

// TestPlanSummary: what is said of an environment, and to what it comes.
func TestPlanSummary(t *testing.T) {
	const size, ttl = "parameters: {esn_reservoir_size: 2048}\n", "parameters: {cache_ttl_seconds: 60}\n"
	wide := func(percent int, more string) string {
		return fmt.Sprintf("experiments: [{name: wide, percent: %d, parameters: {esn_reservoir_size: 4096%s}}]\n", percent, more)
	}
	many := "experiments:\n"
	for i, name := range []string{"esn_reservoir_size: 4096", "bseries_max_order: 4", "cache_ttl_seconds: 5", "enable_performance_monitoring: false", "enable_caching: false"} {
		many += fmt.Sprintf("  - {name: e%d, percent: 5, parameters: {%s}}\n", i, name)
	}
	absent := "-"
	for _, row := range []struct{ from, to, status, want string }{
		{size, size, PlanUnchanged, "nothing changes"},
		{size, "description: x\n" + size, PlanUnchanged, "nothing changes"},
		{size, "parameters: {esn_reservoir_size: 512}\n", PlanChanged, "1 of 6 parameters changes; each engine rebuilds once"},
		{"", ttl, PlanChanged, "1 of 6 parameters changes; no engine rebuilds"},
		{"", "parameters: {cache_ttl_seconds: 60, esn_reservoir_size: 2048}\n", PlanChanged, "2 of 6 parameters change; each engine rebuilds once"},
		{"", wide(5, ""), PlanChanged, "experiment <wide> begins for 5 %, and its engines rebuild"},
		{wide(5, ""), wide(0, ""), PlanChanged, "experiment <wide> ends for 5 %, and its engines rebuild"},
		{wide(5, ""), "", PlanChanged, "experiment <wide> ends for 5 %, and its engines rebuild"},
		{wide(5, ""), wide(50, ""), PlanChanged, "experiment <wide> goes from 5 % to 50 %, and its engines rebuild"},
		{wide(5, ""), wide(5, ", bseries_max_order: 4"), PlanChanged, "experiment <wide> sets other values for 5 %, and its engines rebuild"},
		{"", ttl + wide(100, ""), PlanChanged, "1 of 6 parameters changes; engines outside of experiments do not rebuild; experiment <wide> begins for 100 %, and its engines rebuild"},
		{ttl + wide(100, ""), "", PlanChanged, "1 of 6 parameters changes; engines outside of experiments do not rebuild; experiment <wide> ends for 100 %, and its engines rebuild"},
		{size + wide(100, ""), wide(100, ""), PlanChanged, "1 of 6 parameters changes; engines outside of experiments rebuild once"},
		{wide(100, ""), ttl + wide(100, ""), PlanChanged, "1 of 6 parameters changes; no engine rebuilds"},
		{"parameters: {esn_reservoir_size: 1}\n", "parameters: {esn_reservoir_size: 1}\n" + "description: x\n", PlanInvalid, "not valid, as it was before: 1 violation"},
		{"parameters: {esn_reservoir_size: 1}\n", "parameters: {esn_reservoir_size: 1, cache_ttl_seconds: 0}\n", PlanInvalid, "not valid, nothing is applied: 2 violations, 1 of them new"},
		{wide(0, ""), wide(0, ", bseries_max_order: 4"), PlanUnchanged, "nothing changes"},
		{"", wide(0, ""), PlanUnchanged, "nothing changes"},
		{"", many, PlanChanged, "experiment <e0> begins for 5 %, and its engines rebuild; experiment <e1> begins for 5 %, and its engines rebuild; experiment <e2> begins for 5 %; 2 more experiments"},
		{absent, size, PlanAdded, "new, with 6 parameters"},
		{size, absent, PlanRemoved, "removed; its engines keep what they run, and its agents report it as invalid"},
		{size, "parameters: {esn_reservoir_size: 1}\n", PlanInvalid, "not valid, nothing is applied: 1 violation"},
		{"parameters: {esn_reservoir_size: 1}\n", size, PlanChanged, "<the old values are unknown: production.yaml:2:34 is not valid there>"},
		{"parameters: {esn_reservoir_size: 1}\n", absent, PlanRemoved, "removed; its engines keep what they run, and its agents report it as invalid"},
	} {
		in := func(text string) *Input {
			if text == absent {
				return nil
			}
			return planInput(text)
		}
		p := Default().For("production").Plan(in(row.from), in(row.to), nil)
		if got := p.Summary(func(s string) string { return "<" + s + ">" }); got != row.want || p.Status != row.status {
			t.Errorf("from %q to %q: %s: %s\nwant %s: %s", row.from, row.to, p.Status, got, row.status, row.want)
		}
	}
}

// TestPlanInstance: an instance gets what its experiments say, and what no file
// declares any more stays as it is.
func TestPlanInstance(t *testing.T) {
	rules, in := Default().For("production"), planInput("experiments: [{name: wide, percent: 100, parameters: {esn_reservoir_size: 4096}}]\n")
	in.Instance = "a"
	runs := rules.Defaults().With("other", Int(5))
	p := rules.PlanInstance(runs, []Membership{{Name: "wide", Percent: 10}}, in)
	if len(p.Changes) != 1 || p.Changes[0].New != Int(4096) || p.Changes[0].Line != 2 || p.Summary(quote) != "1 of 6 parameters changes; the engine rebuilds once; experiment wide goes from 10 % to 100 %" {
		t.Errorf("%+v", p)
	}
	e := p.Experiments[0]
	if e.Was != 10 || e.Percent != 100 || !slices.Equal(e.Joining, []string{"a"}) || !slices.Equal(e.Instances, []string{"a"}) {
		t.Errorf("%+v", e)
	}
	if p := rules.PlanInstance(runs, nil, nil); p.Status != PlanRemoved {
		t.Errorf("%+v", p)
	}
}
