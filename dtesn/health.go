package dtesn

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"dtesn-agent/dtesn/api"
)

// healthShape is the response of an engine that reports its health.
const healthShape = `{"success": true, "health": {"healthy": true or false, "checks": {…}}}`

// Health asks on a fresh connection whether the engine is healthy. One that
// responds with an error is not. The error is a *api.ForeignError if the server
// does not have GET health, or responds without a verdict; otherwise the engine
// could not be reached or did not respond in time.
func (c *Client) Health(ctx context.Context) (api.Health, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	health, err := c.health(ctx)
	if err != nil {
		return health, fmt.Errorf("ask the engine at %s for its health: %w", c.options.Socket, err)
	}
	return health, nil
}

func (c *Client) health(ctx context.Context) (api.Health, error) {
	status, body, peer, err := c.get(ctx, PathHealth)
	switch {
	case err != nil:
		return api.Health{Peer: peer}, err
	case foreign(status):
		return api.Health{Peer: peer}, &api.ForeignError{Reason: fmt.Sprintf("GET %s answered %s%s", PathHealth, statusText(status), because(reasons(body)))}
	}
	h, known := judgeHealth(status, body)
	h.Peer = peer
	if !known {
		return h, &api.ForeignError{Reason: fmt.Sprintf("GET %s answered %s, want %s", PathHealth, quote(body), healthShape)}
	}
	return h, nil
}

// judgeHealth reads the response to GET health. The engine is healthy if the
// status is good and no field says otherwise; known is false if no field says
// anything.
func judgeHealth(status int, body []byte) (h api.Health, known bool) {
	answer, _ := decodeObject(body)
	report, _ := decodeObject(answer["health"])
	healthy := string(report["healthy"])
	if string(answer["success"]) == "false" {
		healthy = "false"
	}
	var failed []string
	checks, _ := decodeObject(report["checks"])
	for name, ok := range checks {
		if string(ok) == "false" {
			failed = append(failed, name)
		}
	}
	slices.Sort(failed)
	switch good := status < 300; {
	case good && healthy == "true":
		return api.Health{Healthy: true}, true
	case good && healthy != "false":
		return api.Health{}, false
	case healthy != "true" && len(failed) > 0:
		return api.Health{Reason: line("it says that it is not healthy: " + strings.Join(failed, ", "))}, true
	case good:
		return api.Health{Reason: "it says that it is not healthy" + because(reasons(body))}, true
	}
	return api.Health{Reason: fmt.Sprintf("GET %s answered %s%s", PathHealth, statusText(status), because(reasons(body)))}, true
}
