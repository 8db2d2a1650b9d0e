// Package local reads a git repository of this machine in place, without a git
// binary: what a ref names now, and the objects behind it. It changes nothing
// there. The commits are the truth; a work tree, if there is one, is not
// looked at.
package local

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/memfs"
	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/go-git/go-git/v5/storage/filesystem/dotgit"

	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/smallfile"
)

// A Repository is where a repository keeps its files: gitrepository-layout(5).
type Repository struct {
	// Dir is the git directory; Common is that of the repository it is a linked
	// work tree of, the same as Dir where it is none.
	Dir, Common string
	// lenders are the object directories that it borrows from:
	// gitrepository-layout(5), alternates.
	lenders []string
}

// Find finds the repository at path: a work tree, a linked one, or a bare
// repository.
func Find(path string) (Repository, error) {
	path = strings.TrimPrefix(path, "file://")
	path, err := filepath.Abs(path)
	if err != nil {
		return Repository{}, err
	}
	dir := filepath.Join(path, ".git")
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		dir = path
	case err != nil:
		return Repository{}, openError(path, err, "")
	case !info.IsDir():
		text, err := small(dir)
		to, ok := strings.CutPrefix(text, "gitdir: ")
		if err != nil || !ok {
			return Repository{}, openError(path, errors.New("its file .git names no git directory"), "")
		}
		dir = absolute(path, to)
	}
	if _, err := os.Stat(filepath.Join(dir, "HEAD")); err != nil {
		return Repository{}, openError(path, fmt.Errorf("it is no git repository: %w", problem.Bare(err)), "name a work tree or a bare repository with --repo")
	}
	r := Repository{Dir: dir, Common: dir}
	if to, err := small(filepath.Join(dir, "commondir")); err == nil {
		r.Common = absolute(dir, to)
	}
	if err := r.readable(); err != nil {
		return Repository{}, err
	}
	return r, r.findLenders(filepath.Join(r.Common, "objects"), nil)
}

func openError(path string, err error, hint string) error {
	return &problem.Error{Op: "open repository", Place: path, Err: err, Hint: hint}
}

// readable refuses the formats that go-git would misread.
func (r Repository) readable() error {
	conf, err := small(filepath.Join(r.Common, "config"))
	if err != nil {
		return openError(r.Dir, err, "")
	}
	flat := strings.ToLower(strings.ReplaceAll(strings.ReplaceAll(conf, " ", ""), "\t", ""))
	for _, format := range []string{"objectformat=sha256", "refstorage=reftable"} {
		if strings.Contains(flat, format) {
			return openError(r.Dir, fmt.Errorf("its %s is not read by this agent", format), "use a clone in git's usual format (sha1, files)")
		}
	}
	return nil
}

// maxLent is how many repositories may lend objects, one through the other.
const maxLent = 5

// findLenders finds the object directories that one borrows from, and those
// that they borrow from, each once. It refuses a repository that borrows from
// itself.
func (r *Repository) findLenders(objects string, before []string) error {
	text, err := small(filepath.Join(objects, "info", "alternates"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return openError(r.Dir, fmt.Errorf("read where it borrows objects: %w", err), "")
	}
	real, err := filepath.EvalSymlinks(objects)
	if err != nil {
		return openError(r.Dir, problem.Bare(err), "")
	}
	if before = append(before, real); slices.Contains(before[:len(before)-1], real) || len(before) > maxLent {
		return openError(r.Dir, fmt.Errorf("it borrows objects in a circle, or through more than %d others", maxLent), "mend objects/info/alternates")
	}
	for path := range strings.Lines(text) {
		if path = strings.TrimSpace(path); path != "" && !strings.HasPrefix(path, "#") {
			path = filepath.Clean(absolute(objects, path))
			if slices.Contains(r.lenders, path) {
				continue
			}
			r.lenders = append(r.lenders, path)
			if err := r.findLenders(path, before); err != nil {
				return err
			}
		}
	}
	return nil
}

// Objects are the objects of a repository and of those that it borrows from.
// go-git follows alternates too, but it inflates an object there to learn its
// size, misreads relative paths, and may follow a circle without end.
type Objects struct{ stores []*filesystem.Storage }

// Objects opens the objects. A repack takes packs away from under an open one,
// so it is opened anew for each use.
func (r Repository) Objects() *Objects {
	var common billy.Filesystem
	if r.Common != r.Dir {
		common = osfs.New(r.Common)
	}
	shared := cache.NewObjectLRU(4 << 20)
	none := memfs.New() // go-git finds no alternates in it
	open := func(fs billy.Filesystem) *filesystem.Storage {
		return filesystem.NewStorageWithOptions(fs, shared, filesystem.Options{AlternatesFS: none, LargeObjectThreshold: 4 << 20})
	}
	o := &Objects{[]*filesystem.Storage{open(dotgit.NewRepositoryFilesystem(osfs.New(r.Dir), common))}}
	for _, objects := range r.lenders {
		o.stores = append(o.stores, open(osfs.New(filepath.Dir(objects))))
	}
	return o
}

// EncodedObjectSize returns the size of an object; it inflates no more than a
// delta.
func (o *Objects) EncodedObjectSize(h plumbing.Hash) (size int64, err error) {
	for _, s := range o.stores {
		if size, err = s.EncodedObjectSize(h); !errors.Is(err, plumbing.ErrObjectNotFound) {
			break
		}
	}
	return size, err
}

// EncodedObject returns an object.
func (o *Objects) EncodedObject(kind plumbing.ObjectType, h plumbing.Hash) (obj plumbing.EncodedObject, err error) {
	for _, s := range o.stores {
		if obj, err = s.EncodedObject(kind, h); !errors.Is(err, plumbing.ErrObjectNotFound) {
			break
		}
	}
	return obj, err
}

// Close closes the files that are open.
func (o *Objects) Close() error {
	var errs []error
	for _, s := range o.stores {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// maxSymbolic is how many symbolic refs are followed.
const maxSymbolic = 5

// Resolve reads what the refs in names are now. Those that do not exist are
// not in the answer; an annotated tag is not peeled.
func (r Repository) Resolve(names []string) (map[string]plumbing.Hash, error) {
	found := map[string]plumbing.Hash{}
	for _, name := range names {
		h, err := r.resolve(name, maxSymbolic)
		if err != nil {
			return nil, err
		}
		if !h.IsZero() {
			found[name] = h
		}
	}
	return found, nil
}

func (r Repository) resolve(name string, links int) (plumbing.Hash, error) {
	text, err := small(r.file(name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) {
		return r.packed(name)
	}
	if err != nil {
		return plumbing.ZeroHash, r.refError(name, err, "")
	}
	if to, ok := strings.CutPrefix(text, "ref: "); ok {
		if links == 0 || !strings.HasPrefix(to, "refs/") || !filepath.IsLocal(to) {
			return plumbing.ZeroHash, r.refError(name, errors.New("it leads nowhere"), "")
		}
		return r.resolve(to, links-1)
	}
	if !plumbing.IsHash(text) {
		return plumbing.ZeroHash, r.refError(name, errors.New("it is torn"), "the repository needs mending (git fsck)")
	}
	return plumbing.NewHash(text), nil
}

func (r Repository) refError(name string, err error, hint string) error {
	return &problem.Error{Op: "read ref", Place: name + " of " + r.Dir, Err: err, Hint: hint}
}

func (r Repository) packed(name string) (plumbing.Hash, error) {
	data, err := smallfile.Read(filepath.Join(r.Common, "packed-refs"), maxPacked)
	if errors.Is(err, fs.ErrNotExist) {
		return plumbing.ZeroHash, nil
	}
	if err != nil {
		return plumbing.ZeroHash, fmt.Errorf("read the packed refs of %s: %w", r.Dir, err)
	}
	end := []byte(" " + name + "\n")
	at := bytes.Index(data, end)
	if at < 40 {
		return plumbing.ZeroHash, nil
	}
	return plumbing.NewHash(string(data[at-40 : at])), nil
}

// Watch are the directories whose entries change when a ref in names does, or
// the one that it leads to.
func (r Repository) Watch(names []string) []string {
	dirs := []string{r.Dir}
	if r.Common != r.Dir {
		dirs = append(dirs, r.Common)
	}
	seen := map[string]bool{}
	for _, name := range names {
		for _, name := range r.links(name) {
			for dir := filepath.Dir(name); dir != "." && !seen[dir]; dir = filepath.Dir(dir) {
				seen[dir] = true
				if info, err := os.Stat(filepath.Join(r.Common, dir)); err == nil && info.IsDir() {
					dirs = append(dirs, filepath.Join(r.Common, dir))
				}
			}
		}
	}
	return dirs
}

// links are name and the refs that it leads to, one through the other.
func (r Repository) links(name string) []string {
	names := []string{name}
	for range maxSymbolic {
		text, err := small(r.file(name))
		to, ok := strings.CutPrefix(text, "ref: ")
		if err != nil || !ok || !filepath.IsLocal(to) {
			break
		}
		name = to
		names = append(names, name)
	}
	return names
}

// file is where a ref is kept, unless it is packed.
func (r Repository) file(name string) string {
	if name == "HEAD" {
		return filepath.Join(r.Dir, name)
	}
	return filepath.Join(r.Common, name)
}

// The most that files of a repository may hold, in bytes.
const (
	maxSmall  = 1 << 20
	maxPacked = 64 << 20
)

// small reads a small text file, without the line feed at its end.
func small(path string) (string, error) {
	b, err := smallfile.Read(path, maxSmall)
	return strings.TrimRight(string(b), "\r\n"), err
}

func absolute(base, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(base, path)
}
