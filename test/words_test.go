package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// What people read of the agent: in its log, from its commands, on its page.

// logged counts the lines of the newest agent's log with all of these words.
func (r *rig) logged(words ...string) (n int) {
	r.t.Helper()
	text, err := os.ReadFile(r.out.Name())
	if err != nil {
		r.t.Fatal(err)
	}
next:
	for line := range strings.Lines(string(text)) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		n++
	}
	return n
}

// TestHealthOfAnotherShape: a server that does not say how it is cannot be asked,
// which is no fault of the change.
func TestHealthOfAnotherShape(t *testing.T) {
	t.Parallel()
	m := newMatrix(t, "--probation", "1s")
	m.e.change(func() { m.e.health = answering(200, `{"status": "healthy"}`) })
	m.declare(1100)
	m.records++
	v := m.await("it cannot be asked", func(v view) bool { return v.State == apply.StateDegraded })
	if v.Held != nil || v.Attempted.Outcome != record.Pending || v.size() != 1100 || !v.Ready ||
		!strings.Contains(v.Reason, `answered "{\"status\": \"healthy\"}", want {"success": true, "health": {"healthy": true or false, `) {
		t.Errorf("%s: held %+v, attempted %+v", v.Reason, v.Held, v.Attempted)
	}
	m.e.good()
	m.order("sync")
	m.awaitGood(1100)
}

// TestABrokenSendIsOneWarning: an answer that was lost is an error once it is
// lost again.
func TestABrokenSendIsOneWarning(t *testing.T) {
	t.Parallel()
	m := newMatrix(t)
	m.e.change(func() { m.e.batch = m.e.takesAndDrops })
	m.declare(tooMuch)
	m.records++
	m.awaitGood(tooMuch)
	if warned, errors := m.logged("level=WARN", "connection broke"), m.logged("level=ERROR"); warned != 1 || errors != 0 {
		t.Errorf("%d warnings, %d errors\n%s", warned, errors, m.evidence())
	}
	m.e.change(func() { m.e.batch = m.e.answers(500, "boom") })
	m.declare(tooMuch + 1)
	m.until("it is an error", func() bool { return m.logged("level=ERROR", "what became of the change is not known", "boom") == 1 })
}

// TestAFullDiskIsFolded: each write to a full disk fails in words of its own, and
// they are one line of the log all the same.
func TestAFullDiskIsFolded(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	r := newBareRig(t)
	newImpostor(t, r.socket)
	if err := os.Mkdir(r.state, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", r.state, "tmpfs", 0, "size=4m,mode=0755"); err != nil {
		t.Skipf("a small disk cannot be mounted: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(r.state, syscall.MNT_DETACH) })
	r.declare(1024)
	r.agent()
	r.awaitApplied(1024)
	r.wantMetric("dtesn_agent_last_apply_successful", 1)
	r.wantMetric("dtesn_agent_state_writable", 1)
	fill(t, filepath.Join(r.state, "filler"))
	failures := func() float64 { return r.metric(`dtesn_agent_stage_failures_total{stage="commit"}`) }
	for n := 1; n <= 12; n++ {
		r.declare(1100 + n)
		r.until("it was tried", func() bool { return failures() >= float64(n) })
	}
	if lines := r.logged("level=ERROR", "cannot be recorded", "no space left"); lines < 2 || lines > 3 || r.logged("times=10") < 1 {
		t.Errorf("%d lines of %v failures\n%s", lines, failures(), r.evidence())
	}
	r.wantMetric("dtesn_agent_last_apply_successful", 0)
	r.wantMetric("dtesn_agent_state_writable", 0)
	code, out := agent("pause", "--reason", "night", "--state", r.state)
	if code != 0 { // the journal has space of its own
		t.Errorf("a pause on a full disk: exit %d: %s", code, out)
	}
}

// TestAStormOfSignals: a thousand requests to read are a line each second.
func TestAStormOfSignals(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	newImpostor(t, r.socket)
	r.declare(1024)
	cmd := r.agent()
	r.awaitApplied(1024)
	begun := time.Now()
	for range 1000 {
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond) // signals that come at once are one
	}
	r.order("sync") // is answered, and goes on
	lines := r.logged("read on request")
	if most := int(time.Since(begun).Seconds()) + 2; lines < 1 || lines > most {
		t.Errorf("%d lines, want at most %d", lines, most)
	}
}

// TestOnceOnProbation: what did not pass its probation ends a job with 4, also
// when it is held since then.
func TestOnceOnProbation(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	e := newImpostor(t, r.socket)
	once := func(want int, says string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "agent", append(r.args(r.state, "127.0.0.1:0"), "--once", "--probation", "500ms")...)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != want || !strings.Contains(string(out), says) {
			t.Errorf("exit %d, want %d and %q:\n%s", code, want, says, out)
		}
	}
	r.declare(1024)
	once(0, "")
	e.change(func() { e.health = answering(503, "ill") })
	r.declare(1100)
	once(4, "rejected: the engine was not healthy on it")
	once(4, "did not pass the probation")
}

// TestRollbackIsRefused: an engine that refuses a rollback may refuse the way
// back as well, so that nothing is said of where it is.
func TestRollbackIsRefused(t *testing.T) {
	t.Parallel()
	m := newMatrix(t)
	m.declare(tooMuch)
	m.records++
	m.awaitGood(tooMuch)
	m.declare(1100)
	m.records++
	m.awaitGood(1100)
	m.e.change(func() { m.e.batch = m.e.answers(409, `{"detail": "not now"}`) })
	code, out := agent("rollback", "--reason", "night", "--state", m.state)
	if code != 4 || !strings.Contains(out, "rollback was rejected by the engine: not now") || strings.Contains(out, "is back") {
		t.Errorf("exit %d: %s", code, out)
	}
	m.records, m.rejected = m.records+2, m.rejected+1
	m.awaitGood(1100)

	m.e.change(func() { m.e.batch = m.e.hangs })
	code, out = agent("rollback", "--reason", "night", "--timeout", "300ms", "--state", m.state)
	if want := fmt.Sprintf("_%04d, not yet on the engine; it goes on by itself, also over a restart of the agent", m.records+1); code != 1 ||
		!strings.Contains(out, "rollback is pending: on record as snapshot_") || !strings.Contains(out, want) {
		t.Errorf("exit %d, want %q: %s", code, want, out)
	}
}
