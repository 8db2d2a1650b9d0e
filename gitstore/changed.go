package gitstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
)

// stillOurs is lookAround for who builds upon what this Store knows, or vouches
// for it: if that is another now, the error says to look again.
//
// Syscalls: those of lookAround.
func (s *Store) stillOurs(ctx context.Context) error {
	anew, err := s.lookAround(ctx)
	if err == nil && anew {
		err = fmt.Errorf("the history in %s was changed by somebody else while the agent ran; it was read anew, from %s on", s.repo.dir, idOf(s.head))
	}
	return err
}

// lookAround is hold, and then looks whether the refs on the disk are those that
// this Store put there. A person may have removed the repository, put a backup in
// its place, or pushed: then what lies there is read and repaired as at Open, so
// that no record stands on a parent that is not there, and none of another's is
// written over.
//
// A ref that is gone or says nothing is no word of somebody else, as long as the
// record that it named is there: the disk lost it, and it is written anew. So is
// what this Store confirmed, if the ref says less.
//
// Syscalls: those of hold; for each of three refs openat, fstat, read, close, and
// of packed-refs too where it is not loose.
func (s *Store) lookAround(ctx context.Context) (anew bool, err error) {
	if anew, err := s.hold(ctx); anew || err != nil {
		return anew, err
	}
	name := headRef(s.opts.Environment)
	found, err := s.repo.readRef(name)
	switch {
	case err == nil && found == hashOf(s.head):
	case s.lostRef(name, found, err):
		if err := s.putBack(name, s.head, found, err); err != nil {
			return false, err
		}
	case err != nil && fromDisk(err) && !errors.Is(err, syscall.ENOTDIR):
		return false, err
	default:
		return true, s.reopen(ctx)
	}
	refs := []ours{{appliedRef(s.opts.Environment), hashOf(s.applied), s.applied}, {retriedRef(s.opts.Environment), s.retried, nil}}
	if s.Retried() {
		refs[1].snap = s.head
	}
	for _, ref := range refs {
		found, err := s.repo.readRef(ref.name)
		if s.strange(found, err, ref.hash) {
			return true, s.reopen(ctx)
		}
		if err := s.stands(ref, found, err); err != nil {
			return false, err
		}
	}
	return false, nil
}

// ours is a ref that this Store made name a record; snap is nil if that says
// nothing any more.
type ours struct {
	name string
	hash plumbing.Hash
	snap *record.Record
}

// strange reports whether a ref names what somebody else put there, which would be
// written over: what is not in the history. Our own write may have failed and
// happened all the same.
func (s *Store) strange(found plumbing.Hash, err error, known plumbing.Hash) bool {
	if err != nil || slices.Contains([]plumbing.Hash{known, hashOf(s.head), plumbing.ZeroHash}, found) {
		return false
	}
	n, err := s.lookAt(found)
	return err == nil && (foreign(n.bad) || n.snap != nil && !s.inHistory(noteOf(n.snap)))
}

// stands writes a ref anew, which reads as found or bad, if it does not name our
// record any more, but nothing, or an older one: where the head is ours, nobody
// else has to say what runs. One that names a newer record is our own write, which
// failed and happened all the same.
func (s *Store) stands(ref ours, found plumbing.Hash, bad error) error {
	switch {
	case ref.snap == nil || bad == nil && found == ref.hash:
		return nil
	case bad == nil && !found.IsZero():
		n, err := s.lookAt(found)
		if err != nil || n.snap != nil && n.snap.Index > ref.snap.Index {
			return err
		}
	case bad != nil && !errors.Is(bad, errTornRef) && !errors.Is(bad, syscall.EIO):
		return nil // the write that needs it fails, and says so
	}
	if there, err := s.repo.stillHas(ref.hash); err != nil || !there {
		return err
	}
	return s.putBack(ref.name, ref.snap, found, bad)
}

// lostRef reports whether the head ref, which reads as found or err, was lost
// without a hand of somebody else. One in packed-refs alone may be the one
// before: `git pack-refs` removes the loose file after a look at it, and the ref
// may move between the two.
func (s *Store) lostRef(name string, found plumbing.Hash, err error) bool {
	switch {
	case s.head == nil:
		return false
	case errors.Is(err, errTornRef), errors.Is(err, syscall.EIO), err == nil && found.IsZero():
	case err == nil && found.String() == s.head.Parent:
		if loose, err := exists(filepath.Join(s.repo.dir, name)); err != nil || loose {
			return false
		}
	default:
		return false
	}
	there, err := s.repo.stillHas(plumbing.NewHash(s.head.Commit))
	return err == nil && there
}

// putBack writes a ref anew, durably, that was lost, or reads as found or why.
func (s *Store) putBack(name string, to *record.Record, found plumbing.Hash, why error) error {
	if err := s.clearPlace(filepath.Join(s.repo.dir, name), false); err != nil {
		return err
	}
	if err := s.repo.writeRef(name, hashOf(to)); err != nil {
		return err
	}
	word := map[string]string{headRef(s.opts.Environment): "head", appliedRef(s.opts.Environment): "applied"}[name]
	what := fmt.Sprintf("the %s ref was lost while the agent ran", cmp.Or(word, "retried"))
	switch {
	case why != nil:
		what += fmt.Sprintf(" (%v)", why)
	case !found.IsZero():
		what += fmt.Sprintf(" (it named %s)", found)
	}
	s.repaired(what, "it names "+idOf(to)+" again", "")
	return nil
}

// reopen reads the repository anew, which somebody else changed.
func (s *Store) reopen(ctx context.Context) error {
	return s.reread(ctx, "the history was changed by somebody else")
}

// reread reads the repository anew, and repairs it as at Open, for the reason why.
func (s *Store) reread(ctx context.Context, why string) error {
	before := s.head
	s.abandonCompaction()
	s.repo.dropBlanks()
	s.repo.closePacks()
	if err := s.readAnew(func() error { return s.open(ctx) }); err != nil {
		return fmt.Errorf("%s and cannot be read anew: %w", why, err)
	}
	return s.changed(ctx, why+" while the agent ran", before)
}

// mend repairs what packing met, once all that was committed is confirmed: what a
// start would do.
func (s *Store) mend(ctx context.Context) error {
	if c := s.compaction; c != nil {
		select {
		case <-c.over:
			s.hurt, c.hurt = s.hurt || c.hurt, false
		default:
		}
	}
	if !s.hurt || s.head == nil || len(s.objects.unsynced) > 0 || hashOf(s.head) != hashOf(s.applied) {
		return nil
	}
	s.hurt = false
	return s.reread(ctx, "the history was damaged")
}

// changed notes what stands now, if that is another head than before, and once
// more for the next start. Where the records up to before are there still, and in
// the history no more, they are kept.
func (s *Store) changed(ctx context.Context, found string, before *record.Record) error {
	if hashOf(before) == hashOf(s.head) {
		return nil
	}
	if s.head == nil {
		if err := s.lose(found + ", and is empty now"); err != nil {
			return err
		}
	}
	kept := ""
	if before != nil && !s.inHistory(noteOf(before)) {
		if err := s.loseHold(noteOf(before), before.Held != nil); err != nil {
			return err
		}
		s.left = noteOf(before)
		if s.applied != nil {
			s.writeNotes(note{})
		}
		n, err := s.lookAt(hashOf(before))
		if err == nil && n.snap != nil && s.joins(ctx, n.snap) {
			kept, err = s.keep(n.hash)
		}
		if err != nil {
			return err
		}
	}
	did, applied := "read anew: it is empty now", "none"
	if s.applied != nil {
		applied = s.applied.ID
	}
	if s.head != nil {
		did = fmt.Sprintf("read anew: of %d records the head is %s, and %s is applied", s.Total(), idOf(s.head), applied)
	}
	s.repaired(fmt.Sprintf("%s, at %s", found, idOf(before)), did, kept)
	return nil
}

// hashOf is the commit of a record, zero if there is none.
func hashOf(snap *record.Record) plumbing.Hash {
	if snap == nil {
		return plumbing.ZeroHash
	}
	return plumbing.NewHash(snap.Commit)
}

// joins reports whether the records from snap down can be followed until they
// meet the history, or begin.
func (s *Store) joins(ctx context.Context, snap *record.Record) bool {
	for ctx.Err() == nil && !s.inHistory(noteOf(snap)) {
		if snap.Index == 1 {
			return true
		}
		parent, err := s.repo.snapshot(plumbing.NewHash(snap.Parent))
		if err != nil {
			return false
		}
		snap = parent
	}
	return ctx.Err() == nil
}
