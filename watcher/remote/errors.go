package remote

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"dtesn-agent/schema/problem"
)

// A fault is the cause of a failed exchange, as one line of text that is the
// same for the same cause.
type fault struct {
	err     error
	passing bool
}

func (f *fault) Error() string { return problem.Line(cause(f.err), 1000) }

func (f *fault) Unwrap() error { return f.err }

// Passing reports whether err is a fault of the network or the server that may
// be over at the next try, without anybody's doing.
func Passing(err error) bool {
	var f *fault
	return errors.As(err, &f) && f.passing
}

func passes(err error) bool {
	var status *statusError
	var op *net.OpError
	var name *net.DNSError
	switch {
	case errors.As(err, &status):
		return status.code >= 500 || status.code == http.StatusTooManyRequests || status.code == http.StatusRequestTimeout
	case errors.As(err, &op):
		return op.Op != "remote error" // an alert of TLS: it does not want us
	}
	return errors.As(err, &name) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, errSlow) || errors.Is(err, errSilent)
}

// cause words what the network says for people, and so that the same fault has
// the same words: a connection of ours has another port each time.
func cause(err error) string {
	var op *net.OpError
	switch {
	case errors.As(err, &op):
		plain := *op
		plain.Source = nil
		return plain.Error()
	case err == io.EOF:
		return "the server closed the connection without an answer"
	}
	return err.Error()
}

// A serverError is what the server itself said, in its words.
type serverError struct{ text string }

func (e *serverError) Error() string { return fmt.Sprintf("the server says %q", e.text) }

// A notGitError says that what answers does not speak git's protocol.
type notGitError struct{ why string }

func (e *notGitError) Error() string { return "what answers does not speak git's protocol: " + e.why }

// A tooLargeError says that a bound was met.
type tooLargeError struct {
	what  string
	bytes int64
}

func (e *tooLargeError) Error() string {
	return fmt.Sprintf("%s is larger than %d MiB", e.what, e.bytes>>20)
}

// line makes foreign bytes one line of at most 200 bytes.
func line(b []byte) string { return problem.Line(string(b), 200) }

// leaks reports whether text repeats one of secrets, or 16 bytes of it in a row,
// as it is or as quoting or an address would write it.
func leaks(text string, secrets []string) bool {
	forms := []string{text, strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(text)}
	if plain, err := url.PathUnescape(text); err == nil {
		forms = append(forms, plain)
	}
	const enough = 16
	for _, secret := range secrets {
		for at := range max(1, len(secret)-enough+1) {
			part := secret[at:min(len(secret), at+enough)]
			if part != "" && slices.ContainsFunc(forms, func(form string) bool { return strings.Contains(form, part) }) {
				return true
			}
		}
	}
	return false
}
