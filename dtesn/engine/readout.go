package engine

import (
	"context"
	"sync"

	"gonum.org/v1/gonum/mat"
)

const (
	washout  = 60   // samples before the state has forgotten where it began
	lessons  = 340  // samples that the readout is fitted to
	ridge    = 1e-9 // weight of the penalty, against features of size 1
	inputs   = 2    // the readout sees 1 and the input, before the features
	maxWidth = inputs + maxFeatures

	// trainingBytes bound what a training takes while it runs: the features of
	// all lessons, their Gram matrix and its factor.
	trainingBytes = 8 * maxWidth * (lessons + 2*maxWidth + 2)
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

// training is held by the one training that is accounted for: a request and a
// rebuild may each want one.
var training sync.Mutex

// train fits the readout, once, to say from the state the sample that follows.
// It uses w, and waits for a training that is under way.
func (n *network) train(w *workspace) {
	n.trained.Do(func() {
		training.Lock()
		defer training.Unlock()
		series := lessonSeries()
		width := inputs + len(n.features)
		features, wanted := mat.NewDense(lessons, width, nil), mat.NewVecDense(lessons, nil)
		w.reset()
		for i, u := range series[:washout+lessons] {
			n.step(w, u)
			if i >= washout {
				n.observe(features.RawRowView(i-washout), w, u)
				wanted.SetVec(i-washout, series[i+1])
			}
		}
		n.readout = solveRidge(features, wanted)
	})
}

// observe fills row with what the readout sees.
func (n *network) observe(row []float64, w *workspace, u float64) {
	row[0], row[1] = 1, u
	state := w.state()
	for i, unit := range n.features {
		row[inputs+i] = state[unit]
	}
}

// solveRidge returns the weights that minimise |features weights - wanted|² +
// lessons ridge |weights|² (Hoerl and Kennard, Technometrics 12, 1970), by the
// normal equations: the penalty makes them positive definite.
func solveRidge(features *mat.Dense, wanted *mat.VecDense) []float64 {
	rows, width := features.Dims()
	gram := mat.NewSymDense(width, nil)
	gram.SymOuterK(1, features.T())
	for i := range width {
		gram.SetSym(i, i, gram.At(i, i)+float64(rows)*ridge)
	}
	right, weights := mat.NewVecDense(width, nil), mat.NewVecDense(width, nil)
	right.MulVec(features.T(), wanted)
	var factor mat.Cholesky
	if !factor.Factorize(gram) || factor.SolveVecTo(weights, right) != nil {
		// Features are finite and in [-1, 1] but for the input, so this cannot
		// be; weights of 0 predict 0 rather than nonsense.
		weights.Zero()
	}
	return weights.RawVector().Data
}

// forecast drives the network with series from rest and then lets it run on
// its own predictions, for horizon samples. It stops with ctx's error when ctx
// ends.
func (n *network) forecast(ctx context.Context, series []float64, horizon int) ([]float64, error) {
	w, err := n.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { n.slots <- w }()
	n.used.Store(true)
	n.train(w)
	w.reset()
	for _, u := range series[:len(series)-1] {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		n.step(w, u)
	}
	predictions := make([]float64, 0, horizon)
	row := make([]float64, len(n.readout))
	for u := series[len(series)-1]; len(predictions) < horizon; {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		n.step(w, u)
		n.observe(row, w, u)
		u = 0
		for i, weight := range n.readout {
			u += weight * row[i]
		}
		predictions = append(predictions, u)
	}
	return predictions, nil
}

// acquire waits for a workspace. It goes back into n.slots.
func (n *network) acquire(ctx context.Context) (*workspace, error) {
	select {
	case w := <-n.slots:
		if w == nil {
			w = newWorkspace(n.params.ESNReservoirSize, n.params.BSeriesMaxOrder, n.largest)
		}
		return w, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// prepare trains the readout ahead of the first request.
func (n *network) prepare(ctx context.Context) error {
	w, err := n.acquire(ctx)
	if err != nil {
		return err
	}
	defer func() { n.slots <- w }()
	n.train(w)
	return nil
}
