package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/apply"
	"dtesn-agent/dtesn"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// The system calls by which bytes and names come onto a disk, whichever of them a
// store uses. write(2) is not among them: pipes and sockets are written by it too.
const (
	syncCalls = "fsync,fdatasync,sync_file_range,syncfs"
	// sync_file_range(2) only begins to write; nobody waits for it.
	slowCalls  = "fsync,fdatasync,syncfs"
	writeCalls = "renameat,renameat2,linkat,pwrite64,pwritev,pwritev2"
)

// TestDiskFaults lets every sync, or every write, of a running agent fail for a
// while, as a bad disk, a quota or a read-only mount does.
func TestDiskFaults(t *testing.T) {
	t.Parallel()
	needs(t, "strace")
	p := newPower(newSite(t, newDisk(t, "ext4", ""), false), 200)
	p.begin()
	for _, row := range []struct{ calls, errno string }{
		{syncCalls, "EIO"}, {writeCalls, "EIO"}, {syncCalls, "ENOSPC"}, {writeCalls, "EDQUOT"}, {writeCalls, "EROFS"},
	} {
		what := row.errno + " at " + row.calls
		good := p.n
		end := p.inject(row.calls + ":error=" + row.errno)
		p.next(false)
		st := p.await("degraded by "+what, p.diskRefuses)
		// A change that is sent before it is synced runs; what is not on record does not.
		runs := ttlOf(*st.Current)
		if runs != good && (row.calls != syncCalls || runs != p.n) {
			t.Errorf("%s: state %d was good, %d is declared, and %d runs", what, good, p.n, runs)
		}
		if p.toldOf(p.n) {
			t.Errorf("%s: state %d was called applied", what, p.n)
		}
		p.alive()
		end()
		p.synced() // by itself
		p.look(&st, what)
	}
}

// TestDiskSlow makes each sync take a third of a second: the engine need not
// wait for it, and the agent lives.
func TestDiskSlow(t *testing.T) {
	t.Parallel()
	needs(t, "strace")
	p := newPower(newSite(t, newDisk(t, "ext4", ""), false), 300)
	p.begin()
	end := p.inject(slowCalls + ":delay_enter=300000")
	defer end()
	p.next(false)
	p.sent()
	if st, err := p.status(); err != nil || st.Attempted.Outcome != record.Pending {
		t.Errorf("before anything was synced the outcome is %+v %v", st.Attempted, err)
	}
	p.alive()
	p.synced()
}

// TestDiskNoDescriptors takes the agent's right to open files: the engine keeps
// what it has, and the agent goes on once it may again.
func TestDiskNoDescriptors(t *testing.T) {
	t.Parallel()
	p := newPower(newSite(t, newMemoryDisk(t, "size=16m"), false), 600)
	p.begin()
	good, pid := p.n, p.agent.Process.Pid
	var before unix.Rlimit
	ok(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before))
	ok(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: before.Max}, nil))
	p.next(false)
	p.until("the log says why", func() bool { return strings.Contains(p.said.tail(), "too many open files") })
	if reading, err := p.runs(); err != nil || ttlOf(reading) != good {
		t.Errorf("state %d was good, and the engine runs %+v %v", good, reading, err)
	}
	ok(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil))
	p.synced() // by itself
	p.look(ptr(p.status()), "no descriptors")
}

// runs asks the engine what it runs, past the agent.
func (s *site) runs() (schema.Parameters, error) {
	client := dtesn.New(dtesn.Options{Socket: s.socket, Rules: production, Timeout: 5 * time.Second, ReadOnly: true})
	defer client.Close()
	reading, err := client.Read(s.t.Context())
	return reading.Parameters, err
}

// sent waits until the engine runs what is declared, whatever is on record.
func (p *power) sent() {
	p.t.Helper()
	p.until("the engine runs it", func() bool {
		reading, err := p.runs()
		return err == nil && ttlOf(reading) == p.n
	})
}

// inject attaches to the agent and tampers with its system calls until end is
// called: strace(1), inject.
func (p *power) inject(how string) (end func()) {
	p.t.Helper()
	calls, _, _ := strings.Cut(how, ":")
	var out bytes.Buffer
	cmd := exec.Command("strace", "-f", "-p", strconv.Itoa(p.agent.Process.Pid), "-o", os.DevNull, "-e", "trace="+calls, "-e", "inject="+how)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = &out
	ok(p.t, cmd.Start())
	over := false
	end = func() {
		if !over {
			over = true
			_ = cmd.Process.Signal(syscall.SIGTERM) // it lets go
			_ = cmd.Wait()
		}
	}
	p.t.Cleanup(end)
	p.until("strace holds the agent", func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.agent.Process.Pid))
		ok(p.t, err)
		return bytes.Contains(status, fmt.Appendf(nil, "TracerPid:\t%d\n", cmd.Process.Pid))
	})
	return end
}

// until waits for something, 40 s at most.
func (s *site) until(what string, holds func() bool) {
	s.t.Helper()
	deadline, again := time.After(40*time.Second), time.NewTicker(5*time.Millisecond)
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case <-deadline:
			s.t.Fatalf("not within 40 s: %s", what)
		}
	}
}

// TestDiskReadOnly makes the disk read-only under the agent, and writable again:
// by an operator's remount of the mount, and of the file system itself. Then as
// the kernel does when it finds the file system broken, and gone altogether:
// there the operator unmounts it, repairs it and mounts it again. The agent is
// not touched in all this, and goes on by itself.
func TestDiskReadOnly(t *testing.T) {
	t.Parallel()
	needs(t, "losetup")
	p := newPower(newSite(t, newDisk(t, "ext4", "errors=remount-ro"), false), 400)
	p.begin()
	remount := func(what, dir string, flags uintptr) {
		p.until("nobody is writing at this moment", func() bool {
			return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|flags, "") == nil
		})
		good := p.n
		p.refused("read-only", good)
		ok(t, unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""))
		p.synced()
		p.look(ptr(p.status()), what)
	}
	remount("a file system remounted", p.disk.dir, 0)
	ok(t, unix.Mount(p.state(), p.state(), "", unix.MS_BIND, ""))
	remount("a mount remounted", p.state(), unix.MS_BIND)
	ok(t, unix.Unmount(p.state(), unix.MNT_DETACH))
	p.synced()

	good := p.n
	ok(t, os.WriteFile(filepath.Join("/sys/fs/ext4", filepath.Base(p.disk.loop()), "trigger_fs_error"), []byte("1"), 0))
	p.refused("read-only", good)
	p.mended("an error of the file system")

	good = p.n
	ok(t, p.disk.cut(logLost))
	p.refused("input/output error", good)
	p.mended("a disk that is gone")
}

// mended is an operator who unmounts the disk, repairs it and mounts it again,
// beside the agent: the disk is free once the agent has let it go.
func (p *power) mended(what string) {
	p.t.Helper()
	_ = p.disk.root.Close()
	ok(p.t, unix.Unmount(p.disk.dir, unix.MNT_DETACH))
	p.until("the disk is let go", func() bool { return p.disk.loop() == "" })
	p.until(what+", unmounted: the status says so", func() bool { // a moment after it was let go
		st, err := p.status()
		return err == nil && st.State == apply.StateDegraded && strings.Contains(st.Hint, "mount its disk or put it back")
	})
	if left, err := os.ReadDir(p.disk.dir); err != nil || len(left) > 0 {
		p.t.Errorf("below the mount point lies %v %v", left, err)
	}
	if out, err := exec.Command("e2fsck", "-fp", p.disk.image).CombinedOutput(); err != nil && exitCode(err) > 1 { // 1: corrected
		p.t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	p.disk.mount()
	p.synced()
	p.until("the agent takes orders again", func() bool { code, _ := p.order("status"); return code == 0 })
	p.look(ptr(p.status()), what)
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

// refused declares a state, and holds that the engine stays on the good one and
// the status says why.
func (p *power) refused(why string, good int) {
	p.t.Helper()
	p.next(false)
	st := p.await("degraded: "+why, p.diskRefuses)
	if !strings.Contains(st.Reason, why) || ttlOf(*st.Current) != good {
		p.t.Errorf("the disk is %s: state %d was good, %d runs: %s", why, good, ttlOf(*st.Current), st.Reason)
	}
	p.alive()
}

// loop is the loop device that the disk is mounted from, "" if there is none.
func (d *disk) loop() string {
	d.t.Helper()
	out, err := exec.Command("losetup", "-n", "-O", "NAME", "-j", d.image).Output()
	ok(d.t, err)
	return strings.TrimSpace(string(out))
}
