package watcher

import (
	"context"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dtesn-agent/schema"
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
	root := filepath.Dir(s.bare)
	server := httptest.NewServer(&cgi.Handler{
		Path: filepath.Join(s.git("--exec-path"), "git-http-backend"), Root: "/", Dir: root,
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_PROTOCOL=version=2"},
	})
	s.t.Cleanup(server.Close)
	return server.URL + "/config.git"
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

func (s chanSink) revision(t testing.TB, revision string) *schema.Document {
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
