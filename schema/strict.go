package schema

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// violationAt returns a violation of a file that the caller names.
func violationAt(line, column int, rule, message, hint string) *Violation {
	return &Violation{Position: Position{Line: line, Column: column}, Rule: rule, Message: message, Hint: hint}
}

// parseYAML returns the value that a file holds, nil if there is none, and the
// violation if the file must not be used; the caller sets its File. No bytes
// make it panic or hang.
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
		return nil, violationAt(0, 0, "a file is not empty", "the file is empty or holds only comments",
			"restore its content, or write parameters: {} to set nothing here")
	case err != nil:
		return root, syntaxError(text, err)
	case len(documents) > 1:
		return root, violationAt(documents[1].Line, documents[1].Column, "one YAML document in a file", "a second YAML document begins here",
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
		return violationAt(0, 0, fmt.Sprintf("at most %d bytes", MaxFileBytes), fmt.Sprintf("the file is larger than %d KiB", MaxFileBytes>>10),
			"this is probably not a configuration file; remove what does not belong into it")
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
		line, column := bytes.Count(text[:i], []byte("\n"))+1, utf8.RuneCount(text[bytes.LastIndexByte(text[:i], '\n')+1:i])+1
		v := violationAt(line, column, rule, message, hint)
		v.Value = oneLine(string(text[i : i+size]))
		return v
	}
	return nil
}

var (
	yamlPrefix = regexp.MustCompile(`^yaml: (line \d+: )?`)
	// conflict finds what git leaves in a file that it could not merge.
	conflict = regexp.MustCompile(`(?m)^(<<<<<<<|>>>>>>>) `)
)

// syntaxError is the violation of a text that is not YAML.
func syntaxError(text []byte, err error) *Violation {
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
	return violationAt(line, 1, "well-formed YAML", "the file is not YAML: "+oneLine(message), hint)
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
	lines := bytes.SplitAfter(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	for n := len(lines) - 1; n >= max(0, len(lines)-maxTries); n-- {
		if _, err := parseDocuments(bytes.Join(lines[:n], nil)); err == nil {
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
func (d *decoder) refuse(n *yaml.Node, path string, depth int) {
	switch {
	case d.refuseMarks(n, path):
	case n.Kind != yaml.ScalarNode && depth > maxNesting:
		d.refuseNode(n, path, fmt.Sprintf("at most %d levels of nesting", maxNesting),
			fmt.Sprintf("nesting is deeper than %d levels", maxNesting),
			"no key of this format needs more than a few levels; look for a bracket too many")
	case n.Kind == yaml.MappingNode:
		first := map[string]*yaml.Node{}
		for pair := range slices.Chunk(n.Content, 2) {
			d.refuseKey(pair[0], path, first)
			d.refuse(pair[1], join(path, pair[0].Value), depth+1)
		}
	case n.Kind == yaml.SequenceNode:
		for i, item := range n.Content {
			d.refuse(item, index(path, i), depth+1)
		}
	}
}

// refuseNode reports a node whose value is not looked at.
func (d *decoder) refuseNode(n *yaml.Node, path, rule, message, hint string) *Violation {
	d.bad[n] = true
	return d.report(n, path, rule, message, hint)
}

// refuseMarks reports an anchor, a tag, an alias or a null, and whether that
// leaves nothing to look at.
func (d *decoder) refuseMarks(n *yaml.Node, path string) (refused bool) {
	if n.Anchor != "" {
		d.report(n, path, "no anchors", "an anchor, &"+quote(n.Anchor)+", stands here",
			"remove it; what several files share belongs into base.yaml or a template")
	}
	switch {
	case n.Kind == yaml.AliasNode:
		d.refuseNode(n, path, "no aliases", "an alias, *"+quote(n.Value)+", stands here", "write the value itself")
	case n.Style&yaml.TaggedStyle != 0:
		d.refuseNode(n, path, "no tags", "a tag stands here", "remove what begins with !")
	case n.Kind == yaml.ScalarNode && n.Tag == nullTag:
		d.refuseNode(n, path, "no empty values", subject(path)+" has no value", "give it a value or remove it")
	}
	return d.bad[n]
}

// refuseKey reports a key that is no plain word or stands there twice. The first
// key of each name is kept in first.
func (d *decoder) refuseKey(key *yaml.Node, path string, first map[string]*yaml.Node) {
	switch before := first[key.Value]; {
	case key.Kind == yaml.ScalarNode && key.Tag == mergeTag:
		d.refuseNode(key, path, "no merge keys", "a merge key, <<, stands here",
			"write the values themselves, or put them into a template and name it under extends")
	case key.Kind != yaml.ScalarNode || key.Tag == nullTag && key.Style&yaml.TaggedStyle == 0:
		d.refuseNode(key, path, "a key is a word", "a key is "+kindOf(key), "write key: value")
	case d.refuseMarks(key, path):
	case before != nil:
		d.refuseNode(key, join(path, key.Value), "each key once", quote(key.Value)+" is set twice",
			fmt.Sprintf("remove one of them; the first is on line %d", before.Line)).Related = []Position{d.at(before)}
	default:
		first[key.Value] = key
	}
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
func subject(path string) string { return cmp.Or(path, "the file") }

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
