package schema

// Critical reports whether the engine rebuilds components to take a new value
// of the named parameter.
func Critical(name string) bool {
	return name == MaxMembraneDepth || name == ESNReservoirSize || name == BSeriesMaxOrder
}
