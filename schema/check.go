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

// A literal is a value as it is written.
type literal struct {
	text   string
	isBare bool   // a scalar without quotation marks
	isText bool   // a scalar on one line, with or without them
	isYAML bool   // by a person, who may have meant what a generous reader of YAML reads
	shown  string // as messages show it
}

// parse reads the value of the parameter, or says why it cannot be that.
func (p *Parameter) parse(l literal) (Value, *Violation) {
	v, ok := p.read(l)
	if ok && p.fits(v) {
		return v, nil
	}
	violation := p.invalid(l)
	if !ok && l.isYAML {
		p.suggestSpelling(l.text, violation)
	}
	return Value{}, violation
}

// read takes one spelling of each value: an int in plain decimal digits, a
// number as in JSON, a bool as true or false. What YAML reads more generously
// (0777, 1_000, yes) means different things to different readers.
func (p *Parameter) read(l literal) (v Value, ok bool) {
	const maxDigits = 64
	switch {
	case p.Type == "string":
		return Text(l.text), l.isText
	case !l.isBare:
		return Value{}, false
	case p.Type == "bool":
		return Value{l.text}, l.text == "true" || l.text == "false"
	case len(l.text) > maxDigits && strings.Trim(l.text, "-0123456789") == "":
		return Value{}, true // beyond any range
	case len(l.text) > maxDigits || l.text == "-0" || p.Type == "int" && strings.ContainsAny(l.text, ".eE"):
		return Value{}, false
	}
	return Number(l.text)
}

// fits reports whether the parameter can be v, which is of its type.
func (p *Parameter) fits(v Value) bool {
	switch p.Type {
	case "bool":
		return true
	case "string":
		return slices.Contains(p.Values, v.String())
	}
	return !v.IsZero() && float(p.Minimum) <= float(v) && float(v) <= float(p.Maximum)
}

func float(v Value) float64 { f, _ := v.Float(); return f }

// invalid returns the violation of a value that the parameter cannot be.
func (p *Parameter) invalid(l literal) *Violation {
	v := &Violation{Value: l.shown, Rule: p.Range, Message: fmt.Sprintf("Invalid value for %s: %s", p.Name, l.shown)}
	switch p.Type {
	case "string":
		v.Hint = suggestion(l.text, p.Values, "use "+strings.Join(p.Values, ", "))
	case "bool":
		v.Hint = "use true or false"
	case "int":
		v.Hint = fmt.Sprintf("use an integer from %v to %v", p.Minimum, p.Maximum)
	default:
		v.Hint = fmt.Sprintf("use a number from %v to %v", p.Minimum, p.Maximum)
	}
	if !p.isPercent() {
		v.Parameter = p.Name
	}
	if !p.Default.IsZero() {
		v.Hint += fmt.Sprintf("; the default is %v", p.Default)
	}
	return v
}

// suggestSpelling makes v say how to write a value that may be meant well, and
// is written in another way than read takes.
func (p *Parameter) suggestSpelling(text string, v *Violation) {
	text = strings.TrimSpace(text)
	switch p.Type {
	case "bool":
		v.Rule = "true or false, without quotes"
	case "int":
		v.Rule = "an integer in plain decimal digits"
	case "number":
		v.Rule = "a number in decimal digits, as in JSON"
	}
	meant := p.respell(text)
	if n, ok := p.read(literal{text: meant, isBare: true}); ok && p.fits(n) {
		v.Hint = "write " + meant
	} else if strings.Contains(text, "$") || strings.Contains(text, "{{") {
		v.Hint = "there are no variables and no expressions; " + v.Hint
	}
}

// respell guesses the plain spelling of a value that was written otherwise: true
// for yes, 16 for 0x10, 10 for 1_0, 50 for 5e1; "" if that cannot be told. An
// integer with leading zeros is octal to one reader and decimal to the next.
func (p *Parameter) respell(s string) string {
	if p.Type == "bool" {
		switch strings.ToLower(s) {
		case "true", "yes", "on", "y", "1":
			return "true"
		case "false", "no", "off", "n", "0":
			return "false"
		}
		return ""
	}
	if leadingZero.MatchString(s) {
		return ""
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

var leadingZero = regexp.MustCompile(`^[+-]?0[0-9_]`)

// Check checks a full set of values that stands in no file. A value is a Value,
// or anything that encodes to one in JSON. Unknown names, wrong types, missing
// values and broken rules are violations without a position, in order of the
// names, and broken rules last. The Parameters are good only if there is none; a
// managed parameter that values lack has its default there.
func (r *Rules) Check(values map[string]any) (Parameters, []Violation) {
	l, set := &loader{Rules: r}, effective{}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		p := r.Parameter(name)
		if p == nil {
			l.add(Position{}, "known parameters only", "no parameter is named "+quote(name), didYouMean(name, r.names)).Path = oneLine(name)
			continue
		}
		if v, isValue := values[name].(Value); isValue && v.IsZero() {
			continue
		}
		v, violation := p.parse(literalOf(values[name]))
		set[name] = setting{value: v}
		if violation != nil {
			violation.Path = name
			l.found.add(*violation)
		}
	}
	l.checkMissing(set)
	l.checkRules(set, "")
	return r.Complete(NewParameters(set.values())), l.found.List
}

// CheckParameters is Check for Parameters. Those of an older record may no
// longer be valid, and may have parameters that this schema does not have,
// which are not violations.
func (r *Rules) CheckParameters(p Parameters) []Violation {
	values := map[string]any{}
	for name, v := range r.Known(p).values {
		values[name] = v
	}
	_, list := r.Check(values)
	return list
}

// literalOf returns the literal of a value in JSON.
func literalOf(given any) literal {
	text, err := json.Marshal(given)
	if err != nil { // such as NaN
		text = []byte(fmt.Sprint(given))
	}
	v := Value{string(text)}
	s, isText := v.Text()
	switch {
	case isText:
		return literal{text: s, isText: true, shown: quoted(s)}
	case text[0] == '{':
		return literal{shown: "an object"}
	case text[0] == '[':
		return literal{shown: "a list"}
	}
	return literal{text: v.json, isBare: true, shown: quote(v.json)}
}

// evaluate returns the rules between parameters for values.
func (r *Rules) evaluate(values map[string]Value) cue.Value {
	return lookup(r.definition.Unify(r.schema.context.Encode(values)), defRules)
}

// broken lists the rules that values break. Each value must fit its own range;
// a rule is left out if isInvalid reports that one of its operands is set to
// something else, or if it needs a value that is absent.
func (r *Rules) broken(values map[string]Value, isInvalid func(name string) bool) (list []relation) {
	r.schema.mu.Lock()
	defer r.schema.mu.Unlock()
	rules := r.evaluate(values)
	for _, rel := range r.relations {
		rule := rules.LookupPath(cue.MakePath(cue.Str(rel.name)))
		holds, err := lookup(rule, "holds").Bool()
		if holds || err != nil && rel.lacks(values) || slices.ContainsFunc(rel.operands, isInvalid) {
			continue
		}
		rel.message, rel.hint = cmp.Or(textOf(rule, "message"), rel.rule+" does not hold"), textOf(rule, "hint")
		if err != nil {
			rel.message, rel.hint = "the rule cannot be evaluated: "+cueMessage(err), "correct the rule "+rel.name+" in the schema"
		}
		list = append(list, rel)
	}
	return list
}

func textOf(v cue.Value, name string) string {
	text, _ := lookup(v, name).String()
	return text
}

// lacks reports whether an operand has no value.
func (rel *relation) lacks(values map[string]Value) bool {
	return slices.ContainsFunc(rel.operands, func(name string) bool { return values[name].IsZero() })
}
