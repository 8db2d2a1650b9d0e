package gitstore

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"dtesn-agent/schema/problem"
)

// tempPrefix begins the name of every file that is on its way to another one.
const tempPrefix = "tmp-"

var tempSerial atomic.Uint64

// mkdirBelow makes dir and what is missing between base and it, not base itself:
// where that is gone its disk was unmounted, and nothing is put in its place.
//
// Syscalls: mkdirat for each level.
func mkdirBelow(base, dir string, perm fs.FileMode) error {
	rel, err := filepath.Rel(base, dir)
	if err != nil {
		return err
	}
	at := base
	for part := range strings.SplitSeq(rel, "/") {
		at = filepath.Join(at, part)
		if err := os.Mkdir(at, perm); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// createTemp makes a new file in dir. The repository's tmp/ is made anew if it is
// gone, its other directories are not. A name
// that is taken is what an earlier life left, which had the same pid: in a
// container each has.
//
// Syscalls: openat(O_CREAT|O_EXCL).
func createTemp(dir string, perm fs.FileMode) (*os.File, error) {
	for made := false; ; {
		name := tempPrefix + strconv.Itoa(os.Getpid()) + "-" + strconv.FormatUint(tempSerial.Add(1), 10)
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
		switch {
		case errors.Is(err, fs.ErrExist):
			continue
		case !errors.Is(err, fs.ErrNotExist) || made || filepath.Base(filepath.Dir(dir)) != repoDir:
			return f, err
		}
		if os.Mkdir(dir, 0o700) != nil {
			return nil, err // the repository is gone, too
		}
		made = true
	}
}

// fillTemp writes data to an empty file, closes it and returns its path. What
// could not be written whole is removed.
//
// Syscalls: write, close.
func fillTemp(f *os.File, data []byte) (string, error) {
	_, err := f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// writeTemp writes data to a new file in dir and returns its path. The file is
// not synced. What could not be written whole is removed again.
//
// Syscalls: openat(O_CREAT|O_EXCL), write, close.
func writeTemp(dir string, data []byte, perm fs.FileMode) (string, error) {
	f, err := createTemp(dir, perm)
	if err != nil {
		return "", err
	}
	return fillTemp(f, data)
}

// writeDurable puts data at path as a whole: after a crash the file is the old
// one or the new one, and after the return a power cut keeps the new one.
//
// Syscalls: openat, write, close, fsync (file), renameat, fsync (directory).
func writeDurable(path string, data []byte, perm fs.FileMode) error {
	dir := filepath.Dir(path)
	tmp, err := writeTemp(dir, data, perm)
	if err != nil {
		return err
	}
	if err := syncPath(tmp); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return syncPath(dir)
}

// syncPath syncs a file or a directory: openat(O_RDONLY), fsync, close. The
// error of an earlier write-back of the same file is reported here too.
func syncPath(path string) error {
	f, err := openNow(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	return errors.Join(err, f.Close())
}

// syncPaths syncs files and directories so that a journaling file system makes
// one commit of them rather than one of each: the write-back of all is begun,
// the first is synced, then the rest side by side. A file that is gone is
// reported to missing, not as an error, where missing is given. The joined
// errors are returned.
//
// Syscalls: for each, openat(O_RDONLY) and sync_file_range (which begins
// writing and promises nothing; a directory does not know it); then for each
// fsync, close.
func syncPaths(paths []string, missing func(path string)) error {
	errs := make([]error, len(paths))
	files := make([]*os.File, len(paths))
	for i, path := range paths {
		if files[i], errs[i] = openNow(path); errs[i] == nil {
			_ = unix.SyncFileRange(int(files[i].Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
		}
	}
	var wg sync.WaitGroup
	for i, f := range files {
		switch {
		case errs[i] != nil:
		case i == 0:
			errs[i] = errors.Join(f.Sync(), f.Close())
		default:
			wg.Go(func() { errs[i] = errors.Join(f.Sync(), f.Close()) })
		}
	}
	wg.Wait()
	for i, err := range errs {
		if missing != nil && errors.Is(err, fs.ErrNotExist) {
			missing(paths[i])
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

// errTooLarge says that something is larger than anything this package writes.
var errTooLarge = errors.New("too large")

// errIrregular says that a named pipe, a socket or a device stands where a file
// belongs.
var errIrregular = errors.New("not a regular file")

// openNow opens a file or a directory for reading. A named pipe is not waited
// for, as it would be until somebody writes into it.
//
// Syscalls: openat(O_RDONLY|O_NONBLOCK), which is nothing to a file.
func openNow(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// openRegular opens a file, or a directory. What is neither is errIrregular.
//
// Syscalls: openat(O_RDONLY|O_NONBLOCK), fstat.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	irregular := &fs.PathError{Op: "open", Path: path, Err: errIrregular}
	f, err := openNow(path)
	if errors.Is(err, syscall.ENXIO) { // a socket
		return nil, nil, irregular
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		err = irregular
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// readBounded reads a small file; one that is larger than limit bytes is
// errTooLarge. What is no regular file holds nothing, like one that is torn.
//
// Syscalls: those of openRegular, read, close.
func readBounded(path string, limit int64) ([]byte, error) {
	f, info, err := openRegular(path)
	if errors.Is(err, errIrregular) {
		return []byte{}, nil
	}
	if err != nil {
		return nil, err
	}
	var data []byte
	switch size := info.Size(); {
	case info.IsDir():
		err = &fs.PathError{Op: "read", Path: path, Err: syscall.EISDIR}
	case size > limit:
		err = fmt.Errorf("read %s: %w: over %d bytes", path, errTooLarge, limit)
	default:
		data = make([]byte, size)
		n, rerr := io.ReadFull(f, data)
		if data = data[:n]; !errors.Is(rerr, io.EOF) && !errors.Is(rerr, io.ErrUnexpectedEOF) { // cut short meanwhile
			err = rerr
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return data, nil
}

// stateError returns a failure of the state directory itself, with what to do
// about it.
func stateError(attempt, dir string, err error) error {
	way := "choose another --state"
	switch {
	case errors.Is(err, fs.ErrPermission):
		way = fmt.Sprintf("chown it, so that uid %d can read and write it, or choose another --state", os.Getuid())
	case errors.Is(err, syscall.EROFS):
		way = "mount the file system writable, or choose another --state"
	case errors.Is(err, errIrregular):
		way = "remove what stands where a file belongs, or choose another --state"
	case errors.Is(err, syscall.ENOTDIR):
		way = "remove the file that stands where a directory must be, or choose another --state"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		way = "free space on " + dir
	}
	return &problem.Error{Op: attempt + " state directory", Place: dir, Err: err, Hint: way}
}

// fromDisk reports whether err is the system's, and not a judgement on what a
// file holds.
func fromDisk(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno)
}

// foreign reports whether err is a judgement on a whole object that is not ours.
func foreign(err error) bool { return errors.Is(err, errForeign) }

// unlessCurable is err, unless it is damage or a foreign hand.
func unlessCurable(err error) error {
	if curable(err) {
		return nil
	}
	return err
}

// joined is two errors on one line; the one, if they say the same, or there is no
// other.
func joined(a, b error) error {
	if a == nil || b == nil || a.Error() == b.Error() {
		return cmp.Or(a, b)
	}
	return fmt.Errorf("%w; %w", a, b)
}

func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// glob lists what in dir has a name of the pattern. Unlike filepath.Glob it
// takes dir for what it is, whatever characters it holds.
func glob(dir, pattern string) (paths []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return nil, nil
	}
	for _, e := range entries {
		if ok, err := filepath.Match(pattern, e.Name()); err != nil {
			return nil, err
		} else if ok {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, err
}
