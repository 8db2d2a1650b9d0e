package gitstore

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/schema"
)

func headRef(env schema.Environment) string    { return "refs/heads/" + string(env) }
func appliedRef(env schema.Environment) string { return "refs/dtesn/applied/" + string(env) }
func retriedRef(env schema.Environment) string { return "refs/dtesn/retried/" + string(env) }

const (
	objectPerm   = fs.FileMode(0o444)
	refPerm      = fs.FileMode(0o644)
	setAsideRefs = "refs/dtesn/set-aside"
	packedFile   = "packed-refs"
	maxRef       = 4 << 10  // bytes of a loose ref
	maxPacked    = 64 << 20 // bytes of packed-refs
)

// errTornRef says that a ref exists and names nothing.
var errTornRef = errors.New("the ref is torn")

// readRef resolves a ref: the loose file, and only if there is none, packed-refs. A ref
// that does not exist is zero and no error; a torn one is errTornRef.
func (r *repo) readRef(name string) (h plumbing.Hash, err error) {
	data, err := readBounded(filepath.Join(r.dir, name), maxRef)
	there := true
	switch {
	case err == nil:
		h, _ = parseHash(strings.TrimSpace(string(data)))
	case errors.Is(err, fs.ErrNotExist):
		var packed map[string]plumbing.Hash
		if packed, err = r.packedRefs(); err != nil {
			return h, err
		}
		h, there = packed[name]
	case isAbsent(err), errors.Is(err, errTooLarge):
	default:
		return h, fmt.Errorf("read ref %s: %w", name, err)
	}
	if there && h.IsZero() {
		return h, fmt.Errorf("%w: %s", errTornRef, name)
	}
	return h, nil
}

// packedRefs reads packed-refs; a ref that is torn is zero.
func (r *repo) packedRefs() (map[string]plumbing.Hash, error) {
	data, err := readBounded(filepath.Join(r.dir, packedFile), maxPacked)
	if err != nil && !isAbsent(err) {
		return nil, fmt.Errorf("read packed refs: %w", err)
	}
	refs := map[string]plumbing.Hash{}
	for line := range strings.Lines(string(data)) {
		if hex, ref, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			refs[ref], _ = parseHash(hex)
		}
	}
	return refs, nil
}

// isPackedRef reports whether git can read a line of packed-refs.
func isPackedRef(line string) bool {
	hex, ref, isRef := strings.Cut(strings.TrimPrefix(line, "^"), " ")
	_, ok := parseHash(hex)
	return strings.HasPrefix(line, "#") || ok && isRef == (line[0] != '^') && !strings.Contains(ref, " ")
}

// parseHash reads 40 lower-case hex digits that are not all zero.
func parseHash(s string) (plumbing.Hash, bool) {
	h := plumbing.NewHash(s)
	if h.String() != s {
		return plumbing.ZeroHash, false
	}
	return h, !h.IsZero()
}

// writeRef makes a ref name a commit. It is not synced. The temporary file lies
// outside refs/, where git would take what a kill leaves for a broken ref.
func (r *repo) writeRef(name string, h plumbing.Hash) error {
	return r.place(filepath.Join(r.dir, name), []byte(h.String()+"\n"), refPerm)
}

// refPaths are the files of our refs, each with its directory.
func (r *repo) refPaths() (paths []string) {
	for _, ref := range []string{headRef(r.env), appliedRef(r.env)} {
		path := filepath.Join(r.dir, ref)
		paths = append(paths, path, filepath.Dir(path))
	}
	return paths
}

// foreignRefs lists the refs that are not this agent's own, without torn ones. It fails
// where not all can be known: behind links, and of worktrees.
func (r *repo) foreignRefs() (map[string]plumbing.Hash, error) {
	if there, err := exists(filepath.Join(r.dir, "worktrees")); there || err != nil {
		return nil, cmp.Or(err, errors.New("the repository has worktrees"))
	}
	refs, err := r.packedRefs()
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(filepath.Join(r.dir, "refs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSymlink != 0 {
			err = fmt.Errorf("%s is a link", path)
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		ref := strings.TrimPrefix(path, r.dir+"/")
		if refs[ref], err = r.readRef(ref); errors.Is(err, errTornRef) {
			return nil
		}
		return err
	})
	maps.DeleteFunc(refs, func(ref string, h plumbing.Hash) bool {
		return h.IsZero() || ref == headRef(r.env) || ref == appliedRef(r.env) || ref == retriedRef(r.env) // that of format 1
	})
	return refs, err
}
