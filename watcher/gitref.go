package watcher

import (
	"fmt"
	"path"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/schema/problem"
)

// A refSpec is what --ref names.
type refSpec struct {
	text   string
	commit plumbing.Hash // a full commit
	full   bool          // refs/… or HEAD
}

// A target is what a ref named when it was looked at.
type target struct {
	hash plumbing.Hash
	tag  string // the short name of the tag, if it is one
}

// IsCommit reports whether ref names a commit by itself, which never moves.
func IsCommit(ref string) bool { return plumbing.IsHash(ref) }

func parseRef(text string) (refSpec, error) {
	if IsCommit(text) {
		return refSpec{text: text, commit: plumbing.NewHash(text)}, nil
	}
	r := refSpec{text: text, full: text == "HEAD" || strings.HasPrefix(text, "refs/")}
	for _, name := range r.names() {
		if name != "HEAD" && (plumbing.ReferenceName(name).Validate() != nil || strings.ContainsAny(name, "\x00\r\n")) {
			return r, problem.New("--ref", fmt.Errorf("invalid ref %q", text), "use a branch, a tag, refs/… or a full commit of 40 hex digits")
		}
	}
	return r, nil
}

// names are the full names that are looked for.
func (r refSpec) names() []string {
	switch {
	case !r.commit.IsZero():
		return nil
	case r.full:
		return []string{r.text}
	}
	return []string{"refs/heads/" + r.text, "refs/tags/" + r.text}
}

// choose takes the one ref that exists.
func (r refSpec) choose(found map[string]plumbing.Hash) (target, error) {
	var chosen target
	n := 0
	for _, name := range r.names() {
		h, ok := found[name]
		if !ok {
			continue
		}
		n++
		chosen.hash = h
		chosen.tag, _ = strings.CutPrefix(name, "refs/tags/")
		if chosen.tag == name {
			chosen.tag = ""
		}
	}
	switch n {
	case 0:
		hint := "push it, or name another with --ref"
		if strings.Trim(r.text, "0123456789abcdef") == "" && len(r.text) >= 7 {
			hint = "a commit is named by all of its 40 digits"
		}
		return chosen, problem.New("", fmt.Errorf("ref %s not found", r.text), hint)
	case 1:
		return chosen, nil
	}
	return chosen, problem.New("", fmt.Errorf("ambiguous ref %s: a branch and a tag", r.text), fmt.Sprintf("say refs/heads/%s or refs/tags/%s with --ref", r.text, r.text))
}

// cleanDir checks the directory within a repository.
func cleanDir(dir string) (string, error) {
	clean := path.Clean("/" + strings.TrimSuffix(dir, "/"))[1:]
	if strings.HasPrefix(dir, "/") || strings.HasPrefix(dir, "../") || dir == ".." || strings.Contains(dir, "/../") {
		return "", fmt.Errorf("--config: %q must be a path within the repository, such as config", dir)
	}
	return clean, nil
}
