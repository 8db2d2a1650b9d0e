package status

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// broken is a source and a history that fail on purpose: the source panics
// while status is nil, the history answers err.
type broken struct {
	status *apply.Status
	err    error
}

func (b *broken) Status() *apply.Status {
	if b.status == nil {
		panic("no status\nto show")
	}
	return b.status
}

func (b *broken) Latest() *apply.Update { return &apply.Update{Status: b.Status()} }

func (b *broken) List(context.Context, string, int) ([]record.Row, error) { return nil, b.err }

func (b *broken) Lookup(context.Context, string) (record.Row, error) {
	return record.Row{}, b.err
}

// serveBroken serves b on a real port and returns a way to ask it.
func serveBroken(t *testing.T, b *broken, log *slog.Logger) func(method, path, body string) (*http.Response, string) {
	t.Helper()
	return serve(t, b, production, log)
}

func serve(t *testing.T, b *broken, rules *schema.Rules, log *slog.Logger) func(method, path, body string) (*http.Response, string) {
	t.Helper()
	s := New(Options{Source: b, History: b, Rules: rules, Metrics: NewMetrics("test", rules), Loops: func() map[string]time.Time { return nil }, Logger: log})
	server := httptest.NewServer(s.Handler())
	t.Cleanup(server.Close)
	return func(method, path, body string) (*http.Response, string) {
		t.Helper()
		q, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatalf("%s %s: the connection was dropped: %v", method, path, err)
		}
		defer resp.Body.Close()
		var text bytes.Buffer
		if _, err := text.ReadFrom(resp.Body); err != nil {
			t.Fatal(err)
		}
		return resp, text.String()
	}
}

func TestAPanicIsAnsweredAndLogged(t *testing.T) {
	var log bytes.Buffer
	ask := serveBroken(t, &broken{}, slog.New(slog.NewTextHandler(&log, nil)))
	resp, text := ask("GET", "/v1/config/status", "")
	if resp.StatusCode != 500 || !strings.Contains(text, "fault of the agent") || strings.Contains(text, "no status") {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), "no status") || !strings.Contains(log.String(), "faults_test.go") {
		t.Errorf("log: %s", log.String())
	}
}

// A record that is not there is the asker's mistake, one that cannot be read
// is not.
func TestHistoryFaults(t *testing.T) {
	b := &broken{status: &apply.Status{MaxSnapshots: 50}}
	ask := serveBroken(t, b, slog.New(slog.DiscardHandler))
	for path, missing := range map[string]int{
		"/v1/config/snapshots/x": 404, "/v1/config/diff/x": 404, "/v1/config/snapshots?before=x": 400,
	} {
		b.err = fmt.Errorf("no record is called x: %w", fs.ErrNotExist)
		if resp, text := ask("GET", path, ""); resp.StatusCode != missing || !strings.Contains(text, "no record") {
			t.Errorf("%s without the record: %d %s, want %d", path, resp.StatusCode, text, missing)
		}
		b.err = errors.New("the object is torn")
		if resp, text := ask("GET", path, ""); resp.StatusCode != 500 || !strings.Contains(text, "torn") {
			t.Errorf("%s with a fault: %d %s, want 500", path, resp.StatusCode, text)
		}
	}
}

func TestBeforeAnythingRan(t *testing.T) {
	ask := serveBroken(t, &broken{status: &apply.Status{State: apply.StateStarting, Reason: "waiting for the engine", MaxSnapshots: 50}}, slog.New(slog.DiscardHandler))
	for path, want := range map[string]int{
		"/": 200, "/v1/config/status": 200, "/v1/config/snapshots": 200, "/v1/config/schema": 200, "/metrics": 200, "/livez": 200,
		"/v1/config/current": 503, "/v1/config/diff/x": 503, "/v1/config/health": 503, "/readyz": 503, "/v1/config": 404,
	} {
		get, text := ask("GET", path, "")
		head, _ := ask("HEAD", path, "")
		if get.StatusCode != want || head.StatusCode != want || text == "" {
			t.Errorf("%s: GET %d, HEAD %d, want %d: %s", path, get.StatusCode, head.StatusCode, want, text)
		}
		if get.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s may be cached", path)
		}
	}
	for _, body := range []string{`{"parameter": "bseries_max_order", "value": 4}}`, `{"parameter": "bseries_max_order", "value": 4} ]`} {
		if resp, text := ask("POST", "/v1/config/validate", body); resp.StatusCode != 400 {
			t.Errorf("%s: %d %s", body, resp.StatusCode, text)
		}
	}
}

// What others wrote must not steer the operator's terminal.
func TestTextIsPlain(t *testing.T) {
	s := &apply.Status{State: apply.StateDegraded, Reason: "engine said \x1b[2J\u202eevil\u2028\r\nstate      in_sync"}
	page := Text(s, time.Now())
	if strings.ContainsAny(page, "\x1b\u202e\u2028\r") || strings.Contains(page, "\nstate      in_sync") {
		t.Errorf("page: %q", page)
	}
	if !strings.HasPrefix(page, "state      degraded\n") {
		t.Errorf("the state does not come first: %q", page)
	}
}

// TestTextOfAHold: each entry shows what it keeps away from what is applied, and
// who holds it if that is not who holds the whole.
func TestTextOfAHold(t *testing.T) {
	defaults := production.Defaults()
	names := defaults.Names()
	whole := record.Entry{Values: defaults.With(names[0], schema.Int(7)).With("gone", schema.Text("int8")).Map()}
	whole.By, whole.Reason, whole.Since = "operator", "slow", 1000
	whole.Requester = &record.Requester{UID: 1000, User: "ada"}
	other := record.Entry{Values: map[string]schema.Value{"gone": {}}, By: "engine", Reason: "no\nmemory", Since: 2000}
	s := &apply.Status{
		Current: &defaults, Applied: &record.Record{Config: defaults.With("extra", schema.Int(1))},
		Held: &record.Hold{By: "operator", Reason: "slow", Since: 1000, Requester: &record.Requester{UID: 1000, User: "ada"}, Entries: []record.Entry{whole, other}},
	}
	page := Text(s, record.FromUnix(1060))
	want := `
held       by operator ada (uid 1000) since 1970-01-01T00:16:40Z (60 s ago): slow
           not applied: ` + names[0] + ` 7, gone int8, by operator ada (uid 1000) since 1970-01-01T00:16:40Z (60 s ago): slow
           not applied: gone unset, by engine since 1970-01-01T00:33:20Z (0 s ago): no memory
           ends with: agent resume [NAME], or once other values are applied
`
	if !strings.Contains(page, want) {
		t.Errorf("no %s in\n%s", want, page)
	}
	for _, name := range append(names, "extra") {
		if !strings.Contains(page, "\n           "+name+" ") {
			t.Errorf("no %s in\n%s", name, page)
		}
	}
	s.Held.Paused, s.Held.Entries = true, nil
	if page := Text(s, record.FromUnix(1060)); !strings.Contains(page, "\npaused     by operator ada (uid 1000) since 1970-01-01T00:16:40Z (60 s ago): slow\n           ends with: agent resume\n") {
		t.Error(page)
	}
}
