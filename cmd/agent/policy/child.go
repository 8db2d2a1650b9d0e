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

// Command is the hidden command that runs this program as the child.
const Command = "evaluate-policy"

// selfPath is the running program, even if its file was replaced.
const selfPath = "/proc/self/exe"

// Bounds of the child.
const (
	maxMemory   = 64 << 20 // it exits above this
	softMemory  = 40 << 20 // it collects garbage more often above this
	slackMemory = 96 << 20 // what the kernel lets it map after its start, where limits can be set
	maxStack    = 16 << 20
	maxResponse = 256 << 10 // bytes
	maxStderr   = 4 << 10   // bytes that are kept
	exitMemory  = 3         // the exit status for too much memory
)

// A request is a line to the child. One of its fields is set.
type request struct {
	Load  *schema.PolicySource `json:"load,omitempty"`
	Judge *schema.Proposal     `json:"judge,omitempty"`
}

// A response is a line from the child.
type response struct {
	Loaded
	Denied []schema.Denial `json:"denied,omitempty"`
	// These are the fields of a problem.Error; Error is "" if there is none.
	Op    string `json:"op,omitempty"`
	Place string `json:"place,omitempty"`
	Error string `json:"error,omitempty"`
	Hint  string `json:"hint,omitempty"`
}

// fail sets the error of r.
func (r *response) fail(err error) {
	r.Error, r.Hint = err.Error(), problem.Hint(err)
	if p, ok := errors.AsType[*problem.Error](err); ok && p.Err != nil {
		r.Op, r.Place, r.Error = p.Op, p.Place, p.Err.Error()
	}
}

// failure returns the error of r, or nil.
func (r *response) failure() error {
	if r.Error == "" {
		return nil
	}
	return &problem.Error{Op: r.Op, Place: r.Place, Err: errors.New(r.Error), Hint: r.Hint}
}

// Serve runs the child: it responds to the requests of in until its end.
func Serve(in io.Reader, out io.Writer) error {
	bound()
	decoder, encoder := json.NewDecoder(in), json.NewEncoder(out)
	policy := (*schema.Policy)(nil)
	for {
		var q request
		if err := decoder.Decode(&q); err != nil {
			return nil // the agent has ended
		}
		var r response
		var err error
		guarded(func() {
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
		})
		if err != nil {
			r.fail(err)
		}
		if err := encoder.Encode(r); err != nil {
			return err
		}
		if policy != nil {
			guarded(policy.Prepare)
		}
		if q.Load != nil {
			debug.FreeOSMemory() // the next request may be far away
		}
	}
}

// bound limits this process as far as it can. A systemd unit may forbid setting limits;
// guarded works everywhere.
func bound() {
	debug.SetMemoryLimit(softMemory)
	debug.SetMaxStack(maxStack)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0) // the kernel kills this process first
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	status, _ := os.ReadFile("/proc/self/status")
	if m := regexp.MustCompile(`(?m)^VmData:\s+(\d+) kB`).FindSubmatch(status); m != nil {
		now, _ := strconv.ParseUint(string(m[1]), 10, 64)
		most := now<<10 + slackMemory
		_ = unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: most, Max: most})
	}
}

// guarded runs do, and exits the process if it takes too much memory meanwhile.
func guarded(do func()) {
	done := make(chan struct{})
	defer close(done)
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
			case <-done:
				return
			case <-ticker.C:
			}
		}
	}()
	do()
}

// A child is the child process, in the agent.
type child struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *io.LimitedReader
	decoder *json.Decoder
	errors  prefixBuffer
}

// A prefixBuffer keeps the first maxStderr bytes that are written.
type prefixBuffer struct{ bytes.Buffer }

func (b *prefixBuffer) Write(p []byte) (int, error) {
	if left := maxStderr - b.Len(); left > 0 {
		b.Buffer.Write(p[:min(left, len(p))])
	}
	return len(p), nil
}

func startChild() (*child, error) {
	c := &child{cmd: &exec.Cmd{
		Path: selfPath, Args: []string{os.Args[0], Command},
		Env: []string{"GOTRACEBACK=none", "GOMAXPROCS=2"}, Dir: "/",
		// It ends with the agent, even while it computes, and does not get the Ctrl-C of the
		// agent's terminal.
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

// ask sends q to the child and returns its response. It kills the child when ctx ends.
// After an error the child must be stopped.
func (c *child) ask(ctx context.Context, q request) (r response, err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.cmd.Process.Kill() })
	defer stop()
	c.out.N = maxResponse
	if err = json.NewEncoder(c.in).Encode(q); err == nil {
		err = c.decoder.Decode(&r)
	}
	if err == nil {
		return r, nil
	}
	return r, c.why(ctx, err)
}

// why returns why the child did not respond, after err.
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

// stop kills the child and waits for it. It may be called again.
func (c *child) stop() {
	_ = c.cmd.Process.Kill()
	_ = c.in.Close()
	if c.cmd.ProcessState == nil {
		_ = c.cmd.Wait()
	}
}
