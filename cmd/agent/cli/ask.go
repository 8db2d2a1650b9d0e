package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"dtesn-agent/schema/problem"
)

// ask sends a request to the agent that runs on the state directory, and decodes its response.
func ask(cmd *cobra.Command, state, method, path string, body, answer any, patience time.Duration) error {
	return exchange(cmd, state, method, path, body, patience, func(resp *http.Response) error {
		if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
			return fmt.Errorf("read the response of the agent on %s: %w", state, err)
		}
		return nil
	})
}

// exchange sends a request to the agent that runs on the state directory, and passes its
// response to read.
func exchange(cmd *cobra.Command, state, method, path string, body any, patience time.Duration, read func(*http.Response) error) error {
	ctx, cancel := context.WithTimeoutCause(cmd.Context(), patience, errNoAnswer)
	defer cancel()
	defer waitFor(cmd, "waiting for the agent on %s", state)()
	socket := filepath.Join(state, "agent.sock")
	if err := checkSocketPath(socket); err != nil {
		return err
	}
	var payload io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		payload = bytes.NewReader(text)
	}
	q, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, payload)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
		},
	}}
	resp, err := client.Do(q)
	if err != nil && errors.Is(context.Cause(ctx), errNoAnswer) {
		return problem.New("", fmt.Errorf("the agent on %s did not answer within %s", state, patience), "see whether it hangs or is stopped: its log, and the pid in "+filepath.Join(state, "lock"))
	}
	if err != nil && ctx.Err() != nil {
		return problem.New("", fmt.Errorf("interrupted before the agent on %s answered", state), "an order that is on record goes on: agent status --state "+problem.ShellWord(state))
	}
	if err != nil {
		return notRunning(state, err)
	}
	defer resp.Body.Close()
	return read(resp)
}

var errNoAnswer = errors.New("no answer")

// lockedBy is the pid of the agent that holds the lock of state, "" if none does.
func lockedBy(state string) string {
	f, err := os.OpenFile(filepath.Join(state, "lock"), os.O_RDONLY|unix.O_NONBLOCK, 0) // it may be a pipe
	if err != nil {
		return ""
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		return "" // closing gives it back
	}
	text := make([]byte, 32)
	n, _ := f.Read(text)
	pid, _, _ := strings.Cut(strings.TrimSpace(string(text[:n])), " ")
	return cmp.Or(pid, "unknown")
}

// notRunning explains why no agent answered.
func notRunning(state string, err error) error {
	p := &problem.Error{}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		pid := lockedBy(state)
		if _, statErr := os.Stat(state); statErr != nil {
			p.Err = fmt.Errorf("there is no state directory %s", state)
			p.Hint = "check --state; it is the one `agent run` was given; an agent whose disk is away still answers on its --listen address, and comes back to it by itself"
		} else if pid != "" {
			p.Err = fmt.Errorf("the agent on %s (pid %s) does not listen on its control socket", state, pid)
			p.Hint = "wait some seconds, it makes it anew; if it does not: its log says why"
		} else {
			p.Err = fmt.Errorf("no agent runs on %s", state)
			p.Hint = "start one with `agent run`; what it recorded: agent snapshots --state " + problem.ShellWord(state)
		}
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		p.Err = fmt.Errorf("the agent on %s went away before it answered", state)
		p.Hint = "what it had recorded goes on at its next start: agent snapshots --state " + problem.ShellWord(state)
	case errors.Is(err, unix.EACCES):
		p.Err = fmt.Errorf("permission denied on %s", filepath.Join(state, "agent.sock"))
		p.Hint = "run this as the user that runs the agent, or with sudo; to read, its group may search the directory (chmod g+x " + problem.ShellWord(state) + "), or ask its --listen address: curl http://127.0.0.1:9310/"
	default:
		return fmt.Errorf("ask the agent on %s: %w", state, err)
	}
	return p
}
