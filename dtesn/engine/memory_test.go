package engine

import (
	"math"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/dtesn"
	"dtesn-agent/schema"
)

// fill puts forecasts into the cache until the first one is pushed out.
func fill(c *cache, horizon int) (entries int) {
	key := func(i int) cacheKey {
		return cacheKey{horizon: horizon, series: [32]byte{byte(i), byte(i >> 8), byte(i >> 16)}}
	}
	for i := 0; ; i++ {
		c.put(key(i), make([]float64, horizon))
		c.put(key(i), make([]float64, horizon)) // two clients that asked at once
		if _, kept := c.get(key(0), time.Hour); !kept {
			return i
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	for _, horizon := range []int{1, 10, maxHorizon} {
		c := newCache()
		kept := fill(c, horizon)
		for range 3 {
			fill(c, maxHorizon-horizon) // others push these out
		}
		bytes := 0
		for key := range c.entries {
			bytes += entryBytes(key.horizon)
		}
		if kept != cacheBytes/entryBytes(horizon) || bytes != c.bytes || bytes > cacheBytes || len(c.queue) != len(c.entries) {
			t.Errorf("horizon %d: %d were kept; now %d entries, %d keys, %d bytes, counted %d of %d", horizon, kept, len(c.entries), len(c.queue), bytes, c.bytes, cacheBytes)
		}
	}
}

// heap is what lives. Nothing else may run, so tests that ask are not parallel.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what finalizers and pools let go
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// What is accounted is what the heap grows by, within a quarter; beside what
// runs, a network that is built and not yet swapped in counts too.
func TestMemoryIsWhatTheHeapGrowsBy(t *testing.T) {
	withoutRaceDetector(t)
	newEngine(t, Options{}) // what is made once
	for _, p := range []parameters{sized(64, 2, 1), sized(512, 4, 8), sized(2048, 64, 4), sized(4096, 1, 32), sized(16384, 4, 8)} {
		before := heap()
		e := newEngine(t, Options{})
		look := func(what string) {
			t.Helper()
			grown, said := heap()-before, statusOf(t, e).MemoryBytes
			t.Logf("%d units, depth %d, order %d, %s: %s said, the heap grew by %s", p.ESNReservoirSize, p.MaxMembraneDepth, p.BSeriesMaxOrder, what, mebibytes(said), mebibytes(grown))
			if grown > said*5/4 || grown < said*3/4 {
				t.Errorf("%s: %d bytes are said, the heap grew by %d", what, said, grown)
			}
		}
		wish := batchOf(set("esn_reservoir_size", p.ESNReservoirSize), set("max_membrane_depth", p.MaxMembraneDepth), set("bseries_max_order", p.BSeriesMaxOrder))
		accept(t, e, dtesn.PathBatchUpdate, wish)
		fill(e.current.Load().cache, 50)
		look("it runs")
		other := p
		other.ESNReservoirSize++
		beside, reasons, err := e.rebuild(t.Context(), other)
		if reasons != nil || err != nil {
			t.Fatal(reasons, err)
		}
		look("with another beside it")
		runtime.KeepAlive(beside)
		runtime.KeepAlive(e)
	}
}

// While it is built, the heap holds no more than what was reserved for it.
func TestBuildingHoldsWhatWasReserved(t *testing.T) {
	withoutRaceDetector(t)
	p := sized(4096, 4, 2)
	n := construct(t, p, 1)
	before := heap()
	w := newWorkspace(p.ESNReservoirSize, lessonOrder, n.largest, maxFeatures)
	grown := heap() - before
	runtime.KeepAlive(n)
	runtime.KeepAlive(w)
	if want := schooling(p); grown < want*9/10 || grown > want*11/10 {
		t.Errorf("a training takes %d bytes, %d are reserved", grown, want)
	}
}

func TestMemoryLimit(t *testing.T) {
	withoutRaceDetector(t)
	t.Parallel()
	p := sized(2048, 4, 8)
	limit := fixedBytes + newDesk(maxFeatures).bytes() + footprint(p) + building(p)
	e := newEngine(t, Options{MemoryLimit: limit})
	look := func() {
		t.Helper()
		s := statusOf(t, e)
		p := parametersOf(s.CurrentConfig)
		if s.MemoryLimitBytes != limit || s.MemoryBytes != fixedBytes+e.desk.bytes()+footprint(p) {
			t.Errorf("%d units: %d bytes, accounted %d, the limit is %d", p.ESNReservoirSize, fixedBytes+e.desk.bytes()+footprint(p), s.MemoryBytes, limit)
		}
	}
	look()
	for range 2 { // from the defaults, and beside itself
		accept(t, e, dtesn.PathUpdate, set("esn_reservoir_size", 2048))
		look()
		accept(t, e, dtesn.PathUpdate, set("bseries_max_order", 7))
		accept(t, e, dtesn.PathUpdate, set("bseries_max_order", 8)) // takes all there is
		look()
		reason := reject(t, e, 200, dtesn.PathUpdate, set("esn_reservoir_size", 2049)) // alone it would fit
		for _, part := range []string{"esn_reservoir_size 2049 does not fit", "beside", mebibytes(limit), "memory limit", "up to 2048 units fit now"} {
			if !strings.Contains(reason, part) {
				t.Errorf("the reason %q does not say %q", reason, part)
			}
		}
		reason = reject(t, e, 200, dtesn.PathBatchUpdate, batchOf(set("esn_reservoir_size", 16384), set("bseries_max_order", 32), set("max_membrane_depth", 64)))
		if !strings.Contains(reason, "no size fits") {
			t.Errorf("the reason %q offers what is no use", reason)
		}
		look()
		accept(t, e, dtesn.PathUpdate, set("esn_reservoir_size", 512))
		look()
	}
	if _, err := New(Options{MemoryLimit: 1 << 20}); err == nil || !strings.Contains(err.Error(), "--memory-limit") {
		t.Errorf("an engine of 1 MiB: %v", err)
	}
}

// The way out that a refusal names is one: what it offers is taken, one more is
// not.
func TestRefusalsSayWhatFits(t *testing.T) {
	withoutRaceDetector(t)
	t.Parallel()
	e := newEngine(t, Options{MemoryLimit: 8 << 20})
	offer := regexp.MustCompile(`up to ([0-9]+) units fit now`)
	found := offer.FindStringSubmatch(reject(t, e, 200, dtesn.PathUpdate, set("esn_reservoir_size", 16384)))
	if found == nil {
		t.Fatal("nothing is offered")
	}
	units, _ := strconv.Atoi(found[1])
	reject(t, e, 200, dtesn.PathUpdate, set("esn_reservoir_size", units+1))
	accept(t, e, dtesn.PathUpdate, set("esn_reservoir_size", units))
}

// By default the largest network there is follows the largest.
func TestDefaultLimitHoldsTheLargest(t *testing.T) {
	t.Parallel()
	for _, p := range []parameters{sized(16384, 1, 32), sized(16384, 64, 32)} {
		if need := fixedBytes + newDesk(maxFeatures).bytes() + footprint(p) + building(p); need > DefaultMemoryLimit {
			t.Errorf("depth %d: two of the largest take %s", p.MaxMembraneDepth, mebibytes(need))
		}
	}
}

// A request in flight keeps the network it runs on, and its bytes, until it
// has ended; a change that needs them waits for that, 5 s long.
func TestRequestsInFlightKeepTheirNetwork(t *testing.T) {
	t.Parallel()
	large := defaults()
	large.ESNReservoirSize = 4096
	limit := fixedBytes + newDesk(maxFeatures).bytes() + footprint(large) + building(large) // the default beside them is too much
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, Options{MemoryLimit: limit})
		accept(t, e, dtesn.PathUpdate, set("esn_reservoir_size", 4096))
		inFlight := e.enter()
		accept(t, e, dtesn.PathUpdate, set("esn_reservoir_size", 512))
		both := fixedBytes + e.desk.bytes() + footprint(inFlight.params) + footprint(defaults())
		if got := statusOf(t, e).MemoryBytes; got != both {
			t.Errorf("while a request runs on the old network %d bytes are accounted, want %d", got, both)
		}
		// What could not help is not waited for.
		began := time.Now()
		reject(t, e, 200, dtesn.PathUpdate, set("esn_reservoir_size", 16384))
		if took := time.Since(began); took != 0 {
			t.Errorf("a hopeless change waited %v", took)
		}
		reject(t, e, 503, dtesn.PathUpdate, set("esn_reservoir_size", 4096))
		if took := time.Since(began); took != drainTime {
			t.Errorf("the change waited %v for the request", took)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			accept(t, e, dtesn.PathUpdate, set("esn_reservoir_size", 4096))
		}()
		synctest.Wait()
		inFlight.network.leave()
		<-done
		if want := fixedBytes + e.desk.bytes() + footprint(inFlight.params); statusOf(t, e).MemoryBytes != want || time.Since(began) != drainTime {
			t.Errorf("%d bytes after %v, want %d at once", statusOf(t, e).MemoryBytes, time.Since(began), want)
		}
	})
}

// Twice what memory_bytes says is enough to come back to a configuration from
// the defaults, as after a restart, and to build it once more beside itself.
func TestTwiceIsEnough(t *testing.T) {
	t.Parallel()
	for _, size := range []int{64, 512, 2048, 4096, 16384} {
		p := sized(size, 2, 8)
		fixed := fixedBytes + newDesk(min(size, maxFeatures)).bytes()
		runs := fixed + footprint(p)
		for _, before := range []parameters{defaults(), p} {
			if need := fixed + footprint(before) + building(p); need > 2*runs {
				t.Errorf("%d units: %d bytes are accounted, building them beside %d takes %d", size, runs, before.ESNReservoirSize, need)
			}
		}
	}
}

// TestSchemaKnowsMemory: what the schema says that parameters take, which `agent
// plan` shows, is within 20 % of what is accounted for once they run.
func TestSchemaKnowsMemory(t *testing.T) {
	all, worst := rules().Defaults(), 0.0
	for _, size := range []int{64, 100, 256, 512, 777, 1024, 2048, 4096, 10000, 16384} {
		for _, depth := range []int{1, 2, 3, 8, 17, 64} {
			for _, order := range []int{1, 2, 6, 8, 20, 32} {
				if size < minMembrane*depth {
					continue
				}
				p := sized(size, depth, order)
				desk := max(newDesk(min(size, maxFeatures)).bytes(), newDesk(defaults().ESNReservoirSize).bytes())
				want := fixedBytes + desk + footprint(p)
				said, ok := rules().MemoryBytes(all.With(reservoirSize, schema.Int(size)).With("max_membrane_depth", schema.Int(depth)).With("bseries_max_order", schema.Int(order)))
				off := math.Abs(float64(said)/float64(want) - 1)
				if !ok || off > 0.2 {
					t.Errorf("%d units, depth %d, order %d: the schema says %s, the engine %s", size, depth, order, mebibytes(said), mebibytes(want))
				}
				worst = max(worst, off)
			}
		}
	}
	t.Logf("at most %.1f %% off", 100*worst)
}
