package dtesn

import (
	"context"
	"time"
)

const (
	// DefaultRetry is how often Watch tries a socket that is down.
	DefaultRetry = 200 * time.Millisecond
	// hintGap is the least time between two hints that no failed dial divides:
	// some servers close idle connections at once.
	hintGap = time.Second
	// replacedEvery is how often Watch looks whether the socket file is still
	// the one it is connected to: a new one must be served within a second.
	replacedEvery = 900 * time.Millisecond
)

// Watch holds one idle connection to the engine and tells when it breaks, or
// when the socket file is another one (a new server took the path over while
// the old one lingers), so that a restart is noticed without asking. It calls
// changed(true) after each connect, the first one too, and changed(false) when
// the socket cannot be connected, once until it can again. While down it tries
// each interval (0 means DefaultRetry).
//
// All that is a hint to read, never a verdict: servers close idle connections
// after a few seconds (uvicorn after 5), and then Watch connects again at once
// and calls changed(true), at most once a second. Nothing is sent.
//
// changed is called from one goroutine at a time and should not block. Watch
// returns nil when ctx ends.
func (c *Client) Watch(ctx context.Context, interval time.Duration, changed func(up bool)) error {
	if interval <= 0 {
		interval = DefaultRetry
	}
	var hinted time.Time // when changed(true) was last called without a failure since
	down := false
	for ctx.Err() == nil {
		s, err := c.dialWithin(ctx)
		if err != nil {
			if ctx.Err() == nil && !down {
				down = true
				changed(false)
			}
			hinted = time.Time{}
			pause(ctx, interval)
			continue
		}
		down = false
		if !hinted.IsZero() {
			pause(ctx, time.Until(hinted.Add(hintGap)))
		}
		if ctx.Err() == nil {
			hinted = time.Now()
			changed(true)
			s.untilMoved(ctx)
		}
		s.close()
	}
	return nil
}

func (c *Client) dialWithin(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	return c.dial(ctx)
}

// untilMoved blocks until the connection ends, by the engine or by ctx, or
// until the path names another socket. Bytes that nobody asked for end it too.
//
// The path is looked at by time: inotify would have to watch every directory
// and link above it. The reading stands in a goroutine of its own, for a
// deadline on it each time would cost several times as much as the look.
func (s *session) untilMoved(ctx context.Context) {
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
	look := time.NewTicker(replacedEvery)
	defer look.Stop()
	for identity(s.socket) == s.peer.Socket {
		select {
		case <-ctx.Done():
			return
		case <-over:
			return
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
