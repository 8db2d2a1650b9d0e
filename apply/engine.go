package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// engineView is what is known of the engine.
type engineView struct {
	reading   api.Reading // the last one; valid while known
	known     bool
	reachable bool
	err       error // of the last try, nil when it went well
	at        time.Time
	due       bool      // ask now
	next      time.Time // ask then at the latest
	// returned: it was gone or its peer changed since it was last seen to run
	// what it should, so what it runs is not drift.
	returned bool
	late     late
	// asserting: a way back is being tried.
	asserting bool
	// foreign counts the tries in a row that met a wrong server; wrongLabel: the
	// last batch was not sent because the engine refused our environment.
	foreign    int
	wrongLabel bool
	// several: readings disagreed, so that there are several engines behind the
	// socket, and no reading is evidence against a candidate. agree counts the
	// readings in a row that said the same.
	several bool
	agree   int
	// differences is how the schema of the engine process compared differs from
	// ours. A process that did not answer, compareTries times, is asked again at
	// compareAt.
	differences  []string
	bounds       map[string]api.Bounds // of the engine process compared
	compared     api.Peer
	compareTries int
	compareAt    time.Time
}

// gone reports whether err says that nobody listens on the socket.
func gone(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// readDue reports whether the engine should be asked now, and plans the next
// turn if not.
func (r *Reconciler) readDue() bool {
	e := &r.engine
	if !e.known || e.due || !time.Now().Before(e.next) {
		return true
	}
	r.wakeAt(e.next)
	return false
}

// read asks the engine what it runs and notes the answer.
func (r *Reconciler) read(ctx context.Context) (api.Reading, error) {
	r.stamp.Store(time.Now().UnixNano())
	call, done := r.orders.interruptible(ctx)
	reading, err := r.opt.Engine.Read(call)
	done()
	now, e := time.Now(), &r.engine
	e.due = false
	if err != nil {
		r.engineFailed("read", err)
		return reading, err
	}
	if !e.reachable && e.known {
		r.log.Event(slog.LevelInfo, "the engine answers again", "socket", r.opt.Socket)
	}
	r.log.Clear("engine")
	if !e.known || reading.Peer != e.reading.Peer {
		e.returned, e.several, e.bounds, e.differences = true, false, nil, nil
		e.compareTries, e.compareAt = 0, time.Time{}
		r.drift = nil // what a new one runs is none
		switch f := r.faults["assert"]; {
		case e.asserting: // it sees for itself
		case f != nil && f.unanswered:
			f.newEngine()
		default:
			r.clear("assert") // it may take what the one before refused
		}
	}
	if reading.Relabelled != "" && !e.returned {
		r.log.Warn("label", "the engine, which did not restart, bore another environment's label and was given ours", "label", reading.Relabelled)
	}
	r.countAgreement(reading)
	e.reading, e.known, e.reachable, e.err, e.at, e.foreign = reading, true, true, nil, now, 0
	e.next = now.Add(r.opt.DriftInterval)
	if e.late.watched() {
		e.next = now.Add(min(lateEvery, r.opt.DriftInterval))
	}
	r.wakeAt(e.next)
	r.opt.Metrics.Success("engine")
	return reading, nil
}

// compareSchema asks a new engine process which values it accepts, so that tighter
// bounds are reported. It is asked once; after an error again, later each time: an
// engine that takes long over it may serve nobody else meanwhile.
func (r *Reconciler) compareSchema(ctx context.Context) {
	e := &r.engine
	if e.reachable && e.compared != e.reading.Peer && !time.Now().Before(e.compareAt) {
		r.stamp.Store(time.Now().UnixNano())
		call, done := r.orders.interruptible(ctx)
		defer done()
		r.orders.mayYield()
		if bounds, err := r.opt.Engine.Bounds(call); err == nil {
			e.compared, e.bounds = e.reading.Peer, bounds
		} else {
			e.compareAt = time.Now().Add(min(compareLeast<<min(e.compareTries, 20), backoffMost))
			e.compareTries++
		}
	}
	unused := func(p schema.Parameter) bool { return !p.Managed && !r.sets(p.Name) }
	differences := api.Compare(slices.DeleteFunc(r.opt.Rules.Parameters(), unused), e.bounds, e.reading)
	for _, name := range slices.Sorted(maps.Keys(e.reading.Mistyped)) {
		differences = append(differences, r.mistypedText(name))
	}
	if !slices.Equal(differences, e.differences) && len(differences) > 0 {
		r.log.Event(slog.LevelWarn, "engine schema differs", "socket", r.opt.Socket, "differences", strings.Join(differences, "; "))
	}
	e.differences = differences
}

// engineFailed notes that the engine could not be asked or told, and plans the
// next try: soon when nobody listens, for its first answer must find us.
func (r *Reconciler) engineFailed(stage string, err error) {
	e := &r.engine
	e.reachable, e.err = false, err
	wait := lateEvery
	var foreign *api.ForeignError
	switch {
	case gone(err):
		e.returned = true
		wait = engineDownPoll
	case errors.As(err, &foreign):
		// A reading costs little, and the right server may come at any time.
		wait = min(backoff(e.foreign), max(r.opt.DriftInterval, backoffLeast))
		e.foreign++
	}
	e.next, e.due = time.Now().Add(wait), false
	r.wakeAt(e.next)
	r.opt.Metrics.StageFailure(stage)
	_, hint := waitingText(err)
	r.log.Warn("engine", "the engine cannot be asked", "socket", r.opt.Socket, "error", err, "hint", hint)
}

// send brings a snapshot's Parameters to the engine.
func (r *Reconciler) send(ctx context.Context, s *record.Record) api.Answer {
	r.stamp.Store(time.Now().UnixNano())
	call, done := r.orders.interruptible(ctx)
	answer := r.opt.Engine.Send(call, api.Batch{
		Parameters: r.known(s.Config), Description: s.Description, SnapshotID: s.ID, Revision: s.Commit,
	})
	done()
	e := &r.engine
	var wrong *api.ForeignError
	e.wrongLabel = errors.As(answer.Err, &wrong) && wrong.Environment
	switch answer.Verdict {
	case api.VerdictNotSent:
		r.engineFailed("send", answer.Err)
	case api.VerdictUnknown:
		e.late.mayCome(r.known(s.Config))
		e.due = true
		r.opt.Metrics.StageFailure("send")
		r.log.Warn("send", "the engine's answer is not known; asking what it runs", "error", answer.Err)
	case api.VerdictForeign:
		e.err = answer.Err
		r.opt.Metrics.StageFailure("send")
	default:
		r.log.Clear("send")
	}
	return answer
}

// runsSince notes that the engine runs p from now on; again says that it did
// not in between, though it ran the same before.
func (r *Reconciler) runsSince(p schema.Parameters, again bool) {
	if again || !r.same(r.since.config, p) || r.since.at == 0 {
		r.since.config, r.since.at = p, record.Unix(time.Now())
	}
}

// patient is how many times in a row the engine may fail to take the state that
// it is brought back to, before that counts as a refusal: waiting does not help.
const patient = 2

// assert makes the engine run the snapshot s: send, read back, no commit. When
// it fails, what stands in the way is noted and a later try planned.
func (r *Reconciler) assert(ctx context.Context, s *record.Record) bool {
	if r.rival() {
		return false // it is the other agent's
	}
	if unknown := r.unknownToEngine(s.Config); unknown != nil {
		part := *s // it is brought back as far as it knows the parameters
		part.Config = part.Config.Select(func(name string) bool { return !slices.Contains(unknown, name) })
		if s = &part; part.Config.Len() == 0 {
			reason, hint := r.unknownText(unknown)
			r.block("assert", reason, hint).refused = true // waiting does not help
			return false
		}
	}
	answered, peer := r.engine.reachable, r.engine.reading.Peer
	r.engine.asserting = true
	defer func() { r.engine.asserting = false }()
	answer := r.send(ctx, s)
	const goesOn = again + "; a valid document that is declared takes its place"
	reason, hint := "", cmp.Or(problem.Hint(answer.Err), "the engine's log says more")+goesOn
	switch answer.Verdict {
	case api.VerdictNotSent:
		if answered && !gone(answer.Err) { // it can be read, and does not take anything
			r.block("assert", s.ID+" was not sent to the engine, which runs something else: "+answer.Err.Error(), hint)
		}
		return false // else engineFailed has planned the next try
	case api.VerdictRejected:
		reason = "the engine refuses " + s.ID + ": " + strings.Join(answer.Errors, "; ")
		hint = "declare a configuration that this engine can hold, or give it what it had when this one was applied"
	case api.VerdictForeign:
		reason, hint = answer.Err.Error(), foreignHint(answer.Err)
	default:
		reading, err := r.read(ctx)
		if err == nil && !r.runs(reading, s.Config) {
			reading, err = r.readAgain(ctx, reading)
		}
		switch {
		case errors.Is(err, errOrder):
			return false
		case err != nil:
			reason = "the engine was sent " + s.ID + " and does not answer since: " + err.Error()
			hint = cmp.Or(problem.Hint(err), "the engine's log says more") + goesOn
		case r.runs(reading, s.Config):
			r.clear("assert")
			r.log.Event(slog.LevelInfo, "the engine was brought to a recorded state", "snapshot", s.ID)
			return true
		case r.engine.several:
			r.block("assert", severalReason, severalHint)
			return false
		default:
			reason = "the engine does not run " + s.ID + " after it was sent: " + changesText(r.differences(reading, s.Config))
			if answer.Err != nil {
				reason += "; " + answer.Err.Error()
			}
		}
	}
	r.opt.Metrics.StageFailure("assert")
	f := r.block("assert", reason, hint)
	f.unanswered = answer.Verdict == api.VerdictUnknown || !r.engine.reachable
	if f.unanswered && r.engine.reachable && r.engine.reading.Peer != peer {
		f.newEngine()
	}
	f.refused = answer.Verdict == api.VerdictRejected || answer.Verdict != api.VerdictForeign && f.tries >= patient
	return false
}

// changesText is a list of changes on one line.
func changesText(changes []schema.Change) string {
	texts := make([]string, len(changes))
	for i, c := range changes {
		texts[i] = fmt.Sprintf("%s %v -> %v", c.Parameter, c.Old, c.New)
	}
	return strings.Join(texts, ", ")
}
