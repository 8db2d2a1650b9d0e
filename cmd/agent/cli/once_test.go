package cli

import (
	"errors"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/schema"
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
