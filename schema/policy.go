package schema

import (
	"cmp"
	_ "embed"
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

// A Proposal is a change that a policy judges. Rules read its JSON as change.
type Proposal struct {
	Environment Environment          `json:"environment"`
	Old         *Parameters          `json:"old,omitempty"` // nil if there was nothing
	New         Parameters           `json:"new"`
	Changed     []string             `json:"changed"`
	Signer      string               `json:"signer,omitempty"`
	Experiments []ProposedExperiment `json:"experiments"`

	// Of is the experiment whose instances change; "" for the instances in no experiment.
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

// complete sets Changed, and makes Experiments a list.
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

// ExperimentsChanged reports whether an experiment begins, ends or changes its share.
func ExperimentsChanged(before, now []Membership) bool {
	return slices.ContainsFunc(CompareExperiments(before, now), func(e ProposedExperiment) bool { return e.Was != e.Percent })
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

// policyPackage is the default package name of the files.
const policyPackage = "policy"

// policyCUE is the CUE that the agent adds to a policy, as agentFile.
//
//go:embed policy.cue
var policyCUE string

const agentFile = "(agent)"

// A PolicySource is the files of a policy with the names that it may use.
type PolicySource struct {
	Dir          string   `json:"dir"` // for messages
	Files        []File   `json:"files"`
	Environments []string `json:"environments"`
	Parameters   []string `json:"parameters"`
}

// A Policy judges Proposals by rules in CUE. Evaluating them may never end. It is not safe
// for concurrent use.
type Policy struct {
	PolicySource
	pkg    string
	ready  *cue.Value  // what Prepare built for the next Judge, or nil
	places []token.Pos // of the cases
	// Cases is the number of its cases. UsesSigner is whether a rule reads change.signer.
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

// check parses the files and reports unknown names that CUE would treat as missing fields.
func (p *Policy) check() error {
	hasDeny := false
	for _, f := range p.Files {
		file, err := parser.ParseFile(f.Path, f.Bytes, parser.ParseComments)
		if err != nil {
			return p.locate(err, "correct this line")
		}
		name := cmp.Or(file.PackageName(), policyPackage)
		if p.pkg != "" && p.pkg != name {
			return p.failAt(file.Pos(), "write package "+p.pkg, "package %s, and that of other files is %s", name, p.pkg)
		}
		p.pkg = name
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
		if err := p.lint(file); err != nil {
			return err
		}
	}
	if !hasDeny {
		return p.failAt(token.NoPos, "write deny: {…}, empty if nothing is denied", "deny is missing")
	}
	return nil
}

// build compiles the policy, without a change. It parses the files again, because compiling
// resolves the names in a syntax tree: a tree serves one context.
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
			if name, _ := fieldOf(d); name == "cases" && !withCases { // evaluating them takes time; removing them could leave an import unused
				never := &ast.IfClause{Condition: ast.NewBool(false)}
				file.Decls[i] = &ast.Comprehension{Clauses: []ast.Clause{never}, Value: ast.NewStruct(d)}
			}
		}
		if file.PackageName() == "" {
			file.Decls = append([]ast.Decl{&ast.Package{Name: ast.NewIdent(p.pkg)}}, file.Decls...)
		}
		if err := instance.AddSyntax(file); err != nil {
			return cue.Value{}, err
		}
	}
	own := fmt.Sprintf("package %s\n%s\n_#agentValues: {%s}\n_#agentName: %s_|_\n", p.pkg, policyCUE, values, names)
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
	return cuecontext.New().BuildInstance(instance), nil // a context keeps what it evaluated, so each build has its own
}

// Prepare compiles the policy for the next Judge.
func (p *Policy) Prepare() {
	defer func() { _ = recover() }() // Judge compiles it again, and reports the panic
	if root, err := p.build(false); err == nil {
		p.ready = &root
	}
}

// Judge returns the rules that deny a change. An error of the policy has the place in its
// files.
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

// runCases checks that each case is denied by the rules that it names.
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
			return p.failAt(p.caseAt(), "remove cases that say the same", "more than %d cases", maxCases)
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

// caseAt returns the place of the case with the number p.Cases, if it stands in a list of
// the files. The position of its value is that of _#agentCase.
func (p *Policy) caseAt() token.Pos {
	if p.Cases > len(p.places) {
		return token.NoPos
	}
	return p.places[p.Cases-1]
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
	at := p.caseAt()
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
