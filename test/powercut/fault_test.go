package powercut

import (
	"bytes"
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
	"dtesn-agent/schema"
)

// TestDiskFaults lets every sync, or every rename, of a running agent fail for a
// while, as a bad disk, a quota or a read-only mount does.
func TestDiskFaults(t *testing.T) {
	t.Parallel()
	needs(t, "strace")
	p := newPower(newSite(t, newDisk(t, "ext4", ""), false), 200)
	p.begin()
	for _, row := range []struct{ call, errno string }{
		{"fsync", "EIO"}, {"renameat", "EIO"}, {"fsync", "ENOSPC"}, {"renameat", "EDQUOT"}, {"renameat", "EROFS"},
	} {
		what := row.errno + " at " + row.call
		good := p.n
		end := p.inject(row.call + ":error=" + row.errno)
		p.next(false)
		st := p.await("degraded by "+what, p.diskRefuses)
		// A change that is sent before it is synced runs; what is not on record does not.
		runs := st.Current.CacheTTLSeconds
		if runs != good && (row.call != "fsync" || runs != p.n) {
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
	end := p.inject("fsync:delay_enter=300000")
	defer end()
	p.next(false)
	p.until("the engine runs it", func() bool {
		reading, err := p.runs()
		return err == nil && reading.CacheTTLSeconds == p.n
	})
	if st, err := p.status(); err != nil || st.Attempted.Outcome != schema.Pending {
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
	if reading, err := p.runs(); err != nil || reading.CacheTTLSeconds != good {
		t.Errorf("state %d was good, and the engine runs %+v %v", good, reading, err)
	}
	ok(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil))
	p.synced() // by itself
	p.look(ptr(p.status()), "no descriptors")
}

// runs asks the engine what it runs, past the agent.
func (s *site) runs() (schema.Parameters, error) {
	client := dtesn.New(dtesn.Options{Socket: s.socket, Environment: "production", Timeout: 5 * time.Second, ReadOnly: true})
	defer client.Close()
	reading, err := client.Read(s.t.Context())
	return reading.Parameters, err
}

// inject attaches to the agent and tampers with its system calls until end is
// called: strace(1), inject.
func (p *power) inject(how string) (end func()) {
	p.t.Helper()
	call, _, _ := strings.Cut(how, ":")
	var out bytes.Buffer
	cmd := exec.Command("strace", "-f", "-p", strconv.Itoa(p.agent.Process.Pid), "-o", os.DevNull, "-e", "trace="+call, "-e", "inject="+how)
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

// TestDiskReadOnly makes the disk read-only under the agent: first for a while,
// then for good, as the kernel does when it finds the file system broken; and
// third, gone altogether.
func TestDiskReadOnly(t *testing.T) {
	t.Parallel()
	p := newPower(newSite(t, newDisk(t, "ext4", "errors=remount-ro"), false), 400)
	p.begin()

	good := p.n
	ok(t, unix.Mount(p.state(), p.state(), "", unix.MS_BIND, ""))
	p.until("nobody is writing at this moment", func() bool {
		return unix.Mount("", p.state(), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "") == nil
	})
	p.refused("read-only", good)
	ok(t, unix.Unmount(p.state(), unix.MNT_DETACH))
	p.synced() // by itself

	good = p.n
	loop := p.disk.loop()
	ok(t, os.WriteFile(filepath.Join("/sys/fs/ext4", loop, "trigger_fs_error"), []byte("1"), 0))
	p.refused("read-only", good)
	st := p.again()
	p.look(&st, "an error of the file system")

	good = p.n
	ok(t, p.disk.cut(logLost))
	p.refused("input/output error", good)
	st = p.again()
	p.look(&st, "a disk that is gone")
}

// refused declares a state, and holds that the engine stays on the good one and
// the status says why.
func (p *power) refused(why string, good int) {
	p.t.Helper()
	p.next(false)
	st := p.await("degraded: "+why, p.diskRefuses)
	if !strings.Contains(st.Reason, why) || st.Current.CacheTTLSeconds != good {
		p.t.Errorf("the disk is %s: state %d was good, %d runs: %s", why, good, st.Current.CacheTTLSeconds, st.Reason)
	}
	p.alive()
}

// again is an operator who mends the disk and starts the agent again.
func (p *power) again() apply.Status {
	p.t.Helper()
	p.turnOff()
	return p.turnOn()
}

// loop is the name of the loop device that the disk is mounted from.
func (d *disk) loop() string {
	d.t.Helper()
	out, err := exec.Command("losetup", "-n", "-O", "NAME", "-j", d.image).Output()
	ok(d.t, err)
	return filepath.Base(strings.TrimSpace(string(out)))
}
