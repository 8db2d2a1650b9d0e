package cli

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
	"dtesn-agent/watcher/remote"
)

// unreachable returns the error of a git server that nobody listens for.
func unreachable(t *testing.T) error {
	t.Helper()
	r, err := remote.New(remote.Options{URL: "http://127.0.0.1:1/r.git"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.List(t.Context(), []string{"refs/heads/main"})
	return err
}

// deaf takes what a source says.
type deaf struct{}

func (deaf) Document(*document.Document) {}
func (deaf) SourceError(error)           {}

func ended(o *once) bool {
	select {
	case <-o.over:
		return true
	default:
		return false
	}
}

// TestOnceWaitsOutAGap: a directory that is being replaced is gone for a
// moment, which the status shows at once; only what the source reports as an
// error ends the run, and only before a Document was seen.
func TestOnceWaitsOutAGap(t *testing.T) {
	gap := &apply.Status{Source: apply.SourceStatus{LastError: "it does not exist"}}
	for _, seen := range []bool{false, true} {
		o := newOnce(time.Minute, new(apply.Update))
		sink := &onceSink{Sink: deaf{}, once: o}
		if o.status(gap); ended(o) {
			t.Fatal("a gap ended the run")
		}
		if seen {
			sink.Document(&document.Document{})
		}
		sink.SourceError(errors.New("it does not exist"))
		if ended(o) == seen {
			t.Errorf("a Document was seen: %v, the run ended: %v", seen, ended(o))
		}
		if !seen && o.result(gap) == nil {
			t.Error("the run ended well")
		}
	}
}

// TestOnceWaitsForTheNetwork: a fault that passes by itself has until
// --once-timeout; one that needs somebody has not.
func TestOnceWaitsForTheNetwork(t *testing.T) {
	for _, passing := range []bool{true, false} {
		o := newOnce(time.Minute, new(apply.Update))
		sink := &onceSink{Sink: deaf{}, once: o}
		var cause error = problem.New("", errors.New("no ref main"), "push it")
		if passing {
			cause = unreachable(t)
		}
		sink.SourceError(fmt.Errorf("look: %w", cause))
		if ended(o) == passing {
			t.Errorf("passing: %v, the run ended: %v", passing, ended(o))
		}
	}
}
