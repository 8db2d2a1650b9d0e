package test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/test/gitserver"
)

// A wayward server does with each request what is asked of it, else its work.
type wayward struct {
	do    atomic.Pointer[func(h http.Handler, w http.ResponseWriter, q *http.Request)]
	mu    sync.Mutex
	asked []time.Time
}

func (s *wayward) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, time.Now())
		s.mu.Unlock()
		if do := s.do.Load(); do != nil {
			(*do)(h, w, q)
			return
		}
		h.ServeHTTP(w, q)
	})
}

// requests are when the server was asked.
func (s *wayward) requests() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func (s *wayward) will(do func(h http.Handler, w http.ResponseWriter, q *http.Request)) {
	if do == nil {
		s.do.Store(nil)
		return
	}
	s.do.Store(&do)
}

// answers is a server that answers everything so.
func answers(code int, kind, body string) func(http.Handler, http.ResponseWriter, *http.Request) {
	return func(_ http.Handler, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}
}

// spoils passes on what is not a pack, and of a pack what spoil makes of it.
func spoils(spoil func(w http.ResponseWriter, body []byte)) func(http.Handler, http.ResponseWriter, *http.Request) {
	return func(h http.Handler, w http.ResponseWriter, q *http.Request) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, q)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		if body := rec.Body.Bytes(); bytes.Contains(body, []byte("PACK")) {
			spoil(w, body)
		} else {
			_, _ = w.Write(body)
		}
	}
}

func hangUp(_ http.Handler, w http.ResponseWriter, _ *http.Request) {
	if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
		_ = conn.Close()
	}
}

// TestGitOutages leads one agent through what a server and its repository can
// do wrong. Each time the engine keeps what it has, the status says why and how
// stale it is, and once all is well the agent goes on.
func TestGitOutages(t *testing.T) {
	t.Parallel()
	needs(t, "git")
	f := newFollower(t)
	server := &wayward{}
	url := gitserver.HTTP(t, f.dir, server.wrap).URL
	elsewhere := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(elsewhere.Close)
	away := filepath.Join(f.dir, "away")
	move := func(from, to string) { ok(t, os.Rename(from, to)) }
	// another stands in for the repository; what is pushed goes to the real one
	another := filepath.Join(f.dir, "another.git")
	replace := func(fill func()) func() {
		return func() {
			gitserver.Git(t, f.dir, "init", "-q", "--bare", "-b", "main", another)
			fill()
			move(f.bare, away)
			move(another, f.bare)
		}
	}
	back := func() { ok(t, os.RemoveAll(f.bare)); move(away, f.bare) }
	well := func() { server.will(nil) }
	misbehave := func(do func(http.Handler, http.ResponseWriter, *http.Request)) func() {
		return func() { server.will(do) }
	}
	rows := []struct {
		name    string
		off, on func()
		say     []string
		bySelf  bool // comes back without being asked
		pushed  bool // it takes a push to meet it
		refused bool // no error
	}{
		{"500", misbehave(answers(500, "text/plain", "no")), well, []string{"500 Internal Server Error", "reports a problem"}, false, false, false},
		{"503", misbehave(answers(503, "text/plain", "no")), well, []string{"503"}, true, false, false},
		{"a portal", misbehave(answers(200, "text/html", "<html>log in")), well, []string{`"text/html"`, "git clone"}, false, false, false},
		{"hangs up", misbehave(hangUp), well, []string{"the server closed the connection"}, false, false, false},
		{"garbage", misbehave(answers(200, "application/x-git-upload-pack-advertisement", "\x00\x1b[31mgarbage")), well, nil, false, false, false},
		{"redirects away", misbehave(func(_ http.Handler, w http.ResponseWriter, q *http.Request) {
			http.Redirect(w, q, elsewhere.URL+q.URL.String(), http.StatusMovedPermanently)
		}), well, []string{"redirects to " + elsewhere.URL, "name that address with --repo"}, false, false, false},
		{"half a pack", misbehave(spoils(func(w http.ResponseWriter, b []byte) { _, _ = w.Write(b[:len(b)/2]) })), well, []string{"cut short"}, false, true, false},
		{"a bit of the pack", misbehave(spoils(func(w http.ResponseWriter, b []byte) { b[len(b)-60] ^= 1; _, _ = w.Write(b) })), well, []string{"fetch "}, false, true, false},
		{"the ref is deleted", func() { gitserver.Git(t, f.bare, "update-ref", "-d", "refs/heads/main") }, func() {}, []string{"ref main not found"}, false, false, false},
		{"the repository is gone", func() { move(f.bare, away) }, func() { move(away, f.bare) }, []string{"404", "check the address"}, false, false, false},
		{"the repository is emptied", replace(func() {}), back, []string{"ref main not found"}, false, false, false},
		{"another history is in its place", replace(func() {
			other := gitserver.NewRepository(t, t.TempDir(), 1)
			gitserver.Git(t, other, "push", "-q", another, "main")
		}), back, []string{"main was moved to", "does not descend from", "which runs"}, false, false, true},
	}
	f.start(url+"/config.git", "--poll", "100ms")
	f.runs(1)
	n := 1
	for _, row := range rows {
		row.off()
		if row.pushed {
			f.declare(n + 1)
		}
		f.sync()
		v := f.await(row.name+" is said, and that the source is stale", func(v view) bool {
			if row.refused {
				return v.State == apply.StateRefused
			}
			return v.Source.LastError != "" && !v.Checks.SourceFresh
		})
		said := v.Source.LastError + "\n" + v.Source.Hint + "\n" + v.Reason
		for _, words := range row.say {
			if !strings.Contains(said, words) {
				t.Errorf("%s: %q is not said: %s", row.name, words, said)
			}
		}
		if v.ttl() != n || !v.Ready || strings.Contains(v.Text, "\x1b") || !strings.Contains(v.Text, "last read ") {
			t.Errorf("%s: state %d should run on\n%s", row.name, n, v.Text)
		}
		row.on()
		n++
		if !row.pushed {
			f.declare(n)
		}
		if !row.bySelf {
			f.sync()
		}
		f.runs(n)
		f.await(row.name+" is over", func(v view) bool { return v.Source.LastError == "" && v.Checks.SourceFresh })
		if left, err := os.ReadDir(filepath.Join(f.state, "source")); err != nil || len(left) > 0 {
			t.Errorf("%s left behind: %v %v", row.name, left, err)
		}
	}
	log, err := os.ReadFile(f.log)
	ok(t, err)
	if bytes.ContainsRune(log, 0x1b) {
		t.Error("the log holds an escape code")
	}

	// a server that is down is left alone, more and more
	server.will(hangUp)
	f.says("the server closed the connection")
	before := len(server.requests())
	f.await("two more tries", func(view) bool { return len(server.requests()) >= before+2 })
	if tries := server.requests()[before:]; tries[1].Sub(tries[0]) < 800*time.Millisecond {
		t.Errorf("two tries within %s: the source is not left alone", tries[1].Sub(tries[0]))
	}
	server.will(nil)
	f.declare(n + 1)
	ok(t, f.cmd.Process.Signal(syscall.SIGHUP)) // asks now
	f.runs(n + 1)
}

// TestGitName: the host's name does not resolve, then it does.
func TestGitName(t *testing.T) {
	t.Parallel()
	needs(t, "git", "unshare")
	needsRoot(t)
	f := newFollower(t)
	url := strings.Replace(gitserver.HTTP(t, f.dir, nil).URL, "127.0.0.1", "config.git.invalid", 1)
	hosts, resolver := filepath.Join(f.dir, "hosts"), filepath.Join(f.dir, "resolv.conf")
	ok(t, os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"), 0o644))
	ok(t, os.WriteFile(resolver, []byte("nameserver 127.0.0.1\noptions attempts:1 timeout:1\n"), 0o644))
	f.wrap = []string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && mount --bind "$1" /etc/resolv.conf && shift && exec "$@"`, hosts, resolver}
	f.start(url + "/config.git")
	f.await("that the name is unknown is said", func(v view) bool { return strings.Contains(v.Source.LastError, "lookup config.git.invalid") })
	ok(t, os.WriteFile(hosts, []byte("127.0.0.1 localhost config.git.invalid\n"), 0o644))
	f.runs(1)
}

// TestGitProxy: a proxy that wants a login is named, with the variable that names
// it; one that cannot be parsed ends the command.
func TestGitProxy(t *testing.T) {
	t.Parallel()
	const password = "canary-7c1d93ab"
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Proxy-Authenticate", "Basic")
		http.Error(w, password+" "+q.Header.Get("Proxy-Authorization"), http.StatusProxyAuthRequired)
	}))
	t.Cleanup(proxy.Close)
	for _, scheme := range []string{"http", "https"} {
		f := newFollower(t)
		f.env = []string{strings.ToUpper(scheme) + "_PROXY=" + strings.Replace(proxy.URL, "://", "://bob:"+password+"@", 1)}
		f.start(scheme + "://config.git.invalid/config.git")
		f.await("the proxy is named", func(v view) bool {
			said := v.Source.LastError + v.Source.Hint
			if strings.Contains(said, password) {
				t.Error("the proxy's password is in " + said)
			}
			return strings.Contains(said, "407 Proxy Authentication Required") && strings.Contains(said, strings.ToUpper(scheme)+"_PROXY")
		})
		kill(f.cmd)
	}
	cmd := exec.Command(shippedAgent(t), "run", "--environment", "testing", "--repo", "https://config.git.invalid/config.git", "--embedded-engine", "--state", t.TempDir())
	cmd.Env = append(os.Environ(), "HTTPS_PROXY=http://[::1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "HTTPS_PROXY") || !strings.Contains(string(out), "http://HOST:PORT") {
		t.Errorf("%v\n%s", err, out)
	}
}
