package apply

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// newProblem returns what is wrong and what to do about it.
func newProblem(reason, hint string) *problem.Error {
	return problem.New("", errors.New(reason), hint)
}

// engineWord says in two or three words, to follow "the engine", what err means
// of one that cannot be asked.
func engineWord(err error) string {
	var foreign *api.ForeignError
	var answer *api.AnswerError
	var later *api.LaterError
	switch {
	case errors.As(err, &later):
		return "asks to wait"
	case errors.As(err, &foreign) && foreign.User:
		return "is another user's"
	case errors.As(err, &foreign) && foreign.Environment:
		return "refuses this environment"
	case foreign != nil, errors.As(err, &answer):
		return "answers wrongly"
	}
	return "does not answer"
}

// asksToWait reports whether the engine process that was read a moment ago responded to the
// last request that it is to be asked later: that is no sign of another state.
func (e *engineState) asksToWait(now time.Time) bool {
	var later *api.LaterError
	return e.known && errors.As(e.err, &later) && later.Peer == e.reading.Peer && now.Sub(e.at) < readyUnread
}

// rootText returns the text of err without what was attempted.
func rootText(err error) string {
	var later *api.LaterError
	if errors.As(err, &later) {
		return later.Reason
	}
	return errorText(err)
}

// waitingProblem says why the engine cannot be asked.
func waitingProblem(err error) *problem.Error {
	var foreign *api.ForeignError
	var answer *api.AnswerError
	hint := problem.Hint(err)
	switch {
	case errors.As(err, &foreign):
		return foreignProblem(err)
	case hint != "":
	case errors.Is(err, errInterrupted):
		hint = "see why the DTESN server hangs: its log, its load"
	case engineWord(err) == "asks to wait":
		hint = "exempt the agent's socket from the server's rate limit, or see what else asks the server"
	case errors.As(err, &answer):
		hint = "look at the engine's log, or check --engine"
	case isGone(err):
		hint = "start the DTESN server, or check --engine"
	default:
		hint = "look at the DTESN server: its log, its load"
	}
	return newProblem("the engine "+engineWord(err)+": "+err.Error(), hint+"; the agent goes on by itself")
}

// foreignProblem is err of what is not the engine that was expected.
func foreignProblem(err error) *problem.Error {
	hint := "check --engine and --environment: the socket must be that of the DTESN server this agent is for"
	var foreign *api.ForeignError
	switch own := problem.Hint(err); {
	case own != "":
		hint = own
	case errors.As(err, &foreign) && foreign.User:
		hint = "check --engine-uid and --engine: the user with that uid must start the DTESN server; nothing was asked of this one"
	case foreign != nil && foreign.Environment:
		hint += "; or give the environment a `label` in --schema that the server knows"
	}
	return problem.New("", err, hint)
}

// stopHint says how to stop what is on its way to the engine. A rollback needs
// a state that was applied.
func stopHint(applied *record.Record) string {
	if applied == nil || !applied.RollbackPoint {
		return "declare something else to stop it"
	}
	return "declare something else, or `agent rollback`, to stop it"
}

// sourceHint is what to do about a source that cannot be read, whose error says
// the rest.
func sourceHint(s SourceStatus) string {
	hint := "see that " + s.Location + " is there, and that the agent's user may read it"
	if s.Kind == "git" { // a network, a ref, a signature: each error names its own way out
		hint = "mend what is said of the source, if it does not mend by itself"
	}
	return cmp.Or(s.Hint, hint) + "; it is tried again, and at once by `agent sync`"
}

// again ends the hint of a fault that the agent need only wait out.
const again = "; the agent tries again by itself"

// diskHint is what to do about err, which the store in dir met. For the common
// errors of the system it is the same, whatever was being done.
func diskHint(err error, dir string) string {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "free space on " + dir
	case errors.Is(err, syscall.EROFS):
		return "mount the file system of " + dir + " writable again"
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("let uid %d write into %s", os.Geteuid(), dir)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "let the agent open more files (ulimit -n; LimitNOFILE= of systemd)"
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.ESTALE):
		return "see whether the disk of " + dir + " is sound: the kernel's log"
	}
	return cmp.Or(problem.Hint(err), dir+" is the agent's alone: see who moved or changed it")
}

// diskKind is the same for errors that differ only in the names of what was
// being written.
func diskKind(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return errorText(err)
}

// pendingText answers who will not wait any longer for an order; id is its
// record, "" while it has none.
func pendingText(id string) string {
	if id != "" {
		return "on record as " + id + ", not yet on the engine; it goes on by itself, also over a restart of the agent"
	}
	return "not yet looked at, for the agent waits for the engine or the disk; it is on no record: it goes on while this agent runs, and must be given again after a restart"
}

func (s *State) appliedText(rec *record.Record) string {
	text := changesText(rec.Changes)
	if text == "" && rec.Before != nil { // of what is applied; a candidate may have run
		text = changesText(s.opt.Rules.Diff(*rec.Before, rec.Config))
	}
	if text == "" {
		text = "nothing changed"
	}
	var left []string
	for _, c := range rec.Changes {
		if c.New.IsZero() {
			left = append(left, c.Parameter)
		}
	}
	if left != nil {
		text += "; the engine keeps its value of " + strings.Join(left, ", ")
	}
	if hold := s.hold(); hold != nil {
		text += "; " + s.heldText(hold)
	}
	return text
}

// sourceAttrs returns the attributes of the source commit that declared rec, for the log.
func sourceAttrs(rec *record.Record) []any {
	if rec.Source.Kind != "git" {
		return nil
	}
	return []any{"revision", rec.Source.Revision, "subject", rec.Source.Subject}
}

func changesText(changes []schema.Change) string {
	texts := make([]string, len(changes))
	for i, c := range changes {
		texts[i] = fmt.Sprintf("%s %v -> %v", c.Parameter, c.Old, c.New)
	}
	return strings.Join(texts, ", ")
}
