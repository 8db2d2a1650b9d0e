package test

import (
	"bytes"
	"errors"
	setting "flag" // flag is a type of this package
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

var (
	crashSeed   = setting.Uint64("crash.seed", 0, "the seed of TestKilledAtEveryStep; 0 takes another each time")
	crashPoints = setting.Int("crash.points", 100, "how many kills TestKilledAtEveryStep is for")
)

// TestKilledAtEveryStep is a sample of `make crash`: see package test/crash for
// what is killed, where, and what is held afterwards. The program that is killed
// is built as it is shipped: the race detector has system calls of its own.
func TestKilledAtEveryStep(t *testing.T) {
	needs(t, "git")
	points, seed := *crashPoints, *crashSeed
	if testing.Short() {
		points = 20
	}
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	dir := t.TempDir()
	agent, crash := shippedAgent(t), filepath.Join(dir, "crash")
	build := exec.Command("go", "build", "-o", crash, "./crash")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("seed %d; again with -args -crash.seed %d", seed, seed)
	cmd := exec.Command(crash, "-agent", agent, "-points", strconv.Itoa(points), "-seed", strconv.FormatUint(seed, 10), "-most", "4m")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 3 {
		t.Skip(out.String()) // no package would help
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Log(out.String())
}
