package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/dtesn/engine"
)

// A bed is one agent under measurement beside an engine in this process, whose
// handler notes when a batch was taken.
type bed struct {
	dir, config, state, socket, url string
	agent                           string
	source                          []string // flags that say where the configuration is
	pushed                          string   // the repository that is pushed to
	cmd                             *exec.Cmd
	took                            chan time.Time // a batch was taken
	told                            chan time.Time // "applied" was logged
	logs                            chan struct{}  // the log has ended
	web                             *http.Client
	zeros                           *os.File      // of the floor
	takes                           time.Duration // what the engine takes for a batch at least
	n                               int
}

func measure(agent, dir string, runs, updates, long, keep int, takes time.Duration, only bool) error {
	agent, err := filepath.Abs(agent)
	if err != nil {
		return err
	}
	if dir, err = os.MkdirTemp(dir, "bench"); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	freshGroup(dir)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b := &bed{
		dir: dir, config: filepath.Join(dir, "config"), state: filepath.Join(dir, "state"), socket: filepath.Join(dir, "e.sock"),
		agent: agent, took: make(chan time.Time, 16), takes: takes, web: &http.Client{Timeout: 10 * time.Second},
	}
	b.source = []string{"--config", b.config}
	stopEngine, err := b.serveEngine(ctx)
	if err != nil {
		return err
	}
	defer stopEngine()
	if err := b.prepare(); err != nil {
		return err
	}
	if long > 0 {
		return b.long(long, keep, min(runs, 10))
	}
	if err := b.start(); err != nil {
		return err
	}
	defer b.stop()
	heading()
	if only {
		return b.loadRows(runs)
	}
	if err := b.rows(runs, updates); err != nil {
		return err
	}
	if err := b.loadRows(runs); err != nil {
		return err
	}
	return b.gitRows(runs)
}

// freshGroup marks dir as the top of a hierarchy, as `chattr +T` does, so that
// ext4 places what is made in it far from what was deleted a moment ago: it
// looks at each recently deleted inode before it makes a file, and after a run
// of tests there are thousands. Other file systems may not know the mark.
func freshGroup(dir string) {
	const topdir = 0x00020000 // FS_TOPDIR_FL, linux/fs.h
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	if flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topdir)
	}
}

func (b *bed) serveEngine(ctx context.Context) (stop func(), err error) {
	e, err := engine.New(engine.Options{})
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("unix", b.socket)
	if err != nil {
		return nil, err
	}
	handler := e.Handler()
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if strings.HasSuffix(q.URL.Path, "/batch-update") { // it has the batch once the body is read
			body, err := io.ReadAll(q.Body)
			if err != nil {
				return
			}
			q.Body = io.NopCloser(bytes.NewReader(body))
			select {
			case b.took <- time.Now():
			default:
			}
			time.Sleep(b.takes)
		}
		handler.ServeHTTP(w, q)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	return func() { _ = server.Close(); <-done }, nil
}

func (b *bed) prepare() error {
	if err := os.MkdirAll(b.config, 0o755); err != nil {
		return err
	}
	base := "parameters:\n"
	for line := range strings.Lines(string(production.Defaults().YAML())) {
		base += "  " + line
	}
	if err := os.WriteFile(filepath.Join(b.config, "base.yaml"), []byte(base), 0o644); err != nil {
		return err
	}
	for _, env := range []string{"development", "testing", "staging"} {
		if err := os.WriteFile(filepath.Join(b.config, env+".yaml"), []byte("environment: "+env+"\n"), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(b.config, "production.yaml"), b.document(0), 0o644)
}

// document declares the n-th state: a runtime parameter changes, so that the
// agent is measured and not the engine's rebuild.
func (b *bed) document(n int) []byte {
	return fmt.Appendf(nil, "environment: production\ndescription: state %d\nparameters:\n  cache_ttl_seconds: %d\n", n, 1+n%80000)
}

func (b *bed) start(flags ...string) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	b.url = "http://127.0.0.1:" + port
	b.cmd = exec.Command(b.agent, slices.Concat([]string{
		"run", "--environment", "production", "--engine", b.socket,
		"--state", b.state, "--listen", "127.0.0.1:" + port, "--log-format", "json",
	}, b.source, flags)...)
	logs, err := b.cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := b.cmd.Start(); err != nil {
		return err
	}
	b.told, b.logs = make(chan time.Time, 16), make(chan struct{})
	go b.follow(logs)
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		if resp, err := b.web.Get(b.url + "/readyz"); err == nil {
			drain(resp)
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		time.Sleep(time.Millisecond) // the agent needs the processor
	}
	return errors.New("the agent was not ready within 20 s")
}

func (b *bed) stop() {
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	<-b.logs
	_ = b.cmd.Wait()
}

// follow reads the agent's log: it says "applied" once the status does, and
// waiting for it takes no processor from the agent. Errors are passed on.
func (b *bed) follow(logs io.Reader) {
	defer close(b.logs)
	lines := bufio.NewScanner(logs)
	for lines.Scan() {
		at := time.Now()
		var l struct{ Level, Msg string }
		switch err := json.Unmarshal(lines.Bytes(), &l); {
		case err != nil || l.Level == "ERROR":
			fmt.Fprintln(os.Stderr, lines.Text())
		case l.Msg == "applied":
			select {
			case b.told <- at:
			default:
			}
		}
	}
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port), nil
}

func drain(resp *http.Response) {
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
}

// forget drops what was said of earlier states.
func (b *bed) forget() {
	for len(b.took) > 0 {
		<-b.took
	}
	for len(b.told) > 0 {
		<-b.told
	}
}

// change declares the next state by a rename and returns when it was renamed,
// when the engine took it and when it was reported as applied.
func (b *bed) change(inPlace bool) (renamed, taken, applied time.Time, err error) {
	b.forget()
	b.n++
	file, beside := filepath.Join(b.config, "production.yaml"), filepath.Join(b.config, ".new")
	if inPlace {
		renamed = time.Now()
		err = os.WriteFile(file, b.document(b.n), 0o644)
	} else {
		if err = os.WriteFile(beside, b.document(b.n), 0o644); err == nil {
			renamed = time.Now()
			err = os.Rename(beside, file)
		}
	}
	if err != nil {
		return renamed, taken, applied, err
	}
	select {
	case taken = <-b.took:
	case <-time.After(10 * time.Second):
		return renamed, taken, applied, errors.New("the engine was not told within 10 s")
	}
	applied, err = b.awaitApplied(b.n)
	return renamed, taken, applied, err
}

// awaitApplied waits until the agent says that the n-th state is applied, and
// sees that the status agrees.
func (b *bed) awaitApplied(n int) (at time.Time, err error) {
	select {
	case at = <-b.told:
	case <-time.After(10 * time.Second):
		return at, errors.New("not applied within 10 s")
	}
	var s struct {
		Status struct {
			Current   map[string]any `json:"current_config"`
			Attempted struct{ Outcome string }
			Running   struct{ Confirmed bool }
		}
	}
	if err := b.getJSON("/v1/config/status", &s); err != nil {
		return at, err
	}
	if s.Status.Attempted.Outcome != "applied" || !s.Status.Running.Confirmed || s.Status.Current["cache_ttl_seconds"] != float64(1+n%80000) {
		return at, fmt.Errorf("logged as applied, and the status says %+v", s.Status)
	}
	return at, nil
}

func (b *bed) getJSON(path string, v any) error {
	resp, err := b.web.Get(b.url + path)
	if err != nil {
		return err
	}
	defer drain(resp)
	return json.NewDecoder(resp.Body).Decode(v)
}

// floor is one block written into a file of zeros and synced, and two round trips to
// the engine: the least that a durable change takes.
func (b *bed) floor(client *http.Client) (time.Duration, error) {
	const size, block = 1 << 20, 4 << 10
	if b.zeros == nil {
		f, err := os.Create(filepath.Join(b.dir, "floor"))
		if err != nil {
			return 0, err
		}
		for range size / block { // by blocks, as the journal does
			if _, err := f.Write(make([]byte, block)); err != nil {
				return 0, err
			}
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		b.zeros = f
	}
	content := bytes.Repeat([]byte("floor of the run"), block/16)
	start := time.Now()
	if _, err := b.zeros.WriteAt(content, int64(b.n*block%size)); err != nil {
		return 0, err
	}
	if err := unix.Fdatasync(int(b.zeros.Fd())); err != nil {
		return 0, err
	}
	for range 2 {
		resp, err := client.Get("http://engine/v1/config/current")
		if err != nil {
			return 0, err
		}
		drain(resp)
	}
	return time.Since(start), nil
}

func overSocket(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
}
