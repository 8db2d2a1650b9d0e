package schema

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync/atomic"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/cuecontext"
)

// A judge asks CUE. It compiles the schema into a context of its own, because
// a context that is used again keeps all it ever saw; it lives as long as one
// load and is not shared.
type judge struct {
	facts      *facts
	context    *cue.Context
	parameters cue.Value
	percent    cue.Value
	fields     map[string]cue.Value
	said       map[occurrence]bool
}

type occurrence struct {
	name  string
	value any
}

// spare is a judge that was made ahead of the next load.
var spare atomic.Pointer[judge]

// Prepare makes ready what the next Load, Check or CheckParameters needs, which
// takes about half of their time. It is for who waits for the next Document
// anyway.
func Prepare() {
	if spare.Load() == nil {
		spare.Store(makeJudge())
	}
}

// newJudge returns a judge of the caller's own.
func newJudge() *judge {
	if j := spare.Swap(nil); j != nil {
		return j
	}
	return makeJudge()
}

func makeJudge() *judge {
	j := &judge{facts: schemaFacts(), context: cuecontext.New(), said: map[occurrence]bool{}, fields: map[string]cue.Value{}}
	root := j.context.CompileBytes(cueSource)
	j.parameters = root.LookupPath(cue.MakePath(cue.Def("#Parameters")))
	j.percent = root.LookupPath(cue.MakePath(cue.Def("#percent")))
	for _, name := range Names() {
		j.fields[name] = parameterField(j.parameters, name)
	}
	j.fields[j.facts.percent.Name] = j.percent
	return j
}

// fits reports whether value, an int or a bool, is in the range of the named
// parameter, or of an experiment's percent.
func (j *judge) fits(name string, value any) bool {
	o := occurrence{name, value}
	ok, known := j.said[o]
	if !known {
		ok = j.fields[name].Unify(j.context.Encode(value)).Validate(cue.Concrete(true)) == nil
		j.said[o] = ok
	}
	return ok
}

// A brokenRule is a rule between parameters that does not hold.
type brokenRule struct {
	Operands []string `json:"operands"`
	Rule     string   `json:"rule"`
	Message  string   `json:"message"`
	Hint     string   `json:"hint"`
}

// broken lists the rules that values break. Each value must fit its own range;
// a rule is left out if unknown says of one of its operands that its value
// cannot be known, or if it needs a value that is absent.
func (j *judge) broken(values map[string]any, unknown func(name string) bool) ([]brokenRule, error) {
	rules, err := j.parameters.Unify(j.context.Encode(values)).LookupPath(cue.MakePath(cue.Def("#rules"))).List()
	if err != nil {
		return nil, fmt.Errorf("judging the rules between parameters: %w", err)
	}
	var all []brokenRule
	for rules.Next() {
		rule := rules.Value()
		if holds, err := rule.LookupPath(cue.MakePath(cue.Str("holds"))).Bool(); holds || err != nil {
			continue
		}
		var b brokenRule
		if err := rule.Decode(&b); err != nil {
			return nil, fmt.Errorf("judging the rules between parameters: %w", err)
		}
		known := true
		for _, name := range b.Operands {
			known = known && !unknown(name)
		}
		if known {
			all = append(all, b)
		}
	}
	return all, nil
}

// invalidValue is the violation of a value that its parameter cannot take;
// shown is the value as quote shows it.
func (info *ParameterInfo) invalidValue(shown string) Violation {
	v := Violation{
		Value:   shown,
		Rule:    info.Range,
		Message: fmt.Sprintf("Invalid value for %s: %s", info.Name, shown),
		Hint:    "use true or false",
	}
	if info.Type == "int" {
		v.Hint = fmt.Sprintf("use an integer from %d to %d", *info.Minimum, *info.Maximum)
	}
	if info.Default != nil {
		v.Parameter = info.Name
		v.Hint += fmt.Sprintf("; the default is %v", info.Default)
	}
	return v
}

// spelled is the violation of a value that is not written as YAML of this
// house writes it; plain is how it should be, "" if nobody can tell.
func (info *ParameterInfo) spelled(shown, plain string) Violation {
	v := info.invalidValue(shown)
	v.Rule = "true or false, without quotes"
	if info.Type == "int" {
		v.Rule = "an integer in plain decimal digits"
	}
	switch {
	case plain != "":
		v.Hint = "write " + plain
	case strings.Contains(shown, "$") || strings.Contains(shown, "{{"):
		v.Hint = "there are no variables and no expressions; " + v.Hint
	}
	return v
}

// plainInt reads an integer in plain decimal digits, a sign allowed before it.
// One too large for an int is ok and saturates: no range holds it.
func plainInt(s string) (n int, ok bool) {
	digits := strings.TrimPrefix(s, "-")
	if digits == "" || strings.Trim(digits, "0123456789") != "" || digits[0] == '0' && s != "0" {
		return 0, false
	}
	if n, err := strconv.Atoi(s); err == nil {
		return n, true
	}
	if s[0] == '-' {
		return math.MinInt, true
	}
	return math.MaxInt, true
}

// intended is the plain spelling of a value that was probably meant; "" if that
// cannot be told, or would be out of range too.
func (j *judge) intended(info *ParameterInfo, s string) string {
	meant := spelling(info.Type, strings.TrimSpace(s))
	if n, ok := plainInt(meant); ok && !j.fits(info.Name, n) {
		return ""
	}
	return meant
}

// spelling guesses the plain spelling of a value that was written otherwise:
// 16 for 0x10, 10 for 1_0, 50 for 5e1, true for yes. An integer with leading
// zeros is octal to one reader and decimal to the next: nobody can tell.
func spelling(typ, s string) string {
	if typ == "bool" {
		switch strings.ToLower(s) {
		case "true", "yes", "on", "y", "1":
			return "true"
		case "false", "no", "off", "n", "0":
			return "false"
		}
		return ""
	}
	if len(s) > maxForeign {
		return ""
	}
	if strings.HasPrefix(s, "0x") || strings.HasPrefix(s, "0o") || strings.HasPrefix(s, "0b") {
		if n, err := strconv.ParseInt(s, 0, 0); err == nil {
			return strconv.FormatInt(n, 10)
		}
	}
	if digits := strings.TrimLeft(s, "+-"); len(digits) > 1 && digits[0] == '0' && digits[1] != '.' {
		return ""
	}
	f, err := strconv.ParseFloat(strings.ReplaceAll(s, "_", ""), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > math.MaxInt32 {
		return ""
	}
	return strconv.FormatFloat(f+0, 'f', 0, 64) // -0 + 0 is 0
}
