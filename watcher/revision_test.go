package watcher

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRelation: of commits of one second too, and of histories that are cut off.
func TestRelation(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@example.org"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_AUTHOR_DATE=1700000000 +0000", "GIT_COMMITTER_DATE=1700000000 +0000")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	commit := func(name string) {
		git("commit", "--quiet", "--allow-empty", "--message="+name)
		git("tag", name)
	}
	git("init", "--quiet", "--initial-branch=main")
	commit("root")
	commit("one")
	git("checkout", "--quiet", "-b", "topic")
	commit("left")
	commit("more")
	git("checkout", "--quiet", "main")
	commit("right")
	git("merge", "--quiet", "--no-ff", "--message=merge", "topic")
	git("tag", "merged")
	git("checkout", "--quiet", "--orphan", "alone")
	commit("alone")
	git("tag", "of-a-tree", "HEAD^{tree}")

	open := func(path string) *Repository {
		r, _, err := OpenRepository(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r
	}
	relate := func(r *Repository, from, to string) Relation {
		a, errA := r.Revision(from)
		b, errB := r.Revision(to)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		relation, err := r.Relation(a, b)
		if err != nil {
			t.Fatal(err)
		}
		return relation
	}
	r := open(dir)
	for _, c := range []struct {
		from, to string
		want     Relation
	}{
		{"one", "one", RelationAncestor},
		{"one", "left", RelationAncestor},
		{"root", "merged", RelationAncestor},
		{"left", "merged", RelationAncestor},
		{"right", "merged", RelationAncestor},
		{"merged", "right", RelationDiverged},
		{"left", "right", RelationDiverged},
		{"one", "root", RelationDiverged},
		{"alone", "merged", RelationUnrelated},
		{"merged", "alone", RelationUnrelated},
	} {
		if got := relate(r, c.from, c.to); got != c.want {
			t.Errorf("%s and %s: %d, want %d", c.from, c.to, got, c.want)
		}
	}
	if _, err := r.Revision("of-a-tree"); err == nil || !strings.Contains(err.Error(), "names a tree") {
		t.Errorf("a tree: %v", err)
	}
	for _, name := range []string{"", "^", "../x", "main..topic", "a b", "HEAD~99999", "\x00", strings.Repeat("~", 100)} {
		if v, err := r.Revision(name); err == nil {
			t.Errorf("%q is %s", name, v.Commit())
		}
	}
	v, err := r.Revision("main")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Directory("none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that does not exist: %v", err)
	}

	shallow := filepath.Join(t.TempDir(), "shallow")
	git("clone", "--quiet", "--depth=1", "--no-single-branch", "--no-tags", "file://"+dir, shallow)
	if got := relate(open(shallow), "origin/alone", "origin/main"); got != RelationUnknown {
		t.Errorf("in a shallow clone: %d", got)
	}
	if got := relate(open(shallow), "origin/topic", "origin/main"); got != RelationAncestor {
		t.Errorf("in a shallow clone: %d", got)
	}
}
