// Package api has the types of an engine's state, requests and responses, which
// the reconciler and package dtesn share.
package api

import (
	"slices"
	"time"

	"dtesn-agent/schema"
)

// A Reading is what an engine reports that it runs.
type Reading struct {
	// Parameters are those of the schema that the engine reports.
	Parameters schema.Parameters
	// Unset are optional ones that the engine has and that have no value: it reports
	// null.
	Unset []string
	// Mistyped is what the engine reports of parameters that have another type in
	// the schema: they cannot be used.
	Mistyped map[string]string
	// Environment is the label that the engine bears.
	Environment string
	// Relabelled is the label that the engine bore before this reading set ours;
	// "" if it bore ours.
	Relabelled string
	// Building is what the engine builds beside what it runs, nil for nothing.
	Building *Building
	Peer     Peer
}

// A Building is a batch that an engine accepted and does not run yet.
type Building struct {
	Revision string    // of the batch, "" if the engine does not say
	Since    time.Time // zero if the engine does not say
}

// Knows reports whether the engine has the parameter, with a value or without.
func (r Reading) Knows(name string) bool {
	return !r.Parameters.Get(name).IsZero() || slices.Contains(r.Unset, name)
}

// A Peer identifies the process behind the socket: an engine that restarted
// is another Peer. Peers are comparable with ==.
type Peer struct {
	PID int32
	UID uint32
	// Socket is the device, inode and birth of the socket file.
	Socket string
}

// A Health is what the engine reports of its health.
type Health struct {
	Healthy bool
	// Reason is why it is not healthy, in one line.
	Reason string
	Peer   Peer
}

// A Batch is a set of parameters to send to the engine, all of it or none.
type Batch struct {
	Parameters  schema.Parameters
	Description string
	// SnapshotID and Revision name the record: its id and its commit.
	SnapshotID string
	Revision   string
}

// A Verdict classifies the outcome of a Send.
type Verdict int

// The verdicts of a Send.
const (
	// VerdictUnknown means that bytes of the batch reached the socket and no
	// response decides: a 5xx, a timeout, a broken connection. A Read resolves it.
	VerdictUnknown Verdict = iota
	// VerdictAccepted means that the engine claims to run the batch; a Read
	// confirms it.
	VerdictAccepted
	// VerdictRejected means that the engine refused the batch; see Errors.
	VerdictRejected
	// VerdictNotSent means that no byte of the batch reached the engine.
	VerdictNotSent
	// VerdictForeign means that the server is not a DTESN engine, or belongs to
	// another environment.
	VerdictForeign
)

// String returns the verdict in words.
func (v Verdict) String() string {
	return [...]string{"unknown", "accepted", "rejected", "not sent", "foreign"}[v]
}

// An Answer is the outcome of a Send.
type Answer struct {
	Verdict Verdict
	// Errors are the engine's reasons for a rejection, each one line of at most
	// 1 KiB without control characters.
	Errors []string
	// Blamed is the parameter that a rejection calls unknown, "" for none.
	Blamed string
	// Err is the reason when the verdict is unknown, not sent or foreign.
	Err error
	// Broken means that the connection broke after bytes were sent, without a
	// timeout: the engine may have crashed on the batch.
	Broken bool
	// Peer is the process that the batch was sent to; zero if it was not sent.
	Peer Peer
}

// A ForeignError means that the server on the socket is not the engine that the
// agent is for. Nothing is sent to it.
type ForeignError struct {
	// Reason is one line for people.
	Reason string
	// Environment means that the engine refused or lost the environment label.
	Environment bool
	// User means that the socket is another user's, and no request was sent.
	User bool
}

// Error returns the reason.
func (e *ForeignError) Error() string { return "wrong engine: " + e.Reason }

// An AnswerError means that the engine responded with something unexpected: a
// failure, a response that is too long, or no HTTP. The next response may be a
// good one.
type AnswerError struct {
	// Reason is one line for people.
	Reason string
}

// Error returns the reason.
func (e *AnswerError) Error() string { return e.Reason }

// A LaterError means that the engine asks not to be asked again before a time: 429,
// or 503 with Retry-After. It says nothing about a change.
type LaterError struct {
	// Reason is one line for people.
	Reason string
	Until  time.Time
	Peer   Peer // who asks
}

// Error returns the reason.
func (e *LaterError) Error() string { return e.Reason }
