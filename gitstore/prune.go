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

	"dtesn-agent/schema"
)

// Pruning lets the oldest records go. It is done in two parts. Beside the
// writer, at packing time, what stays of the packs that hold something old is
// put into a new pack, durably. Then the writer's goroutine, while nobody waits,
// sees that nothing written since needs what goes, nor any ref that was set since,
// writes the shallow file, durably, and removes the old packs. A kill before the shallow file leaves the
// history as it was, with some objects twice; after it, the history is cut, and
// what is left of the old packs is found at open, or by the next pruning.

// A pruning is what the first part prepared.
type pruning struct {
	head    plumbing.Hash // where the history stood
	first   int           // the oldest record from now on
	begin   plumbing.Hash // its commit
	cuts    cuts
	victims map[string]bool            // packs that hold what goes
	refs    map[plumbing.Hash]struct{} // what the refs named, all of which stays
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
			held := v.head.Held != nil && slices.Contains(v.head.Held.Digests, rec.Digest())
			if rec.Outcome == schema.Applied && rec.Kind.Candidate() && rec.Config != v.applied.Config && !held {
				first = min(first, rec.Index)
				if first-v.first < max(packEvery, p.keep/8) {
					return 0
				}
				return first
			}
		}
		if err != nil {
			return 0 // damage is for the next open
		}
		if len(page) == 0 {
			return first
		}
		before = page[len(page)-1].ID
	}
}

// planPruning does the first part.
func (p *packer) planPruning(first int) (plan *pruning, err error) {
	plan = &pruning{head: plumbing.NewHash(p.view.head.Commit), first: first, sound: p.sound, cuts: cuts{}, victims: map[string]bool{}}
	keep, err := p.reach(plan)
	if err != nil {
		return nil, err
	}
	fresh, err := p.victims(plan, keep)
	if err != nil || len(plan.victims) == 0 {
		return nil, err
	}
	if len(fresh) == 0 {
		return plan, nil
	}
	_, damaged, err := p.write(fresh, keep)
	if err == nil && damaged > 0 {
		err = fmt.Errorf("%d objects that should stay cannot be read, or are larger than %d bytes", damaged, maxObject)
	}
	if err != nil {
		return nil, err
	}
	return plan, nil
}

// reach is the set of objects that stay: those of the records from the boundary
// on, and those that other refs name. Of older records such a ref keeps the one
// that it stands on, cut off from its parents like the boundary.
func (p *packer) reach(plan *pruning) (map[plumbing.Hash]bool, error) {
	older, boundary, err := p.older(plan.first)
	if err != nil {
		return nil, err
	}
	plan.begin = boundary
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
	keep := map[plumbing.Hash]bool{}
	next := append(slices.Collect(maps.Values(refs)), plan.head)
	for len(next) > 0 {
		h := next[len(next)-1]
		next = next[:len(next)-1]
		if keep[h] {
			continue
		}
		t, content, err := p.repo.objectAny(h)
		if curable(err) || errors.Is(err, plumbing.ErrObjectNotFound) {
			continue // it was damaged before
		}
		if err != nil {
			return nil, err
		}
		keep[h] = true
		further, parents, err := names(t, content)
		if err != nil {
			return nil, fmt.Errorf("read %s %s: %w", t, h, err)
		}
		for _, blob := range further.blobs {
			keep[blob] = true
		}
		next = append(next, further.others...)
		if h == boundary || older[h] || had[h] {
			plan.cuts[h] = true
		} else {
			next = append(next, parents...)
		}
	}
	return keep, nil
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
// left alone.
func (p *packer) victims(plan *pruning, keep map[plumbing.Hash]bool) (fresh map[plumbing.Hash]bool, err error) {
	p.repo.mu.Lock()
	defer p.repo.mu.Unlock()
	if _, err := p.repo.listPacks(); err != nil {
		return nil, err
	}
	stays := map[string][]packEntry{}
	for name, pk := range p.repo.packs {
		kept, err := exists(filepath.Join(p.packDir(), name+".keep"))
		if err != nil {
			return nil, err
		}
		list := pk.entries()
		stays[name] = list
		if !kept && slices.ContainsFunc(list, func(e packEntry) bool { return !keep[e.hash] }) {
			plan.victims[name] = true
		}
	}
	elsewhere := map[plumbing.Hash]bool{}
	for name, list := range stays {
		for _, e := range list {
			elsewhere[e.hash] = elsewhere[e.hash] || !plan.victims[name]
		}
	}
	fresh = map[plumbing.Hash]bool{}
	for name := range plan.victims {
		for _, e := range stays[name] {
			if keep[e.hash] && !elsewhere[e.hash] {
				fresh[e.hash] = true
			}
		}
	}
	return fresh, nil
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
	if err := s.repo.writeCuts(plan.cuts); err != nil {
		return err
	}
	s.first, s.begin = plan.first, plan.begin
	s.objects.recent = nil // some may go
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
// history.
func (s *Store) refsStay(plan *pruning, since []plumbing.Hash) (bool, error) {
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
