package gitstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// makeSetAside makes the directory for what is set aside. Something else of its
// name is moved out of the way, beside it.
func (s *Store) makeSetAside() (string, error) {
	dir := filepath.Join(s.opts.Dir, setAsideDir)
	err := os.MkdirAll(dir, 0o700)
	if !errors.Is(err, syscall.ENOTDIR) && !errors.Is(err, fs.ErrExist) && !errors.Is(err, syscall.ELOOP) {
		return dir, err
	}
	beside := dir + "-is-a-file-" + s.stamp()
	if err := os.Rename(dir, beside); err != nil {
		return "", err
	}
	s.repaired("a file where the directory "+setAsideDir+" belongs", "moved beside", beside)
	return dir, os.Mkdir(dir, 0o700)
}

// halfPrefix begins the name of what is on its way into the directory: sweep
// removes what a kill leaves of it.
const halfPrefix = "half-copied-"

// moveAway renames a file or a directory. Where that cannot be, as with a
// directory in the lower layer of an overlayfs, it is copied, and removed once
// the copy is whole and on the disk.
func moveAway(from, to string) error {
	err := os.Rename(from, to)
	if !errors.Is(err, syscall.EXDEV) {
		return err
	}
	info, serr := os.Lstat(from)
	if serr != nil || !info.IsDir() && !info.Mode().IsRegular() {
		return errors.Join(err, serr)
	}
	copied := filepath.Join(filepath.Dir(to), halfPrefix+filepath.Base(to))
	if info.IsDir() {
		err = os.CopyFS(copied, os.DirFS(from))
	} else {
		err = copyFile(copied, from, info.Mode())
	}
	if err == nil {
		err = syncWhole(copied)
	}
	if err == nil {
		err = os.Rename(copied, to)
	}
	if err == nil {
		err = syncPath(filepath.Dir(to))
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(copied))
	}
	return os.RemoveAll(from)
}

func copyFile(to, from string, perm fs.FileMode) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err == nil {
		_, err = io.Copy(dst, src)
		err = errors.Join(err, dst.Close())
	}
	return errors.Join(err, src.Close())
}

// syncWhole syncs the file system on which path lies, and with it all below.
func syncWhole(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// placeName is the path of a file of ours as messages have it.
func (s *Store) placeName(path string) string {
	name := strings.TrimPrefix(path, s.opts.Dir+"/")
	return strings.TrimPrefix(name, repoDir+"/")
}

// clearLarge sets a file aside that is larger than anything ever written there:
// whoever reads it then finds none, which has a repair.
func (s *Store) clearLarge(path string, limit int64) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil || !info.Mode().IsRegular() || info.Size() <= limit {
		return err
	}
	name := s.placeName(path)
	kept, err := s.setAside(path, strings.ReplaceAll(name, "/", "-")+"-too-large")
	if err == nil {
		s.repaired(fmt.Sprintf("%s holds %d bytes, and never more than %d of ours", name, info.Size(), limit), "set aside", kept)
	}
	return err
}

// clearLink sets aside a link where only a file of ours can be written.
func (s *Store) clearLink(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return nil
	}
	name := s.placeName(path)
	kept, err := s.setAside(path, name+"-is-a-link")
	if err == nil {
		s.repaired("a link where "+name+" belongs", "set aside", kept)
	}
	return err
}

// clearSetAsideRef makes way for the refs below refs/dtesn/set-aside: one of
// that very name, which only a person makes, gets another.
func (s *Store) clearSetAsideRef(ctx context.Context) error {
	h, err := s.repo.readRef(setAsideRefs)
	if err != nil && !errors.Is(err, errTornRef) {
		return err
	}
	if !h.IsZero() {
		kept := setAsideRefs + "-" + s.stamp()
		if err := s.repo.writeRef(kept, h); err != nil {
			return err
		}
		s.repaired("a ref "+setAsideRefs+", where only refs below it belong", "renamed", kept)
		if err := s.repo.removeRef(ctx, setAsideRefs); err != nil {
			return s.leaveLocked(setAsideRefs, err)
		}
	}
	return s.clearPlace(filepath.Join(s.repo.dir, setAsideRefs), true)
}

// leaveLocked makes a note of a ref that could not be taken out of packed-refs
// because somebody holds its lock. All that is removed at open harms nobody
// where it is: it only would be found again.
func (s *Store) leaveLocked(ref string, err error) error {
	if errors.Is(err, errRefsLocked) {
		s.repaired("packed-refs is locked by another git", "the ref "+ref+" is left in it until the next start", "")
		return nil
	}
	return err
}
