package test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A codeHost answers as GitHub or GitLab do, about pull request 7 of one repository, and
// misbehaves on purpose.
type codeHost struct {
	t        *testing.T
	isGitLab bool
	url      string
	clone    string // whose branch topic is the pull request's, and main what it is for
	brought  string // a commit that the pull request brought

	mu       sync.Mutex
	comments []*hostComment
	calls    []string
	fail     func(call string) (code int, header http.Header) // 0 for no failure
	late     func(call string) time.Duration                  // before a request has an effect
}

type hostComment struct {
	ID       int    `json:"id"`
	Body     string `json:"body"`
	Line     *int   `json:"line"`
	User     any    `json:"user,omitempty"`
	Author   any    `json:"author,omitempty"`
	atLine   bool
	isEdited int
}

func newCodeHost(t *testing.T, isGitLab bool, clone string) *codeHost {
	h := &codeHost{t: t, isGitLab: isGitLab, clone: clone}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	h.url = server.URL
	return h
}

// environment is that of a CI job.
func (h *codeHost) environment() []string {
	if h.isGitLab {
		return []string{"CI_API_V4_URL=" + h.url, "CI_PROJECT_ID=42", "CI_MERGE_REQUEST_IID=7", "GITLAB_TOKEN=secret"}
	}
	return []string{"GITHUB_API_URL=" + h.url, "GITHUB_REPOSITORY=example/config", "GITHUB_REF=refs/pull/7/merge", "GITHUB_TOKEN=secret"}
}

// who is the one that comments: the owner of the token, or somebody else.
func (h *codeHost) who(isOwn bool) any {
	kind, id := "User", 2
	if isOwn {
		kind, id = "Bot", 1
	}
	return map[string]any{"id": id, "type": kind}
}

func (h *codeHost) add(body string, atLine, isOwn bool) {
	c := &hostComment{ID: 100 + len(h.comments), Body: body, atLine: atLine}
	if c.User = h.who(isOwn); h.isGitLab {
		c.User, c.Author = nil, h.who(isOwn)
	} else if atLine {
		one := 1
		c.Line = &one
	}
	h.comments = append(h.comments, c)
}

// barrier orders what the test does with the fields and what a request does: there must be
// one between them.
func (h *codeHost) barrier() {
	h.mu.Lock()
	defer h.mu.Unlock()
}

// below returns copies of the comments that are not at lines, and of those that are.
func (h *codeHost) below() (below, atLines []*hostComment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.comments {
		if c == nil {
			continue
		}
		if c := *c; c.atLine {
			atLines = append(atLines, &c)
		} else {
			below = append(below, &c)
		}
	}
	return below, atLines
}

var hostPaths = map[bool][]*regexp.Regexp{
	false: {
		regexp.MustCompile(`^/repos/example/config/issues/7/comments$`), regexp.MustCompile(`^/repos/example/config/issues/comments/(\d+)$`),
		regexp.MustCompile(`^/repos/example/config/pulls/7/comments$`), regexp.MustCompile(`^/repos/example/config/pulls/7$`),
		regexp.MustCompile(`^/repos/example/config/commits/([0-9a-f]+)/pulls$`), regexp.MustCompile(`^/repos/example/config/compare/([0-9a-f]+)\.\.\.([0-9a-f]+)$`),
	},
	true: {
		regexp.MustCompile(`^/projects/42/merge_requests/7/notes$`), regexp.MustCompile(`^/projects/42/merge_requests/7/notes/(\d+)$`),
		regexp.MustCompile(`^/projects/42/merge_requests/7/discussions$`), regexp.MustCompile(`^/projects/42/merge_requests/7$`),
		regexp.MustCompile(`^/projects/42/repository/commits/([0-9a-f]+)/merge_requests$`), regexp.MustCompile(`^/projects/42/repository/compare$`),
	},
}

func (h *codeHost) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	h.mu.Lock()
	late := h.late
	h.mu.Unlock()
	if late != nil {
		time.Sleep(late(q.Method + " " + q.URL.EscapedPath()))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	q.URL.Path = strings.TrimPrefix(q.URL.Path, "/api/v3")
	call := q.Method + " " + q.URL.EscapedPath()
	h.calls = append(h.calls, call)
	answer := func(code int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v)
	}
	refuse := func(code int, text string) { answer(code, map[string]any{"message": text}) }
	if q.Header.Get("Authorization") != "Bearer secret" {
		refuse(401, "Bad credentials")
		return
	}
	if h.fail != nil {
		if code, header := h.fail(call); code != 0 {
			for name := range header {
				w.Header().Set(name, header.Get(name))
			}
			text := "as the test has it"
			if header.Get("X-Locked") != "" {
				text = "Unable to create comment because issue is locked."
			}
			refuse(code, text)
			return
		}
	}
	if q.URL.Path == "/user" {
		if h.isGitLab {
			answer(200, h.who(true))
		} else {
			refuse(403, "Resource not accessible by integration")
		}
		return
	}
	var in struct {
		Body     string
		CommitID string `json:"commit_id"`
		Path     string
		Line     int
		Position struct {
			HeadSHA string `json:"head_sha"`
			NewPath string `json:"new_path"`
			NewLine int    `json:"new_line"`
		}
	}
	if q.Method != http.MethodGet && q.Method != http.MethodDelete {
		if err := json.NewDecoder(q.Body).Decode(&in); err != nil || in.Body == "" || len(in.Body) > 65536 {
			refuse(422, "Validation Failed")
			return
		}
	}
	paths := hostPaths[h.isGitLab]
	what := slices.IndexFunc(paths, func(p *regexp.Regexp) bool { return p.MatchString(q.URL.Path) })
	edit := http.MethodPatch
	if h.isGitLab {
		edit = http.MethodPut
	}
	switch {
	case what == 0 && q.Method == http.MethodGet:
		answer(200, h.page(q, false))
	case what == 0 && q.Method == http.MethodPost:
		h.add(in.Body, false, true)
		answer(201, map[string]any{})
	case what == 1 && q.Method == edit:
		id, _ := strconv.Atoi(paths[1].FindStringSubmatch(q.URL.Path)[1])
		h.comments[id-100].Body = in.Body
		h.comments[id-100].isEdited++
		answer(200, map[string]any{})
	case what == 1 && q.Method == http.MethodDelete:
		id, _ := strconv.Atoi(paths[1].FindStringSubmatch(q.URL.Path)[1])
		h.comments[id-100] = nil
		answer(204, nil)
	case what == 2 && q.Method == http.MethodGet:
		answer(200, h.page(q, true))
	case what == 2 && q.Method == http.MethodPost:
		file, line, head := in.Path, in.Line, in.CommitID
		if h.isGitLab {
			file, line, head = in.Position.NewPath, in.Position.NewLine, in.Position.HeadSHA
		}
		if head != h.head() || !slices.Contains(h.shown(file), line) {
			refuse(map[bool]int{true: 400, false: 422}[h.isGitLab], "the line must be part of the diff")
			return
		}
		h.add(in.Body, true, true)
		answer(201, map[string]any{})
	case what == 3:
		answer(200, map[string]any{
			"number": 7, "iid": 7, "head": map[string]any{"sha": h.head()},
			"diff_refs": map[string]any{"base_sha": "b", "start_sha": "s", "head_sha": h.head()},
		})
	case what == 4:
		if paths[4].FindStringSubmatch(q.URL.Path)[1] == h.brought {
			answer(200, []any{map[string]any{"number": 7, "iid": 7}})
		} else {
			answer(200, []any{})
		}
	case what == 5:
		from, to := q.URL.Query().Get("from"), q.URL.Query().Get("to")
		if m := paths[5].FindStringSubmatch(q.URL.Path); len(m) == 3 {
			from, to = m[1], m[2]
		}
		var commits []any
		for _, c := range strings.Fields(git(h.t, h.clone, "rev-list", "--reverse", from+".."+to)) {
			commits = append(commits, map[string]any{"sha": c, "id": c})
		}
		answer(200, map[string]any{"commits": commits})
	default:
		refuse(404, "Not Found")
	}
}

// page is a page of the comments. GitLab has those at lines among the others.
func (h *codeHost) page(q *http.Request, atLine bool) []*hostComment {
	var all []*hostComment
	for _, c := range h.comments {
		if c != nil && (h.isGitLab || c.atLine == atLine) {
			all = append(all, c)
		}
	}
	size, _ := strconv.Atoi(q.URL.Query().Get("per_page"))
	number, _ := strconv.Atoi(q.URL.Query().Get("page"))
	from := min(len(all), size*(number-1))
	return append([]*hostComment{}, all[from:min(len(all), from+size)]...)
}

func (h *codeHost) head() string { return strings.TrimSpace(git(h.t, h.clone, "rev-parse", "topic")) }

// shown are the lines of a file that the pull request shows. GitLab takes but those that
// it adds, for a line that stayed has two numbers.
func (h *codeHost) shown(file string) (lines []int) {
	at := 0
	hunk := regexp.MustCompile(`^@@ -\S+ \+(\d+)`)
	for line := range strings.Lines(git(h.t, h.clone, "diff", "main...topic", "--", file)) {
		switch m := hunk.FindStringSubmatch(line); {
		case m != nil:
			at, _ = strconv.Atoi(m[1])
		case at > 0 && strings.HasPrefix(line, "+"), at > 0 && strings.HasPrefix(line, " "):
			if line[0] == '+' || !h.isGitLab {
				lines = append(lines, at)
			}
			at++
		}
	}
	return lines
}

func (h *codeHost) String() string {
	if h.isGitLab {
		return "GitLab"
	}
	return "GitHub"
}
