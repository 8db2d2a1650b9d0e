package hooks

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
)

// TestVerdicts holds what becomes of an event with each response.
func TestVerdicts(t *testing.T) {
	for code, want := range map[int]verdict{
		200: verdictDelivered, 204: verdictDelivered, 301: verdictDrop, 302: verdictDrop, 400: verdictDrop, 401: verdictDrop, 404: verdictDrop, 409: verdictVeto, 422: verdictVeto,
		410: verdictDisable, 408: verdictRetry, 429: verdictRetry, 500: verdictRetry, 503: verdictRetry,
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(code)
		}))
		h := &Hook{Name: "a", URL: server.URL, Timeout: time.Second}
		got, after, err := h.deliver(t.Context(), New(Options{}).client, "a/1", &apply.Event{Sequence: 1})
		if got != want || (err == nil) != (want == verdictDelivered) || (after == 7*time.Second) != (want == verdictRetry) {
			t.Errorf("%d: verdict %d, wait %s, %v", code, got, after, err)
		}
		server.Close()
		if got, _, err = h.deliver(t.Context(), New(Options{}).client, "", &apply.Event{}); got != verdictRetry || err == nil {
			t.Errorf("nobody answers: verdict %d, %v", got, err)
		}
	}
}

// TestCommands holds that a command gets the event, is bounded in time and output, and
// leaves no process behind.
func TestCommands(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pid")
	for script, want := range map[string]string{
		"grep -q '\"id\":\"a/7\"'":                "",
		"exit 3":                                  "exit status 3",
		"echo no disk >&2; exit 1":                "no disk",
		"yes | head -c 9999999":                   "",
		"sleep 600 & echo $! >" + pids + "; wait": "not done within",
	} {
		h := &Hook{Name: "a", Command: []string{"sh", "-c", script}, Timeout: time.Second}
		v, _, err := h.deliver(t.Context(), nil, "a/7", &apply.Event{Instance: "a", Sequence: 7})
		failed := verdictRetry
		if strings.Contains(script, "exit 1") {
			failed = verdictVeto
		}
		if want == "" && (v != verdictDelivered || err != nil) || want != "" && (v != failed || err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: verdict %d, %v", script, v, err)
		}
	}
	text, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(status), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("what the command began still runs: %s", status)
		}
	}
}

// fixed are events that do not change.
type fixed []apply.Event

func (f fixed) Last() (int64, <-chan struct{}) { return int64(len(f)), make(chan struct{}) }

func (f fixed) After(sequence int64, limit int) ([]apply.Event, error) {
	return f[sequence:min(int64(len(f)), sequence+int64(limit))], nil
}

// TestGivesUp holds that an event which nobody takes is tried ten times in three days,
// and then dropped, and that the next one has as many tries.
func TestGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := fixed{{Sequence: 1, Type: apply.EventApplied}, {Sequence: 2, Type: apply.EventApplied}}
		kept := ""
		s := New(Options{Events: events, Logger: slog.New(slog.DiscardHandler), Fact: func(string) []byte { return []byte(`{"a":{"sequence":0}}`) }, Keep: func(_ string, v []byte) { kept = string(v) }})
		s.Replace([]Hook{{Name: "a", Command: []string{"/nowhere"}, Timeout: time.Second}})
		go func() { _ = s.Run(t.Context()) }()
		time.Sleep(60 * time.Hour)
		synctest.Wait()
		if st := s.Status()[0]; st.Dropped != 0 || st.Lag != 2 || st.FailingAt == 0 || !strings.Contains(st.String(), "no such file") {
			t.Errorf("after 60 hours: %+v", st)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if st := s.Status()[0]; st.Dropped != 1 || st.Lag != 1 || kept != `{"a":{"sequence":1,"dropped":1}}` {
			t.Errorf("after 84 hours: %+v, kept %s", st, kept)
		}
	})
}
