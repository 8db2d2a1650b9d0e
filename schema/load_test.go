package schema

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write the expected output of testdata/*.txtar anew")

// production are the rules that most tests load with.
func production() *Rules { return Default().For("production") }

// A fixture is a case of testdata, a txtar archive. Its comment has lines, all
// optional:
//
//	environment: NAME
//	instance: NAME
//	commit: HASH
//	unset: NAME NAME     parameters that @others leaves out
//	base: none           there is no base.yaml
//
// Its files are those of the configuration, and "want", which is what Load makes
// of them. A file FILE.quoted holds a Go string literal, for bytes that text
// cannot show; FILE.refused says why a source did not take the file.
//
// A line "  @others" stands for the parameters that the file does not name, each
// with its default. A fixture without base.yaml has one with @others. The output
// shows the place of such a line as FILE:NAME, what all fixtures share as
// <parameters> and <example>, and of a configuration only the parameters that
// the fixture names: so a fixture is about those, whatever else the schema has.
type fixture struct {
	rules    *Rules
	in       Input
	want     string
	unset    []string
	text     string              // of all files as they stand in the archive
	generate map[string][]string // by file: the parameter that @others wrote on each line
}

func TestFixtures(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range oneParameterMore(t) {
		if name == "as it is" || !*update {
			t.Run(name, func(t *testing.T) { testFixtures(t, s, paths) })
		}
	}
}

func testFixtures(t *testing.T, s *Schema, paths []string) {
	good, bad := 0, 0
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			f := readFixture(t, s, archive)
			c, v := f.rules.Load(f.in)
			if (c == nil) == (v == nil) {
				t.Fatalf("Load returned %v and %v: exactly one must be nil", c, v)
			}
			switch isGood := strings.HasSuffix(path, ".good.txtar"); {
			case isGood && v != nil:
				t.Fatalf("want a configuration, got\n%s", f.render(nil, v))
			case !isGood && v == nil:
				t.Fatalf("want violations, got\n%s", f.render(c, nil))
			case isGood:
				f.checkOthers(t, c)
			}
			wellFormed(t, v)
			got := f.render(c, v)
			if *update {
				writeFixture(t, path, archive, got)
			} else if got != f.want {
				t.Errorf("got\n%swant\n%s", got, f.want)
			}
		})
		if strings.HasSuffix(path, ".good.txtar") {
			good++
		} else {
			bad++
		}
	}
	if good < 20 || bad < 228 {
		t.Errorf("%d good and %d bad fixtures; some are missing", good, bad)
	}
}

func readFixture(t *testing.T, s *Schema, archive *txtar.Archive) *fixture {
	t.Helper()
	f := &fixture{rules: s.For("production"), in: Input{Instance: "node-1"}, generate: map[string][]string{}}
	hasBase := slices.ContainsFunc(archive.Files, func(f txtar.File) bool { return strings.HasPrefix(f.Name, BaseFile) })
	lines := bufio.NewScanner(bytes.NewReader(archive.Comment))
	for lines.Scan() {
		switch key, value, _ := strings.Cut(lines.Text(), ": "); key {
		case "environment":
			f.rules = s.For(Environment(value))
		case "instance":
			f.in.Instance = value
		case "commit":
			f.in.Commit = value
		case "unset":
			f.unset = strings.Fields(value)
		case "base":
			hasBase = true
		}
	}
	if !hasBase {
		f.add(BaseFile, "parameters:\n  @others\n")
	}
	for _, file := range archive.Files {
		path, text := file.Name, string(file.Data)
		switch {
		case path == "want":
			f.want = text
			continue
		case strings.HasSuffix(path, ".quoted"):
			var err error
			if text, err = strconv.Unquote(strings.TrimSpace(text)); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			f.add(strings.TrimSuffix(path, ".quoted"), text)
		case strings.HasSuffix(path, ".refused"):
			f.in.Files = append(f.in.Files, File{Path: strings.TrimSuffix(path, ".refused"), Refused: strings.TrimSpace(text)})
		default:
			f.add(path, text)
		}
		f.text += text
	}
	slices.SortFunc(f.in.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return f
}

// add adds a file, with @others replaced.
func (f *fixture) add(path, text string) {
	const mark = "  @others\n"
	if before, after, found := strings.Cut(text, mark); found {
		others := ""
		f.generate[path] = make([]string, strings.Count(before, "\n"))
		for _, p := range f.rules.Parameters() {
			if !p.Default.IsZero() && !names(text, p.Name) && !slices.Contains(f.unset, p.Name) {
				others += fmt.Sprintf("  %s: %v\n", p.Name, p.Default)
				f.generate[path] = append(f.generate[path], p.Name)
			}
		}
		text = before + others + after
	}
	f.in.Files = append(f.in.Files, NewFile(path, []byte(text)))
}

// names reports whether the text has the name as a word.
func names(text, name string) bool {
	return regexp.MustCompile(`\b` + name + `\b`).MatchString(text)
}

func (f *fixture) isNamed(name string) bool {
	return names(f.text, name) || slices.Contains(f.unset, name)
}

func writeFixture(t *testing.T, path string, archive *txtar.Archive, got string) {
	archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return f.Name == "want" })
	archive.Files = append(archive.Files, txtar.File{Name: "want", Data: []byte(got)})
	if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
	}
}

var place = regexp.MustCompile(`([a-z/-]+\.yaml):(\d+):\d+`)

// render is the output that a fixture expects.
func (f *fixture) render(c *Configuration, v *Violations) string {
	text := place.ReplaceAllStringFunc(render(c, v, f.isNamed), func(at string) string {
		m := place.FindStringSubmatch(at)
		if line, _ := strconv.Atoi(m[2]); line <= len(f.generate[m[1]]) && f.generate[m[1]][line-1] != "" {
			return m[1] + ":" + f.generate[m[1]][line-1]
		}
		return at
	})
	required := f.rules.parameters[slices.IndexFunc(f.rules.parameters, func(p Parameter) bool { return p.Required })]
	return strings.NewReplacer(
		strings.Join(f.rules.Names(), ", "), "<parameters>",
		fmt.Sprintf("{%s: %v}", required.Name, required.Default), "<example>",
	).Replace(text)
}

// render is what Load returned as text, with the parameters that shown reports
// true for.
func render(c *Configuration, v *Violations, shown func(name string) bool) string {
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
	for _, name := range c.Parameters.Names() {
		if o := c.Provenance[name]; shown(name) {
			fmt.Fprintf(&b, "%s: %v %s %s %s\n", name, c.Parameters.Get(name), o.Layer, o.Position, o.Commit)
		}
	}
	if c.Description != "" {
		fmt.Fprintf(&b, "description: %q\n", c.Description)
	}
	for _, m := range c.Experiments {
		fmt.Fprintf(&b, "experiment: %s %d%% %v\n", m.Name, m.Percent, m.Member)
	}
	return regexp.MustCompile(` +\n`).ReplaceAllString(b.String(), "\n")
}

// checkOthers asserts of the parameters that the fixture does not name that they
// have their defaults, from the line that @others wrote.
func (f *fixture) checkOthers(t *testing.T, c *Configuration) {
	t.Helper()
	for _, p := range f.rules.Parameters() {
		if f.isNamed(p.Name) {
			continue
		}
		o := c.Provenance[p.Name]
		if got := c.Parameters.Get(p.Name); !got.Equal(p.Default) {
			t.Errorf("%s is %v, want the default, %v", p.Name, got, p.Default)
		}
		if lines := f.generate[o.File]; !p.Default.IsZero() && (o.Line < 1 || o.Line > len(lines) || lines[o.Line-1] != p.Name || o.Commit != f.in.Commit) {
			t.Errorf("%s is from %+v", p.Name, o)
		}
	}
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
