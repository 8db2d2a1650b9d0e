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

	"dtesn-agent/schema/problem"
)

const (
	reserveFile = "reserve"
	reserveSize = 1 << 20 // bytes
	// reserveSlice is how much of it is given up at a time, in bytes: a record
	// and its refs take six blocks, and four more where their directories are new.
	reserveSlice = 64 << 10
	reserveStep  = 4 << 10 // the least that it grows by, in bytes
)

// makeReserve allocates <state>/reserve, so that on a full disk there is space
// for the records that bring the last good state back. Where the disk has less
// than is wanted it takes what there is, and returns how many bytes it has.
//
// Syscalls: newfstatat, openat(O_CREAT), fstat, fallocate (or write where the
// file system does not know it), ftruncate, close.
func makeReserve(dir string) (size int64, err error) {
	path := filepath.Join(dir, reserveFile)
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		if err := os.Remove(path); err != nil { // a link: what it leads to is not ours
			return 0, fmt.Errorf("make the reserve: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, fmt.Errorf("make the reserve: %w", err)
	}
	size, err = growReserve(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return size, fmt.Errorf("make the reserve: %w", err)
	}
	return size, nil
}

// growReserve makes the file as large as it should be, or as the disk allows.
func growReserve(f *os.File) (size int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if size = info.Size(); info.Sys().(*syscall.Stat_t).Blocks*512 < size {
		size = 0 // it has holes: it came out of a backup
	}
	for step := int64(reserveSize); size < reserveSize && step >= reserveStep; {
		to := min(size+step, reserveSize)
		err := allocate(f, size, to)
		switch {
		case err == nil:
			size = to
		case full(err):
			step /= 2
		default:
			return size, err
		}
	}
	size = min(size, reserveSize)
	if now, err := f.Stat(); err == nil && now.Size() == size {
		return size, nil
	}
	return size, f.Truncate(size) // what a step that failed left
}

// allocate gives the file the blocks for its bytes from and up to to.
func allocate(f *os.File, from, to int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, from, to-from)
	if !errors.Is(err, syscall.EOPNOTSUPP) && !errors.Is(err, syscall.ENOSYS) {
		return err
	}
	var seed [32]byte
	data := make([]byte, to-from) // that no file system can compress away
	_, _ = rand.NewChaCha8(seed).Read(data)
	_, err = f.WriteAt(data, from)
	return err
}

// withReserve does what must not fail for want of space: on a full disk it gives
// up the reserve, slice by slice, until it is done, and takes what is left of
// the last one back before anybody else does. Only reverts and rollbacks may.
func (s *Store) withReserve(allowed bool, do func() error) error {
	err := do()
	if !allowed || !full(err) {
		return err
	}
	used := false
	for full(err) && s.giveSlice() {
		used = true
		err = do()
	}
	if used {
		left, _ := makeReserve(s.opts.Dir)
		s.log.Warn("the disk is full: this was written into the space kept in reserve", "directory", s.opts.Dir, "left", left)
	}
	if full(err) {
		return problem.New("", fmt.Errorf("%w; the space that is kept in reserve for reverts and rollbacks is used up too", err), "free space on "+s.opts.Dir)
	}
	return err
}

// giveSlice gives a slice of the reserve back to the disk; false if there is
// none left.
func (s *Store) giveSlice() bool {
	path := filepath.Join(s.opts.Dir, reserveFile)
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return false
	}
	s.reserveShort = true
	return os.Truncate(path, max(0, info.Size()-reserveSlice)) == nil
}

// renewReserve makes the reserve whole again once there is space for it.
func (s *Store) renewReserve() {
	if !s.reserveShort {
		return
	}
	size, err := makeReserve(s.opts.Dir)
	if s.reserveShort = err != nil || size < reserveSize; !s.reserveShort {
		s.log.Info("the reserve is there again", "directory", s.opts.Dir)
	}
}

// Probe tries to write into the state directory: it writes and removes a small
// file. On the way it renews the reserve. A directory that was away, or a
// history that was replaced, is read anew, and so is one in which packing met
// damage, to repair it; then Head and Applied may be others.
func (s *Store) Probe(ctx context.Context) error {
	if _, err := s.lookAround(ctx); err != nil {
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
	if err := s.probeObjects(); err != nil {
		return err
	}
	return s.mend(ctx)
}
