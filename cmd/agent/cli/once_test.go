package cli

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/schema"
	"dtesn-agent/watcher/remote"
)

// deaf takes what a source says.
type deaf struct{}

func (deaf) Document(*schema.Document) {}
func (deaf) SourceError(error)         {}

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
		o := newOnce(time.Minute)
		sink := &onceSink{Sink: deaf{}, once: o}
		if o.status(gap); ended(o) {
			t.Fatal("a gap ended the run")
		}
		if seen {
			sink.Document(&schema.Document{})
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
		o := newOnce(time.Minute)
		sink := &onceSink{Sink: deaf{}, once: o}
		sink.SourceError(fmt.Errorf("look: %w", &remote.Error{What: "list the refs", Passing: passing}))
		if ended(o) == passing {
			t.Errorf("passing: %v, the run ended: %v", passing, ended(o))
		}
	}
}
