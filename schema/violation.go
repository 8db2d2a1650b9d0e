package schema

import (
	"fmt"
	"strings"
)

// A Violation is one broken rule of a Document.
type Violation struct {
	Position
	// Path is where in the file: "parameters.esn_reservoir_size".
	Path string `json:"path,omitempty"`
	// Parameter is the parameter concerned, if it is one.
	Parameter string `json:"parameter,omitempty"`
	// Value is what the file says, as written, at most 80 bytes.
	Value string `json:"value,omitempty"`
	// Rule is the rule that is broken: "64-16384", "unknown key",
	// "esn_reservoir_size >= max_membrane_depth * 32".
	Rule string `json:"rule"`
	// Message says what is wrong, one line.
	Message string `json:"message"`
	// Hint says what to do, one line.
	Hint string `json:"hint,omitempty"`
	// Related are the other places concerned, such as the other operand.
	Related []Position `json:"related,omitempty"`
}

// String is the violation on one line, as a compiler would say it:
// "file:line:col: parameter: what is wrong (rule: the rule); what to do". The
// place is left out where there is none, and the parameter or path where the
// message names it.
func (v Violation) String() string {
	var b strings.Builder
	if v.File != "" {
		b.WriteString(v.Position.String() + ": ")
	}
	switch {
	case v.Parameter != "" && (v.File != "" || !strings.Contains(v.Message, v.Parameter)):
		b.WriteString(v.Parameter + ": ")
	case v.Path != "" && !strings.Contains(v.Message, v.Path):
		b.WriteString(v.Path + ": ")
	}
	b.WriteString(v.Message)
	if v.Rule != "" {
		b.WriteString(" (rule: " + v.Rule + ")")
	}
	if v.Hint != "" {
		b.WriteString("; " + v.Hint)
	}
	for _, r := range v.Related {
		if r.Line > 0 {
			fmt.Fprintf(&b, " [see %s]", r)
		}
	}
	return b.String()
}

// MaxViolations is how many violations of a Document are kept; the rest are
// counted.
const MaxViolations = 100

// Violations are all the broken rules of a Document, found in one pass, in
// order of file, line and column.
type Violations struct {
	// List holds the first MaxViolations.
	List []Violation
	// Total counts them all.
	Total int
}

// Error makes Violations an error where one is wanted; it is the first
// violation and how many more there are.
func (v *Violations) Error() string {
	if v.Total == 0 {
		return "no violations"
	}
	if v.Total == 1 {
		return v.List[0].String()
	}
	return fmt.Sprintf("%s (and %d more)", v.List[0], v.Total-1)
}
