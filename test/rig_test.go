package test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
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
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// The parameters that the tests change. What is held of them holds of any other.
const (
	sizeName = "esn_reservoir_size"
	ttlName  = "cache_ttl_seconds"
)

// production are the rules of the agents that are given no other schema.
var production = schema.Default().For("production")

// baseYAML declares the default of every parameter.
var baseYAML = "parameters:\n" + indent(production.Defaults())

// indent returns p as lines below "parameters:".
func indent(p schema.Parameters) (lines string) {
	for line := range strings.Lines(string(p.YAML())) {
		lines += "  " + line
	}
	return lines
}

func sizeOf(p schema.Parameters) int { return intOf(p, sizeName) }
func ttlOf(p schema.Parameters) int  { return intOf(p, ttlName) }

// intOf returns an integer of p, -1 if p has none of that name.
func intOf(p schema.Parameters, name string) int {
	if n, ok := p.Get(name).Int(); ok {
		return n
	}
	return -1
}

// The agent beside a server of the Python family: python/server.py, on
// FastAPI, under uvicorn.

// A rig is a configuration directory, a state directory and a socket, with an
// agent and servers that come and go.
type rig struct {
	t                                *testing.T
	dir, config, state, socket, logs string
	port                             string
	out                              *os.File // the newest agent's log
	servers                          int
	running                          *exec.Cmd // the newest agent
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if exec.Command("/usr/bin/python3", "-c", "import fastapi, uvicorn").Run() != nil {
		lacking(t, "needs python3-fastapi and python3-uvicorn: run test/packages, which installs them")
	}
	return newBareRig(t)
}

// newBareRig is a rig for a server of another kind.
func newBareRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, dir: dir, config: filepath.Join(dir, "config"), state: filepath.Join(dir, "state"), socket: filepath.Join(dir, "e.sock"), logs: filepath.Join(dir, "requests.log")}
	if err := os.Mkdir(r.config, 0o755); err != nil {
		t.Fatal(err)
	}
	r.write("base.yaml", baseYAML)
	return r
}

func (r *rig) write(name, text string) {
	r.t.Helper()
	beside := filepath.Join(r.config, ".new")
	if err := os.WriteFile(beside, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(beside, filepath.Join(r.config, name)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) declare(size int) {
	r.t.Helper()
	r.write("production.yaml", fmt.Sprintf("environment: production\ndescription: %d units\nparameters:\n  esn_reservoir_size: %d\n", size, size))
}

// process starts a command that the test's end kills.
func (r *rig) process(cmd *exec.Cmd) *exec.Cmd {
	r.t.Helper()
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { kill(cmd) })
	return cmd
}

// kill ends a process and those it started, without a word.
func kill(cmd *exec.Cmd) {
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// server starts app ("server:app" or "server:other") on the socket. It does not
// wait until it answers.
func (r *rig) server(app, misbehave string, flags ...string) *exec.Cmd {
	r.t.Helper()
	return r.serve(r.uvicorn(app, misbehave, append([]string{"--uds", r.socket}, flags...)...))
}

// uvicorn is a server of app that is not yet started.
func (r *rig) uvicorn(app, misbehave string, flags ...string) *exec.Cmd {
	cmd := exec.Command("/usr/bin/python3", append([]string{"-m", "uvicorn", "--app-dir", "python", app}, flags...)...)
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "DTESN_SERVER_LOG="+r.logs, "DTESN_MISBEHAVE="+misbehave)
	return cmd
}

// serve starts a server, with a log of its own for the evidence.
func (r *rig) serve(cmd *exec.Cmd) *exec.Cmd {
	r.t.Helper()
	r.servers++
	out, err := os.Create(filepath.Join(r.dir, fmt.Sprintf("server%d.log", r.servers)))
	if err != nil {
		r.t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // workers too
	return r.process(cmd)
}

// engine starts a server that behaves, and waits for it.
func (r *rig) engine(flags ...string) *exec.Cmd {
	r.t.Helper()
	cmd := r.server("server:app", "{}", flags...)
	r.until("the server answers", func() bool { _, err := r.current(); return err == nil })
	if slices.Contains(flags, "2") {
		r.until("both workers answer", func() bool {
			_, _ = r.current()
			return slices.ContainsFunc(r.requests(), func(q request) bool { return q.PID != r.requests()[0].PID })
		})
	}
	return cmd
}

// agent starts an agent with these flags besides what it needs.
func (r *rig) agent(flags ...string) *exec.Cmd {
	r.t.Helper()
	return r.agentOn(r.state, flags...)
}

func (r *rig) agentOn(state string, flags ...string) *exec.Cmd {
	r.t.Helper()
	port, err := freePort()
	if err != nil {
		r.t.Fatal(err)
	}
	r.port = port
	out, err := os.Create(filepath.Join(r.dir, filepath.Base(state)+".log"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer out.Close()
	r.out = out
	cmd := exec.Command("agent", append(r.args(state, "127.0.0.1:"+port), flags...)...)
	cmd.Stdout, cmd.Stderr = out, out
	r.running = r.process(cmd)
	return cmd
}

// embedded starts an agent with its embedded engine; prepare, which may be nil, changes
// the command before it starts.
func (r *rig) embedded(prepare func(cmd *exec.Cmd)) *exec.Cmd {
	r.t.Helper()
	port, err := freePort()
	ok(r.t, err)
	r.port = port
	cmd := exec.Command("agent", "run", "--environment", "production", "--config", r.config, "--embedded-engine", "--state", r.state, "--listen", "127.0.0.1:"+port)
	if prepare != nil {
		prepare(cmd)
	}
	r.running = r.process(cmd)
	return cmd
}

func (r *rig) args(state, listen string) []string {
	return []string{"run", "--environment", "production", "--config", r.config, "--engine", r.socket, "--state", state, "--listen", listen}
}

// over answers a request over a Unix socket.
func over(socket, method, path, body string, answer any) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	q, err := http.NewRequestWithContext(context.Background(), method, "http://x"+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%s: %s", resp.Status, text)
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}

type answered struct {
	Configuration schema.Parameters
	Environment   string
	Timestamp     map[string]any
}

// current is what a server says that it runs, one worker of several.
func (r *rig) current() (c answered, err error) {
	err = over(r.socket, http.MethodGet, "/v1/config/current", "", &c)
	return c, err
}

// post tells the server something past the agent, and wants success.
func (r *rig) post(path, body string) {
	r.t.Helper()
	var a struct{ Success *bool }
	if err := over(r.socket, http.MethodPost, path, body, &a); err != nil || (a.Success != nil && !*a.Success) {
		r.t.Fatalf("POST %s %s: %v", path, body, err)
	}
}

func (r *rig) misbehave(how string) { r.t.Helper(); r.post("/test/misbehave", how) }

// byHand changes the server past the agent.
func (r *rig) byHand(size int) {
	r.t.Helper()
	r.post("/v1/config/update", fmt.Sprintf(`{"parameter": "esn_reservoir_size", "value": %d}`, size))
}

// A request is a line of the server's log.
type request struct {
	At           float64
	PID          int
	Method, Path string
	Status, Size int
	Label        string
}

// requests are those of all servers of the rig so far.
func (r *rig) requests() (list []request) {
	r.t.Helper()
	text, err := os.ReadFile(r.logs)
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var q request
		if bytes.HasSuffix(line, []byte("\n")) {
			if err := json.Unmarshal(line, &q); err != nil {
				r.t.Fatalf("%v: %s", err, line)
			}
			list = append(list, q)
		}
	}
	return list
}

func (r *rig) count(path string) (n int) {
	r.t.Helper()
	for _, q := range r.requests() {
		if q.Path == path {
			n++
		}
	}
	return n
}

// A view is what the agent says over its control socket.
type view struct {
	apply.Status `json:"status"`
	Checks       apply.Checks
	Ready        bool
	Text         string
}

// size and ttl are those of what the engine was last read to run.
func (v view) size() int { return sizeOf(*v.Current) }
func (v view) ttl() int  { return ttlOf(*v.Current) }

func (r *rig) view() (v view, err error) { return viewOf(r.state) }

func viewOf(state string) (v view, err error) {
	err = over(filepath.Join(state, "agent.sock"), http.MethodGet, "/status", "", &v)
	return v, err
}

// until waits for something, 30 s at most.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	r.untilWithin(30*time.Second, what, ok)
}

func (r *rig) untilWithin(d time.Duration, what string, ok func() bool) {
	r.t.Helper()
	again, deadline := time.NewTicker(10*time.Millisecond), time.After(d)
	defer again.Stop()
	for !ok() {
		select {
		case <-again.C:
		case <-deadline:
			r.t.Fatalf("not within %s: %s\n%s", d, what, r.evidence())
		}
	}
}

// evidence is what a failure needs to be understood.
func (r *rig) evidence() string {
	v, err := r.view()
	text := fmt.Sprintf("%s (%v)\n", v.Text, err)
	for _, name := range []string{r.logs, filepath.Join(r.dir, fmt.Sprintf("server%d.log", r.servers)), filepath.Join(r.dir, "state.log")} {
		body, _ := os.ReadFile(name)
		text += fmt.Sprintf("--- %s\n%s\n", filepath.Base(name), body[max(0, len(body)-3000):])
	}
	return text
}

// await waits until the agent's status is as ok says.
func (r *rig) await(what string, ok func(v view) bool) (v view) {
	r.t.Helper()
	r.until(what, func() bool {
		var err error
		v, err = r.view()
		return err == nil && ok(v)
	})
	return v
}

// awaitApplied waits until the agent says that size is applied, and holds that
// the server runs it.
func (r *rig) awaitApplied(size int) {
	r.t.Helper()
	r.await(fmt.Sprintf("%d units applied", size), func(v view) bool {
		return v.State == apply.StateInSync && v.InSync && v.size() == size && v.Attempted.Outcome == record.Applied
	})
	if c, err := r.current(); err != nil || sizeOf(c.Configuration) != size || c.Environment != "production" {
		r.t.Errorf("the server runs %+v %v, want %d units in production", c, err, size)
	}
}

// metric reads one sample, such as `dtesn_agent_drift_total`.
func (r *rig) metric(sample string) float64 {
	r.t.Helper()
	resp, err := http.Get("http://127.0.0.1:" + r.port + "/metrics")
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if value, ok := strings.CutPrefix(s.Text(), sample+" "); ok {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				r.t.Fatal(err)
			}
			return n
		}
	}
	r.t.Fatalf("there is no metric %s", sample)
	return 0
}

func (r *rig) wantMetric(sample string, want float64) {
	r.t.Helper()
	if got := r.metric(sample); got != want {
		r.t.Errorf("%s is %v, want %v", sample, got, want)
	}
}

// A snap is one record as `agent snapshots --json` lists it.
type snap struct {
	ID                         string `json:"snapshot_id"`
	Kind, Outcome, Description string
	Changes                    []schema.Change
	ValidationErrors           []string          `json:"validation_errors"`
	ConfigData                 schema.Parameters `json:"config_data"`
}

func (r *rig) snapshots() []snap {
	r.t.Helper()
	_, out := agent("snapshots", "--state", r.state, "--json")
	var list struct{ Snapshots []snap }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
	return list.Snapshots
}

// order runs a command of the CLI on the rig's agent.
func (r *rig) order(args ...string) string {
	r.t.Helper()
	code, out := agent(append(args, "--state", r.state)...)
	if code != 0 {
		r.t.Fatalf("agent %s: exit %d: %s", args, code, out)
	}
	return out
}

// letIdle waits until the server has closed an idle connection: then whatever
// else was idle is closed as well.
func (r *rig) letIdle() {
	r.t.Helper()
	conn, err := net.Dial("unix", r.socket)
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close()
	begun := time.Now()
	_ = conn.SetDeadline(begun.Add(30 * time.Second))
	fmt.Fprint(conn, "GET /v1/config/health HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := io.ReadAll(conn); err != nil || time.Since(begun) < 4*time.Second {
		r.t.Fatalf("the server closed an idle connection after %s: %v", time.Since(begun), err)
	}
}

// agreeing gives every worker of the server the value.
func (r *rig) agreeing(parameter string, value int) {
	r.t.Helper()
	same := 0
	r.until("all workers agree", func() bool {
		c, err := r.current()
		if same++; err != nil || intOf(c.Configuration, parameter) != value {
			same = 0
			r.post("/v1/config/update", fmt.Sprintf(`{"parameter": %q, "value": %d}`, parameter, value))
		}
		return same == 20
	})
}

// shows reports whether the status comes to be so within a time.
func (r *rig) shows(within time.Duration, is func(view) bool) bool {
	again, deadline := time.NewTicker(10*time.Millisecond), time.After(within)
	defer again.Stop()
	for {
		if v, err := r.view(); err == nil && is(v) {
			return true
		}
		select {
		case <-again.C:
		case <-deadline:
			return false
		}
	}
}
