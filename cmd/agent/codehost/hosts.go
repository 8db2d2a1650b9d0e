package codehost

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
)

// pageQuery returns the query for a page of a list.
func pageQuery(page int) string { return fmt.Sprintf("?per_page=%d&page=%d", pageSize, page) }

func bodyOf(text string) map[string]string { return map[string]string{"body": text} }

// gitHub is a repository of GitHub.
// https://docs.github.com/rest/issues/comments, /rest/pulls/comments
type gitHub struct {
	*client
	base string // repos/OWNER/NAME/
}

func newGitHub(c *client, path string) host { return gitHub{c, "repos/" + path + "/"} }

func (g gitHub) list(ctx context.Context, path string, page int, areAtLines bool) (list []comment, err error) {
	var response []struct {
		Comment
		User user
		Line *int // nil once the line changed
	}
	err = g.get(ctx, g.base+path+pageQuery(page), &response)
	for _, c := range response {
		list = append(list, comment{c.Comment, c.User, areAtLines && c.Line == nil})
	}
	return list, err
}

func (g gitHub) comments(ctx context.Context, number, page int) ([]comment, error) {
	return g.list(ctx, fmt.Sprintf("issues/%d/comments", number), page, false)
}

func (g gitHub) suggestions(ctx context.Context, number, page int) ([]comment, error) {
	return g.list(ctx, fmt.Sprintf("pulls/%d/comments", number), page, true)
}

func (g gitHub) create(ctx context.Context, number int, body string) error {
	return g.do(ctx, http.MethodPost, fmt.Sprintf("%sissues/%d/comments", g.base, number), bodyOf(body), nil)
}

func (g gitHub) edit(ctx context.Context, _ int, id int64, body string) error {
	return g.do(ctx, http.MethodPatch, fmt.Sprintf("%sissues/comments/%d", g.base, id), bodyOf(body), nil)
}

func (g gitHub) remove(ctx context.Context, _ int, id int64) error {
	return g.do(ctx, http.MethodDelete, fmt.Sprintf("%sissues/comments/%d", g.base, id), nil, nil)
}

func (gitHub) fence() string { return "suggestion" }

func (g gitHub) suggest(ctx context.Context, p *Pull, file string, line int, body string) error {
	return g.do(ctx, http.MethodPost, fmt.Sprintf("%spulls/%d/comments", g.base, p.Number),
		map[string]any{"body": body, "commit_id": p.Head, "path": file, "line": line, "side": "RIGHT"}, nil)
}

func (g gitHub) pull(ctx context.Context, number int) (*Pull, error) {
	var response struct{ Head struct{ SHA string } }
	err := g.get(ctx, fmt.Sprintf("%spulls/%d", g.base, number), &response)
	return &Pull{Number: number, Head: response.Head.SHA}, err
}

func (g gitHub) pullsOf(ctx context.Context, commit string) (numbers []int, err error) {
	var response []struct{ Number int }
	err = g.get(ctx, g.base+"commits/"+commit+"/pulls", &response)
	for _, p := range response {
		numbers = append(numbers, p.Number)
	}
	return numbers, err
}

func (g gitHub) between(ctx context.Context, earlier, commit string) (commits []string, err error) {
	var response struct{ Commits []struct{ SHA string } }
	err = g.get(ctx, g.base+"compare/"+earlier+"..."+commit, &response)
	for _, c := range response.Commits {
		commits = append(commits, c.SHA)
	}
	return commits, err
}

// gitLab is a project of GitLab.
// https://docs.gitlab.com/api/notes/, /api/discussions/
type gitLab struct {
	*client
	base string // projects/ID/
}

func newGitLab(c *client, path string) host {
	return gitLab{c, "projects/" + url.PathEscape(path) + "/"}
}

func (g gitLab) notes(number int) string {
	return fmt.Sprintf("%smerge_requests/%d/notes", g.base, number)
}

func (g gitLab) comments(ctx context.Context, number, page int) (list []comment, err error) {
	var response []struct {
		Comment
		Author user
	}
	err = g.get(ctx, g.notes(number)+pageQuery(page)+"&sort=asc&order_by=created_at", &response)
	for _, c := range response {
		list = append(list, comment{c.Comment, c.Author, false})
	}
	return list, err
}

// suggestions are among the other comments. GitLab does not tell which are outdated.
func (g gitLab) suggestions(ctx context.Context, number, page int) ([]comment, error) {
	return g.comments(ctx, number, page)
}

func (g gitLab) create(ctx context.Context, number int, body string) error {
	return g.do(ctx, http.MethodPost, g.notes(number), bodyOf(body), nil)
}

func (g gitLab) edit(ctx context.Context, number int, id int64, body string) error {
	return g.do(ctx, http.MethodPut, fmt.Sprintf("%s/%d", g.notes(number), id), bodyOf(body), nil)
}

func (g gitLab) remove(ctx context.Context, number int, id int64) error {
	return g.do(ctx, http.MethodDelete, fmt.Sprintf("%s/%d", g.notes(number), id), nil, nil)
}

func (gitLab) fence() string { return "suggestion:-0+0" }

func (g gitLab) suggest(ctx context.Context, p *Pull, file string, line int, body string) error {
	return g.do(ctx, http.MethodPost, fmt.Sprintf("%smerge_requests/%d/discussions", g.base, p.Number),
		map[string]any{"body": body, "position": map[string]any{
			"position_type": "text", "base_sha": p.base, "start_sha": p.start, "head_sha": p.Head,
			"old_path": file, "new_path": file, "new_line": line,
		}}, nil)
}

func (g gitLab) pull(ctx context.Context, number int) (*Pull, error) {
	var response struct {
		Refs struct {
			Base  string `json:"base_sha"`
			Start string `json:"start_sha"`
			Head  string `json:"head_sha"`
		} `json:"diff_refs"`
	}
	err := g.get(ctx, fmt.Sprintf("%smerge_requests/%d", g.base, number), &response)
	return &Pull{Number: number, Head: response.Refs.Head, base: response.Refs.Base, start: response.Refs.Start}, err
}

func (g gitLab) pullsOf(ctx context.Context, commit string) (numbers []int, err error) {
	var response []struct{ IID int }
	err = g.get(ctx, g.base+"repository/commits/"+commit+"/merge_requests", &response)
	for _, p := range response {
		numbers = append(numbers, p.IID)
	}
	return numbers, err
}

func (g gitLab) between(ctx context.Context, earlier, commit string) (commits []string, err error) {
	var response struct{ Commits []struct{ ID string } }
	err = g.get(ctx, g.base+"repository/compare?from="+earlier+"&to="+commit, &response)
	for _, c := range response.Commits {
		commits = append(commits, c.ID)
	}
	return commits, err
}
