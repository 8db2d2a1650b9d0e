package test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// The agent beside the Python module as it is published: python/module.py.

// newModule is a rig with such a server, which has these manners.
func newModule(t *testing.T, manners string) *rig {
	t.Helper()
	r := newRig(t)
	ok(t, os.WriteFile(r.logs, nil, 0o600)) // a test may look before the first request
	r.server("module:app", manners)
	return r
}

// moduleDeclare declares size, with what such a server begins with.
func (r *rig) moduleDeclare(size int) {
	r.t.Helper()
	r.write("production.yaml", fmt.Sprintf("environment: production\nparameters:\n  esn_reservoir_size: %d\n  max_membrane_depth: 8\n  bseries_max_order: 16\n", size))
}

// TestModuleAsPublished holds that a server which refuses everything, for a parameter
// that was never sent, is at fault itself: nothing is rejected or held, and what it
// runs already is in sync.
func TestModuleAsPublished(t *testing.T) {
	t.Parallel()
	r := newModule(t, "{}")
	r.moduleDeclare(2048)
	r.agent()
	v := r.await("the server is at fault", func(v view) bool {
		return v.State == apply.StateDegraded && strings.Contains(v.Reason, "allowed_origins unknown, which was not sent")
	})
	if v.Held != nil || v.Attempted.Outcome != record.Pending || !strings.Contains(v.Hint, "a fault of the DTESN server") {
		t.Errorf("held %+v, attempted %+v, hint %q", v.Held, v.Attempted, v.Hint)
	}
	r.moduleDeclare(1024)
	r.await("what it runs already is in sync", func(v view) bool { return v.InSync && v.size() == 1024 })
	for _, s := range r.snapshots() {
		if s.Outcome == string(record.Rejected) {
			t.Errorf("rejected: %+v", s)
		}
	}
	r.wantMetric(`dtesn_agent_updates_total{outcome="rejected"}`, 0)
}

// TestModuleWithOneLine holds that with the line of docs/python-module.md its own
// routes are usable: changes, refusals, a rollback, drift, restarts.
func TestModuleWithOneLine(t *testing.T) {
	t.Parallel()
	const manners = `{"one_line": true}`
	r := newRig(t)
	server := r.server("module:app", manners)
	r.moduleDeclare(2048)
	r.agent("--drift-interval", "200ms")
	r.awaitApplied(2048)
	r.moduleDeclare(4096)
	r.awaitApplied(4096)
	r.order("rollback", "--reason", "it burns")
	r.await("rolled back", func(v view) bool { return v.State == apply.StateHeld && v.size() == 2048 })
	r.order("resume")
	r.awaitApplied(4096)

	r.byHand(640)
	r.until("drift is corrected", func() bool { c, err := r.current(); return err == nil && sizeOf(c.Configuration) == 4096 })
	r.await("in sync", func(v view) bool { return v.InSync && v.size() == 4096 })
	r.wantMetric("dtesn_agent_drift_total", 1)

	for range 2 {
		ok(t, server.Process.Signal(syscall.SIGKILL))
		_ = server.Wait()
		r.await("seen to be gone", func(v view) bool { return !v.Ready })
		server = r.server("module:app", manners)
		r.until("brought back", func() bool {
			c, err := r.current()
			return err == nil && sizeOf(c.Configuration) == 4096 && c.Environment == "production"
		})
		r.await("in sync", func(v view) bool { return v.InSync && v.size() == 4096 })
	}
	r.wantMetric("dtesn_agent_drift_total", 1)
}

// TestModuleOnProbation holds that such a server, which is always healthy, passes a
// probation, and that one which ends on it does not.
func TestModuleOnProbation(t *testing.T) {
	t.Parallel()
	const manners = `{"one_line": true}`
	r := newRig(t)
	server := r.server("module:app", manners)
	r.moduleDeclare(2048)
	r.agent("--probation", "2s")
	r.awaitApplied(2048)
	r.moduleDeclare(4096)
	r.await("on probation", func(v view) bool { return v.State == apply.StateProbation && v.size() == 4096 })
	ok(t, server.Process.Signal(syscall.SIGKILL))
	_ = server.Wait()
	r.server("module:app", manners)
	v := r.await("held", func(v view) bool { return v.State == apply.StateHeld && v.Ready && v.size() == 2048 })
	if v.Held.By != "probation" {
		t.Errorf("held %+v", v.Held)
	}
}
