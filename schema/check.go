package schema

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"cuelang.org/go/cue"
)

// maxDigits is the most that is read of a number, in bytes.
const maxDigits = 64

// isSpelled reports whether v is of the type, in its one spelling: an int in plain
// decimal digits, a number as in JSON, a bool as true or false. What YAML reads
// more generously (0777, 1_000, yes) means different things to different readers.
func (p *Parameter) isSpelled(v Value) (ok bool) {
	switch {
	case p.Type == "string":
		_, ok = v.Text()
	case p.Type == "bool":
		ok = v.json == "true" || v.json == "false"
	case len(v.json) > maxDigits:
		ok = strings.Trim(v.json, "-0123456789") == "" // but beyond any range
	case v.json != "-0" && (p.Type == "number" || !strings.ContainsAny(v.json, ".eE")):
		_, ok = Number(v.json)
	}
	return ok
}

// fits reports whether the parameter can be v, which is of its type.
func (p *Parameter) fits(v Value) bool {
	switch p.Type {
	case "bool":
		return true
	case "string":
		return slices.Contains(p.Values, v.String())
	}
	return len(v.json) <= maxDigits && float(p.Minimum) <= float(v) && float(v) <= float(p.Maximum)
}

func float(v Value) float64 { f, _ := v.Float(); return f }

// check returns the violation if the parameter cannot be v.
func (p *Parameter) check(v Value, shown string) *Violation {
	if p.isSpelled(v) && p.fits(v) {
		return nil
	}
	text, _ := v.Text()
	violation := &Violation{Value: shown, Rule: p.Range, Hint: suggestion(text, p.Values, p.use)}
	violation.Message = fmt.Sprintf("Invalid value for %s: %s", p.Name, shown)
	if p.Apply != "" { // not an experiment's percent
		violation.Parameter = p.Name
	}
	if !p.Default.IsZero() {
		violation.Hint += fmt.Sprintf("; the default is %v", p.Default)
	}
	return violation
}

var spellings = map[string]string{
	"bool":   "true or false, without quotes",
	"int":    "an integer in plain decimal digits",
	"number": "a number in decimal digits, as in JSON",
}

// suggestSpelling makes v say how to write a value that may be meant well, and returns how
// that is written, "" if it is not certain.
func (p *Parameter) suggestSpelling(text string, v *Violation) string {
	text = strings.TrimSpace(text)
	v.Rule = cmp.Or(spellings[p.Type], v.Rule)
	if meant := (Value{p.respell(text)}); p.isSpelled(meant) && p.fits(meant) {
		v.Hint = "write " + meant.json
		return meant.json
	} else if strings.Contains(text, "$") || strings.Contains(text, "{{") {
		v.Hint = "there are no variables and no expressions; " + v.Hint
	}
	return ""
}

var (
	boolWords = map[string]string{
		"true": "true", "yes": "true", "on": "true", "y": "true", "1": "true",
		"false": "false", "no": "false", "off": "false", "n": "false", "0": "false",
	}
	leadingZero = regexp.MustCompile(`^[+-]?0[0-9_]`)
)

// respell guesses the plain spelling of a value: true for yes, 16 for 0x10, 10 for
// 1_0, 50 for 5e1. It is "" for leading zeros, which are octal to some readers.
func (p *Parameter) respell(s string) string {
	if p.Type == "bool" || leadingZero.MatchString(s) {
		return boolWords[strings.ToLower(s)]
	}
	if n, err := strconv.ParseInt(s, 0, 0); err == nil {
		return strconv.FormatInt(n, 10)
	}
	f, err := strconv.ParseFloat(strings.ReplaceAll(s, "_", ""), 64)
	if err != nil {
		return ""
	}
	return strconv.FormatFloat(f, 'f', -1, 64)
}

// Check checks a full set of values that stands in no file. A value is a Value,
// or anything that encodes to one in JSON. The violations have no position and
// are in order of the names, with broken rules last. The Parameters are good only
// if there is none; a managed parameter that values lack has its default there.
func (r *Rules) Check(values map[string]any) (Parameters, []Violation) {
	l, set := &loader{Rules: r}, layer{}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		p := r.Parameter(name)
		if p == nil {
			l.report(Position{}, "known parameters only", "no parameter is named "+quote(name), didYouMean(name, r.names)).Path = oneLine(name)
			continue
		}
		if v, isValue := values[name].(Value); isValue && v.IsZero() {
			continue
		}
		v := encode(values[name])
		if violation := p.check(v, shown(v)); violation != nil {
			violation.Path, v = name, Value{}
			l.add(*violation)
		}
		set[name] = setting{value: v}
	}
	l.checkMissing(set)
	l.checkRules(set, "")
	return r.Complete(set.parameters()), l.List
}

// CheckParameters is Check for Parameters, but for those that the schema does not
// have: a record of another schema may have them.
func (r *Rules) CheckParameters(p Parameters) []Violation {
	values := map[string]any{}
	for name, v := range r.Known(p).values {
		values[name] = v
	}
	_, list := r.Check(values)
	return list
}

// encode returns what given is in JSON, null and NaN too.
func encode(given any) Value {
	text, err := json.Marshal(given)
	if err != nil {
		text = fmt.Append(nil, given)
	}
	return Value{string(text)}
}

// shown returns a value in JSON as messages show it.
func shown(v Value) string {
	s, isText := v.Text()
	switch {
	case isText:
		return quoted(s)
	case v.json[0] == '{':
		return "an object"
	case v.json[0] == '[':
		return "a list"
	}
	return quote(v.json)
}

// evaluate returns the rules between parameters, as they are with p.
func (r *Rules) evaluate(p Parameters) cue.Value { return r.with(p, defRules) }

// with returns a definition of #Parameters as it is with p.
func (r *Rules) with(p Parameters, definition string) cue.Value {
	return lookup(r.definition.Unify(r.schema.context.Encode(p.values)), definition)
}

// MemoryBytes returns about how many bytes a server takes with p. It is not ok
// where the schema has no expression for it, or p lacks a value that it needs.
func (r *Rules) MemoryBytes(p Parameters) (bytes int64, ok bool) {
	r.schema.mu.Lock()
	defer r.schema.mu.Unlock()
	f, err := r.with(r.Known(p), defMemory).Float64()
	if err != nil || !(0 <= f && f < maxExact) {
		return 0, false
	}
	return int64(f), true
}

func textOf(v cue.Value, name string) string {
	text, _ := lookup(v, name).String()
	return text
}

func (rel *relation) lacks(p Parameters) bool {
	return slices.ContainsFunc(rel.operands, func(name string) bool { return p.Get(name).IsZero() })
}
