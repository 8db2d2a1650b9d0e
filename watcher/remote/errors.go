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
	"time"

	"dtesn-agent/schema/problem"
)

// A remoteError is the cause of a failed listing or fetch, as one line of text that
// is the same for the same cause.
type remoteError struct {
	err       error
	temporary bool
}

func (f *remoteError) Error() string { return problem.Line(cause(f.err), 1000) }

func (f *remoteError) Unwrap() error { return f.err }

// Temporary reports whether err is a failure of the network or the server that
// may be over at the next try.
func Temporary(err error) bool {
	var f *remoteError
	return errors.As(err, &f) && f.temporary
}

// RetryAfter returns how long the server asks to be left alone, 0 if it does
// not: its header Retry-After, at most an hour.
func RetryAfter(err error) time.Duration {
	var status *statusError
	if errors.As(err, &status) {
		return status.retryAfter
	}
	return 0
}

func isTemporary(err error) bool {
	var status *statusError
	var op *net.OpError
	var name *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &status):
		return status.code >= 500 || status.code == http.StatusTooManyRequests || status.code == http.StatusRequestTimeout
	case errors.As(err, &op):
		return op.Op != "remote error" // a TLS alert: the server refuses this client
	}
	return errors.As(err, &name) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, errSlow) || errors.Is(err, errSilent) || errors.As(err, &timeout) && timeout.Timeout()
}

// cause returns the text of an error without what differs from one connection
// to the next, such as its own port.
func cause(err error) string {
	var op *net.OpError
	switch {
	case errors.As(err, &op):
		plain := *op
		plain.Source = nil
		return plain.Error()
	case err == io.EOF:
		return "the server closed the connection without a response"
	}
	return err.Error()
}

// A serverError is an error message of the server.
type serverError struct{ text string }

func (e *serverError) Error() string { return fmt.Sprintf("the server says %q", e.text) }

// A notGitError says that the response is not one of git's protocol.
type notGitError struct{ why string }

func (e *notGitError) Error() string { return "the server does not speak git's protocol: " + e.why }

// A tooLargeError says that a response exceeds a bound.
type tooLargeError struct {
	what  string
	limit int64 // bytes
}

func (e *tooLargeError) Error() string {
	return fmt.Sprintf("%s exceeds %d MiB", e.what, e.limit>>20)
}

// serverText returns what of an error comes from the server.
func serverText(err error) string {
	var server *serverError
	var notGit *notGitError
	var redirect *redirectError
	switch {
	case errors.As(err, &server):
		return server.text
	case errors.As(err, &notGit):
		return notGit.why
	case errors.As(err, &redirect):
		return redirect.to
	}
	return ""
}

// line makes foreign text one line of at most 200 bytes.
func line(text string) string { return problem.Line(text, 200) }

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
