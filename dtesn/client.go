package dtesn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/schema"
)

// DefaultTimeout bounds an operation when Options say nothing.
const DefaultTimeout = 10 * time.Second

// Options say which engine a Client is for.
type Options struct {
	// Socket is the path of the engine's Unix socket.
	Socket string
	// Rules are the names and types of the parameters. The engine must bear, or
	// take, the label that their schema gives to their environment.
	Rules *schema.Rules
	// Timeout bounds each operation as a whole; 0 means DefaultTimeout.
	Timeout time.Duration
	// UID, if set, is the user that must have opened the socket: nothing is sent
	// to the socket of another user.
	UID *uint32
	// ReadOnly: nothing is posted, not even the label.
	ReadOnly bool
}

// A Client is the client of one engine. It keeps no state but the connection
// that Prepare opened and how the engine closes connections. It is safe for
// concurrent use.
type Client struct {
	options Options
	label   string         // the environment label that the engine must bear
	opening sync.WaitGroup // what Prepare began
	// Whether a request had a response, and whether one had none, since Watch
	// looked last.
	answered, unanswered atomic.Bool

	mu       sync.Mutex
	prepared *preparation // nil if nothing is prepared
	abrupt   api.Peer     // closes connections after a response without saying so
	cooldowns
}

// New returns a Client. It does not dial: the engine may start later.
func New(options Options) *Client {
	if options.Timeout <= 0 {
		options.Timeout = DefaultTimeout
	}
	return &Client{options: options, label: options.Rules.Schema().Label(options.Rules.Environment())}
}

// Read asks on a fresh connection what the engine runs, and sets the
// environment label if the engine bears another one (unless ReadOnly). The
// Reading has those parameters of the schema that the engine reports. The error
// is a *api.ForeignError if the server is not a DTESN engine or refuses the
// label; otherwise the engine could not be reached, did not respond in time, or
// failed, and the error wraps the cause.
func (c *Client) Read(ctx context.Context) (api.Reading, error) {
	reading, err := c.read(ctx)
	if err != nil {
		return api.Reading{}, fmt.Errorf("read what the engine at %s runs: %w", c.options.Socket, err)
	}
	return reading, nil
}

func (c *Client) read(ctx context.Context) (api.Reading, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	s, err := c.dial(ctx)
	if err != nil {
		return api.Reading{}, err
	}
	defer s.close()
	reading, err := c.current(ctx, s)
	if err != nil || c.options.ReadOnly || reading.Environment == c.label {
		return reading, err
	}
	if err := c.setLabel(ctx, s); err != nil {
		return api.Reading{}, err
	}
	before := reading.Environment
	if reading, err = c.current(ctx, s); err != nil {
		return api.Reading{}, err
	}
	if reading.Environment != c.label {
		return api.Reading{}, &api.ForeignError{Environment: true, Reason: fmt.Sprintf(
			"it is labelled %q (before: %q) after it was told to be %q", line(reading.Environment), line(before), c.label)}
	}
	reading.Relabelled = line(before)
	return reading, nil
}

// current sends GET current on s.
func (c *Client) current(ctx context.Context, s *session) (api.Reading, error) {
	status, body, err := s.do(ctx, http.MethodGet, PathCurrent, nil)
	if err != nil {
		return api.Reading{}, err
	}
	reading, err := decodeCurrent(c.options.Rules, status, body)
	reading.Peer = s.peer
	return reading, err
}

// get sends one GET on a fresh connection. The peer is zero if nobody listens.
func (c *Client) get(ctx context.Context, path string) (status int, body []byte, peer api.Peer, err error) {
	s, err := c.dial(ctx)
	if err != nil {
		return 0, nil, api.Peer{}, err
	}
	defer s.close()
	status, body, err = s.do(ctx, http.MethodGet, path, nil)
	return status, body, s.peer, err
}

// setLabel posts the environment label on s.
func (c *Client) setLabel(ctx context.Context, s *session) error {
	body, err := json.Marshal(EnvironmentRequest{Environment: c.label})
	if err != nil {
		return err
	}
	status, answer, err := s.do(ctx, http.MethodPost, PathEnvironment, body)
	if err != nil {
		return fmt.Errorf("set the environment label: %w", err)
	}
	return judgeLabel(c.label, status, answer)
}

// Send sends the parameters of batch, all or none, on a fresh connection, after
// the environment label. Its Verdict is
//
//   - accepted: 200 with success true;
//   - rejected: 200 with success false, 400, 409 or 422; Errors say why;
//   - foreign: a 3xx or any other 4xx, or the label was refused;
//   - not sent: no byte of the batch reached the socket;
//   - unknown: all else. Broken is set when the connection broke and no
//     timeout, ours or the caller's, cut it.
//
// A batch of which a byte may have reached the engine is not sent again.
func (c *Client) Send(ctx context.Context, batch api.Batch) api.Answer {
	answer := c.send(ctx, batch)
	if answer.Err != nil {
		answer.Err = fmt.Errorf("send %s to the engine at %s: %w", batch.SnapshotID, c.options.Socket, answer.Err)
	}
	return answer
}

func (c *Client) send(ctx context.Context, batch api.Batch) api.Answer {
	if c.options.ReadOnly {
		return api.Answer{Verdict: api.VerdictNotSent, Err: errors.New("this agent only observes, and never sends")}
	}
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	body, err := json.Marshal(c.request(batch))
	if err != nil {
		return api.Answer{Verdict: api.VerdictNotSent, Err: err}
	}
	s, err := c.labelled(ctx)
	if isForeign(err) {
		return api.Answer{Verdict: api.VerdictForeign, Err: err}
	}
	if err != nil {
		return api.Answer{Verdict: api.VerdictNotSent, Err: err}
	}
	defer s.close()
	// From the first byte on the engine may run the batch, whatever it responds.
	status, reply, err := s.do(ctx, http.MethodPost, PathBatchUpdate, body)
	answer := judge(status, reply, err)
	if answer.Verdict != api.VerdictNotSent {
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
	if err := c.setLabel(ctx, s); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// isAbrupt remembers that this engine closes a connection after a response
// without saying so. A batch on such a connection would be lost without a
// trace: from now on each request has a connection of its own, and says so.
func (c *Client) isAbrupt(engine api.Peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.abrupt = engine
}

func (c *Client) knowsAbrupt(engine api.Peer) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.abrupt == engine
}

// request returns the body of POST batch-update: the parameters of batch,
// sorted by name.
func (c *Client) request(batch api.Batch) BatchUpdate {
	request := BatchUpdate{
		Description: batch.Description,
		SnapshotID:  batch.SnapshotID,
		Revision:    batch.Revision,
	}
	for _, name := range batch.Parameters.Names() {
		request.Updates = append(request.Updates, Update{
			Parameter: name, Value: batch.Parameters.Get(name), Environment: c.label,
		})
	}
	return request
}

// decodeCurrent reads the parameters of the schema and the label from the
// response to GET current. It ignores the rest: other servers of the family
// report more, and other things under the same names.
func decodeCurrent(rules *schema.Rules, status int, body []byte) (api.Reading, error) {
	if status >= 300 && !foreign(status) {
		return api.Reading{}, &api.AnswerError{Reason: fmt.Sprintf("the engine answered %s to GET %s%s", statusText(status), PathCurrent, because(reasons(body)))}
	}
	if status != http.StatusOK {
		return api.Reading{}, notAnEngine("GET %s answered %s%s", PathCurrent, statusText(status), because(reasons(body)))
	}
	answer, err := decodeObject(body)
	if err != nil {
		return api.Reading{}, notAnEngine("GET %s answered %s: %s", PathCurrent, quote(body), line(err.Error()))
	}
	switch string(answer["success"]) {
	case "true":
	case "false":
		return api.Reading{}, &api.AnswerError{Reason: "the engine cannot say what it runs" + because(reasons(body))}
	default:
		return api.Reading{}, notAnEngine("GET %s answered %s, without success", PathCurrent, quote(body))
	}
	configuration, err := decodeObject(answer["configuration"])
	if err != nil {
		return api.Reading{}, notAnEngine("its configuration is %s: %s", quote(answer["configuration"]), line(err.Error()))
	}
	// A label that is missing or no string is "": not ours.
	reading := api.Reading{Environment: decodeAs[string](answer["environment"]), Building: decodeBuilding(answer["building"])}
	values := map[string]schema.Value{}
	for _, p := range rules.Parameters() {
		raw, ok := configuration[p.Name]
		if string(raw) == "null" && !p.Required {
			reading.Unset = append(reading.Unset, p.Name)
		}
		if !ok || string(raw) == "null" {
			continue
		}
		switch v, ok := decodeValue(p.Type, raw); {
		case ok:
			values[p.Name] = v
		case p.Required:
			return api.Reading{}, notAnEngine("its %s is %s, want %s", p.Name, quote(raw), wanted[p.Type])
		default:
			if reading.Mistyped == nil {
				reading.Mistyped = map[string]string{}
			}
			reading.Mistyped[p.Name] = line(string(raw))
		}
	}
	if reading.Parameters = schema.NewParameters(values); len(values)+len(reading.Unset) == 0 {
		return api.Reading{}, notAnEngine("its configuration has none of the parameters %s", line(strings.Join(rules.Names(), ", ")))
	}
	return reading, nil
}

// decodeBuilding reads {"revision": a text, "since": Unix seconds}; nil if nothing
// is built.
func decodeBuilding(raw json.RawMessage) *api.Building {
	fields, err := decodeObject(raw)
	if err != nil || fields == nil {
		return nil
	}
	b := &api.Building{Revision: line(decodeAs[string](fields["revision"]))}
	if since := decodeAs[float64](fields["since"]); since > 0 && since < 1<<40 {
		b.Since = time.UnixMilli(int64(since * 1000))
	}
	return b
}

// wanted describes the types of parameters in errors.
var wanted = map[string]string{"int": "an integer", "number": "a number", "bool": "a bool", "string": "a short text"}

// maxNumber is the length of the longest number that is read, in bytes.
const maxNumber = 64

// decodeValue reads a value of the type of a parameter; it is not ok if raw is
// of another one. Texts and numbers are short: people read them.
func decodeValue(kind string, raw json.RawMessage) (v schema.Value, ok bool) {
	switch text := string(raw); kind {
	case "bool":
		return schema.Bool(text == "true"), text == "true" || text == "false"
	case "string":
		var s string
		err := json.Unmarshal(raw, &s)
		return schema.Text(s), err == nil && s == line(s)
	default:
		if len(text) > maxNumber {
			return v, false
		}
		if v, ok = schema.Number(text); !ok || kind != "int" {
			return v, ok
		}
		if _, ok = v.Int(); ok {
			return v, true
		}
		f, _ := v.Float() // 512.0 and 5.12e2 are 512
		return schema.Int(int(f)), f == math.Trunc(f) && math.Abs(f) < 1<<53
	}
}
