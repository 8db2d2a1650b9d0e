package apply

import (
	"context"
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

// byPolicy is the Cause of a refusal by the policy.
const byPolicy = "policy"

const (
	// policyWait is how long a change waits for the policy. A rollback waits less: the
	// policy cannot stop it.
	policyWait, policyRollbackWait = 6 * time.Second, time.Second
	// policyRetry is when the policy is asked again after it failed to judge a change.
	policyRetry = 30 * time.Second
)

// A PolicyStatus is the policy in force, or why it cannot be used.
type PolicyStatus struct {
	Directory string `json:"directory"`
	Digest    string `json:"digest"` // of its files; "" while they cannot be read
	Cases     int    `json:"cases"`  // that it was checked with
	Usable    bool   `json:"usable"` // false at the start, until it is loaded
	Error     string `json:"error"`  // why it cannot be used: every change is refused
	Hint      string `json:"hint"`
}

// policyState is the verdict of the policy on the declared Document.
type policyState struct {
	status   *PolicyStatus // nil without a policy
	of       judged
	denied   []schema.Denial
	err      error // the policy could not judge it
	retryAt  time.Time
	isStale  bool // the verdict is of an earlier policy, and shown until the new one has judged
	accepted accepted
}

// judged is what a verdict of the policy is about: the declared Document and what it is to
// replace; the zero value if there is no verdict. A verdict is kept until one of these or
// the policy changes. If rules could depend on the time, it would need an expiry here.
type judged struct {
	doc  *document.Document
	base string        // commit of the applied record
	runs schema.Digest // while nothing is applied, and the agent only observes
}

// PolicyChanged tells the Reconciler that another policy is in force, or that it cannot be
// used any more.
func (r *Reconciler) PolicyChanged() { r.arrive(func(in *arrivals) { in.policy = true }) }

func (s *State) judgedNow() judged {
	j := judged{doc: s.declared.doc, base: commitOf(s.applied)}
	if s.applied == nil && s.opt.Observe && s.engine.known {
		j.runs = s.known(s.engine.reading.Parameters).Digest()
	}
	return j
}

// planPolicy reports whether the policy allows what is declared, and plans to ask it if that
// is unknown. The step is JudgeChange while it is unknown, and else the zero Step, which is
// Wait, also if the change is denied.
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

// isDenied reports whether the policy denies what is declared, or failed to judge it.
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
	return schema.ExperimentsChanged(before, c.Experiments)
}

// proposal returns what the policy is asked about a change to config.
func (s *State) proposal(config schema.Parameters, experiments []schema.Membership) schema.Proposal {
	if s.applied == nil {
		was := schema.CompareExperiments(experiments, experiments) // the experiments before are unknown
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
	s.engine.due = true // it must run what is applied
	s.attemptDenied()
}

// judgeRollback asks the policy about the order's rollback, which it does not stop. The
// proposal has no signer: nobody signed the rollback, and who ordered it is an account of
// this machine. Rules about the signer then deny what they deny for any unsigned change.
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
		q.policy = "the policy would deny it as an unsigned change, which does not stop a rollback: " + denialText(denied)
		r.state.log(slog.LevelInfo, "rollback against the policy", "target", rec.Description, "denied", denialText(denied))
	}
}

func denialText(denied []schema.Denial) string {
	var texts []string
	for _, d := range denied {
		texts = append(texts, d.String())
	}
	return problem.Cut(strings.Join(texts, "; "), 1<<10)
}

// policyProblem returns why what is declared is refused.
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

// attemptDenied records the refusal of what is declared as an attempt, once.
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

// addPolicy adds that the policy cannot be used to the reason of a status, unless that is
// the reason already.
func (s *State) addPolicy(v *Status) {
	if v.Policy == nil || v.Policy.Error == "" || s.isDenied() && s.policy.err != nil {
		return
	}
	v.Reason += "; the policy cannot be used, so that every change would be refused: " + v.Policy.Error
	if v.State == StateInSync {
		v.Hint = v.Policy.Hint
	}
}
