package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/dtesn"
	"dtesn-agent/dtesn/bounded"
)

// grace is how long requests in flight may take to finish when Serve is to
// end.
const grace = 5 * time.Second

// Listen makes the socket at path, mode 0600: who may connect may change
// everything. A socket that a dead engine left is replaced; one that somebody
// listens on, and a file that is no socket, is an error. The socket goes when
// the listener is closed, if it is still this one's.
func Listen(path string) (net.Listener, error) {
	if len(path) > dtesn.MaxSocketPath {
		return nil, fmt.Errorf("listen on %s: the path is %d bytes long, a Unix socket takes %d at most: use a shorter one, or a link to its directory", path, len(path), dtesn.MaxSocketPath)
	}
	if err := removeDead(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// The file gets the mode of the socket that is bound, less the umask: set
	// before, there is no moment at which others may connect.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var modeErr error
		if err := raw.Control(func(fd uintptr) { modeErr = unix.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return modeErr
	}}
	listener, err := config.Listen(context.Background(), "unix", path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: its directory does not exist: create it first", path)
	}
	if err != nil {
		return nil, err
	}
	own, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), listener.Close())
	}
	unix, ok := listener.(*net.UnixListener)
	if ok {
		unix.SetUnlinkOnClose(false) // it would remove whatever stands there by then
	}
	return &ownSocket{Listener: listener, path: path, own: own}, nil
}

// An ownSocket takes its file with it when it is closed, but not that of
// another engine that has taken the path over.
type ownSocket struct {
	net.Listener
	path string
	own  fs.FileInfo
	once sync.Once
}

func (l *ownSocket) Close() error {
	l.once.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.own) {
			_ = os.Remove(l.path)
		}
	})
	return l.Listener.Close()
}

// removeDead removes the socket at path if connecting to it is refused.
func removeDead(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is a file that is no socket: remove it, or choose another path")
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
		return errors.New("another engine listens on it: stop that one, or choose another path")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("see whether another engine listens on it: %w", err)
	}
	return os.Remove(path)
}

// Serve answers requests on listener until ctx ends, then lets those in flight
// finish for 5 s, closes the listener and returns nil. An error is that of the
// listener.
func (e *Engine) Serve(ctx context.Context, listener net.Listener) error {
	server := bounded.New(e.log, listener.Addr().String(), e.Handler())
	// The agent holds a connection to notice a restart, and asks over others at long
	// intervals: one may be idle as long as its place is not needed. See decode and answer.
	server.ReadHeaderTimeout, server.ReadTimeout, server.WriteTimeout, server.IdleTimeout = 0, 0, 0, 0
	server.MaxHeaderBytes = 64 << 10
	if err := server.ServeUntil(ctx, listener, grace); err != nil {
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	}
	return nil
}
