package engine

import "math"

// tolerance ends the series early: terms that change no state by more are left
// out.
const tolerance = 1e-10

// A workspace is what one request needs to run a network: the state, and the
// terms of the series. It belongs to one goroutine at a time.
type workspace struct {
	size, order, largest int
	// x holds the Taylor coefficients x_0 … x_order of every unit, coefficient
	// by coefficient; x_0 is the state. Children read their parent's.
	x    []float64
	next []float64
	// s, t and v hold the coefficients of one membrane at a time.
	s, t, v []float64
	seen    []float64 // what the readout sees
}

// workspaceLength is how many float64 a workspace holds.
func workspaceLength(size, order, largest, features int) int {
	return (order+2)*size + 3*order*largest + inputs + features
}

func newWorkspace(size, order, largest, features int) *workspace {
	all := make([]float64, workspaceLength(size, order, largest, features))
	cut := func(n int) []float64 {
		part := all[:n:n]
		all = all[n:]
		return part
	}
	return &workspace{
		size: size, order: order, largest: largest,
		x: cut((order + 1) * size), next: cut(size),
		s: cut(order * largest), t: cut(order * largest), v: cut(order * largest),
		seen: cut(inputs + features),
	}
}

func (w *workspace) reset() { clear(w.state()) }

func (w *workspace) state() []float64 { return w.coefficient(0) }

func (w *workspace) coefficient(k int) []float64 { return w.x[k*w.size : (k+1)*w.size] }

// step drives the network with u for one sample.
//
// A unit of leak rate a follows the leaky integrator of Jaeger, Lukoševičius,
// Popovici and Siewert (Neural Networks 20, 2007),
//
//	x' = a (-x + tanh(s)),   s = W x + input u + bias,
//
// with u held for the sample. The exact flow of an ODE is a B-series over
// rooted trees; the sum of its elementary differentials over all trees of k
// nodes is the k-th Taylor coefficient of the solution (Hairer, Lubich and
// Wanner, Geometric Numerical Integration, III.1). Truncated at
// bseries_max_order = p that is a one-step method of order p; p = 1 is Euler's,
// which is the discrete update of most echo state networks. The coefficients
// are not summed tree by tree but by the recurrences of Taylor arithmetic
// (Griewank and Walther, Evaluating Derivatives, 13.2): with t = tanh(s) and
// v = 1 - t², t' = v s', hence
//
//	k t_k = Σ_{j=1..k} j s_j v_{k-j},   v_k = -Σ_{j=0..k} t_j t_{k-j},
//	(k+1) x_{k+1} = a (t_k - x_k).
//
// The cost is p products with W and p² operations a unit. Since a membrane sees
// only itself and its parent, the tree is walked inwards, a membrane at a time.
func (n *network) step(w *workspace, u float64) {
	for i := range n.membranes {
		n.integrate(w, &n.membranes[i], u)
	}
	copy(w.state(), w.next)
}

// integrate sets w.next for the units of m, and their coefficients.
//
// The series is also cut where its terms grow: tanh has poles at ±iπ/2, so a
// unit that is driven hard may lie outside the radius of convergence, and an
// asymptotic series is best cut at its smallest term.
func (n *network) integrate(w *workspace, m *membrane, u float64) {
	units := m.end - m.start
	next := w.next[m.start:m.end]
	copy(next, w.state()[m.start:m.end])
	last := uint64(math.MaxUint64)
	k := 0
	for ; k < w.order; k++ {
		n.multiply(w, m, k)
		if k == 0 {
			n.activate(w, m, u)
		} else {
			w.convolve(k, units)
		}
		t, x, following := w.t[k*w.largest:][:units], w.coefficient(k)[m.start:m.end], w.coefficient(k + 1)[m.start:m.end]
		rate, largest := m.leak/float64(k+1), uint64(0)
		for i := range t {
			term := rate * (t[i] - x[i])
			following[i] = term
			largest = max(largest, math.Float64bits(term)&^(1<<63))
		}
		if k > 2 && largest > last {
			clear(following)
			break
		}
		last = largest
		for i := range next {
			next[i] += following[i]
		}
		if math.Float64frombits(largest) < tolerance {
			break
		}
	}
	for k += 2; k <= w.order; k++ {
		clear(w.coefficient(k)[m.start:m.end])
	}
	// The exact flow never leaves [-1, 1]; a truncated one may, by its error.
	for i := range next {
		next[i] = min(max(next[i], -1), 1)
	}
}

// multiply sets s_k, as k s_k for k > 0, to W x_k for the units of m. It is
// where the time goes: rows are of one length, and summed in four chains that
// the processor can follow at once. The race detector is spared the innermost
// loops: what is shared by mistake it sees in integrate too, which touches all
// that they touch but the immutable weights.
//
//go:norace
func (n *network) multiply(w *workspace, m *membrane, k int) {
	x, s := w.coefficient(k), w.s[k*w.largest:][:m.end-m.start]
	factor := float64(max(k, 1))
	degree := m.degree()
	first, last := n.recurrent.rows[m.start], n.recurrent.rows[m.end]
	columns, weights := n.recurrent.columns[first:last], n.recurrent.weights[first:last]
	for i := range s {
		c, v := columns[:recurrentDegree], weights[:recurrentDegree]
		sum := v[0]*x[c[0]] + v[4]*x[c[4]] + (v[1]*x[c[1]] + v[5]*x[c[5]]) +
			(v[2]*x[c[2]] + v[6]*x[c[6]] + (v[3]*x[c[3]] + v[7]*x[c[7]]))
		if degree > recurrentDegree {
			c, v := columns[recurrentDegree:recurrentDegree+feedDegree], weights[recurrentDegree:recurrentDegree+feedDegree]
			sum += v[0]*x[c[0]] + v[1]*x[c[1]]
		}
		s[i] = factor * sum
		columns, weights = columns[degree:], weights[degree:]
	}
}

// activate adds the drive to s_0 and sets t_0 and v_0.
func (n *network) activate(w *workspace, m *membrane, u float64) {
	units := m.end - m.start
	s, t, v := w.s[:units], w.t[:units], w.v[:units]
	input, bias := n.input[m.start:m.end], n.bias[m.start:m.end]
	for i := range s {
		t[i] = math.Tanh(s[i] + input[i]*u + bias[i])
		v[i] = 1 - t[i]*t[i]
	}
}

// convolve sets t_k and v_k, k > 0, for the membrane at hand, a block of units
// at a time: its coefficients stay in the fastest cache.
func (w *workspace) convolve(k, units int) {
	const block = 256
	for from := 0; from < units; from += block {
		w.convolveBlock(k, from, min(from+block, units))
	}
}

func (w *workspace) convolveBlock(k, from, to int) {
	row := func(of []float64, k int) []float64 { return of[k*w.largest:][from:to] }
	t, v := row(w.t, k), row(w.v, k)
	clear(t)
	j := 1
	for ; j < k; j += 2 {
		multiplyAdd2(t, row(w.s, j), row(w.v, k-j), row(w.s, j+1), row(w.v, k-j-1))
	}
	if j == k {
		multiplyAdd(t, row(w.s, j), row(w.v, k-j))
	}
	inverse := 1 / float64(k)
	for i := range t {
		t[i] *= inverse
	}
	if k == w.order-1 {
		return // no later term asks for v_k
	}
	clear(v)
	j = 0
	for ; 2*(j+1) < k; j += 2 { // by symmetry, twice the half of them
		multiplyAdd2(v, row(w.t, j), row(w.t, k-j), row(w.t, j+1), row(w.t, k-j-1))
	}
	if 2*j < k {
		multiplyAdd(v, row(w.t, j), row(w.t, k-j))
	}
	middle := row(w.t, k/2)
	for i := range v {
		v[i] *= -2
		if k%2 == 0 {
			v[i] -= middle[i] * middle[i]
		}
	}
}

// multiplyAdd adds a times b to sum, element by element.
//
//go:norace
func multiplyAdd(sum, a, b []float64) {
	a, b = a[:len(sum)], b[:len(sum)]
	for i := range sum {
		sum[i] += a[i] * b[i]
	}
}

// multiplyAdd2 adds a times b and c times d.
//
//go:norace
func multiplyAdd2(sum, a, b, c, d []float64) {
	a, b, c, d = a[:len(sum)], b[:len(sum)], c[:len(sum)], d[:len(sum)]
	for i := range sum {
		sum[i] += a[i]*b[i] + c[i]*d[i]
	}
}
