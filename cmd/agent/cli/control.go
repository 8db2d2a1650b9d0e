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
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/apply"
	"dtesn-agent/schema"
)

// maxSocketPath is the longest path a Unix socket can have on Linux (sun_path
// holds 108 bytes, one of them NUL; unix(7)).
const maxSocketPath = 107

// A control is the operator's way into a running agent: HTTP over
// <state>/agent.sock, mode 0600, so that who may write into the state
// directory may command and nobody else.
type control struct {
	agent    *agent
	listener net.Listener
}

// An order is the body of a command; its answer is an orderResult, or an
// orderError with status 409.
type order struct {
	ID      string  `json:"id,omitempty"`
	Reason  string  `json:"reason,omitempty"`
	Pause   bool    `json:"pause,omitempty"`
	Timeout float64 `json:"timeout_seconds,omitempty"`
}

type orderResult struct {
	Outcome    schema.Outcome `json:"outcome"`
	SnapshotID string         `json:"snapshot_id,omitempty"`
	Text       string         `json:"text,omitempty"`
	Error      string         `json:"error,omitempty"`
}

// newControl listens on path. A socket that is there is left over from a
// killed agent: the lock on the state directory is held by this process.
func newControl(path string, a *agent) (*control, error) {
	if err := checkSocketPath(path); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fault(fmt.Errorf("%s is in the way: it is not a socket", path), "move it away, or choose another --state")
		}
		if err := os.Remove(path); err != nil {
			return nil, fault(fmt.Errorf("remove the control socket of an earlier agent: %w", err), "")
		}
	}
	// The mode is set before the bind, so that the socket is never open to
	// others, not for a moment.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var modeErr error
		err := raw.Control(func(fd uintptr) { modeErr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, modeErr)
	}}
	listener, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fault(fmt.Errorf("listen on the control socket: %w", err), "")
	}
	return &control{agent: a, listener: listener}, nil
}

func checkSocketPath(path string) error {
	if len(path) > maxSocketPath {
		return fault(fmt.Errorf("the path of the control socket has %d bytes, a Unix socket takes %d: %s", len(path), maxSocketPath, path),
			"choose a shorter --state, or a short link to it")
	}
	return nil
}

type uidKey struct{}

// serve answers until ctx ends.
func (c *control) serve(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", c.status)
	mux.HandleFunc("POST /sync", func(w http.ResponseWriter, _ *http.Request) {
		c.agent.sync()
		writeJSON(w, http.StatusOK, orderResult{Text: "the source and the engine are being read"})
	})
	for _, verb := range []string{"rollback", "pause", "resume"} {
		mux.HandleFunc("POST /"+verb, func(w http.ResponseWriter, q *http.Request) { c.order(w, q, verb) })
	}
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, uidKey{}, peerUID(conn))
		},
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(c.listener) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		timeout, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		err := server.Shutdown(timeout)
		if serveErr := <-done; !errors.Is(serveErr, http.ErrServerClosed) {
			err = errors.Join(err, serveErr)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			err = server.Close() // somebody holds a connection open; they had two seconds
		}
		return err
	}
}

// peerUID is the user behind a control connection, -1 if not known.
func peerUID(conn net.Conn) int {
	uid := -1
	if u, ok := conn.(*net.UnixConn); ok {
		if raw, err := u.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
					uid = int(cred.Uid)
				}
			})
		}
	}
	return uid
}

// A report is the answer to GET /status: the status and what the clock says.
type report struct {
	Status *apply.Status `json:"status"`
	Checks apply.Checks  `json:"checks"`
	Ready  bool          `json:"ready"`
	Live   bool          `json:"live"`
	Why    string        `json:"why,omitempty"`
	Text   string        `json:"text"`
}

func (c *control) status(w http.ResponseWriter, _ *http.Request) {
	s := c.agent.reconciler.Status()
	stuck := c.agent.web.Stuck()
	r := report{Status: s, Checks: s.Checks(time.Now()), Ready: s.Ready, Live: stuck == "", Why: s.Unready, Text: c.agent.web.Text()}
	if stuck != "" {
		r.Why = stuck
	}
	writeJSON(w, http.StatusOK, r)
}

func (c *control) order(w http.ResponseWriter, q *http.Request, verb string) {
	var o order
	if err := json.NewDecoder(http.MaxBytesReader(w, q.Body, 64<<10)).Decode(&o); err != nil {
		writeJSON(w, http.StatusBadRequest, orderResult{Error: err.Error()})
		return
	}
	uid, _ := q.Context().Value(uidKey{}).(int)
	ctx, cancel := context.WithTimeout(q.Context(), time.Duration(o.Timeout*float64(time.Second)))
	defer cancel()
	result, err := c.agent.reconciler.Do(ctx, apply.Command{Verb: verb, ID: o.ID, Reason: o.Reason, Pause: o.Pause, UID: uid})
	if err != nil {
		writeJSON(w, http.StatusConflict, orderResult{Error: err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, orderResult{Outcome: result.Outcome, SnapshotID: result.SnapshotID, Text: result.Text})
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // the caller is gone if this fails
}

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
