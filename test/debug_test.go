package test

import (
	"bytes"
	"compress/gzip"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dtesn-agent/apply"
)

// TestLogLevel holds that the level of the log is changed while the agent runs, and that
// the log says by whom, whatever the levels.
func TestLogLevel(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	newImpostor(t, r.socket)
	r.declare(1024)
	r.agent()
	r.awaitApplied(1024)
	if r.logged("level=DEBUG") != 0 {
		t.Error("debug lines without being asked")
	}
	changed := 0
	for _, c := range []struct{ from, to string }{{"info", "debug"}, {"debug", "error"}, {"error", "error"}, {"error", "warn"}, {"warn", "info"}} {
		if out := r.order("log-level", c.to); out != c.to+"\n" {
			t.Errorf("log-level %s: %s", c.to, out)
		}
		if out := r.order("log-level"); out != c.to+"\n" {
			t.Errorf("log-level, after %s: %s", c.to, out)
		}
		changed++
		r.until("the change is in the log", func() bool {
			return r.logged(`level=INFO msg="log level changed"`) == changed && r.logged(`msg="log level changed" from=`+c.from+" to="+c.to+" uid=", " user=") > 0
		})
		if c.to == "debug" {
			r.order("sync")
			r.until("the steps are in the log", func() bool { return r.logged("level=DEBUG msg=step", "kind=") > 0 })
		}
	}
	before := r.logged("level=DEBUG")
	r.order("sync")
	r.declare(1088)
	r.awaitApplied(1088)
	if after := r.logged("level=DEBUG"); after != before {
		t.Errorf("%d debug lines more", after-before)
	}
	if code, out := agent("log-level", "loud", "--state", r.state); code != 2 || !strings.Contains(out, `unknown level "loud": want debug, info, warn, error`) {
		t.Errorf("exit %d: %s", code, out)
	}
}

// TestPprof holds that the operator gets profiles of the agent that runs.
func TestPprof(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	r.declare(700)
	r.embedded(nil)
	r.await("applied", func(v view) bool { return v.State == apply.StateInSync })
	for _, args := range [][]string{{"heap"}, {"allocs"}, {"goroutine"}, {"profile", "--seconds", "1"}} {
		out := r.order(append([]string{"pprof"}, args...)...)
		z, err := gzip.NewReader(strings.NewReader(out))
		ok(t, err)
		profile, err := io.ReadAll(z)
		ok(t, err)
		if want := "dtesn-agent/"; !bytes.Contains(profile, []byte(want)) && args[0] != "profile" { // an agent at rest takes no time
			t.Errorf("%v does not name %s", args, want)
		}
	}
	if out := r.order("pprof", "trace", "--seconds", "1"); !strings.HasPrefix(out, "go 1.") {
		t.Errorf("trace: %.20q", out)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"heaps"}, 2, `there is no profile "heaps": want allocs, goroutine, heap, profile, trace`},
		{nil, 2, "accepts 1 arg"},
		{[]string{"profile", "--seconds", "0"}, 2, "--seconds: 0 is out of range"},
	} {
		if code, out := agent(append(append([]string{"pprof"}, c.args...), "--state", r.state)...); code != c.code || !strings.Contains(out, c.says) {
			t.Errorf("%v: exit %d: %s", c.args, code, out)
		}
	}
	needs(t, "curl")
	curl := exec.CommandContext(t.Context(), "curl", "-sSf", "--unix-socket", filepath.Join(r.state, "agent.sock"), "http://agent/debug/pprof/goroutine?debug=2")
	if out, err := curl.CombinedOutput(); err != nil || !strings.Contains(string(out), "apply.(*Reconciler).Run") {
		t.Errorf("curl: %v\n%.300s", err, out)
	}
	for _, path := range []string{"debug/pprof/", "debug/pprof/heap"} {
		if code := exec.CommandContext(t.Context(), "curl", "-sSf", "http://127.0.0.1:"+r.port+"/"+path).Run(); code == nil {
			t.Errorf("--listen serves /%s", path)
		}
	}
}
