package schema

import (
	"fmt"
	"slices"
	"strings"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
	"go.yaml.in/yaml/v3"
)

// The keys that each kind of file may have.
var (
	baseKeys        = []string{keyParameters}
	templateKeys    = []string{keyDescription, keyParameters}
	environmentKeys = []string{keyEnvironment, keyDescription, keyExtends, keyParameters, keyExperiments}
)

// The names of the layers that stand in files, as in Origin.Layer.
const (
	layerBase        = "base"
	layerTemplate    = "template:"
	layerEnvironment = "environment"
	layerSchema      = "schema"
)

// A loader holds one load.
type loader struct {
	report
	doc   *Document
	judge *judge
	// main is the file that the load is about.
	main string
	// incomplete: a layer is missing or was not read in full, so that nothing
	// can be said about what the layers give together.
	incomplete bool
	// baseParameters is where base.yaml has its parameters.
	baseParameters Position
	// reported are the broken rules, by rule and places.
	reported map[string]bool
}

// Everywhere stands for all instances in Load: every combination of experiments
// is judged that some instance may be in, and the Configuration is that of an
// instance in none. It is for reviews.
const Everywhere = ""

// Load turns a Document into the Configuration of one instance, or into all
// the Violations it holds; exactly one is not nil. What follows only from
// another violation is left out: a parameter is not called missing while a
// file that may set it cannot be read. Load keeps no state and may be called
// from any goroutine. It takes well under a millisecond for files as people write
// them, and well under a second and 64 MiB for each file whatever its bytes.
func Load(doc *Document, instance string) (c *Configuration, v *Violations) {
	l := &loader{doc: doc, main: doc.Environment.File(), reported: map[string]bool{}}
	defer l.recovered(func() { c, v = nil, l.violations() })
	if _, err := ParseEnvironment(string(doc.Environment)); err != nil {
		l.add(Violation{
			Position: Position{File: oneLine(doc.Environment.File())},
			Rule:     "a known environment", Message: err.Error(), Hint: "give one of them as --environment",
		})
		return nil, l.violations()
	}
	l.judge = newJudge()
	layers, env := l.files()
	c = l.evaluate(layers, env, instance)
	if v := l.violations(); v != nil {
		return nil, v
	}
	return c, nil
}

// CheckTemplate judges a template alone, as Load judges one that is extended: its
// YAML, its keys and the range of each value. It returns nil if nothing is
// wrong. It is for reviews: no agent reads a template that nobody extends.
func CheckTemplate(template File) (v *Violations) {
	l := &loader{doc: &Document{Files: []File{template}}, main: template.Path}
	defer l.recovered(func() { v = l.violations() })
	l.judge = newJudge()
	l.file(template.Path, layerTemplate, templateKeys, nil)
	return l.violations()
}

// recovered makes a violation of a panic, and then answers it. It is deferred:
// nobody's document may stop the program.
func (l *loader) recovered(answer func()) {
	if r := recover(); r != nil {
		l.fault(fmt.Errorf("%v", r))
		answer()
	}
}

// fault reports a fault of the program, on the file that it is about.
func (l *loader) fault(err error) {
	if v := faultOf(err); v != nil {
		v.File = l.main
		l.add(*v)
	}
}

// files reads the files of the Document. The layers are in their order, lowest
// first; env is the environment's file, nil if it could not be read.
func (l *loader) files() (layers []layer, env *configFile) {
	base := l.file(BaseFile, layerBase, baseKeys, nil)
	env = l.file(l.doc.Environment.File(), layerEnvironment, environmentKeys, nil)
	if base != nil {
		l.baseParameters = base.parametersAt
		layers = append(layers, base.layer)
	}
	if env == nil {
		return layers, nil
	}
	l.environment(env)
	for _, e := range env.extends {
		if t := l.file(templateFile(e.name), layerTemplate+e.name, templateKeys, &e); t != nil {
			layers = append(layers, t.layer)
		}
	}
	return append(layers, env.layer), env
}

// file reads one file; from is the entry of extends that asks for it.
func (l *loader) file(path, layerName string, known []string, from *entry) *configFile {
	i := slices.IndexFunc(l.doc.Files, func(f File) bool { return f.Path == path })
	if i < 0 {
		l.incomplete = true
		l.add(l.missingFile(path, from))
		return nil
	}
	f := &l.doc.Files[i]
	if f.Refused != "" {
		l.incomplete = true
		why, hint, own := strings.Cut(f.Refused, "; ")
		if !own {
			hint = "replace it by a regular file"
		}
		v := Violation{
			Position: Position{File: path},
			Rule:     "a readable file inside the configuration directory",
			Message:  "the file " + escape(why, "", maxRefusal),
			Hint:     escape(hint, "", maxRefusal),
		}
		if from != nil {
			v.Related = []Position{from.at}
		}
		l.add(v)
		return nil
	}
	root, v := parseYAML(f.Bytes)
	if v != nil {
		v.File = path
		l.add(*v)
	}
	if root == nil {
		l.incomplete = true
		return nil
	}
	w := &fileWalker{newWalker(&l.report, path, f.Bytes), l.judge}
	read := w.read(root, layerName, known)
	if read.parametersAt.Line == 0 && layerName != layerEnvironment && !read.incomplete {
		read.incomplete = true
		l.add(Violation{
			Position: read.parametersAt, Path: keyParameters,
			Rule:    "base.yaml and templates have parameters",
			Message: "the file has no parameters",
			Hint:    "add parameters: and the values below it, or parameters: {} to set nothing here",
		})
	}
	l.incomplete = l.incomplete || read.incomplete
	return read
}

func (l *loader) missingFile(path string, from *entry) Violation {
	v := Violation{
		Position: Position{File: path},
		Rule:     "base.yaml and the environment's file exist",
		Message:  "the file does not exist",
	}
	switch {
	case from != nil:
		v.Position, v.Path, v.Value = from.at, from.path, from.name
		v.Rule = "a template that is extended exists"
		v.Message = path + " does not exist"
		v.Hint = "create it or remove the entry"
		if s, ok := Suggest(from.name, l.templates()); ok {
			v.Hint = fmt.Sprintf("did you mean %s?", s)
		}
	case path == BaseFile:
		v.Hint = "create it with parameters: and the values that all environments share"
	default:
		v.Hint = fmt.Sprintf("create it with environment: %s and what differs from base.yaml, or point the agent at another directory or environment", l.doc.Environment)
	}
	return v
}

// ParseTemplatePath returns the name of the template at a path such as
// "templates/high-throughput.yaml". It is not ok if no extends could name that
// file.
func ParseTemplatePath(path string) (name string, ok bool) {
	name, isTemplate := strings.CutPrefix(path, templatePrefix)
	name, isYAML := strings.CutSuffix(name, fileSuffix)
	return name, isTemplate && isYAML && templateName.MatchString(name)
}

// templates lists the templates that the Document holds.
func (l *loader) templates() []string {
	var names []string
	for _, f := range l.doc.Files {
		if name, ok := strings.CutPrefix(f.Path, templatePrefix); ok {
			names = append(names, strings.TrimSuffix(name, fileSuffix))
		}
	}
	return names
}

// environment reports an environment key that is missing or wrong.
func (l *loader) environment(env *configFile) {
	file, want := l.doc.Environment.File(), string(l.doc.Environment)
	switch {
	case env.environmentAt.Line == 0 && !env.incomplete:
		l.add(Violation{
			Position: Position{File: file}, Path: keyEnvironment,
			Rule:    "an environment's file names its environment",
			Message: "the file has no environment",
			Hint:    fmt.Sprintf("add environment: %s", want),
		})
	case env.environment != nil && *env.environment != want:
		l.add(Violation{
			Position: env.environmentAt, Path: keyEnvironment, Value: oneLine(*env.environment),
			Rule:    "environment equals the file's name and the agent's --environment",
			Message: fmt.Sprintf("environment is %s, and this is the file of %s", quote(*env.environment), want),
			Hint:    fmt.Sprintf("write environment: %s, or rename the file", want),
		})
	}
}

// An effective set is what some layers give together.
type effective struct {
	// values are the valid ones, as koanf merges them.
	values map[string]any
	// set is the topmost setting of each parameter, valid or not.
	set map[string]setting
}

// unknown reports whether the parameter is set to what is no valid value.
func (e *effective) unknown(name string) bool {
	s, ok := e.set[name]
	return ok && s.value == nil
}

// merge lays the layers over each other, lowest first. A koanf is made for
// each merge: it is not for sharing.
func merge(layers []layer) (*effective, error) {
	e := &effective{set: map[string]setting{}}
	k := koanf.New(".")
	for rank, layer := range layers {
		values := map[string]any{}
		for name, s := range layer.settings {
			s.rank = rank
			e.set[name] = s
			if s.value != nil {
				values[name] = s.value
			}
		}
		if err := k.Load(confmap.Provider(values, ""), nil); err != nil {
			return nil, fmt.Errorf("merging the layer %s: %w", layer.name, err)
		}
	}
	e.values = k.All()
	return e, nil
}

// Extends lists the files that an environment's file extends, such as
// "templates/high-throughput.yaml": its well-formed entries, in order, each
// once. It never fails: of bytes that make no sense it lists nothing. A source
// asks it which files belong to a Document.
func Extends(environmentFile []byte) []string {
	root, _ := parseYAML(environmentFile)
	if root == nil || root.Kind != yaml.MappingNode {
		return nil
	}
	var paths []string
	for i := 0; i+1 < len(root.Content); i += 2 {
		if key, list := root.Content[i], root.Content[i+1]; key.Value == keyExtends && list.Kind == yaml.SequenceNode {
			for _, item := range list.Content {
				path := templateFile(item.Value)
				if item.Kind == yaml.ScalarNode && templateName.MatchString(item.Value) && !slices.Contains(paths, path) && len(paths) < maxExtends {
					paths = append(paths, path)
				}
			}
			break
		}
	}
	return paths
}
