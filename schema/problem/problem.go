// Package problem has the error type that all packages share. It says what was
// being done, where, why it failed, and what to do about it, each in a field of
// its own, so that a log, a status and a terminal can show them apart.
package problem

import "errors"

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
	s := e.Op
	if e.Place != "" {
		if s != "" {
			s += " "
		}
		s += e.Place
	}
	if e.Err == nil {
		return s
	}
	if s != "" {
		s += ": "
	}
	return s + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Hint returns the outermost hint that err carries, "" if it has none.
func Hint(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}

// Text returns err with its hint, for where there is one line for both:
// "op place: cause; hint". It is "" for nil.
func Text(err error) string {
	if err == nil {
		return ""
	}
	if hint := Hint(err); hint != "" {
		return err.Error() + "; " + hint
	}
	return err.Error()
}
