package schema

import (
	"fmt"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxNesting is how deep mappings and lists of a file may stand in each other.
const maxNesting = 32

// Tags that the parser finds by itself.
const (
	mergeTag = "!!merge"
	nullTag  = "!!null"
)

// A walker goes through the nodes of one file: first refuse, which finds what
// no file may use anywhere, then the walk of the file's own kind.
type walker struct {
	*report
	file string
	// bad are the nodes that refuse reported: their values are not looked at.
	bad map[*yaml.Node]bool
	// tags finds explicit tags that the parser forgets; nil if there are none.
	tags *cursor
}

func newWalker(r *report, file string, text []byte) *walker {
	return &walker{report: r, file: file, bad: map[*yaml.Node]bool{}, tags: newCursor(trimBOM(text))}
}

// at is the place of a node.
func (w *walker) at(n *yaml.Node) Position {
	return Position{File: w.file, Line: n.Line, Column: n.Column}
}

// say reports a violation at a node.
func (w *walker) say(n *yaml.Node, path string, v Violation) {
	v.Position, v.Path = w.at(n), path
	w.add(v)
}

// refuse reports anchors, aliases, tags, merge keys, nulls, duplicate keys,
// keys that are no words, and nesting that is too deep, in n and below.
func (w *walker) refuse(n *yaml.Node, path string, depth int) {
	if n.Kind == yaml.AliasNode {
		w.bad[n] = true
		w.say(n, path, Violation{
			Value: quote("*" + n.Value), Rule: "no aliases",
			Message: "an alias, *" + quote(n.Value) + ", stands here",
			Hint:    "write the value itself",
		})
		return
	}
	if w.refuseMarks(n, path) {
		return
	}
	if n.Kind != yaml.ScalarNode && depth > maxNesting {
		w.bad[n] = true
		w.say(n, path, Violation{
			Rule:    fmt.Sprintf("at most %d levels of nesting", maxNesting),
			Message: fmt.Sprintf("nesting is deeper than %d levels", maxNesting),
			Hint:    "no key of this format needs more than a few levels; look for a bracket too many",
		})
		return
	}
	switch n.Kind {
	case yaml.MappingNode:
		first := map[string]*yaml.Node{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			w.refuseKey(n.Content[i], path, first)
			w.refuse(n.Content[i+1], join(path, n.Content[i].Value), depth+1)
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			w.refuse(item, index(path, i), depth+1)
		}
	}
}

// refuseMarks reports an anchor, a tag or a null on the node itself, and
// whether that leaves nothing to look at.
func (w *walker) refuseMarks(n *yaml.Node, path string) (refused bool) {
	if n.Anchor != "" {
		w.say(n, path, Violation{
			Value: quote("&" + n.Anchor), Rule: "no anchors",
			Message: "an anchor, &" + quote(n.Anchor) + ", stands here",
			Hint:    "remove it; what several files share belongs into base.yaml or a template",
		})
	}
	switch {
	case n.Style&yaml.TaggedStyle != 0 || w.tags.tagAt(n):
		w.say(n, path, Violation{
			Value: quote(n.Tag), Rule: "no tags",
			Message: "a tag stands here",
			Hint:    "remove what begins with !",
		})
	case n.Kind == yaml.ScalarNode && n.Tag == nullTag:
		w.say(n, path, Violation{
			Value: oneLine(n.Value), Rule: "no empty values",
			Message: subject(path) + " has no value",
			Hint:    "give it a value or remove it",
		})
	default:
		return false
	}
	w.bad[n] = true
	return true
}

// refuseKey reports a key that is no plain word or stands there twice, and
// marks it bad. The first key of each name is kept in first.
func (w *walker) refuseKey(key *yaml.Node, path string, first map[string]*yaml.Node) {
	switch {
	case key.Kind == yaml.ScalarNode && key.Tag == mergeTag:
		w.bad[key] = true
		w.say(key, path, Violation{
			Value: "<<", Rule: "no merge keys",
			Message: "a merge key, <<, stands here",
			Hint:    "write the values themselves, or put them into a template and name it under extends",
		})
	case key.Kind != yaml.ScalarNode || key.Tag == nullTag && key.Style&yaml.TaggedStyle == 0:
		w.bad[key] = true
		w.say(key, path, Violation{
			Rule:    "a key is a word",
			Message: "a key is " + kindOf(key),
			Hint:    "write key: value",
		})
	case w.refuseMarks(key, path):
	case first[key.Value] != nil:
		w.bad[key] = true
		w.say(key, join(path, key.Value), Violation{
			Rule:    "each key once",
			Message: quote(key.Value) + " is set twice",
			Hint:    fmt.Sprintf("remove one of them; the first is on line %d", first[key.Value].Line),
			Related: []Position{w.at(first[key.Value])},
		})
	default:
		first[key.Value] = key
	}
}

// join appends a key, which may be foreign text, to a path. A path that is
// long already stays as it is.
func join(path, key string) string {
	switch {
	case path == "":
		return quote(key)
	case len(path) > maxForeign:
		return path
	}
	return path + "." + quote(key)
}

// index appends the number of a list's item to a path.
func index(path string, i int) string {
	if len(path) > maxForeign {
		return path
	}
	return fmt.Sprintf("%s[%d]", path, i)
}

// subject is what a message calls the node at path.
func subject(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

// kindOf says what a node is, as messages call it.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	if n.Tag == nullTag {
		return "empty"
	}
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
		return quoted(n.Value)
	}
	return quote(n.Value)
}

// A cursor finds the byte at a line and column. It goes forward, so that
// looking up all nodes of a file in their order takes one pass.
type cursor struct {
	text              []byte
	offset, line, col int
}

// newCursor returns nil if there is nothing to be found.
func newCursor(text []byte) *cursor {
	for _, c := range text {
		if c == '!' {
			return &cursor{text: text, line: 1, col: 1}
		}
	}
	return nil
}

// tagAt reports whether the node begins with "!": the parser forgets the tag
// that is nothing else.
func (c *cursor) tagAt(n *yaml.Node) bool {
	if c == nil {
		return false
	}
	if n.Line < c.line || n.Line == c.line && n.Column < c.col {
		return false
	}
	for c.offset < len(c.text) && (c.line < n.Line || c.line == n.Line && c.col < n.Column) {
		r, size := utf8.DecodeRune(c.text[c.offset:])
		crlf := r == '\r' && c.offset+1 < len(c.text) && c.text[c.offset+1] == '\n'
		c.offset += size
		c.col++
		switch r {
		case '\n', '\r', '\u0085', '\u2028', '\u2029':
			if !crlf {
				c.line, c.col = c.line+1, 1
			}
		}
	}
	return c.offset < len(c.text) && c.text[c.offset] == '!'
}
