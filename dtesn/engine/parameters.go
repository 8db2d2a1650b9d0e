package engine

import "dtesn-agent/schema"

// startLabel is the environment label of an engine that was not told another.
const startLabel = "development"

const reservoirSize = "esn_reservoir_size"

// parameters are the values that the engine computes with. A parameter that the
// schema has besides is kept and reported, and has no effect.
type parameters struct {
	BSeriesMaxOrder             int
	CacheTTLSeconds             int
	EnableCaching               bool
	EnablePerformanceMonitoring bool
	ESNReservoirSize            int
	MaxMembraneDepth            int
}

// rules returns what the engine accepts: the schema that the program ships,
// which is the same for all its environments.
func rules() *schema.Rules { return schema.Default().For(startLabel) }

func defaults() parameters { return parametersOf(rules().Defaults()) }

// parametersOf converts values that the rules accept.
func parametersOf(p schema.Parameters) parameters {
	integer := func(name string) int { n, _ := p.Get(name).Int(); return n }
	return parameters{
		BSeriesMaxOrder:             integer("bseries_max_order"),
		CacheTTLSeconds:             integer("cache_ttl_seconds"),
		EnableCaching:               p.Get("enable_caching").Bool(),
		EnablePerformanceMonitoring: p.Get("enable_performance_monitoring").Bool(),
		ESNReservoirSize:            integer(reservoirSize),
		MaxMembraneDepth:            integer("max_membrane_depth"),
	}
}

// overlay lays values over what runs and checks the result. The reasons say, for
// people, why it is refused.
func overlay(runs schema.Parameters, values map[string]schema.Value) (schema.Parameters, []string) {
	all := map[string]any{}
	for name, v := range runs.Map() {
		all[name] = v
	}
	for name, v := range values {
		if all[name] = v; v.IsZero() {
			all[name] = nil // Check refuses a null, and passes over a missing value
		}
	}
	checked, violations := rules().Check(all)
	var reasons []string
	for _, v := range violations {
		reasons = append(reasons, v.Message)
	}
	return checked, reasons
}

// reinitialized lists the critical parameters that differ.
func reinitialized(from, to schema.Parameters) []string {
	var names []string
	for _, c := range rules().Diff(from, to) {
		if c.Critical {
			names = append(names, c.Parameter)
		}
	}
	return names
}
