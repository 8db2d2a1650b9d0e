package gitstore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/schema"
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
// record that it named is there: the disk lost it, and it is written anew.
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
		if err := s.putBack(name, hashOf(s.head), err); err != nil {
			return false, err
		}
	case err != nil && fromDisk(err) && !errors.Is(err, syscall.ENOTDIR):
		return false, err
	default:
		return true, s.reopen(ctx)
	}
	if s.strange(appliedRef(s.opts.Environment), hashOf(s.applied)) || s.strange(retriedRef(s.opts.Environment), s.retried) {
		return true, s.reopen(ctx)
	}
	return false, nil
}

// strange reports whether a ref names what somebody else put there, which would be
// written over: what is not in the history. Our own write may have failed and
// happened all the same.
func (s *Store) strange(name string, known plumbing.Hash) bool {
	found, err := s.repo.readRef(name)
	if err != nil || slices.Contains([]plumbing.Hash{known, hashOf(s.head), plumbing.ZeroHash}, found) {
		return false
	}
	n, err := s.lookAt(found)
	return err == nil && (foreign(n.bad) || n.snap != nil && !s.inHistory(noteOf(n.snap)))
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

// putBack writes the head ref anew that was lost.
func (s *Store) putBack(name string, h plumbing.Hash, why error) error {
	if err := s.clearPlace(filepath.Join(s.repo.dir, name), false); err != nil {
		return err
	}
	if err := s.repo.writeRef(name, h); err != nil {
		return err
	}
	found := "the head ref was lost while the agent ran"
	if why != nil {
		found += fmt.Sprintf(" (%v)", why)
	}
	s.repaired(found, "it names "+idOf(s.head)+" again", "")
	return nil
}

// reopen reads the repository anew, which somebody else changed.
func (s *Store) reopen(ctx context.Context) error {
	before := s.head
	s.abandonCompaction()
	s.repo.dropBlanks()
	s.repo.closePacks()
	if err := s.readAnew(func() error { return s.open(ctx) }); err != nil {
		return fmt.Errorf("the history was changed by somebody else and cannot be read anew: %w", err)
	}
	return s.changed(ctx, "the history was changed by somebody else while the agent ran", before)
}

// changed notes what stands now, if that is another head than before, and once
// more for the next start. Where the records up to before are there still, and in
// the history no more, they are kept.
func (s *Store) changed(ctx context.Context, found string, before *schema.Snapshot) error {
	if hashOf(before) == hashOf(s.head) {
		return nil
	}
	kept := ""
	if before != nil && !s.inHistory(noteOf(before)) {
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
func hashOf(snap *schema.Snapshot) plumbing.Hash {
	if snap == nil {
		return plumbing.ZeroHash
	}
	return plumbing.NewHash(snap.Commit)
}

// joins reports whether the records from snap down can be followed until they
// meet the history, or begin.
func (s *Store) joins(ctx context.Context, snap *schema.Snapshot) bool {
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
