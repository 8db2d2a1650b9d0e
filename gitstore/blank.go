package gitstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// The files that a Commit and its Confirm write, by permissions: a blob twice,
// a tree and a commit; two refs.
var blanksOf = map[fs.FileMode]int{objectPerm: 4, refPerm: 2}

const (
	objectPerm fs.FileMode = 0o444
	refPerm    fs.FileMode = 0o644
)

// A blank is an empty file below tmp/, made ahead and open for writing. To
// make a file is the dearest part of writing a small one: a file system looks
// for a free inode, which takes ext4 half a millisecond where many were deleted
// lately.
type blank struct {
	file *os.File
	path string
}

// fansAtOnce is how many of the 256 directories of objects/ one Prepare makes.
const fansAtOnce = 16

// Prepare packs the history, beside, when there is enough to pack. It makes
// the files ahead that the next Commit and Confirm will write,
// and by and by the directories they go to, while nobody waits. What fails
// shows there. What a crash leaves is empty: git does not mind the directories,
// and the files are swept at open.
func (s *Store) Prepare() {
	s.compact()
	for n := 0; n < fansAtOnce && s.repo.fans < 256; n++ {
		if os.Mkdir(filepath.Join(s.repo.objects(), fmt.Sprintf("%02x", s.repo.fans)), 0o755) == nil {
			s.objects.newDirs = true // the next sync sees to objects/
		}
		s.repo.fans++
	}
	for perm, want := range blanksOf {
		for len(s.repo.blanks[perm]) < want {
			f, err := createTemp(s.repo.tmp(), perm)
			if err != nil {
				return
			}
			s.repo.blanks[perm] = append(s.repo.blanks[perm], blank{f, f.Name()})
		}
	}
}

// temp is writeTemp below tmp/, into a blank if there is one.
func (r *repo) temp(data []byte, perm fs.FileMode) (string, error) {
	for len(r.blanks[perm]) > 0 {
		last := len(r.blanks[perm]) - 1
		b := r.blanks[perm][last]
		r.blanks[perm] = r.blanks[perm][:last]
		info, err := b.file.Stat()
		if err != nil || info.Sys().(*syscall.Stat_t).Nlink == 0 {
			_ = b.file.Close() // somebody has tidied up
			continue
		}
		return fillTemp(b.file, data)
	}
	return writeTemp(r.tmp(), data, perm)
}

// dropBlanks removes what Prepare made and nobody used.
func (r *repo) dropBlanks() {
	for perm, list := range r.blanks {
		for _, b := range list {
			_ = errors.Join(b.file.Close(), os.Remove(b.path))
		}
		delete(r.blanks, perm)
	}
}
