package problem

import (
	"errors"
	"io/fs"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Line makes foreign text one line of at most limit bytes: valid UTF-8 without control
// or format characters, which a terminal would obey. Runs of space become one. Text that
// is too long is cut at a word and ends with "…".
func Line(text string, limit int) string {
	text = text[:min(len(text), 16*limit)]
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			return ' '
		}
		return r
	}, text)
	return Cut(strings.Join(strings.Fields(text), " "), limit)
}

// Cut shortens text to at most limit bytes, at a word if one ends in the last quarter,
// else at a rune. Text that was cut ends with "…".
func Cut(text string, limit int) string {
	const mark = "…"
	if len(text) <= limit {
		return text
	}
	end := max(0, limit-len(mark))
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	if space := strings.LastIndexByte(text[:end+1], ' '); space > end*3/4 {
		end = space
	}
	return strings.TrimRight(text[:end], " ") + mark
}

// Bare returns the cause of an error about a path, for a message that names the path
// itself.
func Bare(err error) error {
	if path := new(fs.PathError); errors.As(err, &path) {
		return path.Err
	}
	return err
}

// ShellWord quotes s for a shell if it needs it.
func ShellWord(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=@%+,") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
