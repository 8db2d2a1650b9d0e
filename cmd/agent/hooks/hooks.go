package hooks

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// Events are the events that were recorded; *events.Log is one.
type Events interface {
	After(sequence int64, limit int) ([]apply.Event, error)
	Last() (sequence int64, changed <-chan struct{})
	Busy() bool // some are on their way
}

// Options are what a Set is made of.
type Options struct {
	Events Events
	// Fact returns what Keep kept under a name, at the start of the process.
	Fact   func(name string) []byte
	Keep   func(name string, value []byte)
	Logger *slog.Logger
}

// A Set is the hooks of an agent. Its methods are safe from any goroutine.
type Set struct {
	opt    Options
	client http.RoundTripper // which follows no redirect

	mu      sync.Mutex
	hooks   []*delivery
	changed chan struct{} // closed by Replace
	keeping bool          // keep comes soon
}

// A delivery is a hook with how far it came.
type delivery struct {
	Hook
	set *Set

	mu     sync.Mutex
	cursor cursor
	status Status
}

// A cursor is what outlives the process.
type cursor struct {
	Sequence int64 `json:"sequence"` // of the last event that the hook is done with
	Off      bool  `json:"off,omitempty"`
	Dropped  int64 `json:"dropped,omitempty"`
}

// A Status is how a hook is.
type Status struct {
	Name     string `json:"name"`
	Required bool   `json:"required"`
	// Asked is the id of the record that it is asked about now, "" for none.
	Asked string `json:"asked"`
	// LastAnswer says, of a required one, what it said last about which record, and when.
	LastAnswer string `json:"last_answer"`
	// Lag is how many events wait, those that it is not told included.
	Lag       int64   `json:"lag"`
	Delivered int64   `json:"delivered"` // since the start
	Dropped   int64   `json:"dropped"`   // that the receiver did not want, or did not take for three days
	Off       bool    `json:"off"`       // the receiver is gone (410) until the file is read again
	LastError string  `json:"last_error"`
	FailingAt float64 `json:"failing_since"` // Unix seconds; 0 while it takes events, or answers what it is asked
}

// String returns how a hook is on one line.
func (s Status) String() string {
	text := fmt.Sprintf("%s: %d delivered, %d wait", s.Name, s.Delivered, s.Lag)
	if s.Required {
		text += ", required"
		if s.LastAnswer != "" {
			text += "; last: " + s.LastAnswer
		}
	}
	if s.Asked != "" {
		text += ", asked about " + s.Asked
	}
	if s.Dropped > 0 {
		text += fmt.Sprintf(", %d dropped", s.Dropped)
	}
	switch {
	case s.Off:
		text += "; off: " + s.LastError + "; SIGHUP reads the file again"
	case s.FailingAt != 0:
		text += "; failing since " + record.FromUnix(s.FailingAt).UTC().Format(time.RFC3339) + ": " + s.LastError
	case s.LastError != "":
		text += "; last error: " + s.LastError
	}
	return text
}

// backoff are the waits between attempts: those of Standard Webhooks, three days in all.
var backoff = []time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 20 * time.Hour,
}

// New makes a Set without hooks.
func New(opt Options) *Set {
	return &Set{opt: opt, changed: make(chan struct{}), client: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: 64 << 10,
	}}
}

// factName is the name under which the cursors are kept, by the names of the hooks.
const factName = "hooks"

// Furthest returns the number of the newest event that a hook was told, as the fact of an
// earlier process has it: what happens next must have a higher one.
func Furthest(fact func(name string) []byte) (sequence int64) {
	cursors := map[string]cursor{}
	_ = json.Unmarshal(fact(factName), &cursors)
	for _, c := range cursors {
		sequence = max(sequence, c.Sequence)
	}
	return sequence
}

// Replace makes the hooks those of a file that was read. One that did not change is not
// disturbed; one that did goes on where it was; a new one, and one that was switched off,
// begins with what happens from now on.
func (s *Set) Replace(list []Hook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cursors := map[string]cursor{}
	if s.hooks == nil {
		_ = json.Unmarshal(s.opt.Fact(factName), &cursors) // without one all are new
	}
	last, _ := s.opt.Events.Last()
	for _, d := range s.hooks {
		c, _ := d.state()
		if c.Off {
			c.Off, c.Sequence = false, last
		}
		cursors[d.Name] = c
		if d.Required && !slices.ContainsFunc(list, func(h Hook) bool { return h.Required && h.Name == d.Name }) {
			s.opt.Logger.Warn("hook is required no more", "hook", d.Name)
		}
	}
	was := s.hooks
	s.hooks = []*delivery{}
	for _, h := range list {
		if i := slices.IndexFunc(was, func(d *delivery) bool { c, _ := d.state(); return !c.Off && reflect.DeepEqual(d.Hook, h) }); i >= 0 {
			s.hooks = append(s.hooks, was[i])
			continue
		}
		c, isKnown := cursors[h.Name]
		if !isKnown {
			c.Sequence = last
		}
		s.hooks = append(s.hooks, &delivery{Hook: h, set: s, cursor: c, status: Status{Name: h.Name, Required: h.Required}})
	}
	s.keep()
	close(s.changed)
	s.changed = make(chan struct{})
}

// keep keeps the cursors; s.mu is held.
func (s *Set) keep() {
	cursors := map[string]cursor{}
	for _, d := range s.hooks {
		cursors[d.Name], _ = d.state()
	}
	if text, err := json.Marshal(cursors); err == nil {
		s.opt.Keep(factName, text)
	}
}

// Status returns how the hooks are.
func (s *Set) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, _ := s.opt.Events.Last()
	list := []Status{}
	for _, d := range s.hooks {
		c, st := d.state()
		st.Off, st.Dropped = c.Off, c.Dropped
		if !c.Off {
			st.Lag = max(0, last-c.Sequence)
		}
		list = append(list, st)
	}
	return list
}

// Run delivers until ctx ends. What is under way then is delivered again.
func (s *Set) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	running := map[*delivery]context.CancelFunc{}
	for ctx.Err() == nil {
		s.mu.Lock()
		hooks, changed := s.hooks, s.changed
		s.mu.Unlock()
		for d, stop := range running {
			if !slices.Contains(hooks, d) {
				stop()
				delete(running, d)
			}
		}
		for _, d := range hooks {
			if running[d] == nil {
				one, stop := context.WithCancel(ctx)
				running[d] = stop
				wg.Go(func() { d.run(one); stop() })
			}
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
	wg.Wait()
	return nil
}

// Settle waits until the hooks were told what happened, and that is on record; five seconds
// at most, and for none that fails.
func (s *Set) Settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	const enough = 10 // times in a row, for an event waits a moment before it is written
	for settled := 0; settled < enough && ctx.Err() == nil; settled++ {
		s.mu.Lock()
		isKept, isNone := !s.keeping, len(s.hooks) == 0
		s.mu.Unlock()
		waits := slices.ContainsFunc(s.Status(), func(h Status) bool { return !h.Off && h.FailingAt == 0 && h.Lag > 0 })
		switch {
		case isNone:
			return
		case waits || !isKept || s.opt.Events.Busy():
			settled = -1
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	for _, h := range s.Status() {
		if !h.Off && h.Lag > 0 {
			s.opt.Logger.Warn("hook was not told all", "hook", h.Name, "waiting", h.Lag)
		}
	}
}

func (d *delivery) state() (cursor, Status) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cursor, d.status
}

// keepSoon is how long a cursor that moved is in memory alone: each write to the disk may
// keep a change waiting.
const keepSoon = 100 * time.Millisecond

// update changes the cursor, and keeps it soon.
func (d *delivery) update(change func(*cursor, *Status)) {
	d.mu.Lock()
	change(&d.cursor, &d.status)
	d.mu.Unlock()
	s := d.set
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keeping {
		return
	}
	s.keeping = true
	time.AfterFunc(keepSoon, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.keeping = false
		s.keep()
	})
}

// run delivers one event after the other.
func (d *delivery) run(ctx context.Context) {
	for ctx.Err() == nil {
		c, _ := d.state()
		if c.Off {
			<-ctx.Done()
			return
		}
		last, changed := d.set.opt.Events.Last()
		events, err := d.set.opt.Events.After(c.Sequence, 1000)
		var again <-chan time.Time
		if err != nil {
			d.set.opt.Logger.Warn("events cannot be read", "hook", d.Name, "error", err)
			d.noteFailure(err)
			again = time.After(readAgain)
		} else if len(events) == 0 && last > c.Sequence { // a log that was lost began anew with higher numbers
			d.set.opt.Logger.Info("the log of events began anew", "hook", d.Name, "after", c.Sequence, "with", last)
			d.update(func(c *cursor, _ *Status) { c.Sequence = last })
		}
		for i := range events {
			if !c.Off && d.wants(&events[i]) && !d.persist(ctx, &events[i]) {
				return
			}
			c, _ = d.state()
		}
		if n := len(events); n > 0 && !c.Off {
			if last := events[n-1].Sequence; last > c.Sequence {
				d.update(func(c *cursor, _ *Status) { c.Sequence = last })
			}
			continue
		}
		select {
		case <-again:
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// readAgain is how long to wait before events that could not be read are read again.
const readAgain = 5 * time.Second

// noteFailure notes why the hook is not told what waits.
func (d *delivery) noteFailure(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status.LastError = err.Error()
	if d.status.FailingAt == 0 {
		d.status.FailingAt = record.Unix(time.Now())
	}
}

// persist delivers an event, or drops it. It reports whether that was done before ctx ended.
func (d *delivery) persist(ctx context.Context, e *apply.Event) bool {
	for attempt := 0; ; attempt++ {
		v, after, err := d.deliver(ctx, d.set.client, idOf(e), e)
		if ctx.Err() != nil {
			return false
		}
		if v == verdictVeto && len(d.Command) > 0 { // nobody was asked
			v = verdictRetry
		}
		if v == verdictRetry && attempt == len(backoff) {
			v = verdictDrop
		}
		log := d.set.opt.Logger.With("hook", d.Name, "event", idOf(e), "type", string(e.Type))
		switch v {
		case verdictDelivered:
			d.update(func(c *cursor, s *Status) {
				c.Sequence, s.LastError, s.FailingAt = e.Sequence, "", 0
				s.Delivered++
			})
			return true
		case verdictDrop, verdictVeto:
			log.Warn("event dropped", "error", err)
			d.update(func(c *cursor, s *Status) {
				c.Sequence, s.LastError = e.Sequence, err.Error()
				c.Dropped++
			})
			return true
		case verdictDisable:
			log.Warn("hook switched off", "error", err)
			d.update(func(c *cursor, s *Status) { c.Off, s.LastError = true, err.Error() })
			return true
		}
		if attempt == 0 {
			log.Warn("hook failed", "error", err)
		}
		d.noteFailure(err)
		wait := max(after, time.Duration(float64(backoff[attempt])*(0.9+0.2*rand.Float64())))
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}
