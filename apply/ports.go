package apply

import (
	"context"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/watcher/document"
)

// A Store is the snapshot repository of one environment, with one writer: the
// Reconciler. Its methods are called from one goroutine at a time.
type Store interface {
	// Head is the newest record, nil while there is none. After a Commit that
	// returned an error it says what truly stands.
	Head() *record.Record
	// Applied is the record that is marked as applied, nil if none. It is the head
	// or an ancestor of it.
	Applied() *record.Record
	// Total is the number of records.
	Total() int

	// Prepare does what can be done ahead, while nobody waits. target is the record
	// that a rollback without an id goes to, which pruning keeps; "" prunes nothing.
	Prepare(ctx context.Context, target string)
	// Commit appends rec to the head. It gives rec its Format, Index, ID,
	// Timestamp, Commit and Parent and returns the whole. A kill of the
	// process after Commit returned cannot lose the record. A record of kind
	// revert or note is durable as well: a power cut cannot lose it. Reverts,
	// rollbacks and notes can be recorded on a full disk.
	Commit(ctx context.Context, rec record.Record) (*record.Record, error)
	// Confirm makes everything up to the head durable and marks the head as
	// applied, durably. It is idempotent.
	Confirm(ctx context.Context) error

	// Retried reports whether the head is marked as being sent again.
	Retried() bool
	// SetRetried durably marks the head as being sent again, or removes the mark.
	SetRetried(ctx context.Context, retried bool) error

	// Lookup finds a record by snapshot id, a unique prefix of at least four
	// hex digits of its commit, or its index in digits. An unknown or damaged
	// one is an error that says so, with a hint.
	Lookup(ctx context.Context, id string) (record.Row, error)
	// List returns at most limit records, newest first, beginning behind the
	// record named before ("" for the head).
	List(ctx context.Context, before string, limit int) ([]record.Row, error)

	// Fact returns what SetFact kept under a name, nil if there is nothing. SetFact
	// keeps at most 4 KiB, durably.
	Fact(name string) []byte
	SetFact(ctx context.Context, name string, value []byte) error

	// Lost is the pause in force because there was a history and nothing of it
	// can be read; nil otherwise. ClearLost ends it durably.
	Lost() *record.Hold
	ClearLost(ctx context.Context) error

	// Repairs returns what was repaired in the history, oldest first.
	Repairs() []record.Repair

	// Behind returns why the git repository lacks records that are durable all the
	// same, nil if it lacks none. They are written to it as soon as that is possible.
	Behind() error

	// Probe tries to write into the state directory. One that was away, or was
	// replaced, is read anew; then Head and Applied may be others.
	Probe(ctx context.Context) error
}

// An Engine is the live server. Its methods are safe to call from one
// goroutine at a time and return within the engine timeout.
type Engine interface {
	// Read asks on a fresh connection what the engine runs. An error is one of:
	// the engine cannot be reached, it did not answer in time, or what answered
	// is not a DTESN engine or is of another environment (*api.ForeignError).
	Read(ctx context.Context) (api.Reading, error)
	// Health asks on a fresh connection how the engine is. What answers without
	// being well is no error; the errors are those of Read.
	Health(ctx context.Context) (api.Health, error)
	// Bounds asks which values the engine accepts. It returns nil where the engine
	// does not say.
	Bounds(ctx context.Context) (map[string]api.Bounds, error)
	// Prepare says that a Send may follow soon, so that the connection can be
	// opened while the Document is loaded and the record is written. It returns at
	// once and sends no Parameters.
	Prepare()
	// Send sends one atomic batch with all parameters that are managed.
	Send(ctx context.Context, batch api.Batch) api.Answer
}

// A Gate has others agree to each change that runs before it is confirmed. Its methods
// are safe from any goroutine.
type Gate interface {
	// Required returns at once, with the names of those who must agree, and how long Ask
	// waits for them.
	Required() (names []string, wait time.Duration)
	// Ask asks them about a change, and returns nil if all agree, and a *Veto if one
	// rejects it. With any other error it is unknown. It returns within a bounded time,
	// and soon after ctx ends.
	Ask(ctx context.Context, change *record.Record) error
}

// A Policy says which changes are allowed. Its methods are safe from any goroutine.
type Policy interface {
	// Status returns at once.
	Status() PolicyStatus
	// Judge returns the rules that deny a change, none if it is allowed. With an error that
	// is unknown, which counts as denied. It returns within a bounded time, and soon after
	// ctx ends.
	Judge(ctx context.Context, change schema.Proposal) ([]schema.Denial, error)
}

// A Source is where Documents come from.
type Source interface {
	// Status returns how it is read ("inotify" or "poll"), when it was last read well,
	// and the error of the last attempt.
	Status() (mode string, lastGood time.Time, err error)
	// CheckSigner returns why a revision that was taken from a git source earlier would
	// not be trusted now, nil if it would. The error says that this is unknown now.
	CheckSigner(document.Source) (*document.Refusal, error)
	// Sync makes it look, and check what it finds, again.
	Sync()
}

// Metrics counts what happens. Its methods return at once.
type Metrics interface {
	Outcome(record.Outcome)
	// ValidationFailures counts an invalid Document, once for each parameter
	// concerned; "" stands for the Document itself.
	ValidationFailures(parameters []string)
	// Rollback counts a return to an earlier state: engine, operator, probation or hook.
	Rollback(cause string)
	// Phase observes how long a phase took: load, commit, engine, confirm, total.
	Phase(phase string, d time.Duration)
	// StageFailure counts a failure: source, load, commit, send, read, confirm,
	// revert, assert.
	StageFailure(stage string)
	Drift()
	// PolicyRefusal counts a Document that the policy denied, or could not judge.
	PolicyRefusal()
	// Success notes the last success of a loop: source, engine, transaction.
	Success(loop string)
}
