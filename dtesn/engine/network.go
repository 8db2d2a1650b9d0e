package engine

import (
	"math"
	"math/rand/v2"
	"slices"
)

// The slowest mode of the innermost level decays within about 1 / (innerLeak
// (1 - spectralRadius)) = 13 samples. It must be well below washout, and below
// the length of a series that a client sends: else the state still tells where
// it began, and more units only tell it louder.
const (
	minMembrane     = 32   // units of the smallest membrane; levels hold as many at least
	recurrentDegree = 8    // weights of a unit from its own membrane
	feedDegree      = 2    // weights of a unit from the membrane around it
	spectralRadius  = 0.8  // of the recurrent weights; below 1 the past fades
	inputScale      = 1.0  // input weights are uniform in ±inputScale
	feedScale       = 0.7  // and so on
	biasScale       = 0.3  //
	outerLeak       = 0.6  // leak rate of the outermost level, per sample
	innerLeak       = 0.4  // and of the innermost, geometrically between
	workers         = 4    // requests that a network serves at a time
	maxFeatures     = 1024 // units that the readout sees
)

// A membrane is a contiguous range of units [start, end) that see each other,
// and the membrane around them.
type membrane struct {
	start, end int
	parent     int // index of the membrane around it, -1 for the outermost
	leak       float64
}

// A matrix is sparse, in compressed sparse rows: row i has the entries
// [rows[i], rows[i+1]) of columns and weights. The first recurrentDegree of
// them lie in the unit's own membrane, the rest in its parent.
type matrix struct {
	rows    []int32
	columns []int32
	weights []float64
}

// A network is one deep tree echo state network (Jaeger, GMD Report 148, 2001;
// the tree of levels of different speed after Gallicchio, Micheli and Pedrelli,
// Neurocomputing 268, 2017). Once trained it is immutable.
type network struct {
	params    parameters
	membranes []membrane // parents before children
	largest   int        // units of the largest membrane
	recurrent matrix
	input     []float64 // weights of the input; it reaches the outermost level only
	bias      []float64
	features  []int32   // units that the readout sees, ascending
	readout   []float64 // weights of bias, input and features; set by train

	slots chan *workspace

	*life
}

// membranesOf lays size units out as a tree of depth levels. The levels are
// equally large (the first ones by one unit larger where it does not divide);
// level l is parted into 2^l membranes, or as many as leave each one
// minMembrane units. Leak rates fall geometrically inwards: the outer levels
// follow the input, the inner ones remember.
func membranesOf(size, depth int) []membrane {
	tree := make([]membrane, 0, size/minMembrane)
	start, outer := 0, 0
	for level := range depth {
		units := size / depth
		if level < size%depth {
			units++
		}
		leak := outerLeak
		if depth > 1 {
			leak *= math.Pow(innerLeak/outerLeak, float64(level)/float64(depth-1))
		}
		count := max(1, units/minMembrane)
		if level < 10 { // beyond it, 2^l exceeds any count
			count = min(count, 1<<level)
		}
		first, parents := len(tree), len(tree)-outer
		for j := range count {
			m := membrane{start: start + units*j/count, end: start + units*(j+1)/count, parent: -1, leak: leak}
			if level > 0 {
				m.parent = outer + j*parents/count
			}
			tree = append(tree, m)
		}
		start, outer = start+units, first
	}
	return slices.Clone(tree)
}

func newNetwork(p parameters) *network {
	n := &network{params: p, membranes: membranesOf(p.ESNReservoirSize, p.MaxMembraneDepth)}
	for _, m := range n.membranes {
		n.largest = max(n.largest, m.end-m.start)
	}
	return n
}

// entries counts the weights of the recurrent matrix.
func (n *network) entries() int {
	total := 0
	for _, m := range n.membranes {
		total += (m.end - m.start) * m.degree()
	}
	return total
}

func (m membrane) degree() int {
	if m.parent < 0 {
		return recurrentDegree
	}
	return recurrentDegree + feedDegree
}

// build constructs a network and scales its weights; it is yet to be trained.
// Equal parameters and seeds give equal networks; of the parameters only the
// critical ones count. Its error is t's.
func build(t *turn, p parameters, seed uint64) (*network, error) {
	n := newNetwork(p)
	n.life = &life{bytes: footprint(p), drained: make(chan struct{})}
	size, entries := p.ESNReservoirSize, n.entries()
	n.recurrent = matrix{rows: make([]int32, size+1), columns: make([]int32, entries), weights: make([]float64, entries)}
	n.input, n.bias = make([]float64, size), make([]float64, size)
	random := rand.NewPCG(seed, uint64(size)<<8|uint64(p.MaxMembraneDepth))
	for i := range n.membranes {
		m := &n.membranes[i]
		n.wire(m, random)
		if err := n.scale(t, m, random); err != nil {
			return nil, err
		}
	}
	n.features = chooseFeatures(size)
	n.slots = make(chan *workspace, workers)
	for range workers {
		n.slots <- newWorkspace(size, p.BSeriesMaxOrder, n.largest, len(n.features))
		if err := t.giveWay(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// wire draws the weights of the units of m.
func (n *network) wire(m *membrane, random *rand.PCG) {
	at := n.recurrent.rows[m.start]
	for unit := m.start; unit < m.end; unit++ {
		n.bias[unit] = biasScale * symmetric(random.Uint64())
		n.draw(at, recurrentDegree, m.start, m.end, 1, random)
		at += recurrentDegree
		if m.parent < 0 {
			n.input[unit] = inputScale * symmetric(random.Uint64())
		} else {
			around := &n.membranes[m.parent]
			n.draw(at, feedDegree, around.start, around.end, feedScale, random)
			at += feedDegree
		}
		n.recurrent.rows[unit+1] = at
	}
}

// scale brings the recurrent weights of m to the spectral radius. Since a
// membrane sees only itself and its parent, the whole matrix is block
// triangular: its spectral radius is the largest of the blocks'.
func (n *network) scale(t *turn, m *membrane, random *rand.PCG) error {
	radius, err := n.radius(t, m, random)
	if err != nil || radius == 0 { // nilpotent: the past fades anyway
		return err
	}
	for unit := m.start; unit < m.end; unit++ {
		first := n.recurrent.rows[unit]
		row := n.recurrent.weights[first : first+recurrentDegree]
		for i := range row {
			row[i] *= spectralRadius / radius
		}
	}
	return nil
}

// draw gives the entries from at on distinct columns in [start, end), and
// weights. One random number makes both: its upper half the column, its lower
// half the weight.
func (n *network) draw(at, degree int32, start, end int, scale float64, random *rand.PCG) {
	columns, weights := n.recurrent.columns[at:at+degree], n.recurrent.weights[at:at+degree]
	for i := 0; i < len(columns); {
		r := random.Uint64()
		column := int32(start) + int32((r>>32)*uint64(end-start)>>32)
		if contains(columns[:i], column) {
			continue
		}
		columns[i], weights[i] = column, scale*symmetric(r<<32)
		i++
	}
}

func contains(columns []int32, column int32) bool {
	for _, c := range columns {
		if c == column {
			return true
		}
	}
	return false
}

// symmetric maps a random number's upper bits to [-1, 1).
func symmetric(r uint64) float64 { return float64(int64(r)) / (1 << 63) }

// radius estimates the spectral radius of the recurrent block of m by power
// iteration. The largest eigenvalue is mostly one of a complex pair, so that
// the vector turns and single ratios of norms swing; their geometric mean over
// the later rounds does not (Gelfand's formula, |W^k v|^(1/k)).
func (n *network) radius(t *turn, m *membrane, random *rand.PCG) (float64, error) {
	size := m.end - m.start
	rounds := max(48, 8192/size) // small blocks are cheap, and have fewer eigenvalues to blend
	lead := rounds / 4
	v, w := make([]float64, size), make([]float64, size)
	for i := range v {
		v[i] = symmetric(random.Uint64())
	}
	logs := 0.0
	for round := range lead + rounds {
		norm := n.multiplyBlock(m, w, v)
		if norm == 0 {
			return 0, nil
		}
		scale := 1 / norm
		for i := range w {
			w[i] *= scale
		}
		if round >= lead {
			logs += math.Log(norm)
		}
		v, w = w, v
		if err := t.giveWay(); err != nil {
			return 0, err
		}
	}
	return math.Exp(logs / float64(rounds)), nil
}

// multiplyBlock sets w to the recurrent block of m times v and returns its
// Euclidean norm. v and w count from the first unit of m.
func (n *network) multiplyBlock(m *membrane, w, v []float64) float64 {
	square := 0.0
	for i := range w {
		first := n.recurrent.rows[m.start+i]
		columns := n.recurrent.columns[first : first+recurrentDegree]
		weights := n.recurrent.weights[first : first+recurrentDegree]
		sum := 0.0
		for j, c := range columns {
			sum += weights[j] * v[int(c)-m.start]
		}
		w[i] = sum
		square += sum * sum
	}
	return math.Sqrt(square)
}

// chooseFeatures spreads at most maxFeatures units evenly over all, so that
// every level is seen in proportion.
func chooseFeatures(size int) []int32 {
	count := min(size, maxFeatures)
	features := make([]int32, count)
	for i := range features {
		features[i] = int32(size * i / count)
	}
	return features
}
