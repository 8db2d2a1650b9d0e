package gitstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	reserveFile = "reserve"
	reserveSize = 1 << 20 // bytes
)

// makeReserve allocates <state>/reserve, so that on a full disk there is space
// for the records that bring the last good state back.
//
// Syscalls: openat(O_CREAT|O_EXCL), fallocate (or write where the file system
// does not know it), close; renameat, so that a short one never bears the name.
func makeReserve(dir string) error {
	path := filepath.Join(dir, reserveFile)
	if info, err := os.Lstat(path); err == nil && info.Size() == reserveSize {
		return nil
	}
	tmp, err := writeTemp(dir, nil, 0o600)
	if err != nil {
		return fmt.Errorf("make the reserve: %w", err)
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY, 0)
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, reserveSize)
		if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
			err = fill(f)
		}
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("make the reserve: %w", err)
	}
	return nil
}

// fill writes bytes that no file system can compress away.
func fill(f *os.File) error {
	var seed [32]byte
	data := make([]byte, reserveSize)
	_, _ = rand.NewChaCha8(seed).Read(data) // it cannot fail
	_, err := f.Write(data)
	return err
}

// withReserve does what must not fail for want of space: on a full disk it
// gives up the reserve and does it again. Only reverts and rollbacks may.
func (s *Store) withReserve(allowed bool, do func() error) error {
	err := do()
	if err == nil || !allowed || !full(err) {
		return err
	}
	path := filepath.Join(s.opts.Dir, reserveFile)
	if rerr := os.Remove(path); rerr != nil {
		return err // it was given up before
	}
	s.noReserve = true
	s.log.Warn("the disk is full: the reserve is given up for this record", "reserve", path)
	return do()
}

// renewReserve makes the reserve again once there is space for it.
func (s *Store) renewReserve() {
	if s.noReserve && makeReserve(s.opts.Dir) == nil {
		s.noReserve = false
		s.log.Info("the reserve is there again", "reserve", filepath.Join(s.opts.Dir, reserveFile))
	}
}

// Probe tries to write into the state directory: it writes and removes a small
// file. On the way it renews the reserve. A directory that was away, or was
// replaced, is read anew; then Head and Applied may be others.
func (s *Store) Probe(ctx context.Context) error {
	if _, err := s.hold(ctx); err != nil {
		return err
	}
	tmp, err := writeTemp(s.opts.Dir, []byte("probe\n"), 0o600)
	if err != nil {
		return stateError("write into", s.opts.Dir, err)
	}
	if err := os.Remove(tmp); err != nil {
		return stateError("remove a file from", s.opts.Dir, err)
	}
	s.renewReserve()
	return s.probeObjects()
}
