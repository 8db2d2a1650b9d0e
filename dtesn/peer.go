package dtesn

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"dtesn-agent/dtesn/api"
)

// peerOf names the process behind conn: SO_PEERCRED of unix(7), which is of
// who called listen.
func peerOf(conn *net.UnixConn, socket string) (api.Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return api.Peer{}, fmt.Errorf("ask who listens: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return api.Peer{}, fmt.Errorf("ask who listens: %w", err)
	}
	if credErr != nil {
		return api.Peer{}, fmt.Errorf("ask who listens: %w", credErr)
	}
	return api.Peer{PID: cred.Pid, UID: cred.Uid, Socket: socket}, nil
}

// identity names the file at path: another socket at the same path has another
// one, the same socket keeps it whatever becomes of its mode, owner and links.
// It is "" while there is none.
//
// The inode's number is not enough: ext4 gives that of a removed socket to the
// next. Its birth (statx(2)) tells the two apart, or where that is not kept, or
// not told, the time of the last modification: nothing writes to a socket's
// inode.
func identity(path string) string {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_BTIME, &st)
	if err != nil || st.Mask&unix.STATX_BTIME == 0 {
		return modified(path)
	}
	return fmt.Sprintf("%d:%d:%d:%d.%09d", st.Dev_major, st.Dev_minor, st.Ino, st.Btime.Sec, st.Btime.Nsec)
}

// modified is identity without a birth.
func modified(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d:%d.%09d", st.Dev, st.Ino, st.Mtim.Sec, st.Mtim.Nsec)
}
