// Package apply brings what a source declares to the live engine, and finishes what a
// crash cut short.
//
// One goroutine, Reconciler.Run, owns the store and the engine. Documents, hints, orders
// and timers only wake it. Each turn folds what arrived into the State, asks Plan for the
// next Step, carries it out, folds the result, and emits events, until there is nothing
// to do but wait. So the path after a crash is the path without one: only the records and
// marks of the store carry state from one process to the next.
//
// # The protocol
//
//	Commit   the candidate becomes the head           (write-ahead record)
//	Send     one atomic batch to the engine           (the point of no return)
//	Read     on a fresh connection: does it run it?
//	Confirm  the head is marked as applied            (durable; now "applied" is reported)
//
// A crash before Commit leaves nothing. A crash between Commit and Confirm leaves a head
// that is not applied. The next start reads the engine and goes on from what it runs. A
// crash after Confirm leaves nothing to do.
//
// A rejected or withdrawn candidate is settled by a revert at the head. It is durable
// before the engine is brought back to it, and then confirmed. A head that is a revert or
// a note is never reverted.
//
// Commit comes before Send, because an engine that runs what no record names could not be
// explained after a crash. Send comes before the sync of Confirm, because the engine need
// not wait for the disk: a power cut that loses an unconfirmed candidate loses nothing
// that anybody was told.
//
// One thing may take the place of a revert or note before it is confirmed. Where the
// engine refuses the state that it is to be brought back to, waiting does not help. Then
// a valid Document that is not held, or an operator's order, is committed on top.
//
// # Required hooks and probation
//
// Where a Gate is given, those whom it names are asked about each change that runs. All
// must agree before it is confirmed. A veto rejects it. Without an answer it is reverted,
// held by nobody, and tried again later. They are asked beside the loop, which goes on
// watching the engine. A newer Document or an order ends the asking; a restart of the
// agent asks again about the same record.
//
// With a probation a candidate that runs is confirmed only after the engine was healthy
// on it for the whole window. A newer Document or an order ends the probation; a restart
// of the agent begins it again. Rollbacks have none: their target ran before.
//
// # Drift
//
// An engine that runs something else, although its process is the same, was changed by
// somebody else. It is read a few times more before that is reported: readings that go
// back and forth are several engines behind one socket, which is not drift. Drift is
// corrected to the applied record, without a commit. From the third drift in a row, each
// soon after a correction, corrections wait longer each time, up to five minutes.
//
// # Orders
//
// An operator's order is carried out between two steps. A call to an engine that hangs is
// given up for it after two seconds. Its result is then unknown, as after a timeout.
//
// # The engine's responses
//
// Accepted, rejected, or unknown. Unknown is resolved by reading, never guessed: a
// candidate stays pending while the engine is down or hangs. An engine that ends twice
// during a send rejects the candidate. A durable mark precedes a second send; a process
// that finds a mark of another one never sends again, so that a killed agent cannot make
// it three. The mark is removed once a connection held.
//
// A refusal that cannot be about the change is not believed: one that blames a parameter
// which was not sent, or that comes for what the engine runs already. The candidate stays
// pending, and the server is reported as at fault.
package apply
