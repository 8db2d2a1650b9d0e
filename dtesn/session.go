package dtesn

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/schema"
)

const (
	// MaxSocketPath is the longest path of a Unix socket, in bytes: sun_path of
	// unix(7) holds 108 with the final NUL.
	MaxSocketPath = 107

	maxHeader  = 64 << 10 // bytes of one answer's header
	maxInterim = 5        // 1xx answers before the real one
)

var errTooLarge error = &schema.AnswerError{Reason: fmt.Sprintf("the answer is larger than %d KiB: it is cut off", MaxBody>>10)}

// A session is one connection to the engine and its Peer, for one operation.
// It dials again only when the engine closed the connection behind an answer
// and another request is to follow.
//
// net/http writes the request and reads the answer, without its Transport: a
// Transport dials and retries as it sees fit, and here it must be known
// whether a byte of a batch reached the socket.
type session struct {
	socket string
	uid    *uint32 // whose socket it must be
	conn   *net.UnixConn
	from   *bounded
	reader *bufio.Reader
	peer   schema.Peer
	spent  bool // the last answer was the connection's last
}

// An exchangeError is why a request has no answer.
type exchangeError struct {
	sent   bool // bytes of the request reached the socket
	broken bool // the connection broke, and no timeout
	err    error
}

func (e *exchangeError) Error() string { return e.err.Error() }
func (e *exchangeError) Unwrap() error { return e.err }

// dial connects to the engine. Its error says in one line what is wrong with
// the socket and what to do.
func (c *Client) dial(ctx context.Context) (*session, error) {
	s := &session{socket: c.options.Socket, uid: c.options.UID}
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *session) connect(ctx context.Context) error {
	if len(s.socket) > MaxSocketPath {
		return fmt.Errorf("the socket's path is %d bytes long, a Unix socket takes %d at most: use a shorter path, or a link to its directory", len(s.socket), MaxSocketPath)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", s.socket)
	if err != nil {
		return explain(s.socket, err)
	}
	s.conn = conn.(*net.UnixConn)
	s.from = &bounded{reader: conn}
	s.reader = bufio.NewReader(s.from)
	s.spent = false
	if s.peer, err = peerOf(s.conn, s.socket); err != nil {
		s.close()
		return err
	}
	if s.uid != nil && s.peer.UID != *s.uid {
		s.close()
		return &schema.ForeignError{User: true, Reason: fmt.Sprintf("the socket was opened by uid %d, and --engine-uid is %d", s.peer.UID, *s.uid)}
	}
	return nil
}

// gone reports whether the engine has closed the connection, or said what
// nobody asked for. It does not wait.
func (s *session) gone() bool {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return true
	}
	var quiet bool
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, peek := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		quiet = errors.Is(peek, unix.EAGAIN)
		return true // do not wait for more
	})
	return err != nil || !quiet
}

func (s *session) close() { _ = s.conn.Close() }

// do sends one request and reads its answer, both until ctx ends. The status
// is set beside an error when a status line came and the body did not.
func (s *session) do(ctx context.Context, method, path string, body []byte) (status int, answer []byte, err error) {
	if s.spent {
		s.close()
		if err := s.connect(ctx); err != nil {
			return 0, nil, &exchangeError{err: err}
		}
	}
	// A deadline in the past wakes a blocked read or write.
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	request, err := http.NewRequestWithContext(ctx, method, "http://engine"+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, &exchangeError{err: err}
	}
	request.Header.Set("User-Agent", "dtesn-agent")
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	var wire bytes.Buffer
	if err := request.Write(&wire); err != nil {
		return 0, nil, &exchangeError{err: err}
	}
	n, err := s.conn.Write(wire.Bytes())
	if err != nil {
		return 0, nil, s.fault(ctx, n > 0, err)
	}
	s.from.left = maxHeader + MaxBody + 1
	response, err := s.response(request)
	if err != nil {
		return 0, nil, s.fault(ctx, true, err)
	}
	defer func() { _ = response.Body.Close() }()
	s.spent = response.Close
	answer, err = io.ReadAll(io.LimitReader(response.Body, MaxBody+1))
	if err == nil && len(answer) > MaxBody {
		err = errTooLarge
	}
	if err != nil {
		return response.StatusCode, nil, s.fault(ctx, true, err)
	}
	return response.StatusCode, answer, nil
}

// response reads a header, passing over 1xx.
func (s *session) response(request *http.Request) (*http.Response, error) {
	for range maxInterim {
		response, err := http.ReadResponse(s.reader, request)
		if err != nil || response.StatusCode >= 200 {
			return response, err
		}
	}
	return nil, errors.New("one 1xx answer after another")
}

// fault says in words why an exchange failed, and what that means.
func (s *session) fault(ctx context.Context, sent bool, err error) error {
	s.spent = true
	e := &exchangeError{sent: sent}
	switch {
	case ctx.Err() != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		e.err = fmt.Errorf("no whole answer in time: %w", context.Cause(ctx))
	case ctx.Err() != nil:
		e.err = fmt.Errorf("given up: %w", context.Cause(ctx))
	case errors.Is(err, errTooLarge):
		e.err = errTooLarge
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		e.broken = true
		e.err = fmt.Errorf("the connection broke: %w", err)
	default:
		e.err = &schema.AnswerError{Reason: "the answer is not HTTP: " + line(err.Error())}
	}
	return e
}

// bounded reads at most left bytes.
type bounded struct {
	reader io.Reader
	left   int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLarge
	}
	n, err := b.reader.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// peerOf names the process behind conn: SO_PEERCRED of unix(7), which is of
// who called listen, and the socket file. A file that vanished meanwhile
// counts as none.
func peerOf(conn *net.UnixConn, socket string) (schema.Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return schema.Peer{}, fmt.Errorf("ask who listens: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return schema.Peer{}, fmt.Errorf("ask who listens: %w", err)
	}
	if credErr != nil {
		return schema.Peer{}, fmt.Errorf("ask who listens: %w", credErr)
	}
	return schema.Peer{PID: cred.Pid, UID: cred.Uid, Socket: identity(socket)}, nil
}

// identity names the file at path: another socket at the same path has another
// one. It is "" while there is none.
func identity(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d:%d.%09d", st.Dev, st.Ino, st.Ctim.Sec, st.Ctim.Nsec)
}

// explain says what is wrong with a socket that cannot be dialed, and the way
// out; it wraps the cause.
func explain(socket string, err error) error {
	var cause error = err
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		cause = errno
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("there is no socket (%w): start the engine, or name its socket with --engine", cause)
	case errors.Is(err, syscall.ECONNREFUSED):
		if info, statErr := os.Stat(socket); statErr == nil && info.Mode().Type() != fs.ModeSocket {
			return fmt.Errorf("it is no socket but %s (%w): name the engine's socket with --engine", kind(info.Mode()), cause)
		}
		return fmt.Errorf("nobody listens on the socket (%w): start the engine again, it left the file behind", cause)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("uid %d may not connect: run the agent as the engine's user or group, or open the socket and its directory to it: %w", os.Geteuid(), cause)
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("the engine takes no connections, its queue is full: see whether it hangs: %w", cause)
	case errors.Is(err, syscall.EPROTOTYPE):
		return fmt.Errorf("the socket is not of the stream kind: name the engine's socket with --engine: %w", cause)
	}
	return fmt.Errorf("connect: %w", cause)
}

func kind(mode fs.FileMode) string {
	switch {
	case mode.IsRegular():
		return "a regular file"
	case mode.IsDir():
		return "a directory"
	}
	return "something else"
}
