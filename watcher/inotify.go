package watcher

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A watch is inotify over the directories of a statPass. fsnotify does not tell
// a name that was renamed into place from one that was created there, nor can it
// say that nothing happened up to now: the kernel queues an event while the
// change is made, fsnotify hands it on later.
type watch struct {
	// wake is sent to when there may be events to take.
	wake chan struct{}
	done chan struct{}
	file *os.File
	fd   int // that of file, whose method Fd would make it block
	dirs map[int32]string
	buf  []byte

	pass statPass
	env  string // path of the environment's file
}

// News are what happened since a watch was last asked.
type news struct {
	renamed bool // the environment's file was renamed there, and not written since
	moved   bool // something else was renamed there
	written bool // created, removed, or written in place
	touched bool // mode, owner or times changed
	// envWritten: the environment's file was written in place, after any rename.
	envWritten bool
	gone       bool // a watched directory is gone, or events were lost
}

// changed reports whether anything happened that can change what is read.
func (n news) changed() bool { return n.renamed || n.moved || n.written || n.gone }

// namesMask selects what happens to the names in a directory, contentsMask what
// happens to the files there. The latter counts inside the configuration
// directory only: above it, a neighbour that writes all the time would keep the
// queue from ever being empty.
const (
	namesMask    = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	contentsMask = unix.IN_MODIFY | unix.IN_ATTRIB
)

// newWatch watches the directories of a pass. It is an error if one inside the
// configuration directory cannot be watched, or if inotify does not report every
// change there; for what is above it there are the stat passes.
func newWatch(s statPass, envFile string) (*watch, error) {
	if err := s.checkEvents(); err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("start inotify: %w", os.NewSyscallError("inotify_init1", err))
	}
	w := &watch{
		wake: make(chan struct{}), done: make(chan struct{}), file: os.NewFile(uintptr(fd), "inotify"), fd: fd,
		dirs: map[int32]string{}, buf: make([]byte, 16<<10), pass: s, env: filepath.Join(s.root, envFile),
	}
	go w.wait()
	for dir := range s.dirs {
		var mask uint32 = namesMask
		if inside(dir, s.root) {
			mask |= contentsMask
		}
		switch wd, err := unix.InotifyAddWatch(fd, dir, mask); {
		case err == nil:
			w.dirs[int32(wd)] = dir
		case errors.Is(err, fs.ErrNotExist):
			delete(s.dirs, dir) // gone since: the next pass has another one, or none
		case inside(dir, s.root):
			w.close()
			return nil, fmt.Errorf("watch %s with inotify: %w", dir, os.NewSyscallError("inotify_add_watch", err))
		}
	}
	return w, nil
}

// wait sends on wake whenever there are events, until close.
func (w *watch) wait() {
	raw, err := w.file.SyscallConn()
	for err == nil {
		err = raw.Read(func(fd uintptr) bool {
			ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return ready != 0 && !errors.Is(err, unix.EINTR)
		})
		if err == nil {
			select {
			case w.wake <- struct{}{}:
			case <-w.done:
				return
			}
		}
	}
}

func (w *watch) close() {
	close(w.done)
	_ = w.file.Close()
}

// covers reports whether all directories of s are watched, and no file has become
// a mount; then the names of s count from now on.
func (w *watch) covers(s statPass) bool {
	for dir, own := range s.dirs {
		if w.pass.dirs[dir] != own {
			return false
		}
	}
	for name, own := range s.names {
		old := w.pass.names[name]
		if (old.ino != own.ino || old.dev != own.dev) && own.mode.IsRegular() && inside(name, s.root) && isMount(name) {
			return false
		}
	}
	if s.root != w.pass.root {
		return false
	}
	w.pass.names = s.names
	return true
}

// happened takes the news since it was last asked.
func (w *watch) happened() (n news) {
	defer func() { n.written = n.written || n.envWritten }()
	for {
		size, err := unix.Read(w.fd, w.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return n
		case err != nil || size < unix.SizeofInotifyEvent:
			n.gone = true
			return n
		}
		for events := w.buf[:size]; len(events) >= unix.SizeofInotifyEvent; { // struct inotify_event of inotify(7)
			mask := binary.NativeEndian.Uint32(events[4:])
			end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
			name, _, _ := bytes.Cut(events[unix.SizeofInotifyEvent:end], []byte{0})
			w.add(&n, w.dirs[int32(binary.NativeEndian.Uint32(events))], string(name), mask)
			events = events[end:]
		}
	}
}

// add adds one event to the news.
func (w *watch) add(n *news, dir, name string, mask uint32) {
	path := filepath.Join(dir, name)
	_, isName := w.pass.names[path]
	_, isDir := w.pass.dirs[path]
	switch {
	case mask&unix.IN_Q_OVERFLOW != 0, dir != "" && mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED) != 0:
		n.gone = true
	case dir == "" || !isName && !isDir:
	case path == w.env && mask&unix.IN_MOVED_TO != 0:
		n.renamed, n.envWritten = true, false
	case name == "" || mask&unix.IN_ATTRIB != 0:
		n.touched = true
	case path == w.env:
		n.envWritten = true
	case mask&unix.IN_MOVED_TO != 0:
		n.moved = true
	default:
		n.written = true
	}
}
