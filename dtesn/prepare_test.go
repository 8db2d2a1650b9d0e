package dtesn

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dtesn-agent/dtesn/api"
)

// A prepared connection is used by the next Send; one that lay too long, that
// could not be made, or that nobody used does no harm.
func TestPrepare(t *testing.T) {
	m := (&misbehaver{}).start(t)
	c := m.client(time.Second)
	batch := api.Batch{Parameters: running, SnapshotID: "snapshot_1_0001"}
	c.Prepare()
	c.Prepare() // twice is once
	if a := c.Send(t.Context(), batch); a.Verdict != api.VerdictAccepted {
		t.Fatalf("after Prepare: %s, %v", a.Verdict, a.Err)
	}
	c.Prepare()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if a := c.Send(t.Context(), batch); a.Verdict != api.VerdictAccepted {
		t.Fatalf("after Close: %s, %v", a.Verdict, a.Err)
	}
	if n := m.batches.Load(); n != 2 {
		t.Errorf("%d batches reached the engine, want 2", n)
	}

	gone := New(Options{Socket: filepath.Join(t.TempDir(), "none"), Rules: rules, Timeout: time.Second})
	gone.Prepare()
	if a := gone.Send(t.Context(), batch); a.Verdict != api.VerdictNotSent {
		t.Errorf("without an engine: %s", a.Verdict)
	}
}

func TestCloseLeavesNothingBehind(t *testing.T) { // not parallel: the stacks are its own
	arrived := make(chan struct{}, 1)
	m := (&misbehaver{onLabel: func(conn net.Conn, r *http.Request) bool {
		arrived <- struct{}{}
		return hangs(conn, r)
	}}).start(t)
	c := m.client(time.Hour)
	c.Prepare()
	<-arrived
	_ = c.Close()
	stacks := make([]byte, 1<<20)
	if stacks = stacks[:runtime.Stack(stacks, true)]; bytes.Contains(stacks, []byte("dtesn.(*Client).Prepare")) {
		t.Errorf("%s", stacks)
	}
}

func TestAPreparedConnectionThatTheEngineLeftIsNotUsed(t *testing.T) {
	t.Parallel()
	left := make(chan struct{})
	var once sync.Once
	m := &misbehaver{onLabel: func(conn net.Conn, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		up := reply(conn, 200, `{"success": true}`)
		once.Do(func() {
			_ = conn.Close()
			up = false
			close(left)
		})
		return up
	}}
	m.start(t)
	c := m.client(0)
	c.Prepare()
	<-left
	if a := c.Send(t.Context(), batch); a.Verdict != api.VerdictAccepted || m.batches.Load() != 1 {
		t.Errorf("%s, %v; %d batches, want one accepted", a.Verdict, a.Err, m.batches.Load())
	}
}

// A label that hangs keeps nobody: neither the Send that would use the
// connection, nor the next Prepare, nor Close.
func TestAHungPreparedConnectionIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	var hang atomic.Int64
	arrived := make(chan struct{}, 10)
	m := (&misbehaver{onLabel: func(conn net.Conn, r *http.Request) bool {
		arrived <- struct{}{}
		if hang.Add(-1) >= 0 {
			return hangs(conn, r)
		}
		return replies(200, `{"success": true}`)(conn, r)
	}}).start(t)
	const timeout = time.Hour // whoever waits for it does not end
	c := m.client(timeout)

	hang.Store(1)
	c.Prepare()
	<-arrived
	if a := c.Send(t.Context(), batch); a.Verdict != api.VerdictAccepted {
		t.Errorf("beside one that hangs: %s, %v", a.Verdict, a.Err)
	}

	hang.Store(1)
	c.Prepare()
	<-arrived
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if a := c.Send(ctx, batch); a.Verdict != api.VerdictNotSent || !errors.Is(a.Err, context.Canceled) {
		t.Errorf("given up: %s, %v", a.Verdict, a.Err)
	}
	c.Prepare()
	if a := c.Send(t.Context(), batch); a.Verdict != api.VerdictAccepted {
		t.Errorf("after one that was given up: %s, %v", a.Verdict, a.Err)
	}

	hang.Store(1)
	c.Prepare()
	for len(arrived) > 0 {
		<-arrived
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if got := m.batches.Load(); got != 2 {
		t.Errorf("%d batches, want 2", got)
	}
}

// A prepared connection that nobody uses is closed before long: the server may
// have no other for anybody.
func TestAPreparedConnectionDoesNotStay(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "e.sock")
	m := &misbehaver{}
	m.start(t)
	ended := make(chan struct{})
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	go func() {
		defer close(ended)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		m.serve(conn) // until the client closes it
	}()
	c := New(Options{Socket: socket, Rules: rules, Timeout: time.Hour})
	c.Prepare()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Error("it stays open")
		_ = c.Close()
	}
	if m.labelled.Load() != 1 {
		t.Errorf("%d labels", m.labelled.Load())
	}
}
