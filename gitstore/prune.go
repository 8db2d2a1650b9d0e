package gitstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"

	"dtesn-agent/gitstore/record"
)

// Pruning lets the oldest records go. It is done in two parts. Beside the
// writer, at packing time, what stays of the packs that hold something old is
// put into a new pack, durably. Then the writer's goroutine, while nobody waits,
// sees that nothing written since needs what goes, nor any ref that was set since,
// nor a file that changed since,
// writes the shallow file, durably, and removes the old packs. A kill before the shallow file leaves the
// history as it was, with some objects twice; after it, the history is cut, and
// what is left of the old packs is found at open, or by the next pruning.

// Nothing goes but what was a part of a record before the boundary, and of nothing
// else: an object that a person made stays, whether a ref names it, a reflog, an
// index, or nothing yet. And where this package cannot tell what a ref or another
// file needs, nothing goes.

// A pruning is what the first part prepared.
type pruning struct {
	head    plumbing.Hash // where the history stood
	first   int           // the oldest record from now on
	begin   plumbing.Hash // its commit
	cuts    cuts
	goes    map[plumbing.Hash]bool     // what was a part of older records alone
	victims map[string]bool            // packs that hold what goes
	refs    map[plumbing.Hash]struct{} // what the refs named, all of which stays
	others  string                     // the files that name objects too, as they were, see namers
	sound   bool                       // what is left was seen to be whole
}

// boundary is the index of the record at which the history is to begin, 0 if
// too little would go for the trouble. At least p.keep records stay, the applied
// one, and the one that a rollback without an id goes to.
func (p *packer) boundary() int {
	v := p.view
	if p.keep == 0 || v.applied == nil {
		return 0
	}
	first := min(v.head.Index-p.keep+1, v.applied.Index)
	if first-v.first < max(packEvery, p.keep/8) {
		return 0
	}
	ctx := context.Background() // a packing ends by itself, within seconds
	for before := ""; ; {
		page, err := p.repo.list(ctx, v, before, DefaultMaxSnapshots)
		for i := range page {
			rec := &page[i]
			other := !rec.Config.Select(p.known).Equal(v.applied.Config.Select(p.known))
			if rec.Outcome == record.Applied && rec.Kind.Candidate() && other && v.head.Held.Match(rec.Config, p.known) == nil {
				first = min(first, rec.Index)
				if first-v.first < max(packEvery, p.keep/8) {
					return 0
				}
				return first
			}
		}
		if err != nil {
			if curable(err) {
				p.meetDamage("in the list of records", err)
			}
			return 0
		}
		if len(page) == 0 {
			return first
		}
		before = page[len(page)-1].ID
	}
}

// planPruning does the first part; nil if nothing can be pruned.
func (p *packer) planPruning(first int) (plan *pruning, err error) {
	plan = &pruning{head: plumbing.NewHash(p.view.head.Commit), first: first, sound: p.sound, cuts: cuts{}, victims: map[string]bool{}}
	older, boundary, err := p.older(plan.first)
	if err != nil {
		return nil, err
	}
	plan.begin = boundary
	keep, err := p.reach(plan, older)
	if err != nil {
		return nil, err
	}
	if plan.goes, err = p.goes(first, older, keep); err != nil {
		return nil, err
	}
	fresh, err := p.victims(plan)
	if err != nil || len(plan.victims) == 0 {
		return nil, err
	}
	// A cut below which the history goes on is no cut to the next start.
	below, err := p.repo.chain.at(p.repo, p.view, first-1)
	if err != nil {
		return nil, err
	}
	if stays, err := p.repo.inPacks(below, plan.victims); err != nil || stays && !keep[below] {
		return nil, err
	}
	if len(fresh) == 0 {
		return plan, nil
	}
	_, damaged, err := p.write(fresh, keep)
	if err == nil && damaged > 0 {
		err = fmt.Errorf("%w: %d objects that should stay cannot be read any more", errDamaged, damaged)
	}
	if err != nil {
		return nil, err
	}
	return plan, nil
}

// reach is the set of objects that stay whatever is pruned: those of the records
// from the boundary on, and those that other refs and files name. Of older records
// such a ref keeps the one that it stands on, cut off from its parents like the
// boundary.
func (p *packer) reach(plan *pruning, older map[plumbing.Hash]bool) (map[plumbing.Hash]bool, error) {
	had, err := p.others(plan.first)
	if err != nil {
		return nil, err
	}
	refs, err := p.repo.refs()
	if err != nil {
		return nil, err
	}
	plan.refs = map[plumbing.Hash]struct{}{plan.head: {}}
	for _, h := range refs {
		plan.refs[h] = struct{}{}
	}
	next, err := p.named(plan)
	if err != nil {
		return nil, err
	}
	next = slices.AppendSeq(append(next, plan.head), maps.Values(refs))
	keep := map[plumbing.Hash]bool{}
	for len(next) > 0 {
		h := next[len(next)-1]
		next = next[:len(next)-1]
		if keep[h] {
			continue
		}
		further, parents, err := p.further(h)
		if errors.Is(err, plumbing.ErrObjectNotFound) {
			continue // it was lost before
		}
		if err != nil {
			return nil, err
		}
		keep[h] = true
		for _, blob := range further.blobs {
			keep[blob] = true
		}
		next = append(next, further.others...)
		if h == plan.begin || older[h] || had[h] {
			plan.cuts[h] = true
		} else {
			next = append(next, parents...)
		}
	}
	return keep, nil
}

// further are the objects that one names: none, if it is a blob, of whatever size.
func (p *packer) further(h plumbing.Hash) (further namesOf, parents []plumbing.Hash, err error) {
	t, content, err := p.repo.objectAny(h)
	if errors.Is(err, errTooLarge) {
		if t, err = p.repo.kind(h); err == nil && t != plumbing.BlobObject {
			err = fmt.Errorf("what %s %s names is not known: it has over %d bytes", t, h, maxObject)
		}
		return further, nil, err
	}
	if err != nil {
		return further, nil, err
	}
	if further, parents, err = names(t, content); err != nil {
		err = fmt.Errorf("read %s %s: %w", t, h, err)
	}
	return further, parents, err
}

// named are the objects that the files beside the refs name, which git keeps as it
// does those that refs name.
func (p *packer) named(plan *pruning) (list []plumbing.Hash, err error) {
	var paths []string
	if plan.others, paths, err = p.repo.namers(); err != nil {
		return nil, err
	}
	packed, err := p.repo.packedObjects()
	if err != nil {
		return nil, err
	}
	known := make(map[plumbing.Hash]bool, len(packed))
	for _, h := range packed {
		known[h] = true
	}
	for _, path := range paths {
		found, err := namedIn(path, known)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	return list, nil
}

// goes are the packed objects of records before record first, but for what is
// kept: those of the history, and others of this agent's that it gave up.
func (p *packer) goes(first int, older, keep map[plumbing.Hash]bool) (map[plumbing.Hash]bool, error) {
	packed, err := p.repo.packedObjects()
	if err != nil {
		return nil, err
	}
	goes := map[plumbing.Hash]bool{}
	for _, h := range packed {
		if keep[h] {
			continue
		}
		if !older[h] {
			snap, err := p.repo.snapshot(h)
			if fromDisk(err) {
				return nil, err
			}
			if err != nil || snap.Index >= first {
				continue // somebody's, or the next pruning's
			}
		}
		parts := []plumbing.Hash{h}
		if c, err := p.repo.commit(h); err == nil {
			parts = append(append(parts, c.TreeHash), p.repo.blobs(c.TreeHash)...)
		} else if fromDisk(err) {
			return nil, err
		}
		for _, part := range parts {
			if !keep[part] {
				goes[part] = true
			}
		}
	}
	return goes, nil
}

// others are the cuts but for those that would hide a part of the history from
// record first on.
func (p *packer) others(first int) (cuts, error) {
	c, err := p.repo.readCuts()
	if err != nil {
		return nil, err
	}
	lines, err := p.repo.lines(c, p.view.head.Index)
	for _, l := range lines {
		if at, err := p.repo.chain.at(p.repo, p.view, l.index); err == nil && at == l.hash && l.index >= first {
			delete(c, l.hash)
		}
	}
	return c, err
}

// older are the records before the one with index first, which is boundary.
func (p *packer) older(first int) (older map[plumbing.Hash]bool, boundary plumbing.Hash, err error) {
	if boundary, err = p.repo.chain.at(p.repo, p.view, first); err != nil {
		return nil, boundary, err
	}
	older = map[plumbing.Hash]bool{}
	for i := first - 1; i >= p.view.first; i-- {
		h, err := p.repo.chain.at(p.repo, p.view, i)
		if err != nil {
			return nil, boundary, err
		}
		older[h] = true
	}
	return older, boundary, nil
}

// named by an object: blobs, which name nothing further, and others.
type namesOf struct{ blobs, others []plumbing.Hash }

// names are the objects that an object names; the parents of a commit by
// themselves.
func names(t plumbing.ObjectType, content []byte) (further namesOf, parents []plumbing.Hash, err error) {
	o := memoryObject(t, content)
	switch t {
	case plumbing.CommitObject:
		c := new(object.Commit)
		if err = c.Decode(o); err == nil {
			further.others, parents = []plumbing.Hash{c.TreeHash}, c.ParentHashes
		}
	case plumbing.TagObject:
		tag := new(object.Tag)
		if err = tag.Decode(o); err == nil {
			further.others = []plumbing.Hash{tag.Target}
		}
	case plumbing.TreeObject:
		tree := new(object.Tree)
		err = tree.Decode(o)
		for _, e := range tree.Entries {
			switch e.Mode {
			case filemode.Submodule: // a commit of another repository
			case filemode.Dir:
				further.others = append(further.others, e.Hash)
			default:
				further.blobs = append(further.blobs, e.Hash)
			}
		}
	}
	return further, parents, err
}

// victims finds the packs that hold something that goes, and of what they hold
// that which stays and is in no other pack. A pack that a person wants kept is
// left alone, and so is one of which this package could not take along all that
// stays.
func (p *packer) victims(plan *pruning) (fresh map[plumbing.Hash]bool, err error) {
	p.repo.mu.Lock()
	defer p.repo.mu.Unlock()
	if _, err := p.repo.listPacks(); err != nil {
		return nil, err
	}
	stays := map[string][]plumbing.Hash{}
	for name, pk := range p.repo.packs {
		kept, err := exists(filepath.Join(p.packDir(), name+".keep"))
		if err != nil {
			return nil, err
		}
		goes := false
		for _, e := range pk.entries() {
			if plan.goes[e.hash] {
				goes = true
			} else {
				stays[name] = append(stays[name], e.hash)
			}
		}
		if !goes || kept {
			continue
		}
		if plan.victims[name], err = p.movable(name, stays[name]); err != nil {
			return nil, err
		}
	}
	maps.DeleteFunc(plan.victims, func(_ string, is bool) bool { return !is })
	elsewhere := map[plumbing.Hash]bool{}
	for name, list := range stays {
		for _, h := range list {
			elsewhere[h] = elsewhere[h] || !plan.victims[name]
		}
	}
	fresh = map[plumbing.Hash]bool{}
	for name := range plan.victims {
		for _, h := range stays[name] {
			if !elsewhere[h] {
				fresh[h] = true
			}
		}
	}
	return fresh, nil
}

// movable reports whether all of the objects read back from the pack, and are of a
// size that this package packs.
func (p *packer) movable(name string, list []plumbing.Hash) (bool, error) {
	for _, h := range list {
		_, err := p.repo.packs[name].read(plumbing.AnyObject, h)
		switch {
		case fromDisk(err):
			return false, err
		case errors.Is(err, errTooLarge):
			p.log.Info("a pack stays when old records are pruned, for it holds something larger than a record", "pack", name, "object", h, "limit", maxObject)
			return false, nil
		case err != nil:
			p.meetDamage(name, err)
			return false, nil
		}
	}
	return true, nil
}

// prune does the second part, on the writer's goroutine.
//
// The point of no return is the rename of the shallow file: a crash before it
// leaves the history whole, after it cut.
//
// Syscalls: for what was committed since the first part, and for all refs, openat,
// fstat, read, close; those of writeCuts; for each old pack those of dropPack.
func (s *Store) prune(plan *pruning) error {
	if s.head == nil || s.applied == nil || s.applied.Index < plan.first {
		return nil // another history by now
	}
	since, err := s.since(plan.head)
	if err != nil {
		return err
	}
	s.repo.closePacks() // the new one must be seen
	for _, h := range since {
		loose, err := exists(s.repo.objectPath(h))
		if err == nil && !loose {
			loose, err = s.repo.inPacks(h, plan.victims)
		}
		if err != nil {
			return err
		}
		if !loose {
			return fmt.Errorf("object %s was written meanwhile, and is in an old pack alone", h)
		}
	}
	before := s.first
	if err := s.repo.dropGraph(); err != nil {
		return err
	}
	if stays, err := s.refsStay(plan, since); err != nil || !stays {
		s.packAt = s.head.Index // plan again
		return err
	}
	if err := s.repo.unpackOld(plan.goes); err != nil {
		return err
	}
	if err := s.repo.writeCuts(plan.cuts); err != nil {
		return err
	}
	s.first, s.begin = plan.first, plan.begin
	s.objects.recent = slices.DeleteFunc(s.objects.recent, func(f recentFile) bool { return plan.goes[f.hash] })
	s.log.Info("old records were pruned", "from", before, "to", s.first-1, "left", s.Total())
	for name := range plan.victims {
		if err := s.repo.dropPack(name); err != nil {
			return err
		}
	}
	s.repo.closePacks()
	if plan.sound {
		s.repo.noteWalked(plan.head, plan.begin)
	}
	return nil
}

// refsStay reports whether all that the refs name now was looked at when the
// pruning was planned, or was written since. A tag that a person set meanwhile
// may name what would go; a branch that is not where the Store left it, another
// history. And no other file that names objects may have changed.
func (s *Store) refsStay(plan *pruning, since []plumbing.Hash) (bool, error) {
	if others, _, err := s.repo.namers(); err != nil || others != plan.others {
		return false, err
	}
	refs, err := s.repo.refs()
	if err != nil {
		return false, err
	}
	if h := refs[headRef(s.opts.Environment)]; h != plumbing.NewHash(s.head.Commit) {
		return false, nil
	}
	for _, h := range refs {
		if _, planned := plan.refs[h]; !planned && !slices.Contains(since, h) {
			return false, nil
		}
	}
	return true, nil
}

// since lists the objects of the records above the commit, and those that a
// Commit which failed may yet write again.
func (s *Store) since(h plumbing.Hash) ([]plumbing.Hash, error) {
	var list []plumbing.Hash
	for _, file := range s.objects.unsynced {
		list = append(list, file.hash)
	}
	for at := s.head; plumbing.NewHash(at.Commit) != h; {
		objects, err := s.repo.objectsOf(plumbing.NewHash(at.Commit))
		if err != nil {
			return nil, err
		}
		list = append(list, objects...)
		if at, err = s.repo.snapshot(plumbing.NewHash(at.Parent)); err != nil {
			return nil, err
		}
	}
	return list, nil
}
