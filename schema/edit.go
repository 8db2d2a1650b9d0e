package schema

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"dtesn-agent/schema/problem"
)

// An Edit gives a parameter of a file a value, or removes it with the zero Value.
type Edit struct {
	Name  string
	Value Value
	From  string // the name that it has in the file, if that is to change
}

// EditFile returns the file with other parameters. Only the bytes of a value, or the line
// of a parameter, differ: comments, order, blank lines, indentation and line ends stay. A
// file that has what this format refuses is not edited; the error is then its Violations.
// What comes out was parsed again, and has exactly the values that were asked for.
func EditFile(file File, edits ...Edit) (File, error) {
	if file.Refused != "" {
		why, hint, _ := strings.Cut(file.Refused, "; ")
		return file, &problem.Error{Op: "edit", Place: file.Path, Err: errors.New("the file " + why), Hint: cmp.Or(hint, "replace it by a regular file")}
	}
	for _, edit := range edits {
		e, err := newEditor(file.Path, file.Bytes)
		if err == nil && edit.From != "" {
			if err = e.rename(edit.From, edit.Name); err == nil {
				e, err = newEditor(file.Path, e.text)
			}
		}
		if err != nil {
			return file, err
		}
		if err = e.apply(edit); err == nil {
			err = e.verify(edit)
		}
		if err != nil {
			return file, err
		}
		file = NewFile(file.Path, e.text)
	}
	return file, nil
}

// An editor splices bytes into one file.
type editor struct {
	path  string
	text  []byte
	lines []int // where each line begins
	eol   string
	root  node
}

func newEditor(path string, text []byte) (*editor, error) {
	root, found := parse(path, text)
	if root.Node != nil && root.Kind != yaml.MappingNode {
		found.reportNode(root, kindNames[yaml.MappingNode], "the file is "+kindOf(root.Node)+", not "+kindNames[yaml.MappingNode], "write lines of key: value")
	}
	if found = found.cut(); found != nil {
		found.addText([]File{{Path: path, Bytes: text}})
		return nil, found
	}
	e := &editor{path: path, text: slices.Clone(text), root: root, eol: "\n"}
	e.lines = []int{len(text) - len(trimBOM(text))}
	for i := e.lines[0]; i < len(text); {
		size := breakAt(text[i:])
		if size > 0 {
			e.lines = append(e.lines, i+size)
		}
		i += max(1, size)
	}
	if bytes.Contains(text, []byte("\r\n")) {
		e.eol = "\r\n"
	}
	return e, nil
}

// breakAt returns the length of the line break that text begins with, as YAML counts
// lines; 0 if it begins with none.
func breakAt(text []byte) int {
	for _, b := range []string{"\r\n", "\n", "\r", "\u0085", "\u2028", "\u2029"} {
		if bytes.HasPrefix(text, []byte(b)) {
			return len(b)
		}
	}
	return 0
}

// byHand returns an error for what cannot be edited safely.
func (e *editor) byHand(n *yaml.Node, format string, args ...any) error {
	at := Position{e.path, n.Line, n.Column}
	return &problem.Error{Op: "edit", Place: at.String(), Err: fmt.Errorf(format, args...), Hint: "edit this place by hand"}
}

// start returns where a node begins.
func (e *editor) start(n *yaml.Node) int {
	if n.Line < 1 || n.Line > len(e.lines) {
		return len(e.text)
	}
	i := e.lines[n.Line-1]
	for range n.Column - 1 {
		_, size := utf8.DecodeRune(e.text[i:])
		i += size
	}
	return i
}

// end returns where a scalar ends.
func (e *editor) end(n *yaml.Node) (int, error) {
	begin := e.start(n)
	rest := string(e.text[begin:])
	switch {
	case n.Kind != yaml.ScalarNode:
		return 0, e.byHand(n, "%s stands where a value belongs", kindOf(n))
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		return 0, e.byHand(n, "a block of text stands here")
	case n.Style&yaml.DoubleQuotedStyle != 0 && strings.HasPrefix(rest, `"`):
		for i := 1; i < len(rest); i++ {
			if rest[i] == '\\' {
				i++
			} else if rest[i] == '"' {
				return begin + i + 1, nil
			}
		}
	case n.Style&yaml.SingleQuotedStyle != 0 && strings.HasPrefix(rest, "'"):
		for i := 1; i < len(rest); i++ {
			if rest[i] == '\'' && strings.HasPrefix(rest[i+1:], "'") {
				i++
			} else if rest[i] == '\'' {
				return begin + i + 1, nil
			}
		}
	case n.Style == 0 && n.Value != "" && strings.HasPrefix(rest, n.Value):
		return begin + len(n.Value), nil
	}
	return 0, e.byHand(n, "a text of several lines stands here")
}

// splice replaces the bytes from begin to end.
func (e *editor) splice(begin, end int, text string) {
	e.text = slices.Concat(e.text[:begin], []byte(text), e.text[end:])
}

// lineOf returns where the line of a node begins, and its indentation. It is an error if
// something else stands before the node.
func (e *editor) lineOf(n *yaml.Node) (begin int, indent string, err error) {
	begin = e.lines[n.Line-1]
	indent = string(e.text[begin:e.start(n)])
	if strings.Trim(indent, " ") != "" {
		err = e.byHand(n, "%s does not begin its line", quote(n.Value))
	}
	return begin, indent, err
}

// lineEnd returns where the line behind offset i begins, and whether there is a line break.
func (e *editor) lineEnd(i int) (end int, hasBreak bool) {
	for ; i < len(e.text); i++ {
		if size := breakAt(e.text[i:]); size > 0 {
			return i + size, true
		}
	}
	return i, false
}

// find returns the pair of a key, nil if the mapping does not have it.
func find(mapping *yaml.Node, key string) (i int, k, v *yaml.Node) {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return i, mapping.Content[i], mapping.Content[i+1]
		}
	}
	return -1, nil, nil
}

func isFlow(n *yaml.Node) bool { return n.Style&yaml.FlowStyle != 0 }

func (e *editor) apply(edit Edit) error {
	_, key, mapping := find(e.root.Node, keyParameters)
	switch {
	case mapping == nil && edit.Value.IsZero():
		return nil
	case mapping == nil:
		return e.addSection(edit)
	case mapping.Kind != yaml.MappingNode:
		return e.byHand(mapping, "%s is %s, not %s", keyParameters, kindOf(mapping), kindNames[yaml.MappingNode])
	}
	i, name, value := find(mapping, edit.Name)
	switch {
	case value == nil && edit.Value.IsZero():
		return nil
	case value == nil:
		return e.add(mapping, edit)
	case edit.Value.IsZero() && isFlow(mapping):
		return e.removeFlow(mapping, i)
	case edit.Value.IsZero():
		return e.removeLine(key, mapping, name, value)
	}
	end, err := e.end(value)
	if err == nil {
		e.splice(e.start(value), end, spell(edit.Value, value.Style))
	}
	return err
}

// rename gives a parameter another name, which the file does not have yet.
func (e *editor) rename(from, to string) error {
	var key, value, taken *yaml.Node
	if _, _, mapping := find(e.root.Node, keyParameters); mapping != nil && mapping.Kind == yaml.MappingNode {
		_, key, value = find(mapping, from)
		_, taken, _ = find(mapping, to)
	}
	if key == nil || taken != nil || value.Kind != yaml.ScalarNode {
		return e.byHand(e.root.Node, "%s cannot be renamed to %s", quote(from), quote(to))
	}
	end, err := e.end(key)
	if err != nil {
		return err
	}
	before := contentOf(e.root, from)
	e.splice(e.start(key), end, spell(Text(to), key.Style))
	if root, found := parse(e.path, e.text); found.Total > 0 || root.Node == nil || !maps.Equal(before, contentOf(root, to)) {
		return e.byHand(key, "%s cannot be renamed safely", quote(from))
	}
	return nil
}

var plainText = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_./-]*$`)

// spell returns a value in YAML, in the style that the value before had. A quoted number
// loses its quotes.
func spell(v Value, style yaml.Style) string {
	text, isText := v.Text()
	_, isWord := boolWords[strings.ToLower(text)]
	switch {
	case !isText:
		return v.json
	case style&yaml.SingleQuotedStyle != 0 && escape(text) == text:
		return "'" + strings.ReplaceAll(text, "'", "''") + "'"
	case style == 0 && plainText.MatchString(text) && !isWord && !strings.EqualFold(text, "null"):
		return text
	}
	return v.json
}

// pairText returns a pair as the keys beside it are written.
func pairText(edit Edit, beside *yaml.Node) string {
	if beside != nil && beside.Style&yaml.DoubleQuotedStyle != 0 {
		return strconv.Quote(edit.Name) + ": " + spell(edit.Value, yaml.DoubleQuotedStyle)
	}
	return edit.Name + ": " + spell(edit.Value, 0)
}

// add adds a parameter behind the last one.
func (e *editor) add(mapping *yaml.Node, edit Edit) error {
	n := len(mapping.Content)
	if n == 0 { // {}: a block cannot be empty
		begin := e.start(mapping) + 1
		e.splice(begin, begin, pairText(edit, nil))
		return nil
	}
	key, value := mapping.Content[n-2], mapping.Content[n-1]
	end, err := e.end(value)
	if err != nil {
		return err
	}
	if isFlow(mapping) {
		e.splice(end, end, ", "+pairText(edit, key))
		return nil
	}
	_, indent, err := e.lineOf(key)
	if err == nil {
		e.addLines(end, indent+pairText(edit, key))
	}
	return err
}

// addLines adds lines behind the line of offset i, which may lack its line break.
func (e *editor) addLines(i int, lines ...string) {
	text := strings.Join(lines, e.eol)
	next, hasBreak := e.lineEnd(i)
	if hasBreak {
		text += e.eol
	} else {
		text = e.eol + text
	}
	e.splice(next, next, text)
}

// addSection adds the parameters that the file lacks.
func (e *editor) addSection(edit Edit) error {
	if isFlow(e.root.Node) {
		for i := 0; i < len(e.root.Content); i += 2 {
			key, value := e.root.Content[i], e.root.Content[i+1]
			if end, err := e.end(value); err == nil {
				section := keyParameters
				if key.Style&yaml.DoubleQuotedStyle != 0 {
					section = strconv.Quote(section)
				}
				e.splice(end, end, ", "+section+": {"+pairText(edit, key)+"}")
				return nil
			}
		}
		return e.byHand(e.root.Node, "there is no %s", keyParameters)
	}
	_, indent, err := e.lineOf(e.root.Content[0])
	if err != nil {
		return err
	}
	lines := []string{indent + keyParameters + ":", indent + "  " + pairText(edit, nil)}
	if last := e.lines[len(e.lines)-1]; last == len(e.text) { // the text ends with a line break
		e.splice(last, last, strings.Join(lines, e.eol)+e.eol)
		return nil
	}
	e.addLines(len(e.text), lines...)
	return nil
}

// removeLine removes the line of a parameter; section is the key of the mapping.
func (e *editor) removeLine(section, mapping, name, value *yaml.Node) error {
	begin, _, err := e.lineOf(name)
	if err != nil {
		return err
	}
	end, err := e.end(value)
	if err != nil {
		return err
	}
	next, _ := e.lineEnd(end)
	e.splice(begin, next, "")
	if len(mapping.Content) > 2 {
		return nil
	}
	colon, err := e.end(section)
	if err != nil {
		return err
	}
	colon += bytes.IndexByte(e.text[colon:], ':') + 1
	e.splice(colon, colon, " {}")
	return nil
}

// removeFlow removes the pair i of a mapping in braces, and a comma.
func (e *editor) removeFlow(mapping *yaml.Node, i int) error {
	key, value := mapping.Content[i], mapping.Content[i+1]
	begin := e.start(key)
	end, err := e.end(value)
	if err != nil {
		return err
	}
	between := ""
	switch {
	case i+2 < len(mapping.Content):
		next := e.start(mapping.Content[i+2])
		between, end = string(e.text[end:next]), next
	case i > 0:
		before, err := e.end(mapping.Content[i-1])
		if err != nil {
			return err
		}
		between, begin = string(e.text[before:begin]), before
	default:
		if rest := strings.TrimLeft(string(e.text[end:]), " \t\r\n"); strings.HasPrefix(rest, ",") {
			end = len(e.text) - len(rest) + 1
		}
	}
	if between != "" && strings.TrimSpace(between) != "," {
		return e.byHand(key, "a comment stands beside %s", quote(key.Value))
	}
	e.splice(begin, end, "")
	return nil
}

// verify parses the text again: it must have the value of the edit, and else what it had.
func (e *editor) verify(edit Edit) error {
	root, found := parse(e.path, e.text)
	refuse := func(why string) error {
		return e.byHand(e.root.Node, "%s cannot be edited safely: %s", quote(edit.Name), why)
	}
	if len(e.text) > MaxFileBytes {
		return found.cut()
	}
	if found.Total > 0 || root.Node == nil || root.Kind != yaml.MappingNode {
		return refuse("the file would not be valid YAML any more")
	}
	if !maps.Equal(contentOf(e.root, edit.Name), contentOf(root, edit.Name)) {
		return refuse("something else would change")
	}
	var value *yaml.Node
	if _, _, mapping := find(root.Node, keyParameters); mapping != nil {
		_, _, value = find(mapping, edit.Name)
	}
	text, isText := edit.Value.Text()
	switch {
	case edit.Value.IsZero() && value == nil:
	case value == nil || value.Kind != yaml.ScalarNode:
		return refuse("it would not have this value")
	case isText && value.Value != text, !isText && (value.Style != 0 || value.Value != edit.Value.json):
		return refuse("it would not have this value")
	}
	return nil
}

// contentOf returns the scalars of a file by path, but for one parameter.
func contentOf(root node, except string) map[string]string {
	content := map[string]string{}
	var visit func(n node)
	visit = func(n node) {
		switch n.Kind {
		case yaml.MappingNode:
			for pair := range slices.Chunk(n.Content, 2) {
				if key, value := n.pair(pair[0], pair[1]); n.path != keyParameters || key.Value != except {
					visit(value)
				}
			}
		case yaml.SequenceNode:
			content[n.path] = strconv.Itoa(len(n.Content))
			for i := range n.Content {
				visit(n.item(i))
			}
		default:
			content[n.path] = fmt.Sprint(n.Style, n.Tag, n.Value)
		}
	}
	visit(root)
	return content
}
