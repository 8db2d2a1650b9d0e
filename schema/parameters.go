package schema

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Parameters are the six validated values of a DTESN server, typed: one
// effective configuration. The zero value is not a valid configuration; what
// is valid is said by dtesn.cue alone. Parameters are comparable with ==.
type Parameters struct {
	BSeriesMaxOrder             int  `json:"bseries_max_order"`
	CacheTTLSeconds             int  `json:"cache_ttl_seconds"`
	EnableCaching               bool `json:"enable_caching"`
	EnablePerformanceMonitoring bool `json:"enable_performance_monitoring"`
	ESNReservoirSize            int  `json:"esn_reservoir_size"`
	MaxMembraneDepth            int  `json:"max_membrane_depth"`
}

// The names of the parameters, as users write them and the engine reads them.
const (
	BSeriesMaxOrder             = "bseries_max_order"
	CacheTTLSeconds             = "cache_ttl_seconds"
	EnableCaching               = "enable_caching"
	EnablePerformanceMonitoring = "enable_performance_monitoring"
	ESNReservoirSize            = "esn_reservoir_size"
	MaxMembraneDepth            = "max_membrane_depth"
)

// Names lists the parameters in canonical (sorted) order.
func Names() []string {
	return []string{
		BSeriesMaxOrder, CacheTTLSeconds, EnableCaching,
		EnablePerformanceMonitoring, ESNReservoirSize, MaxMembraneDepth,
	}
}

// Get returns the value of the named parameter, an int or a bool, and nil for
// a name that is none.
func (p Parameters) Get(name string) any {
	switch name {
	case BSeriesMaxOrder:
		return p.BSeriesMaxOrder
	case CacheTTLSeconds:
		return p.CacheTTLSeconds
	case EnableCaching:
		return p.EnableCaching
	case EnablePerformanceMonitoring:
		return p.EnablePerformanceMonitoring
	case ESNReservoirSize:
		return p.ESNReservoirSize
	case MaxMembraneDepth:
		return p.MaxMembraneDepth
	}
	return nil
}

// Set gives the named parameter a value, which must be of the parameter's own
// type: int or bool. It says nothing about ranges.
func (p *Parameters) Set(name string, value any) error {
	var ints *int
	var bools *bool
	switch name {
	case BSeriesMaxOrder:
		ints = &p.BSeriesMaxOrder
	case CacheTTLSeconds:
		ints = &p.CacheTTLSeconds
	case EnableCaching:
		bools = &p.EnableCaching
	case EnablePerformanceMonitoring:
		bools = &p.EnablePerformanceMonitoring
	case ESNReservoirSize:
		ints = &p.ESNReservoirSize
	case MaxMembraneDepth:
		ints = &p.MaxMembraneDepth
	default:
		return fmt.Errorf("no parameter is named %q", name)
	}
	switch v := value.(type) {
	case int:
		if ints != nil {
			*ints = v
			return nil
		}
	case bool:
		if bools != nil {
			*bools = v
			return nil
		}
	}
	return fmt.Errorf("parameter %s cannot hold %v (%T)", name, value, value)
}

// Map returns the six values by name, for encoders and comparisons.
func (p Parameters) Map() map[string]any {
	m := make(map[string]any, 6)
	for _, name := range Names() {
		m[name] = p.Get(name)
	}
	return m
}

// Canonical returns the content of parameters.yaml in a snapshot: one
// parameter a line, sorted by name, so that `git diff` reads well.
func (p Parameters) Canonical() []byte {
	var b strings.Builder
	for _, name := range Names() {
		fmt.Fprintf(&b, "%s: %v\n", name, p.Get(name))
	}
	return []byte(b.String())
}

// ParseCanonical reads what Canonical wrote, and nothing else: every name
// once, in order, an integer in plain decimal digits or true|false.
func ParseCanonical(text []byte) (Parameters, error) {
	var p Parameters
	lines := strings.Split(string(text), "\n")
	names := Names()
	if len(lines) != len(names)+1 || lines[len(names)] != "" {
		return p, fmt.Errorf("not a canonical parameters.yaml: %d lines, want %d", len(lines)-1, len(names))
	}
	for i, name := range names {
		value, ok := strings.CutPrefix(lines[i], name+": ")
		if !ok {
			return p, fmt.Errorf("not a canonical parameters.yaml: line %d is %q, want %s", i+1, lines[i], name)
		}
		var v any = value == "true"
		if value != "true" && value != "false" {
			n, err := strconv.Atoi(value)
			if err != nil || strconv.Itoa(n) != value {
				return p, fmt.Errorf("not a canonical parameters.yaml: line %d: %q is not a plain value", i+1, value)
			}
			v = n
		}
		if err := p.Set(name, v); err != nil {
			return p, fmt.Errorf("not a canonical parameters.yaml: line %d: %w", i+1, err)
		}
	}
	return p, nil
}

// A Digest names Parameters: lower-case hex of the SHA-256 of their canonical
// form. Holds are sets of digests.
type Digest string

// Digest returns the digest of p.
func (p Parameters) Digest() Digest {
	sum := sha256.Sum256(p.Canonical())
	return Digest(hex.EncodeToString(sum[:]))
}

// A Change is one parameter that differs between two Parameters.
type Change struct {
	Parameter string `json:"parameter"`
	Old       any    `json:"old_value"`
	New       any    `json:"new_value"`
	// Critical: the engine rebuilds components to take the new value.
	Critical bool `json:"critical"`
}

// String is the change as people read it: "esn_reservoir_size 1024 -> 2048".
func (c Change) String() string {
	s := fmt.Sprintf("%s %v -> %v", c.Parameter, c.Old, c.New)
	if c.Critical {
		s += " (critical)"
	}
	return s
}

// Diff lists what changes from old to p, in canonical order; nil when equal.
func (p Parameters) Diff(old Parameters) []Change {
	var changes []Change
	for _, name := range Names() {
		if a, b := old.Get(name), p.Get(name); a != b {
			changes = append(changes, Change{Parameter: name, Old: a, New: b, Critical: Critical(name)})
		}
	}
	return changes
}
