package gitstore

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/storage/memory"
)

// maxObject bounds the objects that are read, in bytes. Ours are smaller.
const maxObject = 1 << 20

// packed reads an object from the packs. An object that is in none is
// plumbing.ErrObjectNotFound.
func (r *repo) packed(want plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// A pack may have been joined with others, also while the directory is read: then
	// the one that has taken its place is found by reading it again.
	for attempt := 1; ; attempt++ {
		content, err := r.searchPacks(want, h)
		if !errors.Is(err, plumbing.ErrObjectNotFound) && !errors.Is(err, errDamaged) || errors.Is(err, errForeign) {
			return content, err
		}
		if attempt == 3 {
			return nil, cmp.Or(r.packs.err, err)
		}
		if err := r.packs.list(r.packDir()); err != nil {
			return nil, err
		}
	}
}

func (r *repo) searchPacks(want plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
	bad := plumbing.ErrObjectNotFound
	for _, name := range r.packs.names {
		index := r.packs.index(r.packDir(), name)
		if index == nil {
			continue
		}
		if ok, err := index.Contains(h); err != nil || !ok {
			continue
		}
		content, err := r.readPacked(name, index, want, h)
		if err == nil {
			return content, nil
		}
		if bad = fmt.Errorf("read %s in %s: %w", h, name, err); !fromDisk(err) || errors.Is(err, fs.ErrNotExist) {
			bad = fmt.Errorf("%w: %w", errDamaged, bad)
		}
	}
	return nil, bad
}

// readPacked reads one object of a pack. The file is opened each time, so that many
// packs do not take many descriptors.
func (r *repo) readPacked(name string, index *idxfile.MemoryIndex, want plumbing.ObjectType, h plumbing.Hash) (content []byte, err error) {
	defer func() {
		if v := recover(); v != nil { // of a torn index
			err = fmt.Errorf("undecodable pack: %v", v)
		}
	}()
	file, err := osfs.Default.OpenFile(r.packPath(name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	p := packfile.NewPackfileWithCache(index, nil, file, r.bases, 0)
	defer func() { err = errors.Join(err, p.Close()) }()
	offset, err := index.FindOffset(h)
	if err != nil {
		return nil, err
	}
	size, err := p.GetSizeByOffset(offset)
	if err == nil && size > maxObject {
		err = fmt.Errorf("%w: %w: %d bytes, over %d", errForeign, errTooLarge, size, maxObject)
	}
	if err != nil {
		return nil, err
	}
	o, err := p.GetByOffset(offset)
	if err != nil {
		return nil, err
	}
	if content, err = contentOf(o); err != nil {
		return nil, err
	}
	return content, checkObject(want, o.Type(), h, content)
}

// packIndexes are the indexes of the packs.
type packIndexes struct {
	names  []string                        // of the packs, the newest first: what is asked for is new, mostly
	opened map[string]*idxfile.MemoryIndex // those that were needed; nil for one that is bad
	// bad: one is missing, or could not be opened. It is left out, as by git: a repack was
	// cut short. err is the disk's, which may keep the history from being found.
	bad bool
	err error
}

// list reads which packs there are.
func (p *packIndexes) list(dir string) error {
	paths, err := glob(dir, "*.idx") // as git, which also writes loose-*.idx
	packs, perr := glob(dir, "*.pack")
	if err = errors.Join(err, perr); err != nil {
		return fmt.Errorf("list packs: %w", err)
	}
	was, written := p.opened, map[string]time.Time{}
	*p = packIndexes{opened: map[string]*idxfile.MemoryIndex{}}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".idx")
		p.names = append(p.names, name)
		if index := was[name]; index != nil {
			p.opened[name] = index
		}
		if info, err := os.Stat(path); err == nil {
			written[name] = info.ModTime()
		}
	}
	slices.SortFunc(p.names, func(a, b string) int { return written[b].Compare(written[a]) })
	for _, path := range packs {
		p.bad = p.bad || !slices.Contains(paths, strings.TrimSuffix(path, ".pack")+".idx")
	}
	return nil
}

// index returns the index of a pack, and opens it if it is not open yet.
func (p *packIndexes) index(dir, name string) *idxfile.MemoryIndex {
	index, known := p.opened[name]
	if known {
		return index
	}
	index, err := openIndex(filepath.Join(dir, name+".idx"))
	if err != nil {
		index, p.bad = nil, true
		if fromDisk(err) && !errors.Is(err, fs.ErrNotExist) {
			p.err = fmt.Errorf("open %s: %w", name, err)
		}
	}
	p.opened[name] = index
	return index
}

func (r *repo) closePacks() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.packs = packIndexes{}
	r.bases.Clear()
}

// An indexFile has a Stat, for the decoder to check the counts of a torn index against
// the size of the file before it makes room for them.
type indexFile struct {
	*bufio.Reader
	file *os.File
}

func (f indexFile) Stat() (fs.FileInfo, error) { return f.file.Stat() }

func openIndex(path string) (*idxfile.MemoryIndex, error) {
	file, err := openNow(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if there, err := exists(strings.TrimSuffix(path, ".idx") + ".pack"); err != nil || !there {
		return nil, cmp.Or(err, fmt.Errorf("the pack of %s is %w", path, errMissing))
	}
	index := idxfile.NewMemoryIndex()
	return index, idxfile.NewDecoder(indexFile{bufio.NewReader(file), file}).Decode(index)
}

// unpack adds all objects of a pack to others, and checks its sum.
func (r *repo) unpack(name string, objects *memory.Storage) error {
	file, err := openNow(r.packPath(name))
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	return packfile.UpdateObjectStorage(objects, file)
}

// writePack writes a pack of objects, durably, and returns its name. The index gets
// its name first: go-git gives up on all packs for one without an index.
func (r *repo) writePack(objects *memory.Storage) (name string, err error) {
	hashes := slices.SortedFunc(maps.Keys(objects.Objects), func(a, b plumbing.Hash) int { return bytes.Compare(a[:], b[:]) })
	const window = 10 // objects that each is compared with, as in git
	var pack, idx bytes.Buffer
	sum, err := packfile.NewEncoder(&pack, objects, false).Encode(hashes, window)
	if err != nil {
		return "", err
	}
	writer := new(idxfile.Writer)
	parser, err := packfile.NewParser(packfile.NewScanner(bytes.NewReader(pack.Bytes())), writer)
	if err == nil {
		_, err = parser.Parse()
	}
	var index *idxfile.MemoryIndex
	if err == nil {
		index, err = writer.Index()
	}
	if err == nil {
		_, err = idxfile.NewEncoder(&idx).Encode(index)
	}
	if err != nil {
		return "", err
	}
	name = "pack-" + sum.String()
	tmpPack, err := writeTemp(r.dir, pack.Bytes(), objectPerm, true)
	tmpIndex, ierr := writeTemp(r.dir, idx.Bytes(), objectPerm, true)
	err = errors.Join(err, ierr, os.MkdirAll(r.packDir(), 0o755))
	if err == nil { // one after the other at once: git gc removes an index without its pack
		err = os.Rename(tmpIndex, filepath.Join(r.packDir(), name+".idx"))
	}
	if err == nil {
		err = os.Rename(tmpPack, r.packPath(name))
	}
	if err != nil {
		_, _ = os.Remove(tmpPack), os.Remove(tmpIndex) // what was renamed stays, and harms nobody
		return "", err
	}
	return name, syncPath(r.packDir())
}
