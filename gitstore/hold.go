package gitstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

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
	s.abandonCheckpoint()
	if s.repo != nil {
		s.repo.closePacks()
	}
	lock := s.lock
	s.lock = nil
	s.holding.Store(nil)
	return lock.release(clean)
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
		s.abandonCheckpoint()
		s.repo.closePacks()
		read = s.open
	}
	if err := read(ctx, before); err != nil {
		return false, err
	}
	s.log.Info("history read anew", "directory", s.opts.Dir, "head", idOf(s.head))
	return hashOf(before) != hashOf(s.head), nil
}

// carryHold gives the ledger a note with what the record before held, where another
// history took the place of the one with that record: what an operator holds is not
// forgotten by putting back a backup.
func (s *Store) carryHold(before *record.Record) error {
	if before == nil || hashOf(before) == hashOf(s.head) || s.repo.inHistory(view{head: s.head, first: 1}, hashOf(before)) {
		return nil
	}
	s.repaired(fmt.Sprintf("another history is in the place of the one at %s", idOf(before)), "it goes on from "+idOf(s.head), "")
	switch {
	case s.head == nil:
		return s.lose(fmt.Sprintf("it was replaced by an empty one; it stood at %s", idOf(before)))
	case before.Held == nil:
		return nil
	case s.applied == nil:
		return s.lose("it was replaced by one without " + idOf(before) + ", which had a hold or a pause")
	}
	held, base := *before.Held, s.applied
	held.Entries = slices.Clone(held.Entries)
	if own := s.head.Held; own != nil { // it stays in force, too
		if own.Paused && !held.Paused {
			held.Paused, held.By, held.Reason, held.Since, held.Requester = true, own.By, own.Reason, own.Since, own.Requester
		}
		for _, e := range own.Entries {
			if !slices.ContainsFunc(held.Entries, func(h record.Entry) bool { return h.String() == e.String() }) {
				held.Entries = append(held.Entries, e)
			}
		}
	}
	note := record.Record{
		Kind: record.KindNote, Description: "Carry over the hold of another history", Held: &held, Config: base.Config,
		Source: base.Source, Provenance: base.Provenance, Experiments: base.Experiments, RollbackPoint: base.RollbackPoint,
	}
	if hashOf(s.head) != hashOf(base) {
		note.OutcomeOf = &record.Settlement{ID: s.head.ID, Outcome: record.Superseded}
	}
	snap, err := s.prepare(note)
	if err != nil {
		return fmt.Errorf("carry over a hold: %w", err)
	}
	e, when, err := s.encode(snap)
	if err != nil {
		return fmt.Errorf("carry over a hold: %w", err)
	}
	s.add(snap, e, when)
	return nil
}
