package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/cuecontext"
	"cuelang.org/go/cue/format"
)

// The parameters that the system had before its schema was data keep what is
// said of them.
func TestEmbeddedParameters(t *testing.T) {
	for name, want := range map[string]string{
		"max_membrane_depth":            "int 1-64 4 true true true",
		"esn_reservoir_size":            "int 64-16384 512 true true true",
		"bseries_max_order":             "int 1-32 8 true true true",
		"enable_caching":                "bool true/false true false true true",
		"cache_ttl_seconds":             "int 1-86400 300 false false true",
		"enable_performance_monitoring": "bool true/false true false true true",
	} {
		text, err := json.Marshal(production().Parameter(name))
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(text, &m); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, key := range []string{"type", "range", "default", "critical", "required", "managed"} {
			s, _ := json.Marshal(m[key])
			got = append(got, strings.Trim(string(s), `"`))
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: got %s, want %s", name, s, want)
		}
	}
}

func TestParameterInfo(t *testing.T) {
	for _, s := range []*Schema{Default(), mustParse(t, ofAllTypes)} {
		for _, env := range s.Environments() {
			r := s.For(env)
			var names []string
			for _, p := range r.Parameters() {
				names = append(names, p.Name)
				if p.Description == "" || p.Critical != (p.Apply == ApplyRebuild) || p.Required && !p.Managed {
					t.Errorf("%s: %+v", p.Name, p)
				}
				text, err := json.Marshal(p)
				if err != nil {
					t.Fatal(err)
				}
				isNumber := p.Type == "int" || p.Type == "number"
				if bytes.Contains(text, []byte(`"minimum"`)) != isNumber || bytes.Contains(text, []byte(`"values"`)) != (p.Type == "string") {
					t.Errorf("%s: %s", p.Name, text)
				}
				if got := r.Parameter(p.Name); got == nil || got.Name != p.Name || !r.Has(p.Name) {
					t.Errorf("Parameter(%s): %+v", p.Name, got)
				}
			}
			if !slices.IsSorted(names) || !slices.Equal(names, r.Names()) || !slices.Equal(names, s.Names()) {
				t.Errorf("names %v, %v, %v", names, r.Names(), s.Names())
			}
			if r.Has("no_such") || r.Parameter("") != nil {
				t.Error("an unknown parameter is known")
			}
			if r.Schema() != s || r.Environment() != env {
				t.Errorf("%s: wrong schema or environment", env)
			}
			if v := r.CheckParameters(r.Defaults()); v != nil {
				t.Errorf("the defaults are invalid: %v", v)
			}
		}
	}
}

// The file is CUE that people may use with the cue command, and formatted.
func TestCUEStandsAlone(t *testing.T) {
	for _, s := range []*Schema{Default(), mustParse(t, ofAllTypes)} {
		formatted, err := format.Source(s.CUE())
		if err != nil {
			t.Fatal(err)
		}
		if string(formatted) != string(s.CUE()) {
			t.Errorf("not formatted; cue fmt makes it\n%s", formatted)
		}
		ctx := cuecontext.New()
		root := ctx.CompileBytes(s.CUE())
		configuration := root.LookupPath(cue.ParsePath("#Configuration"))
		for _, c := range []struct {
			name  string
			value Value
			ok    bool
		}{
			{"esn_reservoir_size", Int(512), true},
			{"esn_reservoir_size", Int(64), false},
			{"esn_reservoir_size", Int(63), false},
			{"enable_caching", Text("yes"), false},
			{"colour", Int(1), false},
		} {
			values := s.For("production").Defaults().With(c.name, c.value)
			err := configuration.Unify(ctx.Encode(values)).Validate(cue.Concrete(true))
			if (err == nil) != c.ok {
				t.Errorf("%s %v: %v", c.name, c.value, err)
			}
		}
	}
}

func TestEnvironments(t *testing.T) {
	s := Default()
	if got := s.Environments(); !slices.Equal(got, []Environment{"development", "staging", "production", "testing"}) {
		t.Errorf("Environments() = %v", got)
	}
	for _, env := range s.Environments() {
		if got, err := s.ParseEnvironment(string(env)); got != env || err != nil || s.For(env) == nil || s.Label(env) != string(env) {
			t.Errorf("%s: %v, %v, label %s", env, got, err, s.Label(env))
		}
	}
	for given, want := range map[string]string{
		"prod":        "no environment is named prod: did you mean production?",
		"Production":  "no environment is named Production: did you mean production?",
		"":            `no environment is named "": it is one of development, staging, production, testing`,
		"../etc\x1b[": `no environment is named "../etc\x1b[": it is one of development, staging, production, testing`,
	} {
		if _, err := s.ParseEnvironment(given); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", given, err, want)
		}
		if s.For(Environment(given)) != nil {
			t.Errorf("there are rules for %q", given)
		}
	}
}

func TestJSONSchema(t *testing.T) {
	for _, schema := range []*Schema{Default(), mustParse(t, ofAllTypes)} {
		text, err := schema.JSONSchema()
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
						Enum             []string
						Minimum, Maximum Value
						Default          Value
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
		for key, want := range map[string]string{
			keyExtends:     fmt.Sprintf(`"maxItems": %d`, maxExtends),
			keyExperiments: fmt.Sprintf(`"maxItems": %d`, maxExperiments),
		} {
			if !bytes.Contains(s.Properties[key], []byte(want)) {
				t.Errorf("%s is not limited as in Go: %s", key, s.Properties[key])
			}
		}
		if want := fmt.Sprintf(`"maxLength": %d`, maxLabel); !bytes.Contains(text, []byte(want)) || !bytes.Contains(text, []byte(templateName.String())) {
			t.Error("names are not limited as in Go")
		}
		if n := len(s.Defs.Parameters.Properties); n != len(schema.Names()) {
			t.Errorf("%d parameters, want %d", n, len(schema.Names()))
		}
		for _, p := range schema.For("production").Parameters() {
			got := s.Defs.Parameters.Properties[p.Name]
			typ := map[string]string{"int": "integer", "number": "number", "bool": "boolean"}[p.Type]
			if !strings.HasPrefix(got.Description, p.Description) || got.Default != p.Default || got.Type != typ ||
				got.Minimum != p.Minimum || got.Maximum != p.Maximum || !slices.Equal(got.Enum, p.Values) {
				t.Errorf("%s: %+v", p.Name, got)
			}
		}
		if a := s.Defs.Parameters.Additional; a == nil || *a {
			t.Error("parameters are open")
		}
	}
}

func TestDigest(t *testing.T) {
	d := Default().Digest()
	if len(d) != 64 || strings.Trim(d, "0123456789abcdef") != "" {
		t.Errorf("Digest() = %q", d)
	}
	if d == mustParse(t, ofAllTypes).Digest() {
		t.Error("two schemas have one digest")
	}
}

// A name or a number of dtesn.cue stands in dtesn.cue only, but for the reference
// engine, which has to know what the names mean. In this package no literal
// equals a number; elsewhere, where 64 and 300 may mean anything, the two that
// mean nothing else are looked for, and each range as text.
func TestNamesAndNumbersStandInCUEOnly(t *testing.T) {
	allowed := map[string]bool{
		"maxNesting = 32": true, "maxExtends = 32": true, "maxExperiments = 64": true,
		"maxWord = 64": true, "maxLabel = 64": true, "MaxViolations = 100": true, "maxTries = 100": true, "perPercent = 100": true,
		"maxDigits = 64": true, "MaxDocumentFiles = 64": true, "ParseFloat 64": true, "FormatFloat 64": true, "8 << 10": true,
	}
	numbers, telling := map[int]bool{}, map[int]bool{}
	var ranges []string
	names := production().Names()
	for _, p := range append(production().Parameters(), production().percent) {
		if p.Type != "int" {
			continue
		}
		ranges = append(ranges, p.Range)
		for _, v := range []Value{p.Minimum, p.Maximum, p.Default} {
			n, _ := v.Int()
			numbers[n] = n >= 32 // smaller ones mean anything
			telling[n] = n >= 10_000
		}
	}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git" || path == filepath.Join("..", "test")) {
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
		texts := ranges
		if filepath.Dir(path) != filepath.Join("..", "dtesn", "engine") {
			texts = append(slices.Clone(ranges), names...)
		}
		checkLiterals(t, fset, file, wanted, texts, allowed)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkLiterals(t *testing.T, fset *token.FileSet, file *ast.File, wanted map[int]bool, texts []string, allowed map[string]bool) {
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
			for _, text := range texts {
				if n.Kind == token.STRING && len(text) > 4 && strings.Contains(n.Value, text) {
					t.Errorf("%s: %s repeats %s of dtesn.cue", fset.Position(n.Pos()), n.Value, text)
				}
			}
		}
		return true
	})
}
