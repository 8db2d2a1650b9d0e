package dtesn

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// watched runs Watch and returns what it calls changed with; the test ends it.
func watched(t *testing.T, client *Client) <-chan bool {
	t.Helper()
	return watchedEach(t, client, 5*time.Millisecond)
}

func watchedEach(t *testing.T, client *Client, interval time.Duration) <-chan bool {
	t.Helper()
	hints := make(chan bool, 100)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		done <- client.Watch(ctx, interval, func(up bool) { hints <- up })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch ended with %v", err)
		}
	})
	return hints
}

func wantHint(t *testing.T, hints <-chan bool, want bool) {
	t.Helper()
	select {
	case got := <-hints:
		if got != want {
			t.Fatalf("changed(%t), want %t", got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("no changed(%t)", want)
	}
}

// wantDown waits for changed(false), past what came before it: on a busy machine
// Watch may have held a connection at the second try, which is a hint too.
func wantDown(t *testing.T, hints <-chan bool) {
	t.Helper()
	for deadline := time.After(30 * time.Second); ; {
		select {
		case up := <-hints:
			if !up {
				return
			}
		case <-deadline:
			t.Fatal("no changed(false)")
		}
	}
}

// A doorman is a server that reads what comes until it ends, on as many
// connections at a time as it has hands, and answers nothing.
type doorman struct {
	net.Listener
	hands chan struct{}
	done  chan struct{}
	group sync.WaitGroup

	mu    sync.Mutex
	over  bool
	tired bool              // a hand that becomes free stays idle
	conns map[net.Conn]bool // those it reads
	taken int
}

func listen(t *testing.T, socket string, hands int) *doorman {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	d := &doorman{Listener: l, hands: make(chan struct{}, hands), done: make(chan struct{}), conns: map[net.Conn]bool{}}
	d.group.Go(d.serve)
	t.Cleanup(func() { d.stop(); close(d.done); d.group.Wait() })
	return d
}

func (d *doorman) serve() {
	for {
		select {
		case d.hands <- struct{}{}:
		case <-d.done:
			return
		}
		conn, err := d.Accept()
		if err != nil {
			return
		}
		d.mu.Lock()
		if d.over {
			_ = conn.Close()
		}
		d.conns[conn] = true
		d.taken++
		d.mu.Unlock()
		d.group.Go(func() {
			for b := make([]byte, 100); err == nil; {
				_, err = conn.Read(b)
			}
			_ = conn.Close()
			d.mu.Lock()
			defer d.mu.Unlock()
			if delete(d.conns, conn); !d.tired {
				<-d.hands
			}
		})
	}
}

// open is how many connections it reads, and taken how many it ever did.
func (d *doorman) open() (open, taken int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.conns), d.taken
}

// drop ends all connections.
func (d *doorman) drop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for conn := range d.conns {
		_ = conn.Close()
	}
}

// stop is the end of the server, and of its socket if that is still its own.
func (d *doorman) stop() {
	_ = d.Close()
	d.mu.Lock()
	d.over = true
	d.mu.Unlock()
	d.drop()
}

// untilHeld waits until Watch holds a connection: one and the same is open for
// longer than a visit takes.
func (d *doorman) untilHeld(t *testing.T) {
	t.Helper()
	was, since := 0, time.Now()
	eventually(t, "a connection is held", func() bool {
		open, taken := d.open()
		if open != 1 || taken != was {
			was, since = taken, time.Now()
		}
		return time.Since(since) > 100*time.Millisecond
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	again, deadline := time.NewTicker(5*time.Millisecond), time.After(30*time.Second)
	defer again.Stop()
	for !ok() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestWatchTellsDownAndUp(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "e.sock")
	hints := watched(t, New(Options{Rules: rules, Socket: socket}))
	for range 3 {
		wantDown(t, hints)
		server := listen(t, socket, 10)
		wantHint(t, hints, true)
		server.untilHeld(t)
		server.stop()
	}
	wantDown(t, hints)
	if len(hints) != 0 {
		t.Errorf("%d hints without a transition", len(hints))
	}
}

// A server closes what is idle, or is started anew behind a socket that its
// supervisor keeps: both look the same.
func TestWatchTellsWhenItsConnectionEnds(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "e.sock")
	server := listen(t, socket, 10)
	hints := watched(t, New(Options{Rules: rules, Socket: socket}))
	var at []time.Time
	for range 3 {
		server.untilHeld(t)
		for len(hints) > 0 {
			<-hints
		}
		server.drop()
		wantHint(t, hints, true)
		at = append(at, time.Now())
	}
	if gap := at[2].Sub(at[0]); gap < 2*hintGap-100*time.Millisecond {
		t.Errorf("three hints within %s, want at most one a second", gap)
	}
}

// A server ends, and the new one takes its time before it serves what queues on
// the socket that the supervisor kept.
func TestWatchTellsOfAServerThatIsNotReady(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "e.sock")
	server := listen(t, socket, 2)
	hints := watched(t, New(Options{Rules: rules, Socket: socket}))
	wantHint(t, hints, true)
	server.untilHeld(t)
	server.mu.Lock()
	server.tired = true // it takes the next one, and no more
	server.mu.Unlock()
	server.drop()
	wantHint(t, hints, true)
}

// A server that came and went between two looks, and that a request met, is
// told to be down once more.
func TestWatchTellsThatItIsDownAfterARequestMetIt(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "e.sock")
	client := New(Options{Rules: rules, Socket: socket, ReadOnly: true})
	hints := watchedEach(t, client, 500*time.Millisecond)
	wantHint(t, hints, false)
	m := (&misbehaver{}).start(t)
	if err := os.Symlink(m.socket, socket); err != nil {
		t.Fatal(err)
	}
	_, err := client.Read(t.Context())
	_ = os.Remove(socket)
	if err != nil {
		t.Fatal(err)
	}
	wantDown(t, hints)
}

// A new server binds the path while the old one still serves what it has open.
func TestWatchTellsWhenThePathIsTakenOver(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "e.sock")
	listen(t, socket, 10)
	hints := watched(t, New(Options{Rules: rules, Socket: socket}))
	wantHint(t, hints, true)
	for range 2 {
		server := listen(t, socket+".new", 10)
		if err := os.Rename(socket+".new", socket); err != nil {
			t.Fatal(err)
		}
		wantHint(t, hints, true)
		server.untilHeld(t)
	}
}

// The directory of the socket is a link that is swapped, or is renamed away,
// while the old server still serves what it has open.
func TestWatchTellsWhenTheDirectoryIsSwapped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	current := filepath.Join(dir, "current")
	point := func(to string) {
		t.Helper()
		if err := os.Symlink(to, current+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(current+".new", current); err != nil {
			t.Fatal(err)
		}
	}
	var hints <-chan bool
	for i, name := range []string{"blue", "green", "red"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		server := listen(t, filepath.Join(dir, name, "e.sock"), 10)
		if point(name); i == 0 {
			hints = watched(t, New(Options{Rules: rules, Socket: filepath.Join(current, "e.sock")}))
		}
		wantHint(t, hints, true)
		server.untilHeld(t)
	}
}

// A server with one hand is never held for long, serves others meanwhile, and
// what becomes of it is told all the same.
func TestWatchStarvesNoServer(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "e.sock")
	server := listen(t, socket, 1)
	client := New(Options{Rules: rules, Socket: socket})
	hints := watched(t, client)
	wantHint(t, hints, true)
	// The first connection, the one beside it, and a visit or more.
	eventually(t, "it is visited", func() bool { _, taken := server.open(); return taken >= 4 })
	eventually(t, "another client is served", func() bool { return client.servesBeside(t.Context()) })
	if len(hints) != 0 {
		t.Errorf("%d hints although nothing happened", len(hints))
	}

	successor := listen(t, socket+".new", 1) // the old one lingers
	if err := os.Rename(socket+".new", socket); err != nil {
		t.Fatal(err)
	}
	wantHint(t, hints, true)
	successor.Listener.(*net.UnixListener).SetUnlinkOnClose(false)
	successor.stop() // and leaves its socket behind
	wantHint(t, hints, false)
	_ = os.Remove(socket)
	listen(t, socket, 1)
	wantHint(t, hints, true)
}

// A server has two hands. Somebody else holds one of them for good: what Watch
// holds is the other, and a request finds none.
func TestWatchGivesWayToARequest(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "e.sock")
	server := listen(t, socket, 2)
	client := New(Options{Rules: rules, Socket: socket, Timeout: 100 * time.Millisecond})
	watched(t, client)
	server.untilHeld(t)
	other, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	eventually(t, "both hands are taken", func() bool { open, _ := server.open(); return open == 2 })
	if _, err := client.Read(t.Context()); err == nil {
		t.Fatal("the doorman answered")
	}
	eventually(t, "another is served", func() bool { return client.servesBeside(t.Context()) })
}

func TestHoldingIsTriedLessAndLess(t *testing.T) {
	t.Parallel()
	var h holding
	if !h.due() {
		t.Error("not tried at first")
	}
	last := time.Duration(0)
	for range 20 {
		if h.tried(false) || h.due() || h.wait < last || h.wait > holdAtMost {
			t.Fatalf("after %s: %+v", last, h)
		}
		last = h.wait
	}
	if last != holdAtMost || !h.tried(true) || h.tried(false) || h.wait != holdAgain {
		t.Errorf("after %s at last: %+v", last, h)
	}
}
