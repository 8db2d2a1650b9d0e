// Package problem has the error type that all packages share. It says what was
// being done, where, why it failed, and what to do about it, each in a field of
// its own, so that a log, a status and a terminal can show them apart.
package problem

import (
	"cmp"
	"errors"
	"strings"
)

// An Error is a failure that a person can do something about.
type Error struct {
	// Op is what was being done, a verb and its object: "read configuration
	// file".
	Op string
	// Place is where: a path, an address, a "file:line:column". It may be empty.
	Place string
	// Err is the cause.
	Err error
	// Hint is what to do, one imperative sentence without a full stop.
	Hint string
}

// New returns an Error without a place.
func New(op string, err error, hint string) *Error { return &Error{Op: op, Err: err, Hint: hint} }

// Error returns "op place: cause", without the hint.
func (e *Error) Error() string {
	s := strings.TrimSpace(e.Op + " " + e.Place)
	switch {
	case e.Err == nil:
		return s
	case s == "":
		return e.Err.Error()
	}
	return s + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Hint returns the outermost hint that err carries, "" if it has none.
func Hint(err error) string {
	var e *Error
	if !errors.As(err, &e) {
		return ""
	}
	return cmp.Or(e.Hint, Hint(e.Err))
}

// Text returns err with its hint, for where there is one line for both:
// "op place: cause; hint". It is "" for nil.
func Text(err error) string {
	if err == nil {
		return ""
	}
	return strings.TrimSuffix(err.Error()+"; "+Hint(err), "; ")
}
