// Package bounded makes HTTP servers whose clients cannot take what the rest of the
// process needs. Each listener of the agent and of the reference engine is a Server.
package bounded

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// connections is how many connections a Server has at a time: 64, or a sixteenth of the
// descriptors of the process if that is less.
var connections = sync.OnceValue(func() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 64
	}
	return int(max(4, min(64, limit.Cur/16)))
})

const (
	// firstRequest is how long a new connection is safe from giving way to another.
	firstRequest = 50 * time.Millisecond
	// sendBuffer bounds what the kernel keeps of an answer that a TCP client does not
	// read; by itself it keeps up to 4 MiB for each.
	sendBuffer = 64 << 10
)

// A Server is an http.Server with a bounded number of connections. One more takes the
// place of that which waited longest without a request.
type Server struct {
	http.Server
	// Busy is how long a connection is safe from giving way while it has a request;
	// 0 is until the request is answered.
	Busy time.Duration

	mu     sync.Mutex
	places map[net.Conn]place
	parked map[net.Conn]bool
	ending bool
	ended  chan struct{} // closed by End
}

// A place is one of the connections.
type place struct {
	state    http.ConnState
	since    time.Time
	answered bool // the request
}

func (p place) isActive() bool { return p.state == http.StateActive && !p.answered }

// New makes a Server. Its errors go to logger, with the name of the listener.
func New(logger *slog.Logger, name string, handler http.Handler) *Server {
	s := &Server{places: map[net.Conn]place{}, parked: map[net.Conn]bool{}, ended: make(chan struct{})}
	s.Server = http.Server{
		Handler: s.noting(handler), ConnState: s.note, ErrorLog: ErrorLog(logger.With("listener", name), "HTTP server"),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, client{}, &client{s, conn})
		},
	}
	return s
}

// A client is in the context of its requests.
type client struct {
	server *Server
	conn   net.Conn
}

// Park is called with the context of a request that will last, such as a stream of events,
// and is the last on its connection. That does not give way any more, and takes no place
// from others; a Server has as many parked ones as others. Park reports whether there was
// room. The channel is closed when the Server ends.
func Park(ctx context.Context) (ended <-chan struct{}, ok bool) {
	c, _ := ctx.Value(client{}).(*client)
	if c == nil {
		return nil, true // not one of a Server's, as in a test
	}
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, has := s.places[c.conn]; !has || len(s.parked) >= connections() || s.ending {
		return nil, false
	}
	delete(s.places, c.conn)
	s.parked[c.conn] = true
	return s.ended, true
}

// noting makes a connection give way once its request is answered, though its body may
// still be to come.
func (s *Server) noting(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		handler.ServeHTTP(w, q)
		if c, ok := q.Context().Value(client{}).(*client); ok {
			s.mu.Lock()
			defer s.mu.Unlock()
			if p, has := s.places[c.conn]; has {
				s.places[c.conn] = place{p.state, time.Now(), true}
			}
		}
	})
}

// Serve accepts connections until l is closed. A listener with TLS is l, for the places are
// those of the connections that the http.Server knows.
func (s *Server) Serve(l net.Listener) error { return s.Server.Serve(&listener{l, s}) }

// ServeUntil serves until ctx ends, and then calls End. An error is that of l.
func (s *Server) ServeUntil(ctx context.Context, l net.Listener, grace time.Duration) error {
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		_ = s.Close()
		return err
	case <-ctx.Done():
	}
	s.End(grace)
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// End closes the listeners and the connections without a request, and gives the
// requests in flight the grace to end.
func (s *Server) End(grace time.Duration) {
	s.mu.Lock()
	if !s.ending {
		close(s.ended)
	}
	s.ending = true
	for conn, p := range s.places {
		if p.state == http.StateNew { // Shutdown would wait 5 s for it
			_ = raw(conn).Close()
		}
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if s.Shutdown(ctx) != nil {
		_ = s.Close()
	}
}

// raw returns the connection below TLS, which is conn itself without. To close it takes no
// time: tls.Conn.Close waits up to 5 s for a client that reads nothing.
func raw(conn net.Conn) net.Conn {
	if t, ok := conn.(*tls.Conn); ok {
		return t.NetConn()
	}
	return conn
}

type listener struct {
	net.Listener
	server *Server
}

// Accept returns the next connection once there is a place for it.
func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := raw(conn).(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(sendBuffer)
	}
	for !l.server.admit(conn) { // which depends on the time, besides what becomes of others
		time.Sleep(firstRequest / 25)
	}
	return conn, nil
}

// admit reports whether conn has a place; if not, none gives way yet.
func (s *Server) admit(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.places) >= connections() && !s.ending {
		victim := s.victim(time.Now())
		if victim == nil {
			return false
		}
		if tcp, ok := raw(victim).(*net.TCPConn); ok && s.places[victim].state == http.StateActive {
			_ = tcp.SetLinger(0) // nor does the kernel keep what was not read
		}
		delete(s.places, victim)
		_ = raw(victim).Close()
		s.ErrorLog.Printf("more than %d connections: closed the one that waited longest", connections())
	}
	s.places[conn] = place{state: http.StateNew, since: time.Now()}
	return true
}

// victim returns the connection that gives way, nil if each is safe. One without a
// request comes before one with a request, and the older first.
func (s *Server) victim(now time.Time) (victim net.Conn) {
	for conn, p := range s.places {
		age, active := now.Sub(p.since), p.isActive()
		if active && (s.Busy == 0 || age < s.Busy) || (p.answered || p.state == http.StateNew) && age < firstRequest {
			continue
		}
		worst := s.places[victim]
		worstActive := worst.isActive()
		if victim == nil || worstActive && !active || worstActive == active && p.since.Before(worst.since) {
			victim = conn
		}
	}
	return victim
}

// note follows a connection: it becomes active once the headers of a request were read.
func (s *Server) note(conn net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, has := s.places[conn]
	switch {
	case state == http.StateClosed || state == http.StateHijacked:
		delete(s.places, conn)
		delete(s.parked, conn)
	case state == http.StateNew && s.ending:
		_ = raw(conn).Close()
	case has:
		s.places[conn] = place{state: state, since: time.Now()}
	}
}

// quiet is how long an ErrorLog is silent after a line: strangers can cause lines.
const quiet = 10 * time.Second

// ErrorLog returns a log whose lines go to logger, one each 10 s at most.
func ErrorLog(logger *slog.Logger, message string) *log.Logger {
	return log.New(&lines{log: logger, message: message}, "", 0)
}

type lines struct {
	log     *slog.Logger
	message string

	mu     sync.Mutex
	logged time.Time
	count  int // since then
}

// Write logs the line p, or counts it.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	if now := time.Now(); now.Sub(l.logged) >= quiet {
		l.log.Warn(l.message, "error", string(bytes.TrimSpace(p)), "times", l.count)
		l.logged, l.count = now, 0
	}
	return len(p), nil
}
