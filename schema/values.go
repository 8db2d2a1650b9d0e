package schema

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// A Value is the value of one parameter: a number with the digits it was written
// with, a bool or a text. The zero Value is no value, and null in JSON. A list or
// an object, which no schema declares, is kept as it is.
type Value struct {
	json string // compact; "" for no value
}

// Int returns the Value of an integer.
func Int(n int) Value { return Value{strconv.Itoa(n)} }

// Bool returns the Value of a bool.
func Bool(b bool) Value { return Value{strconv.FormatBool(b)} }

// Text returns the Value of a text.
func Text(s string) Value {
	text, _ := json.Marshal(s) // never fails for a string
	return Value{string(text)}
}

// Number returns the Value of a number in JSON's spelling: "2048", "-0.50",
// "1e-3". It is not ok for other spellings and for numbers beyond float64.
func Number(s string) (v Value, ok bool) {
	if _, err := strconv.ParseFloat(s, 64); err != nil || !json.Valid([]byte(s)) {
		return Value{}, false
	}
	return Value{s}, true
}

// IsZero reports whether there is no value.
func (v Value) IsZero() bool { return v.json == "" }

// Int returns the integer that v is, and whether it is one.
func (v Value) Int() (n int, ok bool) {
	n, err := strconv.Atoi(v.json)
	return n, err == nil
}

// Float returns v as a metric shows it: the number, or 1 for true and 0 for
// false. It is not ok for a text and for no value.
func (v Value) Float() (f float64, ok bool) {
	switch v.json {
	case "true":
		return 1, true
	case "false":
		return 0, true
	}
	f, err := strconv.ParseFloat(v.json, 64)
	return f, err == nil
}

// Bool reports whether v is true.
func (v Value) Bool() bool { return v.json == "true" }

// Text returns the text that v is, and whether it is one.
func (v Value) Text() (s string, ok bool) {
	if !strings.HasPrefix(v.json, `"`) {
		return "", false
	}
	err := json.Unmarshal([]byte(v.json), &s)
	return s, err == nil
}

// String returns v as people read it: a text without quotation marks, "unset"
// for no value.
func (v Value) String() string {
	if s, ok := v.Text(); ok {
		return s
	}
	return cmp.Or(v.json, "unset")
}

// Equal reports whether v and w are the same value. Numbers are compared as
// float64: 1.5 equals 1.50 and 15e-1.
func (v Value) Equal(w Value) bool { return v == w || v.canonical() == w.canonical() }

// canonical returns the form of v in which equal values are identical.
func (v Value) canonical() Value {
	if s, ok := v.Text(); ok {
		return Text(s)
	}
	if v.json == "true" || v.json == "false" {
		return v // not by the errors of two parsers, which are most of what a comparison takes
	}
	if n, ok := v.Int(); ok {
		return Int(n)
	}
	f, err := strconv.ParseFloat(v.json, 64)
	switch {
	case err != nil:
		return v
	case f == math.Trunc(f) && math.Abs(f) < maxExact:
		return Int(int(f))
	}
	return Value{strconv.FormatFloat(f, 'g', -1, 64)}
}

// maxExact is the first integer that a float64 may not tell from the next.
const maxExact = 1 << 53

// MarshalJSON implements json.Marshaler.
func (v Value) MarshalJSON() ([]byte, error) {
	return []byte(cmp.Or(v.json, "null")), nil
}

// UnmarshalJSON implements json.Unmarshaler. It takes any JSON.
func (v *Value) UnmarshalJSON(text []byte) error {
	var b bytes.Buffer
	if err := json.Compact(&b, text); err != nil {
		return fmt.Errorf("decode value: %w", err)
	}
	if *v = (Value{b.String()}); v.json == "null" {
		*v = Value{}
	}
	return nil
}

// Parameters are values by name: one effective configuration. The zero value is
// empty. Parameters are immutable and safe for concurrent use.
type Parameters struct {
	values map[string]Value // without zero Values
}

// NewParameters returns the Parameters with these values, without zero Values.
func NewParameters(values map[string]Value) Parameters {
	p := Parameters{maps.Clone(values)}
	maps.DeleteFunc(p.values, func(_ string, v Value) bool { return v.IsZero() })
	return p
}

// Get returns the value of the named parameter, the zero Value if it has none.
func (p Parameters) Get(name string) Value { return p.values[name] }

// With returns p with a value of the named parameter; the zero Value removes it.
func (p Parameters) With(name string, v Value) Parameters {
	values := p.Map()
	values[name] = v
	return NewParameters(values)
}

// Names lists the parameters that have a value, sorted.
func (p Parameters) Names() []string { return slices.Sorted(maps.Keys(p.values)) }

// Len is the number of parameters that have a value.
func (p Parameters) Len() int { return len(p.values) }

// Map returns a copy of the values by name.
func (p Parameters) Map() map[string]Value {
	values := map[string]Value{}
	maps.Copy(values, p.values)
	return values
}

// Select returns the part of p whose names keep reports true for.
func (p Parameters) Select(keep func(name string) bool) Parameters {
	q := Parameters{make(map[string]Value, len(p.values))}
	for name, v := range p.values {
		if keep(name) {
			q.values[name] = v
		}
	}
	return q
}

// Equal reports whether p and q have the same names with equal values.
func (p Parameters) Equal(q Parameters) bool { return maps.EqualFunc(p.values, q.values, Value.Equal) }

// Contains reports whether p has every value of q; p may have others besides.
func (p Parameters) Contains(q Parameters) bool {
	for name, v := range q.values {
		if !p.Get(name).Equal(v) {
			return false
		}
	}
	return true
}

// A Digest names Parameters: lower-case hex of the SHA-256 of their canonical
// form. Equal Parameters have the same Digest.
type Digest string

// Digest returns the digest of p.
func (p Parameters) Digest() Digest {
	canonical := Parameters{p.Map()}
	for name, v := range p.values {
		canonical.values[name] = v.canonical()
	}
	return Digest(fmt.Sprintf("%x", sha256.Sum256(canonical.YAML())))
}

// YAML returns the content of parameters.yaml in a record: one parameter a line,
// sorted by name, the value as in JSON.
func (p Parameters) YAML() []byte {
	var b bytes.Buffer
	for _, name := range p.Names() {
		fmt.Fprintf(&b, "%s: %s\n", name, p.values[name].json)
	}
	return b.Bytes()
}

// MarshalJSON implements json.Marshaler: an object, sorted by name.
func (p Parameters) MarshalJSON() ([]byte, error) { return json.Marshal(p.Map()) }

// UnmarshalJSON implements json.Unmarshaler. A null is no value.
func (p *Parameters) UnmarshalJSON(text []byte) error {
	var values map[string]Value
	if err := json.Unmarshal(text, &values); err != nil {
		return fmt.Errorf("decode parameters: %w", err)
	}
	*p = NewParameters(values)
	return nil
}

// String returns p on one line, for logs and tests.
func (p Parameters) String() string {
	return strings.ReplaceAll(strings.TrimSuffix(string(p.YAML()), "\n"), "\n", ", ")
}

// How the engine applies a new value.
const (
	ApplyHot     = "hot"     // while it serves
	ApplyRebuild = "rebuild" // it rebuilds components
)

// A Change is one parameter that differs between two Parameters.
type Change struct {
	Parameter string `json:"parameter"`
	Old       Value  `json:"old_value"`
	New       Value  `json:"new_value"`
	// Critical: the engine rebuilds components to take the new value.
	Critical bool `json:"critical"`
	// Apply is ApplyHot or ApplyRebuild; "" where no schema was at hand.
	Apply string `json:"apply,omitempty"`
}

// String returns the change as people read it: "cache_ttl_seconds 60 -> 300".
func (c Change) String() string {
	s := fmt.Sprintf("%s %v -> %v", c.Parameter, c.Old, c.New)
	if c.Critical {
		s += " (critical)"
	}
	return s
}

// Diff lists what changes from old to p, sorted by name. Rules.Diff also knows how
// a change is applied.
func (p Parameters) Diff(old Parameters) []Change {
	names := append(old.Names(), p.Names()...)
	slices.Sort(names)
	var changes []Change
	for _, name := range slices.Compact(names) {
		if a, b := old.Get(name), p.Get(name); !a.Equal(b) {
			changes = append(changes, Change{Parameter: name, Old: a, New: b})
		}
	}
	return changes
}

// ParseValue returns the value of a parameter as a person gives it, or the violation if
// the parameter cannot be that. The violation has no position.
func (r *Rules) ParseValue(name, text string) (Value, *Violation) {
	p := r.Parameter(name)
	if p == nil {
		return Value{}, r.CheckValue(name, Value{})
	}
	v := Value{text}
	if p.Type == "string" {
		v = Text(text)
	}
	violation := p.check(v, quote(text))
	if violation != nil && !p.isSpelled(v) {
		p.suggestSpelling(text, violation)
	}
	return v, violation
}

// CheckValue returns the violation if the schema does not have the parameter, or if it
// cannot be v.
func (r *Rules) CheckValue(name string, v Value) *Violation {
	p := r.Parameter(name)
	switch {
	case p == nil:
		return &Violation{Path: oneLine(name), Rule: "known parameters only", Message: "no parameter is named " + quote(name), Hint: didYouMean(name, r.names)}
	case v.IsZero():
		return nil
	}
	return p.check(v, shown(v))
}
