package gitstore

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
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
	packed int // how many of the unpacked entries it packs
	err    error
	// What the ledger has afterwards, and packs that are not needed then.
	packs    []packInfo
	obsolete []string
	// What pruning drops, where the history begins then, and the refs that were
	// looked at.
	pruned []packInfo
	first  int
	begin  string
	refs   map[string]plumbing.Hash
}

// due reports whether there is enough for a checkpoint.
func (s *Store) due() bool {
	return len(s.ledger.unpacked()) >= checkpointRecords || s.journal.end >= checkpointBytes
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
	if s.due() && s.behind == nil && !s.journal.failed {
		s.beginCheckpoint()
	}
}

func (s *Store) beginCheckpoint() {
	entries := slices.Clone(s.ledger.unpacked())
	c := &checkpoint{done: make(chan struct{}), packed: len(entries), first: s.ledger.First, begin: s.ledger.Begin}
	s.checkpoint = c
	p := &packer{repo: newRepo(s.opts.Dir, s.opts.Environment), view: s.view(), keep: s.opts.KeepSnapshots, known: s.opts.Known, log: s.log}
	p.repo.journaled.Store(s.repo.journaled.Load())
	packs := slices.Clone(s.ledger.Packs)
	go func() {
		defer close(c.done)
		c.err = p.run(c, entries, packs)
		debug.FreeOSMemory() // a sidecar's memory is what its pod pays for, and this was the most of it
	}()
}

// finishCheckpoint waits for the checkpoint that runs, and reports whether the
// journal has begun a new segment for it. With all it makes one if none runs.
func (s *Store) finishCheckpoint(all bool) bool {
	if s.checkpoint == nil && all && s.behind == nil && !s.journal.failed && len(s.ledger.unpacked()) > 0 {
		s.beginCheckpoint()
	}
	c := s.checkpoint
	if c == nil {
		return false
	}
	<-c.done
	s.checkpoint = nil
	if c.err != nil {
		s.log.Warn("checkpoint failed", "error", c.err)
		return false
	}
	gone := s.ledger.unpacked()[:c.packed]
	next := s.ledger.trim(c.packed)
	next.Packs, next.Obsolete = c.packs, c.obsolete
	if len(c.pruned) > 0 {
		refs, err := s.repo.foreignRefs()
		if err == nil && !maps.Equal(refs, c.refs) {
			err = errors.New("refs were set meanwhile")
		}
		if err == nil {
			err = s.writeShallow(c.begin)
		}
		if err != nil {
			s.log.Warn("pruning failed", "error", err)
			next.Packs = append(c.pruned, c.packs...)
		} else {
			s.log.Info("old records pruned", "from", next.First, "to", c.first-1)
			next.First, next.Begin = c.first, c.begin
			for _, info := range c.pruned {
				next.Obsolete = append(next.Obsolete, info.Name)
			}
		}
	}
	if err := s.beginSegment(next); err != nil {
		s.log.Warn("checkpoint failed", "error", err)
		return false
	}
	s.ledger = next
	s.unsynced = slices.DeleteFunc(s.unsynced, func(e entry) bool {
		return slices.ContainsFunc(gone, func(g entry) bool { return g.commit == e.commit })
	})
	s.readFromJournal()
	if len(next.Obsolete) > 0 {
		s.repo.closePacks()
	}
	s.remove(gone, next.Obsolete)
	return true
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
		if len(packs) > 0 { // git's own index over all packs would name what is gone
			_ = os.Remove(filepath.Join(r.packDir(), "multi-pack-index"))
		}
		for _, name := range packs {
			_ = r.removePack(name)
		}
	}()
}

// removePack removes a pack, its index last: without the pack nobody uses it.
func (r *repo) removePack(name string) error {
	base := filepath.Join(r.packDir(), name)
	if err := os.Remove(base + ".pack"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Remove(base + ".idx")
}

// removeLeftPacks removes packs that a kill in a checkpoint left: those that were to
// go, and those of which everything is in the journal or in a pack that it names.
func (s *Store) removeLeftPacks() error {
	known := map[plumbing.Hash]bool{}
	for h := range s.ledger.objects() {
		known[h] = true
	}
	s.repo.mu.Lock()
	defer s.repo.mu.Unlock()
	if _, err := s.repo.listPacks(); err != nil {
		return err
	}
	left := map[string][]plumbing.Hash{}
	for name, index := range s.repo.packs {
		entries, err := index.Entries()
		if err != nil {
			return err
		}
		isOurs := slices.ContainsFunc(s.ledger.Packs, func(info packInfo) bool { return info.Name == name })
		for e, err := entries.Next(); err == nil; e, err = entries.Next() {
			if isOurs {
				known[e.Hash] = true
			} else {
				left[name] = append(left[name], e.Hash)
			}
		}
	}
	for name, hashes := range left {
		foreign := slices.ContainsFunc(hashes, func(h plumbing.Hash) bool { return !known[h] })
		if kept, err := exists(filepath.Join(s.repo.packDir(), name+".keep")); err != nil || kept || foreign && !slices.Contains(s.ledger.Obsolete, name) {
			continue
		}
		if err := s.repo.removePack(name); err != nil {
			return err
		}
		delete(s.repo.packs, name)
	}
	return nil
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

// A packer writes packs beside the Store, with a repo of its own.
type packer struct {
	repo  *repo
	view  view
	keep  int // records to keep at least; 0 keeps all
	known func(name string) bool
	log   *slog.Logger
}

// run packs the entries, joins packs and drops old ones.
func (p *packer) run(c *checkpoint, entries []entry, packs []packInfo) error {
	there := func(info packInfo) bool {
		ok, err := exists(filepath.Join(p.repo.packDir(), info.Name+".pack"))
		return ok || err != nil
	}
	packs = slices.DeleteFunc(packs, func(info packInfo) bool { return !there(info) }) // a person's gc
	if len(entries) > 0 {
		info, err := p.write(len(entries), func(i int) (entry, error) { return entries[len(entries)-1-i], nil })
		if err != nil {
			return fmt.Errorf("pack records: %w", err)
		}
		if info.records() == len(entries) && !slices.ContainsFunc(packs, func(old packInfo) bool { return old.Name == info.Name }) {
			packs = append(packs, info)
		}
	}
	if err := syncPaths(p.repo.refPaths()); err != nil {
		return err
	}
	c.packs = packs
	first := p.boundary(c)
	for len(c.packs) > 0 && c.packs[0].High < first {
		c.pruned, c.packs = append(c.pruned, c.packs[0]), c.packs[1:]
	}
	c.first = first
	if err := p.join(c); err != nil { // of an old pack that is damaged, say
		p.log.Warn("joining packs failed", "error", err)
	}
	return nil
}

// join makes one pack of neighbours where joinPacks of them are small. A pack has at
// most an eighth of what is kept, so that pruning can drop whole ones.
func (p *packer) join(c *checkpoint) error {
	largest := largestPack
	if p.keep > 0 {
		largest = min(largest, max(checkpointRecords, p.keep/8))
	}
	for from := 0; from < len(c.packs); {
		to := from // c.packs[from:to] are small and follow each other
		for to < len(c.packs) && c.packs[to].records() <= largest/2 && (to == from || c.packs[to].Low == c.packs[to-1].High+1) {
			to++
		}
		if to-from < joinPacks {
			from = max(to, from+1)
			continue
		}
		for c.packs[to-1].High-c.packs[from].Low >= largest {
			to--
		}
		run := c.packs[from:to]
		low, high := run[0].Low, run[len(run)-1].High
		info, err := p.write(high-low+1, func(i int) (entry, error) {
			h, err := p.repo.chain.at(p.repo, p.view, high-i)
			if err != nil {
				return entry{}, err
			}
			return p.repo.entry(h)
		})
		if err != nil {
			return fmt.Errorf("join packs: %w", err)
		}
		for _, old := range run {
			if old.Name != info.Name {
				c.obsolete = append(c.obsolete, old.Name)
			}
		}
		c.packs = slices.Replace(c.packs, from, to, info)
	}
	return nil
}

// write writes a pack of records, durably; at returns them, the newest first.
func (p *packer) write(count int, at func(i int) (entry, error)) (info packInfo, err error) {
	var objects []gitObject
	for i := range count {
		e, err := at(i)
		if err != nil {
			return info, err
		}
		_, index, err := p.repo.link(e.commit)
		if err != nil {
			return info, err
		}
		if info.Low = index; i == 0 {
			info.High = index
		}
		objects = append(objects, e.objects[:]...)
	}
	info.Name, err = p.repo.writePack(objects)
	return info, err
}

// boundary returns the index of the record at which the history is to begin: at
// least p.keep records stay, the applied one, and the one that a rollback without
// an id goes to. What another ref names stays with all that follows it; one that
// names no record of the history keeps everything. It is 0 if nothing goes.
func (p *packer) boundary(c *checkpoint) int {
	v := p.view
	if p.keep == 0 || v.applied == nil {
		return 0
	}
	first := min(v.head.Index-p.keep+1, v.applied.Index)
	if first <= v.first {
		return 0
	}
	var err error
	if c.refs, err = p.repo.foreignRefs(); err != nil {
		return 0
	}
	for _, h := range c.refs {
		_, index, err := p.repo.link(h)
		if err != nil || !p.repo.inHistory(v, h) {
			return 0
		}
		first = min(first, index)
	}
	target := p.rollbackTarget()
	if target == 0 {
		return 0
	}
	first = min(first, target)
	// Whole packs go: the history begins at the first that stays.
	for _, info := range c.packs {
		if info.High >= first {
			first = min(first, info.Low)
			break
		}
	}
	begin, err := p.repo.chain.at(p.repo, v, first)
	if err != nil || first <= v.first {
		return 0
	}
	c.begin = begin.String()
	return first
}

// rollbackTarget returns the index of the newest applied record that differs from
// what is applied and that the hold does not hold, that of the applied one if there
// is none, and 0 if the history cannot be read.
func (p *packer) rollbackTarget() int {
	v := p.view
	for i := v.applied.Index; i >= v.first; i-- {
		rec, err := p.repo.record(v, i)
		if err != nil {
			return 0
		}
		other := !rec.Config.Select(p.known).Equal(v.applied.Config.Select(p.known))
		if rec.Outcome == record.Applied && rec.Kind.Candidate() && other && v.head.Held.Match(rec.Config, p.known) == nil {
			return rec.Index
		}
	}
	return v.applied.Index
}

// shallowFile is git's own: one commit a line, whose parents count as absent
// (gitrepository-layout(5)). The oldest record stands there if older ones were
// pruned, so that `git log` ends at it and `git fsck` asks for nothing before it.
const shallowFile = "shallow"

// readShallow reads the shallow file. What is no commit in it is left out.
func (r *repo) readShallow() (map[plumbing.Hash]bool, error) {
	data, err := readBounded(filepath.Join(r.dir, shallowFile), maxPacked)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w", shallowFile, err)
	}
	cuts := map[plumbing.Hash]bool{}
	for line := range strings.Lines(string(data)) {
		if h, ok := parseHash(strings.TrimSpace(line)); ok {
			cuts[h] = true
		}
	}
	return cuts, nil
}

// writeShallow makes begin, or what the ledger says, the one record of the history in
// the shallow file; lines of other histories stay.
func (s *Store) writeShallow(begin string) error {
	begin = cmp.Or(begin, s.ledger.Begin)
	cuts, err := s.repo.readShallow()
	if err != nil {
		return err
	}
	if isRight := cuts[plumbing.NewHash(begin)]; len(cuts) == 0 && begin == "" || len(cuts) == 1 && isRight {
		return nil // without a walk down to it
	}
	var lines []plumbing.Hash
	for h := range cuts {
		if !s.repo.inHistory(view{head: s.head, first: 1}, h) {
			lines = append(lines, h)
		}
	}
	if begin != "" {
		lines = append(lines, plumbing.NewHash(begin))
	}
	if len(lines) == len(cuts) && (begin == "" || cuts[plumbing.NewHash(begin)]) {
		return nil
	}
	return s.repo.setShallow(lines)
}

// setShallow writes the shallow file, durably.
func (r *repo) setShallow(lines []plumbing.Hash) error {
	if len(lines) == 0 {
		return errors.Join(os.RemoveAll(filepath.Join(r.dir, shallowFile)), syncPath(r.dir))
	}
	slices.SortFunc(lines, func(a, b plumbing.Hash) int { return bytes.Compare(a[:], b[:]) })
	var b bytes.Buffer
	for _, h := range lines {
		fmt.Fprintln(&b, h)
	}
	if err := writeDurable(filepath.Join(r.dir, shallowFile), b.Bytes(), refPerm); err != nil {
		return fmt.Errorf("write %s: %w", shallowFile, err)
	}
	return nil
}
