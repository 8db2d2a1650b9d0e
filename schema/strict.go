package schema

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// violationAt returns the violation at a position; its file may still be unknown.
func violationAt(at Position, rule, message, hint string) *Violation {
	return &Violation{Position: at, Rule: rule, Message: message, Hint: hint}
}

// parseYAML returns the value that a file holds, and why it is not to be used:
// nothing, if it is fit. The value is nil if there is none. The File of the
// violation is for the caller to set. No bytes make it panic or hang.
func parseYAML(text []byte) (root *yaml.Node, v *Violation) {
	defer func() {
		if r := recover(); r != nil {
			root, v = nil, syntaxError(nil, fmt.Errorf("yaml: %v", r))
		}
	}()
	if v := checkBytes(text); v != nil {
		return nil, v
	}
	text = trimBOM(text)
	documents, err := parseDocuments(text)
	if len(documents) > 0 {
		root = documents[0].Content[0]
	}
	switch {
	case root == nil && err == nil, root != nil && root.Kind == yaml.ScalarNode && root.Value == "" && root.Style == 0 && root.Anchor == "":
		return nil, violationAt(Position{}, "a file is not empty", "the file is empty or holds only comments",
			"restore its content, or write parameters: {} to set nothing here")
	case err != nil:
		return root, syntaxError(text, err)
	case len(documents) > 1:
		return root, violationAt(Position{Line: documents[1].Line, Column: documents[1].Column},
			"one YAML document in a file", "a second YAML document begins here",
			"remove the line --- and merge what follows into the first document")
	}
	return root, nil
}

// parseDocuments parses text to the end of its second YAML document or to the
// first error.
func parseDocuments(text []byte) (documents []*yaml.Node, err error) {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for len(documents) < 2 {
		document := new(yaml.Node)
		if err := decoder.Decode(document); err == io.EOF {
			break
		} else if err != nil {
			return documents, err
		}
		documents = append(documents, document)
	}
	return documents, nil
}

const bom = '\ufeff'

func trimBOM(text []byte) []byte { return bytes.TrimPrefix(text, []byte(string(bom))) }

// checkBytes refuses what no parser should see.
func checkBytes(text []byte) *Violation {
	if len(text) > MaxFileBytes {
		return violationAt(Position{}, fmt.Sprintf("at most %d bytes", MaxFileBytes),
			fmt.Sprintf("the file is larger than %d KiB", MaxFileBytes>>10),
			"this is probably not a configuration file; remove what does not belong into it")
	}
	text = trimBOM(text)
	for i, r := range string(text) {
		if r == utf8.RuneError && !bytes.HasPrefix(text[i:], []byte(string(r))) {
			v := violationAt(positionOf(text, i), "UTF-8", fmt.Sprintf("byte 0x%02x is not UTF-8", text[i]), "save the file as UTF-8")
			v.Value = fmt.Sprintf(`\x%02x`, text[i])
			return v
		}
		if r < ' ' && !strings.ContainsRune("\t\n\r", r) || r == 0x7f || r == bom {
			return controlCharacter(positionOf(text, i), r)
		}
	}
	return nil
}

func controlCharacter(at Position, r rune) *Violation {
	v := violationAt(at, "no control characters", fmt.Sprintf("the file holds a control character, 0x%02x", r), "remove it")
	v.Value = fmt.Sprintf(`\x%02x`, r)
	switch r {
	case 0:
		v.Message = "the file holds a NUL byte"
		v.Hint = "save the file as UTF-8 text; UTF-16 and torn writes look like this"
	case bom:
		v.Value = `\ufeff`
		v.Message = "a byte order mark stands behind the beginning of the file, where nobody sees it"
		v.Hint = "remove it; it comes from joining files, or from an editor that adds one to what has one"
	}
	return v
}

// positionOf is the line and the column, in characters, of the byte at offset.
func positionOf(text []byte, offset int) Position {
	start := bytes.LastIndexByte(text[:offset], '\n') + 1
	return Position{Line: bytes.Count(text[:offset], []byte("\n")) + 1, Column: utf8.RuneCount(text[start:offset]) + 1}
}

var yamlLine = regexp.MustCompile(`^line (\d+): `)

// syntaxError is the violation of a text that is not YAML.
func syntaxError(text []byte, err error) *Violation {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if m := yamlLine.FindStringSubmatch(message); m != nil {
		line, _ = strconv.Atoi(m[1])
		message = strings.TrimPrefix(message, m[0])
	}
	if l := brokenLine(text); l > 0 {
		line = l
	}
	return violationAt(Position{Line: line, Column: 1}, "well-formed YAML", "the file is not YAML: "+oneLine(message), syntaxHint(text, message))
}

// conflict finds what git leaves in a file that it could not merge.
var conflict = regexp.MustCompile(`(?m)^(<<<<<<<|>>>>>>>) `)

// syntaxHint says what to do about text of which the parser says message.
func syntaxHint(text []byte, message string) string {
	switch {
	case conflict.Match(text):
		return "resolve the merge conflict, and remove the lines that begin with <<<<<<<, ======= and >>>>>>>"
	case strings.Contains(message, "cannot start any token"):
		return "indent with spaces, not tabs, and quote text that begins with @ or `"
	case strings.Contains(message, "unknown anchor"):
		return "write the value itself; quote text that begins with *"
	case strings.Contains(message, "incompatible YAML document"):
		return "remove the line that begins with %"
	case strings.Contains(message, "<document start>"):
		return "remove the line ..., which ends a document, or what follows it"
	}
	return "check the indentation, colons, brackets and quotation marks of this line and the one before"
}

// brokenLine finds the line from which on a text is not YAML: the first behind
// the longest run of whole lines that is. The parser itself says where the
// surrounding mapping or list begins, or nothing. It is 0 where the search
// would take long.
func brokenLine(text []byte) int {
	const maxSearch, maxTries = 8 << 10, 100
	if len(text) > maxSearch {
		return 0
	}
	for try := 0; try < maxTries && len(text) > 0; try++ {
		text = text[:bytes.LastIndexByte(bytes.TrimSuffix(text, []byte("\n")), '\n')+1]
		if _, err := parseDocuments(text); err == nil {
			return bytes.Count(text, []byte("\n")) + 1
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
func (d *decoder) refuse(n *yaml.Node, path string, depth int) {
	switch {
	case n.Kind == yaml.AliasNode:
		d.bad[n] = true
		d.report(n, path, "no aliases", "an alias, *"+quote(n.Value)+", stands here", "write the value itself")
	case d.refuseMarks(n, path):
	case n.Kind != yaml.ScalarNode && depth > maxNesting:
		d.bad[n] = true
		d.report(n, path, fmt.Sprintf("at most %d levels of nesting", maxNesting), fmt.Sprintf("nesting is deeper than %d levels", maxNesting),
			"no key of this format needs more than a few levels; look for a bracket too many")
	case n.Kind == yaml.MappingNode:
		first := map[string]*yaml.Node{}
		for key, value := range pairsOf(n) {
			d.refuseKey(key, path, first)
			d.refuse(value, join(path, key.Value), depth+1)
		}
	case n.Kind == yaml.SequenceNode:
		for i, item := range n.Content {
			d.refuse(item, index(path, i), depth+1)
		}
	}
}

// refuseMarks reports an anchor, a tag or a null on the node itself, and
// whether that leaves nothing to look at.
func (d *decoder) refuseMarks(n *yaml.Node, path string) (refused bool) {
	if n.Anchor != "" {
		d.report(n, path, "no anchors", "an anchor, &"+quote(n.Anchor)+", stands here",
			"remove it; what several files share belongs into base.yaml or a template")
	}
	switch {
	case n.Style&yaml.TaggedStyle != 0 || d.beginsWithTag(n):
		d.report(n, path, "no tags", "a tag stands here", "remove what begins with !")
	case n.Kind == yaml.ScalarNode && n.Tag == nullTag:
		d.report(n, path, "no empty values", subject(path)+" has no value", "give it a value or remove it")
	default:
		return false
	}
	d.bad[n] = true
	return true
}

// refuseKey reports a key that is no plain word or stands there twice, and
// marks it bad. The first key of each name is kept in first.
func (d *decoder) refuseKey(key *yaml.Node, path string, first map[string]*yaml.Node) {
	switch before := first[key.Value]; {
	case key.Kind == yaml.ScalarNode && key.Tag == mergeTag:
		d.report(key, path, "no merge keys", "a merge key, <<, stands here",
			"write the values themselves, or put them into a template and name it under extends")
	case key.Kind != yaml.ScalarNode || key.Tag == nullTag && key.Style&yaml.TaggedStyle == 0:
		d.report(key, path, "a key is a word", "a key is "+kindOf(key), "write key: value")
	case d.refuseMarks(key, path):
	case before != nil:
		d.report(key, join(path, key.Value), "each key once", quote(key.Value)+" is set twice",
			fmt.Sprintf("remove one of them; the first is on line %d", before.Line)).Related = []Position{d.at(before)}
	default:
		first[key.Value] = key
		return
	}
	d.bad[key] = true
}

// lineBreak is what the YAML parser counts as the end of a line.
var lineBreak = regexp.MustCompile("\r\n|[\n\r\u0085\u2028\u2029]")

// beginsWithTag reports whether the node begins with "!". The parser forgets a
// tag that is nothing else.
func (d *decoder) beginsWithTag(n *yaml.Node) bool {
	return n.Line <= len(d.lines) && n.Column <= len(d.lines[n.Line-1]) && d.lines[n.Line-1][n.Column-1] == '!'
}

// join appends a key, which may be foreign text, to a path.
func join(path, key string) string {
	if path == "" {
		return quote(key)
	}
	return path + "." + quote(key)
}

func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

// subject is what a message calls the node at path.
func subject(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

// kindOf says what a node is, as messages call it.
func kindOf(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.AliasNode:
		return "an alias"
	case n.Tag == nullTag:
		return "empty"
	case n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
		return quoted(n.Value)
	}
	return quote(n.Value)
}
