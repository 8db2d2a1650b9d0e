package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cuelang.org/go/cue"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"
)

// beyondJSONSchema names the bad cases whose files the JSON Schema takes, and
// why it cannot say what is wrong. A new case is refused by it or stands here.
var beyondJSONSchema = map[string][]string{
	"a rule between parameters": {
		"experiment-not-member-is-judged", "rule-both-broken", "rule-caching-needs-ttl", "rule-caching-on-in-template",
		"rule-environment-depth", "rule-environment-reservoir", "rule-experiment-alone", "rule-experiment-turns-caching-on",
		"rule-experiments-together", "rule-once-with-experiments", "rule-template", "rule-template-over-template",
		"rule-tie-blames-reservoir",
	},
	"what the files set together": {"missing-parameters"},
	"which files there are": {
		"missing-base", "missing-both", "missing-environment-file", "missing-template",
		"refused-environment", "refused-template",
	},
	"what the name of the file tells": {
		"description-in-base", "environment-and-experiments-in-template", "environment-wrong", "missing-environment-key",
		"unknown-environment-key-in-base",
	},
	"uniqueness by a part of an item": {"experiment-same-parameter", "experiments-same-parameter-thrice"},
	"lengths in bytes":                {"experiment-name-long-characters"},
	"what is gone when YAML is read: anchors, tags, further documents, bytes": {
		"alias", "alias-in-extends", "alias-of-mapping", "anchor", "anchor-on-key", "anchor-on-list", "anchor-on-mapping",
		"anchor-on-root", "bom-twice", "key-merge", "merge-list", "second-document", "second-document-after-end",
		"second-document-empty", "second-document-in-base", "second-document-in-template", "tag", "tag-on-key",
		"tag-on-mapping", "tag-on-root", "text-after-document-end",
	},
	"the spelling of a value that is in range": {
		"value-binary", "value-bool-capital", "value-bool-upper", "value-exponent", "value-float", "value-hex",
		"value-leading-zeros", "value-octal", "value-octal-modern", "value-plus", "value-trailing-dot", "value-underscore",
	},
}

// asJSON is what a reader of YAML that is no agent makes of a file.
func asJSON(t *testing.T, text []byte) (any, error) {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(trimBOM(text), &v); err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(plain(v))
	if err != nil {
		return nil, err
	}
	return jsonschema.UnmarshalJSON(bytes.NewReader(encoded))
}

func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = plain(v[k])
		}
	case map[any]any:
		m := map[string]any{}
		for k := range v {
			m[fmt.Sprint(k)] = plain(v[k])
		}
		return m
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	case time.Time:
		return v.String()
	}
	return v
}

func compileJSONSchema(t *testing.T, s *Schema) *jsonschema.Schema {
	t.Helper()
	text, err := s.JSONSchema()
	if err != nil {
		t.Fatal(err)
	}
	return compile(t, text)
}

func compile(t *testing.T, text []byte) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("dtesn.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("dtesn.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestJSONSchemaOnTheCorpus holds that editors say what the agent says: every
// file of a good case is taken, and of every bad case a file is refused, but
// for what a JSON Schema cannot say.
func TestJSONSchemaOnTheCorpus(t *testing.T) {
	withoutRaceDetector(t)
	for name, schema := range oneParameterMore(t) {
		t.Run(name, func(t *testing.T) { testJSONSchemaOnTheCorpus(t, schema) })
	}
}

func testJSONSchemaOnTheCorpus(t *testing.T, schema *Schema) {
	s := compileJSONSchema(t, schema)
	beyond := map[string]string{}
	for why, names := range beyondJSONSchema {
		for _, name := range names {
			beyond[name] = why
		}
	}
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		name, _, _ := strings.Cut(filepath.Base(path), ".")
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		fixture := readFixture(t, schema, archive)
		var refused []string
		for _, f := range fixture.in.Files {
			if f.Refused != "" || !fixture.loads(f.Path) {
				continue
			}
			v, err := asJSON(t, f.Bytes)
			if err == nil {
				err = s.Validate(v)
			}
			if err != nil {
				refused = append(refused, fmt.Sprintf("%s: %v", f.Path, err))
			}
		}
		why := beyond[name]
		delete(beyond, name)
		switch good := strings.HasSuffix(path, ".good.txtar"); {
		case good && refused != nil:
			t.Errorf("%s is valid, and the JSON Schema refuses it: %v", name, refused)
		case !good && refused == nil && why == "":
			t.Errorf("%s is not valid, and the JSON Schema takes it: if it cannot say this rule, name the case in beyondJSONSchema", name)
		case !good && refused != nil && why != "":
			t.Errorf("%s is refused by the JSON Schema, and beyondJSONSchema says it cannot (%s): %v", name, why, refused)
		}
	}
	for name := range beyond {
		t.Errorf("beyondJSONSchema names %s, and there is no such case", name)
	}
}

// loads reports whether the loader reads the file.
func (f *fixture) loads(path string) bool {
	own := f.rules.environment.File()
	i := slices.IndexFunc(f.in.Files, func(f File) bool { return f.Path == own })
	return path == BaseFile || path == own || i >= 0 && slices.Contains(Extends(f.in.Files[i]), path)
}

// TestExamplesFitTheirSchema holds that each example names, from where it
// stands, a JSON Schema that takes it.
func TestExamplesFitTheirSchema(t *testing.T) {
	const line = "# yaml-language-server: $schema="
	files, err := filepath.Glob("../examples/config/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	templates, err := filepath.Glob("../examples/config/templates/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 5 || len(templates) < 4 {
		t.Errorf("%d files and %d templates; some are missing", len(files), len(templates))
	}
	for _, path := range append(files, templates...) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(string(text), "\n")
		name, ok := strings.CutPrefix(first, line)
		if !ok {
			t.Errorf("%s does not begin with %s", path, line)
			continue
		}
		schema, err := os.ReadFile(filepath.Join(filepath.Dir(path), name))
		if err != nil {
			t.Errorf("%s names a schema that is not there: %v", path, err)
			continue
		}
		v, err := asJSON(t, text)
		if err == nil {
			err = compile(t, schema).Validate(v)
		}
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestRangesAgree holds, for random values, that CUE, Check and the JSON Schema
// take the same ones.
func TestRangesAgree(t *testing.T) {
	schema := mustParse(t, ofAllTypes)
	rules, s := schema.For("production"), compileJSONSchema(t, schema)
	taken, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		values := map[string]any{}
		for _, p := range rules.Parameters() {
			if rapid.Bool().Draw(t, p.Name+" is set") {
				values[p.Name] = valueFor(&p).Draw(t, p.Name)
			}
		}
		_, violations := rules.Check(values)
		for name, given := range values {
			value := Value{literalJSON(given)}
			encoded, err := json.Marshal(map[string]any{keyParameters: map[string]any{name: value}})
			if err != nil {
				t.Fatal(err)
			}
			v, err := jsonschema.UnmarshalJSON(bytes.NewReader(encoded))
			if err != nil {
				t.Fatal(err)
			}
			ok := !slices.ContainsFunc(violations, func(v Violation) bool {
				return v.Parameter == name && strings.HasPrefix(v.Message, "Invalid value")
			})
			if err := s.Validate(v); (err == nil) != ok {
				t.Fatalf("%s: Check takes it: %v; the JSON Schema: %v", encoded, ok, err)
			}
			field := rules.definition.LookupPath(cue.MakePath(cue.Str(name).Optional()))
			if !field.Exists() {
				field = rules.definition.LookupPath(cue.MakePath(cue.Str(name).Required()))
			}
			if err := field.Unify(schema.context.Encode(value)).Validate(cue.Concrete(true)); (err == nil) != ok {
				t.Fatalf("%s: Check takes it: %v; CUE: %v", encoded, ok, err)
			}
			if ok {
				taken++
			} else {
				refused++
			}
		}
	})
	if taken < 50 || refused < 50 {
		t.Errorf("%d values were taken and %d refused: too few to tell", taken, refused)
	}
}

func literalJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// valueFor draws values of every type, mostly at the bounds of the parameter.
func valueFor(p *Parameter) *rapid.Generator[any] {
	kinds := []*rapid.Generator[any]{
		rapid.Map(rapid.Bool(), func(b bool) any { return b }),
		rapid.Map(rapid.Int(), func(n int) any { return n }),
		rapid.SampledFrom([]any{nil, "", "8", "true", 0.5, 1e300, -1.5, []any{}, []any{8}, map[string]any{}, 0, -1}),
	}
	lo, hi := float(p.Minimum), float(p.Maximum)
	switch p.Type {
	case "int":
		kinds = append(kinds,
			rapid.SampledFrom([]any{lo - 1, lo, lo + 1, hi - 1, hi, hi + 1, int(hi), hi + 0.5}),
			rapid.Map(rapid.IntRange(int(lo), int(hi)), func(n int) any { return n }))
	case "number":
		kinds = append(kinds,
			rapid.SampledFrom([]any{lo - 0.01, lo, lo + 0.01, hi - 0.01, hi, hi + 0.01, math.Nextafter(hi, hi+1)}),
			rapid.Map(rapid.Float64Range(lo, hi), func(f float64) any { return f }))
	case "string":
		kinds = append(kinds, rapid.Map(rapid.SampledFrom(append([]string{p.Range, " "}, p.Values...)), func(s string) any { return s }))
	}
	return rapid.OneOf(kinds...)
}

// TestJSONSchemaKnowsTheKindsOfFiles holds what completion in an editor rests
// on: what may stand in a file that says its environment, and in one that does
// not.
func TestJSONSchemaKnowsTheKindsOfFiles(t *testing.T) {
	s := compileJSONSchema(t, Default())
	for text, want := range map[string]bool{
		"parameters: {}\n": true, // base.yaml
		"description: text\nparameters: {bseries_max_order: 1}\n":      true, // a template
		"environment: staging\n":                                       true,
		"environment: staging\nextends: [a, b-c, 7]\n":                 true,
		"environment: staging\ndescription: 2024\n":                    true,
		"environment: prod\n":                                          false,
		"description: text\n":                                          false, // a template without parameters
		"parameters: {}\nextends: [a]\n":                               false, // only environments extend
		"parameters: {}\nexperiments: []\n":                            false,
		"environment: staging\nextends: [../a]\n":                      false,
		"environment: staging\nextends: [a, a]\n":                      false,
		"environment: staging\nextends: a\n":                           false,
		"environment: staging\nparameters:\n":                          false,
		"environment: staging\nunknown: 1\n":                           false,
		"environment: staging\nparameters: {depth: 1}\n":               false,
		"environment: staging\nexperiments: [{name: a, percent: 5}]\n": false,
		"environment: staging\nexperiments: [{name: ' a', percent: 5, parameters: {bseries_max_order: 1}}]\n": false,
		"environment: staging\nexperiments: [{name: a b, percent: 5, parameters: {bseries_max_order: 1}}]\n":  true,
		"environment: staging\nexperiments: [{name: a, percent: 5, parameters: {}}]\n":                        false,
		"environment: staging\nexperiments: [{name: a, percent: 101, parameters: {bseries_max_order: 1}}]\n":  false,
	} {
		v, err := asJSON(t, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(v); (err == nil) != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}
