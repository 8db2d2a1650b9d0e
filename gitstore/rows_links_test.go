package gitstore

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
)

// link puts a link at path in place of what is there.
func (f *fixture) link(path, target string) {
	f.t.Helper()
	if err := os.RemoveAll(path); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		f.t.Fatal(err)
	}
}

// fan is a directory of objects/ in which there is nothing; it is removed.
func (f *fixture) fan() string {
	f.t.Helper()
	for i := range 256 {
		path := f.repo("objects", fmt.Sprintf("%02x", i))
		if err := os.Remove(path); err == nil || os.IsNotExist(err) {
			return path
		}
	}
	f.t.Fatal("each of objects/ is in use")
	return ""
}

// linkRows put links that lead nowhere where files and directories belong, and
// other things that only a person or a broken disk makes.
func linkRows() []repairRow {
	const wrong = "file or directory in a wrong place: "
	loop := func(name string) func(*story) {
		return func(st *story) {
			path := filepath.Join(st.dir, name)
			st.link(path, filepath.Base(path))
		}
	}
	nowhere := func(name string) func(*story) {
		return func(st *story) { st.link(st.repo(name), "/nowhere/to/be/found") }
	}
	a := func(name string) string { return "a link to nothing where " + name + " belongs" }
	rows := []repairRow{
		{wrong + "a link loop: set-aside", func(st *story) {
			loop(setAsideDir)(st)
			st.write(st.repo(shallowFile), zeros)
		}, "d", "b", []string{"a file where the directory set-aside belongs", "the file shallow"}, false},
		{wrong + "a link loop: HEAD", loop(repoDir + "/HEAD"), "d", "b", []string{a("HEAD"), "HEAD of the repository is missing"}, false},
		{wrong + "a link loop: config", loop(repoDir + "/config"), "d", "b", []string{a("config"), "config of the repository is missing"}, false},
		{wrong + "a link loop: head ref", loop(repoDir + "/refs/heads/production"), "b", "b", []string{a("refs/heads/production"), "the head ref is missing"}, false},
		{wrong + "a link loop: applied ref", loop(repoDir + "/refs/dtesn/applied/production"), "d", "b", []string{a("refs/dtesn/applied/production"), noApplied}, false},
		{wrong + "a file for a directory of objects", func(st *story) { st.write(st.fan(), "x") }, "d", "b", []string{"a file where objects/"}, false},
		{wrong + "a pipe for a directory of objects", func(st *story) {
			if err := syscall.Mkfifo(st.fan(), 0o600); err != nil {
				st.t.Fatal(err)
			}
		}, "d", "b", []string{"a named pipe where objects/"}, false},
		{wrong + "a link to nothing for a directory of objects", func(st *story) { st.link(st.fan(), "/nowhere/to/be/found") }, "d", "b", []string{"a link to nothing where objects/"}, false},
		{wrong + "a file for a directory of objects, and no refs", func(st *story) {
			st.write(st.fan(), "x")
			st.remove(st.repo("refs"))
		}, "d", "b", []string{"a file where objects/", "refs of the repository", neither, noApplied}, false},
		{"torn object that nothing names: a link to nothing", func(st *story) {
			st.link(filepath.Join(st.fanMade(), "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"), "/nowhere/to/be/found")
			st.remove(st.ref("heads/production"))
		}, "b", "b", []string{setAside, "the head ref is missing"}, false},
		{wrong + "a directory for alternates", func(st *story) { st.write(st.repo("objects", "info", alternatesFile, "x"), "") }, "d", "b", []string{"a directory where objects/info/alternates belongs"}, false},
		{"objects borrowed: torn", func(st *story) { st.write(st.repo("objects", "info", alternatesFile), zeros) }, "d", "b", []string{"the history borrows of another"}, false},
		{wrong + "a directory for commit-graph", func(st *story) { st.write(st.repo("objects", "info", "commit-graph", "x"), "") }, "d", "b", []string{"a directory where objects/info/commit-graph belongs"}, false},
		{"stale lock: packed-refs.new", func(st *story) {
			st.write(st.repo("packed-refs.new"), "")
			st.old(st.repo("packed-refs.new"))
		}, "d", "b", []string{"a stale lock, packed-refs.new"}, false},
		{"config torn: a value that git refuses", func(st *story) { st.write(st.repo("config"), configText+"[core]\n\tcompression = 99\n") }, "d", "b", []string{theConfig + `cannot be used: core.compression is "99"`}, false},
	}
	rows = append(rows, repairRow{"config torn: a value that is no boolean", func(st *story) {
		st.write(st.repo("config"), strings.Replace(configText, "filemode = true", "filemode = tru%", 1))
	}, "d", "b", []string{theConfig + `cannot be used: core.filemode is "tru%"`}, false})
	for _, name := range []string{lockFile, formatFile, identityFile, appliedFile} {
		rows = append(rows, repairRow{wrong + "a link loop: " + name, loop(name), "d", "b", []string{a(name)}, false})
	}
	for _, name := range []string{packedRefs, shallowFile} {
		rows = append(rows, repairRow{wrong + "a link loop: " + name, loop(repoDir + "/" + name), "d", "b", []string{a(name)}, false})
	}
	for _, name := range []string{"refs/tags", "tmp", "objects/info"} {
		rows = append(rows, repairRow{wrong + "a link to nothing: " + name, nowhere(name), "d", "b", []string{a(name)}, false})
	}
	return append(rows, repairRow{wrong + "a link to nothing: refs/heads", nowhere("refs/heads"), "b", "b", []string{a("refs/heads"), "the head ref is missing"}, false})
}

func (f *fixture) fanMade() string {
	f.t.Helper()
	path := f.fan()
	if err := os.Mkdir(path, 0o755); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// TestFileForFanWhileOpen puts files where the directories of the next record's
// objects belong, while the Store is open: it is committed all the same.
func TestFileForFanWhileOpen(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	first := applied(t, s, 512)
	for n, put := range []func(path string) error{
		func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) },
		func(path string) error { return os.Symlink("/nowhere/to/be/found", path) },
		func(path string) error { return os.Symlink(filepath.Base(path), path) },
		func(path string) error { return syscall.Mkfifo(path, 0o600) },
	} {
		size, path := f.free()
		if err := put(path); err != nil {
			t.Fatal(err)
		}
		rec := applied(t, s, size)
		if rec.Index != first.Index+1+n {
			t.Errorf("it is record %d", rec.Index)
		}
		if repairs := s.Repairs(); len(repairs) != n+1 {
			t.Errorf("repairs: %v", repairs)
		}
		if s.repo.spare(hashOf(rec)) == nil {
			t.Error("no second copy of it")
		}
	}
	f.fsck()
}

// free is a size whose parameters.yaml goes to a directory of objects/ that is not
// there yet, and that directory.
func (f *fixture) free() (size int, path string) {
	f.t.Helper()
	for size := 64; size < 4096; size++ {
		h := plumbing.ComputeHash(plumbing.BlobObject, sized(size).YAML())
		path := f.repo("objects", h.String()[:2])
		if _, err := os.Lstat(path); os.IsNotExist(err) {
			return size, path
		}
	}
	f.t.Fatal("each of objects/ is in use")
	return 0, ""
}
