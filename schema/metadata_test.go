package schema

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/cuecontext"
	"cuelang.org/go/cue/format"
)

func TestInfo(t *testing.T) {
	want := map[string]string{
		MaxMembraneDepth:            "int 1-64 4 true",
		ESNReservoirSize:            "int 64-16384 512 true",
		BSeriesMaxOrder:             "int 1-32 8 true",
		EnableCaching:               "bool true/false true false",
		CacheTTLSeconds:             "int 1-86400 300 false",
		EnablePerformanceMonitoring: "bool true/false true false",
	}
	var names []string
	for _, info := range Info() {
		names = append(names, info.Name)
		text, err := json.Marshal(info)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(text, &m); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, key := range []string{"type", "range", "default", "critical"} {
			s, _ := json.Marshal(m[key])
			got = append(got, strings.Trim(string(s), `"`))
		}
		if s := strings.Join(got, " "); s != want[info.Name] {
			t.Errorf("%s: got %s, want %s", info.Name, s, want[info.Name])
		}
		if info.Description == "" || info.Impact == "" {
			t.Errorf("%s has no description or impact", info.Name)
		}
		if _, bounded := m["minimum"]; bounded != (info.Type == "int") {
			t.Errorf("%s: minimum in JSON: %v", info.Name, bounded)
		}
		if Critical(info.Name) != info.Critical {
			t.Errorf("Critical(%s) differs from Info", info.Name)
		}
	}
	if !slices.Equal(names, Names()) {
		t.Errorf("Info lists %v, want %v", names, Names())
	}
	if Critical("no_such") {
		t.Error("an unknown parameter is critical")
	}
}

func TestDefaultsAreValid(t *testing.T) {
	want := Parameters{BSeriesMaxOrder: 8, CacheTTLSeconds: 300, EnableCaching: true, EnablePerformanceMonitoring: true, ESNReservoirSize: 512, MaxMembraneDepth: 4}
	if got := Defaults(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if v := CheckParameters(Defaults()); v != nil {
		t.Errorf("the defaults are invalid: %v", v)
	}
}

// The file is CUE that people may use with the cue command, and formatted.
func TestCUEStandsAlone(t *testing.T) {
	formatted, err := format.Source(CUE())
	if err != nil {
		t.Fatal(err)
	}
	if string(formatted) != string(CUE()) {
		t.Errorf("dtesn.cue is not formatted; cue fmt makes it\n%s", formatted)
	}
	ctx := cuecontext.New()
	root := ctx.CompileBytes(CUE())
	configuration := root.LookupPath(cue.ParsePath("#Configuration"))
	for _, c := range []struct {
		change map[string]any
		ok     bool
	}{
		{nil, true},
		{map[string]any{ESNReservoirSize: 64}, false},
		{map[string]any{ESNReservoirSize: 63}, false},
		{map[string]any{EnableCaching: "yes"}, false},
		{map[string]any{"colour": 1}, false},
	} {
		values := Defaults().Map()
		for name, value := range c.change {
			values[name] = value
		}
		err := configuration.Unify(ctx.Encode(values)).Validate(cue.Concrete(true))
		if (err == nil) != c.ok {
			t.Errorf("%v: %v", c.change, err)
		}
	}
}

func TestEnvironments(t *testing.T) {
	if got := Environments(); !slices.Equal(got, []Environment{"development", "staging", "production", "testing"}) {
		t.Errorf("Environments() = %v", got)
	}
	if e, err := ParseEnvironment("staging"); e != "staging" || err != nil {
		t.Errorf("staging: %v, %v", e, err)
	}
	for given, want := range map[string]string{
		"prod":        "no environment is named prod (did you mean production?): it is one of development, staging, production, testing",
		"Production":  "no environment is named Production (did you mean production?): it is one of development, staging, production, testing",
		"":            `no environment is named "": it is one of development, staging, production, testing`,
		"../etc\x1b[": `no environment is named "../etc\x1b[": it is one of development, staging, production, testing`,
	} {
		if _, err := ParseEnvironment(given); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", given, err, want)
		}
	}
}

func TestJSONSchema(t *testing.T) {
	text, err := JSONSchema()
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Schema     string `json:"$schema"`
		Additional *bool  `json:"additionalProperties"`
		Properties map[string]json.RawMessage
		Defs       struct {
			Parameters struct {
				Additional *bool `json:"additionalProperties"`
				Properties map[string]struct {
					Type             string
					Minimum, Maximum *int
					Default          any
					Description      string
				}
			}
		} `json:"definitions"`
	}
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	if s.Schema != "http://json-schema.org/draft-07/schema#" || s.Additional == nil || *s.Additional {
		t.Errorf("not a closed schema of draft 7: %s", text)
	}
	for _, key := range environmentKeys {
		if s.Properties[key] == nil {
			t.Errorf("no property %s", key)
		}
	}
	for _, info := range Info() {
		p := s.Defs.Parameters.Properties[info.Name]
		if p.Default == nil || p.Description == "" || (info.Type == "int") != (p.Type == "integer" && *p.Minimum == *info.Minimum && *p.Maximum == *info.Maximum) {
			t.Errorf("%s: %+v", info.Name, p)
		}
	}
	if a := s.Defs.Parameters.Additional; a == nil || *a {
		t.Error("parameters are open")
	}
}

func TestMarkdown(t *testing.T) {
	got := Markdown()
	for _, want := range []string{
		"| `esn_reservoir_size` | int | 64-16384 | 512 | yes | ",
		"| `enable_caching` | bool | true/false | true | no | ",
		"* `esn_reservoir_size >= max_membrane_depth * 32`\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestSchemaDigest(t *testing.T) {
	if d := SchemaDigest(); len(d) != 64 || strings.Trim(d, "0123456789abcdef") != "" {
		t.Errorf("SchemaDigest() = %q", d)
	}
}

// A number of dtesn.cue stands in dtesn.cue only. In this package no literal
// equals one; elsewhere, where 64 and 300 may mean anything, the two that mean
// nothing else are looked for, and each range as text.
func TestNumbersStandInCUEOnly(t *testing.T) {
	allowed := map[string]bool{
		"maxNesting = 32": true, "maxExtends = 32": true, "maxExperiments = 64": true,
		"maxWord = 64": true, "maxLabel = 64": true, "MaxViolations = 100": true, "maxTries = 100": true, "perPercent = 100": true,
		"ParseFloat 64": true, "FormatFloat 64": true, "8 << 10": true,
	}
	numbers, telling := map[int]bool{}, map[int]bool{}
	var ranges []string
	percent := schemaFacts().percent
	for _, info := range append(Info(), percent) {
		if info.Type != "int" {
			continue
		}
		ranges = append(ranges, info.Range)
		for _, n := range []int{*info.Minimum, *info.Maximum} {
			numbers[n] = n >= 32 // smaller ones mean anything
			telling[n] = n >= 10_000
		}
		if d, ok := info.Default.(int); ok {
			numbers[d] = d >= 32
		}
	}
	err := filepath.WalkDir("..", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			return nil // being written; the compiler says so
		}
		wanted := telling
		if filepath.Dir(path) == filepath.Join("..", "schema") {
			wanted = numbers
		}
		checkNumbers(t, fset, file, wanted, ranges, allowed)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkNumbers(t *testing.T, fset *token.FileSet, file *ast.File, wanted map[int]bool, ranges []string, allowed map[string]bool) {
	context := map[ast.Node]string{} // what a literal is used for, where that excuses it
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ValueSpec:
			for i, v := range n.Values {
				if l, ok := v.(*ast.BasicLit); ok && i < len(n.Names) {
					context[l] = n.Names[i].Name + " = " + l.Value
				}
				if b, ok := v.(*ast.BinaryExpr); ok && b.Op == token.SHL {
					context[b.X], context[b.Y] = "8 << 10", "8 << 10"
				}
			}
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.SelectorExpr); ok {
				for _, arg := range n.Args {
					if l, ok := arg.(*ast.BasicLit); ok {
						context[l] = f.Sel.Name + " " + l.Value
					}
				}
			}
		case *ast.BasicLit:
			if allowed[context[n]] {
				return true
			}
			if i, err := strconv.ParseInt(n.Value, 0, 64); err == nil && wanted[int(i)] {
				t.Errorf("%s: %s is a number of dtesn.cue", fset.Position(n.Pos()), n.Value)
			}
			for _, r := range ranges {
				if n.Kind == token.STRING && len(r) > 4 && strings.Contains(n.Value, r) {
					t.Errorf("%s: %s repeats a range of dtesn.cue", fset.Position(n.Pos()), n.Value)
				}
			}
		}
		return true
	})
}
