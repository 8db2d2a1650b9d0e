package apply

import (
	"cmp"
	"context"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

// A Judge is a source that says whom it trusts.
type Judge interface {
	// Vouch says whether a revision that was taken from the source earlier would
	// still be trusted with; nil if so. The error says that it cannot be told
	// now.
	Vouch(document.Source) (*document.Refusal, error)
	// Sync makes the source look, and judge what it shows, anew.
	Sync()
}

// judged reports whether what the source declares was judged against what is
// applied now, by the signers of now. While it waited here something else may
// have been applied, which it need not descend from, or a signer removed; then
// the source is asked to judge it again.
func (r *Reconciler) judged() bool {
	doc := r.seen.doc
	r.noteApplied()
	running := r.AppliedCommit()
	if r.opt.Judge == nil || doc.Source.Kind != "git" {
		return true
	}
	if doc.Follows == running || doc.Source.Revision == running {
		if trusted, known := r.vouched(doc.Source, doc.Source.Revision); trusted || !known {
			return trusted
		}
	}
	if r.rejudged != doc {
		r.rejudged = doc
		r.opt.Judge.Sync()
	}
	return false
}

// vouchAfter is how long what the source said of a candidate holds.
const vouchAfter = time.Second

// distrusted withdraws a candidate whose source would not be trusted with it any
// more: its signer was removed while the engine was down, or while no agent ran.
// It is asked of the record, for the source may show something else by now, or
// nothing.
func (r *Reconciler) distrusted(ctx context.Context, head *record.Record, f *flight) (done, more bool) {
	if r.opt.Judge == nil || head.Kind != record.KindChange || head.Source.Kind != "git" ||
		(f.fresh && f.sends == 0 && time.Since(f.started) < vouchAfter) {
		return false, false
	}
	trusted, known := r.vouched(document.Source(head.Source), head.ID)
	switch {
	case trusted:
		return false, false
	case known:
		recorded, _ := r.withdraw(ctx, head, "its source is not trusted any more", head.Held, nil)
		return true, recorded
	}
	if r.readDue() {
		_, _ = r.read(ctx) // the engine is not forgotten; the status says how it went
	}
	return true, false
}

// vouched asks whether the signer of a revision is trusted now; it is not known
// while the signers cannot be read.
func (r *Reconciler) vouched(s document.Source, what string) (trusted, known bool) {
	if !r.ready("vouch") {
		return false, false
	}
	why, err := r.opt.Judge.Vouch(s)
	if err != nil {
		r.block("vouch", what+" is not sent, for whether its signer is trusted cannot be told: "+err.Error(), cmp.Or(problem.Hint(err), "give the agent the file back")+"; it goes on by itself")
		return false, false
	}
	r.clear("vouch")
	return why == nil, true
}
