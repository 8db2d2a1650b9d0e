//go:build linux

package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// launch is the word that makes this program a launcher: it puts a seccomp
// filter on itself, which stops at each writing system call for the tracer, and
// becomes the program to trace. All other calls run at full speed.
const launch = "launch-traced"

// launchFailed is the launcher's exit code when it could not.
const launchFailed = 126

func init() {
	if len(os.Args) > 2 && os.Args[1] == launch {
		runtime.LockOSThread() // the filter is this thread's, and execve keeps it
		err := become(os.Args[2:])
		fmt.Fprintln(os.Stderr, "crash: launch:", err)
		os.Exit(launchFailed)
	}
}

// become replaces this process by the program, under the filter.
func become(argv []string) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	const load, equal, answer = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	filter := []unix.SockFilter{{Code: load}} // the call's number stands first in seccomp_data
	for nr := range writers {
		filter = append(filter,
			unix.SockFilter{Code: equal, Jf: 1, K: uint32(nr)},
			unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_TRACE})
	}
	filter = append(filter, unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_ALLOW})
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return fmt.Errorf("install the filter: %w", err)
	}
	runtime.KeepAlive(filter)
	return syscall.Exec(argv[0], argv, os.Environ())
}
