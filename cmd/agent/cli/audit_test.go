package cli

import (
	"strings"
	"testing"
	"time"

	"dtesn-agent/gitstore/record"
)

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
