package schema

import (
	"slices"
	"strings"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/token"
)

// A policyWalker finds unknown names in the syntax tree of a policy. CUE reports most of
// them, but a comparison with _|_ and a default hide the error, and any name is a valid
// string.
type policyWalker struct {
	*Policy
	parts       map[ast.Node]bool // labels, and parts of a longer selector
	whole       map[ast.Node]bool // where change.old and change.new may stand without a name
	experiments map[string]bool   // variables of loops over change.experiments
	parameters  map[string]bool   // variables that are names of parameters
	err         error
}

// lint returns an error for the first unknown name in a file.
func (p *Policy) lint(file *ast.File) error {
	w := &policyWalker{Policy: p, parts: map[ast.Node]bool{}, whole: map[ast.Node]bool{}, experiments: map[string]bool{}, parameters: map[string]bool{}}
	for _, d := range file.Decls {
		if name, _ := fieldOf(d); name == "deny" {
			w.denials(d)
		}
	}
	ast.Walk(file, w.visit, nil)
	return w.err
}

// denials reports a field of deny that CUE does not count as one.
func (w *policyWalker) denials(deny ast.Node) {
	depth := 0
	ast.Walk(deny, func(n ast.Node) bool {
		f, ok := n.(*ast.Field)
		if !ok {
			return true
		}
		if depth == 0 { // deny itself
			depth++
			return true
		}
		name, _, _ := ast.LabelName(f.Label)
		if strings.HasPrefix(name, "_") || strings.HasPrefix(name, "#") || f.Constraint != token.ILLEGAL {
			w.fail(f, "give it a name that begins with a letter, without ? or !", "%s in deny denies nothing: it is hidden, a definition or optional", quote(name))
		}
		return false
	}, nil)
}

var proposalFields = []string{"environment", "old", "new", "changed", "signer", "experiments"}

func (w *policyWalker) fail(n ast.Node, hint, message string, args ...any) {
	if w.err == nil {
		w.err = w.failAt(n.Pos(), hint, message, args...)
	}
}

// known reports a name that is not in the list.
func (w *policyWalker) known(n ast.Node, what, name string, names []string) {
	if !slices.Contains(names, name) {
		w.fail(n, didYouMean(name, names), "unknown %s %s", what, quote(name))
	}
}

// selected returns the root and the names of a selector: change, and old and NAME of
// change.old.NAME. The root is nil if it is not an identifier.
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
		switch {
		case isOf(n.Source, "experiments") && n.Value != nil:
			w.experiments[n.Value.Name] = true
		case isOf(n.Source, "changed") && n.Value != nil:
			w.parameters[n.Value.Name] = true
		case (isOf(n.Source, "new") || isOf(n.Source, "old")) && n.Key != nil:
			w.parameters[n.Key.Name] = true
		}
		w.whole[n.Source] = true
	case *ast.BinaryExpr:
		if n.Op != token.EQL && n.Op != token.NEQ {
			break
		}
		for _, operands := range [][2]ast.Expr{{n.X, n.Y}, {n.Y, n.X}} {
			a, b := operands[0], operands[1]
			if _, isBottom := b.(*ast.BottomLit); isBottom {
				w.whole[a] = true
				if root, names := selected(a); root == nil || root.Name != "change" || names == nil {
					w.fail(n, "compare only change.… with _|_", "a comparison with _|_ of what is not part of change: a mistyped name would pass in silence")
				}
			}
			if isOf(a, "environment") {
				w.literal(b, "environment", w.Environments)
			}
			if id, ok := unparen(a).(*ast.Ident); ok && w.parameters[id.Name] {
				w.literal(b, "parameter", w.Parameters)
			}
		}
	case *ast.CallExpr:
		for name, known := range map[string][]string{"changed": w.Parameters, "environment": w.Environments} {
			if slices.ContainsFunc(n.Args, func(e ast.Expr) bool { return isOf(e, name) }) {
				what := strings.Replace(name, "changed", "parameter", 1)
				for _, e := range n.Args {
					w.literal(e, what, known)
				}
			}
		}
	case *ast.IndexExpr:
		if isOf(n.X, "old") || isOf(n.X, "new") {
			w.whole[n.X] = true
			w.literal(n.Index, "parameter", w.Parameters)
		}
		if id, ok := n.X.(*ast.Ident); ok && w.experiments[id.Name] {
			w.literal(n.Index, "field of an experiment", experimentFields)
		}
	case *ast.LetClause:
		if id, ok := n.Expr.(*ast.Ident); ok && w.experiments[id.Name] {
			w.experiments[n.Ident.Name] = true
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
		if n.Name == "cases" && !w.parts[n] {
			w.fail(n, "give what both need another name", "a rule reads cases, which are not there when a change is judged")
		}
	}
	return w.err == nil
}

// unparen returns an expression without the parentheses around it.
func unparen(n ast.Node) ast.Node {
	for {
		p, ok := n.(*ast.ParenExpr)
		if !ok {
			return n
		}
		n = p.X
	}
}

// literal reports a string literal, or one in a list, that is not among the names.
func (w *policyWalker) literal(n ast.Node, what string, names []string) {
	switch n := unparen(n).(type) {
	case *ast.BasicLit:
		if n.Kind == token.STRING {
			w.known(n, what, strings.Trim(n.Value, `"`), names)
		}
	case *ast.ListLit:
		for _, e := range n.Elts {
			w.literal(e, what, names)
		}
	}
}

var experimentFields = []string{"name", "percent", "was"}

// selector checks a whole selector, such as change.old.NAME.
func (w *policyWalker) selector(n *ast.SelectorExpr) {
	root, names := selected(n)
	if root == nil {
		return
	}
	if w.experiments[root.Name] {
		w.known(n.Sel, "field of an experiment", names[0], experimentFields)
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
