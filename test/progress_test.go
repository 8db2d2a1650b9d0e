package test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// A screen is a terminal of 80 columns with what a command wrote to it.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
	done chan struct{} // closed when the command has ended
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// onTerminal starts a command in the foreground of a terminal of its own (pty(7)).
func onTerminal(t *testing.T, cmd *exec.Cmd) *screen {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	ok(t, err)
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	ok(t, errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0), unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})))
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	ok(t, err)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	ok(t, cmd.Start())
	t.Cleanup(func() { kill(cmd) })
	ok(t, slave.Close())
	s := &screen{done: make(chan struct{})}
	go func() {
		defer close(s.done)
		defer master.Close()
		for b := make([]byte, 4096); ; {
			n, err := master.Read(b)
			s.mu.Lock()
			s.text.Write(b[:n])
			s.mu.Unlock()
			if err != nil { // EIO, once nobody has the terminal open
				return
			}
		}
	}()
	return s
}

// ended waits for the end, and returns what stays on the screen.
func (s *screen) ended(r *rig) (lines string) {
	r.t.Helper()
	r.until("the command has ended", func() bool {
		select {
		case <-s.done:
			return true
		default:
			return false
		}
	})
	for line := range strings.SplitSeq(s.String(), "\r\n") {
		lines += line[strings.LastIndex(line, "\x1b[K")+1:] + "\n"
	}
	return strings.ReplaceAll(lines, "[K", "")
}

func withTerm(cmd *exec.Cmd, name string) *exec.Cmd {
	cmd.Env = append(os.Environ(), "TERM="+name, "NO_COLOR=1")
	return cmd
}

// colours finds what is neither text nor the clearing of a line.
var colours = regexp.MustCompile(`\x1b\[[^K]`)

// TestProgress holds that a command that waits for longer than a second says so on a
// terminal, and nowhere else, in a line that is gone before anything else is written.
func TestProgress(t *testing.T) {
	t.Parallel()
	m := newMatrix(t)
	m.declare(tooMuch)
	m.records++
	m.awaitGood(tooMuch)
	m.declare(1100)
	m.records++
	m.awaitGood(1100)
	if s := onTerminal(t, withTerm(exec.Command("agent", "status", "--state", m.state), "xterm")).ended(m.rig); strings.Contains(s, "waiting for the agent") {
		t.Errorf("what takes no time shows %q", s)
	}
	m.e.change(func() { m.e.batch = m.e.hangs })
	rollback := func() *exec.Cmd {
		return exec.Command("agent", "rollback", "--reason", "night", "--timeout", "2500ms", "--state", m.state)
	}
	s := onTerminal(t, withTerm(rollback(), "xterm"))
	lines := s.ended(m.rig)
	line := "\r\x1b[Krollback: waiting for the agent on " + m.state
	shown := s.String()
	if line = string([]rune(line)[:min(len(line), 60)]); strings.Count(shown, line) != 2 || colours.MatchString(shown) {
		t.Errorf("the terminal got %q", shown)
	}
	if !strings.HasPrefix(lines, "agent: rollback is pending") || strings.Contains(lines, "waiting for the agent") {
		t.Errorf("at the end it shows\n%s", lines)
	}
	s = onTerminal(t, withTerm(rollback(), "dumb"))
	if lines := s.ended(m.rig); strings.Contains(s.String(), "waiting for the agent") {
		t.Errorf("a dumb terminal shows\n%s", lines)
	}
	if out, _ := withTerm(rollback(), "xterm").CombinedOutput(); !strings.HasPrefix(string(out), "agent: rollback is") {
		t.Errorf("a pipe gets %q", out)
	}
}

// TestProgressOfOnce holds the same of a job, whose log is on the same terminal.
func TestProgressOfOnce(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	e := newImpostor(t, r.socket)
	goOn := make(chan struct{})
	e.change(func() {
		e.batch = func(w http.ResponseWriter, _ *http.Request, p schema.Parameters) {
			<-goOn
			e.take(p)
			_, _ = io.WriteString(w, `{"success": true}`)
		}
	})
	r.declare(tooMuch)
	s := onTerminal(t, withTerm(exec.Command("agent", append(r.args(r.state, "127.0.0.1:0"), "--once")...), "xterm"))
	r.until("the progress is there", func() bool { return strings.Contains(s.String(), "\r\x1b[Krun --once: applying: ") })
	close(goOn)
	lines := s.ended(r)
	if strings.Contains(lines, "run --once") || !strings.Contains(lines, "applied") || colours.MatchString(s.String()) {
		t.Errorf("at the end it shows\n%s\nof %q", lines, s.String())
	}
}

// TestProgressCounts holds that a long history is counted while it is verified.
func TestProgressCounts(t *testing.T) {
	t.Parallel()
	needs(t, "strace")
	r := newBareRig(t)
	store, _, err := gitstore.Open(t.Context(), gitstore.Options{Dir: r.state, Environment: "production", Instance: "test"})
	ok(t, err)
	const records = 1200
	for n := range records {
		_, err := store.Commit(t.Context(), record.Record{
			Kind: record.KindChange, Source: record.Source{Kind: "file"}, RollbackPoint: true,
			Config: production.Defaults().With(ttlName, schema.Int(1000+n)),
		})
		ok(t, err)
	}
	ok(t, errors.Join(store.Confirm(t.Context()), store.Close()))
	s := onTerminal(t, withTerm(exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=openat", "-e", "inject=openat:delay_enter=200us",
		"agent", "audit", "--verify", "--state", r.state), "xterm"))
	lines := s.ended(r)
	if !strings.Contains(s.String(), fmt.Sprintf("\r\x1b[Kaudit: verifying records, 1000 of %d (", records)) || !strings.HasPrefix(lines, fmt.Sprintf("%d records verified", records)) {
		t.Errorf("the terminal got %q", s.String())
	}
}
