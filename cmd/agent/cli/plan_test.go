package cli

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"dtesn-agent/schema"
)

// TestPlanAsksAnAddress: whatever answers, one message and one hint.
func TestPlanAsksAnAddress(t *testing.T) {
	files(t, map[string]string{"config/production.yaml": "environment: production\n", "token": "a secret token\n", "empty/base.yaml": "parameters: {}\n"})
	code, body := http.StatusOK, ""
	token := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		token = q.Header.Get("Authorization")
		w.WriteHeader(code)
		fmt.Fprint(w, body)
	}))
	defer server.Close()
	runs := func(environment, rest string) string {
		p, _ := schema.Default().For("production").Defaults().With("esn_reservoir_size", schema.Int(1024)).MarshalJSON()
		return `{"success": true, "status": {"environment": "` + environment + `", "instance": "a", "current_config": ` + string(p) + rest + `}}`
	}
	for _, row := range []struct {
		code int
		body string
		exit int
		want []string
	}{
		{200, runs("production", ""), 0, []string{"production: 1 of 6 parameters changes; the engine rebuilds once\n", "1024 -> 512"}},
		{200, runs("production", `, "schema": {"digest": "0", "file": "x.cue"}`), 0, []string{"note: the agent on http", "has another schema (x.cue)"}},
		{200, runs("canary", ""), 2, []string{"runs the environment canary, which the schema does not have", "hint: give the agent's schema with --schema"}},
		{200, runs("production", `, "held": {"by": "engine", "reason": "no", "since": 1, "entries": [{"by": "engine", "reason": "too big", "values": {"esn_reservoir_size": 512}}, {"by": "engine", "reason": "other", "values": {"esn_reservoir_size": 640}}, {"by": "engine", "reason": "whole", "values": {"esn_reservoir_size": 512, "cache_ttl_seconds": null}}]}`), 0, []string{
			"held: esn_reservoir_size 512, by engine: too big; not applied until `agent resume`", "by engine: whole", "! other",
		}},
		{200, runs("testing", ""), 0, []string{"testing: removed"}},
		{200, `{"success": true, "status": {"reason": "it is down"}}`, 1, []string{"has not read its engine yet: it is down", "hint: try again"}},
		{200, "<html>", 1, []string{"the answer is not the status of an agent", "hint: name the address"}},
		{200, "{}", 1, []string{"the answer is not the status of an agent"}},
		{302, "", 1, []string{"it answered 302 Found"}},
		{401, "", 1, []string{"it wants a token", "hint: give it with --token-file"}},
		{404, "", 1, []string{"it answered 404 Not Found", "hint: name the address"}},
	} {
		code, body = row.code, row.body
		expect(t, row.exit, row.want, "plan", "--against", server.URL+"/", "--to", "./config")
	}
	write(t, "config/base.yaml", "parameters: {max_membrane_depth: 4, esn_reservoir_size: 512, bseries_max_order: 8, enable_caching: false, enable_performance_monitoring: true}\n")
	code, body = 200, runs("production", `, "held": {"by": "engine", "entries": [{"by": "engine", "reason": "whole", "values": {"esn_reservoir_size": 512, "cache_ttl_seconds": null}}]}`)
	expect(t, 0, []string{"held: cache_ttl_seconds unset, esn_reservoir_size 512, by engine: whole"}, "plan", "--against", server.URL, "--to", "./config")
	write(t, "config/production.yaml", "environment: production\nextends: [a]\n")
	write(t, "config/templates/b.yaml", "parameters: {}\n")
	expect(t, 3, []string{"config/production.yaml:2:11: extends[0]: templates/a.yaml does not exist", "the templates are b"}, "plan", "--from", "./empty", "--to", "./config")
	code, body = 200, runs("production", "")
	expect(t, 1, []string{"neither ./empty nor ./empty has an environment's file", "name the directory"}, "plan", "--from", "./empty", "--to", "./empty")
	expect(t, 2, []string{"the token would be sent unencrypted", "hint: use https://"}, "plan", "--against", server.URL, "--to", "./config", "--token-file", "token")
	expect(t, 2, []string{"--token-file is for an address"}, "plan", "--against", "state", "--token-file", "token")
	expect(t, 2, []string{"--against: not an address"}, "plan", "--against", "http://user:pw@localhost", "--to", "./config")
	expect(t, 2, []string{"--to is empty"}, "plan", "--from", "./config", "--to", "")
	if token != "" {
		t.Errorf("a token was sent: %s", token)
	}
}

// TestPlanMarkdownIsBounded: however much changes, a host takes the comment; and
// nothing in it mentions anybody or is markup.
func TestPlanMarkdownIsBounded(t *testing.T) {
	result := &planResult{title: strings.Repeat("long", 1000)}
	for i := range 300 {
		e := environmentPlan{Plan: schema.Plan{Name: schema.Environment(fmt.Sprintf("env-%d", i)), Status: schema.PlanChanged, Now: &schema.Configuration{}}}
		for j := range 200 {
			e.Changes = append(e.Changes, schema.PlannedChange{Parameter: fmt.Sprintf("p%d", j+i), New: schema.Text("a|b"), File: "`@team`", Line: 7})
		}
		e.Experiments = []schema.PlannedExperiment{{Name: "@team <b>`|", Percent: 50, Instances: []string{"@team"}, Joining: []string{"@team"}}}
		if i%2 == 0 {
			e.Violations = []schema.Violation{{Message: "<img> @team `" + strings.Repeat("y", 5000)}}
		}
		result.Environments = append(result.Environments, e)
	}
	var b strings.Builder
	cmd := &cobra.Command{}
	cmd.SetOut(&b)
	if err := planMarkdown(cmd, result); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	if len(text) > maxMarkdown || strings.Count(text, "<details>") != strings.Count(text, "</details>") || !strings.Contains(text, "too long for a comment") {
		t.Errorf("%d bytes: %.200s … %s", len(text), text, text[max(0, len(text)-200):])
	}
	for line := range strings.Lines(text) {
		outside := ""
		for i, part := range strings.Split(line, "`") {
			if i%2 == 0 {
				outside += part
			}
		}
		if strings.Contains(outside, "@") || strings.Contains(outside, "<b>") || strings.Contains(outside, "<img>") || strings.Count(line, "`")%2 != 0 {
			t.Errorf("not within code: %s", line)
		}
	}
}
