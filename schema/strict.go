package schema

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// A File is one file of a configuration.
type File struct {
	// Path is relative to the configuration root, with slashes:
	// "templates/high-throughput.yaml".
	Path  string
	Bytes []byte
	// Refused is why a source did not take the bytes, worded to follow "the file":
	// "is a link that leaves the configuration directory". What follows a "; " is
	// the hint, if replacing it by a regular file is not what helps.
	Refused string

	parsed func() (node, *Violations) // nil if NewFile did not make it
}

// NewFile returns a File that is parsed once, however often it is loaded. The
// bytes must not change afterwards.
func NewFile(path string, text []byte) File {
	return File{path, text, "", sync.OnceValues(func() (node, *Violations) { return parse(path, text) })}
}

func (f *File) parse() (node, *Violations) {
	if f.parsed == nil {
		return parse(f.Path, f.Bytes)
	}
	return f.parsed()
}

// A node is a YAML node and its place. The zero node is absent. The Kind is 0 if
// the node was refused: that is reported, and its value is not looked at.
type node struct {
	*yaml.Node
	file, path string
}

func (n node) at() Position { return Position{n.file, n.Line, n.Column} }

// item returns the item i of a list.
func (n node) item(i int) node {
	return node{n.Content[i], n.file, fmt.Sprintf("%s[%d]", n.path, i)}
}

// pair returns the nodes of a key and its value.
func (n node) pair(key, value *yaml.Node) (node, node) {
	path := quote(key.Value)
	if n.path != "" {
		path = n.path + "." + path
	}
	return node{key, n.file, path}, node{value, n.file, path}
}

// parse returns the value that a file holds, absent if there is none, and what
// this format refuses in it. No bytes make it panic or hang.
func parse(path string, text []byte) (root node, found *Violations) {
	root, found = node{file: path}, &Violations{}
	defer func() {
		if r := recover(); r != nil {
			root.Node = nil
			found.syntaxError(path, nil, fmt.Errorf("yaml: %v", r))
		}
	}()
	if found.checkBytes(path, text); found.Total > 0 {
		return root, found
	}
	text = trimBOM(text)
	first, second, err := parseDocuments(text)
	if first.Kind != 0 {
		root.Node = first.Content[0]
	}
	switch {
	case root.Node == nil && err == nil, root.Node != nil && root.Kind == yaml.ScalarNode && root.Value == "" && root.Style == 0 && root.Anchor == "":
		root.Node = nil
		found.report(Position{File: path}, "a file is not empty", "the file is empty or holds only comments",
			"restore its content, or write parameters: {} to set nothing here")
	case err != nil:
		found.syntaxError(path, text, err)
	case second.Kind != 0:
		found.report(Position{path, second.Line, second.Column}, "one YAML document in a file", "a second YAML document begins here",
			"remove the line --- and merge what follows into the first document")
	}
	found.incomplete = found.Total > 0
	if root.Node != nil {
		found.refuse(root, 1)
	}
	return root, found
}

// parseDocuments parses text to the end of its second document or the first error.
func parseDocuments(text []byte) (first, second yaml.Node, err error) {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err = decoder.Decode(&first); err == nil {
		err = decoder.Decode(&second)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return first, second, err
}

const bom = '\ufeff'

func trimBOM(text []byte) []byte { return bytes.TrimPrefix(text, []byte(string(bom))) }

// checkBytes reports the first byte that no parser should see.
func (v *Violations) checkBytes(path string, text []byte) {
	if len(text) > MaxFileBytes {
		v.report(Position{File: path}, fmt.Sprintf("at most %d bytes", MaxFileBytes), fmt.Sprintf("the file is larger than %d KiB", MaxFileBytes>>10),
			"this is probably not a configuration file; remove what does not belong into it")
		return
	}
	text = trimBOM(text)
	for i, size := 0, 0; i < len(text); i += size {
		var r rune
		r, size = utf8.DecodeRune(text[i:])
		rule, message, hint := "no control characters", "", "remove it"
		switch {
		case r == utf8.RuneError && size == 1:
			rule, message, hint = "UTF-8", fmt.Sprintf("byte 0x%02x is not UTF-8", text[i]), "save the file as UTF-8"
		case r == 0:
			message, hint = "the file holds a NUL byte", "save the file as UTF-8 text; UTF-16 and torn writes look like this"
		case r == bom:
			message = "a byte order mark stands behind the beginning of the file, where nobody sees it"
			hint = "remove it; it comes from joining files, or from an editor that adds one to what has one"
		case r < ' ' && r != '\t' && r != '\n' && r != '\r', r == 0x7f:
			message = fmt.Sprintf("the file holds a control character, 0x%02x", r)
		default:
			continue
		}
		at := Position{path, bytes.Count(text[:i], []byte("\n")) + 1, utf8.RuneCount(text[bytes.LastIndexByte(text[:i], '\n')+1:i]) + 1}
		v.report(at, rule, message, hint).Value = oneLine(string(text[i : i+size]))
		return
	}
}

var (
	yamlPrefix = regexp.MustCompile(`^yaml: (line \d+: )?`)
	// conflict finds what git leaves in a file that it could not merge.
	conflict = regexp.MustCompile(`(?m)^(<<<<<<<|>>>>>>>) `)
)

// syntaxError reports a text that is not YAML.
func (v *Violations) syntaxError(path string, text []byte, err error) {
	line := brokenLine(text)
	if line == 0 {
		line = 1
		_, _ = fmt.Sscanf(err.Error(), "yaml: line %d: ", &line)
	}
	message := yamlPrefix.ReplaceAllString(err.Error(), "")
	hint := "check the indentation, colons, brackets and quotation marks of this line and the one before"
	switch {
	case conflict.Match(text):
		hint = "resolve the merge conflict, and remove the lines that begin with <<<<<<<, ======= and >>>>>>>"
	case strings.Contains(message, "cannot start any token"):
		hint = "indent with spaces, not tabs, and quote text that begins with @ or `"
	case strings.Contains(message, "unknown anchor"):
		hint = "write the value itself; quote text that begins with *"
	case strings.Contains(message, "incompatible YAML document"):
		hint = "remove the line that begins with %"
	case strings.Contains(message, "<document start>"):
		hint = "remove the line ..., which ends a document, or what follows it"
	}
	v.report(Position{path, line, 1}, "well-formed YAML", "the file is not YAML: "+oneLine(message), hint)
}

// brokenLine finds the first line behind the longest run of lines that is YAML; the
// parser says where the surrounding mapping or list begins, or nothing. It is 0
// where the search would take long.
func brokenLine(text []byte) int {
	const maxSearch, maxTries = 8 << 10, 100
	if len(text) > maxSearch {
		return 0
	}
	lines := bytes.SplitAfter(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	for n := len(lines) - 1; n >= max(0, len(lines)-maxTries); n-- {
		if _, _, err := parseDocuments(bytes.Join(lines[:n], nil)); err == nil {
			return n + 1
		}
	}
	return 0
}

// maxNesting is how deep mappings and lists of a file may stand in each other.
const maxNesting = 32

// Tags that the parser finds by itself.
const (
	mergeTag = "!!merge"
	nullTag  = "!!null"
)

// refuse reports what YAML allows and no file of this format may use: anchors,
// aliases, tags, merge keys, nulls, duplicate keys, keys that are no words, and
// nesting that is too deep, in n and below.
func (v *Violations) refuse(n node, depth int) {
	switch {
	case v.refuseMarks(n):
	case n.Kind != yaml.ScalarNode && depth > maxNesting:
		v.refuseNode(n, fmt.Sprintf("at most %d levels of nesting", maxNesting), fmt.Sprintf("nesting is deeper than %d levels", maxNesting),
			"no key of this format needs more than a few levels; look for a bracket too many")
	case n.Kind == yaml.MappingNode:
		first := map[string]node{}
		for pair := range slices.Chunk(n.Content, 2) {
			key, value := n.pair(pair[0], pair[1])
			v.refuseKey(key, n.path, first)
			v.refuse(value, depth+1)
		}
	case n.Kind == yaml.SequenceNode:
		for i := range n.Content {
			v.refuse(n.item(i), depth+1)
		}
	}
}

// refuseNode reports a node whose value is not looked at.
func (v *Violations) refuseNode(n node, rule, message, hint string) *Violation {
	violation := v.reportNode(n, rule, message, hint)
	n.Kind = 0
	return violation
}

// refuseMarks reports an anchor, a tag, an alias or a null, and whether that
// leaves nothing to look at.
func (v *Violations) refuseMarks(n node) (refused bool) {
	if n.Anchor != "" {
		v.reportNode(n, "no anchors", "an anchor, &"+quote(n.Anchor)+", stands here",
			"remove it; what several files share belongs into base.yaml or a template")
	}
	switch {
	case n.Kind == yaml.AliasNode:
		v.refuseNode(n, "no aliases", "an alias, *"+quote(n.Value)+", stands here", "write the value itself")
	case n.Style&yaml.TaggedStyle != 0:
		v.refuseNode(n, "no tags", "a tag stands here", "remove what begins with !")
	case n.Kind == yaml.ScalarNode && n.Tag == nullTag:
		v.refuseNode(n, "no empty values", cmp.Or(n.path, "the file")+" has no value", "give it a value or remove it")
	}
	return n.Kind == 0
}

// refuseKey reports a key that is no plain word, or that is in first already, which
// has the first key of each name; outer is the path of the mapping.
func (v *Violations) refuseKey(key node, outer string, first map[string]node) {
	inner := node{key.Node, key.file, outer}
	switch before, isRepeated := first[key.Value]; {
	case key.Kind == yaml.ScalarNode && key.Tag == mergeTag:
		v.refuseNode(inner, "no merge keys", "a merge key, <<, stands here",
			"write the values themselves, or put them into a template and name it under extends")
	case key.Kind != yaml.ScalarNode || key.Tag == nullTag && key.Style&yaml.TaggedStyle == 0:
		v.refuseNode(inner, "a key is a word", "a key is "+kindOf(key.Node), "write key: value")
	case v.refuseMarks(inner):
	case isRepeated:
		v.refuseNode(key, "each key once", quote(key.Value)+" is set twice",
			fmt.Sprintf("remove one of them; the first is on line %d", before.Line)).Related = []Position{before.at()}
	default:
		first[key.Value] = key
	}
}

var kindNames = map[yaml.Kind]string{
	yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list", yaml.AliasNode: "an alias", yaml.ScalarNode: "text",
}

// kindOf says what a node is, as messages call it.
func kindOf(n *yaml.Node) string {
	switch {
	case n.Kind != yaml.ScalarNode:
		return kindNames[n.Kind]
	case n.Tag == nullTag:
		return "empty"
	case n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
		return quoted(n.Value)
	}
	return quote(n.Value)
}
