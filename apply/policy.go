package apply

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

// byPolicy is who refuses what the policy denies.
const byPolicy = "policy"

const (
	// policyWait is how long a change waits for the policy. A rollback, which it does not
	// stop, waits less.
	policyWait, policyRollbackWait = 6 * time.Second, time.Second
	// policyRetry is how long after the policy could not judge a change it is asked again.
	policyRetry = 30 * time.Second
)

// acceptedFact is under which name the Store keeps what the source declared last without
// changing a parameter here, such as an experiment that other instances are in.
const acceptedFact = "accepted"

// accepted is what the source declared since a record was applied, and changed nothing.
type accepted struct {
	Record      string              `json:"record"` // commit of the applied one
	Revision    string              `json:"revision"`
	Experiments []schema.Membership `json:"experiments"`
}

// PolicyStatus is how the policy is.
type PolicyStatus struct {
	Directory string `json:"directory"`
	Digest    string `json:"digest"` // of its files; "" while they cannot be read
	Cases     int    `json:"cases"`  // that it was checked with
	Usable    bool   `json:"usable"` // false at the start, until it is loaded
	Error     string `json:"error"`  // why it cannot be used: every change is refused
	Hint      string `json:"hint"`
}

// policyState is what the policy said of the declared Document.
type policyState struct {
	status   *PolicyStatus // nil without a policy
	of       judged
	denied   []schema.Denial
	err      error // the policy could not judge it
	retryAt  time.Time
	isStale  bool // another policy is in force since; the verdict is shown until it judged
	accepted accepted
}

// judged is what a verdict of the policy is about: the declared Document, the zero value
// for none, and what it is to replace.
type judged struct {
	doc  *document.Document
	base string        // commit of the applied record
	runs schema.Digest // while nothing is applied, and the agent only observes
}

// PolicyChanged says that another policy is in force, or that it cannot be used any more.
func (r *Reconciler) PolicyChanged() { r.arrive(func(in *arrivals) { in.policy = true }) }

// loadAccepted reads what an earlier process kept.
func (s *State) loadAccepted() {
	if text := s.opt.Store.Fact(acceptedFact); text != nil {
		_ = json.Unmarshal(text, &s.policy.accepted) // what cannot be read is not there
	}
}

// keepAccepted keeps what is declared and changes nothing: the next change begins there.
func (s *State) keepAccepted() {
	if s.opt.Policy == nil || s.applied == nil {
		return
	}
	now := accepted{s.applied.Commit, s.declared.doc.Revision(), s.declared.config.Experiments}
	s.policy.accepted = now
	if text, err := json.Marshal(now); err == nil && len(text) <= 4<<10 {
		s.facts.keep(acceptedFact, text)
	}
}

// lastAccepted returns the revision and the experiments that were accepted last.
func (s *State) lastAccepted() (revision string, experiments []schema.Membership) {
	if a := s.policy.accepted; a.Record != "" && a.Record == s.applied.Commit {
		return a.Revision, a.Experiments
	}
	return s.applied.Source.Revision, s.applied.Experiments
}

func (s *State) judgedNow() judged {
	j := judged{doc: s.declared.doc, base: commitOf(s.applied)}
	if s.applied == nil && s.opt.Observe && s.engine.known {
		j.runs = s.known(s.engine.reading.Parameters).Digest()
	}
	return j
}

// planPolicy plans to ask the policy about what is declared. It reports whether the policy
// allows it; the step is Wait while it is denied.
func (s *State) planPolicy(now time.Time) (step Step, allowed bool) {
	p := &s.policy
	switch {
	case s.opt.Policy == nil:
		return Step{}, true
	case p.of != s.judgedNow(), p.isStale, p.err != nil && !now.Before(p.retryAt):
		return Step{Kind: JudgeChange}, false
	}
	return Step{}, !s.isDenied()
}

// isDenied reports whether the policy refused what is declared.
func (s *State) isDenied() bool {
	p := &s.policy
	return p.of.doc != nil && p.of == s.judgedNow() && (p.err != nil || len(p.denied) > 0)
}

// isProposed reports whether what is declared would change something that a policy
// judges.
func (s *State) isProposed() bool {
	c := s.declared.config
	switch {
	case s.opt.Policy == nil || c == nil:
		return false
	case s.applied == nil || !s.same(c.Parameters, s.applied.Config):
		return true
	}
	_, before := s.lastAccepted()
	return slices.ContainsFunc(schema.CompareExperiments(before, c.Experiments), func(e schema.ProposedExperiment) bool { return e.Was != e.Percent })
}

// proposal returns what the policy is asked about a change to config.
func (s *State) proposal(config schema.Parameters, experiments []schema.Membership) schema.Proposal {
	if s.applied == nil {
		was := schema.CompareExperiments(experiments, experiments) // nothing is known of before
		if s.opt.Observe && s.engine.known {
			runs := s.known(s.engine.reading.Parameters)
			return s.opt.Rules.Propose(&runs, config, was)
		}
		return s.opt.Rules.Propose(nil, config, was)
	}
	old := s.known(s.applied.Config)
	_, before := s.lastAccepted()
	return s.opt.Rules.Propose(&old, s.known(config), schema.CompareExperiments(before, experiments))
}

// judgeChange asks the policy about what is declared.
func (r *Reconciler) judgeChange(ctx context.Context) {
	s, d := r.state, &r.state.declared
	proposal := s.proposal(d.config.Parameters, d.config.Experiments)
	proposal.Signer = d.doc.Source.Signer
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, policyWait)
	defer cancel()
	denied, err := r.opt.Policy.Judge(ctx, proposal)
	r.log.Debug("policy asked", "revision", d.doc.Revision(), "denied", len(denied), "error", err, "took", time.Since(start))
	p := &s.policy
	p.of, p.isStale, p.denied, p.err, p.retryAt = s.judgedNow(), false, denied, err, time.Now().Add(policyRetry)
	if s.outbox.changed = true; !s.isDenied() {
		s.endRepeat("policy")
		return
	}
	s.engine.due = true // it is kept on what is applied
	s.attemptDenied()
}

// judgeRollback asks what the policy says of the order's rollback, which it does not stop.
func (r *Reconciler) judgeRollback(ctx context.Context, rec *record.Record) {
	q := r.state.order
	ctx, cancel := context.WithTimeout(ctx, policyRollbackWait)
	defer cancel()
	denied, err := r.opt.Policy.Judge(ctx, r.state.proposal(rec.Config, rec.Experiments))
	q.isJudged, q.policy = true, "the policy allows it"
	switch {
	case err != nil:
		q.policy = "the policy cannot judge it, which does not stop a rollback: " + err.Error()
	case len(denied) > 0:
		q.policy = "the policy would deny it, which does not stop a rollback: " + denialText(denied)
		r.state.log(slog.LevelWarn, "rollback against the policy", "target", rec.Description, "denied", denialText(denied))
	}
}

func denialText(denied []schema.Denial) string {
	var texts []string
	for _, d := range denied {
		texts = append(texts, d.String())
	}
	return problem.Cut(strings.Join(texts, "; "), 1<<10)
}

// policyProblem says why what is declared is refused.
func (s *State) policyProblem() *problem.Error {
	p := &s.policy
	if p.err != nil {
		return newProblem("the policy cannot judge the change: "+p.err.Error(), problem.Hint(p.err)+"; the engine keeps what it has")
	}
	reason := "denied by the policy: " + denialText(p.denied)
	var hints []string
	for _, d := range p.denied {
		if d.Hint != "" && !slices.Contains(hints, d.Hint) {
			hints = append(hints, d.Hint)
		}
	}
	if s.applied != nil {
		at, _ := s.lastAccepted()
		reason += "; judged as one change from " + s.applied.ID
		doc := s.declared.doc
		if gitCommit.MatchString(at) && doc.Source.Kind == "git" && at != doc.Revision() && !slices.Contains(doc.Parents, at) {
			reason += fmt.Sprintf(", which declares commit %.12s, several commits before %.12s", at, doc.Revision())
			hints = append(hints, "if several merges come at once, apply them in steps: run the agent with --ref COMMIT of each")
		}
	}
	if len(hints) == 0 {
		hints = []string{"declare what the policy allows, or have the operators change the policy"}
	}
	return newProblem(reason, problem.Cut(strings.Join(hints, "; "), 1<<10))
}

// attemptDenied notes that the policy refuses what is declared, once.
func (s *State) attemptDenied() {
	why, revision, a := s.policyProblem(), s.declared.doc.Revision(), s.report.last()
	if a != nil && a.Revision == revision && a.Outcome == record.Refused && a.Reason == why.Error() {
		return
	}
	s.attempted(Attempt{Revision: revision, Outcome: record.Refused, Reason: why.Error(), Cause: byPolicy, Policy: s.policy.denied})
	event := s.declaredEvent(EventRefused, record.Refused, why.Error())
	event.Cause = byPolicy
	s.emitEvent(notice{
		Event: event, level: slog.LevelWarn, key: "policy", same: why.Error(),
		text:  "refused by the policy; the engine keeps what it has",
		attrs: []any{"revision", revision, "reason", why.Error(), "hint", why.Hint},
	})
}

// addPolicy adds that the policy cannot be used to what does not say so already.
func (s *State) addPolicy(v *Status) {
	if v.Policy == nil || v.Policy.Error == "" || s.isDenied() && s.policy.err != nil {
		return
	}
	v.Reason += "; the policy cannot be used, so that every change would be refused: " + v.Policy.Error
	if v.State == StateInSync {
		v.Hint = v.Policy.Hint
	}
}
