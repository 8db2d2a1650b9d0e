package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/schema"
	"dtesn-agent/watcher"
)

// arrival is how long a change may take from the file to the engine on a machine
// that has a lot to do. It is half the time after which the files are read
// without any hint, which begins anew with each reading: what arrives in time
// arrives by an event, or by a poll where polls are the mode.
const arrival = 15 * time.Second

// A site is a configuration directory with an agent that watches it, and every
// state that was ever whole there.
type site struct {
	t           *testing.T
	root, state string
	program     string // the agent
	// whole are the states that may reach the engine.
	whole map[schema.Digest]bool
	cmd   *exec.Cmd
	log   *lines
	// worst is the longest that a change took.
	worst time.Duration
}

// The states of these tests are declared by texts that are never wrong in
// part: any line of production.yaml may be missing, and the number of any line
// be cut, and what is left is still valid, but no state that was declared.
var (
	baseText  = "parameters:\n" + indent(baseState)
	baseState = production.Complete(schema.NewParameters(map[string]schema.Value{
		"max_membrane_depth": schema.Int(1), sizeName: schema.Int(128), "bseries_max_order": schema.Int(3),
		"enable_caching": schema.Bool(true), ttlName: schema.Int(77), "enable_performance_monitoring": schema.Bool(true),
	}))
)

// numbered is the n-th state. Nothing in it makes the engine rebuild.
func numbered(n int) schema.Parameters {
	return production.Complete(schema.NewParameters(map[string]schema.Value{
		"bseries_max_order": schema.Int(12), ttlName: schema.Int(10000 + n), "enable_caching": schema.Bool(n%2 == 0),
		"enable_performance_monitoring": schema.Bool(n%4 < 2), sizeName: schema.Int(640), "max_membrane_depth": schema.Int(2),
	}))
}

// text declares p in production.yaml, with so many bytes of comments between
// the lines that writers need several writes.
func text(p schema.Parameters, padding int) string {
	var b strings.Builder
	b.WriteString("environment: production\nparameters:\n")
	for _, name := range p.Names() {
		for used := 0; used < padding/6; used += 64 {
			b.WriteString("  # " + strings.Repeat("-", 59) + "\n")
		}
		fmt.Fprintf(&b, "  %s: %v\n", name, p.Get(name))
	}
	return b.String()
}

// newSite makes a directory that declares state 0; the agent is not started.
func newSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, root: filepath.Join(dir, "config"), state: filepath.Join(dir, "s"), program: shippedAgent(t), whole: map[schema.Digest]bool{}}
	s.put("base.yaml", baseText)
	s.put("production.yaml", s.declare(0))
	return s
}

// in lets a subtest be the one that fails, until what it returns is called.
func (s *site) in(t *testing.T) (out func()) {
	outer := s.t
	s.t = t
	return func() { s.t = outer }
}

// declare is the text of the n-th state, which from now on may run.
func (s *site) declare(n int) string {
	s.whole[numbered(n).Digest()] = true
	return text(numbered(n), 0)
}

// start runs the agent, behind the words of before if there are any, and waits
// until it runs the n-th state.
func (s *site) start(n int, before []string, flags ...string) {
	s.t.Helper()
	s.launch(before, flags...)
	s.await(n)
}

func (s *site) launch(before []string, flags ...string) {
	s.t.Helper()
	args := append(append([]string{}, before...), s.program, "run", "--environment", "production", "--config", s.root,
		"--embedded-engine", "--state", s.state, "--listen", "127.0.0.1:0", "--resync", "30s")
	s.cmd = exec.Command(args[0], append(args[1:], flags...)...)
	s.log = &lines{}
	s.cmd.Stderr = s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ok(s.t, s.cmd.Start())
	cmd := s.cmd
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			s.t.Errorf("the agent ended with %v:\n%s", err, s.log)
		}
		if s.t.Failed() {
			s.t.Logf("the agent said:\n%s", s.log)
		}
	})
}

// A siteStatus is what these tests look at.
type siteStatus struct {
	State   string             `json:"state"`
	InSync  bool               `json:"in_sync"`
	Current *schema.Parameters `json:"current_config"`
	Source  struct {
		Mode      string `json:"mode"`
		LastError string `json:"last_error"`
	} `json:"source"`
}

// control is a client of the agent's control socket.
func (s *site) control() *http.Client {
	return &http.Client{Timeout: arrival, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.state, "agent.sock"))
	}}}
}

// readNow is `agent sync`.
func (s *site) readNow() {
	s.t.Helper()
	resp, err := s.control().Post("http://agent/sync", "application/json", nil)
	ok(s.t, err)
	ok(s.t, resp.Body.Close())
}

// status asks the agent.
func (s *site) status() (*siteStatus, error) {
	resp, err := s.control().Get("http://agent/status")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer struct{ Status *siteStatus }
	err = json.NewDecoder(resp.Body).Decode(&answer)
	if err == nil && answer.Status == nil {
		err = errors.New("an answer without a status")
	}
	return answer.Status, err
}

// until waits until the status is as it should be, and says how long it took.
func (s *site) until(what string, patience time.Duration, holds func(*siteStatus) bool) time.Duration {
	s.t.Helper()
	begin := time.Now()
	deadline := time.After(patience)
	again := time.NewTicker(3 * time.Millisecond)
	defer again.Stop()
	for {
		now, err := s.status()
		if err == nil && holds(now) {
			return time.Since(begin)
		}
		select {
		case <-again.C:
		case <-deadline:
			s.t.Fatalf("not within %s: %s; the status is %+v, error %v, the engine runs %+v\n%s", patience, what, now, err, now.current(), s.log)
		}
	}
}

func (s *siteStatus) current() *schema.Parameters {
	if s == nil {
		return nil
	}
	return s.Current
}

// await waits until the engine runs the n-th state, and says how long it took.
func (s *site) await(n int) time.Duration {
	s.t.Helper()
	return s.awaitState(numbered(n))
}

func (s *site) awaitState(p schema.Parameters) time.Duration {
	s.t.Helper()
	took := s.until(fmt.Sprintf("the engine runs %+v", p), arrival, func(now *siteStatus) bool {
		return now.InSync && now.Current != nil && now.Current.Equal(p)
	})
	s.worst = max(s.worst, took)
	return took
}

// mode waits until the source is watched in this mode.
func (s *site) mode(mode string) {
	s.t.Helper()
	s.until("mode "+mode, arrival, func(now *siteStatus) bool { return now.Source.Mode == mode })
}

// records are the states of all records, oldest first. Everything that was
// sent to an engine stands there before it is sent.
func (s *site) records() (all []schema.Parameters) {
	s.t.Helper()
	code, out := agent("snapshots", "--state", s.state, "--limit", "1000", "--json")
	var list struct {
		Snapshots []struct {
			Config schema.Parameters `json:"config_data"`
		}
	}
	if err := json.Unmarshal([]byte(out), &list); code != 0 || err != nil {
		s.t.Fatalf("agent snapshots: exit %d, %v: %s", code, err, out)
	}
	for i := len(list.Snapshots) - 1; i >= 0; i-- {
		all = append(all, list.Snapshots[i].Config)
	}
	return all
}

// onlyWhole fails the test if any state was recorded, and so perhaps sent,
// that never was whole; or if fewer were recorded than must have been.
func (s *site) onlyWhole(least int) {
	s.t.Helper()
	all := s.records()
	for i, p := range all {
		if !s.whole[p.Digest()] {
			s.t.Errorf("record %d is no state that was ever declared: %+v", i+1, p)
		}
	}
	if len(all) < least {
		s.t.Errorf("%d records, want at least %d: what was awaited was not recorded", len(all), least)
	}
}

// put writes a file in place, and the folders above it.
func (s *site) put(path, text string) {
	s.t.Helper()
	if !filepath.IsAbs(path) {
		path = filepath.Join(s.root, path)
	}
	ok(s.t, os.MkdirAll(filepath.Dir(path), 0o755))
	ok(s.t, os.WriteFile(path, []byte(text), 0o644))
}

// rename writes a file beside its place and renames it there.
func (s *site) rename(path, text string) {
	s.t.Helper()
	s.put(".new", text)
	ok(s.t, os.Rename(filepath.Join(s.root, ".new"), filepath.Join(s.root, path)))
}

// onDisk is what the files declare at this moment, if that is valid.
func (s *site) onDisk() (schema.Parameters, bool) {
	env, err := watcher.ReadFile(s.root, "production.yaml")
	if err != nil {
		return schema.Parameters{}, false
	}
	files := []schema.File{env}
	for _, path := range append([]string{schema.BaseFile}, schema.Extends(env)...) {
		if f, err := watcher.ReadFile(s.root, path); err == nil {
			files = append(files, f)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return schema.Parameters{}, false
		}
	}
	c, v := production.Load(schema.Input{Files: files, Instance: "any"})
	if v != nil {
		return schema.Parameters{}, false
	}
	return c.Parameters, true
}

// sh runs a shell script in dir with the variables, and waits for it.
func sh(t *testing.T, dir, script string, variables map[string]string) {
	t.Helper()
	cmd := exec.Command("sh", "-euc", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_SYSTEM="+os.DevNull, "LC_ALL=C.UTF-8", "HOME="+t.TempDir())
	for name, value := range variables {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// atOnce runs a subtest beside others, even more than there are processors:
// these mostly wait.
func atOnce(all *sync.WaitGroup, t *testing.T, name string, test func(t *testing.T)) {
	all.Go(func() { t.Run(name, test) })
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls until what holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(2 * arrival)
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("not within %s: %s", 2*arrival, what)
		}
	}
}

// lines is what a process wrote, to be read while it runs.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

var _ io.Writer = (*lines)(nil)

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
