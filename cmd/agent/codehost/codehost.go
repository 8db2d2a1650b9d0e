// Package codehost comments on pull requests of GitHub and on merge requests of GitLab.
// Both are called pull requests here. Another host is a type that implements host, and an
// entry in kinds.
package codehost

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// A Repository is a repository on a code host, as the owner of a token sees it.
type Repository struct{ host host }

// A host makes the requests of one API, for one repository.
type host interface {
	self(ctx context.Context) (user, error)
	// comments returns a page of the comments below a pull request, oldest first.
	comments(ctx context.Context, number, page int) ([]comment, error)
	// suggestions returns a page of the comments at lines, and maybe others.
	suggestions(ctx context.Context, number, page int) ([]comment, error)
	create(ctx context.Context, number int, body string) error
	edit(ctx context.Context, number int, id int64, body string) error
	remove(ctx context.Context, number int, id int64) error
	// fence is what makes a block of code a suggestion for one line.
	fence() string
	suggest(ctx context.Context, p *Pull, file string, line int, body string) error
	pull(ctx context.Context, number int) (*Pull, error)
	pullsOf(ctx context.Context, commit string) (numbers []int, err error)
	// between returns the commits after earlier up to commit, oldest first.
	between(ctx context.Context, earlier, commit string) ([]string, error)
}

// A Comment is a comment below a pull request, or at one of its lines.
type Comment struct {
	ID   int64
	Body string
}

// A comment is a Comment with what decides whether it is ours.
type comment struct {
	Comment
	author     user
	isOutdated bool // its line changed since
}

type user struct {
	ID   int64
	Type string // of GitHub: "Bot" or "User"
}

// A Pull is a pull request.
type Pull struct {
	Number int
	Head   string // the newest commit of its branch

	base, start string // what GitLab compares the head with
}

// ErrNotInDiff is returned for a line that is not in the diff of a pull request.
var ErrNotInDiff = errors.New("the line is not in the difference")

const (
	pageSize = 30
	maxPages = 100 // of comments
)

// Find returns the comments below a pull request that begin with a marker, oldest first.
func (r *Repository) Find(ctx context.Context, number int, marker string) ([]Comment, error) {
	return r.find(ctx, number, marker, r.host.comments)
}

// Suggestions returns the comments at lines of a pull request that begin with a marker.
func (r *Repository) Suggestions(ctx context.Context, number int, marker string) ([]Comment, error) {
	return r.find(ctx, number, marker, r.host.suggestions)
}

// find returns comments of the token's owner or of a bot only: the text of others cannot be
// trusted.
func (r *Repository) find(ctx context.Context, number int, marker string, list func(ctx context.Context, number, page int) ([]comment, error)) (found []Comment, err error) {
	self, err := r.host.self(ctx)
	if err != nil {
		return nil, err
	}
	for page := 1; page <= maxPages; page++ {
		comments, err := list(ctx, number, page)
		if err != nil {
			return nil, err
		}
		for _, c := range comments {
			isOurs := c.author.Type == "Bot" || c.author.ID != 0 && c.author.ID == self.ID
			if isOurs && !c.isOutdated && strings.HasPrefix(c.Body, marker) {
				found = append(found, c.Comment)
			}
		}
		if len(comments) < pageSize {
			return found, nil
		}
	}
	return nil, fmt.Errorf("more than %d comments", pageSize*maxPages)
}

// Write makes a comment below a pull request. If there are known ones it edits the first
// instead, and removes the others, which jobs made at the same time.
func (r *Repository) Write(ctx context.Context, number int, known []Comment, body string) error {
	if len(known) == 0 {
		return r.host.create(ctx, number, body)
	}
	if err := r.host.edit(ctx, number, known[0].ID, body); err != nil {
		return err
	}
	for _, c := range known[1:] {
		if err := r.host.remove(ctx, number, c.ID); err != nil && !isStatus(err, http.StatusNotFound) {
			return err
		}
	}
	return nil
}

// Pull returns a pull request.
func (r *Repository) Pull(ctx context.Context, number int) (*Pull, error) {
	return r.host.pull(ctx, number)
}

// maxCommits bounds the commits whose pull requests are looked up.
const maxCommits = 30

// PullsOf returns the numbers of the pull requests that brought a commit, and of those
// that brought the newest of the commits between it and an earlier one, if that is not "".
func (r *Repository) PullsOf(ctx context.Context, earlier, commit string) (numbers []int, err error) {
	var commits []string
	if earlier != "" && earlier != commit {
		if commits, err = r.host.between(ctx, earlier, commit); err != nil && !IsRefusal(err) {
			return nil, err
		}
		commits = slices.DeleteFunc(commits, func(c string) bool { return c == commit })
	}
	commits = append([]string{commit}, commits[max(0, len(commits)-maxCommits+1):]...)
	for _, c := range commits {
		list, err := r.host.pullsOf(ctx, c)
		if err != nil && !isUnknownCommit(err) {
			return nil, err
		}
		for _, n := range list {
			if !slices.Contains(numbers, n) {
				numbers = append(numbers, n)
			}
		}
	}
	return numbers, nil
}

// Suggest comments at a line of a file, as p has it, with a replacement for the line that
// can be applied with a click. The error is ErrNotInDiff if p does not show that line.
func (r *Repository) Suggest(ctx context.Context, p *Pull, file string, line int, text, instead string) error {
	fence := "```"
	for strings.Contains(instead, fence) {
		fence += "`"
	}
	err := r.host.suggest(ctx, p, file, line, text+"\n\n"+fence+r.host.fence()+"\n"+instead+"\n"+fence)
	if isStatus(err, http.StatusUnprocessableEntity) || isStatus(err, http.StatusBadRequest) {
		return ErrNotInDiff
	}
	return err
}
