package schema

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/cuecontext"
)

//go:embed dtesn.cue
var cueSource []byte

// A ParameterInfo is what the schema says about one parameter. The JSON is an
// entry of parameter_info in GET /v1/config/schema, by name.
type ParameterInfo struct {
	Name string `json:"-"`
	// Type is "int" or "bool".
	Type string `json:"type"`
	// Range is "64-16384" for an int and "true/false" for a bool.
	Range string `json:"range"`
	// Minimum and Maximum are inclusive; nil for a bool.
	Minimum *int `json:"minimum,omitempty"`
	Maximum *int `json:"maximum,omitempty"`
	// Default is an int or a bool.
	Default     any    `json:"default"`
	Critical    bool   `json:"critical"`
	Description string `json:"description"`
	Impact      string `json:"impact"`
}

// facts are what dtesn.cue says apart from judging values. They are read once,
// when first asked for, so that a process that needs none starts quickly.
type facts struct {
	infos        []ParameterInfo // in canonical order
	environments []Environment
	defaults     Parameters
	percent      ParameterInfo
	rules        []string // as people read them
}

// The embedded file is part of the program: if it cannot be read the program
// is broken, which a test finds.
var schemaFacts = sync.OnceValue(func() *facts {
	f, err := readFacts(cuecontext.New().CompileBytes(cueSource, cue.Filename("dtesn.cue")))
	if err != nil {
		panic(fmt.Sprintf("reading the embedded dtesn.cue: %v", err))
	}
	return f
})

func readFacts(root cue.Value) (*facts, error) {
	if err := root.Err(); err != nil {
		return nil, err
	}
	f := &facts{percent: ParameterInfo{Name: "percent"}}
	if err := root.LookupPath(cue.ParsePath("#environments")).Decode(&f.environments); err != nil {
		return nil, err
	}
	if err := readType(&f.percent, root.LookupPath(cue.ParsePath("#percent"))); err != nil {
		return nil, err
	}
	parameters := root.LookupPath(cue.ParsePath("#Parameters"))
	for _, name := range Names() {
		info, err := readInfo(name, root, parameterField(parameters, name))
		if err != nil {
			return nil, err
		}
		if err := f.defaults.Set(name, info.Default); err != nil {
			return nil, err
		}
		f.infos = append(f.infos, info)
	}
	rules, err := parameters.LookupPath(cue.ParsePath("#rules")).List()
	if err != nil {
		return nil, err
	}
	for rules.Next() {
		text, err := rules.Value().LookupPath(cue.ParsePath("rule")).String()
		if err != nil {
			return nil, err
		}
		f.rules = append(f.rules, text)
	}
	return f, nil
}

// parameterField finds a field of #Parameters, which is required or optional.
func parameterField(parameters cue.Value, name string) cue.Value {
	if v := parameters.LookupPath(cue.MakePath(cue.Str(name).Required())); v.Exists() {
		return v
	}
	return parameters.LookupPath(cue.MakePath(cue.Str(name).Optional()))
}

func readInfo(name string, root, field cue.Value) (ParameterInfo, error) {
	info := ParameterInfo{Name: name}
	if err := readType(&info, field); err != nil {
		return info, err
	}
	attribute := field.Attribute("dtesn")
	if err := attribute.Err(); err != nil {
		return info, fmt.Errorf("%s: %w", name, err)
	}
	var err error
	if info.Critical, err = attribute.Flag(0, "critical"); err != nil {
		return info, err
	}
	for key, text := range map[string]*string{"description": &info.Description, "impact": &info.Impact} {
		var found bool
		if *text, found, err = attribute.Lookup(0, key); err != nil || !found {
			return info, fmt.Errorf("%s has no %s: %w", name, key, err)
		}
	}
	value := root.LookupPath(cue.MakePath(cue.Def("#defaults"), cue.Str(name)))
	if info.Type == "bool" {
		info.Default, err = value.Bool()
		return info, err
	}
	n, err := value.Int64()
	info.Default = int(n)
	return info, err
}

// readType reads the type and, from the bounds of an int, the range.
func readType(info *ParameterInfo, v cue.Value) error {
	switch v.IncompleteKind() {
	case cue.BoolKind:
		info.Type, info.Range = "bool", "true/false"
		return nil
	case cue.IntKind:
		info.Type = "int"
	default:
		return fmt.Errorf("%s is neither an int nor a bool", info.Name)
	}
	readBounds(info, v)
	if info.Minimum == nil || info.Maximum == nil {
		return fmt.Errorf("%s has no bounds", info.Name)
	}
	info.Range = fmt.Sprintf("%d-%d", *info.Minimum, *info.Maximum)
	return nil
}

func readBounds(info *ParameterInfo, v cue.Value) {
	op, args := v.Expr()
	switch op {
	case cue.AndOp:
		for _, arg := range args {
			readBounds(info, arg)
		}
	case cue.GreaterThanEqualOp, cue.LessThanEqualOp:
		n, err := args[0].Int64()
		if err != nil {
			return
		}
		bound := int(n)
		if op == cue.GreaterThanEqualOp {
			info.Minimum = &bound
		} else {
			info.Maximum = &bound
		}
	}
}

func (f *facts) info(name string) *ParameterInfo {
	for i := range f.infos {
		if f.infos[i].Name == name {
			return &f.infos[i]
		}
	}
	return nil
}

// Critical reports whether the engine rebuilds components to take a new value
// of the named parameter. It is false for a name that is none.
func Critical(name string) bool {
	info := schemaFacts().info(name)
	return info != nil && info.Critical
}

// Defaults are the values an engine starts with. They are no layer of a
// configuration.
func Defaults() Parameters { return schemaFacts().defaults }

// Info lists what the schema says about each parameter, in canonical order.
func Info() []ParameterInfo { return slices.Clone(schemaFacts().infos) }

// Environments lists the four environments.
func Environments() []Environment { return slices.Clone(schemaFacts().environments) }

// ParseEnvironment returns the environment of that name. The error names them
// all, and the one that was probably meant.
func ParseEnvironment(name string) (Environment, error) {
	environments := environmentNames()
	if slices.Contains(environments, name) {
		return Environment(name), nil
	}
	meant := ""
	if s, ok := Suggest(name, environments); ok {
		meant = fmt.Sprintf(" (did you mean %s?)", s)
	}
	return "", fmt.Errorf("no environment is named %s%s: it is one of %s", quote(name), meant, strings.Join(environments, ", "))
}

func environmentNames() []string {
	var names []string
	for _, e := range schemaFacts().environments {
		names = append(names, string(e))
	}
	return names
}

// Rules lists the rules between parameters, as people read them.
func Rules() []string { return slices.Clone(schemaFacts().rules) }

// CUE returns the text of dtesn.cue, the one place that says what is valid.
func CUE() []byte { return slices.Clone(cueSource) }

// SchemaDigest names the schema: lower-case hex of the SHA-256 of its CUE text.
func SchemaDigest() string {
	sum := sha256.Sum256(cueSource)
	return hex.EncodeToString(sum[:])
}
