//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/schema"
)

const (
	environment  = "production"
	instance     = "crash"
	engineSocket = "engine.sock"
	patience     = 60 * time.Second // for whatever must happen at last
	tooBig       = 16000            // units that the engine refuses
)

// A world is one agent's surroundings: an engine that survives it, a source,
// and a state directory.
type world struct {
	program            string // the agent
	dir, config, state string
	socket, logFile    string
	out                *os.File // the agent's log
	engine             *exec.Cmd
	agent              *process
	origin             origin
	flags              []string
	control            *http.Client
	receiver           *receiver

	seen     string          // the source revision that the last step ended with
	ordered  bool            // this step's order was answered with success
	reported map[string]bool // snapshots that were said to be applied
	lags     bool            // the hook was not told all yet
	kills    int
	tries    int // kills of this step
}

func newWorld(dir, program string, s *story) (*world, error) {
	w := &world{
		program: program, dir: dir, flags: s.flags, config: filepath.Join(dir, "config"), state: filepath.Join(dir, "state"),
		socket: filepath.Join(dir, engineSocket), logFile: filepath.Join(dir, "agent.log"), reported: map[string]bool{},
	}
	var err error
	if w.out, err = os.OpenFile(w.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	w.control = over(filepath.Join(w.state, "agent.sock"))
	if err := os.Mkdir(w.config, 0o755); err != nil {
		return nil, err
	}
	if w.origin, err = s.origin(w); err != nil {
		return nil, err
	}
	if w.receiver, err = newReceiver(dir); err != nil {
		return nil, err
	}
	if s.prepared != nil {
		dir, err := s.prepared()
		if err == nil {
			err = os.CopyFS(w.state, os.DirFS(dir))
		}
		if err != nil {
			return nil, err
		}
	}
	return w, w.startEngine(roomy)
}

// over is a client that keeps one connection to a Unix socket.
func over(socket string) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
}

// end stops all that runs.
func (w *world) end() {
	if w.agent != nil {
		w.agent.end()
	}
	w.stopEngine()
	if w.origin != nil {
		w.origin.close()
	}
	if w.receiver != nil {
		_ = w.receiver.server.Close()
	}
	w.control.CloseIdleConnections()
	_ = w.out.Close()
}

// What an engine holds: states of 512 and of 600 units, or only the former.
const roomy, narrow = "4MiB", "3200KiB"

// startEngine starts an engine, and waits until it answers.
func (w *world) startEngine(limit string) error {
	w.engine = exec.Command(w.program, "engine", "--socket", w.socket, "--memory-limit", limit)
	w.engine.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	w.engine.Stdout, w.engine.Stderr = nil, nil
	if err := w.engine.Start(); err != nil {
		return err
	}
	return until("the engine answers", func() bool { _, err := w.runs(); return err == nil })
}

func (w *world) stopEngine() {
	if w.engine != nil && w.engine.Process != nil {
		_ = w.engine.Process.Kill()
		_ = w.engine.Wait()
	}
}

// until asks again and again.
func until(what string, ok func() bool) error {
	for deadline := time.Now().Add(patience); !ok(); <-time.After(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %s", patience, what)
		}
	}
	return nil
}

// runs is what the engine itself says that it runs.
func (w *world) runs() (schema.Parameters, error) {
	var c struct{ Configuration schema.Parameters }
	client := over(w.socket)
	defer client.CloseIdleConnections()
	err := ask(client, http.MethodGet, "/v1/config/current", "", &c)
	return c.Configuration, err
}

func ask(client *http.Client, method, path, body string, answer any) error {
	q, err := http.NewRequestWithContext(context.Background(), method, "http://x"+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}

// start starts the agent, to be killed at the point if one is given.
func (w *world) start(at *point) (err error) {
	w.control.CloseIdleConnections()
	args := append([]string{
		w.program, "run", "--environment", environment, "--instance", instance, "--engine", w.socket,
		"--state", w.state, "--listen", "127.0.0.1:0", "--hooks", w.receiver.file,
	}, append(w.origin.flags(), w.flags...)...)
	w.agent, err = trace(w.dir, w.out, at, args...)
	return err
}

// view is what the agent says of itself.
func (w *world) view() (*apply.Status, error) {
	var v struct {
		Status struct {
			apply.Status
			Hooks []struct{ Lag int64 }
		}
	}
	if err := ask(w.control, http.MethodGet, "/status", "", &v); err != nil {
		return nil, err
	}
	if r := v.Status.Running; r.Confirmed && r.SnapshotID != "" {
		w.reported[r.SnapshotID] = true
	}
	w.lags = len(v.Status.Hooks) != 1 || v.Status.Hooks[0].Lag > 0
	return &v.Status.Status, nil
}

// order gives an operator's order by the program's own commands. That it fails
// is no error if the agent was killed under it, or if it may be rejected.
func (w *world) order(mayFail bool, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.program, append(args, "--state", w.state)...)
	out, err := cmd.CombinedOutput()
	fmt.Fprintf(w.out, "crash: %q: %v: %s", args, err, out)
	w.ordered = err == nil
	const rejected = 4 // the exit code
	if mayFail && cmd.ProcessState.ExitCode() == rejected {
		return nil
	}
	if ended, _ := w.agent.dead(); err != nil && !ended {
		// the kill may be on its way
		if until("the agent that gave no answer is dead", func() bool { ended, _ := w.agent.dead(); return ended }) != nil {
			return fmt.Errorf("agent %q failed beside a living agent: %w: %s", args, err, out)
		}
	}
	return nil
}

var appliedLine = regexp.MustCompile(`msg=applied snapshot=(snapshot_[0-9]+_[0-9]+)`)

// readLog notes what the log said to be applied, and finds what it must not
// say: that a mere kill damaged the repository.
func (w *world) readLog() error {
	text, err := os.ReadFile(w.logFile)
	if err != nil {
		return err
	}
	for _, m := range appliedLine.FindAllSubmatch(text, -1) {
		w.reported[string(m[1])] = true
	}
	for _, bad := range []string{"repaired the snapshot repository", "panic:", "fatal error:"} {
		if i := strings.Index(string(text), bad); i >= 0 {
			return fmt.Errorf("the log says: %.400s", text[i:])
		}
	}
	return nil
}
