package dtesn

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"dtesn-agent/schema"
)

// healthShape is what an engine answers that says how it is.
const healthShape = `{"success": true, "health": {"healthy": true or false, "checks": {…}}}`

// Health asks on a fresh connection how the engine is. An engine that answers
// with a fault is not healthy; the error is a *schema.ForeignError when what
// answers has no such question, or answers it without a verdict; else the engine
// could not be reached or did not answer in time.
func (c *Client) Health(ctx context.Context) (schema.Health, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	health, err := c.health(ctx)
	if err != nil {
		return health, fmt.Errorf("ask the engine at %s for its health: %w", c.options.Socket, err)
	}
	return health, nil
}

func (c *Client) health(ctx context.Context) (schema.Health, error) {
	s, err := c.dial(ctx)
	if err != nil {
		return schema.Health{}, err
	}
	defer s.close()
	status, body, err := s.do(ctx, http.MethodGet, PathHealth, nil)
	switch {
	case err != nil:
		return schema.Health{Peer: s.peer}, err
	case foreign(status):
		return schema.Health{Peer: s.peer}, &schema.ForeignError{Reason: fmt.Sprintf("GET %s answered %s", PathHealth, statusText(status))}
	}
	h, said := judgeHealth(status, body)
	h.Peer = s.peer
	if !said {
		return h, &schema.ForeignError{Reason: fmt.Sprintf("GET %s answered %s, want %s", PathHealth, quote(body), healthShape)}
	}
	return h, nil
}

// judgeHealth is healthy for a good status that says so in every place where it
// could say otherwise. said is false where it does not say how the engine is.
func judgeHealth(status int, body []byte) (h schema.Health, said bool) {
	var answer struct {
		Success json.RawMessage `json:"success"`
		Health  struct {
			Healthy json.RawMessage `json:"healthy"`
			Checks  any             `json:"checks"`
		} `json:"health"`
	}
	_ = json.Unmarshal(body, &answer) // what is missing, or of another type, is not said
	healthy := string(answer.Health.Healthy)
	if string(answer.Success) == "false" {
		healthy = "false"
	}
	var failed []string
	checks, _ := answer.Health.Checks.(map[string]any)
	for name, ok := range checks {
		if ok == false {
			failed = append(failed, name)
		}
	}
	slices.Sort(failed)
	switch good := status < 300; {
	case good && healthy == "true":
		return schema.Health{Healthy: true}, true
	case good && healthy != "false":
		return schema.Health{}, false
	case healthy != "true" && len(failed) > 0:
		return schema.Health{Reason: line("it says that it is not healthy: " + strings.Join(failed, ", "))}, true
	case good:
		return schema.Health{Reason: "it says that it is not healthy" + because(reasons(body))}, true
	}
	return schema.Health{Reason: fmt.Sprintf("GET %s answered %s%s", PathHealth, statusText(status), because(reasons(body)))}, true
}
