package test

import (
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// The agent beside the middleware that the Python module's server puts before its
// routes: python/module.py, with "limit", "security" or "validation".

// limitedManners are of a server that lets through 10 requests of one client in 6 s.
const limitedManners = `{"one_line": true, "middleware": ["limit"], "burst": 10, "window": 6}`

// early counts the requests which the server's Retry-After of 6 s, on an answer before,
// had told to come later.
func (r *rig) early() (n int) {
	until := 0.0
	for _, q := range r.requests() {
		if q.At < until {
			n++
		}
		if q.Status == http.StatusTooManyRequests {
			until = q.At + 6
		}
	}
	return n
}

// TestMiddlewareLimitsOnProbation: 429 on health is no verdict on a change.
func TestMiddlewareLimitsOnProbation(t *testing.T) {
	t.Parallel()
	r := newModule(t, limitedManners)
	r.moduleDeclare(2048)
	r.agent("--probation", "8s", "--drift-interval", "1h")
	v := r.await("a verdict", func(v view) bool {
		return v.Attempted != nil && v.Attempted.Outcome != record.Pending
	})
	if v.Attempted.Outcome != record.Applied || v.Held != nil {
		t.Errorf("a good change: attempted %+v, held %+v", v.Attempted, v.Held)
	}
	limits := 0
	for _, q := range r.requests() {
		if q.Status == http.StatusTooManyRequests {
			limits++
		}
	}
	if n := r.early(); limits == 0 || n > 1 {
		t.Errorf("%d answers were 429; %d requests came before Retry-After was over", limits, n)
	}
}

// TestMiddlewareLimitsReadings: after 429 the agent comes as late as Retry-After says,
// and goes on by itself.
func TestMiddlewareLimitsReadings(t *testing.T) {
	t.Parallel()
	r := newModule(t, limitedManners)
	r.moduleDeclare(2048)
	r.agent("--drift-interval", "200ms")
	r.until("it is limited", func() bool {
		for _, q := range r.requests() {
			if q.Status == http.StatusTooManyRequests {
				return true
			}
		}
		return false
	})
	r.moduleDeclare(4096)
	r.await("applied", func(v view) bool {
		return v.Current != nil && v.size() == 4096 && v.Attempted.Outcome == record.Applied
	})
	if n := r.early(); n > 1 {
		t.Errorf("%d requests came before Retry-After was over", n)
	}
	r.wantMetric(`dtesn_agent_updates_total{outcome="rejected"}`, 0)
}

// TestMiddlewareBlocks: the words of a 403 on GET current are shown. Three requests of
// somebody with curl block the whole socket.
func TestMiddlewareBlocks(t *testing.T) {
	t.Parallel()
	needs(t, "curl")
	r := newModule(t, `{"one_line": true, "middleware": ["security"]}`)
	r.moduleDeclare(2048)
	r.agent("--drift-interval", "200ms")
	r.awaitApplied(2048)
	for range 3 {
		if status := r.curl("/v1/config/current"); status != http.StatusForbidden {
			t.Fatalf("curl was answered %d", status)
		}
	}
	v := r.await("blocked", func(v view) bool { return v.State == apply.StateWaiting })
	if !strings.Contains(v.Reason, "403") || !strings.Contains(v.Reason, "Access denied: IP address blocked") {
		t.Errorf("reason %q", v.Reason)
	}
}

// TestMiddlewareFails: a 500 to POST environment is shown as what it is: the server
// answers.
func TestMiddlewareFails(t *testing.T) {
	t.Parallel()
	r := newModule(t, `{"one_line": true, "middleware": ["validation"]}`)
	r.moduleDeclare(2048)
	r.agent("--drift-interval", "200ms")
	v := r.await("it is said", func(v view) bool { return strings.Contains(v.Reason, "500") })
	if strings.Contains(v.Reason, "does not answer") || !strings.Contains(v.Reason, "Internal Server Error") || !strings.Contains(v.Reason, "label") {
		t.Errorf("reason %q", v.Reason)
	}
	if strings.Contains(v.Hint, "start the DTESN server") {
		t.Errorf("hint %q", v.Hint)
	}
}

// curl asks with that program, and returns the status.
func (r *rig) curl(path string) int {
	r.t.Helper()
	out, err := exec.Command("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", r.socket, "http://x"+path).Output()
	ok(r.t, err)
	status, err := strconv.Atoi(string(out))
	ok(r.t, err)
	return status
}
