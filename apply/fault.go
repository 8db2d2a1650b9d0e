package apply

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"syscall"
	"time"

	"dtesn-agent/schema/problem"
)

// A stage is a part of the work that can fail and be tried again.
type stage string

// The stages.
const (
	stageAssert    stage = "assert"
	stageRevert    stage = "revert"
	stageCommit    stage = "commit"
	stageConfirm   stage = "confirm"
	stageProbation stage = "probation"
	stageSigner    stage = "signer"
	stageHook      stage = "hook"
	stageSend      stage = "send"
)

// stages lists all of them, the gravest first.
var stages = []stage{stageAssert, stageRevert, stageCommit, stageConfirm, stageProbation, stageSigner, stageHook, stageSend}

// A fault is why a stage failed, and when it is tried again.
type fault struct {
	why        *problem.Error
	tries      int
	retryAt    time.Time
	refused    bool // by the engine: waiting does not help
	unanswered bool // the engine did not respond: it may have crashed
	server     bool // of the server, not of the change: another process may take it
	crashes    int  // processes of the engine that ended in such tries
}

// faults are those of the stages that failed and have not succeeded since.
type faults map[stage]*fault

// backoff returns the wait after a number of earlier tries.
func backoff(tries int) time.Duration { return double(backoffLeast, tries) }

// double returns d doubled a number of times, at most backoffMost.
func double(d time.Duration, times int) time.Duration {
	return min(d<<min(times, 20), backoffMost)
}

// block notes that a stage failed and plans its next try.
func (s *State) block(st stage, why *problem.Error) *fault {
	f := s.blockQuietly(st, why)
	s.repeat(slog.LevelError, "fault "+string(st), why.Error(), "stage", string(st), "hint", why.Hint)
	return f
}

// suspect is block for what may turn out to be harmless: it is logged from the second
// time on.
func (s *State) suspect(st stage, why *problem.Error) {
	if s.blocked(st) {
		s.block(st, why)
	} else {
		s.blockQuietly(st, why)
	}
}

// blockQuietly is block without a line in the log.
func (s *State) blockQuietly(st stage, why *problem.Error) *fault {
	f := &fault{why: why}
	if before := s.faults[st]; before != nil {
		f.tries, f.crashes = before.tries+1, before.crashes
	}
	f.retryAt = time.Now().Add(backoff(f.tries))
	s.faults[st] = f
	return f
}

// ready reports whether a stage may be tried now.
func (f faults) ready(st stage, now time.Time) bool {
	return f[st] == nil || !now.Before(f[st].retryAt)
}

// blocked reports whether a stage failed and has not succeeded since.
func (f faults) blocked(st stage) bool { return f[st] != nil }

// isRefused reports whether the engine refuses the state that it is to be brought back
// to, so that waiting does not help.
func (f faults) isRefused() bool { return f.blocked(stageAssert) && f[stageAssert].refused }

// newEngine notes that another process of the engine came while stage assert was
// blocked. It may accept what the one before refused. After the second that ended
// during a try the backoff stays, for the try may have ended it.
func (f *fault) newEngine(wait time.Duration) {
	if f.crashes++; f.crashes < 2 {
		f.retryAt = time.Now().Add(wait)
	}
}

// retryNow lets the failed stages be tried again at once, once.
func (f faults) retryNow(list ...stage) {
	for _, st := range list {
		if f[st] != nil {
			f[st].retryAt = time.Now()
		}
	}
}

// clear forgets the faults of the stages.
func (s *State) clear(list ...stage) {
	for _, st := range list {
		if s.blocked(st) {
			delete(s.faults, st)
			s.endRepeat("fault " + string(st))
		}
	}
}

// obstacles returns why the stages that failed did, the gravest first; nil if none did.
func (s *State) obstacles() *problem.Error {
	var reasons, hints []string
	for _, st := range stages {
		f := s.faults[st]
		// It was read to run the change, or the change is tried again.
		overcome := st == stageSend && s.pending != nil && s.pending.verified || st == stageHook && s.isCandidateOpen()
		if f == nil || overcome || slices.Contains(reasons, f.why.Error()) {
			continue
		}
		reasons = append(reasons, f.why.Error())
		if !slices.Contains(hints, f.why.Hint) {
			hints = append(hints, f.why.Hint)
		}
	}
	if reasons == nil {
		return nil
	}
	return newProblem(strings.Join(reasons, "; "), strings.Join(hints, "; "))
}

// diskFailed notes that the Store failed to write.
func (s *State) diskFailed(st stage, err error, what string) {
	s.disk.writable = false
	s.disk.probed = time.Now()
	if errno := syscall.Errno(0); !errors.As(err, &errno) || errno == syscall.EROFS {
		s.disk.err = err // the directory is not what it was: a probe finds out when it is again
	}
	s.failed(string(st))
	why := newProblem(what+": "+errorText(err), diskHint(err, s.opt.StateDir)+again)
	s.blockQuietly(st, why)
	s.repeatKind(slog.LevelError, "fault "+string(st), what+diskKind(err), why.Error(), "stage", string(st), "hint", why.Hint)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
