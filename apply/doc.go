// Package apply is the transaction that brings what a source declares to the
// live engine, and the recovery that finishes what a crash cut short.
//
// One goroutine, Reconciler.Run, owns everything: the store, the engine and
// what is known of both. Triggers (a Document, a hint that the engine moved,
// an operator's request, a timer) only wake it; each turn looks at the facts
// and does the next thing they ask for. So the path after a crash is the path
// without one: nothing but the refs and the commits of the store carries the
// state from one process to the next.
//
// # The protocol
//
//	Commit   the candidate becomes the head           (write-ahead record)
//	Send     one atomic batch to the engine           (the point of no return)
//	Read     on a fresh connection: does it run it?
//	Confirm  the applied ref moves to the head        (durable; now "applied" is said)
//
// A crash before Commit leaves nothing. A crash between Commit and Confirm
// leaves a head that is not applied; the next start reads the engine and goes
// on from what it runs. A crash after Confirm leaves nothing to do.
//
// A rejected or withdrawn candidate is settled by a revert at the head, which
// is durable before the engine is asserted to run it; Confirm then moves the
// applied ref over it. A head that is a revert or a note is never reverted:
// whoever finds it asserts it and confirms it.
//
// The order is Commit before Send, because an engine that runs what no record
// names could not be explained after a crash; and Send before the sync of
// Confirm, because the engine need not wait for the disk: a power cut that
// loses an unconfirmed candidate loses nothing that anybody was told.
//
// One thing may take a settlement's place before it is confirmed: when the
// engine refuses the very state it is to be brought back to, waiting cures
// nothing, and a valid Document that nothing holds, or an operator's order, is
// committed on top, saying that the settlement is superseded.
//
// # Probation
//
// With a probation a candidate that runs is confirmed only after the engine was
// healthy on it for the whole window. What displaces a pending candidate ends
// it; a restart of the agent begins it anew, for nothing of it is on record. A
// rollback is on none: its target ran before.
//
// # Drift
//
// An engine that runs something else although its process is the same was
// changed past the agent. It is read a few times more before that is said:
// readings that go back and forth are several engines behind one socket, which
// is said instead and never counts as drift. What drifted is brought back to the
// applied snapshot, never to the source, and without a commit. Who changes it
// again soon after each correction is probably an agent too: from the third
// time on corrections wait, twice as long each time up to five minutes, and the
// status says so until the engine is left alone.
//
// # Orders
//
// An operator's order is carried out between two steps. A call to an engine that
// hangs is given up for it after two seconds: to the transaction that is one
// more answer that is not known.
//
// # The engine's answers
//
// Accepted, rejected, unknown. Unknown is settled by asking, never guessed: a
// candidate stays pending while the engine is down or hangs. Two deaths on the
// same candidate are a rejection; so that an agent that is killed in between
// cannot make it three, a second send is preceded by a durable mark (the
// retried ref), and whoever finds the mark at start never sends again. The mark
// is taken back when the connection held: an engine that answers, if only by
// failures, came to no harm.
package apply
