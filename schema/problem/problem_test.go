package problem

import (
	"errors"
	"fmt"
	"io"
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
