package gitstore

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

func TestRecordsReadBackAsCommitted(t *testing.T) {
	f := newFixture(t)
	s, repairs := f.open()
	noRepairs(t, repairs)
	if s.Head() != nil || s.Applied() != nil || s.Total() != 0 {
		t.Fatal("a fresh history is not empty")
	}
	uid, before := 1000, sized(512)
	rec := record.Record{
		Kind: record.KindChange, Description: "Deeper tree", Config: sized(2048), RollbackPoint: true,
		Source:      record.Source{Kind: "git", Location: "https://example.org/c.git", Revision: strings.Repeat("a", 40), Author: "Ada L <ada@example.org>", Subject: "deeper"},
		Provenance:  schema.Provenance{"esn_reservoir_size": {Position: schema.Position{File: "production.yaml", Line: 4, Column: 3}, Layer: "environment"}},
		Changes:     sized(2048).Diff(before),
		Before:      &before,
		Experiments: []schema.Membership{{Name: "bigger", Percent: 10, Member: true}},
		RequestedBy: &uid,
	}
	want := commit(t, s, rec)
	confirm(t, s)
	if want.Index != 1 || want.Format != record.FormatOf(want.Config) || want.Parent != "" || want.Environment != "production" || want.Instance != "web-1" || want.AgentVersion != "test" {
		t.Errorf("committed as %+v", want)
	}
	second := commit(t, s, record.Record{Kind: record.KindNote, Config: sized(2048)})
	s, repairs = f.reopen(s)
	noRepairs(t, repairs)
	for _, want := range []*record.Record{want, second} {
		got, err := s.Lookup(t.Context(), want.ID)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(&got.Record, want) {
			t.Errorf("read back\n%+v, committed\n%+v", &got.Record, want)
		}
	}
	if second.Parent != want.Commit || s.Total() != 2 {
		t.Errorf("the second record stands on %s; total %d", second.Parent, s.Total())
	}
	if got := f.git("log", "--format=%an <%ae>|%cn <%ce>|%s"); got != "dtesn-agent <dtesn-agent@web-1>|dtesn-agent <dtesn-agent@web-1>|End the hold\n"+
		"Ada L <ada@example.org>|dtesn-agent <dtesn-agent@web-1>|esn_reservoir_size 512 -> 2048: deeper" {
		t.Errorf("git log says\n%s", got)
	}
}

func TestPlainGitReadsIt(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	first := applied(t, s, 1024)
	rejected := commit(t, s, change(2048))
	back := commit(t, s, revert(rejected, first, "no memory"))
	confirm(t, s)
	f.fsck()
	if got, want := f.git("log", "--format=%(trailers:key=Snapshot-Id,valueonly,separator=)", "production"), back.ID+"\n"+rejected.ID+"\n"+first.ID; got != want {
		t.Errorf("snapshot ids in git log:\n%s\nwant\n%s", got, want)
	}
	if got := f.git("show", "production:parameters.yaml") + "\n"; got != string(first.Config.YAML()) {
		t.Errorf("parameters.yaml: %s", got)
	}
	if got := f.git("log", "-1", "--format=%(trailers:key=Outcome-Of,valueonly,separator=)"); got != rejected.ID+" rejected" {
		t.Errorf("Outcome-Of: %q", got)
	}
	if got := f.git("log", "-1", "--format=%s"); got != `Revert "`+rejected.Subject+`"` || rejected.Subject == "" {
		t.Errorf("subject of the revert: %q", got)
	}
	if got := f.git("log", "-1", "--format=%B"); !strings.Contains(got, "    the engine refused it\n") || !strings.Contains(got, "    error: no memory\n") || !strings.Contains(got, "    held by engine: refused\n    held: "+holding(rejected.Config).Entries[0].String()+"\n") {
		t.Errorf("body of the revert:\n%s", got)
	}
	clone := filepath.Join(t.TempDir(), "clone")
	f.git("clone", "-q", f.repo(), clone)
	if data, err := os.ReadFile(filepath.Join(clone, "snapshot.json")); err != nil || !strings.Contains(string(data), `"snapshot_id": "`+back.ID+`"`) {
		t.Errorf("snapshot.json in a clone: %v\n%s", err, data)
	}
	if got := f.git("diff", "production~2", "production~1", "--", "parameters.yaml"); !strings.Contains(got, "-esn_reservoir_size: 1024\n+esn_reservoir_size: 2048") {
		t.Errorf("git diff:\n%s", got)
	}
	for ref, want := range map[string]*record.Record{"production": back, "refs/dtesn/applied/production": back, "HEAD": back} {
		if got := f.git("rev-parse", ref); got != want.Commit {
			t.Errorf("%s is %s, want %s", ref, got, want.Commit)
		}
	}
}

func TestOutcomes(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	type row struct {
		snap    *record.Record
		outcome record.Outcome
	}
	a := applied(t, s, 1024)
	b := commit(t, s, change(2048))
	c := commit(t, s, revert(b, a, "too big", "far too big"))
	confirm(t, s)
	d := commit(t, s, change(3072))
	e := change(4096)
	e.OutcomeOf = &record.Settlement{ID: d.ID, Outcome: record.Superseded}
	eSnap := commit(t, s, e)
	check := func(active *record.Record, rows []row) {
		t.Helper()
		r, err := OpenReader(f.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Close() }()
		for name, list := range map[string]func(context.Context, string, int) ([]record.Row, error){"store": s.List, "reader": r.List} {
			records, err := list(t.Context(), "", 100)
			if err != nil || len(records) != len(rows) {
				t.Fatalf("%s lists %d records, %v", name, len(records), err)
			}
			for i, rec := range records {
				if rec.ID != rows[i].snap.ID || rec.Outcome != rows[i].outcome || rec.IsActive != (rec.ID == active.ID) {
					t.Errorf("%s: record %d is %s %s active=%v, want %s %s", name, i, rec.ID, rec.Outcome, rec.IsActive, rows[i].snap.ID, rows[i].outcome)
				}
				if rec.ID == b.ID && !reflect.DeepEqual(rec.ValidationErrors, []string{"too big", "far too big"}) {
					t.Errorf("%s: validation errors %q", name, rec.ValidationErrors)
				}
			}
		}
	}
	check(c, []row{{eSnap, record.Pending}, {d, record.Superseded}, {c, record.Applied}, {b, record.Rejected}, {a, record.Applied}})
	confirm(t, s)
	check(eSnap, []row{{eSnap, record.Applied}, {d, record.Superseded}, {c, record.Applied}, {b, record.Rejected}, {a, record.Applied}})
	r, err := OpenReader(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := r.Total(); n != 5 || err != nil || r.repo.env != "production" {
		t.Errorf("total %d, %v", n, err)
	}
	page, err := s.List(t.Context(), d.ID, 2)
	if err != nil || len(page) != 2 || page[0].ID != c.ID || page[1].ID != b.ID {
		t.Errorf("the page behind %s: %v, %v", d.ID, page, err)
	}
	if page, err := s.List(t.Context(), a.ID, 2); len(page) != 0 || err != nil {
		t.Errorf("the page behind the first: %v, %v", page, err)
	}
}

func TestLookup(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	if _, err := s.Lookup(t.Context(), "1"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "empty") {
		t.Errorf("lookup in an empty history: %v", err)
	}
	a, b := applied(t, s, 1024), applied(t, s, 2048)
	for id, want := range map[string]*record.Record{a.ID: a, "1": a, "2": b, b.Commit: b, a.Commit[:12]: a} {
		if got, err := s.Lookup(t.Context(), id); err != nil || got.Commit != want.Commit {
			t.Errorf("lookup %s: %s, %v", id, got.ID, err)
		}
	}
	for _, id := range []string{"snapshot_1_0001", "snapshot_1_0009", "3", "0", "-1", "abc", "", "zzzz", strings.Repeat("f", 40), "0000\n0000"} {
		_, err := s.Lookup(t.Context(), id)
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), b.ID) || !strings.HasSuffix(problem.Hint(err), "`agent snapshots --state "+f.dir+"`") {
			t.Errorf("lookup %q: %v", id, problem.Text(err))
		}
	}
	if _, err := s.Lookup(t.Context(), "snapshot_1_0001"); !strings.Contains(err.Error(), "record 1 is "+a.ID) {
		t.Errorf("the nearest is not named: %v", err)
	}
}

func TestCommitRefusesWhatCannotFollow(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	for name, rec := range map[string]record.Record{
		"a revert of nothing":    {Kind: record.KindRevert, Config: params},
		"no kind":                {Config: params},
		"another environment":    {Kind: record.KindChange, Config: params, Environment: "staging"},
		"another instance":       {Kind: record.KindChange, Config: params, Instance: "web-2"},
		"an outcome of no child": {Kind: record.KindChange, Config: params, OutcomeOf: &record.Settlement{ID: "snapshot_1_0001", Outcome: record.Rejected}},
	} {
		if snap, err := s.Commit(t.Context(), rec); err == nil || s.Head() != nil {
			t.Errorf("%s: committed as %+v", name, snap)
		}
	}
	if err := s.Confirm(t.Context()); err == nil {
		t.Error("an empty history was confirmed")
	}
}

func TestAClockThatJumpsBack(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	a := applied(t, s, 1024)
	f.now = f.now.Add(-10 * 365 * 24 * time.Hour)
	b := applied(t, s, 2048)
	f.now = time.Unix(-5, 0)
	c := applied(t, s, 1024)
	if a.ID == b.ID || b.Timestamp > a.Timestamp || c.Timestamp != 0 {
		t.Errorf("ids %s %s %s", a.ID, b.ID, c.ID)
	}
	f.now = time.Unix(1000, 0)
	s, repairs := f.reopen(s)
	noRepairs(t, repairs)
	applied(t, s, 512)
	times := strings.Fields(f.git("log", "--reverse", "--format=%ct"))
	for i := 1; i < len(times); i++ {
		if times[i] < times[i-1] {
			t.Errorf("commit times go back: %v", times)
		}
	}
	f.fsck()
}

func TestRetried(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	if s.Retried() {
		t.Error("nothing is retried in an empty history")
	}
	applied(t, s, 1024)
	commit(t, s, change(2048))
	set := func(v bool) {
		t.Helper()
		if err := s.SetRetried(t.Context(), v); err != nil || s.Retried() != v {
			t.Fatalf("set retried %v: %v, is %v", v, err, s.Retried())
		}
	}
	set(true)
	s, repairs := f.reopen(s)
	noRepairs(t, repairs)
	if !s.Retried() {
		t.Error("retried is lost by a restart")
	}
	f.git("pack-refs", "--all")
	s, repairs = f.reopen(s)
	noRepairs(t, repairs)
	if !s.Retried() {
		t.Error("retried is lost by packing")
	}
	set(false)
	set(false)
	s, _ = f.reopen(s)
	if s.Retried() {
		t.Error("a removed mark came back out of packed-refs")
	}
	set(true)
	confirm(t, s)
	commit(t, s, change(4096))
	if s.Retried() {
		t.Error("a mark on an earlier candidate counts for the head")
	}
	if err := s.join(); err != nil { // else git is written beside fsck
		t.Fatal(err)
	}
	f.fsck()
}

// TestDirectoryIsNoPattern: a state directory with characters of a pattern in
// its name works, and nothing of a neighbour that fits it is touched.
func TestDirectoryIsNoPattern(t *testing.T) {
	for _, name := range []string{"z*", "td[", "a?b"} {
		above := t.TempDir()
		neighbour := filepath.Join(above, "zother-a-b", "tmp-precious")
		if err := os.MkdirAll(neighbour, 0o700); err != nil {
			t.Fatal(err)
		}
		f := &fixture{t: t, dir: filepath.Join(above, name), now: time.Now()}
		s, _ := f.open()
		if _, err := s.Commit(context.Background(), record.Record{Kind: record.KindChange, Config: params}); err != nil {
			t.Fatal(err)
		}
		left := filepath.Join(f.dir, "tmp-"+strings.Repeat("A", 26))
		if err := os.WriteFile(left, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, _ = f.reopen(s); s.Head() == nil {
			t.Errorf("%s: the head is gone", name)
		}
		if _, err := os.Stat(left); err == nil {
			t.Errorf("%s: what was left is not swept", name)
		}
		if _, err := os.Stat(neighbour); err != nil {
			t.Error(err)
		}
	}
}
