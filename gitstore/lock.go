package gitstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

// cleanStop is how the lock file begins after one.
const lockFile, cleanStop = "lock", "stopped"

// A writerLock is the flock on <state>/lock, which the kernel releases however the
// process ends. The file's content is the pid, or cleanStop and the head commit.
type writerLock struct {
	file *os.File // open for reading only: else the disk could not be remounted read-only
	path string
	// marking is the sync of the content, without which a power cut would look like a
	// clean release.
	marking sync.WaitGroup
	killed  bool   // the last holder did not release the lock
	head    string // the head commit at the clean stop, "" if not known
}

// lockWait is how long a lock that is held is waited for: an agent that was killed a
// moment ago still has it.
const lockWait, lockRetry = time.Second, 20 * time.Millisecond

// flock takes the lock of f, waiting for it a little.
func flock(ctx context.Context, f *os.File) error {
	for start := time.Now(); ; time.Sleep(lockRetry) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Since(start) > lockWait || ctx.Err() != nil {
			return err
		}
	}
}

// openLocked opens the file at path, makes it if need be, and takes its lock.
func openLocked(ctx context.Context, path string) (*os.File, error) {
	for _, mode := range []int{os.O_RDONLY | os.O_CREATE, os.O_RDWR} { // NFS locks only what may be written
		f, err := os.OpenFile(path, mode|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if info, serr := f.Stat(); serr != nil || !info.Mode().IsRegular() {
			err = errors.Join(&fs.PathError{Op: "open", Path: path, Err: errIrregular}, serr)
		} else if err = flock(ctx, f); err == nil {
			return f, nil
		}
		if err = errors.Join(err, f.Close()); !errors.Is(err, unix.EBADF) {
			return nil, err
		}
	}
	return nil, unix.EBADF
}

// acquireLock takes the lock of the state directory, or says who holds it.
func acquireLock(ctx context.Context, dir string) (*writerLock, error) {
	path := filepath.Join(dir, lockFile)
	f, err := openLocked(ctx, path)
	held, _ := readBounded(path, maxRef)
	pid, head, _ := strings.Cut(strings.TrimSpace(string(held)), " ") // an earlier version wrote more
	var atPath *fs.PathError
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("wait for the lock of state directory %s: %w", dir, ctx.Err())
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, problem.New("", fmt.Errorf("state directory %s %w (pid %s)", dir, record.ErrInUse, cmp.Or(strings.TrimPrefix(pid, cleanStop), "unknown")), "stop that one, or choose another --state")
	case errors.As(err, &atPath):
		return nil, stateError("open the lock of", dir, err)
	case err != nil:
		return nil, &problem.Error{Op: "lock", Place: path, Err: err, Hint: "choose a --state on a file system that knows flock"}
	}
	l := &writerLock{file: f, path: path, killed: pid != cleanStop}
	if !l.killed {
		l.head = head
	}
	w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		_ = f.Close()
		return nil, stateError("write the lock of", dir, err)
	}
	// A full disk must not keep the agent from starting, nor from being found killed.
	n, _ := w.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	_ = w.Truncate(int64(n))
	l.marking.Go(func() { _ = errors.Join(w.Sync(), w.Close()) }) // beside the rest of the start; Open waits for it
	return l, nil
}

// stands reports whether the path still leads to the file that is locked: the disk may
// have been unmounted, or the directory moved, removed or replaced.
func (l *writerLock) stands() bool {
	there, err := os.Stat(l.path)
	if err != nil {
		return false
	}
	ours, err := l.file.Stat()
	return err == nil && os.SameFile(there, ours)
}

// release gives the lock up, after a clean stop at the commit head. Unless clean the
// content stays, so that the next writer looks more closely.
func (l *writerLock) release(clean bool, head string) error {
	l.marking.Wait()
	if clean && l.stands() {
		_ = os.WriteFile(l.path, []byte(cleanStop+" "+head+"\n"), 0o600)
	}
	return l.file.Close()
}

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
	err := CheckOwner(s.opts.Dir)
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
	s.abandonCheckpoint()
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

// reacquire makes sure that the state directory is still the one that was locked. If it
// was unmounted, moved or replaced, it is let go, so that the disk is free for whoever
// repairs it, and what is there now is taken as at Open. A directory without a history
// is not: it is what lies below a mount point, or somebody is not done yet.
func (s *Store) reacquire(ctx context.Context) (anew bool, err error) {
	stands := s.lock != nil && s.lock.stands()
	if stands {
		if err := CheckOwner(s.opts.Dir); err != nil {
			return false, err
		}
	}
	if stands && !s.reload && !s.repo.isOther(s.ledger) {
		return false, nil
	}
	_ = s.join() // what it could not write is not this directory's
	s.abandonCheckpoint()
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
