package schema

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/cuecontext"
	cueerrors "cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/format"
	"cuelang.org/go/cue/parser"
	"cuelang.org/go/cue/token"

	"dtesn-agent/schema/problem"
)

// What a schema file declares; dtesn.cue explains each.
const (
	defParameters   = "#Parameters"
	defRules        = "#rules"
	defDefaults     = "#defaults"
	defEnvironments = "#environments"
	defEnvironment  = "#environment"
	defPercent      = "#percent"
	defMemory       = "#memory_bytes"
	defExtends      = "#extends"
	extendsEmbedded = `"dtesn"`
	embeddedName    = "embedded"
)

// Bounds of a schema file.
const (
	maxSchemaBytes  = 64 << 10
	maxRuleOperands = 8
	maxWords        = 256 // that a parameter may be: CUE compares each with each
	maxCUEMessage   = 400
)

var (
	environmentName  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	environmentLabel = regexp.MustCompile(`^[A-Za-z0-9._-]{1,63}$`)
	parameterName    = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
)

// Open reads a schema file. It replaces the embedded schema, or extends it if
// it says `#extends: "dtesn"`. The error is a *problem.Error with the line and
// column. CUE may compute without end.
func Open(path string) (*Schema, error) {
	var text []byte
	info, err := os.Stat(path)
	switch {
	case err != nil:
	case !info.Mode().IsRegular(): // anything else may never end
		err = errors.New("not a regular file")
	case info.Size() > maxSchemaBytes:
		err = fmt.Errorf("larger than %d KiB", maxSchemaBytes>>10)
	default:
		text, err = os.ReadFile(path)
	}
	if pathError, ok := errors.AsType[*os.PathError](err); ok {
		err = pathError.Err
	}
	if err != nil {
		r := &reader{Schema: &Schema{file: path}}
		return nil, r.failAt(token.NoPos, "give --schema a CUE file; `agent schema --format cue` prints one", "%w", err)
	}
	return read(path, text)
}

// A reader reads one schema file into its Schema.
type reader struct {
	*Schema
	fields   map[string]*ast.Field // of the file: "#Parameters.cache_ttl_seconds"
	declared []string              // the parameters in the file
	builtIn  *Rules                // that the file extends; empty if it does not
	compared []*ast.BasicLit       // with #environment
	words    int                   // that the field has listed so far
}

func read(path string, text []byte) (s *Schema, err error) {
	s = &Schema{file: path, text: text, context: cuecontext.New(), labels: map[Environment]string{}, rules: map[Environment]*Rules{}}
	r := &reader{Schema: s, fields: map[string]*ast.Field{}, builtIn: &Rules{}}
	defer func() {
		if p := recover(); p != nil { // in CUE
			s, err = nil, r.failAt(token.NoPos, "simplify the schema file", "CUE cannot evaluate it: %s", oneLine(fmt.Sprint(p)))
		}
	}()
	if err := r.read(); err != nil {
		return nil, r.locate(err)
	}
	return s, nil
}

func (r *reader) read() error {
	file, err := parser.ParseFile(r.file, r.text, parser.ParseComments)
	if err == nil {
		file, err = r.extend(file)
	}
	if err != nil {
		return err
	}
	root := r.context.BuildFile(file)
	missing := slices.DeleteFunc([]string{defEnvironments, defParameters, defDefaults, defPercent},
		func(def string) bool { return lookup(root, def).Exists() })
	if len(missing) > 0 {
		const hint = "declare it; `agent schema --format cue` prints a schema to begin from"
		return cmp.Or(root.Err(), r.fail("", hint, "missing: %s", strings.Join(missing, ", ")))
	}
	if err := r.readEnvironments(root); err != nil {
		return err
	}
	for i, env := range r.environments {
		if i > 0 && &r.text[0] == &embedded[0] { // it is the same in all, which a test holds: a start is quicker
			same := *r.first()
			same.environment = env
			r.rules[env] = &same
		} else if err := r.readRules(env, root.FillPath(cue.ParsePath(defEnvironment), string(env))); err != nil {
			return err
		}
	}
	for _, p := range r.builtIn.parameters {
		place, isSame := defParameters+"."+p.Name, true
		for _, rules := range r.rules {
			q := rules.Parameter(p.Name)
			isSame = isSame && q.Range == p.Range && q.Required == p.Required
		}
		if f := r.fields[place]; f != nil && (isSame || len(f.Attrs) > 0 || f.Constraint == token.OPTION && p.Required) {
			return r.fail(place, "repeat its ! or ?, and write bounds within "+p.Range+"; or replace the schema", "an extension can only narrow %s", p.Name)
		}
	}
	return root.Validate() // what no one has looked at so far
}

// fail returns the error of a field, or of the nearest one around it in the file.
func (r *reader) fail(place, hint, message string, args ...any) error {
	for ; place != ""; place = place[:max(0, strings.LastIndexByte(place, '.'))] {
		if f := r.fields[place]; f != nil {
			return r.failAt(f.Pos(), hint, message, args...)
		}
	}
	return r.failAt(token.NoPos, hint, message, args...)
}

func (r *reader) failAt(pos token.Pos, hint, message string, args ...any) error {
	place := Position{r.file, pos.Line(), pos.Column()}.String()
	return &problem.Error{Op: "read schema", Place: place, Err: fmt.Errorf(message, args...), Hint: hint}
}

// locate adds a place in the file and a hint to an error of CUE.
func (r *reader) locate(err error) error {
	if p, ok := errors.AsType[*problem.Error](err); ok {
		return p
	}
	hint := "correct this line; `agent schema --format cue` prints a schema to compare with"
	first := cueerrors.Errors(err)[0]
	if _, name, ok := strings.Cut(first.Error(), `reference "`); ok {
		hint = suggestion(strings.Split(name, `"`)[0], append(r.declared, r.builtIn.names...), hint)
	}
	for _, p := range cueerrors.Positions(first) {
		if p.Filename() == r.file {
			return r.failAt(p, hint, "%s", cueMessage(err))
		}
	}
	return r.fail(strings.Join(first.Path(), "."), hint, "%s", cueMessage(err))
}

// cueMessage returns the first of the errors that err has, on one line.
func cueMessage(err error) string {
	return shorten(cueerrors.Errors(err)[0].Error(), maxCUEMessage, escape)
}

// index notes the places of all fields, and refuses what CUE allows and a schema
// file must not have.
func (r *reader) index(file *ast.File) (err error) {
	var path []string
	ast.Walk(file, func(n ast.Node) bool {
		if err != nil {
			return false
		}
		switch n := n.(type) {
		case *ast.ImportDecl:
			err = r.failAt(n.Pos(), "remove the import; a schema file stands alone", "imports are not allowed")
		case *ast.EmbedDecl: // CUE 0.17.1 exhausts the stack over some
			err = r.failAt(n.Pos(), "write name: value, or & where it goes on from the line before", "a value without a name")
		case *ast.Attribute:
			if key, _ := n.Split(); key != "dtesn" {
				err = r.failAt(n.Pos(), "remove it; the only attribute is @dtesn", "unknown attribute @%s", quote(key))
			}
		case *ast.BinaryExpr:
			if n.Op == token.OR {
				r.words++
			}
			if r.words >= maxWords {
				err = r.failAt(n.Pos(), fmt.Sprintf("list at most %d", maxWords), "too many alternatives")
			}
			text, isText := n.Y.(*ast.BasicLit)
			if name, ok := n.X.(*ast.Ident); ok && isText && name.Name == defEnvironment && (n.Op == token.EQL || n.Op == token.NEQ) {
				r.compared = append(r.compared, text)
			}
		case *ast.IfClause, *ast.ForClause:
			if len(path) > 0 && path[0] == defParameters && len(path) < 3 { // outside of a rule
				err = r.checkCondition(n)
			}
		case *ast.Field:
			name, _ := fieldOf(n)
			path, r.words = append(path, name), 0
			err = r.indexField(path, n)
		case *ast.LetClause: // its fields are its own
			path, r.words = append(path, ""), 0
		}
		return true
	}, func(n ast.Node) {
		switch n.(type) {
		case *ast.Field, *ast.LetClause:
			path = path[:len(path)-1]
		}
	})
	return err
}

// indexField notes a field. It refuses a parameter that is declared twice, or is
// neither required nor optional, and a name that is unknown in its place, which
// CUE takes for another one.
func (r *reader) indexField(path []string, f *ast.Field) error {
	name, place, outer := path[len(path)-1], strings.Join(path, "."), path[:len(path)-1]
	if len(f.Attrs) > 1 && strings.HasPrefix(f.Attrs[1].Text, "@dtesn(") {
		return r.failAt(f.Attrs[1].Pos(), "merge it with the first", "a second @dtesn")
	}
	if first := r.fields[place]; first == nil {
		r.fields[place] = f
	} else if len(f.Attrs) > 0 {
		return r.failAt(f.Pos(), fmt.Sprintf("remove one of them; the first is on line %d", first.Pos().Line()),
			"parameter %s is declared twice", quote(name))
	}
	isPlain := name != "" && !strings.ContainsAny(name[:1], "#_")
	var known []string
	switch {
	case len(outer) == 1 && outer[0] == defParameters && isPlain:
		r.declared = append(r.declared, name)
		if parameterName.MatchString(name) && f.Constraint == token.ILLEGAL && len(f.Attrs) > 0 {
			return r.failAt(f.Pos(), fmt.Sprintf("write %s! if some file must set it, else %s?", name, name),
				"parameter %s has neither ! nor ?", name)
		}
	case len(outer) == 0:
		known = []string{defParameters, defDefaults, defEnvironments, defEnvironment, defPercent, defExtends, "#Rule", "#Configuration"}
	case len(outer) == 1 && outer[0] == defParameters:
		known = []string{defRules, defMemory}
	case len(outer) == 2 && outer[0] == defEnvironments:
		known = []string{"label"}
	case len(outer) == 3 && outer[1] == defRules:
		known = []string{"rule", "operands", "holds", "message", "hint"}
	}
	if meant, ok := Suggest(name, known); meant != name && known != nil && (isPlain || ok && strings.HasPrefix(name, "#")) {
		return r.failAt(f.Pos(), didYouMean(name, known), "unknown name %s", quote(name))
	}
	return nil
}

// checkCondition refuses a condition on more than the environment: ranges are read
// before there are values.
func (r *reader) checkCondition(clause ast.Node) (err error) {
	ast.Walk(clause, func(n ast.Node) bool {
		if name, ok := n.(*ast.Ident); ok && name.Name != defEnvironment && err == nil {
			err = r.failAt(n.Pos(), "make it a rule, or write if "+defEnvironment+" == …",
				"a condition on %s: it may only depend on %s", quote(name.Name), defEnvironment)
		}
		return true
	}, nil)
	return err
}

// fieldOf returns the name of a field, and its body if it is a struct.
func fieldOf(d ast.Decl) (name string, body *ast.StructLit) {
	if f, ok := d.(*ast.Field); ok {
		name, _, _ = ast.LabelName(f.Label)
		body, _ = f.Value.(*ast.StructLit)
	}
	return name, body
}

// extend indexes the file. It returns what is to be compiled: the file, or the
// embedded one with the file's declarations added.
func (r *reader) extend(own *ast.File) (*ast.File, error) {
	err := r.index(own)
	extends := r.fields[defExtends]
	if err != nil || extends == nil {
		return own, err
	}
	if name, ok := extends.Value.(*ast.BasicLit); !ok || name.Value != extendsEmbedded {
		return nil, r.fail(defExtends, "write "+defExtends+": "+extendsEmbedded+", or remove the line to replace the schema",
			"%s names an unknown schema", defExtends)
	}
	r.builtIn = Default().first()
	file, _ := parser.ParseFile(embeddedName, embedded, parser.ParseComments) // Default read it
	structs := map[string]*ast.StructLit{}
	for _, d := range file.Decls {
		if name, body := fieldOf(d); body != nil {
			structs[name] = body
		}
	}
	for _, d := range own.Decls {
		name, added := fieldOf(d)
		switch _, isPackage := d.(*ast.Package); {
		case isPackage || name == defExtends:
		case added != nil && structs[name] != nil:
			to := structs[name]
			to.Elts = slices.DeleteFunc(to.Elts, func(d ast.Decl) bool { // another server takes other memory
				inner, _ := fieldOf(d)
				return inner == defMemory && r.fields[name+"."+defMemory] != nil
			})
			to.Elts = append(to.Elts, added.Elts...) // there they see the other names
		default:
			file.Decls = append(file.Decls, d)
		}
	}
	ast.Walk(file, func(n ast.Node) bool {
		if name, ok := n.(*ast.Ident); ok { // to be resolved in the whole
			name.Node, name.Scope = nil, nil
		}
		return true
	}, nil)
	r.text, err = format.Node(file)
	return file, err
}

func (r *reader) readEnvironments(root cue.Value) error {
	fields, err := lookup(root, defEnvironments).Fields()
	for err == nil && fields.Next() {
		name := fields.Selector().Unquoted()
		env, place := Environment(name), defEnvironments+"."+name
		if !environmentName.MatchString(name) || env.File() == BaseFile {
			return r.fail(place, "use at most 63 of a-z 0-9 -, beginning with a letter, but not base", "invalid environment name %s", quote(name))
		}
		r.environments = append(r.environments, env)
		r.labels[env] = textOf(fields.Value(), "label")
		if lookup(fields.Value(), "label").Exists() && !environmentLabel.MatchString(r.labels[env]) {
			return r.fail(place+".label", `write 1 to 63 of A-Z a-z 0-9 . _ -, as in canary: {label: "production"}`, "environment %s has an invalid label", env)
		}
	}
	if len(r.environments) == 0 {
		return r.fail(defEnvironments, "declare them, for instance "+defEnvironments+": {production: {}}", "%s has no environment", defEnvironments)
	}
	for _, text := range r.compared {
		if _, err := r.ParseEnvironment(strings.Trim(text.Value, `"`)); err != nil {
			return r.failAt(text.Pos(), "compare with one of them", "%w", err)
		}
	}
	return nil
}

func (r *reader) readRules(env Environment, root cue.Value) error {
	percent := Parameter{Name: keyPercent, Description: "The share of the fleet that is in the experiment"}
	share := r.context.CompileString("int & >=0 & <=100")
	err := cmp.Or(lookup(root, defEnvironment).Err(), r.readType(&percent, lookup(root, defPercent).Unify(share), defPercent))
	if err != nil {
		return err
	}
	rules := &Rules{schema: r.Schema, environment: env, percent: percent, definition: lookup(root, defParameters)}
	fields, err := rules.definition.Fields(cue.Optional(true))
	for err == nil && fields.Next() {
		var p Parameter
		p, err = r.readParameter(fields, lookup(root, defDefaults))
		rules.parameters = append(rules.parameters, p)
	}
	if err != nil {
		return err
	}
	if len(rules.parameters) == 0 {
		return r.fail(defParameters, "declare at least one", "%s declares no parameter", defParameters)
	}
	slices.SortFunc(rules.parameters, func(a, b Parameter) int { return strings.Compare(a.Name, b.Name) })
	values := map[string]Value{}
	for _, p := range rules.parameters {
		rules.names = append(rules.names, p.Name)
		values[p.Name] = p.Default
	}
	defaults := NewParameters(values)
	rules.defaults = defaults.Select(func(name string) bool { return rules.Parameter(name).Managed })
	for _, place := range slices.Sorted(maps.Keys(r.fields)) {
		name, ok := strings.CutPrefix(place, defDefaults+".")
		if ok && parameterName.MatchString(name) && !rules.Has(name) {
			return r.fail(place, didYouMean(name, rules.names), "unknown parameter %s", name)
		}
	}
	r.rules[env] = rules
	first := r.first()
	for _, name := range slices.Concat(rules.names, first.names) {
		if a, b := rules.Parameter(name), first.Parameter(name); a == nil || b == nil || a.Required != b.Required {
			return r.fail(defParameters+"."+name, "declare it once for all, and repeat its ! or ? where its bounds depend on the environment",
				"parameter %s is not the same in %s and %s", name, first.environment, env)
		}
	}
	if memory := lookup(rules.definition, defMemory); memory.Exists() {
		if _, ok := rules.MemoryBytes(defaults); !ok {
			return r.fail(defParameters+"."+defMemory, "write an expression over parameters that have a default, such as 4096*NAME",
				"%s is no number of bytes with the defaults", defMemory)
		}
	}
	return r.readRelations(rules, defaults)
}

func (r *reader) readParameter(fields *cue.Iterator, defaults cue.Value) (Parameter, error) {
	field, name := fields.Value(), fields.Selector().Unquoted()
	place := defParameters + "." + name
	isRequired := fields.FieldType()&cue.OptionalConstraint == 0
	p := Parameter{Name: name, Required: isRequired, Managed: isRequired}
	if !parameterName.MatchString(name) {
		return p, r.fail(place, "use at most 64 of a-z 0-9 _, beginning with a letter", "invalid parameter name %s", quote(name))
	}
	if err := cmp.Or(r.readType(&p, field, place), r.readAttribute(&p, field.Attribute("dtesn"), place)); err != nil {
		return p, err
	}
	value := lookup(defaults, name)
	if !value.Exists() {
		if p.Managed {
			return p, r.fail(place, "add it to "+defDefaults, "parameter %s has no default", name)
		}
		return p, nil
	}
	var given Value
	err := value.Decode(&given)
	given = encode(given)
	violation := p.check(given, shown(given))
	if violation == nil {
		p.Default = given
		return p, nil
	}
	hint := violation.Hint
	if err == nil {
		err = fmt.Errorf("%s is not in %s", violation.Value, p.Range)
	}
	if r.builtIn.Has(name) {
		hint = "keep the built-in default within the bounds, or replace the schema; begin from `agent schema --format cue`"
	}
	if own := defDefaults + "." + name; r.fields[own] != nil {
		place = own
	}
	return p, r.fail(place, hint, "the default of %s is invalid: %s", name, cueMessage(err))
}

func (r *reader) readAttribute(p *Parameter, attribute cue.Attribute, place string) error {
	texts := map[string]*string{"apply": &p.Apply, "description": &p.Description, "impact": &p.Impact, "unit": &p.Unit}
	for i := range attribute.NumArgs() {
		key, value := attribute.Arg(i)
		switch text := texts[key]; {
		case key == "managed" && value == "" && !p.Required:
			p.Managed = true
		case text == nil:
			const hint = `the keys are managed (of an optional one), apply=hot or rebuild, description="…", impact="…" and unit="…"`
			return r.fail(place, suggestion(key, slices.Sorted(maps.Keys(texts)), hint), "parameter %s: unexpected %s in @dtesn", p.Name, quoted(key))
		case value == "" || *text != "":
			return r.fail(place, "write it once, with a text", "parameter %s: the %s is empty or repeated", p.Name, key)
		default:
			*text = value
		}
	}
	p.Apply = cmp.Or(p.Apply, ApplyHot)
	p.Critical = p.Apply == ApplyRebuild
	switch {
	case !p.Critical && p.Apply != ApplyHot:
		return r.fail(place, "write apply=hot or apply=rebuild", "parameter %s: invalid apply %s", p.Name, quoted(p.Apply))
	case p.Description == "":
		return r.fail(place, `add @dtesn(description="…")`, "parameter %s has no description", p.Name)
	}
	return nil
}

// readType reads the type of a parameter and what limits it. Whatever a range
// and a list of values cannot say has to be a rule, so that messages, the JSON
// Schema and editors say the same as CUE.
func (r *reader) readType(p *Parameter, v cue.Value, place string) error {
	fail := func(hint, message string, args ...any) error {
		return r.fail(place, hint, "parameter "+p.Name+message, args...)
	}
	v = v.Eval()
	op, parts := v.Expr()
	if op != cue.AndOp && op != cue.OrOp {
		parts = []cue.Value{v}
	}
	if _, ok := v.Default(); ok && v.Err() == nil && !v.IsConcrete() {
		return fail("give it in "+defDefaults, " has a default here")
	}
	types := map[cue.Kind]string{cue.BoolKind: "bool", cue.StringKind: "string", cue.IntKind: "int", cue.NumberKind: "number"}
	p.Type = types[v.IncompleteKind()]
	switch {
	case v.Err() != nil:
		return v.Err()
	case p.Type == "" || p.Type == "bool" && v.IsConcrete():
		return fail("declare it as one of these", " is neither int, number, bool nor a string of listed values")
	case p.Type == "bool":
		p.Range, p.use = "true/false", "use true or false"
		return nil
	case p.Type == "string":
		for _, part := range parts {
			text, err := part.String()
			if err != nil {
				return fail(`write "a" | "b" | "c"`, " is a string without a list of values")
			}
			if !plainWord.MatchString(text) {
				return fail("use words of letters, digits and _ - + .", ": invalid value %s", quoted(text))
			}
			p.Values = append(p.Values, text)
		}
		p.Range, p.use = strings.Join(p.Values, "|"), "use "+strings.Join(p.Values, ", ")
		return nil
	case op == cue.OrOp:
		return fail("write one range, and anything else as a rule", " has alternatives")
	}
	for _, part := range parts {
		op, operands := part.Expr()
		bound := &p.Minimum
		switch {
		case op == cue.NoOp && !part.IsConcrete(): // int or number
			continue
		case op == cue.LessThanEqualOp:
			bound = &p.Maximum
		case op != cue.GreaterThanEqualOp:
			return fail("write bounds with >= and <=, and anything else as a rule", " is limited by %v, which is no inclusive bound", part)
		}
		if err := operands[0].Decode(bound); err != nil {
			return err
		}
		if _, isInt := bound.Int(); p.Type == "int" && !isInt || float(*bound) >= maxExact || float(*bound) <= -maxExact {
			return fail("use one of type "+p.Type+", below 2^53", ": invalid bound %v", *bound)
		}
	}
	if p.Minimum.IsZero() || p.Maximum.IsZero() {
		return fail("write both, for instance "+p.Type+" & >=0 & <=100", " has no bounds")
	}
	article := map[string]string{"int": "an integer", "number": "a number"}[p.Type]
	p.Range, p.use = fmt.Sprintf("%v-%v", p.Minimum, p.Maximum), fmt.Sprintf("use %s from %v to %v", article, p.Minimum, p.Maximum)
	return nil
}

// readRelations reads the rules between parameters, and refuses rules that the
// defaults break or that cannot be evaluated although each operand has one.
func (r *reader) readRelations(rules *Rules, defaults Parameters) error {
	all := rules.evaluate(defaults)
	if !all.Exists() {
		return nil
	}
	fields, err := all.Fields()
	if err != nil {
		return err
	}
	for fields.Next() {
		rule, rel := fields.Value(), relation{name: fields.Selector().Unquoted()}
		place := defParameters + "." + defRules + "." + rel.name
		fail := func(hint, message string, args ...any) error {
			return r.fail(place, hint, "rule "+quote(rel.name)+" "+message, args...)
		}
		err := cmp.Or(lookup(rule, "rule").Decode(&rel.rule), lookup(rule, "operands").Decode(&rel.operands))
		unknown := slices.IndexFunc(rel.operands, func(name string) bool { return !rules.Has(name) })
		switch {
		case err != nil:
			return fail("give it rule, operands, holds, message and hint", "cannot be read: %s", cueMessage(err))
		case rules.Has(rel.name):
			return fail("rename the rule: within it the name would not mean the parameter", "has the name of a parameter")
		case len(rel.operands) == 0 || len(rel.operands) > maxRuleOperands:
			return fail(fmt.Sprintf("name 1 to %d", maxRuleOperands), "has %d operands", len(rel.operands))
		case unknown >= 0:
			return fail(didYouMean(rel.operands[unknown], rules.names), "has an unknown operand, %s", quote(rel.operands[unknown]))
		}
		rules.relations = append(rules.relations, rel)
		isOperand := func(name string) bool { return slices.Contains(rel.operands, name) }
		rule = lookup(rules.evaluate(defaults.Select(isOperand)), rel.name)
		holds, err := lookup(rule, "holds").Bool()
		if err == nil && !holds {
			return r.fail(place, textOf(rule, "hint"), "the defaults break the rule %s in %s: %s", quote(rel.name), rules.environment, textOf(rule, "message"))
		}
		err = cmp.Or(err, rule.Validate(cue.Concrete(true)))
		isOurs := r.fields[place] != nil || r.builtIn.names == nil // else it is not this rule that is wrong
		if err != nil && isOurs && !rel.lacks(defaults) {
			return fail("give it holds, message and hint, and name each parameter that they use in operands",
				"cannot be evaluated with the defaults: %s", cueMessage(err))
		}
	}
	slices.SortFunc(rules.relations, func(a, b relation) int { return strings.Compare(a.name, b.name) })
	return nil
}

// lookup returns the field or the definition of that name, whatever the name holds.
func lookup(v cue.Value, name string) cue.Value {
	if strings.HasPrefix(name, "#") {
		return v.LookupPath(cue.MakePath(cue.Def(name)))
	}
	return v.LookupPath(cue.MakePath(cue.Str(name)))
}
