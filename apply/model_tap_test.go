package apply_test

import (
	"context"
	"errors"
	"io/fs"
	"runtime"
	"syscall"

	"dtesn-agent/apply"
	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
)

func isGone(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// fence tells the race detector what it cannot see: that the bubble's clock
// lets the test and the agent run one after the other.
func (m *model) fence() {
	if m != nil {
		m.turns.Lock()
		defer m.turns.Unlock()
	}
}

// judged is the store and the engine that a process is given: what passes
// there is told to the model, if there is one.
func (w *world) judged() (apply.Store, apply.Engine) {
	if w.judge == nil {
		return w.store, w.engine
	}
	if w.gate != nil {
		w.judge.gate, w.gate.begins = w.gate, w.judge.mayAsk
	}
	w.judge.begins(w.store.Retried())
	return tappedStore{w.store, w.judge, w.packs}, tappedEngine{w.engine, w.store, w.judge}
}

// loops is more records than ever come of one step: an agent that makes so many
// without a pause would never let the test have its turn, so it is ended.
const loops = 50

// tappedStore tells the model what is written, before and after: after a crash
// or an error too, what truly stands.
type tappedStore struct {
	faulty
	m     *model
	packs bool
}

// Prepare packs, in the worlds that are for it.
func (s tappedStore) Prepare(ctx context.Context, target string) {
	if s.packs {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.Store.Prepare(ctx, target)
	}
}

func (s tappedStore) Commit(ctx context.Context, rec record.Record) (snap *record.Record, err error) {
	s.m.fence()
	if s.m.commits > loops {
		s.m.failf("it commits again and again")
		runtime.Goexit()
	}
	before, e := s.Total(), s.m.mayCommit(rec)
	defer func() {
		if s.Total() > before {
			s.m.committed(e, s.Head())
		}
	}()
	s.m.during(func() { snap, err = s.faulty.Commit(ctx, rec) })
	return snap, err
}

func (s tappedStore) Confirm(ctx context.Context) (err error) {
	s.m.fence()
	s.m.mayConfirm()
	defer func() {
		if a := s.Applied(); a != nil && a.Index == len(s.m.records) {
			s.m.confirmed()
		}
	}()
	s.m.during(func() { err = s.faulty.Confirm(ctx) })
	return err
}

func (s tappedStore) SetRetried(ctx context.Context, on bool) (err error) {
	s.m.fence()
	if s.m.life.cut {
		s.m.failf("the mark of an earlier process was changed to %v", on)
	}
	s.m.during(func() { err = s.faulty.SetRetried(ctx, on) })
	return err
}

// during is one call that may take its time or end the agent.
func (m *model) during(call func()) {
	m.fence()
	m.calls++
	defer func() { m.fence(); m.calls-- }()
	call()
}

// tappedEngine tells the model what is asked, sent and answered.
type tappedEngine struct {
	*scripted
	store faulty
	m     *model
}

func (e tappedEngine) Read(ctx context.Context) (r api.Reading, err error) {
	e.m.during(func() { r, err = e.scripted.Read(ctx) })
	e.m.read(r, err)
	return r, err
}

func (e tappedEngine) Health(ctx context.Context) (h api.Health, err error) {
	e.m.during(func() { h, err = e.scripted.Health(ctx) })
	e.m.health(h, err)
	return h, err
}

func (e tappedEngine) Send(ctx context.Context, b api.Batch) (a api.Answer) {
	e.m.fence()
	e.m.maySend(b, e.store.Retried())
	e.m.during(func() { a = e.scripted.Send(ctx, b) })
	e.m.answered(b, a)
	return a
}
