package test

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

func TestPythonServer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.engine()
	if c, _ := r.current(); c.Environment != "development" || c.Timestamp["iso"] == nil {
		t.Fatalf("the server does not start as such servers do: %+v", c)
	}
	r.declare(1024)
	r.agent()
	r.awaitApplied(1024)
	requests := r.requests()
	label := slices.IndexFunc(requests, func(q request) bool { return q.Path == "/v1/config/environment" })
	batch := slices.IndexFunc(requests, func(q request) bool { return q.Path == "/v1/config/batch-update" })
	if label < 0 || batch < label || requests[batch].Label != "production" {
		t.Errorf("the label was not set before the first batch: %+v", requests)
	}
	r.letIdle()
	r.declare(1088)
	r.awaitApplied(1088)
	for _, stage := range []string{"send", "read", "assert", "confirm"} {
		r.wantMetric(`dtesn_agent_stage_failures_total{stage="`+stage+`"}`, 0)
	}
	r.wantMetric("dtesn_agent_drift_total", 0)
}

// TestPythonServerRefuses tries each shape in which such a server says no.
func TestPythonServerRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.engine()
	r.declare(512)
	r.agent()
	r.await("in sync", func(v view) bool { return v.InSync })
	for n, c := range []struct{ how, want string }{
		{"error", "no memory for %d units"},
		{"errors", "no memory for %d units; the limit is set by the operator"},
		{"callback", "Failed to apply batch update: no memory for %d units"},
		{"400", "no memory for %d units"},
		{"409", "no memory for %d units"},
		{"422", "body → updates → 4 → value: no memory for %d units"},
	} {
		good, bad := 600+n, 3000+n
		want := fmt.Sprintf(c.want, bad)
		r.declare(good)
		r.awaitApplied(good)
		r.misbehave(`{"refuse": "` + c.how + `"}`)
		r.declare(bad)
		v := r.await(c.how+": held", func(v view) bool { return v.State == apply.StateHeld && v.size() == good })
		if v.Attempted.Outcome != record.Rejected || v.Attempted.Reason != want || !strings.Contains(v.Text, want) || v.Held.By != "engine" || !v.Ready {
			t.Errorf("%s: %+v, want the reason %q\n%s", c.how, v.Attempted, want, v.Text)
		}
		if now, err := r.current(); err != nil || sizeOf(now.Configuration) != good {
			t.Errorf("%s: the server runs %+v %v, want %d", c.how, now, err, good)
		}
		s := r.snapshots()
		if s[0].Kind != "revert" || sizeOf(s[0].ConfigData) != good || s[1].Outcome != "rejected" || sizeOf(s[1].ConfigData) != bad {
			t.Errorf("%s: the history says %+v", c.how, s[:2])
		}
		if got := strings.Join(s[1].ValidationErrors, "; "); got != want {
			t.Errorf("%s: validation_errors %q, want %q", c.how, got, want)
		}
		r.misbehave(`{"refuse": ""}`)
	}
	r.wantMetric(`dtesn_agent_updates_total{outcome="rejected"}`, 6)
	r.wantMetric("dtesn_agent_drift_total", 0)
}

func TestPythonServerDriftCorrected(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.engine()
	r.declare(1024)
	first := r.agent("--drift-interval", "1h")
	r.awaitApplied(1024)
	records := len(r.snapshots())

	runs := func(size int) func() bool {
		return func() bool { c, err := r.current(); return err == nil && sizeOf(c.Configuration) == size }
	}
	r.byHand(640)
	r.order("sync")
	r.until("sync brings it back", runs(1024))
	r.wantMetric("dtesn_agent_drift_total", 1)

	_ = first.Process.Signal(syscall.SIGTERM)
	_ = first.Wait()
	r.agent("--drift-interval", "200ms")
	r.await("in sync", func(v view) bool { return v.InSync })
	r.byHand(640)
	r.until("the interval brings it back", runs(1024))
	r.await("in sync again", func(v view) bool { return v.InSync && v.Drift == nil })
	r.wantMetric("dtesn_agent_drift_total", 1)
	if n := len(r.snapshots()); n != records {
		t.Errorf("drift made %d records", n-records)
	}

	r.misbehave(`{"refuse": "400"}`)
	r.declare(4096)
	r.await("held", func(v view) bool { return v.State == apply.StateHeld && v.size() == 1024 })
	records = len(r.snapshots())
	r.byHand(640)
	r.until("it is brought back while held", runs(1024))
	v := r.await("held still", func(v view) bool { return v.State == apply.StateHeld && v.size() == 1024 })
	if v.Held == nil || len(r.snapshots()) != records {
		t.Errorf("held %+v, %d records more", v.Held, len(r.snapshots())-records)
	}
	r.wantMetric("dtesn_agent_drift_total", 2)
}

func TestPythonServerDriftReported(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.engine()
	r.declare(1024)
	r.agent("--drift", "report", "--drift-interval", "200ms")
	r.awaitApplied(1024)
	records, batches := len(r.snapshots()), r.count("/v1/config/batch-update")
	r.byHand(640)
	v := r.await("drifted", func(v view) bool { return v.State == apply.StateDrifted })
	if v.Drift == nil || v.Drift.Corrected || len(v.Drift.Differences) != 1 || v.Drift.Differences[0].Parameter != "esn_reservoir_size" || v.InSync || !v.Ready {
		t.Errorf("drift %+v, in sync %v, ready %v", v.Drift, v.InSync, v.Ready)
	}
	if code, out := agent("status", "--state", r.state, "--ready"); code != 0 {
		t.Errorf("readyz: exit %d %s", code, out)
	}
	reads := r.count("/v1/config/current")
	r.until("it looked again", func() bool { return r.count("/v1/config/current") >= reads+10 })
	r.order("sync")
	if c, _ := r.current(); sizeOf(c.Configuration) != 640 || r.count("/v1/config/batch-update") != batches || len(r.snapshots()) != records {
		t.Errorf("reported drift was touched: the server runs %+v", c)
	}
	r.wantMetric("dtesn_agent_drift_total", 1)
	r.byHand(1024)
	r.await("in sync again", func(v view) bool { return v.InSync && v.Drift == nil })
}

// TestPythonServerRestarts holds that whatever way the server comes back, with
// its defaults and its label, it runs the applied state within a second of its
// first answer, and that this is not called drift.
func TestPythonServerRestarts(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	server := r.engine()
	r.declare(1024)
	r.agent("--drift-interval", "1h")
	r.awaitApplied(1024)
	records := len(r.snapshots())
	for _, way := range []string{"killed", "stopped", "taken over"} {
		begun := len(r.requests())
		old := server
		switch way {
		case "killed":
			kill(old)
			r.await("seen to be gone", func(v view) bool { return v.State == apply.StateWaiting && !v.Ready })
		case "stopped":
			_ = old.Process.Signal(syscall.SIGTERM)
			_ = old.Wait()
		}
		server = r.server("server:app", "{}")
		var took float64
		r.until(way+": the applied state is back", func() bool {
			all := r.requests()[begun:]
			all = slices.DeleteFunc(all, func(q request) bool { return q.PID != server.Process.Pid })
			i := slices.IndexFunc(all, func(q request) bool {
				return q.Path == "/v1/config/batch-update" && q.Size == 1024 && q.Label == "production"
			})
			if i >= 0 {
				took = all[i].At - all[0].At
			}
			return i >= 0
		})
		t.Logf("%s: asserted %.0f ms after the first answer", way, took*1000)
		if took > 1 {
			t.Errorf("%s: asserted %.2f s after the server's first answer", way, took)
		}
		r.await(way+": in sync", func(v view) bool { return v.InSync && v.Engine.Reachable })
		if way == "taken over" {
			kill(old)
		}
	}
	r.wantMetric("dtesn_agent_drift_total", 0)
	if n := len(r.snapshots()); n != records {
		t.Errorf("restarts made %d records", n-records)
	}
	r.declare(1088)
	r.awaitApplied(1088)
}

// TestPythonWrongServer holds that what is not our server gets nothing, makes
// nothing rejected, and that the right one is taken without help.
func TestPythonWrongServer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	other := r.server("server:other", "{}")
	r.declare(1024)
	r.agent("--drift-interval", "500ms")
	wrong := func(what, reason string) {
		t.Helper()
		v := r.await(what, func(v view) bool { return v.State == apply.StateWaiting && strings.Contains(v.Reason, reason) })
		if v.Checks.EngineEnvironment || v.Ready || v.Held != nil || !strings.Contains(v.Hint, "--engine") {
			t.Errorf("%s: checks %+v, ready %v, held %+v, hint %q", what, v.Checks, v.Ready, v.Held, v.Hint)
		}
		if r.count("/v1/config/batch-update") != 0 || len(r.snapshots()) != 0 {
			t.Errorf("%s: something was sent or recorded", what)
		}
	}
	wrong("another service", "wrong engine: not a DTESN engine: GET /v1/config/current answered 404")
	kill(other)
	for _, status := range []int{404, 405} {
		server := r.server("server:app", fmt.Sprintf(`{"environment_status": %d}`, status))
		wrong("no environment", fmt.Sprintf("wrong engine: it answered %d", status))
		if status == 405 {
			r.misbehave(`{"environment_status": 0}`)
		} else {
			kill(server)
		}
	}
	r.awaitApplied(1024)

	for i, status := range []int{404, 405} {
		size := 1088 + i
		r.misbehave(fmt.Sprintf(`{"batch_status": %d}`, status))
		r.declare(size)
		v := r.await("no batch", func(v view) bool {
			return v.State == apply.StateDegraded && strings.Contains(v.Reason, strconv.Itoa(status))
		})
		if v.Held != nil || v.Attempted.Outcome != record.Pending || v.size() == size || !v.Ready {
			t.Errorf("batch %d: %+v, held %+v", status, v.Attempted, v.Held)
		}
		r.misbehave(`{"batch_status": 0}`)
		r.awaitApplied(size)
	}
	r.wantMetric(`dtesn_agent_updates_total{outcome="rejected"}`, 0)
	for _, s := range r.snapshots() {
		if s.Kind == "revert" {
			t.Errorf("something was reverted: %+v", s)
		}
	}
}

// TestPythonSeveralWorkers holds that workers, each with its own configuration,
// are recognised: while a change is in flight and at rest.
func TestPythonSeveralWorkers(t *testing.T) {
	t.Parallel()
	said := func(v view) bool {
		return v.State == apply.StateDegraded && strings.Contains(v.Reason, "several engines behind one socket") &&
			strings.Contains(v.Hint, "--workers 1") && !v.InSync
	}
	t.Run("report", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.engine("--workers", "2")
		r.agreeing("esn_reservoir_size", 1024)
		r.declare(1024)
		r.agent("--drift", "report", "--drift-interval", "100ms")
		r.await("in sync", func(v view) bool { return v.InSync })
		r.byHand(640) // one of them
		r.await("said", said)
		if v, _ := r.view(); v.Drift != nil {
			t.Errorf("called drift: %+v", v.Drift)
		}
		r.wantMetric("dtesn_agent_drift_total", 0)
	})
	t.Run("correct", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		server := r.engine("--workers", "2")
		r.declare(1024)
		r.agent("--drift-interval", "100ms")
		for range 3 { // the kernel may give one worker all connections until both agree
			if r.shows(10*time.Second, said) {
				break
			}
			kill(server)
			server = r.engine("--workers", "2")
		}
		r.await("said", said)
		r.declare(1088)
		r.await("said, and never rejected", func(v view) bool { return said(v) && v.Seen.Revision == v.Attempted.Revision })
		r.wantMetric(`dtesn_agent_updates_total{outcome="rejected"}`, 0)
		r.wantMetric("dtesn_agent_drift_total", 0)
		kill(server)
		r.engine("--workers", "1")
		r.await("well with one worker", func(v view) bool {
			return v.InSync && v.State == apply.StateInSync && v.size() == 1088
		})
		for _, s := range r.snapshots() {
			if s.Outcome == "rejected" {
				t.Errorf("rejected: %+v", s)
			}
		}
	})
}

// TestPythonTwoAgents lets two agents that declare different things fight over
// one server: the first whose corrections do not last says so, and it does not
// go on at full speed.
func TestPythonTwoAgents(t *testing.T) {
	t.Parallel()
	one := newRig(t)
	one.engine()
	two := newRig(t)
	two.socket = one.socket
	one.declare(1024)
	two.declare(2048)
	one.agent("--drift-interval", "100ms")
	rival := two.agent("--drift-interval", "100ms")
	var v view
	one.until("one of them says so", func() bool {
		for _, r := range []*rig{one, two} {
			var err error
			if v, err = r.view(); err == nil && v.State == apply.StateDrifted && strings.Contains(v.Reason, "something else keeps changing the engine") {
				return true
			}
		}
		return false
	})
	if !strings.Contains(v.Hint, "another agent") || v.Drift == nil || v.InSync {
		t.Errorf("hint %q, drift %+v, in sync %v", v.Hint, v.Drift, v.InSync)
	}
	if n := one.metric("dtesn_agent_drift_total") + two.metric("dtesn_agent_drift_total"); n < 3 {
		t.Errorf("%v drifts counted", n)
	}
	batches, begun := one.count("/v1/config/batch-update"), time.Now()
	one.until("they are slow by now", func() bool { return time.Since(begun) > 3*time.Second })
	if n := one.count("/v1/config/batch-update") - batches; n > 15 {
		t.Errorf("%d batches in 3 s with an interval of 100 ms", n)
	}
	if n := len(one.snapshots()); n != 1 {
		t.Errorf("%d records", n)
	}
	kill(rival)
	one.order("sync")
	one.until("the survivor's state runs", func() bool {
		c, err := one.current()
		return err == nil && sizeOf(c.Configuration) == 1024
	})
}

func TestPythonObserve(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	server := r.engine()
	r.declare(1024)
	r.agent("--observe", "--drift-interval", "100ms")
	observes := func(reason string) view {
		t.Helper()
		return r.await(reason, func(v view) bool { return v.State == apply.StateObserving && strings.Contains(v.Reason, reason) })
	}
	if v := observes("would apply: esn_reservoir_size 512 -> 1024"); !strings.Contains(v.Hint, `labelled "development"`) || !v.Ready {
		t.Errorf("hint %q, ready %v", v.Hint, v.Ready)
	}
	r.byHand(1024)
	observes("the engine runs what the source declares")
	r.declare(1)
	observes("would refuse the document")
	r.order("sync")
	if code, out := agent("rollback", "--reason", "x", "--state", r.state); code != 1 || !strings.Contains(out, "only observes") {
		t.Errorf("rollback: exit %d %s", code, out)
	}
	r.declare(2048)
	observes("would apply: esn_reservoir_size 1024 -> 2048")
	kill(server)
	observes("the engine does not answer")
	r.engine()
	observes("would apply: esn_reservoir_size 512 -> 2048")
	for _, q := range r.requests() {
		if q.Method != http.MethodGet && q.Path != "/v1/config/update" { // that was this test
			t.Errorf("an observer sent %+v", q)
		}
	}
	if c, _ := r.current(); c.Environment != "development" || len(r.snapshots()) != 0 {
		t.Errorf("something was changed or recorded: %+v", c)
	}
}

// TestPythonOnce holds the exit codes of a job against such a server.
func TestPythonOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	once := func(want int, says string, flags ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, "agent", append(append(r.args(r.state, "127.0.0.1:0"), "--once", "--log-level", "error"), flags...)...)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != want || !strings.Contains(string(out), says) {
			t.Errorf("exit %d, want %d and %q:\n%s", code, want, says, out)
		}
	}
	r.declare(1024)
	once(1, "no outcome within 300ms (--once-timeout): waiting_for_engine: the engine does not answer", "--once-timeout", "300ms")
	r.server("server:app", `{"refuse": "422"}`) // it comes up while the job waits
	once(0, "")
	once(0, "")
	r.declare(1)
	once(3, "production.yaml:4:23")
	r.declare(4096)
	once(4, "rejected: body → updates → 4 → value: no memory for 4096 units")
	once(4, "held: the engine rejected it: body → updates")
	r.misbehave(`{"slow": 10}`)
	r.declare(1088)
	once(1, "is on record and goes on at the next start", "--once-timeout", "1s", "--engine-timeout", "500ms")
	r.misbehave(`{"slow": 0}`)
	once(0, "")

	running := r.agent()
	r.await("in sync", func(v view) bool { return v.InSync })
	r.order("pause", "--reason", "night")
	_ = running.Process.Signal(syscall.SIGTERM)
	_ = running.Wait()
	once(1, "held: paused by the operator ")
	if c, err := r.current(); err != nil || sizeOf(c.Configuration) != 1088 {
		t.Errorf("the server runs %+v %v", c, err)
	}
}

// TestPythonHangs holds that a server that hangs keeps neither an order waiting
// nor the truth from the status.
func TestPythonHangs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.engine()
	r.declare(1024)
	r.agent("--drift-interval", "1h")
	r.awaitApplied(1024)
	r.misbehave(`{"slow": 5, "slow_read": 5}`)
	r.declare(1088)
	r.await("pending", func(v view) bool { return v.Attempted.Outcome == record.Pending })
	begun := time.Now()
	r.order("pause", "--reason", "it hangs", "--timeout", "8s")
	if took := time.Since(begun); took > 6*time.Second {
		t.Errorf("a pause took %s", took)
	}
	if v, err := r.view(); err != nil || v.Held == nil || !v.Held.Paused || v.Attempted.Outcome != record.Superseded {
		t.Errorf("after the pause: held %+v, attempted %+v %v", v.Held, v.Attempted, err)
	}
	r.misbehave(`{"slow": 0, "slow_read": 0}`)
	r.await("well again", func(v view) bool {
		return v.State == apply.StateHeld && v.Ready && v.size() == 1024
	})
	r.order("resume")
	r.awaitApplied(1088)
}

// TestPythonServerDies holds that a change on which the server dies twice is
// rejected, and that the server which a supervisor starts then is left alone.
func TestPythonServerDies(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const dies = `{"die": true}`
	server := r.server("server:app", dies)
	r.declare(1024)
	r.agent()
	r.awaitApplied(1024)
	r.declare(4096)
	for range 2 {
		done := make(chan error, 1)
		go func() { done <- server.Wait() }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatalf("the server did not die\n%s", r.evidence())
		}
		server = r.server("server:app", dies)
	}
	v := r.await("held", func(v view) bool { return v.State == apply.StateHeld && v.size() == 1024 })
	if v.Attempted.Outcome != record.Rejected || !strings.Contains(v.Attempted.Reason, "died twice") || !v.Ready {
		t.Errorf("%+v, ready %v", v.Attempted, v.Ready)
	}
	if syscall.Kill(server.Process.Pid, 0) != nil {
		t.Error("the third server died as well")
	}
	r.declare(1088)
	r.awaitApplied(1088)
	r.wantMetric("dtesn_agent_drift_total", 0)
}
