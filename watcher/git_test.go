package watcher

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dtesn-agent/schema"
	"dtesn-agent/test/gitserver"
	"dtesn-agent/watcher/document"
)

// A gitSite is a work tree and the bare repository that it pushes to.
type gitSite struct {
	t          testing.TB
	work, bare string
}

func (s *gitSite) git(args ...string) string {
	s.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = s.work
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_SYSTEM="+os.DevNull,
		"GIT_AUTHOR_NAME=Ada L", "GIT_AUTHOR_EMAIL=ada@example.org", "GIT_COMMITTER_NAME=Ada L", "GIT_COMMITTER_EMAIL=ada@example.org")
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit writes files (path, text, …) below config/ and commits them; the
// commit's hash is returned.
func (s *gitSite) commit(subject string, files ...string) string {
	s.t.Helper()
	for i := 0; i < len(files); i += 2 {
		path := filepath.Join(s.work, "config", files[i])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(files[i+1]), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
	s.git("add", "-A")
	s.git("commit", "-q", "--allow-empty", "-m", subject)
	return s.git("rev-parse", "HEAD")
}

func (s *gitSite) push() { s.t.Helper(); s.git("push", "-q", "-f", "--all", s.bare) }

const baseText = "parameters:\n  max_membrane_depth: 4\n"

func newGitSite(t testing.TB) *gitSite {
	t.Helper()
	dir := t.TempDir()
	s := &gitSite{t: t, work: filepath.Join(dir, "work"), bare: filepath.Join(dir, "config.git")}
	for _, d := range []string{s.work, s.bare} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.git("init", "-q", "-b", "main")
	s.git("init", "-q", "--bare", "-b", "main", s.bare)
	s.commit("first", "base.yaml", baseText, "production.yaml", "environment: production\n")
	s.push()
	return s
}

// serve serves the bare repository over HTTP.
func (s *gitSite) serve() string {
	s.t.Helper()
	return gitserver.HTTP(s.t, filepath.Dir(s.bare), nil).URL + "/config.git"
}

// runGit runs a source until the test ends.
func runGit(t testing.TB, opt GitOptions) (*Git, chanSink) {
	t.Helper()
	opt.Environment, opt.Dir = "production", "config"
	if opt.Scratch == "" {
		opt.Scratch = t.TempDir()
	}
	g, err := NewGit(opt)
	if err != nil {
		t.Fatal(err)
	}
	sink := make(chanSink, 16)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx, sink) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return g, sink
}

func (s chanSink) revision(t testing.TB, revision string) *document.Document {
	t.Helper()
	got := s.next(t)
	if got.err != nil || got.doc.Revision() != revision {
		t.Fatalf("got %+v %v, want revision %s", got.doc, got.err, revision)
	}
	return got.doc
}

// TestGitFollows: whatever way the repository is reached, each push arrives.
func TestGitFollows(t *testing.T) {
	for _, way := range []string{"work tree", "bare", "http"} {
		t.Run(way, func(t *testing.T) {
			s := newGitSite(t)
			repo := map[string]string{"work tree": s.work, "bare": s.bare}[way]
			if way == "http" {
				repo = s.serve()
			}
			poll := 30 * time.Second
			g, sink := runGit(t, GitOptions{Repo: repo, Poll: poll})
			doc := sink.revision(t, s.git("rev-parse", "HEAD"))
			if text, ok := doc.File("base.yaml"); !ok || string(text) != baseText {
				t.Errorf("base.yaml is %q", text)
			}
			for range 5 {
				want := s.commit("Deeper tree", "production.yaml", "environment: production\ndescription: "+time.Now().String()+"\n")
				start := time.Now()
				s.push()
				if way == "http" {
					g.Sync()
				}
				doc := sink.revision(t, want)
				t.Log("arrived after", time.Since(start))
				if doc.Source.Author != "Ada L <ada@example.org>" || doc.Source.Subject != "Deeper tree" || doc.Source.Kind != "git" {
					t.Errorf("%+v", doc.Source)
				}
			}
			sink.silent(t, 100*time.Millisecond)
		})
	}
}

func keygen(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("ssh-keygen", args...).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
}

// TestGitContent: what a repository can hold in place of a plain file.
func TestGitContent(t *testing.T) {
	const env = "production.yaml"
	rows := map[string]struct {
		change  func(s *gitSite)
		file    string
		refused string // in the file's refusal; empty: it is taken
		missing bool
	}{
		"a symbolic link": {func(s *gitSite) { s.link("base.yaml", env) }, env, "symbolic link", false},
		"an LFS pointer": {func(s *gitSite) {
			s.commit("x", env, "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
		}, env, "Git LFS", false},
		"a huge file":           {func(s *gitSite) { s.commit("x", env, strings.Repeat("#", 3<<20)) }, env, "larger than 64 KiB; ", false},
		"a file just too large": {func(s *gitSite) { s.commit("x", env, strings.Repeat("#", schema.MaxFileBytes+1)) }, env, "larger than 64 KiB; ", false},
		"the largest file":      {func(s *gitSite) { s.commit("x", env, strings.Repeat("#", schema.MaxFileBytes)) }, env, "", false},
		"a directory":           {func(s *gitSite) { s.git("rm", "-q", "config/"+env); s.commit("x", env+"/x", "y") }, env, "directory", false},
		"a clash of case":       {func(s *gitSite) { s.commit("x", "Production.yaml", "y") }, env, `"Production.yaml"`, false},
		"an executable file":    {func(s *gitSite) { s.git("update-index", "--chmod=+x", "config/"+env); s.commit("x") }, env, "", false},
		"a submodule": {func(s *gitSite) {
			s.git("rm", "-q", "config/"+env)
			s.git("update-index", "--add", "--cacheinfo", "160000,"+s.git("rev-parse", "HEAD")+",config/"+env)
			s.git("commit", "-q", "-m", "x")
		}, env, "submodule", false},
		"no file":          {func(s *gitSite) { s.git("rm", "-q", "config/"+env); s.commit("x") }, env, "", true},
		"no directory":     {func(s *gitSite) { s.git("rm", "-q", "-r", "config"); s.commit("x") }, env, "config does not exist", false},
		"CRLF and BOM":     {func(s *gitSite) { s.commit("x", env, "\ufeffenvironment: production\r\n") }, env, "", false},
		"odd names beside": {func(s *gitSite) { s.commit("x", "we\nird \xff\xfe.yaml", "y", "-rf", "z") }, env, "", false},
		"a template":       {func(s *gitSite) { s.commit("x", env, "extends: [a]\n", "templates/a.yaml", "parameters: {}\n") }, "templates/a.yaml", "", false},
	}
	for name, row := range rows {
		for _, way := range []string{"bare", "http"} {
			t.Run(name+" by "+way, func(t *testing.T) {
				t.Parallel()
				s := newGitSite(t)
				s.git("-C", s.bare, "config", "uploadpack.allowFilter", "true")
				row.change(s)
				s.push()
				repo := s.bare
				if way == "http" {
					repo = s.serve()
				}
				_, sink := runGit(t, GitOptions{Repo: repo})
				doc := sink.revision(t, s.git("rev-parse", "HEAD"))
				for _, f := range doc.Files {
					if f.Path != row.file {
						continue
					}
					if row.missing || (row.refused == "") != (f.Refused == "") || !strings.Contains(f.Refused, row.refused) {
						t.Errorf("%s: %d bytes, refused: %q", f.Path, len(f.Bytes), f.Refused)
					}
					return
				}
				if !row.missing {
					t.Errorf("%s is not in %d files", row.file, len(doc.Files))
				}
			})
		}
	}
}

func (s *gitSite) link(to, name string) {
	s.t.Helper()
	path := filepath.Join(s.work, "config", name)
	if err := os.Remove(path); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Symlink(to, path); err != nil {
		s.t.Fatal(err)
	}
	s.commit("a link")
}

// TestGitOutages: what goes away comes back by itself, and is told once.
func TestGitOutages(t *testing.T) {
	s := newGitSite(t)
	head := s.git("rev-parse", "HEAD")
	g, sink := runGit(t, GitOptions{Repo: s.bare})
	sink.revision(t, head)

	s.git("-C", s.bare, "update-ref", "-d", "refs/heads/main")
	g.Sync()
	sink.failure(t, "ref main not found", "name another with --ref")
	s.push()
	sink.revision(t, head) // read again, after an error

	away := s.bare + ".away"
	if err := os.Rename(s.bare, away); err != nil {
		t.Fatal(err)
	}
	g.Sync()
	sink.failure(t, "no git repository")
	if err := os.Rename(away, s.bare); err != nil {
		t.Fatal(err)
	}
	g.Sync()
	sink.revision(t, head)

	// a repack and a gc by a person
	next := s.commit("next")
	s.push()
	sink.revision(t, next)
	s.git("-C", s.bare, "gc", "-q", "--prune=now")
	last := s.commit("last")
	s.push()
	sink.revision(t, last)
	s.git("-C", s.bare, "pack-refs", "--all")
	after := s.commit("after packing")
	s.push()
	sink.revision(t, after)
}
