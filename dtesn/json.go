package dtesn

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// decodeObject decodes a JSON object by its exact names: package json takes
// Success for success, and the last of several fields of one name, which is an
// error here.
func decodeObject(text []byte) (map[string]json.RawMessage, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(text, &object); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(text)) // of valid JSON: an object, or null
	_, _ = d.Token()
	seen := make(map[string]bool, len(object))
	for d.More() {
		token, _ := d.Token()
		name, _ := token.(string)
		if seen[name] {
			return nil, fmt.Errorf("the name %q appears twice", name)
		}
		seen[name] = true
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
	}
	return object, nil
}

// decodeAs decodes raw into a T; it is zero if raw is missing or not a T.
func decodeAs[T any](raw json.RawMessage) T {
	var value, zero T
	if json.Unmarshal(raw, &value) != nil {
		return zero
	}
	return value
}
