package schema

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// The names of the layers that stand in files, as in Origin.Layer.
const (
	layerBase        = "base"
	layerTemplate    = "template:"
	layerEnvironment = "environment"
	layerExperiment  = "experiment:"
	layerSchema      = "schema"
)

// An Origin is the place that set a parameter.
type Origin struct {
	Position
	// Layer is "base", "template:NAME", "environment", "experiment:NAME", or
	// "schema" for the default of a managed parameter that no layer sets.
	Layer string `json:"layer"`
	// Commit is the source commit, for a git source.
	Commit string `json:"commit,omitempty"`
}

// Provenance says for each parameter what set it.
type Provenance map[string]Origin

// A Membership says whether this instance is in an experiment's cohort.
type Membership struct {
	Name    string `json:"name"`
	Percent int    `json:"percent"`
	Member  bool   `json:"member"`
}

// A Configuration is what valid files give one instance.
type Configuration struct {
	Parameters  Parameters
	Provenance  Provenance
	Description string
	Experiments []Membership

	experiments []experiment // what they set
}

// An Input is the files of one environment, as a source has them.
type Input struct {
	Files    []File // base.yaml, the environment's file and the templates that exist
	Commit   string // "" for files that no commit names
	Instance string // decides which experiments apply
	// Templates are the names of all templates that there are, for hints; nil if unknown.
	Templates []string
}

// Load turns files into the Configuration of one instance, or into all the
// Violations they have; exactly one is not nil. It is safe for concurrent use.
func (r *Rules) Load(in Input) (*Configuration, *Violations) { return r.load(in, false) }

// Review is Load for all instances at once: it checks every combination of
// experiments. The Configuration is that of an instance in none.
func (r *Rules) Review(in Input) (*Configuration, *Violations) { return r.load(in, true) }

func (r *Rules) load(in Input, review bool) (c *Configuration, v *Violations) {
	l := &loader{Rules: r, in: in, review: review}
	defer func() {
		if p := recover(); p != nil { // in CUE: a document must not stop the program
			l.report(Position{File: r.environment.File()}, "the configuration can be evaluated", "the values could not be checked: "+oneLine(fmt.Sprint(p)),
				"this is a fault of the agent; please report it with the configuration")
		}
		if v = l.cut(); v != nil {
			c = nil
			v.addText(in.Files)
		}
	}()
	return l.resolve(), nil
}

// CheckTemplate checks a template that nothing extends, which Load never reads: its
// YAML, its keys and the range of each value. It returns nil if nothing is wrong.
func (r *Rules) CheckTemplate(template File) *Violations {
	l := &loader{Rules: r, in: Input{Files: []File{template}}}
	l.file(template.Path, layerTemplate, templateKeys, node{})
	v := l.cut()
	v.addText(l.in.Files)
	return v
}

// A loader holds one load and what is wrong with it.
type loader struct {
	*Rules
	Violations
	in             Input
	review         bool
	baseParameters Position // where base.yaml has its parameters; Check has no files
}

func (l *loader) checkSize() {
	size := 0
	for _, f := range l.in.Files {
		size += len(f.Bytes)
	}
	if size > MaxDocumentBytes || len(l.in.Files) > MaxDocumentFiles {
		l.report(Position{File: l.environment.File()}, fmt.Sprintf("at most %d KiB and %d files together", MaxDocumentBytes>>10, MaxDocumentFiles),
			fmt.Sprintf("the configuration is too large: %d KiB in %d files", (size+1023)>>10, len(l.in.Files)),
			"remove templates from extends, or what does not belong into the files")
	}
}

// file reads one file; from is the entry of extends that asks for it.
func (l *loader) file(path, layerName string, known []string, from node) (f configFile) {
	const maxRefusal = 200 // bytes
	i := slices.IndexFunc(l.in.Files, func(f File) bool { return f.Path == path })
	if i < 0 {
		l.missingFile(path, from)
	} else if why, hint, _ := strings.Cut(l.in.Files[i].Refused, "; "); why != "" {
		v := l.report(Position{File: path}, "a readable file inside the configuration directory",
			"the file "+shorten(why, maxRefusal, escape), shorten(cmp.Or(hint, "replace it by a regular file"), maxRefusal, escape))
		if from.Node != nil {
			v.Related = []Position{from.at()}
		}
	} else {
		return l.decode(l.in.Files[i], layerName, known)
	}
	l.incomplete = true
	return f
}

func (l *loader) missingFile(path string, from node) {
	if from.Node != nil {
		const most = 12 // templates that are listed
		extended := func(name string) bool {
			return slices.ContainsFunc(l.in.Files, func(f File) bool { return f.Path == templateFile(name) })
		}
		others := slices.DeleteFunc(slices.Clone(l.in.Templates), extended)
		hint := suggestion(from.Value, others, "correct the name, or create the file")
		if all := l.in.Templates; len(all) > 0 {
			hint += "; the templates are " + strings.Join(all[:min(len(all), most)], ", ")
			if len(all) > most {
				hint += fmt.Sprintf(" and %d more", len(all)-most)
			}
		}
		v := l.reportNode(from, "a template that is extended exists", path+" does not exist", hint)
		if meant, ok := certain(from.Value, others); ok {
			v.fix(from, meant)
		}
		return
	}
	hint := "create it with parameters: and the values that all environments share"
	if path != BaseFile {
		hint = "create it with environment: " + string(l.environment) +
			" and what differs from base.yaml, or point the agent at another directory or environment"
	}
	l.report(Position{File: path}, "base.yaml and the environment's file exist", "the file does not exist", hint)
}

// resolve reads the layers, checks what they give alone, with each experiment, and
// with those this instance is in. What it returns is good if nothing was reported.
func (l *loader) resolve() *Configuration {
	if l.checkSize(); l.Total > 0 {
		return nil
	}
	layers := []layer{l.file(BaseFile, layerBase, baseKeys, node{}).layer}
	env := l.file(l.environment.File(), layerEnvironment, environmentKeys, node{})
	for _, t := range env.extends {
		layers = append(layers, l.file(templateFile(t.Value), layerTemplate+t.Value, templateKeys, t).layer)
	}
	layers = append(layers, env.layer)
	l.checkMissing(overlay(layers))
	l.checkSet(layers, "")
	c := &Configuration{Provenance: Provenance{}, Description: env.description, experiments: env.experiments}
	var joined []experiment
	for _, e := range env.experiments {
		l.checkSet(layers, "", e)
		member := !l.review && InCohort(e.label, l.in.Instance, e.percent)
		c.Experiments = append(c.Experiments, Membership{Name: e.label, Percent: e.percent, Member: member})
		if member {
			joined = append(joined, e)
		}
	}
	if len(joined) > 1 {
		l.checkSet(layers, "this instance", joined...)
	}
	if l.review && l.Total == 0 {
		for _, set := range l.combinations(env.experiments) {
			l.checkSet(layers, "some instances", set...)
		}
	}
	set := overlay(layers, joined...)
	c.Parameters = l.Complete(set.parameters())
	for name := range c.Parameters.values {
		c.Provenance[name] = Origin{Layer: layerSchema}
		if s, ok := set[name]; ok {
			c.Provenance[name] = Origin{s.at, s.layer, l.in.Commit}
		}
	}
	return c
}

// checkSet checks the rules on the layers with some experiments; where names who
// is in several.
func (l *loader) checkSet(layers []layer, where string, experiments ...experiment) {
	var labels []string
	for _, e := range experiments {
		labels = append(labels, quote(e.label))
	}
	in := ""
	if len(labels) == 1 {
		in = ", in the experiment " + labels[0]
	} else if len(labels) > 1 {
		in = ", in the experiments " + strings.Join(labels, " and ") + " together, as on " + where
	}
	l.checkRules(overlay(layers, experiments...), in)
}

// combinations lists the sets of experiments that may break a rule together on some
// instance: for each rule, those that set an operand of it. They are few, as no two
// experiments set the same parameter.
func (r *Rules) combinations(experiments []experiment) (all [][]experiment) {
	for _, rel := range r.relations {
		sets := [][]experiment{nil}
		for _, e := range experiments {
			if e.percent > 0 && slices.ContainsFunc(rel.operands, e.sets) {
				for _, set := range sets {
					sets = append(sets, append(slices.Clip(set), e))
				}
			}
		}
		all = append(all, slices.DeleteFunc(sets, func(set []experiment) bool { return len(set) < 2 })...)
	}
	return all
}

// checkMissing reports the parameters that no layer sets and some layer must. A
// managed one need not be set, unless a rule about it cannot be evaluated because
// a required one is absent too.
func (l *loader) checkMissing(set layer) {
	needed := map[string]bool{}
	for _, rel := range l.relations {
		if slices.ContainsFunc(rel.operands, func(o string) bool { return !set.sets(o) && l.Parameter(o).Required }) {
			for _, operand := range rel.operands {
				needed[operand] = l.Parameter(operand).Managed
			}
		}
	}
	for _, p := range l.parameters {
		if l.incomplete || set.sets(p.Name) || !p.Required && !needed[p.Name] {
			continue
		}
		v := l.report(l.baseParameters, "every required parameter is set", p.Name+" is missing",
			fmt.Sprintf("set it, for instance to the default, %v", p.Default))
		v.Path, v.Parameter = p.Name, p.Name
		if l.baseParameters.File != "" {
			v.Path, v.Message = keyParameters+"."+p.Name, p.Name+" is not set in any file"
			v.Hint = fmt.Sprintf("add %s: %v, the default, below parameters: in %s", p.Name, p.Default, BaseFile)
		}
	}
}

// checkRules reports the rules that the set breaks, which messages place in where.
func (l *loader) checkRules(set layer, where string) {
	if l.incomplete {
		return
	}
	p := set.parameters()
	l.checkValues(p, set, where)
	if managed := l.Complete(p); l.Total == 0 && managed.Len() > p.Len() {
		l.checkValues(managed, set, where) // the defaults that the server will be told
	}
}

// checkValues reports the rules that p, with what is set, breaks: not those with an
// operand that is invalid, that need a value that is absent, or that were reported
// of an earlier set with the same operands.
func (l *loader) checkValues(p Parameters, set layer, where string) {
	l.schema.mu.Lock()
	defer l.schema.mu.Unlock()
	rules := l.evaluate(p)
	for _, rel := range l.relations {
		rule := lookup(rules, rel.name)
		holds, err := lookup(rule, "holds").Bool()
		if holds || err != nil && rel.lacks(p) || slices.ContainsFunc(rel.operands, set.setsInvalid) {
			continue
		}
		message, hint := cmp.Or(textOf(rule, "message"), rel.rule+" does not hold"), textOf(rule, "hint")
		if err != nil {
			message, hint = "the rule cannot be evaluated: "+cueMessage(err), "correct the rule "+rel.name+" in the schema"
		}
		// The operand of the highest layer is to blame, the first one in doubt. One
		// that is absent has no rank.
		operands := slices.Clone(rel.operands)
		slices.SortStableFunc(operands, func(a, b string) int { return cmp.Compare(set[b].rank, set[a].rank) })
		blamed := operands[0]
		v := Violation{Position: set[blamed].at, Rule: rel.rule, Message: message + where, Hint: hint}
		v.Path, v.Parameter, v.Value = blamed, blamed, set[blamed].value.String()
		if l.baseParameters.File != "" {
			v.File, v.Path = cmp.Or(v.File, l.environment.File()), keyParameters+"."+blamed
		}
		for _, name := range operands[1:] {
			if set[name].rank > 0 {
				v.Related = append(v.Related, set[name].at)
			}
		}
		isReported := func(o Violation) bool {
			return o.Rule == v.Rule && o.Position == v.Position && slices.Equal(o.Related, v.Related)
		}
		if !slices.ContainsFunc(l.List, isReported) {
			l.add(v)
		}
	}
}

// InCohort reports whether an instance is in the cohort of an experiment: the
// first 8 bytes, big-endian, of SHA-256(name + NUL + instance), modulo 10000,
// are below percent times 100. A larger percent keeps the members it had.
func InCohort(experiment, instance string, percent int) bool {
	const slots, perPercent = 10_000, 100
	sum := sha256.Sum256([]byte(experiment + "\x00" + instance))
	return int(binary.BigEndian.Uint64(sum[:8])%slots) < percent*perPercent
}

// Inherited returns what the layers below the environment's file give, as far as it is
// valid.
func (r *Rules) Inherited(in Input) Parameters {
	l := &loader{Rules: r, in: in}
	layers := []layer{l.file(BaseFile, layerBase, baseKeys, node{}).layer}
	for _, t := range l.file(r.environment.File(), layerEnvironment, environmentKeys, node{}).extends {
		layers = append(layers, l.file(templateFile(t.Value), layerTemplate+t.Value, templateKeys, t).layer)
	}
	return overlay(layers).parameters()
}

// LoadLayer returns the parameters of one file, which is read as a template is, whatever
// its path.
func (r *Rules) LoadLayer(file File) (Parameters, *Violations) {
	l := &loader{Rules: r, in: Input{Files: []File{file}}}
	set := l.file(file.Path, layerTemplate, templateKeys, node{})
	v := l.cut()
	v.addText(l.in.Files)
	return set.parameters(), v
}
