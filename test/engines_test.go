package test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// A matrix is an agent beside an impostor, and what was counted so far.
type matrix struct {
	*rig
	e                          *impostor
	good                       int // what is applied
	records, rejected, drifted int
}

func newMatrix(t *testing.T, flags ...string) *matrix {
	r := newBareRig(t)
	m := &matrix{rig: r, e: newImpostor(t, r.socket), good: 1024, records: 1}
	m.declare(m.good)
	r.agent(append([]string{"--engine-timeout", "1s", "--drift-interval", "1s"}, flags...)...)
	m.awaitGood(m.good)
	return m
}

// declare changes two parameters, so that half of a change can be seen.
func (m *matrix) declare(size int) {
	m.t.Helper()
	m.write("production.yaml", fmt.Sprintf("environment: production\nparameters:\n  esn_reservoir_size: %d\n  cache_ttl_seconds: %d\n", size, size))
}

// awaitGood waits until size is applied and runs, and holds what is told
// everywhere against each other.
func (m *matrix) awaitGood(size int) {
	m.t.Helper()
	m.good = size
	m.await(fmt.Sprintf("%d units applied", size), func(v view) bool {
		return v.State == apply.StateInSync && v.InSync && v.Ready && v.size() == size
	})
	m.agrees("in sync")
}

// agrees holds that engine, history, control socket, HTTP and metrics say the
// same, and that nothing was committed but what had to be.
func (m *matrix) agrees(what string) {
	m.t.Helper()
	var v view
	m.until(what+": HTTP and the control socket say the same", func() bool {
		var shown struct{ Status apply.Status }
		var err error
		if v, err = m.view(); err != nil {
			m.t.Fatal(err)
		}
		code, err := m.httpSays("/v1/config/status", &shown)
		return err == nil && code == http.StatusOK && shown.Status.State == v.State && shown.Status.InSync == v.InSync &&
			(shown.Status.Held == nil) == (v.Held == nil) && shown.Status.Attempted.Outcome == v.Attempted.Outcome && shown.Status.Current.Equal(*v.Current)
	})
	if code, err := m.httpSays("/readyz", nil); err != nil || (code == http.StatusOK) != v.Ready {
		m.t.Errorf("%s: /readyz is %d %v, ready %v", what, code, err, v.Ready)
	}
	if runs := m.e.running(); !runs.Equal(*v.Current) {
		m.t.Errorf("%s: the engine runs %+v, the status says %+v", what, runs, v.Current)
	}
	records := m.snapshots()
	if len(records) != m.records {
		m.t.Errorf("%s: %d records, want %d: %+v", what, len(records), m.records, records)
	}
	rejected := 0
	for _, s := range records {
		if s.Outcome == "rejected" {
			rejected++
		}
	}
	if rejected != m.rejected {
		m.t.Errorf("%s: %d records are rejected, want %d", what, rejected, m.rejected)
	}
	m.wantMetric(`dtesn_agent_updates_total{outcome="rejected"}`, float64(m.rejected))
	m.wantMetric("dtesn_agent_drift_total", float64(m.drifted))
}

// An ending is what ends a case.
type ending string

const (
	otherDocument ending = "a different document"
	rollback      ending = "agent rollback"
	cure          ending = "the engine is well again"
)

// A mannered is one line of the matrix: how the engine treats a change, and
// what comes of it.
type mannered struct {
	name    string
	batch   func(http.ResponseWriter, *http.Request, schema.Parameters)
	outcome record.Outcome
	says    string // in the reason of the attempt, or of the state
	ending  ending // of what is not applied
}

// TestEngineMatrix lets one agent meet a server with one bad manner after
// another. Each change has the right outcome in bounded time, in the history,
// the status, over HTTP and in the metrics; what is not applied shows the way
// out, and the way out ends it; no manner makes a commit too many.
func TestEngineMatrix(t *testing.T) {
	t.Parallel()
	m := newMatrix(t)
	e := m.e
	for n, c := range []mannered{
		{"refuses", e.answers(422, `{"detail": "no memory"}`), record.Rejected, "no memory", otherDocument},
		{"accepts and lies", e.answers(200, `{"success": true}`), record.Rejected, "runs something else", otherDocument},
		{"accepts partly", e.partly, record.Rejected, "runs something else", rollback},
		{"hangs before taking it", e.hangs, record.Pending, "not known", cure},
		{"hangs after taking it", e.takesAndHangs, record.Applied, "", ""},
		{"drops it", e.drops, record.Pending, "not known", otherDocument},
		{"takes it and drops the reply", e.takesAndDrops, record.Applied, "", ""},
		{"dies each time", e.dies, record.Rejected, "died twice", otherDocument},
		{"answers garbage", e.answers(200, "<h1>It works!</h1>"), record.Pending, "neither yes nor no", rollback},
		{"answers 10 MB", e.answers(200, huge), record.Pending, "larger than", cure},
		{"answers a byte at a time", e.trickles, record.Pending, "not known", otherDocument},
		{"500 for ever", e.answers(500, "boom"), record.Pending, "boom", rollback},
		{"503 at times", e.atTimes, record.Applied, "", ""},
		{"has no batch", e.answers(404, "no such page"), record.Pending, "not a DTESN engine", cure},
	} {
		bad, next := tooMuch+n, 1100+n
		e.change(func() { e.batch = c.batch })
		m.declare(bad)
		m.records++
		switch c.outcome {
		case record.Applied:
			m.awaitGood(bad)
			e.good()
			m.declare(next)
			m.records++
			m.awaitGood(next)
			continue
		case record.Rejected:
			m.records, m.rejected = m.records+1, m.rejected+1
			m.isRejected(c, bad)
		default:
			m.isPending(c, bad)
		}
		m.end(c, bad, next)
	}
}

func (m *matrix) isRejected(c mannered, bad int) {
	m.t.Helper()
	v := m.await(c.name+": rejected", func(v view) bool {
		return v.State == apply.StateHeld && v.Ready && v.size() == m.good
	})
	if a := v.Attempted; a.Outcome != record.Rejected || !strings.Contains(a.Reason, c.says) || v.Held.By != "engine" || !strings.Contains(v.Hint, "agent resume") {
		m.t.Errorf("%s: %+v, held %+v, hint %q", c.name, a, v.Held, v.Hint)
	}
	m.agrees(c.name)
}

func (m *matrix) isPending(c mannered, bad int) {
	m.t.Helper()
	v := m.await(c.name+": pending", func(v view) bool {
		return v.State == apply.StateDegraded && v.Attempted.Outcome == record.Pending && strings.Contains(v.Reason, c.says)
	})
	if v.Hint == "" || v.Held != nil || v.InSync || !strings.Contains(v.Text, v.Hint) {
		m.t.Errorf("%s: hint %q, held %+v, in sync %v\n%s", c.name, v.Hint, v.Held, v.InSync, v.Text)
	}
	if n := len(m.snapshots()); n != m.records {
		m.t.Errorf("%s: %d records, want %d", c.name, n, m.records)
	}
}

// end ends a case as it says, and begins none.
func (m *matrix) end(c mannered, bad, next int) {
	m.t.Helper()
	switch c.ending {
	case cure:
		m.e.good()
		m.order("sync") // or in its time
		m.awaitGood(bad)
		m.declare(next) // the manners must not meet it again
	case rollback:
		id := m.appliedBefore(c, bad)
		m.order("rollback", id, "--reason", "night")
		m.records++
		v := m.await(c.name+": rolled back", func(v view) bool { return v.State == apply.StateHeld && v.Held.By == "operator" })
		if !v.Ready || v.size() >= tooMuch {
			m.t.Errorf("%s: rolled back: ready %v, runs %+v", c.name, v.Ready, v.Current)
		}
		m.agrees(c.name + ", rolled back")
		m.declare(next)
	default:
		m.declare(next)
	}
	m.records++
	m.awaitGood(next)
	m.e.good()
}

// appliedBefore is the id of an applied record with another state than the one
// that runs, or "" where rollback finds its way alone.
func (m *matrix) appliedBefore(c mannered, bad int) string {
	m.t.Helper()
	_, out := agent("snapshots", "--state", m.state)
	if !strings.Contains(out, "applied") {
		m.t.Errorf("%s: %s", c.name, out)
	}
	return "1" // the first record of all, by its index
}

// TestEngineMatrixAtRest is about a server that is not asked for a change when
// it misbehaves, and about one that cannot be asked.
func TestEngineMatrixAtRest(t *testing.T) {
	t.Parallel()
	m := newMatrix(t)
	e := m.e
	back := func(what string) {
		t.Helper()
		m.until(what, func() bool { return sizeOf(e.running()) == m.good })
		m.awaitGood(m.good)
	}
	for range 3 { // no loop, no drift, no record
		sent := e.sent()
		e.restart()
		m.until("the new one was met", func() bool { return e.sent() > sent })
		back("the applied state is back after a restart")
	}
	for range 2 {
		sent := e.sent()
		e.start() // the old one lingers
		m.until("the new one was met", func() bool { return e.sent() > sent })
		back("the applied state runs on the server that took the path over")
	}
	for n, c := range []struct {
		name, says string
		set        func()
		foreign    bool
		word       string // what the engine is said to do
	}{
		{"another label sticks", "it is labelled \"staging\"", func() { e.sticks, e.label = true, "staging" }, true, "refuses this environment"},
		{"no environment", "it answered 404", func() { e.environment, e.label = answering(404, "no such page"), "staging" }, true, "refuses this environment"},
		{"another server", "not a DTESN engine", func() { e.current, e.batch = answering(404, "no such page"), e.answers(404, "") }, true, "answers wrongly"},
		{"garbage", "not a DTESN engine", func() { e.current = answering(200, "<h1>It works!</h1>") }, true, "answers wrongly"},
		{"10 MB", "larger than", func() { e.current = answering(200, huge) }, false, "answers wrongly"},
		{"no HTTP", "not HTTP", func() { e.current = e.mumble }, false, "answers wrongly"},
		{"500", "500", func() { e.current = answering(500, "boom") }, false, "answers wrongly"},
		{"a byte at a time", "no whole answer in time", func() { e.current = e.trickle }, false, "does not answer"},
		{"hangs", "no whole answer in time", func() { e.current = e.hang }, false, "does not answer"},
	} {
		sent := e.sent()
		e.change(c.set)
		m.order("sync")
		v := m.await(c.name, func(v view) bool { return v.State == apply.StateWaiting && strings.Contains(v.Reason, c.says) })
		if v.Ready || v.Checks.EngineReachable || v.Checks.EngineEnvironment || v.Hint == "" || (c.foreign && !strings.Contains(v.Hint, "--engine and --environment")) {
			t.Errorf("%s: ready %v, checks %+v, hint %q", c.name, v.Ready, v.Checks, v.Hint)
		}
		if !strings.Contains(v.Text, "no: the engine "+c.word+"\n") || !strings.Contains(v.Text, ", "+c.word+" since ") || v.Engine.FailingSince < v.Engine.LastRead {
			t.Errorf("%s: it is not said that it %s (since %f):\n%s", c.name, c.word, v.Engine.FailingSince, v.Text)
		}
		m.declare(1100 + n) // on record, and not sent
		m.records++
		v = m.await(c.name+", a change", func(v view) bool { return v.Attempted.Outcome == record.Pending })
		if got := e.sent(); got != sent {
			t.Errorf("%s: %d batches were sent", c.name, got-sent)
		}
		e.good()
		m.awaitGood(1100 + n)
		if v, err := m.view(); err != nil || v.Engine.FailingSince != 0 {
			t.Errorf("%s: well again, and failing since %f %v", c.name, v.Engine.FailingSince, err)
		}
	}
	m.severalWorkers()
}

func (m *matrix) severalWorkers() {
	m.t.Helper()
	other := m.e.running().With(sizeName, schema.Int(640))
	m.e.change(func() { m.e.workers = []schema.Parameters{m.e.runs, other, m.e.runs} })
	v := m.await("several", func(v view) bool {
		return v.State == apply.StateDegraded && strings.Contains(v.Reason, "several engines")
	})
	if v.InSync || v.Held != nil || !strings.Contains(v.Hint, "--workers 1") {
		m.t.Errorf("several workers: %+v", v.Status)
	}
	m.e.good()
	m.e.restart()
	m.awaitGood(m.good)
}

// TestProbation lets changes be on probation under the real program.
func TestProbation(t *testing.T) {
	t.Parallel()
	m := newMatrix(t, "--probation", "2s")
	e := m.e
	onTrial := func(size int) view {
		t.Helper()
		m.declare(size)
		m.records++
		return m.await(fmt.Sprintf("%d on probation", size), func(v view) bool {
			return v.State == apply.StateProbation && v.size() == size
		})
	}
	rejected := func(what, why string) {
		t.Helper()
		m.records, m.rejected = m.records+1, m.rejected+1
		v := m.await(what, func(v view) bool {
			return v.State == apply.StateHeld && v.Ready && v.size() == m.good
		})
		if v.Held.By != "probation" || !strings.Contains(v.Attempted.Reason, why) || v.Attempted.Outcome != record.Rejected {
			t.Errorf("%s: held %+v, attempted %+v", what, v.Held, v.Attempted)
		}
		m.agrees(what)
		m.wantMetric(`dtesn_agent_rollbacks_total{cause="probation"}`, float64(m.rejected))
	}
	begun := time.Now()
	if v := onTrial(1100); !v.Ready || v.InSync || v.Attempted.Outcome != record.Pending || v.Running.Confirmed || !strings.Contains(v.Hint, "agent rollback") {
		t.Errorf("on probation: %+v", v.Status)
	}
	// Who opens the socket to a group does not restart the engine.
	if err := errors.Join(os.Chmod(m.socket, 0o660), os.Link(m.socket, m.socket+".link")); err != nil {
		t.Fatal(err)
	}
	m.awaitGood(1100)
	if took := time.Since(begun); took < 2*time.Second {
		t.Errorf("applied after %s of a window of 2 s", took)
	}

	ill := answering(503, `{"success": false, "health": {"healthy": false, "checks": {"memory": false}}}`)
	onTrial(1101)
	e.change(func() { e.health = ill })
	rejected("unhealthy", "it says that it is not healthy: memory")
	e.good()
	m.declare(1102) // a fix
	m.records++
	m.awaitGood(1102)

	onTrial(1103)
	e.restart()
	rejected("restarted", "while the change was on probation")

	onTrial(1104)
	m.declare(1102)
	m.records++ // withdrawn
	m.awaitGood(1102)

	onTrial(1105)
	if out := m.order("rollback", "--reason", "it burns"); !strings.Contains(out, "esn_reservoir_size 1105 -> 1102") {
		t.Errorf("it is not said what the rollback changed on the engine: %s", out)
	}
	m.records++
	v := m.await("rolled back", func(v view) bool { return v.State == apply.StateHeld && v.Held.By == "operator" })
	if v.size() != 1102 || !v.Ready {
		t.Errorf("rolled back in the middle of a probation: %+v", v.Status)
	}
	m.agrees("rolled back")
	m.onceMore()
}

// onceMore kills the agent in the middle of a probation, twice: the window
// begins anew, and an engine that is not well by then is brought back.
func (m *matrix) onceMore() {
	m.t.Helper()
	for _, well := range []bool{true, false} {
		size := map[bool]int{true: 1106, false: 1107}[well]
		m.declare(size)
		m.records++
		m.await("on probation", func(v view) bool { return v.State == apply.StateProbation && v.size() == size })
		kill(m.running)
		if !well {
			m.e.change(func() { m.e.health = answering(500, "boom") })
		}
		begun := time.Now()
		m.agent("--engine-timeout", "1s", "--drift-interval", "1s", "--probation", "2s")
		m.rejected = 0 // counted by the process that ended
		m.await("on probation again, or over", func(v view) bool {
			return v.State == apply.StateProbation || v.State == apply.StateHeld
		})
		if !well {
			m.records++
			v := m.await("rejected", func(v view) bool { return v.State == apply.StateHeld && v.size() == m.good })
			if v.Held.By != "probation" {
				m.t.Errorf("held %+v", v.Held)
			}
			continue
		}
		m.await("applied", func(v view) bool { return v.InSync && v.size() == size })
		m.good = size
		if took := time.Since(begun); took < 2*time.Second {
			m.t.Errorf("applied %s after a restart, the window is 2 s", took)
		}
	}
	if kinds := m.snapshots(); !slices.ContainsFunc(kinds, func(s snap) bool { return s.Kind == "revert" && s.Outcome == "applied" }) || len(kinds) != m.records {
		m.t.Errorf("%d records, want %d: %+v", len(kinds), m.records, kinds)
	}
}

// TestARollbackDoesNotWaitForAHungLabel lets the connections for a change hang
// before anything was sent. The engine is well by the time somebody orders a
// rollback, and that need not wait for what it was.
func TestARollbackDoesNotWaitForAHungLabel(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	e := newImpostor(t, r.socket)
	r.declare(1024)
	r.agent("--engine-timeout", "10m")
	r.awaitApplied(1024)
	r.declare(1088)
	r.awaitApplied(1088)

	arrived := make(chan struct{}, 100)
	e.change(func() {
		e.environment = func(w http.ResponseWriter, q *http.Request) {
			arrived <- struct{}{}
			e.hang(w, q)
		}
	})
	r.declare(1100)
	for range 2 { // the connection made ahead, and the one in its place
		select {
		case <-arrived:
		case <-time.After(30 * time.Second):
			t.Fatal("the label was not set")
		}
	}
	e.good()
	r.order("rollback", "1", "--reason", "night")
	r.await("rolled back", func(v view) bool {
		return v.State == apply.StateHeld && v.Ready && v.size() == 1024
	})
	if runs := e.running(); sizeOf(runs) != 1024 {
		t.Errorf("the engine runs %+v", runs)
	}
}

// TestEngineUID holds that a socket which another user opened is neither asked
// nor told anything, and that the right one is taken without help.
func TestEngineUID(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	const uid = 65534
	r := newBareRig(t)
	e := newImpostor(t, r.socket) // root's
	r.declare(1024)
	r.agent("--engine-uid", fmt.Sprint(uid))
	v := r.await("refused", func(v view) bool {
		return v.State == apply.StateWaiting && strings.Contains(v.Reason, "opened by uid 0, and --engine-uid is 65534")
	})
	if v.Ready || !strings.Contains(v.Hint, "--engine-uid") || !strings.Contains(v.Text, "is another user's since") || e.sent() != 0 || len(r.snapshots()) != 0 {
		t.Errorf("ready %v, hint %q, %d batches", v.Ready, v.Hint, e.sent())
	}
	e.change(func() {
		if e.asked != 0 || e.label != "development" {
			t.Errorf("it was asked %d times and is labelled %q", e.asked, e.label)
		}
	})
	r.engineOf(uid)
	r.await("applied", func(v view) bool { return v.InSync && v.size() == 1024 })
	if e.sent() != 0 {
		t.Error("root's server was told something")
	}
}

// engineOf runs the reference engine as another user, on the rig's socket.
func (r *rig) engineOf(uid uint32) {
	r.t.Helper()
	self, err := os.Open("/proc/self/exe") // its directory is not that user's to enter
	if err != nil {
		r.t.Fatal(err)
	}
	defer self.Close()
	theirs := filepath.Join(r.dir, "theirs")
	if err := errors.Join(os.Chmod(filepath.Dir(r.dir), 0o755), os.Mkdir(theirs, 0o755), os.Chown(theirs, int(uid), int(uid)), os.Remove(r.socket)); err != nil {
		r.t.Fatal(err)
	}
	socket := filepath.Join(theirs, "e.sock")
	cmd := exec.Command("/proc/self/fd/3", "engine", "--socket", socket)
	cmd.Args[0], cmd.ExtraFiles = "agent", []*os.File{self}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
	cmd.Env, cmd.Dir = append(os.Environ(), "HOME=/"), "/"
	r.process(cmd)
	r.until("their engine listens", func() bool { _, err := os.Stat(socket); return err == nil })
	if err := os.Symlink(socket, r.socket); err != nil {
		r.t.Fatal(err)
	}
}
