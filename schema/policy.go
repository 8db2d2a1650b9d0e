package schema

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/build"
	"cuelang.org/go/cue/cuecontext"
	cueerrors "cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/parser"
	"cuelang.org/go/cue/token"

	"dtesn-agent/schema/problem"
)

// A Proposal is a change that a policy judges. Its JSON is what rules see as `change`.
type Proposal struct {
	Environment Environment          `json:"environment"`
	Old         *Parameters          `json:"old,omitempty"` // nil if there was nothing
	New         Parameters           `json:"new"`
	Changed     []string             `json:"changed"`
	Signer      string               `json:"signer,omitempty"`
	Experiments []ProposedExperiment `json:"experiments"`

	// Of is the experiment whose instances it is about; "" for all others.
	Of string `json:"-"`
}

// A ProposedExperiment is an experiment of a Proposal. Was is 0 if it begins, Percent if it
// ends.
type ProposedExperiment struct {
	Name    string `json:"name"`
	Percent int    `json:"percent"`
	Was     int    `json:"was"`
}

// Propose returns the Proposal to replace old, nil if there was nothing, by now.
func (r *Rules) Propose(old *Parameters, now Parameters, experiments []ProposedExperiment) Proposal {
	p := Proposal{Environment: r.environment, New: now, Experiments: append([]ProposedExperiment{}, experiments...)}
	if old != nil {
		known := r.Known(*old)
		p.Old = &known
	}
	p.complete()
	return p
}

// complete adds what follows from the rest.
func (p *Proposal) complete() {
	old := Parameters{}
	if p.Old != nil {
		old = *p.Old
	}
	p.Changed = []string{}
	for _, c := range p.New.Diff(old) {
		p.Changed = append(p.Changed, c.Parameter)
	}
	if p.Experiments == nil {
		p.Experiments = []ProposedExperiment{}
	}
}

// CompareExperiments returns the experiments of now with the share that they had before,
// and those that ended.
func CompareExperiments(before, now []Membership) (list []ProposedExperiment) {
	was := map[string]int{}
	for _, m := range before {
		was[m.Name] = m.Percent
	}
	for _, m := range now {
		list = append(list, ProposedExperiment{m.Name, m.Percent, was[m.Name]})
		delete(was, m.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(was)) {
		list = append(list, ProposedExperiment{name, 0, was[name]})
	}
	return list
}

// A Denial is a rule of a policy that a Proposal breaks.
type Denial struct {
	Name       string   `json:"name"`
	Parameters []string `json:"parameters,omitempty"`
	Message    string   `json:"message"`
	Hint       string   `json:"hint,omitempty"`
}

// String returns the denial on one line, without its hint.
func (d Denial) String() string {
	text := d.Name + ": " + d.Message
	if len(d.Parameters) > 0 {
		text += " (" + strings.Join(d.Parameters, ", ") + ")"
	}
	return text
}

// Bounds of a policy.
const (
	maxDenials    = 50
	maxDenialText = 400 // bytes of a message or hint
	maxCases      = 256
)

// policyPackage is the package of files without a package clause.
const policyPackage = "policy"

// agentFile is the file that the agent adds to a policy.
const agentFile = "(agent)"

// A PolicySource is the files of a policy with the names that it may use.
type PolicySource struct {
	Dir          string   `json:"dir"` // for messages
	Files        []File   `json:"files"`
	Environments []string `json:"environments"`
	Parameters   []string `json:"parameters"`
}

// A Policy judges Proposals by rules in CUE, which may compute without end.
type Policy struct {
	PolicySource
	name   string      // of the package
	ready  *cue.Value  // of the next Judge, nil if it is not prepared
	places []token.Pos // of the cases
	// Cases is how many cases it was checked with. UsesSigner: a rule asks who signed.
	Cases      int
	UsesSigner bool
}

// OpenPolicy reads a policy and runs its cases. The error is a *problem.Error with the
// place.
func OpenPolicy(source PolicySource) (p *Policy, err error) {
	p = &Policy{PolicySource: source}
	defer func() { err = p.recovered(recover(), err) }()
	if err := p.check(); err != nil {
		return nil, err
	}
	return p, p.runCases()
}

// recovered returns the error for a panic in CUE.
func (p *Policy) recovered(panicked any, err error) error {
	if panicked == nil {
		return err
	}
	return p.failAt(token.NoPos, "simplify the policy", "CUE cannot evaluate it: %s", oneLine(fmt.Sprint(panicked)))
}

func (p *Policy) failAt(pos token.Pos, hint, message string, args ...any) error {
	place := p.Dir
	if pos.IsValid() {
		place = Position{filepath.Join(p.Dir, pos.Filename()), pos.Line(), pos.Column()}.String()
	}
	return &problem.Error{Op: "policy", Place: place, Err: fmt.Errorf(message, args...), Hint: hint}
}

// locate adds a place in the files and a hint to an error of CUE.
func (p *Policy) locate(err error, hint string) error {
	if own, ok := errors.AsType[*problem.Error](err); ok {
		return own
	}
	first := cueerrors.Errors(err)[0]
	message := cueMessage(err)
	if strings.Contains(message, "optional field") {
		hint = "ask first whether it is there, as in if change.old != _|_, or give a default, as in *change.signer | \"\""
	}
	for _, at := range append([]token.Pos{first.Position()}, cueerrors.Positions(first)...) {
		if at.IsValid() && at.Filename() != agentFile {
			return p.failAt(at, hint, "%s", message)
		}
	}
	return p.failAt(token.NoPos, hint, "%s", message)
}

// check parses the files and refuses the names that CUE would take for absent.
func (p *Policy) check() error {
	hasDeny := false
	for _, f := range p.Files {
		file, err := parser.ParseFile(f.Path, f.Bytes, parser.ParseComments)
		if err != nil {
			return p.locate(err, "correct this line")
		}
		name := cmp.Or(file.PackageName(), policyPackage)
		if p.name != "" && p.name != name {
			return p.failAt(file.Pos(), "write package "+p.name, "package %s, and that of other files is %s", name, p.name)
		}
		p.name = name
		for _, d := range file.Decls {
			field, _ := fieldOf(d)
			hasDeny = hasDeny || field == "deny"
			if f, ok := d.(*ast.Field); ok && field == "cases" {
				if list, ok := f.Value.(*ast.ListLit); ok {
					for _, e := range list.Elts {
						p.places = append(p.places, e.Pos())
					}
				}
			}
			if field == "change" {
				return p.failAt(d.Pos(), "remove it: the agent gives it", "change is declared")
			}
		}
		w := &policyWalker{Policy: p, parts: map[ast.Node]bool{}, whole: map[ast.Node]bool{}, experiments: map[string]bool{}}
		ast.Walk(file, w.visit, nil)
		if w.err != nil {
			return w.err
		}
	}
	if !hasDeny {
		return p.failAt(token.NoPos, "write deny: {…}, empty if nothing is denied", "deny is missing")
	}
	return nil
}

// A policyWalker finds names that are unknown. CUE reports most of them; but a comparison
// with _|_ and a default swallow the error, and a text is any text.
type policyWalker struct {
	*Policy
	parts       map[ast.Node]bool // labels, and parts of a chain of names
	whole       map[ast.Node]bool // chains that may end with change.old
	experiments map[string]bool   // names that a for gives to one of change.experiments
	err         error
}

var proposalFields = []string{"environment", "old", "new", "changed", "signer", "experiments"}

func (w *policyWalker) fail(n ast.Node, hint, message string, args ...any) {
	if w.err == nil {
		w.err = w.failAt(n.Pos(), hint, message, args...)
	}
}

// known refuses a name that is not one of a list.
func (w *policyWalker) known(n ast.Node, what, name string, names []string) {
	if !slices.Contains(names, name) {
		w.fail(n, didYouMean(name, names), "unknown %s %s", what, quote(name))
	}
}

// selected returns the names of a chain such as change.old.NAME; nil if it is another one.
func selected(n ast.Node) (root *ast.Ident, names []string) {
	for {
		s, ok := n.(*ast.SelectorExpr)
		if !ok {
			root, _ = n.(*ast.Ident)
			return root, names
		}
		name, _, _ := ast.LabelName(s.Sel)
		names, n = append([]string{name}, names...), s.X
	}
}

// isOf reports whether n is change.NAME.
func isOf(n ast.Node, name string) bool {
	root, names := selected(n)
	return root != nil && root.Name == "change" && slices.Equal(names, []string{name})
}

func (w *policyWalker) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.ImportSpec:
		if path := strings.Trim(n.Path.Value, `"`); strings.Contains(path, ".") || strings.HasPrefix(path, "tool") {
			w.fail(n, `import only packages of CUE itself, such as "list", "strings" and "math"`, "import of %s is not allowed", quote(path))
		}
	case *ast.Field:
		w.parts[n.Label] = true
		name, _, _ := ast.LabelName(n.Label)
		if list, ok := n.Value.(*ast.ListLit); ok && name == "parameters" {
			for _, e := range list.Elts {
				w.literal(e, "parameter", w.Parameters)
			}
		}
	case *ast.ForClause:
		if isOf(n.Source, "experiments") && n.Value != nil {
			w.experiments[n.Value.Name] = true
		}
		w.whole[n.Source] = true
	case *ast.BinaryExpr:
		if n.Op != token.EQL && n.Op != token.NEQ {
			break
		}
		for a, b := range map[ast.Expr]ast.Expr{n.X: n.Y, n.Y: n.X} {
			if _, isBottom := b.(*ast.BottomLit); isBottom {
				w.whole[a] = true
				if root, names := selected(a); root == nil || root.Name != "change" || names == nil {
					w.fail(n, "compare only change.… with _|_", "a comparison with _|_ of what is not part of change: a mistyped name would pass in silence")
				}
			}
			if isOf(a, "environment") {
				w.literal(b, "environment", w.Environments)
			}
		}
	case *ast.CallExpr:
		if slices.ContainsFunc(n.Args, func(e ast.Expr) bool { return isOf(e, "changed") }) {
			for _, e := range n.Args {
				w.literal(e, "parameter", w.Parameters)
			}
		}
	case *ast.IndexExpr:
		if isOf(n.X, "old") || isOf(n.X, "new") {
			w.whole[n.X] = true
			w.literal(n.Index, "parameter", w.Parameters)
		}
	case *ast.SelectorExpr:
		if !w.parts[n] {
			w.selector(n)
		}
		w.parts[n.Sel], w.parts[n.X] = true, true
	case *ast.Ident:
		if n.Name == "change" && !w.parts[n] {
			w.fail(n, "write change.NAME at each place", "change without a name: what is mistyped of it would pass in silence")
		}
	}
	return w.err == nil
}

// literal refuses a text that is not one of a list.
func (w *policyWalker) literal(n ast.Node, what string, names []string) {
	if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
		w.known(n, what, strings.Trim(lit.Value, `"`), names)
	}
}

// selector checks a chain of names, from its end.
func (w *policyWalker) selector(n *ast.SelectorExpr) {
	root, names := selected(n)
	if root == nil {
		return
	}
	if w.experiments[root.Name] {
		w.known(n.Sel, "field of an experiment", names[0], []string{"name", "percent", "was"})
	}
	if root.Name != "change" {
		return
	}
	w.known(n.Sel, "field of change", names[0], proposalFields)
	w.UsesSigner = w.UsesSigner || names[0] == "signer"
	if isValues := names[0] == "old" || names[0] == "new"; isValues && len(names) > 1 {
		w.known(n.Sel, "parameter", names[1], w.Parameters)
	} else if isValues && !w.whole[n] {
		w.fail(n, "write change."+names[0]+".NAME at each place", "change.%s without a name: what is mistyped of it would pass in silence", names[0])
	}
}

// build compiles the policy, without a change.
func (p *Policy) build(withCases bool) (cue.Value, error) {
	values, names := "", ""
	for _, name := range p.Parameters {
		values += fmt.Sprintf("%q?: _\n", name)
		names += fmt.Sprintf("%q | ", name)
	}
	instance := build.NewContext().NewInstance("", nil)
	for _, f := range p.Files {
		text := f.Bytes
		file, err := parser.ParseFile(f.Path, text, parser.ParseComments)
		if err != nil {
			return cue.Value{}, err
		}
		for i, d := range file.Decls {
			if name, _ := fieldOf(d); name == "cases" && !withCases { // they take time; without them an import may be unused
				never := &ast.IfClause{Condition: ast.NewBool(false)}
				file.Decls[i] = &ast.Comprehension{Clauses: []ast.Clause{never}, Value: ast.NewStruct(d)}
			}
		}
		if file.PackageName() == "" {
			file.Decls = append([]ast.Decl{&ast.Package{Name: ast.NewIdent(p.name)}}, file.Decls...)
		}
		if err := instance.AddSyntax(file); err != nil {
			return cue.Value{}, err
		}
	}
	own := "package " + p.name + `
_#agentExperiment: {name!: string, percent!: int, was!: int}
_#agentValues: {` + values + `}
_#agentChange: {
	environment!: string, old?: _#agentValues, new!: _#agentValues, changed!: [...string], signer?: string
	experiments!: [..._#agentExperiment]
}
_#agentCase: {
	change!: {
		environment!: string, old?: _#agentValues, new!: _#agentValues, changed?: [...string], signer?: string
		experiments?: [..._#agentExperiment]
	}
	deny!: [...string]
	name?: string
}
change: _#agentChange
_#agentDenial: {parameters?: [...(` + names + `_|_)], message!: string, hint?: string}
deny: [string]: _#agentDenial
cases: [..._#agentCase]
`
	file, err := parser.ParseFile(agentFile, own)
	if err != nil {
		return cue.Value{}, err
	}
	if err := instance.AddSyntax(file); err != nil {
		return cue.Value{}, err
	}
	if err := instance.Complete(); err != nil {
		return cue.Value{}, err
	}
	return cuecontext.New().BuildInstance(instance), nil // a context that is used again grows
}

// Prepare does what it can of the next Judge ahead.
func (p *Policy) Prepare() {
	defer func() { _ = recover() }() // Judge finds it again
	if root, err := p.build(false); err == nil {
		p.ready = &root
	}
}

// Judge returns the rules that deny a change. The error says where the policy cannot judge
// it.
func (p *Policy) Judge(of Proposal) (denied []Denial, err error) {
	defer func() { err = p.recovered(recover(), err) }()
	text, err := json.Marshal(of)
	if err != nil {
		return nil, err
	}
	if p.ready == nil {
		root, err := p.build(false)
		if err != nil {
			return nil, p.locate(err, "correct this line")
		}
		p.ready = &root
	}
	change := cuecontext.New().CompileBytes(text, cue.Filename(agentFile))
	root := p.ready.FillPath(cue.ParsePath("change"), change)
	p.ready = nil
	const hint = "correct the rule; `agent validate --policy DIR` shows whether it holds for the cases"
	if err := cmp.Or(root.Err(), root.Validate()); err != nil {
		return nil, p.locate(err, hint)
	}
	deny := lookup(root, "deny")
	if err := deny.Validate(cue.Concrete(true), cue.Final()); err != nil {
		return nil, p.locate(err, hint)
	}
	fields, err := deny.Fields()
	if err != nil {
		return nil, p.locate(err, hint)
	}
	for fields.Next() {
		d := Denial{
			Name:    problem.Line(fields.Selector().Unquoted(), maxForeign),
			Message: problem.Line(textOf(fields.Value(), "message"), maxDenialText), Hint: problem.Line(textOf(fields.Value(), "hint"), maxDenialText),
		}
		if list := lookup(fields.Value(), "parameters"); list.Exists() {
			if err := list.Decode(&d.Parameters); err != nil {
				return nil, p.locate(err, hint)
			}
		}
		if len(denied) == maxDenials {
			return nil, p.failAt(token.NoPos, "let one rule name several parameters", "more than %d denials", maxDenials)
		}
		denied = append(denied, d)
	}
	return denied, nil
}

// runCases checks that each case is denied by what it says.
func (p *Policy) runCases() error {
	root, err := p.build(true)
	if err != nil {
		return p.locate(err, "correct this line")
	}
	if err := cmp.Or(root.Err(), root.Validate()); err != nil {
		return p.locate(err, "correct this line")
	}
	list, err := lookup(root, "cases").List()
	for err == nil && list.Next() {
		if p.Cases++; p.Cases > maxCases {
			return p.failAt(list.Value().Pos(), "remove cases that say the same", "more than %d cases", maxCases)
		}
		if err := p.runCase(list.Value()); err != nil {
			return err
		}
	}
	if err != nil {
		return p.locate(err, "write cases: [{change: {…}, deny: [\"NAME\"]}]")
	}
	return nil
}

func (p *Policy) runCase(v cue.Value) error {
	const hint = "write cases: [{change: {environment: \"…\", new: {…}}, deny: [\"NAME\"]}]"
	if err := v.Validate(cue.Concrete(true), cue.Final()); err != nil {
		return p.locate(err, hint)
	}
	var c struct {
		Change Proposal `json:"change"`
		Deny   []string `json:"deny"`
	}
	text, err := v.MarshalJSON()
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	at := token.NoPos
	if p.Cases <= len(p.places) {
		at = p.places[p.Cases-1]
	}
	if err != nil {
		return p.failAt(at, hint, "case %d: %w", p.Cases, err)
	}
	if !slices.Contains(p.Environments, string(c.Change.Environment)) {
		return p.failAt(at, didYouMean(string(c.Change.Environment), p.Environments), "case %d: unknown environment %s", p.Cases, quote(string(c.Change.Environment)))
	}
	given := c.Change.Changed
	if c.Change.complete(); given != nil {
		c.Change.Changed = given
	}
	denied, err := p.Judge(c.Change)
	if err != nil {
		return p.failAt(at, problem.Hint(err), "case %d cannot be judged: %w", p.Cases, err)
	}
	var got []string
	for _, d := range denied {
		got = append(got, d.Name)
	}
	slices.Sort(got)
	slices.Sort(c.Deny)
	if slices.Equal(got, slices.Compact(c.Deny)) {
		return nil
	}
	way := "correct the rule, or deny of the case"
	for _, name := range c.Deny {
		if !slices.Contains(got, name) {
			way = suggestion(name, got, way)
		}
	}
	return p.failAt(at, way, "case %d is denied by %s, and should be by %s", p.Cases, listOr(got), listOr(c.Deny))
}

// listOr returns the names, or "nothing".
func listOr(names []string) string { return cmp.Or(strings.Join(names, ", "), "nothing") }
