package watcher

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

func TestReadTakesWhatTheEnvironmentIsMadeOf(t *testing.T) {
	root := config(t)
	put(t, root, "production.yaml", "extends: [wide, absent]\n")
	put(t, root, "templates/wide.yaml", "wide\n")
	put(t, root, "templates/other.yaml", "not extended\n")
	put(t, root, "staging.yaml", "another environment\n")

	doc, err := readOnce(root, "production")
	must(t, err)
	var paths []string
	for _, f := range doc.Files {
		paths = append(paths, f.Path)
	}
	if want := []string{"base.yaml", "production.yaml", "templates/wide.yaml"}; !slices.Equal(paths, want) {
		t.Errorf("files %v, want %v", paths, want)
	}
	want := document.Source{Kind: "file", Location: root, Revision: document.FilesRevision(doc.Files)}
	if doc.Source != want || doc.Environment != "production" {
		t.Errorf("source %+v of %s, want %+v", doc.Source, doc.Environment, want)
	}
}

func TestReadOfAnEmptyDirectoryIsADocumentWithoutFiles(t *testing.T) {
	doc, err := readOnce(t.TempDir(), "production")
	if err != nil || len(doc.Files) != 0 {
		t.Errorf("Read = %v, %v", doc, err)
	}
}

// Whatever lies in a file's place is refused with words, and never waited for.
func TestReadRefuses(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	put(t, filepath.Dir(outside), "secret", "secret")
	for _, c := range []struct {
		name, want string
		make       func(path string) error
	}{
		{"named pipe", "named pipe", func(p string) error { return syscall.Mkfifo(p, 0o644) }},
		{"directory", "directory", func(p string) error { return os.Mkdir(p, 0o755) }},
		{"socket", "socket", func(p string) error {
			l, err := net.Listen("unix", p)
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		}},
		{"link to a device", "link that leaves", func(p string) error { return os.Symlink("/dev/zero", p) }},
		{"absolute link out", "link that leaves", func(p string) error { return os.Symlink(outside, p) }},
		{"relative link out", "link that leaves", func(p string) error { return os.Symlink("../../secret", p) }},
		{"link to itself", "leads to itself", func(p string) error { return os.Symlink(filepath.Base(p), p) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := config(t)
			path := filepath.Join(root, "production.yaml")
			must(t, os.Remove(path))
			must(t, c.make(path))
			doc, err := readOnce(root, "production")
			must(t, err)
			if len(doc.Files) != 2 || doc.Files[1].Bytes != nil || !strings.Contains(doc.Files[1].Refused, c.want) {
				t.Errorf("files %+v, want production.yaml refused: %s", doc.Files, c.want)
			}
		})
	}
}

func TestReadFollowsLinksInside(t *testing.T) {
	root := config(t)
	put(t, root, "shared/base.yaml", "shared\n")
	must(t, os.Remove(filepath.Join(root, "base.yaml")))
	must(t, os.Symlink("shared/../shared/base.yaml", filepath.Join(root, "base.yaml")))
	must(t, os.Symlink("nowhere", filepath.Join(root, "staging.yaml")))
	doc, err := readOnce(root, "staging")
	must(t, err)
	if len(doc.Files) != 1 || string(doc.Files[0].Bytes) != "shared\n" {
		t.Errorf("files %+v, want only the linked base.yaml", doc.Files)
	}
}

func TestReadIsBounded(t *testing.T) {
	root := config(t)
	put(t, root, "base.yaml", strings.Repeat("x", 3*schema.MaxFileBytes))
	doc, err := readOnce(root, "production")
	must(t, err)
	if base, _ := doc.File("base.yaml"); len(base) != schema.MaxFileBytes+1 {
		t.Errorf("took %d bytes of base.yaml, want one more than it may hold", len(base))
	}
}

func TestReadWithoutADirectory(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "file", "")
	must(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644))
	for path, want := range map[string]string{"absent": "does not exist", "file": "not a directory", "pipe": "not a directory"} {
		_, err := readOnce(filepath.Join(dir, path), "production")
		if err == nil || !strings.Contains(problem.Hint(err), "--config") {
			t.Errorf("readOnce(%s): %v, hint %q", path, err, problem.Hint(err))
		}
		checkError(t, err, want)
		if errors.Is(err, fs.ErrNotExist) != (path == "absent") {
			t.Errorf("readOnce(%s): errors.Is(%v, fs.ErrNotExist) is wrong", path, err)
		}
	}
}
