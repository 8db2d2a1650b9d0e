package gitstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

func (f *fixture) reader() *Reader {
	f.t.Helper()
	r, err := OpenReader(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = r.Close() })
	return r
}

// Every way in which a candidate ends, as git, a Reader and the Store say it.
func TestOutcomeTable(t *testing.T) {
	plainly(t)
	superseding := func(of *record.Record) record.Record {
		rec := change(4096)
		rec.OutcomeOf = &record.Settlement{ID: of.ID, Outcome: record.Superseded}
		return rec
	}
	rollback := record.Record{Kind: record.KindRollback, Config: sized(512), RollbackPoint: true}
	note := record.Record{Kind: record.KindNote, Config: sized(512), Held: &record.Hold{Paused: true, By: "operator", Reason: "night"}}
	for name, row := range map[string]struct {
		tell   func(t *testing.T, s *Store, a *record.Record)
		want   string // outcomes, newest first; * is the active record
		active int
	}{
		"applied":               {func(t *testing.T, s *Store, _ *record.Record) { applied(t, s, 2048) }, "applied* applied", 2},
		"pending":               {func(t *testing.T, s *Store, _ *record.Record) { commit(t, s, change(2048)) }, "pending applied*", 1},
		"rejected, not durable": {func(t *testing.T, s *Store, a *record.Record) { commit(t, s, revert(commit(t, s, change(2048)), a)) }, "pending rejected applied*", 1},
		"rejected": {func(t *testing.T, s *Store, a *record.Record) {
			commit(t, s, revert(commit(t, s, change(2048)), a))
			confirm(t, s)
		}, "applied* rejected applied", 2},
		"withdrawn": {func(t *testing.T, s *Store, a *record.Record) {
			rec := revert(commit(t, s, change(2048)), a)
			rec.OutcomeOf.Outcome, rec.Held = record.Superseded, nil
			commit(t, s, rec)
			confirm(t, s)
		}, "applied* superseded applied", 2},
		"superseded": {func(t *testing.T, s *Store, _ *record.Record) {
			commit(t, s, superseding(commit(t, s, change(2048))))
		}, "pending superseded applied*", 1},
		"rollback":  {func(t *testing.T, s *Store, _ *record.Record) { commit(t, s, rollback); confirm(t, s) }, "applied* applied", 2},
		"note":      {func(t *testing.T, s *Store, _ *record.Record) { commit(t, s, note); confirm(t, s) }, "applied* applied", 2},
		"open note": {func(t *testing.T, s *Store, _ *record.Record) { commit(t, s, note) }, "pending applied*", 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			s, _ := f.open()
			row.tell(t, s, applied(t, s, 512))
			for range 2 {
				r := f.reader()
				for who, list := range map[string]func(context.Context, string, int) ([]record.Row, error){"store": s.List, "reader": r.List} {
					records, err := list(t.Context(), "", 0)
					if got := outcomes(records); err != nil || got != row.want {
						t.Errorf("the %s says %q, %v, want %q", who, got, err, row.want)
					}
				}
				if records, err := r.List(t.Context(), "", 0); err != nil || appliedIn(records) != row.active {
					t.Errorf("%d applied, %v, want %d", appliedIn(records), err, row.active)
				}
				var repairs []record.Repair
				s, repairs = f.reopen(s)
				noRepairs(t, repairs)
			}
		})
	}
}

func outcomes(records []record.Row) string {
	words := make([]string, 0, len(records))
	for _, rec := range records {
		word := string(rec.Outcome)
		if rec.IsActive {
			word += "*"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// Pages of any size join to the whole history, each record once.
func TestPaging(t *testing.T) {
	plainly(t)
	f := newFixture(t)
	s, _ := f.open()
	const n = 60
	for i := range n {
		commit(t, s, change(64+i))
	}
	confirm(t, s)
	r := f.reader()
	for _, size := range []int{1, 7, n - 1, n, n + 1} {
		before, want := "", n
		for {
			page, err := r.List(t.Context(), before, size)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			if len(page) != min(size, want) {
				t.Errorf("a page of %d, want %d", len(page), min(size, want))
			}
			for _, rec := range page {
				if rec.Index != want {
					t.Fatalf("record %d where %d should be", rec.Index, want)
				}
				want--
			}
			before = page[len(page)-1].ID
		}
		if want != 0 {
			t.Errorf("pages of %d end above record %d", size, want)
		}
	}
	for limit, want := range map[int]int{0: defaultPage, -1: defaultPage, n: n} {
		page, err := r.List(t.Context(), "", limit)
		if err != nil || len(page) != want || appliedIn(page) != want {
			t.Errorf("limit %d: %d listed, %v; %d applied; want %d", limit, len(page), err, appliedIn(page), want)
		}
	}
	for _, before := range []string{"30", s.Head().Commit, "snapshot_1_0099"} {
		page, err := r.List(t.Context(), before, 1)
		if ok := err == nil && len(page) == 1; ok == strings.HasPrefix(before, "snapshot") {
			t.Errorf("before %s: %v, %v", before, page, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.List(ctx, "", 5); !errors.Is(err, context.Canceled) {
		t.Errorf("a listing that nobody waits for: %v", err)
	}
	if _, err := s.Commit(ctx, change(64)); !errors.Is(err, context.Canceled) || s.Total() != n {
		t.Errorf("a commit that nobody waits for: %v", err)
	}
}

func TestReaderLookup(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	byDigit := map[byte]int{}
	var last *record.Record
	for i := range 20 { // two of 20 begin with the same hex digit
		last = commit(t, s, change(64+i))
		byDigit[last.Commit[0]]++
	}
	confirm(t, s)
	r := f.reader()
	if rec, err := r.Lookup(t.Context(), last.Commit[:10]); err != nil || rec.ID != last.ID || !rec.IsActive {
		t.Errorf("%v, %v", rec, err)
	}
	if len(byDigit) == 20 {
		t.Fatal("there are 16 hex digits")
	}
	if _, err := s.repo.findPrefix(t.Context(), s.view(), "commit prefix", "", func(h plumbing.Hash) (string, error) { return h.String(), nil }); err == nil || !strings.HasSuffix(err.Error(), "both begin with it") || problem.Hint(err) != "give more digits" || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a prefix of all: %v", err)
	}
	for id, want := range map[string]string{
		"snapshot_1_0003": "record 3 is snapshot_", "21": "the newest is " + last.ID, "nope": "no snapshot \"nope\"", "ABCD": "no snapshot", "a\x1bb\n": "a b", "abc": "no snapshot",
	} {
		_, err := r.Lookup(t.Context(), id)
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), want) || strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("lookup of %q: %v, want %q", id, err, want)
		}
	}
}

func TestReaderWithoutAHistory(t *testing.T) {
	f := newFixture(t)
	if _, err := OpenReader(f.dir); err == nil || !strings.Contains(problem.Hint(err), "agent run --state "+f.dir) {
		t.Errorf("no state directory: %v", err)
	}
	s, _ := f.open()
	r := f.reader()
	head, herr := r.Head()
	now, aerr := r.Applied()
	total, terr := r.Total()
	list, lerr := r.List(t.Context(), "", 0)
	if err := errors.Join(herr, aerr, terr, lerr); err != nil || head != nil || now != nil || total != 0 || len(list) != 0 {
		t.Errorf("an empty history: %v %v %v %v, %v", head, now, total, list, err)
	}
	f.git("update-ref", "refs/heads/mine", f.commitTree(f.git("hash-object", "-wt", "tree", "/dev/null")))
	if total, err := r.Total(); total != 0 || err != nil {
		t.Errorf("an empty history beside a person's branch: %d %v", total, err)
	}
	if _, err := r.List(t.Context(), "snapshot_1_0001", 0); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "is empty") {
		t.Errorf("a page of an empty history: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f.write(filepath.Join(f.dir, identityFile), "")
	f.dropJournal()
	if _, err := OpenReader(f.dir); err == nil || !strings.Contains(err.Error(), "is damaged") || !strings.Contains(problem.Hint(err), "repairs it") {
		t.Errorf("neither identity nor journal: %v", err)
	}
}

// A Reader has what the journal has, whatever happened to the repository; without
// the journal, what the refs say.
func TestReaderOnDamage(t *testing.T) {
	plainly(t)
	for name, row := range map[string]struct {
		damage func(st *story)
		total  int // 0: an error
	}{
		"refs and objects gone": {func(st *story) { st.remove(st.repo("refs")); st.remove(st.repo("objects")) }, 4},
		"foreign head":          {func(st *story) { st.foreign("P", map[string][]byte{"note": nil}) }, 4},
		"identity torn":         {func(st *story) { st.write(filepath.Join(st.dir, identityFile), "") }, 4},
		"journal gone":          {func(st *story) { st.dropJournal() }, 4},
		"journal gone, packed":  {func(st *story) { st.dropJournal(); st.git("gc", "-q") }, 4},
		"journal gone, head commit torn": {func(st *story) {
			st.dropJournal()
			st.halve(st.file("production"))
		}, 2},
		"journal and both refs gone": {func(st *story) {
			st.dropJournal()
			bothRefs(st, "")
		}, 0},
		"journal gone, both refs name what is missing": {func(st *story) {
			st.dropJournal()
			bothRefs(st, strings.Repeat("5", 40)+"\n")
		}, 0},
		"first frame flipped, refs gone": {func(st *story) { st.flip(100); st.remove(st.repo("refs")) }, 0},
		"nothing is damaged":             {func(*story) {}, 4},
	} {
		t.Run(name, func(t *testing.T) {
			st := newStory(t)
			row.damage(st)
			r := st.reader()
			before := st.tree()
			total, err := r.Total()
			if total != row.total || (err == nil) != (row.total != 0) {
				t.Errorf("total %d, %v, want %d", total, err, row.total)
			}
			if err != nil && (!strings.Contains(problem.Hint(err), "restart the agent") || strings.Contains(err.Error(), "\n")) {
				t.Errorf("%v, with the hint %q", err, problem.Hint(err))
			}
			if list, err := r.List(t.Context(), "", 0); len(list) != row.total || (err == nil) != (row.total != 0) {
				t.Errorf("list of %d: %v", len(list), err)
			}
			if after := st.tree(); len(after) != len(before) {
				t.Error("a Reader changed the files")
			}
		})
	}
}

// Readers beside a Store that writes, and beside people's gc, see histories
// that only grow, each whole.
func TestReadersBesideAWriter(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 64)
	shared := f.reader()
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 3 {
		r := shared
		if i%2 == 1 {
			r = f.reader()
		}
		wg.Go(func() {
			for last, over := 0, false; !over; {
				select {
				case <-done:
					over = true // one more round, on all of it
				default:
				}
				total, err := readRound(t.Context(), r)
				if err != nil || total < last {
					t.Errorf("reader %d: total %d after %d: %v", i, total, last, err)
					return
				}
				last = total
			}
		})
	}
	for i := range 24 {
		snap := commit(t, s, change(65+i))
		if i%4 == 3 {
			rec := revert(snap, s.Applied())
			commit(t, s, rec)
		}
		confirm(t, s)
		if i%10 == 9 {
			f.git("gc", "-q")
		}
	}
	close(done)
	wg.Wait()
	if total, err := shared.Total(); total != s.Total() || err != nil {
		t.Errorf("total %d, %v, want %d", total, err, s.Total())
	}
}

// appliedIn counts the applied records.
func appliedIn(records []record.Row) (n int) {
	for i := range records {
		if records[i].Outcome == record.Applied {
			n++
		}
	}
	return n
}

// readRound reads a page, its records and the figures of a history.
func readRound(ctx context.Context, r *Reader) (int, error) {
	list, err := r.List(ctx, "", 10)
	if err != nil || len(list) == 0 {
		return 0, errors.Join(err, errors.New("list"))
	}
	if list[0].Outcome == record.Rejected || list[0].Outcome == record.Superseded {
		return 0, fmt.Errorf("the newest is %s", list[0].Outcome)
	}
	for i := 1; i < len(list); i++ {
		if list[i].Commit != list[i-1].Parent || list[i].Outcome == record.Pending {
			return 0, fmt.Errorf("%s, %s, stands below %s", list[i].ID, list[i].Outcome, list[i-1].ID)
		}
	}
	if rec, err := r.Lookup(ctx, list[len(list)-1].ID); err != nil || rec.Commit != list[len(list)-1].Commit {
		return 0, errors.Join(err, errors.New("lookup"))
	}
	now, err := r.Applied()
	if err != nil || now == nil {
		return 0, errors.Join(err, errors.New("applied"))
	}
	return r.Total()
}

const holdLock = "GITSTORE_TEST_HOLD_LOCK"
