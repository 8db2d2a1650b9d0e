package gitstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/objfile"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

const (
	repoDir        = "snapshots.git"
	cachedRecords  = 256 // decoded snapshots kept
	cachedParents  = 1 << 16
	parametersFile = "parameters.yaml"
	snapshotFile   = "snapshot.json"
)

// errDamaged says that an object is missing or is not what its name says. A disk that
// cannot be read is another error: history must not be given up for it.
var errDamaged = errors.New("damaged")

// errMissing says that an object is neither in a loose file nor in a pack; it is
// errDamaged, too.
var errMissing = errors.New("missing")

// errForeign says that a commit is whole, but no record of ours.
var errForeign = errors.New("not a record of this agent")

// A repo reads the files of one repository. It is safe for concurrent use.
type repo struct {
	dir   string // the bare repository
	state string // the state directory, for messages
	env   schema.Environment

	records commitCache[*record.Record]
	parents commitCache[plumbing.Hash]
	// journaled are the objects that the journal has; they are read from there.
	journaled atomic.Pointer[map[plumbing.Hash]gitObject]

	spares []string // see place

	mu    sync.Mutex // guards what follows
	packs packIndexes
	bases cache.Object // what objects in packs are differences to
}

func newRepo(state string, env schema.Environment) *repo {
	return &repo{dir: filepath.Join(state, repoDir), state: state, env: env, bases: cache.NewObjectLRU(1 << 20)}
}

func (r *repo) objects() string { return filepath.Join(r.dir, "objects") }
func (r *repo) packDir() string { return filepath.Join(r.objects(), "pack") }

func (r *repo) packPath(name string) string { return filepath.Join(r.packDir(), name+".pack") }

func (r *repo) objectPath(h plumbing.Hash) string {
	hex := h.String()
	return filepath.Join(r.objects(), hex[:2], hex[2:])
}

// object returns the content of an object, of the journal or else of the repository.
func (r *repo) object(want plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
	if objects := r.journaled.Load(); objects != nil {
		if o, ok := (*objects)[h]; ok && o.t == want {
			return o.content, nil
		}
	}
	return r.stored(want, h)
}

// stored returns the content of an object in the repository, of the loose file or else
// of a pack, checked against the name. What is missing or torn is errDamaged.
func (r *repo) stored(want plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
	content, err := r.loose(want, h)
	if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDamaged) {
		return content, err
	}
	content, perr := r.packed(want, h)
	if !errors.Is(perr, plumbing.ErrObjectNotFound) {
		return content, perr
	}
	if errors.Is(err, fs.ErrNotExist) { // what a person unpacks goes from a pack to a loose file
		content, err = r.loose(want, h)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %s %s is %w", errDamaged, want, h, errMissing)
	}
	return content, err
}

// packsWhole reports whether every pack could be opened, once an object was in none of
// them.
func (r *repo) packsWhole() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.packs.bad
}

// loosePaths are the files of all loose objects, by name.
func (r *repo) loosePaths() (map[plumbing.Hash]string, error) {
	paths := map[plumbing.Hash]string{}
	dirs, err := glob(r.objects(), "[0-9a-f][0-9a-f]")
	for _, dir := range dirs {
		files, ferr := glob(dir, "*")
		if ferr != nil {
			return nil, ferr
		}
		for _, path := range files {
			if h, ok := parseHash(filepath.Base(dir) + filepath.Base(path)); ok {
				paths[h] = path
			}
		}
	}
	return paths, err
}

// loose reads a loose object. One that is larger than ours are is errForeign.
func (r *repo) loose(want plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
	raw, err := readBounded(r.objectPath(h), 2*maxObject)
	if isAbsent(err) {
		return nil, fmt.Errorf("object %s: %w", h, fs.ErrNotExist)
	}
	var t plumbing.ObjectType
	var content []byte
	if err == nil {
		t, content, err = readObject(raw)
	}
	switch {
	case errors.Is(err, errTooLarge):
		return nil, fmt.Errorf("%w: object %s: %w", errForeign, h, err)
	case fromDisk(err):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %s %s is torn: %w", errDamaged, want, h, err)
	}
	return content, checkObject(want, t, h, content)
}

// readObject decodes a loose file: zlib over "<type> <size>\0<content>".
func readObject(raw []byte) (t plumbing.ObjectType, content []byte, err error) {
	zr, err := objfile.NewReader(bytes.NewReader(raw))
	if err != nil {
		return t, nil, err
	}
	defer func() { _ = zr.Close() }()
	t, size, err := zr.Header()
	if err != nil {
		return t, nil, err
	}
	if size > maxObject {
		return t, nil, fmt.Errorf("%w: %d bytes, over %d", errTooLarge, size, maxObject)
	}
	content, err = io.ReadAll(io.LimitReader(zr, size+1)) // to the end of the stream, which has a checksum
	if err == nil && int64(len(content)) != size {
		err = fmt.Errorf("%d bytes, not %d", len(content), size)
	}
	return t, content, err
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
