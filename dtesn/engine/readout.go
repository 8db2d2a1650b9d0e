package engine

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
)

const (
	washout = 60  // samples before the state has forgotten where it began
	lessons = 340 // samples that the readout is fitted to
	inputs  = 2   // the readout sees 1 and the input, before the features

	// lessonOrder is the order that lessons are integrated at. With leak rates
	// up to outerLeak its steps err by 1e-8 or so, as good as the exact flow.
	lessonOrder = 8
	// leastPenalty keeps weights from living on digits that rounding makes.
	leastPenalty = 1e-11
)

// mackeyGlass returns n samples, one time unit apart, of the chaotic delay
// equation of Mackey and Glass (Science 197, 1977),
//
//	x' = 0.2 x(t-17) / (1 + x(t-17)^10) - 0.1 x,
//
// behind its transient, by Euler steps of 0.1.
func mackeyGlass(n int) []float64 {
	const (
		perSample = 10
		delay     = 17 * perSample
		transient = 200 * perSample
	)
	past := make([]float64, delay) // a ring
	for i := range past {
		past[i] = 1.2
	}
	x, series := 1.2, make([]float64, 0, n)
	for i := 0; len(series) < n; i++ {
		delayed := past[i%delay]
		past[i%delay] = x
		square := delayed * delayed
		fourth := square * square
		x += (0.2*delayed/(1+fourth*fourth*square) - 0.1*x) / perSample
		if i >= transient && i%perSample == 0 {
			series = append(series, x)
		}
	}
	return series
}

// lessonSeries is what every readout is trained on.
var lessonSeries = sync.OnceValue(func() []float64 { return mackeyGlass(washout + lessons + 1) })

// A training fits a readout by ridge regression (Hoerl and Kennard,
// Technometrics 12, 1970): the weights that minimise
//
//	|X w - y|² + lessons penalty |w|²,   row i of X what is seen at lesson i.
//
// They are w = Xᵀ (X Xᵀ + lessons penalty I)⁻¹ y (the dual form: Saunders,
// Gammerman and Vovk, ICML 1998), which costs lessons² features, however many
// features there are. The Cholesky factor of the matrix in brackets grows by a
// row with each lesson, so that the work comes in small slices.
type training struct {
	width   int
	seen    []float64 // X, by rows
	factor  []float64 // lower triangle, packed by rows
	wanted  []float64 // y, in the end the dual weights
	penalty float64
}

// A desk is the room in which one readout after another is trained. It is kept,
// so that a rebuild makes no garbage of it, and grows where a readout sees more
// units than any before.
type desk []float64

func newDesk(features int) desk { return make(desk, trainingLength(features)) }

func (d desk) bytes() int64 { return 8 * int64(len(d)) }

// trainingLength is how many float64 of a desk a training takes.
func trainingLength(features int) int {
	return lessons*(inputs+features) + lessons*(lessons+1)/2 + lessons
}

func newTraining(d desk, features int) *training {
	all := d[:trainingLength(features)]
	clear(all)
	width := inputs + features
	return &training{
		width: width, seen: all[:lessons*width], factor: all[lessons*width : len(all)-lessons],
		wanted: all[len(all)-lessons:], penalty: leastPenalty,
	}
}

// train fits the readout, at the desk, to say from the state the sample that
// follows. Its error is the turn's.
//
// The lessons are states of the exact flow, whatever bseries_max_order: the
// readout belongs to the reservoir that the equations describe, and the order
// says how precisely requests follow them. (A readout fitted to the states of
// Euler's method would make another reservoir of it, whose forecasts are about
// as good; the order would then mean nothing.) What the series leaves out at
// order p is, to first order, its term p+1: a request sees its features with an
// error of that size, and a penalty of the errors' mean square is what to
// expect of features with such noise (Bishop, Neural Computation 7, 1995).
func (n *network) train(turn *turn, d desk) error {
	w := newWorkspace(n.params.ESNReservoirSize, lessonOrder, n.largest, len(n.features))
	t := newTraining(d, len(n.features))
	series := lessonSeries()
	truncated := 0.0
	for i, u := range series[:washout+lessons] {
		n.step(w, u)
		if i < washout {
			truncated += n.truncated(w)
		} else {
			t.penalty = max(leastPenalty, truncated/washout)
			n.observe(w, u)
			t.learn(i-washout, w.seen, series[i+1])
		}
		if err := turn.giveWay(); err != nil {
			return err
		}
	}
	n.readout = t.weights()
	return nil
}

// truncated is the mean square, over the features, of the first term that a
// request leaves out of the step that w has just made.
func (n *network) truncated(w *workspace) float64 {
	if n.params.BSeriesMaxOrder >= lessonOrder {
		return 0
	}
	term, square := w.coefficient(n.params.BSeriesMaxOrder+1), 0.0
	for _, unit := range n.features {
		square += term[unit] * term[unit]
	}
	return square / float64(len(n.features))
}

// observe sets what the readout sees of the state.
func (n *network) observe(w *workspace, u float64) {
	w.seen[0], w.seen[1] = 1, u
	state := w.state()
	for i, unit := range n.features {
		w.seen[inputs+i] = state[unit]
	}
}

// learn takes lesson i: what is seen, and what is wanted then.
func (t *training) learn(i int, seen []float64, wanted float64) {
	row := vector(t.seen[i*t.width : (i+1)*t.width])
	copy(row.Data, seen)
	t.wanted[i] = wanted
	// Row i of L with L Lᵀ = X Xᵀ + c I is (L⁻¹ X x, d), d² = x² + c - |L⁻¹ X x|².
	at := i * (i + 1) / 2
	c := lessons * t.penalty
	square := blas64.Dot(row, row) + c
	if i > 0 {
		left := vector(t.factor[at : at+i])
		before := blas64.General{Rows: i, Cols: t.width, Stride: t.width, Data: t.seen}
		blas64.Gemv(blas.NoTrans, 1, before, row, 0, left)
		blas64.Tpsv(blas.NoTrans, t.triangle(i), left)
		square -= blas64.Dot(left, left)
	}
	t.factor[at+i] = math.Sqrt(max(square, c)) // less than c only by rounding
}

// weights ends the training.
func (t *training) weights() []float64 {
	dual, weights := vector(t.wanted), vector(make([]float64, t.width))
	blas64.Tpsv(blas.NoTrans, t.triangle(lessons), dual)
	blas64.Tpsv(blas.Trans, t.triangle(lessons), dual)
	all := blas64.General{Rows: lessons, Cols: t.width, Stride: t.width, Data: t.seen}
	blas64.Gemv(blas.Trans, 1, all, dual, 0, weights)
	return weights.Data
}

// triangle is the factor of the first n lessons.
func (t *training) triangle(n int) blas64.TriangularPacked {
	return blas64.TriangularPacked{Uplo: blas.Lower, Diag: blas.NonUnit, N: n, Data: t.factor}
}

func vector(data []float64) blas64.Vector {
	return blas64.Vector{N: len(data), Inc: 1, Data: data}
}

// forecast drives the network with series and then lets it run on its own
// predictions, for horizon samples. A series that is too short for the state to
// forget where it began is taken to have stood at its first value before: from
// rest, the readout would see states that no lesson had. It stops with ctx's
// error when ctx ends.
func (n *network) forecast(ctx context.Context, series []float64, horizon int) ([]float64, error) {
	w, err := n.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { n.slots <- w }()
	t := &turn{ctx: ctx, most: requestTurn, began: time.Now()}
	w.reset()
	last := len(series) - 1
	for i := min(0, len(series)-washout); i < last; i++ {
		n.step(w, series[max(i, 0)])
		if err := t.giveWay(); err != nil {
			return nil, err
		}
	}
	predictions, readout := make([]float64, 0, horizon), vector(n.readout)
	low, high := plausible(series)
	for u := series[last]; len(predictions) < horizon; {
		n.step(w, u)
		n.observe(w, u)
		u = min(max(blas64.Dot(readout, vector(w.seen)), low), high)
		predictions = append(predictions, u)
		if err := t.giveWay(); err != nil {
			return nil, err
		}
	}
	return predictions, nil
}

// plausible is the range of the series and of the lessons, and a quarter more:
// an error that leaves it is not fed back, or it would grow beyond all bounds.
func plausible(series []float64) (low, high float64) {
	lessons := lessonSeries()
	low = min(slices.Min(series), slices.Min(lessons))
	high = max(slices.Max(series), slices.Max(lessons))
	quarter := (high - low) / 4
	return low - quarter, high + quarter
}

// acquire waits for a workspace. It goes back into n.slots.
func (n *network) acquire(ctx context.Context) (*workspace, error) {
	select {
	case w := <-n.slots:
		return w, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
