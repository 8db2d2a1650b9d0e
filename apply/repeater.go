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

// line logs the line of a notice.
func (p *repeater) line(n *notice) {
	switch {
	case n.Type == eventOver:
		delete(p.last, n.key)
		return
	case n.text == "":
		return
	case n.key == "":
		p.Log(context.Background(), n.level, n.text, n.attrs...)
		return
	}
	seen := p.last[n.key]
	if seen.same != n.same || n.Type != eventLine && n.time.Sub(seen.at) > occasional {
		seen = repetition{same: n.same}
	}
	seen.count++
	seen.at = n.time
	p.last[n.key] = seen
	for times := seen.count; times > 1; times /= 10 {
		if times%10 != 0 {
			return
		}
	}
	attrs := n.attrs
	if seen.count > 1 {
		attrs = append(slices.Clone(attrs), "times", seen.count)
	}
	p.Log(context.Background(), n.level, n.text, attrs...)
}
