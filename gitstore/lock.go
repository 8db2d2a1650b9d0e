package gitstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

const (
	lockFile   = "lock"
	bootIDFile = "/proc/sys/kernel/random/boot_id"
)

// A writerLock is the flock on <state>/lock, held by its descriptor, so that
// the kernel releases it however the process ends. The file's content is for
// people and for the next writer: the pid, and the boot in which it ran; it is
// emptied by a clean release.
type writerLock struct {
	file *os.File // open for reading only: else the disk could not be remounted read-only
	path string
	// marking is the sync of the content: a power cut that took it would look
	// like a clean release.
	marking sync.WaitGroup
	// killed: the last holder did not release the lock.
	killed bool
	// cut: the last holder neither released the lock nor ran in this boot, so
	// that what it had not synced may be torn.
	cut  bool
	boot string // this one
}

// lockWait is how long a lock that is held is waited for: an agent that was
// killed a moment ago holds it until the kernel is done with it.
const lockWait, lockRetry = time.Second, 20 * time.Millisecond

// flock takes the lock of f, waiting for it a little.
func flock(ctx context.Context, f *os.File) error {
	for start := time.Now(); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Since(start) > lockWait {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockRetry):
		}
	}
}

// openLocked opens the file at path, makes it if need be, and takes its lock.
func openLocked(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		// It is not set aside: another agent may be doing that, and hold the next.
		return nil, errors.Join(&fs.PathError{Op: "open", Path: path, Err: errIrregular}, err, f.Close())
	}
	err = flock(ctx, f)
	if errors.Is(err, unix.EBADF) { // NFS locks only what may be written
		_ = f.Close()
		if f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
			return nil, err
		}
		err = flock(ctx, f)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// clearLock sets aside what is no regular file where the lock belongs. Those who
// do so, and only they, hold the lock of the directory itself meanwhile: nobody's
// lock file is moved away that was made a moment ago.
func (s *Store) clearLock(ctx context.Context) error {
	path := filepath.Join(s.opts.Dir, lockFile)
	odd := func() (mode fs.FileMode, odd bool) {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ELOOP) { // a link to nothing, or nothing
			info, err = os.Lstat(path)
		}
		if err != nil {
			return 0, false
		}
		return info.Mode(), !info.Mode().IsRegular()
	}
	if _, is := odd(); !is {
		return nil
	}
	dir, err := os.Open(s.opts.Dir)
	if err == nil {
		defer func() { _ = dir.Close() }()
		err = flock(ctx, dir)
	}
	if mode, is := odd(); err == nil && is {
		var kept string
		if kept, err = s.setAside(path, "lock-is-"+dashed(kindOf(mode))); err == nil {
			s.repaired(kindOf(mode)+" where "+lockFile+" belongs", "set aside", kept)
		}
	}
	if err != nil {
		return stateError("clear the lock of", s.opts.Dir, err)
	}
	return nil
}

// acquireLock takes the lock of the state directory, or says who holds it.
func acquireLock(ctx context.Context, dir string) (*writerLock, error) {
	path := filepath.Join(dir, lockFile)
	f, err := openLocked(ctx, path)
	held, _ := readBounded(path, maxRef)
	pid, boot, _ := strings.Cut(strings.TrimSpace(string(held)), " ")
	var atPath *fs.PathError
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		if pid == "" {
			pid = "unknown"
		}
		return nil, problem.New("", fmt.Errorf("state directory %s %w (pid %s)", dir, record.ErrInUse, pid), "stop that one, or choose another --state")
	case ctx.Err() != nil:
		return nil, fmt.Errorf("stopped while waiting for the lock of state directory %s: %w", dir, err)
	case errors.As(err, &atPath):
		return nil, stateError("open the lock of", dir, err)
	case err != nil:
		return nil, &problem.Error{Op: "lock", Place: path, Err: err, Hint: "choose a --state on a file system that knows flock"}
	}
	now, _ := os.ReadFile(bootIDFile)
	thisBoot := strings.TrimSpace(string(now))
	l := &writerLock{file: f, path: path, killed: pid != "", cut: pid != "" && boot != thisBoot, boot: thisBoot}
	if !l.cut {
		boot = thisBoot
	}
	if err := l.mark(boot); err != nil {
		_ = f.Close()
		return nil, stateError("write the lock of", dir, err)
	}
	return l, nil
}

// mark writes who holds the lock, and in which boot: after a power cut the one
// before, until what that left was looked for.
func (l *writerLock) mark(boot string) error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_TRUNC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	// The content is a help, not the lock: a full disk must not keep the agent
	// from starting.
	_, _ = f.WriteString(strconv.Itoa(os.Getpid()) + " " + boot + "\n")
	l.marking.Go(func() { _ = errors.Join(f.Sync(), f.Close()) }) // beside the rest of the start; Open waits for it
	return nil
}

// stands reports whether the path still leads to the file that is locked: not,
// if the disk was unmounted, or the directory moved, removed or replaced.
//
// Syscalls: newfstatat of the path, fstat of the file.
func (l *writerLock) stands() bool {
	there, err := os.Stat(l.path)
	if err != nil {
		return false
	}
	ours, err := l.file.Stat()
	return err == nil && os.SameFile(there, ours)
}

// release empties the file and gives the lock up. clean false leaves the
// content, so that the next writer looks more closely.
func (l *writerLock) release(clean bool) error {
	l.marking.Wait()
	if clean && l.stands() {
		_ = os.Truncate(l.path, 0)
	}
	return l.file.Close()
}
