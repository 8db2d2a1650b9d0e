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
	defExtends      = "#extends"
	extendsEmbedded = `"dtesn"`
	embeddedName    = "embedded"
	opRead          = "read schema"
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
// it says `#extends: "dtesn"`. The error is a *problem.Error whose place is the
// file, the line and the column. CUE may compute without end.
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
	if err != nil {
		var pathError *os.PathError
		if errors.As(err, &pathError) {
			err = pathError.Err
		}
		return nil, &problem.Error{Op: opRead, Place: path, Err: err, Hint: "give --schema a CUE file; `agent schema --format cue` prints one"}
	}
	return read(path, text)
}

// A reader reads one schema file. Its methods panic with the *problem.Error that
// read returns.
type reader struct {
	path     string
	schema   *Schema
	fields   map[string]*ast.Field // of the file: "#Parameters.cache_ttl_seconds"
	names    []string              // of the parameters in the file
	builtIn  *Rules                // that the file extends; empty if it does not
	compared []*ast.BasicLit       // with #environment
	words    int                   // that the field has listed so far
}

// read reads the schema file at path, which has this text.
func read(path string, text []byte) (s *Schema, err error) {
	s = &Schema{file: path, text: text, context: cuecontext.New(), labels: map[Environment]string{}, rules: map[Environment]*Rules{}}
	r := &reader{path: path, schema: s, fields: map[string]*ast.Field{}, builtIn: &Rules{}}
	defer func() {
		switch p := recover().(type) {
		case nil:
		case *problem.Error:
			s, err = nil, p
		default: // in CUE
			s, err = nil, problem.New(opRead+" "+path, errors.New("CUE cannot evaluate it: "+oneLine(fmt.Sprint(p))), "simplify the schema file")
		}
	}()
	own, err := parser.ParseFile(path, text, parser.ParseComments)
	r.must(err)
	r.index(own)
	root := s.context.BuildFile(r.extend(own))
	missing := slices.DeleteFunc([]string{defEnvironments, defParameters, defDefaults, defPercent},
		func(def string) bool { return lookup(root, def).Exists() })
	if len(missing) > 0 {
		r.must(root.Err())
		r.fail("", "declare it; `agent schema --format cue` prints a schema to begin from", "missing: %s", strings.Join(missing, ", "))
	}
	r.readEnvironments(root)
	for i, env := range s.environments {
		if i > 0 && &text[0] == &embedded[0] { // it is the same in all, which a test holds: a start is quicker
			same := *s.first()
			same.environment = env
			s.rules[env] = &same
		} else {
			r.readRules(env, root.FillPath(cue.ParsePath(defEnvironment), string(env)))
		}
	}
	for _, p := range r.builtIn.parameters {
		place, isSame := defParameters+"."+p.Name, true
		for _, rules := range s.rules {
			q := rules.Parameter(p.Name)
			isSame = isSame && q.Range == p.Range && q.Required == p.Required
		}
		if f := r.fields[place]; f != nil && (isSame || len(f.Attrs) > 0 || f.Constraint == token.OPTION && p.Required) {
			r.fail(place, "repeat its ! or ?, and write bounds within "+p.Range+"; or replace the schema", "an extension can only narrow %s", p.Name)
		}
	}
	r.must(root.Validate()) // what no one has looked at so far
	return s, nil
}

// fail ends the reading with the error of a field, or of the nearest one around
// it that the file has.
func (r *reader) fail(place, hint, message string, args ...any) {
	for ; place != ""; place = place[:max(0, strings.LastIndexByte(place, '.'))] {
		if f := r.fields[place]; f != nil {
			r.failAt(f.Pos(), hint, message, args...)
		}
	}
	r.failAt(token.NoPos, hint, message, args...)
}

func (r *reader) failAt(pos token.Pos, hint, message string, args ...any) {
	at := Position{r.path, pos.Line(), pos.Column()}
	panic(&problem.Error{Op: opRead, Place: at.String(), Err: fmt.Errorf(message, args...), Hint: hint})
}

// must ends the reading with an error of CUE, and the place in the file that it is
// about; CUE lists the places of all that conflicts.
func (r *reader) must(err error) {
	if err == nil {
		return
	}
	hint := "correct this line; `agent schema --format cue` prints a schema to compare with"
	first := cueerrors.Errors(err)[0]
	if _, name, ok := strings.Cut(first.Error(), `reference "`); ok {
		hint = suggestion(strings.Split(name, `"`)[0], append(r.names, r.builtIn.names...), hint)
	}
	for _, p := range cueerrors.Positions(first) {
		if p.Filename() == r.path {
			r.failAt(p, hint, "%s", cueMessage(err))
		}
	}
	r.fail(strings.Join(first.Path(), "."), hint, "%s", cueMessage(err))
}

// cueMessage returns the first of the errors that err has, on one line.
func cueMessage(err error) string {
	return shorten(cueerrors.Errors(err)[0].Error(), maxCUEMessage, escape)
}

// index notes the places of all fields, and refuses what CUE allows and a schema
// file must not have.
func (r *reader) index(file *ast.File) {
	var path []string
	ast.Walk(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportDecl:
			r.failAt(n.Pos(), "remove the import; a schema file stands alone", "imports are not allowed")
		case *ast.EmbedDecl: // CUE 0.17.1 exhausts the stack over some
			r.failAt(n.Pos(), "write name: value, or & where it goes on from the line before", "a value without a name")
		case *ast.Attribute:
			if key, _ := n.Split(); key != "dtesn" {
				r.failAt(n.Pos(), "remove it; the only attribute is @dtesn", "unknown attribute @%s", quote(key))
			}
		case *ast.BinaryExpr:
			text, isText := n.Y.(*ast.BasicLit)
			if n.Op != token.OR {
				// no list of words
			} else if r.words++; r.words >= maxWords {
				r.failAt(n.Pos(), fmt.Sprintf("list at most %d", maxWords), "too many alternatives")
			}
			if name, ok := n.X.(*ast.Ident); ok && isText && name.Name == defEnvironment && (n.Op == token.EQL || n.Op == token.NEQ) {
				r.compared = append(r.compared, text)
			}
		case *ast.Comprehension:
			for _, clause := range n.Clauses {
				if len(path) > 0 && path[0] == defParameters && len(path) < 3 { // outside of a rule
					r.checkCondition(clause)
				}
			}
		case *ast.Field:
			r.indexField(path, n)
			name, _ := fieldOf(n)
			path, r.words = append(path, name), 0
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
}

// indexField notes a field. It refuses a parameter that is declared twice, or is
// neither required nor optional, and a name that is unknown in its place, which
// CUE takes for another one.
func (r *reader) indexField(path []string, f *ast.Field) {
	name, _ := fieldOf(f)
	place := strings.Join(append(slices.Clip(path), name), ".")
	if len(f.Attrs) > 1 && strings.HasPrefix(f.Attrs[1].Text, "@dtesn(") {
		r.failAt(f.Attrs[1].Pos(), "merge it with the first", "a second @dtesn")
	}
	if first := r.fields[place]; first == nil {
		r.fields[place] = f
	} else if len(f.Attrs) > 0 {
		r.failAt(f.Pos(), fmt.Sprintf("remove one of them; the first is on line %d", first.Pos().Line()),
			"parameter %s is declared twice", quote(name))
	}
	isPlain := name != "" && !strings.HasPrefix(name, "#") && !strings.HasPrefix(name, "_")
	var known []string
	switch {
	case len(path) == 1 && path[0] == defParameters && isPlain:
		r.names = append(r.names, name)
		if parameterName.MatchString(name) && f.Constraint == token.ILLEGAL && len(f.Attrs) > 0 {
			r.failAt(f.Pos(), fmt.Sprintf("write %s! if some file must set it, else %s?", name, name),
				"parameter %s has neither ! nor ?", name)
		}
	case len(path) == 0:
		known = []string{defParameters, defDefaults, defEnvironments, defEnvironment, defPercent, defExtends, "#Rule", "#Configuration"}
	case len(path) == 1 && path[0] == defParameters:
		known = []string{defRules}
	case len(path) == 2 && path[0] == defEnvironments:
		known = []string{"label"}
	case len(path) == 3 && path[1] == defRules:
		known = []string{"rule", "operands", "holds", "message", "hint"}
	}
	if meant, ok := Suggest(name, known); meant != name && known != nil && (isPlain || ok && strings.HasPrefix(name, "#")) {
		r.failAt(f.Pos(), didYouMean(name, known), "unknown name %s", quote(name))
	}
}

// checkCondition refuses a condition on more than the environment: ranges are read
// before there are values.
func (r *reader) checkCondition(clause ast.Clause) {
	ast.Walk(clause, func(n ast.Node) bool {
		if name, ok := n.(*ast.Ident); ok && name.Name != defEnvironment {
			r.failAt(n.Pos(), "make it a rule, or write if "+defEnvironment+" == …",
				"a condition on %s: it may only depend on %s", quote(name.Name), defEnvironment)
		}
		return true
	}, nil)
}

// fieldOf returns the name of a field, and its fields if it is a struct.
func fieldOf(d ast.Decl) (name string, body *ast.StructLit) {
	if f, ok := d.(*ast.Field); ok {
		name, _, _ = ast.LabelName(f.Label)
		body, _ = f.Value.(*ast.StructLit)
	}
	return name, body
}

// extend returns what is to be compiled: the file, or the embedded one with the
// file's declarations added.
func (r *reader) extend(own *ast.File) *ast.File {
	i := slices.IndexFunc(own.Decls, func(d ast.Decl) bool { name, _ := fieldOf(d); return name == defExtends })
	if i < 0 {
		return own
	}
	if name, ok := own.Decls[i].(*ast.Field).Value.(*ast.BasicLit); !ok || name.Value != extendsEmbedded {
		r.fail(defExtends, "write "+defExtends+": "+extendsEmbedded+", or remove the line to replace the schema",
			"%s names an unknown schema", defExtends)
	}
	r.builtIn = Default().first()
	file, err := parser.ParseFile(embeddedName, embedded, parser.ParseComments)
	r.must(err)
	structs := map[string]*ast.StructLit{}
	for _, d := range file.Decls {
		if name, body := fieldOf(d); body != nil {
			structs[name] = body
		}
	}
	for j, d := range own.Decls {
		name, added := fieldOf(d)
		switch _, isPackage := d.(*ast.Package); {
		case isPackage || j == i:
		case added != nil && structs[name] != nil:
			to := structs[name]
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
	r.schema.text, err = format.Node(file)
	r.must(err)
	return file
}

func (r *reader) readEnvironments(root cue.Value) {
	fields, err := lookup(root, defEnvironments).Fields()
	for err == nil && fields.Next() {
		name := fields.Selector().Unquoted()
		env, place := Environment(name), defEnvironments+"."+name
		if !environmentName.MatchString(name) || env.File() == BaseFile {
			r.fail(place, "use at most 63 of a-z 0-9 -, beginning with a letter, but not base", "invalid environment name %s", quote(name))
		}
		r.schema.environments = append(r.schema.environments, env)
		if label := lookup(fields.Value(), "label"); label.Exists() {
			text, err := label.String()
			if err != nil || !environmentLabel.MatchString(text) {
				r.fail(place+".label", `write 1 to 63 of A-Z a-z 0-9 . _ -, as in canary: {label: "production"}`, "environment %s has an invalid label", env)
			}
			r.schema.labels[env] = text
		}
	}
	if len(r.schema.environments) == 0 {
		r.fail(defEnvironments, "declare them, for instance "+defEnvironments+": {production: {}}", "%s has no environment", defEnvironments)
	}
	for _, text := range r.compared {
		if _, err := r.schema.ParseEnvironment(strings.Trim(text.Value, `"`)); err != nil {
			r.failAt(text.Pos(), "compare with one of them", "%w", err)
		}
	}
}

func (r *reader) readRules(env Environment, root cue.Value) {
	r.must(lookup(root, defEnvironment).Err())
	rules := &Rules{schema: r.schema, environment: env, percent: Parameter{Name: keyPercent, Description: "The share of the fleet that is in the experiment"}, definition: lookup(root, defParameters)}
	share := r.schema.context.CompileString("int & >=0 & <=100")
	r.readType(&rules.percent, lookup(root, defPercent).Unify(share), defPercent)
	fields, err := rules.definition.Fields(cue.Optional(true))
	r.must(err)
	for fields.Next() {
		rules.parameters = append(rules.parameters, r.readParameter(fields, lookup(root, defDefaults)))
	}
	if len(rules.parameters) == 0 {
		r.fail(defParameters, "declare at least one", "%s declares no parameter", defParameters)
	}
	slices.SortFunc(rules.parameters, func(a, b Parameter) int { return strings.Compare(a.Name, b.Name) })
	for _, p := range rules.parameters {
		rules.names = append(rules.names, p.Name)
	}
	r.schema.rules[env] = rules
	for _, place := range slices.Sorted(maps.Keys(r.fields)) {
		name, ok := strings.CutPrefix(place, defDefaults+".")
		if ok && parameterName.MatchString(name) && !rules.Has(name) {
			r.fail(place, didYouMean(name, rules.names), "unknown parameter %s", name)
		}
	}
	first := r.schema.first()
	for _, name := range slices.Concat(rules.names, first.names) {
		if a, b := rules.Parameter(name), first.Parameter(name); a == nil || b == nil || a.Required != b.Required {
			r.fail(defParameters+"."+name, "declare it once for all, and repeat its ! or ? where its bounds depend on the environment",
				"parameter %s is not the same in %s and %s", name, first.environment, env)
		}
	}
	r.readRelations(rules)
}

func (r *reader) readParameter(fields *cue.Iterator, defaults cue.Value) Parameter {
	field, name := fields.Value(), fields.Selector().Unquoted()
	place := defParameters + "." + name
	p := Parameter{Name: name, Required: fields.FieldType()&cue.OptionalConstraint == 0}
	if !parameterName.MatchString(name) {
		r.fail(place, "use at most 64 of a-z 0-9 _, beginning with a letter", "invalid parameter name %s", quote(name))
	}
	r.readType(&p, field, place)
	r.readAttribute(&p, field.Attribute("dtesn"), place)
	p.Managed = p.Managed || p.Required
	value := defaults.LookupPath(cue.MakePath(cue.Str(name)))
	if !value.Exists() {
		if p.Managed {
			r.fail(place, "add it to "+defDefaults, "parameter %s has no default", name)
		}
		return p
	}
	if own := defDefaults + "." + name; r.fields[own] != nil {
		place = own
	}
	var given Value
	err := value.Decode(&given)
	given = encode(given)
	violation := p.check(given, shown(given))
	if err == nil && violation != nil {
		err = fmt.Errorf("%s is not in %s", violation.Value, p.Range)
	}
	if err != nil {
		hint := violation.Hint
		if r.builtIn.Has(name) {
			hint = "keep the built-in default within the bounds, or replace the schema; begin from `agent schema --format cue`"
		}
		r.fail(place, hint, "the default of %s is invalid: %s", name, cueMessage(err))
	}
	p.Default = given
	return p
}

// readAttribute reads @dtesn(managed, apply=rebuild, unit="s", description="…",
// impact="…").
func (r *reader) readAttribute(p *Parameter, attribute cue.Attribute, place string) {
	texts := map[string]*string{"apply": &p.Apply, "description": &p.Description, "impact": &p.Impact, "unit": &p.Unit}
	for i := range attribute.NumArgs() {
		key, value := attribute.Arg(i)
		switch text := texts[key]; {
		case key == "managed" && value == "" && !p.Required:
			p.Managed = true
		case text == nil:
			const hint = `the keys are managed (of an optional one), apply=hot or rebuild, description="…", impact="…" and unit="…"`
			r.fail(place, suggestion(key, slices.Sorted(maps.Keys(texts)), hint), "parameter %s: unexpected %s in @dtesn", p.Name, quoted(key))
		case value == "" || *text != "":
			r.fail(place, "write it once, with a text", "parameter %s: the %s is empty or repeated", p.Name, key)
		default:
			*text = value
		}
	}
	p.Apply = cmp.Or(p.Apply, ApplyHot)
	p.Critical = p.Apply == ApplyRebuild
	if !p.Critical && p.Apply != ApplyHot {
		r.fail(place, "write apply=hot or apply=rebuild", "parameter %s: invalid apply %s", p.Name, quoted(p.Apply))
	}
	if p.Description == "" {
		r.fail(place, `add @dtesn(description="…")`, "parameter %s has no description", p.Name)
	}
}

// readType reads the type of a parameter and what limits it. Whatever a range
// and a list of values cannot say has to be a rule, so that messages, the JSON
// Schema and editors say the same as CUE.
func (r *reader) readType(p *Parameter, v cue.Value, place string) {
	fail := func(hint, message string, args ...any) { r.fail(place, hint, "parameter "+p.Name+message, args...) }
	v = v.Eval()
	op, parts := v.Expr()
	if op != cue.AndOp && op != cue.OrOp {
		parts = []cue.Value{v}
	}
	if _, ok := v.Default(); ok && v.Err() == nil && !v.IsConcrete() {
		fail("give it in "+defDefaults, " has a default here")
	}
	switch kind := v.IncompleteKind(); {
	case kind == cue.BottomKind:
		r.must(v.Err())
	case kind == cue.BoolKind && !v.IsConcrete():
		p.Type, p.Range = "bool", "true/false"
		return
	case kind == cue.StringKind:
		p.Type = "string"
		for _, part := range parts {
			text, err := part.String()
			if err != nil {
				fail(`write "a" | "b" | "c"`, " is a string without a list of values")
			}
			if !plainWord.MatchString(text) {
				fail("use words of letters, digits and _ - + .", ": invalid value %s", quoted(text))
			}
			p.Values = append(p.Values, text)
		}
		p.Range = strings.Join(p.Values, "|")
		return
	case kind == cue.IntKind:
		p.Type = "int"
	case kind == cue.NumberKind:
		p.Type = "number"
	default:
		fail("declare it as one of these", " is neither int, number, bool nor a string of listed values")
	}
	if op == cue.OrOp {
		fail("write one range, and anything else as a rule", " has alternatives")
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
			fail("write bounds with >= and <=, and anything else as a rule", " is limited by %v, which is no inclusive bound", part)
		}
		r.must(operands[0].Decode(bound))
		if _, isInt := bound.Int(); p.Type == "int" && !isInt || float(*bound) >= maxExact || float(*bound) <= -maxExact {
			fail("use one of type "+p.Type+", below 2^53", ": invalid bound %v", *bound)
		}
	}
	if p.Minimum.IsZero() || p.Maximum.IsZero() {
		fail("write both, for instance "+p.Type+" & >=0 & <=100", " has no bounds")
	}
	p.Range = fmt.Sprintf("%v-%v", p.Minimum, p.Maximum)
}

// readRelations reads the rules between parameters, and refuses rules that the
// defaults break or that cannot be evaluated although each operand has one.
func (r *reader) readRelations(rules *Rules) {
	values := map[string]Value{}
	for _, p := range rules.parameters {
		values[p.Name] = p.Default
	}
	defaults := NewParameters(values)
	all := rules.evaluate(defaults)
	if !all.Exists() {
		return
	}
	fields, err := all.Fields()
	r.must(err)
	for fields.Next() {
		rule, rel := fields.Value(), relation{name: fields.Selector().Unquoted()}
		fail := func(hint, message string, args ...any) {
			r.fail(rulePlace(rel.name), hint, "rule "+quote(rel.name)+" "+message, args...)
		}
		err := lookup(rule, "rule").Decode(&rel.rule)
		if err == nil {
			err = lookup(rule, "operands").Decode(&rel.operands)
		}
		if err != nil {
			fail("give it rule, operands, holds, message and hint", "cannot be read: %s", cueMessage(err))
		}
		if rules.Has(rel.name) {
			fail("rename the rule: within it the name would not mean the parameter", "has the name of a parameter")
		}
		if len(rel.operands) == 0 || len(rel.operands) > maxRuleOperands {
			fail(fmt.Sprintf("name 1 to %d", maxRuleOperands), "has %d operands", len(rel.operands))
		}
		for _, name := range rel.operands {
			if !rules.Has(name) {
				fail(didYouMean(name, rules.names), "has an unknown operand, %s", quote(name))
			}
		}
		rules.relations = append(rules.relations, rel)
		isOperand := func(name string) bool { return slices.Contains(rel.operands, name) }
		rule = lookup(rules.evaluate(defaults.Select(isOperand)), rel.name)
		holds, err := lookup(rule, "holds").Bool()
		switch {
		case err == nil && !holds:
			r.fail(rulePlace(rel.name), textOf(rule, "hint"),
				"the defaults break the rule %s in %s: %s", quote(rel.name), rules.environment, textOf(rule, "message"))
		case rel.lacks(defaults):
			continue
		case err == nil:
			err = rule.Validate(cue.Concrete(true))
		}
		if err != nil && (r.fields[rulePlace(rel.name)] != nil || r.builtIn.names == nil) { // else it is not this rule that is wrong
			fail("give it holds, message and hint, and name each parameter that they use in operands",
				"cannot be evaluated with the defaults: %s", cueMessage(err))
		}
	}
	slices.SortFunc(rules.relations, func(a, b relation) int { return strings.Compare(a.name, b.name) })
}

func rulePlace(name string) string { return defParameters + "." + defRules + "." + name }

func lookup(v cue.Value, name string) cue.Value { return v.LookupPath(cue.ParsePath(name)) }
