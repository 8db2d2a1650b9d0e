package gitstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

func headRef(env schema.Environment) string    { return "refs/heads/" + string(env) }
func appliedRef(env schema.Environment) string { return "refs/dtesn/applied/" + string(env) }
func retriedRef(env schema.Environment) string { return "refs/dtesn/retried/" + string(env) }

const (
	setAsideRefs = "refs/dtesn/set-aside"
	packedRefs   = "packed-refs"
	maxRef       = 4 << 10  // bytes of a loose ref
	maxPacked    = 64 << 20 // bytes of packed-refs
)

// errTornRef says that a ref exists and names nothing: the file is empty, cut
// short or filled with what was never written.
var errTornRef = errors.New("the ref is torn")

// whatOf is what was found instead of a ref, without its name.
func whatOf(torn error) string {
	_, what, _ := strings.Cut(torn.Error(), ", ")
	return what
}

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
	case errors.Is(err, errTooLarge):
		return plumbing.ZeroHash, fmt.Errorf("%w: %s, over %d bytes", errTornRef, name, maxRef)
	case !errors.Is(err, fs.ErrNotExist):
		return plumbing.ZeroHash, fmt.Errorf("read ref %s: %w", name, err)
	}
	return r.readPacked(name)
}

func (r *repo) readPacked(name string) (plumbing.Hash, error) {
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

// anyHash is parseHash as git reads the ref of a person's: in any case, and with
// whatever stands behind it.
func anyHash(text string) (plumbing.Hash, bool) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return plumbing.ZeroHash, false
	}
	return parseHash(strings.ToLower(words[0]))
}

// tempRef writes the content of a ref to a file outside refs/, where git would
// take what a crash leaves for a broken ref. It is not synced.
func (r *repo) tempRef(h plumbing.Hash) (string, error) {
	return r.temp([]byte(h.String()+"\n"), refPerm)
}

// placeRef renames tmp, which tempRef wrote, to the ref; it is the moment at
// which the ref moves. The returned directories must be synced to make the
// move durable: more than one, when packing has removed empty directories.
//
// Syscalls: renameat; with mkdirat before it where the directory is gone.
func (r *repo) placeRef(tmp, name string) (dirs []string, err error) {
	path := filepath.Join(r.dir, name)
	dirs = []string{filepath.Dir(path)}
	err = os.Rename(tmp, path)
	if errors.Is(err, fs.ErrNotExist) {
		for d := filepath.Dir(dirs[0]); len(d) >= len(r.dir); d = filepath.Dir(d) {
			dirs = append(dirs, d)
		}
		if err = mkdirBelow(r.dir, dirs[0], 0o755); err == nil {
			err = os.Rename(tmp, path)
		}
	}
	if err != nil {
		_ = os.Remove(tmp)
		return nil, fmt.Errorf("move ref %s: %w", name, err)
	}
	return dirs, nil
}

// writeRef makes the ref name h, durably.
//
// Syscalls: openat, write, close, fsync (the temporary file), renameat, fsync
// (the ref's directory).
func (r *repo) writeRef(name string, h plumbing.Hash) error {
	tmp, err := r.tempRef(h)
	if err != nil {
		return fmt.Errorf("write ref %s: %w", name, err)
	}
	if err := syncPath(tmp); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("sync ref %s: %w", name, err)
	}
	dirs, err := r.placeRef(tmp, name)
	if err != nil {
		return err
	}
	if err := syncPaths(dirs, nil); err != nil {
		return fmt.Errorf("sync ref %s: %w", name, err)
	}
	return nil
}

// removeRef removes a ref durably, from packed-refs first, so that a crash in
// between does not bring an older value back.
//
// Syscalls: those of unpackRef if the ref is packed, unlinkat, fsync (the
// ref's directory).
func (r *repo) removeRef(ctx context.Context, name string) error {
	if err := r.unpackRef(ctx, name); err != nil {
		return fmt.Errorf("remove ref %s: %w", name, err)
	}
	path := filepath.Join(r.dir, name)
	if err := os.Remove(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("remove ref %s: %w", name, err)
	}
	return syncPath(filepath.Dir(path))
}

// errRefsLocked says that another git holds packed-refs.lock.
var errRefsLocked = errors.New("another git packs refs")

// lockPacked makes the lock of packed-refs. One that is there is waited for as
// long as git does by default, a second: core.packedRefsTimeout of
// git-config(1). One that nobody can hold any more is removed.
func lockPacked(ctx context.Context, path string) (*os.File, error) {
	for start := time.Now(); ; {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if !errors.Is(err, fs.ErrExist) {
			return f, err
		}
		if info, err := os.Lstat(path); err == nil && stale(time.Now(), info.ModTime(), staleLock) {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			continue
		}
		if time.Since(start) > lockWait {
			return nil, problem.New("", fmt.Errorf("%w: %s exists", errRefsLocked, path), "remove "+path+" if no git runs there")
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockRetry):
		}
	}
}

// unpackRef takes a ref out of packed-refs by git's own protocol: who creates
// packed-refs.lock may replace packed-refs by it.
//
// Syscalls: openat(O_CREAT|O_EXCL) of the lock, read, write, fsync, renameat,
// fsync (the repository).
func (r *repo) unpackRef(ctx context.Context, name string) error {
	return r.unpackLine(ctx, name, plumbing.ZeroHash)
}

// unpackLine is unpackRef for a line that names only, if that is not zero.
func (r *repo) unpackLine(ctx context.Context, name string, only plumbing.Hash) error {
	if h, err := r.readPacked(name); err == nil && h.IsZero() {
		return nil
	}
	path := filepath.Join(r.dir, packedRefs)
	lock, err := lockPacked(ctx, path+".lock")
	if err != nil {
		return err
	}
	abandon := func(err error) error {
		_ = os.Remove(path + ".lock")
		return errors.Join(err, lock.Close())
	}
	data, err := readBounded(path, maxPacked)
	if err = errors.Join(err, ctx.Err()); err != nil {
		return abandon(err)
	}
	var kept bytes.Buffer
	dropped := false // a peeled line belongs to the one before it
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, "^") {
			hex, ref, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			dropped = ref == name && (only.IsZero() || hex == only.String())
		}
		if !dropped {
			kept.WriteString(line)
		}
	}
	if _, err := lock.Write(kept.Bytes()); err != nil {
		return abandon(err)
	}
	if err := lock.Sync(); err != nil {
		return abandon(err)
	}
	if err := os.Rename(path+".lock", path); err != nil {
		return abandon(err)
	}
	return errors.Join(lock.Close(), syncPath(r.dir))
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
		if h, ok := anyHash(string(data)); ok {
			refs[ref] = h
		}
		return err
	})
	return refs, err
}
