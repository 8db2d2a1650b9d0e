package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher"
	"dtesn-agent/watcher/document"
	"dtesn-agent/watcher/remote"
)

// once ends `agent run --once` when the Document it saw has an outcome, or when
// its time is over.
type once struct {
	timeout time.Duration
	update  *apply.Update // the last one that was looked at
	over    chan struct{}

	mu      sync.Mutex // guards what follows until over is closed
	outcome record.Outcome
	reason  string
	hint    string // of what is unreadable or refused
	by      string // who holds it, unless paused, or refused it
	paused  bool
	late    bool // the time was over
}

func newOnce(timeout time.Duration, from *apply.Update) *once {
	return &once{timeout: timeout, update: from, over: make(chan struct{})}
}

// status looks for a final outcome.
func (o *once) status(s *apply.Status) {
	o.mu.Lock()
	defer o.mu.Unlock()
	a := s.Attempted
	if o.outcome != "" || a == nil || a.Outcome == record.Pending || a.Outcome == record.Superseded || a.Revision != s.Seen.Revision {
		return
	}
	if (a.Outcome == record.Applied || a.Outcome == record.Unchanged) && !s.InSync {
		return
	}
	if a.Outcome == record.Rejected && !s.Running.Confirmed {
		return // the engine is not back yet
	}
	o.outcome, o.reason = a.Outcome, a.Reason
	o.by, o.paused = cmp.Or(a.HeldBy, a.Cause), s.Held != nil && s.Held.Paused
	if a.Outcome == record.Refused {
		o.hint = s.Hint
	}
	close(o.over)
}

// A onceSink hears beside the Reconciler that the source cannot be read, once
// that has lasted: a directory that is being replaced is gone for a moment.
type onceSink struct {
	watcher.Sink
	once *once
	seen bool
}

func (s *onceSink) Document(doc *document.Document) {
	s.seen = true
	s.Sink.Document(doc)
}

func (s *onceSink) SourceError(err error) {
	s.Sink.SourceError(err)
	if s.seen || remote.Temporary(err) {
		return // what was seen may still come to its outcome, or something be seen
	}
	s.once.mu.Lock()
	defer s.once.mu.Unlock()
	if s.once.outcome == "" {
		s.once.outcome, s.once.reason, s.once.hint = "unreadable", err.Error(), problem.Hint(err)
		close(s.once.over)
	}
}

func (o *once) wait(ctx context.Context) error {
	timer := time.NewTimer(o.timeout)
	defer timer.Stop()
	for {
		select {
		case <-o.update.Replaced():
			o.follow()
			continue
		case <-ctx.Done():
		case <-o.over:
		case <-timer.C:
			o.late = true // read after the parts were joined
		}
		return nil
	}
}

// follow looks at the statuses that were published since.
func (o *once) follow() {
	for next := o.update.Next(); next != nil; next = next.Next() {
		o.update = next
		o.status(next.Status)
	}
}

// result is what the program ends with; last is how things stood then.
func (o *once) result(last *apply.Status) error {
	o.follow()
	select {
	case <-o.over:
	default:
		return o.unfinished(last)
	}
	err := fmt.Errorf("%s: %s", o.outcome, o.reason)
	switch o.outcome {
	case record.Applied, record.Unchanged:
		return nil
	case record.Invalid:
		return &failure{exitInvalid, err}
	case record.Refused:
		if o.by == "policy" {
			return &failure{exitInvalid, problem.New("", err, o.hint)}
		}
	case record.Rejected:
		return &failure{exitRejected, err}
	case record.Held:
		code := exitRejected // now or before, by the engine, by a hook or on probation
		if o.paused || o.by == "operator" {
			code = exitFault
		}
		hint := "declare other parameters; or run the agent without --once and use agent resume"
		if o.paused {
			hint = "run the agent without --once and use agent resume: only that ends a pause"
		}
		return &failure{code, problem.New("", err, hint)}
	}
	return problem.New("", err, o.hint)
}

// unfinished says what there was to wait for.
func (o *once) unfinished(last *apply.Status) error {
	what := "stopped before the configuration had an outcome"
	if o.late {
		what = fmt.Sprintf("no outcome within %s (--once-timeout)", o.timeout)
	}
	err := fmt.Errorf("%s: %s: %s", what, last.State, last.Reason)
	hint := strings.TrimSuffix(last.Hint, "; the agent goes on by itself") // this one has ended
	a := last.Attempted
	if a != nil && (a.Outcome == record.Rejected || a.Rejecting() != "") {
		err = fmt.Errorf("rejected: %s; and the engine is not back on the last good state: %w", cmp.Or(a.Rejecting(), a.Reason), err)
		return &failure{exitRejected, problem.New("", err, hint+"; the next start on this --state goes on with it")}
	}
	if a != nil && a.Outcome == record.Pending {
		hint = strings.TrimPrefix(hint+"; ", "; ") + a.SnapshotID + " is on record and goes on at the next start on this --state"
	}
	return problem.New("", err, hint)
}
