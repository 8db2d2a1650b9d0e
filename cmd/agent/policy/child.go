package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// Command is the hidden command that makes this program the child.
const Command = "evaluate-policy"

// selfPath is this program, also after its file was replaced.
const selfPath = "/proc/self/exe"

// Bounds of the child.
const (
	maxMemory   = 64 << 20 // from here on it ends
	softMemory  = 40 << 20 // from here on it collects garbage more often
	slackMemory = 96 << 20 // what the kernel lets it have more than at its beginning, where it may be asked
	maxStack    = 16 << 20
	maxResponse = 256 << 10 // bytes
	maxStderr   = 4 << 10   // that are kept
	exitMemory  = 3
)

// A request is a line to the child, with one of these.
type request struct {
	Load  *schema.PolicySource `json:"load,omitempty"`
	Judge *schema.Proposal     `json:"judge,omitempty"`
}

// A response is a line from the child.
type response struct {
	Loaded
	Denied []schema.Denial `json:"denied,omitempty"`
	// Error is what is wrong with the policy, at Place.
	Op    string `json:"op,omitempty"`
	Place string `json:"place,omitempty"`
	Error string `json:"error,omitempty"`
	Hint  string `json:"hint,omitempty"`
}

func (r *response) fail(err error) {
	r.Error, r.Hint = err.Error(), problem.Hint(err)
	if p, ok := errors.AsType[*problem.Error](err); ok && p.Err != nil {
		r.Op, r.Place, r.Error = p.Op, p.Place, p.Err.Error()
	}
}

func (r *response) failure() error {
	if r.Error == "" {
		return nil
	}
	return &problem.Error{Op: r.Op, Place: r.Place, Err: errors.New(r.Error), Hint: r.Hint}
}

// Serve is the life of the child: it responds to each request until in ends.
func Serve(in io.Reader, out io.Writer) error {
	bound()
	decoder, encoder := json.NewDecoder(in), json.NewEncoder(out)
	policy := (*schema.Policy)(nil)
	for {
		var q request
		if err := decoder.Decode(&q); err != nil {
			return nil // the agent has ended
		}
		done := guardMemory()
		var r response
		var err error
		switch {
		case q.Load != nil:
			if policy, err = schema.OpenPolicy(*q.Load); err == nil {
				r.Loaded = Loaded{policy.Cases, policy.UsesSigner}
			}
		case q.Judge != nil && policy != nil:
			r.Denied, err = policy.Judge(*q.Judge)
		default:
			err = errors.New("nothing is loaded")
		}
		done()
		if err != nil {
			r.fail(err)
		}
		if err := encoder.Encode(r); err != nil {
			return err
		}
		if policy != nil {
			done := guardMemory()
			policy.Prepare()
			done()
		}
		if q.Load != nil {
			debug.FreeOSMemory() // it waits now
		}
	}
}

// bound limits this process, as far as it may: a systemd unit may forbid to set limits.
// guardMemory works everywhere.
func bound() {
	debug.SetMemoryLimit(softMemory)
	debug.SetMaxStack(maxStack)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0) // of a pod's processes this one ends first
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	status, _ := os.ReadFile("/proc/self/status")
	if m := regexp.MustCompile(`(?m)^VmData:\s+(\d+) kB`).FindSubmatch(status); m != nil {
		now, _ := strconv.ParseUint(string(m[1]), 10, 64)
		most := now<<10 + slackMemory
		_ = unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: most, Max: most})
	}
}

// guardMemory ends this process once it has too much memory. The function that it returns
// ends the guard.
func guardMemory() (done func()) {
	over := make(chan struct{})
	go func() {
		ticker := time.NewTicker(5 * time.Millisecond)
		defer ticker.Stop()
		samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
		for {
			metrics.Read(samples)
			if samples[0].Value.Uint64()-samples[1].Value.Uint64() > maxMemory {
				os.Exit(exitMemory)
			}
			select {
			case <-over:
				return
			case <-ticker.C:
			}
		}
	}()
	return func() { close(over) }
}

// A child is the process, as the agent sees it.
type child struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *io.LimitedReader
	decoder *json.Decoder
	errors  tail
}

// tail keeps the beginning of what is written.
type tail struct{ bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	if left := maxStderr - t.Len(); left > 0 {
		t.Buffer.Write(p[:min(left, len(p))])
	}
	return len(p), nil
}

func startChild() (*child, error) {
	c := &child{cmd: &exec.Cmd{
		Path: selfPath, Args: []string{os.Args[0], Command},
		Env: []string{"GOTRACEBACK=none", "GOMAXPROCS=2"}, Dir: "/",
		// It ends with the agent, also while it computes; and Ctrl-C is the agent's.
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true},
	}}
	c.cmd.Stderr = &c.errors
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.in, c.out = in, &io.LimitedReader{R: out}
	c.decoder = json.NewDecoder(c.out)
	return c, c.cmd.Start()
}

// ask has the child respond within ctx. After an error it must be stopped.
func (c *child) ask(ctx context.Context, q request) (r response, err error) {
	kill := context.AfterFunc(ctx, func() { _ = c.cmd.Process.Kill() })
	defer kill()
	c.out.N = maxResponse
	if err = json.NewEncoder(c.in).Encode(q); err == nil {
		err = c.decoder.Decode(&r)
	}
	if err == nil {
		return r, nil
	}
	return r, c.why(ctx, err)
}

// why says why the child did not respond.
func (c *child) why(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if c.out.N <= 0 {
		return fmt.Errorf("more than %d KiB of denials", maxResponse>>10)
	}
	c.stop()
	switch text := c.errors.String(); {
	case c.cmd.ProcessState.ExitCode() == exitMemory, strings.Contains(text, "out of memory"), strings.Contains(text, "cannot allocate"):
		return fmt.Errorf("it takes more than %d MiB of memory", maxMemory>>20)
	case strings.Contains(text, "stack overflow"), strings.Contains(text, "stack exceeds"):
		return errors.New("it recurses without end")
	case text != "":
		return fmt.Errorf("the evaluator ended (%s): %s", c.cmd.ProcessState, problem.Line(text, 200))
	}
	return fmt.Errorf("the evaluator ended (%s): %w", c.cmd.ProcessState, err)
}

// stop ends the child and waits for it, once or twice.
func (c *child) stop() {
	_ = c.cmd.Process.Kill()
	_ = c.in.Close()
	if c.cmd.ProcessState == nil {
		_ = c.cmd.Wait()
	}
}
