package dtesn

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/schema"
)

// boundsTimeout bounds GET schema, which nothing waits for but a warning.
const boundsTimeout = 2 * time.Second

// Bounds asks on a fresh connection which values the engine accepts: the
// parameter_info of GET schema, for the parameters that the schema has. It
// returns nil if the engine does not have that list. The error is that the
// engine could not be reached, did not respond in time, or failed.
func (c *Client) Bounds(ctx context.Context) (map[string]api.Bounds, error) {
	ctx, cancel := context.WithTimeout(ctx, min(c.options.Timeout, boundsTimeout))
	defer cancel()
	status, body, _, err := c.get(ctx, PathSchema)
	if err == nil && status >= 300 && !foreign(status) && status != http.StatusNotImplemented {
		err = &api.AnswerError{Reason: "the engine answered " + statusText(status) + because(reasons(body))}
	}
	if err != nil {
		return nil, fmt.Errorf("read the schema of the engine at %s: %w", c.options.Socket, err)
	}
	if status != http.StatusOK {
		return nil, nil
	}
	return decodeBounds(c.options.Rules, body), nil
}

// decodeBounds reads the response to GET schema; nil if it has another shape.
func decodeBounds(rules *schema.Rules, body []byte) map[string]api.Bounds {
	answer, _ := decodeObject(body)
	info, _ := decodeObject(answer["parameter_info"])
	if len(info) == 0 {
		return nil
	}
	bounds := map[string]api.Bounds{}
	for _, name := range rules.Names() {
		if entry, ok := info[name]; ok {
			bounds[name] = decodeEntry(entry)
		}
	}
	return bounds
}

var (
	// rangeText is a range as the Python server writes it: "64-16384".
	rangeText = regexp.MustCompile(`^(-?[0-9.]+)-(-?[0-9.]+)$`)
	// typeNames are the types as engines name them.
	typeNames = map[string]string{
		"int": "int", "integer": "int", "number": "number", "float": "number",
		"bool": "bool", "boolean": "bool", "string": "string", "str": "string",
	}
)

// decodeEntry reads one entry of parameter_info. What is missing or malformed
// is left out.
func decodeEntry(raw json.RawMessage) api.Bounds {
	entry, _ := decodeObject(raw)
	b := api.Bounds{Type: typeNames[decodeAs[string](entry["type"])], Values: decodeAs[[]string](entry["values"])}
	b.Minimum, _ = decodeValue("number", entry["minimum"])
	b.Maximum, _ = decodeValue("number", entry["maximum"])
	if ends := rangeText.FindStringSubmatch(decodeAs[string](entry["range"])); ends != nil && b.Minimum.IsZero() && b.Maximum.IsZero() {
		b.Minimum, _ = decodeValue("number", json.RawMessage(ends[1]))
		b.Maximum, _ = decodeValue("number", json.RawMessage(ends[2]))
	}
	return b
}
