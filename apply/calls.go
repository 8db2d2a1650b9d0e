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

// errStopped is why a call was given up for a stop. It is an errInterrupted.
var errStopped error = stopError{}

type stopError struct{}

func (stopError) Error() string        { return "the agent is stopping" }
func (stopError) Is(target error) bool { return target == errInterrupted }

// calls lets an order that waits cut short a call to an engine that hangs. Giving up a
// reading costs nothing. Giving up a batch makes its result unknown, as a timeout does,
// and a reading resolves that.
type calls struct {
	mu      sync.Mutex
	waiting int                     // orders
	cancel  context.CancelCauseFunc // of the call in flight, nil while there is none
	yields  bool                    // the call is not about a change: a stop cuts it, and a newer Document as an order does
	isNewer bool                    // a newer Document came during the call
	stopped bool
	timer   *time.Timer // runs while something waits for the call
}

// update changes what the timer depends on.
func (c *calls) update(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	isAwaited := c.cancel != nil && (c.waiting > 0 || c.yields && c.isNewer)
	switch cancel := c.cancel; {
	case isAwaited && c.timer == nil:
		c.timer = time.AfterFunc(orderPatience, func() { cancel(errInterrupted) })
	case !isAwaited && c.timer != nil:
		c.timer.Stop()
		c.timer = nil
	}
}

// wait notes that one order more, or less (n = -1), waits for its turn.
func (c *calls) wait(n int) { c.update(func() { c.waiting += n }) }

// newer notes that there is a newer Document.
func (c *calls) newer() { c.update(func() { c.isNewer = true }) }

// isAwaited reports whether an order waits.
func (c *calls) isAwaited() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting > 0
}

// begin returns the context for one call to the engine; done must be called after it.
func (c *calls) begin(ctx context.Context, yields bool) (call context.Context, done func()) {
	call, cancel := context.WithCancelCause(ctx)
	c.update(func() {
		c.cancel, c.yields, c.isNewer = cancel, yields, false
		if c.stopped && yields {
			cancel(errStopped)
		}
	})
	return call, func() {
		c.update(func() { c.cancel = nil })
		cancel(nil)
	}
}

// stop gives up a call that yields, and those to come.
func (c *calls) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped = true; c.yields && c.cancel != nil {
		c.cancel(errStopped)
	}
}
