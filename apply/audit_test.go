package apply_test

import (
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// audit holds everything that can be seen of a world at rest against
// everything else, and against what was declared last (nil: something invalid).
func (w *world) audit(c *faultCase, declared *schema.Parameters) {
	w.t.Helper()
	if w.crashed() {
		w.t.Fatal("it crashed a second time")
	}
	s, head, applied := w.r.Status(), w.store.Head(), w.store.Applied()
	if c.fresh && declared == nil && head == nil {
		return // the change was forgotten before it was on record
	}
	if applied == nil || head.Commit != applied.Commit {
		w.t.Fatalf("something is open: head %+v, applied %+v; %s: %s", head, applied, s.State, s.Reason)
	}
	w.auditRefs(head)
	if runs := w.engine.running(); !runs.Equal(applied.Config) || s.Current == nil || !s.Current.Equal(runs) || s.Running.SnapshotID != applied.ID || !s.Running.Confirmed {
		w.t.Errorf("the engine runs %v units, applied are %v in %s; status: %+v", runs.Get(reservoir), applied.Config.Get(reservoir), applied.ID, s.Running)
	}
	records := must(w.store.list(w.t.Context(), "", 100))
	w.auditRecords(c, records, s)
	select {
	case err := <-w.refused:
		if slices.ContainsFunc(records, func(rec record.Row) bool { return rec.Kind == record.KindRollback }) {
			w.t.Errorf("an order was answered %q, and it is on record", err)
		}
	default:
	}
	w.auditCounts(s)
	w.auditStatus(c, s, head, applied, declared)
	most := 8
	if c.name == "deadly" {
		most = 2
		if c.step == "send" && (c.what == happens || c.what == stalls) {
			most = 3 // that death was not seen: a timeout counts for none
		}
	}
	if n := w.engine.sent(stateB); n > most {
		w.t.Errorf("the change was sent %d times", n)
	}
}

// auditRefs holds what git says of the repository against the head.
func (w *world) auditRefs(head *record.Record) {
	w.t.Helper()
	for _, name := range []plumbing.ReferenceName{"refs/heads/production", "refs/dtesn/applied/production"} {
		if names, err := w.gitRef(name); err != nil || names != head.Commit {
			w.t.Errorf("%s is %q (%v), the head %s", name, names, err, head.Commit)
		}
	}
	if w.store.Retried() && !head.Kind.Candidate() {
		w.t.Errorf("the head %s, a %s, is marked to be tried again", head.ID, head.Kind)
	}
}

// gitRef reads a ref of the repository, without a process of its own.
func (w *world) gitRef(name plumbing.ReferenceName) (string, error) {
	repo := filesystem.NewStorage(osfs.New(filepath.Join(w.dir, "snapshots.git")), cache.NewObjectLRUDefault())
	defer repo.Close()
	ref, err := repo.Reference(name)
	if err != nil {
		return "", err
	}
	return ref.Hash().String(), nil
}

// endAudited ends the agent, and holds that the store says when it is opened
// anew what it said before.
func (w *world) endAudited() {
	w.t.Helper()
	type facts struct {
		head, applied string // commits
		retried, lost bool
		total         int
	}
	of := func(s *gitstore.Store) facts {
		f := facts{retried: s.Retried(), lost: s.Lost() != nil, total: s.Total()}
		if s.Head() != nil {
			f.head = s.Head().Commit
		}
		if s.Applied() != nil {
			f.applied = s.Applied().Commit
		}
		return f
	}
	before := of(w.store.Store)
	w.end()
	again, _, err := gitstore.Open(w.t.Context(), gitstore.Options{
		Dir: w.dir, Environment: production, Instance: "one", Logger: slog.New(slog.DiscardHandler), AgentVersion: "test",
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if after := of(again); before != after || len(again.Repairs()) > 0 {
		w.t.Errorf("before the end %+v, afterwards %+v, repaired %v", before, after, again.Repairs())
	}
	if err := again.Close(); err != nil {
		w.t.Error(err)
	}
}

// auditRecords holds the outcome of each record against its kind, its
// successor, and what the status tells of it.
func (w *world) auditRecords(c *faultCase, records []record.Row, s *apply.Status) {
	w.t.Helper()
	told := map[string]record.Outcome{}
	for _, a := range s.Attempts {
		if a.SnapshotID != "" && a.Outcome != record.Unchanged {
			told[a.SnapshotID] = a.Outcome
		}
	}
	ran := false
	for _, rec := range records {
		switch {
		case !rec.Kind.Candidate() && rec.Outcome != record.Applied:
			w.t.Errorf("%s %s is %s", rec.Kind, rec.ID, rec.Outcome)
		case rec.Kind.Candidate() && rec.Outcome != record.Applied && rec.Outcome != record.Rejected && rec.Outcome != record.Superseded:
			w.t.Errorf("%s %s is %s at rest", rec.Kind, rec.ID, rec.Outcome)
		case rec.Outcome == record.Rejected && !c.bad && !c.mayCut():
			w.t.Errorf("%s %s was rejected: %s", rec.Kind, rec.ID, records[0].Description)
		}
		if o, ok := told[rec.ID]; ok && o != rec.Outcome {
			w.t.Errorf("%s is %s by the history, %s by the status", rec.ID, rec.Outcome, o)
		}
		ran = ran || (rec.Config.Equal(stateB) && rec.Outcome == record.Applied)
	}
	if ran && c.bad {
		w.t.Error("what cannot run is called applied")
	}
}

// mayCut reports whether the agent may have been killed while it was sending
// for the second time, which counts against the change.
func (c *faultCase) mayCut() bool { return c.cut && (c.what == crashBefore || c.what == crashAfter) }

// auditCounts holds the counters of this process against what it tells: each
// attempt's outcome is counted, once.
func (w *world) auditCounts(s *apply.Status) {
	w.t.Helper()
	outcomes, rollbacks := map[record.Outcome]int{}, 0
	for _, a := range s.Attempts {
		outcomes[a.Outcome]++
		if rec, err := w.store.Store.Lookup(w.t.Context(), a.SnapshotID); a.Outcome == record.Rejected ||
			(err == nil && rec.Kind == record.KindRollback && a.Outcome == record.Applied) {
			rollbacks++
		}
	}
	counted := w.counts.sinceStart()
	for _, o := range []record.Outcome{record.Applied, record.Unchanged, record.Invalid, record.Rejected, record.Held, record.Superseded} {
		if counted.outcomes[o] != outcomes[o] {
			w.t.Errorf("%s was told %d times and counted %d times", o, outcomes[o], counted.outcomes[o])
		}
	}
	if outcomes[record.Pending] != 0 {
		w.t.Errorf("something is pending: %+v", s.Attempts)
	}
	if len(counted.rollbacks) != rollbacks {
		w.t.Errorf("%d ways back were told, counted were %q", rollbacks, counted.rollbacks)
	}
	if w.counts.drifted() != 0 {
		w.t.Error("drift was counted, and nobody changed the engine past the agent")
	}
}

// auditStatus holds the words of the status against the facts.
func (w *world) auditStatus(c *faultCase, s *apply.Status, head, applied *record.Record, declared *schema.Parameters) {
	w.t.Helper()
	x := want{runs: applied.Config, ready: true}
	hold := head.Held
	if head.Kind == record.KindChange { // an applied one ends what was held
		hold = nil
	}
	for _, d := range heldSets(hold) {
		for _, p := range []schema.Parameters{stateA, stateB, stateC, size(3000)} {
			if p.Digest() == d {
				x.held = append(x.held, p)
			}
		}
	}
	switch {
	case declared == nil:
		x.outcome, x.state = record.Invalid, apply.StateInvalid
		if recorded := w.recorded(stateB); recorded && !c.bad && !c.held && !c.mayCut() && c.declares.Len() == 0 && !applied.Config.Equal(stateB) {
			w.t.Error("a good change is on record, nothing took its place, and it does not run")
		}
	case hold.Holds(*declared, rules.Has):
		x.outcome, x.state = s.Attempted.Outcome, apply.StateHeld
		if !declared.Equal(stateB) || !(c.bad || c.held || c.mayCut()) || (x.outcome != record.Held && x.outcome != record.Rejected && x.outcome != record.Applied) {
			w.t.Errorf("held: %+v, attempted %+v", hold, s.Attempted)
		}
	default:
		x.outcome, x.state, x.inSync, x.runs = s.Attempted.Outcome, apply.StateInSync, true, *declared
		if x.outcome != record.Applied && x.outcome != record.Unchanged {
			w.t.Errorf("attempted %+v", s.Attempted)
		}
	}
	w.check("at the end", x)
}

// recorded reports whether any record is of p.
func (w *world) recorded(p schema.Parameters) bool {
	for _, rec := range must(w.store.list(w.t.Context(), "", 100)) {
		if rec.Config.Equal(p) {
			return true
		}
	}
	return false
}

// rests holds that for a while nothing is committed, sent, counted or said.
func (w *world) rests(d time.Duration) {
	w.t.Helper()
	total, sends, before := w.store.Total(), w.engine.allSends(), w.r.Status()
	w.pass(d)
	if n := w.store.Total() - total; n != 0 {
		w.t.Errorf("%d records more at rest", n)
	}
	if n := w.engine.allSends() - sends; n != 0 {
		w.t.Errorf("%d batches more at rest", n)
	}
	if s := w.r.Status(); s.State != before.State || len(s.Attempts) != len(before.Attempts) {
		w.t.Errorf("%s (%s) after a rest, %s before", s.State, s.Reason, before.State)
	}
}
