package gitstore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// To make a file takes a file system five times as long as to fill and rename one that
// is there, and to replace one ten times as long as to let two change places (ext4: 200
// µs against 40 for four files, 140 against 10). So the files of the next record are
// made ahead, and a ref changes places with a file that was overwritten.

const (
	spareFiles = 4 // for the objects of a record
	spareRef   = "ref"
	refLength  = 41
)

func (r *repo) spare(name string) string { return filepath.Join(r.tmp(), "spare-"+name) }

// makeSpares makes the spare files that are missing.
func (r *repo) makeSpares() {
	add := func(name string, data []byte) {
		f, err := os.OpenFile(r.spare(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, refPerm)
		if err == nil { // else there is one, or place does without
			_, _ = f.Write(data)
			_ = f.Close()
		}
	}
	for i := range spareFiles {
		add(strconv.Itoa(i), nil)
	}
	add(spareRef, zeroBlock[:refLength])
}

// place puts data at path as a whole, not durably, by way of a spare file if there is
// one. What is in the way is set aside.
func (r *repo) place(path string, data []byte, perm fs.FileMode) error {
	for i := range spareFiles {
		spare := r.spare(strconv.Itoa(i))
		if !fill(spare, 0, data, perm) {
			continue
		}
		if os.Rename(spare, path) == nil {
			return nil
		}
		_ = os.Remove(spare)
		break
	}
	err := replace(r.tmp(), path, data, perm, false)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTDIR) {
		if err = r.clear(path); err == nil {
			err = replace(r.tmp(), path, data, perm, false)
		}
	}
	return err
}

// placeRef is place for a ref, which changes places with the spare one.
func (r *repo) placeRef(path string, data []byte) error {
	spare := r.spare(spareRef)
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || !fill(spare, refLength, data, refPerm) ||
		unix.Renameat2(unix.AT_FDCWD, spare, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE) != nil {
		return r.place(path, data, refPerm)
	}
	return nil
}

// fill overwrites a spare file of size bytes and reports whether it did. One that is
// not as it should be is removed: a backup may have another name for it.
func fill(path string, size int64, data []byte, perm fs.FileMode) bool {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	info, err := f.Stat()
	if err == nil {
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || !info.Mode().IsRegular() || info.Size() != size || st.Nlink != 1 {
			err = fs.ErrInvalid
		}
	}
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil && info.Mode().Perm() != perm {
		err = f.Chmod(perm)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(path)
	}
	return err == nil
}
