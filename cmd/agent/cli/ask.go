package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ask speaks to the agent that runs on the state directory.
func ask(ctx context.Context, state, method, path string, body, answer any, patience time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errNoAnswer)
	defer cancel()
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
		return fault(fmt.Errorf("the agent on %s did not answer within %s", state, patience), "see whether it hangs or is stopped: its log, and the pid in "+filepath.Join(state, "lock"))
	}
	if err != nil {
		return notRunning(state, err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return fault(fmt.Errorf("read the agent's answer: %w", err), "")
	}
	return nil
}

var errNoAnswer = errors.New("no answer")

// notRunning explains why no agent answered.
func notRunning(state string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		if _, statErr := os.Stat(state); statErr != nil {
			return fault(fmt.Errorf("there is no state directory %s", state), "check --state; it is the one `agent run` was given")
		}
		return fault(fmt.Errorf("no agent runs on %s", state), "start one with `agent run`; what it recorded: agent snapshots --state "+shellWord(state))
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return fault(fmt.Errorf("the agent on %s went away before it answered", state), "what it had recorded goes on at its next start: agent snapshots --state "+shellWord(state))
	case errors.Is(err, unix.EACCES):
		return fault(fmt.Errorf("the agent on %s is not yours to command", state), "run this as the user that runs the agent, or with sudo")
	}
	return fault(fmt.Errorf("ask the agent on %s: %w", state, err), "")
}
