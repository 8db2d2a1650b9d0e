package status

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/hooks"
	"dtesn-agent/gitstore/record"
)

// TestMetricsLint holds that names, types and help are as Prometheus wants them.
func TestMetricsLint(t *testing.T) {
	rules := extended(t)
	m := NewMetrics("test", rules)
	b := &broken{status: running(rules, nil)}
	b.status.Running.SnapshotID = "snapshot_1_0001"
	m.show(b, func() []hooks.Status { return []hooks.Status{{Name: "chat"}} })
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// TestMetricsOfAFault: what cannot be recorded is no success, and a restart does not make
// a loop look as if it had never worked.
func TestMetricsOfAFault(t *testing.T) {
	b := &broken{status: &apply.Status{Attempts: []apply.Attempt{{Outcome: record.Applied}}, Held: &record.Hold{
		By: "operator", Paused: true, Entries: []record.Entry{{By: "engine"}, {By: "operator"}},
	}}}
	m := NewMetrics("test", production)
	m.Restore(1700000000)
	list := []hooks.Status{{Name: "off", Off: true}, {Name: "dead", FailingAt: 1, Lag: 3}, {Name: "good", Dropped: 2}}
	s := New(Options{Source: b, Hooks: func() []hooks.Status { return list }, Rules: production, Metrics: m, Logger: slog.New(slog.DiscardHandler)})
	for _, unrecorded := range []bool{false, true} {
		b.status.Unrecorded = unrecorded
		answer := httptest.NewRecorder()
		s.HealthHandler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
		for _, line := range []string{
			fmt.Sprint("dtesn_agent_last_apply_successful ", number(!unrecorded)), `dtesn_agent_held{cause="operator"} 2`, `dtesn_agent_held{cause="engine"} 1`,
			`dtesn_agent_last_success_timestamp_seconds{loop="transaction"} 1.7e+09`, `dtesn_agent_last_success_timestamp_seconds{loop="source"} 1.7e+09`,
			"dtesn_agent_paused 1", "dtesn_agent_state_writable 0", `dtesn_agent_hook_failing{hook="off"} 1`, `dtesn_agent_hook_failing{hook="dead"} 1`,
			`dtesn_agent_hook_failing{hook="good"} 0`, `dtesn_agent_hook_waiting_events{hook="dead"} 3`, `dtesn_agent_hook_dropped_events_total{hook="good"} 2`, "process_resident_memory_bytes", "go_gc_duration_seconds",
		} {
			if !strings.Contains(answer.Body.String(), "\n"+line) {
				t.Errorf("no %s", line)
			}
		}
	}
}

// TestLastApplied holds that a restart does not forget how the last attempt went.
func TestLastApplied(t *testing.T) {
	attempts := func(outcomes ...record.Outcome) (list []apply.Attempt) {
		for _, o := range outcomes {
			list = append(list, apply.Attempt{Outcome: o})
		}
		return list
	}
	of := func(kind record.Kind) *record.Record { return &record.Record{Kind: kind} }
	for _, c := range []struct {
		applied  *record.Record
		attempts []apply.Attempt
		want     bool
	}{
		{nil, nil, false},
		{of(record.KindChange), nil, true},
		{of(record.KindRollback), nil, true},
		{of(record.KindRevert), nil, false}, // of what was rejected
		{of(record.KindChange), attempts(record.Pending), true},
		{of(record.KindChange), attempts(record.Rejected), false},
		{of(record.KindRevert), attempts(record.Unchanged), true},
		{of(record.KindChange), attempts(record.Held, record.Applied), false},
	} {
		if got := lastApplied(&apply.Status{Applied: c.applied, Attempts: c.attempts}); got != c.want {
			t.Errorf("%+v, %+v: %v", c.applied, c.attempts, got)
		}
	}
}
