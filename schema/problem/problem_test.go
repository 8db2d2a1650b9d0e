package problem

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
)

func TestError(t *testing.T) {
	cause := &Error{Err: io.EOF, Hint: "write it whole"}
	for _, c := range []struct {
		err              error
		text, hint, both string
	}{
		{nil, "", "", ""},
		{io.EOF, "EOF", "", "EOF"},
		{New("read schema", io.EOF, "write it whole"), "read schema: EOF", "write it whole", "read schema: EOF; write it whole"},
		{&Error{Op: "read schema", Place: "a.cue:1:2", Err: io.EOF}, "read schema a.cue:1:2: EOF", "", "read schema a.cue:1:2: EOF"},
		{&Error{Place: "a.cue"}, "a.cue", "", "a.cue"},
		{&Error{Op: "load", Err: fmt.Errorf("try: %w", cause)}, "load: try: EOF", "write it whole", "load: try: EOF; write it whole"},
		{&Error{Op: "load", Err: cause, Hint: "outer"}, "load: EOF", "outer", "load: EOF; outer"},
	} {
		text := ""
		if c.err != nil {
			text = c.err.Error()
			if c.err != io.EOF && errors.Is(c.err, io.EOF) != (c.text != "a.cue") {
				t.Errorf("%s: does not wrap its cause", c.text)
			}
		}
		if text != c.text || Hint(c.err) != c.hint || Text(c.err) != c.both {
			t.Errorf("got %q, %q, %q; want %q, %q, %q", text, Hint(c.err), Text(c.err), c.text, c.hint, c.both)
		}
	}
}

func TestLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "",
		"  a \t b\r\nc  ":                 "a b c",
		"a\x00b\u202ec\u2028d":            "a b c d",
		"a\xffb":                          "a b",
		strings.Repeat("x", 200):          strings.Repeat("x", 200),
		strings.Repeat("x", 201):          strings.Repeat("x", 197) + "…",
		strings.Repeat("é", 101):          strings.Repeat("é", 98) + "…",
		strings.Repeat("number 123 ", 40): strings.TrimSpace(strings.Repeat("number 123 ", 17)) + " number 123…",
	} {
		if got := Line(text, 200); got != want || len(got) > 200 {
			t.Errorf("Line(%q) is %q, want %q", text, got, want)
		}
	}
}

func TestBare(t *testing.T) {
	err := fmt.Errorf("read: %w", &fs.PathError{Op: "open", Path: "/x", Err: fs.ErrPermission})
	if got := Bare(err); got != fs.ErrPermission {
		t.Errorf("Bare is %v", got)
	}
	if other := errors.New("other"); Bare(other) != other {
		t.Error("Bare changes an error without a path")
	}
}
