package schema

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// InCohort reports whether an instance is in the cohort of an experiment: the
// first 8 bytes, big-endian, of SHA-256(name + NUL + instance), modulo 10000,
// are below percent times 100. A larger percent keeps the members it had.
func InCohort(experiment, instance string, percent int) bool {
	const slots, perPercent = 10_000, 100
	sum := sha256.Sum256([]byte(experiment + "\x00" + instance))
	return int(binary.BigEndian.Uint64(sum[:8])%slots) < percent*perPercent
}

// What hints show.
const (
	exampleName       = "bigger-reservoir"
	exampleParameters = "{" + ESNReservoirSize + ": 4096}"
)

// maxLabel bounds the name of an experiment, in bytes.
const maxLabel = 64

// experiments reads the list of experiments into f.
func (w *fileWalker) experiments(n *yaml.Node, f *configFile) {
	items, _ := w.list(n, keyExperiments, maxExperiments, "[{"+keyName+": "+exampleName+", "+keyPercent+": 10, "+keyParameters+": "+exampleParameters+"}]")
	named := map[string]Position{}
	set := map[string]*experiment{}
	for i, item := range items {
		path := index(keyExperiments, i)
		pairs, ok := w.mapping(item, path, []string{keyName, keyPercent, keyParameters})
		if !ok {
			continue
		}
		e := &experiment{layer: layer{settings: map[string]setting{}}, counts: true}
		w.experimentName(item, pairs, path, e, named)
		w.experimentPercent(item, pairs, path, e)
		e.name = "experiment:" + e.label
		w.experimentParameters(item, pairs, path, e, set)
		f.experiments = append(f.experiments, *e)
	}
}

func (w *fileWalker) experimentName(item *yaml.Node, pairs map[string]pair, path string, e *experiment, named map[string]Position) {
	p, ok := pairs[keyName]
	if !ok {
		e.counts = false
		w.lacks(item, path, keyName, exampleName)
		return
	}
	path = join(path, keyName)
	if e.label, ok = w.text(p.value, path, exampleName); !ok {
		e.counts = false
		return
	}
	if e.label == "" || len(e.label) > maxLabel || strings.TrimSpace(e.label) != e.label ||
		strings.ContainsFunc(e.label, func(r rune) bool { return !strconv.IsPrint(r) }) {
		e.counts = false
		w.say(p.value, path, Violation{
			Value: oneLine(e.label), Rule: fmt.Sprintf("1 to %d bytes of printable text", maxLabel),
			Message: quoted(e.label) + " cannot name an experiment",
			Hint:    "use a short name such as " + exampleName,
		})
		return
	}
	if first, taken := named[e.label]; taken {
		e.counts = false
		w.say(p.value, path, Violation{
			Value: oneLine(e.label), Rule: "each experiment has a name of its own",
			Message: fmt.Sprintf("two experiments are named %s", quote(e.label)),
			Hint:    fmt.Sprintf("rename one of them; the first is on line %d", first.Line),
			Related: []Position{first},
		})
		return
	}
	named[e.label] = w.at(p.value)
}

func (w *fileWalker) experimentPercent(item *yaml.Node, pairs map[string]pair, path string, e *experiment) {
	p, ok := pairs[keyPercent]
	if !ok {
		e.counts = false
		w.lacks(item, path, keyPercent, "10")
		return
	}
	e.percent, ok = w.value(p.value, path, &w.judge.facts.percent).(int)
	e.counts = e.counts && ok
}

// experimentParameters reads what an experiment sets. What another one sets
// already is reported, and set holds who does.
func (w *fileWalker) experimentParameters(item *yaml.Node, pairs map[string]pair, path string, e *experiment, set map[string]*experiment) {
	p, ok := pairs[keyParameters]
	if !ok {
		w.lacks(item, path, keyParameters, exampleParameters)
		return
	}
	path = join(path, keyParameters)
	w.parameters(p.value, path, &e.layer)
	if p.value.Kind == yaml.MappingNode && len(p.value.Content) == 0 {
		w.say(p.value, path, Violation{
			Rule:    "an experiment sets a parameter",
			Message: "the experiment sets nothing",
			Hint:    "give it the parameters it is about, or remove it",
		})
	}
	for i := 0; i+1 < len(p.value.Content); i += 2 {
		key := p.value.Content[i]
		if w.bad[key] || !slices.Contains(Names(), key.Value) {
			continue
		}
		first, taken := set[key.Value]
		if !taken {
			set[key.Value] = e
			continue
		}
		w.say(key, join(path, key.Value), Violation{
			Parameter: key.Value, Rule: "a parameter is set by one experiment",
			Message: fmt.Sprintf("%s is set by the experiment %s already", key.Value, quote(first.label)),
			Hint:    "an instance may be in both: remove it from one of them",
			Related: []Position{first.settings[key.Value].at},
		})
	}
}

// lacks reports a key that an item must have.
func (w *fileWalker) lacks(item *yaml.Node, path, key, example string) {
	if slices.ContainsFunc(item.Content, func(n *yaml.Node) bool {
		meant, ok := Suggest(n.Value, []string{key})
		return ok && meant == key && n.Value != key
	}) {
		return // misspelled, which is reported
	}
	w.say(item, path, Violation{
		Rule:    "an experiment has a name, a percent and parameters",
		Message: fmt.Sprintf("%s has no %s", path, key),
		Hint:    fmt.Sprintf("add %s: %s", key, example),
	})
}
