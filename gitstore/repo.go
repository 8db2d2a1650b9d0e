package gitstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/objfile"
	"github.com/go-git/go-git/v5/plumbing/object"

	"dtesn-agent/schema"
)

const (
	repoDir        = "snapshots.git"
	maxObject      = 1 << 20 // bytes of one object of ours
	cachedRecords  = 256     // decoded snapshots kept
	parametersFile = "parameters.yaml"
	snapshotFile   = "snapshot.json"
)

// errDamaged says that an object which something names is missing or is not
// what its name says. A disk that cannot be read, or a file that may not be, is
// another error: history must not be given up for it.
var errDamaged = errors.New("damaged")

// errForeign says that a commit is whole, but no record of ours.
var errForeign = errors.New("not a record of this agent")

// A repo reads the files of one snapshot repository. It is safe for concurrent
// use.
type repo struct {
	dir   string // the bare repository
	state string // the state directory, for messages
	lent  string // the objects of another repository in place of its own, see takeIn
	env   schema.Environment

	cache recordCache
	chain chain

	blanks []string // empty files made ahead: the writer's, see Store.Prepare
	fans   int      // directories of objects/ that Prepare has seen to

	mu    sync.Mutex // guards packs
	packs map[string]*pack
}

func newRepo(state string, env schema.Environment) *repo {
	return &repo{dir: filepath.Join(state, repoDir), state: state, env: env, packs: map[string]*pack{}}
}

func (r *repo) tmp() string { return filepath.Join(r.dir, "tmp") }

func (r *repo) objects() string {
	if r.lent != "" {
		return r.lent
	}
	return filepath.Join(r.dir, "objects")
}

func (r *repo) objectPath(h plumbing.Hash) string {
	hex := h.String()
	return filepath.Join(r.objects(), hex[:2], hex[2:])
}

// object returns the content of an object: the loose file, else from a pack.
// The content is checked against the name. What is missing, torn or of another
// type is errDamaged.
func (r *repo) object(want plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
	content, err := r.loose(want, h)
	if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDamaged) {
		return content, err
	}
	content, perr := r.packed(want, h)
	if perr == nil {
		return content, nil
	}
	if errors.Is(perr, plumbing.ErrObjectNotFound) {
		if errors.Is(err, errDamaged) {
			return nil, err
		}
		// A repack deletes the loose file once its pack is in place, and packed
		// looked there last; but what a person unpacks goes the other way.
		if content, err = r.loose(want, h); err == nil {
			return content, nil
		}
		return nil, fmt.Errorf("%w: %s %s is missing", errDamaged, want, h)
	}
	return nil, perr
}

// loose reads a loose object. One that does not exist is fs.ErrNotExist, one
// that is larger than ours are errForeign.
func (r *repo) loose(want plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
	raw, err := readBounded(r.objectPath(h), 2*maxObject)
	var t plumbing.ObjectType
	var content []byte
	if err == nil {
		t, content, err = decodeObject(raw)
	}
	switch {
	case errors.Is(err, syscall.EISDIR):
		return nil, fmt.Errorf("%w: object %s is a directory", errDamaged, h)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP):
		return nil, fmt.Errorf("object %s: %w", h, fs.ErrNotExist) // a file where its directory belongs
	case errors.Is(err, errTooLarge):
		return nil, fmt.Errorf("%w: object %s: %w", errForeign, h, err)
	case raw == nil && err != nil:
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %s %s is torn: %w", errDamaged, want, h, err)
	}
	return content, checkObject(want, t, h, content)
}

// looseAny reads a loose object of whatever type, checked against its name.
func (r *repo) looseAny(h plumbing.Hash) (plumbing.ObjectType, []byte, error) {
	raw, err := readBounded(r.objectPath(h), 2*maxObject)
	if err != nil {
		return 0, nil, err
	}
	t, content, err := decodeObject(raw)
	if err != nil {
		return 0, nil, err
	}
	return t, content, checkObject(t, t, h, content)
}

// objectAny reads an object of whatever type, loose or packed. One that is larger
// than ours is errTooLarge, one that is torn errDamaged, and one that is not there
// plumbing.ErrObjectNotFound.
func (r *repo) objectAny(h plumbing.Hash) (plumbing.ObjectType, []byte, error) {
	t, content, err := r.looseAny(h)
	if err == nil {
		return t, content, nil
	}
	content, perr := r.packed(plumbing.AnyObject, h)
	if errors.Is(perr, plumbing.ErrObjectNotFound) && !errors.Is(err, fs.ErrNotExist) {
		switch {
		case errors.Is(err, errTooLarge):
			return 0, nil, fmt.Errorf("%w: object %s: %w", errForeign, h, err)
		case !fromDisk(err) || errors.Is(err, syscall.EISDIR):
			return 0, nil, fmt.Errorf("%w: object %s is torn: %v", errDamaged, h, err)
		}
		return 0, nil, err
	}
	if perr != nil {
		return 0, nil, perr
	}
	for _, t := range []plumbing.ObjectType{plumbing.BlobObject, plumbing.TreeObject, plumbing.CommitObject, plumbing.TagObject} {
		if plumbing.ComputeHash(t, content) == h {
			return t, content, nil
		}
	}
	return 0, nil, err
}

// blobs are the two files of a record's tree; none if it is no such tree.
func (r *repo) blobs(h plumbing.Hash) []plumbing.Hash {
	content, err := r.object(plumbing.TreeObject, h)
	if err != nil {
		return nil
	}
	tree := new(object.Tree)
	if tree.Decode(memoryObject(plumbing.TreeObject, content)) != nil || len(tree.Entries) != 2 {
		return nil
	}
	return []plumbing.Hash{tree.Entries[0].Hash, tree.Entries[1].Hash}
}

// errTail says that something stands behind the end of an object, which is whole:
// git calls it garbage, and refuses the history.
var errTail = errors.New("bytes behind its end")

// decodeObject reads the bytes of a loose object's file. It returns the object
// with errTail, too.
func decodeObject(raw []byte) (plumbing.ObjectType, []byte, error) {
	rd := bytes.NewReader(raw)
	t, content, err := readObject(rd)
	if err == nil && rd.Len() > 0 {
		err = fmt.Errorf("%d %w", rd.Len(), errTail)
	}
	return t, content, err
}

// readObject reads one object as a loose file has it, and not a byte further:
// zlib over "<type> <size>\0<content>".
func readObject(rd *bytes.Reader) (plumbing.ObjectType, []byte, error) {
	zr, err := objfile.NewReader(rd)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = zr.Close() }()
	t, size, err := zr.Header()
	if err != nil {
		return 0, nil, err
	}
	if size > maxObject {
		return 0, nil, fmt.Errorf("%w: %d bytes, over %d", errTooLarge, size, maxObject)
	}
	content := make([]byte, size)
	if _, err := io.ReadFull(zr, content); err != nil {
		return 0, nil, err
	}
	// One byte more: the end of the stream, with its checksum, must be there.
	if n, err := zr.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return 0, nil, fmt.Errorf("no clean end: %w", err)
	}
	return t, content, nil
}

// verify reads a loose object of any size through and returns its type. One
// that is not what its name says is errDamaged.
func (r *repo) verify(h plumbing.Hash) (t plumbing.ObjectType, err error) {
	f, _, err := openRegular(r.objectPath(h))
	if errors.Is(err, errIrregular) {
		return 0, fmt.Errorf("%w: object %s: %w", errDamaged, h, err)
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	var got plumbing.Hash
	zr, err := objfile.NewReader(f)
	if err == nil {
		if t, _, err = zr.Header(); err == nil {
			_, err = io.Copy(io.Discard, zr) // to the end, where the checksum is
			got = zr.Hash()
		}
		err = errors.Join(err, zr.Close())
	}
	switch {
	case errors.Is(err, syscall.EISDIR):
		return t, fmt.Errorf("%w: object %s is a directory", errDamaged, h)
	case fromDisk(err):
		return t, fmt.Errorf("read object %s: %w", h, err)
	case err != nil:
		return t, fmt.Errorf("%w: object %s is torn: %w", errDamaged, h, err)
	case got != h:
		return t, fmt.Errorf("%w: the content of %s is another", errDamaged, h)
	}
	return t, nil
}

func checkObject(want, t plumbing.ObjectType, h plumbing.Hash, content []byte) error {
	if plumbing.ComputeHash(t, content) != h {
		return fmt.Errorf("%w: the content of %s %s is another", errDamaged, t, h)
	}
	if t != want && want != plumbing.AnyObject {
		return fmt.Errorf("%w: %s is a %s, not a %s", errForeign, h, t, want)
	}
	return nil
}

// exists reports whether there is an entry at path, of whatever kind.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return false, nil
	}
	return err == nil, err
}
