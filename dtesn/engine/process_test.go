package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/dtesn"
	"dtesn-agent/schema"
)

func processBody(series []float64, horizon int) string {
	text, err := json.Marshal(dtesn.ProcessRequest{Series: series, Horizon: horizon})
	if err != nil {
		panic(err)
	}
	return string(text)
}

func process(t testing.TB, e *Engine, body string) dtesn.ProcessData {
	t.Helper()
	status, answer := ask[struct {
		Success bool
		Data    dtesn.ProcessData
	}](t, e, "POST", dtesn.PathProcess, body)
	if status != 200 || !answer.Success {
		t.Fatalf("POST process: %d", status)
	}
	return answer.Data
}

func TestProcessForecasts(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{})
	const known, horizon = 150, 10
	series := mackeyGlass(known + horizon)
	data := process(t, e, processBody(series[:known], horizon))
	if len(data.Predictions) != horizon || data.Generation != 1 || data.ReservoirSize != 512 || data.Cached || data.LatencySeconds <= 0 {
		t.Fatalf("process answers %+v", data)
	}
	for i, y := range data.Predictions {
		if math.Abs(y-series[known+i]) > 0.1 {
			t.Errorf("sample %d: %.3f forecast, %.3f came", i, y, series[known+i])
		}
	}
}

func TestProcessRefuses(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{})
	for _, body := range []string{
		`{"series": [], "horizon": 1}`, `{"series": [1], "horizon": 0}`, `{"series": [1], "horizon": 513}`, `{"series": [1], "horizon": 1.5}`,
		`{"series": [1e7], "horizon": 1}`, `{"series": [1e400], "horizon": 1}`, `{"series": ["1"], "horizon": 1}`, `{}`,
		processBody(make([]float64, maxSeries+1), 1),
	} {
		reject(t, e, 400, dtesn.PathProcess, body)
	}
	process(t, e, processBody([]float64{1e6, -1e6, 0}, 3))
}

func TestCache(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, Options{})
		accept(t, e, dtesn.PathBatchUpdate, batchOf(set("cache_ttl_seconds", 60), set("esn_reservoir_size", 128)))
		body, other := processBody([]float64{0.5, 0.7, 0.9}, 5), processBody([]float64{0.5, 0.7, 0.9}, 4)
		first := process(t, e, body)
		look := func(what, body string, cached bool) {
			t.Helper()
			data := process(t, e, body)
			if data.Cached != cached {
				t.Errorf("%s: cached is %t", what, data.Cached)
			}
			if n := len(data.Predictions); data.Generation == first.Generation && !slices.Equal(data.Predictions, first.Predictions[:n]) {
				t.Errorf("%s: %v, at first %v", what, data.Predictions, first.Predictions)
			}
		}
		// The clock is the bubble's: nobody waits.
		look("again", body, true)
		look("another horizon", other, false)
		time.Sleep(59 * time.Second)
		look("before the TTL", body, true)
		time.Sleep(time.Second)
		look("at the TTL", body, false)
		look("fresh again", body, true)
		time.Sleep(10 * time.Second)
		accept(t, e, dtesn.PathUpdate, set("cache_ttl_seconds", 5))
		look("the TTL is shorter now", body, false)
		accept(t, e, dtesn.PathUpdate, set("enable_caching", false))
		look("off", body, false)
		look("off, again", body, false)
		accept(t, e, dtesn.PathUpdate, set("enable_caching", true))
		look("on, but nothing is kept from before", body, false)
		look("on", body, true)
		accept(t, e, dtesn.PathUpdate, set("esn_reservoir_size", 192))
		look("a new network", body, false)
		accept(t, e, dtesn.PathUpdate, set("esn_reservoir_size", 128))
		if data := process(t, e, body); data.Generation != 4 || data.Cached || !slices.Equal(data.Predictions, first.Predictions) {
			t.Errorf("the same parameters and seed predict otherwise: %+v", data)
		}
	})
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	c := newCache()
	key := func(i int) cacheKey { return cacheKey{horizon: i} }
	for i := range 3 * cacheEntries {
		c.put(key(i), []float64{float64(i)})
		c.put(key(i), []float64{float64(i)}) // two clients that asked at once
	}
	for i := range 3 * cacheEntries {
		if _, ok := c.get(key(i), time.Hour); ok != (i >= 2*cacheEntries) {
			t.Errorf("entry %d is kept: %t", i, ok)
		}
	}
	if len(c.entries) != cacheEntries || len(c.order) != cacheEntries {
		t.Errorf("%d entries, %d keys", len(c.entries), len(c.order))
	}
}

func TestMonitoring(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{})
	body := processBody([]float64{0.5, 0.7}, 2)
	for range 3 {
		process(t, e, body)
	}
	p := statusOf(t, e).Performance
	if p == nil || p.Requests != 3 || p.Cached != 2 || p.LatencyP50 <= 0 || p.LatencyP50 > p.LatencyP99 || p.LatencyP99 > p.LatencyMax {
		t.Errorf("the figures are %+v", p)
	}
	accept(t, e, dtesn.PathUpdate, set("enable_performance_monitoring", false))
	process(t, e, body)
	if p := statusOf(t, e).Performance; p != nil {
		t.Errorf("figures while monitoring is off: %+v", p)
	}
	accept(t, e, dtesn.PathUpdate, set("enable_performance_monitoring", true))
	if p := statusOf(t, e).Performance; p == nil || *p != (dtesn.Performance{}) {
		t.Errorf("figures from before: %+v", p)
	}
}

// memoryOf is what status says of an engine that runs size units.
func memoryOf(t *testing.T, size int) int64 {
	t.Helper()
	e := newEngine(t, Options{})
	accept(t, e, dtesn.PathUpdate, set("esn_reservoir_size", size))
	return statusOf(t, e).MemoryBytes
}

func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	limit := 2 * memoryOf(t, 4096)
	e := newEngine(t, Options{MemoryLimit: limit})
	look := func() {
		t.Helper()
		if s := statusOf(t, e); s.MemoryBytes > limit || s.MemoryLimitBytes != limit || s.MemoryBytes != fixedBytes+footprint(s.CurrentConfig) {
			t.Errorf("%d units: %d bytes, accounted %d, the limit is %d", s.CurrentConfig.ESNReservoirSize, fixedBytes+footprint(s.CurrentConfig), s.MemoryBytes, limit)
		}
	}
	look()
	for range 3 { // from the defaults, and beside itself
		accept(t, e, dtesn.PathUpdate, set("esn_reservoir_size", 4096))
		look()
		accept(t, e, dtesn.PathUpdate, set("max_membrane_depth", 5))
		look()
		reason := reject(t, e, 200, dtesn.PathUpdate, set("esn_reservoir_size", 16384))
		for _, part := range []string{"esn_reservoir_size 16384", mebibytes(limit), "memory limit"} {
			if !strings.Contains(reason, part) {
				t.Errorf("the reason %q does not say %q", reason, part)
			}
		}
		look()
		accept(t, e, dtesn.PathBatchUpdate, batchOf(set("esn_reservoir_size", 512), set("max_membrane_depth", 4)))
		look()
	}
	if _, err := New(Options{MemoryLimit: 1 << 20}); err == nil || !strings.Contains(err.Error(), "--memory-limit") {
		t.Errorf("an engine of 1 MiB: %v", err)
	}
	accept(t, newEngine(t, Options{}), dtesn.PathUpdate, set("esn_reservoir_size", 16384))
}

// A request in flight keeps the network it runs on, and its bytes, until it
// has ended; a change that needs them waits for that, 5 s long.
func TestRequestsInFlightKeepTheirNetwork(t *testing.T) {
	t.Parallel()
	large := schema.Defaults()
	large.ESNReservoirSize = 4096
	limit := fixedBytes + 2*footprint(large) // the default beside them is too much
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, Options{MemoryLimit: limit})
		accept(t, e, dtesn.PathUpdate, set("esn_reservoir_size", 4096))
		inFlight := e.enter()
		accept(t, e, dtesn.PathUpdate, set("esn_reservoir_size", 512))
		both := fixedBytes + footprint(inFlight.params) + footprint(schema.Defaults())
		if got := statusOf(t, e).MemoryBytes; got != both {
			t.Errorf("while a request runs on the old network %d bytes are accounted, want %d", got, both)
		}
		// What could not help is not waited for.
		began := time.Now()
		reject(t, e, 200, dtesn.PathUpdate, set("esn_reservoir_size", 16384))
		if took := time.Since(began); took != 0 {
			t.Errorf("a hopeless change waited %v", took)
		}
		reject(t, e, 200, dtesn.PathUpdate, set("esn_reservoir_size", 4096))
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
		if want := fixedBytes + footprint(inFlight.params); statusOf(t, e).MemoryBytes != want || time.Since(began) != drainTime {
			t.Errorf("%d bytes after %v, want %d at once", statusOf(t, e).MemoryBytes, time.Since(began), want)
		}
	})
}

// A client that left while it waited changes nothing.
func TestClientsThatLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, Options{})
		before := e.current.Load()
		e.changing.Lock()
		ctx, cancel := context.WithCancel(t.Context())
		w := httptest.NewRecorder()
		done := make(chan struct{})
		go func() {
			defer close(done)
			e.Handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, "POST", dtesn.PathUpdate, strings.NewReader(set("cache_ttl_seconds", 7))))
		}()
		cancel()
		e.changing.Unlock()
		<-done
		if w.Code != 503 || e.current.Load() != before {
			t.Errorf("%d, changed: %t", w.Code, e.current.Load() != before)
		}
		reply := httptest.NewRecorder()
		e.Handler().ServeHTTP(reply, httptest.NewRequestWithContext(ctx, "POST", dtesn.PathProcess, strings.NewReader(processBody([]float64{1}, 5))))
		if reply.Code != 503 {
			t.Errorf("process for nobody answers %d", reply.Code)
		}
	})
}

// Four clients process over a socket while the engine is changed under them.
// Generation and size of each answer belong together, and equal questions to
// one generation get equal answers.
func TestChangesUnderTraffic(t *testing.T) {
	t.Parallel()
	s := serve(t, Options{})
	sizes := map[uint64]int{1: 512} // by generation; one goroutine changes
	stop := make(chan struct{})
	answers := make([][]dtesn.ProcessData, 4)
	var clients sync.WaitGroup
	for i := range answers {
		clients.Go(func() {
			body := processBody([]float64{0.5, 0.7, 0.9, 1.1}, 5)
			for {
				select {
				case <-stop:
					return
				default:
				}
				data, err := s.process(body)
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				answers[i] = append(answers[i], data)
			}
		})
	}
	for i, size := range []int{64, 1024, 128, 64, 256, 512} {
		accept(t, s.engine, dtesn.PathBatchUpdate, batchOf(set("esn_reservoir_size", size), set("max_membrane_depth", 1+i%2), set("enable_caching", i%2 == 0)))
		sizes[statusOf(t, s.engine).Generation] = size
		accept(t, s.engine, dtesn.PathUpdate, set("cache_ttl_seconds", 1+i))
		accept(t, s.engine, dtesn.PathUpdate, set("enable_caching", i%2 != 0))
		accept(t, s.engine, dtesn.PathUpdate, set("enable_performance_monitoring", i%2 == 0))
	}
	close(stop)
	clients.Wait()
	total, predictions := 0, map[uint64][]float64{}
	for _, data := range slices.Concat(answers...) {
		total++
		if size, ok := sizes[data.Generation]; !ok || size != data.ReservoirSize {
			t.Errorf("an answer of generation %d has %d units, want %d", data.Generation, data.ReservoirSize, size)
		}
		if first, ok := predictions[data.Generation]; ok && !slices.Equal(first, data.Predictions) {
			t.Errorf("generation %d predicts %v and %v", data.Generation, first, data.Predictions)
		}
		predictions[data.Generation] = data.Predictions
	}
	t.Logf("%d answers of %d generations", total, len(predictions))
	if got, want := statusOf(t, s.engine).MemoryBytes, fixedBytes+footprint(s.engine.current.Load().params); got != want {
		t.Errorf("%d bytes are accounted after all, want %d", got, want)
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		newEngine(b, Options{})
	}
}

func BenchmarkRuntimeChange(b *testing.B) {
	e := newEngine(b, Options{})
	for i := 0; b.Loop(); i++ {
		accept(b, e, dtesn.PathUpdate, set("cache_ttl_seconds", 1+i%1000))
	}
}

// BenchmarkRebuild is a critical change through the API; "warm" where the
// network had requests, so that the readout is trained before the swap.
func BenchmarkRebuild(b *testing.B) {
	for _, size := range []int{512, 2048, 16384} {
		for _, warm := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d/warm=%t", size, warm), func(b *testing.B) {
				e := newEngine(b, Options{})
				for i := 0; b.Loop(); i++ {
					e.current.Load().network.used.Store(warm)
					accept(b, e, dtesn.PathBatchUpdate, batchOf(set("esn_reservoir_size", size), set("max_membrane_depth", 2+i%2)))
				}
			})
		}
	}
}

func BenchmarkProcess(b *testing.B) {
	for _, size := range []int{512, 16384} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			e := newEngine(b, Options{})
			accept(b, e, dtesn.PathBatchUpdate, batchOf(set("esn_reservoir_size", size), set("enable_caching", false)))
			body := processBody(mackeyGlass(20), 10)
			process(b, e, body)
			for b.Loop() {
				process(b, e, body)
			}
		})
	}
}
