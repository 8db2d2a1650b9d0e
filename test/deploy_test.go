package test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// deployTimeout is how long anything here may take to come true.
const deployTimeout = 20 * time.Second

// waitFor waits until look answers "" and fails with what it last answered.
func waitFor(t *testing.T, look func() string) {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(deployTimeout)
	for {
		wrong := look()
		if wrong == "" {
			return
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("after %s still: %s", deployTimeout, wrong)
		}
	}
}

// buildShipped builds the agent as it is shipped, once for all tests.
var buildShipped = sync.OnceValues(func() (program string, err error) {
	dir, err := os.MkdirTemp("", "dtesn-agent-test-")
	if err != nil {
		return "", err
	}
	program = filepath.Join(dir, "agent")
	shippedDir.Store(&dir)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./cmd/agent")
	cmd.Dir, cmd.Env = "..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return program, nil
})

// shippedDir is the directory that buildShipped made, if it did.
var shippedDir atomic.Pointer[string]

func removeShipped() {
	if dir := shippedDir.Load(); dir != nil {
		_ = os.RemoveAll(*dir)
	}
}

// shippedAgent is the path of the agent as it is shipped. The command "agent"
// is this binary instead, with the race detector if the test has it. It takes
// ten times as long to start then, and far longer to train an embedded engine.
func shippedAgent(t *testing.T) string {
	t.Helper()
	program, err := buildShipped()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// copyShipped puts the agent as it is shipped where a test wants it.
func copyShipped(t *testing.T, to string) {
	t.Helper()
	program, err := os.ReadFile(shippedAgent(t))
	if err == nil {
		err = os.WriteFile(to, program, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A manager plays the service manager's end of sd_notify(3).
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T, path string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &manager{t: t, conn: conn}
}

// next is the next message within d, by its assignments; nil if none came.
func (m *manager) next(d time.Duration) map[string]string {
	m.t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		m.t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := m.conn.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		m.t.Fatal(err)
	}
	said := map[string]string{}
	for line := range strings.SplitSeq(string(buf[:n]), "\n") {
		name, value, ok := strings.Cut(line, "=")
		if _, twice := said[name]; !ok || twice {
			m.t.Fatalf("not a message of assignments: %q", buf[:n])
		}
		said[name] = value
	}
	return said
}

// until reads up to the first message that wanted takes, and returns it with
// those before it.
func (m *manager) until(what string, wanted func(map[string]string) bool) (hit map[string]string, before []map[string]string) {
	m.t.Helper()
	deadline := time.Now().Add(deployTimeout)
	for time.Now().Before(deadline) {
		said := m.next(time.Until(deadline))
		if said == nil {
			break
		}
		if wanted(said) {
			return said, before
		}
		before = append(before, said)
	}
	m.t.Fatalf("the service manager never heard %s, but %v", what, before)
	return nil, nil
}

func (m *manager) untilStatus(text string) (hit map[string]string, before []map[string]string) {
	m.t.Helper()
	return m.until("a status with "+text, func(said map[string]string) bool { return strings.Contains(said["STATUS"], text) })
}

// hasStatus is for a status that comes with others in no certain order: it may
// have been said already.
func (m *manager) hasStatus(text string, said []map[string]string) {
	m.t.Helper()
	if !slices.ContainsFunc(said, func(m map[string]string) bool { return strings.Contains(m["STATUS"], text) }) {
		m.untilStatus(text)
	}
}

func has(name string) func(map[string]string) bool {
	return func(said map[string]string) bool { return said[name] == "1" }
}

// A served agent is a real one, started as a service manager starts it.
type served struct {
	*killed
	m      *manager
	stderr strings.Builder
}

// serveAgent starts an agent with NOTIFY_SOCKET; there is no engine yet.
func serveAgent(t *testing.T, socket string, env ...string) *served {
	t.Helper()
	dir := t.TempDir()
	s := &served{killed: &killed{t: t, dir: dir, config: filepath.Join(dir, "config"), state: filepath.Join(dir, "state"), socket: filepath.Join(dir, "e.sock")}}
	s.m = newManager(t, socket)
	if err := os.Mkdir(s.config, 0o755); err != nil {
		t.Fatal(err)
	}
	s.write("base.yaml", baseYAML)
	s.declare(1, false)
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	s.url = "http://127.0.0.1:" + port
	s.cmd = exec.Command("agent", "run", "--environment", "production", "--config", s.config, "--engine", s.socket, "--state", s.state, "--listen", "127.0.0.1:"+port)
	s.cmd.Env = append(os.Environ(), append(env, "NOTIFY_SOCKET="+socket)...)
	s.cmd.Stderr = &s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd := s.cmd
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return s
}

func (s *served) signal(sig os.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// monotonic is the clock that MONOTONIC_USEC is read on.
func monotonic(t *testing.T) int64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return now.Nano() / 1000
}

// TestNotify is the life of a service, seen by its manager: READY without an
// engine, but not before HTTP answers; a STATUS for each change; RELOADING and
// READY around SIGHUP; STOPPING first of all when it ends.
func TestNotify(t *testing.T) {
	for name, socket := range map[string]string{
		"path":     filepath.Join(t.TempDir(), "notify"),
		"abstract": "@dtesn-agent-test-" + strconv.Itoa(os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			notified(t, serveAgent(t, socket))
		})
	}
}

func notified(t *testing.T, s *served) {
	ready, before := s.m.until("READY", has("READY"))
	if resp, err := http.Get(s.url + "/livez"); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("READY was said, and /livez answers %v %v", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	// with READY, before it or after it: the first look at the engine takes no time
	s.m.hasStatus("waiting_for_engine", append(before, ready))
	s.serveEngine()
	said, _ := s.m.untilStatus("in_sync: the engine runs what the source declares; runs snapshot_")
	if len(said) != 1 {
		t.Errorf("a status came with more: %v", said)
	}

	s.declare(2, false)
	if next, _ := s.m.untilStatus("in_sync"); next["STATUS"] == said["STATUS"] {
		t.Errorf("the status names the same snapshot after a change: %v", next)
	}
	s.write("production.yaml", "environment: production\nparameters:\n  cache_ttl_seconds: 0\n")
	said, _ = s.m.untilStatus("invalid: ")
	if !strings.Contains(said["STATUS"], "cache_ttl_seconds") || !strings.Contains(said["STATUS"], "; runs snapshot_") {
		t.Errorf("the status does not say what is wrong and what runs: %v", said)
	}
	s.declare(3, false)
	s.m.untilStatus("in_sync")

	for range 2 {
		asked := monotonic(t)
		s.signal(syscall.SIGHUP)
		said, _ = s.m.until("RELOADING", has("RELOADING"))
		at, err := strconv.ParseInt(said["MONOTONIC_USEC"], 10, 64)
		if now := monotonic(t); err != nil || at < asked || at > now {
			t.Errorf("MONOTONIC_USEC is %q (%v), and not between %d and %d", said["MONOTONIC_USEC"], err, asked, now)
		}
		s.m.until("READY after RELOADING", has("READY"))
	}

	s.signal(syscall.SIGTERM)
	said, _ = s.m.until("STOPPING", has("STOPPING"))
	if !strings.Contains(said["STATUS"], "stopping") {
		t.Errorf("STOPPING came without a status: %v", said)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, s.stderr.String())
	}
	if more := s.m.next(time.Millisecond); more != nil {
		t.Errorf("said after STOPPING: %v", more)
	}
}

// TestNotifyReloadReadsWhatCannotBeRead: a reload is over when the files were
// read, also where no inotify tells of them, and ends where they cannot be.
func TestNotifyReloadReadsWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	s := serveAgent(t, filepath.Join(t.TempDir(), "notify"))
	s.serveEngine()
	s.m.untilStatus("in_sync")
	if err := os.Rename(s.config, s.config+".away"); err != nil {
		t.Fatal(err)
	}
	s.signal(syscall.SIGHUP)
	s.m.until("RELOADING", has("RELOADING"))
	ready, before := s.m.until("READY", has("READY"))
	s.m.hasStatus("cannot be read", append(before, ready))
	if err := os.Rename(s.config+".away", s.config); err != nil {
		t.Fatal(err)
	}
	s.declare(2, false)
	s.m.untilStatus("the engine runs what the source declares; runs")
}

// TestNotifyWatchdog: the manager hears from an agent that has nothing to do,
// at half the interval it asked for.
func TestNotifyWatchdog(t *testing.T) {
	t.Parallel()
	const interval = 400 * time.Millisecond
	s := serveAgent(t, filepath.Join(t.TempDir(), "notify"), "WATCHDOG_USEC="+strconv.FormatInt(interval.Microseconds(), 10))
	s.m.until("WATCHDOG", has("WATCHDOG"))
	start := time.Now()
	const beats = 5
	for range beats {
		s.m.until("WATCHDOG", has("WATCHDOG"))
	}
	if took := time.Since(start); took < beats*interval/2-interval || took > beats*interval {
		t.Errorf("%d beats within %s, the manager asked for one in %s", beats, took, interval)
	}
}

// TestNotifyDeaf: a manager that does not read, or is gone, neither keeps the
// agent from its work nor from its end.
func TestNotifyDeaf(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "notify")
	s := serveAgent(t, socket, "WATCHDOG_USEC=2000", "WATCHDOG_PID=") // fills the queue at once
	s.serveEngine()
	s.await("in sync", func(a *statusAnswer) bool { return a.Status.InSync })
	s.declare(2, false)
	s.await("in sync again", func(a *statusAnswer) bool {
		return a.Status.InSync && a.Status.Current["cache_ttl_seconds"] == 2.0
	})
	start := time.Now()
	s.signal(syscall.SIGTERM)
	if err := s.cmd.Wait(); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the end took %s", took)
	}
	if n := strings.Count(s.stderr.String(), "the service manager does not hear"); n != 1 {
		t.Errorf("said %d times that nobody hears:\n%s", n, s.stderr.String())
	}
}

// TestNotifyNobody: without a service manager a SIGHUP still reads, and nothing
// is said of managers.
func TestNotifyNobody(t *testing.T) {
	t.Parallel()
	s := serveAgent(t, filepath.Join(t.TempDir(), "other"), "DTESN_AGENT_LOG_LEVEL=debug")
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	args := slices.Clone(s.cmd.Args[1:])
	s.stderr.Reset()
	s.cmd = exec.Command("agent", args...)
	s.cmd.Stderr = &s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.serveEngine()
	s.await("in sync", func(a *statusAnswer) bool { return a.Status.InSync })
	s.signal(syscall.SIGHUP)
	s.signal(syscall.SIGTERM)
	if err := s.cmd.Wait(); err != nil {
		t.Error(err)
	}
	if strings.Contains(s.stderr.String(), "manager") {
		t.Errorf("%s", s.stderr.String())
	}
}

// outputOf is the output of a program that must succeed.
func outputOf(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}

// must is for the steps that prepare a test.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(fmt.Errorf("prepare: %w", err))
	}
}

// A lockedBuffer is what a process wrote, readable while it runs.
type lockedBuffer struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
