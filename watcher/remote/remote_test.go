package remote

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"

	"dtesn-agent/test/gitserver"
)

// TestServers lists and fetches from each kind of real server, in the versions
// of the protocol that it speaks.
func TestServers(t *testing.T) {
	dir := t.TempDir()
	repo := gitserver.NewRepository(t, dir, 5)
	head := plumbing.NewHash(gitserver.Git(t, repo, "rev-parse", "main"))
	tag := plumbing.NewHash(gitserver.Git(t, repo, "rev-parse", "v1"))
	gitserver.Git(t, repo, "config", "uploadpack.allowFilter", "true")
	v2 := gitserver.SSH(t, repo, "AcceptEnv GIT_PROTOCOL")
	v0 := gitserver.SSH(t, repo, "")
	web := gitserver.HTTP(t, dir, nil)
	cases := map[string]Options{
		"http":   {URL: web.URL + "/config.git"},
		"ssh v2": {URL: v2.URL, Files: Files{SSHKey: v2.Key, KnownHosts: v2.KnownHosts}},
		"ssh v0": {URL: v0.URL, Files: Files{SSHKey: v0.Key, KnownHosts: v0.KnownHosts}},
	}
	for name, opt := range cases {
		t.Run(name, func(t *testing.T) {
			r, err := New(opt)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Rest()
			for range 3 {
				refs, err := r.List(t.Context(), []string{"refs/heads/main", "refs/tags/v1", "refs/heads/no"})
				if err != nil {
					t.Fatal(err)
				}
				if len(refs) != 2 || refs["refs/heads/main"] != head || refs["refs/tags/v1"] != tag {
					t.Fatal(refs)
				}
			}
			for _, depth := range []int{1, 3, 0} {
				parent := t.TempDir()
				o, err := r.Fetch(t.Context(), Want{Hash: head, Depth: depth, Filter: "blob:limit=1000000"}, parent)
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				for h := head; ; n++ {
					c, err := object.GetCommit(o, h)
					if err != nil {
						break
					}
					f, err := c.File("base.yaml")
					if err != nil {
						t.Fatal(err)
					}
					if text, err := f.Contents(); err != nil || text == "" {
						t.Fatal(text, err)
					}
					if c.NumParents() == 0 {
						n++
						break
					}
					h = c.ParentHashes[0]
				}
				if want := map[int]int{1: 1, 3: 3, 0: 5}[depth]; n != want {
					t.Errorf("depth %d brought %d commits, want %d", depth, n, want)
				}
				if err := o.Remove(); err != nil {
					t.Error(err)
				}
				if left, _ := os.ReadDir(parent); len(left) > 0 {
					t.Error("left behind", left)
				}
			}
		})
	}
}

// BenchmarkPoll is a listing when nothing changed, of a host with 10,000 refs.
// cpu-us is what this process spends, without the server.
func BenchmarkPoll(b *testing.B) {
	dir := b.TempDir()
	repo := gitserver.NewRepository(b, dir, 1)
	head := gitserver.Git(b, repo, "rev-parse", "main")
	packed := "# pack-refs with: peeled fully-peeled sorted \n"
	for i := range 10000 {
		packed += fmt.Sprintf("%s refs/heads/topic-%05d\n", head, i)
	}
	if err := os.WriteFile(filepath.Join(repo, "packed-refs"), []byte(packed), 0o644); err != nil {
		b.Fatal(err)
	}
	gitserver.Git(b, repo, "update-ref", "refs/heads/main", head)
	v2, v0 := gitserver.SSH(b, repo, "AcceptEnv GIT_PROTOCOL"), gitserver.SSH(b, repo, "")
	cases := map[string]Options{
		"http":   {URL: gitserver.HTTP(b, dir, nil).URL + "/config.git"},
		"ssh-v2": {URL: v2.URL, Files: Files{SSHKey: v2.Key, KnownHosts: v2.KnownHosts}},
		"ssh-v0": {URL: v0.URL, Files: Files{SSHKey: v0.Key, KnownHosts: v0.KnownHosts}},
	}
	for name, opt := range cases {
		b.Run(name, func(b *testing.B) {
			r, err := New(opt)
			if err != nil {
				b.Fatal(err)
			}
			defer r.Rest()
			var before, after syscall.Rusage
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			for b.Loop() {
				if found, err := r.List(b.Context(), []string{"refs/heads/main"}); err != nil || len(found) != 1 {
					b.Fatal(found, err)
				}
			}
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			spent := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(spent)/1000/float64(b.N), "cpu-us")
		})
	}
}
