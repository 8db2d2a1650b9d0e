package dtesn

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dtesn-agent/dtesn/api"
)

// abruptly answers well and closes the connection after a while, without having
// said so.
func (m *misbehaver) abruptly(after time.Duration) func(net.Conn, *http.Request) bool {
	return func(conn net.Conn, r *http.Request) bool {
		_ = m.behave(conn, r)
		if after > 0 {
			timer := time.NewTimer(after)
			defer timer.Stop()
			<-timer.C
		}
		return false
	}
}

// TestServersThatCloseBehindEachAnswer: HTTP/1.1 lets a server close what is
// idle at any time. Whenever it does so, what runs is read, the label is set,
// and a batch arrives.
func TestServersThatCloseBehindEachAnswer(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]time.Duration{"at once": 0, "a little later": 200 * time.Microsecond, "later": 5 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := &misbehaver{}
			m.onBatch, m.onLabel, m.onCurrent = m.abruptly(after), m.abruptly(after), m.abruptly(after)
			m.start(t)
			c := m.client(0)
			reading, err := c.Read(t.Context())
			if err != nil || reading.Relabelled != "development" || reading.Environment != "production" {
				t.Fatalf("read %+v, %v", reading, err)
			}
			for n := range int64(10) {
				if n%2 == 0 {
					c.Prepare()
				}
				if a := c.Send(t.Context(), batch); a.Verdict != api.VerdictAccepted || m.batches.Load() != n+1 {
					t.Fatalf("%s, %v; batch %d, %d arrived", a.Verdict, a.Err, n+1, m.batches.Load())
				}
			}
		})
	}
}

// A batch that may have arrived is never sent twice, however its connection
// ended; the next one goes over a connection of its own.
func TestABatchIsNeverRepeated(t *testing.T) {
	t.Parallel()
	var batches atomic.Int64
	m := (&misbehaver{onBatch: func(conn net.Conn, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		if batches.Add(1) == 1 {
			return false
		}
		return reply(conn, 200, `{"success": true}`)
	}}).start(t)
	c := m.client(0)
	if a := c.Send(t.Context(), batch); a.Verdict != api.VerdictUnknown || !a.Broken || batches.Load() != 1 {
		t.Errorf("%s, %v; %d batches", a.Verdict, a.Err, batches.Load())
	}
	before := m.accepted.Load()
	if a := c.Send(t.Context(), batch); a.Verdict != api.VerdictAccepted || batches.Load() != 2 || m.accepted.Load() != before+2 {
		t.Errorf("%s, %v; %d batches, %d connections more", a.Verdict, a.Err, batches.Load(), m.accepted.Load()-before)
	}
}

// A batch that cannot reach the engine over a connection goes over another, and
// reaches it once.
func TestABatchThatWasNotSentGoesAgain(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*session, *net.UnixConn){
		"a broken pipe":   func(s *session, _ *net.UnixConn) { s.visit() },
		"half closed":     func(_ *session, engine *net.UnixConn) { _ = engine.CloseWrite() },
		"closed":          func(_ *session, engine *net.UnixConn) { _ = engine.Close() },
		"an answer ahead": func(_ *session, engine *net.UnixConn) { reply(engine, 408, "{}") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			labels := make(chan *net.UnixConn, 10)
			m := &misbehaver{}
			m.onLabel = func(conn net.Conn, r *http.Request) bool {
				_ = replies(200, `{"success": true}`)(conn, r)
				labels <- conn.(*net.UnixConn)
				<-m.done // neither reads nor closes
				return false
			}
			m.start(t)
			c := m.client(0)
			s, err := c.open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { s.close() }()
			end(s, <-labels)
			status, _, err := s.do(t.Context(), http.MethodPost, PathBatchUpdate, []byte("{}"))
			if err != nil || status != http.StatusOK || m.batches.Load() != 1 || m.labelled.Load() != 1 {
				t.Errorf("%d, %v; %d batches, %d labels", status, err, m.batches.Load(), m.labelled.Load())
			}
		})
	}
}

// A request of an operation that began with one engine is not put to another.
func TestAnOperationIsWithOneEngine(t *testing.T) {
	t.Parallel()
	m := (&misbehaver{onLabel: writes("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")}).start(t)
	c := m.client(0)
	s, err := c.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.close() }()
	other := (&misbehaver{}).start(t)
	if err := os.Rename(other.socket, m.socket); err != nil {
		t.Fatal(err)
	}
	_, _, err = s.do(t.Context(), http.MethodPost, PathBatchUpdate, []byte("{}"))
	if answer := judge(0, nil, err); answer.Verdict != api.VerdictNotSent || other.batches.Load() != 0 {
		t.Errorf("%s, %v; %d batches", answer.Verdict, err, other.batches.Load())
	}
}

// TestBytesBeyondAnAnswer: what follows an answer is not the answer to the next request.
func TestBytesBeyondAnAnswer(t *testing.T) {
	t.Parallel()
	const refusal = "HTTP/1.1 200 X\r\nContent-Length: 18\r\n\r\n{\"success\": false}"
	m := &misbehaver{}
	m.onLabel = func(conn net.Conn, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		_, err := io.WriteString(conn, "HTTP/1.1 200 X\r\nContent-Length: 17\r\n\r\n{\"success\": true}"+refusal)
		return err == nil
	}
	m.start(t)
	c := m.client(0)
	for n := range int64(6) {
		if n%2 == 0 {
			c.Prepare()
		}
		if a := c.Send(t.Context(), batch); a.Verdict != api.VerdictAccepted || m.batches.Load() != n+1 {
			t.Fatalf("%s %v %v; batch %d, %d arrived", a.Verdict, a.Errors, a.Err, n+1, m.batches.Load())
		}
	}
}

// TestAskedToWait: 429, or 503 with Retry-After, on any path is no verdict, and nothing is
// asked before that is over.
func TestAskedToWait(t *testing.T) {
	t.Parallel()
	limited := func(status int, header string) func(net.Conn, *http.Request) bool {
		return func(conn net.Conn, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			_, err := fmt.Fprintf(conn, "HTTP/1.1 %d X\r\n%sContent-Length: 22\r\n\r\n{\"detail\": \"too many\"}", status, header)
			return err == nil
		}
	}
	date := "Retry-After: " + time.Now().Add(time.Hour).UTC().Format(http.TimeFormat) + "\r\n"
	for name, row := range map[string]struct {
		status  int
		header  string
		wait    time.Duration
		verdict api.Verdict // of a batch that is answered so
	}{
		"429":               {429, "Retry-After: 6\r\n", 6 * time.Second, api.VerdictNotSent},
		"429, huge":         {429, "Retry-After: 99999999999999999999\r\n", time.Minute, api.VerdictNotSent},
		"429, a date":       {429, date, time.Minute, api.VerdictNotSent},
		"429, without":      {429, "", time.Second, api.VerdictNotSent},
		"429, nonsense":     {429, "Retry-After: -7\r\n", time.Second, api.VerdictNotSent},
		"503":               {503, "Retry-After: 9999999999\r\n", time.Minute, api.VerdictUnknown},
		"503 and no header": {503, "", 0, api.VerdictUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := func(err error) {
				t.Helper()
				var later *api.LaterError
				if !errors.As(err, &later) {
					if row.wait > 0 {
						t.Errorf("%v does not ask to wait", err)
					}
					return
				}
				if left := time.Until(later.Until); left > row.wait || left < row.wait-5*time.Second || !strings.Contains(later.Reason, "too many") {
					t.Errorf("%s: wait %s, want %s", later.Reason, left, row.wait)
				}
			}
			m := &misbehaver{}
			m.onBatch = limited(row.status, row.header)
			m.start(t)
			c := m.client(0)
			a := c.Send(t.Context(), batch)
			if asked(a.Err); a.Verdict != row.verdict || a.Broken {
				t.Errorf("a batch: %s, %v", a.Verdict, a.Err)
			}
			_, err := c.Read(t.Context())
			if (err != nil) != (row.wait > 0) {
				t.Errorf("read at once: %v", err)
			}

			m = &misbehaver{}
			m.onLabel, m.onCurrent = limited(row.status, row.header), limited(row.status, row.header)
			m.start(t)
			_, err = m.client(0).Read(t.Context())
			asked(err)
			a = m.client(0).Send(t.Context(), batch)
			if asked(a.Err); a.Verdict != api.VerdictNotSent || m.batches.Load() > 0 {
				t.Errorf("a label: %s, %v", a.Verdict, a.Err)
			}
		})
	}
}

// TestCooldownOfOnePath: a limit of what can be done without stops nothing else.
func TestCooldownOfOnePath(t *testing.T) {
	t.Parallel()
	m := &misbehaver{}
	m.onSchema = func(conn net.Conn, r *http.Request) bool {
		_, err := io.WriteString(conn, "HTTP/1.1 429 X\r\nRetry-After: 50\r\nContent-Length: 0\r\n\r\n")
		return err == nil
	}
	m.start(t)
	c := m.client(0)
	var later *api.LaterError
	for range 2 {
		if _, err := c.Bounds(t.Context()); !errors.As(err, &later) {
			t.Errorf("bounds: %v", err)
		}
	}
	if _, err := c.Read(t.Context()); err != nil {
		t.Errorf("read: %v", err)
	}
	if a := c.Send(t.Context(), batch); a.Verdict != api.VerdictAccepted {
		t.Errorf("send: %s, %v", a.Verdict, a.Err)
	}
}
