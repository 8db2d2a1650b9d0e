package cli

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/schema"
)

// TestWatchdogCeases: the service manager hears nothing while a loop hangs, and
// hears again once it turns.
func TestWatchdogCeases(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", "")

	ctx, cancel := context.WithCancel(t.Context())
	rules := schema.Default().For("production")
	s := &settings{
		environment: "production", rules: rules, config: dir, state: filepath.Join(dir, "state"), embedded: true, instance: "i",
		listen: "127.0.0.1:0", resync: time.Minute, settle: time.Millisecond, engineTimeout: time.Second, maxSnapshots: 50,
		drift: string(apply.DriftCorrect), driftInterval: time.Minute,
	}
	a, err := assemble(ctx, s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	if got := os.Getenv("NOTIFY_SOCKET") + os.Getenv("WATCHDOG_USEC"); got != "" {
		t.Errorf("what is started from here would speak for the agent: %q", got)
	}
	var hangs atomic.Bool
	a.web = status.New(status.Options{
		Source: a.reconciler, Metrics: status.NewMetrics("", rules), Stuck: time.Minute,
		Loops: func() map[string]time.Time {
			if hangs.Load() {
				return map[string]time.Time{"a": time.Now(), "b": time.Now().Add(-time.Hour)}
			}
			return map[string]time.Time{"a": time.Now(), "b": time.Now()}
		},
	})
	done := make(chan error, 1)
	go func() { done <- a.signals(ctx, a.reconciler.Stamp()) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	if n := beats(t, manager, 5, 5*time.Second); n < 5 {
		t.Fatalf("%d pings while all loops turn", n)
	}
	hangs.Store(true)
	beats(t, manager, 1000, 200*time.Millisecond) // those on their way
	if n := beats(t, manager, 1, 400*time.Millisecond); n > 0 {
		t.Error("a ping while a loop hangs")
	}
	hangs.Store(false)
	if n := beats(t, manager, 2, 5*time.Second); n < 2 {
		t.Errorf("%d pings after the loop turned again", n)
	}
}

// beats counts the pings up to most, or until none came for d.
func beats(t *testing.T, manager *net.UnixConn, most int, d time.Duration) (n int) {
	t.Helper()
	buf := make([]byte, 1024)
	for n < most {
		if err := manager.SetReadDeadline(time.Now().Add(d)); err != nil {
			t.Fatal(err)
		}
		size, err := manager.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(buf[:size]), "WATCHDOG=1") {
			n++
		}
	}
	return n
}

// TestNotice: whatever the engine says, the status is one line that systemd
// takes, and no assignment of its own.
func TestNotice(t *testing.T) {
	for _, reason := range []string{
		"plain", "two\nREADY=1", "\x1b[31mred\x00", strings.Repeat("long ", 1000), strings.Repeat("ü", 1000) + "x", "x" + strings.Repeat("ü", 1000), "\xff\xfe broken",
	} {
		got := notice(&apply.Status{State: apply.StateDegraded, Reason: reason})
		if strings.ContainsAny(got, "\n\x00\x1b") || !utf8.ValidString(got) || len(got) > maxNotice+len("…") || !strings.HasPrefix(got, "degraded: ") {
			t.Errorf("%.40q becomes %q", reason, got)
		}
	}
	p := schema.Parameters{}
	s := &apply.Status{State: apply.StateInSync, Reason: "r", Current: &p}
	for want, change := range map[string]func(){
		"in_sync: r":                               func() {},
		"in_sync: r; runs what no record says":     func() { s.Engine.Reachable, s.Running = true, apply.Running{} },
		"in_sync: r; runs snap":                    func() { s.Engine.Reachable, s.Running = true, apply.Running{SnapshotID: "snap", Confirmed: true} },
		"in_sync: r; runs snap, not yet confirmed": func() { s.Engine.Reachable, s.Running = true, apply.Running{SnapshotID: "snap"} },
	} {
		s.Engine.Reachable = false
		change()
		if got := notice(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
