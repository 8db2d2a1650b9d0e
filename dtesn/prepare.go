package dtesn

import (
	"context"
	"time"
)

// preparedFor is how long a prepared connection may lie unused: a server that
// serves one connection at a time can do nothing else meanwhile. A Send waits for
// one up to prepareTimeout.
const preparedFor, prepareTimeout = 250 * time.Millisecond, time.Second

// A preparation is a connection that gets our label before there is something
// to send.
type preparation struct {
	abandon context.CancelFunc // ends it at once
	ready   chan *session      // who receives owns it; closed when there is none
	ended   <-chan struct{}
}

// Prepare begins to open the connection for a Send that may follow soon, so that
// Send need not wait for the dial and the label. It returns at once, and does
// nothing while what an earlier Prepare began may still be used. Without a Send
// the connection is closed after preparedFor. It must not be called beside Close.
func (c *Client) Prepare() {
	if c.options.ReadOnly {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.prepared != nil {
		select {
		case <-c.prepared.ended:
		default:
			return
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &preparation{abandon: cancel, ready: make(chan *session), ended: ctx.Done()}
	c.prepared = p
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
	if p := c.takePrepared(); p != nil {
		p.abandon()
	}
	c.opening.Wait()
	return nil
}

// takePrepared returns what is prepared, nil if nothing is, and forgets it.
func (c *Client) takePrepared() *preparation {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.prepared
	c.prepared = nil
	return p
}

// labelled returns a connection that bears our label: the one that was made
// ahead, if it is there in time and the engine has not closed it since, or a
// new one.
func (c *Client) labelled(ctx context.Context) (*session, error) {
	p := c.takePrepared()
	if p == nil {
		return c.open(ctx)
	}
	defer p.abandon()
	patience := time.NewTimer(prepareTimeout)
	defer patience.Stop()
	select {
	case s, ok := <-p.ready:
		switch {
		case !ok:
		case s.spent, s.reader.Buffered() == 0 && !s.left():
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
