package codehost

import (
	"fmt"
	"net/http"
)

// gitHub is a repository there, as OWNER/NAME.
// https://docs.github.com/rest/issues/comments, /rest/pulls/comments
type gitHub string

func (gitHub) name() string { return "GitHub" }

func (gitHub) readOnly() string {
	return "give the job `permissions: pull-requests: write`; of a pull request from a fork the token only reads, and the summary of the job has it all"
}

func (g gitHub) comments(number int) string {
	return fmt.Sprintf("repos/%s/issues/%d/comments", g, number)
}

func (g gitHub) comment(_ int, id int64) (method, path string) {
	return http.MethodPatch, fmt.Sprintf("repos/%s/issues/comments/%d", g, id)
}

func (g gitHub) suggestions(number int) string {
	return fmt.Sprintf("repos/%s/pulls/%d/comments", g, number)
}

func (gitHub) isOutdated(c Comment) bool { return c.Line == nil }
func (gitHub) fence() string             { return "suggestion" }

func (g gitHub) suggest(p *Pull, number int, file string, line int, body string) (path string, in any) {
	return g.suggestions(number), map[string]any{"body": body, "commit_id": p.HeadCommit(), "path": file, "line": line, "side": "RIGHT"}
}

func (g gitHub) pull(number int) string { return fmt.Sprintf("repos/%s/pulls/%d", g, number) }
func (g gitHub) pullsOf(commit string) string {
	return fmt.Sprintf("repos/%s/commits/%s/pulls", g, commit)
}

func (g gitHub) between(earlier, commit string) string {
	return fmt.Sprintf("repos/%s/compare/%s...%s", g, earlier, commit)
}

// gitLab is a project there, as its number or its escaped path.
// https://docs.gitlab.com/api/notes/, /api/discussions/
type gitLab string

func (gitLab) name() string { return "GitLab" }

func (gitLab) readOnly() string {
	return "GITLAB_TOKEN is a project access token with the scope api and the role Reporter; the token of the job may not comment"
}

func (g gitLab) merge(number int, rest string) string {
	return fmt.Sprintf("projects/%s/merge_requests/%d%s", g, number, rest)
}

func (g gitLab) comments(number int) string { return g.merge(number, "/notes") }

func (g gitLab) comment(number int, id int64) (method, path string) {
	return http.MethodPut, g.merge(number, fmt.Sprintf("/notes/%d", id))
}

// suggestions are notes among the others.
func (g gitLab) suggestions(number int) string { return g.comments(number) }

func (gitLab) isOutdated(Comment) bool { return false } // it does not tell
func (gitLab) fence() string           { return "suggestion:-0+0" }

func (g gitLab) suggest(p *Pull, number int, file string, line int, body string) (path string, in any) {
	return g.merge(number, "/discussions"), map[string]any{"body": body, "position": map[string]any{
		"position_type": "text", "base_sha": p.DiffRefs.Base, "start_sha": p.DiffRefs.Start, "head_sha": p.DiffRefs.Head,
		"old_path": file, "new_path": file, "new_line": line,
	}}
}

func (g gitLab) pull(number int) string { return g.merge(number, "") }
func (g gitLab) pullsOf(commit string) string {
	return fmt.Sprintf("projects/%s/repository/commits/%s/merge_requests", g, commit)
}

func (g gitLab) between(earlier, commit string) string {
	return fmt.Sprintf("projects/%s/repository/compare?from=%s&to=%s", g, earlier, commit)
}
