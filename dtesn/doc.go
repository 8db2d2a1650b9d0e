// Package dtesn speaks the API of a DTESN server, HTTP/1.1 and JSON over a
// Unix socket: the wire types, and a Client that asks what runs and sends one
// atomic batch.
//
// The Client keeps no connection: each operation dials anew, so that a
// read-back can never be answered by what a broken connection left over, and
// so that the Peer it names is who answered. (Prepare keeps one, for a second;
// Watch holds one where that is in nobody's way.) Every operation ends within
// Options.Timeout, reads 1 MiB at most, and believes nothing it was not asked
// to believe: from GET current it takes success, the six parameters and the
// environment, and ignores the rest.
//
// An engine has three answers to a batch: accepted, rejected, and none that
// counts. The third is VerdictUnknown; the caller settles it by asking, never
// by guessing. See Client.Send for what makes which.
//
// The environment of a server is a label, `development` when it starts. Before
// a batch the client sets it, once a connection; a server that refuses the
// label is of another environment, and gets nothing.
package dtesn
