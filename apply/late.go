package apply

import (
	"context"
	"slices"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// late are requests of ours whose answer was lost: they may land until then, and
// what they bring is nobody else's doing.
type late struct {
	until time.Time
	sent  []schema.Parameters
}

// mayCome notes that p was sent and that its fate is not known.
func (l *late) mayCome(p schema.Parameters) {
	now := time.Now()
	if !now.Before(l.until) {
		l.sent = nil
	}
	l.until = now.Add(lateWatch)
	if !slices.ContainsFunc(l.sent, p.Equal) {
		l.sent = append(l.sent, p)
	}
}

// watched reports whether something may still come.
func (l *late) watched() bool { return time.Now().Before(l.until) }

// explains reports whether such a request may have made the engine run runs: each
// parameter that differs from what it should run has the value that it carried.
func (l *late) explains(runs schema.Parameters, differences []schema.Change) bool {
	if !l.watched() {
		return false
	}
	left := slices.Clone(differences)
	for _, sent := range l.sent {
		other := runs.Diff(sent)
		left = slices.DeleteFunc(left, func(c schema.Change) bool {
			return !slices.ContainsFunc(other, func(o schema.Change) bool { return o.Parameter == c.Parameter })
		})
	}
	return len(left) == 0
}

// recall notes what an earlier process may have sent a moment ago and not seen
// settle: the candidates that are young and were not applied.
func (r *Reconciler) recall(ctx context.Context) {
	head := r.opt.Store.Head()
	young := func(s *record.Record) bool { return time.Since(record.FromUnix(s.Timestamp)) < lateWatch }
	if head == nil || !young(head) {
		return
	}
	page, err := r.opt.Store.List(ctx, "", 50)
	if err != nil {
		r.log.Warn("list", "the snapshots cannot be listed", "error", err)
	}
	for i := range page {
		if rec := &page[i]; young(&rec.Record) && rec.Kind.Candidate() && rec.Outcome != record.Applied {
			r.engine.late.mayCome(rec.Config)
		}
	}
}
