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

// The most an object may hold.
const (
	maxCommit = 1 << 20
	maxTree   = 16 << 20
	maxTags   = 5 // tags of tags
	// maxHintTrees and maxHintTree bound what is read for a hint alone.
	maxHintTrees = 100
	maxHintTree  = 64 << 10
)

var errOversize = errors.New("it is too large")

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
	mem := &plumbing.MemoryObject{}
	mem.SetType(plumbing.CommitObject)
	if _, err := mem.Write(raw); err != nil {
		return nil, err
	}
	decoded := &object.Commit{}
	if err := decoded.Decode(mem); err != nil {
		return nil, fmt.Errorf("read commit %s: %w", h, err)
	}
	c.hash, c.raw = h, raw
	c.tree, c.parents, c.when = decoded.TreeHash, decoded.ParentHashes, decoded.Committer.When
	c.author = problem.Line(fmt.Sprintf("%s <%s>", decoded.Author.Name, decoded.Author.Email), maxForeign)
	subject, _, _ := strings.Cut(strings.TrimLeft(decoded.Message, "\n"), "\n")
	c.subject = problem.Line(subject, maxForeign)
	return c, nil
}

// maxForeign bounds what is taken over from a commit's header, in bytes.
const maxForeign = 200

// allowed is who may sign.
type allowed struct{ *signature.Signers }

func (t *allowed) judge(mode VerifyMode, c *commit, at target) (who signature.Signer, err error) {
	if mode == VerifyTag || mode == VerifyBoth {
		if at.tag == "" || c.tag == nil {
			return who, errors.New("the ref is no annotated tag, and --verify asks for a signed one")
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
	t := &treeReader{o: o}
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
	var read collection
	add := func(name string) error {
		f, ok, err := t.file(base, name)
		if ok {
			read.add(f)
		}
		return err
	}
	if err := add(env.File()); err != nil {
		return nil, err
	}
	var extends []string
	if len(read.files) == 1 {
		extends = schema.Extends(read.files[0])
	}
	for _, name := range append([]string{schema.BaseFile}, extends...) {
		if read.exceedsLimits() {
			break
		}
		if err := add(name); err != nil {
			return nil, err
		}
	}
	read.sort()
	return read.files, nil
}

type treeReader struct{ o objects }

func (t *treeReader) tree(h plumbing.Hash, limit int64) (*object.Tree, error) {
	_, raw, err := readObject(t.o, plumbing.TreeObject, h, limit)
	if err != nil {
		return nil, err
	}
	mem := &plumbing.MemoryObject{}
	mem.SetType(plumbing.TreeObject)
	if _, err := mem.Write(raw); err != nil {
		return nil, err
	}
	tree := &object.Tree{}
	return tree, tree.Decode(mem)
}

const missing = "does not exist"

// elsewhere is a directory below that has the base.yaml which is not here; "" if
// it is here, or nowhere.
func (t *treeReader) elsewhere(base plumbing.Hash) string {
	tree, err := t.tree(base, maxTree)
	if err != nil || entry(tree, schema.BaseFile) != nil {
		return ""
	}
	for _, e := range tree.Entries[:min(len(tree.Entries), maxHintTrees)] {
		if e.Mode != filemode.Dir {
			continue
		}
		if below, err := t.tree(e.Hash, maxHintTree); err == nil && entry(below, schema.BaseFile) != nil {
			return e.Name
		}
	}
	return ""
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
		e := entry(tree, name)
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

// file reads one file; ok is false if there is none.
func (t *treeReader) file(base plumbing.Hash, name string) (f schema.File, ok bool, err error) {
	f.Path = name
	dir, short := path.Split(name)
	h, err := t.descend(base, strings.TrimSuffix(dir, "/"))
	if place := new(placeError); errors.As(err, &place) {
		if place.what != missing {
			f.Refused = fmt.Sprintf("is not to be had: %s; commit a directory of regular files", place)
		}
		return f, f.Refused != "", nil
	}
	if err != nil {
		return f, false, err
	}
	tree, err := t.tree(h, maxTree)
	if err != nil {
		return f, false, err
	}
	e := entry(tree, short)
	if e == nil {
		return f, false, nil
	}
	if twin := clash(tree, short); twin != "" {
		f.Refused = fmt.Sprintf("stands beside %q: names that differ only in case are one file elsewhere; rename one", twin)
		return f, true, nil
	}
	if e.Mode != filemode.Regular && e.Mode != filemode.Executable && e.Mode != filemode.Deprecated {
		f.Refused = "is a " + kindOf(e.Mode) + " in the repository; commit a regular file"
		return f, true, nil
	}
	return t.blob(f, e.Hash)
}

func (t *treeReader) blob(f schema.File, h plumbing.Hash) (schema.File, bool, error) {
	_, content, err := readObject(t.o, plumbing.BlobObject, h, schema.MaxFileBytes)
	switch {
	case errors.Is(err, errOversize), errors.Is(err, plumbing.ErrObjectNotFound) && isFiltered(t.o):
		f.Refused = fmt.Sprintf("is larger than %d KiB; this is probably not a configuration file; remove what does not belong into it", schema.MaxFileBytes>>10)
		return f, true, nil
	case err != nil:
		return f, false, err
	case bytes.HasPrefix(content, []byte("version https://git-lfs.github.com/")):
		f.Refused = "is a pointer of Git LFS, not the file itself; take it out of LFS (git lfs untrack)"
		return f, true, nil
	}
	return schema.NewFile(f.Path, content), true, nil
}

// isFiltered reports whether the server left large objects out.
func isFiltered(o objects) bool {
	fetched, ok := o.(*remote.Objects)
	return ok && fetched.Filtered
}

func entry(t *object.Tree, name string) *object.TreeEntry {
	for i := range t.Entries {
		if t.Entries[i].Name == name {
			return &t.Entries[i]
		}
	}
	return nil
}

// clash is another entry whose name differs in case alone.
func clash(t *object.Tree, name string) string {
	n := 0
	for _, e := range t.Entries {
		if e.Name == name {
			n++
		} else if strings.EqualFold(e.Name, name) {
			return e.Name
		}
	}
	if n > 1 {
		return name
	}
	return ""
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
