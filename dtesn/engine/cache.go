package engine

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"sync"
	"time"
)

// entryBytes is what a forecast of horizon samples takes in the cache at most,
// the map's share and the queue's included: a map doubles when it is full.
func entryBytes(horizon int) int { return 8*horizon + 256 }

// A cache remembers forecasts of one generation, the latest ones, as many as
// fit into cacheBytes. Its lock is held for a look or a note, never for work.
type cache struct {
	mu      sync.Mutex
	entries map[cacheKey]cacheEntry
	queue   []cacheKey // oldest first
	bytes   int        // of all entries
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

func keyOf(request ProcessRequest) cacheKey {
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
		c.queue = append(c.queue, key)
		c.bytes += entryBytes(key.horizon)
		for c.bytes > cacheBytes {
			oldest := c.queue[0]
			delete(c.entries, oldest)
			c.queue = c.queue[1:]
			c.bytes -= entryBytes(oldest.horizon)
		}
	}
	c.entries[key] = cacheEntry{predictions: predictions, at: time.Now()}
}
