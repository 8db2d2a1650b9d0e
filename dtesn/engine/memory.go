package engine

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"time"
)

const (
	// DefaultMemoryLimit lets the largest network follow the largest network.
	DefaultMemoryLimit = 512 << 20

	// cacheBytes bound the cache; see entryBytes.
	cacheBytes = 512 << 10
	// fixedBytes are accounted whatever runs: the cache, full, and the latest
	// latencies and snapshots.
	fixedBytes = cacheBytes + 32<<10
	// drainTime is how long a change that does not fit waits for requests on
	// networks that were swapped out.
	drainTime = 5 * time.Second

	membraneBytes = 32
)

// footprint is how many bytes a trained network with p takes, the workspaces
// of its requests included.
func footprint(p parameters) int64 {
	n := newNetwork(p)
	size, entries := p.ESNReservoirSize, n.entries()
	features := min(size, maxFeatures)
	weights := 4*(size+1) + 12*entries + 2*8*size
	readout := 4*features + 8*(inputs+features)
	workspace := 8 * workspaceLength(size, p.BSeriesMaxOrder, n.largest, features)
	return int64(weights + readout + membraneBytes*len(n.membranes) + workers*workspace)
}

// schooling is how many bytes more it takes while it is trained, beside the
// desk.
func schooling(p parameters) int64 {
	features := min(p.ESNReservoirSize, maxFeatures)
	return int64(8 * workspaceLength(p.ESNReservoirSize, lessonOrder, newNetwork(p).largest, features))
}

// building is what must be free to build a network with p, beside the desk.
func building(p parameters) int64 { return footprint(p) + schooling(p) }

// deskGrowth is how many bytes the desk lacks for a training with p.
func (e *Engine) deskGrowth(p parameters) int64 {
	return max(0, 8*int64(trainingLength(min(p.ESNReservoirSize, maxFeatures)))-e.desk.bytes())
}

// need is what must be free for a change to p.
func (e *Engine) need(p parameters) int64 { return building(p) + e.deskGrowth(p) }

// errCrowded: what was wished for fits as soon as requests have ended that run
// on networks swapped out before.
var errCrowded = errors.New("requests still run on networks that were swapped out, and take the memory that this needs: try again in a moment")

// errTooLarge: it does not fit.
var errTooLarge = errors.New("it does not fit")

// reserve accounts for need bytes, if they fit. Requests that still run on
// networks swapped out before are waited for, for a while, if that helps.
func (e *Engine) reserve(need int64) error {
	timer := time.NewTimer(drainTime)
	defer timer.Stop()
	over := false
	for {
		waited := e.sweep()
		free := e.limit - e.memory()
		switch {
		case need <= free:
			e.held.Add(need)
			return nil
		case need > free+waited:
			return errTooLarge
		case over:
			return errCrowded
		}
		over = e.await(timer.C)
	}
}

// await waits until any of the networks that were swapped out has drained, or
// for the timer; over says that the time is.
func (e *Engine) await(timer <-chan time.Time) (over bool) {
	cases := []reflect.SelectCase{{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(timer)}}
	for _, l := range e.retired {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(l.drained)})
	}
	chosen, _, _ := reflect.Select(cases)
	return chosen == 0
}

// memory is how many bytes are accounted for.
func (e *Engine) memory() int64 { return fixedBytes + e.held.Load() }

// sweep forgets the networks that nobody uses any more, and says how many
// bytes the others will give back.
func (e *Engine) sweep() (waited int64) {
	e.retired = slices.DeleteFunc(e.retired, func(l *life) bool {
		select {
		case <-l.drained:
			return true
		default:
			waited += l.bytes
			return false
		}
	})
	return waited
}

// tooLarge says, for people, why p cannot be built now and what could.
func (e *Engine) tooLarge(p parameters) string {
	need, used := e.need(p), e.memory()
	return fmt.Sprintf(
		"esn_reservoir_size %d does not fit: %s (it needs %s while it is built beside the %s in use, %s together; the memory limit is %s)",
		p.ESNReservoirSize, e.fitting(p, e.limit-used), mebibytes(need), mebibytes(used), mebibytes(need+used), mebibytes(e.limit))
}

// fitting names the largest reservoir that can be built in free bytes with the
// other parameters of p.
func (e *Engine) fitting(p parameters, free int64) string {
	least := max(minReservoir(), minMembrane*p.MaxMembraneDepth)
	units := least - 1 + sort.Search(max(0, p.ESNReservoirSize-least), func(i int) bool {
		q := p
		q.ESNReservoirSize = least + i
		return e.need(q) > free
	})
	if units < least {
		return fmt.Sprintf("no size fits at depth %d and order %d: lower them, or raise the limit", p.MaxMembraneDepth, p.BSeriesMaxOrder)
	}
	return fmt.Sprintf("up to %d units fit now at depth %d and order %d", units, p.MaxMembraneDepth, p.BSeriesMaxOrder)
}

// minReservoir is the least esn_reservoir_size.
func minReservoir() int {
	least, _ := rules().Parameter(reservoirSize).Minimum.Int()
	return least
}

func mebibytes(bytes int64) string { return fmt.Sprintf("%.2f MiB", float64(bytes)/(1<<20)) }
