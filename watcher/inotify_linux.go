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

// An inotify is one inotify descriptor. fsnotify does not tell whether a name was
// created or renamed into place, nor that nothing has happened up to now; the
// kernel does, as it queues the events while the change is made.
type inotify struct {
	// wake gets a word when there may be events to take.
	wake chan struct{}
	file *os.File
	fd   int // that of file, whose method Fd would make it block
	dirs map[int32]string
	buf  []byte
	done chan struct{}
}

// namesMask selects what happens to a directory and the names in it, contentsMask
// what happens to the files there. The latter counts inside the configuration
// directory only: above it, a neighbour that writes all the time would keep the
// queue from ever being empty.
const (
	namesMask    = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	contentsMask = unix.IN_MODIFY | unix.IN_ATTRIB
)

func newInotify() (*inotify, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("start inotify: %w", os.NewSyscallError("inotify_init1", err))
	}
	n := &inotify{
		wake: make(chan struct{}), file: os.NewFile(uintptr(fd), "inotify"), fd: fd,
		dirs: map[int32]string{}, buf: make([]byte, 16<<10), done: make(chan struct{}),
	}
	go n.wait()
	return n, nil
}

// wait sends on wake whenever there are events, until close.
func (n *inotify) wait() {
	raw, err := n.file.SyscallConn()
	for err == nil {
		err = raw.Read(func(fd uintptr) bool {
			ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return ready != 0 && !errors.Is(err, unix.EINTR)
		})
		if err == nil {
			select {
			case n.wake <- struct{}{}:
			case <-n.done:
				return
			}
		}
	}
}

// add watches what happens to the names in dir and, with contents, to the files
// there.
func (n *inotify) add(dir string, contents bool) error {
	var mask uint32 = namesMask
	if contents {
		mask |= contentsMask
	}
	wd, err := unix.InotifyAddWatch(n.fd, dir, mask)
	if err != nil {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	n.dirs[int32(wd)] = dir
	return nil
}

func (n *inotify) close() {
	close(n.done)
	_ = n.file.Close()
}

// take hands every event since the last take to each.
func (n *inotify) take(each func(path string, what happening)) {
	for {
		size, err := unix.Read(n.fd, n.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil || size < unix.SizeofInotifyEvent:
			each("", gone)
			return
		}
		n.decode(n.buf[:size], each)
	}
}

// decode takes events apart: struct inotify_event of inotify(7).
func (n *inotify) decode(events []byte, each func(path string, what happening)) {
	for len(events) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(events))
		mask := binary.NativeEndian.Uint32(events[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
		name, _, _ := bytes.Cut(events[unix.SizeofInotifyEvent:end], []byte{0})
		events = events[end:]
		dir, known := n.dirs[wd]
		switch path := dir + "/" + string(name); {
		case mask&unix.IN_Q_OVERFLOW != 0:
			each("", gone)
		case !known:
		case mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED) != 0:
			each(dir, gone)
		case len(name) == 0:
			each(dir, touched)
		case mask&unix.IN_MOVED_TO != 0:
			each(path, movedIn)
		case mask&unix.IN_ATTRIB != 0:
			each(path, touched)
		default:
			each(path, written)
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
