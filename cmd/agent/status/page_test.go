package status

import (
	"testing"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// TestTriedLast holds that an attempt names its record, and who ordered it.
func TestTriedLast(t *testing.T) {
	d := new(pageData)
	rows := []record.Row{{Record: record.Record{ID: "snapshot_5", Kind: record.KindRollback, Requester: &record.Requester{UID: 7, User: "ada"}}}}
	attempts := []apply.Attempt{{Outcome: record.Rejected, SnapshotID: "snapshot_5"}, {Outcome: record.Superseded, SnapshotID: "snapshot_4"}, {Outcome: record.Invalid}}
	new(Server).pageAttempts(d, &apply.Status{Attempts: attempts}, rows)
	for i, want := range []string{"rollback snapshot_5 by ada (uid 7)", "snapshot_4", ""} {
		if got := d.Attempts[i].Record; got != want {
			t.Errorf("%d: %q, want %q", i, got, want)
		}
	}
}
