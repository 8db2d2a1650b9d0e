package apply

import (
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/watcher/document"
)

// A Step is the next thing to do. Plan chooses it, Reconciler.do carries it out and
// folds the result into the State.
type Step struct {
	Kind StepKind
	For  purpose // of a reading or an assertion

	Until  time.Time       // Wait: when to plan again at the latest
	Record record.Record   // Commit, Recommit, Revert, Note: what to append; JudgeRollback: what would be
	Target *record.Record  // Assert: what the engine is to run
	Source document.Source // CheckSigner: what the source is asked about
	Of     string          // CheckSigner: a revision, or the id of a record; Join: the rollback
	Reason string          // Reject: why
	Result Result          // Answer, and Revert and Note of an order
	Err    error           // Answer
}

// A StepKind says what a Step does.
type StepKind int

// The kinds of steps with IO. Calls to the engine may be cut short by an order that waits
// for two seconds. ReadHealth, CompareEngine and readings at rest are also cut short by a
// newer Document that waits so long, and by a stop. Nothing cuts the others short.
const (
	Wait          StepKind = iota
	ReadEngine             // what it runs, on a fresh connection
	ReadAgain              // a few times more, to tell several engines from one that changed
	ReadHealth             // during probation
	CompareEngine          // which values it accepts
	Send                   // the candidate: the point of no return
	Recheck                // whether the engine accepts the applied record, which it runs
	Assert                 // a recorded state: send it and read it back, without a commit
	JudgeChange            // whether the policy allows what is declared
	JudgeRollback          // what the policy says of the order's rollback
	CheckSigner            // whether the source still trusts the signer
	AskSource              // to look and judge again
	Commit                 // the declared change, or an operator's rollback
	Recommit               // the candidate at the head, with more in it
	Revert                 // end the candidate: rejected, or superseded
	Note                   // the beginning or end of a hold
	MarkRetried            // the candidate is about to be sent again
	AskHooks               // about the candidate, beside the loop
	Confirm                // everything up to the head is applied
	ClearLost              // end the pause of an agent that lost its history
	Probe                  // whether the state directory can be written
	FindTarget             // of the order
	ListBacklog            // records between the applied one and the head
	Summarize              // what the status says of the history
	SaveFacts              // for a later process

	// The following have no IO. They fold what follows from the facts.

	Adopt          // a candidate that this process did not commit
	Reject         // the candidate, once the revert is on record
	Accept         // what the engine runs is right
	Leave          // what the engine runs is left alone for now
	NoteDrift      // the engine was changed by somebody else
	AcceptHead     // the engine runs the revert or note at the head
	BeginProbation // or begin it again
	ReportUnknown  // the engine lacks a parameter of the candidate
	ReportHeld     // what is declared is held
	ReportSame     // what is declared is applied and runs
	Join           // the order waits for the rollback that is under way
	Answer         // the order
)

// isRest reports whether a step may wait for an order.
func (k StepKind) isRest() bool {
	return k == Probe || k == Summarize || k == SaveFacts || k == CompareEngine
}

// String returns the name of the kind.
func (k StepKind) String() string {
	return [...]string{
		"Wait", "ReadEngine", "ReadAgain", "ReadHealth", "CompareEngine", "Send", "Recheck", "Assert", "JudgeChange", "JudgeRollback", "CheckSigner", "AskSource",
		"Commit", "Recommit", "Revert", "Note", "MarkRetried", "AskHooks", "Confirm", "ClearLost", "Probe", "FindTarget", "ListBacklog", "Summarize", "SaveFacts",
		"Adopt", "Reject", "Accept", "Leave", "NoteDrift", "AcceptHead", "BeginProbation", "ReportUnknown", "ReportHeld", "ReportSame", "Join", "Answer",
	}[k]
}

// A purpose says what a reading is about.
type purpose int

const (
	forApplied   purpose = iota // the applied record
	forCandidate                // whether the candidate runs
	forConfirm                  // whether it still does while the disk fails
	forProbation                // whether it still does during probation
	forUnknown                  // whether the engine knows all of the candidate
	forHead                     // whether the revert or note at the head runs
	forStatus                   // to show it
	forBuilding                 // whether the engine still builds something
)
