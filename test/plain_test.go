package test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// plain starts python/plain.py on the socket; it does not wait.
func (r *rig) plain(manners string) *exec.Cmd {
	r.t.Helper()
	cmd := exec.Command("/usr/bin/python3", "python/plain.py", r.socket, manners)
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "DTESN_SERVER_LOG="+r.logs)
	return r.serve(cmd)
}

// asserts holds that the newest server is given the applied state and label,
// though nobody asks the agent to look.
func (r *rig) asserts(what string, server *exec.Cmd, size int) {
	r.t.Helper()
	r.until(what+": the applied state is back", func() bool {
		return slices.ContainsFunc(r.requests(), func(q request) bool {
			return q.PID == server.Process.Pid && q.Path == "/v1/config/batch-update" && q.Size == size && q.Label == "production"
		})
	})
	r.await(what+": in sync", func(v view) bool { return v.InSync && v.Engine.Reachable })
}

// TestPlainServers is about servers that serve one connection at a time, and
// about one that closes each without a word: all is as with any other, and the
// agent is in nobody's way.
func TestPlainServers(t *testing.T) {
	t.Parallel()
	needs(t, "/usr/bin/python3")
	for _, manners := range []string{"HTTP/1.0", "HTTP/1.1", "abrupt"} {
		t.Run(filepath.Base(manners), func(t *testing.T) {
			t.Parallel()
			r := newBareRig(t)
			old := r.plain(manners)
			r.declare(1024)
			r.agent("--drift-interval", "1h") // what is seen of a restart is not seen by chance
			r.awaitApplied(1024)
			r.declare(1088)
			r.awaitApplied(1088)
			for range 20 {
				if _, err := r.current(); err != nil {
					t.Fatalf("another client is not served: %v", err)
				}
			}
			r.wantMetric(`dtesn_agent_stage_failures_total{stage="send"}`, 0)

			kill(old) // its socket stays
			r.await("seen to be gone", func(v view) bool { return !v.Ready })
			server := r.plain(manners)
			r.asserts("killed", server, 1088)
			r.asserts("taken over", r.plain(manners), 1088) // the old one lingers
			r.wantMetric("dtesn_agent_drift_total", 0)
			if n := len(r.snapshots()); n != 2 {
				t.Errorf("%d records, want 2", n)
			}
			r.declare(1024)
			r.awaitApplied(1024)
		})
	}
}

// TestPythonServerBehindAHeldSocket is about a server whose supervisor keeps the
// socket open: a new one has the same socket and, as far as the kernel tells,
// is the same process.
func TestPythonServerBehindAHeldSocket(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l, err := net.Listen("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	held, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Close() }()
	start := func() *exec.Cmd {
		cmd := r.uvicorn("server:app", "{}", "--fd", "3")
		cmd.ExtraFiles = []*os.File{held}
		return r.serve(cmd)
	}
	server := start()
	r.declare(1024)
	r.agent("--drift-interval", "1h")
	r.awaitApplied(1024)
	for range 2 {
		kill(server)
		server = start()
		r.asserts("killed", server, 1024)
	}
}
