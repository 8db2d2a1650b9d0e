package apply

import (
	"context"
	"fmt"

	"dtesn-agent/schema"
)

// A Store is the snapshot repository of one environment, with one writer: the
// Reconciler. Its methods are called from one goroutine at a time.
type Store interface {
	// Head is the newest record, nil while there is none. After a Commit that
	// returned an error it says what truly stands.
	Head() *schema.Snapshot
	// Applied is the record that refs/dtesn/applied/<env> names, nil if none.
	// It is the head or an ancestor of it.
	Applied() *schema.Snapshot
	// Total is the number of records.
	Total() int

	// Commit appends rec to the head. It gives rec its Format, Index, ID,
	// Timestamp, Commit and Parent and returns the whole. A kill of the
	// process after Commit returned cannot lose the record. A record of kind
	// revert is durable as well: a power cut cannot lose it. Reverts and
	// rollbacks may use the disk space kept in reserve.
	Commit(ctx context.Context, rec schema.Snapshot) (*schema.Snapshot, error)
	// Confirm syncs all objects up to the head and then moves the applied ref
	// to it, durably. It is idempotent.
	Confirm(ctx context.Context) error

	// Retried reports whether refs/dtesn/retried/<env> names the head.
	Retried() bool
	// SetRetried durably makes refs/dtesn/retried/<env> name the head, or
	// removes it.
	SetRetried(ctx context.Context, retried bool) error

	// Lookup finds a record by snapshot id, a unique prefix of at least four
	// hex digits of its commit, or its index in digits. An unknown or damaged
	// one is an error that says so and names the way out.
	Lookup(ctx context.Context, id string) (schema.Record, error)
	// List returns at most limit records, newest first, beginning behind the
	// record named before ("" for the head).
	List(ctx context.Context, before string, limit int) ([]schema.Record, error)

	// Probe tries to write into the state directory.
	Probe() error
}

// An Engine is the live server. Its methods are safe to call from one
// goroutine at a time and return within the engine timeout.
type Engine interface {
	// Read asks on a fresh connection what the engine runs. An error is one of:
	// the engine cannot be reached, it did not answer in time, or what answered
	// is not a DTESN engine or is of another environment (*ForeignError).
	Read(ctx context.Context) (Reading, error)
	// Send sends one atomic batch with the full parameter set.
	Send(ctx context.Context, batch Batch) Answer
}

// A Reading is what an engine said it runs.
type Reading struct {
	Parameters  schema.Parameters
	Environment string
	Peer        Peer
}

// A Peer identifies the process behind the socket: an engine that restarted
// is another Peer. Peers are comparable with ==.
type Peer struct {
	PID int32
	UID uint32
	// Socket is the device, inode and change time of the socket file.
	Socket string
}

// A Batch is one full parameter set on its way to the engine.
type Batch struct {
	Parameters  schema.Parameters
	Description string
	SnapshotID  string
	// Revision is the snapshot's commit.
	Revision string
}

// A Verdict is the engine's answer to a Batch.
type Verdict int

// The engine's three answers, and two ways of not having asked.
const (
	// Unknown: bytes reached the socket and no answer counts (5xx, timeout,
	// broken connection). It is settled by asking, never guessed.
	Unknown Verdict = iota
	// Accepted: the engine says it runs the batch; the read-back decides.
	Accepted
	// Rejected: the engine refused the batch; Errors says why.
	Rejected
	// NotSent: nothing reached the engine (refused, vanished, no such socket).
	NotSent
	// Foreign: what answers is not a DTESN engine, or is of another
	// environment.
	Foreign
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
	// Err is the reason when the verdict is Unknown, NotSent or Foreign.
	Err error
	// Broken: the connection broke after bytes were sent (no timeout): the
	// engine may have died on the batch.
	Broken bool
	// Peer is who was sent the batch; zero when NotSent.
	Peer Peer
}

// A ForeignError says that what answers on the socket is not the engine the
// agent is for. Nothing is sent to it.
type ForeignError struct {
	// Reason is one line for people.
	Reason string
	// Environment: the answer was about the environment label.
	Environment bool
}

func (e *ForeignError) Error() string { return fmt.Sprintf("wrong engine: %s", e.Reason) }
