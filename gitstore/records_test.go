package gitstore

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// TestRecordsOfFormer reads the history that the release before wrote, which
// knew six parameters and held by digest: `git fast-export` made the file of it.
func TestRecordsOfFormer(t *testing.T) {
	f := newFixture(t)
	f.git("init", "-q", "--bare", "-b", "production", f.repo())
	f.gitFrom(filepath.Join("testdata", "format1.export"), "fast-import", "--quiet")
	s, repairs := f.open()
	noRepairs(t, repairs)
	list, err := s.List(t.Context(), "", 0)
	if err != nil || len(list) != 6 || s.Total() != 6 {
		t.Fatalf("%d records of %d, %v", len(list), s.Total(), err)
	}
	slices.Reverse(list)
	const size, caching = "esn_reservoir_size", "enable_caching"
	first := schema.NewParameters(map[string]schema.Value{
		"bseries_max_order": schema.Int(8), "cache_ttl_seconds": schema.Int(300), caching: schema.Bool(true),
		"enable_performance_monitoring": schema.Bool(true), size: schema.Int(1024), "max_membrane_depth": schema.Int(4),
	})
	second, third := first.With(size, schema.Int(2048)).With(caching, schema.Bool(false)), first.With(size, schema.Int(3072))
	for i, row := range []struct {
		kind    record.Kind
		outcome record.Outcome
		config  schema.Parameters
	}{
		{record.KindChange, record.Applied, first},
		{record.KindChange, record.Rejected, second},
		{record.KindRevert, record.Applied, first},
		{record.KindChange, record.Applied, third},
		{record.KindRollback, record.Applied, first},
		{record.KindNote, record.Applied, first},
	} {
		if got := list[i]; got.Kind != row.kind || got.Outcome != row.outcome || !reflect.DeepEqual(got.Config, row.config) || got.Index != i+1 {
			t.Errorf("record %d is %s %s of %s", i+1, got.Outcome, got.Kind, got.Config)
		}
	}
	if got, want := list[1].Changes, []schema.Change{
		{Parameter: caching, Old: schema.Bool(true), New: schema.Bool(false)},
		{Parameter: size, Old: schema.Int(1024), New: schema.Int(2048), Critical: true},
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("changes are %v, want %v", got, want)
	}
	if b := list[0].Before; b == nil || !b.Equal(first.With(size, schema.Int(512))) || list[2].Before != nil {
		t.Errorf("before is %v, %v", b, list[2].Before)
	}
	if o := list[2].OutcomeOf; o == nil || o.ID != list[1].ID || o.Outcome != record.Rejected || !slices.Equal(list[1].ValidationErrors, []string{"no memory"}) {
		t.Errorf("the revert settles %+v with %v", o, list[1].ValidationErrors)
	}
	if who := list[4].RequestedBy; who == nil || *who != 1000 || list[0].RequestedBy != nil {
		t.Errorf("the rollback was requested by %v", who)
	}
	if src := list[0].Source; src.Signer != "ada@example.org" || src.Key != "SHA256:x" || list[0].Provenance[size].File != "production.yaml" || len(list[0].Experiments) != 1 || list[0].Timestamp != 1750000001.5 {
		t.Errorf("the first record is %+v", list[0].Record)
	}
	if h := list[2].Held; h.By != "engine" || h.Reason != "no memory" || h.Since != 1750000003.5 || h.Paused || !h.Holds(second, anyName) {
		t.Errorf("the revert holds %+v", h)
	}

	hold := s.Head().Held
	if !hold.Paused || hold.By != "operator" || hold.Reason != "night" || len(hold.Entries) != 2 || len(hold.Entries[0].Names) != 6 {
		t.Fatalf("the head holds %+v", hold)
	}
	// The hold goes on in records of today, with a parameter more.
	seven := first.With("max_tokens", schema.Int(4096))
	next := *hold
	next.Paused = false
	commit(t, s, record.Record{Kind: record.KindNote, Config: seven, Held: &next})
	confirm(t, s)
	s, repairs = f.reopen(s)
	noRepairs(t, repairs)
	hold = s.Head().Held
	for p, want := range map[*schema.Parameters]bool{&first: false, &second: true, &third: true, &seven: false} {
		for _, p := range []schema.Parameters{*p, p.With("max_tokens", schema.Int(1))} {
			if hold.Holds(p, anyName) != want {
				t.Errorf("%s is held: %v", p, !want)
			}
		}
	}
	f.fsck()
}

// extended is the schema with a further parameter, and reduced without one that
// no rule names.
func extended(t *testing.T, further string) *schema.Rules {
	t.Helper()
	return open(t, `package dtesn
#extends: "dtesn"
#Parameters: `+further+`!: int & >=1 & <=65536 @dtesn(description="A further one")
#defaults: `+further+`: 2048
`)
}

func reduced(t *testing.T, without string) *schema.Rules {
	t.Helper()
	var kept []string
	for line := range strings.Lines(string(schema.Default().CUE())) {
		if !strings.HasPrefix(strings.TrimSpace(line), without) {
			kept = append(kept, line)
		}
	}
	return open(t, strings.Join(kept, ""))
}

func open(t *testing.T, text string) *schema.Rules {
	t.Helper()
	path := filepath.Join(t.TempDir(), "schema.cue")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := schema.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s.For("production")
}

// TestSchemaChanges goes on with one history under a schema with a parameter
// more, and then with two less: what was written under another is a good record,
// with all its values, and hold and pause are in force.
func TestSchemaChanges(t *testing.T) {
	plainly(t)
	const more, less = "further", "enable_performance_monitoring"
	today := schema.Default().For("production")
	f := newFixture(t)
	s, _ := f.open()
	a := applied(t, s, 512)
	b := commit(t, s, change(2048))
	commit(t, s, revert(b, a, "no memory"))
	confirm(t, s)
	want := []schema.Parameters{a.Config, b.Config, a.Config}

	look := func(rules *schema.Rules, paused bool) {
		t.Helper()
		list, err := s.List(t.Context(), "", 0)
		slices.Reverse(list)
		if err != nil || len(list) != len(want) {
			t.Fatalf("%d records of %d, %v", len(list), len(want), err)
		}
		for i, rec := range list {
			if !reflect.DeepEqual(rec.Config, want[i]) || strings.HasPrefix(rec.Description, "(damaged)") {
				t.Errorf("record %d is %s %s", i+1, rec.Description, rec.Config)
			}
			if got, err := s.Lookup(t.Context(), rec.ID); err != nil || !reflect.DeepEqual(got.Config, want[i]) {
				t.Errorf("record %d is found as %s, %v", i+1, got.Config, err)
			}
			if got := f.git("show", rec.Commit+":parameters.yaml") + "\n"; got != string(want[i].YAML()) {
				t.Errorf("record %d has the parameters.yaml\n%s", i+1, got)
			}
		}
		hold := s.Head().Held
		held, free := rules.Complete(b.Config), rules.Complete(sized(3072))
		if hold.Match(held, rules.Has) == nil || hold.Match(free, rules.Has) != nil || hold.Paused != paused || hold.Holds(free, rules.Has) != paused {
			t.Errorf("the hold in force is %+v", hold)
		}
		if _, err := os.Lstat(filepath.Join(f.dir, setAsideDir)); err == nil {
			t.Error("something was set aside")
		}
		f.lost(s, false)
	}
	// onward appends a record under the rules, and opens again.
	onward := func(rules *schema.Rules, paused bool) {
		t.Helper()
		look(rules, s.Head().Held.Paused)
		config := rules.Complete(a.Config)
		hold := *s.Head().Held
		hold.Paused = paused
		commit(t, s, record.Record{Kind: record.KindNote, Config: config, Changes: config.Diff(s.Head().Config), Held: &hold})
		confirm(t, s)
		want = append(want, config)
		var repairs []record.Repair
		s, repairs = f.reopen(s)
		noRepairs(t, repairs)
		look(rules, paused)
	}
	s, repairs := f.reopen(s)
	noRepairs(t, repairs)
	up, down := extended(t, more), reduced(t, less)
	if len(up.Names()) != len(today.Names())+1 || len(down.Names()) != len(today.Names())-1 {
		t.Fatalf("the schemas have %v and %v", up.Names(), down.Names())
	}
	for _, rules := range []*schema.Rules{up, today, down, up, down, today} {
		onward(rules, true)
		onward(rules, false)
	}
	f.fsck()

	// An entry on the further parameter alone sleeps where no schema has it.
	hold := holding(schema.NewParameters(map[string]schema.Value{more: schema.Int(7)}))
	commit(t, s, record.Record{Kind: record.KindNote, Config: s.Head().Config, Held: hold})
	s, repairs = f.reopen(s)
	noRepairs(t, repairs)
	p := sized(512).With(more, schema.Int(7))
	if h := s.Head().Held; len(h.Entries) != 1 || h.Match(p, today.Has) != nil || h.Match(p, up.Has) == nil {
		t.Errorf("the hold is %+v", h)
	}
}

// A record is good whatever its parameters.yaml looks like, if it is there: it is
// a rendering. A hold that an agent of tomorrow wrote is a pause.
func TestRecordOfTomorrow(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 512)
	onPause(t, s)
	head := s.Head()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	text := f.git("show", head.Commit+":snapshot.json")
	text = strings.Replace(text, `"paused": true`, `"paused": false, "until": 1750000000`, 1)
	text = strings.Replace(text, `"config_data": {`, `"verdict": {"ratio": 1.5}, "config_data": { "temperature": 0.70, `, 1)
	blob := func(content string) string {
		path := filepath.Join(t.TempDir(), "blob")
		f.write(path, content)
		return f.git("hash-object", "-w", path)
	}
	tree := filepath.Join(t.TempDir(), "tree")
	f.write(tree, "100644 blob "+blob("# drawn otherwise\ntemperature: 0.7\n")+"\t"+parametersFile+"\n100644 blob "+blob(text)+"\t"+snapshotFile+"\n")
	was, is := f.git("rev-parse", head.Commit+"^{tree}"), f.gitFrom(tree, "mktree")
	raw := filepath.Join(t.TempDir(), "commit")
	f.write(raw, strings.Replace(f.git("cat-file", "commit", head.Commit)+"\n", was, is, 1))
	commit := f.gitFrom(raw, "hash-object", "-t", "commit", "-w", "--stdin")
	f.git("update-ref", "refs/heads/production", commit)
	f.dropJournal() // the refs are believed
	s, _ = f.open()
	got := s.Head()
	if got.Commit != commit || got.Config.Get("temperature").String() != "0.70" || got.Config.Len() != head.Config.Len()+1 {
		t.Errorf("the head is %s of %s, want %s", idOf(got), got.Config, commit)
	}
	if h := got.Held; h == nil || !h.Paused || !strings.Contains(h.Reason, `unknown field "until"`) || h.By != "operator" {
		t.Errorf("the hold is %+v", h)
	}
	applied(t, s, 512)
	f.fsck()
}

// A hold with more than maxEntries counts as a pause, so that none of them is
// forgotten, and shares nothing with the one that was given.
func TestCleanseHold(t *testing.T) {
	given := &record.Hold{By: "operator"}
	for i := range 2 * maxEntries {
		e := record.Entry{Values: sized(100 + i).Map()}
		e.By, e.Since = "operator", float64(2*maxEntries-i)
		given.Entries = append(given.Entries, e)
	}
	got := cleanseHold(given, params)
	for i, e := range got.Entries {
		if e.Since <= float64(maxEntries) || i > 0 && e.Since < got.Entries[i-1].Since {
			t.Errorf("entry %d, since %v, is not in order or too old", i, e.Since)
		}
	}
	if !got.Paused || len(got.Entries) != maxEntries {
		t.Errorf("paused %v with %d entries", got.Paused, len(got.Entries))
	}
	if given.Paused || given.Entries[0].Since != 2*maxEntries || len(given.Entries) != 2*maxEntries {
		t.Error("the hold that was given is another")
	}
	got.Entries[0].Values[sizeName] = schema.Int(1)
	for _, e := range given.Entries {
		if e.Values[sizeName].Equal(schema.Int(1)) {
			t.Error("values are shared")
		}
	}
}
