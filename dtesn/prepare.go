package dtesn

import (
	"context"
	"time"
)

// preparedFor is how long a prepared connection may lie unused, and how long a
// Send waits for one. A server that serves one connection at a time can do
// nothing else meanwhile.
const preparedFor = time.Second

// A preparation is a connection that gets our label before there is something
// to send.
type preparation struct {
	abandon context.CancelFunc // ends it at once
	ready   chan *session      // who receives owns it; closed when there is none
}

// Prepare begins to open the connection for a Send that follows soon, so that
// Send need not wait for the dial and the label. It returns at once, and
// abandons what an earlier Prepare made or still waits for. Without a Send the
// connection is closed after a second. It must not be called beside Close.
func (c *Client) Prepare() {
	if c.options.ReadOnly {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &preparation{abandon: cancel, ready: make(chan *session)}
	c.prepare(p)
	c.opening.Go(func() {
		defer cancel()
		defer close(p.ready)
		bounded, done := context.WithTimeout(ctx, c.options.Timeout)
		s, err := c.open(bounded)
		done()
		if err != nil {
			return // Send will see for itself
		}
		unused := time.NewTimer(preparedFor)
		defer unused.Stop()
		select {
		case p.ready <- s:
			return
		case <-ctx.Done():
		case <-unused.C:
		}
		s.close()
	})
}

// Close gives up what Prepare made, and waits until it is closed. The Client
// can be used again.
func (c *Client) Close() error {
	c.prepare(nil)
	c.opening.Wait()
	return nil
}

// prepare makes p what is prepared, and abandons what was.
func (c *Client) prepare(p *preparation) {
	c.mu.Lock()
	old := c.prepared
	c.prepared = p
	c.mu.Unlock()
	if old != nil {
		old.abandon()
	}
}

// labelled returns a connection that bears our label: the one that was made
// ahead, if it is there in time and the engine has not closed it since, or a
// new one.
func (c *Client) labelled(ctx context.Context) (*session, error) {
	c.mu.Lock()
	p := c.prepared
	c.prepared = nil
	c.mu.Unlock()
	if p == nil {
		return c.open(ctx)
	}
	defer p.abandon()
	patience := time.NewTimer(preparedFor)
	defer patience.Stop()
	select {
	case s, ok := <-p.ready:
		switch {
		case !ok:
		case s.spent, !s.left():
			return s, nil
		default:
			s.close()
		}
	case <-patience.C: // one connection hangs: another may not
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return c.open(ctx)
}
