package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"dtesn-agent/dtesn"
	"dtesn-agent/schema"
)

// An impostor is a DTESN server that takes any parameter, and whose purpose is
// to misbehave: as its manners say, for what is over their limit, and well with
// the rest. It answers what docs/server.md lists.
type impostor struct {
	t      *testing.T
	socket string
	group  sync.WaitGroup
	over   chan struct{} // closed at the end of the test

	mu      sync.Mutex
	servers []*http.Server    // the newest last; earlier ones may linger
	starts  schema.Parameters // what a new process runs
	runs    schema.Parameters
	label   string
	batches int
	body    string // of the newest batch
	asked   int    // readings, for those who answer in turn
	// Answers in place of the good ones; nil for good.
	batch                        func(w http.ResponseWriter, q *http.Request, p schema.Parameters)
	current, environment, health http.HandlerFunc
	schema                       http.HandlerFunc    // nil: it has no GET schema
	sticks                       bool                // the label does
	workers                      []schema.Parameters // several configurations, in turn
}

// tooMuch is the size from which on a batch meets the manners.
const tooMuch = 3000

func newImpostor(t *testing.T, socket string) *impostor {
	t.Helper()
	return newImpostorWith(t, socket, production.Defaults())
}

// newImpostorWith starts one that has other parameters.
func newImpostorWith(t *testing.T, socket string, starts schema.Parameters) *impostor {
	t.Helper()
	e := &impostor{t: t, socket: socket, over: make(chan struct{}), starts: starts}
	t.Cleanup(func() {
		close(e.over)
		e.change(func() {
			for _, s := range e.servers {
				_ = s.Close()
			}
		})
		e.group.Wait()
	})
	e.start()
	return e
}

// start is a new process with its defaults: another socket at the same path.
func (e *impostor) start() {
	_ = os.Remove(e.socket)
	l, err := net.Listen("unix", e.socket)
	if err != nil {
		e.t.Error(err)
		return
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // the next one may have taken the path
	server := &http.Server{Handler: http.HandlerFunc(e.answer)}
	e.change(func() { e.servers, e.runs, e.label = append(e.servers, server), e.starts, "development" })
	e.group.Go(func() { _ = server.Serve(l) })
}

// change changes the manners, or looks, while the server runs.
func (e *impostor) change(do func()) { e.mu.Lock(); defer e.mu.Unlock(); do() }

func (e *impostor) running() (p schema.Parameters) { e.change(func() { p = e.runs }); return p }

func (e *impostor) sent() (n int) { e.change(func() { n = e.batches }); return n }

// good makes the server well again.
func (e *impostor) good() {
	e.change(func() {
		e.batch, e.current, e.environment, e.health, e.sticks, e.workers = nil, nil, nil, nil, false, nil
	})
}

// restart ends the server; a supervisor starts it again a moment later.
func (e *impostor) restart() {
	var old *http.Server
	e.change(func() { old = e.servers[len(e.servers)-1] })
	e.group.Go(func() {
		_ = old.Close()
		select {
		case <-e.over:
		case <-time.After(300 * time.Millisecond):
			e.start()
		}
	})
}

func (e *impostor) answer(w http.ResponseWriter, q *http.Request) {
	var custom http.HandlerFunc
	e.change(func() {
		custom = map[string]http.HandlerFunc{
			dtesn.PathCurrent: e.current, dtesn.PathEnvironment: e.environment, dtesn.PathHealth: e.health, dtesn.PathSchema: e.schema,
		}[q.URL.Path]
	})
	switch {
	case custom != nil:
		custom(w, q)
	case q.URL.Path == dtesn.PathBatchUpdate:
		e.takeBatch(w, q)
	case q.URL.Path == dtesn.PathEnvironment:
		var r dtesn.EnvironmentRequest
		_ = json.NewDecoder(q.Body).Decode(&r)
		e.change(func() {
			if !e.sticks {
				e.label = r.Environment
			}
		})
		says(w, 200, `{"success": true}`)
	case q.URL.Path == dtesn.PathHealth:
		says(w, 200, `{"success": true, "health": {"healthy": true, "checks": {}}}`)
	case q.URL.Path == dtesn.PathCurrent:
		var text []byte
		e.change(func() {
			if e.asked++; len(e.workers) > 0 {
				e.runs = e.workers[e.asked%len(e.workers)]
			}
			text, _ = json.Marshal(map[string]any{"success": true, "configuration": e.runs.Map(), "environment": e.label})
		})
		says(w, 200, string(text))
	default:
		says(w, 404, "no such page")
	}
}

func (e *impostor) takeBatch(w http.ResponseWriter, q *http.Request) {
	var r dtesn.BatchUpdate
	body, err := io.ReadAll(q.Body)
	if err := errors.Join(err, json.Unmarshal(body, &r)); err != nil {
		e.t.Error(err)
	}
	values := map[string]schema.Value{}
	for _, u := range r.Updates {
		values[u.Parameter] = u.Value
	}
	p := schema.NewParameters(values)
	var custom func(http.ResponseWriter, *http.Request, schema.Parameters)
	e.change(func() { e.batches, e.body, custom = e.batches+1, string(body), e.batch })
	if custom != nil && sizeOf(p) >= tooMuch {
		custom(w, q, p)
		return
	}
	e.take(p)
	says(w, 200, `{"success": true, "message": "done"}`)
}

// take runs p; what it does not set stays as it is.
func (e *impostor) take(p schema.Parameters) {
	e.change(func() {
		values := e.runs.Map()
		maps.Copy(values, p.Map())
		e.runs = schema.NewParameters(values)
	})
}

func says(w http.ResponseWriter, status int, body string) {
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}

// The manners of a batch.

func (e *impostor) answers(status int, body string) func(http.ResponseWriter, *http.Request, schema.Parameters) {
	return func(w http.ResponseWriter, _ *http.Request, _ schema.Parameters) { says(w, status, body) }
}

// partly takes all but one.
func (e *impostor) partly(w http.ResponseWriter, _ *http.Request, p schema.Parameters) {
	e.change(func() { e.runs = p.With(sizeName, e.runs.Get(sizeName)) })
	says(w, 200, `{"success": true}`)
}

func (e *impostor) hangs(_ http.ResponseWriter, q *http.Request, _ schema.Parameters) { e.hang(nil, q) }

func (e *impostor) hang(_ http.ResponseWriter, q *http.Request) {
	select {
	case <-q.Context().Done():
	case <-e.over:
	}
	panic(http.ErrAbortHandler)
}

func (e *impostor) takesAndHangs(w http.ResponseWriter, q *http.Request, p schema.Parameters) {
	e.take(p)
	e.hang(w, q)
}

func (e *impostor) drops(http.ResponseWriter, *http.Request, schema.Parameters) {
	panic(http.ErrAbortHandler)
}

func (e *impostor) takesAndDrops(_ http.ResponseWriter, _ *http.Request, p schema.Parameters) {
	e.take(p)
	panic(http.ErrAbortHandler)
}

func (e *impostor) dies(http.ResponseWriter, *http.Request, schema.Parameters) {
	e.restart()
	panic(http.ErrAbortHandler)
}

// trickle sends a byte at a time, each soon enough to look alive.
func (e *impostor) trickle(w http.ResponseWriter, q *http.Request) {
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		select {
		case <-q.Context().Done():
			return
		case <-e.over:
			return
		case <-again.C:
			_, _ = w.Write([]byte(" "))
			_ = http.NewResponseController(w).Flush()
		}
	}
}

func (e *impostor) trickles(w http.ResponseWriter, q *http.Request, _ schema.Parameters) {
	e.trickle(w, q)
}

// mumble answers what is no HTTP.
func (e *impostor) mumble(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		e.t.Error(err)
		return
	}
	_, _ = conn.Write([]byte("220 mail.example.org ESMTP\r\n"))
	_ = conn.Close()
}

// huge is 10 MB that would be a good answer.
var huge = strings.Repeat(" ", 10<<20) + `{"success": true}`

// atTimes answers 503 to two of three batches.
func (e *impostor) atTimes(w http.ResponseWriter, _ *http.Request, p schema.Parameters) {
	var n int
	e.change(func() { n = e.batches })
	if n%3 != 0 {
		says(w, 503, "busy")
		return
	}
	e.take(p)
	says(w, 200, `{"success": true}`)
}

func answering(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { says(w, status, body) }
}

// httpSays asks the agent's HTTP endpoint.
func (r *rig) httpSays(path string, answer any) (code int, err error) {
	q, err := http.NewRequestWithContext(context.Background(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%s%s", r.port, path), http.NoBody)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if answer != nil {
		err = json.NewDecoder(resp.Body).Decode(answer)
	}
	return resp.StatusCode, err
}
