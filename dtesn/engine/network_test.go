package engine

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"gonum.org/v1/gonum/mat"

	"dtesn-agent/schema"
)

func sized(size, depth, order int) schema.Parameters {
	p := schema.Defaults()
	p.ESNReservoirSize, p.MaxMembraneDepth, p.BSeriesMaxOrder = size, depth, order
	return p
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
	t.Parallel()
	for _, p := range []schema.Parameters{sized(64, 1, 8), sized(64, 2, 8), sized(128, 1, 8), sized(160, 4, 8)} {
		for seed := range uint64(3) {
			var eigen mat.Eigen
			if !eigen.Factorize(dense(build(p, seed)), mat.EigenNone) {
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

func TestFootprintIsWhatIsAllocated(t *testing.T) {
	t.Parallel()
	for _, p := range []schema.Parameters{sized(64, 1, 1), sized(512, 4, 8), sized(1024, 32, 4), sized(256, 8, 32)} {
		n := build(p, 1)
		if err := n.prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		bytes := 4*(cap(n.recurrent.rows)+cap(n.recurrent.columns)+cap(n.features)) +
			8*(cap(n.recurrent.weights)+cap(n.input)+cap(n.bias)+cap(n.readout)) + 40*len(n.membranes)
		w, err := n.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		bytes += workers * 8 * (cap(w.x) + cap(w.next) + cap(w.s) + cap(w.t) + cap(w.v))
		if int64(bytes) != n.bytes {
			t.Errorf("%d units, depth %d, order %d: accounted %d bytes, allocated %d", p.ESNReservoirSize, p.MaxMembraneDepth, p.BSeriesMaxOrder, n.bytes, bytes)
		}
	}
}

// flow integrates one sample with u held by 4,000 steps of the classical
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
	const steps = 4000
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

func TestOrderIsThePrecision(t *testing.T) {
	t.Parallel()
	reference := build(sized(64, 2, 32), 3)
	w := newWorkspace(64, 32, reference.largest)
	series := mackeyGlass(51)
	for _, u := range series[:50] {
		reference.step(w, u)
	}
	start := slices.Clone(w.state())
	want := flow(reference, start, series[50])
	last := math.Inf(1)
	for _, order := range []int{1, 2, 4, 6, 8, 12, 16} {
		w := newWorkspace(64, order, reference.largest)
		copy(w.state(), start)
		reference.step(w, series[50])
		worst := 0.0
		for i, x := range w.state() {
			worst = max(worst, math.Abs(x-want[i]))
		}
		t.Logf("order %2d: error of a step %.2g", order, worst)
		if worst >= last/2 && worst > 1e-9 {
			t.Errorf("order %d errs by %g, the order before by %g", order, worst, last)
		}
		last = worst
	}
}

func TestHardDrivenUnitsStayBounded(t *testing.T) {
	t.Parallel()
	n := build(sized(128, 2, 32), 1)
	w := newWorkspace(128, 32, n.largest)
	for i := range 200 {
		n.step(w, 1e6*math.Sin(float64(i)))
		for unit, x := range w.state() {
			if !(math.Abs(x) <= 1) {
				t.Fatalf("unit %d is at %g after %d samples", unit, x, i)
			}
		}
	}
}

// errorOf is the root mean square error of forecasts of 20 samples, from five
// places of a Mackey-Glass series beyond what was trained on, over its
// standard deviation.
func errorOf(t *testing.T, p schema.Parameters, seed uint64) float64 {
	t.Helper()
	const context, horizon, places = 100, 20, 5
	series := mackeyGlass(washout + lessons + 1 + places*50 + context + horizon)[washout+lessons+1:]
	n := build(p, seed)
	square, variance, mean := 0.0, 0.0, 0.0
	for _, x := range series {
		mean += x / float64(len(series))
	}
	for _, x := range series {
		variance += (x - mean) * (x - mean) / float64(len(series))
	}
	for place := range places {
		from := series[place*50:]
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

// One network of 128 units may be luckier than one of 512, so the promise is
// about the mean over seeds (geometric: errors differ by factors).
func TestLargerReservoirsPredictBetter(t *testing.T) {
	t.Parallel()
	const seeds = 3
	last := math.Inf(1)
	for _, size := range []int{128, 512, 2048} {
		logs, worst := 0.0, 0.0
		for seed := range uint64(seeds) {
			e := errorOf(t, sized(size, 4, 2), seed)
			logs += math.Log(e)
			worst = max(worst, e)
		}
		mean := math.Exp(logs / seeds)
		t.Logf("%d units: error %.4f, at worst %.4f", size, mean, worst)
		if mean >= last || worst > 0.1 {
			t.Errorf("%d units err by %g (at worst %g), fewer by %g", size, mean, worst, last)
		}
		last = mean
	}
}

func TestEqualSeedsGiveEqualForecasts(t *testing.T) {
	t.Parallel()
	series := mackeyGlass(50)
	a, errA := build(sized(128, 4, 8), 7).forecast(t.Context(), series, 30)
	b, errB := build(sized(128, 4, 8), 7).forecast(t.Context(), series, 30)
	c, errC := build(sized(128, 4, 8), 8).forecast(t.Context(), series, 30)
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
				build(sized(size, 4, 8), 1)
			}
		})
	}
}

func BenchmarkTrain(b *testing.B) {
	for _, p := range []schema.Parameters{sized(512, 4, 8), sized(2048, 4, 8), sized(16384, 4, 8), sized(16384, 4, 32)} {
		b.Run(fmt.Sprintf("%d/order=%d", p.ESNReservoirSize, p.BSeriesMaxOrder), func(b *testing.B) {
			for b.Loop() {
				if err := build(p, 1).prepare(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
