package watcher

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/storage/memory"

	"dtesn-agent/schema"
)

// A countingStore counts what is read of a repository in memory.
type countingStore struct {
	*memory.Storage
	reads map[plumbing.Hash]int
	bytes int64
}

func newCountingStore() *countingStore {
	return &countingStore{memory.NewStorage(), map[plumbing.Hash]int{}, 0}
}

func (s *countingStore) EncodedObject(kind plumbing.ObjectType, h plumbing.Hash) (plumbing.EncodedObject, error) {
	obj, err := s.Storage.EncodedObject(kind, h)
	if err == nil {
		s.reads[h]++
		s.bytes += obj.Size()
	}
	return obj, err
}

func (s *countingStore) put(t testing.TB, kind plumbing.ObjectType, content []byte) plumbing.Hash {
	t.Helper()
	obj := &plumbing.MemoryObject{}
	obj.SetType(kind)
	_, err := obj.Write(content)
	must(t, err)
	h, err := s.SetEncodedObject(obj)
	must(t, err)
	return h
}

// entry is an entry of a tree as git keeps it.
func entry(mode filemode.FileMode, name string, h plumbing.Hash) []byte {
	return append(fmt.Appendf(nil, "%o %s\x00", uint32(mode), name), h[:]...)
}

// once wants every object read once at most, and no more than bytes in all.
func (s *countingStore) once(t *testing.T, bytes int64) {
	t.Helper()
	for h, n := range s.reads {
		if n > 1 {
			t.Errorf("object %s was read %d times", h, n)
		}
	}
	if s.bytes > bytes {
		t.Errorf("%d bytes were read, want at most %d", s.bytes, bytes)
	}
}

// TestTreeReadsEachObjectOnce: a directory of 100,000 files with 32 templates is
// read once, whatever they have in common.
func TestTreeReadsEachObjectOnce(t *testing.T) {
	s := newCountingStore()
	var names []string
	for i := range 32 {
		names = append(names, fmt.Sprintf("t%05d", i))
	}
	env := s.put(t, plumbing.BlobObject, fmt.Appendf(nil, "extends: [%s]\n", strings.Join(names, ", ")))
	same := s.put(t, plumbing.BlobObject, []byte("parameters: {}\n"))
	var many []byte
	for i := range 100_000 {
		many = append(many, entry(filemode.Regular, fmt.Sprintf("t%05d.yaml", i), same)...)
	}
	templates := s.put(t, plumbing.TreeObject, many)
	root := s.put(t, plumbing.TreeObject, append(append(entry(filemode.Regular, "base.yaml", same),
		entry(filemode.Regular, "production.yaml", env)...), entry(filemode.Dir, "templates", templates)...))
	files, err := treeFiles(s, &commit{tree: root}, "", "production")
	must(t, err)
	if len(files) != 34 || string(files[33].Bytes) != "parameters: {}\n" || files[33].Path != "templates/t00031.yaml" {
		t.Errorf("got %d files, the last %+v", len(files), files[len(files)-1])
	}
	s.once(t, int64(len(many))+4096)
}

// TestTreeIsBoundedAsAWhole: trees that are large each, or name one another many
// times, are not all read.
func TestTreeIsBoundedAsAWhole(t *testing.T) {
	s := newCountingStore()
	file := s.put(t, plumbing.BlobObject, []byte("x"))
	large := func(salt string) plumbing.Hash {
		return s.put(t, plumbing.TreeObject, append(entry(filemode.Regular, strings.Repeat("x", 10<<20)+salt, file), entry(filemode.Regular, "base.yaml", file)...))
	}
	var entries []byte
	one := large("")
	for i := range 100 {
		entries = append(entries, entry(filemode.Dir, fmt.Sprintf("d%03d", i), one)...)
	}
	files, err := treeFiles(s, &commit{tree: s.put(t, plumbing.TreeObject, entries)}, "", "production")
	if err != nil || len(files) != 0 {
		t.Errorf("got %d files, %v; want an empty document", len(files), err)
	}
	s.once(t, maxTree)

	second := s.put(t, plumbing.TreeObject, append(entry(filemode.Regular, strings.Repeat("y", 10<<20), file), entry(filemode.Dir, "c", large("3"))...))
	first := s.put(t, plumbing.TreeObject, entry(filemode.Dir, "b", second))
	s.bytes = 0
	if _, err := treeFiles(s, &commit{tree: first}, "b/c", "production"); !errors.Is(err, errBudget) {
		t.Errorf("got %v, want %v", err, errBudget)
	}
	s.once(t, maxTree)

	deep := file
	for range maxReads + 1 {
		deep = s.put(t, plumbing.TreeObject, entry(filemode.Dir, "a", deep))
	}
	if _, err := treeFiles(s, &commit{tree: deep}, strings.Repeat("a/", maxReads+1), "production"); !errors.Is(err, errBudget) {
		t.Errorf("got %v, want %v", err, errBudget)
	}
}

// TestTreeLargeTemplates: 32 templates of 1 MiB are refused each and not read.
func TestTreeLargeTemplates(t *testing.T) {
	s := newCountingStore()
	var names []string
	var templates []byte
	for i := range 32 {
		names = append(names, fmt.Sprintf("t%02d", i))
		content := fmt.Appendf(nil, "# %d %s", i, strings.Repeat("#", 1<<20))
		templates = append(templates, entry(filemode.Regular, names[i]+".yaml", s.put(t, plumbing.BlobObject, content))...)
	}
	env := s.put(t, plumbing.BlobObject, fmt.Appendf(nil, "extends: [%s]\n", strings.Join(names, ", ")))
	root := s.put(t, plumbing.TreeObject, append(entry(filemode.Regular, "production.yaml", env),
		entry(filemode.Dir, "templates", s.put(t, plumbing.TreeObject, templates))...))
	files, err := treeFiles(s, &commit{tree: root}, "", "production")
	must(t, err)
	for _, f := range files[1:] {
		if !strings.HasPrefix(f.Refused, "is larger than") {
			t.Errorf("%s: %q, want it too large", f.Path, f.Refused)
		}
	}
	if len(files) != 33 {
		t.Errorf("got %d files", len(files))
	}
	s.once(t, schema.MaxDocumentBytes)
}

// TestCommitEncoding: author and subject are decoded by the commit's own header.
func TestCommitEncoding(t *testing.T) {
	for _, c := range []struct{ header, author, subject, wantAuthor, wantSubject string }{
		{"", "André", "größer", "André", "größer"},
		{"encoding ISO-8859-1\n", "Andr\xe9", "gr\xf6\xdfer", "André", "größer"},
		{"encoding latin1\n", "Andr\xe9", "x", "André", "x"},
		{"encoding ISO8859-15\n", "\xa4", "x", "€", "x"},
		{"encoding windows-1252\n", "Andr\xe9", "\x80 5", "André", "€ 5"},
		{"encoding CP1252\n", "Andr\xe9", "\x80 5", "André", "€ 5"},
		{"encoding KOI8-R\n", "\xe1", "x", "А", "x"},
		{"encoding UTF-8\n", "André", "x", "André", "x"},
		{"encoding unheard-of\n", "Andr\xe9", "x", "Andr", "x"},
	} {
		s := newCountingStore()
		h := s.put(t, plumbing.CommitObject, fmt.Appendf(nil, "tree %s\nauthor %s <a@x> 1700000000 +0000\ncommitter A <a@x> 1700000000 +0000\n%s\n%s\n", plumbing.ZeroHash, c.author, c.header, c.subject))
		got, err := readCommit(s, h)
		must(t, err)
		if got.author != c.wantAuthor+" <a@x>" && (c.wantAuthor != "Andr" || !strings.HasPrefix(got.author, "Andr")) || got.subject != c.wantSubject {
			t.Errorf("%q: %q, %q; want %q, %q", c.header, got.author, got.subject, c.wantAuthor, c.wantSubject)
		}
	}
}
