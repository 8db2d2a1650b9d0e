package status

import (
	"fmt"
	"reflect"
	"slices"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// HoldLines describes a hold: a line with who holds since when and why, then a
// line an entry. An entry shows the values that differ from what is applied, or
// all if none does, and, unless all are held alike, who holds them.
func HoldLines(h *record.Hold, applied *record.Record, when func(unix float64) string) []string {
	lines := []string{heldBy(h.By, h.Reason, h.Since, h.Requester, when)}
	isAlike := !slices.ContainsFunc(h.Entries, func(e record.Entry) bool {
		return e.By != h.By || e.Reason != h.Reason || e.Since != h.Since || !reflect.DeepEqual(e.Requester, h.Requester)
	})
	for i := range h.Entries {
		e := &h.Entries[i]
		line := "not applied: " + differing(e, applied)
		if !isAlike {
			line += ", " + heldBy(e.By, e.Reason, e.Since, e.Requester, when)
		}
		lines = append(lines, line)
	}
	return lines
}

func heldBy(by, reason string, since float64, requester *record.Requester, when func(unix float64) string) string {
	if requester != nil {
		by += " " + requester.String()
	}
	return fmt.Sprintf("by %s since %s: %s", by, when(since), reason)
}

// differing returns the values of an entry that are not the applied ones, all if
// there are none. What no layer declared is unset in both.
func differing(e *record.Entry, applied *record.Record) string {
	left := record.Entry{Values: map[string]schema.Value{}}
	for name, v := range e.Values {
		var runs schema.Value
		if applied != nil && (!v.IsZero() || applied.Provenance[name].Layer != "schema") {
			runs = applied.Config.Get(name)
		}
		if !runs.Equal(v) {
			left.Values[name] = v
		}
	}
	if len(left.Values) == 0 {
		return e.String()
	}
	return left.String()
}
