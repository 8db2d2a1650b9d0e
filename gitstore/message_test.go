package gitstore

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// hostile texts are what a description, a reason, an author or an engine's
// words may hold when somebody means ill.
var hostile = map[string]string{
	"nothing":           "",
	"only space":        " \t\r\n ",
	"newline":           "a\nSnapshot-Id: snapshot_1_0001",
	"paragraph":         "a\n\nSnapshot-Id: snapshot_1_0001\nOutcome-Of: snapshot_1_0001 rejected\n",
	"carriage return":   "a\r\r\nKind: revert\r",
	"NUL":               "a\x00b\x00\n\n\x00Kind: note",
	"trailer":           "Snapshot-Id: snapshot_1_0001",
	"other trailer":     "Signed-off-by: Mallory <m@example.org>",
	"cherry-pick":       "(cherry picked from commit 0123456789)",
	"divider":           "---",
	"scissors":          "# " + scissors,
	"other scissors":    ";\t" + scissors + "\n",
	"comment":           "# Snapshot-Id: snapshot_1_0001",
	"line separators":   "a\u2028Kind: note\u2029Kind: note\u0085Kind: note\vKind: note\fKind: note",
	"bidi":              "\u202eetar\u202c\u2066x\u2069\u200e\u200f\u061c",
	"invalid UTF-8":     "a\xff\xfe\nKind: \xc3(",
	"surrogate":         "\xed\xa0\x80 \xf4\x90\x80\x80",
	"escape":            "\x1b[2J\x1b]0;x\x07",
	"angle brackets":    "<>><<a@b>",
	"name and mail":     "Mallory <m@example.org>\nauthor Eve <e@example.org>",
	"crud":              ".,:;<>\"\\' <.,:;\"\\'>",
	"ten megabytes":     strings.Repeat("long ", 2<<20),
	"a long word":       strings.Repeat("é", 5000),
	"ten megabytes \\n": strings.Repeat("\n", 10<<20) + "Kind: note",
}

// hostileRecord bears text wherever it can come from outside.
func hostileRecord(text string) record.Record {
	errs := make([]string, 30)
	for i := range errs {
		errs[i] = text
	}
	p := sized(2048)
	return record.Record{
		Kind: record.KindChange, Config: p, Description: text, Errors: errs,
		Source:       record.Source{Kind: text, Location: text, Revision: text, Author: text + " <" + text + ">", Subject: text},
		Provenance:   schema.Provenance{text: {Position: schema.Position{File: text}, Layer: text, Commit: text}},
		Changes:      []schema.Change{{Parameter: "esn_reservoir_size", Old: schema.Int(1), New: schema.Int(2)}},
		Experiments:  []schema.Membership{{Name: text, Percent: 1}},
		Held:         hostileHold(text, p),
		Requester:    &record.Requester{UID: 1000, User: text, Login: text},
		AgentVersion: text, SchemaDigest: text,
	}
}

// hostileHold has more entries than are kept, and one by digest.
func hostileHold(text string, p schema.Parameters) *record.Hold {
	who := &record.Requester{UID: 1000, User: text, Login: text}
	h := &record.Hold{By: text, Reason: text, Since: 1, Requester: who}
	for i := range maxEntries + 6 {
		h.Entries = append(h.Entries, record.Entry{
			Values: map[string]schema.Value{sizeName: schema.Int(i), "unset": {}},
			By:     text, Reason: text, Since: float64(i % 7), Requester: who,
		})
	}
	h.Entries = append(h.Entries, record.Entry{Digest: p.Digest(), Since: 9})
	return h
}

// isOneLine reports whether text is what foreign text becomes.
func isOneLine(text string) bool {
	bad := func(r rune) bool {
		return unicode.IsControl(r) || unicode.In(r, unicode.Zl, unicode.Zp, unicode.Bidi_Control)
	}
	return len(text) <= maxReason && utf8.ValidString(text) && strings.IndexFunc(text, bad) < 0 && strings.TrimSpace(text) == text
}

// What real git takes for trailers is ours alone, and the record reads back.
func TestHostileText(t *testing.T) {
	plainly(t)
	f := newFixture(t)
	s, _ := f.open()
	ids := map[string]string{}
	var prev *record.Record
	for name, text := range hostile {
		rec := hostileRecord(text)
		snap := commit(t, s, rec)
		ids[snap.ID] = name
		rec.Kind, rec.OutcomeOf = record.KindRevert, &record.Settlement{ID: snap.ID, Outcome: record.Rejected}
		prev = commit(t, s, rec)
		ids[prev.ID] = name + ", revert"
	}
	confirm(t, s)
	f.fsck()
	const end = "%x1e"
	log := f.git("log", "--format=%(trailers:only,unfold,key_value_separator=: ,separator=%x1f)%x1d%s%x1d%an%x1d%ae"+end)
	for entry := range strings.SplitSeq(strings.TrimSuffix(log, "\x1e"), "\x1e") {
		fields := strings.Split(strings.TrimPrefix(entry, "\n"), "\x1d")
		trailers := map[string]string{}
		for line := range strings.SplitSeq(fields[0], "\x1f") {
			key, value, _ := strings.Cut(line, ": ")
			if _, twice := trailers[key]; twice {
				t.Errorf("trailer %s comes twice", key)
			}
			trailers[key] = value
		}
		name := ids[trailers[keyID]]
		rec, err := s.Lookup(t.Context(), trailers[keyID])
		if name == "" || err != nil {
			t.Fatalf("%q: %v", entry, err)
		}
		want := map[string]string{keyID: rec.ID, keyKind: string(rec.Kind), keyEnvironment: "production", keyInstance: "web-1"}
		if rec.Source.Revision != "" {
			want[keyRevision] = rec.Source.Revision
		}
		if rec.OutcomeOf != nil {
			want[keyOutcomeOf] = rec.OutcomeOf.ID + " rejected"
		}
		if !reflect.DeepEqual(trailers, want) {
			t.Errorf("%s: git reads the trailers\n%q, want\n%q", name, trailers, want)
		}
		for _, text := range append(fields[1:], rec.Description, rec.Source.Author, rec.Source.Subject, rec.Held.Reason, rec.AgentVersion, rec.Requester.User, rec.Requester.Login) {
			if !isOneLine(text) {
				t.Errorf("%s: not one line: %q", name, text)
			}
		}
		if fields[1] == "" || fields[2] == "" || fields[3] == "" {
			t.Errorf("%s: subject, author or address is empty: %q", name, fields[1:])
		}
	}
	s, repairs := f.reopen(s)
	noRepairs(t, repairs)
	expect(t, s, prev, prev)
	if s.Total() != 2*len(hostile) || !reflect.DeepEqual(s.Head(), prev) {
		t.Errorf("%d records; the head reads back as\n%+v\nwas committed as\n%+v", s.Total(), s.Head(), prev)
	}
}

func TestSubjects(t *testing.T) {
	size := schema.Change{Parameter: "esn_reservoir_size", Old: schema.Int(2048), New: schema.Int(4096), Critical: true}
	caching := schema.Change{Parameter: "enable_caching", New: schema.Bool(true)}
	one, both := []schema.Change{caching}, []schema.Change{caching, size}
	long := schema.Change{Parameter: "text", Old: schema.Text(strings.Repeat("x", 500)), New: schema.Text("y")}
	autumn := record.Source{Subject: "autumn catalogue (#412)"}
	for want, rec := range map[string]record.Record{
		"Deeper":                  {Kind: record.KindChange, Description: "Deeper"},
		"autumn catalogue (#412)": {Kind: record.KindChange, Description: "Deeper", Source: autumn},
		"esn_reservoir_size 2048 -> 4096: autumn catalogue (#412)":            {Kind: record.KindChange, Description: "Deeper", Source: autumn, Changes: []schema.Change{size}},
		"esn_reservoir_size 2048 -> 4096 and 1 more: autumn catalogue (#412)": {Kind: record.KindChange, Source: autumn, Changes: both},
		"esn_reservoir_size 2048 -> 4096 and 1 more: Deeper":                  {Kind: record.KindChange, Description: "Deeper", Changes: both},
		"enable_caching unset -> true":                                        {Kind: record.KindChange, Changes: one},
		"enable_caching unset -> true: Rollback to snapshot_1_0001: slow":     {Kind: record.KindRollback, Source: autumn, Description: "Rollback to snapshot_1_0001: slow", Changes: one},
		"text " + strings.Repeat("x", 92) + "…: why":                          {Kind: record.KindChange, Description: "why", Changes: []schema.Change{long}},
		"Update nothing": {Kind: record.KindChange},
		"Roll back":      {Kind: record.KindRollback},
		"Hold":           {Kind: record.KindNote, Held: &record.Hold{}},
		"End the hold":   {Kind: record.KindNote},
		`Revert "x"`:     {Kind: record.KindRevert, Description: "why"},
	} {
		if got := subject(&rec, "x"); got != want {
			t.Errorf("subject is %q, want %q", got, want)
		}
	}
}

// The body says the hold in words, and stays within its bounds.
func TestBody(t *testing.T) {
	rec := &record.Record{Held: &record.Hold{Paused: true, By: "operator", Reason: "night"}}
	if got := body(rec, ""); got != "    paused by operator: night\n" {
		t.Errorf("a pause is %q", got)
	}
	rec.Held.Entries = []record.Entry{{Values: map[string]schema.Value{"b": schema.Int(2048), "a": schema.Bool(true), "c": {}}}, {Digest: params.Digest()}}
	if got, want := body(rec, ""), "    paused by operator: night\n    held: a true, b 2048, c unset\n    held: digest "+string(params.Digest()[:12])+"\n"; got != want {
		t.Errorf("a hold is %q, want %q", got, want)
	}
	for range 100 {
		rec.Errors = append(rec.Errors, strings.Repeat("x", 300))
	}
	got := body(rec, "")
	if len(got) > maxBody || !strings.Contains(got, "lines more)") {
		t.Errorf("a body of %d bytes: %q", len(got), got)
	}
}

func TestTrailersThatAreNotOurs(t *testing.T) {
	rec := &record.Record{ID: "snapshot_1_0001", Kind: record.KindChange, Environment: "production", Instance: "web-1"}
	ours := trailers(rec)
	if err := readTrailers(rec, "subject\n\n"+ours); err != nil {
		t.Fatal(err)
	}
	for _, message := range []string{
		"", "\n", "subject\n", "subject\n" + ours,
		"subject\n\n" + ours + "Kind: change\n",
		"subject\n\n" + ours + "Signed-off-by: P\n",
		"subject\n\nSigned-off-by: P\n" + ours,
		"subject\n\n" + ours + " text\n",
		"subject\n\n" + strings.Replace(ours, ": ", ":", 1),
		"subject\n\n" + ours + "\n\n",
		"subject\n\n" + strings.Replace(ours, "Kind: change", "Kind: note", 1),
	} {
		if err := readTrailers(rec, message); err == nil {
			t.Errorf("%q is taken", message)
		}
	}
}

// FuzzMessage builds the message of a record of hostile text and reads it back.
func FuzzMessage(f *testing.F) {
	for _, text := range hostile {
		if len(text) < 1<<10 {
			f.Add(text, text, text, uint8(len(text)))
		}
	}
	f.Fuzz(func(t *testing.T, text, reason, author string, kind uint8) {
		uid := int(kind)
		rec := hostileRecord(text)
		rec.Kind = []record.Kind{record.KindChange, record.KindRollback, record.KindRevert, record.KindNote}[kind%4]
		rec.Held.Reason, rec.Source.Author = reason, author
		rec.Instance, rec.Environment, rec.ID = "web-1", "production", "snapshot_1_0001"
		if rec.Kind == record.KindRollback {
			rec.RequestedBy = &uid
		}
		if rec.Kind == record.KindRevert {
			rec.OutcomeOf = &record.Settlement{ID: "snapshot_1_0000", Outcome: record.Superseded}
		}
		clean := cleanse(rec)
		again := cleanse(clean)
		again.Errors = clean.Errors // the count of those left out is lost
		if !reflect.DeepEqual(again, clean) {
			t.Errorf("cleansed twice\n%+v, once\n%+v", again, clean)
		}
		msg := message(&clean, subject(&clean, text))
		checkShape(t, msg)
		data, err := encodeSnapshot(&clean)
		if err != nil {
			t.Fatal(err)
		}
		back := new(record.Record)
		if err := json.Unmarshal(data, back); err != nil {
			t.Fatal(err)
		}
		if err := readTrailers(back, msg); err != nil {
			t.Fatalf("%v\n%q", err, msg)
		}
		back.Held.Cover(back.Config.Names())
		if !reflect.DeepEqual(back, &clean) {
			t.Errorf("reads back as\n%+v, was\n%+v", back, &clean)
		}
		if name, mail, ok := signature(author); ok {
			for _, part := range []string{name, mail} {
				if part == "" || !isOneLine(part) || strings.ContainsAny(part, "<>\n") || strings.Contains(mail, " ") {
					t.Errorf("signature %q <%q> of %q", name, mail, author)
				}
			}
		}
	})
}

// checkShape checks that a message is one line, indented lines and trailers.
func checkShape(t *testing.T, msg string) {
	t.Helper()
	paragraphs := strings.Split(strings.TrimSuffix(msg, "\n"), "\n\n")
	if n := len(paragraphs); n < 2 || n > 3 {
		t.Fatalf("%d paragraphs in %q", n, msg)
	}
	if !isOneLine(paragraphs[0]) || paragraphs[0] == "" {
		t.Errorf("subject %q", paragraphs[0])
	}
	if len(paragraphs) == 3 {
		if len(paragraphs[1]) > maxBody {
			t.Errorf("a body of %d bytes", len(paragraphs[1]))
		}
		for line := range strings.SplitSeq(paragraphs[1], "\n") {
			if !strings.HasPrefix(line, indent) || !isOneLine(line[len(indent):]) {
				t.Errorf("line %q of the body", line)
			}
		}
	}
}
