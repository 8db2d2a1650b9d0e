package schema

import (
	"fmt"
	"regexp"
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

// maxExtends and maxExperiments bound the lists of an environment's file.
const (
	maxExtends     = 32
	maxExperiments = 64
)

// A template's name has no slash and no dot: it cannot leave templates/.
var templateName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// A layer is what one file, or one experiment, sets.
type layer struct {
	name     string // as Origin.Layer
	settings map[string]setting
}

// A setting is one parameter of a layer.
type setting struct {
	// value is an int or a bool in range; nil if the file says something else.
	value any
	at    Position
	layer string
	// rank orders the layers, lowest first.
	rank int
}

// A configFile is what was read from one file.
type configFile struct {
	layer
	// environment is what the key of that name says, and environmentAt where;
	// nil if there is nothing to compare.
	environment   *string
	environmentAt Position
	description   string
	extends       []entry
	experiments   []experiment
	// parametersAt is where the parameters stand, the whole file if nowhere.
	parametersAt Position
	// incomplete: more is meant to be set here than could be read.
	incomplete bool
}

// An entry is a well-formed item of extends.
type entry struct {
	name string
	at   Position
	path string
}

// An experiment gives part of the fleet other values.
type experiment struct {
	layer
	label   string
	percent int
	// counts: label and percent are valid, so that it has a cohort.
	counts bool
}

// A pair is a key of a mapping and its value.
type pair struct{ key, value *yaml.Node }

// fileWalker reads one file; judge says what the values may be.
type fileWalker struct {
	*walker
	judge *judge
}

// read walks the file's root; known are the keys that its kind may have.
func (w *fileWalker) read(root *yaml.Node, layerName string, known []string) *configFile {
	f := &configFile{layer: layer{name: layerName, settings: map[string]setting{}}, parametersAt: Position{File: w.file}}
	w.refuse(root, "", 1)
	pairs, ok := w.mapping(root, "", known)
	if !ok {
		f.incomplete = true
		return f
	}
	w.misplaced(root, f)
	if p, ok := pairs[keyDescription]; ok {
		if text, ok := w.text(p.value, keyDescription, "Deeper tree for the autumn catalogue"); ok {
			f.description = strings.TrimSpace(text)
		}
	}
	if p, ok := pairs[keyParameters]; ok {
		f.parametersAt = w.at(p.key)
		f.incomplete = !w.parameters(p.value, keyParameters, &f.layer) || f.incomplete
	}
	if p, ok := pairs[keyEnvironment]; ok {
		f.environmentAt = w.at(p.value)
		if text, ok := w.text(p.value, keyEnvironment, strings.TrimSuffix(w.file, fileSuffix)); ok {
			f.environment = &text
		}
	}
	if p, ok := pairs[keyExtends]; ok {
		f.incomplete = !w.extends(p.value, f) || f.incomplete
	}
	if p, ok := pairs[keyExperiments]; ok {
		w.experiments(p.value, f)
	}
	return f
}

// mapping returns the known pairs of a mapping and reports the other keys. It
// is not ok if n is no mapping, which is reported too.
func (w *fileWalker) mapping(n *yaml.Node, path string, known []string) (map[string]pair, bool) {
	if w.bad[n] {
		return nil, false
	}
	if n.Kind != yaml.MappingNode {
		hint := "write lines of key: value; the keys are " + strings.Join(known, ", ")
		if strings.Contains(n.Value, ":") {
			hint = "write lines of key: value, with a space behind the colon"
		}
		w.say(n, path, Violation{
			Value: oneLine(n.Value), Rule: "a mapping",
			Message: fmt.Sprintf("%s is %s, not a mapping", subject(path), kindOf(n)), Hint: hint,
		})
		return nil, false
	}
	pairs := map[string]pair{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case w.bad[key]:
		case slices.Contains(known, key.Value):
			pairs[key.Value] = pair{key, value}
		default:
			w.unknownKey(key, path, known)
		}
	}
	return pairs, true
}

func (w *fileWalker) unknownKey(key *yaml.Node, path string, known []string) {
	v := Violation{
		Value: oneLine(key.Value), Rule: "known keys only",
		Message: "unknown key " + quote(key.Value),
		Hint:    didYouMean(key.Value, known),
	}
	switch {
	case path == "" && slices.Contains(Names(), key.Value):
		v.Hint = "move it under parameters:"
	case path == "" && slices.Contains(environmentKeys, key.Value):
		v.Hint = fmt.Sprintf("%s belongs into an environment's file; the keys here are %s", key.Value, strings.Join(known, ", "))
	case path == "" && slices.Contains(Names(), strings.TrimPrefix(key.Value, keyParameters+".")):
		v.Hint = fmt.Sprintf("write %s: on a line of its own, and %s: indented below it", keyParameters, strings.TrimPrefix(key.Value, keyParameters+"."))
	}
	w.say(key, join(path, key.Value), v)
}

// misplaced notes what unknown keys were probably meant to be, so that it is
// not reported as missing as well.
func (w *fileWalker) misplaced(root *yaml.Node, f *configFile) {
	for i := 0; i+1 < len(root.Content); i += 2 {
		key := root.Content[i]
		if slices.Contains(Names(), key.Value) {
			f.settings[key.Value] = setting{at: w.at(key), layer: f.name}
		}
		meant, ok := Suggest(key.Value, environmentKeys)
		if !ok || meant == key.Value {
			continue
		}
		if meant == keyEnvironment {
			f.environmentAt = w.at(key)
		} else {
			f.incomplete = true
		}
	}
}

// text reads a scalar as text, whatever it looks like.
func (w *fileWalker) text(n *yaml.Node, path, example string) (string, bool) {
	if w.bad[n] {
		return "", false
	}
	if n.Kind != yaml.ScalarNode {
		w.say(n, path, Violation{
			Rule:    "text",
			Message: fmt.Sprintf("%s is %s, not text", path, kindOf(n)),
			Hint:    fmt.Sprintf("write %s: %s", path[strings.LastIndexByte(path, '.')+1:], example),
		})
		return "", false
	}
	return n.Value, true
}

// parameters reads a mapping of parameters into l, and returns false if more
// is meant to be set than could be read. A misspelled parameter counts as set.
func (w *fileWalker) parameters(n *yaml.Node, path string, l *layer) bool {
	pairs, ok := w.mapping(n, path, Names())
	if !ok {
		return false
	}
	complete := true
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if meant, ok := Suggest(key.Value, Names()); ok {
			l.settings[meant] = setting{at: w.at(key), layer: l.name}
		}
		complete = complete && key.Tag != mergeTag
	}
	for name, p := range pairs {
		l.settings[name] = setting{value: w.value(p.value, path, w.judge.facts.info(name)), at: w.at(p.value), layer: l.name}
	}
	return complete
}

// value reads an int or a bool and returns nil if it is none or out of range.
// An int is a plain scalar of decimal digits, a bool is true or false: what
// YAML reads more generously (0777, 1_000, yes) is not guessed at.
func (w *fileWalker) value(n *yaml.Node, path string, info *ParameterInfo) any {
	if w.bad[n] {
		return nil
	}
	var value any
	plain := false
	if n.Kind == yaml.ScalarNode && n.Style == 0 {
		if info.Type == "bool" {
			value, plain = n.Value == "true", n.Value == "true" || n.Value == "false"
		} else {
			value, plain = plainInt(n.Value)
		}
	}
	if plain && w.judge.fits(info.Name, value) {
		return value
	}
	v := info.invalidValue(kindOf(n))
	if !plain && n.Kind == yaml.ScalarNode {
		v = info.spelled(kindOf(n), w.judge.intended(info, n.Value))
	}
	w.say(n, path+"."+info.Name, v)
	return nil
}

// extends reads the list of templates, and returns false if some could not be
// read.
func (w *fileWalker) extends(n *yaml.Node, f *configFile) bool {
	items, complete := w.list(n, keyExtends, maxExtends, "[high-throughput]")
	for i, item := range items {
		path := index(keyExtends, i)
		if w.bad[item] {
			complete = false
			continue
		}
		if item.Kind != yaml.ScalarNode || !templateName.MatchString(item.Value) {
			complete = false
			w.notATemplate(item, path)
			continue
		}
		same := func(e entry) bool { return e.name == item.Value }
		if j := slices.IndexFunc(f.extends, same); j >= 0 {
			w.say(item, path, Violation{
				Value: item.Value, Rule: "each template once",
				Message: item.Value + " is extended twice",
				Hint:    "remove one of them; a later template overrides an earlier one",
				Related: []Position{f.extends[j].at},
			})
			continue
		}
		f.extends = append(f.extends, entry{name: item.Value, at: w.at(item), path: path})
	}
	return complete
}

func (w *fileWalker) notATemplate(item *yaml.Node, path string) {
	v := Violation{
		Value: oneLine(item.Value), Rule: "the name of a file under templates/, at most 64 of a-z 0-9 - _",
		Message: kindOf(item) + " is not the name of a template",
		Hint:    "write the file's name without templates/ and .yaml, such as high-throughput",
	}
	if name := strings.TrimSuffix(strings.TrimPrefix(item.Value, templatePrefix), fileSuffix); templateName.MatchString(name) && name != item.Value {
		v.Hint = "write " + name
	}
	w.say(item, path, v)
}

// list returns at most limit items of a list, and whether that is all there is.
func (w *fileWalker) list(n *yaml.Node, path string, limit int, example string) ([]*yaml.Node, bool) {
	if w.bad[n] {
		return nil, false
	}
	if n.Kind != yaml.SequenceNode {
		w.say(n, path, Violation{
			Value: oneLine(n.Value), Rule: "a list",
			Message: fmt.Sprintf("%s is %s, not a list", path, kindOf(n)),
			Hint:    fmt.Sprintf("write %s: %s", path, example),
		})
		return nil, false
	}
	if len(n.Content) > limit {
		w.say(n.Content[limit], path, Violation{
			Rule:    fmt.Sprintf("at most %d entries", limit),
			Message: fmt.Sprintf("%s has %d entries", path, len(n.Content)),
			Hint:    fmt.Sprintf("remove %d of them", len(n.Content)-limit),
		})
		return n.Content[:limit], false
	}
	return n.Content, true
}
