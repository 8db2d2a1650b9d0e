package schema

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"dtesn-agent/schema/problem"
)

// A Position is a place in a file. Line and Column count from 1; 0 means the
// file as a whole.
type Position struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}

// String returns the position as compilers write it: "file:line:column", or the
// file alone.
func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// A Violation is one broken rule of a configuration.
type Violation struct {
	Position
	Path      string `json:"path,omitempty"`      // where in the file: "parameters.cache_ttl_seconds"
	Parameter string `json:"parameter,omitempty"` // the parameter concerned, if it is one
	Value     string `json:"value,omitempty"`     // what the file says, as written, at most 80 bytes
	Rule      string `json:"rule"`                // what is broken: "64-16384", "known keys only"
	// Message says what is wrong, Hint what to do, each on one line.
	Message string     `json:"message"`
	Hint    string     `json:"hint,omitempty"`
	Related []Position `json:"related,omitempty"` // the other places concerned, such as the other operand
	Text    string     `json:"text,omitempty"`    // that line of the file, at most 200 bytes
	Fix     *Fix       `json:"fix,omitempty"`     // nil unless it is certain what was meant
}

// A Fix is a change of one line that ends a violation: the line as it is and as it
// should be, without the line feed.
type Fix struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Old  string `json:"old"`
	New  string `json:"new"`
}

// fix notes that the violation, which is at n, ends if text stands there instead.
func (v *Violation) fix(n node, text string) {
	quotes := map[yaml.Style]string{0: "", yaml.SingleQuotedStyle: "'", yaml.DoubleQuotedStyle: `"`}
	if quote, ok := quotes[n.Style]; ok && n.Kind == yaml.ScalarNode {
		v.Fix = &Fix{v.File, v.Line, quote + n.Value + quote, text}
	}
}

// inLine completes a Fix that has what is to be replaced by what; nil if that does
// not stand in the line.
func (f *Fix) inLine(line string, column int) *Fix {
	const maxLine = 1000 // bytes
	runes := []rune(line)
	if f == nil || len(line) > maxLine || column < 1 || column > len(runes) {
		return nil
	}
	before, rest := string(runes[:column-1]), string(runes[column-1:])
	rest, ok := strings.CutPrefix(rest, f.Old)
	if !ok {
		return nil
	}
	return &Fix{f.File, f.Line, line, before + f.New + rest}
}

// String returns the violation on one line, without what is empty or said twice:
// "file:line:col: parameter: what is wrong (rule: the rule); what to do".
func (v Violation) String() string {
	s := v.Message
	switch {
	case v.Parameter != "" && (v.File != "" || !strings.Contains(v.Message, v.Parameter)):
		s = v.Parameter + ": " + s
	case v.Path != "" && !strings.Contains(v.Message, v.Path):
		s = v.Path + ": " + s
	}
	if v.File != "" {
		s = v.Position.String() + ": " + s
	}
	if v.Rule != "" {
		s += " (rule: " + v.Rule + ")"
	}
	if v.Hint != "" {
		s += "; " + v.Hint
	}
	for _, r := range v.Related {
		s += " [see " + r.String() + "]"
	}
	return s
}

// SameAs reports whether two violations are one, wherever its line is by now.
func (v Violation) SameAs(other Violation) bool {
	return v.File == other.File && v.Path == other.Path && v.Rule == other.Rule && v.Message == other.Message
}

// MaxViolations is how many violations of a configuration are kept, not counted.
const MaxViolations = 100

// Violations are all the broken rules of a configuration, in order of their places.
type Violations struct {
	List  []Violation // the first MaxViolations
	Total int         // counts them all
	// incomplete: a layer is missing or was not read in full, so that what the
	// layers give together is unknown.
	incomplete bool
}

// add adds a violation and returns it, good until the next one is added. However
// many there are, few are kept.
func (v *Violations) add(violation Violation) *Violation {
	if len(v.List) >= 4*MaxViolations {
		v.cut()
	}
	v.Total++
	v.List = append(v.List, violation)
	return &v.List[len(v.List)-1]
}

// addText adds the lines of the files.
func (v *Violations) addText(files []File) {
	if v == nil {
		return
	}
	lines := map[string][]string{}
	for i := range v.List {
		at := &v.List[i]
		if _, ok := lines[at.File]; !ok {
			j := slices.IndexFunc(files, func(f File) bool { return f.Path == at.File })
			if j < 0 {
				continue
			}
			lines[at.File] = strings.Split(string(files[j].Bytes), "\n")
		}
		if all := lines[at.File]; at.Line > 0 && at.Line <= len(all) {
			line := strings.TrimRight(strings.ToValidUTF8(all[at.Line-1], "?"), "\r")
			at.Text, at.Fix = problem.Cut(line, 200), at.Fix.inLine(line, at.Column)
		}
	}
}

func (v *Violations) report(at Position, rule, message, hint string) *Violation {
	return v.add(Violation{Position: at, Rule: rule, Message: message, Hint: hint})
}

func (v *Violations) reportNode(n node, rule, message, hint string) *Violation {
	return v.add(Violation{Position: n.at(), Path: n.path, Value: oneLine(n.Value), Rule: rule, Message: message, Hint: hint})
}

func (v *Violations) merge(other *Violations) {
	for _, violation := range other.List {
		v.add(violation)
	}
	v.Total += other.Total - len(other.List)
	v.incomplete = v.incomplete || other.incomplete
}

// cut keeps the first MaxViolations, in order. It returns nil if there is none.
func (v *Violations) cut() *Violations {
	if v.Total == 0 {
		return nil
	}
	slices.SortStableFunc(v.List, func(a, b Violation) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	v.List = v.List[:min(len(v.List), MaxViolations)]
	return v
}

// Error returns the first violation and how many more there are.
func (v *Violations) Error() string {
	switch v.Total {
	case 0:
		return "no violations"
	case 1:
		return v.List[0].String()
	}
	return fmt.Sprintf("%s (and %d more)", v.List[0], v.Total-1)
}

// maxForeign is the most of a foreign text that a message repeats, in bytes.
const maxForeign = 80

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_.+-]{1,80}$`)

// quote makes a foreign text safe to repeat: one line of at most maxForeign
// bytes. A plain word stays as it is, anything else is quoted.
func quote(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return quoted(s)
}

// quoted is quote with quotation marks around a plain word too.
func quoted(s string) string { return shorten(s, maxForeign, strconv.Quote) }

// oneLine is quote without the quotation marks.
func oneLine(s string) string { return shorten(s, maxForeign, escape) }

var unescape = strings.NewReplacer(`\\`, `\`, `\"`, `"`)

// escape replaces what does not print, as strconv.Quote does.
func escape(s string) string {
	text := strconv.Quote(s)
	return unescape.Replace(text[1 : len(text)-1])
}

// shorten returns show of s, or of its beginning and an ellipsis if that takes
// more than limit bytes.
func shorten(s string, limit int, show func(string) string) string {
	text := show(s)
	for s = s[:min(len(s), limit)]; len(text) > limit; text = show(s + "…") {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return text
}

func didYouMean(name string, candidates []string) string {
	return suggestion(name, candidates, "it is one of "+strings.Join(candidates, ", "))
}

func suggestion(name string, candidates []string, otherwise string) string {
	if s, ok := Suggest(name, candidates); ok {
		return fmt.Sprintf("did you mean %s?", s)
	}
	return otherwise
}

// maxWord bounds the words that Suggest compares, in bytes.
const maxWord = 64

// Suggest finds the candidate that word was probably meant to be: the one at
// the least edit distance, if that is at most a third of the word's length,
// or else the only one that contains it. Case and the difference of "-" and
// "_" do not count.
func Suggest(word string, candidates []string) (string, bool) {
	if word = foldWord(word); word == "" || len(word) > maxWord {
		return "", false
	}
	best, least := "", max(1, len(word)/3)+1
	var containing []string
	for _, c := range candidates {
		folded := foldWord(c)
		if d := editDistance(word, folded); d < least && d < len(folded) {
			best, least = c, d
		}
		if len(word) >= 3 && strings.Contains(folded, word) {
			containing = append(containing, c)
		}
	}
	if best == "" && len(containing) == 1 {
		best = containing[0]
	}
	return best, best != ""
}

// certain returns the candidate that word surely was meant to be: it differs by two
// letters at most, and no other candidate is near.
func certain(word string, candidates []string) (string, bool) {
	best, ok := Suggest(word, candidates)
	if !ok || editDistance(foldWord(word), foldWord(best)) > 2 {
		return "", false
	}
	others := slices.DeleteFunc(slices.Clone(candidates), func(c string) bool { return c == best })
	_, another := Suggest(word, others)
	return best, !another
}

func foldWord(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }

// editDistance counts the insertions, deletions, substitutions and swaps of
// neighbours that turn a into b (optimal string alignment), in bytes.
func editDistance(a, b string) int {
	if len(b) > min(maxWord, 2*len(a)) {
		return len(b) // too far apart for Suggest
	}
	var d [maxWord + 1][maxWord + 1]int // d[i][j] is the distance of a[:i] and b[:j]
	for i := range len(a) + 1 {
		for j := range len(b) + 1 {
			switch {
			case i == 0 || j == 0:
				d[i][j] = i + j
			case a[i-1] == b[j-1]:
				d[i][j] = d[i-1][j-1]
			default:
				d[i][j] = min(d[i-1][j], d[i][j-1], d[i-1][j-1]) + 1
			}
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
