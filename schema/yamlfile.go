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

// The names of the files of a configuration directory.
const (
	// BaseFile holds the shared defaults.
	BaseFile = "base.yaml"
	// templatePrefix and fileSuffix surround the name of a template.
	templatePrefix = "templates/"
	fileSuffix     = ".yaml"
)

// File is the path of the environment's file: "production.yaml".
func (e Environment) File() string { return string(e) + fileSuffix }

// templateFile is the path of a template: "templates/high-throughput.yaml".
func templateFile(name string) string { return templatePrefix + name + fileSuffix }

// maxStructure bounds the marks of a file that can each begin a node: line
// ends, commas, colons, brackets. The parser spends up to 600 bytes on a mark,
// so that 1 MiB of them would take 300 MB. Files of this format have dozens.
const maxStructure = 20_000

// parseYAML turns the bytes of a file into the mapping it holds. What makes
// that impossible is returned as a violation: its File is for the caller to
// set. No bytes make it panic, hang or take more than some tens of megabytes.
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
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var first, second yaml.Node
	err := decoder.Decode(&first)
	if err == io.EOF {
		return nil, emptyFile()
	} else if err != nil {
		return nil, syntaxError(text, err)
	}
	if root = first.Content[0]; root.Kind == yaml.ScalarNode && root.Value == "" && root.Style == 0 && root.Anchor == "" {
		return nil, emptyFile()
	}
	switch err := decoder.Decode(&second); {
	case err == nil:
		return root, &Violation{
			Position: Position{Line: second.Line, Column: second.Column},
			Rule:     "one YAML document in a file",
			Message:  "a second YAML document begins here",
			Hint:     "remove the line --- and merge what follows into the first document",
		}
	case err != io.EOF:
		return root, syntaxError(text, err)
	}
	return root, nil
}

// bom is the byte order mark.
const bom = '\ufeff'

// trimBOM removes a leading UTF-8 byte order mark.
func trimBOM(text []byte) []byte { return bytes.TrimPrefix(text, []byte(string(bom))) }

// checkBytes refuses what no parser should see.
func checkBytes(text []byte) *Violation {
	if len(text) > MaxFileBytes {
		return &Violation{
			Rule:    fmt.Sprintf("at most %d bytes", MaxFileBytes),
			Message: "the file is larger than 1 MiB",
			Hint:    "this is probably not a configuration file; remove what does not belong into it",
		}
	}
	if !utf8.Valid(text) {
		i := 0
		for r, n := utf8.DecodeRune(text); r != utf8.RuneError || n > 1; r, n = utf8.DecodeRune(text[i:]) {
			i += n
		}
		return &Violation{
			Position: positionOf(text, i),
			Value:    fmt.Sprintf(`\x%02x`, text[i]),
			Rule:     "UTF-8",
			Message:  fmt.Sprintf("byte 0x%02x is not UTF-8", text[i]),
			Hint:     "save the file as UTF-8",
		}
	}
	if i := bytes.IndexFunc(trimBOM(text), isControl); i >= 0 {
		return controlCharacter(trimBOM(text), i)
	}
	if line := structureExceeds(text, maxStructure); line > 0 {
		return &Violation{
			Position: Position{Line: line, Column: 1},
			Rule:     fmt.Sprintf("at most %d line ends, commas, colons and brackets", maxStructure),
			Message:  "the file has too much structure",
			Hint:     "this is probably not a configuration file; remove what does not belong into it",
		}
	}
	return nil
}

func isControl(r rune) bool {
	return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0x7f || r == bom
}

// controlCharacter is the violation of the one at offset.
func controlCharacter(text []byte, offset int) *Violation {
	r, _ := utf8.DecodeRune(text[offset:])
	v := &Violation{
		Position: positionOf(text, offset),
		Value:    fmt.Sprintf(`\x%02x`, r),
		Rule:     "no control characters",
		Message:  fmt.Sprintf("the file holds a control character, 0x%02x", r),
		Hint:     "remove it",
	}
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
	before := trimBOM(text[:offset])
	start := bytes.LastIndexByte(before, '\n') + 1
	return Position{Line: bytes.Count(before, []byte("\n")) + 1, Column: utf8.RuneCount(before[start:]) + 1}
}

// structureExceeds returns the line on which text passes limit marks, 0 if it
// does not. It counts too many rather than too few: it does not know strings.
// A comment line is free until the first quotation mark outside of comments,
// since behind an open one it would not be a comment.
func structureExceeds(text []byte, limit int) int {
	marks, line, quotes, comment, blank := 0, 1, false, false, true
	for i, c := range string(text) {
		switch c {
		case '\n', '\r', '\u0085', '\u2028', '\u2029': // YAML's line breaks
			if !blank && !comment {
				marks++
			}
			if c == '\n' {
				line++
			}
			comment, blank = false, true
			continue
		case ' ', '\t':
			continue
		case '#':
			comment = comment || blank && !quotes
		case '"', '\'':
			quotes = quotes || !comment
		case ',', ':', '[', '{', '?':
			if !comment {
				marks++
			}
		case '-':
			if end := i + 1; !comment && (end == len(text) || text[end] <= ' ' || text[end] >= utf8.RuneSelf) {
				marks++
			}
		}
		blank = false
		if marks > limit {
			return line
		}
	}
	return 0
}

func emptyFile() *Violation {
	return &Violation{
		Rule:    "a file is not empty",
		Message: "the file is empty or holds only comments",
		Hint:    "restore its content, or write parameters: {} to set nothing here",
	}
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
	return &Violation{
		Position: Position{Line: line, Column: 1},
		Rule:     "well-formed YAML",
		Message:  "the file is not YAML: " + oneLine(message),
		Hint:     syntaxHint(text, message),
	}
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
		if wellFormedYAML(text) {
			return bytes.Count(text, []byte("\n")) + 1
		}
	}
	return 0
}

func wellFormedYAML(text []byte) bool {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var n yaml.Node
		if err := decoder.Decode(&n); err != nil {
			return err == io.EOF
		}
	}
}
