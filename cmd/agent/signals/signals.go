// Package signals catches the signals of a server before anything else of the program
// runs. The packages that it is built of take 10 to 50 ms to initialize, and a signal
// that is not caught yet ends the process. This package imports next to nothing, so it
// is initialized among the first.
package signals

import (
	"os"
	"os/signal"
	"syscall"
)

// Hangup receives SIGHUP, from the beginning of an `agent run` on.
var Hangup = make(chan os.Signal, 1)

// IsServer reports whether this process is an `agent run` or an `agent engine`: one that
// stays when the reader of its output goes.
var IsServer = len(os.Args) > 1 && (os.Args[1] == "run" || os.Args[1] == "engine")

func init() {
	if !IsServer {
		return // `agent snapshots | head` ends as it should
	}
	if os.Args[1] == "run" {
		signal.Notify(Hangup, syscall.SIGHUP)
	}
	// Caught and not ignored, which children would inherit. A write to a closed pipe then
	// returns EPIPE (package os/signal, "SIGPIPE").
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
}
