package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/test/gitserver"
)

// once does `agent run --once` on a state of its own beside its embedded
// engine, in this process, for it is done often; it returns the exit code, what
// it said, and its records.
func (f *follower) once(repo string, flags ...string) (code int, said string, records []record.Row) {
	f.t.Helper()
	state, err := os.MkdirTemp(f.dir, "once")
	ok(f.t, err)
	code, said = agent(append([]string{
		"run", "--once", "--environment", "testing", "--repo", repo, "--embedded-engine", "--state", state, "--listen", "127.0.0.1:0",
	}, flags...)...)
	return code, said, recordsOf(f.t, state)
}

// recordsOf are the records below state, newest first.
func recordsOf(t testing.TB, state string) []record.Row {
	t.Helper()
	_, out := agent("snapshots", "--state", state, "--json")
	var list struct{ Snapshots []record.Row }
	if err := json.Unmarshal([]byte(out), &list); err != nil && !strings.Contains(out, "nothing was recorded") {
		t.Fatalf("%v: %s", err, out)
	}
	return list.Snapshots
}

// TestGitRefs: each way of naming a commit and a directory within it, and each
// kind of repository, leads to the state that it names; what names none is
// answered with the way out.
func TestGitRefs(t *testing.T) {
	t.Parallel()
	needs(t, "git")
	f := newFollower(t)
	hash := map[int]string{}
	for n := 2; n <= 7; n++ {
		f.commit(n)
		hash[n] = f.git("rev-parse", "HEAD")
	}
	f.git("branch", "feature/side", hash[2])
	f.git("tag", "light", hash[3])
	f.git("tag", "-a", "-m", "four", "v4", hash[4])
	f.git("tag", "-a", "-m", "a tag of a tag", "nested", "v4")
	f.git("update-ref", "refs/dtesn/staged", hash[5])
	f.git("branch", "both", hash[6])
	f.git("tag", "both", hash[6])
	f.git("tag", "blob", "HEAD:config/base.yaml")
	f.git("branch", "flat", f.git("commit-tree", "-m", "at the root", hash[6]+":config"))
	f.git("push", "-q", f.bare, "refs/*:refs/*")
	linked := filepath.Join(f.dir, "linked")
	f.git("worktree", "add", "-q", "--detach", linked, hash[2])
	shared := filepath.Join(f.dir, "shared.git")
	f.git("clone", "-q", "--bare", "--shared", f.bare, shared)
	gitserver.Git(t, shared, "pack-refs", "--all")
	// what nobody committed is nothing
	ok(t, os.WriteFile(filepath.Join(f.work, "config", "testing.yaml"), []byte("environment: nonsense\n"), 0o644))
	http := gitserver.HTTP(t, f.dir, nil).URL + "/config.git"

	rows := []struct {
		repo, ref, dir string
		want           int    // the state
		refused        string // or what is said
	}{
		{"file://" + f.bare, "feature/side", "config/", 2, ""},
		{f.bare, "light", "config", 3, ""},
		{f.bare, "v4", "config", 4, ""},
		{f.bare, "nested", "config", 4, ""},
		{f.bare, hash[3], "config", 3, ""},
		{f.bare, "refs/dtesn/staged", "config", 5, ""},
		{f.bare, "HEAD", "./config", 7, ""},
		{f.bare, "flat", "", 6, ""},
		{f.work, "main", "config", 7, ""},
		{linked, "HEAD", "config", 2, ""},
		{shared, "v4", "config", 4, ""},
		{http, "v4", "config", 4, ""},
		{http, hash[2], "config", 2, ""},
		{http, "HEAD", "config", 7, ""},

		{f.bare, "both", "config", 0, "ambiguous ref both: a branch and a tag\nhint: say refs/heads/both or refs/tags/both"},
		{f.bare, "none", "config", 0, "ref none not found"},
		{http, "refs/heads/none", "config", 0, "ref refs/heads/none not found"},
		{f.bare, "blob", "config", 0, "the ref names a blob, not a commit"},
		{f.bare, strings.Repeat("a", 40), "config", 0, "object not found"},
		{http, strings.Repeat("a", 40), "config", 0, "not our ref"},
		{f.bare, "main~1", "config", 0, "invalid ref \"main~1\"\nhint: use a branch, a tag, refs/… or a full commit"},
		{f.bare, "main", "../config", 0, "must be a path within the repository"},
		{f.bare, "main", "nowhere", 0, "nowhere"},
		{f.bare, "main", "", 0, "the directory at the root has none"},
		{f.bare, "main", "config/base.yaml", 0, "config/base.yaml is a regular file, not a directory"},
		{f.dir, "main", "config", 0, "it is no git repository"},
	}
	for _, row := range rows {
		name := strings.NewReplacer(f.dir, "", http, "http").Replace(fmt.Sprintf("%s %s %s", row.repo, row.ref, row.dir))
		t.Run(name, func(t *testing.T) {
			flags := []string{"--ref=" + row.ref}
			if row.dir != "" {
				flags = append(flags, "--config", row.dir)
			}
			code, said, records := f.once(row.repo, flags...)
			if row.refused != "" {
				if code == 0 || !strings.Contains(said, row.refused) || len(records) > 0 {
					t.Errorf("exit %d, %d records, want %q\n%s", code, len(records), row.refused, said)
				}
				return
			}
			if code != 0 || len(records) != 1 || ttlOf(records[0].Config) != row.want || records[0].Outcome != record.Applied {
				t.Errorf("exit %d, want state %d: %+v\n%s", code, row.want, records, said)
			}
		})
	}
}

// TestGitLocalWatch follows a repository of this machine with 10,000 refs
// without ever polling it, whatever writes the ref, and after its directories
// or the repository itself were replaced.
func TestGitLocalWatch(t *testing.T) {
	t.Parallel()
	needs(t, "git")
	for _, ref := range []string{"main", "HEAD"} { // HEAD leads to main
		t.Run(ref, func(t *testing.T) {
			f := newFollower(t)
			away := filepath.Join(f.dir, "away")
			gone := func() { ok(t, os.Rename(f.bare, away)) }
			gone()
			f.start(f.bare, "--ref", ref, "--poll", "24h")
			f.await("that there is no repository is said", func(v view) bool {
				return strings.Contains(v.Source.LastError, "no git repository") && v.Source.Mode == "poll"
			})
			many := f.git("rev-parse", "HEAD")
			ok(t, os.Rename(away, f.bare))
			f.runs(1)
			f.await("it is watched", func(v view) bool { return v.Source.Mode == "inotify" })
			n := 1
			next := func() { n++; f.declare(n); f.runs(n) }

			next() // a loose ref
			if ref == "HEAD" {
				return // from here on it is as with main
			}
			var refs strings.Builder
			for i := range 10_000 {
				fmt.Fprintf(&refs, "%s refs/heads/team/branch-%d\n", many, i)
			}
			ok(t, os.WriteFile(filepath.Join(f.bare, "packed-refs"), []byte(refs.String()), 0o644))
			next()
			gitserver.Git(t, f.bare, "pack-refs", "--all")
			next()
			gitserver.Git(t, f.bare, "gc", "-q", "--prune=now")
			next()

			// its directories are others now
			heads := filepath.Join(f.bare, "refs", "heads")
			ok(t, os.Rename(heads, heads+".old"))
			ok(t, os.CopyFS(heads, os.DirFS(heads+".old")))
			ok(t, os.RemoveAll(heads+".old"))
			next()
			refsDir := filepath.Join(f.bare, "refs")
			ok(t, os.Rename(refsDir, away))
			ok(t, os.CopyFS(refsDir, os.DirFS(away)))
			ok(t, os.RemoveAll(away))
			next()

			// the whole repository, for a moment and for longer
			f.commit(n + 1)
			f.git("clone", "-q", "--bare", ".", f.bare+".new")
			gone()
			ok(t, os.Rename(f.bare+".new", f.bare))
			f.runs(n + 1)
			n++
			gone2 := filepath.Join(f.dir, "gone")
			ok(t, os.Rename(f.bare, gone2))
			v := f.await("that it is gone is said", func(v view) bool { return v.Source.LastError != "" })
			if v.ttl() != n || !v.Ready {
				t.Errorf("without its repository: %s", v.Text)
			}
			ok(t, os.Rename(gone2, f.bare))
			f.await("the error is over", func(v view) bool { return v.Source.LastError == "" })
			next()
		})
	}
}
