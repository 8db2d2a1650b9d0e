package schema

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The names of the files of a configuration directory.
const (
	// BaseFile holds the shared defaults.
	BaseFile       = "base.yaml"
	templatePrefix = "templates/"
	fileSuffix     = ".yaml"
)

// Limits of a configuration.
const (
	// MaxFileBytes is the most that one file may hold.
	MaxFileBytes = 64 << 10
	// MaxDocumentBytes and MaxDocumentFiles bound all files together.
	MaxDocumentBytes = 256 << 10
	MaxDocumentFiles = 64
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

func templateFile(name string) string { return templatePrefix + name + fileSuffix }

// A template's name has no slash and no dot: it cannot leave templates/.
var templateName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// ParseTemplatePath returns the name of the template at a path such as
// "templates/high-throughput.yaml", and whether extends could name it.
func ParseTemplatePath(path string) (name string, ok bool) {
	name = strings.TrimSuffix(strings.TrimPrefix(path, templatePrefix), fileSuffix)
	return name, path == templateFile(name) && templateName.MatchString(name)
}

// A layer is what one file, or one experiment, sets, or several together.
type layer map[string]setting

// A setting is one parameter of a layer.
type setting struct {
	value Value // zero if the file has something that the parameter cannot be
	at    Position
	layer string // as Origin.Layer
	rank  int    // of the layer, from 1 for the lowest; 0 for none
}

func (l layer) sets(name string) bool {
	_, ok := l[name]
	return ok
}

// setsInvalid reports whether the parameter is set to what it cannot be.
func (l layer) setsInvalid(name string) bool { return l.sets(name) && l[name].value.IsZero() }

// parameters returns the valid settings.
func (l layer) parameters() Parameters {
	values := map[string]Value{}
	for name, s := range l {
		values[name] = s.value
	}
	return NewParameters(values)
}

// overlay lays layers over each other, lowest first, and experiments over them.
func overlay(layers []layer, experiments ...experiment) layer {
	layers = slices.Clip(layers)
	for _, e := range experiments {
		layers = append(layers, e.layer)
	}
	together := layer{}
	for i, l := range layers {
		for name, s := range l {
			s.rank = i + 1
			together[name] = s
		}
	}
	return together
}

type configFile struct {
	layer
	description string
	extends     []node // the names of templates
	experiments []experiment
}

type experiment struct {
	layer
	label   string
	at      Position // of the label
	percent int      // 0 if the file has something else
}

// decode reads a file; known are the keys that its kind may have.
func (l *loader) decode(file File, layerName string, known []string) (f configFile) {
	at, before := Position{File: file.Path}, l.Total
	root, found := file.parse()
	l.merge(found)
	if root.Node == nil {
		l.incomplete = true
		return f
	}
	fields := l.mapping(root, known)
	if description := fields[keyDescription].value; l.is(description, yaml.ScalarNode, "write one text, as in description: Deeper tree for the autumn catalogue") {
		f.description = strings.TrimSpace(description.Value)
	}
	if field, ok := fields[keyParameters]; ok {
		at = field.key.at()
		f.layer, _ = l.layer(field.value, layerName)
	} else if layerName != layerEnvironment && l.Total == before {
		l.incomplete = true
		l.report(at, "base.yaml and templates have parameters", "the file has no parameters",
			"add parameters: and the values below it, or parameters: {} to set nothing here").Path = keyParameters
	}
	if layerName == layerBase {
		l.baseParameters = at
	}
	f.extends = l.extends(fields[keyExtends].value)
	f.experiments = l.experiments(fields[keyExperiments].value)
	field, ok := fields[keyEnvironment]
	example := "write environment: " + string(l.environment)
	if layerName == layerEnvironment && !ok && !l.incomplete {
		l.report(Position{File: file.Path}, "an environment's file names its environment", "the file has no environment", "add environment: "+string(l.environment)).Path = keyEnvironment
	}
	if name := field.value; l.is(name, yaml.ScalarNode, example) && name.Value != string(l.environment) {
		l.reportNode(name, "environment equals the file's name and the agent's --environment",
			fmt.Sprintf("environment is %s, and this is the file of %s", quote(name.Value), l.environment),
			example+", or rename the file")
	}
	return f
}

// is reports whether a node is of a kind. If not, and unless it is absent or
// refused, the kind is the rule that it breaks.
func (l *loader) is(n node, kind yaml.Kind, hint string) bool {
	if n.Node == nil || n.Kind == kind {
		return n.Node != nil
	}
	l.incomplete = true
	if n.Kind != 0 {
		rule := kindNames[kind]
		l.reportNode(n, rule, fmt.Sprintf("%s is %s, not %s", cmp.Or(n.path, "the file"), kindOf(n.Node), rule), hint)
	}
	return false
}

// A field is a known key of a mapping. The value is absent if the key is misspelled.
type field struct{ key, value node }

// mapping returns the known keys of a mapping and reports the other ones.
func (l *loader) mapping(n node, known []string) map[string]field {
	hint := "write lines of key: value; the keys are " + strings.Join(known, ", ")
	if n.Node != nil && strings.Contains(n.Value, ":") {
		hint = "write lines of key: value, with a space behind the colon"
	}
	if !l.is(n, yaml.MappingNode, hint) {
		return nil
	}
	fields := map[string]field{}
	for pair := range slices.Chunk(n.Content, 2) {
		switch key, value := n.pair(pair[0], pair[1]); {
		case key.Kind == 0:
			l.incomplete = l.incomplete || key.Tag == mergeTag
		case slices.Contains(known, key.Value):
			fields[key.Value] = field{key, value}
		default:
			v := l.unknownKey(key, n.path, known)
			isTaken := func(name string) bool {
				return slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { return c.Value == name })
			}
			if meant, ok := certain(key.Value, known); ok && !isTaken(meant) {
				v.fix(key, meant)
			}
			if meant, ok := Suggest(key.Value, known); ok && fields[meant].value.Node == nil {
				fields[meant] = field{key: key}
				l.incomplete = l.incomplete || n.path == ""
			}
		}
	}
	return fields
}

func (l *loader) unknownKey(key node, outer string, known []string) *Violation {
	hint := didYouMean(key.Value, known)
	below := strings.TrimPrefix(key.Value, keyParameters+".")
	switch {
	case strings.HasSuffix(outer, keyParameters):
		hint = suggestion(key.Value, known, hint+"; others need --schema FILE.cue")
	case outer != "":
	case l.Has(key.Value):
		l.incomplete = true
		hint = "move it under parameters:"
	case slices.Contains(environmentKeys, key.Value):
		hint = fmt.Sprintf("%s belongs into an environment's file; the keys here are %s", key.Value, strings.Join(known, ", "))
	case l.Has(below):
		hint = fmt.Sprintf("write %s: on a line of its own, and %s: indented below it", keyParameters, below)
	}
	return l.reportNode(key, "known keys only", "unknown key "+quote(key.Value), hint)
}

// layer reads a mapping of parameters. A misspelled parameter counts as set.
func (l *loader) layer(n node, name string) (layer, map[string]field) {
	set, fields := layer{}, l.mapping(n, l.names)
	for parameter, field := range fields {
		set[parameter] = setting{value: l.value(field.value, l.Parameter(parameter)), at: cmp.Or(field.value, field.key).at(), layer: name}
	}
	return set, fields
}

// value reads the value of a parameter, zero if the parameter cannot be that.
func (l *loader) value(n node, p *Parameter) Value {
	if n.Node == nil || n.Kind == 0 {
		return Value{}
	}
	var v Value
	isScalar := n.Kind == yaml.ScalarNode
	switch {
	case isScalar && p.Type == "string" && n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) == 0:
		v = Text(n.Value)
	case isScalar && n.Style == 0:
		v = Value{n.Value}
	}
	violation := p.check(v, kindOf(n.Node))
	if violation == nil {
		return v
	}
	violation.Position, violation.Path = n.at(), n.path
	if meant, ok := certain(n.Value, p.Values); ok && isScalar {
		violation.fix(n, meant)
	}
	if isScalar && !p.isSpelled(v) {
		if meant := p.suggestSpelling(n.Value, violation); meant != "" {
			violation.fix(n, meant)
		}
	}
	l.add(*violation)
	return Value{}
}

// items returns at most limit items of a list.
func (l *loader) items(n node, limit int, hint string) (items []node) {
	if !l.is(n, yaml.SequenceNode, hint) {
		return nil
	}
	for i := range min(len(n.Content), limit) {
		items = append(items, n.item(i))
	}
	if excess := len(n.Content) - limit; excess > 0 {
		l.incomplete = true
		l.reportNode(node{n.Content[limit], n.file, n.path}, fmt.Sprintf("at most %d entries", limit),
			fmt.Sprintf("%s has %d entries", n.path, len(n.Content)), fmt.Sprintf("remove %d of them", excess))
	}
	return items
}

// Extends lists the files that an environment's file extends, such as
// "templates/high-throughput.yaml": its well-formed entries, in order, each once.
func Extends(environmentFile File) (paths []string) {
	root, _ := environmentFile.parse()
	if root.Node == nil || root.Kind != yaml.MappingNode {
		return nil
	}
	for pair := range slices.Chunk(root.Content, 2) {
		if key, value := root.pair(pair[0], pair[1]); key.Value == keyExtends && key.Kind != 0 {
			for _, template := range new(loader).extends(value) {
				paths = append(paths, templateFile(template.Value))
			}
		}
	}
	return paths
}

// templateList returns what is meant by names of templates that stand where their
// list should be: "[low-memory]" for low-memory, or "".
func templateList(n node) string {
	if n.Node == nil || n.Kind != yaml.ScalarNode {
		return ""
	}
	names := strings.Split(n.Value, ",")
	for i, name := range names {
		names[i] = templateStem(strings.TrimSpace(name))
		if !templateName.MatchString(names[i]) {
			return ""
		}
	}
	return "[" + strings.Join(names, ", ") + "]"
}

// templateStem returns the name of a template without what its file has besides.
func templateStem(name string) string {
	return strings.TrimSuffix(strings.TrimPrefix(name, templatePrefix), fileSuffix)
}

// extends returns the well-formed items of extends, which name templates.
func (l *loader) extends(n node) (templates []node) {
	hint, list := "write a list, as in extends: [high-throughput]", templateList(n)
	if list != "" {
		hint = "write extends: " + list
	}
	items := l.items(n, maxExtends, hint)
	if list != "" && len(l.List) > 0 {
		l.List[len(l.List)-1].fix(n, list)
	}
	for _, item := range items {
		first := slices.IndexFunc(templates, func(t node) bool { return t.Value == item.Value })
		switch {
		case item.Kind == 0:
			l.incomplete = true
		case item.Kind != yaml.ScalarNode || !templateName.MatchString(item.Value):
			l.incomplete = true
			hint := "write the file's name without templates/ and .yaml, such as high-throughput"
			name := templateStem(item.Value)
			isName := item.Kind == yaml.ScalarNode && templateName.MatchString(name)
			if isName {
				hint = "write " + name
			}
			v := l.reportNode(item, "the name of a file under templates/, at most 64 of a-z 0-9 - _", kindOf(item.Node)+" is not the name of a template", hint)
			if isName {
				v.fix(item, name)
			}
		case first >= 0:
			l.reportNode(item, "each template once", item.Value+" is extended twice",
				"remove one of them; a later template overrides an earlier one").Related = []Position{templates[first].at()}
		default:
			templates = append(templates, item)
		}
	}
	return templates
}

func (l *loader) experiments(n node) (list []experiment) {
	p := l.parameters[max(0, slices.IndexFunc(l.parameters, func(p Parameter) bool { return p.Required }))]
	examples := []string{exampleLabel, "10", fmt.Sprintf("{%s: %v}", p.Name, p.Default)} // of experimentKeys
	for _, item := range l.items(n, maxExperiments, fmt.Sprintf("write a list, as in experiments: [{name: %s, percent: %s, parameters: %s}]", examples[0], examples[1], examples[2])) {
		fields := l.mapping(item, experimentKeys)
		for i, key := range experimentKeys {
			if _, ok := fields[key]; fields != nil && !ok {
				l.reportNode(item, "an experiment has a name, a percent and parameters", item.path+" has no "+key,
					fmt.Sprintf("add %s: %s", key, examples[i]))
			}
		}
		var e experiment
		l.experimentName(fields[keyName].value, &e, list)
		e.percent, _ = l.value(fields[keyPercent].value, &l.percent).Int()
		l.experimentParameters(fields[keyParameters].value, &e, list)
		list = append(list, e)
	}
	return list
}

// experimentName reads the name of e, which no experiment before may have.
func (l *loader) experimentName(n node, e *experiment, before []experiment) {
	if !l.is(n, yaml.ScalarNode, "write a short text, as in "+keyName+": "+exampleLabel) {
		return
	}
	label := n.Value
	e.label, e.at = label, n.at()
	first := slices.IndexFunc(before, func(e experiment) bool { return e.label == label })
	switch {
	case label == "" || len(label) > maxLabel || strings.TrimSpace(label) != label || escape(label) != label:
		l.reportNode(n, fmt.Sprintf("1 to %d bytes of printable text", maxLabel), quoted(label)+" cannot name an experiment",
			"use a short name such as "+exampleLabel)
	case first >= 0:
		at := before[first].at
		l.reportNode(n, "each experiment has a name of its own", "two experiments are named "+quote(label),
			fmt.Sprintf("rename one of them; the first is on line %d", at.Line)).Related = []Position{at}
	}
}

// experimentParameters reads what e sets, which no experiment before may set.
func (l *loader) experimentParameters(n node, e *experiment, before []experiment) {
	var fields map[string]field
	e.layer, fields = l.layer(n, layerExperiment+e.label)
	if fields != nil && len(n.Content) == 0 {
		l.reportNode(n, "an experiment sets a parameter", "the experiment sets nothing", "give it the parameters it is about, or remove it")
	}
	for name, field := range fields {
		i := slices.IndexFunc(before, func(e experiment) bool { return e.sets(name) })
		if i < 0 || field.value.Node == nil {
			continue
		}
		v := l.reportNode(field.key, "a parameter is set by one experiment", fmt.Sprintf("%s is set by the experiment %s already", name, quote(before[i].label)),
			"an instance may be in both: remove it from one of them")
		v.Parameter, v.Related = name, []Position{before[i].layer[name].at}
	}
}
