// Package local reads a git repository of this machine in place, without a git
// binary: what a ref names now, and the objects behind it. It changes nothing
// there. The commits are the truth; a work tree, if there is one, is not
// looked at.
package local

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/memfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/smallfile"
)

// A Repository is where a repository keeps its files: gitrepository-layout(5).
type Repository struct {
	// Dir is the git directory; Common is that of the repository it is a linked
	// work tree of, the same as Dir where it is none.
	Dir, Common string
	// objects are its object directories: gitrepository-layout(5), alternates.
	objects []string
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
	return r, r.findObjects()
}

func openError(path string, err error, hint string) error {
	return &problem.Error{Op: "open repository", Place: path, Err: err, Hint: hint}
}

// readable refuses the formats that go-git would misread: git-config(1),
// extensions. go-git's own reader of that file refuses much that git reads.
func (r Repository) readable() error {
	text, err := small(filepath.Join(r.Common, "config"))
	if err != nil {
		return openError(r.Dir, fmt.Errorf("read config: %w", err), "")
	}
	section := ""
	for line := range strings.Lines(strings.ToLower(text)) {
		line = strings.TrimSpace(line[:strings.IndexAny(line+"#", "#;")])
		if name, rest, found := strings.Cut(line, "]"); found && line[0] == '[' {
			section, line = name[1:], rest
		}
		name, format, _ := strings.Cut(line, "=")
		name, format = strings.TrimSpace(name), strings.Trim(format, "\" \t")
		if section == "extensions" && (name == "objectformat" && format != "sha1" || name == "refstorage" && format != "files") {
			return openError(r.Dir, fmt.Errorf("its extensions.%s %s is not supported", name, format), "use a clone in git's usual format (sha1, files)")
		}
	}
	return nil
}

// maxLent is how many directories may lend objects.
const maxLent = 32

// findObjects finds the object directories: its own, those that it borrows from,
// those that they borrow from, each once.
func (r *Repository) findObjects() error {
	r.objects = []string{filepath.Join(r.Common, "objects")}
	for i := 0; i < len(r.objects) && i <= maxLent; i++ {
		text, err := small(filepath.Join(r.objects[i], "info", "alternates"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return openError(r.Dir, fmt.Errorf("read where it borrows objects: %w", err), "")
		}
		for path := range strings.Lines(text) {
			path = strings.TrimSpace(path)
			if full := absolute(r.objects[i], path); path != "" && path[0] != '#' && !slices.Contains(r.objects, full) {
				r.objects = append(r.objects, full)
			}
		}
	}
	return nil
}

// Objects opens the objects of the repository and of those that it borrows from.
// A repack takes packs away from under an open one, so it is opened anew for each
// use. go-git follows alternates too, but it inflates an object there to learn
// its size, misreads relative paths, and follows a circle without end.
func (r Repository) Objects() *filesystem.Storage {
	none := memfs.New() // go-git finds no alternates in it
	// An object that is larger than the threshold is inflated as it is read, others whole,
	// whatever size they declare.
	return filesystem.NewStorageWithOptions(objects{none, r.objects}, cache.NewObjectLRU(4<<20),
		filesystem.Options{AlternatesFS: none, LargeObjectThreshold: 1})
}

// objects are object directories, the first of which that has a file counts, as
// go-git reads a git directory. Links are followed wherever they lead, and
// regular files alone are opened.
type objects struct {
	billy.Filesystem // what is not used to read objects
	dirs             []string
}

// first calls do for a path in each directory until it is found.
func (o objects) first(name string, do func(path string) error) (err error) {
	for _, dir := range o.dirs {
		if err = do(filepath.Join(dir, strings.TrimPrefix(name, "objects"))); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return err
}

// Open opens a file to read it.
func (o objects) Open(name string) (opened billy.File, err error) {
	return opened, o.first(name, func(path string) error {
		f, err := smallfile.Open(path)
		if err == nil && len(filepath.Base(filepath.Dir(name))) == 2 { // objects/a9/4a8fe5…
			if err = checkHeader(f); err != nil {
				_ = f.Close()
			}
		}
		opened = file{f, name}
		return err
	})
}

// checkHeader refuses a loose object without a header, which go-git would look for in all
// that it inflates to: "TYPE SIZE" and a NUL, as git writes it.
func checkHeader(f *os.File) error {
	z, err := zlib.NewReader(f)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	head := make([]byte, 32) // as much as git looks at
	n, err := io.ReadFull(z, head)
	if header, _, ended := bytes.Cut(head[:n], []byte{0}); !ended || !bytes.Contains(header, []byte(" ")) {
		return errors.Join(fmt.Errorf("%s has no header", f.Name()), err)
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// Stat describes a file, or the one that a link leads to.
func (o objects) Stat(name string) (info fs.FileInfo, err error) {
	return info, o.first(name, func(path string) (err error) {
		info, err = os.Stat(path)
		return err
	})
}

// ReadDir lists a directory. A pack that has no index, or none yet, is left out,
// as git does: go-git would read no other one either.
func (o objects) ReadDir(name string) (all []fs.FileInfo, err error) {
	for _, dir := range o.dirs {
		dir = filepath.Join(dir, strings.TrimPrefix(name, "objects"))
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if pack, isPack := strings.CutSuffix(e.Name(), ".pack"); isPack {
				if _, err := os.Stat(filepath.Join(dir, pack+".idx")); err != nil {
					continue
				}
			}
			if info, err := e.Info(); err == nil { // else it is gone since
				all = append(all, info)
			}
		}
	}
	return all, nil
}

// A file has the name that it was opened by: go-git opens a pack again by it.
type file struct {
	*os.File
	name string
}

// Name returns the name below the repository.
func (f file) Name() string { return f.name }

// Lock does nothing: what is only read needs no lock.
func (file) Lock() error { return nil }

// Unlock does nothing.
func (file) Unlock() error { return nil }

// maxSymbolic is how many symbolic refs are followed.
const maxSymbolic = 5

// Resolve reads what the refs in names are now. Those that do not exist are
// not in the answer; an annotated tag is not peeled.
func (r Repository) Resolve(names []string) (map[string]plumbing.Hash, error) {
	found := map[string]plumbing.Hash{}
	for _, name := range names {
		h, err := r.resolve(name)
		if err != nil {
			return nil, err
		}
		if !h.IsZero() {
			found[name] = h
		}
	}
	return found, nil
}

// resolve reads what one ref is, zero if it does not exist. go-git would take the
// packed value of a ref whose file cannot be read.
func (r Repository) resolve(name string) (h plumbing.Hash, err error) {
	chain, text, err := r.follow(name)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENOTDIR):
		return r.packed(chain[len(chain)-1])
	case err != nil:
		return h, r.refError(name, err, "")
	case !plumbing.IsHash(text):
		return h, r.refError(name, errors.New("it is torn"), "the repository needs mending (git fsck)")
	}
	return plumbing.NewHash(text), nil
}

// follow follows symbolic refs: chain are name and those that it leads to, text
// is what the file of the last one holds.
func (r Repository) follow(name string) (chain []string, text string, err error) {
	for len(chain) <= maxSymbolic {
		chain = append(chain, name)
		text, err = small(r.file(name))
		to, symbolic := strings.CutPrefix(text, "ref:")
		text, to = strings.TrimRight(text, " \t"), strings.Trim(to, " \t")
		if err != nil || !symbolic {
			return chain, text, err
		}
		if name = to; !strings.HasPrefix(to, "refs/") || filepath.Clean("/"+to) != "/"+to {
			break
		}
	}
	return chain, "", errors.New("it leads nowhere")
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
	for line := range bytes.Lines(data) {
		if hash, of, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(" ")); string(of) == name && plumbing.IsHash(string(hash)) {
			return plumbing.NewHash(string(hash)), nil
		}
	}
	return plumbing.ZeroHash, nil
}

// Files returns the files that decide what the refs in names are, whether they
// exist or not.
func (r Repository) Files(names []string) []string {
	files := []string{filepath.Join(r.Common, "packed-refs")}
	for _, name := range names {
		chain, _, _ := r.follow(name)
		for _, name := range chain {
			files = append(files, r.file(name))
		}
	}
	return files
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
		return filepath.Clean(path)
	}
	return filepath.Join(base, path)
}
