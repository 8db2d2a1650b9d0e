package cli

import (
	"strings"
	"testing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// TestShowKnowsNoSchema: a record is shown by its own names, whatever its values
// are, with each entry of its hold.
func TestShowKnowsNoSchema(t *testing.T) {
	half, _ := schema.Number("0.50")
	p := schema.NewParameters(map[string]schema.Value{"zeta": half, "alpha": schema.Text("int8\x1b[2J"), "beta": schema.Bool(true)})
	entry := record.Entry{Values: map[string]schema.Value{"zeta": half, "beta": schema.Bool(false), "gone": {}}, By: "engine", Reason: "no memory", Since: 120}
	var b strings.Builder
	err := recordText(&b, &record.Row{Record: record.Record{
		ID: "snapshot_60_0001", Timestamp: 60, Config: p, Provenance: schema.Provenance{"zeta": {Layer: "schema"}},
		Changes: []schema.Change{{Parameter: "zeta", New: half, Critical: true}},
		Held:    &record.Hold{By: "operator", Reason: "slow", Since: 60, Requester: &record.Requester{UID: 7}, Entries: []record.Entry{entry}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := `snapshot     snapshot_60_0001
when         1970-01-01T00:01:00Z
hold         by operator (uid 7) since 1970-01-01T00:01:00Z: slow
             not applied: beta false, by engine since 1970-01-01T00:02:00Z: no memory
parameters
  alpha                          int8 [2J 
  beta                           true     
  zeta                           0.50     schema
changes
  zeta unset -> 0.50 (critical)
`
	if b.String() != want {
		t.Errorf("%s\nwant\n%s", b.String(), want)
	}
}
