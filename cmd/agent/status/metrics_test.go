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
	"dtesn-agent/gitstore/record"
)

// TestMetricsLint holds that names, types and help are as Prometheus wants them.
func TestMetricsLint(t *testing.T) {
	rules := extended(t)
	m := NewMetrics("test", rules)
	b := &broken{status: running(rules, nil)}
	b.status.Running.SnapshotID = "snapshot_1_0001"
	m.show(b)
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
	m.Restore("transaction", 1700000000)
	s := New(Options{Source: b, Rules: production, Metrics: m, Logger: slog.New(slog.DiscardHandler)})
	for _, unrecorded := range []bool{false, true} {
		b.status.Unrecorded = unrecorded
		answer := httptest.NewRecorder()
		s.HealthHandler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
		for _, line := range []string{
			fmt.Sprint("dtesn_agent_last_apply_successful ", number(!unrecorded)), `dtesn_agent_held{cause="operator"} 2`, `dtesn_agent_held{cause="engine"} 1`,
			`dtesn_agent_last_success_timestamp_seconds{loop="transaction"} 1.7e+09`, "process_resident_memory_bytes", "go_gc_duration_seconds",
		} {
			if !strings.Contains(answer.Body.String(), "\n"+line) {
				t.Errorf("no %s", line)
			}
		}
	}
}
