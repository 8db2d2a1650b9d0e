package engine

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

const (
	maxSeries  = 4096 // samples
	maxHorizon = 512
	maxSample  = 1e6
)

// postProcess forecasts a series. Equal series, horizon and generation give
// equal predictions.
func (e *Engine) postProcess(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	request, ok := decodeProcess(w, r)
	if !ok {
		return
	}
	data, err := e.process(r.Context(), request, began)
	if err != nil {
		fail(w, http.StatusServiceUnavailable, "The series was not processed", err.Error())
		return
	}
	answer(w, http.StatusOK, Response{Success: true, Message: "Series processed", Data: data})
}

// process counts on one network from here to its end, and no further: who is
// slow to read the answer keeps no network.
func (e *Engine) process(ctx context.Context, request ProcessRequest, began time.Time) (data ProcessData, err error) {
	now := e.enter()
	defer now.network.leave()
	var key cacheKey
	if now.cache != nil {
		key = keyOf(request)
		data.Predictions, data.Cached = now.cache.get(key, time.Duration(now.params.CacheTTLSeconds)*time.Second)
	}
	if !data.Cached {
		if data.Predictions, err = now.network.forecast(ctx, request.Series, request.Horizon); err != nil {
			return data, err
		}
		if now.cache != nil {
			now.cache.put(key, data.Predictions)
		}
	}
	took := time.Since(began)
	now.latencies.note(took, data.Cached)
	data.Generation, data.ReservoirSize, data.LatencySeconds = now.generation, now.params.ESNReservoirSize, took.Seconds()
	return data, nil
}

// decodeProcess reads a request, or answers 400. A null in the series is none
// of its values, though a decoder would make 0 of it.
func decodeProcess(w http.ResponseWriter, r *http.Request) (request ProcessRequest, ok bool) {
	var raw struct {
		Series  json.RawMessage `json:"series"`
		Horizon int             `json:"horizon"`
	}
	if !decode(w, r, &raw) {
		return request, false
	}
	request.Horizon = raw.Horizon
	reason := ""
	switch {
	case bytes.Contains(raw.Series, []byte("null")):
		reason = "series has a null, it takes numbers"
	case raw.Series != nil:
		if err := json.Unmarshal(raw.Series, &request.Series); err != nil {
			reason = err.Error()
		}
	}
	if reason == "" {
		reason = unfit(request)
	}
	if reason != "" {
		fail(w, http.StatusBadRequest, "The series cannot be processed", reason)
		return request, false
	}
	return request, true
}

// unfit says why a request cannot be processed, "" if it can.
func unfit(request ProcessRequest) string {
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

func (l *latencies) figures() *Performance {
	if l == nil {
		return nil
	}
	p := &Performance{Requests: l.requests.Load(), Cached: l.cached.Load()}
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
