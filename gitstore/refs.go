package gitstore

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

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
	packedRefs   = "packed-refs"
	maxRef       = 4 << 10  // bytes of a loose ref
	maxPacked    = 64 << 20 // bytes of packed-refs
)

// errTornRef says that a ref exists and names nothing: the file is empty, cut
// short or filled with what was never written.
var errTornRef = errors.New("the ref is torn")

// readRef resolves a ref by its name: the loose file, and only if there is
// none, packed-refs. A ref that does not exist is plumbing.ZeroHash and no
// error; a torn one is errTornRef, never "does not exist".
func (r *repo) readRef(name string) (plumbing.Hash, error) {
	data, err := readBounded(filepath.Join(r.dir, name), maxRef)
	switch {
	case err == nil:
		h, ok := parseHash(strings.TrimSpace(string(data)))
		if !ok {
			what := fmt.Sprintf("%d bytes that name no commit", len(data))
			if len(data) == 0 {
				what = "it is empty"
			}
			return plumbing.ZeroHash, fmt.Errorf("%w: %s, %s", errTornRef, name, what)
		}
		return h, nil
	case errors.Is(err, syscall.EISDIR):
		return plumbing.ZeroHash, fmt.Errorf("%w: %s, it is a directory", errTornRef, name)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP):
		return plumbing.ZeroHash, fmt.Errorf("%w: %s, a file is in the place of its directory", errTornRef, name)
	case errors.Is(err, errTooLarge):
		return plumbing.ZeroHash, fmt.Errorf("%w: %s, over %d bytes", errTornRef, name, maxRef)
	case !errors.Is(err, fs.ErrNotExist):
		return plumbing.ZeroHash, fmt.Errorf("read ref %s: %w", name, err)
	}
	return r.readPackedRef(name)
}

func (r *repo) readPackedRef(name string) (plumbing.Hash, error) {
	data, err := readBounded(filepath.Join(r.dir, packedRefs), maxPacked)
	if errors.Is(err, fs.ErrNotExist) {
		return plumbing.ZeroHash, nil
	}
	if err != nil {
		return plumbing.ZeroHash, fmt.Errorf("read packed refs: %w", err)
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		hex, ref, _ := strings.Cut(line, " ")
		if ref != name {
			continue
		}
		if h, ok := parseHash(hex); ok {
			return h, nil
		}
		return plumbing.ZeroHash, fmt.Errorf("%w: %s, in packed-refs", errTornRef, name)
	}
	return plumbing.ZeroHash, nil
}

// parseHash reads 40 lower-case hex digits that are not all zero.
func parseHash(s string) (plumbing.Hash, bool) {
	if len(s) != 40 || strings.Trim(s, "0123456789abcdef") != "" {
		return plumbing.ZeroHash, false
	}
	h := plumbing.NewHash(s)
	return h, !h.IsZero()
}

// writeRef makes a ref name a commit. It is not synced. The temporary file lies
// outside refs/, where git would take what a kill leaves for a broken ref.
func (r *repo) writeRef(name string, h plumbing.Hash) error {
	if err := r.place(filepath.Join(r.dir, name), []byte(h.String()+"\n"), refPerm); err != nil {
		return fmt.Errorf("write ref %s: %w", name, err)
	}
	return nil
}

// refPaths are the files of our refs, each with its directory: what makes them durable.
func (r *repo) refPaths() (paths []string) {
	for _, ref := range []string{headRef(r.env), appliedRef(r.env)} {
		path := filepath.Join(r.dir, ref)
		paths = append(paths, path, filepath.Dir(path))
	}
	return paths
}

// refs lists all refs with what they name, loose ones before packed ones; torn
// ones are left out.
func (r *repo) refs() (map[string]plumbing.Hash, error) {
	refs := map[string]plumbing.Hash{}
	data, err := readBounded(filepath.Join(r.dir, packedRefs), maxPacked)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read packed refs: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		hex, ref, _ := strings.Cut(strings.TrimSpace(line), " ")
		if h, ok := parseHash(hex); ok && ref != "" {
			refs[ref] = h
		}
	}
	err = filepath.WalkDir(filepath.Join(r.dir, "refs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := readBounded(path, maxRef)
		if errors.Is(err, errTooLarge) {
			return nil
		}
		if err != nil {
			return err
		}
		ref, err := filepath.Rel(r.dir, path)
		if h, ok := parseHash(strings.TrimSpace(string(data))); ok {
			refs[ref] = h
		}
		return err
	})
	return refs, err
}

// foreignRefs lists the refs that are not this agent's own. It fails where not all
// can be known: behind links, and of worktrees.
func (r *repo) foreignRefs() (map[string]plumbing.Hash, error) {
	if there, err := exists(filepath.Join(r.dir, "worktrees")); there || err != nil {
		return nil, cmp.Or(err, errors.New("the repository has worktrees"))
	}
	err := filepath.WalkDir(filepath.Join(r.dir, "refs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSymlink != 0 {
			err = fmt.Errorf("%s is a link", path)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	refs, err := r.refs()
	delete(refs, headRef(r.env))
	delete(refs, appliedRef(r.env))
	return refs, err
}
