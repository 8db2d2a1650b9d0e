package gitstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

// Holding reports whether the state directory is there and this Store's. It may
// be called from any goroutine.
func (s *Store) Holding() bool {
	lock := s.holding.Load()
	return lock != nil && lock.stands()
}

// take takes the lock of the state directory and reads what lies there; before is
// the head that the Store had, nil at the start.
func (s *Store) take(ctx context.Context, before *record.Record) error {
	// Nothing is written before it is clear that the directory is ours.
	err := s.checkOwner()
	if err == nil {
		err = s.checkIdentity()
	}
	if err != nil {
		return err
	}
	lock, err := acquireLock(ctx, s.opts.Dir)
	if err != nil {
		return err
	}
	s.lock = lock
	s.holding.Store(lock)
	if err := s.open(ctx, before); err != nil {
		return errors.Join(err, s.letGo(false))
	}
	return nil
}

// letGo gives back everything that is open below the state directory, the lock
// last. What is known of the history stays known.
func (s *Store) letGo(clean bool) error {
	if s.repo != nil {
		s.repo.closePacks()
	}
	lock, head := s.lock, ""
	if s.ledger != nil {
		head = s.ledger.Head
	}
	s.lock = nil
	s.holding.Store(nil)
	return lock.release(clean, head)
}

// hold makes sure that the state directory is still the one that was locked. A
// disk may have been unmounted, to be repaired; the directory may have been
// removed, moved, or restored from elsewhere. Then what was there is let go, so
// that the disk is free for whoever repairs it, and what is there now is taken
// as at Open. A directory without a history is not: it is what lies below a mount
// point, or somebody is not done yet. A repository that was put in the place of
// this one is taken too.
func (s *Store) hold(ctx context.Context) (anew bool, err error) {
	stands := s.lock != nil && s.lock.stands()
	if stands && !s.reload && !s.repo.isOther(s.ledger) {
		return false, nil
	}
	_ = s.join() // what it could not write is not this directory's
	if s.lock != nil && !stands {
		s.log.Warn("state directory is not the one that was opened", "directory", s.opts.Dir)
		_ = s.letGo(false)
	}
	if _, err := os.Stat(s.repo.dir); !stands && errors.Is(err, fs.ErrNotExist) {
		return false, problem.New("", fmt.Errorf("there is no history in %s any more", s.opts.Dir), "mount its disk or put it back, and the agent goes on with it; to begin a new one, restart the agent")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, stateError("read", s.opts.Dir, err)
	}
	before, read := s.head, s.take
	if stands {
		s.lock.killed = true
		s.repo.closePacks()
		read = s.open
	}
	if err := read(ctx, before); err != nil {
		return false, err
	}
	s.log.Info("history read anew", "directory", s.opts.Dir, "head", idOf(s.head))
	return hashOf(before) != hashOf(s.head), nil
}
