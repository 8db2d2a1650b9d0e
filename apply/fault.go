package apply

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A fault is what stands in the way of a stage now, and when that stage is
// tried again.
type fault struct {
	reason, hint string
	tries        int
	retryAt      time.Time
	refused      bool // by the engine: waiting alone does not cure it
	unanswered   bool // the engine gave no answer: it may have died of it
	deaths       int  // processes of the engine that ended in such tries
}

// stages are all that may be blocked, the gravest first.
var stages = []string{"assert", "revert", "commit", "confirm", byProbation, "vouch", "send"}

// backoff is the wait after the given number of earlier tries.
func backoff(tries int) time.Duration {
	if tries > 20 {
		return backoffMost
	}
	return min(backoffLeast<<tries, backoffMost)
}

// block notes that stage failed and plans its next try.
func (r *Reconciler) block(stage, reason, hint string) *fault {
	f := r.stand(stage, reason, hint)
	r.log.Error("fault "+stage, reason, "stage", stage, "hint", hint)
	return f
}

// suspect is block for what was logged already and may turn out to be nothing:
// it is an error from the second time on.
func (r *Reconciler) suspect(stage, reason, hint string) {
	if f := r.stand(stage, reason, hint); f.tries > 0 {
		r.log.Error("fault "+stage, reason, "stage", stage, "hint", hint)
	}
}

// stand makes a fault what stands in the way of stage, until its next try.
func (r *Reconciler) stand(stage, reason, hint string) *fault {
	f := &fault{reason: reason, hint: hint}
	if before := r.faults[stage]; before != nil {
		f.tries, f.deaths = before.tries+1, before.deaths
	}
	f.retryAt = time.Now().Add(backoff(f.tries))
	r.faults[stage] = f
	r.wakeAt(f.retryAt)
	return f
}

// ready reports whether stage may be tried now, and plans the next turn if not.
func (r *Reconciler) ready(stage string) bool {
	f := r.faults[stage]
	if f == nil || !time.Now().Before(f.retryAt) {
		return true
	}
	r.wakeAt(f.retryAt)
	return false
}

// blocked reports whether stage failed and was not done since.
func (r *Reconciler) blocked(stage string) bool { return r.faults[stage] != nil }

// retryDue reports whether stage failed before and its time has come.
func (r *Reconciler) retryDue(stage string) bool { return r.blocked(stage) && r.ready(stage) }

// refused reports whether the engine does not take the state that it is to be
// brought back to, so that waiting alone cures nothing.
func (r *Reconciler) refused() bool { return r.blocked("assert") && r.faults["assert"].refused }

// newEngine says that another process of the engine came while stage assert was
// blocked: one that may take what the one before refused. After the second that
// ended in a try the backoff stays, for they may have died of it.
func (f *fault) newEngine() {
	if f.deaths++; f.deaths < 2 {
		f.retryAt = time.Now()
	}
}

// retryNow lets each failed stage be tried again at once, once.
func (r *Reconciler) retryNow() { r.retryStages(stages...) }

func (r *Reconciler) retryStages(stages ...string) {
	for _, stage := range stages {
		if f := r.faults[stage]; f != nil {
			f.retryAt = time.Now()
		}
	}
}

// clear forgets the faults of the stages.
func (r *Reconciler) clear(stages ...string) {
	for _, stage := range stages {
		if r.blocked(stage) {
			delete(r.faults, stage)
			r.log.Clear("fault " + stage)
		}
	}
}

// obstacles says for the status what stands in the way now, the gravest first;
// "" if nothing does.
func (r *Reconciler) obstacles() (reason, hint string) {
	var reasons, hints []string
	for _, stage := range stages {
		if f := r.faults[stage]; f != nil && !r.overcome(stage) && !slices.Contains(reasons, f.reason) {
			reasons = append(reasons, f.reason)
			if !slices.Contains(hints, f.hint) {
				hints = append(hints, f.hint)
			}
		}
	}
	return strings.Join(reasons, "; "), strings.Join(hints, "; ")
}

// overcome reports whether a fault of stage stood in the way of a change that the
// engine was then read to run.
func (r *Reconciler) overcome(stage string) bool {
	return stage == "send" && r.flight != nil && r.flight.verified
}

// diskFailed notes that the store refused a write.
func (r *Reconciler) diskFailed(stage string, err error, what string) {
	r.writable = false
	r.probed = time.Now()
	if errno := syscall.Errno(0); !errors.As(err, &errno) || errno == syscall.EROFS {
		r.noProbe = err // not the write failed, but the directory is not what it was: a probe finds out when it is
	}
	r.opt.Metrics.StageFailure(stage)
	reason, hint := what+": "+errorText(err), diskHint(err, r.opt.StateDir)+again
	r.stand(stage, reason, hint)
	r.log.ErrorOf("fault "+stage, what+diskKind(err), reason, "stage", stage, "hint", hint)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// A repeater logs the same text under the same key once, then at each tenfold:
// an engine that is down for a night is five lines, not a hundred thousand.
type repeater struct {
	*slog.Logger
	mu   sync.Mutex
	last map[string]repeat
}

type repeat struct {
	text  string
	count int
}

func newRepeater(l *slog.Logger) *repeater {
	return &repeater{Logger: l, last: map[string]repeat{}}
}

// Clear makes the next message under key a new one.
func (p *repeater) Clear(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.last, key)
}

// Event logs what happened, each time; Warn and Error are for what goes on.
func (p *repeater) Event(level slog.Level, text string, args ...any) {
	p.Log(context.Background(), level, text, args...)
}

// Warn logs what goes on wrong, see repeater.
func (p *repeater) Warn(key, text string, args ...any) {
	p.log(slog.LevelWarn, key, text+errorsIn(args), text, args)
}

// Error is Warn for what keeps the agent from its work.
func (p *repeater) Error(key, text string, args ...any) {
	p.log(slog.LevelError, key, text+errorsIn(args), text, args)
}

// WarnOf is Warn for what is the same by its kind, whatever its words.
func (p *repeater) WarnOf(key, kind, text string, args ...any) {
	p.log(slog.LevelWarn, key, kind, text, args)
}

// ErrorOf is Error for what is the same by its kind, whatever its words.
func (p *repeater) ErrorOf(key, kind, text string, args ...any) {
	p.log(slog.LevelError, key, kind, text, args)
}

func errorsIn(args []any) (text string) {
	for _, a := range args {
		if err, ok := a.(error); ok {
			text += err.Error()
		}
	}
	return text
}

func (p *repeater) log(level slog.Level, key, same, text string, args []any) {
	p.mu.Lock()
	seen := p.last[key]
	if seen.text != same {
		seen = repeat{text: same}
	}
	seen.count++
	p.last[key] = seen
	p.mu.Unlock()
	for n := seen.count; n > 1; n /= 10 {
		if n%10 != 0 {
			return
		}
	}
	if seen.count > 1 {
		args = append(slices.Clone(args), "times", seen.count)
	}
	p.Log(context.Background(), level, text, args...)
}
