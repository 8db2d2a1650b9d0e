//go:build linux

package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"dtesn-agent/schema"
)

// An origin is where the agent takes its configuration from.
type origin interface {
	flags() []string
	// write makes text the environment's file, in one step.
	write(text string) error
	close()
}

// baseText declares the default of every parameter.
func baseText() string {
	text := "parameters:\n"
	for line := range strings.Lines(string(schema.Default().For(environment).Defaults().YAML())) {
		text += "  " + line
	}
	return text
}

// files are a directory.
type files struct{ dir string }

func newFiles(w *world) (origin, error) {
	return files{w.config}, os.WriteFile(filepath.Join(w.config, "base.yaml"), []byte(baseText()), 0o644)
}

func (f files) flags() []string { return []string{"--config", f.dir} }
func (f files) close()          {}

func (f files) write(text string) error {
	beside := filepath.Join(f.dir, ".new")
	if err := os.WriteFile(beside, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(beside, filepath.Join(f.dir, environment+".yaml"))
}

// worktree is a git repository of this machine.
type worktree struct{ files }

func newWorktree(w *world) (origin, error) {
	f, err := newFiles(w)
	if err != nil {
		return nil, err
	}
	// so much that a fetch is written in several pieces, and as much as a file may have
	var noise []byte
	line := make([]byte, 48)
	for random := rand.NewChaCha8([32]byte{1}); len(noise) < schema.MaxFileBytes-2048; {
		_, _ = random.Read(line)
		noise = fmt.Appendf(noise, "# %s\n", base64.StdEncoding.EncodeToString(line))
	}
	if err := os.WriteFile(filepath.Join(w.config, "base.yaml"), append([]byte(baseText()), noise...), 0o644); err != nil {
		return nil, err
	}
	return worktree{f.(files)}, git(w.config, "init", "-q", "-b", "main")
}

func (g worktree) flags() []string { return []string{"--repo", g.dir, "--config", "."} }

func (g worktree) write(text string) error {
	if err := g.files.write(text); err != nil {
		return err
	}
	if err := git(g.dir, "add", "-A"); err != nil {
		return err
	}
	return git(g.dir, "commit", "-q", "--allow-empty", "-m", "change")
}

// git runs the git program, whatever the machine's configuration says.
func git(dir string, args ...string) error {
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Env = dir, gitEnv()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func gitEnv() []string {
	return append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_SYSTEM="+os.DevNull,
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.org", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.org")
}

// served is a work tree behind git http-backend. The agent is told to look.
type served struct {
	worktree
	world  *world
	server *http.Server
	url    string
}

func newServed(w *world) (origin, error) {
	tree, err := newWorktree(w)
	if err != nil {
		return nil, err
	}
	path, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return nil, err
	}
	backend := filepath.Join(strings.TrimSpace(string(path)), "git-http-backend")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	env := append(gitEnv(), "GIT_PROJECT_ROOT="+w.dir, "GIT_HTTP_EXPORT_ALL=1")
	s := &served{worktree: tree.(worktree), world: w, url: "http://" + listener.Addr().String() + "/config/.git"}
	s.server = &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) {
		// An agent that is killed while it fetches is nothing to log.
		h := cgi.Handler{Logger: log.New(io.Discard, "", 0), Path: backend, Root: "/", Dir: w.dir, Env: append(env[:len(env):len(env)], "GIT_PROTOCOL="+q.Header.Get("Git-Protocol"))}
		h.ServeHTTP(rw, q)
	})}
	go func() { _ = s.server.Serve(listener) }()
	return s, nil
}

func (s *served) flags() []string { return []string{"--repo", s.url, "--config", ".", "--poll", "1h"} }

func (s *served) close() { _ = s.server.Close() }

func (s *served) write(text string) error {
	if err := s.worktree.write(text); err != nil || s.world.agent == nil {
		return err
	}
	var answer any
	_ = ask(s.world.control, http.MethodPost, "/sync", "", &answer) // a killed agent looks at its next start
	return nil
}
