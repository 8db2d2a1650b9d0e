package status

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/dtesn/bounded"
)

// Events are the events that were recorded; *events.Log is one.
type Events interface {
	// After returns the next events after a sequence number, at most limit.
	After(sequence int64, limit int) ([]apply.Event, error)
	// Last returns the number of the newest event, and a channel that is closed when
	// there is a newer one.
	Last() (sequence int64, changed <-chan struct{})
	// Problem returns why events cannot be recorded, nil if they can.
	Problem() error
}

const (
	// quietest is how long a stream is silent at most: proxies cut one that is.
	quietest = 15 * time.Second
	// streamWrite is how long a client may take to read what it was sent.
	streamWrite = 10 * time.Second
	streamBatch = 1000
	// streamWritten is how many events are written at a time.
	streamWritten = 16
)

// A stream is a response of server-sent events (HTML, "Server-sent events").
type stream struct {
	w     http.ResponseWriter
	conn  *http.ResponseController
	ended <-chan struct{}
	// isAllowed reports whether the client may still ask.
	isAllowed func() bool
}

// newStream begins a stream, nil if there is no room for one.
func (s *Server) newStream(w http.ResponseWriter, q *http.Request) *stream {
	ended, ok := bounded.Park(q.Context())
	if !ok {
		w.Header().Set("Retry-After", "10")
		fail(w, http.StatusServiceUnavailable, "too many listeners: ask again later")
		return nil
	}
	st := &stream{w, http.NewResponseController(w), ended, func() bool { return s.opt.Access.allows(q) }}
	_ = st.conn.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Connection", "close")
	w.Header().Set("X-Accel-Buffering", "no") // nginx
	if st.send("retry: 3000\n\n") != nil {
		return nil
	}
	return st
}

func (s *stream) send(text string) error {
	_ = s.conn.SetWriteDeadline(time.Now().Add(streamWrite))
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.conn.Flush()
}

// end gives the end of the body, which is written after the handler, a time of its own:
// that of the last write may be over, and after a write that fails TLS cannot be ended.
func (s *stream) end() {
	if s != nil {
		_ = s.conn.SetWriteDeadline(time.Now().Add(streamWrite))
	}
}

// wait waits for changed, and sends a comment if that takes long. It reports whether the
// stream goes on.
func (s *stream) wait(ctx context.Context, changed <-chan struct{}) bool {
	for {
		select {
		case <-changed:
			return s.isAllowed()
		case <-s.ended:
			return false
		case <-ctx.Done():
			return false
		case <-time.After(quietest):
			if !s.isAllowed() || s.send(":\n\n") != nil {
				return false
			}
		}
	}
}

// An encoding is the text of the events that were encoded last. Many listeners wait for
// the same ones.
type encoding struct {
	mu          sync.Mutex
	first, last int64 // sequence numbers
	text        string
}

// of returns events, of which there is at least one, as server-sent events.
func (c *encoding) of(events []apply.Event) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	first, last := events[0].Sequence, events[len(events)-1].Sequence
	if c.first == first && c.last == last {
		return c.text
	}
	var b strings.Builder
	for _, e := range events {
		if text, err := json.Marshal(e); err == nil {
			fmt.Fprintf(&b, "id: %d\nevent: %s\ndata: %s\n\n", e.Sequence, e.Type, text)
		}
	}
	c.first, c.last, c.text = first, last, b.String()
	return c.text
}

// events answers with the events after Last-Event-ID or the parameter since, or those to
// come, as server-sent events. After a number that no event has yet it begins at the first.
func (s *Server) events(w http.ResponseWriter, q *http.Request) {
	after, changed := s.opt.Events.Last()
	given := q.Header.Get("Last-Event-ID")
	if given == "" {
		given = q.URL.Query().Get("since")
	}
	if given != "" {
		n, err := strconv.ParseInt(given, 10, 64)
		if err != nil || n < 0 {
			fail(w, http.StatusBadRequest, "since: "+strconv.Quote(given)+" is not the number of an event")
			return
		}
		if n > after { // of another log: the state directory was replaced
			n = 0
		}
		after = n
	}
	st := s.newStream(w, q)
	defer st.end()
	for st != nil {
		list, err := s.opt.Events.After(after, streamBatch)
		if err != nil {
			_ = st.send(fmt.Sprintf(": %s\n\n", err))
			return
		}
		for some := range slices.Chunk(list, streamWritten) {
			if st.send(s.encoded.of(some)) != nil {
				return
			}
			after = some[len(some)-1].Sequence
		}
		if len(list) < streamBatch && !st.wait(q.Context(), changed) {
			return
		}
		_, changed = s.opt.Events.Last()
	}
}
