package watcher

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"dtesn-agent/schema"
	"dtesn-agent/watcher/document"
)

// violations loads a Document by the shipped schema and returns all that is
// wrong with it as one text.
func violations(t testing.TB, doc *document.Document) string {
	t.Helper()
	_, v := schema.Default().For(doc.Environment).Load(doc.Input("node-1"))
	if v == nil {
		return ""
	}
	var b strings.Builder
	for _, one := range v.List {
		fmt.Fprintf(&b, "%s: %s (%s)\n", one.File, one.Message, one.Hint)
	}
	return b.String()
}

// many returns the files (path, text, …) of an environment that extends 32
// templates of size bytes each.
func many(size int) []string {
	var names, files []string
	for i := range 32 {
		name := fmt.Sprintf("t%02d", i)
		names = append(names, name)
		files = append(files, "templates/"+name+".yaml", "parameters: {} "+strings.Repeat("#", size-len("parameters: {} \n"))+"\n")
	}
	return append(files, "production.yaml", "environment: production\nextends: ["+strings.Join(names, ", ")+"]\n")
}

// checkStopped wants a Document of 32 templates of 60 KiB that ends with the
// file that exceeds the limit.
func checkStopped(t *testing.T, doc *document.Document) {
	t.Helper()
	total := 0
	for _, f := range doc.Files {
		total += len(f.Bytes)
	}
	if total <= schema.MaxDocumentBytes || total > schema.MaxDocumentBytes+schema.MaxFileBytes+1 {
		t.Errorf("took %d bytes of %d files", total, len(doc.Files))
	}
	if said := violations(t, doc); !strings.Contains(said, "too large") {
		t.Errorf("loaded with %q, want it too large", said)
	}
}

func TestReadStopsAtTheLimitsOfADocument(t *testing.T) {
	root := config(t)
	put(t, root, "base.yaml", baseText)
	files := many(60 << 10)
	for i := 0; i < len(files); i += 2 {
		put(t, root, files[i], files[i+1])
	}
	doc, err := readOnce(root, "production")
	must(t, err)
	checkStopped(t, doc)

	_, sink := start(t, FilesOptions{Root: root, Settle: short})
	checkStopped(t, sink.next(t).doc)
	files = many(1 << 10) // small enough again
	for i := 0; i < len(files); i += 2 {
		put(t, root, files[i], files[i+1])
	}
	await(t, "all templates are taken", func() bool {
		doc := sink.next(t).doc
		return doc != nil && len(doc.Files) == 34 && !strings.Contains(violations(t, doc), "too large")
	})
}

func TestGitStopsAtTheLimitsOfADocument(t *testing.T) {
	for _, way := range []string{"bare", "http"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			s := newGitSite(t)
			repo := s.bare
			if way == "http" {
				repo = s.serve()
			}
			head := s.commit("large", many(60<<10)...)
			s.push()
			g, sink := runGit(t, GitOptions{Repo: repo})
			checkStopped(t, sink.revision(t, head))
			head = s.commit("small", many(1<<10)...)
			s.push()
			g.Sync()
			if doc := sink.revision(t, head); len(doc.Files) != 34 || strings.Contains(violations(t, doc), "too large") {
				t.Errorf("took %d files, want 34", len(doc.Files))
			}
		})
	}
}

// TestFileTooLarge: a file of 65 KiB is reported in the same words, wherever it
// is.
func TestFileTooLarge(t *testing.T) {
	t.Parallel()
	text := "environment: production\n" + strings.Repeat("#", 65<<10)
	want := "production.yaml: the file is larger than 64 KiB (this is probably not a configuration file; remove what does not belong into it)"

	root := config(t)
	put(t, root, "production.yaml", text)
	doc, err := readOnce(root, "production")
	must(t, err)
	if env, _ := doc.File("production.yaml"); len(env) != schema.MaxFileBytes+1 {
		t.Errorf("took %d bytes of the file", len(env))
	}
	if said := violations(t, doc); !strings.Contains(said, want) {
		t.Errorf("a directory: %q does not say %q", said, want)
	}

	s := newGitSite(t)
	head := s.commit("large", "production.yaml", text)
	s.push()
	for way, repo := range map[string]string{"bare": s.bare, "http": s.serve()} {
		_, sink := runGit(t, GitOptions{Repo: repo})
		if said := violations(t, sink.revision(t, head)); !strings.Contains(said, want) {
			t.Errorf("%s: %q does not say %q", way, said, want)
		}
	}
}

// TestGitLargeBlob: a blob of 64 MiB costs no memory, loose, packed, or in a
// repository that lends its objects.
func TestGitLargeBlob(t *testing.T) {
	s := newGitSite(t)
	s.commit("large")
	path := filepath.Join(s.work, "config", "production.yaml")
	must(t, os.Truncate(path, 64<<20))
	head := s.commit("larger")
	shared := filepath.Join(t.TempDir(), "shared")
	s.git("clone", "-q", "--shared", "--no-checkout", s.work, shared)
	nested := filepath.Join(t.TempDir(), "nested.git")
	s.git("clone", "-q", "--shared", "--bare", shared, nested)
	lent := filepath.Join(nested, "objects", "info", "alternates")
	text, err := os.ReadFile(lent)
	must(t, err)
	relative, err := filepath.Rel(filepath.Join(nested, "objects"), strings.Fields(string(text))[0])
	must(t, err)
	must(t, os.WriteFile(lent, []byte("# borrowed\n"+relative+"/\n"), 0o644))

	read := func(t *testing.T, repo string) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, sink := runGit(t, GitOptions{Repo: repo})
		doc := sink.revision(t, head)
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > 16<<20 {
			t.Errorf("took %d MiB", took>>20)
		}
		if len(doc.Files) != 2 || !strings.HasPrefix(doc.Files[1].Refused, "is larger than") || string(doc.Files[0].Bytes) != baseText {
			t.Errorf("files %.200q", fmt.Sprint(doc.Files))
		}
	}
	t.Run("loose", func(t *testing.T) { read(t, s.work) })
	t.Run("loose, lent", func(t *testing.T) { read(t, shared) })
	t.Run("loose, lent twice", func(t *testing.T) { read(t, nested) })
	out, err := exec.Command("git", "-C", s.work, "repack", "-q", "-a", "-d").CombinedOutput()
	if err != nil {
		t.Fatalf("git repack: %v\n%s", err, out)
	}
	t.Run("packed", func(t *testing.T) { read(t, s.work) })
	t.Run("packed, lent", func(t *testing.T) { read(t, shared) })
}

// TestFilesAreParsedOnce: a pass takes what did not change from the one before,
// with the parse that a schema.File carries.
func TestFilesAreParsedOnce(t *testing.T) {
	root := config(t)
	put(t, root, "production.yaml", "extends: [wide]\n")
	put(t, root, "templates/wide.yaml", "wide\n")
	first, err := readPass(root, "production", nil)
	must(t, err)
	put(t, root, "base.yaml", "base 2\n")
	second, err := readPass(root, "production", first.doc.Files)
	must(t, err)
	if len(first.doc.Files) != 3 || len(second.doc.Files) != 3 {
		t.Fatalf("read %d and %d files", len(first.doc.Files), len(second.doc.Files))
	}
	for i, f := range second.doc.Files {
		if same := &f.Bytes[0] == &first.doc.Files[i].Bytes[0]; same != (f.Path != "base.yaml") {
			t.Errorf("%s is taken from the pass before: %v", f.Path, same)
		}
	}
}
