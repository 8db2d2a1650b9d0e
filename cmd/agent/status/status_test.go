package status

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/dtesn"
	"dtesn-agent/dtesn/api"
	"dtesn-agent/dtesn/engine"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

// production are the rules that most tests need.
var production = schema.Default().For("production")

// bench is a whole agent without its command line: a real store, a real
// engine, the real transaction, and the endpoint on a real port. What is
// broken is broken for real, or in the few functions that this test owns.
type bench struct {
	t          *testing.T
	url        string
	socket     string
	r          *apply.Reconciler
	store      *gitstore.Store
	stopEngine func()

	mu     sync.Mutex
	read   time.Time // last good read of the source
	stuck  bool
	broken error // what Probe says
}

func (b *bench) with(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

// comparing is a client of an engine that says how its schema differs.
type comparing struct{ *dtesn.Client }

func (comparing) Bounds(context.Context) (map[string]api.Bounds, error) {
	return map[string]api.Bounds{"esn_reservoir_size": {Minimum: schema.Int(64), Maximum: schema.Int(128)}}, nil
}

// probing is a store whose probe can be told to fail.
type probing struct {
	*gitstore.Store
	b *bench
}

func (p probing) Probe(ctx context.Context) error {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	if p.b.broken != nil {
		return p.b.broken
	}
	return p.Store.Probe(ctx)
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{t: t, socket: filepath.Join(dir, "e.sock"), read: time.Now()}
	log := slog.New(slog.DiscardHandler)
	store, _, err := gitstore.Open(t.Context(), gitstore.Options{Dir: filepath.Join(dir, "state"), Environment: "production", Instance: "one", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	b.store = store
	b.startEngine("")
	client := dtesn.New(dtesn.Options{Socket: b.socket, Rules: production, Timeout: 5 * time.Second})
	metrics := NewMetrics("test", production)
	b.r = apply.New(apply.Options{
		Rules: production, Instance: "one", Store: probing{store, b}, Engine: comparing{client}, Metrics: metrics, Logger: log,
		Source: files{b}, SourceKind: "file", SourceLocation: "config",
		SourceStale: time.Minute, Socket: b.socket, StateDir: dir, MaxSnapshots: 50, Drift: apply.DriftReport, DriftInterval: 100 * time.Millisecond,
	})
	reader, err := gitstore.OpenReader(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	server := New(Options{
		Source: b.r, History: reader, Rules: production, Metrics: metrics, Stuck: 15 * time.Second, Logger: log,
		Loops: func() map[string]time.Time {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.stuck {
				return map[string]time.Time{"files": time.Now().Add(-time.Minute)}
			}
			return map[string]time.Time{"files": time.Now()}
		},
	})
	listener, err := Listen("--listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.url = "http://" + listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = b.r.Run(ctx) })
	wg.Go(func() {
		if err := server.Serve(ctx, listener, server.Handler()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait(); b.stopEngine(); _ = client.Close(); _ = store.Close() })
	return b
}

// startEngine runs an engine with its defaults on the socket; label pins it.
func (b *bench) startEngine(label string) {
	b.t.Helper()
	e, err := engine.New(engine.Options{Environment: label})
	if err != nil {
		b.t.Fatal(err)
	}
	listener, err := engine.Listen(b.socket)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = e.Serve(ctx, listener) }()
	b.stopEngine = func() { cancel(); <-done }
}

func (b *bench) declare(units string) {
	files := []schema.File{
		{Path: "base.yaml", Bytes: []byte("parameters:\n  max_membrane_depth: 4\n  bseries_max_order: 8\n  enable_caching: true\n  cache_ttl_seconds: 300\n  enable_performance_monitoring: true\n")},
		{Path: "production.yaml", Bytes: []byte("environment: production\ndescription: " + units + " units\nparameters:\n  esn_reservoir_size: " + units + "\n")},
	}
	b.r.Document(&document.Document{Environment: "production", Files: files, Source: document.Source{Kind: "file", Location: "config", Revision: document.FilesRevision(files)}})
}

func (b *bench) ask(method, path, body string) (int, http.Header, []byte) {
	b.t.Helper()
	q, err := http.NewRequestWithContext(b.t.Context(), method, b.url+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	q.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, text
}

func (b *bench) get(path string) (int, map[string]any) {
	b.t.Helper()
	code, _, text := b.ask(http.MethodGet, path, "")
	var v map[string]any
	if err := json.Unmarshal(text, &v); err != nil {
		b.t.Fatalf("%s answers %q: %v", path, text, err)
	}
	return code, v
}

// await waits until ok; what is waited for comes by itself or not at all.
func (b *bench) await(what string, ok func() bool) {
	b.t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-again.C:
		case <-deadline:
			b.t.Fatalf("not %s within 20 s; status: %s", what, Text(b.r.Status(), time.Now()))
		}
	}
}

func (b *bench) code(path string) int { c, _, _ := b.ask(http.MethodGet, path, ""); return c }

// unhealthy are the checks that do not hold.
func (b *bench) unhealthy() string {
	code, v := b.get("/v1/config/health")
	health := v["health"].(map[string]any)
	var bad []string
	for name, ok := range health["checks"].(map[string]any) {
		if ok != true {
			bad = append(bad, name)
		}
	}
	if healthy := len(bad) == 0; healthy != (code == 200) || health["healthy"] != healthy {
		b.t.Errorf("health answers %d with healthy %v while %v fail", code, health["healthy"], bad)
	}
	return strings.Join(bad, " ")
}

// TestReasons takes each reason for not live, not ready and not healthy away
// in turn.
func TestReasons(t *testing.T) {
	b := newBench(t)
	if code := b.code("/readyz"); code != 503 {
		t.Errorf("before anything was applied readyz is %d", code)
	}
	if bad := b.unhealthy(); !strings.Contains(bad, "snapshots_available") || !strings.Contains(bad, "config_loaded") {
		t.Errorf("before anything was applied only %s fail", bad)
	}
	b.declare("1024")
	b.await("ready", func() bool { return b.code("/readyz") == 200 })
	b.await("healthy", func() bool { return b.unhealthy() == "" })

	b.with(func() { b.stuck = true })
	if code, _, text := b.ask("GET", "/livez", ""); code != 503 || !strings.Contains(string(text), "files") {
		t.Errorf("stuck: livez %d %s", code, text)
	}
	b.with(func() { b.stuck = false })
	if code := b.code("/livez"); code != 200 {
		t.Errorf("livez %d", code)
	}

	b.with(func() { b.read = time.Now().Add(-2 * time.Minute) })
	b.await("stale", func() bool { b.r.EngineHint(); return b.unhealthy() == "source_fresh" })
	if code := b.code("/readyz"); code != 200 {
		t.Errorf("a stale source makes readyz %d", code)
	}
	b.with(func() { b.read = time.Now() })
	b.await("fresh", func() bool { b.r.EngineHint(); return b.unhealthy() == "" })

	b.stopEngine()
	b.await("not ready", func() bool { return b.code("/readyz") == 503 })
	if bad := b.unhealthy(); !strings.Contains(bad, "engine_reachable") {
		t.Errorf("without an engine only %q fail", bad)
	}
	b.startEngine("staging") // another environment's
	b.await("wrong environment", func() bool {
		b.r.EngineHint()
		_, v := b.get("/v1/config/status")
		return strings.Contains(v["status"].(map[string]any)["reason"].(string), "wrong engine")
	})
	if bad := b.unhealthy(); !strings.Contains(bad, "engine_environment") || b.code("/readyz") != 503 {
		t.Errorf("with another environment's engine only %q fail", bad)
	}
	b.stopEngine()
	b.startEngine("")
	b.r.EngineHint()
	b.await("ready again", func() bool { return b.code("/readyz") == 200 && b.unhealthy() == "" })

	// Drift that is reported keeps it ready: whoever changed the engine meant it.
	other := dtesn.New(dtesn.Options{Socket: b.socket, Rules: production, Timeout: 5 * time.Second})
	if a := other.Send(t.Context(), api.Batch{Parameters: production.Defaults(), SnapshotID: "snapshot_1_0001"}); a.Verdict != api.VerdictAccepted {
		t.Fatal(a)
	}
	b.await("drifted", func() bool { return b.r.Status().State == apply.StateDrifted })
	if code := b.code("/readyz"); code != 200 {
		t.Errorf("reported drift makes readyz %d", code)
	}
}

func TestShapes(t *testing.T) {
	b := newBench(t)
	b.declare("1024")
	b.await("applied", func() bool { s := b.r.Status(); return s.InSync })
	b.declare("2048")
	b.await("applied", func() bool {
		s := b.r.Status()
		return s.InSync && s.Current.Get("esn_reservoir_size") == schema.Int(2048) && s.TotalSnapshots == 2
	})

	_, v := b.get("/v1/config/snapshots")
	list := v["snapshots"].([]any)
	newest := list[0].(map[string]any)
	if v["total_count"] != 2.0 || len(list) != 2 || newest["is_active"] != true || newest["outcome"] != "applied" || newest["validation_errors"] != nil || newest["description"] != "2048 units" {
		t.Errorf("snapshots: %v", v)
	}
	first := list[1].(map[string]any)["snapshot_id"].(string)
	if _, v := b.get("/v1/config/snapshots?limit=1"); len(v["snapshots"].([]any)) != 1 {
		t.Errorf("limit=1: %v", v)
	}
	if _, v := b.get("/v1/config/snapshots?before=" + newest["snapshot_id"].(string)); len(v["snapshots"].([]any)) != 1 {
		t.Errorf("before: %v", v)
	}
	if _, v := b.get("/v1/config/snapshots/" + first); v["snapshot"].(map[string]any)["snapshot_id"] != first {
		t.Errorf("one snapshot: %v", v)
	}
	_, v = b.get("/v1/config/diff/" + first)
	if d := v["differences"].(map[string]any)["esn_reservoir_size"].(map[string]any); v["total_changes"] != 1.0 || d["current"] != 2048.0 || d["snapshot"] != 1024.0 || d["changed"] != true {
		t.Errorf("diff: %v", v)
	}
	_, v = b.get("/v1/config/current")
	if v["environment"] != "production" || v["snapshot_id"] != newest["snapshot_id"] || len(v["configuration"].(map[string]any)) != len(production.Names()) || len(v["revision"].(string)) != 40 {
		t.Errorf("current: %v", v)
	}
	_, v = b.get("/v1/config/schema")
	info := v["parameter_info"].(map[string]any)["esn_reservoir_size"].(map[string]any)
	if info["type"] != "int" || info["critical"] != true || info["apply"] != "rebuild" || info["range"] != "64-16384" || len(v["environments"].([]any)) != len(production.Schema().Environments()) || v["schema"].(map[string]any)["$schema"] == nil {
		t.Errorf("schema: %v", v)
	}
	if code, _, page := b.ask("GET", "/", ""); code != 200 || !strings.Contains(string(page), "in_sync") || !strings.Contains(string(page), newest["snapshot_id"].(string)) || !strings.Contains(string(page), "engine schema  esn_reservoir_size: the engine accepts 64-128, the schema 64-16384") {
		t.Errorf("page: %d %s", code, page)
	}
	for path, want := range map[string]int{
		"/v1/config/snapshots?limit=0": 400, "/v1/config/snapshots?limit=x": 400, "/v1/config/snapshots?before=snapshot_9_9999": 400,
		"/v1/config/snapshots/snapshot_9_9999": 404, "/v1/config/diff/snapshot_9_9999": 404, "/nothing": 404,
	} {
		code, v := b.get(path)
		if code != want || v["success"] != false || v["message"] == "" {
			t.Errorf("%s: %d %v", path, code, v)
		}
	}
}

func TestNothingCanBeChanged(t *testing.T) {
	b := newBench(t)
	for _, path := range []string{"update", "batch-update", "rollback", "environment"} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
			code, header, text := b.ask(method, "/v1/config/"+path, `{"parameter": "enable_caching", "value": false}`)
			if _, has := header["Allow"]; code != 405 || !has {
				t.Errorf("%s %s: %d, Allow %v", method, path, code, header["Allow"])
			}
			if method != "HEAD" && !regexp.MustCompile(`edit the configuration|agent r`).Match(text) {
				t.Errorf("%s %s does not say how it is done: %s", method, path, text)
			}
		}
	}
	for _, path := range []string{"/", "/v1/config/current", "/v1/config/status", "/v1/config/health", "/metrics", "/livez", "/readyz"} {
		if code, header, _ := b.ask("POST", path, "{}"); code != 405 || header.Get("Allow") != "GET, HEAD" {
			t.Errorf("POST %s: %d, Allow %q", path, code, header.Get("Allow"))
		}
		if code, header, text := b.ask("HEAD", path, ""); code == 405 || len(text) > 0 || header.Get("Content-Type") == "" {
			t.Errorf("HEAD %s: %d %q", path, code, text)
		}
	}
}

func TestDryRun(t *testing.T) {
	b := newBench(t)
	for body, want := range map[string]string{
		`{"parameter": "max_membrane_depth", "value": 100}`:                      "Invalid value for max_membrane_depth: 100",
		`{"parameter": "esn_reservoir_size", "value": 64}`:                       "ESN reservoir size (64) should be at least 128 for membrane depth 4",
		`{"parameter": "esn_reservoir_size", "value": "64"}`:                     "esn_reservoir_size",
		`{"parameter": "esn_resevoir_size", "value": 640}`:                       "esn_resevoir_size",
		`{"configuration": {"max_membrane_depth": 8, "esn_reservoir_size": 64}}`: "should be at least 256 for membrane depth 8",
		`{"parameter": "esn_reservoir_size", "value": 2048}`:                     "",
		`{"configuration": {"max_membrane_depth": 8}}`:                           "",
	} {
		code, _, text := b.ask("POST", "/v1/config/validate", body)
		var v struct {
			Success    bool
			Message    string
			Errors     []string
			Violations []schema.Violation
		}
		if err := json.Unmarshal(text, &v); err != nil || code != 200 || v.Message != "Validation completed" || v.Violations == nil || v.Errors == nil {
			t.Errorf("%s: %d %s (%v)", body, code, text, err)
		}
		if v.Success != (want == "") || !strings.Contains(strings.Join(v.Errors, "\n"), want) {
			t.Errorf("%s: %s, want %q", body, text, want)
		}
	}
	for _, body := range []string{"", "{", "[]", "{}", `{"parameter": "x", "configuration": {}}`, `{"parmeter": "x"}`, `{"parameter": "x", "value": 1} {}`} {
		if code, _, text := b.ask("POST", "/v1/config/validate", body); code != 400 || !strings.Contains(string(text), "invalid dry run") {
			t.Errorf("%.40s: %d %s", body, code, text)
		}
	}
	if code, _, text := b.ask("POST", "/v1/config/validate", `{"parameter": "`+strings.Repeat("x", maxBody)+`"}`); code != 413 || !strings.Contains(string(text), "16 KiB") {
		t.Errorf("a large body: %d %s", code, text)
	}
	if code, header, _ := b.ask("GET", "/v1/config/validate", ""); code != 405 || header.Get("Allow") != "POST" {
		t.Errorf("GET validate: %d %q", code, header.Get("Allow"))
	}
}

// TestMetricsFromTheStart holds that each series of a closed label set is
// there before anything happened.
func TestMetricsFromTheStart(t *testing.T) {
	b := newBench(t)
	_, _, text := b.ask("GET", "/metrics", "")
	want := []string{"dtesn_agent_drift_total 0", "dtesn_agent_in_sync 0", `dtesn_agent_held{cause="operator"} 0`, "dtesn_agent_engine_up", "dtesn_agent_active_snapshots 0", "dtesn_agent_last_apply_successful 0", `dtesn_agent_info{environment="production",schema="` + schema.Default().Digest() + `",version="test"} 1`}
	for _, o := range record.Outcomes() {
		want = append(want, `dtesn_agent_updates_total{outcome="`+string(o)+`"} 0`)
	}
	for _, p := range append(production.Names(), "_document") {
		want = append(want, `dtesn_agent_validation_failures_total{parameter="`+p+`"} 0`)
	}
	for _, s := range stages {
		want = append(want, `dtesn_agent_stage_failures_total{stage="`+s+`"} 0`)
	}
	for _, c := range causes {
		want = append(want, `dtesn_agent_rollbacks_total{cause="`+c+`"} 0`)
	}
	for _, p := range phases {
		want = append(want, `dtesn_agent_update_duration_seconds_count{phase="`+p+`"} 0`)
	}
	for _, l := range loops {
		want = append(want, `dtesn_agent_last_success_timestamp_seconds{loop="`+l+`"}`)
	}
	for _, line := range want {
		if !strings.Contains(string(text), "\n"+line) {
			t.Errorf("no %s", line)
		}
	}
	b.declare("64") // too small for its depth
	b.await("counted", func() bool {
		_, _, text := b.ask("GET", "/metrics", "")
		return strings.Contains(string(text), `dtesn_agent_updates_total{outcome="invalid"} 1`) &&
			strings.Contains(string(text), `dtesn_agent_validation_failures_total{parameter="esn_reservoir_size"} 1`)
	})
	b.declare("1024")
	b.await("counted", func() bool {
		_, _, text := b.ask("GET", "/metrics", "")
		return strings.Contains(string(text), `dtesn_agent_updates_total{outcome="applied"} 1`) &&
			strings.Contains(string(text), `dtesn_agent_parameter{parameter="esn_reservoir_size"} 1024`) &&
			strings.Contains(string(text), "\ndtesn_agent_in_sync 1") && strings.Contains(string(text), "\ndtesn_agent_last_apply_successful 1")
	})
}

// extended are rules with a parameter of every type.
func extended(t *testing.T) *schema.Rules {
	t.Helper()
	path := filepath.Join(t.TempDir(), "more.cue")
	text := `package dtesn
#extends: "dtesn"
#Parameters: {
	quantization?: "int8" | "int4" | "none" @dtesn(apply=rebuild, description="Weights")
	temperature?:  number & >=0 & <=2       @dtesn(description="Sampling temperature")
}
`
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := schema.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s.For("production")
}

// running is a status of an engine that runs the defaults and these values.
func running(rules *schema.Rules, values map[string]schema.Value) *apply.Status {
	p := rules.Defaults()
	for name, v := range values {
		p = p.With(name, v)
	}
	return &apply.Status{Current: &p, MaxSnapshots: 50}
}

// TestMetricsOfEveryType: a number and a bool are values, a text is a label, and
// what the schema does not list is no series.
func TestMetricsOfEveryType(t *testing.T) {
	rules := extended(t)
	half, _ := schema.Number("0.50")
	b := &broken{}
	ask := serve(t, b, rules, slog.New(slog.DiscardHandler))
	series := func(values map[string]schema.Value) (lines []string) {
		t.Helper()
		b.status = running(rules, values)
		_, text := ask("GET", "/metrics", "")
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "dtesn_agent_parameter") {
				lines = append(lines, strings.TrimSuffix(line, "\n"))
			}
		}
		return lines
	}
	defaults := series(nil)
	if len(defaults) != rules.Defaults().Len() || !slices.Contains(defaults, `dtesn_agent_parameter{parameter="enable_caching"} 1`) {
		t.Errorf("the defaults: %q", defaults)
	}
	for _, c := range []struct {
		values map[string]schema.Value
		more   []string
	}{
		{map[string]schema.Value{"temperature": half, "quantization": schema.Text("int8")}, []string{
			`dtesn_agent_parameter{parameter="temperature"} 0.5`, `dtesn_agent_parameter_info{parameter="quantization",value="int8"} 1`,
		}},
		{map[string]schema.Value{"quantization": schema.Text("none")}, []string{`dtesn_agent_parameter_info{parameter="quantization",value="none"} 1`}},
		{map[string]schema.Value{"quantization": schema.Text("int2"), "temperature": schema.Text("hot"), "foreign": schema.Int(1)}, nil},
	} {
		got := series(c.values)
		for _, line := range append(slices.Clone(defaults), c.more...) {
			i := slices.Index(got, line)
			if i < 0 {
				t.Errorf("%v: no %s", c.values, line)
				continue
			}
			got = slices.Delete(got, i, i+1)
		}
		if len(got) > 0 {
			t.Errorf("%v: also %q", c.values, got)
		}
	}
	_, text := ask("GET", "/metrics", "")
	for _, name := range append(rules.Names(), "_document") {
		if !strings.Contains(text, "\n"+`dtesn_agent_validation_failures_total{parameter="`+name+`"} 0`) {
			t.Errorf("no failures of %s", name)
		}
	}
}

// TestAnotherSchema: the description and the dry run are those of the schema that
// the agent was given.
func TestAnotherSchema(t *testing.T) {
	rules := extended(t)
	b := &broken{status: &apply.Status{}} // nothing runs: the defaults lie below
	ask := serve(t, b, rules, slog.New(slog.DiscardHandler))
	_, text := ask("GET", "/v1/config/schema", "")
	var v struct {
		Info map[string]struct {
			Type, Range, Apply string
			Values             []string
			Required, Managed  bool
		} `json:"parameter_info"`
	}
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	if q, n := v.Info["quantization"], v.Info["temperature"]; len(v.Info) != len(rules.Names()) || q.Type != "string" || q.Apply != "rebuild" ||
		!slices.Equal(q.Values, []string{"int8", "int4", "none"}) || q.Required || q.Managed || n.Type != "number" || n.Range != "0-2" {
		t.Errorf("%+v", v.Info)
	}
	dryRun := func(body, want string) {
		t.Helper()
		if code, text := ask("POST", "/v1/config/validate", body); code.StatusCode != 200 || !strings.Contains(text, want) || strings.Contains(text, `"success":true`) != (want == `"errors":[]`) {
			t.Errorf("%s: %d %s, want %s", body, code.StatusCode, text, want)
		}
	}
	const good = `"errors":[]`
	dryRun(`{"parameter": "temperature", "value": 1.50}`, good)
	dryRun(`{"parameter": "quantization", "value": "int5"}`, "did you mean int8?")
	dryRun(`{"parameter": "max_membrane_depth", "value": 32}`, "should be at least 1024 for membrane depth 32")
	// what runs lies below instead; what the schema does not have does not count
	b.status = running(rules, map[string]schema.Value{"esn_reservoir_size": schema.Int(2048), "foreign": schema.Int(1)})
	dryRun(`{"parameter": "max_membrane_depth", "value": 32}`, good)
	dryRun(`{"parameter": "foreign", "value": 1}`, "no parameter is named foreign")
}

func TestHealthListenServesOnlyHealth(t *testing.T) {
	b := newBench(t)
	server := New(Options{Source: b.r, Metrics: NewMetrics("test", production), Loops: func() map[string]time.Time { return nil }, Stuck: time.Second, Logger: slog.New(slog.DiscardHandler)})
	listener, err := Listen("--listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, listener, server.HealthHandler()) }()
	b.url = "http://" + listener.Addr().String()
	for path, want := range map[string]int{"/livez": 200, "/readyz": 503, "/metrics": 200, "/v1/config/current": 404, "/": 404, "/v1/config/validate": 404} {
		if code := b.code(path); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestListen(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:9310", "example.org:80"} {
		if err := new(AccessFiles).Check(addr); err == nil || !strings.Contains(err.Error(), "loopback") {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if err := CheckAddress("9310"); err == nil || !strings.Contains(problem.Text(err), "127.0.0.1:9310") {
		t.Errorf("a bare port: %v", err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := Listen("--listen", taken.Addr().String()); err == nil || !strings.Contains(err.Error(), "in use") || !strings.Contains(problem.Hint(err), "--listen") {
		t.Errorf("in use: %v", err)
	}
}

// files is the source of a bench.
type files struct{ *bench }

func (f files) Status() (string, time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return "inotify", f.read, nil
}
func (files) CheckSigner(document.Source) (*document.Refusal, error) { return nil, nil }
func (files) Sync()                                                  {}
