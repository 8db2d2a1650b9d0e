package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"dtesn-agent/apply"
)

// evaluators returns the processes that evaluate a policy for process of.
func evaluators(of int) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		text, _ := os.ReadFile(file)
		status, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "status"))
		if strings.Contains(string(text), "\x00evaluate-policy\x00") && strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", of)) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestExamplesPolicy holds that the policy we show can be used.
func TestExamplesPolicy(t *testing.T) {
	out, err := exec.Command("agent", "validate", "--policy", "../examples/policy").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "9 cases pass") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestPolicyProcess holds that the process that evaluates the policy may be killed, hang or
// lack the policy's end, and that it ends with the agent.
func TestPolicyProcess(t *testing.T) {
	agent := shippedAgent(t)
	r := newBareRig(t)
	policy := filepath.Join(r.dir, "policy")
	ok(t, os.Mkdir(policy, 0o755))
	write := func(text string) {
		t.Helper()
		ok(t, os.WriteFile(filepath.Join(r.dir, "new"), []byte(text), 0o644))
		ok(t, os.Rename(filepath.Join(r.dir, "new"), filepath.Join(policy, "p.cue")))
	}
	const doubles = "deny: {if change.old != _|_ if change.new.esn_reservoir_size > 2*change.old.esn_reservoir_size {growth: message: \"at most doubles\"}}\n"
	write(doubles)
	r.declare(512)
	cmd := r.embedded(func(cmd *exec.Cmd) {
		cmd.Path = agent
		cmd.Args = append(cmd.Args, "--policy", policy)
	})
	evaluator := func() int {
		t.Helper()
		var pids []int
		r.until("one process evaluates", func() bool { pids = evaluators(cmd.Process.Pid); return len(pids) == 1 })
		return pids[0]
	}
	runs := func(size int, state apply.Condition) {
		t.Helper()
		r.await(fmt.Sprintf("%d units, %s", size, state), func(v view) bool { return v.Current != nil && v.size() == size && v.State == state })
	}
	runs(512, apply.StateInSync)
	ok(t, syscall.Kill(evaluator(), syscall.SIGKILL))
	r.declare(1024)
	runs(1024, apply.StateInSync)
	ok(t, syscall.Kill(evaluator(), syscall.SIGKILL))
	r.declare(4096)
	runs(1024, apply.StateRefused)
	r.declare(1000)
	runs(1000, apply.StateInSync)

	// a policy that is without end for one change refuses that, and only that
	before := r.await("its digest", func(v view) bool { return v.Policy.Digest != "" }).Policy.Digest
	write("import \"list\"\nlet l = list.Range(0, 1000, 1)\n" +
		"deny: {if change.new.esn_reservoir_size == 900 for x in l for y in l for z in l if x+y+z < 0 {a: message: \"x\"}}\n")
	r.await("the other policy", func(v view) bool { return v.Policy.Usable && v.Policy.Digest != before && v.State == apply.StateInSync })
	r.declare(900)
	v := r.await("refused", func(v view) bool { return v.State == apply.StateRefused })
	if !strings.Contains(v.Reason, "not evaluated within 2s") || v.size() != 1000 {
		t.Errorf("%s; it runs %d", v.Reason, v.size())
	}
	r.declare(901)
	runs(901, apply.StateInSync)

	// a start without a usable policy
	write("deny: [}\n")
	r.await("the broken policy", func(v view) bool { return !v.Policy.Usable && v.Policy.Error != "" })
	ok(t, cmd.Process.Kill())
	_ = cmd.Wait()
	cmd = r.embedded(func(cmd *exec.Cmd) {
		cmd.Path = agent
		cmd.Env = append(os.Environ(), "DTESN_AGENT_POLICY="+policy)
	})
	r.declare(800)
	v = r.await("refused", func(v view) bool { return v.State == apply.StateRefused })
	if !strings.Contains(v.Reason, "p.cue:1:") || v.size() != 901 {
		t.Errorf("%s; it runs %d", v.Reason, v.size())
	}
	write(doubles)
	runs(800, apply.StateInSync)

	// killed with the agent
	pid := evaluator()
	ok(t, cmd.Process.Kill())
	_ = cmd.Wait()
	r.until("the evaluator has ended", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
}
