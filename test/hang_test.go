package test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// stall makes each sync of a process hang, from now on until end is called.
func (r *rig) stall(cmd *exec.Cmd) (end func()) {
	r.t.Helper()
	pid := cmd.Process.Pid
	const sync = "fsync,fdatasync,sync_file_range,syncfs"
	s := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-p", fmt.Sprint(pid),
		"-e", "trace="+sync, "-e", "inject="+sync+":delay_enter=600s")
	r.process(s)
	r.until("strace is attached", func() bool { return traced(pid) })
	return func() {
		_ = s.Process.Kill() // which lets go of the agent
		_ = s.Wait()
	}
}

// TestADiskThatHangs lets each sync hang, as on a network file system whose
// server is gone: liveness says so, what runs is still told, the agent goes on
// by itself when the disk answers again, and it does not hang at its end.
func TestADiskThatHangs(t *testing.T) {
	t.Parallel()
	needs(t, "strace")
	r := newBareRig(t)
	e := newImpostor(t, r.socket)
	r.declare(1024)
	flags := []string{"--engine-timeout", "1s"}
	cmd := r.agent(flags...)
	r.awaitApplied(1024)

	live := func() int { code, _ := r.httpSays("/livez", nil); return code }
	// stalled declares one more until the disk hangs once the engine has it: at rest the
	// agent syncs, too, and hears of nothing while that hangs.
	size := 1100
	stalled := func() (end func()) {
		for {
			end = r.stall(cmd)
			size++
			r.declare(size)
			r.until("the engine runs it, or nothing turns", func() bool {
				return sizeOf(e.running()) == size || live() == http.StatusServiceUnavailable
			})
			if sizeOf(e.running()) == size {
				return end
			}
			end()
			r.awaitApplied(size)
		}
	}

	end := stalled()
	r.until("liveness says so", func() bool { return live() == http.StatusServiceUnavailable })
	v, err := r.view()
	if err != nil || v.Attempted.Outcome != record.Pending || v.InSync {
		t.Errorf("while the disk hangs: %+v %v", v.Status, err)
	}
	if code, out := agent("status", "--live", "--state", r.state); code != 1 || !strings.Contains(out, "transaction loop has not turned") {
		t.Errorf("agent status --live: exit %d %s", code, out)
	}
	if _, out := agent("status", "--state", r.state); !strings.HasPrefix(out, "stuck      the transaction loop has not turned for ") {
		t.Errorf("agent status: %s", out)
	}
	end()
	r.awaitApplied(size)
	r.until("it lives", func() bool { return live() == http.StatusOK })

	end = stalled()
	_ = cmd.Process.Signal(syscall.SIGTERM)
	begun := time.Now()
	r.untilWithin(time.Minute, "it ends", func() bool {
		return strings.Contains(r.evidence(), "still busy 21s after it was told to stop: transaction")
	})
	t.Logf("ended %s after SIGTERM", time.Since(begun).Round(time.Second))
	end() // a dead thread is the tracer's until then
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%s\n%s", cmd.ProcessState, r.evidence())
	}
	cmd = r.agent(flags...)
	r.await("the next one finishes it", func(v view) bool {
		return v.State == apply.StateInSync && v.InSync && v.size() == size
	})

	end = stalled()
	var sent time.Time
	r.until("a second signal kills", func() bool {
		if time.Since(sent) > time.Second/2 { // two that come at once are one, and a flood holds the tracer up
			sent = time.Now()
			_ = cmd.Process.Signal(syscall.SIGTERM)
		}
		return dying(cmd.Process.Pid)
	})
	end()
	if _ = cmd.Wait(); cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("%s\n%s", cmd.ProcessState, r.evidence())
	}
}

// dying reports whether a process of several threads has begun to end: the threads that
// are left are zombies, or are held by the tracer, as those that were in a sync are.
func dying(pid int) bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, name := range stats {
		text, err := os.ReadFile(name)
		_, rest, _ := strings.Cut(string(text), ") ") // the state follows the name: proc_pid_stat(5)
		if err == nil && rest != "" && !strings.ContainsRune("tZX", rune(rest[0])) {
			return false
		}
	}
	return true
}

// traced reports whether all threads of a process are traced.
func traced(pid int) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err == nil && strings.Contains(string(text), "TracerPid:\t0\n") {
			return false
		}
	}
	return len(tasks) > 0
}
