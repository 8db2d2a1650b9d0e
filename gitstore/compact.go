package gitstore

import (
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
)

// Packing keeps the history small: a record is three or four loose files of a
// disk block each, and in a pack about 700 bytes.
//
// It needs no lock against the writer, for it only ever adds a whole pack,
// durably, and then removes what is in it. What a crash leaves in between is
// an object that is there twice, or files below tmp/ that are swept at open.
var (
	// packEvery is after how many records loose objects are packed; tests pack
	// more often. A record is four files, and while one packing goes on as many
	// come again at most: together they stay below 1,000.
	packEvery = 96
	// looseWorth is how many loose objects are worth a pack.
	looseWorth = 256
)

const (
	// packFan is how many packs of about one size become one of the next: a
	// history of n packings has about packFan × log n packs.
	packFan = 8
	// chainLength bounds how many differences are read to have one object.
	chainLength = 8
	// plainRecords is how many of the newest records are packed whole: a damaged
	// byte takes one of them, not all that are read through it.
	plainRecords = 8
)

// A compaction runs beside the writer; over is closed when it is done.
type compaction struct {
	over chan struct{}
	*packer
}

// compact packs beside the writer if there may be enough to pack, and does what
// is the writer's part of a pruning that was prepared so. Where records come
// quicker than they can be packed, it waits.
func (s *Store) compact() {
	if s.compaction != nil {
		select {
		case <-s.compaction.over:
		default:
			if s.head.Index < s.packAt {
				return
			}
		}
		s.settleCompaction()
	}
	if s.head == nil || s.head.Index < s.packAt || len(s.objects.unsynced) > 0 {
		return
	}
	s.packAt = s.head.Index + packEvery
	p := &packer{repo: newRepo(s.opts.Dir, s.opts.Environment), log: s.log, view: s.view(), begin: s.begin, keep: s.opts.KeepSnapshots, known: s.opts.Known}
	s.compaction = &compaction{make(chan struct{}), p}
	go func() {
		defer close(s.compaction.over)
		p.run()
		debug.FreeOSMemory() // a sidecar's memory is what its pod pays for, and this was the most of it
	}()
}

// abandonCompaction waits for a packing to end, whose plan is for a history that
// is another now.
func (s *Store) abandonCompaction() {
	if s.compaction != nil {
		<-s.compaction.over
		s.compaction = nil
	}
}

// settleCompaction waits for a packing to end; it is a matter of milliseconds.
func (s *Store) settleCompaction() {
	if s.compaction == nil {
		return
	}
	<-s.compaction.over
	plan := s.compaction.plan
	s.hurt = s.hurt || s.compaction.hurt
	s.compaction = nil
	if plan == nil {
		return
	}
	if err := s.prune(plan); err != nil {
		s.log.Warn("the history could not be pruned; it stays as it is, and is tried again later", "error", err)
	}
}

// A packer packs one repository, once. What it packs is at or below the view's
// head.
type packer struct {
	repo  *repo
	log   *slog.Logger
	view  view
	begin plumbing.Hash // where the view's history is cut, zero if nowhere
	keep  int           // records to keep at least; 0 keeps all
	known func(name string) bool

	// sound: the packs are those that were last seen to be whole, but for what
	// was added here, and nothing was found damaged.
	sound bool
	hurt  bool // something was
	plan  *pruning
}

func (p *packer) run() {
	defer p.repo.closePacks()
	p.sound = p.seen()
	first := p.boundary()
	worth := looseWorth
	if first > 0 {
		worth = 1 // what is pruned must be packed
	}
	if err := p.packLoose(worth); err != nil {
		p.log.Warn("the history could not be packed; it stays as it is, and larger", "error", err)
		return
	}
	if err := p.merge(); err != nil {
		p.log.Warn("packs of the history could not be joined; they stay as they are", "error", err)
	}
	if p.sound {
		p.repo.noteWalked(plumbing.NewHash(p.view.head.Commit), p.begin)
	}
	if first == 0 {
		return
	}
	var err error
	if p.plan, err = p.planPruning(first); errors.Is(err, errDamaged) {
		p.meetDamage("below the refs", err)
	} else if err != nil {
		p.log.Warn("the history could not be pruned; it stays as it is, and is tried again later", "error", err)
	}
}

func (p *packer) packDir() string { return filepath.Join(p.repo.objects(), "pack") }

// seen reports whether the packs are those of the last note in the file walked,
// or there are none yet. Others may hold anything: the next open looks.
func (p *packer) seen() bool {
	_, _, known, err := p.repo.walked()
	if err != nil || known {
		return err == nil
	}
	packs, err := glob(p.packDir(), "pack-*")
	return err == nil && len(packs) == 0
}

// packLoose puts all loose objects that are whole into a pack and removes them.
func (p *packer) packLoose(worth int) error {
	var loose []plumbing.Hash
	err := p.repo.eachLoose(func(h plumbing.Hash, _ string) error {
		loose = append(loose, h)
		return nil
	})
	if err != nil || len(loose) < worth {
		p.sound = false // what is loose was not looked at
		return err
	}
	fresh := map[plumbing.Hash]bool{}
	for _, h := range loose {
		there, err := p.repo.inPacks(h, nil)
		if err != nil {
			return err
		}
		if there {
			_, err := p.repo.packed(plumbing.AnyObject, h)
			there = err == nil
			if err != nil && !errors.Is(err, errTooLarge) && !fromDisk(err) {
				p.meetDamage(h.String(), err)
			}
			p.sound = p.sound && there
		}
		if !there {
			fresh[h] = true
		}
	}
	damaged := 0
	if len(fresh) > 0 {
		if _, damaged, err = p.write(fresh, fresh); err != nil {
			return err
		}
	}
	p.sound = p.sound && damaged == 0
	return p.removeLoose(loose)
}

// write packs the objects in fresh: first the records in their order, from the
// head down as far as they are within, each snapshot.json as the difference to
// the one before; then what no such record names. One that is damaged stays
// where it is, and is counted.
func (p *packer) write(fresh, within map[plumbing.Hash]bool) (name string, damaged int, err error) {
	order, before := p.order(fresh, within)
	readable := order[:0]
	for _, h := range order {
		if _, _, err := p.repo.objectAny(h); err == nil {
			readable = append(readable, h)
		}
	}
	damaged = len(order) - len(readable)
	if len(readable) == 0 {
		return "", damaged, nil
	}
	w, err := newPackWriter(p.repo.tmp(), len(readable))
	if err != nil {
		return "", damaged, err
	}
	if err := p.fill(w, readable, before); err != nil {
		w.abandon()
		return "", damaged, err
	}
	name, err = w.finish(p.packDir(), p.repo.tmp())
	return name, damaged, err
}

// fill writes the objects in their order, each as the difference to the one
// before it where that is shorter. Only what something later differs from is
// kept in memory, until then.
func (p *packer) fill(w *packWriter, order []plumbing.Hash, before map[plumbing.Hash]plumbing.Hash) error {
	wanted := make(map[plumbing.Hash]bool, len(before))
	for _, base := range before {
		wanted[base] = true
	}
	bases := map[plumbing.Hash]*packedBase{}
	length := map[plumbing.Hash]int{}
	for _, h := range order {
		t, content, err := p.repo.objectAny(h)
		if err != nil {
			return err
		}
		base, at := bases[before[h]], w.offset
		if length[before[h]] >= chainLength {
			base = nil
		}
		delta, err := w.add(t, h, content, base)
		if err != nil {
			return err
		}
		if delta {
			length[h] = length[before[h]] + 1
		}
		delete(bases, before[h])
		if wanted[h] {
			bases[h] = &packedBase{at, content}
		}
	}
	return nil
}

// order is the order in which objects are packed, and for each blob the one of
// the same file in the record written before it; none for the newest records, nor
// one of those for an older one.
func (p *packer) order(fresh, within map[plumbing.Hash]bool) (order []plumbing.Hash, before map[plumbing.Hash]plumbing.Hash) {
	before = map[plumbing.Hash]plumbing.Hash{}
	taken := map[plumbing.Hash]bool{}
	take := func(h plumbing.Hash) {
		if fresh[h] && !taken[h] {
			taken[h] = true
			order = append(order, h)
		}
	}
	var last [2]plumbing.Hash
	h := plumbing.NewHash(p.view.head.Commit)
	for n := 0; within[h]; n++ { // newest first, as git does: it is read most
		c, err := p.repo.commit(h)
		if err != nil {
			break
		}
		take(h)
		take(c.TreeHash)
		for i, blob := range p.repo.blobs(c.TreeHash) {
			if fresh[blob] && !taken[blob] && !last[i].IsZero() {
				before[blob] = last[i]
			}
			take(blob)
			if fresh[blob] && n >= plainRecords {
				last[i] = blob
			}
		}
		if len(c.ParentHashes) == 0 {
			break
		}
		h = c.ParentHashes[0]
	}
	rest := []plumbing.Hash{}
	for h := range fresh {
		if !taken[h] {
			rest = append(rest, h)
		}
	}
	slices.SortFunc(rest, func(a, b plumbing.Hash) int { return strings.Compare(a.String(), b.String()) })
	return append(order, rest...), before
}

// removeLoose removes loose files whose object reads back from a pack.
//
// Syscalls: for each, pread of the pack, unlinkat.
func (p *packer) removeLoose(loose []plumbing.Hash) error {
	for _, h := range loose {
		if _, err := p.repo.packed(plumbing.AnyObject, h); err != nil {
			if errors.Is(err, plumbing.ErrObjectNotFound) || curable(err) {
				continue // damaged, large, or written since
			}
			return fmt.Errorf("read %s back from its pack: %w", h, err)
		}
		if err := os.Remove(p.repo.objectPath(h)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// merge joins packs of about one size, as long as there are enough of them.
func (p *packer) merge() error {
	for {
		names, err := p.mergeable()
		if err != nil || len(names) == 0 {
			return err
		}
		if err := p.joinPacks(names); err != nil {
			return err
		}
	}
}

// mergeable are packFan packs of the smallest size that has so many; none if
// no size has. A pack that a person wants kept is left alone, and so is one
// that shares an object with another.
func (p *packer) mergeable() ([]string, error) {
	p.repo.mu.Lock()
	defer p.repo.mu.Unlock()
	if _, err := p.repo.listPacks(); err != nil {
		return nil, err
	}
	sizes := map[int][]string{}
	for name, pk := range p.repo.packs {
		n, err := pk.index.Count()
		if err != nil {
			return nil, err
		}
		if kept, err := exists(filepath.Join(p.packDir(), name+".keep")); kept || err != nil {
			continue
		}
		tier := 0
		for n > int64(looseWorth*packFan) {
			n /= packFan
			tier++
		}
		sizes[tier] = append(sizes[tier], name)
	}
	for tier := range 16 {
		if names := sizes[tier]; len(names) >= packFan {
			slices.Sort(names)
			if names, err := p.undamaged(names); err != nil {
				return nil, err
			} else if len(names) > 1 {
				return p.disjoint(names)
			}
		}
	}
	return nil, nil
}

// undamaged drops packs that are not whole: what is copied out of one would get
// a right checksum. They wait for the next open, which mends them.
func (p *packer) undamaged(names []string) (whole []string, err error) {
	for _, name := range names {
		ok, err := p.repo.packs[name].whole()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if ok {
			whole = append(whole, name)
			continue
		}
		p.meetDamage(name, errPackTorn)
	}
	return whole, nil
}

// meetDamage makes the next open look at everything; the running Store does it
// itself at its next Probe.
func (p *packer) meetDamage(where string, err error) {
	p.sound, p.hurt = false, true
	p.repo.forgetWalked()
	p.log.Warn("the packed history is damaged; it is read anew and mended soon", "where", where, "error", err)
}

// disjoint drops packs that hold an object which one before them holds.
func (p *packer) disjoint(names []string) ([]string, error) {
	seen := map[plumbing.Hash]bool{}
	var kept []string
	for _, name := range names {
		entries, err := p.repo.packs[name].index.Entries()
		if err != nil {
			return nil, err
		}
		var own []plumbing.Hash
		twice := false
		for e, err := entries.Next(); err == nil; e, err = entries.Next() {
			twice = twice || seen[e.Hash]
			own = append(own, e.Hash)
		}
		if twice {
			continue
		}
		for _, h := range own {
			seen[h] = true
		}
		kept = append(kept, name)
	}
	if len(kept) < 2 {
		return nil, nil
	}
	return kept, nil
}

// joinPacks writes one pack of several and removes those.
//
// Syscalls: copies; those of packWriter.finish; then for each old pack those of
// dropPack.
func (p *packer) joinPacks(names []string) error {
	p.repo.mu.Lock()
	defer p.repo.mu.Unlock()
	count := 0
	for _, name := range names {
		n, err := p.repo.packs[name].index.Count()
		if err != nil {
			return err
		}
		count += int(n)
	}
	w, err := newPackWriter(p.repo.tmp(), count)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := w.join(p.repo.packs[name]); err != nil {
			w.abandon()
			return fmt.Errorf("join %s: %w", name, err)
		}
	}
	joined, err := w.finish(p.packDir(), p.repo.tmp())
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == joined {
			continue
		}
		if err := p.repo.dropPack(name); err != nil {
			return err
		}
	}
	return nil
}
