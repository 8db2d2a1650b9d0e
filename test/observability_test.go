package test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"dtesn-agent/apply"
	"dtesn-agent/test/gitserver"
)

const observability = "../examples/observability/"

// tool returns the path of a program that test/packages unpacks.
func tool(t *testing.T, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	path := filepath.Join("/usr/local/lib/dtesn-agent-test", name)
	needs(t, path)
	return path
}

// An alert is a rule of alerts.yaml.
type alert struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func alerts(t *testing.T) []alert {
	t.Helper()
	text, err := os.ReadFile(observability + "alerts.yaml")
	ok(t, err)
	var file struct {
		Groups []struct {
			Name  string  `json:"name"`
			Rules []alert `json:"rules"`
		} `json:"groups"`
	}
	ok(t, yaml.UnmarshalStrict(text, &file))
	if len(file.Groups) != 1 || len(file.Groups[0].Rules) == 0 {
		t.Fatalf("%+v", file)
	}
	return file.Groups[0].Rules
}

// TestAlerts holds that each alert fires when it should, which a unit test of its own
// shows, and leads to a section of the runbook.
func TestAlerts(t *testing.T) {
	t.Parallel()
	promtool := tool(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = observability
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
	text, err := os.ReadFile(observability + "alerts_test.yaml")
	ok(t, err)
	var file struct {
		Tests []struct {
			Name  string `json:"name"`
			Rules []struct {
				Name   string `json:"alertname"`
				Alerts []any  `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		} `json:"tests"`
	}
	ok(t, yaml.Unmarshal(text, &file))
	fires, rests := map[string]bool{}, map[string]bool{}
	for _, test := range file.Tests {
		for _, r := range test.Rules {
			fires[r.Name] = fires[r.Name] || len(r.Alerts) > 0
			rests[r.Name] = rests[r.Name] || len(r.Alerts) == 0
		}
	}
	runbook, err := os.ReadFile("../docs/runbook.md")
	ok(t, err)
	var headings []string
	for _, m := range regexp.MustCompile(`(?m)^## (.+)$`).FindAllStringSubmatch(string(runbook), -1) {
		headings = append(headings, m[1])
	}
	var names []string
	for _, a := range alerts(t) {
		names = append(names, a.Alert)
		if !fires[a.Alert] || !rests[a.Alert] {
			t.Errorf("%s has no test that it fires, or none that it does not", a.Alert)
		}
		if s := a.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q", a.Alert, s)
		}
		if a.Annotations["summary"] == "" || a.Annotations["description"] == "" || !strings.HasSuffix(a.Annotations["runbook_url"], "/docs/runbook.md#"+strings.ToLower(a.Alert)) {
			t.Errorf("%s: %q", a.Alert, a.Annotations)
		}
	}
	if !slices.Equal(headings, names) {
		t.Errorf("the runbook has sections for\n%q, the alerts are\n%q", headings, names)
	}
}

// A prom is a Prometheus that scrapes an agent.
type prom struct {
	*testing.T
	url string
}

func newPrometheus(t *testing.T, target string) *prom {
	t.Helper()
	dir := t.TempDir()
	rules, err := filepath.Abs(observability + "alerts.yaml")
	ok(t, err)
	config := filepath.Join(dir, "prometheus.yml")
	ok(t, os.WriteFile(config, fmt.Appendf(nil, `
global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}
rule_files: [%q]
scrape_configs: [{job_name: dtesn-agent, static_configs: [{targets: [%q]}]}]
`, rules, target), 0o600))
	port, err := freePort()
	ok(t, err)
	cmd := exec.Command(tool(t, "prometheus"), "--config.file", config, "--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", "127.0.0.1:"+port, "--log.level", "warn")
	log, err := os.Create(filepath.Join(dir, "log"))
	ok(t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	ok(t, cmd.Start())
	t.Cleanup(func() {
		kill(cmd)
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("prometheus:\n%s", text)
		}
	})
	return &prom{t, "http://127.0.0.1:" + port}
}

// ask asks the API for data; an error is also what it says is one.
func (p *prom) ask(path string, query url.Values, data any) error {
	resp, err := http.Get(p.url + "/api/v1/" + path + "?" + query.Encode())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var answer struct {
		Status, Error string
		Warnings      []string
		Data          json.RawMessage
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return fmt.Errorf("%s: %w", text, err)
	}
	if answer.Status != "success" || len(answer.Warnings) > 0 {
		return fmt.Errorf("%s %q", answer.Error, answer.Warnings)
	}
	return json.Unmarshal(answer.Data, data)
}

// A sample is a series of a result, as it is now.
type sample struct {
	Metric map[string]string
	Value  [2]any // time and number
}

func (s sample) number() float64 {
	text, _ := s.Value[1].(string)
	n, _ := strconv.ParseFloat(text, 64)
	return n
}

func (p *prom) query(expr string) (samples []sample, err error) {
	var data struct{ Result []sample }
	err = p.ask("query", url.Values{"query": {expr}}, &data)
	return data.Result, err
}

// value returns the one sample of expr, -1 if there is another number of them.
func (p *prom) value(expr string) float64 {
	samples, err := p.query(expr)
	if err != nil || len(samples) != 1 {
		return -1
	}
	return samples[0].number()
}

// dashboard returns the queries of the dashboard, by the titles of the panels.
func dashboard(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(observability + "dashboard.json")
	ok(t, err)
	var board struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	ok(t, json.Unmarshal(text, &board))
	queries, ids := map[string][]string{}, map[int]bool{}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			queries[p.Title] = append(queries[p.Title], target.Expr)
		}
		if queries[p.Title] == nil || ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %q: %+v", p.Title, p)
		}
		ids[p.ID] = true
	}
	return queries
}

// TestDashboard holds, with a real Prometheus and a real agent, that each query of the
// dashboard and of the alerts is answered from what the agent serves, that no alert is
// about an agent that is well, and that a restart forgets nothing.
func TestDashboard(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	file := filepath.Join(r.dir, "hooks.yaml")
	ok(t, os.WriteFile(file, []byte("- {name: chat, command: [cat]}\n"), 0o600))
	policy := filepath.Join(r.dir, "policy")
	ok(t, os.Mkdir(policy, 0o755))
	ok(t, os.WriteFile(filepath.Join(policy, "policy.cue"), []byte("deny: {}\n"), 0o600))
	port, err := freePort()
	ok(t, err)
	health, cert := "127.0.0.1:"+port, gitserver.NewCert(t, r.dir, "server")
	start := func() *exec.Cmd {
		return r.embedded(func(cmd *exec.Cmd) {
			cmd.Path, cmd.Args = shippedAgent(t), append(cmd.Args, "--health-listen", health, "--hooks", file, "--policy", policy, "--tls-cert-file", cert.CertFile, "--tls-key-file", cert.KeyFile)
		})
	}
	r.declare(700)
	running := start()
	r.await("applied", func(v view) bool { return v.State == apply.StateInSync })
	p := newPrometheus(t, health)
	r.until("the agent is scraped", func() bool { return p.value("dtesn_agent_in_sync") == 1 })
	for size := 701; size < 704; size++ {
		r.declare(size)
		r.until("the change is scraped", func() bool {
			return p.value(fmt.Sprintf("dtesn_agent_parameter{parameter=%q}", sizeName)) == float64(size)
		})
	}
	expand := strings.NewReplacer("$instance", ".*", "$__rate_interval", "1m")
	used := map[string]bool{}
	uses := func(expr string) {
		for _, name := range regexp.MustCompile(`\b(?:dtesn|go|process)_\w+`).FindAllString(expr, -1) {
			used[name] = true
		}
	}
	queries := dashboard(t)
	for title, exprs := range queries {
		for _, expr := range exprs {
			uses(expr)
			if strings.Contains(expand.Replace(expr), "$") {
				t.Errorf("%s: unknown variable in %s", title, expr)
			}
			r.until(title+": a result of "+expr, func() bool {
				samples, err := p.query(expand.Replace(expr))
				ok(t, err)
				return len(samples) > 0
			})
		}
	}
	r.until("changes are an increase", func() bool {
		return p.value(`sum(increase(dtesn_agent_updates_total{outcome="applied"}[1m]))`) > 0
	})
	for _, a := range alerts(t) {
		uses(a.Expr)
	}
	var names []string
	ok(t, p.ask("label/__name__/values", nil, &names))
	for name := range used {
		if !slices.Contains(names, name) {
			t.Errorf("the agent does not serve %s", name)
		}
	}
	if len(queries) < 15 || len(used) < 20 {
		t.Errorf("only %d panels and %d metrics were looked at", len(queries), len(used))
	}

	type rule struct {
		Name, State, Health string
	}
	rules := func() (list []rule) {
		var data struct{ Groups []struct{ Rules []rule } }
		ok(t, p.ask("rules", nil, &data))
		return data.Groups[0].Rules
	}
	r.until("every alert is evaluated and inactive", func() bool {
		return !slices.ContainsFunc(rules(), func(r rule) bool { return r.Health != "ok" || r.State != "inactive" })
	})

	before := map[string]float64{}
	stamp := func(loop string) string {
		return fmt.Sprintf("dtesn_agent_last_success_timestamp_seconds{loop=%q}", loop)
	}
	for _, loop := range []string{"source", "engine", "transaction"} {
		r.until("the time of "+loop, func() bool { before[loop] = p.value(stamp(loop)); return before[loop] > 0 })
	}
	started := p.value("dtesn_agent_start_time_seconds")
	kill(running)
	ok(t, os.Rename(r.config, r.config+".away")) // so that nothing is read or tried
	start()
	r.until("the new process is scraped", func() bool { return p.value("dtesn_agent_start_time_seconds") > started })
	r.until("its source is not", func() bool { return p.value("dtesn_agent_source_fresh") == 0 })
	for loop, was := range before {
		// that of the last record, since which the earlier process may have worked
		r.until(loop+": its time outlives the restart", func() bool { return p.value(stamp(loop)) > was-60 })
	}
	r.until("so does the last outcome", func() bool { return p.value("dtesn_agent_last_apply_successful") == 1 })
	r.until("an alert is pending", func() bool {
		return slices.ContainsFunc(rules(), func(r rule) bool { return r.Name == "DTESNSourceFailing" && r.State == "pending" })
	})
}

// TestPodMonitor holds that the monitor selects the pods of examples/kubernetes, and a port
// that they have.
func TestPodMonitor(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(observability + "podmonitor.yaml")
	ok(t, err)
	var monitor struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name   string            `json:"name"`
			Labels map[string]string `json:"labels"`
		} `json:"metadata"`
		Spec struct {
			Selector struct {
				MatchLabels map[string]string `json:"matchLabels"`
			} `json:"selector"`
			PodMetricsEndpoints []struct {
				Port     string `json:"port"`
				Path     string `json:"path"`
				Interval string `json:"interval"`
			} `json:"podMetricsEndpoints"`
		} `json:"spec"`
	}
	ok(t, yaml.UnmarshalStrict(text, &monitor))
	d := kustomized(t)
	labels := d.set.Spec.Template.Labels
	if monitor.APIVersion != "monitoring.coreos.com/v1" || monitor.Kind != "PodMonitor" || len(monitor.Spec.Selector.MatchLabels) == 0 || len(monitor.Spec.PodMetricsEndpoints) != 1 {
		t.Fatalf("%+v", monitor)
	}
	for name, value := range monitor.Spec.Selector.MatchLabels {
		if labels[name] != value {
			t.Errorf("it selects %s=%s, the pods have %v", name, value, labels)
		}
	}
	endpoint := monitor.Spec.PodMetricsEndpoints[0]
	var ports []string
	for _, port := range d.agent.Ports {
		ports = append(ports, port.Name)
	}
	if !slices.Contains(ports, endpoint.Port) || endpoint.Path != "/metrics" {
		t.Errorf("it scrapes %+v, the agent's ports are %v", endpoint, ports)
	}
}
