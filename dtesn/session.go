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
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/schema/problem"
)

const (
	// MaxSocketPath is the longest path of a Unix socket, in bytes: sun_path of
	// unix(7) holds 108 with the final NUL.
	MaxSocketPath = 107

	maxHeader    = 64 << 10 // bytes of one answer's header
	answerAtMost = maxHeader + MaxBody + 1
	maxInterim   = 5 // 1xx answers before the real one
)

var errTooLarge error = &api.AnswerError{Reason: fmt.Sprintf("the answer is larger than %d KiB: it is cut off", MaxBody>>10)}

// A session is one connection to the engine and its Peer, for one operation.
// It dials again, the same Peer only, when the engine closed the connection
// behind an answer and another request is to follow.
//
// net/http writes the request and reads the answer, without its Transport: a
// Transport dials and retries as it sees fit, and here it must be known
// whether a byte of a batch reached the socket.
type session struct {
	client *Client
	conn   *net.UnixConn
	from   *bounded
	reader *bufio.Reader
	peer   api.Peer
	used   bool // an answer came over this connection
	spent  bool // it was the connection's last
}

// An exchangeError is why a request has no answer.
type exchangeError struct {
	sent   bool // bytes of the request reached the socket
	silent bool // no byte of an answer came
	broken bool // the connection broke, and no timeout
	err    error
}

func (e *exchangeError) Error() string { return e.err.Error() }
func (e *exchangeError) Unwrap() error { return e.err }

// dial connects to the engine. Its error says in one line what is wrong with
// the socket, and its hint what to do.
func (c *Client) dial(ctx context.Context) (*session, error) {
	s := &session{client: c}
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *session) connect(ctx context.Context) error {
	socket, uid := s.client.options.Socket, s.client.options.UID
	if len(socket) > MaxSocketPath {
		return problem.New("", fmt.Errorf("the socket's path is %d bytes long, a Unix socket takes %d at most", len(socket), MaxSocketPath), "use a shorter path, or a link to its directory")
	}
	// Before the dial: a file that is replaced in between makes a Peer that no
	// later one equals, and a restart is seen twice rather than never.
	file := identity(socket)
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("given up: %w", context.Cause(ctx))
	}
	if err != nil {
		if errors.Is(err, syscall.EAGAIN) {
			s.client.unanswered.Store(true)
		}
		return explain(socket, err)
	}
	s.conn = conn.(*net.UnixConn)
	s.from = &bounded{reader: conn}
	s.reader = bufio.NewReader(s.from)
	s.used, s.spent = false, false
	if s.peer, err = peerOf(s.conn, file); err != nil {
		s.close()
		return err
	}
	if uid != nil && s.peer.UID != *uid {
		s.close()
		return &api.ForeignError{User: true, Reason: fmt.Sprintf("the socket was opened by uid %d, and --engine-uid is %d", s.peer.UID, *uid)}
	}
	return nil
}

// again is a fresh connection to the same engine.
func (s *session) again(ctx context.Context) error {
	before := s.peer
	s.close()
	if err := s.connect(ctx); err != nil {
		return &exchangeError{err: err}
	}
	if s.peer != before {
		return &exchangeError{err: errors.New("the engine restarted between two requests")}
	}
	return nil
}

// left reports whether the engine has closed a connection that it answered on
// without saying so, and remembers it of the engine.
func (s *session) left() bool {
	gone := s.gone()
	if gone {
		s.client.isAbrupt(s.peer)
	}
	return gone
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
//
// A connection on which the engine has answered may be closed by now, and that
// says nothing about the engine. Then the request goes over a fresh one: if no
// byte of it was sent, or if asking twice does no harm and nothing came back.
func (s *session) do(ctx context.Context, method, path string, body []byte) (status int, answer []byte, err error) {
	if later := s.client.cooldown(s.peer, path); later != nil {
		return 0, nil, &exchangeError{err: later}
	}
	kept := s.used
	if s.spent || kept && (s.reader.Buffered() > 0 || s.left()) { // bytes beyond an answer are not the next one
		if err := s.again(ctx); err != nil {
			return 0, nil, err
		}
		kept = false
	}
	status, answer, err = s.exchange(ctx, method, path, body)
	var lost *exchangeError
	if !kept || !errors.As(err, &lost) || !lost.broken || !lost.silent {
		return status, answer, err
	}
	s.client.isAbrupt(s.peer)
	if lost.sent && path == PathBatchUpdate {
		return status, answer, err
	}
	if err := s.again(ctx); err != nil {
		return 0, nil, err
	}
	return s.exchange(ctx, method, path, body)
}

// exchange is one try of do.
func (s *session) exchange(ctx context.Context, method, path string, body []byte) (status int, answer []byte, err error) {
	// A deadline in the past wakes a blocked read or write.
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	request, err := http.NewRequestWithContext(ctx, method, "http://engine"+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, &exchangeError{err: err}
	}
	request.Header.Set("User-Agent", "dtesn-agent")
	request.Close = s.client.knowsAbrupt(s.peer)
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
	s.from.left = answerAtMost
	response, err := s.response(request)
	if err != nil {
		return 0, nil, s.fault(ctx, true, err)
	}
	defer func() { _ = response.Body.Close() }()
	s.used, s.spent = true, response.Close || request.Close
	s.client.answered.Store(true)
	answer, err = io.ReadAll(io.LimitReader(response.Body, MaxBody+1))
	if err == nil && len(answer) > MaxBody {
		err = errTooLarge
	}
	if err != nil {
		return response.StatusCode, nil, s.fault(ctx, true, err)
	}
	if later := asksToWait(response, method+" "+path, answer); later != nil {
		later.Peer = s.peer
		s.client.startCooldown(path, later)
		// 503 may come from something that gave up on a server which goes on.
		return 0, nil, &exchangeError{sent: response.StatusCode != http.StatusTooManyRequests, err: later}
	}
	return response.StatusCode, answer, nil
}

// cooldowns are until when an engine asks not to be asked: at a path that can be done
// without, such as its schema, or at all paths.
type cooldowns struct {
	peer  api.Peer
	until map[string]*api.LaterError // by path; "" is all
}

// The wait without a Retry-After, and the longest that is obeyed: an operator who rolls
// back waits as long.
const waitLeast, waitMost = time.Second, time.Minute

// startCooldown notes that an engine asks to wait.
func (c *Client) startCooldown(path string, later *api.LaterError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cooldowns.peer != later.Peer {
		c.cooldowns = cooldowns{later.Peer, map[string]*api.LaterError{}}
	}
	if path != PathSchema && path != PathHealth {
		path = ""
	}
	c.cooldowns.until[path] = later
}

// cooldown returns until when an engine is not to be asked at path, nil if it may be.
func (c *Client) cooldown(engine api.Peer, path string) *api.LaterError {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range []string{"", path} {
		if later := c.cooldowns.until[of]; later != nil && c.cooldowns.peer == engine && time.Now().Before(later.Until) {
			return later
		}
	}
	return nil
}

// asksToWait returns until when a response asks to wait, nil if it does not:
// RFC 6585, 4, and RFC 9110, 10.2.3.
func asksToWait(response *http.Response, request string, body []byte) *api.LaterError {
	value := response.Header.Get("Retry-After")
	switch response.StatusCode {
	case http.StatusTooManyRequests:
	case http.StatusServiceUnavailable:
		if answer, _ := decodeObject(body); value == "" || answer["health"] != nil { // that is a report of its health
			return nil
		}
	default:
		return nil
	}
	wait := waitLeast
	if seconds, err := strconv.Atoi(value); err == nil || errors.Is(err, strconv.ErrRange) {
		wait = time.Duration(min(seconds, int(waitMost.Seconds()))) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		wait = time.Until(at)
	}
	wait = min(max(wait, waitLeast), waitMost)
	asks := ""
	if value != "" {
		asks = " and asks to wait " + wait.Round(time.Second).String()
	}
	return &api.LaterError{Until: time.Now().Add(wait), Reason: fmt.Sprintf(
		"the engine answered %s to %s%s%s", statusText(response.StatusCode), request, asks, because(reasons(body)))}
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
	if ctx.Err() != nil {
		s.client.unanswered.Store(true)
	}
	e := &exchangeError{sent: sent, silent: !sent || s.from.left == answerAtMost}
	switch {
	case ctx.Err() != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		e.err = late{}
	case ctx.Err() != nil:
		e.err = fmt.Errorf("given up: %w", context.Cause(ctx))
	case errors.Is(err, errTooLarge):
		e.err = errTooLarge
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		e.broken = true
		e.err = fmt.Errorf("the connection broke: %w", err)
	default:
		e.err = &api.AnswerError{Reason: "the answer is not HTTP: " + line(err.Error())}
	}
	return e
}

// late says that the time of an exchange was over.
type late struct{}

func (late) Error() string { return "no whole answer in time (--engine-timeout)" }
func (late) Unwrap() error { return context.DeadlineExceeded }

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

// explain says what is wrong with a socket that cannot be dialed, with a hint; it
// wraps the cause.
func explain(socket string, err error) error {
	var cause error = err
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		cause = errno
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return problem.New("", fmt.Errorf("there is no socket (%w)", cause), "start the engine, or name its socket with --engine")
	case errors.Is(err, syscall.ECONNREFUSED):
		if info, statErr := os.Stat(socket); statErr == nil && info.Mode().Type() != fs.ModeSocket {
			return problem.New("", fmt.Errorf("it is no socket but %s (%w)", kind(info.Mode()), cause), "name the engine's socket with --engine")
		}
		return problem.New("", fmt.Errorf("nobody listens on the socket (%w)", cause), "start the engine again, it left the file behind")
	case errors.Is(err, fs.ErrPermission):
		return problem.New("", fmt.Errorf("uid %d may not connect: %w", os.Geteuid(), cause), "run the agent as the engine's user or group, or open the socket and its directory to it")
	case errors.Is(err, syscall.EAGAIN):
		return problem.New("", fmt.Errorf("the engine takes no connections, its queue is full: %w", cause), "see whether the engine hangs")
	case errors.Is(err, syscall.EPROTOTYPE):
		return problem.New("", fmt.Errorf("the socket is not of the stream kind: %w", cause), "name the engine's socket with --engine")
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
