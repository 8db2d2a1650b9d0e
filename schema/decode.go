package schema

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The keys of configuration files.
const (
	keyEnvironment = "environment"
	keyDescription = "description"
	keyExtends     = "extends"
	keyParameters  = "parameters"
	keyExperiments = "experiments"
	keyName        = "name"
	keyPercent     = "percent"
)

// The keys that each kind of file, and an experiment, may have.
var (
	baseKeys        = []string{keyParameters}
	templateKeys    = []string{keyDescription, keyParameters}
	environmentKeys = []string{keyEnvironment, keyDescription, keyExtends, keyParameters, keyExperiments}
	experimentKeys  = []string{keyName, keyPercent, keyParameters}
)

// Bounds of an environment's file.
const (
	maxExtends     = 32
	maxExperiments = 64
	maxLabel       = 64 // bytes of the name of an experiment
)

const exampleLabel = "bigger-reservoir"

// A layer is what one file, or one experiment, sets.
type layer struct {
	name string // as Origin.Layer
	set  map[string]setting
}

// A setting is one parameter of a layer.
type setting struct {
	value Value // zero if the file has something that the parameter cannot be
	at    Position
	layer string
	rank  int // of the layer, from 1 for the lowest; 0 for none
}

// A configFile is what was read from one file.
type configFile struct {
	layer
	description string
	extends     []template
	experiments []experiment
}

// A template is a well-formed item of extends.
type template struct {
	name string
	at   Position
	path string
}

// An experiment gives part of the fleet other values.
type experiment struct {
	layer
	label   string
	at      Position // of the label
	percent int      // 0 if the file has something else
}

// A decoder reads one file for a load.
type decoder struct {
	*loader
	file string
	// bad are the nodes that refuse reported: their values are not looked at.
	bad map[*yaml.Node]bool
}

func (d *decoder) at(n *yaml.Node) Position {
	return Position{File: d.file, Line: n.Line, Column: n.Column}
}

// report adds a violation at a node and returns it.
func (d *decoder) report(n *yaml.Node, path, rule, message, hint string) *Violation {
	v := d.add(d.at(n), rule, message, hint)
	v.Path, v.Value = path, oneLine(n.Value)
	return v
}

// decode reads the file's root; known are the keys that its kind may have.
func (d *decoder) decode(root *yaml.Node, layerName string, known []string) *configFile {
	f := &configFile{layer: layer{layerName, map[string]setting{}}}
	before, at := d.found.Total, Position{File: d.file}
	d.refuse(root, "", 1)
	fields := d.mapping(root, "", known)
	description, _ := d.text(fields[keyDescription].value, keyDescription, "Deeper tree for the autumn catalogue")
	f.description = strings.TrimSpace(description)
	if field, ok := fields[keyParameters]; ok {
		at = d.at(field.key)
		d.parameters(field.value, keyParameters, &f.layer)
	} else if layerName != layerEnvironment && d.found.Total == before {
		d.incomplete = true
		d.add(at, "base.yaml and templates have parameters", "the file has no parameters",
			"add parameters: and the values below it, or parameters: {} to set nothing here").Path = keyParameters
	}
	if layerName == layerBase {
		d.baseParameters = at
	}
	d.extends(fields[keyExtends].value, f)
	d.experiments(fields[keyExperiments].value, f)
	if layerName == layerEnvironment {
		d.checkEnvironment(fields)
	}
	return f
}

// checkEnvironment reports a file that does not say that it is the environment's.
func (d *decoder) checkEnvironment(fields map[string]field) {
	field, ok := fields[keyEnvironment]
	if !ok && !d.incomplete {
		d.add(Position{File: d.file}, "an environment's file names its environment", "the file has no environment",
			"add environment: "+string(d.environment)).Path = keyEnvironment
	}
	if name, ok := d.text(field.value, keyEnvironment, string(d.environment)); ok && name != string(d.environment) {
		d.report(field.value, keyEnvironment, "environment equals the file's name and the agent's --environment",
			fmt.Sprintf("environment is %s, and this is the file of %s", quote(name), d.environment),
			fmt.Sprintf("write environment: %s, or rename the file", d.environment))
	}
}

// is reports whether a node can be read as what rule names, which is reported
// otherwise. A node that is nil or bad was reported.
func (d *decoder) is(n *yaml.Node, kind yaml.Kind, path, rule, hint string) bool {
	if n == nil || n.Kind == kind && !d.bad[n] {
		return n != nil
	}
	d.incomplete = true
	if !d.bad[n] {
		d.report(n, path, rule, fmt.Sprintf("%s is %s, not %s", subject(path), kindOf(n), rule), hint)
	}
	return false
}

// A field is a known key of a mapping. The value is nil if the key is
// misspelled, which was reported.
type field struct{ key, value *yaml.Node }

// mapping returns the known keys of a mapping and reports the other ones.
func (d *decoder) mapping(n *yaml.Node, path string, known []string) map[string]field {
	hint := "write lines of key: value; the keys are " + strings.Join(known, ", ")
	if n != nil && strings.Contains(n.Value, ":") {
		hint = "write lines of key: value, with a space behind the colon"
	}
	if !d.is(n, yaml.MappingNode, path, "a mapping", hint) {
		return nil
	}
	fields := map[string]field{}
	for pair := range slices.Chunk(n.Content, 2) {
		switch key, value := pair[0], pair[1]; {
		case d.bad[key]:
			d.incomplete = d.incomplete || key.Tag == mergeTag
		case slices.Contains(known, key.Value):
			fields[key.Value] = field{key, value}
		default:
			d.unknownKey(key, path, known)
			if meant, ok := Suggest(key.Value, known); ok && fields[meant].value == nil {
				fields[meant] = field{key: key}
				d.incomplete = d.incomplete || path == ""
			}
		}
	}
	return fields
}

func (d *decoder) unknownKey(key *yaml.Node, path string, known []string) {
	hint := didYouMean(key.Value, known)
	below := strings.TrimPrefix(key.Value, keyParameters+".")
	switch {
	case strings.HasSuffix(path, keyParameters):
		hint = suggestion(key.Value, known, hint+"; others need --schema FILE.cue")
	case path != "":
	case d.Has(key.Value):
		d.incomplete = true
		hint = "move it under parameters:"
	case slices.Contains(environmentKeys, key.Value):
		hint = fmt.Sprintf("%s belongs into an environment's file; the keys here are %s", key.Value, strings.Join(known, ", "))
	case d.Has(below):
		hint = fmt.Sprintf("write %s: on a line of its own, and %s: indented below it", keyParameters, below)
	}
	d.report(key, join(path, key.Value), "known keys only", "unknown key "+quote(key.Value), hint)
}

// text reads a scalar as text, whatever it looks like.
func (d *decoder) text(n *yaml.Node, path, example string) (string, bool) {
	key := path[strings.LastIndexByte(path, '.')+1:]
	if !d.is(n, yaml.ScalarNode, path, "text", fmt.Sprintf("write %s: %s", key, example)) {
		return "", false
	}
	return n.Value, true
}

// parameters reads a mapping of parameters into l. A misspelled parameter counts
// as set.
func (d *decoder) parameters(n *yaml.Node, path string, l *layer) map[string]field {
	fields := d.mapping(n, path, d.names)
	for name, field := range fields {
		at := d.at(cmp.Or(field.value, field.key))
		l.set[name] = setting{value: d.value(field.value, path, d.Parameter(name)), at: at, layer: l.name}
	}
	return fields
}

// value reads the value of a parameter; it is zero, and reported, if the
// parameter cannot be that.
func (d *decoder) value(n *yaml.Node, path string, p *Parameter) Value {
	if n == nil || d.bad[n] {
		return Value{}
	}
	l := literal{shown: kindOf(n)}
	if n.Kind == yaml.ScalarNode {
		l = literal{n.Value, n.Style == 0, n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) == 0, true, l.shown}
	}
	v, violation := p.parse(l)
	if violation != nil {
		violation.Position, violation.Path = d.at(n), path+"."+p.Name
		d.found.add(*violation)
	}
	return v
}

// items returns at most limit items of a list.
func (d *decoder) items(n *yaml.Node, path string, limit int, example string) []*yaml.Node {
	if !d.is(n, yaml.SequenceNode, path, "a list", fmt.Sprintf("write %s: %s", path, example)) {
		return nil
	}
	if excess := len(n.Content) - limit; excess > 0 {
		d.report(n.Content[limit], path, fmt.Sprintf("at most %d entries", limit),
			fmt.Sprintf("%s has %d entries", path, len(n.Content)), fmt.Sprintf("remove %d of them", excess))
		d.incomplete = true
		return n.Content[:limit]
	}
	return n.Content
}

func (d *decoder) extends(n *yaml.Node, f *configFile) {
	for i, item := range d.items(n, keyExtends, maxExtends, "[high-throughput]") {
		path := index(keyExtends, i)
		first := slices.IndexFunc(f.extends, func(t template) bool { return t.name == item.Value })
		switch {
		case d.bad[item]:
			d.incomplete = true
		case item.Kind != yaml.ScalarNode || !templateName.MatchString(item.Value):
			d.incomplete = true
			hint := "write the file's name without templates/ and .yaml, such as high-throughput"
			if name := strings.TrimSuffix(strings.TrimPrefix(item.Value, templatePrefix), fileSuffix); templateName.MatchString(name) {
				hint = "write " + name
			}
			d.report(item, path, "the name of a file under templates/, at most 64 of a-z 0-9 - _",
				kindOf(item)+" is not the name of a template", hint)
		case first >= 0:
			d.report(item, path, "each template once", item.Value+" is extended twice",
				"remove one of them; a later template overrides an earlier one").Related = []Position{f.extends[first].at}
		default:
			f.extends = append(f.extends, template{item.Value, d.at(item), path})
		}
	}
}

func (d *decoder) experiments(n *yaml.Node, f *configFile) {
	p := d.Rules.parameters[max(0, slices.IndexFunc(d.Rules.parameters, func(p Parameter) bool { return p.Required }))]
	examples := []string{exampleLabel, "10", fmt.Sprintf("{%s: %v}", p.Name, p.Default)} // of experimentKeys
	example := fmt.Sprintf("[{name: %s, percent: %s, parameters: %s}]", examples[0], examples[1], examples[2])
	for i, item := range d.items(n, keyExperiments, maxExperiments, example) {
		path := index(keyExperiments, i)
		fields := d.mapping(item, path, experimentKeys)
		if fields == nil {
			continue
		}
		for i, key := range experimentKeys {
			if _, ok := fields[key]; !ok {
				d.report(item, path, "an experiment has a name, a percent and parameters", path+" has no "+key,
					fmt.Sprintf("add %s: %s", key, examples[i]))
			}
		}
		e := experiment{layer: layer{set: map[string]setting{}}}
		d.experimentName(fields[keyName].value, join(path, keyName), &e, f.experiments)
		e.percent, _ = d.value(fields[keyPercent].value, path, &d.percent).Int()
		d.experimentParameters(fields[keyParameters].value, join(path, keyParameters), &e, f.experiments)
		f.experiments = append(f.experiments, e)
	}
}

// experimentName reads the name of e, which no experiment before may have.
func (d *decoder) experimentName(n *yaml.Node, path string, e *experiment, before []experiment) {
	label, ok := d.text(n, path, exampleLabel)
	if !ok {
		return
	}
	e.label, e.name, e.at = label, layerExperiment+label, d.at(n)
	first := slices.IndexFunc(before, func(e experiment) bool { return e.label == label })
	switch {
	case label == "" || len(label) > maxLabel || strings.TrimSpace(label) != label || escape(label) != label:
		d.report(n, path, fmt.Sprintf("1 to %d bytes of printable text", maxLabel),
			quoted(label)+" cannot name an experiment", "use a short name such as "+exampleLabel)
	case first >= 0:
		at := before[first].at
		d.report(n, path, "each experiment has a name of its own", "two experiments are named "+quote(label),
			fmt.Sprintf("rename one of them; the first is on line %d", at.Line)).Related = []Position{at}
	}
}

// experimentParameters reads what e sets, which no experiment before may set.
func (d *decoder) experimentParameters(n *yaml.Node, path string, e *experiment, before []experiment) {
	fields := d.parameters(n, path, &e.layer)
	if n != nil && n.Kind == yaml.MappingNode && len(n.Content) == 0 {
		d.report(n, path, "an experiment sets a parameter", "the experiment sets nothing",
			"give it the parameters it is about, or remove it")
	}
	for name, field := range fields {
		i := slices.IndexFunc(before, func(e experiment) bool { _, ok := e.set[name]; return ok })
		if i < 0 || field.value == nil {
			continue
		}
		v := d.report(field.key, join(path, name), "a parameter is set by one experiment",
			fmt.Sprintf("%s is set by the experiment %s already", name, quote(before[i].label)),
			"an instance may be in both: remove it from one of them")
		v.Parameter, v.Related = name, []Position{before[i].set[name].at}
	}
}
