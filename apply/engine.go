package apply

import (
	"cmp"
	"context"
	"errors"
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

// isGone reports whether err means that nobody listens on the socket.
func isGone(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

func (r *Reconciler) read(ctx context.Context) (api.Reading, error) {
	r.stamp.Store(time.Now().UnixNano())
	call, done := r.calls.begin(ctx, r.state.pending == nil && r.state.isSettled())
	reading, err := r.opt.Engine.Read(call)
	done()
	if err != nil {
		r.state.foldEngineFailed("read", err, time.Now())
	} else {
		r.state.foldReading(reading, time.Now())
	}
	return reading, err
}

func (s *State) foldReading(reading api.Reading, now time.Time) {
	e := &s.engine
	if !e.lost.IsZero() {
		up := Event{Type: EventEngineUp}
		if e.known {
			up.Level, up.Text, up.Attrs = slog.LevelInfo, "the engine answers again", []any{"socket", s.opt.Socket}
		}
		s.emit(up)
	}
	s.endRepeat("engine")
	if !e.known || reading.Peer != e.reading.Peer {
		e.returned, e.several, e.bounds, e.differences = true, false, nil, nil
		e.tries, e.retryAt = 0, time.Time{}
		s.endDrift(now) // what a new process runs is not drift
		if f := s.faults[stageSend]; f != nil && f.server {
			s.clear(stageSend) // it may be another server
		}
		switch f := s.faults[stageAssert]; {
		case e.asserting: // see foldAssert
		case f != nil && f.unanswered:
			f.newEngine(0)
		default:
			s.clear(stageAssert) // it may accept what the one before refused
		}
	}
	if reading.Relabelled != "" && !e.returned {
		s.repeat(slog.LevelWarn, "label", "the engine, which did not restart, bore another environment's label and was given ours", "label", reading.Relabelled)
	}
	s.countAgreement(reading)
	e.reading, e.known, e.reachable, e.err, e.at, e.foreign = reading, true, true, nil, now, 0
	e.due, e.lost = false, time.Time{}
	e.unchecked, e.reread, e.noted = true, false, false
	e.next = now.Add(s.opt.DriftInterval)
	if reading.Building != nil && e.lastSent.Len() > 0 {
		e.inflight.add(e.lastSent, now) // it may be ours, and lands after it was accepted
	}
	if now.Before(e.inflight.until) || reading.Building != nil {
		e.next = now.Add(min(lateEvery, s.opt.DriftInterval))
	}
	if e.since.at == 0 { // it ran when this process came; the record says since when
		if rec := s.runningRecord(); rec != nil {
			e.since = runsSince{rec.Config, rec.Timestamp}
		}
	}
	s.succeeded("engine")
}

// runningRecord returns the applied record or the head if the engine was last read to run
// it, nil if it runs neither.
func (s *State) runningRecord() *record.Record {
	e := &s.engine
	switch {
	case e.known && s.applied != nil && s.runsKnown(e.reading, s.applied.Config):
		return s.applied
	case e.known && s.head != nil && s.runsAll(e.reading, s.head.Config):
		return s.head
	}
	return nil
}

// runsSince notes that the engine runs p from now on. again: it did not in between,
// though it ran the same before.
func (s *State) runsSince(p schema.Parameters, again bool, now time.Time) {
	if since := &s.engine.since; again || !s.same(since.config, p) || since.at == 0 {
		*since = runsSince{p, record.Unix(now)}
	}
}

// foldEngineFailed notes that the engine could not be read or sent to, and plans the next
// reading: soon when nobody listens, for its first response must find the agent.
func (s *State) foldEngineFailed(stage string, err error, now time.Time) {
	e := &s.engine
	if errors.Is(err, errStopped) {
		e.due = false
		return // that says nothing about the engine
	}
	line := Event{Type: EventLine, Key: "engine", Level: slog.LevelWarn, Text: "the engine cannot be asked"}
	if e.lost.IsZero() {
		e.lost, line.Type = now, EventEngineDown
	}
	e.reachable, e.err, e.unchecked, e.due = false, err, false, false
	wait := lateEvery
	var foreign *api.ForeignError
	var later *api.LaterError
	switch {
	case errors.As(err, &later):
		wait = max(wait, later.Until.Sub(now))
	case isGone(err):
		e.returned = true
		wait = engineDownPoll
	case errors.As(err, &foreign):
		// A reading costs little, and the right server may come at any time.
		wait = min(backoff(e.foreign), max(s.opt.DriftInterval, backoffLeast))
		e.foreign++
	}
	e.next = now.Add(wait)
	s.failed(stage)
	line.Attrs, line.Same = []any{"socket", s.opt.Socket, "error", err, "hint", waitingProblem(err).Hint}, line.Text+err.Error()
	s.emit(line)
}

// readAgain reads the engine a few times more, each on a fresh connection. One engine may
// have been changed in between, once. A state that comes back after another one was read
// is another engine's. An order or a stop does not wait for all of the readings.
func (r *Reconciler) readAgain(ctx context.Context) error {
	e := &r.state.engine
	last := e.reading
	var before []schema.Parameters // states that were read before the last one
	for range moreReadings {
		if r.calls.isAwaited() || r.stopping.Load() {
			e.due, e.unchecked = true, false
			return errInterrupted
		}
		next, err := r.read(ctx)
		if err != nil {
			return err
		}
		if next.Peer != last.Peer {
			break // another process: nothing to compare
		}
		if runs := r.state.managed(next); !runs.Equal(r.state.managed(last)) {
			before = append(before, r.state.managed(last))
			if slices.ContainsFunc(before, runs.Equal) {
				e.several = true
			}
		}
		last = next
	}
	if e.reread = true; e.several && !r.state.isCandidateOpen() {
		r.state.repeat(slog.LevelWarn, "several", errSeveral.Error(), "hint", errSeveral.Hint)
	}
	return nil
}

// compareEngine asks a new engine process which values it accepts, so that tighter bounds
// are reported. It is asked once; after an error again, later each time: an engine that
// takes long over it may serve nobody else meanwhile.
func (r *Reconciler) compareEngine(ctx context.Context) {
	e := &r.state.engine
	call, done := r.calls.begin(ctx, true)
	bounds, err := r.opt.Engine.Bounds(call)
	done()
	if err != nil {
		e.retryAt = time.Now().Add(double(compareLeast, e.tries))
		e.tries++
		return
	}
	e.peer, e.bounds = e.reading.Peer, bounds
	r.state.foldBounds()
}

// foldBounds notes how the engine's schema differs from the agent's.
func (s *State) foldBounds() {
	e := &s.engine
	if !e.reachable || s.isRival() {
		return
	}
	unused := func(p schema.Parameter) bool { return !p.Managed && !s.sets(p.Name) }
	differences := api.Compare(slices.DeleteFunc(s.opt.Rules.Parameters(), unused), e.bounds, e.reading)
	for _, name := range slices.Sorted(maps.Keys(e.reading.Mistyped)) {
		differences = append(differences, s.mistypedText(name))
	}
	if slices.Equal(differences, e.differences) {
		return
	}
	e.differences, s.changed = differences, true
	if len(differences) > 0 {
		s.log(slog.LevelWarn, "engine schema differs", "socket", s.opt.Socket, "differences", strings.Join(differences, "; "))
	}
}

func (r *Reconciler) sendRecord(ctx context.Context, rec *record.Record) api.Answer {
	r.publish() // the engine may take its time
	r.stamp.Store(time.Now().UnixNano())
	s, e := r.state, &r.state.engine
	call, done := r.calls.begin(ctx, false)
	answer := r.opt.Engine.Send(call, api.Batch{
		Parameters: s.known(rec.Config), Description: rec.Description, SnapshotID: rec.ID, Revision: rec.Commit,
	})
	done()
	e.unchecked, e.lastSent = false, s.known(rec.Config)
	var wrong *api.ForeignError
	e.wrongLabel = errors.As(answer.Err, &wrong) && wrong.Environment
	switch answer.Verdict {
	case api.VerdictNotSent:
		s.foldEngineFailed("send", answer.Err, time.Now())
	case api.VerdictUnknown:
		e.inflight.add(s.known(rec.Config), time.Now())
		e.due = true
		s.failed("send")
		s.repeat(slog.LevelWarn, "send", "the engine's answer is not known; asking what it runs", "error", answer.Err)
	case api.VerdictForeign:
		e.err = answer.Err
		s.failed("send")
	default:
		s.endRepeat("send")
	}
	return answer
}

// maxRestoreFailures is how many times in a row the engine may fail to take the state that it is
// brought back to, before that counts as a refusal: waiting does not help.
const maxRestoreFailures = 2

// assert makes the engine run a recorded state: it is sent and read back, without a
// commit. When that fails, why is noted and a later try planned.
func (r *Reconciler) assert(ctx context.Context, rec *record.Record) (done bool) {
	s, e := r.state, &r.state.engine
	defer func() { e.unchecked = false }()
	if unknown := s.unknownToEngine(rec.Config); unknown != nil {
		part := *rec // it is brought back as far as it knows the parameters
		part.Config = part.Config.Select(func(name string) bool { return !slices.Contains(unknown, name) })
		if rec = &part; part.Config.Len() == 0 {
			s.block(stageAssert, s.unknownProblem(unknown)).refused = true // waiting does not help
			return false
		}
	}
	wasReachable, peer := e.reachable, e.reading.Peer
	e.asserting = true
	defer func() { e.asserting = false }()
	answer := r.sendRecord(ctx, rec)
	failure := func(reason string, err error) *problem.Error {
		hint := cmp.Or(problem.Hint(err), "the engine's log says more")
		return newProblem(reason, hint+again+"; a valid document that is declared takes its place")
	}
	var why *problem.Error
	switch answer.Verdict {
	case api.VerdictNotSent:
		if wasReachable && !isGone(answer.Err) { // it can be read, and does not accept anything
			s.block(stageAssert, failure(rec.ID+" was not sent to the engine, which runs something else: "+answer.Err.Error(), answer.Err))
		}
		return false // else foldEngineFailed has planned the next try
	case api.VerdictRejected:
		why = newProblem("the engine refuses "+rec.ID+": "+strings.Join(answer.Errors, "; "),
			"declare a configuration that this engine can hold, or give it what it had when this one was applied")
	case api.VerdictForeign:
		why = foreignProblem(answer.Err)
	default:
		_, err := r.read(ctx)
		if err == nil && !s.runsAll(e.reading, rec.Config) && !e.isBuilding() {
			err = r.readAgain(ctx)
		}
		switch {
		case err == nil && e.isBuilding():
			return false // it is waited for
		case errors.Is(err, errInterrupted):
			f := s.blockQuietly(stageAssert, newProblem("what the engine runs since it was sent "+rec.ID+" is not known yet", "the agent reads it again"))
			f.tries = max(0, f.tries-1) // an order is no failure
			return false
		case err != nil:
			why = failure("the engine was sent "+rec.ID+" and does not answer since: "+err.Error(), err)
		case s.runsAll(e.reading, rec.Config):
			s.clear(stageAssert)
			s.log(slog.LevelInfo, "the engine was brought to a recorded state", "snapshot", rec.ID)
			return true
		case e.several:
			s.block(stageAssert, errSeveral)
			return false
		default:
			reason := "the engine does not run " + rec.ID + " after it was sent: " + changesText(s.differences(e.reading, rec.Config))
			if answer.Err != nil {
				reason += "; " + answer.Err.Error()
			}
			why = failure(reason, answer.Err)
		}
	}
	s.failed("assert")
	f := s.block(stageAssert, why)
	f.unanswered = answer.Verdict == api.VerdictUnknown || !e.reachable
	if f.unanswered && e.reachable && e.reading.Peer != peer {
		f.newEngine(engineDownPoll)
	}
	f.refused = answer.Verdict == api.VerdictRejected || answer.Verdict != api.VerdictForeign && f.tries >= maxRestoreFailures
	return false
}

// countAgreement counts how many readings in a row agreed. It is called before the
// reading is noted.
func (s *State) countAgreement(reading api.Reading) {
	e := &s.engine
	if !e.known || reading.Peer != e.reading.Peer || !s.managed(reading).Equal(s.managed(e.reading)) {
		e.agree = 0
	}
	if e.agree++; e.several && e.agree >= agreement {
		e.several = false
		s.endRepeat("several")
		s.log(slog.LevelInfo, "the readings agree again")
	}
}
