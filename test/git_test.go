package test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/test/gitserver"
)

// A follower is an agent that follows a git repository, beside its embedded
// engine, and the work tree that pushes there.
type follower struct {
	t               *testing.T
	dir, work, bare string
	state, log      string
	wrap            []string // a command that runs the agent, if it is not to be run itself
	env             []string // besides the test's
	program         string   // the agent
	cmd             *exec.Cmd
}

func newFollower(t *testing.T) *follower {
	t.Helper()
	dir := t.TempDir()
	f := &follower{t: t, dir: dir, work: filepath.Join(dir, "work"), bare: filepath.Join(dir, "config.git"), state: filepath.Join(dir, "s"), log: filepath.Join(dir, "log"), program: shippedAgent(t)}
	ok(t, os.CopyFS(filepath.Join(f.work, "config"), os.DirFS("../examples/config")))
	f.git("init", "-q", "-b", "main")
	f.git("init", "-q", "--bare", "-b", "main", f.bare)
	for _, dir := range []string{f.work, f.bare} { // nothing of git's own goes on beside the test
		f.git("-C", dir, "config", "maintenance.auto", "false")
		f.git("-C", dir, "config", "receive.autogc", "false")
	}
	f.declare(1)
	return f
}

func (f *follower) git(args ...string) string {
	f.t.Helper()
	return gitserver.Git(f.t, f.work, args...)
}

// declare commits and pushes a state that nothing else has, in each of three
// environments: n seconds of cache.
func (f *follower) declare(n int) {
	f.t.Helper()
	f.commit(n)
	f.push()
}

// push pushes main, and reports whether the repository is there.
func (f *follower) push() bool {
	f.t.Helper()
	if _, err := os.Stat(f.bare); err != nil {
		return false
	}
	f.git("push", "-q", "-f", f.bare, "main")
	return true
}

func (f *follower) commit(n int) {
	f.t.Helper()
	f.write(n)
	f.git("add", "-A")
	f.git("commit", "-q", "-m", fmt.Sprintf("state %d", n))
}

func (f *follower) write(n int) {
	f.t.Helper()
	for _, env := range []string{"testing", "staging", "production"} {
		text := fmt.Sprintf("environment: %s\nextends: [low-memory]\nparameters:\n  cache_ttl_seconds: %d\n", env, n)
		ok(f.t, os.WriteFile(filepath.Join(f.work, "config", env+".yaml"), []byte(text), 0o644))
	}
}

// start starts the agent on repo; its log goes on where it was.
func (f *follower) start(repo string, flags ...string) {
	f.t.Helper()
	out, err := os.OpenFile(f.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ok(f.t, err)
	defer out.Close()
	args := slices.Concat(f.wrap, []string{
		f.program, "run", "--environment", "testing", "--repo", repo, "--config", "config",
		"--embedded-engine", "--state", f.state, "--listen", "127.0.0.1:0",
	}, flags)
	f.cmd = exec.Command(args[0], args[1:]...)
	f.cmd.Env = append(os.Environ(), f.env...)
	f.cmd.Stdout, f.cmd.Stderr = out, out
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ok(f.t, f.cmd.Start())
	cmd := f.cmd
	f.t.Cleanup(func() { kill(cmd) })
}

// sync has the agent look now.
func (f *follower) sync() {
	f.t.Helper()
	if out, err := exec.Command("agent", "sync", "--state", f.state).CombinedOutput(); err != nil {
		f.t.Fatalf("agent sync: %v\n%s", err, out)
	}
}

// await waits until the agent's status is as holds says.
func (f *follower) await(what string, holds func(v view) bool) (v view) {
	f.t.Helper()
	deadline, again := time.After(time.Minute), time.NewTicker(5*time.Millisecond)
	defer again.Stop()
	for {
		var err error
		if v, err = viewOf(f.state); err == nil && holds(v) {
			return v
		}
		select {
		case <-again.C:
		case <-deadline:
			log, _ := os.ReadFile(f.log)
			f.t.Fatalf("not within a minute: %s\n%s\n%v\n%s", what, v.Text, err, log)
		}
	}
}

// runs waits until the engine runs the n-th state and all agrees.
func (f *follower) runs(n int) view {
	f.t.Helper()
	return f.await(fmt.Sprintf("state %d runs", n), func(v view) bool {
		return v.InSync && v.Current != nil && v.ttl() == n
	})
}

// TestGitServers follows one repository by each way of reaching it: through
// pushes, an outage with a change in it, and a restart of the agent. How long a
// push takes to the engine after agent sync is logged.
func TestGitServers(t *testing.T) {
	needs(t, "git")
	const token = "canary-5f1d0c2e"
	ways := map[string]func(t *testing.T, f *follower) (repo string, flags []string, away, back func()){
		"http with a token": func(t *testing.T, f *follower) (string, []string, func(), func()) {
			var down atomic.Bool
			s := gitserver.HTTP(t, f.dir, func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
					_, password, _ := q.BasicAuth()
					switch {
					case down.Load():
						w.WriteHeader(http.StatusServiceUnavailable)
					case password != token:
						w.WriteHeader(http.StatusUnauthorized)
					default:
						h.ServeHTTP(w, q)
					}
				})
			})
			file := filepath.Join(f.dir, "token")
			ok(t, os.WriteFile(file, []byte(token+"\n"), 0o600))
			return s.URL + "/config.git", []string{"--git-token-file", file, "--allow-insecure-git"}, func() { down.Store(true) }, func() { down.Store(false) }
		},
		"ssh": func(t *testing.T, f *follower) (string, []string, func(), func()) {
			needs(t, "ssh-keygen")
			h := gitserver.SSH(t, f.bare, "AcceptEnv GIT_PROTOCOL")
			key, err := os.ReadFile(h.Key)
			ok(t, err)
			return h.URL, []string{"--git-ssh-key-file", h.Key, "--git-known-hosts-file", h.KnownHosts},
				func() { ok(t, os.WriteFile(h.Key, []byte("-----BEGIN nothing"), 0o600)) },
				func() { ok(t, os.WriteFile(h.Key, key, 0o600)) }
		},
		"a path": func(t *testing.T, f *follower) (string, []string, func(), func()) {
			away := f.bare + ".away"
			f.env = []string{"PATH=" + f.dir} // it needs no git
			return f.bare, nil, func() { ok(t, os.Rename(f.bare, away)) }, func() { ok(t, os.Rename(away, f.bare)) }
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			f := newFollower(t)
			f.program = "agent" // with the race detector, if the test has it
			repo, flags, away, back := way(t, f)
			f.start(repo, flags...)
			f.runs(1)
			var took []time.Duration
			for n := 2; n < 7; n++ {
				f.declare(n)
				start := time.Now()
				f.sync()
				f.runs(n)
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			t.Logf("agent sync, a process of its own, to in sync: p50 %s", took[len(took)/2])

			f.commit(7)
			away()
			f.sync()
			v := f.await("the outage is said", func(v view) bool { return v.Source.LastError != "" })
			t.Log("outage:", v.Source.LastError)
			if v.ttl() != 6 || !v.Ready {
				t.Errorf("during the outage the engine runs %+v, ready %v", v.Current, v.Ready)
			}
			pushed := f.push()
			back()
			if !pushed {
				f.push()
				f.sync()
			}
			f.runs(7) // by itself: the first tries after a failure come soon

			f.declare(8)
			kill(f.cmd)
			f.start(repo, flags...)
			f.runs(8)
			f.noTrace(map[string]string{"token": token})
		})
	}
}

// TestGitKilledWhileItFetches: what a fetch that was cut short leaves is swept
// at the next start.
func TestGitKilledWhileItFetches(t *testing.T) {
	f := newFollower(t)
	stuck, stop := make(chan struct{}, 8), make(chan struct{})
	var hang atomic.Bool
	s := gitserver.HTTP(t, f.dir, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			body := &bytes.Buffer{}
			_, _ = body.ReadFrom(q.Body)
			q.Body = http.NoBody
			q = q.WithContext(context.WithoutCancel(q.Context()))
			q.Body = nopCloser{bytes.NewReader(body.Bytes())}
			if hang.Load() && bytes.Contains(body.Bytes(), []byte("want ")) {
				half := &halfWriter{ResponseWriter: w}
				h.ServeHTTP(half, q)
				w.(http.Flusher).Flush()
				stuck <- struct{}{}
				select {
				case <-stop:
				case <-q.Context().Done():
				}
				return
			}
			h.ServeHTTP(w, q)
		})
	})
	t.Cleanup(func() { close(stop) }) // before the server is closed, which waits for it
	f.start(s.URL + "/config.git")
	f.runs(1)
	f.declare(2)
	hang.Store(true)
	f.sync()
	<-stuck
	scratch := filepath.Join(f.state, "source")
	f.await("a half fetched pack lies there", func(view) bool {
		left, _ := filepath.Glob(filepath.Join(scratch, "fetch-*"))
		return len(left) > 0
	})
	kill(f.cmd)
	hang.Store(false)
	f.start(s.URL + "/config.git")
	f.runs(2)
	if left, _ := os.ReadDir(scratch); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

type nopCloser struct{ *bytes.Reader }

func (nopCloser) Close() error { return nil }

// A halfWriter swallows what comes after the first 200 bytes.
type halfWriter struct {
	http.ResponseWriter
	n int
}

func (w *halfWriter) Write(b []byte) (int, error) {
	if rest := 200 - w.n; rest > 0 {
		if _, err := w.ResponseWriter.Write(b[:min(rest, len(b))]); err != nil {
			return 0, err
		}
	}
	w.n += len(b)
	return len(b), nil
}

// TestGitRefused: a signature that is missing is refused, with the
// way out, and a fix of the file of allowed signers is enough.
func TestGitRefused(t *testing.T) {
	needs(t, "ssh-keygen")
	f := newFollower(t)
	key := filepath.Join(f.dir, "key")
	public := gitserver.NewKey(t, key, "")
	ok(t, os.WriteFile(key+".pub", []byte(public+"\n"), 0o644))
	signers := filepath.Join(f.dir, "allowed")
	ok(t, os.WriteFile(signers, []byte("somebody "+gitserver.NewKey(t, filepath.Join(f.dir, "other"), "")+"\n"), 0o644))
	f.git("config", "gpg.format", "ssh")
	f.git("config", "user.signingKey", key+".pub")
	f.git("config", "commit.gpgSign", "true")
	f.start(f.bare, "--verify", "commit", "--allowed-signers", signers)
	v := f.await("unsigned is refused", func(v view) bool { return v.State == apply.StateRefused })
	if !strings.Contains(v.Reason, "not signed") || !strings.Contains(v.Hint, signers) || v.Attempted.Outcome != "refused" {
		t.Errorf("%s / %s / %+v", v.Reason, v.Hint, v.Attempted)
	}
	f.declare(2)
	f.await("another's signature is refused", func(v view) bool {
		return v.State == apply.StateRefused && strings.Contains(v.Reason, "no allowed signer")
	})
	ok(t, os.WriteFile(signers, []byte("ada@example.org "+public+"\n"), 0o644))
	f.sync()
	f.runs(2)
	show, err := exec.Command("agent", "show", "1", "--state", f.state).Output()
	if err != nil || !strings.Contains(string(show), "ada@example.org (SHA256:") {
		t.Errorf("%v\n%s", err, show)
	}
	// taken from the list, what runs is no longer trusted: said, and kept
	ok(t, os.WriteFile(signers, []byte("nobody "+gitserver.NewKey(t, filepath.Join(f.dir, "third"), "")+"\n"), 0o644))
	f.sync()
	v = f.await("judged again", func(v view) bool { return v.State == apply.StateRefused })
	if v.ttl() != 2 || !v.Ready || v.InSync {
		t.Errorf("%+v", v.Status)
	}
}

// TestGitAcceptedHead: the head that was accepted last is known after a restart.
// Of a server with a shallow copy it is the only proof.
func TestGitAcceptedHead(t *testing.T) {
	needs(t, "git")
	f := newFollower(t)
	url := gitserver.HTTP(t, f.dir, nil).URL + "/config.git"
	f.start(url)
	f.runs(1)
	f.git("commit", "-q", "--allow-empty", "-m", "nothing of ours")
	f.push()
	f.sync()
	head := f.git("rev-parse", "HEAD")
	f.await("the head is accepted", func(v view) bool { return v.Source.Revision == head })
	fact := func() bool {
		journal, err := filepath.Glob(filepath.Join(f.state, "journal.*"))
		ok(t, err)
		for _, path := range journal {
			text, err := os.ReadFile(path)
			ok(t, err)
			if bytes.Contains(text, []byte("accepted-head")) && bytes.Contains(text, []byte(head)) {
				return true
			}
		}
		return false
	}
	f.await("it is on record", func(view) bool { return fact() })
	kill(f.cmd)
	ok(t, os.Rename(f.bare, f.bare+".away"))
	f.git("clone", "-q", "--bare", "--depth", "1", "file://"+f.bare+".away", f.bare)
	f.git("commit", "-q", "--allow-empty", "-m", "between")
	f.declare(2)
	f.start(url)
	f.runs(2)
}
