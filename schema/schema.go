package schema

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"sync"

	"cuelang.org/go/cue"
)

// A Schema is what a CUE file declares. It is immutable and safe for concurrent use.
type Schema struct {
	file         string
	text         []byte
	environments []Environment
	labels       map[Environment]string
	rules        map[Environment]*Rules
	context      *cue.Context
	mu           sync.Mutex // the context serves one caller at a time
}

// An Environment is one of those that the schema lists; the embedded one has
// development, staging, production and testing.
type Environment string

// File returns the path of the environment's file: "production.yaml".
func (e Environment) File() string { return string(e) + fileSuffix }

// Rules are a Schema for one environment. They are safe for concurrent use.
type Rules struct {
	schema      *Schema
	environment Environment
	parameters  []Parameter // sorted by name
	names       []string
	defaults    Parameters // of the managed parameters
	percent     Parameter  // an experiment's
	relations   []relation
	definition  cue.Value // #Parameters
}

// A relation is a rule between parameters.
type relation struct {
	name     string
	rule     string // as people read it
	operands []string
}

// A Parameter is what the schema says about one parameter. The JSON is an entry
// of parameter_info in GET /v1/config/schema, by name.
type Parameter struct {
	Name string `json:"-"`
	Type string `json:"type"` // "int", "number", "bool" or "string"
	// Range is such as "64-16384", "true/false" and "int8|int4".
	Range string `json:"range"`
	// Minimum and Maximum are inclusive; zero for a bool and a string.
	Minimum  Value    `json:"minimum,omitzero"`
	Maximum  Value    `json:"maximum,omitzero"`
	Values   []string `json:"values,omitempty"` // what a string may be
	Default  Value    `json:"default"`          // zero if an optional parameter has none
	Required bool     `json:"required"`         // some layer must set it
	// Managed: the server is always told a value, the default where no layer
	// sets one. Others are left to the server until a layer sets them.
	Managed bool `json:"managed"`
	// Critical: Apply is ApplyRebuild, not ApplyHot.
	Critical    bool   `json:"critical"`
	Apply       string `json:"apply"`
	Unit        string `json:"unit,omitempty"`
	Description string `json:"description"`
	Impact      string `json:"impact,omitempty"`
	use         string // the hint where the value is invalid
}

//go:embed dtesn.cue
var embedded []byte

var (
	embeddedSchema *Schema
	embeddedOnce   sync.Once
)

// Default returns the schema that the program ships, of dtesn.cue.
func Default() *Schema {
	embeddedOnce.Do(func() {
		var err error
		if embeddedSchema, err = read(embeddedName, embedded); err != nil {
			panic(err)
		}
	})
	return embeddedSchema
}

// For returns the rules of an environment; nil if the schema does not have it.
func (s *Schema) For(env Environment) *Rules { return s.rules[env] }

// first returns some rules: all environments have the same parameters.
func (s *Schema) first() *Rules { return s.rules[s.environments[0]] }

// Environments lists the environments, in the order of the schema.
func (s *Schema) Environments() []Environment { return slices.Clone(s.environments) }

// Label returns the environment label that the server is told.
func (s *Schema) Label(env Environment) string { return cmp.Or(s.labels[env], string(env)) }

// ParseEnvironment returns the environment of that name. The error suggests others.
func (s *Schema) ParseEnvironment(name string) (Environment, error) {
	var names []string
	for _, e := range s.environments {
		names = append(names, string(e))
	}
	if slices.Contains(names, name) {
		return Environment(name), nil
	}
	return "", fmt.Errorf("no environment is named %s: %s", quote(name), didYouMean(name, names))
}

// File is the schema file, "embedded" for the schema that the program ships.
func (s *Schema) File() string { return s.file }

// CUE returns the schema as one CUE file, which Open takes back.
func (s *Schema) CUE() []byte { return bytes.Clone(s.text) }

// Digest names the schema: lower-case hex of the SHA-256 of its CUE text.
func (s *Schema) Digest() string { return fmt.Sprintf("%x", sha256.Sum256(s.text)) }

// Names lists all parameters of the schema, sorted.
func (s *Schema) Names() []string { return s.first().Names() }

// Schema returns the schema that the rules are of.
func (r *Rules) Schema() *Schema { return r.schema }

// Environment returns the environment that the rules are for.
func (r *Rules) Environment() Environment { return r.environment }

// Parameters lists what the schema says about each parameter, sorted by name.
func (r *Rules) Parameters() []Parameter { return slices.Clone(r.parameters) }

// Parameter returns what the schema says about one parameter, nil if it is unknown.
func (r *Rules) Parameter(name string) *Parameter {
	if i, ok := slices.BinarySearch(r.names, name); ok {
		return &r.parameters[i]
	}
	return nil
}

// Has reports whether the schema has the named parameter.
func (r *Rules) Has(name string) bool { return r.Parameter(name) != nil }

// Names lists the parameters, sorted.
func (r *Rules) Names() []string { return slices.Clone(r.names) }

// Known returns the part of p that the schema has.
func (r *Rules) Known(p Parameters) Parameters { return p.Select(r.Has) }

// Complete returns what p, of a record of another schema, means under this one: the
// part that the schema has, and the defaults of managed parameters that p lacks.
func (r *Rules) Complete(p Parameters) Parameters {
	values := r.defaults.Map()
	maps.Copy(values, r.Known(p).values)
	return Parameters{values}
}

// Defaults returns the defaults of the managed parameters.
func (r *Rules) Defaults() Parameters { return r.defaults }

// Diff is Parameters.Diff from old to new, with how each change is applied.
func (r *Rules) Diff(from, to Parameters) []Change {
	changes := to.Diff(from)
	for i := range changes {
		if p := r.Parameter(changes[i].Parameter); p != nil {
			changes[i].Critical, changes[i].Apply = p.Critical, p.Apply
		}
	}
	return changes
}
