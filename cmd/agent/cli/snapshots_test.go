package cli

import (
	"strings"
	"testing"

	"dtesn-agent/gitstore/record"
)

// TestListNarrow holds that no line of the listing has more than 100 columns, whatever
// the names and subjects are.
func TestListNarrow(t *testing.T) {
	wide := strings.Repeat("目録", 60)
	rows := []record.Row{
		{Record: record.Record{Index: 123456, Kind: record.KindChange, Subject: strings.Repeat("long ", 60), Source: record.Source{Author: "Ada Lovelace the First <ada@example.org>"}}, Outcome: record.Superseded},
		{Record: record.Record{Index: 7, Kind: record.KindChange, Subject: wide, Source: record.Source{Author: wide + " <a@example.org>"}}, Outcome: record.Applied, IsActive: true},
		{Record: record.Record{Index: 6, Kind: record.KindNote, Subject: "Pause: night\x1b[31m", Requester: &record.Requester{UID: 7}}, Outcome: record.Applied},
		{Record: record.Record{Index: 5, Kind: record.KindRevert, Subject: `Revert "x"`}, Outcome: record.Rejected},
	}
	var b strings.Builder
	if err := listNarrow(&b, rows); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	begin := columns(lines[0][:strings.Index(lines[0], "WHAT")])
	for i, line := range lines {
		if n := columns(line); n > listColumns || strings.Contains(line, "\x1b") {
			t.Errorf("%d columns: %q", n, line)
		}
		if i > 0 {
			what := []string{"long", "目", "Pause: night [31m", `Revert "x"`}[i-1]
			if at := strings.LastIndex(line, "  "+what); at < 0 || columns(line[:at]) != begin-2 {
				t.Errorf("%q does not begin in column %d: %q", what, begin, line)
			}
		}
	}
	for i, want := range []string{"123456", "* ", "uid 7", "-"} {
		if !strings.Contains(lines[i+1], want) {
			t.Errorf("%q has no %q", lines[i+1], want)
		}
	}
}
