package gitstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const (
	objectPerm fs.FileMode = 0o444 // as git has it
	refPerm    fs.FileMode = 0o644
)

// blanksWanted is twice what a Commit and its Confirm write: two blobs, a tree and
// a commit; two refs. Where a disk has no inode left, a change is on record that
// way, and what brings the last good state back.
const blanksWanted = 2 * 6

// fansAtOnce is how many of the 256 directories of objects/ one Prepare makes.
const fansAtOnce = 16

// Prepare packs the history, beside, when there is enough to pack, and looks
// whether a gc took something of the newest records. It makes
// the files ahead that the next Commit and Confirm will write,
// and by and by the directories they go to, while nobody waits: to make a file
// is the dearest part of writing a small one, for a file system looks for a free
// inode, which takes ext4 half a millisecond where many were deleted lately. The
// files are not kept open: an agent at rest does not keep its disk from being
// remounted read-only. What fails shows at the Commit. What a crash leaves is
// empty: git does not mind the directories, and the files are swept at open.
func (s *Store) Prepare() {
	if !s.Holding() {
		return
	}
	s.compact()
	s.lookBeside()
	for n := 0; n < fansAtOnce && s.repo.fans < 256; n++ {
		if os.Mkdir(filepath.Join(s.repo.objects(), fmt.Sprintf("%02x", s.repo.fans)), 0o755) == nil {
			s.objects.newDirs = true // the next sync sees to objects/
		}
		s.repo.fans++
	}
	for len(s.repo.blanks) < blanksWanted {
		f, err := createTemp(s.repo.tmp(), refPerm)
		if err != nil || f.Close() != nil {
			return
		}
		s.repo.blanks = append(s.repo.blanks, f.Name())
	}
}

// temp is writeTemp below tmp/, into a file made ahead if there is one.
func (r *repo) temp(data []byte, perm fs.FileMode) (string, error) {
	for len(r.blanks) > 0 {
		last := len(r.blanks) - 1
		path := r.blanks[last]
		r.blanks = r.blanks[:last]
		f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue // somebody has tidied up
		}
		if err != nil {
			return "", err
		}
		if perm != refPerm {
			if err := f.Chmod(perm); err != nil {
				return "", errors.Join(err, f.Close(), os.Remove(path))
			}
		}
		return fillTemp(f, data)
	}
	return writeTemp(r.tmp(), data, perm)
}

// dropBlanks removes what Prepare made and nobody used.
func (r *repo) dropBlanks() {
	for _, path := range r.blanks {
		_ = os.Remove(path)
	}
	r.blanks = nil
}
