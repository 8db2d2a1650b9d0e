// Package codehost comments on pull requests of GitHub and on merge requests of GitLab.
// Both are called pull requests here.
package codehost

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"dtesn-agent/schema/problem"
)

// A Repository is one on a code host, as the owner of a token sees it.
type Repository struct {
	api   string // without a slash at its end
	path  string // of the repository, below api
	token string
	host  host
}

// A host is what GitHub and GitLab do differently.
type host interface {
	name() string
	// readOnly is what to do where the token may not write.
	readOnly() string
	comments(number int) string
	comment(number int, id int64) (method, path string)
	suggestions(number int) string
	isOutdated(c Comment) bool
	fence() string // what makes a block of code a suggestion for one line
	suggest(p *Pull, number int, file string, line int, body string) (path string, in any)
	pull(number int) string
	pullsOf(commit string) string
	between(earlier, commit string) string
}

// A Comment is one below a pull request, or at a line of it.
type Comment struct {
	ID   int64  `json:"id"`
	Body string `json:"body"`
	// Line is where it stands in the newest version of the file, nil if it is at none.
	Line *int `json:"line"`

	Author user `json:"author"` // GitLab
	User   user `json:"user"`   // GitHub
}

type user struct {
	ID   int64  `json:"id"`
	Type string `json:"type"`
}

// A Pull is a pull request.
type Pull struct {
	Number int `json:"number"` // GitHub
	IID    int `json:"iid"`    // GitLab
	Head   struct {
		SHA string `json:"sha"`
	} `json:"head"` // GitHub
	DiffRefs struct {
		Base  string `json:"base_sha"`
		Start string `json:"start_sha"`
		Head  string `json:"head_sha"`
	} `json:"diff_refs"` // GitLab
}

// HeadCommit returns the newest commit of the pull request's branch.
func (p *Pull) HeadCommit() string { return cmp.Or(p.Head.SHA, p.DiffRefs.Head) }

// ErrNotInDiff is returned for a line that is not in the difference that a pull request shows.
var ErrNotInDiff = errors.New("the line is not in the difference")

// Options name a Repository. What is empty is taken from the environment of the CI job.
type Options struct {
	URL   string // https://github.com/OWNER/NAME, of the repository
	Kind  string // github or gitlab, where the URL does not tell
	Token string
}

// Open returns the Repository that the options and the environment of a CI job name.
func Open(opt Options, getenv func(string) string) (*Repository, error) {
	r := &Repository{}
	isGitLab := opt.Kind == "gitlab"
	if opt.URL == "" {
		isGitLab = isGitLab || opt.Kind == "" && getenv("CI_API_V4_URL") != ""
		r.api, r.path = cmp.Or(getenv("GITHUB_API_URL"), "https://api.github.com"), getenv("GITHUB_REPOSITORY")
		if isGitLab {
			r.api, r.path = getenv("CI_API_V4_URL"), getenv("CI_PROJECT_ID")
		}
		if r.path == "" || r.api == "" {
			return nil, problem.New("", errors.New("this is no job of GitHub Actions or GitLab CI"), "name the repository: --repository https://github.com/OWNER/NAME")
		}
	} else {
		u, err := url.Parse(opt.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || strings.Count(strings.Trim(u.Path, "/"), "/") < 1 {
			return nil, problem.New("", errors.New("--repository: not the address of a repository"), "write it as https://github.com/OWNER/NAME, without a user")
		}
		r.path = strings.TrimSuffix(strings.Trim(u.Path, "/"), ".git")
		isGitLab = isGitLab || opt.Kind == "" && strings.Contains(u.Hostname(), "gitlab")
		switch base := u.Scheme + "://" + u.Host; {
		case isGitLab:
			r.api = base + "/api/v4"
		case u.Hostname() == "github.com":
			r.api = "https://api.github.com"
		case opt.Kind == "":
			return nil, problem.New("", fmt.Errorf("it is not known what runs on %s", u.Hostname()), "say --host github or --host gitlab")
		default:
			r.api = base + "/api/v3" // GitHub Enterprise Server
		}
	}
	r.api = strings.TrimSuffix(r.api, "/")
	variables := []string{"GITHUB_TOKEN", "GH_TOKEN"}
	if r.host = gitHub(r.path); isGitLab {
		r.host = gitLab(url.PathEscape(r.path))
		variables = []string{"GITLAB_TOKEN"}
	}
	r.token = opt.Token
	for _, name := range variables {
		r.token = cmp.Or(r.token, getenv(name))
	}
	if r.token = strings.TrimSpace(r.token); r.token == "" {
		return nil, problem.New("", errors.New("there is no token"), fmt.Sprintf("set %s, or give --token-file", variables[0]))
	}
	u, err := url.Parse(r.api)
	if err != nil || u.Host == "" || u.User != nil { // it may hold a password
		return nil, problem.New("", errors.New("the address of the API cannot be used"), "GITHUB_API_URL and CI_API_V4_URL are as https://HOST/PATH, without a user")
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme != "https" && (ip == nil || !ip.IsLoopback()) {
		return nil, problem.New("", fmt.Errorf("the token would be sent unencrypted to %s", u.Host), "use https://")
	}
	return r, nil
}

// Number returns the pull request that a CI job is about, 0 if it is about none.
func Number(getenv func(string) string) int {
	text := getenv("CI_MERGE_REQUEST_IID")
	if rest, ok := strings.CutPrefix(getenv("GITHUB_REF"), "refs/pull/"); ok {
		text, _, _ = strings.Cut(rest, "/")
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return n
}

const (
	pageSize = 30
	// maxPages bounds the comments that are looked through.
	maxPages = 100
	// maxAnswer bounds an answer, in bytes: a page of comments of 65,536 characters, each of
	// which JSON may have as 12 bytes.
	maxAnswer = 32 << 20
)

// Find returns the comments below a pull request that begin with a marker, oldest first.
func (r *Repository) Find(ctx context.Context, number int, marker string) ([]Comment, error) {
	return r.find(ctx, r.host.comments(number), marker)
}

// Suggestions returns the comments at lines of a pull request that begin with a marker.
func (r *Repository) Suggestions(ctx context.Context, number int, marker string) ([]Comment, error) {
	list, err := r.find(ctx, r.host.suggestions(number), marker)
	return slices.DeleteFunc(list, r.host.isOutdated), err
}

// find takes what the token's owner or a bot wrote: who else may edit a comment could
// make it lie.
func (r *Repository) find(ctx context.Context, path, marker string) (found []Comment, err error) {
	var self user
	if err := r.do(ctx, http.MethodGet, "user", nil, &self); err != nil && !isStatus(err, http.StatusForbidden) { // a job's token is a bot's
		return nil, err
	}
	for page := 1; page <= maxPages; page++ {
		var list []Comment
		if err := r.do(ctx, http.MethodGet, fmt.Sprintf("%s?per_page=%d&page=%d", path, pageSize, page)+r.order(), nil, &list); err != nil {
			return nil, err
		}
		for _, c := range list {
			author := cmp.Or(c.User, c.Author)
			if (author.Type == "Bot" || author.ID != 0 && author.ID == self.ID) && strings.HasPrefix(c.Body, marker) {
				found = append(found, c)
			}
		}
		if len(list) < pageSize {
			return found, nil
		}
	}
	return nil, fmt.Errorf("there are more than %d comments, which is more than are looked through", pageSize*maxPages)
}

func (r *Repository) order() string {
	if _, ok := r.host.(gitLab); ok {
		return "&sort=asc&order_by=created_at"
	}
	return ""
}

// Write makes a comment below a pull request, or edits the first of those that are there
// and removes the others, which were made at the same time.
func (r *Repository) Write(ctx context.Context, number int, known []Comment, body string) error {
	if len(known) == 0 {
		return r.do(ctx, http.MethodPost, r.host.comments(number), map[string]string{"body": body}, nil)
	}
	method, path := r.host.comment(number, known[0].ID)
	err := r.do(ctx, method, path, map[string]string{"body": body}, nil)
	for _, c := range known[1:] {
		if err == nil {
			_, path = r.host.comment(number, c.ID)
			if err = r.do(ctx, http.MethodDelete, path, nil, nil); isStatus(err, http.StatusNotFound) {
				err = nil
			}
		}
	}
	return err
}

// Pull returns a pull request.
func (r *Repository) Pull(ctx context.Context, number int) (*Pull, error) {
	p := &Pull{}
	return p, r.do(ctx, http.MethodGet, r.host.pull(number), nil, p)
}

// maxCommits bounds the commits whose pull requests are looked for.
const maxCommits = 30

// PullsOf returns the numbers of the pull requests that brought a commit, and of those
// that brought the commits between it and an earlier one, if that is not "".
func (r *Repository) PullsOf(ctx context.Context, earlier, commit string) (numbers []int, err error) {
	commits := []string{commit}
	if earlier != "" && earlier != commit {
		var between struct {
			Commits []struct{ SHA, ID string }
		}
		if err := r.do(ctx, http.MethodGet, r.host.between(earlier, commit), nil, &between); err != nil && !IsRefusal(err) {
			return nil, err
		}
		for _, c := range between.Commits {
			if sha := cmp.Or(c.SHA, c.ID); sha != commit {
				commits = append(commits, sha)
			}
		}
		commits = commits[:min(len(commits), maxCommits)]
	}
	for _, c := range commits {
		var list []Pull
		if err = r.do(ctx, http.MethodGet, r.host.pullsOf(c), nil, &list); err != nil && !IsRefusal(err) { // a host may not know the commit
			return nil, err
		}
		for _, p := range list {
			if n := cmp.Or(p.IID, p.Number); !slices.Contains(numbers, n) {
				numbers = append(numbers, n)
			}
		}
	}
	return numbers, nil
}

// Suggest comments at a line of a file, as p has it, with what should stand there
// instead, which is one click to take. It is ErrNotInDiff where p does not show that line.
func (r *Repository) Suggest(ctx context.Context, p *Pull, number int, file string, line int, text, instead string) error {
	fence := "```"
	for strings.Contains(instead, fence) {
		fence += "`"
	}
	path, in := r.host.suggest(p, number, file, line, text+"\n\n"+fence+r.host.fence()+"\n"+instead+"\n"+fence)
	err := r.do(ctx, http.MethodPost, path, in, nil)
	if isStatus(err, http.StatusUnprocessableEntity) || isStatus(err, http.StatusBadRequest) {
		return ErrNotInDiff
	}
	return err
}

// A statusError is an answer that is not what was asked for.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

// IsRefusal reports whether a host refused a request for what it is: repeating it would
// not help.
func IsRefusal(err error) bool {
	return isStatus(err, http.StatusNotFound) || isStatus(err, http.StatusGone) || isStatus(err, http.StatusUnprocessableEntity)
}

func isStatus(err error, code int) bool {
	var e *statusError
	return errors.As(err, &e) && e.code == code
}

const (
	requestTime = 20 * time.Second
	attempts    = 3
	// maxWait is the longest that a host may ask to wait before the next attempt.
	maxWait = 30 * time.Second
)

// do makes a request, and again if the host asks for that. What may have had an effect
// is not repeated.
func (r *Repository) do(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	for attempt := 1; ; attempt++ {
		wait, err := r.try(ctx, method, path, body, out)
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

// try makes one attempt. wait is after how long another one is in order, 0 for never.
func (r *Repository) try(ctx context.Context, method, path string, body []byte, out any) (wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	address := r.api + "/" + path
	fail := func(err error, hint string) error {
		return &problem.Error{Op: "ask " + r.host.name() + " at", Place: r.api, Err: err, Hint: hint}
	}
	q, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return 0, fail(errors.New("the address cannot be used"), "")
	}
	q.Header.Set("Authorization", "Bearer "+r.token)
	q.Header.Set("User-Agent", "dtesn-agent")
	q.Header.Set("Accept", "application/json")
	if len(body) > 0 {
		q.Header.Set("Content-Type", "application/json")
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(q)
	if err != nil {
		var cause *url.Error
		if errors.As(err, &cause) {
			err = cause.Err
		}
		if method == http.MethodGet {
			wait = time.Second
		}
		return wait, fail(problem.Bare(err), "see whether the host can be reached from here")
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if code := resp.StatusCode; code < 200 || code > 299 {
		err := &statusError{code, fmt.Sprintf("%s %s: it answers %d %s%s", method, q.URL.Path, code, http.StatusText(code), said(text))}
		hint, wait := r.advice(resp)
		return wait, fail(err, hint)
	}
	if err == nil && out != nil {
		err = json.Unmarshal(text, out)
	}
	if err != nil {
		return 0, fail(fmt.Errorf("%s %s: the answer cannot be read: %w", method, q.URL.Path, err), "see whether that is the address of the host's API")
	}
	return 0, nil
}

// said is what a host says of an error: GitHub a message and errors, GitLab a message or an error.
func said(text []byte) string {
	var answer struct {
		Message, Error any
		Errors         []struct{ Message string }
	}
	if json.Unmarshal(text, &answer) != nil {
		return ""
	}
	for _, v := range []any{answer.Message, answer.Error} {
		if v != nil {
			words := fmt.Sprint(v)
			for _, e := range answer.Errors {
				words += "; " + e.Message
			}
			return " (" + problem.Line(words, 200) + ")"
		}
	}
	return ""
}

// advice says what to do about an answer, and when to try again.
func (r *Repository) advice(resp *http.Response) (hint string, wait time.Duration) {
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
		return "the token is not valid there, or is no more", 0
	case code == http.StatusForbidden:
		return r.host.readOnly(), 0
	case code == http.StatusNotFound:
		return "see whether repository and number are right; a token that may not see them is answered this, too", 0
	case code == http.StatusUnprocessableEntity:
		return "the conversation may be locked, or the text too long", 0
	case code >= 300 && code < 400:
		return "the repository moved: name it as it is now, with --repository", 0
	case code >= 500 && resp.Request.Method == http.MethodGet:
		return "the host is not well: run the job again later", time.Second
	}
	return "", 0
}
