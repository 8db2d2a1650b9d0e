package schema

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Check judges a full set of values that stands in no file, as a JSON decoder
// leaves it: an integer may be an int of any size, a json.Number or a float64
// without a fraction. Unknown names, wrong types, missing values and broken
// rules are violations without a position, in canonical order of the
// parameters and then of the rules. The Parameters are good only if there is
// none. cache_ttl_seconds may be absent while caching is off; it is then the
// default.
func Check(values map[string]any) (Parameters, []Violation) {
	j := newJudge()
	p := j.facts.defaults
	good, bad := map[string]any{}, map[string]bool{}
	var list []Violation
	for i := range j.facts.infos {
		info := &j.facts.infos[i]
		given, ok := values[info.Name]
		if !ok {
			continue
		}
		value, v := j.checkValue(info, given)
		if v == nil {
			v = faultOf(p.Set(info.Name, value))
		}
		if v != nil {
			bad[info.Name] = true
			list = append(list, *v)
			continue
		}
		good[info.Name] = value
	}
	for _, name := range missing(good, func(name string) bool { return bad[name] }) {
		list = append(list, missingValue(j.facts.info(name), "is missing"))
	}
	slices.SortStableFunc(list, func(a, b Violation) int { return strings.Compare(a.Parameter, b.Parameter) })
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if j.facts.info(name) == nil {
			list = append(list, unknownName(name))
		}
	}
	broken, err := j.broken(good, func(name string) bool { return bad[name] })
	if v := faultOf(err); v != nil {
		list = append(list, *v)
	}
	for _, b := range broken {
		blamed := b.Operands[0]
		list = append(list, Violation{
			Path: blamed, Parameter: blamed, Value: fmt.Sprint(good[blamed]),
			Rule: b.Rule, Message: b.Message, Hint: b.Hint,
		})
	}
	return p, list
}

// CheckParameters judges Parameters as Check does. Those of an older snapshot
// may no longer be valid.
func CheckParameters(p Parameters) []Violation {
	_, list := Check(p.Map())
	return list
}

func (j *judge) checkValue(info *ParameterInfo, given any) (any, *Violation) {
	value, shown, ok := fromJSON(info.Type, given)
	if ok && j.fits(info.Name, value) {
		return value, nil
	}
	v := info.invalidValue(shown)
	v.Path = info.Name
	return nil, &v
}

// fromJSON turns what a JSON decoder made of a value into an int or a bool,
// and into the text that messages show.
func fromJSON(typ string, given any) (value any, shown string, ok bool) {
	if typ == "bool" {
		if b, ok := given.(bool); ok {
			return b, strconv.FormatBool(b), true
		}
	}
	switch v := given.(type) {
	case nil:
		return nil, "null", false
	case string:
		return nil, quoted(v), false
	case json.Number:
		n, ok := plainInt(v.String())
		return n, quote(v.String()), ok && typ == "int"
	case float64:
		text := strconv.FormatFloat(v, 'g', -1, 64)
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			text = strconv.FormatInt(int64(v), 10)
		}
		n, ok := plainInt(text)
		return n, text, ok && typ == "int"
	case int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64:
		n, ok := plainInt(fmt.Sprint(v))
		return n, fmt.Sprint(v), ok && typ == "int"
	case map[string]any:
		return nil, "an object", false
	case []any:
		return nil, "a list", false
	}
	return nil, quote(fmt.Sprint(given)), false
}

// missing lists the parameters that values lack, but for those that skip knows
// about and cache_ttl_seconds where caching is off, or on: then a rule says so.
func missing(values map[string]any, skip func(name string) bool) []string {
	var names []string
	for _, name := range Names() {
		if _, ok := values[name]; ok || skip(name) {
			continue
		}
		_, caching := values[EnableCaching]
		if name == CacheTTLSeconds && (caching || skip(EnableCaching)) {
			continue
		}
		names = append(names, name)
	}
	return names
}

func missingValue(info *ParameterInfo, what string) Violation {
	return Violation{
		Path: info.Name, Parameter: info.Name,
		Rule:    "every parameter is set",
		Message: info.Name + " " + what,
		Hint:    fmt.Sprintf("set it, for instance to the default, %v", info.Default),
	}
}

func unknownName(name string) Violation {
	return Violation{
		Path:    oneLine(name),
		Rule:    "known parameters only",
		Message: "no parameter is named " + quote(name),
		Hint:    didYouMean(name, Names()),
	}
}

// didYouMean is the hint for a name that is none of the candidates.
func didYouMean(name string, candidates []string) string {
	if s, ok := Suggest(name, candidates); ok {
		return fmt.Sprintf("did you mean %s?", s)
	}
	return "it is one of " + strings.Join(candidates, ", ")
}

// faultOf makes a violation of an error that is a fault of the program, nil of
// nil: nobody's document may stop it.
func faultOf(err error) *Violation {
	if err == nil {
		return nil
	}
	return &Violation{
		Rule:    "the schema can be evaluated",
		Message: "the values could not be judged: " + oneLine(err.Error()),
		Hint:    "this is a fault of the agent; please report it with the configuration",
	}
}
