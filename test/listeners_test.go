package test

import (
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
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// A besieged agent has its engine inside, a --health-listen, 1,024 descriptors, and
// clients that do it no good.
type besieged struct {
	*rig
	health string
	log    string
}

// newBesieged starts an agent with a history of so many records.
func newBesieged(t *testing.T, records int, flags ...string) *besieged {
	t.Helper()
	b := &besieged{rig: newBareRig(t)}
	if records > 0 {
		b.records(records)
	}
	b.log = filepath.Join(b.dir, "state.log")
	b.declare(700)
	b.start(flags...)
	return b
}

// start starts the agent as it is shipped.
func (b *besieged) start(flags ...string) {
	b.t.Helper()
	port, err := freePort()
	ok(b.t, err)
	b.health = "127.0.0.1:" + port
	b.embedded(func(cmd *exec.Cmd) {
		args := append([]string{"sh", "-c", `ulimit -n 1024; exec "$@"`, "sh", shippedAgent(b.t)}, cmd.Args[1:]...)
		cmd.Path, cmd.Args = "/bin/sh", append(append(args, "--health-listen", b.health), flags...)
		out, err := os.Create(b.log)
		ok(b.t, err)
		b.t.Cleanup(func() { _ = out.Close() })
		cmd.Stdout, cmd.Stderr = out, out
	})
	b.await("applied", func(v view) bool { return v.State == apply.StateInSync })
}

// clients connects n clients that send text and read nothing. Some are closed by the
// agent again.
func (b *besieged) clients(n int, network, addr, text string) {
	b.t.Helper()
	var wg sync.WaitGroup
	next := make(chan struct{}, n)
	for range n {
		next <- struct{}{}
	}
	close(next)
	for range 50 {
		wg.Go(func() {
			for range next {
				conn, err := net.DialTimeout(network, addr, 10*time.Second)
				if err != nil {
					b.t.Errorf("connect to %s: %v", addr, err)
					return
				}
				b.t.Cleanup(func() { _ = conn.Close() })
				_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
				_, _ = io.WriteString(conn, text)
			}
		})
	}
	wg.Wait()
}

// works holds that changes, orders, status and probes come through.
func (b *besieged) works(size int) {
	b.t.Helper()
	b.declare(size)
	b.await(fmt.Sprintf("%d units applied", size), func(v view) bool { return v.InSync && v.size() == size })
	if code, out := agent("status", "--in-sync", "--state", b.state); code != 0 {
		b.t.Errorf("agent status: exit %d: %s", code, out)
	}
	b.order("rollback", "--reason", "a test")
	b.await("rolled back", func(v view) bool { return v.Held != nil && v.size() != size })
	b.order("resume")
	b.await("applied again", func(v view) bool { return v.InSync && v.size() == size })
	b.probe()
}

// probe asks for /livez as a kubelet does, on a new connection; one that fails is
// repeated twice, a second apart, which is the shortest period of a kubelet.
func (b *besieged) probe() {
	b.t.Helper()
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var err error
	for range 3 {
		var resp *http.Response
		if err != nil {
			time.Sleep(time.Second)
		}
		if resp, err = client.Get("http://" + b.health + "/livez"); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
			err = fmt.Errorf("livez answers %s", resp.Status)
		}
	}
	b.t.Errorf("a probe fails three times: %v", err)
}

// proc reads a number from /proc/PID/status.
func (b *besieged) proc(name string) int {
	b.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.running.Process.Pid))
	ok(b.t, err)
	m := regexp.MustCompile(name + `:\s+(\d+)`).FindSubmatch(text)
	if m == nil {
		b.t.Fatalf("no %s in %s", name, text)
	}
	n, err := strconv.Atoi(string(m[1]))
	ok(b.t, err)
	return n
}

func (b *besieged) descriptors() int {
	b.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.running.Process.Pid))
	ok(b.t, err)
	return len(entries)
}

// TestIdleClients holds that clients of no listener take the descriptors that the work
// needs, nor the place of a probe.
func TestIdleClients(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"health": "", "listen": "", "agent.sock": "", "engine.sock": "",
		"health, in the middle of a header": "GET /livez HTTP/1.1\r\nHost: x\r\nX-",
		"health, kept after an answer":      "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
		"agent.sock, kept after an answer":  "GET /status HTTP/1.1\r\nHost: x\r\n\r\n",
		"health, a body that never comes":   "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 16000\r\n\r\n",
		"listen, a body that never comes":   "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16000\r\n\r\n",
		"health, many scrapes unread":       strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 500),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBesieged(t, 0)
			listener, _, _ := strings.Cut(name, ",")
			network, addr := "tcp", b.health
			switch listener {
			case "listen":
				addr = "127.0.0.1:" + b.port
			case "agent.sock", "engine.sock":
				network, addr = "unix", filepath.Join(b.state, listener)
			}
			n := 1100
			if strings.HasSuffix(name, "unread") {
				n = 100
			}
			b.clients(n, network, addr, text)
			if got := b.descriptors(); got > 300 {
				t.Errorf("%d descriptors", got)
			}
			b.works(800)
			b.clients(n, network, addr, text)
			b.works(900)
		})
	}
}

// records writes a history of n records into the state directory.
func (r *rig) records(n int) {
	r.t.Helper()
	host, err := os.Hostname()
	ok(r.t, err)
	store, _, err := gitstore.Open(r.t.Context(), gitstore.Options{Dir: r.state, Environment: "production", Instance: host, AgentVersion: "test"})
	ok(r.t, err)
	for i := range n {
		config := production.Defaults().With(ttlName, schema.Int(1+i))
		_, err := store.Commit(r.t.Context(), record.Record{
			Kind: record.KindChange, Config: config, RollbackPoint: true, Description: fmt.Sprint("state ", i),
			Source: record.Source{Kind: "file", Location: r.config, Revision: fmt.Sprintf("%040x", i)}, Changes: production.Diff(production.Defaults(), config),
		})
		ok(r.t, err)
		ok(r.t, store.Confirm(r.t.Context()))
		store.Prepare(r.t.Context(), "")
	}
	ok(r.t, store.Close())
}

// TestManyClients holds that an agent with a long history, which thousands of clients
// ask for what is large and do not read, stays below the memory that a pod gives it.
func TestManyClients(t *testing.T) {
	t.Parallel()
	b := newBesieged(t, 1000)
	listen := "127.0.0.1:" + b.port
	listing := "GET /v1/config/snapshots?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
	resp, err := http.Get("http://" + listen + "/v1/config/snapshots?limit=1000")
	ok(t, err)
	whole, err := io.Copy(io.Discard, resp.Body)
	ok(t, err)
	ok(t, resp.Body.Close())
	if resp.StatusCode != http.StatusOK || whole < 500_000 {
		t.Errorf("the listing: %s, %d bytes", resp.Status, whole)
	}
	quiet := b.proc("VmHWM")

	b.clients(150, "tcp", listen, listing)
	b.works(800)
	b.clients(6000, "tcp", b.health, "")
	b.works(900)

	var wg sync.WaitGroup
	var mu sync.Mutex
	answers := map[string]int{}
	for range 2000 {
		wg.Go(func() {
			client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			outcome := "no answer"
			if resp, err := client.Get("http://" + b.health + "/metrics"); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				outcome = resp.Status
			}
			mu.Lock()
			defer mu.Unlock()
			answers[outcome]++
		})
	}
	b.works(1000)
	wg.Wait()
	if answers["200 OK"] < 200 {
		t.Errorf("2,000 scrapes at once: %v", answers)
	}
	peak := b.proc("VmHWM")
	t.Logf("2,000 scrapes: %v; a listing has %d bytes; %d KB before, %d KB at the most", answers, whole, quiet, peak)
	if peak > 110<<10 {
		t.Errorf("it took %d KB", peak)
	}
}

// TestForeignRequests holds that --listen answers nobody who comes by another name, and
// no page of another site; --health-listen answers by any name.
func TestForeignRequests(t *testing.T) {
	t.Parallel()
	b := newBesieged(t, 0, "--allowed-hosts", "status.example.com,dtesn")
	ask := func(addr, method, path, body string, headers ...string) *http.Response {
		t.Helper()
		q, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, strings.NewReader(body))
		ok(t, err)
		for i := 0; i < len(headers); i += 2 {
			q.Header.Set(headers[i], headers[i+1])
		}
		if host := q.Header.Get("Host"); host != "" {
			q.Host = host
		}
		resp, err := http.DefaultClient.Do(q)
		ok(t, err)
		ok(t, resp.Body.Close())
		return resp
	}
	listen := "127.0.0.1:" + b.port
	const dryRun = `{"parameter": "esn_reservoir_size", "value": 2048}`
	for _, c := range []struct {
		want    int
		method  string
		headers []string
	}{
		{200, "GET", nil},
		{200, "GET", []string{"Host", "localhost"}},
		{200, "GET", []string{"Host", "LocalHost.:1"}},
		{200, "GET", []string{"Host", "127.8.9.1:80"}},
		{200, "GET", []string{"Host", "[::1]:9310"}},
		{200, "GET", []string{"Host", "Status.example.com"}},
		{200, "GET", []string{"Host", "dtesn:9310"}},
		{421, "GET", []string{"Host", "evil.example"}},
		{421, "GET", []string{"Host", "localhost.evil.example"}},
		{421, "GET", []string{"Host", "127.0.0.1.evil.example"}},
		{421, "GET", []string{"Host", "192.0.2.1"}},
		{421, "GET", []string{"Host", "0.0.0.0:9310"}},
		{421, "GET", []string{"Host", "example.com"}},
		{200, "GET", []string{"Origin", "http://" + listen}},
		{403, "GET", []string{"Origin", "http://evil.example"}},
		{403, "GET", []string{"Origin", "http://127.0.0.1:1"}},
		{403, "GET", []string{"Origin", "null"}},
		{200, "GET", []string{"Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate"}},
		{200, "GET", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}},
		{403, "GET", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"}},
		{403, "GET", []string{"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors"}},
		{403, "OPTIONS", []string{"Origin", "http://evil.example"}},
		{200, "POST", []string{"Content-Type", "application/json"}},
		{200, "POST", []string{"Content-Type", "application/json; charset=utf-8", "Origin", "http://" + listen}},
		{200, "POST", []string{"Content-Type", "application/x-www-form-urlencoded"}}, // curl -d
		{415, "POST", []string{"Content-Type", "text/plain"}},
		{415, "POST", nil},
		{403, "POST", []string{"Content-Type", "application/json", "Origin", "http://evil.example"}},
		{403, "POST", []string{"Content-Type", "application/x-www-form-urlencoded", "Origin", "null"}},
		{421, "POST", []string{"Content-Type", "application/json", "Host", "evil.example"}},
	} {
		path, body := "/v1/config/status", ""
		if c.method == "POST" {
			path, body = "/v1/config/validate", dryRun
		}
		resp := ask(listen, c.method, path, body, c.headers...)
		if resp.StatusCode != c.want {
			t.Errorf("%s %v: %s, want %d", c.method, c.headers, resp.Status, c.want)
		}
		h := resp.Header
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("X-Frame-Options") != "DENY" || h.Get("Cache-Control") != "no-store" ||
			!strings.Contains(h.Get("Content-Security-Policy"), "frame-ancestors 'none'") {
			t.Errorf("%s %v: %v", c.method, c.headers, h)
		}
	}
	for path, want := range map[string]int{"/livez": 200, "/metrics": 200, "/": 404, "/v1/config/status": 404} {
		if resp := ask(b.health, "GET", path, "", "Host", "10.2.3.4:9311"); resp.StatusCode != want {
			t.Errorf("%s by address on --health-listen: %s, want %d", path, resp.Status, want)
		}
	}
	if resp := ask(listen, "POST", "/v1/config/validate", strings.Repeat(" ", 17<<10)+dryRun, "Content-Type", "application/json"); resp.StatusCode != 413 {
		t.Errorf("a large body: %s", resp.Status)
	}
	if resp := ask(b.health, "GET", "/livez", "", "X-Large", strings.Repeat("x", 32<<10)); resp.StatusCode != 431 {
		t.Errorf("a large header: %s", resp.Status)
	}
	for _, bad := range []string{"http://dtesn", "dtesn:80", "*", "a,,b"} {
		if code, out := agent(append(b.args(b.state, "127.0.0.1:0"), "--allowed-hosts", bad)...); code != 2 || !strings.Contains(out, "--allowed-hosts: invalid host") {
			t.Errorf("--allowed-hosts %s: exit %d: %s", bad, code, out)
		}
	}
}

// TestSlowClients holds that clients which stop in the middle are closed.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	b := newBesieged(t, 1000)
	const header, body = "GET / HTTP/1.1\r\nHost: localhost\r\nX-", "HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10000\r\n\r\n{"
	listen, control := "127.0.0.1:"+b.port, filepath.Join(b.state, "agent.sock")
	for _, c := range []struct {
		network, addr, text string
		within              time.Duration
	}{
		{"tcp", listen, header, 5 * time.Second},
		{"tcp", b.health, header, 5 * time.Second},
		{"unix", control, header, 5 * time.Second},
		{"tcp", listen, "POST /v1/config/validate " + body, 10 * time.Second},
		{"unix", control, "POST /pause " + body, 10 * time.Second},
		{"tcp", listen, "GET /v1/config/snapshots?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n", 10 * time.Second},
	} {
		t.Run(c.addr+" "+c.text[:12], func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial(c.network, c.addr)
			ok(t, err)
			defer conn.Close()
			_, err = io.WriteString(conn, c.text)
			ok(t, err)
			begun := time.Now()
			gone := func() bool { // what the agent has closed takes no more
				_, err := io.WriteString(conn, " ")
				return err != nil
			}
			b.untilWithin(c.within+10*time.Second, "closed", gone)
			if took := time.Since(begun); took < c.within-time.Second {
				t.Errorf("closed after %s, want %s", took, c.within)
			}
		})
	}
}

// TestDryRunsAreBounded holds that dry runs beside it slow no change down: large ones
// are done one at a time, and answered or told to come later.
func TestDryRunsAreBounded(t *testing.T) {
	t.Parallel()
	b := newBesieged(t, 0)
	values := map[string]int{}
	for i := range 600 {
		values[fmt.Sprintf("esn_reservoir_siz%d", i)] = i
	}
	body, err := json.Marshal(map[string]any{"configuration": values})
	ok(t, err)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	answers := map[string]int{}
	for range 32 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := http.Post("http://127.0.0.1:"+b.port+"/v1/config/validate", "application/json", bytes.NewReader(body))
				if err != nil {
					continue
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "" {
					t.Error("503 without Retry-After")
				}
				mu.Lock()
				answers[resp.Status]++
				mu.Unlock()
			}
		})
	}
	for size := 800; size < 1600; size += 200 {
		b.works(size)
	}
	close(stop)
	wg.Wait()
	if answers["200 OK"] == 0 {
		t.Errorf("%v", answers)
	}
	t.Logf("%v", answers)
}

// TestServerErrorsAreLogged holds that what net/http has to say is in the format of the
// log, and that no stranger fills it.
func TestServerErrorsAreLogged(t *testing.T) {
	t.Parallel()
	b := newBesieged(t, 0, "--log-format", "json")
	pid := b.running.Process.Pid
	var before unix.Rlimit
	ok(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before))
	ok(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 4, Max: before.Max}, nil))
	b.clients(1, "tcp", b.health, "")
	b.clients(1, "unix", filepath.Join(b.state, "agent.sock"), "")
	errorsLogged := func() (n int) {
		text, err := os.ReadFile(b.log)
		ok(t, err)
		return bytes.Count(text, []byte("Accept error"))
	}
	b.until("both servers log that they accept no connection", func() bool { return errorsLogged() >= 2 })
	// net/http tries again every 5 ms at first, and then each second.
	again := time.NewTimer(2 * time.Second)
	<-again.C
	ok(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil))
	b.works(800)
	ok(t, b.running.Process.Signal(syscall.SIGTERM))
	ok(t, b.running.Wait())
	text, err := os.ReadFile(b.log)
	ok(t, err)
	for line := range bytes.Lines(text) {
		if !json.Valid(line) {
			t.Errorf("not in the format: %s", line)
		}
	}
	if n := errorsLogged(); n > 6 {
		t.Errorf("%d lines of two servers:\n%s", n, text)
	}
}

// TestLinksInTheStateDirectory holds that the agent follows no link of the state
// directory to what it makes there, and writes to nothing outside.
func TestLinksInTheStateDirectory(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"agent.sock", "engine.sock", "set-aside"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &besieged{rig: newBareRig(t)}
			b.log = filepath.Join(b.dir, "state.log")
			b.declare(700)
			outside := filepath.Join(b.dir, "outside")
			ok(t, os.Mkdir(outside, 0o700))
			ok(t, os.Mkdir(b.state, 0o700))
			target := outside
			if name == "set-aside" {
				ok(t, os.WriteFile(filepath.Join(b.state, "agent.sock"), nil, 0o600)) // is in the way
			} else {
				target = filepath.Join(outside, "file")
				ok(t, os.WriteFile(target, []byte("kept"), 0o600))
			}
			ok(t, os.Symlink(target, filepath.Join(b.state, name)))
			if name == "set-aside" {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				cmd := exec.CommandContext(ctx, "agent", "run", "--environment", "production", "--config", b.config, "--embedded-engine", "--state", b.state, "--listen", "127.0.0.1:0")
				out, _ := cmd.CombinedOutput()
				if code := cmd.ProcessState.ExitCode(); code != 1 || !bytes.Contains(out, []byte("agent.sock is in the way")) || !bytes.Contains(out, []byte("hint: ")) {
					t.Errorf("exit %d: %s", code, out)
				}
			} else {
				b.start()
				b.works(800)
				if text, err := os.ReadFile(target); err != nil || string(text) != "kept" {
					t.Errorf("the target of the link: %q %v", text, err)
				}
			}
			if entries, err := os.ReadDir(outside); err != nil || len(entries) > 1 || name == "set-aside" && len(entries) > 0 {
				t.Errorf("written outside: %v %v", entries, err)
			}
		})
	}
}
