package dtesn

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// watched runs Watch and returns what it calls changed with; the test ends it.
func watched(t *testing.T, socket string) <-chan bool {
	t.Helper()
	hints := make(chan bool, 100)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		done <- New(Options{Socket: socket}).Watch(ctx, 5*time.Millisecond, func(up bool) { hints <- up })
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
	case <-time.After(10 * time.Second):
		t.Fatalf("no changed(%t)", want)
	}
}

func listen(t *testing.T, socket string) net.Listener {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener
}

func TestWatchTellsDownAndUp(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "e.sock")
	hints := watched(t, socket)
	for range 3 {
		wantHint(t, hints, false)
		listener := listen(t, socket)
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		wantHint(t, hints, true)
		_ = listener.Close()
		_ = conn.Close()
	}
	wantHint(t, hints, false)
	if len(hints) != 0 {
		t.Errorf("%d hints without a transition", len(hints))
	}
}

func TestWatchSurvivesIdleCloses(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "e.sock")
	listener := listen(t, socket)
	hints := watched(t, socket)
	var at []time.Time
	for range 3 {
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		wantHint(t, hints, true)
		at = append(at, time.Now())
	}
	if gap := at[2].Sub(at[0]); gap < 2*hintGap-100*time.Millisecond {
		t.Errorf("three hints within %s, want at most one a second", gap)
	}
}

// A new server binds the path while the old one still serves what it has open.
func TestWatchTellsWhenThePathIsTakenOver(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "e.sock")
	old := listen(t, socket)
	hints := watched(t, socket)
	for range 3 {
		_ = old.(*net.UnixListener).SetDeadline(time.Now().Add(10 * time.Second))
		conn, err := old.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		wantHint(t, hints, true)
		old = listen(t, socket+".new")
		if err := os.Rename(socket+".new", socket); err != nil {
			t.Fatal(err)
		}
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
		server := listen(t, filepath.Join(dir, name, "e.sock")).(*net.UnixListener)
		_ = server.SetDeadline(time.Now().Add(10 * time.Second))
		if point(name); i == 0 {
			hints = watched(t, filepath.Join(current, "e.sock"))
		}
		conn, err := server.Accept()
		if err != nil {
			t.Fatalf("%s is not noticed: %v", name, err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		wantHint(t, hints, true)
	}
}
