package gitstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
)

// salvage is for refs of which neither can be trusted: the newest whole record
// among all commits becomes the head. If there is none, a repository without
// refs and without traces is one in which nothing was ever committed; any other
// is set aside, and a new one made.
func (s *Store) salvage(ctx context.Context, head, applied named) error {
	best, settled, err := s.newestOfHistory(ctx, math.MaxInt)
	if err != nil {
		return err
	}
	if best == nil && head.absent() && applied.absent() {
		if traces, err := s.repo.traces(); err != nil || !traces {
			return err
		}
	}
	s.explained = true
	why := joined(head.bad, applied.bad)
	found := "neither head nor applied ref is there"
	if why != nil {
		found = fmt.Sprintf("neither head nor applied ref can be trusted (%v)", why)
	}
	if best == nil {
		kept, err := s.setAside(s.repo.dir, repoDir+"-no-record-readable-"+s.stamp())
		if err != nil {
			return err
		}
		s.repo.closePacks()
		if err := s.create(); err != nil {
			return err
		}
		s.repaired(found+", and no record is whole", "the repository was set aside; "+s.begunAnew(), kept)
		return nil
	}
	if err := s.checkIdentity(best.Environment, best.Instance); err != nil {
		return err
	}
	if err := errors.Join(s.sweepObjects(nil), s.repo.dropGraph()); err != nil {
		return err
	}
	kept, err := s.keepNamed(ctx, head)
	if err != nil {
		return err
	}
	if err := s.repo.writeRef(head.ref, plumbing.NewHash(best.Commit)); err != nil {
		return err
	}
	// A first Commit that was killed leaves its record before its ref: that is
	// a candidate like any other, and nothing is amiss.
	if first := why == nil && best.Index == 1; !first {
		s.repaired(found, "the newest whole record, "+best.ID+", is the head", kept)
	}
	return s.rebuildApplied(ctx, best, settled, applied)
}

// newestOfHistory is the newest whole record of this environment and instance,
// with an index below a bound; of others only if there is no such one. Left out are
// those that stand on another than the one that was noted as applied last, which
// were given up, and lie there with higher numbers; and those that came to nothing,
// as a whole commit upon them says, though its content be damaged. settled is
// the newest one, from there down, that must have been applied.
func (s *Store) newestOfHistory(ctx context.Context, below int) (best, settled *record.Record, err error) {
	noted := s.repo.readNotes().applied
	gainsaid, err := s.judgements(ctx)
	if err != nil {
		return nil, nil, err
	}
	ours := func(snap *record.Record) bool {
		return snap.Environment == s.opts.Environment && snap.Instance == s.opts.Instance
	}
	for _, wanted := range []func(*record.Record) bool{
		func(snap *record.Record) bool {
			return ours(snap) && (noted.index == 0 || !s.repo.standsElsewhere(snap, noted))
		},
		ours,
		func(*record.Record) bool { return true },
	} {
		best, err := s.newestRecord(ctx, func(snap *record.Record) bool {
			return snap.Index < below && !gainsaid[hashOf(snap)] && wanted(snap)
		})
		if best == nil && err == nil {
			continue
		}
		if _, followed := gainsaid[hashOf(best)]; followed || err != nil {
			return best, best, err
		}
		settled, err = s.lastSettled(best)
		return best, settled, err
	}
	return nil, nil, nil
}

// judgements are the records upon which a whole commit stands, be its content
// damaged, and whether one says that they came to nothing.
func (s *Store) judgements(ctx context.Context) (gainsaid map[plumbing.Hash]bool, err error) {
	gainsaid = map[plumbing.Hash]bool{}
	return gainsaid, s.repo.eachObject(func(h plumbing.Hash) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if ours, err := s.repo.claimed(h); err != nil || !ours {
			return unlessCurable(err)
		}
		child, err := s.repo.remains(h, 0, errDamaged)
		if err != nil {
			return unlessCurable(err)
		}
		parent := plumbing.NewHash(child.Parent)
		gainsaid[parent] = gainsaid[parent] || child.OutcomeOf != nil
		return nil
	})
}

// lastSettled is the newest whole record, from head down, that must have been
// applied: head itself, if that was noted; else one that was followed by a record
// which does not say otherwise. A candidate is open until it is applied or its
// child says what became of it, and nothing is put upon an open one. nil if there
// is none.
func (s *Store) lastSettled(head *record.Record) (*record.Record, error) {
	if s.wasApplied(head) {
		return head, nil
	}
	child := head
	for child.Parent != "" {
		h := plumbing.NewHash(child.Parent)
		snap, err := s.repo.snapshot(h)
		if err == nil && child.OutcomeOf == nil {
			return snap, nil
		}
		if curable(err) {
			snap, err = s.repo.remains(h, child.Index-1, err)
		}
		if curable(err) {
			return s.notedBelow(head) // the history is cut here
		}
		if err != nil {
			return nil, err
		}
		child = snap
	}
	return nil, nil
}

// standsElsewhere reports whether another record than the one of n has its place
// below snap, or at it. Where the way down is damaged, nobody knows.
func (r *repo) standsElsewhere(snap *record.Record, n note) bool {
	at := hashOf(snap)
	for index := snap.Index; index > n.index; index-- {
		parent, _, err := r.link(at)
		if err != nil {
			return false
		}
		at = parent
	}
	return snap.Index >= n.index && at != n.commit
}

// traces reports whether there is anything of which records can have been made
// up: a commit, a pack, or a torn object. A first Commit that was killed leaves
// whole blobs and a tree at most, or its record.
func (r *repo) traces() (bool, error) {
	packs, err := glob(filepath.Join(r.objects(), "pack"), "*.pack")
	if err != nil || len(packs) > 0 {
		return true, err
	}
	traces := false
	err = r.eachLoose(func(h plumbing.Hash, _ string) error {
		t, err := r.verify(h)
		if errors.Is(err, errDamaged) || err == nil && t == plumbing.CommitObject {
			traces, err = true, nil
		}
		return err
	})
	return traces, err
}

// newestRecord is the whole record of the highest index among all commits that
// are there, loose or packed, and wanted; of several the one made last. nil if
// none is.
func (s *Store) newestRecord(ctx context.Context, wanted func(*record.Record) bool) (*record.Record, error) {
	var best *record.Record
	consider := func(h plumbing.Hash) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if ours, err := s.repo.claimed(h); err != nil || !ours {
			return unlessCurable(err)
		}
		snap, err := s.repo.snapshot(h)
		if curable(err) {
			return nil
		}
		if err == nil && wanted(snap) && (best == nil || snap.Index > best.Index || snap.Index == best.Index && snap.Timestamp > best.Timestamp) {
			best = snap
		}
		return err
	}
	return best, s.repo.eachObject(consider)
}

// claimed reports whether a commit says that it is a record. Most objects are no
// commits, and reading the whole record of each commit would read the history
// twice. The error for what is whole and no commit is errForeign.
func (r *repo) claimed(h plumbing.Hash) (bool, error) {
	content, err := r.object(plumbing.CommitObject, h)
	return err == nil && bytes.Contains(content, []byte("\n"+keyID+": ")), err
}

// eachObject calls do for every object, loose or packed.
func (r *repo) eachObject(do func(h plumbing.Hash) error) error {
	if err := r.eachLoose(func(h plumbing.Hash, _ string) error { return do(h) }); err != nil {
		return err
	}
	packed, err := r.packedObjects()
	for _, h := range packed {
		if err == nil {
			err = do(h)
		}
	}
	return err
}

// hasRecords reports whether there are records, or what is left of some, beyond
// a first one, which a Commit leaves for a moment before its ref.
func (r *repo) hasRecords() (bool, error) {
	found := errors.New("one is enough")
	err := r.eachObject(func(h plumbing.Hash) error {
		ours, err := r.claimed(h)
		if ours {
			var index int
			if _, index, err = r.link(h); index > 1 {
				return found
			}
		}
		if errors.Is(err, errDamaged) {
			return found
		}
		return unlessCurable(err)
	})
	if errors.Is(err, found) {
		return true, nil
	}
	packs, gerr := glob(filepath.Join(r.objects(), "pack"), "*.pack")
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(packs) > len(r.packs), errors.Join(err, gerr) // those that cannot be read
}
