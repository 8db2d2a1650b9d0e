package watcher

import (
	"cmp"
	"container/heap"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/local"
	"dtesn-agent/watcher/smallfile"
)

// A Repository is a git repository of this machine whose commits are compared. It
// is for one goroutine.
type Repository struct {
	path    string
	where   local.Repository
	objects *filesystem.Storage
	shallow bool // its history is cut off somewhere
	bare    bool // it has no work tree
}

// OpenRepository opens the repository at path or around it: a work tree, a linked
// one or a bare repository. dir is where path is in the work tree, "" for its root.
func OpenRepository(path string) (r *Repository, dir string, err error) {
	full, err := filepath.Abs(path)
	if err == nil {
		full, err = filepath.EvalSymlinks(full)
	}
	if err != nil {
		return nil, "", &problem.Error{Op: "open repository", Place: path, Err: problem.Bare(err), Hint: "name a work tree or a bare repository"}
	}
	for root := full; ; root = filepath.Dir(root) {
		where, err := local.Find(root)
		switch {
		case err == nil:
			dir, _ = filepath.Rel(root, full)
			info, err := os.Stat(filepath.Join(where.Common, "shallow"))
			shallow := err == nil && info.Size() > 0
			return &Repository{path, where, where.Objects(), shallow, where.Dir == root}, strings.TrimPrefix(filepath.ToSlash(dir), "."), nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, "", err
		case root == filepath.Dir(root):
			return nil, "", &problem.Error{
				Op: "open repository", Place: path, Err: errors.New("not a git repository, nor is a directory above it"),
				Hint: "name a work tree or a bare repository",
			}
		}
	}
}

// IsBare reports whether the repository has no work tree.
func (r *Repository) IsBare() bool { return r.bare }

// Close gives the files of packs back.
func (r *Repository) Close() error { return r.objects.Close() }

var (
	// steps are what may follow a name: main~2, HEAD^, v1^0, v1^{commit}.
	steps       = regexp.MustCompile(`^(.+?)((?:[~^]\d*)*)(?:\^\{(?:commit)?\})?$`)
	step        = regexp.MustCompile(`[~^]\d*`)
	abbreviated = regexp.MustCompile(`^[0-9a-f]{4,40}$`)
)

// maxSteps bounds the ancestors that ~N goes over.
const maxSteps = 10_000

// Revision finds a commit by its name: a part of gitrevisions(7), namely refs in
// full or short, FETCH_HEAD, commits in full or abbreviated, with ~N and ^N behind.
func (r *Repository) Revision(name string) (*Revision, error) {
	fail := func(err error, hint string) (*Revision, error) {
		return nil, &problem.Error{Op: "find revision", Place: name, Err: err, Hint: hint}
	}
	parts := steps.FindStringSubmatch(name)
	if parts == nil {
		return fail(errors.New("not a name of a revision"), hintRevision)
	}
	h, err := r.named(parts[1])
	if err != nil {
		return fail(err, problem.Hint(err))
	}
	if h.IsZero() {
		if r.shallow {
			return fail(fmt.Errorf("the shallow clone %s does not have it", r.path), deepen(parts[1]))
		}
		return fail(fmt.Errorf("not in %s", r.path), hintRevision)
	}
	c, err := readCommit(r.objects, h)
	depth := 1
	for _, s := range step.FindAllString(parts[2], -1) {
		n := 1
		if s[1:] != "" {
			if n, _ = strconv.Atoi(s[1:]); n > maxSteps {
				return fail(fmt.Errorf("more than %d steps", maxSteps), hintRevision)
			}
		}
		parent, times := 0, n
		if s[0] == '^' {
			parent, times = n-1, min(n, 1)
		}
		for ; times > 0 && err == nil; times-- {
			if parent >= len(c.parents) {
				return fail(fmt.Errorf("commit %s has %d parents", shortHash(c.hash), len(c.parents)), "name a commit that exists")
			}
			depth++
			c, err = readCommit(r.objects, c.parents[parent])
		}
	}
	switch {
	case errors.Is(err, plumbing.ErrObjectNotFound) && r.shallow:
		if depth == 1 {
			return fail(fmt.Errorf("the shallow clone %s does not have the commit", r.path), deepen(parts[1]))
		}
		least := depthOf(parts[2])
		return fail(fmt.Errorf("the clone %s is shallow and ends before it", r.path),
			fmt.Sprintf("run git fetch --depth=%d, or give actions/checkout fetch-depth: %d", least, least))
	case errors.Is(err, plumbing.ErrObjectNotFound):
		return fail(fmt.Errorf("no such commit in %s", r.path), hintRevision)
	case problem.Hint(err) == hintRef:
		return fail(err, hintRevision)
	case err != nil:
		return fail(err, problem.Hint(err))
	}
	return &Revision{repository: r, commit: c, reader: newTreeReader(r.objects)}, nil
}

const hintRevision = "name a branch, a tag or a commit, such as main, HEAD~1 or v1.2"

// depthOf is how many commits deep a clone must be for the steps behind a name.
func depthOf(behind string) int {
	depth := 1
	for _, s := range step.FindAllString(behind, -1) {
		n := 1
		if s[0] == '~' && s[1:] != "" {
			n, _ = strconv.Atoi(s[1:])
		}
		depth += n
	}
	return depth
}

// deepen returns how to fetch a name into a shallow clone.
func deepen(name string) string {
	branch := strings.TrimPrefix(name, "origin/")
	if branch != name {
		name = branch + ":refs/remotes/" + name
	}
	return fmt.Sprintf("run git fetch --depth=1 origin %s, or give actions/checkout fetch-depth: 0", problem.ShellWord(name))
}

func shortHash(h plumbing.Hash) string { return h.String()[:12] }

// named returns what a name without steps names, zero if that is nothing.
func (r *Repository) named(name string) (h plumbing.Hash, err error) {
	switch {
	case name == "@":
		name = "HEAD"
	case name == "FETCH_HEAD":
		text, err := smallfile.Read(filepath.Join(r.where.Dir, name), 1<<20)
		if hash := string(text[:min(len(text), 40)]); err == nil && plumbing.IsHash(hash) {
			h = plumbing.NewHash(hash)
		}
		return h, nil
	case plumbing.IsHash(name):
		return plumbing.NewHash(name), nil
	}
	for _, prefix := range []string{"", "refs/", "refs/tags/", "refs/heads/", "refs/remotes/"} {
		full := prefix + name
		if prefix == "" && name != "HEAD" && !strings.HasPrefix(name, "refs/") || full != "HEAD" && plumbing.ReferenceName(full).Validate() != nil {
			continue
		}
		found, err := r.where.Resolve([]string{full})
		if h = found[full]; err != nil || !h.IsZero() {
			return h, err
		}
	}
	if abbreviated.MatchString(name) {
		return r.abbreviated(name)
	}
	return h, nil
}

// abbreviated finds the commit or tag whose hash begins with these digits.
func (r *Repository) abbreviated(digits string) (found plumbing.Hash, err error) {
	prefix, _ := hex.DecodeString(digits[:len(digits)/2*2])
	all, err := r.objects.HashesWithPrefix(prefix)
	if err != nil {
		return found, fmt.Errorf("read objects: %w", err)
	}
	for _, h := range all {
		if !strings.HasPrefix(h.String(), digits) || h == found {
			continue
		}
		if _, err := readCommit(r.objects, h); err != nil {
			continue
		}
		if !found.IsZero() {
			return found, problem.New("", errors.New("more than one commit begins like this"), "write more digits of the commit")
		}
		found = h
	}
	return found, nil
}

// A Relation is how the histories of two revisions are related.
type Relation int

// The relations. RelationUnknown is what a history that is cut off, or longer than
// is looked at, leaves open.
const (
	RelationUnknown Relation = iota
	RelationAncestor
	RelationDiverged
	RelationUnrelated
)

// maxRelated bounds the commits that Relation looks at.
const maxRelated = 2_000

// Relation says how from and to are related: the first is an ancestor of the other,
// they have a common one, or none.
func (r *Repository) Relation(from, to *Revision) (Relation, error) {
	if from.commit.hash == to.commit.hash {
		return RelationAncestor, nil
	}
	seen := map[plumbing.Hash]*Revision{from.commit.hash: from, to.commit.hash: to}
	next := &newestFirst{from.commit, to.commit}
	heap.Init(next)
	none := RelationUnrelated
	for next.Len() > 0 {
		c := heap.Pop(next).(*commit)
		for _, h := range c.parents {
			switch side := seen[c.hash]; seen[h] {
			case nil:
				seen[h] = side
			case side:
				continue
			default:
				if h == from.commit.hash {
					return RelationAncestor, nil
				}
				return RelationDiverged, nil
			}
			if len(seen) > maxRelated {
				return RelationUnknown, nil
			}
			_, raw, err := readObject(r.objects, plumbing.CommitObject, h, maxCommit)
			if errors.Is(err, plumbing.ErrObjectNotFound) {
				none = RelationUnknown // the history is cut off here
				continue
			}
			if err != nil {
				return none, err
			}
			parent, err := (&commit{}).decode(h, raw)
			if err != nil {
				return none, err
			}
			heap.Push(next, parent)
		}
	}
	return none, nil
}

// A Revision is one commit of a Repository.
type Revision struct {
	repository *Repository
	commit     *commit
	reader     *treeReader
}

// Commit returns the hash of the commit.
func (v *Revision) Commit() string { return v.commit.hash.String() }

// Directory opens a directory of the commit. It is fs.ErrNotExist if there is none.
func (v *Revision) Directory(dir string) (*Directory, error) {
	base, err := v.reader.descend(v.commit.tree, dir)
	if place := new(placeError); errors.As(err, &place) {
		e := &problem.Error{Op: "read", Place: cmp.Or(dir, "/") + " of commit " + shortHash(v.commit.hash), Err: errors.New(place.what), Hint: place.way}
		if place.what == missing {
			e.Err = fs.ErrNotExist
		}
		return nil, e
	}
	if err != nil {
		return nil, v.readError(err)
	}
	return &Directory{v, base, map[string]*schema.File{}}, nil
}

// readError says of an object that is missing why it may be.
func (v *Revision) readError(err error) error {
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return &problem.Error{
			Op: "read commit", Place: shortHash(v.commit.hash), Err: fmt.Errorf("%s does not have all of it: %w", v.repository.path, err),
			Hint: "clone without --filter",
		}
	}
	return err
}

// A Directory is a configuration directory of a Revision.
type Directory struct {
	revision *Revision
	base     plumbing.Hash
	read     map[string]*schema.File // nil for those that do not exist
}

// File reads one file, once. It is fs.ErrNotExist if there is none. What a
// Document refuses it refuses too.
func (d *Directory) File(name string) (schema.File, error) {
	f, ok := d.read[name]
	if !ok {
		t := d.revision.reader
		t.left, t.reads = maxTree, 0 // bounds are of a document
		var err error
		if f, err = t.file(d.base, name); err != nil {
			return schema.File{}, d.revision.readError(err)
		}
		d.read[name] = f
	}
	if f == nil {
		return schema.File{}, fs.ErrNotExist
	}
	return *f, nil
}

// Names lists the entries of a directory below, none if it does not exist.
func (d *Directory) Names(below string) (names []string) {
	h, err := d.revision.reader.descend(d.base, below)
	if err != nil {
		return nil
	}
	tree, err := d.revision.reader.tree(h, maxTree)
	if err != nil {
		return nil
	}
	for _, e := range tree.Entries {
		names = append(names, e.Name)
	}
	return names
}

// Elsewhere returns the directory below d that has the base.yaml which d lacks, or "".
func (d *Directory) Elsewhere() string { return d.revision.reader.elsewhere(d.base) }

// WorkTree returns the top of the work tree that path is in; of a bare repository, that.
func WorkTree(path string) (string, error) {
	r, dir, err := OpenRepository(path)
	if err != nil {
		return "", err
	}
	full, err := filepath.Abs(path)
	if err == nil {
		full, err = filepath.EvalSymlinks(full)
	}
	if dir != "" {
		full = strings.TrimSuffix(full, filepath.FromSlash("/"+dir))
	}
	return full, errors.Join(err, r.Close())
}
