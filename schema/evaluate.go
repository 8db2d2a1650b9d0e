package schema

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// evaluate lays the layers together, judges what they give alone, with each
// experiment, and with those this instance is in, and returns the last. What
// it returns is good only if nothing was reported.
func (l *loader) evaluate(layers []layer, env *configFile, instance string) *Configuration {
	plain, err := merge(layers)
	if err != nil {
		l.fault(err)
		return nil
	}
	l.missing(plain)
	l.rules(plain, "")
	if env == nil {
		return nil
	}
	effective, members := plain, []Membership(nil)
	var joined []layer
	var labels []string
	for _, e := range env.experiments {
		alone, err := merge(append(slices.Clone(layers), e.layer))
		l.fault(err)
		if err == nil {
			l.rules(alone, ", in the experiment "+quote(e.label))
		}
		member := e.counts && instance != Everywhere && InCohort(e.label, instance, e.percent)
		members = append(members, Membership{Name: e.label, Percent: e.percent, Member: member})
		if member {
			joined = append(joined, e.layer)
			labels = append(labels, quote(e.label))
			effective = alone
		}
	}
	if len(joined) > 1 {
		if effective, err = merge(append(slices.Clone(layers), joined...)); err != nil {
			l.fault(err)
			return nil
		}
		l.rules(effective, ", in the experiments "+strings.Join(labels, " and ")+" together, as on this instance")
	}
	if instance == Everywhere && l.total == 0 {
		l.together(layers, env.experiments)
	}
	if l.total > 0 {
		return nil
	}
	return l.configuration(effective, env.description, members)
}

// together judges the experiments in every combination that some instance may
// be in, so that a review hears what a part of the fleet would say. They are few:
// each sets a parameter, and no two the same.
func (l *loader) together(layers []layer, experiments []experiment) {
	var running []experiment
	for _, e := range experiments {
		if e.counts && e.percent > 0 && len(e.settings) > 0 {
			running = append(running, e)
		}
	}
	for _, set := range combinations(len(running)) {
		joined, labels := slices.Clone(layers), []string(nil)
		for _, i := range set {
			joined = append(joined, running[i].layer)
			labels = append(labels, quote(running[i].label))
		}
		both, err := merge(joined)
		l.fault(err)
		if err == nil {
			l.rules(both, ", in the experiments "+strings.Join(labels, " and ")+" together, as on some instances")
		}
	}
}

// combinations are the sets of two or more of n things.
func combinations(n int) (sets [][]int) {
	for mask := range 1 << n {
		var set []int
		for i := range n {
			if mask&(1<<i) != 0 {
				set = append(set, i)
			}
		}
		if len(set) > 1 {
			sets = append(sets, set)
		}
	}
	return sets
}

// configuration turns a valid effective set into typed Parameters.
func (l *loader) configuration(e *effective, description string, members []Membership) *Configuration {
	c := &Configuration{Parameters: l.judge.facts.defaults, Provenance: Provenance{}, Description: description, Experiments: members}
	commit := ""
	if l.doc.Source.Kind == "git" {
		commit = l.doc.Source.Revision
	}
	for _, name := range Names() {
		s, ok := e.set[name]
		if !ok { // cache_ttl_seconds while caching is off: the default stays
			c.Provenance[name] = Origin{Layer: layerSchema}
			continue
		}
		if err := c.Parameters.Set(name, e.values[name]); err != nil {
			l.fault(err)
		}
		c.Provenance[name] = Origin{Position: s.at, Layer: s.layer, Commit: commit}
	}
	return c
}

// missing reports the parameters that no file sets.
func (l *loader) missing(e *effective) {
	if l.incomplete {
		return
	}
	for _, name := range missing(e.values, e.unknown) {
		v := missingValue(l.judge.facts.info(name), "is not set in any file")
		v.Position, v.Path = l.baseParameters, keyParameters+"."+name
		v.Hint = fmt.Sprintf("add %s: %v, the default, below parameters: in %s", name, l.judge.facts.info(name).Default, BaseFile)
		l.add(v)
	}
}

// rules reports the rules between parameters that the set breaks; where is
// appended to the messages. What was reported of an earlier set, because both
// operands stand where they stood, is not reported again.
func (l *loader) rules(e *effective, where string) {
	if l.incomplete {
		return
	}
	broken, err := l.judge.broken(e.values, e.unknown)
	l.fault(err)
	for _, b := range broken {
		// The operands that are set, the one to blame first. A rule about an
		// absent operand is blamed on the other one.
		var set []string
		for _, name := range b.Operands {
			if _, ok := e.set[name]; ok {
				set = append(set, name)
			}
		}
		slices.SortStableFunc(set, func(a, b string) int { return cmp.Compare(e.set[b].rank, e.set[a].rank) })
		blamed := set[0]
		v := Violation{
			Position: e.set[blamed].at, Path: keyParameters + "." + blamed, Parameter: blamed,
			Value: fmt.Sprint(e.values[blamed]), Rule: b.Rule, Message: b.Message + where, Hint: b.Hint,
		}
		for _, name := range set[1:] {
			v.Related = append(v.Related, e.set[name].at)
		}
		key := fmt.Sprint(b.Rule, v.Position, v.Related)
		if !l.reported[key] {
			l.reported[key] = true
			l.add(v)
		}
	}
}
