package apply

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// orderPatience is how long an operator's order waits for a call to the engine
// that is in flight, before that call is given up. An engine that works rebuilds
// within it; one that hangs would keep the operator for --engine-timeout, several
// times over.
const orderPatience = 2 * time.Second

// errOrder is why a call was given up. Where it is shown it was for an order: a
// newer document cuts off only what is then forgotten.
var errOrder = fmt.Errorf("the engine hangs: it did not answer within %s, and an operator's order would not wait longer", orderPatience)

// orders lets who waits with an order cut short a call to an engine that
// hangs. To give up a reading costs nothing. To give up a batch makes the
// engine's answer unknown, as a timeout does, and that is settled by asking.
type orders struct {
	mu      sync.Mutex
	waiting int
	giveUp  context.CancelCauseFunc // of the call in flight, nil while there is none
	yields  bool                    // that call may be given up for a newer Document
	timer   *time.Timer
}

// wait says that one order more, or less (n = -1), waits for its turn.
func (o *orders) wait(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting += n
	o.arm()
}

// any reports whether an order waits.
func (o *orders) any() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.waiting > 0
}

// interruptible returns the context for one call to the engine; done must be
// called after it.
func (o *orders) interruptible(ctx context.Context) (call context.Context, done func()) {
	call, cancel := context.WithCancelCause(ctx)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.giveUp = cancel
	o.arm()
	return call, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.giveUp, o.yields = nil, false
		o.arm()
		cancel(nil)
	}
}

// mayYield says that nothing is lost when the call in flight is given up: a fix
// need not wait for it.
func (o *orders) mayYield() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.yields = true
}

// newer gives up a call that may yield: there is a newer Document.
func (o *orders) newer() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.yields {
		o.giveUp(errOrder)
	}
}

// arm starts or stops the clock, which runs while an order waits for a call.
func (o *orders) arm() {
	switch giveUp := o.giveUp; {
	case giveUp == nil || o.waiting == 0:
		if o.timer != nil {
			o.timer.Stop()
			o.timer = nil
		}
	case o.timer == nil:
		o.timer = time.AfterFunc(orderPatience, func() { giveUp(errOrder) })
	}
}
