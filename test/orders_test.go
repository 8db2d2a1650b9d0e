package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestOrderDeadline holds that an order carries its deadline: one that was given up
// while the agent stood still is not carried out when it goes on.
func TestOrderDeadline(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	r.declare(700)
	cmd := r.embedded(nil)
	r.await("in sync", func(v view) bool { return v.InSync })
	ok(t, cmd.Process.Signal(syscall.SIGSTOP))
	code, out := agent("pause", "--reason", "too late", "--timeout", "100ms", "--state", r.state)
	if code != 1 || !strings.Contains(out, "did not answer within") {
		t.Errorf("exit %d: %s", code, out)
	}
	ok(t, cmd.Process.Signal(syscall.SIGCONT))
	r.declare(800)
	r.await("the next change is applied", func(v view) bool { return v.InSync && v.size() == 800 })
	if v, err := r.view(); err != nil || v.Held != nil {
		t.Errorf("held %+v, %v", v.Held, err)
	}
}

// TestOrderTimeouts holds that each request of the control socket has one clear answer,
// whatever timeout it names.
func TestOrderTimeouts(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	r.declare(700)
	r.embedded(nil)
	r.await("in sync", func(v view) bool { return v.InSync })
	order := func(verb, body string) (res struct{ Outcome, Text, Error string }, err error) {
		err = over(filepath.Join(r.state, "agent.sock"), http.MethodPost, "/"+verb, body, &res)
		return res, err
	}
	for _, timeout := range []string{"", `,"timeout_seconds":1e300`, `,"timeout_seconds":86401`} {
		if res, err := order("pause", `{"reason":"x"`+timeout+`}`); err != nil || res.Outcome != "applied" {
			t.Errorf("pause%s: %+v, %v", timeout, res, err)
		}
		if res, err := order("resume", `{"reason":"x"`+timeout+`}`); err != nil || res.Outcome != "applied" {
			t.Errorf("resume%s: %+v, %v", timeout, res, err)
		}
	}
	late := fmt.Sprintf(`,"deadline":%d`, time.Now().Add(-time.Minute).Unix())
	for _, timeout := range []string{`,"timeout_seconds":-1`, late} {
		if _, err := order("pause", `{"reason":"x"`+timeout+`}`); err == nil || !strings.Contains(err.Error(), "was not begun, and is forgotten") {
			t.Errorf("pause%s: %v", timeout, err)
		}
	}
	var syntax *json.SyntaxError
	if _, err := order("pause", `{"timeout_seconds":"soon"}`); err == nil || errors.As(err, &syntax) || !strings.Contains(err.Error(), "400") {
		t.Errorf("a text as timeout: %v", err)
	}
	if v, err := r.view(); err != nil || v.Held != nil {
		t.Errorf("held %+v, %v", v.Held, err)
	}
}

// TestInterruptedOrder: who gives up waiting is told that what is on record goes on.
func TestInterruptedOrder(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(state, "agent.sock")) // an agent that takes its time
	ok(t, err)
	t.Cleanup(func() { _ = l.Close() })
	cmd := exec.Command("agent", "rollback", "--reason", "x", "--state", state)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ok(t, cmd.Start())
	conn, err := l.Accept()
	ok(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	ok(t, cmd.Process.Signal(syscall.SIGINT))
	_ = cmd.Wait()
	if text := out.String(); !strings.Contains(text, "interrupted before the agent on") || !strings.Contains(text, "goes on: agent status --state") || strings.Contains(text, "http://") {
		t.Errorf("%s", text)
	}
}
