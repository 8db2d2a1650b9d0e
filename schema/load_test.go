package schema

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write the expected output of testdata/*.txtar anew")

// A case of testdata is a txtar archive: in its comment the lines "environment:
// NAME", "instance: NAME" and "commit: HASH" (all optional), in its files those
// of the Document, and in "want" what Load makes of them. A file FILE.quoted
// holds a Go string literal, for bytes that text cannot show; FILE.refused says
// why a source did not take the file. good cases load, bad ones do not.
func TestFixtures(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	good, bad := 0, 0
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			doc, instance, want := readCase(t, archive)
			c, v := Load(doc, instance)
			if (c == nil) == (v == nil) {
				t.Fatalf("Load returned %v and %v: exactly one must be nil", c, v)
			}
			switch isGood := strings.HasSuffix(path, ".good.txtar"); {
			case isGood && v != nil:
				t.Fatalf("want a configuration, got\n%s", render(nil, v))
			case !isGood && v == nil:
				t.Fatalf("want violations, got\n%s", render(c, nil))
			}
			wellFormed(t, v)
			got := render(c, v)
			if *update {
				writeCase(t, path, archive, got)
			} else if got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
		if strings.HasSuffix(path, ".good.txtar") {
			good++
		} else {
			bad++
		}
	}
	if good < 20 || bad < 230 {
		t.Errorf("%d good and %d bad cases; some are missing", good, bad)
	}
}

func readCase(t *testing.T, archive *txtar.Archive) (doc *Document, instance, want string) {
	doc = &Document{Environment: "production", Source: Source{Kind: "file"}}
	instance = "node-1"
	lines := bufio.NewScanner(bytes.NewReader(archive.Comment))
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ": ")
		switch key {
		case "environment":
			doc.Environment = Environment(value)
		case "instance":
			instance = value
		case "commit":
			doc.Source = Source{Kind: "git", Revision: value}
		}
	}
	for _, f := range archive.Files {
		switch path := f.Name; {
		case path == "want":
			want = string(f.Data)
		case strings.HasSuffix(path, ".quoted"):
			text, err := strconv.Unquote(strings.TrimSpace(string(f.Data)))
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			doc.Files = append(doc.Files, File{Path: strings.TrimSuffix(path, ".quoted"), Bytes: []byte(text)})
		case strings.HasSuffix(path, ".refused"):
			doc.Files = append(doc.Files, File{Path: strings.TrimSuffix(path, ".refused"), Refused: strings.TrimSpace(string(f.Data))})
		default:
			doc.Files = append(doc.Files, File{Path: path, Bytes: f.Data})
		}
	}
	slices.SortFunc(doc.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return doc, instance, want
}

func writeCase(t *testing.T, path string, archive *txtar.Archive, got string) {
	archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return f.Name == "want" })
	archive.Files = append(archive.Files, txtar.File{Name: "want", Data: []byte(got)})
	if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
	}
}

// render is a case's expected output.
func render(c *Configuration, v *Violations) string {
	var b strings.Builder
	if v != nil {
		for _, violation := range v.List {
			fmt.Fprintln(&b, violation)
		}
		if v.Total > len(v.List) {
			fmt.Fprintf(&b, "%d in all\n", v.Total)
		}
		return b.String()
	}
	for _, name := range Names() {
		o := c.Provenance[name]
		fmt.Fprintf(&b, "%s: %v %s %s %s\n", name, c.Parameters.Get(name), o.Layer, o.Position, o.Commit)
	}
	if c.Description != "" {
		fmt.Fprintf(&b, "description: %q\n", c.Description)
	}
	for _, m := range c.Experiments {
		fmt.Fprintf(&b, "experiment: %s %d%% %v\n", m.Name, m.Percent, m.Member)
	}
	return strings.ReplaceAll(b.String(), " \n", "\n")
}

// wellFormed asserts what every violation must have.
func wellFormed(t *testing.T, v *Violations) {
	t.Helper()
	if v == nil {
		return
	}
	for i, a := range v.List {
		if a.File == "" || a.Rule == "" || a.Message == "" || a.Hint == "" {
			t.Errorf("violation %d lacks a file, rule, message or hint: %+v", i, a)
		}
		if s := a.String(); strings.ContainsAny(s, "\n\r\x00\x1b") {
			t.Errorf("violation %d is not one printable line: %q", i, s)
		}
		if len(a.Value) > maxForeign {
			t.Errorf("violation %d shows a value of %d bytes", i, len(a.Value))
		}
		if i == 0 {
			continue
		}
		b := v.List[i-1]
		if b.File > a.File || b.File == a.File && (b.Line > a.Line || b.Line == a.Line && b.Column > a.Column) {
			t.Errorf("violation %d is out of order: %s after %s", i, a.Position, b.Position)
		}
	}
}
