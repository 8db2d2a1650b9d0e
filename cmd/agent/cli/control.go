package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/dtesn/bounded"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

// maxSocketPath is the longest path a Unix socket can have on Linux (sun_path
// holds 108 bytes, one of them NUL; unix(7)).
const maxSocketPath = 107

// A control is the operator's way into a running agent: HTTP over <state>/agent.sock.
// Orders are taken from the agent's user and from root alone, by the kernel's word. The
// socket's group may read, if it may search the state directory.
type control struct {
	agent *agent
	place
	listener *net.UnixListener
}

// An order is the body of a command; its answer is an orderResult, or an
// orderError with status 409.
type order struct {
	ID     string   `json:"id,omitempty"`
	Reason string   `json:"reason,omitempty"`
	Pause  bool     `json:"pause,omitempty"`
	Hold   []string `json:"hold,omitempty"`    // parameters whose values a rollback holds; all that differ if empty
	Name   string   `json:"name,omitempty"`    // the parameter that resume is about; all if empty
	DryRun bool     `json:"dry_run,omitempty"` // say what would be done
	// Timeout is how long the caller waits, 30 s if it is 0. Deadline, in Unix seconds, is
	// the same as a time: an order that is read after it is forgotten.
	Timeout  float64 `json:"timeout_seconds,omitempty"`
	Deadline float64 `json:"deadline,omitempty"`
	// User and Login are who gives the order, as the client claims; the uid is the
	// kernel's word.
	User  string `json:"user,omitempty"`
	Login string `json:"login,omitempty"`
	Level string `json:"level,omitempty"` // of the log; as it is if empty
}

// until returns when the caller gives up, for an order that is read at now.
func (o *order) until(now time.Time) time.Time {
	seconds := o.Timeout
	if seconds == 0 {
		seconds = orderTimeout.Seconds()
	}
	seconds = max(0, min(seconds, maxOrderTimeout.Seconds()))
	if o.Deadline > 0 {
		seconds = min(seconds, o.Deadline-record.Unix(now))
	}
	return now.Add(time.Duration(seconds * float64(time.Second)))
}

type orderResult struct {
	Outcome    record.Outcome `json:"outcome"`
	SnapshotID string         `json:"snapshot_id,omitempty"`
	Text       string         `json:"text,omitempty"`
	Error      string         `json:"error,omitempty"`
	Hint       string         `json:"hint,omitempty"`
}

// newControl listens on path.
func newControl(path string, a *agent) (*control, error) {
	if err := checkSocketPath(path); err != nil {
		return nil, err
	}
	c := &control{agent: a, place: place{path: path}}
	return c, c.listen()
}

// listen makes the socket. One that is there is left over from a killed agent:
// the lock on the state directory is held by this process.
func (c *control) listen() error {
	if err := c.agent.clearSocket(c.path); err != nil {
		return err
	}
	if err := os.Remove(c.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the control socket of an earlier agent: %w", err)
	}
	// The mode is set before the bind, so that the socket is never open to
	// others, not for a moment.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var modeErr error
		err := raw.Control(func(fd uintptr) { modeErr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, modeErr)
	}}
	listener, err := config.Listen(context.Background(), "unix", c.path)
	if err != nil {
		return fmt.Errorf("listen on the control socket: %w", err)
	}
	c.listener = listener.(*net.UnixListener)
	c.listener.SetUnlinkOnClose(false)              // what lies there then may be another's
	if err := os.Chmod(c.path, 0o660); err != nil { // not before: the umask counts at bind
		return fmt.Errorf("open the control socket to its group: %w", err)
	}
	c.place, err = placeOf(c.path)
	return err
}

// close ends the listening and removes the socket, if it is there.
func (c *control) close() error {
	if c.stands() {
		_ = os.Remove(c.path)
	}
	return c.listener.Close()
}

func checkSocketPath(path string) error {
	if len(path) > maxSocketPath {
		return problem.New("", fmt.Errorf("the path of the control socket has %d bytes, a Unix socket takes %d: %s", len(path), maxSocketPath, path),
			"choose a shorter --state, or a short link to it")
	}
	return nil
}

type uidKey struct{}

// serve answers until ctx ends.
func (c *control) serve(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", c.status)
	mux.HandleFunc("GET /report", func(w http.ResponseWriter, q *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"html": string(c.agent.web.Report(q.Context()))})
	})
	mux.HandleFunc("POST /sync", operators(func(w http.ResponseWriter, _ *http.Request) {
		c.agent.sync()
		writeJSON(w, http.StatusOK, orderResult{Text: "the source and the engine are being read"})
	}))
	mux.HandleFunc("POST /log-level", operators(c.logLevel))
	handleProfiles(mux)
	for verb, build := range builders {
		mux.HandleFunc("POST /"+verb, operators(func(w http.ResponseWriter, q *http.Request) { c.order(w, q, build) }))
	}
	server := bounded.New(c.agent.log, c.path, mux)
	// An order may wait for longer: its body and its answer have deadlines of their own.
	server.ReadTimeout, server.WriteTimeout = 0, 0
	bound := server.ConnContext
	server.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(bound(ctx, conn), uidKey{}, peerUID(conn))
	}
	for {
		done := make(chan error, 1)
		go func() { done <- server.Serve(c.listener) }()
		if err := c.displaced(ctx, done); err != nil {
			return err
		}
		if ctx.Err() != nil {
			server.End(2 * time.Second)
			if err := <-done; !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		}
		_ = c.close() // it pins the disk that it was made on
		<-done
		if !c.agent.again(ctx, "control socket", c.path, c.listen) {
			return nil
		}
	}
}

// operators refuses requests of others than the agent's user and root.
func operators(handler http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		if uid, _ := q.Context().Value(uidKey{}).(int); uid != 0 && uid != os.Geteuid() {
			writeJSON(w, http.StatusForbidden, orderResult{
				Error: fmt.Sprintf("uid %d may read the status and give no orders", uid), Hint: "run this as the user that runs the agent, or with sudo",
			})
			return
		}
		handler(w, q)
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
	Status *status.FullStatus `json:"status"`
	Checks apply.Checks       `json:"checks"`
	Ready  bool               `json:"ready"`
	Live   bool               `json:"live"`
	Why    string             `json:"why,omitempty"`
	Text   string             `json:"text"`
}

func (c *control) status(w http.ResponseWriter, _ *http.Request) {
	s := c.agent.web.Full()
	stuck := c.agent.web.Stuck()
	r := report{Status: s, Checks: s.Checks(time.Now()), Ready: s.Ready, Live: stuck == "", Why: s.Unready, Text: c.agent.web.Text()}
	if stuck != "" {
		r.Why = stuck
	}
	writeJSON(w, http.StatusOK, r)
}

// builders make the orders of the agent from requests, by path.
var builders = map[string]func(*order, record.Requester) apply.Order{
	"rollback": func(o *order, who record.Requester) apply.Order {
		return &apply.Rollback{ID: o.ID, Reason: o.Reason, Pause: o.Pause, Hold: o.Hold, DryRun: o.DryRun, Requester: who}
	},
	"pause": func(o *order, who record.Requester) apply.Order {
		return &apply.Pause{Reason: o.Reason, Requester: who}
	},
	"resume": func(o *order, who record.Requester) apply.Order {
		return &apply.Resume{Name: o.Name, Reason: o.Reason, DryRun: o.DryRun, Requester: who}
	},
}

func (c *control) order(w http.ResponseWriter, q *http.Request, build func(*order, record.Requester) apply.Order) {
	o, who, ok := readOrder(w, q)
	if !ok {
		return
	}
	ctx, cancel := context.WithDeadline(q.Context(), o.until(time.Now()))
	defer cancel()
	result, err := c.agent.reconciler.Do(ctx, build(&o, who))
	if err != nil {
		writeJSON(w, http.StatusConflict, orderResult{Error: err.Error(), Hint: problem.Hint(err)})
		return
	}
	writeJSON(w, http.StatusOK, orderResult{Outcome: result.Outcome, SnapshotID: result.SnapshotID, Text: result.Text})
}

// readOrder reads the body of an order, and who gives it. If it cannot it answers that.
func readOrder(w http.ResponseWriter, q *http.Request) (o order, who record.Requester, ok bool) {
	conn := http.NewResponseController(w)
	_ = conn.SetReadDeadline(time.Now().Add(transferTime))
	if err := json.NewDecoder(http.MaxBytesReader(w, q.Body, 64<<10)).Decode(&o); err != nil {
		writeJSON(w, http.StatusBadRequest, orderResult{Error: err.Error()})
		return o, who, false
	}
	_ = conn.SetReadDeadline(time.Time{}) // the server reads on to see who leaves
	uid, _ := q.Context().Value(uidKey{}).(int)
	return o, record.Requester{UID: uid, User: o.User, Login: o.Login}, true
}

// transferTime is how long the body of an order may take to come, and an answer to go.
const transferTime = 10 * time.Second

func writeJSON(w http.ResponseWriter, code int, v any) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(transferTime))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // the caller is gone if this fails
}
