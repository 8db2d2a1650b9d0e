package engine

import (
	"context"
	"runtime"
	"time"
)

// Requests and rebuilds take turns on the processors. Left alone, the scheduler
// lets each run on for 10 ms, longer than most requests take. A rebuild's turn
// is half as long again as a request's: it slows requests down by as much as one
// or two requests more would, and ends however many clients there are, for a
// network serves only so many requests at a time.
const (
	requestTurn = time.Millisecond
	rebuildTurn = 3 * requestTurn / 2
)

// A turn is one goroutine's share of the processors.
type turn struct {
	ctx   context.Context // of the work
	most  time.Duration   // before others get theirs
	began time.Time
}

// giveWay is called between small pieces of work, a step of a network or the
// like. It lets others run when the turn is over; its error is that of the
// work's context.
func (t *turn) giveWay() error {
	if now := time.Now(); now.Sub(t.began) >= t.most {
		runtime.Gosched()
		t.began = time.Now()
	}
	return t.ctx.Err()
}
