package schema

import (
	"strings"
	"testing"
)

// Two experiments that are valid alone and not together are found in a review,
// whatever instance asks.
func TestEverywhere(t *testing.T) {
	files := []File{
		{Path: "base.yaml", Bytes: []byte("parameters: {max_membrane_depth: 4, esn_reservoir_size: 512, bseries_max_order: 8, enable_caching: true, cache_ttl_seconds: 300, enable_performance_monitoring: true}\n")},
		{Path: "production.yaml", Bytes: []byte("environment: production\nexperiments:\n  - {name: deep, percent: 50, parameters: {max_membrane_depth: 16}}\n  - {name: small, percent: 50, parameters: {esn_reservoir_size: 500}}\n")},
	}
	doc := &Document{Environment: "production", Files: files}
	_, v := Load(doc, Everywhere)
	if v == nil || v.Total != 1 || !strings.Contains(v.List[0].Message, "together, as on some instances") {
		t.Fatalf("got %+v", v)
	}
	if at := v.List[0].Position.String(); at != "production.yaml:4:65" {
		t.Errorf("at %s", at)
	}
	refused := 0
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"} {
		if _, v := Load(doc, name); v != nil {
			refused++
		}
	}
	if refused == 0 || refused == 12 {
		t.Errorf("%d of 12 instances refuse it; the test is about a part of them", refused)
	}
	if n := len(combinations(6)); n != 57 {
		t.Errorf("%d combinations of 6, want 57", n)
	}
}
