package schema

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// FuzzLoad: whatever an environment's file and base.yaml hold, Load returns
// within its bounds and says one thing; what it takes, it takes for good
// reason.
func FuzzLoad(f *testing.F) {
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
		doc := document(production)
		doc.Files[0].Bytes = base
		bounded(t, func() {
			c, v := Load(doc, "node-1")
			if (c == nil) == (v == nil) {
				t.Fatalf("Load returned %v and %v", c, v)
			}
			wellFormed(t, v)
			for _, path := range Extends(production) {
				if !strings.HasPrefix(path, "templates/") || strings.Count(path, "/") != 1 || strings.Contains(path, "..") {
					t.Errorf("extends %q", path)
				}
			}
			if c == nil {
				return
			}
			if bytes.ContainsAny(production, "&*") && bytes.Contains(production, []byte("<<:")) {
				t.Logf("taken: %q", production)
			}
			if broken := CheckParameters(c.Parameters); broken != nil {
				t.Errorf("loaded what Check refuses: %v", broken)
			}
		})
	})
}

// FuzzParseCanonical: what ParseCanonical takes is what Canonical writes.
func FuzzParseCanonical(f *testing.F) {
	f.Add(Defaults().Canonical())
	f.Add([]byte("bseries_max_order: 08\n"))
	f.Add(bytes.Replace(Defaults().Canonical(), []byte("\n"), []byte("\r\n"), 1))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParseCanonical(text)
		if err != nil {
			return
		}
		if !bytes.Equal(p.Canonical(), text) {
			t.Errorf("%q is taken, and written %q", text, p.Canonical())
		}
	})
}
