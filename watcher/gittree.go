package watcher

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"golang.org/x/text/encoding/charmap"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/remote"
	"dtesn-agent/watcher/signature"
)

// objects is where objects are read from.
type objects interface {
	EncodedObject(plumbing.ObjectType, plumbing.Hash) (plumbing.EncodedObject, error)
	EncodedObjectSize(plumbing.Hash) (int64, error)
}

// The most that is read.
const (
	maxCommit = 1 << 20
	maxTree   = 16 << 20 // of one tree, and of all objects of a document
	maxReads  = 512      // objects of a document
	maxTags   = 5        // tags of tags
	// maxHintTrees and maxHintTree bound what is read for a hint alone.
	maxHintTrees = 100
	maxHintTree  = 64 << 10
)

var (
	errOversize = errors.New("it is too large")
	errBudget   = fmt.Errorf("the document takes more than %d objects, or %d MiB", maxReads, maxTree>>20)
)

// readObject reads one object and checks that it is what its name says: a
// loose file of a local repository may be anything. An object that is larger
// than limit is not inflated.
func readObject(o objects, want plumbing.ObjectType, h plumbing.Hash, limit int64) (plumbing.ObjectType, []byte, error) {
	size, err := o.EncodedObjectSize(h)
	if err != nil {
		return 0, nil, fmt.Errorf("read object %s: %w", h, err)
	}
	if size > limit {
		return 0, nil, fmt.Errorf("read object %s: %w: %d bytes, over %d", h, errOversize, size, limit)
	}
	obj, err := o.EncodedObject(want, h)
	if err != nil {
		return 0, nil, fmt.Errorf("read object %s: %w", h, err)
	}
	r, err := obj.Reader()
	if err != nil {
		return 0, nil, fmt.Errorf("read object %s: %w", h, err)
	}
	content, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err = errors.Join(err, r.Close()); err != nil {
		return 0, nil, fmt.Errorf("read object %s: %w", h, err)
	}
	if plumbing.ComputeHash(obj.Type(), content) != h {
		return 0, nil, &problem.Error{Op: "read object", Place: h.String(), Err: errors.New("it is damaged"), Hint: "check the repository with git fsck"}
	}
	return obj.Type(), content, nil
}

// decode decodes the content of an object by go-git.
func decode(kind plumbing.ObjectType, content []byte, to interface {
	Decode(plumbing.EncodedObject) error
},
) error {
	o := &plumbing.MemoryObject{}
	o.SetType(kind)
	_, _ = o.Write(content) // into memory, without an error
	return to.Decode(o)
}

// A commit is what is needed of one.
type commit struct {
	hash    plumbing.Hash
	tree    plumbing.Hash
	parents []plumbing.Hash
	author  string
	subject string
	when    time.Time // of the committer
	raw     []byte
	tag     []byte // the raw outermost tag, if the ref names one
}

func (c *commit) child(of string) bool {
	return slices.ContainsFunc(c.parents, func(p plumbing.Hash) bool { return p.String() == of })
}

const hintRef = "name another with --ref"

// readCommit follows tags to a commit.
func readCommit(o objects, h plumbing.Hash) (*commit, error) {
	c := &commit{}
	for range maxTags {
		kind, raw, err := readObject(o, plumbing.AnyObject, h, maxCommit)
		if err != nil {
			return nil, err
		}
		switch kind {
		case plumbing.CommitObject:
			return c.decode(h, raw)
		case plumbing.TagObject:
			if c.tag == nil {
				c.tag = raw
			}
			hex, _, _ := strings.Cut(strings.TrimPrefix(string(raw), "object "), "\n")
			if !plumbing.IsHash(hex) {
				return nil, fmt.Errorf("tag %s names no object", h)
			}
			h = plumbing.NewHash(hex)
		default:
			return nil, problem.New("", fmt.Errorf("the ref names a %s, not a commit", kind), hintRef)
		}
	}
	return nil, problem.New("", errors.New("the ref names a tag of a tag of a tag"), hintRef)
}

func (c *commit) decode(h plumbing.Hash, raw []byte) (*commit, error) {
	decoded := &object.Commit{}
	if err := decode(plumbing.CommitObject, raw, decoded); err != nil {
		return nil, fmt.Errorf("read commit %s: %w", h, err)
	}
	c.hash, c.raw = h, raw
	c.tree, c.parents, c.when = decoded.TreeHash, decoded.ParentHashes, decoded.Committer.When
	subject, _, _ := strings.Cut(strings.TrimLeft(decoded.Message, "\n"), "\n")
	author := fmt.Sprintf("%s <%s>", decoded.Author.Name, decoded.Author.Email)
	c.author = problem.Line(inUTF8(author, string(decoded.Encoding)), maxForeign)
	c.subject = problem.Line(inUTF8(subject, string(decoded.Encoding)), maxForeign)
	return c, nil
}

// inUTF8 decodes text of a commit in the encoding that its header names:
// git-commit(1), DISCUSSION. It knows those of one byte a character; text in
// others is returned as it is.
func inUTF8(text, name string) string {
	plain := strings.NewReplacer("-", "", "_", "", " ", "", "windows", "cp", "latin1", "iso88591")
	name = plain.Replace(strings.ToLower(name))
	for _, e := range charmap.All {
		if set, ok := e.(*charmap.Charmap); ok && plain.Replace(strings.ToLower(set.String())) == name {
			if decoded, err := set.NewDecoder().String(text); err == nil {
				return decoded
			}
		}
	}
	return text
}

// maxForeign bounds what is taken over from a commit's header, in bytes.
const maxForeign = 200

// allowed is who may sign.
type allowed struct{ *signature.Signers }

func (t *allowed) judge(mode VerifyMode, c *commit, at target) (who signature.Signer, err error) {
	if mode == VerifyTag || mode == VerifyBoth {
		if at.tag == "" || c.tag == nil {
			return who, problem.New("", errors.New("the ref is not an annotated tag, and --verify asks for a signed one"), "follow a signed tag with --ref TAG, or use --verify commit")
		}
		if who, err = t.Tag(c.tag, at.tag, clock()); err != nil {
			return who, fmt.Errorf("tag %s: %w", at.tag, err)
		}
	}
	if mode == VerifyCommit || mode == VerifyBoth {
		return t.Commit(c.raw, clock())
	}
	return who, nil
}

// treeFiles reads the files of a Document from the tree of c.
func treeFiles(o objects, c *commit, dir string, env schema.Environment) ([]schema.File, error) {
	t := newTreeReader(o)
	base, err := t.descend(c.tree, dir)
	if place := new(placeError); errors.As(err, &place) {
		return place.files(c, env), nil
	}
	if err != nil {
		return nil, err
	}
	if elsewhere := t.elsewhere(base); elsewhere != "" {
		place := &placeError{"the directory " + cmp.Or(dir, "at the root"), "has none", "did you mean --config " + path.Join(dir, elsewhere) + "?"}
		return place.files(c, env), nil
	}
	files, _, err := readDocument(env, func(name string) (*schema.File, error) { return t.file(base, name) })
	return files, err
}

// A treeReader reads the files of one commit. It reads each object once, and no
// more than maxTree bytes and maxReads objects in all.
type treeReader struct {
	o     objects
	left  int64 // bytes that may still be read
	reads int
	trees map[plumbing.Hash]*object.Tree
	blobs map[plumbing.Hash][]byte
}

func newTreeReader(o objects) *treeReader {
	return &treeReader{o: o, left: maxTree, trees: map[plumbing.Hash]*object.Tree{}, blobs: map[plumbing.Hash][]byte{}}
}

func (t *treeReader) object(kind plumbing.ObjectType, h plumbing.Hash, limit int64) ([]byte, error) {
	_, content, err := readObject(t.o, kind, h, min(limit, t.left))
	t.left -= int64(len(content))
	if t.reads++; t.reads > maxReads || t.left < limit && errors.Is(err, errOversize) {
		return nil, fmt.Errorf("read object %s: %w", h, errBudget)
	}
	return content, err
}

func (t *treeReader) tree(h plumbing.Hash, limit int64) (*object.Tree, error) {
	if tree := t.trees[h]; tree != nil {
		return tree, nil
	}
	raw, err := t.object(plumbing.TreeObject, h, limit)
	if err != nil {
		return nil, err
	}
	tree := &object.Tree{}
	if err := decode(plumbing.TreeObject, raw, tree); err != nil {
		return nil, err
	}
	t.trees[h] = tree
	return tree, nil
}

const missing = "does not exist"

// elsewhere is a directory below that has the base.yaml which is not here; "" if
// it is here, or nowhere.
func (t *treeReader) elsewhere(base plumbing.Hash) string {
	tree, err := t.tree(base, maxTree)
	if err != nil || has(tree, schema.BaseFile) {
		return ""
	}
	tried := map[plumbing.Hash]bool{}
	for _, e := range tree.Entries[:min(len(tree.Entries), maxHintTrees)] {
		if e.Mode != filemode.Dir || tried[e.Hash] {
			continue
		}
		tried[e.Hash] = true
		if below, err := t.tree(e.Hash, maxHintTree); err == nil && has(below, schema.BaseFile) {
			return e.Name
		}
	}
	return ""
}

func has(t *object.Tree, name string) bool {
	e, _ := find(t, name)
	return e != nil
}

// A placeError says that a path leads to no directory.
type placeError struct {
	path, what string
	way        string // out of it
}

func (e *placeError) Error() string { return e.path + " " + e.what }

// files are those that cannot be there, with the reason.
func (e *placeError) files(c *commit, env schema.Environment) []schema.File {
	why := fmt.Sprintf("is not to be had: in commit %s %s %s; %s", c.hash.String()[:12], e.path, e.what, e.way)
	return []schema.File{{Path: schema.BaseFile, Refused: why}, {Path: env.File(), Refused: why}}
}

// descend follows a path of directories; *placeError if it leads to none.
func (t *treeReader) descend(h plumbing.Hash, dir string) (plumbing.Hash, error) {
	at := ""
	for name := range strings.SplitSeq(dir, "/") {
		if name == "" {
			continue
		}
		tree, err := t.tree(h, maxTree)
		if err != nil {
			return h, err
		}
		e, _ := find(tree, name)
		at = path.Join(at, name)
		switch {
		case e == nil:
			return h, &placeError{at, missing, "put it back, or name another directory with --config"}
		case e.Mode == filemode.Submodule:
			return h, &placeError{at, "is a submodule, which is not followed", "name the submodule's own repository with --repo"}
		case e.Mode != filemode.Dir:
			return h, &placeError{at, "is a " + kindOf(e.Mode) + ", not a directory", "commit a directory, or name another with --config"}
		}
		h = e.Hash
	}
	return h, nil
}

// file reads one file; it returns nil for one that does not exist.
func (t *treeReader) file(base plumbing.Hash, name string) (*schema.File, error) {
	refuse := func(format string, args ...any) (*schema.File, error) {
		return &schema.File{Path: name, Refused: fmt.Sprintf(format, args...)}, nil
	}
	dir, short := path.Split(name)
	h, err := t.descend(base, dir)
	if place := new(placeError); errors.As(err, &place) {
		if place.what == missing {
			return nil, nil
		}
		return refuse("is not to be had: %s; commit a directory of regular files", place)
	}
	if err != nil {
		return nil, err
	}
	tree, err := t.tree(h, maxTree)
	if err != nil {
		return nil, err
	}
	e, twin := find(tree, short)
	switch {
	case e == nil:
		return nil, nil
	case twin != "":
		return refuse("stands beside %q: names that differ only in case are one file elsewhere; rename one", twin)
	case !e.Mode.IsFile() || e.Mode == filemode.Symlink:
		return refuse("is a %s in the repository; commit a regular file", kindOf(e.Mode))
	}
	content, known := t.blobs[e.Hash]
	if !known {
		content, err = t.object(plumbing.BlobObject, e.Hash, schema.MaxFileBytes)
	}
	switch {
	case errors.Is(err, errOversize), errors.Is(err, plumbing.ErrObjectNotFound) && isFiltered(t.o):
		return refuse("is larger than %d KiB; this is probably not a configuration file; remove what does not belong into it", schema.MaxFileBytes>>10)
	case err != nil:
		return nil, err
	case bytes.HasPrefix(content, []byte("version https://git-lfs.github.com/")):
		return refuse("is a pointer of Git LFS, not the file itself; take it out of LFS (git lfs untrack)")
	}
	t.blobs[e.Hash] = content
	f := schema.NewFile(name, content)
	return &f, nil
}

// isFiltered reports whether the server left large objects out.
func isFiltered(o objects) bool {
	fetched, ok := o.(*remote.Objects)
	return ok && fetched.Filtered
}

// find returns the entry of a name, and another one whose name is the same or
// differs only in case.
func find(t *object.Tree, name string) (e *object.TreeEntry, twin string) {
	for i := range t.Entries {
		switch own := &t.Entries[i]; {
		case e == nil && own.Name == name:
			e = own
		case strings.EqualFold(own.Name, name):
			twin = own.Name
		}
	}
	return e, twin
}

func kindOf(m filemode.FileMode) string {
	switch m {
	case filemode.Symlink:
		return "symbolic link"
	case filemode.Submodule:
		return "submodule"
	case filemode.Dir:
		return "directory"
	}
	return "regular file"
}
