// Package dtesn is a client of the API of DTESN servers, HTTP/1.1 and JSON over
// a Unix socket: the wire types, and a Client that reads what runs and sends
// one atomic batch.
//
// The Client keeps no connection: each operation dials, so that a read-back
// does not come from a connection that broke, and the Peer that it names is the
// process that responded. (Prepare keeps one for a moment; Watch holds one where
// the server can serve others beside it.) Every operation ends within
// Options.Timeout and reads 1 MiB at most. From GET current the client takes
// success, the parameters that the schema has, and the environment label.
//
// The names and types of the parameters come from Options.Rules. A parameter
// that the engine does not report is missing in the Reading; parameters that
// the schema does not have are ignored.
//
// A batch is accepted, rejected, or its outcome is unknown. VerdictUnknown is
// resolved by reading, never by guessing. See Client.Send.
//
// The environment of a server is a label, `development` when it starts. The
// client sets it before a batch, once a connection; a server that refuses the
// label belongs to another environment, and no batch is sent to it.
package dtesn
