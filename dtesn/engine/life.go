package engine

import (
	"sync"
	"sync/atomic"
)

// A life says whether a network is still needed. It is apart from the network
// so that to wait for its end does not keep the network in memory.
type life struct {
	bytes int64 // footprint of the network

	// inUse counts requests; once retired and at 0 the network's memory is
	// nobody's: it goes from the account, and drained is closed.
	inUse   atomic.Int64
	retired atomic.Bool
	account *atomic.Int64 // set by retire
	drained chan struct{}
	drain   sync.Once
}

// retire says that no new request will come. When the last one has left, the
// network's bytes are taken from account.
func (l *life) retire(account *atomic.Int64) {
	l.account = account
	l.retired.Store(true)
	if l.inUse.Load() == 0 {
		l.end()
	}
}

// enter and leave bracket a request.
func (l *life) enter() { l.inUse.Add(1) }

func (l *life) leave() {
	if l.inUse.Add(-1) == 0 && l.retired.Load() {
		l.end()
	}
}

func (l *life) end() {
	l.drain.Do(func() {
		l.account.Add(-l.bytes)
		close(l.drained)
	})
}
