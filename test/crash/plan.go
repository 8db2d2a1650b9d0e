//go:build linux

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
)

// startAfter begins the names of the phases that are starts after a kill. They
// differ with what the kill cut short: they are killed too, at what any of them
// was seen to do, as often as they come; none has to be complete.
const startAfter = "start after "

// A cut is a point that a step, or one of the starts after its kills, was armed
// with.
type cut struct {
	Step  int    `json:"step"`
	Try   int    `json:"try"` // 0 the step itself, 1 the start after its kill, …
	Phase string `json:"phase"`
	Point point  `json:"point"`
}

// A planner says what to kill at, and hears what came of it.
type planner interface {
	// next is the point for a try of a step; nil to let it live.
	next(step, try int, phase string) *point
	// learn takes the calls of a phase that was not killed.
	learn(phase string, calls map[string]int)
	// hit takes a kill.
	hit(phase string, at point)
	// enough reports whether nothing more is to be killed.
	enough() bool
}

// A replay cuts where a recorded round did.
type replay []cut

func (r replay) next(step, try int, _ string) *point {
	for _, c := range r {
		if c.Step == step && c.Try == try {
			return &c.Point
		}
	}
	return nil
}

func (replay) learn(string, map[string]int) {}
func (replay) hit(string, point)            {}
func (replay) enough() bool                 { return false }

// A table knows the calls that the phases make when nobody kills them, and how
// often each was killed at. It is safe for concurrent use.
type table struct {
	mu     sync.Mutex
	random *rand.Rand
	phases map[string]map[point]*tally
	kills  int
	ctx    context.Context
	wanted int  // kills
	all    bool // and no point left
}

// A tally counts how often a point was armed, and how often it was reached.
type tally struct{ tries, hits int }

func newTable(ctx context.Context, seed uint64, wanted int, all bool) *table {
	return &table{ctx: ctx, random: rand.New(rand.NewPCG(seed, 0)), phases: map[string]map[point]*tally{}, wanted: wanted, all: all}
}

// every bounds what is tried of calls that a phase makes many times,
// such as the removal of each object that was packed: the first ones, then
// each power of two, then the last.
const every = 8

func (t *table) learn(phase string, calls map[string]int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	points := t.phases[phase]
	if points == nil {
		points = map[point]*tally{}
		t.phases[phase] = points
	}
	for call, count := range calls {
		if strings.HasSuffix(call, " "+answerPlace) {
			count = min(count, 2) // as many as we happened to ask
		}
		for n := 1; n <= count; n++ {
			if n > every && n&(n-1) != 0 && n != count {
				continue
			}
			for _, after := range []bool{false, true} {
				if p := (point{call, n, after}); points[p] == nil {
					points[p] = &tally{}
				}
			}
		}
	}
}

// mostTries is how often a point is armed at most that is never reached: calls
// come and go with the turns that threads take.
const mostTries = 3

// open are the points of a phase that are neither hit nor given up.
func open(points map[point]*tally) (n int) {
	for _, t := range points {
		if t.hits == 0 && t.tries < mostTries {
			n++
		}
	}
	return n
}

func (t *table) hit(phase string, at point) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kills++
	if t.phases[phase] == nil {
		t.phases[phase] = map[point]*tally{}
	}
	if t.phases[phase][at] == nil {
		t.phases[phase][at] = &tally{}
	}
	t.phases[phase][at].hits++
}

// pick chooses the least tried point of a phase, by lot among equals; none where there
// were kills enough and this phase has no point left, so that the others come sooner.
func (t *table) pick(phase string) *point {
	t.mu.Lock()
	defer t.mu.Unlock()
	points := t.phases[phase]
	if t.kills >= t.wanted && (strings.Contains(phase, startAfter) || open(points) == 0) {
		return nil
	}
	sorted := slices.SortedFunc(maps.Keys(points), func(a, b point) int {
		return cmp.Or(cmp.Compare(a.Call, b.Call), cmp.Compare(a.N, b.N), after(a)-after(b))
	})
	least, choice := -1, []point{}
	for _, p := range sorted {
		weight := points[p].tries
		if points[p].hits == 0 && weight >= mostTries {
			weight += 1000
		}
		switch {
		case least < 0 || weight < least:
			least, choice = weight, []point{p}
		case weight == least:
			choice = append(choice, p)
		}
	}
	if len(choice) == 0 {
		return nil
	}
	p := choice[t.random.IntN(len(choice))]
	points[p].tries++
	return &p
}

func after(p point) int {
	if p.After {
		return 1
	}
	return 0
}

// left is how many points of a story's own phases are still to be tried.
func (t *table) left(s *story) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	counted := map[string]bool{}
	for _, st := range s.steps {
		if phase := s.prefix + st.phase; !counted[phase] {
			n += open(t.phases[phase])
			counted[phase] = true
		}
	}
	return n
}

// isOver reports whether there were so many kills as were wanted.
func (t *table) isOver() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kills >= t.wanted
}

// enough reports whether there were so many kills and, if all are asked for,
// no point is left; or whether time is up.
func (t *table) enough() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.ctx.Err() != nil:
		return true
	case t.kills < t.wanted:
		return false
	}
	for phase, points := range t.phases {
		if t.all && !strings.Contains(phase, startAfter) && open(points) > 0 {
			return false
		}
	}
	return true
}

// A round is one telling of a story by the table; it keeps what it cut.
type round struct {
	*table
	cuts []cut
}

func (r *round) next(step, try int, phase string) *point {
	p := r.pick(phase)
	if p != nil {
		r.cuts = append(r.cuts, cut{step, try, phase, *p})
	}
	return p
}

// report prints how many points were tried, by phase and by family of calls.
func (t *table) report(out io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	families := map[string][2]int{}
	fmt.Fprintf(out, "%-38s %8s %8s %8s %8s\n", "phase", "kills", "points", "hit", "missed")
	var all [4]int
	for _, phase := range slices.Sorted(maps.Keys(t.phases)) {
		var row [4]int
		for p, tally := range t.phases[phase] {
			f := families[familyOf(p.Call)]
			row[0] += tally.hits
			row[1]++
			f[0] += tally.hits
			if tally.hits > 0 {
				row[2]++
				f[1]++
			} else if tally.tries > 0 {
				row[3]++
			}
			families[familyOf(p.Call)] = f
		}
		fmt.Fprintf(out, "%-38s %8d %8d %8d %8d\n", phase, row[0], row[1], row[2], row[3])
		for i := range all {
			all[i] += row[i]
		}
	}
	fmt.Fprintf(out, "%-38s %8d %8d %8d %8d\n\n%-38s %8s %8s\n", "all", all[0], all[1], all[2], all[3], "family", "kills", "hit")
	for _, f := range slices.Sorted(maps.Keys(families)) {
		fmt.Fprintf(out, "%-38s %8d %8d\n", f, families[f][0], families[f][1])
	}
}
