package cli

import (
	"io"
	"strings"
	"unicode/utf8"
)

// A table is columns that keep their widths, or grow, from one flush to the next.
type table struct {
	w      io.Writer
	widths []int // in characters, without what separates them
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
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		for i, cell := range row {
			if b.WriteString(cell); i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		b.WriteByte('\n')
	}
	t.rows = nil
	_, err := io.WriteString(t.w, b.String())
	return err
}

// cutFor shortens s to at most n characters if w is a terminal: what is read by a program
// is whole.
func cutFor(w io.Writer, s string, n int) string {
	if terminal(w) == nil {
		return s
	}
	return cut(s, n)
}
