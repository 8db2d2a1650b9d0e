package test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"dtesn-agent/apply"
)

// TestAnotherUserReads holds that a member of the socket's group may read the status once
// it may search the directory, and may give no orders.
func TestAnotherUserReads(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to be another user")
	}
	r := newBareRig(t)
	r.declare(700)
	r.embedded(nil)
	r.await("applied", func(v view) bool { return v.State == apply.StateInSync })
	const uid, gid = 4242, 4243
	as := func(args ...string) string {
		t.Helper()
		self, err := os.Open("/proc/self/exe") // its directory is not that user's to enter
		ok(t, err)
		defer self.Close()
		var out bytes.Buffer
		cmd := exec.Command("/proc/self/fd/3", append(args, "--state", r.state)...)
		cmd.Args[0], cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = "agent", []*os.File{self}, &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}, Pdeathsig: syscall.SIGKILL}
		cmd.Env, cmd.Dir = append(os.Environ(), "HOME=/"), "/"
		_ = cmd.Run()
		return out.String()
	}
	for dir := r.dir; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		ok(t, os.Chmod(dir, 0o755))
	}
	if out := as("status"); !strings.Contains(out, "permission denied on") || !strings.Contains(out, "curl http://127.0.0.1:9310/") {
		t.Errorf("without the right: %s", out)
	}
	socket := filepath.Join(r.state, "agent.sock")
	ok(t, errors.Join(os.Chown(r.state, 0, gid), os.Chown(socket, 0, gid), os.Chmod(r.state, 0o710)))
	if out := as("status"); !strings.HasPrefix(out, "state      in_sync") {
		t.Errorf("the group reads: %s", out)
	}
	for _, order := range [][]string{{"pause", "--reason", "x"}, {"rollback", "--reason", "x"}, {"resume"}, {"sync"}, {"log-level", "debug"}, {"pprof", "heap"}} {
		if out := as(order...); !strings.Contains(out, "uid 4242 may read the status and give no orders") {
			t.Errorf("%v: %s", order, out)
		}
	}
	if v, err := r.view(); err != nil || v.State != apply.StateInSync {
		t.Errorf("%+v, %v", v, err)
	}
}
