package gitstore

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"dtesn-agent/gitstore/record"
)

// person runs git as a person does, in a work tree or, where dir is empty, on the
// repository.
func (f *fixture) person(dir string, args ...string) string {
	f.t.Helper()
	where := []string{"-C", dir}
	if dir == "" {
		where = []string{"--git-dir", f.repo()}
	}
	cmd := exec.Command("git", append(append(where, "-c", "user.name=P", "-c", "user.email=p@example.org", "-c", "gc.auto=0"), args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		f.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// prunedUnder makes 20 records, lets a person work, and prunes all of those.
func prunedUnder(t *testing.T, work func(f *fixture, all []*record.Record)) (*fixture, *Store, []*record.Record) {
	t.Helper()
	often(t)
	f := newMemory(t)
	s, _ := f.openKeeping(10)
	var all []*record.Record
	for i := range 20 {
		all = append(all, applied(t, s, 64+i))
	}
	work(f, all)
	for i := range 40 {
		all = append(all, applied(t, s, 500+i))
		s.Prepare()
	}
	s.settleCompaction()
	if s.first < 30 {
		t.Errorf("the history begins at %d", s.first)
	}
	if out := f.gitMay("cat-file", "-t", all[24].Commit); strings.Contains(out, "commit") {
		t.Error("record 25, which nothing names, is still there")
	}
	return f, s, all
}

// What git takes for a root stays, and what a person made: refs are not all.
func TestPruneKeepsWhatAPersonHas(t *testing.T) {
	var tree, blob, stash string
	f, s, all := prunedUnder(t, func(f *fixture, all []*record.Record) {
		blob = func() string {
			path := filepath.Join(t.TempDir(), "work")
			f.write(path, "nothing names this yet\n")
			return f.person("", "hash-object", "-w", path)
		}()
		tree = filepath.Join(t.TempDir(), "tree")
		f.person("", "worktree", "add", "-q", "--detach", tree, all[4].Commit)
		f.write(filepath.Join(tree, "runbook.md"), "first\n")
		f.person(tree, "add", "-A")
		f.person(tree, "stash", "push", "-q", "-m", "first")
		stash = f.person(tree, "rev-parse", "stash")
		f.write(filepath.Join(tree, "runbook.md"), "second\n")
		f.person(tree, "add", "-A")
		f.person(tree, "stash", "push", "-q", "-m", "second")
		f.write(filepath.Join(tree, "runbook.md"), "staged\n")
		f.person(tree, "add", "-A")
		// An index that names the files of a record which nothing else names.
		f.person(tree, "read-tree", "--prefix=old/", all[6].Commit)
		// What is being merged.
		f.write(f.repo("MERGE_HEAD"), all[8].Commit+"\n")
	})
	for what, name := range map[string]string{
		"a loose object": blob, "the HEAD of a work tree": all[4].Commit, "the older stash": stash,
		"the parent of a stash": stash + "^", "what a stash holds": stash + ":runbook.md",
		"MERGE_HEAD": all[8].Commit + ":snapshot.json",
	} {
		f.git("cat-file", "-e", name)
		t.Log(what)
	}
	for _, args := range [][]string{{"checkout", "--", "."}, {"commit", "-qm", "by hand"}, {"stash", "show", "stash@{0}"}, {"stash", "show", "stash@{1}"}} {
		f.person(tree, args...)
	}
	if out := f.gitMay("cat-file", "-t", all[6].Commit); strings.Contains(out, "commit") {
		t.Error("record 7 is still there, of which an index has the files alone")
	}
	f.soundly()
	s, repairs := f.reopen(s)
	noRepairs(t, repairs)
	f.beginsAt(s, all[59], s.first)
}

// soundly has git look at everything; unlike fsck it minds nothing that dangles.
func (f *fixture) soundly() {
	f.t.Helper()
	for line := range strings.Lines(f.git("fsck", "--strict", "--no-dangling")) {
		if !strings.HasPrefix(line, "notice: ") {
			f.t.Errorf("git fsck: %s", line)
		}
	}
}

// What is too large for this package to read stays where it is, with its pack; and
// if it could name something, nothing goes.
func TestPruneKeepsWhatIsLarge(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef\n"), maxObject/10)
	var packed, loose string
	f, s, all := prunedUnder(t, func(f *fixture, _ []*record.Record) {
		path := filepath.Join(t.TempDir(), "large")
		f.write(path, string(large))
		packed = f.person("", "hash-object", "-w", path)
		f.person("", "tag", "archive", packed)
		f.git("gc", "-q", "--prune=now")
		f.write(path, "not "+string(large))
		loose = f.person("", "hash-object", "-w", path)
		f.person("", "tag", "loose", loose)
	})
	f.git("cat-file", "blob", packed)
	f.git("cat-file", "blob", loose)
	f.soundly()
	s, repairs := f.reopen(s)
	noRepairs(t, repairs)
	f.beginsAt(s, all[59], s.first)

	// A tree of that size, which may name anything.
	var entries strings.Builder
	for i := range maxObject / 30 {
		entries.WriteString("100644 blob " + packed + "\tsome-file-" + strings.Repeat("x", i%3) + strconv.Itoa(i) + "\n")
	}
	in := filepath.Join(t.TempDir(), "entries")
	f.write(in, entries.String())
	cmd := exec.Command("git", "--git-dir", f.repo(), "mktree")
	cmd.Stdin, _ = os.Open(in)
	tree, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	f.person("", "tag", "tree", strings.TrimSpace(string(tree)))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, _ = f.openKeeping(10)
	first := s.first
	for i := range 20 {
		applied(t, s, 900+i)
		s.Prepare()
		s.settleCompaction()
	}
	if s.first != first {
		t.Errorf("the history begins at %d, and began at %d, though a tree could not be read", s.first, first)
	}
}

// An old value of our own refs in packed-refs goes with the record: the next start
// finds nothing amiss.
func TestPruneClearsPackedRefs(t *testing.T) {
	f, s, all := prunedUnder(t, func(f *fixture, _ []*record.Record) { f.git("pack-refs", "--all") })
	if data, err := os.ReadFile(f.repo("packed-refs")); err != nil || strings.Contains(string(data), all[19].Commit) {
		t.Errorf("packed-refs has %s, %v", data, err)
	}
	f.fsck()
	s, repairs := f.reopen(s)
	noRepairs(t, repairs)
	expect(t, s, all[59], all[59])
}

// A file that names an object appears between the plan and the cut.
func TestPruneMeetsANewWorkTree(t *testing.T) {
	often(t)
	f := newMemory(t)
	s, _ := f.openKeeping(10)
	var all []*record.Record
	for i := range 30 {
		all = append(all, applied(t, s, 64+i))
	}
	s.Prepare()
	<-s.compaction.over
	if s.compaction.plan == nil {
		t.Fatal("nothing is to be pruned")
	}
	f.person("", "worktree", "add", "-q", "--detach", filepath.Join(t.TempDir(), "tree"), all[4].Commit)
	applied(t, s, 500)
	for range 3 { // it is planned again, and cut
		s.Prepare()
		s.settleCompaction()
	}
	if s.first < 15 {
		t.Errorf("the history begins at %d", s.first)
	}
	f.git("cat-file", "-e", all[4].Commit+":snapshot.json")
	f.soundly()
}
