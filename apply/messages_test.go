package apply

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

// What is advised fits the fault.
func TestDiskHint(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{syscall.ENOSPC, "free space on /state"},
		{syscall.EDQUOT, "free space on /state"},
		{syscall.EROFS, "writable again"},
		{syscall.EACCES, "write into /state"},
		{syscall.EPERM, "write into /state"},
		{syscall.EMFILE, "open more files"},
		{syscall.EIO, "the kernel's log"},
		{errors.New("it was read anew"), "see who moved or changed it"},
		{problem.New("", errors.New("gone"), "put it back"), "put it back"},
	} {
		if got := diskHint(fmt.Errorf("commit: %w", c.err), "/state"); !strings.Contains(got, c.want) {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}

// What is advised about an engine is what its error says, if that says anything.
func TestWaitingText(t *testing.T) {
	const wrong = "check --engine and --environment: the socket must be that of the DTESN server this agent is for"
	for _, c := range []struct {
		err          error
		reason, hint string
	}{
		{problem.New("", syscall.ECONNREFUSED, "start it again"), "the engine does not answer: read: connection refused", "start it again; the agent goes on by itself"},
		{syscall.ECONNRESET, "the engine does not answer: read: connection reset by peer", "look at the DTESN server: its log, its load; the agent goes on by itself"},
		{&api.AnswerError{Reason: "HTTP 500"}, "the engine answers wrongly: read: HTTP 500", "look at the engine's log, or check --engine; the agent goes on by itself"},
		{&api.ForeignError{Reason: "HTTP 404"}, "read: wrong engine: HTTP 404", wrong},
		{&api.ForeignError{Reason: "HTTP 404", Environment: true}, "read: wrong engine: HTTP 404", wrong + "; or give the environment a `label` in --schema that the server knows"},
		{problem.New("", &api.ForeignError{Reason: "HTTP 404"}, "ask ada"), "read: wrong engine: HTTP 404", "ask ada"},
	} {
		if why := waitingProblem(fmt.Errorf("read: %w", c.err)); why.Error() != c.reason || why.Hint != c.hint {
			t.Errorf("%v: %q, hint %q; want %q, hint %q", c.err, why, why.Hint, c.reason, c.hint)
		}
	}
}

// A rollback is advised only where there is something to go back to.
func TestStopHint(t *testing.T) {
	for applied, want := range map[*record.Record]bool{
		nil:                   false,
		{}:                    false, // what the engine ran before anything was applied
		{RollbackPoint: true}: true,
	} {
		if got := stopHint(applied); strings.Contains(got, "agent rollback") != want || !strings.Contains(got, "declare something else") {
			t.Errorf("%+v: %q", applied, got)
		}
	}
}
