package test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/apply"
)

// TestLogReader holds that an agent whose output nobody takes works as ever: changes,
// status, orders, metrics and the end. The output is a pipe without a reader, a pipe
// that is full, and a full device; from the first line on.
func TestLogReader(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) *os.File{
		"gone": func(t *testing.T) *os.File {
			r, w := pipe(t)
			ok(t, r.Close())
			return w
		},
		"full": func(t *testing.T) *os.File {
			_, w := pipe(t)
			fd := int(w.Fd()) // Fd makes it block
			ok(t, syscall.SetNonblock(fd, true))
			for err := error(nil); err == nil; {
				_, err = syscall.Write(fd, make([]byte, 4096))
			}
			ok(t, syscall.SetNonblock(fd, false))
			return w
		},
		"device": func(t *testing.T) *os.File {
			f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			ok(t, err)
			return f
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newBareRig(t)
			r.declare(700)
			out := open(t)
			defer out.Close()
			cmd := r.embedded(func(cmd *exec.Cmd) { cmd.Stdout, cmd.Stderr = out, out })
			inSync := func(size int) func(view) bool {
				return func(v view) bool { return v.State == apply.StateInSync && v.size() == size }
			}
			r.await("700 units applied", inSync(700))
			r.declare(800)
			r.await("800 units applied", inSync(800))
			r.write("production.yaml", "environment: production\nparameters:\n  esn_reservoir_size: none\n")
			r.await("the document is invalid", func(v view) bool { return v.State == apply.StateInvalid })
			r.order("rollback", "--reason", "a test")
			if v := r.await("700 units again", func(v view) bool { return v.Current != nil && v.size() == 700 }); v.Held == nil {
				t.Errorf("nothing is held after a rollback: %+v", v.Status)
			}
			if lost := r.metric("dtesn_agent_log_lines_dropped_total"); (lost > 0) != (name != "full") {
				t.Errorf("%v lines dropped", lost)
			}
			ok(t, cmd.Process.Signal(syscall.SIGTERM))
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			select {
			case err := <-ended:
				ok(t, err)
			case <-time.After(20 * time.Second):
				t.Fatal("it does not end")
			}
		})
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	ok(t, err)
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r, w
}

// TestLogTerminal holds that the log on a terminal is for people, in colour unless
// NO_COLOR is set, and that what is wrong names the file so that a terminal opens it.
func TestLogTerminal(t *testing.T) {
	for _, colour := range []bool{true, false} {
		t.Run(fmt.Sprintf("colour %v", colour), func(t *testing.T) {
			t.Parallel()
			r := newBareRig(t)
			r.write("production.yaml", "environment: production\nparameters:\n  esn_reservoir_size: none\n")
			master, slave := terminal(t)
			cmd := r.embedded(func(cmd *exec.Cmd) {
				cmd.Env = append(os.Environ(), "NO_COLOR=")
				if !colour {
					cmd.Env = append(os.Environ(), "NO_COLOR=1")
				}
				cmd.Stdout, cmd.Stderr = slave, slave
			})
			ok(t, slave.Close())
			r.await("the document is invalid", func(v view) bool { return v.State == apply.StateInvalid })
			ok(t, cmd.Process.Signal(syscall.SIGTERM))
			text, _ := io.ReadAll(master) // EIO at the end of a terminal
			if want := filepath.Join(r.config, "production.yaml") + ":3:"; !bytes.Contains(text, []byte(want)) || bytes.Contains(text, []byte("level=")) || bytes.Contains(text, []byte("time=")) {
				t.Errorf("the log does not name %s, or is not for people:\n%s", want, text)
			}
			if bytes.Contains(text, []byte("\x1b[")) != colour {
				t.Errorf("colour: %v:\n%s", !colour, text)
			}
		})
	}
}

// terminal opens a pseudo-terminal (pts(4)).
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	ok(t, err)
	t.Cleanup(func() { _ = master.Close() })
	ok(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	ok(t, err)
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	ok(t, err)
	return master, slave
}

// TestSignalsFirst holds that SIGHUP and SIGPIPE are caught before the packages that
// take long are initialized.
func TestSignalsFirst(t *testing.T) {
	cmd := exec.Command("agent", "run", "--help")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	var trace bytes.Buffer
	cmd.Stderr = &trace
	ok(t, cmd.Run())
	var order []string
	for line := range strings.Lines(trace.String()) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "init" {
			order = append(order, fields[1])
		}
	}
	first := slices.Index(order, "dtesn-agent/cmd/agent/signals")
	for _, slow := range []string{"github.com/cockroachdb/apd/v3", "dtesn-agent/schema", "github.com/prometheus/client_golang/prometheus"} {
		if at := slices.Index(order, slow); first < 0 || at < first {
			t.Errorf("package signals is initialized at %d, %s at %d of %v", first, slow, at, order)
		}
	}
}
