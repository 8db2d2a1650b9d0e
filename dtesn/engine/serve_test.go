package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/dtesn"
)

// A served engine answers on a socket until the test ends, or stop.
type served struct {
	engine *Engine
	socket string
	client *http.Client
	stop   context.CancelFunc
	ended  chan error // gets what Serve returns
}

func serve(t *testing.T, options Options) *served {
	t.Helper()
	s := &served{engine: newEngine(t, options), socket: filepath.Join(t.TempDir(), "e.sock"), ended: make(chan error, 1)}
	listener, err := Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.socket)
	}}
	transport.MaxIdleConnsPerHost = 64
	s.client = &http.Client{Transport: transport}
	ctx, stop := context.WithCancel(t.Context())
	s.stop = stop
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ended <- s.engine.Serve(ctx, listener)
	}()
	t.Cleanup(func() {
		stop()
		<-done
		transport.CloseIdleConnections()
	})
	return s
}

func (s *served) process(body string) (ProcessData, error) {
	var answer struct{ Data ProcessData }
	response, err := s.client.Post("http://engine"+dtesn.PathProcess, "application/json", strings.NewReader(body))
	if err != nil {
		return answer.Data, err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return answer.Data, err
	}
	if response.StatusCode != 200 {
		return answer.Data, fmt.Errorf("%s: %s", response.Status, text)
	}
	return answer.Data, json.Unmarshal(text, &answer)
}

// eventually waits until the condition holds.
func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(10 * time.Second); !condition(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("not within 10 s")
		}
	}
}

func TestListenMakesAPrivateSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "e.sock")
	listener, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket has mode %v, %v", info.Mode(), err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
}

func TestListenReplacesADeadSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "e.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false) // as a kill does
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	listener, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
}

func TestListenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	live, file, link := filepath.Join(dir, "live"), filepath.Join(dir, "file"), filepath.Join(dir, "link")
	listener, err := Listen(live)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	if err := os.WriteFile(file, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for path, reason := range map[string]string{
		live: "another engine listens", file: "no socket", dir: "no socket", link: "no socket",
		filepath.Join(dir, "none", "e.sock"):                         "does not exist",
		filepath.Join(dir, strings.Repeat("a", dtesn.MaxSocketPath)): "bytes long",
		filepath.Join(file, "e.sock"):                                "not a directory",
	} {
		if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), reason) || !strings.Contains(err.Error(), path) {
			t.Errorf("listen on %s: %v, want %q", path, err, reason)
		}
	}
	if text, err := os.ReadFile(file); string(text) != "keep" {
		t.Errorf("the file is %q, %v", text, err)
	}
	conn, err := net.Dial("unix", live)
	if err != nil {
		t.Fatalf("the live socket was harmed: %v", err)
	}
	_ = conn.Close()
}

func TestServeLetsRequestsFinish(t *testing.T) {
	t.Parallel()
	s := serve(t, Options{})
	network := s.engine.current.Load().network
	var held []*workspace
	for range workers { // so that the request waits
		held = append(held, <-network.slots)
	}
	type result struct {
		data ProcessData
		err  error
	}
	answered := make(chan result, 1)
	go func() {
		data, err := s.process(processBody([]float64{0.5}, 3))
		answered <- result{data, err}
	}()
	eventually(t, func() bool { return network.inUse.Load() > 0 })
	s.stop()
	eventually(t, func() bool { // the listener is closed
		conn, err := net.Dial("unix", s.socket)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	select {
	case err := <-s.ended:
		t.Fatalf("Serve ended over a request in flight: %v", err)
	default:
	}
	for _, w := range held {
		network.slots <- w
	}
	if r := <-answered; r.err != nil || len(r.data.Predictions) != 3 {
		t.Errorf("the request in flight: %+v", r)
	}
	if err := <-s.ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeDoesNotWaitForIdleConnections(t *testing.T) {
	t.Parallel()
	s := serve(t, Options{})
	for range 3 { // held open and silent, as the agent's watch does
		conn, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
	}
	// Connections are accepted in order: behind this answer, so are those.
	if _, err := s.process(processBody([]float64{0.5}, 1)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s.stop()
	select {
	case err := <-s.ended:
		if err != nil {
			t.Errorf("Serve: %v", err)
		}
		t.Logf("ended in %v", time.Since(began))
	case <-time.After(time.Second):
		t.Error("Serve waits for idle connections")
	}
}

func TestServeSaysWhatBrokeTheListener(t *testing.T) {
	t.Parallel()
	listener, err := Listen(filepath.Join(t.TempDir(), "e.sock"))
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	if err := newEngine(t, Options{}).Serve(t.Context(), listener); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve on a closed listener: %v", err)
	}
}

// A body that does not come is given up, so that who stalls holds nothing; a
// client that only thinks, between requests, is left alone.
func TestServeGivesUpOnSlowBodies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		listener := &oneConn{conn: there, closed: make(chan struct{})}
		ctx, stop := context.WithCancel(t.Context())
		e, ended := newEngine(t, Options{}), make(chan error, 1)
		go func() { ended <- e.Serve(ctx, listener) }()
		client := bufio.NewReader(here)
		request := func(text string) *http.Response {
			t.Helper()
			if _, err := io.WriteString(here, text); err != nil {
				t.Fatal(err)
			}
			response, err := http.ReadResponse(client, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, response.Body); err != nil {
				t.Fatal(err)
			}
			return response
		}
		head := "POST " + dtesn.PathUpdate + " HTTP/1.1\r\nHost: engine\r\nContent-Length: "
		if r := request(head + "2\r\n\r\n{}"); r.StatusCode != 200 {
			t.Errorf("a whole body: %s", r.Status)
		}
		time.Sleep(time.Hour)
		began := time.Now()
		if r := request(head + "90\r\n\r\n{"); r.StatusCode != http.StatusRequestTimeout || time.Since(began) != transferTime {
			t.Errorf("a body that stalls: %s after %v", r.Status, time.Since(began))
		}
		stop()
		_ = here.Close()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// oneConn is a listener that accepts one connection.
type oneConn struct {
	conn   net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *oneConn) Accept() (conn net.Conn, err error) {
	if conn, l.conn = l.conn, nil; conn != nil {
		return conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// An engine that ends leaves the socket of the one that has taken its path.
func TestListenerRemovesOnlyItsOwnSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "e.sock")
	listen := func() net.Listener {
		t.Helper()
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	old := listen()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other := listen()
	_ = old.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("the new engine's socket is gone: %v", err)
	}
	_ = other.Close()
	_ = other.Close()
	if _, err := os.Lstat(path); err == nil {
		t.Error("a socket is left behind")
	}
}
