//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// A writer is a system call that changes what others see: its name, and which
// of its arguments say where.
type writer struct {
	name   string
	family string
	dir    int // the argument with the directory's descriptor, -1 for none
	path   int // the argument with the path, -1 if dir is the file itself
}

// writers are the system calls to be killed at, by number. What the agent uses
// of them, Go's os, net and x/sys packages decide; those that it does not use
// stand here so that a later version cannot pass by unseen.
var writers = map[uint64]writer{
	unix.SYS_OPENAT:          {"openat", "create", 0, 1},
	unix.SYS_MKDIRAT:         {"mkdirat", "create", 0, 1},
	unix.SYS_LINKAT:          {"linkat", "rename", 2, 3},
	unix.SYS_SYMLINKAT:       {"symlinkat", "create", 1, 2},
	unix.SYS_RENAMEAT:        {"renameat", "rename", 2, 3},
	unix.SYS_RENAMEAT2:       {"renameat2", "rename", 2, 3},
	unix.SYS_UNLINKAT:        {"unlinkat", "remove", 0, 1},
	unix.SYS_TRUNCATE:        {"truncate", "write", -1, 0},
	unix.SYS_UTIMENSAT:       {"utimensat", "attributes", 0, 1},
	unix.SYS_FCHMODAT:        {"fchmodat", "attributes", 0, 1},
	unix.SYS_FCHMOD:          {"fchmod", "attributes", 0, -1},
	unix.SYS_FLOCK:           {"flock", "attributes", 0, -1},
	unix.SYS_WRITE:           {"write", "write", 0, -1},
	unix.SYS_PWRITE64:        {"pwrite64", "write", 0, -1},
	unix.SYS_WRITEV:          {"writev", "write", 0, -1},
	unix.SYS_PWRITEV:         {"pwritev", "write", 0, -1},
	unix.SYS_PWRITEV2:        {"pwritev2", "write", 0, -1},
	unix.SYS_SENDFILE:        {"sendfile", "write", 0, -1},
	unix.SYS_COPY_FILE_RANGE: {"copy_file_range", "write", 2, -1},
	unix.SYS_SPLICE:          {"splice", "write", 2, -1},
	unix.SYS_FTRUNCATE:       {"ftruncate", "write", 0, -1},
	unix.SYS_FALLOCATE:       {"fallocate", "write", 0, -1},
	unix.SYS_FSYNC:           {"fsync", "sync", 0, -1},
	unix.SYS_FDATASYNC:       {"fdatasync", "sync", 0, -1},
	unix.SYS_SYNC_FILE_RANGE: {"sync_file_range", "sync", 0, -1},
	unix.SYS_SYNCFS:          {"syncfs", "sync", 0, -1},
	unix.SYS_BIND:            {"bind", "socket", 0, 1},
	unix.SYS_CONNECT:         {"connect", "socket", 0, 1},
	unix.SYS_SENDTO:          {"sendto", "socket", 0, -1},
	unix.SYS_SENDMSG:         {"sendmsg", "socket", 0, -1},
}

// familyOf is what sort of call a name such as "fsync snapshots.git" bears.
func familyOf(call string) string {
	name, place, _ := strings.Cut(call, " ")
	for _, w := range writers {
		if w.name == name {
			if place == "socket" || w.family == "write" && (place == "engine" || place == "source" || place == answerPlace) {
				return "socket" // Go writes to sockets by write(2)
			}
			return w.family
		}
	}
	return "other"
}

// call names a system call by what it does and where, so that the same call
// has the same name in each run, whichever thread makes it; "" if it changes
// nothing that outlives the process.
func (p *process) call(tid int, nr uint64, args [6]uint64) string {
	w := writers[nr]
	place := ""
	switch {
	case nr == unix.SYS_BIND || nr == unix.SYS_CONNECT:
		place = p.address(tid, args)
	case w.path >= 0:
		if nr == unix.SYS_OPENAT && args[2]&(unix.O_CREAT|unix.O_TRUNC) == 0 {
			return ""
		}
		place = p.text(args[w.path])
		if w.dir >= 0 && !filepath.IsAbs(place) {
			if dir := int32(args[w.dir]); dir != unix.AT_FDCWD {
				place = filepath.Join(p.descriptor(tid, uint64(dir)), place)
			}
		}
	default:
		place = p.descriptor(tid, args[w.dir])
	}
	if place == answerPlace && w.family != "write" {
		place = "socket" // that is not bound yet
	}
	if strings.HasPrefix(place, "anon_inode:") || place == os.DevNull {
		return "" // Go's event loop waking itself
	}
	return w.name + " " + p.place(place)
}

// text reads a path from the traced memory, which ends where a page may.
func (p *process) text(at uint64) string {
	buf := make([]byte, unix.PathMax)
	n, _ := p.mem.ReadAt(buf, int64(at))
	before, _, _ := bytes.Cut(buf[:n], []byte{0})
	return string(before)
}

// answerPlace is a connection that was accepted: answers to whoever asked.
const answerPlace = "answer"

func (p *process) descriptor(tid int, fd uint64) string {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, int32(fd)))
	if err != nil {
		return "closed"
	}
	if strings.HasPrefix(link, "socket:") {
		if name, ok := p.sockets[link]; ok {
			return name
		}
		return answerPlace
	}
	return strings.TrimSuffix(link, " (deleted)")
}

// address names the socket by whom it is bound or connected to.
func (p *process) address(tid int, args [6]uint64) string {
	buf := make([]byte, min(args[2], 128))
	n, _ := p.mem.ReadAt(buf, int64(args[1]))
	if n < 2 {
		return "nothing"
	}
	name := "source"
	if binary.NativeEndian.Uint16(buf) == unix.AF_UNIX {
		path, _, _ := bytes.Cut(buf[2:n], []byte{0})
		name = string(path)
		if filepath.Base(name) == engineSocket {
			name = "engine"
		}
	}
	if link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, int32(args[0]))); err == nil {
		p.sockets[link] = name
	}
	return name
}

var variable = []struct {
	pattern *regexp.Regexp
	word    string
}{
	{regexp.MustCompile(`objects/[0-9a-f]{2}(/|$)`), "objects/xx$1"},
	{regexp.MustCompile(`[0-9a-f]{38,40}`), "H"},
	{regexp.MustCompile(`tmp-[0-9A-Z]+`), "tmp-N"},
	{regexp.MustCompile(`(fetch-|new-|tmp_[a-z]+_)[0-9A-Za-z]+`), "${1}N"},
}

// place is a path with what differs from run to run taken out.
func (p *process) place(path string) string {
	if rel, err := filepath.Rel(p.root, path); err == nil && !strings.HasPrefix(rel, "..") {
		path = rel
	}
	for _, v := range variable {
		path = v.pattern.ReplaceAllString(path, v.word)
	}
	return path
}
