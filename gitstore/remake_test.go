package gitstore

import (
	"path/filepath"
	"strings"
	"testing"

	"dtesn-agent/gitstore/record"
)

// A remakeRow damages a history of which the file applied has no second copy.
type remakeRow struct {
	name   string
	last   func(t *testing.T, s *Store) // what follows 512 and 640, both applied
	damage []string                     // objects that are lost
	kind   record.Kind                  // of the head afterwards
	size   int                          // what it says is to run
	index  int
	paused bool
	told   bool // a record was made anew
}

// rejected has 1024 rejected, and its revert applied.
func rejected(t *testing.T, s *Store) {
	before := s.Applied()
	commit(t, s, revert(commit(t, s, change(1024)), before, "refused"))
	confirm(t, s)
}

// rolledBack has an operator go back to 512.
func rolledBack(t *testing.T, s *Store) {
	target, err := s.Lookup(t.Context(), "1")
	if err != nil {
		t.Fatal(err)
	}
	held := holding(s.Head().Config)
	held.By, held.Reason = "operator", "burns"
	commit(t, s, record.Record{Kind: record.KindRollback, Description: "Rollback to " + target.ID + ": burns", Config: target.Config, RollbackPoint: true, Held: held})
	confirm(t, s)
}

// onPause has an operator pause, without a Confirm.
func onPause(t *testing.T, s *Store) {
	held := &record.Hold{Paused: true, Reason: "incident", By: "operator", Since: 1}
	commit(t, s, record.Record{Kind: record.KindNote, Description: "Pause", Config: s.Head().Config, RollbackPoint: true, Held: held})
}

func remakeRows() []remakeRow {
	const snapshot, parameters, tree = "production:snapshot.json", "production:parameters.yaml", "production^{tree}"
	then := func(steps ...func(*testing.T, *Store)) func(*testing.T, *Store) {
		return func(t *testing.T, s *Store) {
			for _, step := range steps {
				step(t, s)
			}
		}
	}
	larger := func(t *testing.T, s *Store) { applied(t, s, 768) }
	return []remakeRow{
		{"a revert", rejected, []string{snapshot}, record.KindRevert, 640, 4, true, true},
		{"a revert, its tree", rejected, []string{tree}, record.KindRevert, 640, 4, true, true},
		{"a revert, and what it settles", rejected, []string{snapshot, "production~1:snapshot.json"}, record.KindNote, 640, 3, true, true},
		{"a revert, and the commit of what it settles", rejected, []string{tree, "production~1"}, record.KindRevert, 512, 3, true, true},
		{"a rollback", rolledBack, []string{snapshot}, record.KindRollback, 512, 3, true, true},
		{"a rollback, its tree", rolledBack, []string{tree}, record.KindRollback, 512, 3, true, true},
		{"a rollback, and a note upon it", then(rolledBack, onPause, func(t *testing.T, s *Store) { confirm(t, s) }), []string{tree, "production~1^{tree}"}, record.KindNote, 512, 3, true, true},
		{"a note", then(onPause, func(t *testing.T, s *Store) { confirm(t, s) }), []string{snapshot, tree}, record.KindNote, 640, 3, true, true},
		{"a note at the head", onPause, []string{snapshot}, record.KindNote, 640, 3, true, true},
		{"a note upon a revert, both", then(rejected, onPause), []string{snapshot, "production~1:snapshot.json"}, record.KindRevert, 640, 4, true, true},
		{"a change", larger, []string{snapshot}, record.KindChange, 768, 3, false, true},
		{"a change, its parameters.yaml", larger, []string{parameters}, record.KindChange, 768, 3, false, false},
		{"a change, all that it says", larger, []string{snapshot, parameters}, record.KindChange, 640, 2, false, false},
		{"a change upon a candidate that it supersedes, all that it says", func(t *testing.T, s *Store) {
			c := commit(t, s, change(1024))
			rec := change(768)
			rec.OutcomeOf = &record.Settlement{ID: c.ID, Outcome: record.Superseded}
			commit(t, s, rec)
			confirm(t, s)
		}, []string{snapshot, parameters}, record.KindChange, 640, 2, false, false},
		{"all records", larger, []string{snapshot, "production~1:snapshot.json", "production~2:snapshot.json"}, record.KindChange, 768, 1, false, true},
	}
}

// TestRemade damages the newest record where nothing else has its content: what
// was rejected, superseded or rolled back does not become the newest state, a hold
// does not end, and git finds no fault.
func TestRemade(t *testing.T) {
	for _, row := range remakeRows() {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			f := newMemory(t)
			s, _ := f.open()
			applied(t, s, 512)
			applied(t, s, 640)
			row.last(t, s)
			lost := s.Head()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			var paths []string
			for _, object := range row.damage {
				paths = append(paths, f.file(object))
			}
			for _, path := range append(paths, filepath.Join(f.dir, appliedFile)) {
				f.remove(path)
			}
			s, repairs := f.open()
			checkRemade(t, s, row)
			told := false
			for _, r := range repairs {
				told = told || strings.Contains(r.Found, lost.ID+" is damaged") && strings.Contains(r.Did, "made anew as "+s.Head().ID)
			}
			if told != row.told || len(repairs) == 0 {
				t.Errorf("repairs: %v", repairs)
			}
			f.fsck()
			s, repairs = f.reopen(s)
			noRepairs(t, repairs)
			checkRemade(t, s, row)
			applied(t, s, 4096)
			f.fsck()
		})
	}
}

func checkRemade(t *testing.T, s *Store, row remakeRow) {
	t.Helper()
	head := s.Head()
	if head == nil {
		t.Fatal("an empty history")
	}
	if head.Kind != row.kind || sizeOf(head.Config) != row.size || head.Index != row.index {
		t.Errorf("the head is %s of %d, want %s %d of %d", idOf(head), sizeOf(head.Config), row.kind, row.index, row.size)
	}
	if hold := head.Hold(); row.paused != (hold != nil && hold.Paused && strings.Contains(hold.Reason, "agent resume")) {
		t.Errorf("the hold is %+v", hold)
	}
	list, err := s.List(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range list {
		if size := sizeOf(rec.Config); size == 1024 && rec.Outcome != record.Rejected && rec.Outcome != record.Superseded {
			t.Errorf("%s is %s", rec.ID, rec.Outcome)
		}
	}
	if s.Applied() == nil || !s.Applied().Config.Equal(head.Config) {
		t.Errorf("%s is applied", idOf(s.Applied()))
	}
}

// TestFetchedHistory loses both refs beside a longer history of another instance,
// which somebody fetched: the start is not refused for it, nor its records taken.
func TestFetchedHistory(t *testing.T) {
	other := newMemory(t)
	options := other.options()
	options.Instance = "web-2"
	s, _, err := Open(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	for size := range 6 {
		applied(t, s, 2048+size)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, lost := range []string{"", appliedFile, identityFile} {
		f := newMemory(t)
		r := f.long(2)
		f.git("fetch", "-q", other.repo(), "refs/heads/*:refs/remotes/other/*")
		f.write(f.ref("heads/production"), "")
		f.write(f.ref("dtesn/applied/production"), "")
		switch lost {
		case appliedFile:
			f.remove(filepath.Join(f.dir, lost))
		case identityFile:
			f.write(filepath.Join(f.dir, lost), `{"environment": "production", "instance": "web-2"}`)
		}
		s, _ := f.open()
		if commitOf(s.Head()) != r[1].Commit {
			t.Errorf("without %q the head is %s", lost, idOf(s.Head()))
		}
		f.fsck()
	}
}
