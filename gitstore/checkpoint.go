package gitstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/memory"
)

// A checkpoint puts the records that are in no pack yet into one, begins a new
// segment of the journal without them, and removes their loose files. A record is
// four loose files of a disk block each, and in a pack about 800 bytes.
//
// The pack is written from what the journal has in memory. It holds all objects of its
// records, also those that another pack has: so a pack can be dropped by itself.

// checkpointRecords is how many records make a checkpoint due; tests make it smaller.
var checkpointRecords = 64

const (
	// checkpointBytes of the journal make a checkpoint due.
	checkpointBytes = segmentSize / 2
	// largestPack is how many records a pack that took in others has at most; more
	// take long to pack, and memory.
	largestPack = 512
)

// isCheckpointDue reports whether there are enough records, or bytes of the journal.
func (s *Store) isCheckpointDue() bool {
	return len(s.ledger.unpacked()) >= checkpointRecords || s.journal.end >= checkpointBytes
}

// makeCheckpoint makes a checkpoint, unless there is nothing to pack, or no way to. It
// reports whether the journal has begun a new segment for it.
func (s *Store) makeCheckpoint() bool {
	entries := s.ledger.unpacked()
	if len(entries) == 0 || s.behind != nil || s.journal.failed {
		return false
	}
	// The refs first: a person's gc, which may have moved them, removes with the new pack
	// what they do not name.
	if s.write() != nil || s.behind != nil {
		return false
	}
	next := s.ledger.trim(len(entries))
	obsolete, err := s.pack(entries, next)
	if err == nil {
		err = syncPaths(s.repo.refPaths())
	}
	if err == nil {
		err = s.goOnWith(next, entries, obsolete)
	}
	if err != nil && s.packError == nil {
		s.log.Warn("checkpoint failed", "error", err)
	}
	if s.packError = err; err == nil {
		s.unsynced = nil
	}
	debug.FreeOSMemory() // a sidecar's memory is what its pod pays for, and this was the most of it
	return err == nil
}

// pack packs the entries, durably, together with the packs before that are no larger,
// which are obsolete then: so there are few packs, and each record is packed a few
// times.
func (s *Store) pack(entries []entry, next *ledger) (obsolete []string, err error) {
	largest := largestPack
	if keep := s.opts.KeepSnapshots; keep > 0 { // so that pruning can drop whole packs
		largest = min(largest, max(checkpointRecords, keep/8))
	}
	next.Packs = slices.DeleteFunc(next.Packs, func(info packInfo) bool { // by a person's gc
		there, err := exists(s.repo.packPath(info.Name))
		return err == nil && !there
	})
	first, err := s.repo.snapshot(entries[0].commit)
	if err != nil {
		return nil, err
	}
	from, low := len(next.Packs), first.Index
	for ; from > 0; from-- {
		last := next.Packs[from-1]
		if last.High+1 != low || last.records() > len(entries) || last.records()+len(entries) > largest {
			break
		}
		older, err := s.repo.packedEntries(last.Name)
		if err != nil { // it is damaged: it stays as it is
			s.log.Warn("joining packs failed", "error", err)
			break
		}
		entries, low, obsolete = slices.Concat(older, entries), last.Low, append(obsolete, last.Name)
	}
	info, err := s.repo.packEntries(entries)
	if err != nil {
		return nil, fmt.Errorf("pack records: %w", err)
	}
	next.Packs = append(next.Packs[:from], info)
	return obsolete, nil
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

// packedEntries reads the records of a pack that a checkpoint wrote.
func (r *repo) packedEntries(name string) (entries []entry, err error) {
	file, err := openNow(r.packPath(name))
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	objects := memory.NewStorage()
	if err := packfile.UpdateObjectStorage(objects, file); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	for h := range objects.Commits {
		e, err := r.entry(h)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// goOnWith begins a segment of a ledger that names other packs, and removes what is
// not needed then: obsolete packs, and the loose files of entries.
func (s *Store) goOnWith(next *ledger, packed []entry, obsolete []string) error {
	obsolete = slices.DeleteFunc(obsolete, func(name string) bool { // the same records make the same pack
		return slices.ContainsFunc(next.Packs, func(info packInfo) bool { return info.Name == name })
	})
	next.Obsolete = slices.Concat(next.Obsolete, obsolete)
	next.Obsolete = next.Obsolete[max(0, len(next.Obsolete)-maxObsolete):]
	if err := s.beginSegment(next); err != nil {
		return err
	}
	s.ledger = next
	s.readFromJournal()
	for _, e := range packed {
		for _, o := range e.objects {
			if _, err := s.repo.packed(o.t, o.hash); err == nil {
				_ = os.Remove(s.repo.objectPath(o.hash))
			}
		}
	}
	for _, name := range obsolete {
		_ = s.repo.removePack(name)
	}
	s.repo.closePacks()
	return nil
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
	base := strings.TrimSuffix(r.packPath(name), ".pack")
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
	ours := s.ledger.objects()
	indexes, err := glob(s.repo.packDir(), "pack-*.idx")
	for _, path := range indexes {
		name := strings.TrimSuffix(filepath.Base(path), ".idx")
		if slices.ContainsFunc(s.ledger.Packs, func(info packInfo) bool { return info.Name == name }) {
			continue
		}
		index, ierr := openIndex(path)
		isLeft := errors.Is(ierr, errMissing) || slices.Contains(s.ledger.Obsolete, name)
		if ierr == nil {
			others, _ := index.Count()
			for h := range ours {
				if has, _ := index.Contains(h); has {
					others--
				}
			}
			isLeft = isLeft || others == 0
		}
		if isLeft {
			err = errors.Join(err, s.repo.removePack(name))
		}
	}
	s.repo.closePacks()
	return err
}

// prune drops the oldest packs, as far as Options.KeepSnapshots allows; target is the
// record that a rollback without an id goes to. The history begins at the first record
// of the packs that stay.
func (s *Store) prune(ctx context.Context, target string) error {
	keep, packs := s.opts.KeepSnapshots, s.ledger.Packs
	if keep == 0 || s.applied == nil || target == "" || len(packs) == 0 || s.behind != nil {
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

func (r *repo) readShallow() (cuts map[plumbing.Hash]bool, err error) {
	data, err := readBounded(filepath.Join(r.dir, shallowFile), maxPacked)
	if err != nil && !isAbsent(err) {
		return nil, fmt.Errorf("read %s: %w", shallowFile, err)
	}
	cuts = map[plumbing.Hash]bool{}
	for line := range strings.Lines(string(data)) {
		if h, ok := parseHash(strings.TrimSpace(line)); ok {
			cuts[h] = true
		}
	}
	return cuts, nil
}

// writeShallow makes begin, unless it is "", the one record of the history in the
// shallow file; lines of other histories stay.
func (s *Store) writeShallow(begin string) error {
	cuts, err := s.repo.readShallow()
	if err != nil || len(cuts) == 0 && begin == "" || len(cuts) == 1 && cuts[plumbing.NewHash(begin)] {
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
	var lines []string
	for h := range cuts {
		lines = append(lines, h.String()+"\n")
	}
	return writeDurable(path, []byte(strings.Join(lines, "")), refPerm)
}
