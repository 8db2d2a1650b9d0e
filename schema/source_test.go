package schema

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const baseText = `parameters:
  max_membrane_depth: 4
  esn_reservoir_size: 512
  bseries_max_order: 8
  enable_caching: true
  cache_ttl_seconds: 300
  enable_performance_monitoring: true
`

const productionText = `# yaml-language-server: $schema=./dtesn.schema.json
environment: production
description: Deeper tree for the autumn catalogue
extends: [high-throughput]
parameters:
  max_membrane_depth: 8
  esn_reservoir_size: 2048
experiments:
  - name: bigger-reservoir
    percent: 10
    parameters: {esn_reservoir_size: 4096}
`

func document(production []byte) *Document {
	return &Document{Environment: "production", Source: Source{Kind: "file"}, Files: []File{
		{Path: BaseFile, Bytes: []byte(baseText)},
		{Path: "production.yaml", Bytes: production},
		{Path: "templates/high-throughput.yaml", Bytes: []byte("parameters: {cache_ttl_seconds: 60}\n")},
	}}
}

// hostile are texts that parsers choke on; each is as large as a file may be,
// or as small as it needs to be.
func hostile() map[string][]byte {
	fill := func(unit string) string { return strings.Repeat(unit, MaxFileBytes/len(unit)) }
	head := "environment: production\n"
	texts := map[string]string{
		"self merge":        head + "a: &a\n  <<: *a\n  b: 1\n",
		"merge bomb":        mergeBomb(),
		"laughs":            laughs(),
		"flow depth":        fill("["),
		"closed flow depth": strings.Repeat("[", 9000) + strings.Repeat("]", 9000),
		"mapping depth":     strings.Repeat("{a: ", 9000),
		"dash depth":        strings.Repeat("- ", 9999),
		"question depth":    strings.Repeat("? ", 9000),
		"dashes":            fill("-\n"),
		"empty keys":        fill("a:\n"),
		"commas":            "[" + fill("a,")[:MaxFileBytes-2] + "]",
		"pairs":             "[" + strings.Repeat("a: b,", 9900) + "]",
		"one line":          "a: " + fill("x")[:MaxFileBytes-3],
		"trailing comments": strings.Repeat("- #\n", 9900),
		"quoted comments":   "a: \"\n#\"\n" + fill("#[\n")[:MaxFileBytes-100],
		"hidden lines":      "#" + fill("\u2028[],[],"),
		"comments":          head + fill("#,[{:?\n")[:MaxFileBytes-100],
		"unknown keys":      unique(9000),
		"duplicates":        strings.Repeat("a: 1\n", 9000),
		"anchors":           strings.Repeat("- &a\n", 9900),
		"tags":              strings.Repeat("- !\n", 9900),
		"tags on one line":  "é: [" + strings.Repeat("! ü,", 9900) + "]",
		"documents":         fill("---\n"),
		"broken lines":      strings.Repeat("a: 1\n", 1500) + "]",
		"experiments":       head + "experiments:\n" + strings.Repeat("  - {percent: 5}\n", 6000),
		"extends":           head + "extends:\n" + strings.Repeat("  - ../x\n", 9000),
		"large int":         head + "parameters: {max_membrane_depth: " + strings.Repeat("9", 1<<19) + "}\n",
		"large float":       head + "parameters: {max_membrane_depth: 1e" + strings.Repeat("9", 1<<19) + "}\n",
		"large key":         head + strings.Repeat("k", 1<<19) + ": 1\n",
		"too large":         fill("#") + "#",
	}
	all := map[string][]byte{}
	for name, text := range texts {
		all[name] = []byte(text)
	}
	return all
}

func mergeBomb() string {
	var b strings.Builder
	b.WriteString("a0: &a0 {k: 1}\n")
	for i := 1; i < 20; i++ {
		fmt.Fprintf(&b, "a%d: &a%d {<<: [*a%d, *a%d]}\n", i, i, i-1, i-1)
	}
	return b.String()
}

func laughs() string {
	var b strings.Builder
	b.WriteString("a0: &a0 [lol]\n")
	for i := 1; i < 20; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 9), ","))
	}
	return b.String()
}

func unique(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "parameter_%d: 1\n", i)
	}
	return b.String()
}

// No bytes may stop the agent: each hostile text is refused within a second
// and 64 MiB, as an environment's file, as base.yaml and by Extends.
func TestHostileBytes(t *testing.T) {
	for name, text := range hostile() {
		t.Run(name, func(t *testing.T) {
			bounded(t, func() {
				c, v := Load(document(text), "node-1")
				if (c == nil) == (v == nil) {
					t.Fatalf("Load returned %v and %v", c, v)
				}
				if v == nil && name != "comments" {
					t.Errorf("loaded as %+v", c)
				}
				wellFormed(t, v)
			})
			bounded(t, func() {
				doc := document([]byte(productionText))
				doc.Files[0].Bytes = text
				if _, v := Load(doc, "node-1"); v == nil {
					t.Error("loaded as base.yaml")
				}
			})
			bounded(t, func() { Extends(text) })
		})
	}
}

// bounded asserts what a call may take. All that it allocated, freed or not,
// is an upper bound of what the heap grew by at any moment.
func bounded(t *testing.T, call func()) {
	t.Helper()
	const maxHeap, maxTime = 64 << 20, 10 * time.Second
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	call()
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > maxHeap {
		t.Errorf("allocated %d MiB", grown>>20)
	}
	if took > maxTime {
		t.Errorf("took %v", took)
	}
}

// However many violations there are, all are counted, and the first are kept in
// the order of the files.
func TestTenThousandViolations(t *testing.T) {
	doc := document([]byte("environment: production\nextends: [high-throughput]\n" + unique(5000)))
	doc.Files[0].Bytes = []byte("parameters: {esn_reservoir_size: 1}\n")
	doc.Files[2].Bytes = []byte("parameters: {}\n" + unique(5000))
	bounded(t, func() {
		_, v := Load(doc, Everywhere)
		wellFormed(t, v)
		if v.Total < 10_001 || len(v.List) != MaxViolations {
			t.Errorf("%d violations, %d kept", v.Total, len(v.List))
		}
		if v.List[0].Value != "1" || v.List[1].Position.String() != "production.yaml:3:1" || v.List[MaxViolations-1].Line < 100 {
			t.Errorf("kept %s, %s … %s", v.List[0], v.List[1], v.List[MaxViolations-1])
		}
	})
}

// A template that nobody extends is judged as one that is extended.
func TestCheckTemplate(t *testing.T) {
	for text, want := range map[string]string{
		"parameters: {bseries_max_order: 2}\n":  "",
		"description: text\nparameters: {}\n":   "",
		"parameters: {bseries_max_order: 99}\n": "templates/a.yaml:1:33: bseries_max_order: Invalid value",
		"description: text\n":                   "templates/a.yaml: the file has no parameters",
		"parameters: {}\nextends: [b]\n":        "templates/a.yaml:2:1: unknown key extends",
		"":                                      "templates/a.yaml: the file is empty",
		"parameters: {max_membrane_depth: 64, bseries_max_order: 2}\n": "", // others may set the reservoir
	} {
		v := CheckTemplate(File{Path: "templates/a.yaml", Bytes: []byte(text)})
		switch {
		case want == "" && v != nil:
			t.Errorf("%q: %v", text, v)
		case want != "" && (v == nil || v.Total != 1 || !strings.HasPrefix(v.Error(), want)):
			t.Errorf("%q: %v, want %s", text, v, want)
		}
	}
	if v := CheckTemplate(File{Path: "templates/a.yaml", Refused: "is a named pipe, not a regular file"}); v == nil || !strings.Contains(v.Error(), "named pipe") {
		t.Errorf("a pipe: %v", v)
	}
	for name, text := range hostile() {
		bounded(t, func() {
			if v := CheckTemplate(File{Path: "templates/a.yaml", Bytes: text}); v == nil {
				t.Errorf("%s is taken", name)
			}
		})
	}
}

func TestParseTemplatePath(t *testing.T) {
	for path, want := range map[string]string{
		"templates/high-throughput.yaml": "high-throughput", "templates/7.yaml": "7",
		"templates/Big.yaml": "", "templates/a.yml": "", "templates/a/b.yaml": "", "templates/../a.yaml": "", "a.yaml": "", "templates/.yaml": "",
	} {
		if name, ok := ParseTemplatePath(path); ok != (want != "") || ok && name != want {
			t.Errorf("%s: %q, %v", path, name, ok)
		}
	}
}

func TestSizeLimit(t *testing.T) {
	padded := func(size int) []byte {
		text := []byte(productionText)
		return append(text, bytes.Repeat([]byte("# padding: a, b, [c]\n"), size/21+1)[:size-len(text)]...)
	}
	if _, v := Load(document(padded(MaxFileBytes)), "node-1"); v != nil {
		t.Errorf("a file of exactly 1 MiB: %v", v)
	}
	_, v := Load(document(padded(MaxFileBytes+1)), "node-1")
	want := "production.yaml: the file is larger than 1 MiB (rule: at most 1048576 bytes); this is probably not a configuration file; remove what does not belong into it"
	if v == nil || v.Error() != want {
		t.Errorf("a byte more: %v", v)
	}
}

func TestExtends(t *testing.T) {
	many := make([]string, 40)
	for i := range many {
		many[i] = fmt.Sprintf("templates/t%d.yaml", i)
	}
	names := strings.ReplaceAll(strings.ReplaceAll(strings.Join(many, ", "), "templates/", ""), ".yaml", "")
	for text, want := range map[string][]string{
		productionText:                         {"templates/high-throughput.yaml"},
		"extends: [b, a, b]\n":                 {"templates/b.yaml", "templates/a.yaml"},
		"extends: [../a, b/c, d.yaml, '', ok]": {"templates/ok.yaml"},
		"extends: ok\n":                        nil,
		"extends: [a\n":                        nil,
		"extends:\n":                           nil,
		"- extends\n":                          nil,
		"":                                     nil,
		"\xff":                                 nil,
		"extends: [&a a, *a, [b], {c: d}, ~]":  {"templates/a.yaml"},
		"extends: [" + names + "]":             many[:32],
	} {
		if got := Extends([]byte(text)); !slices.Equal(got, want) {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}

func TestInCohort(t *testing.T) {
	// The slots were computed with another implementation of the formula.
	for _, c := range []struct {
		experiment, instance string
		slot                 int // of 10000
	}{
		{"bigger-reservoir", "node-1", 59},
		{"bigger-reservoir", "node-2", 4134},
		{"bigger-reservoir", "", 9363},
		{"deeper", "node-1", 8538},
		{"a", "b", 2387},
		{"half", "dtesn-0.example.org", 9963},
	} {
		for percent := range 101 {
			if got, want := InCohort(c.experiment, c.instance, percent), c.slot < percent*100; got != want {
				t.Errorf("%s on %q at %d %%: %v, want %v", c.experiment, c.instance, percent, got, want)
			}
		}
	}
	in := 0
	for i := range 10_000 {
		if InCohort("bigger-reservoir", fmt.Sprintf("node-%d", i), 10) {
			in++
		}
	}
	if in != 990 {
		t.Errorf("%d of 10000 instances are in a cohort of 10 %%, want 990", in)
	}
}

func TestLoadIsConcurrentAndRepeatable(t *testing.T) {
	good, bad := document([]byte(productionText)), document([]byte("environment: production\nparameters: {max_membrane_depth: 100}\n"))
	first, _ := Load(good, "node-1")
	_, broken := Load(bad, "node-1")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if c, v := Load(good, "node-1"); v != nil || render(c, nil) != render(first, nil) {
					t.Errorf("got %v, %v", c, v)
				}
				if _, v := Load(bad, "node-1"); v == nil || v.Error() != broken.Error() {
					t.Errorf("got %v", v)
				}
				if list := CheckParameters(first.Parameters); list != nil {
					t.Errorf("got %v", list)
				}
			}
		})
	}
	wg.Wait()
}

func TestViolationsError(t *testing.T) {
	v := Violation{Position: Position{File: "a.yaml", Line: 2, Column: 3}, Message: "no", Rule: "r", Hint: "h"}
	for _, c := range []struct {
		v    *Violations
		want string
	}{
		{&Violations{}, "no violations"},
		{&Violations{List: []Violation{v}, Total: 1}, "a.yaml:2:3: no (rule: r); h"},
		{&Violations{List: []Violation{v, v}, Total: 7}, "a.yaml:2:3: no (rule: r); h (and 6 more)"},
	} {
		if got := c.v.Error(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	doc := document([]byte(productionText))
	b.ReportAllocs()
	for b.Loop() {
		if _, v := Load(doc, "node-1"); v != nil {
			b.Fatal(v)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	values := Defaults().Map()
	b.ReportAllocs()
	for b.Loop() {
		if _, v := Check(values); v != nil {
			b.Fatal(v)
		}
	}
}

func BenchmarkExtends(b *testing.B) {
	for b.Loop() {
		Extends([]byte(productionText))
	}
}
