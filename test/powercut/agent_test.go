package powercut

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/test/gitserver"
)

// A site is a server with an agent whose state directory lies on a disk; all
// else is elsewhere, and no cut touches it.
type site struct {
	t      testing.TB
	disk   *disk
	dir    string
	config string // with git, a work tree that is committed to
	git    bool
	socket string
	under  []string // what the agent is run under, such as strace
	engine *exec.Cmd
	agent  *exec.Cmd
	url    string
	read   chan struct{} // closed when the agent's log was read to its end
	said   witness
}

// The parameters that the tests change.
const (
	sizeName = "esn_reservoir_size"
	ttlName  = "cache_ttl_seconds"
)

// production are the rules of the agent here.
var production = schema.Default().For("production")

func ttlOf(p schema.Parameters) int { return intOf(p, ttlName) }

// intOf returns an integer of p, -1 if p has none of that name.
func intOf(p schema.Parameters, name string) int {
	if n, ok := p.Get(name).Int(); ok {
		return n
	}
	return -1
}

// baseYAML declares the default of every parameter.
func baseYAML() string {
	text := "parameters:\n"
	for line := range strings.Lines(string(production.Defaults().YAML())) {
		text += "  " + line
	}
	return text
}

func newSite(t testing.TB, d *disk, git bool) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, disk: d, dir: dir, config: filepath.Join(dir, "config"), git: git, socket: filepath.Join(dir, "e.sock")}
	ok(t, os.Mkdir(s.config, 0o755))
	if git {
		gitserver.Git(t, s.config, "init", "-q", "-b", "main")
	}
	ok(t, os.WriteFile(filepath.Join(s.config, "base.yaml"), []byte(baseYAML()), 0o644))
	s.startEngine()
	t.Cleanup(func() { s.kill(); end(s.engine) })
	return s
}

func (s *site) state() string { return filepath.Join(s.disk.dir, "state") }

// startEngine starts an engine of its own that holds little, so that it refuses
// a lot. One that runs already dies, and what it ran with it.
func (s *site) startEngine() {
	s.t.Helper()
	end(s.engine)
	s.engine = exec.Command("agent", "engine", "--socket", s.socket, "--memory-limit", "4MiB")
	s.engine.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ok(s.t, s.engine.Start())
}

func end(cmd *exec.Cmd) {
	if cmd != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// declare asks for state n; one that the engine cannot hold if tooBig.
func (s *site) declare(n int, tooBig bool) {
	s.t.Helper()
	text := fmt.Sprintf("environment: production\ndescription: state %d\nparameters:\n  cache_ttl_seconds: %d\n", n, n)
	if tooBig {
		text += "  esn_reservoir_size: 16384\n"
	}
	beside := filepath.Join(s.dir, "new")
	ok(s.t, os.WriteFile(beside, []byte(text), 0o644))
	ok(s.t, os.Rename(beside, filepath.Join(s.config, "production.yaml")))
	if s.git {
		gitserver.Git(s.t, s.config, "add", "-A")
		gitserver.Git(s.t, s.config, "commit", "-q", "-m", fmt.Sprintf("state %d", n))
	}
}

// start starts the agent; what it says is kept in said.
func (s *site) start() {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(s.t, err)
	addr := l.Addr().String()
	_ = l.Close()
	s.url = "http://" + addr + "/v1/config/status"
	args := append(append([]string{}, s.under...), "agent", "run", "--environment", "production", "--instance", "i", "--engine", s.socket,
		"--state", s.state(), "--listen", addr, "--log-format", "json")
	if s.git {
		args = append(args, "--repo", s.config, "--config", ".")
	} else {
		args = append(args, "--config", s.config)
	}
	s.agent = exec.Command(args[0], args[1:]...)
	s.agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	r, w, err := os.Pipe()
	ok(s.t, err)
	s.agent.Stderr = w
	ok(s.t, s.agent.Start())
	_ = w.Close()
	s.read = make(chan struct{})
	go func() {
		defer close(s.read)
		defer r.Close()
		for lines := bufio.NewScanner(r); lines.Scan(); {
			s.said.line(lines.Bytes())
		}
	}()
}

// kill ends the agent at once, and waits until all that it said was read.
func (s *site) kill() {
	if s.agent == nil {
		return
	}
	_ = syscall.Kill(-s.agent.Process.Pid, syscall.SIGKILL)
	_ = s.agent.Wait()
	<-s.read
	s.agent = nil
}

// status is what the agent says over HTTP; what it says of outcomes is kept.
func (s *site) status() (st apply.Status, err error) {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(s.url)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	var a struct{ Status apply.Status }
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return st, err
	}
	s.said.status(&a.Status)
	return a.Status, nil
}

// await waits until the status is as holds says.
func (s *site) await(what string, holds func(st *apply.Status) bool) apply.Status {
	s.t.Helper()
	deadline, again := time.After(40*time.Second), time.NewTicker(3*time.Millisecond)
	defer again.Stop()
	for {
		st, err := s.status()
		if err == nil && holds(&st) {
			return st
		}
		select {
		case <-again.C:
		case <-deadline:
			s.t.Fatalf("not within 40 s: %s\n%s %s %v\n%s", what, st.State, st.Reason, err, s.said.tail())
		}
	}
}

// order gives the agent an order and returns its exit code and its words.
func (s *site) order(args ...string) (int, string) {
	var out bytes.Buffer
	cmd := exec.Command("agent", append(args, "--state", s.state())...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	_ = cmd.Run()
	return cmd.ProcessState.ExitCode(), out.String()
}

// ask gives the agent an order without a process of its own, so that the cut can
// come at once behind the answer.
func (s *site) ask(verb string) (done bool, id string, err error) {
	client := http.Client{Timeout: 35 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.state(), "agent.sock"))
		},
	}}
	resp, err := client.Post("http://agent/"+verb, "application/json", strings.NewReader(`{"reason": "a try", "timeout_seconds": 30}`))
	if err != nil {
		return false, "", err
	}
	defer resp.Body.Close()
	var a struct {
		Outcome    record.Outcome
		SnapshotID string `json:"snapshot_id"`
	}
	err = json.NewDecoder(resp.Body).Decode(&a)
	return a.Outcome == record.Applied, a.SnapshotID, err
}

// A listed is what a listing says of one snapshot.
type listed struct {
	ID, Kind, Outcome, Description string
	Config                         schema.Parameters
}

// records lists the whole history, without an agent.
func (s *site) records() map[string]listed {
	s.t.Helper()
	all := map[string]listed{}
	for before := ""; ; {
		args := []string{"snapshots", "--limit", "1000", "--json"}
		if before != "" {
			args = append(args, "--before", before)
		}
		code, out := s.order(args...)
		var page struct {
			Snapshots []struct {
				ID          string            `json:"snapshot_id"`
				Config      schema.Parameters `json:"config_data"`
				Kind        string
				Outcome     string
				Description string
			}
		}
		if err := json.Unmarshal([]byte(out), &page); code != 0 || err != nil {
			s.t.Fatalf("agent snapshots: exit %d, %v\n%s", code, err, out)
		}
		for _, r := range page.Snapshots {
			all[r.ID] = listed{r.ID, r.Kind, r.Outcome, r.Description, r.Config}
			before = r.ID
		}
		if len(page.Snapshots) < 1000 {
			return all
		}
	}
}
