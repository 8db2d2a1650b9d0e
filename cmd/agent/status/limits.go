package status

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	maxBody    = 16 << 10 // of a request, in bytes
	maxListing = 4 << 20  // of a listing, in bytes
	maxWork    = 4        // requests of a listener that are worked on at a time
	maxUnread  = 4        // answers of the history that are kept until they are read
	turnWait   = time.Second
)

// turns are how many requests may do something at a time.
type turns chan struct{}

// take waits for a turn, which the caller gives back. If it gets none it answers that.
func (t turns) take(ctx context.Context, w http.ResponseWriter) bool {
	ctx, cancel := context.WithTimeout(ctx, turnWait)
	defer cancel()
	select {
	case t <- struct{}{}:
		return true
	case <-ctx.Done():
		w.Header().Set("Retry-After", "1")
		fail(w, http.StatusServiceUnavailable, "too many requests at once: ask again later")
		return false
	}
}

// while gives a turn to requests until their answers are written.
func (t turns) while(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if t.take(q.Context(), w) {
			defer func() { <-t }()
			handler.ServeHTTP(w, q)
		}
	})
}

// work gives a turn to requests while they are worked on. The body is read before and
// the answer written after, so that a slow client takes no turn.
func (t turns) work(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, q.Body, maxBody))
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			fail(w, http.StatusRequestEntityTooLarge, "the body has more than 16 KiB")
			return
		}
		if err != nil {
			fail(w, http.StatusBadRequest, "the body did not come")
			return
		}
		if !t.take(q.Context(), w) {
			return
		}
		q.Body = io.NopCloser(bytes.NewReader(body))
		a := answer{header: w.Header(), code: http.StatusOK}
		func() {
			defer func() { <-t }()
			handler.ServeHTTP(&a, q)
		}()
		w.WriteHeader(a.code)
		_, _ = w.Write(a.Bytes()) // who asked is gone if this fails
	})
}

// An answer is one that is kept until it can be written.
type answer struct {
	bytes.Buffer
	header http.Header
	code   int
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(code int) { a.code = code }

// foreign returns why a request is not answered, and with which status; 0 if it is. A
// browser sends what any web page asks for, also to loopback, and also to a name of the
// page's own that leads to loopback.
func (s *Server) foreign(q *http.Request) (code int, why string) {
	if !s.isOurs(q.Host) {
		return http.StatusMisdirectedRequest, "this is not " + q.Host + ": use localhost, a loopback address or a name of the certificate, or run the agent with --allowed-hosts"
	}
	const others = "requests of other sites are not answered"
	for _, text := range q.Header["Origin"] {
		if origin, err := url.Parse(text); err != nil || !strings.EqualFold(origin.Host, q.Host) {
			return http.StatusForbidden, others
		}
	}
	for _, site := range q.Header["Sec-Fetch-Site"] {
		isNavigation := q.Header.Get("Sec-Fetch-Mode") == "navigate" && q.Method == http.MethodGet
		if site != "" && site != "none" && site != "same-origin" && !isNavigation {
			return http.StatusForbidden, others
		}
	}
	return 0, ""
}

// isOurs reports whether a Host header names a loopback address, an allowed host or one that
// the certificate is for.
func (s *Server) isOurs(host string) bool {
	name := hostname(host)
	return isLoopbackName(host) || s.opt.Access.isNamed(name) || slices.ContainsFunc(s.opt.AllowedHosts, func(allowed string) bool {
		return strings.EqualFold(allowed, name)
	})
}

func isLoopbackName(host string) bool {
	name := hostname(host)
	ip, err := netip.ParseAddr(name)
	return name == "localhost" || err == nil && ip.IsLoopback()
}

// hostname returns the name or address in a Host header.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

// isJSON reports whether the body of a request is said to be JSON. What curl -d says
// without -H will do: pages of other sites, which could say it as well, are not answered.
func isJSON(q *http.Request) bool {
	kind, _, err := mime.ParseMediaType(q.Header.Get("Content-Type"))
	return err == nil && (kind == "application/json" || kind == "application/x-www-form-urlencoded")
}
