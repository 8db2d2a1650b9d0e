package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// The agent beside FastAPI servers that mount examples/fastapi/dtesn_config.py.

const dropinFile = "../examples/fastapi/dtesn_config.py"

// A fastapi is a rig with such a server: users over TCP, the agent over the socket.
type fastapi struct {
	*rig
	app    string // "dropin" or "sample"
	tcp    string // http://127.0.0.1:PORT
	memory string // the remember file
	cmd    *exec.Cmd
}

func newFastAPI(t *testing.T, app, misbehave string) *fastapi {
	t.Helper()
	r := newRig(t)
	f := &fastapi{rig: r, app: app, memory: filepath.Join(r.dir, "remembered.json")}
	f.start(misbehave)
	return f
}

// command is a server that is not yet started.
func (f *fastapi) command(misbehave string) *exec.Cmd {
	f.t.Helper()
	port, err := freePort()
	ok(f.t, err)
	f.tcp = "http://127.0.0.1:" + port
	dir := map[string]string{"dropin": "python", "sample": "../examples/fastapi"}[f.app]
	cmd := exec.Command("/usr/bin/python3", "-m", "uvicorn", "--app-dir", dir, f.app+":config", "--port", port, "--no-access-log")
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONPATH=../examples/fastapi", "DTESN_MISBEHAVE="+misbehave,
		"DROPIN_SOCKET="+f.socket, "DROPIN_REMEMBER="+f.memory, "SAMPLE_SOCKET="+f.socket, "SAMPLE_REMEMBER="+f.memory)
	return cmd
}

func (f *fastapi) start(misbehave string) {
	f.t.Helper()
	f.cmd = f.serve(f.command(misbehave))
	f.until("the server answers", func() bool { _, err := f.current(); return err == nil })
}

// stop ends the server as a supervisor does, or as a crash.
func (f *fastapi) stop(signal syscall.Signal) {
	f.t.Helper()
	ok(f.t, f.cmd.Process.Signal(signal))
	_ = f.cmd.Wait()
}

// user sends a request over TCP.
func (f *fastapi) user(method, path, body string, answer any) (int, error) {
	q, err := http.NewRequest(method, f.tcp+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	q.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && answer != nil {
		err = json.Unmarshal(text, answer)
	}
	return resp.StatusCode, err
}

func (f *fastapi) misbehave(how string) {
	f.t.Helper()
	if code, err := f.user(http.MethodPost, "/test/misbehave", how, nil); code != 200 || err != nil {
		f.t.Fatalf("POST /test/misbehave: %d %v", code, err)
	}
}

// A seen is what the server of test/python/dropin.py did.
type seen struct {
	PID                     int
	Builds, Applies, Closes []int
	Told                    []int // by on_change
}

func (f *fastapi) seen() (s seen) {
	f.t.Helper()
	if _, err := f.user(http.MethodGet, "/test/seen", "", &s); err != nil {
		f.t.Fatal(err)
	}
	return s
}

func (f *fastapi) wantBuilds(sizes ...int) {
	f.t.Helper()
	if s := f.seen(); !slices.Equal(s.Builds, sizes) {
		f.t.Errorf("built %v, want %v", s.Builds, sizes)
	}
}

// runs returns what the processor runs, as a user's request finds it.
func (f *fastapi) runs(path string) schema.Parameters {
	f.t.Helper()
	var p schema.Parameters
	if code, err := f.user(http.MethodGet, path, "", &p); code != 200 || err != nil {
		f.t.Fatalf("GET %s: %d %v", path, code, err)
	}
	return p
}

type figures struct {
	Requests, Errors int
	Latency          struct {
		Count   int
		Sum     float64
		Buckets []struct {
			LE    float64
			Count int
		}
	} `json:"latency_seconds"`
}

// A fastapiStatus is the answer to GET status.
type fastapiStatus struct {
	Generation  int
	Revision    string
	Performance figures
	Previous    *figures
	MemoryBytes int64 `json:"memory_bytes"`
}

func (f *fastapi) status() fastapiStatus {
	f.t.Helper()
	var a struct{ Status fastapiStatus }
	ok(f.t, over(f.socket, http.MethodGet, "/v1/config/status", "", &a))
	return a.Status
}

// awaitRuns waits until the server runs size, whatever the agent knew of it before, and
// the agent has seen that.
func (f *fastapi) awaitRuns(size int) {
	f.t.Helper()
	f.until(fmt.Sprintf("%d units run", size), func() bool {
		c, err := f.current()
		return err == nil && sizeOf(c.Configuration) == size && c.Environment == "production"
	})
	f.await("in sync", func(v view) bool { return v.InSync && v.size() == size })
}

// declareTTL changes a parameter that is set at run time.
func (f *fastapi) declareTTL(size, ttl int) {
	f.t.Helper()
	f.write("production.yaml", fmt.Sprintf("environment: production\nparameters:\n  esn_reservoir_size: %d\n  cache_ttl_seconds: %d\n", size, ttl))
}

// awaitHeld waits until what is declared is held, and good runs.
func (f *fastapi) awaitHeld(good int, why string) view {
	f.t.Helper()
	v := f.await("held: "+why, func(v view) bool { return v.State == apply.StateHeld && v.size() == good })
	if v.Attempted.Outcome != record.Rejected || !strings.Contains(v.Attempted.Reason, why) || !v.Ready {
		f.t.Errorf("attempted %+v, ready %v, want the reason %q", v.Attempted, v.Ready, why)
	}
	return v
}

// A traffic is users who ask without a pause, until the test or stop ends it.
type traffic struct {
	users   sync.WaitGroup
	over    chan struct{}
	once    sync.Once
	mu      sync.Mutex
	good    int
	failure []string
}

func (f *fastapi) traffic(paths ...string) *traffic {
	tr := &traffic{over: make(chan struct{})}
	for _, path := range paths {
		tr.users.Go(func() {
			for {
				select {
				case <-tr.over:
					return
				default:
				}
				code, err := f.user(http.MethodGet, path, "", nil)
				tr.mu.Lock()
				if tr.good++; code != 200 || err != nil {
					tr.good--
					tr.failure = append(tr.failure, fmt.Sprintf("%s: %d %v", path, code, err))
				}
				tr.mu.Unlock()
			}
		})
	}
	f.t.Cleanup(tr.stop)
	return tr
}

func (tr *traffic) stop() { tr.once.Do(func() { close(tr.over) }); tr.users.Wait() }

// counts returns how many requests were answered well, and how the others were not.
func (tr *traffic) counts() (int, []string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.good, slices.Clone(tr.failure)
}

// more waits until the users have had n good answers more.
func (f *fastapi) more(tr *traffic, n int) {
	f.t.Helper()
	begun, _ := tr.counts()
	f.until("the users go on", func() bool { now, _ := tr.counts(); return now >= begun+n })
}

// TestFastAPIDropIn holds what the drop-in promises of itself: one file, without
// other packages.
func TestFastAPIDropIn(t *testing.T) {
	text, err := os.ReadFile(dropinFile)
	ok(t, err)
	if n := bytes.Count(text, []byte("\n")); n > 300 {
		t.Errorf("it has %d lines, at most 300 are promised", n)
	}
	needs(t, "/usr/bin/python3")
	// -S leaves only the standard library
	out, err := exec.Command("/usr/bin/python3", "-S", "-B", "-c", `import sys; sys.path.insert(0, sys.argv[1]); import dtesn_config`, filepath.Dir(dropinFile)).CombinedOutput()
	if err != nil {
		t.Errorf("import: %v\n%s", err, out)
	}
}

// Who starts the application itself, or without lifespan, is told what to start.
func TestFastAPINotStarted(t *testing.T) {
	needs(t, "/usr/bin/python3")
	for _, use := range []string{"config.processor", `asyncio.run(config({"type": "http", "path": "/predict"}, None, None))`} {
		out, err := exec.Command("/usr/bin/python3", "-S", "-B", "-c",
			`import asyncio, sys; sys.path.insert(0, sys.argv[1]); import dtesn_config; config = dtesn_config.Config(None, None, "");`+use, filepath.Dir(dropinFile)).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "start server:config in place of server:app") {
			t.Errorf("%s: %v\n%s", use, err, out)
		}
	}
}

// TestFastAPISample runs the example as it is: changes, a rollback, restarts.
func TestFastAPISample(t *testing.T) {
	t.Parallel()
	f := newFastAPI(t, "sample", "{}")
	predicts := func(size int) {
		t.Helper()
		var a struct {
			Predictions []float64
			Size        int `json:"reservoir_size"`
		}
		code, err := f.user(http.MethodPost, "/predict", `{"series": [1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 2], "steps": 2}`, &a)
		if code != 200 || err != nil || a.Size != size || len(a.Predictions) != 2 {
			t.Errorf("predict: %d %v %+v, want %d units", code, err, a, size)
		}
	}
	predicts(512)
	f.declare(640)
	f.agent()
	f.awaitApplied(640)
	predicts(640)
	if v, err := f.view(); err != nil || len(v.Engine.Differences) > 0 {
		t.Errorf("its schema differs: %v %v", v.Engine.Differences, err)
	}
	before := f.status()
	f.declareTTL(640, 77)
	f.await("the TTL is applied", func(v view) bool { return v.InSync && v.ttl() == 77 })
	if s := f.status(); s.Generation != before.Generation || s.Revision == before.Revision || s.Previous == nil {
		t.Errorf("a change at run time: %+v, before %+v", s, before)
	}
	f.write("production.yaml", "environment: production\nparameters:\n  esn_reservoir_size: 704\n  max_membrane_depth: 6\n")
	f.await("704 applied", func(v view) bool { return v.InSync && v.size() == 704 })
	predicts(704)
	f.order("rollback", "--reason", "it burns")
	f.await("rolled back", func(v view) bool { return v.State == apply.StateHeld && v.size() == 640 && v.ttl() == 77 })
	predicts(640)

	records := len(f.snapshots())
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		f.stop(signal)
		f.await("seen to be gone", func(v view) bool { return !v.Ready })
		f.start("{}")
		c, err := f.current()
		if err != nil || sizeOf(c.Configuration) != 640 || ttlOf(c.Configuration) != 77 || c.Environment != "production" {
			t.Errorf("after %v it comes up on %+v %v", signal, c, err)
		}
		f.await("ready again", func(v view) bool { return v.Ready && v.size() == 640 })
		predicts(640)
		if s := f.status(); s.Generation != 1 {
			t.Errorf("after %v it was built %d times", signal, s.Generation)
		}
	}
	if n := len(f.snapshots()); n != records {
		t.Errorf("restarts made %d records", n-records)
	}
	f.wantMetric("dtesn_agent_drift_total", 0)
}

// TestFastAPIRefuses holds that whatever a hook does, the old processor serves on
// and the reason arrives.
func TestFastAPIRefuses(t *testing.T) {
	t.Parallel()
	f := newFastAPI(t, "dropin", "{}")
	f.declare(1024)
	f.agent()
	f.awaitApplied(1024)
	good := 1024
	for n, c := range []struct{ how, why string }{
		{`{"admit": "the limit is 2000 units"}`, "the limit is 2000 units"},
		{`{"build": true}`, fmt.Sprintf("MemoryError: no memory for %d units", 3001)},
		{`{"build": "SystemExit"}`, "SystemExit: the driver is lost"},
		{`{"build": "KeyboardInterrupt"}`, "KeyboardInterrupt: the driver is lost"},
		{`{"build": "StopIteration"}`, "StopIteration: the driver is lost"},
		{`{"build": "GeneratorExit"}`, "GeneratorExit: the driver is lost"},
		{`{"build": "CancelledError"}`, "CancelledError: the driver is lost"},
		{`{"build": "Mute"}`, "ValueError: no text"},
		{`{"on_change": "raise"}`, "ValueError: the dashboard is down"},
		{`{"on_change": "async"}`, "ValueError: the dashboard is asynchronously down"},
	} {
		f.misbehave(c.how)
		f.declare(3000 + n)
		f.awaitHeld(good, c.why)
		if p := f.runs("/work"); sizeOf(p) != good {
			t.Errorf("%s: users get %v", c.how, p)
		}
		f.misbehave(`{"admit": "", "build": false, "on_change": ""}`)
		good = 1100 + n
		f.declare(good)
		f.awaitApplied(good)
	}
	f.misbehave(`{"apply": true}`)
	f.declareTTL(good, 999)
	f.awaitHeld(good, "RuntimeError: the cache does not answer")
	for _, path := range []string{"/work", "/work-in-a-thread"} {
		if p := f.runs(path); ttlOf(p) != 300 || sizeOf(p) != good {
			t.Errorf("%s: half of a change runs: %v", path, p)
		}
	}
	f.declareTTL(good, 998)
	f.await("applied", func(v view) bool { return v.InSync && v.ttl() == 998 })
	if p := f.runs("/work"); ttlOf(p) != 998 {
		t.Errorf("users get %v", p)
	}
	f.wantBuilds(512, 1024, 1100, 3001, 1101, 3002, 1102, 3003, 1103, 3004, 1104, 3005, 1105, 3006, 1106, 3007, 1107, 1108, 1109)
	told := []int{1024, 1100}
	for n := 1; n < 10; n++ { // admit refused the first one before
		told = append(told, 3000+n, 1100+n)
	}
	told = append(told, 1109, 1109) // two of the TTL
	if s := f.seen(); !slices.Equal(s.Told, told) {
		t.Errorf("on_change was told %v, want %v", s.Told, told)
	}
	f.wantMetric("dtesn_agent_drift_total", 0)
}

// TestFastAPISwap holds that users see no failure while processors are swapped: each
// request has one processor, which is ended after its last request.
func TestFastAPISwap(t *testing.T) {
	t.Parallel()
	f := newFastAPI(t, "dropin", `{"slow": 0.2}`)
	f.declare(1024)
	f.agent()
	f.awaitApplied(1024)
	tr := f.traffic("/work", "/work?seconds=0.05", "/work?seconds=0.3", "/work-in-a-thread")
	f.more(tr, 20)
	for size := 1100; size < 1104; size++ {
		f.declare(size)
		f.awaitApplied(size)
	}
	long := make(chan error, 1)
	go func() {
		var p schema.Parameters
		code, err := f.user(http.MethodGet, "/work?seconds=3", "", &p)
		if err == nil && (code != 200 || sizeOf(p) != 1103) {
			err = fmt.Errorf("%d, %v", code, p)
		}
		long <- err
	}()
	f.more(tr, 50) // by now it has begun
	f.declare(1104)
	f.awaitApplied(1104)
	select {
	case err := <-long:
		t.Errorf("the long request ended before the swap: %v", err)
	default:
		if s := f.seen(); slices.Contains(s.Closes, 1103) {
			t.Errorf("a processor was ended within a request: %v", s.Closes)
		}
		if err := <-long; err != nil {
			t.Errorf("the long request: %v", err)
		}
	}
	f.until("the old processors are ended", func() bool { return len(f.seen().Closes) == 6 })
	f.more(tr, 50)
	tr.stop()
	good, failures := tr.counts()
	if len(failures) > 0 {
		t.Errorf("%d requests of %d failed: %v", len(failures), good, failures[:min(3, len(failures))])
	}
	f.wantBuilds(512, 1024, 1100, 1101, 1102, 1103, 1104)

	s := f.status()
	if s.Generation != 7 || s.Previous == nil || s.Previous.Requests == 0 || s.Performance.Requests == 0 || s.MemoryBytes < 1<<20 {
		t.Errorf("status %+v", s)
	}
	for _, p := range []figures{s.Performance, *s.Previous} {
		last := p.Latency.Buckets[len(p.Latency.Buckets)-1].Count
		sorted := slices.IsSortedFunc(p.Latency.Buckets, func(a, b struct {
			LE    float64
			Count int
		},
		) int {
			return a.Count - b.Count
		})
		if p.Errors != 0 || p.Latency.Count != p.Requests || last != p.Requests || !sorted || p.Latency.Sum <= 0 {
			t.Errorf("figures %+v", p)
		}
	}
	if code, err := f.user(http.MethodGet, "/broken", "", nil); err == nil {
		t.Errorf("half an answer: %d", code)
	}
	f.until("it counts as an error", func() bool { return f.status().Performance.Errors == 1 })
}

// TestFastAPIProbation holds that a change under traffic passes its probation, and
// that one on which requests fail does not.
func TestFastAPIProbation(t *testing.T) {
	t.Parallel()
	f := newFastAPI(t, "dropin", "{}")
	f.declare(1024)
	f.agent("--probation", "3s")
	f.awaitApplied(1024)
	tr := f.traffic("/work?seconds=0.02", "/work-in-a-thread")
	f.more(tr, 20)
	f.declare(1100)
	f.await("on probation", func(v view) bool { return v.State == apply.StateProbation && v.size() == 1100 })
	f.awaitApplied(1100)
	if _, failures := tr.counts(); len(failures) > 0 {
		t.Errorf("requests failed: %v", failures[:1])
	}
	f.misbehave(`{"fail": true}`)
	f.declare(3000)
	v := f.awaitHeld(1100, "error_rate")
	if v.Held.By != "probation" {
		t.Errorf("held %+v", v.Held)
	}
	if s := f.status(); s.Previous == nil || s.Previous.Errors < 3 {
		t.Errorf("the errors of the previous configuration are lost: %+v", s.Previous)
	}
	_, failures := tr.counts()
	f.more(tr, 100)
	tr.stop()
	// a request of the failing processor may end after its revert was read
	if _, now := tr.counts(); len(failures) == 0 || len(now) > len(failures)+2 {
		t.Errorf("%d requests failed on it, %d after it", len(failures), len(now)-len(failures))
	}
}

// TestFastAPIMiddleware holds that the middleware of the application, which limits,
// blocks and fails, never meets the agent.
func TestFastAPIMiddleware(t *testing.T) {
	t.Parallel()
	f := newFastAPI(t, "dropin", `{"guarded": true, "burst": 3}`)
	f.declare(1024)
	f.agent("--probation", "5s", "--drift-interval", "100ms")
	f.awaitApplied(1024)
	f.declare(1100)
	f.awaitApplied(1100)
	if code, err := f.user(http.MethodPost, "/test/misbehave", "{}", nil); code != 500 || err != nil {
		t.Errorf("a user's JSON: %d %v", code, err)
	}
	f.until("users are limited", func() bool { code, _ := f.user(http.MethodGet, "/work", "", nil); return code == 429 })
	f.declare(1200)
	f.awaitApplied(1200)
	f.wantMetric(`dtesn_agent_updates_total{outcome="rejected"}`, 0)
}

// building is what GET current says that is being built; "" for nothing.
func (f *fastapi) building() string {
	f.t.Helper()
	var c struct {
		Building *struct {
			Revision string
			Since    float64
		}
	}
	if err := over(f.socket, http.MethodGet, "/v1/config/current", "", &c); err != nil || c.Building == nil {
		return ""
	}
	if age := float64(time.Now().UnixMilli())/1000 - c.Building.Since; age < -1 || age > 60 {
		f.t.Errorf("it is said to be building for %v s", age)
	}
	return c.Building.Revision
}

// TestFastAPISlowBuild holds that a build which takes longer than --engine-timeout
// is one build, whatever the agent asks meanwhile.
func TestFastAPISlowBuild(t *testing.T) {
	t.Parallel()
	f := newFastAPI(t, "dropin", "{}")
	f.declare(1024)
	f.agent("--engine-timeout", "2s", "--drift-interval", "1s")
	f.awaitApplied(1024)
	f.misbehave(`{"slow": 5}`)
	tr := f.traffic("/work")

	f.declare(1100)
	f.until("it builds", func() bool { return f.building() != "" })
	if c, err := f.current(); err != nil || sizeOf(c.Configuration) != 1024 {
		t.Errorf("while it builds the server says that it runs %+v %v", c, err)
	}
	f.await("it is applying, and says since when", func(v view) bool {
		if v.State == apply.StateDegraded {
			t.Errorf("it is degraded: %s", v.Reason)
		}
		return v.State == apply.StateApplying && strings.Contains(v.Reason, "the engine builds snapshot_") && strings.Contains(v.Reason, " since ")
	})
	f.awaitApplied(1100)
	if v, err := f.view(); err != nil || v.Running.Revision != f.status().Revision {
		t.Errorf("revision %s, the record is %+v %v", f.status().Revision, v.Running, err)
	}
	f.wantBuilds(512, 1024, 1100)

	f.declare(1101)
	f.until("it builds again", func() bool { return f.building() != "" })
	f.declare(1100) // withdrawn
	f.await("what was withdrawn is not in sync while it is built", func(v view) bool {
		if v.InSync && f.building() != "" {
			t.Errorf("in sync while it builds: %s (%s)", v.State, v.Reason)
		}
		return v.State == apply.StateApplying && v.Attempted.Outcome != record.Pending
	})
	f.until("the useless build is over, and the next one as well", func() bool { return len(f.seen().Builds) >= 5 && f.building() == "" })
	f.awaitRuns(1100)
	f.wantBuilds(512, 1024, 1100, 1101, 1100)
	tr.stop()
	if _, failures := tr.counts(); len(failures) > 0 {
		t.Errorf("requests failed: %v", failures[:1])
	}

	f.declare(1102)
	f.until("it builds once more", func() bool { return f.building() != "" })
	f.stop(syscall.SIGKILL)
	f.start("{}")
	if s := f.seen(); !slices.Equal(s.Builds[:1], []int{1100}) {
		t.Errorf("killed while it built, it came up on %v", s.Builds)
	}
	f.awaitApplied(1102)
	f.wantBuilds(1100, 1102)
	f.wantMetric(`dtesn_agent_updates_total{outcome="rejected"}`, 0)
	f.wantMetric("dtesn_agent_drift_total", 0)
}

// reply sends one request to the socket and returns the status and the answer.
func (f *fastapi) reply(request string) (int, string) {
	f.t.Helper()
	conn, err := net.Dial("unix", f.socket)
	ok(f.t, err)
	defer conn.Close()
	ok(f.t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, _ = io.WriteString(conn, request) // what is too long is answered before it is read
	text, _ := io.ReadAll(conn)
	var status int
	_, _ = fmt.Sscanf(string(text), "HTTP/1.1 %d", &status)
	_, body, _ := strings.Cut(string(text), "\r\n\r\n")
	return status, body
}

// batchOf is a request with the body.
func batchOf(body string) string {
	return fmt.Sprintf("POST /v1/config/batch-update HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func oneUpdate(name, value string) string {
	return batchOf(fmt.Sprintf(`{"updates": [{"parameter": %q, "value": %s}]}`, name, value))
}

// TestFastAPIIsStrict holds that what is not exactly right changes nothing.
func TestFastAPIIsStrict(t *testing.T) {
	t.Parallel()
	f := newFastAPI(t, "dropin", `{"admit": "the limit is 2000 units"}`)
	const size = `{"parameter": "esn_reservoir_size", "value": 640`
	for _, c := range []struct {
		what, request string
		status        int
		want          string
	}{
		{"a bool for an integer", oneUpdate("max_membrane_depth", "true"), 200, "Invalid value for max_membrane_depth: true"},
		{"an integer for a bool", oneUpdate("enable_caching", "1"), 200, "Invalid value for enable_caching: 1"},
		{"a float for an integer", oneUpdate("esn_reservoir_size", "640.0"), 200, "Invalid value for esn_reservoir_size"},
		{"a text for an integer", oneUpdate("esn_reservoir_size", `"640"`), 200, "Invalid value for esn_reservoir_size"},
		{"null", oneUpdate("esn_reservoir_size", "null"), 200, "Invalid value for esn_reservoir_size: null"},
		{"out of range", oneUpdate("esn_reservoir_size", "63"), 200, "Invalid value for esn_reservoir_size: 63"},
		{"infinite", oneUpdate("cache_ttl_seconds", "1e999"), 200, "Invalid value for cache_ttl_seconds"},
		{"many digits", oneUpdate("cache_ttl_seconds", strings.Repeat("9", 5000)), 400, "not JSON"},
		{"not a number", oneUpdate("cache_ttl_seconds", "NaN"), 400, "NaN"},
		{"unknown", oneUpdate("esn_resevoir_size", "640"), 200, "Unknown parameter: esn_resevoir_size"},
		{"other case", oneUpdate("ESN_reservoir_size", "640"), 200, "Unknown parameter: ESN_reservoir_size"},
		{"half unknown", batchOf(`{"updates": [` + size + `}, {"parameter": "x", "value": 1}]}`), 200, "Unknown parameter: x"},
		{"half invalid", batchOf(`{"updates": [` + size + `}, {"parameter": "max_membrane_depth", "value": 65}]}`), 200, "max_membrane_depth"},
		{"twice", batchOf(`{"updates": [` + size + `}, ` + size + `}]}`), 400, "twice"},
		{"a name twice", batchOf(`{"updates": [` + size + `, "value": 641}]}`), 400, "twice"},
		{"no value", batchOf(`{"updates": [{"parameter": "esn_reservoir_size"}]}`), 400, "without a value"},
		{"no updates", batchOf(`{"updates": []}`), 400, "without a value"},
		{"another type", batchOf(`{"updates": {"parameter": "esn_reservoir_size", "value": 640}}`), 400, "updates is not of the type list"},
		{"no object", batchOf(`[]`), 400, "updates is not"},
		{"no body", batchOf(``), 400, "without a value"},
		{"two values", batchOf(`{"updates": [` + size + `}]} {}`), 400, "not JSON"},
		{"no JSON", batchOf(`{"updates": [` + size + `}],}`), 400, "not JSON"},
		{"a broken text", batchOf("{\"updates\": [" + size + ", \"description\": \"\xff\"}]}"), 400, "not JSON"},
		{"deep", batchOf(strings.Repeat("[", 100_000)), 400, "not JSON"},
		{"another environment", batchOf(`{"updates": [` + size + `, "environment": "staging"}]}`), 403, "this server is labelled development"},
		{"a list for the environment", batchOf(`{"updates": [` + size + `, "environment": ["staging"]}]}`), 400, "environment is not of the type str"},
		{"a dry run", batchOf(`{"updates": [` + size + `}], "validate_only": true}`), 200, `"success": true, "message": "valid"`},
		{"a dry run of one", batchOf(`{"updates": [` + size + `, "validate_only": true}]}`), 200, `"success": true, "message": "valid"`},
		{"a dry run that is refused", batchOf(`{"updates": [{"parameter": "esn_reservoir_size", "value": 4000}], "validate_only": true}`), 200, "the limit is 2000 units"},
		{"validate_only of another type", batchOf(`{"updates": [` + size + `}], "validate_only": 1}`), 400, "validate_only is not of the type bool"},
		{"a label", "POST /v1/config/environment HTTP/1.1\r\nContent-Length: 25\r\n\r\n" + `{"environment":"prodution"}`[:25], 400, "not JSON"},
		{"an unknown label", "POST /v1/config/environment HTTP/1.1\r\nContent-Length: 27\r\n\r\n" + `{"environment":"prodution"}`, 400, "Unknown environment: prodution"},
		{"too long", "POST /v1/config/batch-update HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n", 413, "Content-Length"},
		{"chunked", "POST /v1/config/batch-update HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413, "Content-Length"},
		{"two lengths", "POST /v1/config/batch-update HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 413, "Content-Length"},
		{"a negative length", "POST /v1/config/batch-update HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 413, "Content-Length"},
		{"another path", "GET /v1/config/currents HTTP/1.1\r\n\r\n", 404, "GET current"},
		{"another method", "PUT /v1/config/batch-update HTTP/1.1\r\n\r\n", 404, "POST batch-update"},
		{"a route of the application", "GET /work HTTP/1.1\r\n\r\n", 404, "no GET /work"},
		{"a header without end", "GET /v1/config/current HTTP/1.1\r\nX: " + strings.Repeat("x", 200_000), 0, ""},
	} {
		status, body := f.reply(c.request)
		if status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s, want %d and %q", c.what, status, body, c.status, c.want)
		}
	}
	if c, err := f.current(); err != nil || !c.Configuration.Equal(production.Defaults()) || c.Environment != "development" {
		t.Errorf("something was changed: %+v %v", c, err)
	}
	f.wantBuilds(512)

	for _, path := range []string{
		"/v1/config/current", "/v1/config/status", "/v1/config/health", "/v1/config/schema", "/v1/config", "/v1%2Fconfig/current",
		"/v1/config/current/", "//v1/config/current", "/x/../v1/config/current",
	} {
		if code, err := f.user(http.MethodGet, path, "", nil); code != 404 || err != nil {
			t.Errorf("GET %s over TCP: %d %v", path, code, err)
		}
	}
	for _, path := range []string{"/v1/config/batch-update", "/v1/config/environment"} {
		if code, err := f.user(http.MethodPost, path, `{"updates": [`+size+`}], "environment": "staging"}`, nil); code != 404 || err != nil {
			t.Errorf("POST %s over TCP: %d %v", path, code, err)
		}
	}
	if info, err := os.Stat(f.socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v %v", info, err)
	}
}

// TestFastAPIInOrder holds that batches run one at a time in the order of arrival,
// that one which is sent again is not built again, and that one whose sender left
// before its turn is dropped.
func TestFastAPIInOrder(t *testing.T) {
	t.Parallel()
	f := newFastAPI(t, "dropin", "{}")
	f.misbehave(`{"slow": 1}`)
	send := func(size int) net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", f.socket)
		ok(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		_, err = io.WriteString(conn, oneUpdate("esn_reservoir_size", fmt.Sprint(size)))
		ok(t, err)
		return conn
	}
	first := send(700)
	f.until("it builds", func() bool { return f.building() == "" && len(f.seen().Builds) == 2 })
	same := send(700)
	ok(t, send(800).Close())
	last := send(900)
	for _, conn := range []net.Conn{first, same, last} {
		ok(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
		if text, err := io.ReadAll(conn); err != nil || !strings.Contains(string(text), `"success": true`) {
			t.Errorf("%s %v", text, err)
		}
	}
	f.wantBuilds(512, 700, 900)
	if c, err := f.current(); err != nil || sizeOf(c.Configuration) != 900 {
		t.Errorf("it runs %+v %v", c, err)
	}
}

// TestFastAPIRemembers holds what becomes of a remember file that cannot be used, and
// of one that cannot be written.
// TestFastAPICloseHangs holds that a close which never ends keeps nobody from changing.
func TestFastAPICloseHangs(t *testing.T) {
	t.Parallel()
	f := newFastAPI(t, "dropin", `{"close": true}`)
	f.declare(1024)
	f.agent()
	f.awaitApplied(1024)
	for size := 1100; size < 1140; size++ { // more than there are threads
		f.declare(size)
		f.awaitApplied(size)
	}
	if p := f.runs("/work-in-a-thread"); sizeOf(p) != 1139 {
		t.Errorf("users get %v", p)
	}
	f.stop(syscall.SIGKILL) // its end would wait for close
}

func TestFastAPIRemembers(t *testing.T) {
	t.Parallel()
	f := newFastAPI(t, "dropin", "{}")
	f.declare(1024)
	f.agent()
	f.awaitApplied(1024)
	for _, text := range []string{"", "{}", "\xff", `{"configuration": {"esn_reservoir_size": true}, "environment": "production", "revision": ""}`, strings.Repeat("[", 100_000)} {
		f.stop(syscall.SIGKILL)
		ok(t, os.WriteFile(f.memory, []byte(text), 0o600))
		f.start("{}")
		f.awaitRuns(1024)
		f.wantBuilds(512, 1024)
	}
	f.stop(syscall.SIGKILL) // what it remembers it cannot build any more
	ok(t, os.WriteFile(f.memory, []byte(`{"configuration": {"esn_reservoir_size": 3000}, "environment": "production", "revision": ""}`), 0o600))
	f.start(`{"build": "StopIteration"}`)
	f.awaitRuns(1024)
	f.wantBuilds(3000, 512, 1024)
	f.stop(syscall.SIGTERM)
	if _, err := os.Stat(f.socket); err == nil {
		t.Error("a server that was stopped left its socket")
	}
	f.start("{}")
	f.wantBuilds(1024)

	ok(t, os.Remove(f.memory))
	ok(t, os.MkdirAll(f.memory+".new", 0o755)) // it cannot be written
	f.declare(1100)
	f.awaitApplied(1100)
	f.stop(syscall.SIGKILL)
	f.start("{}")
	f.awaitRuns(1100)
	f.wantMetric("dtesn_agent_drift_total", 0)
}

// TestFastAPIOneServer holds that a second server, or worker, does not take the
// socket of one that runs, nor a file that is no socket.
func TestFastAPIOneServer(t *testing.T) {
	t.Parallel()
	f := newFastAPI(t, "dropin", "{}")
	first := f.tcp
	refused := func(why string) {
		t.Helper()
		second := f.serve(f.command("{}"))
		ended := make(chan error, 1)
		go func() { ended <- second.Wait() }()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Fatalf("it did not end: %s", f.evidence())
		}
		text, err := os.ReadFile(filepath.Join(f.dir, fmt.Sprintf("server%d.log", f.servers)))
		if err != nil || !strings.Contains(string(text), why) || !strings.Contains(string(text), "startup failed") {
			t.Errorf("it says %s %v", text, err)
		}
	}
	refused("belongs to another server or worker: start one")
	f.tcp = first
	if c, err := f.current(); err != nil || sizeOf(c.Configuration) != 512 {
		t.Errorf("the first one says %+v %v", c, err)
	}
	f.wantBuilds(512)
	f.stop(syscall.SIGTERM)
	ok(t, os.WriteFile(f.socket, []byte("mine"), 0o600))
	refused("in use")
	if text, err := os.ReadFile(f.socket); err != nil || string(text) != "mine" {
		t.Errorf("the file is %q %v", text, err)
	}
}
