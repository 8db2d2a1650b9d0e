package apply

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"dtesn-agent/dtesn/api"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// A record may have been written under another schema, and an engine may be of
// another version: each may know parameters that the schema of today does not,
// or lack some. All comparisons of parameters are made here.

// bySchema is the layer of a value that no layer of the files declares.
const bySchema = "schema"

// known returns the part of p that the schema of today has, with values of its
// types: a parameter that has another type now is another one. Nothing else is
// sent, compared or held.
func (r *Reconciler) known(p schema.Parameters) schema.Parameters {
	return p.Select(func(name string) bool { return r.knows(name, p.Get(name)) })
}

// knows reports whether the schema of today has the parameter, with the type of v.
func (r *Reconciler) knows(name string, v schema.Value) bool {
	p := r.opt.Rules.Parameter(name)
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
func (r *Reconciler) valueIn(p *schema.Parameters, name string) (v schema.Value) {
	if p != nil {
		v = p.Get(name)
	}
	if !r.knows(name, v) {
		return schema.Value{}
	}
	return v
}

// same reports whether p and q are the same under the schema of today.
func (r *Reconciler) same(p, q schema.Parameters) bool { return r.known(p).Equal(r.known(q)) }

// runs reports whether the engine was read to run all of p.
func (r *Reconciler) runs(reading api.Reading, p schema.Parameters) bool {
	return reading.Parameters.Contains(r.known(p))
}

// agrees reports whether the engine was read to run p as far as it knows the
// parameters of p. One that knows none of them is another server.
func (r *Reconciler) agrees(reading api.Reading, p schema.Parameters) bool {
	p = r.known(p)
	has := func(name string) bool { return !reading.Parameters.Get(name).IsZero() }
	unset := func(name string) bool { return slices.Contains(reading.Unset, name) }
	return reading.Parameters.Contains(p.Select(has)) && (p.Len() == 0 || slices.ContainsFunc(p.Names(), reading.Knows)) && !slices.ContainsFunc(p.Names(), unset)
}

// differences lists what the engine runs otherwise than p.
func (r *Reconciler) differences(reading api.Reading, p schema.Parameters) []schema.Change {
	p = r.known(p)
	return r.opt.Rules.Diff(p, reading.Parameters.Select(func(name string) bool { return !p.Get(name).IsZero() }))
}

// managed returns the part of a reading that the agent manages. The rest is the
// server's own.
func (r *Reconciler) managed(reading api.Reading) schema.Parameters {
	return r.known(reading.Parameters).Select(r.sets)
}

// sets reports whether the newest record, the applied one or the source sets the
// parameter.
func (r *Reconciler) sets(name string) bool {
	for _, s := range []*record.Record{r.opt.Store.Head(), r.opt.Store.Applied()} {
		if s != nil && !r.valueIn(&s.Config, name).IsZero() {
			return true
		}
	}
	return r.seen.config != nil && !r.seen.config.Parameters.Get(name).IsZero()
}

// unknownToEngine lists the parameters of p that the engine does not report, or
// as another type: it is of another version. It is nil if there are none.
func (r *Reconciler) unknownToEngine(p schema.Parameters) (names []string) {
	if !r.engine.known || !r.engine.reachable {
		return nil
	}
	for _, name := range r.known(p).Names() {
		if !r.engine.reading.Knows(name) {
			names = append(names, name)
		}
	}
	return names
}

// mistypedText says that the engine reports another type of a parameter; "" if it
// does not.
func (r *Reconciler) mistypedText(name string) string {
	reported, ok := r.engine.reading.Mistyped[name]
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s: the schema says %s, the engine reports %s: correct the schema or the engine", name, r.opt.Rules.Parameter(name).Type, reported)
}

// unknownText says that the engine does not know some parameters, and what to do.
func (r *Reconciler) unknownText(names []string) (reason, hint string) {
	for _, name := range names {
		if text := r.mistypedText(name); text != "" {
			return text, "until then take " + name + " out of the files; nothing is sent meanwhile"
		}
	}
	list := strings.Join(names, ", ")
	remove := "take " + list + " out of the files"
	if slices.ContainsFunc(names, func(name string) bool { return r.opt.Rules.Parameter(name).Managed }) {
		remove = "run the agent with a schema (--schema) that does not require " + list
	}
	return "the engine does not know " + list, "upgrade the engine, or " + remove + "; nothing is sent until then"
}

// complete returns what a record means as the target of a rollback: with a value
// for each parameter that is managed now and that the record does not have. That
// is the schema's default, or else what the engine ran before the parameter was
// set. What was never applied is left out for an engine that does not know the
// parameter.
func (r *Reconciler) complete(ctx context.Context, s *record.Record) schema.Parameters {
	p := r.opt.Rules.Complete(r.known(s.Config))
	for _, now := range []*record.Record{r.opt.Store.Head(), r.opt.Store.Applied()} {
		if now == nil {
			continue
		}
		for _, name := range r.known(now.Config).Names() {
			if p.Get(name).IsZero() {
				value := r.opt.Rules.Parameter(name).Default
				if value.IsZero() {
					value = r.valueBefore(ctx, name)
				}
				p = p.With(name, value)
			}
		}
	}
	applied := r.opt.Store.Applied()
	for _, name := range p.Names() {
		unknown := r.engine.known && !r.engine.reading.Knows(name)
		if unknown && r.valueIn(&s.Config, name).IsZero() && (applied == nil || r.valueIn(&applied.Config, name).IsZero()) {
			p = p.With(name, schema.Value{})
		}
	}
	return p
}

// valueBefore returns what the engine ran before the newest records began to set a
// parameter, the zero Value if that is not on record. A record that was not sent
// may not know it: see completeBefore.
func (r *Reconciler) valueBefore(ctx context.Context, name string) (v schema.Value) {
	for rec, err := range r.history(ctx) {
		if err != nil || r.valueIn(&rec.Config, name).IsZero() {
			break
		}
		if before := r.valueIn(rec.Before, name); !before.IsZero() || rec.Outcome != record.Superseded {
			v = before
		}
	}
	return v
}

// restored returns the settlement s with the earlier value of each parameter that
// only candidates on top of what is applied have, where the engine was read to run
// the value of such a candidate.
func (r *Reconciler) restored(ctx context.Context, s *record.Record, reading api.Reading) *record.Record {
	lacks := func(name string) bool {
		return r.valueIn(&s.Config, name).IsZero() && !reading.Parameters.Get(name).IsZero()
	}
	if !slices.ContainsFunc(r.opt.Rules.Names(), lacks) {
		return s
	}
	back := *s
	candidates, _ := r.candidatesBelow(ctx)
	for _, name := range r.opt.Rules.Names() {
		if !lacks(name) {
			continue
		}
		var before schema.Value
		taken := false
		for _, c := range slices.Backward(candidates) { // the oldest one that was sent knows what ran before all of them
			v := r.valueIn(&c.Config, name)
			if v.IsZero() {
				continue
			}
			if before.IsZero() {
				before = r.valueIn(c.Before, name)
			}
			taken = taken || v.Equal(reading.Parameters.Get(name))
		}
		if before.IsZero() {
			before = r.opt.Rules.Parameter(name).Default
		}
		if taken {
			back.Config = back.Config.With(name, before)
		}
	}
	return &back
}
