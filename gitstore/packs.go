package gitstore

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/go-git/go-git/v5/plumbing/format/objfile"
)

// A pack is one of ours (see compact.go), or one that a person's `git gc` made.
// Its file stays open, so that it can be read after it was joined with others.
type pack struct {
	index *idxfile.MemoryIndex
	file  *os.File
	size  int64
}

// packed reads an object from the packs. They are listed again when it is in
// none of those known, or damaged there, for a repack may have come in between.
// An object that is in none is plumbing.ErrObjectNotFound.
func (r *repo) packed(want plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	content, err := r.searchPacks(want, h)
	// A pack may be joined with others while the directory is read: then the one
	// that has taken its place is found by reading it again.
	for range 5 {
		if !errors.Is(err, plumbing.ErrObjectNotFound) && !errors.Is(err, errDamaged) {
			return content, err
		}
		vanished, listErr := r.listPacks()
		if listErr != nil {
			return nil, listErr
		}
		if content, err = r.searchPacks(want, h); !vanished {
			break
		}
	}
	return content, err
}

func (r *repo) searchPacks(want plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
	var bad error
	for name, p := range r.packs {
		if ok, err := p.index.Contains(h); err != nil || !ok {
			continue
		}
		content, err := p.read(want, h)
		if err == nil {
			return content, nil
		}
		if bad = fmt.Errorf("read %s in %s: %w", h, name, err); !fromDisk(err) {
			bad = fmt.Errorf("%w: %w", errDamaged, bad)
		}
	}
	if bad != nil {
		return nil, bad
	}
	return nil, plumbing.ErrObjectNotFound
}

// listPacks opens the packs that are new in the directory and drops those that
// are gone. A pack without an index, or with a torn one, is what a repack that
// was cut short leaves; git does not use it either. One that may not be read is
// an error, for it may hold the history.
//
// vanished says that one was listed and gone when it was opened.
func (r *repo) listPacks() (vanished bool, err error) {
	indexes, err := glob(filepath.Join(r.objects(), "pack"), "pack-*.idx")
	if err != nil {
		return false, fmt.Errorf("list packs: %w", err)
	}
	here := make(map[string]bool, len(indexes))
	for _, path := range indexes {
		name := strings.TrimSuffix(filepath.Base(path), ".idx")
		here[name] = true
		if r.packs[name] != nil {
			continue
		}
		p, err := openPack(strings.TrimSuffix(path, ".idx"))
		switch {
		case err == nil:
			r.packs[name] = p
		case errors.Is(err, fs.ErrNotExist):
			vanished = true
		case fromDisk(err):
			return vanished, fmt.Errorf("open %s: %w", name, err)
		}
	}
	for name, p := range r.packs {
		if !here[name] {
			_ = p.file.Close()
			delete(r.packs, name)
		}
	}
	return vanished, nil
}

// packedObjects lists the objects in all packs.
func (r *repo) packedObjects() ([]plumbing.Hash, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.listPacks(); err != nil {
		return nil, err
	}
	var hashes []plumbing.Hash
	for name, p := range r.packs {
		entries, err := p.index.Entries()
		if err != nil {
			return nil, fmt.Errorf("list the objects of %s: %w", name, err)
		}
		for e, err := entries.Next(); err == nil; e, err = entries.Next() {
			hashes = append(hashes, e.Hash)
		}
	}
	return hashes, nil
}

// closePacks closes the files of all packs; they are opened again when needed.
func (r *repo) closePacks() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, p := range r.packs {
		_ = p.file.Close()
		delete(r.packs, name)
	}
}

// An indexFile has a Stat, so that the decoder holds the counts it reads against
// the size of the file: it makes room for what they say, and a torn index says
// anything.
type indexFile struct {
	*bufio.Reader
	file *os.File
}

func (f indexFile) Stat() (fs.FileInfo, error) { return f.file.Stat() }

func openPack(base string) (*pack, error) {
	idx, _, err := openRegular(base + ".idx")
	if err != nil {
		return nil, err
	}
	defer func() { _ = idx.Close() }()
	p := &pack{index: idxfile.NewMemoryIndex()}
	if err := idxfile.NewDecoder(indexFile{bufio.NewReader(idx), idx}).Decode(p.index); err != nil {
		return nil, err
	}
	file, info, err := openRegular(base + ".pack")
	if err != nil {
		return nil, err
	}
	p.file, p.size = file, info.Size()
	return p, nil
}

// source reads the objects of the pack that are of a size that ours can have.
func (p *pack) source() *packSource {
	return &packSource{p.file, p.size, maxObject, func(h plumbing.Hash) (int64, bool) {
		at, err := p.index.FindOffset(h)
		return at, err == nil
	}}
}

// safely calls do, for an index whose tables do not go together is read beyond
// their ends.
func safely(do func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("undecodable pack: %v", v)
		}
	}()
	return do()
}

// read decodes one object. One that is too large to be ours is errTooLarge.
func (p *pack) read(want plumbing.ObjectType, h plumbing.Hash) (content []byte, err error) {
	err = safely(func() error {
		at, err := p.index.FindOffset(h)
		if err != nil {
			return err
		}
		var t plumbing.ObjectType
		if t, content, err = p.source().object(at, 0); err != nil {
			return err
		}
		return checkObject(want, t, h, content)
	})
	if err != nil {
		return nil, err
	}
	return content, nil
}

// kind is the type of an object of whatever size, loose or packed; it is not read
// through.
func (r *repo) kind(h plumbing.Hash) (t plumbing.ObjectType, err error) {
	f, _, err := openRegular(r.objectPath(h))
	if err == nil {
		defer func() { _ = f.Close() }()
		zr, err := objfile.NewReader(f)
		if err == nil {
			t, _, err = zr.Header()
			err = errors.Join(err, zr.Close())
		}
		return t, err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return t, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	err = plumbing.ErrObjectNotFound
	for _, p := range r.packs {
		if at, ierr := p.index.FindOffset(h); ierr == nil {
			if err = safely(func() (err error) { t, err = p.source().kind(at); return err }); err == nil {
				break
			}
		}
	}
	return t, err
}
