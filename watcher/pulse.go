package watcher

import (
	"sync"
	"time"
)

// sourceState is what any goroutine may ask of a source while it runs.
type sourceState struct {
	mu       sync.Mutex
	mode     string
	lastRead time.Time
	lastErr  error
	stamp    time.Time
}

// Status says how the source is watched, when it was last read well (zero:
// never), and the error of the last try, nil if it went well.
func (p *sourceState) Status() (mode string, lastRead time.Time, lastErr error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mode, p.lastRead, p.lastErr
}

// heartbeat notes that the loop turned.
func (p *sourceState) heartbeat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stamp = time.Now()
}

// recordRead notes how a reading ended.
func (p *sourceState) recordRead(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lastErr = err; err == nil {
		p.lastRead = time.Now()
	}
}

func (p *sourceState) setMode(mode string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = mode
}

// Stamp is when the loop last turned; it does so each second at least.
func (p *sourceState) Stamp() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stamp
}
