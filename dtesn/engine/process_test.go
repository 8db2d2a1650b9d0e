package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dtesn-agent/dtesn"
)

func processBody(series []float64, horizon int) string {
	text, err := json.Marshal(ProcessRequest{Series: series, Horizon: horizon})
	if err != nil {
		panic(err)
	}
	return string(text)
}

func process(t testing.TB, e *Engine, body string) ProcessData {
	t.Helper()
	status, answer := ask[struct {
		Success bool
		Data    ProcessData
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

// Short series, and such as no lesson was like, get forecasts that are not
// absurd, whatever the order.
func TestForecastsStayPlausible(t *testing.T) {
	withoutRaceDetector(t)
	t.Parallel()
	for _, order := range []int{1, 2, 8} {
		n := school(t, sized(512, 4, order), 0)
		for _, series := range [][]float64{{0.9}, {0.1, 0.2, 0.3}, {5, 6, 7}, {-1e6, 1e6}, mackeyGlass(20)} {
			predictions, err := n.forecast(t.Context(), series, maxHorizon)
			if err != nil {
				t.Fatal(err)
			}
			span := max(slices.Max(series), 1.5) - min(slices.Min(series), 0)
			for i, y := range predictions {
				if !(math.Abs(y-series[0]) <= 1.5*span) {
					t.Fatalf("order %d, a series from %g on: sample %d is forecast as %g", order, series[0], i, y)
				}
			}
		}
	}
	n, all := school(t, sized(512, 4, 8), 0), mackeyGlass(25)
	predictions, err := n.forecast(t.Context(), all[:20], 5)
	if err != nil {
		t.Fatal(err)
	}
	for i, y := range predictions {
		if math.Abs(y-all[20+i]) > 0.15 {
			t.Errorf("after 20 samples, sample %d: %.3f forecast, %.3f came", i, y, all[20+i])
		}
	}
}

func TestProcessRefuses(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{})
	for _, body := range []string{
		`{"series": [], "horizon": 1}`, `{"series": [1], "horizon": 0}`, `{"series": [1], "horizon": 513}`, `{"series": [1], "horizon": 1.5}`,
		`{"series": [1e7], "horizon": 1}`, `{"series": [1e400], "horizon": 1}`, `{"series": ["1"], "horizon": 1}`, `{}`,
		`{"series": [null], "horizon": 1}`, `{"series": null, "horizon": 1}`, `{"series": 1, "horizon": 1}`, `{"series": {}, "horizon": 1}`,
		`{"series": [NaN], "horizon": 1}`, `{"series": [Infinity], "horizon": 1}`, `{"series": [1], "horizon": -1}`, `{"series": [1], "horizon": 99999999999999999999}`,
		`{"series": [[1]], "horizon": 1}`, `{"series": [1], "horizon": null}`,
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
	if p := statusOf(t, e).Performance; p == nil || *p != (Performance{}) {
		t.Errorf("figures from before: %+v", p)
	}
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

// BenchmarkRebuild is a critical change through the API, its training too.
func BenchmarkRebuild(b *testing.B) {
	for _, size := range []int{512, 2048, 16384} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			e := newEngine(b, Options{})
			for i := 0; b.Loop(); i++ {
				accept(b, e, dtesn.PathBatchUpdate, batchOf(set("esn_reservoir_size", size), set("max_membrane_depth", 2+i%2)))
			}
		})
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
