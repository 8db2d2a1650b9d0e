package gitstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"dtesn-agent/schema/problem"
)

// Holding reports whether the state directory is there and this Store's. It may
// be called from any goroutine.
func (s *Store) Holding() bool {
	lock := s.holding.Load()
	return lock != nil && lock.stands()
}

// take takes the lock of the state directory and reads what lies there.
func (s *Store) take(ctx context.Context) error {
	if err := s.clearLock(ctx); err != nil {
		return err
	}
	lock, err := acquireLock(ctx, s.opts.Dir)
	if err != nil {
		return err
	}
	s.lock = lock
	s.holding.Store(lock)
	if err := s.open(ctx); err != nil {
		return errors.Join(err, s.letGo(false))
	}
	if lock.cut { // all that it left was looked for
		lock.marking.Wait()
		if err := lock.mark(lock.boot); err != nil {
			return errors.Join(stateError("write the lock of", s.opts.Dir, err), s.letGo(false))
		}
	}
	return nil
}

// letGo gives back everything that is open below the state directory, the lock
// last. What is known of the history stays known.
func (s *Store) letGo(clean bool) error {
	s.abandonCompaction()
	s.repo.closePacks()
	lock := s.lock
	s.lock = nil
	s.holding.Store(nil)
	return lock.release(clean)
}

// hold makes sure that the state directory is still the one that was locked. A
// disk may have been unmounted, to be repaired; the directory may have been
// removed, moved, or restored from elsewhere. Then what was there is let go, so
// that the disk is free for whoever repairs it, and what is there now is taken
// as at Open and read anew. A directory without a history is not: it is what
// lies below a mount point, or somebody is not done yet.
//
// Syscalls: newfstatat of the lock's path, fstat.
func (s *Store) hold(ctx context.Context) (anew bool, err error) {
	if s.lock != nil && s.lock.stands() {
		return false, nil
	}
	if s.lock != nil {
		s.log.Warn("the state directory is not the one that was opened: its disk was unmounted, or it was moved or replaced", "directory", s.opts.Dir)
		_ = s.letGo(false)
	}
	if _, err := os.Stat(s.repo.dir); errors.Is(err, fs.ErrNotExist) {
		return false, problem.New("", fmt.Errorf("there is no history in %s any more", s.opts.Dir), "mount its disk or put it back, and the agent goes on with it; to begin a new one, restart the agent")
	} else if err != nil {
		return false, stateError("read", s.opts.Dir, err)
	}
	before := s.head
	if err := s.readAnew(func() error { return s.take(ctx) }); err != nil {
		return false, err
	}
	s.log.Info("the state directory is there again, and was read anew", "directory", s.opts.Dir, "head", idOf(s.head))
	return true, s.changed(ctx, "the state directory was replaced while the agent ran", before)
}

// readAnew forgets what is known of the repository and reads it by read. If that
// fails, what was known stays known, whole; who wants to write reads again.
func (s *Store) readAnew(read func() error) error {
	was := s.standing
	s.forget()
	if err := read(); err != nil {
		s.standing = was
		return err
	}
	return nil
}

// forget forgets all that is known of the repository.
func (s *Store) forget() {
	s.standing = standing{repo: newRepo(s.opts.Dir, s.opts.Environment)}
	s.objects = objectWriter{repo: s.repo, setAside: s.setTornAside, clear: s.clearPlace}
}

// Close gives the lock up. The Store must not be used afterwards. What is
// committed and not confirmed stays pending, as after a kill.
func (s *Store) Close() error {
	if s.lock == nil {
		return nil
	}
	s.settleCompaction()
	s.repo.dropBlanks()
	return s.letGo(len(s.objects.unsynced) == 0)
}
