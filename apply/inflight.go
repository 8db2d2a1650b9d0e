package apply

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// inflight tracks requests whose response was lost. Until the deadline, changes that
// they cause are not drift.
type inflight struct {
	until time.Time
	sent  []schema.Parameters
}

func (l *inflight) add(p schema.Parameters, now time.Time) {
	if !now.Before(l.until) {
		l.sent = nil
	}
	l.until = now.Add(lateWatch)
	if !slices.ContainsFunc(l.sent, p.Equal) {
		l.sent = append(l.sent, p)
	}
}

// explains reports whether such a request may have made the engine run runs: each
// parameter that differs from what it should run has the value that one carried.
func (l *inflight) explains(runs schema.Parameters, differences []schema.Change, now time.Time) bool {
	isForeign := func(c schema.Change) bool {
		isCarried := func(sent schema.Parameters) bool { return sent.Get(c.Parameter).Equal(runs.Get(c.Parameter)) }
		return !slices.ContainsFunc(l.sent, isCarried)
	}
	return now.Before(l.until) && !slices.ContainsFunc(differences, isForeign)
}

// loadRecentSends notes what an earlier process may have sent a moment ago: the candidates that
// are young and were not applied.
func (s *State) loadRecentSends(ctx context.Context, now time.Time) {
	young := func(rec *record.Record) bool { return now.Sub(record.FromUnix(rec.Timestamp)) < lateWatch }
	if s.head == nil || !young(s.head) {
		return
	}
	page, err := s.opt.Store.List(ctx, "", 50)
	if err != nil {
		s.repeat(slog.LevelWarn, "list", "the snapshots cannot be listed", "error", err)
	}
	for i := range page {
		if rec := &page[i]; young(&rec.Record) && rec.Kind.Candidate() && rec.Outcome != record.Applied {
			s.engine.inflight.add(rec.Config, now)
		}
	}
}
