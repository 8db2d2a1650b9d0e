package watcher

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A journal is a plain inotify descriptor that is never waited for, only
// asked. It knows what fsnotify does not tell: whether a name was created or
// renamed into place; and, as the kernel writes it while the change is made,
// that nothing has happened up to the moment of asking.
type journal struct {
	fd   int
	dirs map[int32]string
	buf  []byte
}

// namesMask is what happens to the names in a directory. What is written to the
// files counts inside the configuration directory only: above it, a neighbour
// that writes all the time would keep the journal from ever being read out.
const namesMask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ONLYDIR

func newJournal() (*journal, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("start inotify: %w", os.NewSyscallError("inotify_init1", err))
	}
	return &journal{fd: fd, dirs: map[int32]string{}, buf: make([]byte, 16<<10)}, nil
}

// add notes from now on what happens to the names in dir and, with contents,
// to the files there.
func (j *journal) add(dir string, contents bool) error {
	var mask uint32 = namesMask
	if contents {
		mask |= unix.IN_MODIFY
	}
	wd, err := unix.InotifyAddWatch(j.fd, dir, mask)
	if err != nil {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	j.dirs[int32(wd)] = dir
	return nil
}

func (j *journal) close() { unix.Close(j.fd) }

// take hands every event since the last take to each: the path, and whether
// it was renamed to there. An empty path says that events were lost.
func (j *journal) take(each func(path string, movedIn bool)) {
	for {
		n, err := unix.Read(j.fd, j.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil || n < unix.SizeofInotifyEvent:
			each("", false)
			return
		}
		j.decode(j.buf[:n], each)
	}
}

// decode takes events apart: struct inotify_event of inotify(7).
func (j *journal) decode(events []byte, each func(path string, movedIn bool)) {
	for len(events) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(events))
		mask := binary.NativeEndian.Uint32(events[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
		name := events[unix.SizeofInotifyEvent:end]
		events = events[end:]
		switch dir, known := j.dirs[wd]; {
		case mask&unix.IN_Q_OVERFLOW != 0:
			each("", false)
		case mask&unix.IN_IGNORED != 0 && known:
			each(dir, false)
		case known && len(name) > 0:
			name, _, _ = bytes.Cut(name, []byte{0})
			each(dir+"/"+string(name), mask&unix.IN_MOVED_TO != 0)
		}
	}
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

// trusted returns an error if inotify cannot be relied on for dir.
func trusted(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at the file system of %s: %w", dir, os.NewSyscallError("statfs", err))
	}
	if name, remote := remoteFilesystems[uint32(st.Type)]; remote {
		return fmt.Errorf("%s is on %s, of whose changes inotify does not always tell", dir, name)
	}
	return nil
}

// changedAt is when a file or its entry last changed, which unlike the time of
// its last write nobody can set.
func changedAt(info fs.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Ctim.Unix())
	}
	return info.ModTime()
}

// pinned reports whether the file at path is a mount of its own. Such a file,
// a Kubernetes subPath or a single file bound into a container, stays the same
// for as long as the mount does, whatever its source becomes.
func pinned(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_TYPE, &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
