package apply

import (
	"fmt"
	"slices"
	"strings"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// A record may have been written under another schema, and an engine may be of another
// version. Each may have parameters that today's schema lacks, or lack some. All
// comparisons of parameters are made here.

// bySchema is the layer of a value that no layer of the files declares.
const bySchema = "schema"

// rules are those of today's schema, with the last few results of check.
type rules struct {
	schema *schema.Rules
	broken map[schema.Digest][]schema.Violation
}

// label returns the environment label that the engine is to have.
func (r *rules) label() string { return r.schema.Schema().Label(r.schema.Environment()) }

// known returns the part of p that the schema of today has, with values of its
// types: a parameter that has another type now is another one. Nothing else is
// sent, compared or held.
func (r *rules) known(p schema.Parameters) schema.Parameters {
	return p.Select(func(name string) bool { return r.knows(name, p.Get(name)) })
}

// knows reports whether the schema of today has the parameter, with the type of v.
func (r *rules) knows(name string, v schema.Value) bool {
	p := r.schema.Parameter(name)
	if p == nil || v.IsZero() {
		return p != nil
	}
	_, isNumber := v.Float()
	_, isInt := v.Int()
	_, isText := v.Text()
	isBool := isNumber && (v.Equal(schema.Bool(true)) || v.Equal(schema.Bool(false)))
	switch p.Type {
	case "bool":
		return isBool
	case "int":
		return isInt
	case "number":
		return isNumber && !isBool
	}
	return isText
}

// valueIn returns the value of a parameter in p, which may be nil, as far as the
// schema of today knows it.
func (r *rules) valueIn(p *schema.Parameters, name string) (v schema.Value) {
	if p != nil {
		v = p.Get(name)
	}
	if !r.knows(name, v) {
		return schema.Value{}
	}
	return v
}

// has reports whether rec, which may be nil, has a value of a parameter.
func (r *rules) has(rec *record.Record, name string) bool {
	return rec != nil && !r.valueIn(&rec.Config, name).IsZero()
}

// same reports whether p and q are the same under the schema of today.
func (r *rules) same(p, q schema.Parameters) bool { return r.known(p).Equal(r.known(q)) }

// runsAll reports whether the engine was read to run all of p.
func (r *rules) runsAll(reading api.Reading, p schema.Parameters) bool {
	return reading.Parameters.Contains(r.known(p))
}

// runsKnown reports whether the engine was read to run p as far as it knows the
// parameters of p. One that knows none of them is another server.
func (r *rules) runsKnown(reading api.Reading, p schema.Parameters) bool {
	p = r.known(p)
	has := func(name string) bool { return !reading.Parameters.Get(name).IsZero() }
	unset := func(name string) bool { return slices.Contains(reading.Unset, name) }
	return reading.Parameters.Contains(p.Select(has)) && (p.Len() == 0 || slices.ContainsFunc(p.Names(), reading.Knows)) && !slices.ContainsFunc(p.Names(), unset)
}

// differences lists what the engine runs otherwise than p.
func (r *rules) differences(reading api.Reading, p schema.Parameters) []schema.Change {
	p = r.known(p)
	return r.schema.Diff(p, reading.Parameters.Select(func(name string) bool { return !p.Get(name).IsZero() }))
}

// managed returns the part of a reading that the agent manages. The rest is the
// server's own.
func (s *State) managed(reading api.Reading) schema.Parameters {
	return s.known(reading.Parameters).Select(s.sets)
}

// sets reports whether the newest record, the applied one or the source sets the
// parameter.
func (s *State) sets(name string) bool {
	return s.has(s.head, name) || s.has(s.applied, name) || s.declared.config != nil && !s.declared.config.Parameters.Get(name).IsZero()
}

// unknownToEngine lists the parameters of p that the engine does not report, or
// as another type: it is of another version. It is nil if there are none.
func (s *State) unknownToEngine(p schema.Parameters) (names []string) {
	if !s.engine.known || !s.engine.reachable {
		return nil
	}
	for _, name := range s.known(p).Names() {
		if !s.engine.reading.Knows(name) {
			names = append(names, name)
		}
	}
	return names
}

// mistypedText says that the engine reports another type of a parameter; "" if it
// does not.
func (s *State) mistypedText(name string) string {
	reported, ok := s.engine.reading.Mistyped[name]
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s: the schema says %s, the engine reports %s: correct the schema or the engine", name, s.opt.Rules.Parameter(name).Type, reported)
}

// unknownProblem says that the engine does not know some parameters.
func (s *State) unknownProblem(names []string) *problem.Error {
	for _, name := range names {
		if text := s.mistypedText(name); text != "" {
			return newProblem(text, "until then take "+name+" out of the files; nothing is sent meanwhile")
		}
	}
	list := strings.Join(names, ", ")
	remove := "take " + list + " out of the files"
	if slices.ContainsFunc(names, func(name string) bool { return s.opt.Rules.Parameter(name).Managed }) {
		remove = "run the agent with a schema (--schema) that does not require " + list
	}
	return newProblem("the engine does not know "+list, "upgrade the engine, or "+remove+"; nothing is sent until then")
}

func (r *rules) valid(p schema.Parameters) bool { return len(r.check(p)) == 0 }

// check lists the rules that p breaks, with the default of each parameter that it lacks.
// A value of another type than today's breaks one. A status is made several times a
// change, so the last few results are kept.
func (r *rules) check(p schema.Parameters) []schema.Violation {
	broken, known := r.broken[r.schema.Known(p).Digest()]
	if !known {
		broken = r.schema.CheckParameters(r.schema.Complete(p))
		r.noteBroken(p, broken)
	}
	return broken
}

func (r *rules) noteBroken(p schema.Parameters, broken []schema.Violation) {
	if len(r.broken) >= 64 {
		clear(r.broken)
	}
	r.broken[r.schema.Known(p).Digest()] = broken
}
