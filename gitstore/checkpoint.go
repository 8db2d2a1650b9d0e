package gitstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/memory"
)

// A checkpoint puts the records that are in no pack yet into one, begins a new
// segment of the journal without them, and removes their loose files. A record is
// four loose files of a disk block each, and in a pack about 800 bytes.
//
// The pack is written beside the caller, from what the journal has in memory. It holds
// all objects of its records, also those that another pack has: so a pack can be
// dropped by itself.

// checkpointRecords is how many records make a checkpoint due; tests make it smaller.
var checkpointRecords = 64

const (
	// checkpointBytes of the journal make a checkpoint due.
	checkpointBytes = segmentSize / 2
	// largestPack is how many records a pack that took in others has at most; more
	// take long to pack, and memory.
	largestPack = 512
	// removeAtOnce is how many records lose their loose files while a caller waits.
	removeAtOnce = 8
)

// A checkpoint is the part of one that runs beside the caller; done is closed at its
// end.
type checkpoint struct {
	done    chan struct{}
	entries []entry // what it packs
	head    int     // index of the last of them
	err     error
	// What the ledger has afterwards, and packs that are not needed then.
	packs    []packInfo
	obsolete []string
}

// advanceCheckpoint begins a checkpoint if one is due, ends one that is done, and removes
// some of what the last one packed.
func (s *Store) advanceCheckpoint() {
	s.removeLoosePacked(removeAtOnce)
	if c := s.checkpoint; c != nil {
		select {
		case <-c.done:
			s.finishCheckpoint()
		default:
		}
	} else if len(s.ledger.unpacked()) >= checkpointRecords || s.journal.end >= checkpointBytes {
		s.beginCheckpoint()
	}
}

// beginCheckpoint begins one, unless one runs, there is nothing to pack, or no way to.
func (s *Store) beginCheckpoint() {
	c := &checkpoint{done: make(chan struct{}), entries: s.ledger.unpacked(), head: number(s.head), packs: slices.Clone(s.ledger.Packs)}
	// The refs are written first: a person's gc, which may have moved them, removes with
	// the new pack what they do not name.
	if s.checkpoint != nil || len(c.entries) == 0 || s.behind != nil || s.journal.failed || s.write() != nil || s.behind != nil {
		return
	}
	largest := largestPack
	if keep := s.opts.KeepSnapshots; keep > 0 { // so that pruning can drop whole packs
		largest = min(largest, max(checkpointRecords, keep/8))
	}
	repo, log := s.repo, s.log
	s.checkpoint = c
	go func() {
		defer close(c.done)
		if c.err = c.pack(repo, largest, log); c.err == nil {
			c.err = syncPaths(repo.refPaths())
		}
		debug.FreeOSMemory() // a sidecar's memory is what its pod pays for, and this was the most of it
	}()
}

// finishCheckpoint waits for the checkpoint that runs, and reports whether the journal
// has begun a new segment for it.
func (s *Store) finishCheckpoint() bool {
	c := s.checkpoint
	if c == nil {
		return false
	}
	<-c.done
	s.checkpoint = nil
	err := c.err
	if err == nil {
		next := s.ledger.trim(len(c.entries))
		next.Packs = c.packs
		err = s.goOnWith(next, c.obsolete)
	}
	if err != nil && s.packError == nil {
		s.log.Warn("checkpoint failed", "error", err)
	}
	if s.packError = err; err == nil {
		s.packed, s.unsynced = append(s.packed, c.entries...), slices.Clone(s.ledger.unpacked())
	}
	return err == nil
}

// makeCheckpoint makes one at once, or waits for the one that runs, as finishCheckpoint.
func (s *Store) makeCheckpoint() bool {
	s.beginCheckpoint()
	return s.finishCheckpoint()
}

// abandonCheckpoint waits for the checkpoint that runs, and forgets it.
func (s *Store) abandonCheckpoint() {
	if s.checkpoint != nil {
		<-s.checkpoint.done
		s.checkpoint = nil
	}
}

// pack packs the entries, durably, together with the packs before that are no larger,
// which are obsolete then: so there are few packs, and each record is packed a few
// times.
func (c *checkpoint) pack(r *repo, largest int, log *slog.Logger) error {
	c.packs = slices.DeleteFunc(c.packs, func(info packInfo) bool { // by a person's gc
		there, err := exists(r.packPath(info.Name))
		return err == nil && !there
	})
	info, objects := packInfo{Low: c.head - len(c.entries) + 1, High: c.head}, memory.NewStorage()
	for _, e := range c.entries {
		for _, o := range e.objects {
			if _, err := objects.SetEncodedObject(memoryObject(o.t, o.content)); err != nil {
				return err
			}
		}
	}
	from := len(c.packs)
	for ; from > 0; from-- {
		old := c.packs[from-1]
		if old.High+1 != info.Low || old.records() > info.records() || old.records()+info.records() > largest {
			break
		}
		if err := r.unpack(old.Name, objects); err != nil { // it is damaged: it stays as it is
			log.Warn("joining packs failed", "pack", old.Name, "error", err)
			break
		}
		info.Low, c.obsolete = old.Low, append(c.obsolete, old.Name)
	}
	var err error
	if info.Name, err = r.writePack(objects); err != nil {
		return fmt.Errorf("pack records: %w", err)
	}
	c.packs = append(c.packs[:from], info)
	return nil
}

// goOnWith begins a segment of a ledger that names other packs, and removes those that
// are not needed then.
func (s *Store) goOnWith(next *ledger, obsolete []string) error {
	obsolete = slices.DeleteFunc(obsolete, func(name string) bool { // the same records make the same pack
		return slices.ContainsFunc(next.Packs, func(info packInfo) bool { return info.Name == name })
	})
	next.Obsolete = slices.Concat(next.Obsolete, obsolete)
	next.Obsolete = next.Obsolete[max(0, len(next.Obsolete)-maxObsolete):]
	if err := s.beginSegment(next); err != nil {
		return err
	}
	s.ledger = next
	s.serveFromJournal()
	for _, name := range obsolete {
		_ = s.repo.removePack(name)
	}
	s.repo.closePacks()
	return nil
}

// removeLoosePacked removes the loose files of at most n records of those that were packed.
func (s *Store) removeLoosePacked(n int) {
	n = min(n, len(s.packed))
	for _, e := range s.packed[:n] {
		for _, o := range e.objects {
			if _, err := s.repo.packed(o.t, o.hash); err == nil {
				_ = os.Remove(s.repo.objectPath(o.hash))
			}
		}
	}
	s.packed = slices.Delete(s.packed, 0, n)
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
	if keep == 0 || s.applied == nil || target == "" || len(packs) == 0 || s.behind != nil ||
		s.checkpoint != nil || len(s.packed) > 0 { // what is in no pack any more would not be removed
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
	if err := s.goOnWith(next, obsolete); err != nil {
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
	text := ""
	if begin != "" {
		text = begin + "\n"
	}
	for h := range cuts {
		if h.String() != begin && !s.repo.inHistory(view{head: s.head, first: 1}, h) {
			text += h.String() + "\n"
		}
	}
	path := filepath.Join(s.repo.dir, shallowFile)
	if text == "" {
		return errors.Join(os.RemoveAll(path), syncPath(s.repo.dir))
	}
	return writeDurable(path, []byte(text), refPerm)
}
