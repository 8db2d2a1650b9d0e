package hooks

import (
	"bufio"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
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
		"sleep 600 & exit 0":                      "",
		"sleep 600 & echo $! >" + pids + "; wait": "not done within",
	} {
		h := &Hook{Name: "a", Command: []string{"sh", "-c", script}, Timeout: time.Minute}
		if strings.HasPrefix(want, "not done within") {
			h.Timeout = time.Second
		}
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

func (fixed) Busy() bool { return false }

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

// TestOddResponses holds that a receiver cannot keep an attempt beyond its time, whatever
// it sends.
func TestOddResponses(t *testing.T) {
	for response, want := range map[string]verdict{
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n": verdictRetry,
		"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n":                                         verdictDelivered,
		"HTTP/1.1 409 Conflict\r\nContent-Length: 99\r\n\r\nno":                                 verdictVeto,
		"": verdictRetry,
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		end := make(chan struct{})
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = http.ReadRequest(bufio.NewReader(c))
				_, _ = c.Write([]byte(response))
				<-end
				_ = c.Close()
			}
		}()
		h := &Hook{Name: "a", URL: "http://" + l.Addr().String(), Timeout: 200 * time.Millisecond}
		begun := time.Now()
		got, _, err := h.deliver(t.Context(), New(Options{}).client, "a/1", &apply.Event{})
		if got != want || time.Since(begun) > 5*time.Second {
			t.Errorf("%q: verdict %d after %s, %v", response, got, time.Since(begun), err)
		}
		close(end)
		_ = l.Close()
	}
	at := time.Now().Add(time.Minute)
	for value, want := range map[string]time.Duration{"7": 7 * time.Second, "": 0, "soon": 0, "-1": 0, at.UTC().Format(http.TimeFormat): time.Minute, "999999999": 24 * time.Hour} {
		if got := retryAfter(value); got > want || got < want-2*time.Second {
			t.Errorf("Retry-After: %s is %s, want %s", value, got, want)
		}
	}
}

// TestReplace holds that a file which says the same again disturbs nobody.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	runs := filepath.Join(dir, "runs")
	s := New(Options{Events: fixed{{Sequence: 1, Type: apply.EventApplied}}, Logger: slog.New(slog.DiscardHandler), Fact: func(string) []byte { return []byte(`{"a":{"sequence":0}}`) }, Keep: func(string, []byte) {}})
	list := []Hook{{Name: "a", Command: []string{"sh", "-c", "echo begin >>" + runs + "; sleep 0.3; echo end >>" + runs}, Timeout: time.Minute}}
	s.Replace(list)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	for s.Status()[0].Delivered == 0 {
		s.Replace(slices.Clone(list))
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	<-ended
	if text, err := os.ReadFile(runs); err != nil || string(text) != "begin\nend\n" {
		t.Errorf("it was run as %q, %v", text, err)
	}
}
