package gitstore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// To make a file takes ext4 five times as long as to fill and rename one that is there,
// and to replace one ten times as long as to let two change places. So the files of the
// next record are made while nobody waits: four objects and a ref, whose old file serves
// for the other ref.
const spareFiles = 5

// makeSpares makes the spare files that are missing; a kill leaves them.
func (r *repo) makeSpares() {
	for i := range spareFiles {
		path := filepath.Join(r.dir, "spare-"+strconv.Itoa(i))
		if slices.Contains(r.spares, path) {
			continue
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, refPerm)
		if err == nil { // else place does without
			_ = f.Close()
			r.spares = append(r.spares, path)
		}
	}
}

// place puts data at path as a whole, not durably, by way of a spare file if there is
// one.
func (r *repo) place(path string, data []byte, perm fs.FileMode) error {
	if n := len(r.spares); n > 0 {
		spare := r.spares[n-1]
		r.spares = r.spares[:n-1]
		if fill(spare, data, perm) == nil {
			if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && unix.Renameat2(unix.AT_FDCWD, spare, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE) == nil {
				r.spares = append(r.spares, spare)
				return nil
			}
			if os.Rename(spare, path) == nil {
				return nil
			}
		}
		_ = os.Remove(spare)
	}
	return replace(r.dir, path, data, perm, false)
}

// fill overwrites a spare file, unless it is not as it should be: a backup may have
// another name for it, or somebody reads it still as the ref that it was.
func fill(path string, data []byte, perm fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 || st.Size != 0 && st.Size != int64(len(data))) {
		err = fs.ErrInvalid
	}
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil && fs.FileMode(st.Mode).Perm() != perm {
		err = f.Chmod(perm)
	}
	return errors.Join(err, f.Close())
}
