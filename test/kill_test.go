package test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dtesn-agent/dtesn/engine"
)

// TestKilledAtAnyMoment edits, kills the agent with SIGKILL at a random moment
// of the change, and starts it again: engine, refs and status agree each time,
// what was reported as applied is still there, and git finds nothing broken.
// The engine refuses every fifth state. A failure names its seed.
func TestKilledAtAnyMoment(t *testing.T) {
	kills := 40
	if testing.Short() {
		kills = 8
	}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)

	dir := t.TempDir()
	k := &killed{t: t, dir: dir, config: filepath.Join(dir, "config"), state: filepath.Join(dir, "state"), socket: filepath.Join(dir, "e.sock")}
	k.serveEngine()
	if err := os.Mkdir(k.config, 0o755); err != nil {
		t.Fatal(err)
	}
	k.write("base.yaml", baseYAML)
	k.declare(1, false)
	k.start()
	k.await("in sync", func(s *statusAnswer) bool { return s.Status.InSync })
	var applied []string
	for n := 2; n < kills+2; n++ {
		tooBig := n%5 == 0
		k.declare(n, tooBig)
		k.pause(time.Duration(random.IntN(9000)) * time.Microsecond)
		applied = append(applied, k.appliedIDs()...)
		_ = k.cmd.Process.Kill()
		_ = k.cmd.Wait()
		k.start()
		if tooBig {
			k.await("held", func(s *statusAnswer) bool {
				return s.Status.State == "held" && s.Status.Current["cache_ttl_seconds"] != float64(n)
			})
		} else {
			k.await("in sync", func(s *statusAnswer) bool {
				return s.Status.InSync && s.Status.Current["cache_ttl_seconds"] == float64(n)
			})
		}
		if out, err := exec.Command("git", "--git-dir", k.repo(), "fsck", "--strict").CombinedOutput(); err != nil {
			t.Fatalf("kill %d (seed %d): git fsck: %v\n%s", n, seed, err, out)
		}
		k.refsAgree()
	}
	now := k.appliedIDs()
	for _, id := range applied {
		if !slices.Contains(now, id) {
			t.Errorf("seed %d: %s was applied and is gone", seed, id)
		}
	}
}

type killed struct {
	t                          *testing.T
	dir, config, state, socket string
	url                        string
	cmd                        *exec.Cmd
}

type statusAnswer struct {
	Status struct {
		State     string
		InSync    bool           `json:"in_sync"`
		Current   map[string]any `json:"current_config"`
		Attempted struct{ Outcome string }
	}
}

func (k *killed) repo() string { return filepath.Join(k.state, "snapshots.git") }

// serveEngine runs an engine that holds little, so that it refuses a lot.
func (k *killed) serveEngine() {
	e, err := engine.New(engine.Options{MemoryLimit: 4 << 20})
	if err != nil {
		k.t.Fatal(err)
	}
	listener, err := engine.Listen(k.socket)
	if err != nil {
		k.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = e.Serve(ctx, listener) }()
	k.t.Cleanup(func() { cancel(); <-done })
}

func (k *killed) write(name, text string) {
	k.t.Helper()
	beside := filepath.Join(k.config, ".new")
	if err := os.WriteFile(beside, []byte(text), 0o644); err != nil {
		k.t.Fatal(err)
	}
	if err := os.Rename(beside, filepath.Join(k.config, name)); err != nil {
		k.t.Fatal(err)
	}
}

// declare asks for the n-th state, one that the engine cannot hold if tooBig.
func (k *killed) declare(n int, tooBig bool) {
	text := fmt.Sprintf("environment: production\ndescription: state %d\nparameters:\n  cache_ttl_seconds: %d\n", n, n)
	if tooBig {
		text += "  esn_reservoir_size: 16384\n"
	}
	k.write("production.yaml", text)
}

func (k *killed) start() {
	k.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		k.t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	k.url = "http://" + addr
	k.cmd = exec.Command("agent", "run", "--environment", "production", "--config", k.config, "--engine", k.socket, "--state", k.state, "--listen", addr, "--log-level", "error")
	if err := k.cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	cmd := k.cmd
	k.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// pause lets the agent work for d.
func (k *killed) pause(d time.Duration) { <-time.After(d) }

func (k *killed) await(what string, ok func(*statusAnswer) bool) {
	k.t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(30 * time.Second)
	last := ""
	for {
		if resp, err := http.Get(k.url + "/v1/config/status"); err == nil {
			var s statusAnswer
			err := json.NewDecoder(resp.Body).Decode(&s)
			_ = resp.Body.Close()
			if err == nil && ok(&s) {
				return
			}
			last = fmt.Sprintf("%+v %v", s, err)
		}
		select {
		case <-again.C:
		case <-deadline:
			k.t.Fatalf("not %s within 30 s: %s", what, last)
		}
	}
}

// appliedIDs are the snapshots that the repository, read without an agent,
// says were applied.
func (k *killed) appliedIDs() (ids []string) {
	_, out := agent("snapshots", "--state", k.state, "--limit", "1000", "--json")
	var list struct {
		Snapshots []struct {
			ID      string `json:"snapshot_id"`
			Outcome string
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		k.t.Fatalf("%v: %s", err, out)
	}
	for _, s := range list.Snapshots {
		if s.Outcome == "applied" {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func (k *killed) refsAgree() {
	k.t.Helper()
	var hashes []string
	for _, ref := range []string{"refs/heads/production", "refs/dtesn/applied/production"} {
		out, err := exec.Command("git", "--git-dir", k.repo(), "rev-parse", ref).Output()
		if err != nil {
			k.t.Fatal(err)
		}
		hashes = append(hashes, strings.TrimSpace(string(out)))
	}
	if hashes[0] != hashes[1] {
		k.t.Errorf("nothing is open, and the head is %s, applied %s", hashes[0], hashes[1])
	}
}
