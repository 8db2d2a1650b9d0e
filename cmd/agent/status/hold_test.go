package status

import (
	"strings"
	"testing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// TestHoldLines: what no layer declared is unset in an entry, and is no difference
// from a default that runs.
func TestHoldLines(t *testing.T) {
	h := &record.Hold{By: "operator", Reason: "slow", Entries: []record.Entry{{
		Values: map[string]schema.Value{"a": schema.Int(1), "b": {}, "c": {}}, By: "operator", Reason: "slow",
	}}}
	applied := &record.Record{
		Config:     schema.NewParameters(map[string]schema.Value{"a": schema.Int(2), "b": schema.Int(5), "c": schema.Int(5)}),
		Provenance: schema.Provenance{"a": {Layer: "base"}, "b": {Layer: "schema"}, "c": {Layer: "base"}},
	}
	for want, rec := range map[string]*record.Record{
		"not applied: a 1, c unset": applied,
		"not applied: a 1":          nil,
	} {
		if lines := HoldLines(h, rec, func(float64) string { return "noon" }); len(lines) != 2 || strings.TrimSpace(lines[1]) != want {
			t.Errorf("%q, want %q", lines, want)
		}
	}
}
