package schema

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"dtesn-agent/schema/problem"
)

func edits(pairs ...any) (list []Edit) {
	for i := 0; i < len(pairs); i += 2 {
		e := Edit{Name: pairs[i].(string)}
		switch v := pairs[i+1].(type) {
		case int:
			e.Value = Int(v)
		case bool:
			e.Value = Bool(v)
		case string:
			e.Value = Text(v)
		}
		list = append(list, e)
	}
	return list
}

// TestEditFile has a line for each shape of a file: what it was, what was asked for, and
// what it is then, or why not.
func TestEditFile(t *testing.T) {
	for _, c := range []struct {
		name, before string
		edits        []Edit
		after        string
	}{
		{"a value", "# top\nparameters: # p\n\n  a: 1 # why\n\n  b: true\n", edits("a", 20), "# top\nparameters: # p\n\n  a: 20 # why\n\n  b: true\n"},
		{"two values", "parameters:\n  a: 1\n  b: true\n", edits("b", false, "a", 3), "parameters:\n  a: 3\n  b: false\n"},
		{"another name", "parameters:\n  aa: 1 # why\n  b: 2\n", []Edit{{"a", Int(1), "aa"}}, "parameters:\n  a: 1 # why\n  b: 2\n"},
		{"another name and value, CRLF", "parameters:\r\n  b: 2\r\n  'aa': \"1\" # why\r\n", []Edit{{"a", Int(3), "aa"}}, "parameters:\r\n  b: 2\r\n  'a': 3 # why\r\n"},
		{"another name, JSON", `{"parameters": {"aa": 1}}`, []Edit{{"a", Int(1), "aa"}}, `{"parameters": {"a": 1}}`},
		{"a name that is taken", "parameters:\n  aa: 1\n  a: 2\n", []Edit{{"a", Int(1), "aa"}}, "!aa cannot be renamed to a"},
		{"a name that is not there", "parameters: {b: 1}\n", []Edit{{"a", Int(1), "aa"}}, "!aa cannot be renamed to a"},
		{"the same value", "parameters:\n  a: 1\n", edits("a", 1), "parameters:\n  a: 1\n"},
		{"CRLF", "parameters:\r\n  a: 1\r\n  b: 2\r\n", edits("a", 10, "c", 3), "parameters:\r\n  a: 10\r\n  b: 2\r\n  c: 3\r\n"},
		{"CRLF, no line break at the end", "parameters:\r\n  a: 1", edits("c", 3), "parameters:\r\n  a: 1\r\n  c: 3"},
		{"a byte order mark", "\ufeffparameters: {a: 1}\n", edits("a", 2), "\ufeffparameters: {a: 2}\n"},
		{"a new one, behind comments", "parameters:\n    a: 1 # one\n    # end\nextends: [x]\n", edits("b", 2), "parameters:\n    a: 1 # one\n    b: 2\n    # end\nextends: [x]\n"},
		{"no line break at the end", "parameters:\n  a: 1", edits("b", 2), "parameters:\n  a: 1\n  b: 2"},
		{"a comment and no line break at the end", "parameters:\n  a: 1 # x", edits("b", 2), "parameters:\n  a: 1 # x\n  b: 2"},
		{"no parameters", "environment: production\n", edits("b", 2, "a", 1), "environment: production\nparameters:\n  b: 2\n  a: 1\n"},
		{"no parameters, no line break", "environment: production # x", edits("b", 2), "environment: production # x\nparameters:\n  b: 2"},
		{"no parameters, CRLF", "environment: production\r\n", edits("b", 2), "environment: production\r\nparameters:\r\n  b: 2\r\n"},
		{"empty", "parameters: {}\n", edits("a", 1, "b", true), "parameters: {a: 1, b: true}\n"},
		{"empty over lines", "parameters: {\n  # nothing\n}\n", edits("a", 1), "parameters: {a: 1\n  # nothing\n}\n"},
		{"flow", "parameters: {a: 1, b: 2} # x\n", edits("b", 3, "c", 4, "a", nil), "parameters: {b: 3, c: 4} # x\n"},
		{"flow over lines", "parameters: {\n  a: 1, # one\n  b: 2,\n}\n", edits("c", 3, "a", 9), "parameters: {\n  a: 9, # one\n  b: 2, c: 3,\n}\n"},
		{"flow, the last", "parameters: {a: 1, b: 2 }\n", edits("b", nil), "parameters: {a: 1 }\n"},
		{"flow, the only one", "parameters: {a: 1}\n", edits("a", nil), "parameters: {}\n"},
		{"JSON", `{"environment": "x", "parameters": {"a": 1}}`, edits("a", 2, "m", "int8", "b", true), `{"environment": "x", "parameters": {"a": 2, "m": "int8", "b": true}}`},
		{"JSON without parameters", `{"environment": "x"}`, edits("a", 2), `{"environment": "x", "parameters": {"a": 2}}`},
		{"removed", "parameters:\n  # about a\n  a: 1 # why\n  b: 2\n", edits("a", nil), "parameters:\n  # about a\n  b: 2\n"},
		{"the only one removed", "parameters: # what differs\n  a: 1\n", edits("a", nil), "parameters: {} # what differs\n"},
		{"the only one removed, and another", "parameters:\n  a: 1\n", edits("a", nil, "b", 1), "parameters: {b: 1}\n"},
		{"removed, and not there", "parameters: {a: 1}\n", edits("b", nil), "parameters: {a: 1}\n"},
		{"removed, no line break at the end", "parameters:\n  a: 1\n  b: 2", edits("b", nil), "parameters:\n  a: 1\n"},
		{"quoted where it should not be", "parameters:\n  a: \"1\" # x\n  b: 'yes'\n", edits("a", 1, "b", true), "parameters:\n  a: 1 # x\n  b: true\n"},
		{"texts keep their quotes", "parameters:\n  a: \"x\\\"y\" # x\n  b: 'it''s'\n  c: plain\n", edits("a", "int8", "b", "int4", "c", "none"), "parameters:\n  a: \"int8\" # x\n  b: 'int4'\n  c: none\n"},
		{"texts that need quotes", "parameters:\n  a: x\n", edits("a", "yes", "b", "a: b", "c", "12", "d", "it's"), "parameters:\n  a: \"yes\"\n  b: \"a: b\"\n  c: \"12\"\n  d: \"it's\"\n"},
		{"a quoted text of two lines", "parameters:\n  a: \"one\n    two\" # x\n  b: 1\n", edits("a", "int8"), "parameters:\n  a: \"int8\" # x\n  b: 1\n"},
		{"other lines of many shapes", "description: >-\n  folded\n\n  text\nparameters:\n  é: 1\n", edits("b", 2), "description: >-\n  folded\n\n  text\nparameters:\n  é: 1\n  b: 2\n"},
		{"behind wide characters", "{description: \"größer 漢字 🙂\", parameters: {a: 1}}\n", edits("a", 2), "{description: \"größer 漢字 🙂\", parameters: {a: 2}}\n"},
		{"lines that YAML counts", "# a\u2028parameters: {}\rparameters: {a: 1}\n", edits("a", 2), "!is set twice"},
		{"a literal", "parameters:\n  a: |\n    1\n  b: 2\n", edits("a", 1), "!f.yaml:2:6: a block of text stands here"},
		{"behind a literal", "parameters:\n  a: |\n    1\n", edits("b", 1), "!a block of text stands here"},
		{"a plain text of two lines", "parameters:\n  a: one\n    two\n", edits("a", 1), "!several lines"},
		{"a list", "parameters:\n  a: [1]\n", edits("a", 1), "!a list stands where a value belongs"},
		{"an explicit key", "parameters:\n  ? a\n  : 1\n", edits("a", nil), "!does not begin its line"},
		{"parameters are a list", "parameters: [a]\n", edits("a", 1), "!parameters is a list"},
		{"a comment beside", "parameters: {\n  a: 1, # one\n  b: 2}\n", edits("a", nil), "!a comment stands beside a"},
		{"an anchor", "parameters:\n  a: &x 1\n  b: 2\n", edits("b", 1), "!no anchors"},
		{"an alias", "x: &x {a: 1}\nparameters: *x\n", edits("a", 2), "!no anchors"},
		{"a merge key", "parameters:\n  <<: {a: 1}\n", edits("a", 2), "!no merge keys"},
		{"a tag", "parameters:\n  a: !!int 1\n", edits("a", 2), "!no tags"},
		{"twice", "parameters:\n  a: 1\n  a: 2\n", edits("a", 2), "!is set twice"},
		{"empty value", "parameters:\n  a:\n", edits("a", 2), "!no empty values"},
		{"empty section", "parameters:\n", edits("a", 2), "!no empty values"},
		{"two documents", "parameters: {a: 1}\n---\nparameters: {a: 1}\n", edits("a", 2), "!one YAML document"},
		{"the end of a document", "environment: x\n...\n", edits("a", 2), "!cannot be edited safely"},
		{"no YAML", "parameters: {a: 1\n", edits("a", 2), "!not YAML"},
		{"nothing", "# nothing\n", edits("a", 2), "!not empty"},
		{"text", "hello\n", edits("a", 2), "!not a mapping"},
	} {
		got, err := EditFile(File{Path: "f.yaml", Bytes: []byte(c.before)}, c.edits...)
		if why, isRefused := strings.CutPrefix(c.after, "!"); isRefused {
			if err == nil || !strings.Contains(err.Error(), why) || string(got.Bytes) != c.before && len(c.edits) == 1 {
				t.Errorf("%s: error %v, want one with %q", c.name, err, why)
			}
			if found := (*Violations)(nil); !errors.As(err, &found) && problem.Hint(err) == "" {
				t.Errorf("%s: no hint", c.name)
			}
			continue
		}
		if err != nil || string(got.Bytes) != c.after {
			t.Errorf("%s: error %v\n%q\nwant\n%q", c.name, err, got.Bytes, c.after)
		}
	}
	if _, err := EditFile(File{Path: "f.yaml", Refused: "is a pipe; replace it"}, edits("a", 1)...); err == nil || problem.Text(err) != "edit f.yaml: the file is a pipe; replace it" {
		t.Errorf("a refused file: %v", err)
	}
}

// drawFile draws a file with parameters, and their values.
func drawFile(t *rapid.T) (text string, values map[string]string, isFlow bool) {
	pick := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(t, label) }
	eol, isFlow := pick("eol", "\n", "\r\n"), rapid.Bool().Draw(t, "flow")
	indent := strings.Repeat(" ", rapid.IntRange(1, 6).Draw(t, "indent"))
	comment := func() string {
		return pick("comment", "", "", " # why: {a, 'b", " # größer 漢字 \U0001F642", "  #")
	}
	filler := func() string {
		return pick("filler", "", "", eol, "# a: 1"+eol, "   # [x"+eol, eol+"# \"é"+eol)
	}
	values = map[string]string{}
	names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "cc", "d_1", "eee"}), 1, 5, rapid.ID[string]).Draw(t, "names")
	var pairs []string
	for _, name := range names {
		value := pick("value", "1", "-20", "true", "0.5", "plain", `"quoted, \"text\": #"`, `'it''s # one'`)
		values[name] = value
		key := pick("key", name, name, `"`+name+`"`, "'"+name+"'")
		pairs = append(pairs, key+":"+pick("space", " ", "   ")+value)
	}
	others := []string{
		"", "environment: production", "description: größer 漢字", "description: 'it''s'", `description: "a: \"b\""`,
		"description: |" + eol + indent + "x: y" + eol + indent + "# z", "description: >-" + eol + indent + "x" + eol + eol + indent + "y",
		"extends: [high, low] # both", "extends:" + eol + "- high" + eol + "  # x" + eol + "- low",
		"experiments:" + eol + "- name: x" + eol + "  percent: 3" + eol + "  parameters:" + eol + "    a: 7",
	}
	section := "parameters:" + comment() + eol
	if isFlow {
		gap := pick("gap", ", ", ",", " , ", ","+eol+indent)
		section = "parameters: {" + pick("open", "", " ", eol+indent) + strings.Join(pairs, gap) + pick("close", "", " ", ",", eol+indent) + "}" + comment()
	} else {
		for _, pair := range pairs {
			section += filler() + indent + pair + comment() + eol
		}
		section = strings.TrimSuffix(section, eol)
	}
	text = pick("bom", "", "", "\ufeff") + filler() + rapid.SampledFrom(others).Draw(t, "before")
	if strings.TrimPrefix(text, "\ufeff") != "" && !strings.HasSuffix(text, eol) {
		text += eol
	}
	text += filler() + section
	if after := rapid.SampledFrom(others).Draw(t, "after"); !strings.Contains(text, strings.SplitN(after+":", ":", 2)[0]) {
		text += eol + filler() + after
	}
	return text + pick("end", "", eol, eol+eol, eol+"# end", eol+"# end"+eol), values, isFlow
}

// othersOf returns the lines of a text that do not have a parameter, or all but the
// braces that have it.
func othersOf(text, name string, isFlow bool) (others string) {
	if isFlow {
		before, rest, _ := strings.Cut(text, "parameters: {")
		_, after, _ := strings.Cut(rest, "}")
		return before + after
	}
	for line := range strings.Lines(text) {
		key, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "\ufeff"), ":")
		if key = strings.Trim(key, `"'`); key != name && key != keyParameters {
			others += strings.TrimRight(line, "\r\n") + "\n"
		}
	}
	return others
}

// TestEditsAreExact edits files of random shapes: what is asked for is there afterwards,
// all else has the values that it had, and only lines of what was edited differ.
func TestEditsAreExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text, values, isFlow := drawFile(t)
		before := NewFile("f.yaml", []byte(text))
		root, found := before.parse()
		if found.Total > 0 {
			t.Fatalf("%v in\n%s", found, text)
		}
		edit := Edit{Name: rapid.SampledFrom([]string{"a", "b", "cc", "d_1", "eee"}).Draw(t, "name")}
		edit.Value = rapid.SampledFrom([]Value{{}, Int(7), Int(-123456), Bool(false), Text("int8"), Text("yes"), Text("a: # 'b"), {"0.25"}}).Draw(t, "new")
		after, err := EditFile(before, edit)
		if err != nil {
			t.Fatalf("%s %v: %v in\n%s", edit.Name, edit.Value, problem.Text(err), text)
		}
		now, found := parse("f.yaml", after.Bytes)
		if found.Total > 0 {
			t.Fatalf("%v in\n%s", found, after.Bytes)
		}
		_, _, section := find(now.Node, keyParameters)
		for i := 0; i < len(section.Content); i += 2 {
			name, value := section.Content[i].Value, section.Content[i+1]
			want := values[name]
			if name == edit.Name {
				want = edit.Value.json
			}
			if got, _ := parse("", []byte(want)); got.Value != value.Value || want == "" {
				t.Errorf("%s is %q, want %q in\n%s", name, value.Value, want, after.Bytes)
			}
			delete(values, name)
		}
		if delete(values, edit.Name); len(values) > 0 {
			t.Errorf("%v are gone in\n%s", values, after.Bytes)
		}
		if a, b := contentOf(root, edit.Name), contentOf(now, edit.Name); fmt.Sprint(a) != fmt.Sprint(b) {
			t.Errorf("%v was %v", b, a)
		}
		if a, b := othersOf(text, edit.Name, isFlow), othersOf(string(after.Bytes), edit.Name, isFlow); a != b {
			t.Errorf("other lines differ; before\n%s\nafter\n%s", text, after.Bytes)
		}
		if again, err := EditFile(after, edit); err != nil || string(again.Bytes) != string(after.Bytes) {
			t.Errorf("once more: %v\n%s", err, again.Bytes)
		}
	})
}

// TestEditsOfAnything edits files with random bytes in them: either it is an error, or
// what comes out has the value, and all else that the file had.
func TestEditsOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text, _, _ := drawFile(t)
		for range rapid.IntRange(1, 4).Draw(t, "mutations") {
			at := rapid.IntRange(0, len(text)).Draw(t, "at")
			size := min(len(text)-at, rapid.IntRange(0, 3).Draw(t, "cut"))
			text = text[:at] + rapid.SampledFrom([]string{"", " ", "\n", "\t", ":", ",", "{", "}", "[", "]", "#", "'", `"`, "&a ", "*a", "!!str ", "|\n", "? ", "- ", "\r", "\u0085", "\u2028", "...\n", "---\n", "<<: ", "a", "\\"}).Draw(t, "bytes") + text[at+size:]
		}
		edit := Edit{Name: "a", Value: rapid.SampledFrom([]Value{{}, Int(7), Text("int8"), Text("a: # 'b")}).Draw(t, "new")}
		before := NewFile("f.yaml", []byte(text))
		after, err := EditFile(before, edit)
		if err != nil {
			if string(after.Bytes) != text {
				t.Errorf("the text differs beside %v", err)
			}
			return
		}
		root, _ := before.parse()
		now, found := parse("f.yaml", after.Bytes)
		if found.Total > 0 || fmt.Sprint(contentOf(root, "a")) != fmt.Sprint(contentOf(now, "a")) {
			t.Errorf("%q became %q: %v", text, after.Bytes, found)
		}
	})
}

// TestParseValue holds that values of the command line are refused in the words of a file.
func TestParseValue(t *testing.T) {
	rules := Default().For("production")
	for _, c := range []struct{ name, text, want string }{
		{"esn_reservoir_size", "2048", "2048"},
		{"enable_caching", "true", "true"},
		{"esn_reservoir_size", "2_048", "Invalid value for esn_reservoir_size: 2_048 (rule: an integer in plain decimal digits); write 2048"},
		{"enable_caching", "yes", "Invalid value for enable_caching: yes (rule: true or false, without quotes); write true"},
		{"esn_reservoir_size", "1", "Invalid value for esn_reservoir_size: 1 (rule: 64-16384); use an integer from 64 to 16384; the default is 512"},
		{"esn_reservoir_size", "", "Invalid value"},
		{"esn_resevoir_size", "2048", "did you mean esn_reservoir_size?"},
	} {
		v, violation := rules.ParseValue(c.name, c.text)
		got := v.String()
		if violation != nil {
			got = violation.String()
		}
		if violation == nil && got != c.want || !strings.Contains(got, c.want) {
			t.Errorf("%s=%s is %s, want %s", c.name, c.text, got, c.want)
		}
	}
}

// TestInherited holds that the examples' templates are seen below an environment.
func TestInherited(t *testing.T) {
	var in Input
	for _, path := range []string{"base.yaml", "production.yaml", "templates/high-throughput.yaml"} {
		text, err := os.ReadFile(filepath.Join("../examples/config", path))
		if err != nil {
			t.Fatal(err)
		}
		in.Files = append(in.Files, NewFile(path, text))
	}
	rules := Default().For("production")
	if p := rules.Inherited(in); !p.Get("max_membrane_depth").Equal(Int(4)) || !p.Get("esn_reservoir_size").Equal(Int(2048)) {
		t.Errorf("below production: %s", p)
	}
	if p, v := rules.LoadLayer(in.Files[2]); v != nil || p.Len() != 5 {
		t.Errorf("a layer: %s, %v", p, v)
	}
}

// TestEditedExamples edits the examples at random: what is loaded afterwards has exactly
// the new value, from the file that was edited, and every comment is still there.
func TestEditedExamples(t *testing.T) {
	files := map[string]File{}
	for _, path := range []string{"base.yaml", "production.yaml", "templates/high-throughput.yaml"} {
		text, err := os.ReadFile(filepath.Join("../examples/config", path))
		if err != nil {
			t.Fatal(err)
		}
		files[path] = NewFile(path, text)
	}
	rules := Default().For("production")
	rapid.Check(t, func(t *rapid.T) {
		now := map[string]File{}
		for path, f := range files {
			text := string(f.Bytes)
			if rapid.Bool().Draw(t, "CRLF") {
				text = strings.ReplaceAll(text, "\n", "\r\n")
			}
			if rapid.Bool().Draw(t, "cut") {
				text = strings.TrimRight(text, "\r\n")
			}
			now[path] = NewFile(path, []byte(text))
		}
		load := func() *Configuration {
			in := Input{}
			for _, f := range now {
				in.Files = append(in.Files, f)
			}
			c, v := rules.Review(in)
			if v != nil {
				t.Fatalf("%v", v)
			}
			return c
		}
		for range rapid.IntRange(1, 8).Draw(t, "edits") {
			path := rapid.SampledFrom([]string{"base.yaml", "production.yaml", "templates/high-throughput.yaml"}).Draw(t, "path")
			edit := Edit{Name: "bseries_max_order", Value: Int(rapid.IntRange(1, 32).Draw(t, "order"))}
			switch rapid.IntRange(0, 2).Draw(t, "which") {
			case 0:
				edit = Edit{Name: "enable_performance_monitoring", Value: Bool(rapid.Bool().Draw(t, "on"))}
			case 1:
				edit = Edit{Name: "cache_ttl_seconds", Value: Int(rapid.IntRange(1, 86400).Draw(t, "ttl"))}
			}
			if path != "base.yaml" && rapid.Bool().Draw(t, "unset") {
				edit.Value = Value{}
			}
			before := load()
			after, err := EditFile(now[path], edit)
			if err != nil {
				t.Fatalf("%s %s %v: %v in\n%s", path, edit.Name, edit.Value, err, now[path].Bytes)
			}
			if old := strings.Count(string(now[path].Bytes), "# "); strings.Count(string(after.Bytes), "# ") < old-1 || !edit.Value.IsZero() && strings.Count(string(after.Bytes), "# ") < old {
				t.Errorf("comments are gone in\n%s", after.Bytes)
			}
			if a, b := strings.Count(string(after.Bytes), "\r\n"), strings.Count(string(after.Bytes), "\n"); a != 0 && a != b {
				t.Errorf("line ends are mixed in\n%q", after.Bytes)
			}
			now[path] = after
			c := load()
			for _, change := range c.Parameters.Diff(before.Parameters) {
				if change.Parameter != edit.Name {
					t.Errorf("%v changed as well", change)
				}
			}
			if o := c.Provenance[edit.Name]; o.File == path && !edit.Value.IsZero() && !c.Parameters.Get(edit.Name).Equal(edit.Value) || o.File == path && edit.Value.IsZero() || path == "production.yaml" && !edit.Value.IsZero() && o.File != path {
				t.Errorf("%s is %v, from %v", edit.Name, c.Parameters.Get(edit.Name), o)
			}
		}
	})
}
