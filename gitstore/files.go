package gitstore

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"dtesn-agent/schema/problem"
)

// tempPrefix begins the name of every file that is on its way to another one.
const tempPrefix = "tmp-"

// tempGlob matches these names: rand.Text has 26 characters.
var tempGlob = tempPrefix + strings.Repeat("[A-Z2-7]", 26)

// writeTemp writes data to a new file in dir, durably if sync is set, and returns its
// path. After an error there is no file.
func writeTemp(dir string, data []byte, perm fs.FileMode, sync bool) (string, error) {
	path := filepath.Join(dir, tempPrefix+rand.Text())
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(path)
		return "", err
	}
	return path, nil
}

// replace puts data at path as a whole, by way of a file in tmpDir; the directory of
// path is made if it is missing. With sync a power cut after the return keeps the data.
func replace(tmpDir, path string, data []byte, perm fs.FileMode, sync bool) error {
	tmp, err := writeTemp(tmpDir, data, perm, sync)
	if err != nil {
		return err
	}
	if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	if sync {
		return syncPath(filepath.Dir(path))
	}
	return nil
}

// writeDurable puts data at path as a whole, durably: after a crash the file is the old
// one or the new one.
func writeDurable(path string, data []byte, perm fs.FileMode) error {
	return replace(filepath.Dir(path), path, data, perm, true)
}

func syncPath(path string) error {
	f, err := openNow(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncPaths syncs files and directories. What is gone is not an error.
func syncPaths(paths []string) error {
	var errs []error
	for _, path := range paths {
		if err := syncPath(path); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// errTooLarge says that something is larger than anything this package writes.
var errTooLarge = errors.New("too large")

// errIrregular says that a pipe, a socket or a device is in the place of a file.
var errIrregular = errors.New("not a regular file")

// openNow opens a file or a directory for reading. It does not wait for the writer of
// a named pipe, which reads as an empty file.
func openNow(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// readBounded reads a small file; one that is larger than limit bytes is errTooLarge.
func readBounded(path string, limit int64) ([]byte, error) {
	data, err := readFirst(path, limit+1)
	if err == nil && int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: %w: over %d bytes", path, errTooLarge, limit)
	}
	return data, err
}

// readFirst reads the first limit bytes of a file, or all of a smaller one.
func readFirst(path string, limit int64) ([]byte, error) {
	f, err := openNow(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// As large as the file: a buffer that grows to the size of a journal is garbage of
	// four times that.
	b := bytes.NewBuffer(make([]byte, 0, min(info.Size(), limit)+bytes.MinRead))
	if _, err = b.ReadFrom(io.LimitReader(f, limit)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// isAbsent reports whether err says that no file is at a path: a directory may be there,
// or a file in the place of its directory.
func isAbsent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP)
}

// exists reports whether there is an entry at path, of whatever kind.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if isAbsent(err) {
		return false, nil
	}
	return err == nil, err
}

// stateError returns a failure of the state directory itself, with a hint.
func stateError(attempt, dir string, err error) error {
	way := "choose another --state"
	switch {
	case errors.Is(err, fs.ErrPermission):
		way = fmt.Sprintf("chown it, so that uid %d can read and write it, or choose another --state", os.Getuid())
	case errors.Is(err, syscall.EBUSY):
		way = "what is in the place of the repository is a mount point: mount the volume with the history there, or unmount it"
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

// fromDisk reports whether err is the system's, and not about what a file holds.
func fromDisk(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno)
}

// glob lists what in dir has a name of the pattern. Unlike in filepath.Glob dir is no
// pattern, and errors are returned.
func glob(dir, pattern string) (paths []string, err error) {
	entries, err := os.ReadDir(dir)
	if isAbsent(err) {
		return nil, nil
	}
	for _, e := range entries {
		if ok, _ := filepath.Match(pattern, e.Name()); ok {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, err
}
