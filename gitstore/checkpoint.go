package gitstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/go-git/go-git/v5/plumbing/object"
)

// A checkpoint puts the records that are in no pack yet into one, begins a new
// segment of the journal without them, and removes their loose files. A record is
// four loose files of a disk block each, and in a pack about 800 bytes.
//
// The pack is written beside the caller, from what the journal has in memory. It
// holds all objects of its records, also those that another pack has: so a pack
// can be dropped by itself.
var (
	// checkpointRecords is how many records make a checkpoint due; tests make it
	// smaller.
	checkpointRecords = 64
	// joinPacks is how many packs of about one size become one.
	joinPacks = 8
)

const (
	// checkpointBytes of the journal make a checkpoint due.
	checkpointBytes = segmentSize / 2
	// largestPack is how many records a pack that is joined of others has at most;
	// more take long to pack, and memory.
	largestPack = 512
)

// A checkpoint is the part of one that runs beside the caller; done is closed at
// its end.
type checkpoint struct {
	done   chan struct{}
	repo   *repo
	packed int // how many of the unpacked entries it packs
	err    error
	// What the ledger has afterwards, and packs that are not needed then.
	packs    []packInfo
	obsolete []string
}

// advanceCheckpoint begins a checkpoint if one is due, and ends one that is done.
func (s *Store) advanceCheckpoint() {
	if s.checkpoint != nil {
		select {
		case <-s.checkpoint.done:
			s.finishCheckpoint(false)
		default:
		}
		return
	}
	if len(s.ledger.unpacked()) >= checkpointRecords || s.journal.end >= checkpointBytes {
		s.beginCheckpoint()
	}
}

// beginCheckpoint begins one, unless there is nothing to pack, or no way to.
func (s *Store) beginCheckpoint() {
	entries, packs := slices.Clone(s.ledger.unpacked()), slices.Clone(s.ledger.Packs)
	if len(entries) == 0 || s.behind != nil || s.journal.failed {
		return
	}
	largest := largestPack
	if keep := s.opts.KeepSnapshots; keep > 0 { // so that pruning can drop whole packs
		largest = min(largest, max(checkpointRecords, keep/8))
	}
	log, c := s.log, &checkpoint{done: make(chan struct{}), repo: newRepo(s.opts.Dir, s.opts.Environment), packed: len(entries)}
	c.repo.journaled.Store(s.repo.journaled.Load())
	s.checkpoint = c
	go func() {
		defer close(c.done)
		if c.err = c.pack(entries, packs); c.err == nil {
			if err := c.join(largest); err != nil { // of an old pack that is damaged, say
				log.Warn("joining packs failed", "error", err)
			}
		}
		debug.FreeOSMemory() // a sidecar's memory is what its pod pays for, and this was the most of it
	}()
}

// pack packs the entries, and finds which of the packs are there still.
func (c *checkpoint) pack(entries []entry, packs []packInfo) error {
	c.packs = slices.DeleteFunc(packs, func(info packInfo) bool { // by a person's gc
		there, err := exists(filepath.Join(c.repo.packDir(), info.Name+".pack"))
		return err == nil && !there
	})
	info, err := c.repo.packEntries(entries)
	if err != nil {
		return fmt.Errorf("pack records: %w", err)
	}
	if !slices.ContainsFunc(c.packs, func(old packInfo) bool { return old.Name == info.Name }) {
		c.packs = append(c.packs, info)
	}
	return syncPaths(c.repo.refPaths())
}

// join makes one pack of neighbours where joinPacks of them are small.
func (c *checkpoint) join(largest int) (err error) {
	for from := 0; from < len(c.packs); from++ {
		to := from // c.packs[from:to] are small and follow each other
		for to < len(c.packs) && c.packs[to].records() <= largest/2 && (to == from || c.packs[to].Low == c.packs[to-1].High+1) {
			to++
		}
		if to-from < joinPacks {
			continue
		}
		for c.packs[to-1].High-c.packs[from].Low >= largest {
			to--
		}
		var entries []entry
		var names []string
		for i, info := range c.packs[from:to] {
			list, lerr := c.repo.packedEntries(info.Name)
			if lerr != nil { // it is damaged: the others go on without it
				err, from, entries = errors.Join(err, lerr), from+i, nil
				break
			}
			entries, names = append(entries, list...), append(names, info.Name)
		}
		if entries == nil {
			continue
		}
		info, perr := c.repo.packEntries(entries)
		if perr != nil {
			return perr
		}
		c.obsolete = append(c.obsolete, slices.DeleteFunc(names, func(name string) bool { return name == info.Name })...)
		c.packs = slices.Replace(c.packs, from, to, info)
	}
	return err
}

// packEntries writes a pack of records, durably.
func (r *repo) packEntries(entries []entry) (info packInfo, err error) {
	var objects []gitObject
	for _, e := range entries {
		rec, err := r.snapshot(e.commit)
		if err != nil {
			return info, err
		}
		info.Low, info.High = min(cmp.Or(info.Low, rec.Index), rec.Index), max(info.High, rec.Index)
		objects = append(objects, e.objects[:]...)
	}
	info.Name, err = r.writePack(objects)
	return info, err
}

// packedEntries reads the records of a pack that has nothing else.
func (r *repo) packedEntries(name string) (entries []entry, err error) {
	hashes, err := r.packHashes(name)
	if err != nil {
		return nil, err
	}
	left := map[plumbing.Hash]bool{}
	for _, h := range hashes {
		left[h] = true
	}
	for _, h := range hashes {
		e, err := r.entry(h)
		if errors.Is(err, errForeign) { // it is no commit
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, o := range e.objects {
			delete(left, o.hash)
		}
		entries = append(entries, e)
	}
	if len(left) > 0 {
		return nil, fmt.Errorf("%s has %d objects that are of no record", name, len(left))
	}
	return entries, nil
}

// packHashes lists the objects of a pack.
func (r *repo) packHashes(name string) (hashes []plumbing.Hash, err error) {
	index, err := openIndex(filepath.Join(r.packDir(), name+".idx"))
	if err != nil {
		return nil, err
	}
	entries, err := index.Entries()
	for err == nil {
		var e *idxfile.Entry
		if e, err = entries.Next(); err == nil {
			hashes = append(hashes, e.Hash)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return hashes, err
}

// finishCheckpoint waits for the checkpoint that runs, and reports whether the
// journal has begun a new segment for it. With all it makes one if none runs.
func (s *Store) finishCheckpoint(all bool) bool {
	if s.checkpoint == nil && all {
		s.beginCheckpoint()
	}
	c := s.checkpoint
	if c == nil {
		return false
	}
	<-c.done
	s.checkpoint = nil
	s.tellMoved(c.repo)
	gone, next := s.ledger.unpacked()[:c.packed], s.ledger.trim(c.packed)
	next.Packs = c.packs
	err := c.err
	if err == nil {
		err = s.goOnWith(next, gone, c.obsolete)
	}
	if err != nil && s.packError == nil {
		s.log.Warn("checkpoint failed", "error", err)
	}
	s.packError = err
	return err == nil
}

// goOnWith begins a segment of a ledger that names other packs, and removes what is
// not needed then: obsolete packs, and the loose files of entries.
func (s *Store) goOnWith(next *ledger, packed []entry, obsolete []string) error {
	next.Obsolete = slices.Concat(next.Obsolete, obsolete)
	next.Obsolete = next.Obsolete[max(0, len(next.Obsolete)-maxObsolete):]
	if err := s.beginSegment(next); err != nil {
		return err
	}
	s.ledger = next
	s.unsynced = slices.DeleteFunc(s.unsynced, func(e entry) bool {
		return slices.ContainsFunc(packed, func(p entry) bool { return p.commit == e.commit })
	})
	s.readFromJournal()
	if len(obsolete) > 0 {
		s.repo.closePacks()
	}
	s.remove(packed, obsolete)
	return nil
}

// remove removes loose files whose objects are packed, and packs, beside the
// caller.
func (s *Store) remove(entries []entry, packs []string) {
	if s.removing != nil {
		<-s.removing
	}
	done, r := make(chan struct{}), newRepo(s.opts.Dir, s.opts.Environment)
	s.removing = done
	go func() {
		defer close(done)
		for _, e := range entries {
			for _, o := range e.objects {
				if _, err := r.packed(o.t, o.hash); err == nil {
					_ = os.Remove(r.objectPath(o.hash))
				}
			}
		}
		for _, name := range packs {
			_ = r.removePack(name)
		}
	}()
}

// removeDerived removes what git made of all packs, and makes again: it would name what
// is gone.
func (r *repo) removeDerived() {
	for _, name := range []string{"pack/multi-pack-index", "info/commit-graph", "info/commit-graphs"} {
		_ = os.RemoveAll(filepath.Join(r.objects(), name))
	}
}

// removePack removes a pack, its index last: without the pack nobody uses it.
func (r *repo) removePack(name string) error {
	base := filepath.Join(r.packDir(), name)
	if kept, err := exists(base + ".keep"); kept || err != nil {
		return err
	}
	r.removeDerived()
	if err := os.Remove(base + ".pack"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Remove(base + ".idx")
}

// removeLeftPacks removes what a kill in a checkpoint left: packs that were to go, packs
// of which the journal has everything, and indexes without their pack. Others are a
// person's: what they have may be about to go elsewhere.
func (s *Store) removeLeftPacks() error {
	objects := s.ledger.objects()
	isForeign := func(h plumbing.Hash) bool { _, ours := objects[h]; return !ours }
	indexes, err := glob(s.repo.packDir(), "pack-*.idx")
	for _, path := range indexes {
		name := strings.TrimSuffix(filepath.Base(path), ".idx")
		if slices.ContainsFunc(s.ledger.Packs, func(info packInfo) bool { return info.Name == name }) {
			continue
		}
		there, perr := exists(strings.TrimSuffix(path, ".idx") + ".pack")
		hashes, herr := s.repo.packHashes(name)
		if perr == nil && !there || slices.Contains(s.ledger.Obsolete, name) || herr == nil && !slices.ContainsFunc(hashes, isForeign) {
			err = errors.Join(err, s.repo.removePack(name))
		}
	}
	s.repo.closePacks()
	return err
}

// abandonCheckpoint waits for what runs beside the caller, and forgets it.
func (s *Store) abandonCheckpoint() {
	if s.checkpoint != nil {
		<-s.checkpoint.done
		s.checkpoint = nil
	}
	if s.removing != nil {
		<-s.removing
		s.removing = nil
	}
}

// prune drops the oldest packs, as far as Options.KeepSnapshots allows; target is the
// record that a rollback without an id goes to. The history begins at the first record
// of the packs that stay.
func (s *Store) prune(ctx context.Context, target string) error {
	keep, packs := s.opts.KeepSnapshots, s.ledger.Packs
	if keep == 0 || s.applied == nil || target == "" || len(packs) == 0 {
		return nil
	}
	// Where a person's gc took packs of ours, it removes what is cut off, too.
	isTaken := packs[0].Low > s.ledger.First
	if most := s.head.Index - keep; packs[0].High > most && !isTaken || isTaken && most-s.ledger.First < keep/8 {
		return nil
	}
	first := s.oldestNeeded(ctx, target)
	next := s.ledger.trim(0)
	drop := slices.IndexFunc(next.Packs, func(info packInfo) bool { return info.High >= first })
	if drop < 0 {
		return nil
	}
	oldest := min(next.Packs[drop].Low, first) // of packs that were taken a gap is left
	if oldest <= next.First {
		return nil
	}
	begin, err := s.repo.at(s.view(), oldest)
	if err == nil {
		err = s.writeShallow(begin.commit.String())
	}
	if err != nil {
		return err
	}
	var obsolete []string
	for _, info := range next.Packs[:drop] {
		obsolete = append(obsolete, info.Name)
	}
	next.Packs, next.First, next.Begin = next.Packs[drop:], begin.index, begin.commit.String()
	from := s.ledger.First
	if err := s.goOnWith(next, nil, obsolete); err != nil {
		return err
	}
	s.repo.removeDerived()
	s.log.Info("old records pruned", "from", from, "to", begin.index-1)
	return nil
}

// oldestNeeded returns the index of the oldest record that must stay: the newest that
// are kept, the applied one, the target, and what another ref names, with all that
// follows it. With a ref that names no record of the history everything stays.
func (s *Store) oldestNeeded(ctx context.Context, target string) int {
	v := s.view()
	first := min(s.head.Index-s.opts.KeepSnapshots+1, s.applied.Index)
	p, err := s.repo.find(ctx, v, target)
	if err != nil {
		return v.first
	}
	first = min(first, p.index)
	refs, err := s.repo.foreignRefs()
	if err != nil {
		return v.first
	}
	for _, h := range refs {
		h = s.repo.peel(h)
		rec, err := s.repo.snapshot(h)
		if err != nil || !s.repo.inHistory(v, h) {
			return v.first
		}
		first = min(first, rec.Index)
	}
	return first
}

// peel returns what an annotated tag is of, or what is no tag.
func (r *repo) peel(h plumbing.Hash) plumbing.Hash {
	for range 8 { // a tag may be of a tag
		content, err := r.object(plumbing.TagObject, h)
		tag := new(object.Tag)
		if err != nil || tag.Decode(memoryObject(plumbing.TagObject, content)) != nil {
			break
		}
		h = tag.Target
	}
	return h
}

// shallowFile is git's own: one commit a line, whose parents count as absent
// (gitrepository-layout(5)). The oldest record stands there if older ones were
// pruned, so that `git log` ends at it and `git fsck` asks for nothing before it.
const shallowFile = "shallow"

// readShallow reads the shallow file. isTidy reports whether git could read it, too.
func (r *repo) readShallow() (cuts map[plumbing.Hash]bool, isTidy bool, err error) {
	data, err := readBounded(filepath.Join(r.dir, shallowFile), maxPacked)
	if err != nil && !isAbsent(err) && !errors.Is(err, syscall.EISDIR) {
		return nil, false, fmt.Errorf("read %s: %w", shallowFile, err)
	}
	cuts = map[plumbing.Hash]bool{}
	for line := range strings.Lines(string(data)) {
		if h, ok := parseHash(strings.TrimSpace(line)); ok {
			cuts[h] = true
		}
	}
	return cuts, shallowText(cuts) == string(data) && !errors.Is(err, syscall.EISDIR), nil
}

func shallowText(cuts map[plumbing.Hash]bool) string {
	var lines []string
	for h := range cuts {
		lines = append(lines, h.String()+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// writeShallow makes begin, unless it is "", the one record of the history in the
// shallow file; lines of other histories stay.
func (s *Store) writeShallow(begin string) error {
	cuts, isTidy, err := s.repo.readShallow()
	if err != nil || isTidy && (len(cuts) == 0 && begin == "" || len(cuts) == 1 && cuts[plumbing.NewHash(begin)]) {
		return err
	}
	maps.DeleteFunc(cuts, func(h plumbing.Hash, _ bool) bool { return s.repo.inHistory(view{head: s.head, first: 1}, h) })
	if begin != "" {
		cuts[plumbing.NewHash(begin)] = true
	}
	return s.repo.setShallow(cuts)
}

// setShallow writes the shallow file, durably.
func (r *repo) setShallow(cuts map[plumbing.Hash]bool) error {
	path := filepath.Join(r.dir, shallowFile)
	if len(cuts) == 0 {
		return errors.Join(os.RemoveAll(path), syncPath(r.dir))
	}
	if err := r.clear(path); err != nil {
		return err
	}
	return writeDurable(path, []byte(shallowText(cuts)), refPerm)
}
