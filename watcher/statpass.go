package watcher

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"dtesn-agent/schema/problem"
)

// templatesDir is the one folder below the configuration directory.
const templatesDir = "templates"

// maxLinks is how many links are followed, as Linux does.
const maxLinks = 40

// A stamp identifies what is at a name and when it changed. It is the zero value
// for what is missing.
type stamp struct {
	dev, ino     uint64
	mode         fs.FileMode
	size         int64            // 0 for a directory, as are the times
	mtime, ctime syscall.Timespec // nobody can set ctime
}

func stampOf(info fs.FileInfo) stamp {
	st := info.Sys().(*syscall.Stat_t)
	if info.IsDir() {
		return stamp{dev: st.Dev, ino: st.Ino, mode: info.Mode()}
	}
	return stamp{st.Dev, st.Ino, info.Mode(), st.Size, st.Mtim, st.Ctim}
}

// A statPass is what lies on the way from the root of the file system to the
// files of a Document. It finds what inotify does not report, such as a mount or
// a renamed ancestor.
type statPass struct {
	root string // real path of the configuration directory, empty if it is missing
	// names has each name that decides what is read: on the way to the directory
	// the links, what is missing and its own entry; inside it, every name.
	names map[string]stamp
	dirs  map[string]stamp // real paths of the directories of names
}

// statFiles stats everything on the way to root, and from there to each of paths.
func statFiles(root string, paths []string) statPass {
	s := statPass{names: map[string]stamp{}, dirs: map[string]stamp{}}
	full := root // not cleaned: the walk finds what ".." means behind a link
	if !filepath.IsAbs(root) {
		here, err := os.Getwd()
		if err != nil {
			return s
		}
		full = here + "/" + root
	}
	if s.root = s.walk("/", full); s.root == "" {
		return s
	}
	for _, path := range paths {
		s.walk(s.root, path)
	}
	if dir := s.walk(s.root, templatesDir); dir != "" {
		s.addDir(dir)
	}
	return s
}

// walk follows path from the real directory dir, as the kernel does. It returns
// the real path of the directory where path ends, or "" if it ends elsewhere. It
// does not leave the configuration directory once that is known.
func (s *statPass) walk(dir, path string) string {
	links := 0
	rest := strings.Split(path, "/")
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			dir = filepath.Dir(dir)
			continue
		}
		if s.root != "" && !inside(dir, s.root) {
			return ""
		}
		full := filepath.Join(dir, name)
		info, err := os.Lstat(full)
		link := err == nil && info.Mode()&fs.ModeSymlink != 0
		if s.root != "" || link || err != nil || len(rest) == 0 {
			s.addDir(dir)
			s.names[full] = stamp{}
			if err == nil {
				s.names[full] = stampOf(info)
			}
		}
		switch {
		case err != nil:
			return ""
		case link:
			target, err := os.Readlink(full)
			if links++; err != nil || links > maxLinks {
				return ""
			}
			if filepath.IsAbs(target) {
				dir = "/"
			}
			rest = append(strings.Split(target, "/"), rest...)
		case !info.IsDir():
			return ""
		default:
			dir = full
		}
	}
	return dir
}

func (s *statPass) addDir(dir string) {
	if _, known := s.dirs[dir]; known {
		return
	}
	if info, err := os.Stat(dir); err == nil { // else it is gone: the next pass differs
		s.dirs[dir] = stampOf(info)
	}
}

// rewritten reports whether a file of now may have been written in place since s:
// it is the same file and changed, or is at a name that was not looked at.
func (s *statPass) rewritten(now statPass) bool {
	for name, file := range now.names {
		old, known := s.names[name]
		same := old.ino == file.ino && old.dev == file.dev
		if file.ino != 0 && file.mode.IsRegular() && (!known || same && (old.size != file.size || old.mtime != file.mtime)) {
			return true
		}
	}
	return false
}

// checkEvents returns an error if inotify does not report every change inside
// the configuration directory.
func (s *statPass) checkEvents() error {
	var mounts []string
	for name, found := range s.names {
		if inside(name, s.root) && found.mode.IsRegular() && isMount(name) {
			mounts = append(mounts, name)
		}
	}
	if len(mounts) > 0 {
		slices.Sort(mounts)
		return &problem.Error{
			Place: strings.Join(mounts, ", "),
			Err:   errors.New("a mount of its own (a Kubernetes subPath, or one file bound into the container), so a file that takes its place where it comes from is never seen here"),
			Hint:  "mount the directory instead",
		}
	}
	for dir := range s.dirs {
		if err := checkFilesystem(dir); inside(dir, s.root) && err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// inside reports whether path is root, or below it.
func inside(path, root string) bool {
	return root != "" && (path == root || strings.HasPrefix(path, strings.TrimSuffix(root, "/")+"/"))
}

// remoteFilesystems change without this kernel's doing, and so without events.
var remoteFilesystems = map[uint32]string{
	unix.AFS_FS_MAGIC:     "AFS",
	unix.AFS_SUPER_MAGIC:  "AFS",
	unix.CEPH_SUPER_MAGIC: "Ceph",
	unix.CIFS_SUPER_MAGIC: "CIFS",
	unix.FUSE_SUPER_MAGIC: "FUSE",
	unix.NFS_SUPER_MAGIC:  "NFS",
	unix.SMB2_SUPER_MAGIC: "SMB",
	unix.SMB_SUPER_MAGIC:  "SMB",
	unix.V9FS_MAGIC:       "9P",
}

// checkFilesystem returns an error if inotify cannot be relied on for dir.
func checkFilesystem(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("stat the file system of %s: %w", dir, os.NewSyscallError("statfs", err))
	}
	if name, remote := remoteFilesystems[uint32(st.Type)]; remote {
		return fmt.Errorf("%s is on %s, whose changes inotify does not always report", dir, name)
	}
	return nil
}

// isMount reports whether the file at path is a mount of its own. Such a file
// stays the same for as long as the mount does, whatever its source becomes.
func isMount(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_TYPE, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
