package apply

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// orderPatience is how long an operator's order waits for a call to the engine that is
// in flight, before that call is given up. A working engine rebuilds within it. One that
// hangs would keep the operator for --engine-timeout, several times over.
const orderPatience = 2 * time.Second

// errInterrupted is why a call was given up. Where it is shown it was for an order: a
// newer document cuts off only what is then forgotten.
var errInterrupted = fmt.Errorf("the engine hangs: it did not answer within %s, and an operator's order would not wait longer", orderPatience)

// calls lets an order that waits cut short a call to an engine that hangs. Giving up a
// reading costs nothing. Giving up a batch makes its result unknown, as a timeout does,
// and a reading resolves that.
type calls struct {
	mu      sync.Mutex
	waiting int
	cancel  context.CancelCauseFunc // of the call in flight, nil while there is none
	yields  bool                    // the call is not about a change: a stop cuts it, and a newer Document as an order does
	stopped bool
	timer   *time.Timer
}

// wait notes that one order more, or less (n = -1), waits for its turn.
func (c *calls) wait(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting += n
	c.arm()
}

// isAwaited reports whether an order waits.
func (c *calls) isAwaited() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting > 0
}

// begin returns the context for one call to the engine; done must be called after it.
func (c *calls) begin(ctx context.Context, yields bool) (call context.Context, done func()) {
	call, cancel := context.WithCancelCause(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancel, c.yields = cancel, yields
	if c.stopped && yields {
		cancel(errInterrupted)
	}
	c.arm()
	return call, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.cancel, c.yields = nil, false
		c.arm()
		cancel(nil)
	}
}

// newer gives a call that yields the time that an order waits: there is a newer Document.
func (c *calls) newer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cancel := c.cancel; c.yields && c.timer == nil {
		c.timer = time.AfterFunc(orderPatience, func() { cancel(errInterrupted) })
	}
}

// stop gives up a call that yields, and those to come.
func (c *calls) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped = true; c.yields {
		c.cancel(errInterrupted)
	}
}

// arm starts or stops the timer, which runs while an order waits for a call.
func (c *calls) arm() {
	switch cancel := c.cancel; {
	case cancel == nil || c.waiting == 0 && !c.yields:
		if c.timer != nil {
			c.timer.Stop()
			c.timer = nil
		}
	case c.timer == nil && c.waiting > 0:
		c.timer = time.AfterFunc(orderPatience, func() { cancel(errInterrupted) })
	}
}
