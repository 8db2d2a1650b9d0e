//go:build linux

package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A point is a moment to kill at: before or after the n-th call of that name
// since the process was armed. Names, unlike numbers of a thread's calls, mean
// the same in each run of a program whose threads take turns as they like.
type point struct {
	Call  string `json:"call"`
	N     int    `json:"n"`
	After bool   `json:"after"`
}

func (p point) String() string {
	side := "before"
	if p.After {
		side = "after"
	}
	return fmt.Sprintf("%s #%d of %s", side, p.N, p.Call)
}

// A process is a traced agent. One goroutine, on a thread of its own, starts
// it, traces all its threads and reaps it.
type process struct {
	pid     int
	root    string // paths are named relative to it
	mem     *os.File
	sockets map[string]string // "socket:[inode]" to whom it is bound or connected
	known   map[int]bool      // threads that have stopped once

	done   chan struct{} // closed once it is reaped; status is valid then
	status syscall.WaitStatus

	mu     sync.Mutex
	at     *point
	inside *point         // the point whose call a thread is in
	seen   map[string]int // calls since it was armed
	hit    bool           // killed at the point
	quiet  time.Time      // of the last call that was no answer to us
}

var errNoTrace = errors.New("this machine does not let a process be traced")

// trace starts a program that is killed at the point, if one is given.
func trace(root string, out *os.File, at *point, argv ...string) (*process, error) {
	p := &process{root: root, sockets: map[string]string{}, known: map[int]bool{}, done: make(chan struct{}), at: at, seen: map[string]int{}, quiet: time.Now()}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // ptrace(2) wants all of it from one thread
		defer runtime.UnlockOSThread()
		err := p.start(out, argv)
		started <- err
		if err == nil {
			p.follow()
			if p.mem != nil {
				_ = p.mem.Close()
			}
			close(p.done)
		}
	}()
	return p, <-started
}

// start runs the launcher up to the moment when it has become the program.
func (p *process) start(out *os.File, argv []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	p.pid, err = syscall.ForkExec(self, append([]string{self, launch}, argv...), &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		Sys: &syscall.SysProcAttr{Ptrace: true, Setpgid: true},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errNoTrace, err)
	}
	abandon := func(err error) error {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(p.pid, nil, syscall.WALL, nil)
		return err
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(p.pid, &ws, syscall.WALL, nil); err != nil || !ws.Stopped() {
		return abandon(fmt.Errorf("%w: %w (%#x)", errNoTrace, err, ws))
	}
	const options = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACESECCOMP | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_EXITKILL
	if err := syscall.PtraceSetOptions(p.pid, options); err != nil {
		return abandon(fmt.Errorf("%w: %w", errNoTrace, err))
	}
	return syscall.PtraceCont(p.pid, 0)
}

// follow handles what the threads stop for, until all have ended.
func (p *process) follow() {
	for {
		var ws syscall.WaitStatus
		// Its process group and no other: all else is for others to reap.
		tid, err := syscall.Wait4(-p.pid, &ws, syscall.WALL, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			p.status = ^syscall.WaitStatus(0) // somebody else reaped it
			return
		case !ws.Stopped():
			if tid == p.pid {
				p.status = ws
				return
			}
		default:
			p.stopped(tid, ws)
		}
	}
}

// stopped looks why a thread stopped, and lets it go on or kills the process.
func (p *process) stopped(tid int, ws syscall.WaitStatus) {
	signal, request := 0, syscall.PTRACE_CONT
	switch {
	case ws.TrapCause() == unix.PTRACE_EVENT_SECCOMP:
		request = p.entered(tid)
	case ws.TrapCause() == unix.PTRACE_EVENT_EXEC:
		p.mem, _ = os.Open(fmt.Sprintf("/proc/%d/mem", p.pid)) // of the program now
	case ws.StopSignal() == syscall.SIGTRAP|0x80: // left the call that an After named
		p.mu.Lock()
		if p.at != nil && p.at == p.inside {
			p.hit = true
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
		p.mu.Unlock()
	case ws.StopSignal() == syscall.SIGTRAP, ws.StopSignal() == syscall.SIGSTOP && !p.known[tid]:
	default:
		signal = int(ws.StopSignal())
	}
	p.known[tid] = true
	// ESRCH: it was killed meanwhile.
	_, _, _ = syscall.RawSyscall6(syscall.SYS_PTRACE, uintptr(request), uintptr(tid), 0, uintptr(signal), 0, 0)
}

// entered counts a call that a thread is about to make. If it is the point's,
// the process is killed now: the kernel skips a call whose thread is to die; or
// the thread is stopped again when the call is done.
func (p *process) entered(tid int) (request int) {
	var info struct {
		op     uint8
		_      [3]byte
		arch   uint32
		ip, sp uint64
		nr     uint64
		args   [6]uint64
		data   uint32 // of the filter's answer
	}
	const getSyscallInfo = 0x420e // PTRACE_GET_SYSCALL_INFO
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PTRACE, getSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 || p.mem == nil {
		return syscall.PTRACE_CONT
	}
	name := p.call(tid, info.nr, info.args)
	if name == "" {
		return syscall.PTRACE_CONT
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[name]++
	if !strings.HasSuffix(name, " "+answerPlace) {
		p.quiet = time.Now()
	}
	switch here := p.at != nil && !p.hit && p.at.Call == name && p.at.N == p.seen[name]; {
	case here && p.at.After:
		p.inside = p.at
		return syscall.PTRACE_SYSCALL
	case here:
		p.hit = true
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
	return syscall.PTRACE_CONT
}

// arm has the process killed at the point, counted from now on; nil: never.
func (p *process) arm(at *point) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.seen = at, map[string]int{}
}

// disarm lets it live from now on, and reports whether that is too late.
func (p *process) disarm() (hit bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = nil
	return p.hit
}

// calls are those since it was armed, and for how long there was none.
func (p *process) calls() (seen map[string]int, quiet time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.seen), time.Since(p.quiet)
}

// dead reports whether it has ended, and whether by a kill at its point.
func (p *process) dead() (ended, hit bool) {
	select {
	case <-p.done:
		p.mu.Lock()
		defer p.mu.Unlock()
		return true, p.hit
	default:
		return false, false
	}
}

// end kills it, wherever it is.
func (p *process) end() {
	if ended, _ := p.dead(); !ended {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
		<-p.done
	}
}
