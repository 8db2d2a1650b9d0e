package watcher

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// A said is one word of a source: a Document or an error.
type said struct {
	doc *document.Document
	err error
	at  time.Time
}

// A chanSink hands on what it is told.
type chanSink chan said

func (s chanSink) Document(doc *document.Document) { s <- said{doc: doc, at: time.Now()} }
func (s chanSink) SourceError(err error)           { s <- said{err: err, at: time.Now()} }

// next is the next word, which must come.
func (s chanSink) next(t testing.TB) said {
	t.Helper()
	select {
	case got := <-s:
		return got
	case <-time.After(patience):
		t.Fatalf("the source said nothing for %s", patience)
		panic("unreachable")
	}
}

// document is the next word, which must be a Document whose file at path is
// text.
func (s chanSink) document(t testing.TB, path, text string) said {
	t.Helper()
	got := s.next(t)
	if got.err != nil {
		t.Fatalf("source error: %v", got.err)
	}
	bytes, ok := got.doc.File(path)
	if !ok || string(bytes) != text {
		t.Fatalf("delivered %s = %q (there: %v), want %q", path, bytes, ok, text)
	}
	if want := document.FilesRevision(got.doc.Files); got.doc.Revision() != want {
		t.Fatalf("revision %s, want %s", got.doc.Revision(), want)
	}
	return got
}

// failure is the next word, which must be an error whose text and hint have all
// of words.
func (s chanSink) failure(t testing.TB, words ...string) {
	t.Helper()
	got := s.next(t)
	if got.err == nil {
		t.Fatalf("delivered %s, want an error", got.doc.Revision())
	}
	checkError(t, got.err, words...)
}

// checkError wants words in the text of an error and its hint together, and the
// hint apart from the text.
func checkError(t testing.TB, err error, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(problem.Text(err), word) {
			t.Errorf("error %q does not say %q", problem.Text(err), word)
		}
	}
	if hint := problem.Hint(err); hint != "" && strings.Contains(err.Error(), hint) {
		t.Errorf("the text of error %q has its hint %q", err, hint)
	}
}

// silent waits for d, in which nothing may be said.
func (s chanSink) silent(t testing.TB, d time.Duration) {
	t.Helper()
	select {
	case got := <-s:
		if got.err != nil {
			t.Fatalf("source error: %v", got.err)
		}
		t.Fatalf("delivered %s", show(got.doc))
	case <-time.After(d):
	}
}

func show(doc *document.Document) string {
	var b strings.Builder
	for _, f := range doc.Files {
		b.WriteString(f.Path + "=" + string(f.Bytes) + " ")
	}
	return b.String()
}

// start runs a source until the test ends.
func start(t testing.TB, opt FilesOptions, prepare ...func(*Files)) (*Files, chanSink) {
	t.Helper()
	if opt.Environment == "" {
		opt.Environment = "production"
	}
	if opt.Resync == 0 {
		opt.Resync = time.Hour // so that what is seen is seen by inotify
	}
	f := NewFiles(opt)
	for _, p := range prepare {
		p(f)
	}
	sink := make(chanSink, 100)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx, sink) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return f, sink
}

// readOnce reads the Document of env in one pass.
func readOnce(root string, env schema.Environment) (*document.Document, error) {
	r, err := readPass(root, env, nil)
	if err != nil {
		return nil, err
	}
	return r.doc, nil
}

// config makes a configuration directory of base.yaml and production.yaml.
func config(t testing.TB) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "config")
	put(t, root, "base.yaml", "base 1\n")
	put(t, root, "production.yaml", "env 1\n")
	return root
}

// put writes a file in place, and the folders above it.
func put(t testing.TB, root, path, text string) {
	t.Helper()
	full := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// rename writes a file beside path and renames it there.
func rename(t testing.TB, root, path, text string) {
	t.Helper()
	put(t, root, ".new", text)
	must(t, os.Rename(filepath.Join(root, ".new"), filepath.Join(root, path)))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// link makes or swaps a link atomically, as the kubelet and git-sync do.
func link(t testing.TB, target, path string) {
	t.Helper()
	must(t, os.Symlink(target, path+"_tmp"))
	must(t, os.Rename(path+"_tmp", path))
}

// await polls until what holds.
func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for tick := time.NewTicker(time.Millisecond); !holds(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited %s in vain: %s", patience, what)
		}
	}
}

// reportQuantiles adds the median and the 99th percentile to a benchmark.
func reportQuantiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// stopped is a timer that never fires.
func stopped() *time.Timer {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	return timer
}
