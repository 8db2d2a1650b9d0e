package codehost

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"dtesn-agent/schema/problem"
)

func environment(pairs ...string) func(string) string {
	return func(name string) string {
		for _, p := range pairs {
			if value, ok := strings.CutPrefix(p, name+"="); ok {
				return value
			}
		}
		return ""
	}
}

func TestOpen(t *testing.T) {
	const hub, lab = "GITHUB_TOKEN=t", "GITLAB_TOKEN=t"
	for _, c := range []struct {
		opt  Options
		env  []string
		want string // the host with its API and path, or the error
	}{
		{Options{}, []string{hub, "GITHUB_REPOSITORY=o/n"}, "GitHub https://api.github.com repos/o/n/"},
		{Options{}, []string{"GH_TOKEN=t", "GITHUB_REPOSITORY=o/n", "GITHUB_API_URL=https://x.example/api/v3/"}, "GitHub https://x.example/api/v3 repos/o/n/"},
		{Options{}, []string{lab, "CI_API_V4_URL=https://x.example/api/v4", "CI_PROJECT_ID=42"}, "GitLab https://x.example/api/v4 projects/42/"},
		{Options{Kind: "github"}, []string{hub, "GITHUB_REPOSITORY=o/n", "CI_API_V4_URL=https://x", "CI_PROJECT_ID=42"}, "GitHub https://api.github.com repos/o/n/"},
		{Options{Kind: "gitlab"}, []string{lab, "GITHUB_REPOSITORY=o/n"}, "not a CI job of"},
		{Options{}, []string{hub}, "not a CI job of GitLab or GitHub; name the repository"},
		{Options{URL: "https://github.com/o/n.git"}, []string{hub}, "GitHub https://api.github.com repos/o/n/"},
		{Options{URL: "https://gitlab.example.com/g/s/n"}, []string{lab}, "GitLab https://gitlab.example.com/api/v4 projects/g%2Fs%2Fn/"},
		{Options{URL: "https://x.example/o/n/", Kind: "gitlab"}, []string{lab}, "GitLab https://x.example/api/v4 projects/o%2Fn/"},
		{Options{URL: "https://x.example/o/n", Kind: "github", Token: "t"}, nil, "GitHub https://x.example/api/v3 repos/o/n/"},
		{Options{URL: "http://127.0.0.1:80/o/n", Kind: "github", Token: " t\n"}, nil, "GitHub http://127.0.0.1:80/api/v3 repos/o/n/"},
		{Options{URL: "https://x.example/o/n"}, []string{hub}, "unknown code host x.example; give --host github or --host gitlab"},
		{Options{URL: "https://user@github.com/o/n"}, []string{hub}, "--repository: not the address"},
		{Options{URL: "https://github.com/o"}, []string{hub}, "--repository: not the address"},
		{Options{URL: "https://github.com/o/n"}, []string{lab}, "there is no token; set GITHUB_TOKEN"},
		{Options{URL: "https://gitlab.com/o/n"}, []string{hub, "GITLAB_TOKEN= "}, "there is no token; set GITLAB_TOKEN"},
		{Options{URL: "http://x.example/o/n", Kind: "github"}, []string{hub}, "the token would be sent unencrypted to x.example; use https://"},
		{Options{}, []string{hub, "GITHUB_REPOSITORY=o/n", "GITHUB_API_URL=https://u:p@x.example"}, "invalid address of the API; set GITHUB_API_URL"},
	} {
		r, err := Open(c.opt, environment(c.env...))
		got := problem.Text(err)
		if err == nil {
			switch h := r.host.(type) {
			case gitHub:
				got = h.kind.name + " " + h.api + " " + h.base
			case gitLab:
				got = h.kind.name + " " + h.api + " " + h.base
			}
		}
		if err == nil && got != c.want || !strings.HasPrefix(got, c.want) {
			t.Errorf("%+v, %q: %s, want %s", c.opt, c.env, got, c.want)
		}
	}
}

func TestNumber(t *testing.T) {
	for env, want := range map[string]int{
		"GITHUB_REF=refs/pull/7/merge": 7, "GITHUB_REF=refs/heads/7": 0, "GITHUB_REF=refs/pull/x/merge": 0,
		"CI_MERGE_REQUEST_IID=8": 8, "CI_MERGE_REQUEST_IID=": 0,
	} {
		if got := Number(environment(env)); got != want {
			t.Errorf("%s: %d, want %d", env, got, want)
		}
	}
}

func TestAdvice(t *testing.T) {
	for _, c := range []struct {
		method      string
		code        int
		name, value string // of a header
		hint        string
		wait        time.Duration
	}{
		{"GET", 401, "", "", "the token is invalid or expired", 0},
		{"POST", 403, "", "", "give the job", 0},
		{"POST", 403, "X-Ratelimit-Remaining", "0", "the host limits requests: try again in 60 s", time.Minute},
		{"POST", 403, "Retry-After", "5", "the host limits requests: try again in 5 s", 5 * time.Second},
		{"POST", 429, "Retry-After", "0", "the host limits requests: try again in 0 s", time.Second},
		{"POST", 429, "Retry-After", "-1", "the host limits requests: try again in 60 s", time.Minute},
		{"GET", 404, "", "", "check the repository and the number", 0},
		{"POST", 422, "", "", "the conversation may be locked", 0},
		{"GET", 301, "", "", "the repository moved", 0},
		{"GET", 502, "", "", "the host has a problem", time.Second},
		{"POST", 502, "", "", "", 0},
		{"GET", 400, "", "", "", 0},
	} {
		resp := &http.Response{StatusCode: c.code, Header: http.Header{}, Request: &http.Request{Method: c.method}}
		if c.name != "" {
			resp.Header.Set(c.name, c.value)
		}
		github := &client{kind: kinds[slices.IndexFunc(kinds, func(k *kind) bool { return k.flag == "github" })]}
		if hint, wait := github.advice(resp); !strings.HasPrefix(hint, c.hint) || (c.hint == "") != (hint == "") || wait != c.wait {
			t.Errorf("%s, %d, %s: %q after %s", c.method, c.code, c.name, hint, wait)
		}
	}
}

func TestSaid(t *testing.T) {
	for text, want := range map[string]string{
		`{"message": "Bad credentials"}`:                                        " (Bad credentials)",
		`{"message": "Validation Failed", "errors": [{"message": "too long"}]}`: " (Validation Failed; too long)",
		`{"message": {"body": ["is too long"]}}`:                                " (map[body:[is too long]])",
		`{"error": "invalid_token"}`:                                            " (invalid_token)",
		`{}`:                                                                    "",
		`<html>`:                                                                "",
	} {
		if got := said([]byte(text)); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// TestPullsOf: of many commits the newest are looked up.
func TestPullsOf(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		var commits []string
		for i := range 100 {
			commits = append(commits, fmt.Sprintf(`{"sha": "%d"}`, i))
		}
		if strings.Contains(q.URL.Path, "/compare/") {
			fmt.Fprintf(w, `{"commits": [%s]}`, strings.Join(commits, ","))
			return
		}
		fmt.Fprintf(w, `[{"number": %s}]`, strings.Split(q.URL.Path, "/")[7])
	}))
	defer server.Close()
	r, err := Open(Options{URL: server.URL + "/o/n", Kind: "github", Token: "t"}, environment())
	if err != nil {
		t.Fatal(err)
	}
	numbers, err := r.PullsOf(context.Background(), "earlier", "99")
	if err != nil || len(numbers) != maxCommits || slices.Min(numbers) != 100-maxCommits || numbers[0] != 99 {
		t.Errorf("%v, %v", numbers, err)
	}
}
