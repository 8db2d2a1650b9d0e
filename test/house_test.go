// Package test holds what no single package can hold: stories with the real
// program, the rules of the house, and, under bench, the measurements.
package test

import (
	"bytes"
	"context"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/cli"
	"dtesn-agent/cmd/agent/hooks"
	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/test/gitserver"
)

const module = "dtesn-agent"

// mayImport says which of our packages each may import; what is not here may
// import nothing of ours.
var mayImport = map[string][]string{
	"schema":             {"schema/problem"},
	"watcher":            {"schema", "schema/problem", "watcher/document", "watcher/local", "watcher/remote", "watcher/signature", "watcher/smallfile"},
	"watcher/document":   {"schema"},
	"watcher/signature":  {"schema/problem"},
	"watcher/smallfile":  {"schema/problem"},
	"watcher/local":      {"schema/problem", "watcher/smallfile"},
	"watcher/remote":     {"schema/problem", "watcher/smallfile"},
	"gitstore":           {"schema", "schema/problem", "gitstore/record"},
	"gitstore/record":    {"schema"},
	"dtesn":              {"schema", "schema/problem", "dtesn/api"},
	"dtesn/api":          {"schema"},
	"dtesn/engine":       {"schema", "dtesn", "dtesn/api", "dtesn/bounded"},
	"apply":              {"schema", "schema/problem", "gitstore/record", "watcher/document", "dtesn/api"},
	"cmd/agent/codehost": {"schema/problem"},
	"cmd/agent/events":   {"schema/problem", "gitstore/record", "apply"},
	"cmd/agent/hooks":    {"schema", "schema/problem", "gitstore/record", "apply", "watcher/smallfile"},
	"cmd/agent/policy":   {"schema", "schema/problem", "apply", "watcher/document", "watcher/smallfile"},
	"cmd/agent/status":   {"schema", "schema/problem", "gitstore/record", "apply", "dtesn/bounded", "cmd/agent/hooks", "watcher/smallfile"},
	"cmd/agent/cli": {
		"schema", "schema/problem", "apply", "watcher", "watcher/document", "watcher/remote", "gitstore", "gitstore/record",
		"dtesn", "dtesn/api", "dtesn/bounded", "dtesn/engine", "cmd/agent/status", "cmd/agent/signals", "cmd/agent/events", "cmd/agent/hooks", "cmd/agent/codehost", "cmd/agent/policy",
	},
	"cmd/agent":  {"cmd/agent/cli"},
	"test/bench": {"schema", "dtesn", "dtesn/engine", "gitstore", "gitstore/record", "test/gitserver"},
	"test/crash": {"schema", "apply", "cmd/agent/events", "gitstore", "gitstore/record"},
}

// topLevel are the folders there may be at the top.
var topLevel = []string{"cmd", "schema", "watcher", "gitstore", "apply", "dtesn", "docs", "examples", "test"}

func TestImports(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", module+"/...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(out))
	seen := 0
	for dec.More() {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		seen++
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, imported := range p.Imports {
			if ours, ok := strings.CutPrefix(imported, module+"/"); ok && !slices.Contains(mayImport[name], ours) {
				t.Errorf("%s must not import %s: ARCHITECTURE.md says who may import whom", name, ours)
			}
		}
	}
	if seen < len(mayImport) {
		t.Errorf("%d packages found, %d expected", seen, len(mayImport))
	}
}

// TestNoParameterIsNamed holds that the parameters are data: no Go code outside
// the reference engine names one, as an identifier or in a string. Tests, and
// the programs below test/, may.
func TestNoParameterIsNamed(t *testing.T) {
	separators := strings.NewReplacer("_", "", "-", "", " ", "")
	plain := func(s string) string { return strings.ToLower(separators.Replace(s)) }
	var names []string
	for _, name := range schema.Default().Names() {
		names = append(names, plain(name))
	}
	files := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel("..", path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && (rel == "test" || rel == "dtesn/engine" || rel != "." && strings.HasPrefix(d.Name(), ".")):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		files++
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			text := ""
			switch n := n.(type) {
			case *ast.Ident:
				text = n.Name
			case *ast.BasicLit:
				text = n.Value
			}
			text = plain(text)
			if slices.ContainsFunc(names, func(name string) bool { return strings.Contains(text, name) }) {
				t.Errorf("%s names a parameter: parameters are data, take them from the schema", strings.TrimPrefix(set.Position(n.Pos()).String(), "../"))
			}
			return true
		})
		return nil
	})
	if err != nil || files < 100 {
		t.Errorf("%d files were looked through: %v", files, err)
	}
}

func TestImportsTopLevel(t *testing.T) {
	out, err := exec.Command("git", "-C", "..", "ls-tree", "-d", "--name-only", "HEAD").Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	for name := range strings.FieldsSeq(string(out)) {
		if !strings.HasPrefix(name, ".") && !slices.Contains(topLevel, name) {
			t.Errorf("%s: a new folder at the top needs a good reason", name)
		}
	}
}

// agent runs a command line of ours in this process.
func agent(args ...string) (code int, out string) {
	var b bytes.Buffer
	code = cli.Run(context.Background(), args, &b, &b)
	return code, b.String()
}

var (
	agentCommand = regexp.MustCompile("(?:^|[\\s`(/])agent ([a-z][a-z-]*)((?: +[^\\n`]*)?)")
	longFlag     = regexp.MustCompile(`--([a-z][a-z-]*)`)
)

// documents returns the text of README.md and of the pages in docs.
func documents(t *testing.T) string {
	t.Helper()
	pages, err := filepath.Glob("../docs/*.md")
	ok(t, err)
	var all strings.Builder
	for _, page := range append([]string{"../README.md"}, pages...) {
		text, err := os.ReadFile(page)
		ok(t, err)
		all.Write(text)
		all.WriteString("\n\n")
	}
	return all.String()
}

// TestReadmeIsShort holds that README.md is an entrance; all else is a page of docs.
func TestReadmeIsShort(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	ok(t, err)
	if n := bytes.Count(text, []byte("\n")); n > 150 {
		t.Errorf("README.md has %d lines, 150 at most: move what is not needed at the start to docs", n)
	}
}

// TestReadmeCommands holds that each command and flag that the documents name exists.
func TestReadmeCommands(t *testing.T) {
	readme := strings.ReplaceAll(documents(t), "\\\n", " ")
	_, root := agent("--help")
	checked := 0
	var lines []string
	for _, part := range regexp.MustCompile("(?m)^    .*$|`[^`\n]+`").FindAllString(readme, -1) {
		line, _, _ := strings.Cut(strings.Trim(part, "`"), " # ")
		lines = append(lines, line)
	}
	for _, line := range lines {
		m := agentCommand.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		checked++
		if m[1] == "completion" {
			continue
		}
		if !regexp.MustCompile(`(?m)^  ` + m[1] + ` `).MatchString(root) {
			t.Errorf("the documents name `agent %s`, which does not exist", m[1])
			continue
		}
		_, help := agent(m[1], "--help")
		for _, flag := range longFlag.FindAllStringSubmatch(m[2], -1) {
			if !strings.Contains(help, "--"+flag[1]) {
				t.Errorf("the documents name `agent %s --%s`, which does not exist", m[1], flag[1])
			}
		}
	}
	if checked < 60 {
		t.Errorf("only %d commands found in the documents", checked)
	}
	for _, m := range regexp.MustCompile("`make ([a-z]+)`|^    make ([a-z]+)").FindAllStringSubmatch(readme, -1) {
		target := m[1] + m[2]
		makefile, _ := os.ReadFile("../Makefile")
		if !regexp.MustCompile(`(?m)^` + target + `:`).Match(makefile) {
			t.Errorf("the documents name `make %s`, which does not exist", target)
		}
	}
}

// TestReadmeParameters holds that the table of parameters is the schema's.
func TestReadmeParameters(t *testing.T) {
	text := documents(t)
	for _, p := range production.Parameters() {
		row := regexp.MustCompile("(?m)^\\| `" + p.Name + "` \\| ([^|]+) \\| ([^|]+) \\| ([^|]+) \\|").FindStringSubmatch(text)
		if row == nil {
			t.Errorf("the documents do not list %s", p.Name)
			continue
		}
		if row[1] != p.Type || row[2] != p.Range || row[3] != p.Default.String() {
			t.Errorf("the documents say %s is %s, %s, default %s; the schema says %s, %s, %s", p.Name, row[1], row[2], row[3], p.Type, p.Range, p.Default)
		}
	}
}

// TestExamplesAreValid holds that what we show works, in every environment.
func TestExamplesAreValid(t *testing.T) {
	code, out := agent("validate", "../examples/config")
	if code != 0 {
		t.Errorf("agent validate examples/config: exit %d\n%s", code, out)
	}
	for _, env := range schema.Default().Environments() {
		if !strings.Contains(out, string(env)+" is valid") {
			t.Errorf("%s was not checked:\n%s", env, out)
		}
	}
	files, _ := filepath.Glob("../examples/config/*.yaml")
	more, _ := filepath.Glob("../examples/config/templates/*.yaml")
	for _, file := range append(files, more...) {
		text, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(text), "# yaml-language-server: $schema=") {
			t.Errorf("%s does not begin with the line that tells editors its schema (%v)", file, err)
		}
	}
	schemas, _ := filepath.Glob("../examples/schema/*.cue")
	for _, file := range schemas {
		code, out := agent("schema", "--format", "cue", "--schema", file)
		again := filepath.Join(t.TempDir(), "again.cue")
		if err := os.WriteFile(again, []byte(out), 0o644); code != 0 || err != nil {
			t.Errorf("%s: exit %d, %v\n%s", file, code, err, out)
		} else if code, twice := agent("schema", "--format", "cue", "--schema", again); code != 0 || twice != out {
			t.Errorf("%s as it is printed: exit %d\n%s", file, code, twice)
		}
	}
	if len(schemas) < 2 {
		t.Errorf("the examples of schemas are %v", schemas)
	}
	_, want := agent("schema", "--format", "jsonschema")
	if got, err := os.ReadFile("../examples/config/dtesn.schema.json"); err != nil || string(got) != want {
		t.Errorf("examples/config/dtesn.schema.json is not what the schema says (%v): make schema", err)
	}
}

// readmeRows returns the rows of the first table in the documents whose header begins with
// the word given: what stands between the backquotes of each cell.
func readmeRows(t *testing.T, header string) (rows [][]string) {
	t.Helper()
	_, table, found := strings.Cut(documents(t), "\n| "+header+" |")
	table, _, _ = strings.Cut(table, "\n\n")
	lines := strings.Split(table, "\n")
	if !found || len(lines) < 3 {
		t.Fatalf("the documents have no table of each %s", header)
	}
	for _, line := range lines[2:] {
		var row []string
		for _, cell := range strings.Split(strings.Trim(line, "|"), "|") {
			var words []string
			for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
				words = append(words, m[1])
			}
			row = append(row, strings.Join(words, " "))
		}
		rows = append(rows, row)
	}
	return rows
}

func same(t *testing.T, what string, readme, program []string) {
	t.Helper()
	slices.Sort(readme)
	slices.Sort(program)
	if !slices.Equal(readme, program) {
		t.Errorf("%s: the documents say\n%s\nthe program has\n%s", what, strings.Join(readme, "\n"), strings.Join(program, "\n"))
	}
}

// TestReadmeWords holds that the tables of states, outcomes and events are whole.
func TestReadmeWords(t *testing.T) {
	first := func(rows [][]string) (words []string) {
		for _, row := range rows {
			words = append(words, row[0])
		}
		return words
	}
	var outcomes []string
	for _, o := range record.Outcomes() {
		outcomes = append(outcomes, string(o))
	}
	same(t, "outcomes", first(readmeRows(t, "outcome")), outcomes)
	var events []string
	for _, e := range apply.EventTypes() {
		events = append(events, string(e))
	}
	same(t, "events", strings.Fields(strings.Join(first(readmeRows(t, "event")), " ")), events)
	code, err := os.ReadFile("../apply/status.go")
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, m := range regexp.MustCompile(`(?m)^\tState\w+ +Condition += "(\w+)"`).FindAllStringSubmatch(string(code), -1) {
		states = append(states, m[1])
	}
	same(t, "states", first(readmeRows(t, "state")), states)
}

// still is a source that shows a status in which the engine runs something.
type still struct{ runs schema.Parameters }

func (s still) Status() *apply.Status {
	return &apply.Status{Policy: &apply.PolicyStatus{Usable: true}, Current: &s.runs, Running: apply.Running{SnapshotID: "snapshot_1_0001"}}
}

func (s still) Latest() *apply.Update { return &apply.Update{Status: s.Status()} }

// textCUE has a parameter that is a text.
const textCUE = `package dtesn

#extends: "dtesn"

#Parameters: quantisation?: "none" | "int8" @dtesn(description="Precision of the weights")
`

// TestReadmeMetrics holds that the table of metrics, with their labels and the
// values it names of them, is what the agent serves.
func TestReadmeMetrics(t *testing.T) {
	rules := rulesOf(t, filepath.Join(t.TempDir(), "text.cue"), textCUE)
	metrics := status.NewMetrics("test", rules)
	cert := gitserver.NewCert(t, t.TempDir(), "server")
	access, err := status.OpenAccess(status.AccessFiles{Cert: cert.CertFile, Key: cert.KeyFile, ClientCA: cert.CertFile}, slog.New(slog.DiscardHandler))
	ok(t, err)
	server := status.New(status.Options{Access: access, Hooks: func() []hooks.Status { return []hooks.Status{{Name: "chat"}} }, Source: still{rules.Defaults().With("quantisation", schema.Text("int8"))}, Rules: rules, Metrics: metrics, Logger: slog.New(slog.DiscardHandler)})
	answer := httptest.NewRecorder()
	server.HealthHandler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	served := map[string]string{} // a metric and its labels
	values := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?m)^(dtesn_agent_\w+?)(?:_bucket|_sum|_count)?(?:{(.*)})? `).FindAllStringSubmatch(answer.Body.String(), -1) {
		var labels []string
		for _, l := range regexp.MustCompile(`(\w+)="([^"]*)"`).FindAllStringSubmatch(m[2], -1) {
			if l[1] != "le" {
				labels = append(labels, l[1])
				values[m[1]] = append(values[m[1]], l[2])
			}
		}
		slices.Sort(labels)
		served[m[1]] = strings.Join(labels, " ")
	}
	var readme, program []string
	for name, labels := range served {
		program = append(program, name+" "+labels)
	}
	for _, row := range readmeRows(t, "metric") {
		labels := strings.Fields(row[1])
		slices.Sort(labels)
		readme = append(readme, row[0]+" "+strings.Join(labels, " "))
		if closed := row[1]; slices.Contains([]string{"cause", "phase", "stage", "loop"}, closed) {
			had := values[row[0]]
			slices.Sort(had)
			same(t, "values of "+row[0], strings.Fields(row[2]), slices.Compact(had))
		}
	}
	same(t, "metrics", readme, program)
}
