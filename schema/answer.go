package schema

import "fmt"

// A Reading is what an engine said it runs.
type Reading struct {
	Parameters  Parameters
	Environment string
	// Relabelled is the environment that the engine bore before it was given
	// ours for this reading; "" if it bore ours.
	Relabelled string
	Peer       Peer
}

// A Peer identifies the process behind the socket: an engine that restarted
// is another Peer. Peers are comparable with ==.
type Peer struct {
	PID int32
	UID uint32
	// Socket is the device, inode and birth of the socket file.
	Socket string
}

// A Health is what the engine says of how it is.
type Health struct {
	Healthy bool
	// Reason says in one line why it is not healthy.
	Reason string
	Peer   Peer
}

// A Batch is one full parameter set on its way to the engine.
type Batch struct {
	Parameters  Parameters
	Description string
	SnapshotID  string
	// Revision is the snapshot's commit.
	Revision string
}

// A Verdict is the engine's answer to a Batch.
type Verdict int

// The engine's three answers, and two ways of not having asked.
const (
	// VerdictUnknown: bytes reached the socket and no answer counts (5xx, timeout,
	// broken connection). It is settled by asking, never guessed.
	VerdictUnknown Verdict = iota
	// VerdictAccepted: the engine says it runs the batch; the read-back decides.
	VerdictAccepted
	// VerdictRejected: the engine refused the batch; Errors says why.
	VerdictRejected
	// VerdictNotSent: nothing reached the engine (refused, vanished, no such socket).
	VerdictNotSent
	// VerdictForeign: what answers is not a DTESN engine, or is of another
	// environment.
	VerdictForeign
)

func (v Verdict) String() string {
	return [...]string{"unknown", "accepted", "rejected", "not sent", "foreign"}[v]
}

// An Answer is what came of a Send.
type Answer struct {
	Verdict Verdict
	// Errors are the engine's words when it rejected, each one line of at most
	// 200 bytes without control characters.
	Errors []string
	// Err is the reason when the verdict is unknown, not sent or foreign.
	Err error
	// Broken: the connection broke after bytes were sent (no timeout): the
	// engine may have died on the batch.
	Broken bool
	// Peer is who was sent the batch; zero when nobody was.
	Peer Peer
}

// A ForeignError says that what answers on the socket is not the engine the
// agent is for. Nothing is sent to it.
type ForeignError struct {
	// Reason is one line for people.
	Reason string
	// Environment: the answer was about the environment label.
	Environment bool
	// User: the socket is another user's, and nothing was asked.
	User bool
}

func (e *ForeignError) Error() string { return fmt.Sprintf("wrong engine: %s", e.Reason) }

// An AnswerError says that the engine answered, and not what was asked: it
// failed, or the answer is too long, or no HTTP. It may be another one next
// time.
type AnswerError struct {
	// Reason is one line for people.
	Reason string
}

func (e *AnswerError) Error() string { return e.Reason }
