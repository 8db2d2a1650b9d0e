package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// endlessCUE counts 20^7 combinations.
const endlessCUE = `package dtesn

#extends: "dtesn"
let l = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
#x: len([for a in l for b in l for c in l for d in l for e in l for f in l for g in l {x: a}])
#Parameters: a?: int & >=1 & <=#x @dtesn(description="x")
`

// TestEndlessSchema gives each command that reads a schema file one that is not
// evaluated in a lifetime: the command obeys signals, and gives up by itself.
func TestEndlessSchema(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	file := filepath.Join(r.dir, "endless.cue")
	ok(t, os.WriteFile(file, []byte(endlessCUE), 0o644))
	for _, args := range [][]string{
		r.args(r.state, "127.0.0.1:0"),
		{"validate", r.config},
		{"schema"},
		{"diff", "1", "--state", r.state},
	} {
		for sent, want := range map[syscall.Signal]string{
			syscall.SIGTERM: "terminated signal received\n",
			syscall.SIGINT:  "interrupt signal received\n",
			0:               "not evaluated within 10s\nhint: simplify what the schema file computes\n",
		} {
			if sent == 0 && args[0] != "schema" {
				continue // ten seconds of a core are enough
			}
			var out bytes.Buffer
			cmd := exec.Command("agent", append(args, "--schema", file)...)
			cmd.Stdout, cmd.Stderr = &out, &out
			r.process(cmd)
			r.until("it evaluates", func() bool { return cpuTime(t, cmd.Process.Pid) > time.Second/2 })
			ok(t, cmd.Process.Signal(sent))
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			select {
			case <-ended:
			case <-time.After(time.Minute):
				t.Fatalf("agent %s does not end after signal %d", args[0], sent)
			}
			if got, want := out.String(), "agent: read schema "+file+": "+want; cmd.ProcessState.ExitCode() != 1 || got != want {
				t.Errorf("agent %s, signal %d: %s\ngot  %swant %s", args[0], sent, cmd.ProcessState, got, want)
			}
		}
	}
}

// cpuTime is how long a process has run on a processor, in user mode.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	ok(t, err)
	const ticks = 100 // a second
	var utime int
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // from state, the third, on
	_, err = fmt.Sscan(fields[11], &utime)
	ok(t, err)
	return time.Duration(utime) * time.Second / ticks
}
