package engine

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dtesn-agent/dtesn"
)

const (
	maxSeries  = 4096 // samples
	maxHorizon = 512
	maxSample  = 1e6

	cacheEntries = 256
	// cacheBytes is what a full cache takes, keys and bookkeeping included.
	cacheBytes = cacheEntries * (8*maxHorizon + 256)
)

// postProcess forecasts a series. Equal series, horizon and generation give
// equal predictions.
func (e *Engine) postProcess(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	var request dtesn.ProcessRequest
	if !decode(w, r, &request) {
		return
	}
	if reason := unfit(request); reason != "" {
		fail(w, http.StatusBadRequest, "The series cannot be processed", reason)
		return
	}
	now := e.enter()
	defer now.network.leave()
	var key cacheKey
	var predictions []float64
	cached := false
	if now.cache != nil {
		key = keyOf(request)
		predictions, cached = now.cache.get(key, time.Duration(now.params.CacheTTLSeconds)*time.Second)
	}
	if !cached {
		var err error
		if predictions, err = now.network.forecast(r.Context(), request.Series, request.Horizon); err != nil {
			fail(w, http.StatusServiceUnavailable, "The series was not processed", err.Error())
			return
		}
		if now.cache != nil {
			now.cache.put(key, predictions)
		}
	}
	took := time.Since(began)
	now.latencies.note(took, cached)
	answer(w, http.StatusOK, dtesn.Response{Success: true, Message: "Series processed", Data: dtesn.ProcessData{
		Predictions: predictions, Generation: now.generation, ReservoirSize: now.params.ESNReservoirSize,
		Cached: cached, LatencySeconds: took.Seconds(),
	}})
}

// unfit says why a request cannot be processed, "" if it can.
func unfit(request dtesn.ProcessRequest) string {
	if n := len(request.Series); n < 1 || n > maxSeries {
		return fmt.Sprintf("series has %d values, it takes 1 to %d", n, maxSeries)
	}
	if h := request.Horizon; h < 1 || h > maxHorizon {
		return fmt.Sprintf("horizon is %d, it takes 1 to %d", h, maxHorizon)
	}
	for i, value := range request.Series {
		if math.Abs(value) > maxSample {
			return fmt.Sprintf("series[%d] is %g, values lie within ±%g", i, value, float64(maxSample))
		}
	}
	return ""
}

// A cache remembers forecasts of one generation, the last cacheEntries.
type cache struct {
	mu      sync.Mutex
	entries map[cacheKey]cacheEntry
	order   []cacheKey // a ring of the keys, oldest at next once it is full
	next    int
}

type cacheKey struct {
	horizon int
	series  [sha256.Size]byte
}

type cacheEntry struct {
	predictions []float64
	at          time.Time
}

func newCache() *cache { return &cache{entries: map[cacheKey]cacheEntry{}} }

func keyOf(request dtesn.ProcessRequest) cacheKey {
	bytes := make([]byte, 0, 8*len(request.Series))
	for _, value := range request.Series {
		bytes = binary.LittleEndian.AppendUint64(bytes, math.Float64bits(value))
	}
	return cacheKey{horizon: request.Horizon, series: sha256.Sum256(bytes)}
}

func (c *cache) get(key cacheKey, ttl time.Duration) ([]float64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	entry, ok := c.entries[key]
	if !ok || time.Since(entry.at) >= ttl {
		return nil, false
	}
	return entry.predictions, true
}

func (c *cache) put(key cacheKey, predictions []float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.entries[key]; !known {
		if len(c.order) < cacheEntries {
			c.order = append(c.order, key)
		} else {
			delete(c.entries, c.order[c.next])
			c.order[c.next] = key
			c.next = (c.next + 1) % cacheEntries
		}
	}
	c.entries[key] = cacheEntry{predictions: predictions, at: time.Now()}
}

// latencies count requests and remember how long the last ones took. A nil one
// is monitoring switched off.
type latencies struct {
	requests, cached atomic.Uint64
	ring             [1024]atomic.Int64 // nanoseconds
}

func (l *latencies) note(took time.Duration, cached bool) {
	if l == nil {
		return
	}
	if cached {
		l.cached.Add(1)
	}
	l.ring[(l.requests.Add(1)-1)%uint64(len(l.ring))].Store(max(1, int64(took)))
}

func (l *latencies) figures() *dtesn.Performance {
	if l == nil {
		return nil
	}
	p := &dtesn.Performance{Requests: l.requests.Load(), Cached: l.cached.Load()}
	var took []int64
	for i := range l.ring {
		if t := l.ring[i].Load(); t > 0 {
			took = append(took, t)
		}
	}
	if len(took) == 0 {
		return p
	}
	slices.SortFunc(took, cmp.Compare[int64])
	seconds := func(quantile float64) float64 {
		return time.Duration(took[int(quantile*float64(len(took)-1))]).Seconds()
	}
	p.LatencyP50, p.LatencyP99, p.LatencyMax = seconds(0.5), seconds(0.99), seconds(1)
	return p
}
