package gitstore

import (
	"bytes"
	"cmp"
	"crypto/sha1" // git's object format
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

// dropPrefix begins the name, below tmp/, of the index of a pack that is on its
// way out.
const dropPrefix = "drop-"

// dropPack removes a pack whose objects are elsewhere, or are wanted no more.
// The index leaves first, whole, so that no reader finds half of the pair; under
// its other name it says, after a crash, that the pack must go too.
//
// Syscalls: unlinkat of multi-pack-index (ENOENT as a rule), renameat of the
// index, unlinkat of the pack and of what else bears
// its name, unlinkat of the index.
func (r *repo) dropPack(name string) error {
	if err := os.Remove(filepath.Join(r.objects(), "pack", "multi-pack-index")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // a person's; git makes it anew
	}
	drop := filepath.Join(r.tmp(), dropPrefix+name)
	err := os.Rename(filepath.Join(r.objects(), "pack", name+".idx"), drop)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return r.finishDrop(drop)
}

// dropGraph removes what git remembers of the commits, for speed alone, when
// some of them are gone: git fsck would ask for them.
func (r *repo) dropGraph() error {
	err := os.Remove(filepath.Join(r.objects(), "info", "commit-graph"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(filepath.Join(r.objects(), "info", "commit-graphs")))
}

func (r *repo) finishDrop(drop string) error {
	name := strings.TrimPrefix(filepath.Base(drop), dropPrefix)
	parts, err := glob(filepath.Join(r.objects(), "pack"), name+".*")
	if err != nil {
		return err
	}
	for _, path := range append(parts, drop) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// mendPacks brings packs and indexes that are damaged, or that lack the other
// half, into order: an index is made anew from a whole pack; from a torn pack
// every object that can be read, and is nowhere else, is taken out into a new
// one. A quick look compares only the ends of the files, a thorough one all
// bytes. It reports whether objects may be found now that were not before.
func (s *Store) mendPacks(thorough bool) (mended bool, err error) {
	if err := s.settleDrops(); err != nil {
		return false, err
	}
	entries, err := os.ReadDir(filepath.Join(s.repo.objects(), "pack"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	have := map[string]bool{}
	for _, e := range entries {
		have[e.Name()] = true
	}
	for _, e := range entries {
		base, ext := strings.TrimSuffix(e.Name(), filepath.Ext(e.Name())), filepath.Ext(e.Name())
		more := false
		switch {
		case !strings.HasPrefix(base, "pack-"):
			err = s.sweepLeftover(e)
		case ext == ".idx" && !have[base+".pack"]:
			more, err = s.mendLoneIndex(base)
		case ext == ".pack":
			more, err = s.mendPack(base, have[base+".idx"], thorough)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // gone meanwhile: git is at work
			return mended, fmt.Errorf("mend %s: %w", e.Name(), err)
		}
		mended = mended || more
	}
	return mended, nil
}

// leftoverAge is how old a temporary file of git's must be to be nobody's.
const leftoverAge = time.Hour

// sweepLeftover removes what a killed git left in objects/pack.
func (s *Store) sweepLeftover(e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil || !strings.HasPrefix(e.Name(), "tmp_") || !stale(s.opts.Now(), info.ModTime(), leftoverAge) {
		return nil // gone by itself, in use, or not git's
	}
	if err := os.Remove(filepath.Join(s.repo.objects(), "pack", e.Name())); err != nil {
		return err
	}
	s.repaired("a leftover of git, objects/pack/"+e.Name(), "removed", "")
	return nil
}

// mendLoneIndex sets an index without its pack aside: it holds names alone.
func (s *Store) mendLoneIndex(base string) (bool, error) {
	kept, err := s.setAside(filepath.Join(s.repo.objects(), "pack", base+".idx"), base+".idx-without-pack")
	if err == nil {
		s.repaired("the pack of the index "+base+".idx is missing", "the index was set aside", kept)
	}
	return false, err
}

// mendPack looks at one pack, and mends it if it must.
func (s *Store) mendPack(base string, indexed, thorough bool) (bool, error) {
	path := filepath.Join(s.repo.objects(), "pack", base)
	info, err := os.Lstat(path + ".pack")
	if err != nil || !indexed && !thorough && !stale(s.opts.Now(), info.ModTime(), staleLock) {
		return false, err // git renames the pack first, then the index
	}
	if indexed && !thorough {
		if ok, err := sameEnd(path); ok || err != nil {
			return false, err
		}
	}
	var p *pack
	if sound, err := sumRight(path + ".idx"); sound {
		if p, err = openPack(path); fromDisk(err) {
			return false, err
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if p != nil {
		defer func() { _ = p.file.Close() }()
		if ok, err := p.whole(); ok || err != nil {
			return false, err
		}
	}
	if info.Size() > maxPackBytes {
		return false, nil // its index is not one that this package writes; it is read as far as it can be
	}
	f, info, err := openRegular(path + ".pack")
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	scan, err := newPackScan(f, info.Size(), p)
	if err != nil {
		return false, err
	}
	return s.rescue(base, scan)
}

// sameEnd reports whether a pack ends with the checksum that its index names:
// neither is cut short.
func sameEnd(path string) (bool, error) {
	pack, err := tail(path+".pack", sha1.Size)
	if err != nil {
		return false, err
	}
	index, err := tail(path+".idx", 2*sha1.Size)
	return err == nil && len(pack) == sha1.Size && bytes.HasPrefix(index, pack), err
}

// tail reads the last n bytes of a file; nothing of a file that is shorter.
func tail(path string, n int64) ([]byte, error) {
	f, info, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if info.Size() < n {
		return nil, nil
	}
	end := make([]byte, n)
	_, err = f.ReadAt(end, info.Size()-n)
	return end, err
}

// sumRight reports whether an index ends with the checksum of what is before.
func sumRight(path string) (bool, error) {
	f, info, err := openRegular(path)
	if errors.Is(err, errIrregular) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	n := info.Size() - sha1.Size
	if info.IsDir() || n < 0 {
		return false, nil
	}
	sum, end := sha1.New(), make([]byte, sha1.Size)
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, n)); err != nil {
		return false, err
	}
	_, err = f.ReadAt(end, n)
	return err == nil && bytes.Equal(sum.Sum(nil), end), err
}

// whole reports whether all bytes of the pack are those that the index was made
// for, and the checksum at its end, without which git refuses the pack, is right.
func (p *pack) whole() (bool, error) {
	if p.size < packHead+sha1.Size {
		return false, nil
	}
	sum := sha1.New()
	if _, err := io.Copy(sum, io.NewSectionReader(p.file, 0, p.size-sha1.Size)); err != nil {
		return false, err
	}
	var end [sha1.Size]byte
	_, err := p.file.ReadAt(end[:], p.size-sha1.Size)
	return err == nil && end == p.index.PackfileChecksum && bytes.Equal(sum.Sum(nil), end[:]), err
}

// rescue saves what is in a pack that cannot be used as it is.
func (s *Store) rescue(base string, scan *packScan) (bool, error) {
	defer s.repo.closePacks() // what was set aside is not to be read any more
	lost, err := s.nowhereElse(base, scan)
	if err != nil {
		return false, err
	}
	path := filepath.Join(s.repo.objects(), "pack", base)
	index, err := exists(path + ".idx")
	switch {
	case err != nil:
		return false, err
	case !scan.whole:
		return true, s.takeOut(base, scan, lost)
	case !index && len(lost) == 0:
		// What a kill leaves between the two renames of packWriter.finish.
		return false, s.repo.dropPack(base)
	}
	why, kept := "has no index", ""
	if index {
		why = "has a torn index"
		if kept, err = s.setAside(path+".idx", base+".idx-torn"); err != nil {
			return false, err
		}
	}
	if err := writeDurable(path+".idx", scan.index(), objectPerm); err != nil {
		return false, err
	}
	s.repaired("the pack "+base+" "+why, "its index was made anew", kept)
	return true, nil
}

// takeOut puts what is read of a torn pack, and is nowhere else, into a new one
// before it sets the torn one aside. Its index goes last but one: without it
// nothing behind the torn place would be found, should a kill come in between.
func (s *Store) takeOut(base string, scan *packScan, lost []packEntry) error {
	did := fmt.Sprintf("%d objects were read, and %d of them taken out of it that are nowhere else", len(scan.entries), len(lost))
	name := ""
	if len(lost) > 0 {
		var err error
		if name, err = s.repackLost(scan, lost); err != nil {
			return err
		}
	}
	if err := s.repo.dropGraph(); err != nil {
		return err
	}
	if name == base { // only its end was torn, and the new one has taken its place
		s.repaired("the pack "+base+" is torn", "written anew; "+did, "")
		return nil
	}
	path := filepath.Join(s.repo.objects(), "pack", base)
	if index, err := exists(path + ".idx"); err != nil {
		return err
	} else if index {
		if _, err := s.setAside(path+".idx", base+".idx-torn"); err != nil {
			return err
		}
	}
	kept, err := s.setAside(path+".pack", base+".pack-torn")
	if err == nil {
		s.repaired("the pack "+base+" is torn", "set aside; "+did, kept)
	}
	return err
}

// nowhereElse lists the objects of a pack that cannot be read from anywhere
// else; of a torn one but for what is too large to be taken out of it. That another index names one says little: that pack may be torn too.
func (s *Store) nowhereElse(base string, scan *packScan) ([]packEntry, error) {
	var lost []packEntry
	for _, e := range scan.entries {
		there, err := s.repo.readable(e.hash, base)
		if err != nil {
			return nil, err
		}
		if !there && (scan.whole || !scan.large[e.hash]) {
			lost = append(lost, e)
		}
	}
	return lost, nil
}

// inPacks reports whether a pack has the object, but for those named.
func (r *repo) inPacks(h plumbing.Hash, but map[string]bool) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.packs) == 0 {
		if _, err := r.listPacks(); err != nil {
			return false, err
		}
	}
	for name, p := range r.packs {
		if ok, err := p.index.Contains(h); err != nil || ok && !but[name] {
			return ok, err
		}
	}
	return false, nil
}

// repackLost writes the objects into a pack of their own and returns its name.
func (s *Store) repackLost(scan *packScan, lost []packEntry) (name string, err error) {
	w, err := newPackWriter(s.repo.tmp(), len(lost))
	if err != nil {
		return "", err
	}
	for _, e := range lost {
		t, content, err := scan.object(e.offset, 0)
		if err == nil {
			_, err = w.add(t, e.hash, content, nil)
		}
		if err != nil {
			w.abandon()
			return "", err
		}
	}
	return w.finish(filepath.Join(s.repo.objects(), "pack"), s.repo.tmp())
}

// maxRescued bounds the object that is read into memory out of a damaged pack, or
// one without an index, in bytes.
const maxRescued = 16 << 20

// A packScan is what can be read of a pack.
type packScan struct {
	packSource
	trailer []byte // the checksum at the end
	whole   bool   // it is right, and each object was read
	entries []packEntry
	offsets map[plumbing.Hash]int64
	large   map[plumbing.Hash]bool // over maxRescued
}

// newPackScan reads every object of a pack's file of size bytes: those that its
// index names, or, without one, one after another up to the first that is damaged.
func newPackScan(file io.ReaderAt, size int64, p *pack) (*packScan, error) {
	s := &packScan{offsets: map[plumbing.Hash]int64{}, large: map[plumbing.Hash]bool{}}
	s.packSource = packSource{file, size, maxRescued, func(h plumbing.Hash) (int64, bool) {
		at, ok := s.offsets[h]
		return at, ok
	}}
	var err error
	if p != nil {
		list := p.entries()
		for _, e := range list {
			s.offsets[e.hash] = e.offset
		}
		for i := 0; i < len(list) && !fromDisk(err); i++ {
			_, err = s.take(list[i].offset)
		}
	} else {
		for at := int64(packHead); err == nil && at < size-sha1.Size; {
			at, err = s.take(at)
		}
	}
	if fromDisk(err) || size < packHead+sha1.Size {
		return s, unlessTorn(err)
	}
	sum, head := sha1.New(), make([]byte, packHead)
	s.trailer = make([]byte, sha1.Size)
	_, err = io.Copy(sum, io.NewSectionReader(file, 0, size-sha1.Size))
	for _, part := range []struct {
		data []byte
		at   int64
	}{{head, 0}, {s.trailer, size - sha1.Size}} {
		if err == nil {
			_, err = file.ReadAt(part.data, part.at)
		}
	}
	s.whole = err == nil && bytes.Equal(sum.Sum(nil), s.trailer) && len(s.entries) == int(binary.BigEndian.Uint32(head[8:]))
	return s, unlessTorn(err)
}

// unlessTorn is err if it is the disk's.
func unlessTorn(err error) error {
	if fromDisk(err) {
		return err
	}
	return nil
}

// entries are the objects that the index names, by their place.
func (p *pack) entries() []packEntry {
	var list []packEntry
	all, err := p.index.Entries()
	if err != nil {
		return nil
	}
	for e, err := all.Next(); err == nil; e, err = all.Next() {
		list = append(list, packEntry{e.Hash, int64(e.Offset), e.CRC32})
	}
	slices.SortFunc(list, func(a, b packEntry) int { return cmp.Compare(a.offset, b.offset) })
	return list
}

// take reads the object at an offset, and returns where the next one begins.
func (s *packScan) take(at int64) (end int64, err error) {
	h, end, err := s.name(at)
	if err != nil {
		return 0, err
	}
	crc := crc32.NewIEEE()
	if _, err := io.Copy(crc, io.NewSectionReader(s.file, at, end-at)); err != nil {
		return 0, err
	}
	if head, err := s.head(at); err == nil && head.base == 0 && head.size > s.most {
		s.large[h] = true
	}
	s.offsets[h] = at
	s.entries = append(s.entries, packEntry{h, at, crc.Sum32()})
	return end, nil
}

// index is the index of a whole pack.
func (s *packScan) index() []byte {
	w := &packWriter{entries: s.entries}
	return w.index(s.trailer)
}
