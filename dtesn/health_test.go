package dtesn

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dtesn-agent/dtesn/api"
)

// serve answers every request on a Unix socket with status and body.
func serve(t *testing.T, status int, body string) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "e.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method != http.MethodGet || q.URL.Path != PathHealth {
			t.Errorf("asked %s %s", q.Method, q.URL.Path)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	_ = server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return socket
}

func TestHealth(t *testing.T) {
	cases := map[string]struct {
		status  int
		body    string
		healthy bool
		reason  string
	}{
		"well":                     {200, `{"success": true, "health": {"healthy": true, "checks": {"a": true}}, "status": {}}`, true, ""},
		"well, without checks":     {200, `{"success": true, "health": {"healthy": true}}`, true, ""},
		"a check that is optional": {200, `{"success": true, "health": {"healthy": true, "checks": {"a": false, "b": "n/a"}}}`, true, ""},
		"not well":                 {200, `{"success": true, "health": {"healthy": false, "checks": {"b": false, "a": false, "c": true}}}`, false, "it says that it is not healthy: a, b"},
		"not well, 503":            {503, `{"success": true, "health": {"healthy": false, "checks": {"memory": false}}}`, false, "it says that it is not healthy: memory"},
		"well, 503":                {503, `{"success": true, "health": {"healthy": true}}`, false, "503"},
		"no success":               {200, `{"success": false, "error": "boom", "health": {"healthy": true}}`, false, "boom"},
		"no success is no failure": {200, `{"health": {"healthy": true, "checks": ["a"]}}`, true, ""},
		"a failure, 200":           {200, `{"success": false, "error": "boom"}`, false, "boom"},
		"FastAPI's failure":        {500, `{"detail": "boom"}`, false, "500 Internal Server Error: boom"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			client := New(Options{Socket: serve(t, c.status, c.body), Rules: rules})
			h, err := client.Health(t.Context())
			if err != nil || h.Healthy != c.healthy || !strings.Contains(h.Reason, c.reason) || h.Healthy != (h.Reason == "") {
				t.Errorf("%+v, %v; want healthy %v because of %q", h, err, c.healthy, c.reason)
			}
			if int(h.Peer.PID) != os.Getpid() || h.Peer.Socket == "" {
				t.Errorf("the peer is %+v", h.Peer)
			}
		})
	}
	// An engine that is not asked so, or does not say how it is.
	for name, c := range map[string]struct {
		status       int
		body, reason string
	}{
		"no such question":    {404, `{"detail": "Not Found"}`, "answered 404 Not Found"},
		"another shape":       {200, `{"status": "healthy"}`, `answered "{\"status\": \"healthy\"}", want {"success": true, "health": {"healthy": true or false, `},
		"garbage":             {200, "\x00\x1b[31m", `answered "\x00\x1b[31m", want {`},
		"nothing":             {204, "", "answered nothing, want {"},
		"healthy is no bool":  {200, `{"success": true, "health": {"healthy": "yes"}}`, "want {"},
		"healthy is null":     {200, `{"success": true, "health": {"healthy": null}}`, "want {"},
		"healthy twice":       {200, `{"success": true, "health": {"healthy": false, "healthy": true}}`, "want {"},
		"Healthy":             {200, `{"success": true, "health": {"Healthy": true}}`, "want {"},
		"health is no object": {200, `{"success": true, "health": true}`, "want {"},
	} {
		t.Run(name, func(t *testing.T) {
			client := New(Options{Socket: serve(t, c.status, c.body), Rules: rules})
			h, err := client.Health(t.Context())
			var foreign *api.ForeignError
			if !errors.As(err, &foreign) || !strings.Contains(foreign.Reason, c.reason) || h.Healthy || int(h.Peer.PID) != os.Getpid() {
				t.Errorf("%+v, %v; want a ForeignError of this process because of %q", h, err, c.reason)
			}
		})
	}
}

// TestUID: nothing is asked of a socket of another user, and nothing sent.
func TestUID(t *testing.T) {
	socket := serve(t, 500, "") // and fails the test where it is asked
	other := uint32(os.Geteuid()) + 1
	client := New(Options{Socket: socket, Rules: rules, UID: &other})
	want := fmt.Sprintf("opened by uid %d, and --engine-uid is %d", os.Geteuid(), other)
	_, readErr := client.Read(t.Context())
	_, healthErr := client.Health(t.Context())
	answer := client.Send(t.Context(), batch)
	if answer.Verdict != api.VerdictForeign {
		t.Errorf("sent: %s", answer.Verdict)
	}
	for what, err := range map[string]error{"read": readErr, "health": healthErr, "send": answer.Err} {
		var foreign *api.ForeignError
		if !errors.As(err, &foreign) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	own := uint32(os.Geteuid())
	if h, err := New(Options{Socket: socket, Rules: rules, UID: &own}).Health(t.Context()); err != nil || h.Healthy {
		t.Errorf("with our own uid: %+v, %v", h, err)
	}
}
