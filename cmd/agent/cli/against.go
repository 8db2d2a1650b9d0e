package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"dtesn-agent/apply"
	"dtesn-agent/schema/problem"
)

func isAddress(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// compareRunning compares what an agent runs with what to gives its instance.
func (p *planner) compareRunning(cmd *cobra.Command, to *side) (*planResult, error) {
	st, err := p.status(cmd)
	if err != nil {
		return nil, err
	}
	if st.Current == nil {
		return nil, problem.New("", fmt.Errorf("the agent on %s has not read its engine yet: %s", p.against, st.Reason), "try again when the engine answers, or compare with --from")
	}
	rules := p.schema.For(st.Environment)
	if rules == nil {
		return nil, usageHint("give the agent's schema with --schema", "the agent on %s runs the environment %s, which the schema does not have", p.against, st.Environment)
	}
	if st.Schema.Digest != "" && st.Schema.Digest != p.schema.Digest() {
		fmt.Fprintf(cmd.ErrOrStderr(), "note: the agent on %s has another schema (%s); give the same with --schema\n", p.against, st.Schema.File)
	}
	in, err := to.input(st.Environment)
	if err != nil {
		return nil, err
	}
	if in == nil && to.elsewhere != "" {
		return nil, p.nothing(to, to)
	}
	if in != nil {
		in.Instance = st.Instance
	}
	plan := locate(rules.PlanInstance(*st.Current, st.Experiments, in), nil, to)
	if h := st.Held; h != nil && plan.Now != nil {
		if h.Paused {
			plan.Held = append(plan.Held, h.Entry(nil))
		}
		plan.Held = append(plan.Held, apply.Matching(h, plan.Now, rules)...)
	}
	return &planResult{
		From: p.against, To: to.id, title: fmt.Sprintf("%s on %s -> %s", st.Instance, p.against, to.title),
		Environments: []environmentPlan{plan},
	}, nil
}

// status asks the agent.
func (p *planner) status(cmd *cobra.Command) (*apply.Status, error) {
	if !isAddress(p.against) {
		var r report
		if err := ask(cmd, p.against, http.MethodGet, "/status", nil, &r, answerTime); err != nil {
			return nil, err
		}
		return &r.Status.Status, nil
	}
	fail := func(err error, hint string) (*apply.Status, error) {
		return nil, &problem.Error{Op: "ask the agent at", Place: p.against, Err: err, Hint: hint}
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), answerTime)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(p.against, "/")+"/v1/config/status", http.NoBody)
	if err != nil || q.URL.User != nil {
		return nil, usageHint("write it as http://127.0.0.1:9310, without a user", "--against: not an address")
	}
	if p.token != "" {
		if q.URL.Scheme != "https" {
			return nil, usageHint("use https://", "--token-file: the token would be sent unencrypted")
		}
		token, err := readToken(p.token)
		if err != nil {
			return nil, err
		}
		q.Header.Set("Authorization", "Bearer "+token)
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(q)
	if err != nil {
		var cause *url.Error
		if errors.As(err, &cause) {
			err = cause.Err
		}
		return fail(err, "check the address, which is that of --listen, and that the agent runs")
	}
	defer resp.Body.Close()
	var answer struct {
		Success bool
		Status  *apply.Status
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(&answer)
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		return fail(errors.New("it wants a token"), "give it with --token-file")
	case resp.StatusCode != http.StatusOK:
		return fail(fmt.Errorf("it answered %s", resp.Status), "name the address that the agent has as --listen")
	case err != nil || answer.Status == nil:
		return fail(errors.New("the answer is not the status of an agent"), "name the address that the agent has as --listen")
	}
	return answer.Status, nil
}
