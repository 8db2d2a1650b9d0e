package cli

import (
	"strings"
	"testing"
	"time"

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
		line := &table{w: &b}
		eventLine(line, &e)
		if err := line.flush(); err != nil || !strings.HasSuffix(b.String(), "  "+want+"\n") {
			t.Errorf("%q, %v; want %q", b.String(), err, want)
		}
	}
}

// TestSince holds which times --since takes.
func TestSince(t *testing.T) {
	now := time.Date(2026, 12, 1, 20, 16, 0, 0, time.UTC)
	for text, want := range map[string]string{
		"": "1970-01-01T00:00:00Z", "0": "2026-12-01T20:16:00Z", "90m": "2026-12-01T18:46:00Z", "1d": "2026-11-30T20:16:00Z", "2026-11-30": "2026-11-30T00:00:00Z",
		"2026-11-30T20:16": "2026-11-30T20:16:00Z", "2026-11-30T20:16:07": "2026-11-30T20:16:07Z", "2026-11-30T20:16+01:00": "2026-11-30T19:16:00Z", "2026-11-30T20:16:07Z": "2026-11-30T20:16:07Z",
		"-1h": "", "-1d": "", "1w": "", "yesterday": "", "d": "",
	} {
		begin, err := parseSince(text, now)
		if (err != nil) != (want == "") || err == nil && record.FromUnix(begin).UTC().Format(time.RFC3339) != want {
			t.Errorf("%q: %v, %v, want %s", text, record.FromUnix(begin).UTC(), err, want)
		}
	}
}

// TestTable holds that columns keep their widths.
func TestTable(t *testing.T) {
	var b strings.Builder
	l := table{w: &b, widths: []int{3}}
	for _, row := range []string{"a", "änderung", "b"} {
		l.add(row, "x", "a long end that pads nothing")
		if err := l.flush(); err != nil {
			t.Fatal(err)
		}
	}
	if want := "a    x  a long end that pads nothing\nänderung  x  a long end that pads nothing\nb         x  a long end that pads nothing\n"; b.String() != want {
		t.Errorf("%q", b.String())
	}
}
