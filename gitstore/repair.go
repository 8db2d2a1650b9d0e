package gitstore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// A Repair is one thing that Open found amiss and put right.
type Repair struct {
	At    time.Time
	Found string // what was found, one line
	Did   string // what was done about it, one line
	Kept  string // the path or the ref under which it was set aside; "" if nothing was
}

// String is the repair on one line, for the log.
func (r Repair) String() string {
	if r.Kept == "" {
		return r.Found + ": " + r.Did
	}
	return r.Found + ": " + r.Did + "; kept as " + r.Kept
}

func (s *Store) repaired(found, did, kept string) {
	if s.opened {
		s.log.Warn("repaired the snapshot repository", "found", found, "did", did, "kept", kept)
	}
	s.repairs = append(s.repairs, Repair{s.opts.Now(), found, did, kept})
	if len(s.repairs) > maxRepairs { // the log has them all
		s.repairs = slices.Delete(s.repairs, 0, len(s.repairs)-maxRepairs)
	}
}

// maxRepairs is how many repairs are remembered.
const maxRepairs = 50

// Repairs are what Open found and put right, and what was found since, oldest
// first, at most 50.
func (s *Store) Repairs() []Repair { return slices.Clone(s.repairs) }

// A named is a ref and what it was found to name.
type named struct {
	ref  string
	hash plumbing.Hash  // zero if the ref is absent or torn
	snap *record.Record // nil unless it names a whole record of ours
	bad  error          // why not: errTornRef, errDamaged or errForeign; nil if absent
	gone bool           // no object has this name
}

func (n named) absent() bool { return n.snap == nil && n.bad == nil }

// look resolves a ref to its record. Only a disk or permissions that keep it
// from being read are an error.
func (s *Store) look(ref string) (named, error) {
	h, err := s.repo.readRef(ref)
	if err != nil || h.IsZero() {
		n := named{ref: ref}
		if curable(err) {
			n.bad, err = err, nil
		}
		return n, err
	}
	n, err := s.lookAt(h)
	n.ref = ref
	return n, err
}

// lookAt is look for what a ref was found to name.
func (s *Store) lookAt(h plumbing.Hash) (n named, err error) {
	n.hash = h
	if n.snap, err = s.repo.snapshot(h); curable(err) {
		n.bad = err
		n.gone, err = s.repo.has(h)
		n.gone = !n.gone
	}
	return n, err
}

// curable reports whether err is damage or a foreign hand, which have a
// repair, and not a disk that cannot be read.
func curable(err error) bool {
	return errors.Is(err, errTornRef) || errors.Is(err, errDamaged) || errors.Is(err, errForeign)
}

// repair goes from what lies there to refs that can be trusted. It decides
// first whose history it is, then tidies, then settles the refs:
//
//	head            applied         then
//	whole           its ancestor    nothing to do
//	absent          absent          an empty history, unless records are found, or
//	                                what is left of some
//	damaged         whole           a candidate that was lost: head = applied; or a
//	                                settlement: it is remade
//	foreign         whole           set aside; head = the newest of ours above applied
//	not above it    whole           set aside; head = applied
//	whole           not whole       applied = the newest record that its children do not gainsay
//	not whole       not whole       what was applied is remade, see remake.go; else the
//	                                newest whole record becomes the head; if there is
//	                                none, the repository is set aside and a new one made
//
// Whatever whole commit a ref named and names no longer is kept, unless it stands
// in the history all the same.
func (s *Store) repair(ctx context.Context) error {
	if err := s.clearPlaces(); err != nil {
		return stateError("clear", s.opts.Dir, err)
	}
	if err := s.takeIn(ctx); err != nil {
		return s.repairError(err)
	}
	head, applied, err := s.mended()
	if err != nil {
		return err
	}
	if err = s.suspectLoss(head, applied); err == nil {
		err = s.tidy()
	}
	// Objects that were being written when the power went may be torn, though
	// no ref names them: git fsck would find them.
	if damaged := head.bad != nil || applied.bad != nil || (head.snap == nil) != (applied.snap == nil); err == nil && (damaged || s.lock.cut) {
		err = errors.Join(s.sweepObjects(applied.snap), s.repo.dropGraph())
	}
	if err == nil {
		err = s.clearSetAsideRef(ctx)
	}
	if err == nil {
		err = s.settleRefs(ctx, head, applied)
	}
	for _, step := range []func(context.Context) error{s.settleAncestry, s.settleRetried, s.sweepRefs, s.inherit, s.syncApplied} {
		if err == nil {
			err = step(ctx)
		}
	}
	return s.repairError(err)
}

func (s *Store) repairError(err error) error {
	switch {
	case fromDisk(err):
		return stateError("repair the snapshot repository in", s.opts.Dir, err)
	case err != nil:
		return fmt.Errorf("open the snapshot repository in state directory %s: %w", s.opts.Dir, err)
	}
	return nil
}

// mended reads the two refs, once damaged packs are mended as far as they can
// be, and the applied record is made whole from its second copy.
func (s *Store) mended() (head, applied named, err error) {
	_, _, known, err := s.repo.walked()
	if err != nil {
		return head, applied, stateError("read", s.opts.Dir, err)
	}
	// Packs that are not those of the last start are read from end to end.
	for _, thorough := range []bool{!known, true} {
		more, err := s.mendPacks(thorough)
		if err != nil {
			return head, applied, stateError("mend the packs in", s.opts.Dir, err)
		}
		if head, applied, err = s.judged(); err != nil {
			return head, applied, err
		}
		if head.bad == nil && applied.bad == nil || thorough && !more {
			break
		}
	}
	if head.snap != nil && applied.snap != nil {
		return head, applied, nil
	}
	trimmed, err := s.trimObjects()
	restored, derived := false, false
	if err == nil {
		restored, err = s.restore(head, applied)
	}
	for _, n := range []named{head, applied} {
		if one := false; err == nil {
			one, err = s.derive(n)
			derived = derived || one
		}
	}
	if err != nil {
		return head, applied, stateError("repair the snapshot repository in", s.opts.Dir, err)
	}
	if trimmed || restored || derived {
		return s.judged()
	}
	return head, applied, nil
}

// judged is whose, with the two refs held against the note and each other.
func (s *Store) judged() (head, applied named, err error) {
	if head, applied, err = s.whose(); err != nil {
		return head, applied, err
	}
	if err := s.outdated(&head, &applied); err != nil {
		return head, applied, stateError("read the history in", s.opts.Dir, err)
	}
	if head.snap != nil && applied.snap != nil {
		if _, err = s.between(head.snap, applied.snap); curable(err) {
			head.snap, head.bad = nil, err
		} else if err != nil {
			return head, applied, stateError("read the history in", s.opts.Dir, err)
		}
	}
	return head, applied, nil
}

// whose reads the two refs and refuses a repository of another environment or
// instance, before anything is changed.
func (s *Store) whose() (head, applied named, err error) {
	if head, err = s.look(headRef(s.opts.Environment)); err == nil {
		applied, err = s.look(appliedRef(s.opts.Environment))
	}
	if err != nil {
		return head, applied, stateError("read the history in", s.opts.Dir, err)
	}
	for _, n := range []named{head, applied} {
		if n.snap != nil {
			return head, applied, s.checkIdentity(n.snap.Environment, n.snap.Instance)
		}
	}
	text, _ := readBounded(filepath.Join(s.repo.dir, "HEAD"), maxRef)
	other, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "ref: refs/heads/")
	if !ok || other == string(s.opts.Environment) || !validEnvironment(other) {
		return head, applied, nil
	}
	if n, err := s.look(headRef(schema.Environment(other))); err == nil && n.snap != nil {
		return head, applied, s.checkIdentity(n.snap.Environment, n.snap.Instance)
	}
	return head, applied, nil
}

// settleRefs follows the table above repair.
func (s *Store) settleRefs(ctx context.Context, head, applied named) error {
	if head.snap == nil {
		if done, err := s.remake(ctx, head, applied); done || err != nil {
			return err
		}
	}
	switch {
	case head.snap == nil && applied.snap == nil:
		return s.salvage(ctx, head, applied)
	case applied.snap == nil:
		settled, err := s.lastSettled(head.snap)
		if err != nil {
			return err
		}
		return s.rebuildApplied(ctx, head.snap, settled, applied)
	case head.snap != nil:
		s.head, s.applied = head.snap, applied.snap
		return nil
	}
	return s.backToApplied(ctx, head, applied.snap)
}

// between walks from head down to above and returns the records on the way,
// newest first, without above; nil stands for the beginning. A head that does
// not stand above it in a history of ours is errForeign or errDamaged, and the
// way goes as far as it can be followed. A record of which only the commit is
// whole is left out, where its child shows that it was applied once, so that it
// was not lost as a candidate.
func (s *Store) between(head, above *record.Record) ([]*record.Record, error) {
	floor := 0
	if above != nil {
		floor = above.Index
	}
	var way []*record.Record
	at := head
	for whole := true; at.Index > floor; {
		if whole {
			way = append(way, at)
		}
		if at.Index == 1 {
			return way, nil
		}
		h := plumbing.NewHash(at.Parent)
		parent, err := s.repo.snapshot(h)
		if whole = err == nil; errors.Is(err, errDamaged) && at.OutcomeOf == nil {
			parent, err = s.repo.remains(h, at.Index-1, err)
		}
		if err != nil {
			return way, err
		}
		if parent.Index != at.Index-1 {
			return way, fmt.Errorf("%w: record %d stands on record %d", errForeign, at.Index, parent.Index)
		}
		at = parent
	}
	if above != nil && at.Commit != above.Commit {
		return way, fmt.Errorf("%w: %s does not stand above the applied record %s", errForeign, head.ID, above.ID)
	}
	return way, nil
}

// backToApplied gives up a head that cannot be one. What a person put on the
// branch is kept under a ref; what is damaged cannot be.
func (s *Store) backToApplied(ctx context.Context, head named, applied *record.Record) (err error) {
	back, kept := applied, ""
	found := "the head ref is missing"
	switch {
	case foreign(head.bad):
		found = fmt.Sprintf("the branch %s names %s, which is not the agent's (%v)", s.opts.Environment, head.hash, head.bad)
		if kept, err = s.keep(head.hash); err != nil {
			return err
		}
		if back, err = s.ownTip(ctx, head.hash, applied); err != nil {
			return err
		}
	case errors.Is(head.bad, errTornRef):
		found = "the head ref is torn (" + whatOf(head.bad) + ")"
	case head.bad != nil:
		found = fmt.Sprintf("the head is not whole (%v)", head.bad)
		if head.gone {
			found = fmt.Sprintf("the head ref names %s, which is not there", head.hash)
		}
		if err := s.setLostAside(head.hash); err != nil {
			return err
		}
	}
	if err := s.repo.writeRef(headRef(s.opts.Environment), plumbing.NewHash(back.Commit)); err != nil {
		return err
	}
	s.head, s.applied = back, applied
	did := "the head is the applied record " + back.ID + " again"
	if back != applied {
		did = "the head is " + back.ID + " again, the newest record of ours"
	}
	s.repaired(found, did, kept)
	return nil
}

// ownTip is the newest record of ours at or below tip that stands above
// applied; applied itself if there is none.
func (s *Store) ownTip(ctx context.Context, tip plumbing.Hash, applied *record.Record) (*record.Record, error) {
	const enough = 1_000 // commits that a person stacked on the branch
	for range enough {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		snap, err := s.repo.snapshot(tip)
		if err == nil {
			if _, err = s.between(snap, applied); err == nil {
				return snap, nil
			}
			if snap.Index <= applied.Index {
				return applied, nil
			}
		}
		if !curable(err) {
			return nil, err
		}
		c, err := s.repo.commit(tip)
		if curable(err) || err == nil && len(c.ParentHashes) == 0 {
			return applied, nil
		}
		if err != nil {
			return nil, err
		}
		tip = c.ParentHashes[0]
	}
	return applied, nil
}

// rebuildApplied makes the applied ref name what the records say was applied last.
// That there is none is right as long as the first candidate is open.
func (s *Store) rebuildApplied(ctx context.Context, head, settled *record.Record, applied named) error {
	kept, err := s.keepNamed(ctx, applied)
	if err != nil {
		return err
	}
	s.head, s.applied = head, settled
	if settled == nil && applied.absent() {
		return nil
	}
	found := "the applied ref is missing"
	if applied.bad != nil {
		found = fmt.Sprintf("the applied ref cannot be trusted (%v)", applied.bad)
	}
	if settled == nil {
		if err := s.setRefAside(applied.ref, "untrusted"); err != nil {
			return err
		}
		if err := s.leaveLocked(applied.ref, s.repo.removeRef(ctx, applied.ref)); err != nil {
			return err
		}
		s.repaired(found, "no record is known to be applied; "+head.ID+" is pending", kept)
		return nil
	}
	if err := s.repo.writeRef(applied.ref, plumbing.NewHash(settled.Commit)); err != nil {
		return err
	}
	why := "the newest record that was followed by another and not rejected"
	if s.wasApplied(settled) {
		why = "which was noted to be applied"
	}
	s.repaired(found, "it names "+settled.ID+" again, "+why, kept)
	if _, err := s.between(head, settled); curable(err) { // as for a ref that is whole
		return s.backToApplied(ctx, named{ref: headRef(s.opts.Environment), hash: hashOf(head), bad: err}, settled)
	} else if err != nil {
		return err
	}
	return nil
}

// settleRetried drops a retried ref that does not name the head: it means
// nothing, and may name what is lost.
func (s *Store) settleRetried(ctx context.Context) error {
	n, err := s.look(retriedRef(s.opts.Environment))
	if err != nil || n.absent() {
		return err
	}
	if s.head != nil && n.hash == plumbing.NewHash(s.head.Commit) {
		s.retried = n.hash
		return nil
	}
	kept, err := s.keepNamed(ctx, n)
	if err != nil {
		return err
	}
	switch {
	case kept != "":
		s.repaired(fmt.Sprintf("the retried ref names %s, which is not in the history", n.hash), "removed", kept)
	case errors.Is(n.bad, errTornRef):
		s.repaired("the retried ref is torn ("+whatOf(n.bad)+")", "removed", "")
	}
	return s.leaveLocked(n.ref, s.repo.removeRef(ctx, n.ref))
}

// syncApplied syncs the move of the applied ref. A process that was killed
// between the two leaves a ref that is read here and may not be on the disk; what
// it vouches for is.
//
// Syscalls: openat, fsync, close of the ref and of the directories above it.
func (s *Store) syncApplied(context.Context) error {
	if !s.lock.killed || s.applied == nil {
		return nil
	}
	path := filepath.Join(s.repo.dir, appliedRef(s.opts.Environment))
	paths := []string{path, filepath.Join(s.repo.dir, packedRefs)}
	for dir := filepath.Dir(path); len(dir) >= len(s.repo.dir); dir = filepath.Dir(dir) {
		paths = append(paths, dir)
	}
	return syncPaths(paths, func(string) {}) // it is in one of the files, or in both
}

// inherit takes over what an earlier process committed and did not sync: all
// records above the applied one. That process may have tried to sync them, and
// failed; so they are written again first.
func (s *Store) inherit(context.Context) error {
	if s.head == nil {
		return nil
	}
	c, err := s.repo.commit(plumbing.NewHash(s.head.Commit))
	if err != nil {
		return err
	}
	s.headTime = c.Committer.When
	way, err := s.between(s.head, s.applied)
	if err != nil && !curable(err) {
		return err
	}
	for _, snap := range way {
		hashes, err := s.repo.objectsOf(plumbing.NewHash(snap.Commit))
		if err != nil {
			return err
		}
		for _, h := range hashes {
			s.objects.unsynced = append(s.objects.unsynced, looseFile{hash: h})
		}
		s.objects.newDirs, s.objects.suspect = true, true
	}
	return nil
}
