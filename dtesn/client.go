package dtesn

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"dtesn-agent/schema"
)

// DefaultTimeout bounds an operation when Options say nothing.
const DefaultTimeout = 10 * time.Second

// Options say which engine a Client is for.
type Options struct {
	// Socket is the path of the engine's Unix socket.
	Socket string
	// Environment is the label that the engine must bear, or take.
	Environment schema.Environment
	// Timeout bounds each operation as a whole; 0 means DefaultTimeout.
	Timeout time.Duration
	// UID, if set, is the user that must have opened the socket: nothing is
	// asked of another's, and nothing sent.
	UID *uint32
	// ReadOnly: nothing is ever posted, the label neither.
	ReadOnly bool
}

// A Client speaks to one engine. It holds no state but the connection that
// Prepare made and a habit of the engine, and is safe for concurrent use.
type Client struct {
	options Options
	opening sync.WaitGroup // what Prepare began
	// A request was answered, or was not, since Watch asked for it last.
	answered, unanswered atomic.Bool

	mu       sync.Mutex
	prepared *preparation // nil if nothing is prepared
	abrupt   schema.Peer  // was met to close behind an answer without saying so
}

// New returns a Client. It does not dial: an engine may come later.
func New(options Options) *Client {
	if options.Timeout <= 0 {
		options.Timeout = DefaultTimeout
	}
	return &Client{options: options}
}

// Read asks on a fresh connection what the engine runs, and gives it our
// environment label if it bears another (unless ReadOnly). The error is a
// *schema.ForeignError when what answers is not a DTESN engine or refuses the
// label; else the engine could not be reached, did not answer in time, or
// failed, and the error wraps the cause.
func (c *Client) Read(ctx context.Context) (schema.Reading, error) {
	reading, err := c.read(ctx)
	if err != nil {
		return schema.Reading{}, fmt.Errorf("read what the engine at %s runs: %w", c.options.Socket, err)
	}
	return reading, nil
}

func (c *Client) read(ctx context.Context) (schema.Reading, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	s, err := c.dial(ctx)
	if err != nil {
		return schema.Reading{}, err
	}
	defer s.close()
	reading, err := current(ctx, s)
	if err != nil || c.options.ReadOnly || reading.Environment == string(c.options.Environment) {
		return reading, err
	}
	if err := c.label(ctx, s); err != nil {
		return schema.Reading{}, err
	}
	bore := reading.Environment
	if reading, err = current(ctx, s); err != nil {
		return schema.Reading{}, err
	}
	if reading.Environment != string(c.options.Environment) {
		return schema.Reading{}, &schema.ForeignError{Environment: true, Reason: fmt.Sprintf(
			"it is labelled %q (before: %q) after it was told to be %q", line(reading.Environment), line(bore), c.options.Environment)}
	}
	reading.Relabelled = line(bore)
	return reading, nil
}

// current asks GET current on s.
func current(ctx context.Context, s *session) (schema.Reading, error) {
	status, body, err := s.do(ctx, http.MethodGet, PathCurrent, nil)
	if err != nil {
		return schema.Reading{}, err
	}
	reading, err := decodeCurrent(status, body)
	reading.Peer = s.peer
	return reading, err
}

// label posts our environment on s.
func (c *Client) label(ctx context.Context, s *session) error {
	body, err := json.Marshal(EnvironmentRequest{Environment: string(c.options.Environment)})
	if err != nil {
		return err
	}
	status, answer, err := s.do(ctx, http.MethodPost, PathEnvironment, body)
	if err != nil {
		return fmt.Errorf("set the environment label: %w", err)
	}
	return judgeLabel(c.options.Environment, status, answer)
}

// Send sends one atomic batch with the full parameter set on a fresh
// connection, after the environment label. Its Verdict is
//
//   - accepted: 200 with success true;
//   - rejected: 200 with success false, 400, 409 or 422; Errors say why;
//   - foreign: a 3xx or any other 4xx, or a label that was refused;
//   - not sent: no byte of the batch reached the socket;
//   - unknown: all else. Broken is set when the connection broke and no
//     timeout, ours or the caller's, cut it.
//
// No batch is sent again of which a byte may have reached the engine.
func (c *Client) Send(ctx context.Context, batch schema.Batch) schema.Answer {
	answer := c.send(ctx, batch)
	if answer.Err != nil {
		answer.Err = fmt.Errorf("send %s to the engine at %s: %w", batch.SnapshotID, c.options.Socket, answer.Err)
	}
	return answer
}

func (c *Client) send(ctx context.Context, batch schema.Batch) schema.Answer {
	if c.options.ReadOnly {
		return schema.Answer{Verdict: schema.VerdictNotSent, Err: fmt.Errorf("this agent only observes, and never sends")}
	}
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	body, err := json.Marshal(c.request(batch))
	if err != nil {
		return schema.Answer{Verdict: schema.VerdictNotSent, Err: err}
	}
	s, err := c.labelled(ctx)
	if isForeign(err) {
		return schema.Answer{Verdict: schema.VerdictForeign, Err: err}
	}
	if err != nil {
		return schema.Answer{Verdict: schema.VerdictNotSent, Err: err}
	}
	defer s.close()
	// The point of no return: from the first byte on, the engine may run the
	// batch, whatever comes back.
	status, reply, err := s.do(ctx, http.MethodPost, PathBatchUpdate, body)
	answer := judge(status, reply, err)
	if answer.Verdict != schema.VerdictNotSent {
		answer.Peer = s.peer
	}
	return answer
}

// open dials and sets the label.
func (c *Client) open(ctx context.Context) (*session, error) {
	s, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.label(ctx, s); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// isAbrupt remembers that this engine closes a connection behind an answer
// without saying so. A batch on such a connection would be lost, and not known
// to be: from now on each request goes over one of its own, and says so.
func (c *Client) isAbrupt(engine schema.Peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.abrupt = engine
}

func (c *Client) knowsAbrupt(engine schema.Peer) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.abrupt == engine
}

// request is the body for batch: all six parameters, in canonical order.
func (c *Client) request(batch schema.Batch) BatchUpdate {
	request := BatchUpdate{
		Description: batch.Description,
		SnapshotID:  batch.SnapshotID,
		Revision:    batch.Revision,
	}
	for _, name := range schema.Names() {
		request.Updates = append(request.Updates, Update{
			Parameter: name, Value: batch.Parameters.Get(name), Environment: string(c.options.Environment),
		})
	}
	return request
}

// decodeCurrent takes from an answer to GET current the six parameters and the
// label, and nothing else: other servers of the family say more, and other
// things under the same names.
func decodeCurrent(status int, body []byte) (schema.Reading, error) {
	if status >= 300 && !foreign(status) {
		return schema.Reading{}, &schema.AnswerError{Reason: fmt.Sprintf("the engine answered %s to GET %s%s", statusText(status), PathCurrent, because(reasons(body)))}
	}
	if status != http.StatusOK {
		return schema.Reading{}, notAnEngine("GET %s answered %s", PathCurrent, statusText(status))
	}
	var answer struct {
		Success       json.RawMessage            `json:"success"`
		Configuration map[string]json.RawMessage `json:"configuration"`
		Environment   json.RawMessage            `json:"environment"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return schema.Reading{}, notAnEngine("GET %s answered %s: %s", PathCurrent, quote(body), line(err.Error()))
	}
	switch string(answer.Success) {
	case "true":
	case "false":
		return schema.Reading{}, &schema.AnswerError{Reason: "the engine cannot say what it runs" + because(reasons(body))}
	default:
		return schema.Reading{}, notAnEngine("GET %s answered %s, without success", PathCurrent, quote(body))
	}
	var reading schema.Reading
	for _, name := range schema.Names() {
		if err := decodeParameter(&reading.Parameters, name, answer.Configuration[name]); err != nil {
			return schema.Reading{}, err
		}
	}
	// No label, or one that is no string, is "": as good as any other that is
	// not ours.
	if json.Unmarshal(answer.Environment, &reading.Environment) != nil {
		reading.Environment = ""
	}
	return reading, nil
}

func decodeParameter(p *schema.Parameters, name string, raw json.RawMessage) error {
	if raw == nil || bytes.Equal(raw, []byte("null")) {
		return notAnEngine("its configuration has no %s", name)
	}
	var value any
	switch p.Get(name).(type) {
	case int:
		var n int
		if json.Unmarshal(raw, &n) != nil {
			return notAnEngine("its %s is %s, want an integer", name, quote(raw))
		}
		value = n
	case bool:
		var b bool
		if json.Unmarshal(raw, &b) != nil {
			return notAnEngine("its %s is %s, want a bool", name, quote(raw))
		}
		value = b
	}
	return p.Set(name, value)
}
