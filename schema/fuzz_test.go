package schema

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// FuzzLoad: whatever an environment's file and base.yaml hold, Load returns
// within its bounds and says one thing; what it takes, it takes for good
// reason.
func FuzzLoad(f *testing.F) {
	r := mustParse(f, ofAllTypes).For("production")
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			if strings.HasSuffix(file.Name, ".yaml") {
				f.Add(file.Data, []byte(baseText))
				f.Add([]byte(productionText), file.Data)
			}
		}
	}
	for _, text := range hostile() {
		if len(text) < 4<<10 {
			f.Add(text, []byte(baseText))
		}
	}
	f.Add([]byte(productionText), []byte(baseText))
	f.Fuzz(func(t *testing.T, production, base []byte) {
		in := input(string(production))
		in.Files[0].Bytes = base
		bounded(t, func() {
			c, v := r.Load(in)
			if (c == nil) == (v == nil) {
				t.Fatalf("Load returned %v and %v", c, v)
			}
			wellFormed(t, v)
			for _, path := range Extends(in.Files[1]) {
				if !strings.HasPrefix(path, "templates/") || strings.Count(path, "/") != 1 || strings.Contains(path, "..") {
					t.Errorf("extends %q", path)
				}
			}
			if c == nil {
				return
			}
			if broken := r.CheckParameters(c.Parameters); broken != nil {
				t.Errorf("loaded what Check refuses: %v", broken)
			}
		})
	})
}

// FuzzParameters: Parameters that are read from JSON are written as they are, and
// stay equal.
func FuzzParameters(f *testing.F) {
	text, err := production().Defaults().MarshalJSON()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"a": 1.50, "b": "int8", "c": [1, {"d": null}], "e": null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var p, q Parameters
		if p.UnmarshalJSON(text) != nil {
			return
		}
		encoded, err := p.MarshalJSON()
		if err == nil {
			err = q.UnmarshalJSON(encoded)
		}
		if err != nil || !p.Equal(q) || p.Digest() != q.Digest() {
			t.Errorf("%q becomes %v in JSON: %v", text, q, err)
		}
	})
}

// FuzzSchema: whatever a schema file holds, Open returns, and says one thing
// with a hint; what it takes can be used.
func FuzzSchema(f *testing.F) {
	f.Add(string(embedded))
	for _, file := range badSchemas(f).Files {
		f.Add(string(file.Data))
	}
	f.Add(ofAllTypes)
	paths, err := filepath.Glob("../examples/schema/*.cue")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > maxSchemaBytes {
			return
		}
		s, err := read("schema.cue", []byte(text))
		if err != nil {
			wellFormedProblem(t, err)
			return
		}
		for _, env := range s.Environments() {
			r := s.For(env)
			if v := r.CheckParameters(r.Defaults()); v != nil {
				t.Logf("the managed defaults alone break a rule: %v", v)
			}
		}
		if _, err := s.JSONSchema(); err != nil {
			t.Error(err)
		}
		s.Relations("%s")
	})
}
