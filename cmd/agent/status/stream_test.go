package status

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/apply"
)

// pipes is a listener of connections that stay in a synctest bubble.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if conn, ok := <-p; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

type noEvents struct{}

func (noEvents) After(int64, int) ([]apply.Event, error) { return nil, nil }
func (noEvents) Last() (int64, <-chan struct{})          { return 0, nil }

// Problem is that of a log that a disk does not take.
func (noEvents) Problem() error { return errors.New("no space left on device") }

// TestStreamEndsWithItsToken holds that an idle stream ends within 15 s of its token, and
// that its body and TLS end as they should.
func TestStreamEndsWithItsToken(t *testing.T) {
	helper := httptest.NewTLSServer(nil)
	defer helper.Close()
	path := filepath.Join(t.TempDir(), "tokens")
	write := func(token string) {
		if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const token = "0123456789abcdef"
	write(token)
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		access, err := OpenAccess(AccessFiles{Token: path}, log)
		if err != nil {
			t.Fatal(err)
		}
		b := &broken{status: &apply.Status{}}
		s := New(Options{Source: b, History: b, Events: noEvents{}, Rules: production, Metrics: NewMetrics("test", production), Logger: log, Access: access})
		if text := s.Full().EventsError; text != "no space left on device" {
			t.Errorf("the status says %q of the log of events", text)
		}
		listener := make(pipes, 1)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = s.Serve(ctx, tls.NewListener(listener, &tls.Config{Certificates: helper.TLS.Certificates}), s.Handler())
		})
		ours, theirs := net.Pipe()
		listener <- theirs
		conn := tls.Client(ours, &tls.Config{InsecureSkipVerify: true})
		q, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://localhost"+base+"events", http.NoBody)
		q.Header.Set("Authorization", "Bearer "+token)
		if err := q.Write(conn); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(conn)
		resp, err := http.ReadResponse(in, q)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
		time.AfterFunc(14*time.Second, func() { write(token + "2") })
		begun := time.Now()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || time.Since(begun) > 15*time.Second {
			t.Errorf("the body ends after %s: %v", time.Since(begun), err)
		}
		if _, err := in.ReadByte(); err != io.EOF {
			t.Errorf("the connection ends: %v", err)
		}
		_ = conn.Close()
		cancel()
		close(listener)
		wg.Wait()
	})
}
