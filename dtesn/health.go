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

// Health asks on a fresh connection how the engine is. An engine that answers
// with a fault, or with what cannot be understood, is not healthy; the error is
// a *schema.ForeignError when what answers has no such question, else the engine
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
		return schema.Health{Peer: s.peer}, notAnEngine("GET %s answered %s", PathHealth, statusText(status))
	}
	h := judgeHealth(status, body)
	h.Peer = s.peer
	return h, nil
}

// judgeHealth is healthy for a 200 that says so in every place where it could
// say otherwise.
func judgeHealth(status int, body []byte) schema.Health {
	var answer struct {
		Success *bool `json:"success"`
		Health  *struct {
			Healthy *bool          `json:"healthy"`
			Checks  map[string]any `json:"checks"`
		} `json:"health"`
	}
	err := json.Unmarshal(body, &answer)
	if err == nil && answer.Health != nil {
		var failed []string
		for name, ok := range answer.Health.Checks {
			if ok == false {
				failed = append(failed, name)
			}
		}
		slices.Sort(failed)
		said := answer.Success != nil && *answer.Success && answer.Health.Healthy != nil && *answer.Health.Healthy
		switch {
		case len(failed) > 0 && !said:
			return schema.Health{Reason: line("it says that it is not healthy: " + strings.Join(failed, ", "))}
		case status == http.StatusOK && said:
			return schema.Health{Healthy: true}
		case status == http.StatusOK:
			return schema.Health{Reason: "it says that it is not healthy" + because(reasons(body))}
		}
	}
	if status == http.StatusOK {
		return schema.Health{Reason: fmt.Sprintf("GET %s answered %s", PathHealth, quote(body))}
	}
	return schema.Health{Reason: fmt.Sprintf("GET %s answered %s%s", PathHealth, statusText(status), because(reasons(body)))}
}
