package apply

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/watcher/document"
)

// The tables of this file give Plan a State and look at the step, without a store, an
// engine or a clock.

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func planRules() *schema.Rules { return schema.Default().For("production") }

// units are parameters that differ in the reservoir alone.
func units(n int) schema.Parameters {
	return planRules().Defaults().With("esn_reservoir_size", schema.Int(n))
}

// recordOf is a record that follows parent, nil for none.
func recordOf(kind record.Kind, n int, parent *record.Record) *record.Record {
	rec := &record.Record{Index: 1, Kind: kind, Config: units(n), Environment: "production", RollbackPoint: true}
	if parent != nil {
		rec.Index, rec.Parent = parent.Index+1, parent.Commit
	}
	rec.ID, rec.Commit = fmt.Sprintf("snapshot_%d", rec.Index), fmt.Sprintf("%040d", rec.Index)
	return rec
}

// atRest is the State of an agent whose engine runs what is applied and declared.
func atRest() *State {
	s := newState(&Options{Rules: planRules(), Drift: DriftCorrect, DriftInterval: 5 * time.Second}, noon.Add(-time.Hour))
	s.recovered, s.source.answered = true, true
	s.applied = recordOf(record.KindChange, 512, nil)
	s.head = s.applied
	s.summary = summary{at: s.position()}
	s.disk.probed = noon
	declare(s, 512)
	s.report = report{attempts: []Attempt{{Revision: "512", Outcome: record.Applied}}}
	runs(s, 512)
	s.engine.unchecked = false
	s.summary.reported = s.reported()
	return s
}

// runs makes n the last reading.
func runs(s *State, n int) {
	s.engine.reading = api.Reading{Parameters: units(n), Environment: "production", Peer: api.Peer{PID: 7}}
	s.engine.peer, s.engine.known, s.engine.reachable, s.engine.unchecked = s.engine.reading.Peer, true, true, true
	s.engine.at, s.engine.next = noon, noon.Add(5*time.Second)
}

func builds(s *State) { s.engine.reading.Building = &api.Building{} }

func declare(s *State, n int) {
	s.declared = declared{
		doc: &document.Document{Source: document.Source{Kind: "file", Revision: fmt.Sprint(n)}}, at: noon.Add(-time.Second), since: noon.Add(-time.Second),
		config: &schema.Configuration{Parameters: units(n)},
	}
}

// commits puts a candidate of this process at the head.
func commits(s *State, kind record.Kind, n int) *pending {
	s.head = recordOf(kind, n, s.head)
	s.head.Source.Revision = fmt.Sprint(n)
	s.pending = &pending{id: s.head.ID, fresh: true, started: noon}
	return s.pending
}

// finds puts a candidate of an earlier process at the head.
func finds(s *State, n int) *pending {
	p := commits(s, record.KindChange, n)
	p.fresh = false
	return p
}

// settles puts a revert or a note at the head.
func settles(s *State, kind record.Kind, n int) {
	s.head = recordOf(kind, n, s.head)
	s.backlog = backlog{at: s.position(), whole: true}
}

func holds(s *State, n int) {
	held := *s.head
	held.Kind = record.KindNote
	held.Held = &record.Hold{By: byOperator, Reason: "bad", Entries: []record.Entry{{Values: map[string]schema.Value{"esn_reservoir_size": schema.Int(n)}, By: byOperator}}}
	s.head, s.applied = &held, &held
}

func pauses(s *State) {
	holds(s, 1)
	s.head.Held.Paused = true
}

// fails puts a fault in the way of a stage.
func fails(s *State, st stage) {
	s.faults[st] = &fault{why: newProblem("failed", ""), retryAt: noon.Add(time.Minute)}
}

func orders(s *State, o Order) *request {
	s.order = &request{Order: o}
	return s.order
}

func down(s *State) {
	s.engine.reachable, s.engine.unchecked, s.engine.err = false, false, errors.New("connection refused")
}

func TestPlan(t *testing.T) {
	for group, rows := range map[string]map[string]struct {
		given func(*State)
		want  Step
	}{
		"start": {
			"the source is silent": {func(s *State) { s.recovered, s.source.answered, s.started = false, false, noon }, Step{Until: noon.Add(sourceWait)}},
			"the engine is unknown": {func(s *State) {
				s.recovered, s.engine = false, engineState{}
			}, Step{Kind: ReadEngine, For: forApplied}},
			"an engine that is down": {func(s *State) {
				s.recovered = false
				down(s)
			}, Step{}},
			"what is declared spares the engine what is applied": {func(s *State) {
				s.recovered = false
				declare(s, 1024)
				runs(s, 64)
			}, Step{Kind: Leave}},
			"no history, and the source declares": {func(s *State) {
				s.head, s.applied = nil, nil
			}, Step{Kind: Commit}},
			"no history, no engine": {func(s *State) {
				s.head, s.applied = nil, nil
				down(s)
			}, Step{}},
		},
		"upkeep": {
			"at rest":                          {func(*State) {}, Step{}},
			"a reading is due":                 {func(s *State) { s.engine.next = noon }, Step{Kind: ReadEngine, For: forApplied}},
			"a hint":                           {func(s *State) { s.engine.due = true }, Step{Kind: ReadEngine, For: forApplied}},
			"it runs what is applied":          {func(s *State) { runs(s, 512) }, Step{Kind: Accept}},
			"it restarted and runs another":    {func(s *State) { runs(s, 64); s.engine.returned = true }, Step{Kind: Assert, For: forApplied}},
			"a lost request of ours landed":    {func(s *State) { runs(s, 64); s.engine.inflight.add(units(64), noon) }, Step{Kind: Assert, For: forApplied}},
			"it runs another":                  {func(s *State) { runs(s, 64) }, Step{Kind: ReadAgain, For: forApplied}},
			"it does each time":                {func(s *State) { runs(s, 64); s.engine.reread = true }, Step{Kind: NoteDrift}},
			"that is noted":                    {func(s *State) { runs(s, 64); s.engine.reread, s.engine.noted = true, true }, Step{Kind: Assert, For: forApplied}},
			"that is noted, and only reported": {func(s *State) { runs(s, 64); s.engine.reread, s.engine.noted, s.opt.Drift = true, true, DriftReport }, Step{Kind: Leave}},
			"somebody contests it": {func(s *State) {
				runs(s, 64)
				s.engine.reread, s.engine.noted = true, true
				s.drift.contest = contest{rounds: contested, corrected: noon}
			}, Step{Kind: Leave}},
			"an operator wants it corrected all the same": {func(s *State) {
				runs(s, 64)
				s.engine.reread, s.engine.noted = true, true
				s.drift.contest = contest{rounds: contested, corrected: noon, isUrgent: true}
			}, Step{Kind: Assert, For: forApplied}},
			"several engines":        {func(s *State) { runs(s, 64); s.engine.several = true }, Step{Kind: Assert, For: forApplied}},
			"it failed a moment ago": {func(s *State) { runs(s, 64); s.engine.returned = true; fails(s, stageAssert) }, Step{Kind: Leave}},
			"it failed some time ago": {func(s *State) {
				s.faults[stageAssert] = &fault{why: newProblem("failed", ""), retryAt: noon}
				s.engine.at = noon.Add(-1)
			}, Step{Kind: ReadEngine, For: forApplied}},
			"it failed and is down":        {func(s *State) { down(s); s.faults[stageAssert] = &fault{why: newProblem("failed", ""), retryAt: noon} }, Step{}},
			"a confirmation that happened": {func(s *State) { s.pending = &pending{id: "earlier"} }, Step{Kind: Confirm}},
		},
		"declared": {
			"another one":                   {func(s *State) { declare(s, 1024) }, Step{Kind: Commit}},
			"another one, engine is new":    {func(s *State) { declare(s, 1024); s.engine.peer = api.Peer{} }, Step{Kind: CompareEngine}},
			"another one, engine is down":   {func(s *State) { declare(s, 1024); down(s) }, Step{Kind: Commit}},
			"another one, the disk is full": {func(s *State) { declare(s, 1024); fails(s, stageCommit) }, Step{}},
			"held":                          {func(s *State) { holds(s, 1024); declare(s, 1024) }, Step{Kind: ReportHeld}},
			"held, as was reported": {func(s *State) {
				holds(s, 1024)
				declare(s, 1024)
				s.report.attempts[0] = Attempt{Revision: "1024", Outcome: record.Held}
			}, Step{}},
			"paused":           {func(s *State) { pauses(s); declare(s, 1024) }, Step{Kind: ReportHeld}},
			"the same anew":    {func(s *State) { declare(s, 512); s.declared.doc.Source.Revision = "new" }, Step{Kind: ReportSame}},
			"the same, unread": {func(s *State) { declare(s, 512); s.declared.doc.Source.Revision = "new"; s.declared.at = noon.Add(1) }, Step{Kind: ReadEngine, For: forApplied}},
			"of git": {func(s *State) {
				declare(s, 1024)
				s.declared.doc.Source.Kind = "git"
			}, Step{Kind: CheckSigner}},
			"of git, trusted": {func(s *State) {
				declare(s, 1024)
				s.declared.doc.Source.Kind, s.signer = "git", signerCheck{"1024", true}
			}, Step{Kind: Commit}},
			"of git, not trusted": {func(s *State) {
				declare(s, 1024)
				s.declared.doc.Source.Kind, s.signer = "git", signerCheck{"1024", false}
			}, Step{Kind: AskSource}},
			"of git, checked against another": {func(s *State) {
				declare(s, 1024)
				s.declared.doc.Source.Kind, s.declared.doc.Follows = "git", "an older commit"
			}, Step{Kind: AskSource}},
		},
		"candidate": {
			"of an earlier process":     {func(s *State) { finds(s, 1024); s.pending = nil }, Step{Kind: Adopt}},
			"found, not asked":          {func(s *State) { finds(s, 1024); declare(s, 1024) }, Step{Kind: ReadEngine, For: forCandidate}},
			"found, does not run":       {func(s *State) { finds(s, 1024).wasRead = true; declare(s, 1024) }, Step{Kind: MarkRetried}},
			"found, marked":             {func(s *State) { finds(s, 1024).wasRead = true; declare(s, 1024); s.retried = true }, Step{Kind: Reject}},
			"found, marked by this one": {func(s *State) { p := finds(s, 1024); p.wasRead, p.marked = true, true; declare(s, 1024) }, Step{Kind: Send}},
			"found, no longer valid":    {func(s *State) { finds(s, 3).wasRead = true }, Step{Kind: Revert}},
			"fresh":                     {func(s *State) { commits(s, record.KindChange, 1024); declare(s, 1024) }, Step{Kind: Send}},
			"fresh, engine is down":     {func(s *State) { commits(s, record.KindChange, 1024); declare(s, 1024); down(s) }, Step{}},
			"fresh, it failed":          {func(s *State) { commits(s, record.KindChange, 1024); declare(s, 1024); fails(s, stageSend) }, Step{}},
			"fresh, it failed, a reading is due": {func(s *State) {
				commits(s, record.KindChange, 1024)
				declare(s, 1024)
				fails(s, stageSend)
				s.engine.due = true
			}, Step{Kind: ReadEngine, For: forCandidate}},
			"fresh, it failed, the engine is another": {func(s *State) {
				commits(s, record.KindChange, 1024)
				declare(s, 1024)
				fails(s, stageSend)
				runs(s, 64)
				s.engine.returned = true
			}, Step{Kind: Assert, For: forApplied}},
			"sent, connection broke": {func(s *State) {
				p := commits(s, record.KindChange, 1024)
				p.sends, p.broken = 1, true
				declare(s, 1024)
				s.engine.due = true
			}, Step{Kind: ReadEngine, For: forCandidate}},
			"sent, is to be read back": {func(s *State) {
				p := commits(s, record.KindChange, 1024)
				p.sends, p.accepted, p.owed = 1, true, true
				declare(s, 1024)
			}, Step{Kind: ReadEngine, For: forCandidate}},
			"read back before all else": {func(s *State) {
				p := commits(s, record.KindChange, 1024)
				p.sends, p.accepted, p.owed = 1, true, true
				declare(s, 2048)
			}, Step{Kind: ReadEngine, For: forCandidate}},
			"runs something else": {func(s *State) {
				p := commits(s, record.KindChange, 1024)
				p.sends, p.accepted, p.mismatch = 1, true, true
				declare(s, 1024)
			}, Step{Kind: ReadAgain, For: forCandidate}},
			"the engine restarted": {func(s *State) {
				p := commits(s, record.KindChange, 1024)
				p.sends = 1
				declare(s, 1024)
				runs(s, 64)
				s.engine.returned = true
			}, Step{Kind: Assert, For: forCandidate}},
			"runs":                   {func(s *State) { commits(s, record.KindChange, 1024).verified = true; declare(s, 1024) }, Step{Kind: Confirm}},
			"runs, the disk is full": {func(s *State) { commits(s, record.KindChange, 1024).verified = true; fails(s, stageConfirm) }, Step{}},
			"runs, the disk is full, due": {func(s *State) {
				commits(s, record.KindChange, 1024).verified = true
				fails(s, stageConfirm)
				s.engine.due = true
			}, Step{Kind: ReadEngine, For: forConfirm}},
			"the engine builds it": {func(s *State) { commits(s, record.KindChange, 1024).sends = 1; declare(s, 1024); builds(s) }, Step{}},
			"the engine builds it, due": {func(s *State) {
				commits(s, record.KindChange, 1024).sends = 1
				declare(s, 1024)
				builds(s)
				s.engine.due = true
			}, Step{Kind: ReadEngine, For: forCandidate}},
			"the engine builds it, a newer one": {func(s *State) {
				commits(s, record.KindChange, 1024).sends = 1
				builds(s)
				declare(s, 2048)
			}, Step{Kind: Commit}},
			"rejected": {func(s *State) { commits(s, record.KindChange, 1024).rejection = &rejection{by: "engine"} }, Step{Kind: Revert}},
			"rejected, the disk is full": {func(s *State) {
				commits(s, record.KindChange, 1024).rejection = &rejection{by: "engine"}
				fails(s, stageRevert)
				s.engine.due = true
			}, Step{Kind: ReadEngine, For: forHead}},
			"rejected, the disk is full, read": {func(s *State) {
				commits(s, record.KindChange, 1024).rejection = &rejection{by: "engine"}
				fails(s, stageRevert)
				runs(s, 1024)
			}, Step{Kind: Assert, For: forHead}},
			"refused without a name":        {func(s *State) { doubts(s); s.engine.at = noon.Add(-1) }, Step{Kind: ReadEngine, For: forHead}},
			"refused without a name, read":  {func(s *State) { doubts(s) }, Step{Kind: Recheck}},
			"refused without a name, runs":  {func(s *State) { doubts(s); runs(s, 1024) }, Step{Kind: Reject}},
			"refused without a name, down":  {func(s *State) { doubts(s); s.engine.at = noon.Add(-1); down(s) }, Step{}},
			"refused without a name, a fix": {func(s *State) { doubts(s); declare(s, 2048) }, Step{Kind: Commit}},
			"a rollback is rejected":        {func(s *State) { commits(s, record.KindRollback, 1024).rejection = &rejection{by: "engine"} }, Step{Kind: ListBacklog}},
			"a newer one is declared":       {func(s *State) { commits(s, record.KindChange, 1024); declare(s, 2048) }, Step{Kind: Commit}},
			"what is applied is declared":   {func(s *State) { commits(s, record.KindChange, 1024); declare(s, 512) }, Step{Kind: Revert}},
			"a newer one is held": {func(s *State) {
				commits(s, record.KindRollback, 1024)
				declare(s, 512)
				s.head.Held = &record.Hold{Paused: true}
			}, Step{Kind: Send}},
			"its source is refused": {func(s *State) {
				commits(s, record.KindChange, 1024)
				declare(s, 1024)
				s.declared.refusal = &document.Refusal{Reason: "no"}
			}, Step{Kind: Revert}},
			"withdrawn, the disk is full": {func(s *State) {
				commits(s, record.KindChange, 1024)
				declare(s, 512)
				fails(s, stageRevert)
				s.engine.due = true
			}, Step{Kind: ReadEngine, For: forApplied}},
			"its signer is to be asked about": {func(s *State) {
				p := commits(s, record.KindChange, 1024)
				p.sends, p.wasRead = 1, true
				s.head.Source.Kind = "git"
				declare(s, 1024)
			}, Step{Kind: CheckSigner}},
			"its signer is not trusted": {func(s *State) {
				p := commits(s, record.KindChange, 1024)
				p.sends = 1
				s.head.Source.Kind, s.signer = "git", signerCheck{s.head.ID, false}
				declare(s, 1024)
			}, Step{Kind: Revert}},
			"the engine lacks a parameter": {func(s *State) {
				commits(s, record.KindChange, 1024)
				declare(s, 1024)
				s.engine.reading.Parameters = s.engine.reading.Parameters.With("cache_ttl_seconds", schema.Value{})
			}, Step{Kind: ReportUnknown}},
			"the engine reports more than before": {func(s *State) {
				s.applied = nil
				commits(s, record.KindChange, 1024)
				declare(s, 1024)
			}, Step{Kind: Recommit}},
		},
		"probation": {
			"begins":                      {func(s *State) { probates(s).probation = nil }, Step{Kind: BeginProbation}},
			"health is due":               {func(s *State) { probates(s).probation.next = noon }, Step{Kind: ReadHealth, For: forProbation}},
			"health is not due":           {func(s *State) { probates(s) }, Step{}},
			"a hint":                      {func(s *State) { probates(s); s.engine.due = true }, Step{Kind: ReadHealth, For: forProbation}},
			"a hint after a failed read":  {func(s *State) { probates(s).probation.bad = 1; s.engine.due = true }, Step{Kind: ReadEngine, For: forProbation}},
			"something is built":          {func(s *State) { probates(s); builds(s) }, Step{}},
			"what runs is due":            {func(s *State) { probates(s).probation.readOwed = true }, Step{Kind: ReadEngine, For: forProbation}},
			"not watched":                 {func(s *State) { probates(s).probation.next = noon.Add(-lateness - 1) }, Step{Kind: BeginProbation}},
			"passed":                      {func(s *State) { probates(s).probation.passed = true }, Step{Kind: Confirm}},
			"displaced, the disk is full": {func(s *State) { probates(s).probation.next = noon; declare(s, 512); fails(s, stageRevert) }, Step{Kind: ReadHealth, For: forApplied}},
			"displaced":                   {func(s *State) { probates(s); declare(s, 2048) }, Step{Kind: Commit}},
			"a rollback":                  {func(s *State) { probates(s); s.head.Kind = record.KindRollback }, Step{Kind: Confirm}},
		},
		"required hooks": {
			"first the engine is noted":     {func(s *State) { gates(s).probation = nil }, Step{Kind: BeginProbation}},
			"are to be asked":               {func(s *State) { gates(s).asking = nil }, Step{Kind: AskHooks}},
			"are not about what is not new": {func(s *State) { gates(s).probation = nil; s.head.Changes = nil }, Step{Kind: Confirm}},
			"are not about a rollback":      {func(s *State) { gates(s).asking = nil; s.head.Kind = record.KindRollback }, Step{Kind: Confirm}},
			"are not asked about what ends": {func(s *State) { gates(s).asking = nil; declare(s, 2048) }, Step{Kind: Commit}},
			"are not asked about what ends, the disk is full": {func(s *State) {
				gates(s).asking = nil
				declare(s, 512)
				fails(s, stageRevert)
			}, Step{}},
			"are asked":                         {func(s *State) { gates(s) }, Step{}},
			"are asked, a hint":                 {func(s *State) { gates(s); s.engine.due = true }, Step{Kind: ReadEngine, For: forProbation}},
			"are asked, before a probation":     {func(s *State) { gates(s); s.opt.Probation = time.Minute }, Step{}},
			"are asked, a newer one":            {func(s *State) { gates(s); declare(s, 2048) }, Step{Kind: Commit}},
			"are asked, what is applied":        {func(s *State) { gates(s); declare(s, 512) }, Step{Kind: Revert}},
			"are asked, a pause":                {func(s *State) { gates(s); orders(s, &Pause{}) }, Step{Kind: Revert}},
			"agreed":                            {func(s *State) { gates(s).asking.agreed = true; s.engine.due = true }, Step{Kind: ReadEngine, For: forProbation}},
			"agreed, read":                      {func(s *State) { p := gates(s); p.asking.agreed, p.probation.passed = true, true }, Step{Kind: Confirm}},
			"agreed, on probation":              {func(s *State) { gates(s).asking.agreed = true; s.opt.Probation = time.Minute }, Step{Kind: ReadHealth, For: forProbation}},
			"one vetoed":                        {func(s *State) { p := gates(s); p.verified, p.rejection = false, &rejection{by: byHook} }, Step{Kind: Revert}},
			"do not answer":                     {func(s *State) { gates(s).asking.failure = "silent" }, Step{Kind: Revert}},
			"do not answer, the disk is full":   {func(s *State) { gates(s).asking.failure = "silent"; fails(s, stageRevert) }, Step{}},
			"did not answer about what is sent": {func(s *State) { p := gates(s); p.asking.failure, p.verified = "silent", false }, Step{Kind: Revert}},
			"did not answer a moment ago":       {func(s *State) { declare(s, 1024); fails(s, stageHook) }, Step{Until: noon.Add(5 * time.Second)}},
			"did not answer, and the way back is refused": {func(s *State) {
				settles(s, record.KindRevert, 512)
				refuses(s)
				declare(s, 1024)
				fails(s, stageHook)
			}, Step{}},
			"did not answer some time ago": {func(s *State) {
				declare(s, 1024)
				s.faults[stageHook] = &fault{why: newProblem("failed", ""), retryAt: noon}
			}, Step{Kind: Commit}},
			"did not answer, and an order is here": {func(s *State) { fails(s, stageHook); orders(s, &Pause{}) }, Step{Kind: Note}},
		},
		"settlement": {
			"is to be read": {func(s *State) { settles(s, record.KindRevert, 512); s.engine.due = true }, Step{Kind: ReadEngine, For: forHead}},
			"runs":          {func(s *State) { settles(s, record.KindRevert, 512); runs(s, 512) }, Step{Kind: AcceptHead}},
			"does not run":  {func(s *State) { settles(s, record.KindRevert, 512); runs(s, 1024) }, Step{Kind: Assert, For: forHead}},
			"was asserted":  {func(s *State) { settles(s, record.KindRevert, 512); s.asserted = s.head.ID }, Step{Kind: Confirm}},
			"the disk is full": {func(s *State) {
				settles(s, record.KindRevert, 512)
				s.asserted = s.head.ID
				fails(s, stageConfirm)
			}, Step{}},
			"is refused":                 {func(s *State) { settles(s, record.KindRevert, 512); refuses(s) }, Step{}},
			"is refused, a fix":          {func(s *State) { settles(s, record.KindRevert, 512); refuses(s); declare(s, 64) }, Step{Kind: Commit}},
			"a fix before that":          {func(s *State) { settles(s, record.KindRevert, 512); declare(s, 64) }, Step{}},
			"a note, and drift":          {func(s *State) { settles(s, record.KindNote, 512); runs(s, 64) }, Step{Kind: NoteDrift}},
			"a note, and drift is noted": {func(s *State) { settles(s, record.KindNote, 512); runs(s, 64); s.engine.noted = true }, Step{Kind: Assert, For: forHead}},
			"a note, and drift is reported": {func(s *State) {
				settles(s, record.KindNote, 512)
				runs(s, 64)
				s.engine.noted, s.opt.Drift = true, DriftReport
			}, Step{Kind: AcceptHead}},
			"a note, nothing listed": {func(s *State) { settles(s, record.KindNote, 512); runs(s, 64); s.backlog = backlog{} }, Step{Kind: ListBacklog}},
		},
		"special": {
			"another agent has the directory": {func(s *State) { s.disk.err = record.ErrInUse; declare(s, 1024) }, Step{}},
			"and a reading is due":            {func(s *State) { s.disk.err = record.ErrInUse; s.engine.due = true }, Step{Kind: ReadEngine, For: forStatus}},
			"it only observes":                {func(s *State) { s.opt.Observe = true; declare(s, 1024) }, Step{}},
			"the history is lost":             {func(s *State) { s.lost = &record.Hold{Paused: true}; declare(s, 1024) }, Step{Kind: ReportHeld}},
			"lost, and a reading is due":      {func(s *State) { s.lost = &record.Hold{Paused: true}; s.engine.due = true }, Step{Kind: ReadEngine, For: forStatus}},
		},
		"rest": {
			"a probe is due":        {func(s *State) { s.disk.probed = noon.Add(-probeEvery) }, Step{Kind: Probe}},
			"a probe after failure": {func(s *State) { s.disk.probed, s.disk.err = noon.Add(-probeSoon), errors.New("full") }, Step{Kind: Probe}},
			"a new head":            {func(s *State) { s.summary.at.head = "another" }, Step{Kind: Summarize}},
			"a drift":               {func(s *State) { s.facts.keep("fact", []byte("1")) }, Step{Kind: SaveFacts}},
			"a new engine":          {func(s *State) { s.engine.peer = api.Peer{} }, Step{Kind: CompareEngine}},
			"the next reading":      {func(*State) {}, Step{Until: noon.Add(5 * time.Second)}},
			"the next try": {func(s *State) {
				s.faults[stageCommit] = &fault{why: newProblem("failed", ""), retryAt: noon.Add(time.Second)}
			}, Step{Until: noon.Add(time.Second)}},
		},
		"orders": {
			"pause":                         {func(s *State) { orders(s, &Pause{Reason: "x"}) }, Step{Kind: Note}},
			"pause twice":                   {func(s *State) { pauses(s); orders(s, &Pause{}) }, Step{Kind: Answer}},
			"pause, a change pends":         {func(s *State) { commits(s, record.KindChange, 1024); orders(s, &Pause{}) }, Step{Kind: Revert}},
			"pause, a rollback pends":       {func(s *State) { commits(s, record.KindRollback, 1024); orders(s, &Pause{}) }, Step{Kind: Recommit}},
			"pause, a change runs":          {func(s *State) { commits(s, record.KindChange, 1024).verified = true; orders(s, &Pause{}) }, Step{Kind: Confirm}},
			"pause, nothing is applied":     {func(s *State) { s.head, s.applied = nil, nil; orders(s, &Pause{}) }, Step{Kind: Answer}},
			"pause, lost":                   {func(s *State) { s.lost = &record.Hold{Paused: true}; orders(s, &Pause{}) }, Step{Kind: Answer}},
			"resume":                        {func(s *State) { holds(s, 1024); orders(s, &Resume{}) }, Step{Kind: Note}},
			"resume nothing":                {func(s *State) { orders(s, &Resume{}) }, Step{Kind: Answer}},
			"resume another name":           {func(s *State) { holds(s, 1024); orders(s, &Resume{Name: "max_membrane_depth"}) }, Step{Kind: Answer}},
			"resume, dry run":               {func(s *State) { holds(s, 1024); orders(s, &Resume{DryRun: true}) }, Step{Kind: Answer}},
			"resume, lost":                  {func(s *State) { s.lost = &record.Hold{Paused: true}; orders(s, &Resume{}) }, Step{Kind: ClearLost}},
			"rollback":                      {func(s *State) { orders(s, &Rollback{}) }, Step{Kind: FindTarget}},
			"rollback, found":               {func(s *State) { targets(s, 64) }, Step{Kind: Commit}},
			"rollback, none found":          {func(s *State) { targets(s, 64).err = errors.New("none") }, Step{Kind: Answer}},
			"rollback, it runs":             {func(s *State) { targets(s, 512) }, Step{Kind: Answer}},
			"rollback, dry run":             {func(s *State) { targets(s, 64).Order.(*Rollback).DryRun = true }, Step{Kind: Answer}},
			"rollback, one pends":           {func(s *State) { commits(s, record.KindRollback, 64); targets(s, 64) }, Step{Kind: Join}},
			"rollback and pause, one pends": {func(s *State) { commits(s, record.KindRollback, 64); targets(s, 64).Order.(*Rollback).Pause = true }, Step{Kind: Recommit}},
			"rollback, one ended meanwhile": {func(s *State) { targets(s, 64).open = s.head.ID }, Step{Kind: Join}},
			"rollback, one was superseded meanwhile": {func(s *State) {
				q := targets(s, 64)
				q.open, q.openOutcome = "earlier", record.Superseded
			}, Step{Kind: Commit}},
			"rollback of an unknown parameter": {func(s *State) { orders(s, &Rollback{Hold: []string{"size"}}) }, Step{Kind: Answer}},
		},
	} {
		for _, name := range slices.Sorted(maps.Keys(rows)) {
			t.Run(group+"/"+name, func(t *testing.T) {
				s := atRest()
				rows[name].given(s)
				if group != "rest" && s.head != nil && s.applied != nil {
					s.summary = summary{at: s.position(), reported: s.reported()}
				}
				before := copyOf(s)
				got, want := Plan(s, noon), rows[name].want
				View(s, noon)
				if after := copyOf(s); !reflect.DeepEqual(after, before) {
					t.Errorf("Plan or View changed the State:\n%+v\nwas\n%+v", after, before)
				}
				if got.Kind != want.Kind || got.For != want.For || !want.Until.IsZero() && !got.Until.Equal(want.Until) {
					t.Errorf("%s for %d until %v, want %s for %d", got.Kind, got.For, got.Until, want.Kind, want.For)
				}
			})
		}
	}
}

func probates(s *State) *pending {
	s.opt.Probation = time.Minute
	p := commits(s, record.KindChange, 1024)
	declare(s, 1024)
	runs(s, 1024)
	s.engine.unchecked, p.verified = false, true
	p.probation = &probation{until: noon.Add(time.Minute), next: noon.Add(time.Second), peer: s.engine.reading.Peer}
	return p
}

// asks is a Gate that a State only has.
type asks struct{ Gate }

// gates puts a candidate at the head that runs, and that required hooks are asked about.
func gates(s *State) *pending {
	p := probates(s)
	s.opt.Probation, s.opt.Gate = 0, asks{}
	s.head.Changes = []schema.Change{{Parameter: "esn_reservoir_size"}}
	p.asking, p.probation = &asking{names: []string{"policy"}, since: noon}, &probation{until: noon, peer: s.engine.reading.Peer}
	return p
}

func doubts(s *State) {
	p := commits(s, record.KindChange, 1024)
	declare(s, 1024)
	p.sends, p.sent, p.doubted = 1, noon, &rejection{by: "engine", reason: "no"}
}

func refuses(s *State) {
	s.faults[stageAssert] = &fault{why: newProblem("failed", ""), refused: true, retryAt: noon.Add(time.Minute)}
}

func targets(s *State, n int) *request {
	q := orders(s, &Rollback{Reason: "slow"})
	target := record.Row{Record: *recordOf(record.KindChange, n, nil), Outcome: record.Applied}
	q.facts = facts{known: true, target: &target, config: units(n), applied: s.applied.Config}
	return q
}

// A frozen State has copies of what a State points to and may change.
type frozen struct {
	state     State
	pending   pending
	probation probation
	asking    asking
	drift     Drift
	faults    map[stage]fault
}

func copyOf(s *State) frozen {
	f := frozen{state: *s, faults: map[stage]fault{}}
	f.state.broken = nil // results of check are kept as they are needed
	if s.pending != nil {
		f.pending = *s.pending
		if s.pending.probation != nil {
			f.probation = *s.pending.probation
		}
		if s.pending.asking != nil {
			f.asking = *s.pending.asking
		}
	}
	if s.drift.now != nil {
		f.drift = *s.drift.now
	}
	for st, fault := range s.faults {
		f.faults[st] = *fault
	}
	return f
}
