package test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// optionalCUE has a parameter that need not be set.
const optionalCUE = `package dtesn

#extends: "dtesn"

#Parameters: scheduler_budget_ms?: int & >=1 & <=1000 @dtesn(unit="ms", description="Time the scheduler may spend on a batch")
`

// reference replaces the impostor by the reference engine, which knows the six
// parameters and no other.
func (g *grown) reference() {
	g.t.Helper()
	g.e.change(func() {
		for _, s := range g.e.servers {
			_ = s.Close()
		}
	})
	cmd := exec.Command("agent", "engine", "--socket", g.socket)
	g.process(cmd)
	g.until("the engine answers", func() bool { _, err := g.engineRuns(); return err == nil })
}

// engineRuns is what any engine says that it runs.
func (r *rig) engineRuns() (schema.Parameters, error) {
	var c struct{ Configuration schema.Parameters }
	err := over(r.socket, http.MethodGet, "/v1/config/current", "", &c)
	return c.Configuration, err
}

// unknown waits until the agent says that the engine does not know the extra
// parameter, and holds that nothing comes of that but a pending change to the
// declared size; the engine runs another.
func (g *grown) unknown(what string, declared, size int) {
	t := g.t
	t.Helper()
	v := g.await(what, func(v view) bool {
		return v.State == apply.StateDegraded && strings.Contains(v.Reason, "the engine does not know "+extra) &&
			len(v.Engine.Differences) == 1 && strings.Contains(v.Engine.Differences[0], extra) &&
			v.Attempted != nil && v.Attempted.Outcome == record.Pending && sizeOf(g.snapshots()[0].ConfigData) == declared
	})
	if v.Held != nil || v.InSync || v.Hint == "" || !strings.Contains(v.Text, v.Hint) {
		t.Errorf("%s: held %+v, in sync %v, hint %q", what, v.Held, v.InSync, v.Hint)
	}
	if code, err := g.httpSays("/readyz", nil); code != http.StatusOK || err != nil || !v.Ready {
		t.Errorf("%s: /readyz is %d %v, ready %v", what, code, err, v.Ready)
	}
	if p, err := g.engineRuns(); err != nil || sizeOf(p) != size {
		t.Errorf("%s: the engine runs %v %v, want size %d", what, p, err, size)
	}
}

// isApplied waits until size is applied, on an engine that has no budget.
func (g *grown) isApplied(size int) {
	g.t.Helper()
	g.await(fmt.Sprintf("size %d applied", size), func(v view) bool {
		return v.State == apply.StateInSync && v.InSync && v.Ready && v.size() == size
	})
	if p, err := g.engineRuns(); err != nil || sizeOf(p) != size || !p.Get(extra).IsZero() {
		g.t.Errorf("the engine runs %v %v, want size %d", p, err, size)
	}
}

// TestEngineLacksARequiredParameter runs the reference engine under a schema
// that requires a parameter it does not know: the agent says so, sends nothing
// and stays ready; with the schema that the engine knows it goes on.
func TestEngineLacksARequiredParameter(t *testing.T) {
	t.Parallel()
	g := newGrown(t, extraCUE)
	g.reference()
	g.base(production)
	g.two(1024, 0)
	g.small()
	g.isApplied(1024)
	g.stop()
	g.base(g.rules)
	g.two(2048, 30)
	g.large()
	g.unknown("a required parameter", 2048, 1024)
	g.order("sync")
	g.two(3072, 30)
	g.unknown("another document", 3072, 1024)
	kill(g.running)
	g.large()
	g.unknown("after a kill", 3072, 1024)
	g.stop()
	g.base(production)
	g.two(2048, 0)
	g.small()
	g.isApplied(2048)
}

// TestEngineLacksAnOptionalParameter: where the parameter is optional, the next
// document or a rollback takes it out.
func TestEngineLacksAnOptionalParameter(t *testing.T) {
	t.Parallel()
	g := newGrown(t, optionalCUE)
	g.reference()
	g.two(1024, 0)
	g.large()
	g.isApplied(1024)
	g.two(2048, 30)
	g.unknown("an optional parameter", 2048, 1024)
	g.two(2048, 0)
	g.isApplied(2048)

	g.two(3072, 30)
	g.unknown("an optional parameter again", 3072, 2048)
	g.order("rollback", "1", "--reason", "the server has none")
	v := g.await("rolled back", func(v view) bool { return v.State == apply.StateHeld && v.size() == 1024 && v.Ready })
	if v.Held.By != "operator" {
		t.Errorf("held %+v", v.Held)
	}
	g.two(3080, 0)
	g.isApplied(3080)
}

// TestEngineLacksAParameterAtFirst: where nothing was applied before, the agent
// says the same, and is not ready.
func TestEngineLacksAParameterAtFirst(t *testing.T) {
	t.Parallel()
	g := newGrown(t, extraCUE)
	g.reference()
	g.two(1024, 30)
	g.large()
	v := g.await("it is said", func(v view) bool {
		return v.State == apply.StateDegraded && strings.Contains(v.Reason, "the engine does not know "+extra)
	})
	if v.Hint == "" || v.Ready || v.InSync || v.Held != nil || v.Attempted == nil || v.Attempted.Outcome != record.Pending {
		t.Errorf("%+v", v.Status)
	}
	if p, err := g.engineRuns(); err != nil || !p.Equal(production.Defaults()) {
		t.Errorf("the engine runs %v %v", p, err)
	}
}

// TestEngineHasOneMore: what a server reports besides is its own. It is neither
// sent nor compared, and may change.
func TestEngineHasOneMore(t *testing.T) {
	t.Parallel()
	const own = "vendor_mode"
	r := newBareRig(t)
	e := newImpostorWith(t, r.socket, production.Defaults().With(own, schema.Text("eco")))
	r.declare(1024)
	r.agent("--drift-interval", "100ms")
	r.awaitApplied(1024)
	sent := e.sent()
	e.change(func() {
		if strings.Contains(e.body, own) {
			t.Errorf("it was sent %s", e.body)
		}
		e.asked, e.runs = 0, e.runs.With(own, schema.Text("turbo"))
	})
	r.until("it was read again, thrice", func() (twice bool) { e.change(func() { twice = e.asked > 2 }); return twice })
	v, err := r.view()
	if err != nil || !v.InSync || v.Drift != nil || e.sent() != sent {
		t.Errorf("in sync %v, drift %+v, %d batches %v", v.InSync, v.Drift, e.sent()-sent, err)
	}
	r.wantMetric("dtesn_agent_drift_total", 0)
	r.declare(1088)
	r.awaitApplied(1088)
	if mode := e.running().Get(own); !mode.Equal(schema.Text("turbo")) {
		t.Errorf("%s is %v", own, mode)
	}
}

// TestEngineBoundsMoreTightly: what an engine's own schema does not take is told
// in status and log before any change is sent.
func TestEngineBoundsMoreTightly(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	e := newImpostor(t, r.socket)
	early := make(chan bool, 1)
	e.change(func() {
		e.schema = answering(200, `{"success": true, "parameter_info": {
			"esn_reservoir_size": {"type": "int", "range": "64-4096", "critical": true},
			"bseries_max_order": {"type": "int", "minimum": 1, "maximum": 16},
			"max_membrane_depth": {"type": "int", "range": "1-64"}, "enable_caching": {"type": "bool"}, "vendor_mode": {"type": "string"}}}`)
		e.batch = func(w http.ResponseWriter, _ *http.Request, p schema.Parameters) {
			log, _ := os.ReadFile(filepath.Join(r.dir, "state.log"))
			select {
			case early <- strings.Contains(string(log), "4096"):
			default:
			}
			e.take(p)
			says(w, 200, `{"success": true}`)
		}
	})
	r.declare(tooMuch)
	r.agent()
	r.awaitApplied(tooMuch)
	if !<-early {
		t.Error("the first batch was sent before the log said how the schemas differ")
	}
	v, err := r.view()
	if err != nil || len(v.Engine.Differences) != 2 {
		t.Fatalf("differences %q %v", v.Engine.Differences, err)
	}
	all := strings.Join(v.Engine.Differences, "\n")
	for _, want := range []string{"esn_reservoir_size", "4096", "bseries_max_order", "16"} {
		if !strings.Contains(all, want) {
			t.Errorf("the differences do not say %s:\n%s", want, all)
		}
	}
	for _, line := range v.Engine.Differences {
		if !strings.Contains(v.Text, line) {
			t.Errorf("agent status does not say %q:\n%s", line, v.Text)
		}
	}
	var web struct{ Status apply.Status }
	if _, err := r.httpSays("/v1/config/status", &web); err != nil || strings.Join(web.Status.Engine.Differences, "\n") != all {
		t.Errorf("HTTP says %q %v", web.Status.Engine.Differences, err)
	}
	if r.logged("level=WARN", "4096", "bseries_max_order") != 1 {
		t.Error("the log does not say it once")
	}

	// The same of an engine that comes later, and nothing of one that agrees.
	e.change(func() { e.schema = nil })
	e.restart()
	r.await("an engine without a schema", func(v view) bool {
		return v.InSync && len(v.Engine.Differences) == 0 && v.size() == tooMuch
	})
}
