package apply

import (
	"context"
	"log/slog"
	"slices"
	"time"
)

// A repeater logs the same text under the same key once, then at each tenfold: an engine
// that is down for a night is five lines, not a hundred thousand. It belongs to one
// goroutine.
type repeater struct {
	*slog.Logger
	last map[string]repetition
}

type repetition struct {
	same  string
	count int
	at    time.Time
}

// occasional is the time after which something that happens again is news.
const occasional = time.Minute

// event logs the line of an event.
func (p *repeater) event(e *Event) {
	switch {
	case e.Type == EventOver:
		delete(p.last, e.Key)
		return
	case e.Text == "":
		return
	case e.Key == "":
		p.Log(context.Background(), e.Level, e.Text, e.Attrs...)
		return
	}
	seen := p.last[e.Key]
	if seen.same != e.Same || e.Type != EventLine && e.At.Sub(seen.at) > occasional {
		seen = repetition{same: e.Same}
	}
	seen.count++
	seen.at = e.At
	p.last[e.Key] = seen
	for n := seen.count; n > 1; n /= 10 {
		if n%10 != 0 {
			return
		}
	}
	attrs := e.Attrs
	if seen.count > 1 {
		attrs = append(slices.Clone(attrs), "times", seen.count)
	}
	p.Log(context.Background(), e.Level, e.Text, attrs...)
}
