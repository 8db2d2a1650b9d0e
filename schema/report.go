package schema

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// maxForeign is the most of a foreign text that a message repeats, in bytes.
const maxForeign = 80

// maxRefusal bounds what a source says of a file that it refuses, in bytes.
const maxRefusal = 200

// A report collects violations, however many there are, in little memory.
type report struct {
	list  []Violation
	total int
}

func (r *report) add(v Violation) {
	r.total++
	r.list = append(r.list, v)
	if len(r.list) >= 4*MaxViolations {
		r.cut()
	}
}

// cut keeps the first MaxViolations in order of file, line and column.
func (r *report) cut() {
	slices.SortStableFunc(r.list, func(a, b Violation) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	if len(r.list) > MaxViolations {
		r.list = r.list[:MaxViolations]
	}
}

// violations returns what was collected, nil if nothing was.
func (r *report) violations() *Violations {
	if r.total == 0 {
		return nil
	}
	r.cut()
	return &Violations{List: slices.Clone(r.list), Total: r.total}
}

// quote makes a foreign text safe to repeat: one line of at most maxForeign
// bytes. A plain word stays as it is, anything else is quoted.
func quote(s string) string {
	if s != "" && len(s) <= maxForeign && strings.IndexFunc(s, notWord) < 0 {
		return s
	}
	return quoted(s)
}

// quoted is quote with quotation marks around a plain word too.
func quoted(s string) string { return `"` + escape(s, `"\`, maxForeign-2) + `"` }

// oneLine is quote without the quotation marks.
func oneLine(s string) string { return escape(s, "", maxForeign) }

func notWord(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("_-+.", r):
		return false
	}
	return true
}

// escape replaces what does not print, puts a backslash before the special
// characters, and cuts s so that at most limit bytes result.
func escape(s, special string, limit int) string {
	const ellipsis = "…"
	var b strings.Builder
	fits := 0 // length of what is kept if the rest must go
	for _, r := range s {
		switch {
		case strings.ContainsRune(special, r):
			b.WriteByte('\\')
			b.WriteRune(r)
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
		if b.Len() > limit {
			return b.String()[:fits] + ellipsis
		}
		if b.Len() <= limit-len(ellipsis) {
			fits = b.Len()
		}
	}
	return b.String()
}
