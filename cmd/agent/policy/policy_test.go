package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// TestMain lets this binary be the child.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Command {
		if Serve(os.Stdin, os.Stdout) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const (
	reservoir = "esn_reservoir_size"
	doubles   = "package p\ndeny: {if change.old != _|_ if change.new.esn_reservoir_size > 2*change.old.esn_reservoir_size {growth: message: \"at most doubles\"}}\n"
	allows    = "package p\ndeny: {}\n"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func evaluator(t *testing.T, dir string) *Evaluator {
	e := New(Options{Dir: dir, Schema: schema.Default(), Changed: func() {}, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// growth is a change that more than doubles the reservoir.
func growth() schema.Proposal {
	r := schema.Default().For("production")
	old := r.Defaults()
	return r.Propose(&old, old.With(reservoir, schema.Int(4096)), nil)
}

func TestJudge(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "p.cue"), doubles)
	e := evaluator(t, dir)
	judge := func(when string) {
		t.Helper()
		denied, err := e.Judge(t.Context(), growth())
		if err != nil || len(denied) != 1 || denied[0].Name != "growth" {
			t.Errorf("%s: %v, %v", when, denied, err)
		}
	}
	judge("cold")
	judge("warm")
	first := e.child.cmd.Process.Pid
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	judge("after the child was killed")
	if err := syscall.Kill(e.child.cmd.Process.Pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if denied, err := e.Judge(ctx, growth()); err == nil {
		t.Errorf("by a child that hangs: %v", denied)
	}
	judge("after the child hung")
	if s := e.Status(); !s.Usable || s.Error != "" || s.Digest == "" {
		t.Errorf("%+v", s)
	}
}

// TestChildEnds holds that the child ends with its input, and stays within its memory.
func TestChildEnds(t *testing.T) {
	c, err := startChild()
	if err != nil {
		t.Fatal(err)
	}
	source := schema.PolicySource{Dir: "p", Files: []schema.File{{Path: "p.cue", Bytes: []byte(allows)}}, Parameters: schema.Default().Names()}
	if r, err := c.ask(t.Context(), request{Load: &source}); err != nil || r.Error != "" {
		t.Fatal(r, err)
	}
	if err := c.in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestBad holds what is said of a directory that cannot be used, and that it ends soon.
func TestBad(t *testing.T) {
	for name, c := range map[string]struct {
		make func(dir string) error
		want string
	}{
		"empty":             {func(string) error { return nil }, "read policy DIR: no .cue file; name the directory"},
		"missing":           {os.Remove, "read policy DIR: no such file or directory; name a directory"},
		"a file":            {func(dir string) error { _ = os.Remove(dir); return os.WriteFile(dir, nil, 0o644) }, "read policy DIR: not a directory"},
		"a folder":          {func(dir string) error { return os.Mkdir(filepath.Join(dir, "a.cue"), 0o755) }, "read policy DIR/a.cue: is a directory; put a regular file there"},
		"a pipe":            {func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "a.cue"), 0o644) }, "read policy DIR/a.cue: it is no regular file"},
		"a link to nothing": {func(dir string) error { return os.Symlink("nothing", filepath.Join(dir, "a.cue")) }, "read policy DIR/a.cue: no such file"},
		"a link to itself":  {func(dir string) error { return os.Symlink("a.cue", filepath.Join(dir, "a.cue")) }, "read policy DIR/a.cue: too many levels"},
		"large": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "a.cue"), make([]byte, maxBytes+1), 0o644)
		}, "read policy DIR/a.cue: it is larger than 65536 bytes"},
		"syntax":  {text("deny: {\n\tif {}\n}\n"), "policy DIR/a.cue:3:1: "},
		"no deny": {text("a: 1\n"), "policy DIR: deny is missing; write deny: {…}"},
		"binary":  {text("deny: {\x00\xff}\n"), "policy DIR/a.cue:1:"},
		"a loop":  {text("import \"list\"\ndeny: {for x in list.Range(0, 1000000000, 1) {\"a\\(x)\": message: \"x\"}}\n"), "policy DIR: "},
		"a spin":  {text("import \"list\"\nlet l = list.Range(0, 1000, 1)\ndeny: {for x in l for y in l for z in l if x+y+z < 0 {a: message: \"x\"}}\n"), "policy DIR: not loaded within 5s; simplify what the policy computes"},
		"a bomb":  {text(bomb()), "policy DIR: "},
		"much":    {text("import \"strings\"\ndeny: {a: message: strings.Repeat(\"xxxxxxxxxx\", 100000000)}\n"), "policy DIR"},
		"1,100 files": {func(dir string) error {
			for i := range 1_100 {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.cue", i)), nil, 0o644); err != nil {
					return err
				}
			}
			return nil
		}, "read policy DIR: more than 1000 entries; give the policy a directory of its own"},
		"100 files": {func(dir string) error {
			for i := range 100 {
				_ = os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.cue", i)), nil, 0o644)
			}
			return nil
		}, "read policy DIR: 100 files, and at most 64 are read; merge files"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "p")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := c.make(dir); err != nil {
				t.Fatal(err)
			}
			e := evaluator(t, dir)
			start := time.Now()
			denied, err := e.Judge(t.Context(), growth())
			if got := strings.ReplaceAll(problem.Text(err), dir, "DIR"); err == nil || !strings.HasPrefix(got, c.want) || problem.Hint(err) == "" {
				t.Errorf("%v, %s; want %s", denied, got, c.want)
			} else {
				t.Log(got)
			}
			if took := time.Since(start); took > loadTime+judgeTime+3*time.Second {
				t.Errorf("it took %s", took)
			}
			if s := e.Status(); s.Usable || s.Error == "" {
				t.Errorf("%+v", s)
			}
		})
	}
}

func text(content string) func(dir string) error {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, "a.cue"), []byte(content), 0o644) }
}

// bomb doubles a list again and again.
func bomb() string {
	text := "l0: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
	for i := range 9 {
		text += fmt.Sprintf("l%d: [for x in l%d for y in l0 {x + y}]\n", i+1, i)
	}
	return text + "deny: {for x in l9 {\"a\\(x)\": message: \"x\"}}\n"
}

// TestRun holds that a change of the directory is seen, and what is broken as well.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "p.cue")
	write(t, file, allows)
	changed := make(chan struct{}, 16)
	e := New(Options{Dir: dir, Schema: schema.Default(), Changed: func() { changed <- struct{}{} }, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	denies := func(want int) {
		t.Helper()
		<-changed
		if denied, err := e.Judge(t.Context(), growth()); err != nil || len(denied) != want {
			t.Errorf("%v, %v; want %d", denied, err, want)
		}
	}
	denies(0)
	write(t, file, doubles)
	denies(1)
	write(t, file, "deny: [}")
	<-changed
	if _, err := e.Judge(t.Context(), growth()); err == nil || e.Status().Usable {
		t.Errorf("%v, %+v", err, e.Status())
	}
	write(t, file, doubles)
	denies(1)
	// Another policy of the same size, mode and time, as image builders and cp -p make it.
	old, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file+".new", allows+strings.Repeat("\n", len(doubles)-len(allows)))
	if err := errors.Join(os.Chtimes(file+".new", old.ModTime(), old.ModTime()), os.Rename(file+".new", file)); err != nil {
		t.Fatal(err)
	}
	denies(0)
	// A pipe in its place keeps nobody waiting.
	if err := errors.Join(os.Rename(dir, dir+".old"), syscall.Mkfifo(dir, 0o600)); err != nil {
		t.Fatal(err)
	}
	<-changed
	if s := e.Status(); s.Usable || !strings.Contains(s.Error, "not a directory") {
		t.Errorf("%+v", s)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestInside(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"a/b", "c"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a/b", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	watched := []string{filepath.Join(dir, "a")}
	for path, want := range map[string]bool{"a": true, "a/b": true, "link": true, "c": false, ".": false, "ab": false} {
		if got := Inside(filepath.Join(dir, path), watched) != ""; got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
	write(t, filepath.Join(dir, "a/b/p.cue"), allows)
	if err := os.Symlink("../a/b/p.cue", filepath.Join(dir, "c/p.cue")); err != nil {
		t.Fatal(err)
	}
	if _, err := readFiles(filepath.Join(dir, "c"), watched); err == nil || !strings.Contains(err.Error(), "it leads into what the agent watches") {
		t.Error(err)
	}
}
