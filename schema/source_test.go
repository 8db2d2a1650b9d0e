package schema

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

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

// baseText sets every parameter to its default.
var baseText = "parameters:\n" + indented(Default().For("production").Defaults())

func indented(p Parameters) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(string(p.YAML())), "\n", "\n  ") + "\n"
}

func input(production string) Input {
	return Input{Instance: "node-1", Files: []File{
		{Path: BaseFile, Bytes: []byte(baseText)},
		{Path: "production.yaml", Bytes: []byte(production)},
		{Path: "templates/high-throughput.yaml", Bytes: []byte("parameters: {cache_ttl_seconds: 60}\n")},
	}}
}

// hostile are texts that parsers choke on; each is as large as a file may be,
// or as small as it needs to be.
func hostile() map[string][]byte {
	const head = "environment: production\n"
	fill := func(unit string) string { return strings.Repeat(unit, (MaxFileBytes-len(head)-100)/len(unit)) }
	texts := map[string]string{
		"self merge":         head + "a: &a\n  <<: *a\n  b: 1\n",
		"merge bomb":         mergeBomb(),
		"laughs":             laughs(),
		"flow depth":         fill("["),
		"closed flow depth":  fill("[")[:MaxFileBytes/2] + strings.Repeat("]", MaxFileBytes/2),
		"mapping depth":      fill("{a: "),
		"dash depth":         fill("- "),
		"question depth":     fill("? "),
		"dashes":             fill("-\n"),
		"empty keys":         fill("a:\n"),
		"empty documents":    fill("---\n"),
		"flow pairs":         "[" + fill("a: b,") + "]",
		"shortest pairs":     "[" + fill("?,") + "]",
		"colons":             "{" + fill("a:,") + "}",
		"commas":             "[" + fill("a,") + "]",
		"one line":           "a: " + fill("x"),
		"trailing comments":  fill("- #\n"),
		"quoted comments":    "a: \"\n#\"\n" + fill("#[\n"),
		"hidden lines":       "#" + fill("\u2028[],[],"),
		"comments":           head + fill("#,[{:?\n"),
		"unknown keys":       unique("parameter_%d: 1\n"),
		"unknown words":      unique("esn_reservoir_sise_of_everything_that_is_far_too_long%d: 1\n"),
		"unknown parameters": head + "parameters:\n" + unique("  c%d: 1\n"),
		"duplicates":         fill("a: 1\n"),
		"anchors":            fill("- &a\n"),
		"aliases":            "a: &a b\nc: [" + fill("*a,") + "]",
		"tags":               fill("- !\n"),
		"tags on one line":   "é: [" + fill("! ü,") + "]",
		"broken lines":       strings.Repeat("a: 1\n", 1500) + "]",
		"broken late":        fill("a: 1\n") + "]",
		"experiments":        head + "experiments:\n" + fill("  - {percent: 5}\n"),
		"extends":            head + "extends:\n" + fill("  - ../x\n"),
		"large int":          head + "parameters: {max_membrane_depth: " + fill("9") + "}\n",
		"large float":        head + "parameters: {max_membrane_depth: 1e" + fill("9") + "}\n",
		"large key":          head + fill("k") + ": 1\n",
		"large value":        head + "parameters: {max_membrane_depth: \"" + fill("\u202e") + "\"}\n",
		"too large":          strings.Repeat("#", MaxFileBytes+1),
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

// unique repeats a line with a number in it.
func unique(line string) string {
	var b strings.Builder
	for i := 0; b.Len()+len(line)+100 < MaxFileBytes; i++ {
		fmt.Fprintf(&b, line, i)
	}
	return b.String()
}

// withoutRaceDetector skips a test that computes a lot in one goroutine: it
// takes ten times as long with the race detector, which sees nothing there.
func withoutRaceDetector(t *testing.T) {
	t.Helper()
	if raceDetector {
		t.Skip("runs without the race detector only; make test does both")
	}
}

// No bytes may stop the agent: each hostile text is refused within bounds, as an
// environment's file, as base.yaml and by Extends, and so is a document of the
// worst ones.
func TestHostileBytes(t *testing.T) {
	withoutRaceDetector(t)
	worst := []string{"empty keys", "colons", "duplicates", "aliases", "unknown keys", "unknown parameters"} // measured of all
	for name, text := range hostile() {
		t.Run(name, func(t *testing.T) {
			in := input(string(text))
			bounded(t, func() {
				c, v := production().Load(in)
				if (c == nil) == (v == nil) {
					t.Fatalf("Load returned %v and %v", c, v)
				}
				if v == nil && name != "comments" {
					t.Errorf("loaded as %+v", c)
				}
				wellFormed(t, v)
			})
			bounded(t, func() {
				in := input(productionText)
				in.Files[0].Bytes = text
				if _, v := production().Load(in); v == nil {
					t.Error("loaded as base.yaml")
				}
			})
			bounded(t, func() { Extends(in.Files[1]) })
			if !slices.Contains(worst, name) {
				return
			}
			const head = "environment: production\nextends: [a, b]\n"
			in = Input{Files: []File{
				{Path: BaseFile, Bytes: text},
				{Path: "production.yaml", Bytes: append([]byte(head), text[:min(len(text), MaxFileBytes-len(head))]...)},
				{Path: "templates/a.yaml", Bytes: text},
				{Path: "templates/b.yaml", Bytes: text},
			}}
			bounded(t, func() {
				if _, v := production().Review(in); v == nil {
					t.Error("loaded in all files")
				}
			})
		})
	}
}

// bounded asserts what a call may take: some seconds on a busy machine, and
// memory. All that it allocated, freed or not, is an upper bound of what the
// heap grew by at any moment.
func bounded(t *testing.T, call func()) {
	t.Helper()
	const maxAllocated, maxTime = 96 << 20, 10 * time.Second
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	call()
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	allocated := after.TotalAlloc - before.TotalAlloc
	if allocated > 16<<20 || took > time.Second {
		t.Logf("allocated %d MiB in %v", allocated>>20, took)
	}
	if allocated > maxAllocated {
		t.Errorf("allocated %d MiB", allocated>>20)
	}
	if took > maxTime {
		t.Errorf("took %v", took)
	}
}

// However many violations there are, all are counted, and the first are kept in
// the order of the files.
func TestThousandsOfViolations(t *testing.T) {
	unknown := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "parameter_%d: 1\n", i)
		}
		return b.String()
	}
	in := input("environment: production\nextends: [high-throughput]\n" + unknown(3500))
	in.Files[0].Bytes = []byte("parameters: {esn_reservoir_size: 1}\n")
	in.Files[2].Bytes = []byte("parameters: {}\n" + unknown(3500))
	bounded(t, func() {
		_, v := production().Review(in)
		wellFormed(t, v)
		if v.Total != 7_001 || len(v.List) != MaxViolations {
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
		v := production().CheckTemplate(File{Path: "templates/a.yaml", Bytes: []byte(text)})
		switch {
		case want == "" && v != nil:
			t.Errorf("%q: %v", text, v)
		case want != "" && (v == nil || v.Total != 1 || !strings.HasPrefix(v.Error(), want)):
			t.Errorf("%q: %v, want %s", text, v, want)
		}
	}
	if v := production().CheckTemplate(File{Path: "templates/a.yaml", Refused: "is a named pipe, not a regular file"}); v == nil || !strings.Contains(v.Error(), "named pipe") {
		t.Errorf("a pipe: %v", v)
	}
}

func TestHostileTemplates(t *testing.T) {
	withoutRaceDetector(t)
	for name, text := range hostile() {
		bounded(t, func() {
			if v := production().CheckTemplate(File{Path: "templates/a.yaml", Bytes: text}); v == nil {
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

func TestSizeLimits(t *testing.T) {
	padded := func(text string, size int) string {
		return text + strings.Repeat("# padding: a, b, [c]\n", size/21+1)[:size-len(text)]
	}
	if _, v := production().Load(input(padded(productionText, MaxFileBytes))); v != nil {
		t.Errorf("a file of exactly 64 KiB: %v", v)
	}
	_, v := production().Load(input(padded(productionText, MaxFileBytes+1)))
	want := "production.yaml: the file is larger than 64 KiB (rule: at most 65536 bytes); this is probably not a configuration file; remove what does not belong into it"
	if v == nil || v.Error() != want {
		t.Errorf("a byte more: %v", v)
	}

	// Four files make 256 KiB.
	large := func(last int) Input {
		in := input(padded("environment: production\nextends: [a, b]\n", MaxFileBytes))
		in.Files[0].Bytes = []byte(padded(baseText, MaxFileBytes))
		in.Files[2] = File{Path: "templates/a.yaml", Bytes: []byte(padded("parameters: {}\n", MaxFileBytes))}
		in.Files = append(in.Files, File{Path: "templates/b.yaml", Bytes: []byte(padded("parameters: {}\n", last))})
		return in
	}
	if _, v := production().Load(large(MaxFileBytes)); v != nil {
		t.Errorf("files of exactly 256 KiB: %v", v)
	}
	in := large(MaxFileBytes)
	in.Files = append(in.Files, File{Path: "templates/c.yaml", Bytes: []byte("#")})
	_, v = production().Load(in)
	want = "production.yaml: the configuration is too large: 257 KiB in 5 files (rule: at most 256 KiB and 64 files together); remove templates from extends, or what does not belong into the files"
	if v == nil || v.Error() != want {
		t.Errorf("a byte more: %v", v)
	}

	in = input(productionText)
	for i := len(in.Files); i < MaxDocumentFiles; i++ {
		in.Files = append(in.Files, File{Path: fmt.Sprintf("templates/t%d.yaml", i)})
	}
	if _, v := production().Load(in); v != nil {
		t.Errorf("64 files: %v", v)
	}
	in.Files = append(in.Files, File{Path: "templates/t.yaml"})
	if _, v := production().Load(in); v == nil || v.Total != 1 || !strings.Contains(v.Error(), "1 KiB in 65 files") {
		t.Errorf("65 files: %v", v)
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
		if got := Extends(NewFile("production.yaml", []byte(text))); !slices.Equal(got, want) {
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
	all := func(string) bool { return true }
	good, bad := input(productionText), input("environment: production\nparameters: {max_membrane_depth: 64}\n")
	for i := range good.Files {
		good.Files[i] = NewFile(good.Files[i].Path, good.Files[i].Bytes)
	}
	first, _ := production().Load(good)
	_, broken := production().Load(bad)
	var wg sync.WaitGroup
	for i := range 8 {
		r := Default().For(Default().Environments()[i%4])
		wg.Go(func() {
			for range 20 {
				if c, v := production().Load(good); v != nil || render(c, nil, all) != render(first, nil, all) {
					t.Errorf("got %v, %v", c, v)
				}
				if _, v := production().Load(bad); v == nil || v.Error() != broken.Error() {
					t.Errorf("got %v", v)
				}
				if list := r.CheckParameters(first.Parameters); list != nil {
					t.Errorf("got %v", list)
				}
			}
		})
	}
	wg.Wait()
}

// CUE keeps nothing of the values that it was asked about.
func TestChecksDoNotGrow(t *testing.T) {
	withoutRaceDetector(t)
	r := production()
	check := func(i int) {
		p := r.Defaults().With("esn_reservoir_size", Int(64+i%16000)).With("cache_ttl_seconds", Int(1+i))
		if v := r.CheckParameters(p.With("max_membrane_depth", Int(1+i%64))); v != nil && v[0].Parameter != "esn_reservoir_size" {
			t.Fatal(v)
		}
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	check(0)
	before := heap()
	const n = 2000
	for i := range n {
		check(i)
	}
	if after := heap(); after > before+n*100 {
		t.Errorf("the heap grew by %d bytes in %d checks", after-before, n)
	}
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
	in := input(productionText)
	b.ReportAllocs()
	for b.Loop() {
		if _, v := production().Load(in); v != nil {
			b.Fatal(v)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	defaults := production().Defaults()
	b.ReportAllocs()
	for b.Loop() {
		if v := production().CheckParameters(defaults); v != nil {
			b.Fatal(v)
		}
	}
}

func BenchmarkExtends(b *testing.B) {
	for b.Loop() {
		Extends(File{Bytes: []byte(productionText)})
	}
}

func BenchmarkOpen(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := read(embeddedName, embedded); err != nil {
			b.Fatal(err)
		}
	}
}
