package dtesn

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A misbehaver is a DTESN server written by hand, with the manners of the
// Python one, that does wrong where a test says so.
type misbehaver struct {
	socket string
	// onBatch, onLabel, onCurrent and onSchema answer in place of the good
	// manners. What they return false for ends the connection.
	onBatch, onLabel, onCurrent, onSchema func(conn net.Conn, r *http.Request) bool

	label    atomic.Pointer[string]
	batches  atomic.Int64
	labelled atomic.Int64
	accepted atomic.Int64
	body     atomic.Pointer[[]byte] // of the last batch
	done     chan struct{}          // closed at the end of the test
}

func (m *misbehaver) start(t *testing.T) *misbehaver {
	t.Helper()
	m.socket = filepath.Join(t.TempDir(), "e.sock")
	development := "development"
	m.label.Store(&development)
	m.done = make(chan struct{})
	listener, err := net.Listen("unix", m.socket)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			m.accepted.Add(1)
			group.Go(func() { m.serve(conn) })
		}
	})
	t.Cleanup(func() {
		close(m.done)
		_ = listener.Close()
		group.Wait()
	})
	return m
}

func (m *misbehaver) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-m.done:
			_ = conn.SetDeadline(time.Unix(1, 0))
		case <-stop:
		}
	}()
	reader := bufio.NewReaderSize(conn, 16) // leaves bodies in the socket: closing over them is a reset
	for {
		r, err := http.ReadRequest(reader)
		if err != nil || !m.answer(conn, r) {
			return
		}
	}
}

func (m *misbehaver) answer(conn net.Conn, r *http.Request) bool {
	custom := m.onCurrent
	switch r.URL.Path {
	case PathBatchUpdate:
		m.batches.Add(1)
		custom = m.onBatch
	case PathEnvironment:
		m.labelled.Add(1)
		custom = m.onLabel
	case PathSchema:
		custom = m.onSchema
	}
	if custom != nil {
		return custom(conn, r)
	}
	return m.behave(conn, r)
}

// behave answers with the good manners.
func (m *misbehaver) behave(conn net.Conn, r *http.Request) bool {
	body, _ := io.ReadAll(r.Body)
	switch r.URL.Path {
	case PathBatchUpdate:
		m.body.Store(&body)
		return reply(conn, 200, `{"success": true, "message": "done"}`)
	case PathEnvironment:
		var request EnvironmentRequest
		_ = json.Unmarshal(body, &request)
		m.label.Store(&request.Environment)
		return reply(conn, 200, `{"success": true, "message": "done"}`)
	}
	if r.URL.Path == PathSchema {
		return reply(conn, 404, `{"detail": "Not Found"}`)
	}
	return reply(conn, 200, currentAnswer(*m.label.Load(), nil))
}

// currentAnswer is GET current as the Python server says it, with changes.
func currentAnswer(label string, change map[string]any) string {
	configuration := map[string]any{}
	for name, v := range running.Map() {
		configuration[name] = v
	}
	configuration["enable_docs"] = true
	configuration["allowed_origins"] = []string{"*"}
	for name, value := range change {
		if value == "gone" {
			delete(configuration, name)
		} else {
			configuration[name] = value
		}
	}
	text, _ := json.Marshal(map[string]any{
		"success": true, "configuration": configuration, "environment": label,
		"timestamp": map[string]any{"created": 1, "updated": nil},
	})
	return string(text)
}

func reply(conn net.Conn, status int, body string) bool {
	_, err := fmt.Fprintf(conn, "HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
	return err == nil
}

func replies(status int, body string) func(net.Conn, *http.Request) bool {
	return func(conn net.Conn, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		return reply(conn, status, body)
	}
}

// writes sends raw bytes and ends the connection.
func writes(raw string) func(net.Conn, *http.Request) bool {
	return func(conn net.Conn, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(conn, raw)
		return false
	}
}

// hangs answers nothing until the client leaves or the test ends.
func hangs(conn net.Conn, r *http.Request) bool {
	_, _ = io.Copy(io.Discard, r.Body)
	_, _ = conn.Read(make([]byte, 1))
	return false
}

func (m *misbehaver) client(timeout time.Duration) *Client {
	return New(Options{Socket: m.socket, Rules: rules, Timeout: timeout})
}

func slowly(conn net.Conn, r *http.Request) bool {
	_, _ = io.Copy(io.Discard, r.Body)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for _, b := range []byte("HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"success\":true}") {
		if _, err := conn.Write([]byte{b}); err != nil {
			return false
		}
		<-tick.C
	}
	return false
}
