package codehost

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"dtesn-agent/schema/problem"
)

// A client makes requests to the API of a host.
type client struct {
	kind  *kind
	api   string // without a slash at its end
	token string
}

// A statusError is a response with an error status.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

// IsRefusal reports whether a host refused a request in a way that does not change when it
// is repeated.
func IsRefusal(err error) bool {
	isLocked := isStatus(err, http.StatusForbidden) && strings.Contains(err.Error(), "locked") // as GitHub says it
	return isLocked || isStatus(err, http.StatusNotFound) || isStatus(err, http.StatusGone) || isStatus(err, http.StatusUnprocessableEntity)
}

// isUnknownCommit reports whether a host does not know a commit, in a repository that the
// token may see: GitHub responds 422, and GitLab 404 with these words.
func isUnknownCommit(err error) bool {
	return isStatus(err, http.StatusUnprocessableEntity) || isStatus(err, http.StatusNotFound) && strings.Contains(err.Error(), "Commit Not Found")
}

func isStatus(err error, code int) bool {
	var e *statusError
	return errors.As(err, &e) && e.code == code
}

const (
	requestTime = 20 * time.Second
	attempts    = 3
	// maxWait is the longest wait before the next attempt. A host that asks for more is not
	// asked again.
	maxWait = 30 * time.Second
	// maxResponse bounds a response, in bytes: a page of comments of 65,536 characters, each
	// of which may be 12 bytes of JSON.
	maxResponse = 32 << 20
)

// get makes a GET request and decodes the response into out.
func (c *client) get(ctx context.Context, path string, out any) error {
	return c.do(ctx, http.MethodGet, path, nil, out)
}

// self returns the owner of the token. The token of a CI job may not ask that; its owner is
// then unknown, and what it writes is from a bot.
func (c *client) self(ctx context.Context) (u user, err error) {
	if err = c.get(ctx, "user", &u); isStatus(err, http.StatusForbidden) {
		err = nil
	}
	return u, err
}

// do makes a request. It repeats it if the host asks for that, or if it failed and had no
// effect.
func (c *client) do(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	for attempt := 1; ; attempt++ {
		wait, err := c.try(ctx, method, path, body, out)
		if err == nil {
			return nil
		}
		if wait <= 0 || wait > maxWait || attempt == attempts {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

// try makes one attempt. wait is the time until the next one, 0 for none.
func (c *client) try(ctx context.Context, method, path string, body []byte, out any) (wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	address := c.api + "/" + path
	fail := func(err error, hint string) error {
		return &problem.Error{Op: "ask " + c.kind.name + " at", Place: c.api, Err: err, Hint: hint}
	}
	q, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return 0, fail(errors.New("invalid address"), "")
	}
	q.Header.Set("Authorization", "Bearer "+c.token)
	q.Header.Set("User-Agent", "dtesn-agent")
	q.Header.Set("Accept", "application/json")
	if len(body) > 0 {
		q.Header.Set("Content-Type", "application/json")
	}
	httpClient := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := httpClient.Do(q)
	if err != nil {
		var cause *url.Error
		if errors.As(err, &cause) {
			err = cause.Err
		}
		if method == http.MethodGet {
			wait = time.Second
		}
		return wait, fail(problem.Bare(err), "check that the host can be reached from here")
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	if code := resp.StatusCode; code < 200 || code > 299 {
		err := &statusError{code, fmt.Sprintf("%s %s: status %d %s%s", method, q.URL.Path, code, http.StatusText(code), said(text))}
		hint, wait := c.advice(resp)
		return wait, fail(err, hint)
	}
	if err == nil && out != nil {
		err = json.Unmarshal(text, out)
	}
	if err != nil {
		return 0, fail(fmt.Errorf("%s %s: cannot read the response: %w", method, q.URL.Path, err), "check that this is the address of the host's API")
	}
	return 0, nil
}

// said returns the message of an error response in parentheses, or "": GitHub sends a
// message and errors, GitLab a message or an error.
func said(text []byte) string {
	var response struct {
		Message, Error any
		Errors         []struct{ Message string }
	}
	if json.Unmarshal(text, &response) != nil {
		return ""
	}
	for _, v := range []any{response.Message, response.Error} {
		if v != nil {
			message := fmt.Sprint(v)
			for _, e := range response.Errors {
				message += "; " + e.Message
			}
			return " (" + problem.Line(message, 200) + ")"
		}
	}
	return ""
}

// advice returns what to do about an error response, and when to try again.
func (c *client) advice(resp *http.Response) (hint string, wait time.Duration) {
	isLimited := resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusForbidden &&
		(resp.Header.Get("X-RateLimit-Remaining") == "0" || resp.Header.Get("Retry-After") != "")
	switch code := resp.StatusCode; {
	case isLimited:
		seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if err != nil || seconds < 0 || seconds > 24*3600 {
			seconds = 60
		}
		return fmt.Sprintf("the host limits requests: try again in %d s", seconds), max(time.Second, time.Duration(seconds)*time.Second)
	case code == http.StatusUnauthorized:
		return "the token is invalid or expired", 0
	case code == http.StatusForbidden:
		return c.kind.forbidden, 0
	case code == http.StatusNotFound:
		return "check the repository and the number; the token may also lack the right to read them", 0
	case code == http.StatusUnprocessableEntity:
		return "the conversation may be locked, or the text too long", 0
	case code >= 300 && code < 400:
		return "the repository moved: give its new address with --repository", 0
	case code >= 500 && resp.Request.Method == http.MethodGet:
		return "the host has a problem: run the job again later", time.Second
	}
	return "", 0
}
