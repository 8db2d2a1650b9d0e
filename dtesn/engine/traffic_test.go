package engine

import (
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dtesn-agent/dtesn"
)

const trafficClients = 8

// An observation is one answered request.
type observation struct {
	body int // which of the bodies
	data ProcessData
	took time.Duration
}

// traffic has 8 clients process bodies in turn over the socket, each its next
// when it has its last, until change returns. A request that fails fails the
// test.
func traffic(t *testing.T, s *served, bodies []string, change func()) []observation {
	t.Helper()
	stop := make(chan struct{})
	seen := make([][]observation, trafficClients)
	var clients sync.WaitGroup
	for client := range seen {
		clients.Go(func() {
			for i := client; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				began := time.Now()
				data, err := s.process(bodies[i%len(bodies)])
				if err != nil {
					t.Errorf("client %d: %v", client, err)
					return
				}
				seen[client] = append(seen[client], observation{i % len(bodies), data, time.Since(began)})
			}
		})
	}
	change()
	close(stop)
	clients.Wait()
	return slices.Concat(seen...)
}

// 50 critical and 50 runtime changes, 15 each with the race detector, go through
// under 8 clients. No request fails, and each answer is, to the last bit, that of
// a quiet network of the configuration that its generation had: a half-built
// network, a readout of one on the states of another, or a forecast cached by
// the generation before would give other numbers.
func TestChangesUnderTraffic(t *testing.T) {
	t.Parallel()
	const horizon = 6
	changes := 50
	if raceDetector {
		changes = 15
	}
	s := serve(t, Options{})
	shapes := []parameters{sized(64, 1, 3), sized(256, 4, 8), sized(96, 3, 5), sized(256, 2, 8), sized(256, 4, 2)}
	all := mackeyGlass(60)
	series := [][]float64{all[:20], all[20:40], all[40:], all[10:30], all[:60]}
	var bodies []string
	for _, one := range series {
		bodies = append(bodies, processBody(one, horizon))
	}
	configurations := map[uint64]parameters{1: defaults()} // by generation; one goroutine changes
	seen := traffic(t, s, bodies, func() {
		for i := range changes {
			p := shapes[i%len(shapes)]
			accept(t, s.engine, dtesn.PathBatchUpdate, batchOf(
				set("esn_reservoir_size", p.ESNReservoirSize), set("max_membrane_depth", p.MaxMembraneDepth), set("bseries_max_order", p.BSeriesMaxOrder)))
			configurations[statusOf(t, s.engine).Generation] = p
			accept(t, s.engine, dtesn.PathUpdate, []string{
				set("cache_ttl_seconds", 1+i), set("enable_caching", i%4 < 2), set("enable_performance_monitoring", i%3 == 0),
			}[i%3])
		}
	})
	type question struct {
		p    parameters
		body int
	}
	quiet, generations, cached := map[question][]float64{}, map[uint64]bool{}, 0
	for _, p := range append(shapes, defaults()) {
		n := school(t, p, 0)
		for i := range series {
			predictions, err := n.forecast(t.Context(), series[i], horizon)
			if err != nil {
				t.Fatal(err)
			}
			quiet[question{p, i}] = predictions
		}
	}
	for _, o := range seen {
		p, known := configurations[o.data.Generation]
		if !known || p.ESNReservoirSize != o.data.ReservoirSize {
			t.Errorf("an answer of generation %d has %d units, want %d", o.data.Generation, o.data.ReservoirSize, p.ESNReservoirSize)
		}
		if want := quiet[question{p, o.body}]; !slices.Equal(o.data.Predictions, want) {
			t.Errorf("generation %d (%+v) answers %v, when quiet %v", o.data.Generation, p, o.data.Predictions, want)
		}
		generations[o.data.Generation] = true
		if o.data.Cached {
			cached++
		}
	}
	t.Logf("%d answers of %d generations, %d from the cache", len(seen), len(generations), cached)
	if len(generations) < changes*4/5 || cached == 0 || cached == len(seen) {
		t.Error("too few generations answered, or the cache was not tried")
	}
	eventually(t, func() bool {
		return statusOf(t, s.engine).MemoryBytes == fixedBytes+s.engine.desk.bytes()+footprint(shapes[4])
	})
}

// p99 is the latency that 99 of 100 requests stay below.
func p99(seen []observation) time.Duration {
	slices.SortFunc(seen, func(a, b observation) int { return int(a.took - b.took) })
	return seen[len(seen)*99/100].took
}

// Under the same 8 clients, requests are answered nearly as quickly while 50
// critical and 50 runtime changes go through, between networks of equal cost, as
// while the engine is left alone: p99 at most doubles. Rest and changes take
// turns of less than a second, so that whatever else the machine does meets both;
// should it not, one good round of three is enough. The race detector makes
// pieces of work longer and uneven, so there are fewer with it and the bound is
// looser.
func TestRebuildsGiveWayToRequests(t *testing.T) {
	bound, phases, changes := 2.0, 5, 10
	if raceDetector {
		bound, phases, changes = 4, 2, 2
	}
	s := serve(t, Options{})
	resize := func(size int) {
		accept(t, s.engine, dtesn.PathBatchUpdate, batchOf(set("esn_reservoir_size", size), set("enable_caching", false)))
	}
	resize(1024)
	bodies := []string{processBody(mackeyGlass(20), 10)}
	for range 3 {
		var quiet, busy []observation
		var took time.Duration
		for phase := range phases {
			quiet = append(quiet, traffic(t, s, bodies, func() { <-time.After(700 * time.Millisecond) })...)
			busy = append(busy, traffic(t, s, bodies, func() {
				began := time.Now()
				for i := range changes {
					resize(1023 + (i+phase)%2)
					accept(t, s.engine, dtesn.PathUpdate, set("cache_ttl_seconds", 1+i))
				}
				took += time.Since(began)
			})...)
		}
		ratio := float64(p99(busy)) / float64(p99(quiet))
		t.Logf("p99 at rest %v (of %d), during %d rebuilds of %v %v (of %d): %.2f times",
			p99(quiet), len(quiet), phases*changes, took/time.Duration(phases*changes), p99(busy), len(busy), ratio)
		if ratio <= bound {
			return
		}
	}
	t.Errorf("p99 during rebuilds is more than %.1f times p99 at rest, three rounds long", bound)
}

// A rebuild gives way but never starves: with 8 clients on the largest network
// it ends well within what the agent waits for.
func TestLargestRebuildEndsUnderTraffic(t *testing.T) {
	withoutRaceDetector(t)
	s := serve(t, Options{})
	accept(t, s.engine, dtesn.PathBatchUpdate, batchOf(set("esn_reservoir_size", 16384), set("enable_caching", false)))
	var took time.Duration
	seen := traffic(t, s, []string{processBody(mackeyGlass(20), 10)}, func() {
		began := time.Now()
		accept(t, s.engine, dtesn.PathUpdate, set("max_membrane_depth", 5))
		took = time.Since(began)
	})
	t.Logf("a rebuild at 16384 units took %v under %d requests", took, len(seen))
	if took > 5*time.Second || len(seen) == 0 {
		t.Errorf("a rebuild at 16384 units took %v, the agent waits for 10 s; %d requests were answered", took, len(seen))
	}
}

// Construction and scaling alone, without the training and without traffic.
func TestLargestConstruction(t *testing.T) {
	best := time.Hour
	for range 3 {
		began := time.Now()
		construct(t, sized(16384, 4, 8), 1)
		best = min(best, time.Since(began))
	}
	t.Logf("16384 units are constructed and scaled in %v", best)
	if best > time.Second {
		t.Errorf("16384 units are constructed and scaled in %v, want 1 s", best)
	}
}

// A runtime change is answered within 1 ms, as a client over the socket sees it.
// The bound is on the median: the machine may do other things.
func TestRuntimeChangesAreQuick(t *testing.T) {
	bound := time.Millisecond
	if raceDetector {
		bound *= 20
	}
	s := serve(t, Options{})
	post := func(path, body string) {
		t.Helper()
		response, err := s.client.Post("http://engine"+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || !strings.Contains(string(text), `"success":true`) {
			t.Fatalf("%s: %s, %v", body, text, err)
		}
	}
	for round := range 3 {
		var took []time.Duration
		for i := range 51 {
			body := []string{set("cache_ttl_seconds", 1+i+round), set("enable_caching", i%2 == 0), set("enable_performance_monitoring", i%2 == 0)}[i%3]
			began := time.Now()
			post(dtesn.PathUpdate, body)
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		median := took[len(took)/2]
		t.Logf("a runtime change takes %v, at worst %v", median, took[len(took)-1])
		if median <= bound {
			return
		}
	}
	t.Errorf("a runtime change takes more than %v", bound)
}
