package cli

import (
	"io"
	"strings"

	"golang.org/x/text/width"
)

// A table is columns that keep their widths, or grow, from one flush to the next.
type table struct {
	w      io.Writer
	widths []int // in columns of a terminal, without what separates them
	rows   [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// flush writes the rows. The last column is not padded.
func (t *table) flush() error {
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(t.widths) {
				t.widths = append(t.widths, 0)
			}
			t.widths[i] = max(t.widths[i], columns(cell))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		for i, cell := range row {
			if b.WriteString(cell); i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", t.widths[i]-columns(cell)+2))
			}
		}
		b.WriteByte('\n')
	}
	t.rows = nil
	_, err := io.WriteString(t.w, b.String())
	return err
}

// columns returns how many columns of a terminal s takes.
func columns(s string) (n int) {
	for _, r := range s {
		n += columnsOf(r)
	}
	return n
}

func columnsOf(r rune) int {
	if k := width.LookupRune(r).Kind(); k == width.EastAsianWide || k == width.EastAsianFullwidth {
		return 2
	}
	return 1
}

// cut shortens s to at most n columns, with an ellipsis.
func cut(s string, n int) string {
	if columns(s) <= n {
		return s
	}
	left := n - 1
	for i, r := range s {
		if left -= columnsOf(r); left < 0 {
			return s[:i] + "…"
		}
	}
	return s
}

// cutFor shortens s to at most n columns if w is a terminal: what is read by a program
// is whole.
func cutFor(w io.Writer, s string, n int) string {
	if terminal(w) == nil {
		return s
	}
	return cut(s, n)
}
