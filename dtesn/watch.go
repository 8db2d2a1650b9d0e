package dtesn

import (
	"context"
	"time"

	"dtesn-agent/dtesn/api"
)

const (
	// DefaultRetry is how often Watch tries a socket that is down.
	DefaultRetry = 200 * time.Millisecond
	// hintGap is the least time between two hints that no failed dial divides:
	// some servers close idle connections at once.
	hintGap = time.Second
	// lookEvery is how often Watch looks whether the socket is still the one it
	// knows: a new one must be served within a second.
	lookEvery = 900 * time.Millisecond
	// visitEvery is how often Watch visits an engine whose connections it must not
	// hold; a visit costs both sides several times as much as a look.
	visitEvery = 5 * time.Second
	// besideWithin is how soon an engine must serve another connection beside
	// the one that Watch wants to hold.
	besideWithin = 500 * time.Millisecond
	// An engine that did not is tried again after holdAgain, then after twice
	// that, at last each holdAtMost.
	holdAgain, holdAtMost = 2 * time.Second, time.Hour
)

// Watch holds one idle connection to the engine and tells when it breaks, or
// when the socket file is another one (a new server took the path over while
// the old one lingers), so that a restart is noticed without asking. It calls
// changed(true) after each connect, the first one too, and changed(false) when
// the socket cannot be connected, once until it can again, for Watch or for a
// request. While down it tries each interval (0 means DefaultRetry).
//
// All that is a hint to read, never a verdict: servers close idle connections
// after a few seconds (uvicorn after 5), and then Watch connects again at once
// and calls changed(true), at most once a second. Nothing is sent.
//
// A server that serves one connection at a time would serve nobody else. So a
// connection is held only if another, made after it, is served beside it, and
// that is tried again when a request of the Client had no answer. Where it is
// not, Watch looks at the socket file, and pays a short visit each five seconds,
// one at a time, which shows an engine that is down and a new process. A server
// that is started anew behind a socket which its supervisor keeps open is then
// found by the next reading.
//
// changed is called from one goroutine at a time and should not block. Watch
// returns nil when ctx ends.
func (c *Client) Watch(ctx context.Context, interval time.Duration, changed func(up bool)) error {
	if interval <= 0 {
		interval = DefaultRetry
	}
	var (
		hinted time.Time // when changed(true) was last called without a failure since
		known  api.Peer
		down   bool
		news   = true // something may have happened that was not told
		hold   holding
	)
	for ctx.Err() == nil {
		s, err := c.dialWithin(ctx)
		if err != nil {
			met := c.answered.Swap(false) // it was up and down between two looks
			if ctx.Err() == nil && (!down || met) {
				down = true
				changed(false)
			}
			hinted, news = time.Time{}, true
			pause(ctx, interval)
			continue
		}
		c.unanswered.Store(false)
		// Where it may be in the way, a new engine is told of first.
		held := hold.due() && hold.tried((hold.wait == 0 || s.peer == known) && c.servesBeside(ctx))
		var again time.Time
		if !held {
			s.visit()
			again = hold.or(visitEvery)
		}
		news = news || held || s.peer != known
		down, known = false, s.peer
		if news && !hinted.IsZero() {
			pause(ctx, time.Until(hinted.Add(hintGap)))
		}
		if news && ctx.Err() == nil {
			hinted = time.Now()
			changed(true)
		}
		s.untilMoved(ctx, again)
		s.close()
		news = held
	}
	return nil
}

// A holding says when a connection may be held.
type holding struct {
	next time.Time
	wait time.Duration
}

func (h *holding) due() bool { return !time.Now().Before(h.next) }

// or is when it is due, or after d if that is sooner.
func (h *holding) or(d time.Duration) time.Time {
	if then := time.Now().Add(d); then.Before(h.next) {
		return then
	}
	return h.next
}

// tried notes whether the engine serves others beside a held connection.
func (h *holding) tried(serves bool) bool {
	if serves {
		h.wait = 0
		return true
	}
	h.wait = min(max(2*h.wait, holdAgain), holdAtMost)
	h.next = time.Now().Add(h.wait)
	return false
}

// servesBeside reports whether the engine serves a new connection while those
// that are open stay open: whether it ends a visit, in time.
func (c *Client) servesBeside(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, besideWithin)
	defer cancel()
	s, err := c.dial(ctx)
	if err != nil {
		return false
	}
	defer s.close()
	s.visit()
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [1]byte
	_, _ = s.conn.Read(b[:])
	return ctx.Err() == nil
}

// visit says that nothing will be asked: a server that takes the connection up
// finds its end, and closes it.
func (s *session) visit() { _ = s.conn.CloseWrite() }

func (c *Client) dialWithin(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	return c.dial(ctx)
}

// untilMoved blocks until ctx ends, until the path names another socket, or
// until the connection ends, by the engine or by bytes that nobody asked for,
// and it is time to connect again. A connection that is held, for which that
// is always, ends as well when a request had no answer: the engine may lack
// what it takes.
//
// The path is looked at by time: inotify would have to watch every directory
// and link above it. The reading stands in a goroutine of its own, for a
// deadline on it each time would cost several times as much as the look.
func (s *session) untilMoved(ctx context.Context, again time.Time) {
	over := make(chan struct{})
	go func() {
		defer close(over)
		var b [1]byte
		_, _ = s.conn.Read(b[:]) // whatever comes of it
	}()
	defer func() {
		_ = s.conn.SetReadDeadline(time.Unix(1, 0))
		<-over
	}()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	ended := over
	for identity(s.client.options.Socket) == s.peer.Socket {
		if again.IsZero() && s.client.unanswered.Load() {
			return
		}
		if ended == nil && !time.Now().Before(again) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ended:
			if ended = nil; again.IsZero() {
				return
			}
		case <-look.C:
		}
	}
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
