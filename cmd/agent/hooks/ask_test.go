package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// asked is a change that hooks are asked about.
var asked = &record.Record{Instance: "a", ID: "snapshot_7", Commit: "0123456789", Environment: "production"}

// setOf returns a Set with hooks.
func setOf(list ...Hook) *Set {
	s := New(Options{Events: fixed{}, Logger: slog.New(slog.DiscardHandler), Fact: func(string) []byte { return nil }, Keep: func(string, []byte) {}})
	s.Replace(list)
	return s
}

// TestAsk holds what a change needs: the agreement of all required hooks, which a veto of
// one ends, and for which each is waited as long as its timeout says.
func TestAsk(t *testing.T) {
	command := func(name, script string, timeout time.Duration) Hook {
		return Hook{Name: name, Command: []string{"sh", "-c", script}, Timeout: timeout, Required: true}
	}
	yes := command("yes", "exit 0", time.Minute)
	no := command("no", "echo not on; echo Fridays; exit 1", time.Minute)
	hangs := command("hangs", "sleep 600", time.Minute)
	other := command("other", "exit 1", time.Minute)
	other.Required = false
	for name, c := range map[string]struct {
		hooks []Hook
		veto  bool
		want  string // of the error
	}{
		"none":                           {nil, false, ""},
		"none is required":               {[]Hook{other}, false, ""},
		"one agrees":                     {[]Hook{yes, other}, false, ""},
		"one vetoes":                     {[]Hook{yes, no}, true, `hook no rejected it: exit status 1 ("not on Fridays")`},
		"a veto ends the others":         {[]Hook{hangs, no}, true, "hook no rejected it"},
		"a veto counts more than a wait": {[]Hook{command("broken", "exit 2", 200*time.Millisecond), command("late", "sleep 0.5; exit 1", time.Minute)}, true, "hook late rejected it"},
		"one fails":                      {[]Hook{yes, command("broken", "echo busy; exit 2", 200*time.Millisecond)}, false, `hook broken did not answer within 200ms: exit status 2 ("busy")`},
		"one hangs":                      {[]Hook{yes, command("slow", "sleep 600", 200*time.Millisecond)}, false, "hook slow did not answer within 200ms: not done within"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := setOf(c.hooks...)
			begun := time.Now()
			err := s.Ask(t.Context(), asked)
			var veto *apply.Veto
			if (err == nil) != (c.want == "") || errors.As(err, &veto) != c.veto || err != nil && !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if took := time.Since(begun); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
			for _, st := range s.Status() {
				if st.Asked != "" {
					t.Errorf("it is over, and says %q", st)
				}
			}
		})
	}
}

// TestAskIsTriedAgain holds that a receiver that fails is asked again under the same id,
// with the same event, and that an asking ends with its context.
func TestAskIsTriedAgain(t *testing.T) {
	var mu sync.Mutex
	var ids, bodies []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		mu.Lock()
		defer mu.Unlock()
		ids, bodies = append(ids, q.Header.Get("Webhook-Id")), append(bodies, string(body))
		if len(ids) == 1 {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer server.Close()
	s := setOf(Hook{Name: "a", URL: server.URL, Timeout: time.Minute, Required: true}, Hook{Name: "b", URL: server.URL})
	if names := s.Required(); len(names) != 1 || names[0] != "a" {
		t.Errorf("required are %q", names)
	}
	if err := s.Ask(t.Context(), asked); err != nil {
		t.Error(err)
	}
	var e cloudEvent
	if len(ids) != 2 || ids[0] != "a/0123456789" || ids[1] != ids[0] || bodies[0] != bodies[1] {
		t.Errorf("asked as %q: %q", ids, bodies)
	} else if err := json.Unmarshal([]byte(bodies[0]), &e); err != nil || e.ID != ids[0] || e.Type != "dev.dtesn.proposed" || e.Subject != asked.ID {
		t.Errorf("%+v, %v", e, err)
	}
	if text := s.Status()[0].String(); text != "a: 0 delivered, 0 wait, required" {
		t.Error(text)
	}
	server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if err := s.Ask(ctx, asked); err == nil || time.Since(begun) > 10*time.Second {
		t.Errorf("it ended after %s: %v", time.Since(begun), err)
	}
}

// TestRequiredHooksAndEvents holds that a required hook gets only the events it names.
func TestRequiredHooksAndEvents(t *testing.T) {
	applied := &apply.Event{Type: apply.EventApplied}
	for _, h := range []struct {
		Hook
		want bool
	}{{Hook{}, true}, {Hook{Required: true}, false}, {Hook{Required: true, On: []apply.EventType{apply.EventApplied}}, true}, {Hook{On: []apply.EventType{apply.EventHeld}}, false}} {
		if h.wants(applied) != h.want {
			t.Errorf("%+v gets it: %v", h.Hook, !h.want)
		}
	}
}
