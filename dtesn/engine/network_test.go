package engine

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"unsafe"

	"gonum.org/v1/gonum/mat"
)

// withoutRaceDetector skips a test that computes a lot in one goroutine: it
// takes ten times as long with the race detector, which sees nothing there.
func withoutRaceDetector(t *testing.T) {
	t.Helper()
	if raceDetector {
		t.Skip("runs without the race detector only; make test does both")
	}
}

func sized(size, depth, order int) parameters {
	p := defaults()
	p.ESNReservoirSize, p.MaxMembraneDepth, p.BSeriesMaxOrder = size, depth, order
	return p
}

// construct is a network that is yet to be trained, school one that is.
func construct(t testing.TB, p parameters, seed uint64) *network {
	t.Helper()
	n, err := build(&turn{ctx: t.Context(), most: rebuildTurn}, p, seed)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func school(t testing.TB, p parameters, seed uint64) *network {
	t.Helper()
	n := construct(t, p, seed)
	if err := n.train(&turn{ctx: t.Context(), most: rebuildTurn}, newDesk(maxFeatures)); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMembranesFormATree(t *testing.T) {
	t.Parallel()
	for _, c := range [][2]int{{64, 1}, {64, 2}, {512, 4}, {2048, 64}, {2079, 64}, {16384, 64}, {16384, 1}, {1000, 7}} {
		size, depth := c[0], c[1]
		tree := membranesOf(size, depth)
		levels := map[float64]int{}
		at := 0
		for i, m := range tree {
			if m.start != at || m.end-m.start < minMembrane {
				t.Fatalf("%d units, depth %d: membrane %d is [%d, %d), want %d units from %d on", size, depth, i, m.start, m.end, minMembrane, at)
			}
			at = m.end
			levels[m.leak] += m.end - m.start
			if i > 0 && m.parent >= 0 && tree[m.parent].leak <= m.leak {
				t.Errorf("membrane %d (leak %g) is not slower than the one around it (%g)", i, m.leak, tree[m.parent].leak)
			}
			if m.parent >= i || (m.parent < 0) != (i == 0) {
				t.Errorf("membrane %d has parent %d", i, m.parent)
			}
		}
		if at != size || len(levels) != depth {
			t.Errorf("%d units on %d levels, want %d on %d", at, len(levels), size, depth)
		}
	}
}

// dense is the recurrent matrix in full.
func dense(n *network) *mat.Dense {
	size := n.params.ESNReservoirSize
	d := mat.NewDense(size, size, nil)
	for i := range size {
		for at := n.recurrent.rows[i]; at < n.recurrent.rows[i+1]; at++ {
			d.Set(i, int(n.recurrent.columns[at]), n.recurrent.weights[at])
		}
	}
	return d
}

func TestSpectralRadius(t *testing.T) {
	withoutRaceDetector(t)
	t.Parallel()
	for _, p := range []parameters{sized(64, 1, 8), sized(64, 2, 8), sized(128, 1, 8), sized(160, 4, 8)} {
		for seed := range uint64(3) {
			var eigen mat.Eigen
			if !eigen.Factorize(dense(construct(t, p, seed)), mat.EigenNone) {
				t.Fatal("no eigenvalues")
			}
			radius := 0.0
			for _, value := range eigen.Values(nil) {
				radius = max(radius, math.Hypot(real(value), imag(value)))
			}
			t.Logf("%d units, depth %d, seed %d: %.4f", p.ESNReservoirSize, p.MaxMembraneDepth, seed, radius)
			if math.Abs(radius-spectralRadius) > 0.08 || radius >= 1 {
				t.Errorf("%d units, depth %d, seed %d: spectral radius %.4f, want about %.2f", p.ESNReservoirSize, p.MaxMembraneDepth, seed, radius, spectralRadius)
			}
		}
	}
}

// Larger matrices are asked by a power iteration that knows nothing of
// membranes: after many rounds the growth of a vector is the spectral radius.
func TestSpectralRadiusOfLargeNetworks(t *testing.T) {
	withoutRaceDetector(t)
	t.Parallel()
	const lead, rounds = 300, 700
	for _, p := range []parameters{sized(1024, 1, 8), sized(2048, 4, 8), sized(2048, 64, 8)} {
		n := construct(t, p, 5)
		v, next := make([]float64, p.ESNReservoirSize), make([]float64, p.ESNReservoirSize)
		for i := range v {
			v[i] = 1 + float64(i%7)
		}
		logs := 0.0
		for round := range lead + rounds {
			square := 0.0
			for i := range next {
				next[i] = 0
				for at := n.recurrent.rows[i]; at < n.recurrent.rows[i+1]; at++ {
					next[i] += n.recurrent.weights[at] * v[n.recurrent.columns[at]]
				}
				square += next[i] * next[i]
			}
			norm := math.Sqrt(square)
			for i := range next {
				next[i] /= norm
			}
			if round >= lead {
				logs += math.Log(norm)
			}
			v, next = next, v
		}
		radius := math.Exp(logs / rounds)
		t.Logf("%d units, depth %d: %.4f", p.ESNReservoirSize, p.MaxMembraneDepth, radius)
		if math.Abs(radius-spectralRadius) > 0.08 {
			t.Errorf("%d units, depth %d: spectral radius %.4f, want about %.2f", p.ESNReservoirSize, p.MaxMembraneDepth, radius, spectralRadius)
		}
	}
}

func TestFootprintIsWhatIsAllocated(t *testing.T) {
	withoutRaceDetector(t)
	t.Parallel()
	for _, p := range []parameters{sized(64, 1, 1), sized(512, 4, 8), sized(2048, 32, 4), sized(256, 8, 32)} {
		n := school(t, p, 1)
		bytes := 4*(cap(n.recurrent.rows)+cap(n.recurrent.columns)+cap(n.features)) +
			8*(cap(n.recurrent.weights)+cap(n.input)+cap(n.bias)+cap(n.readout)) + int(unsafe.Sizeof(membrane{}))*len(n.membranes)
		for range workers {
			w, err := n.acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			bytes += 8 * (cap(w.x) + cap(w.next) + cap(w.s) + cap(w.t) + cap(w.v) + cap(w.seen))
		}
		if int64(bytes) != n.bytes {
			t.Errorf("%d units, depth %d, order %d: accounted %d bytes, allocated %d", p.ESNReservoirSize, p.MaxMembraneDepth, p.BSeriesMaxOrder, n.bytes, bytes)
		}
	}
}

// flow integrates one sample with u held by 500 steps of the classical
// Runge-Kutta method, on the dense matrix.
func flow(n *network, state []float64, u float64) []float64 {
	size := len(state)
	weights := dense(n)
	leaks := make([]float64, size)
	for _, m := range n.membranes {
		for i := m.start; i < m.end; i++ {
			leaks[i] = m.leak
		}
	}
	derivative := func(x []float64) []float64 {
		s := mat.NewVecDense(size, nil)
		s.MulVec(weights, mat.NewVecDense(size, x))
		d := make([]float64, size)
		for i := range d {
			d[i] = leaks[i] * (math.Tanh(s.AtVec(i)+n.input[i]*u+n.bias[i]) - x[i])
		}
		return d
	}
	along := func(x, d []float64, h float64) []float64 {
		y := slices.Clone(x)
		for i := range y {
			y[i] += h * d[i]
		}
		return y
	}
	const steps = 500
	h := 1.0 / steps
	x := slices.Clone(state)
	for range steps {
		a := derivative(x)
		b := derivative(along(x, a, h/2))
		c := derivative(along(x, b, h/2))
		d := derivative(along(x, c, h))
		for i := range x {
			x[i] += h / 6 * (a[i] + 2*b[i] + 2*c[i] + d[i])
		}
	}
	return x
}

// errorOfStep is the largest error of one step of that order, all leak rates
// set to leak, against the exact flow. A step of length h at leak rate a is one
// of length 1 at a h, for a alone brings time into the equation.
func errorOfStep(t *testing.T, order int, leak float64) float64 {
	t.Helper()
	n := construct(t, sized(64, 2, order), 3)
	w := newWorkspace(64, order, n.largest, 64)
	series := mackeyGlass(51)
	for _, u := range series[:50] { // somewhere on its way
		n.step(w, u)
	}
	for i := range n.membranes {
		n.membranes[i].leak = leak
	}
	want := flow(n, slices.Clone(w.state()), series[50])
	n.step(w, series[50])
	worst := 0.0
	for i, x := range w.state() {
		worst = max(worst, math.Abs(x-want[i]))
	}
	return worst
}

// A method of order p errs in a step of length h by O(h^(p+1)) (Hairer, Lubich
// and Wanner, II.1): half the length, 2^(p+1) times less. Terms below tolerance
// are left out, so the steps are as long as keeps the errors above it.
func TestOrderIsTheOrderOfTheMethod(t *testing.T) {
	withoutRaceDetector(t)
	t.Parallel()
	for order, leak := range map[int]float64{1: 0.2, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5, 6: 0.6, 8: 0.8} {
		whole, half := errorOfStep(t, order, leak), errorOfStep(t, order, leak/2)
		measured := math.Log2(whole/half) - 1
		t.Logf("order %d: a step of %.1f errs by %.2g, half of it by %.2g: order %.2f", order, leak, whole, half, measured)
		if math.Abs(measured-float64(order)) > 0.35 {
			t.Errorf("a method said to be of order %d is of order %.2f", order, measured)
		}
	}
}

// Without recurrent weights the equation is linear, and its solution known:
// x(1) = T + (x(0) - T) e^-a with T = tanh(bias + input u). Order p is then the
// exponential's Taylor polynomial of degree p.
func TestLinearUnitsFollowTheExponential(t *testing.T) {
	t.Parallel()
	const leak, u, order = 0.6, 0.7, 5
	n := construct(t, sized(64, 1, order), 1)
	clear(n.recurrent.weights)
	n.membranes[0].leak = leak
	w := newWorkspace(64, order, n.largest, 64)
	w.state()[9] = 0.3
	polynomial, term := 0.0, 1.0
	for k := range order + 1 {
		polynomial += term
		term *= -leak / float64(k+1)
	}
	n.step(w, u)
	for unit, x0 := range map[int]float64{8: 0, 9: 0.3} {
		target := math.Tanh(n.bias[unit] + n.input[unit]*u)
		if got, want := w.state()[unit], target+(x0-target)*polynomial; math.Abs(got-want) > 1e-14 {
			t.Errorf("unit %d is at %.15f, want %.15f", unit, got, want)
		}
	}
	if exact := math.Exp(-leak); polynomial == exact || math.Abs(polynomial-exact) > 1e-3 {
		t.Errorf("the polynomial %g is to be near, not at, %g", polynomial, exact)
	}
}

func TestHardDrivenUnitsStayBounded(t *testing.T) {
	withoutRaceDetector(t)
	t.Parallel()
	n := construct(t, sized(128, 2, 32), 1)
	w := newWorkspace(128, 32, n.largest, 128)
	for i := range 200 {
		n.step(w, 1e6*math.Sin(float64(i)))
		for unit, x := range w.state() {
			if !(math.Abs(x) <= 1) {
				t.Fatalf("unit %d is at %g after %d samples", unit, x, i)
			}
		}
	}
}

// errorOf is the root mean square error of forecasts of 20 samples, from places
// all over a Mackey-Glass series beyond what was trained on (some stretches are
// harder than others), over its standard deviation.
func errorOf(t *testing.T, n *network) float64 {
	t.Helper()
	const context, horizon, places, apart = 150, 20, 16, 200
	series := mackeyGlass(washout + lessons + 1 + places*apart + context + horizon)[washout+lessons+1:]
	square, variance, mean := 0.0, 0.0, 0.0
	for _, x := range series {
		mean += x / float64(len(series))
	}
	for _, x := range series {
		variance += (x - mean) * (x - mean) / float64(len(series))
	}
	for place := range places {
		from := series[place*apart:]
		predictions, err := n.forecast(t.Context(), from[:context], horizon)
		if err != nil {
			t.Fatal(err)
		}
		for i, y := range predictions {
			square += (y - from[context+i]) * (y - from[context+i])
		}
	}
	return math.Sqrt(square / places / horizon / variance)
}

// meanError is over seeds, for one small network may be luckier than one large
// one; geometric, for errors differ by factors.
func meanError(t *testing.T, p parameters) float64 {
	t.Helper()
	const seeds = 3
	logs := 0.0
	for seed := range uint64(seeds) {
		logs += math.Log(errorOf(t, school(t, p, seed)))
	}
	return math.Exp(logs / seeds)
}

// Beyond 2048 units the lessons are the limit, not the units.
func TestLargerReservoirsPredictBetter(t *testing.T) {
	withoutRaceDetector(t)
	t.Parallel()
	last := 0.05 // what no size may exceed
	for _, size := range []int{128, 512, 2048} {
		mean := meanError(t, sized(size, 4, 8))
		t.Logf("%d units: error %.4f", size, mean)
		if mean >= last*0.8 {
			t.Errorf("%d units err by %.4f, fewer by %.4f", size, mean, last)
		}
		last = mean
	}
}

// From order 8 on, what the series leaves out is less than what the readout
// errs by anyway.
func TestHigherOrdersPredictBetter(t *testing.T) {
	withoutRaceDetector(t)
	t.Parallel()
	last := math.Inf(1)
	for _, order := range []int{1, 2, 4, 6, 8} {
		mean := meanError(t, sized(512, 4, order))
		t.Logf("order %d: error %.4f", order, mean)
		if mean >= last*0.9 {
			t.Errorf("order %d errs by %.4f, the one before by %.4f", order, mean, last)
		}
		last = mean
	}
	if mean := meanError(t, sized(512, 4, 32)); math.Abs(mean-last) > 0.05*last {
		t.Errorf("order 32 errs by %.4f, order 8 by %.4f: it should saturate", mean, last)
	}
}

func TestEqualSeedsGiveEqualForecasts(t *testing.T) {
	withoutRaceDetector(t)
	t.Parallel()
	series := mackeyGlass(50)
	a, errA := school(t, sized(128, 4, 8), 7).forecast(t.Context(), series, 30)
	b, errB := school(t, sized(128, 4, 8), 7).forecast(t.Context(), series, 30)
	c, errC := school(t, sized(128, 4, 8), 8).forecast(t.Context(), series, 30)
	if errA != nil || errB != nil || errC != nil {
		t.Fatal(errA, errB, errC)
	}
	if !slices.Equal(a, b) {
		t.Error("equal seeds, other forecasts")
	}
	if slices.Equal(a, c) {
		t.Error("the seed does not matter")
	}
}

func BenchmarkBuild(b *testing.B) {
	for _, size := range []int{512, 1024, 2048, 16384} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			for b.Loop() {
				construct(b, sized(size, 4, 8), 1)
			}
		})
	}
}

func BenchmarkTrain(b *testing.B) {
	for _, p := range []parameters{sized(512, 4, 8), sized(2048, 4, 8), sized(16384, 4, 8), sized(16384, 4, 32)} {
		b.Run(fmt.Sprintf("%d/order=%d", p.ESNReservoirSize, p.BSeriesMaxOrder), func(b *testing.B) {
			for b.Loop() {
				school(b, p, 1)
			}
		})
	}
}
