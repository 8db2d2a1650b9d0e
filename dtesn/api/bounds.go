package api

import (
	"fmt"
	"slices"
	"strings"

	"dtesn-agent/schema"
)

// Bounds are the values that an engine accepts for one parameter. A zero field
// means that the engine does not say.
type Bounds struct {
	// Type is "int", "number", "bool" or "string".
	Type string
	// Minimum and Maximum are inclusive.
	Minimum, Maximum schema.Value
	// Values lists what a string may be.
	Values []string
}

// Compare lists where an engine accepts less than the schema does, one line a
// parameter, such as "max_membrane_depth: the engine accepts 1-32, the schema
// 1-64". A parameter is unknown to the engine if it is neither in bounds nor in
// what the engine reports: some engines do not list all that they have. It returns
// nil for nil bounds.
func Compare(parameters []schema.Parameter, bounds map[string]Bounds, reading Reading) []string {
	var lines []string
	if bounds == nil {
		return nil
	}
	for _, p := range parameters {
		b, listed := bounds[p.Name]
		if !listed && !reading.Knows(p.Name) {
			lines = append(lines, "the engine does not know "+p.Name)
		} else if difference := b.compare(p); difference != "" {
			lines = append(lines, p.Name+": "+difference)
		}
	}
	return lines
}

// compare describes how b is tighter than p; "" if it is not.
func (b Bounds) compare(p schema.Parameter) string {
	if b.Type != "" && b.Type != p.Type && (b.Type != "number" || p.Type != "int") {
		return fmt.Sprintf("the engine accepts the type %s, the schema %s", b.Type, p.Type)
	}
	if len(b.Values) > 0 {
		missing := slices.DeleteFunc(slices.Clone(p.Values), func(v string) bool { return slices.Contains(b.Values, v) })
		if len(missing) > 0 {
			return "the engine does not accept " + strings.Join(missing, ", ")
		}
	}
	low, high := p.Minimum, p.Maximum
	if less(low, b.Minimum) {
		low = b.Minimum
	}
	if less(b.Maximum, high) {
		high = b.Maximum
	}
	if low == p.Minimum && high == p.Maximum {
		return ""
	}
	return fmt.Sprintf("the engine accepts %v-%v, the schema %v-%v", low, high, p.Minimum, p.Maximum)
}

// less reports whether v and w are numbers and v is the lesser one.
func less(v, w schema.Value) bool {
	a, ok := v.Float()
	b, too := w.Float()
	return ok && too && a < b
}
