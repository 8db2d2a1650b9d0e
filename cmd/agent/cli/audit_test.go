package cli

import (
	"strings"
	"testing"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// TestEventLine holds what audit says in WHAT.
func TestEventLine(t *testing.T) {
	change := []apply.EventChange{{Parameter: "a", Old: schema.Int(1), New: schema.Int(2)}}
	entry := record.Entry{Values: map[string]schema.Value{"a": schema.Int(2)}, By: "operator", Reason: "again", Requester: &record.Requester{User: "root"}}
	for want, e := range map[string]apply.Event{
		"a 1 -> 2: no": {Type: apply.EventRejected, Kind: record.KindChange, Changes: change, Reason: "no", Description: "small"},
		"Rollback to snapshot_1_0002: z: rejected: no": {
			Type: apply.EventRejected, Kind: record.KindRollback, Changes: change, Reason: "no", Description: "Rollback to snapshot_1_0002: z",
		},
		"a 2 (held by root: again): day":      {Type: apply.EventReleased, Released: []record.Entry{entry}, Reason: "day"},
		"night":                               {Type: apply.EventPaused, Reason: "night"},
		"pause (paused by uid 7: night): day": {Type: apply.EventResumed, Released: []record.Entry{{By: "operator", Reason: "night", Requester: &record.Requester{UID: 7}}}, Reason: "day"},
	} {
		var b strings.Builder
		if err := eventLine(&b, &e, false); err != nil || !strings.HasSuffix(b.String(), "\t"+want+"\n") {
			t.Errorf("%q, %v; want %q", b.String(), err, want)
		}
	}
}
