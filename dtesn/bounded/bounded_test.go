package bounded

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestVictim holds which connection gives way: of those without a request the oldest,
// then of those with one the oldest, if it takes too long. An answered one is none.
func TestVictim(t *testing.T) {
	const fresh, idle, active = http.StateNew, http.StateIdle, http.StateActive
	now := time.Now()
	for _, c := range []struct {
		busy   time.Duration
		places []place // the age is a time before now
		want   int     // -1: none
	}{
		{0, nil, -1},
		{time.Second, []place{{state: fresh, since: now.Add(-time.Minute)}, {state: idle, since: now.Add(-time.Hour)}}, 1},
		{time.Second, []place{{state: fresh, since: now.Add(-time.Hour)}, {state: idle, since: now.Add(-time.Minute)}}, 0},
		{time.Second, []place{{state: fresh, since: now.Add(-time.Millisecond)}, {state: idle, since: now}}, 1},
		{time.Second, []place{{state: fresh, since: now.Add(-time.Millisecond)}}, -1},
		{time.Second, []place{{state: active, since: now.Add(-time.Hour)}, {state: idle, since: now}}, 1},
		{time.Second, []place{{state: active, since: now.Add(-2 * time.Second)}, {state: active, since: now.Add(-3 * time.Second)}}, 1},
		{time.Second, []place{{state: active, since: now.Add(-time.Second / 2)}}, -1},
		{0, []place{{state: active, since: now.Add(-time.Hour)}}, -1},
		{0, []place{{state: active, since: now.Add(-time.Hour)}, {state: active, since: now.Add(-time.Second), answered: true}}, 1},
		{0, []place{{state: active, since: now.Add(-time.Millisecond), answered: true}}, -1},
	} {
		s := New(slog.New(slog.DiscardHandler), "test", nil)
		s.Busy = c.busy
		var conns []net.Conn
		for _, p := range c.places {
			conn, _ := net.Pipe()
			conns = append(conns, conn)
			s.places[conn] = p
		}
		got := s.victim(now)
		if c.want < 0 && got != nil || c.want >= 0 && got != conns[c.want] {
			t.Errorf("%v, busy %v: another one than %d gives way", c.places, c.busy, c.want)
		}
	}
}

// TestErrorLog holds that lines come at most every 10 s, and that none is forgotten.
func TestErrorLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b strings.Builder
		log := ErrorLog(slog.New(slog.NewTextHandler(&b, nil)), "HTTP server")
		for i := range 25 {
			log.Print("line ", i)
			time.Sleep(time.Second)
		}
		for i, want := range []string{`error="line 0" times=1`, `error="line 10" times=10`, `error="line 20" times=10`} {
			if lines := strings.Split(b.String(), "\n"); len(lines) != 4 || !strings.HasSuffix(lines[i], want) {
				t.Fatal(fmt.Sprintf("line %d is not %s:\n", i, want) + b.String())
			}
		}
	})
}

// TestVictimTLS holds that a TLS client that reads nothing gives way at once: its goodbye
// would wait for it.
func TestVictimTLS(t *testing.T) {
	helper := httptest.NewTLSServer(nil)
	defer helper.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true}); err == nil {
			defer conn.Close()
			<-t.Context().Done()
		}
	}()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Server(accepted, &tls.Config{Certificates: helper.TLS.Certificates})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{64 << 10, 1} { // until not a byte more is taken
		for err = nil; err == nil; {
			_ = accepted.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			_, err = accepted.Write(make([]byte, size))
		}
	}
	_ = accepted.SetWriteDeadline(time.Time{})
	s := New(slog.New(slog.DiscardHandler), "test", nil)
	s.Busy = time.Minute
	s.places[conn] = place{state: http.StateActive, since: time.Now().Add(-time.Hour)}
	for len(s.places) < connections() {
		other, _ := net.Pipe()
		s.places[other] = place{state: http.StateActive, since: time.Now()}
	}
	begun := time.Now()
	next, _ := net.Pipe()
	if _, has := s.places[conn]; !s.admit(next) || !has || time.Since(begun) > time.Second {
		t.Errorf("admitted after %s", time.Since(begun))
	}
	if _, err := accepted.Write(nil); err == nil {
		t.Error("the connection is still open")
	}
}
