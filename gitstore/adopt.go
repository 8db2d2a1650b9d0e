package gitstore

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
)

// newLedger returns an empty ledger of this Store's.
func (s *Store) newLedger() *ledger {
	return &ledger{Environment: s.opts.Environment, Instance: s.opts.Instance, First: 1, Facts: map[string][]byte{}}
}

// isOther reports whether the repository is not the one that the journal is about:
// a mirror that was put in its place.
func (r *repo) isOther(l *ledger) bool {
	marker, err := readBounded(filepath.Join(r.dir, markerFile), maxRef)
	return (err == nil || errors.Is(err, fs.ErrNotExist)) && string(marker) != l.Marker
}

// tips reads the records that the refs of the repository name, without the
// journal; where the history begins is not looked for. A head that is not whole
// counts as missing if the applied one is whole; cut is true then, for newer records
// may be lost.
func (r *repo) tips() (v view, cut bool, err error) {
	named := func(ref string) (*record.Record, error) {
		h, err := r.readRef(ref)
		if err != nil || h.IsZero() {
			return nil, err
		}
		return r.snapshot(h)
	}
	head, herr := named(headRef(r.env))
	applied, aerr := named(appliedRef(r.env))
	for _, err := range []error{herr, aerr} {
		if fromDisk(err) {
			return v, false, err
		}
	}
	if applied != nil && (head == nil || head.Index < applied.Index || !r.inHistory(view{head: head, first: 1}, hashOf(applied))) {
		cut, head = head == nil, applied
	}
	if head == nil {
		return v, false, cmp.Or(herr, aerr)
	}
	return view{head, applied, 1}, cut, nil
}

// oldest walks down from head to the oldest record that can be read, or to the
// first that git's file shallow cuts off from the older ones. begin is its commit
// if there were older ones.
func (r *repo) oldest(head *record.Record) (first int, begin plumbing.Hash, err error) {
	if head == nil {
		return 1, begin, nil
	}
	cuts, err := r.readShallow()
	if err != nil {
		return 0, begin, err
	}
	for h, index := hashOf(head), head.Index; ; index-- {
		if index == 1 {
			return 1, plumbing.ZeroHash, nil
		}
		parent, err := r.parent(h)
		if fromDisk(err) {
			return 0, begin, err
		}
		if err == nil && !cuts[h] {
			if _, err = r.commit(parent); fromDisk(err) {
				return 0, begin, err
			}
		}
		if err != nil || cuts[h] {
			return index, h, nil
		}
		h = parent
	}
}

// takeRefs makes a ledger of what the refs of the repository say: an upgrade from
// format 1, a mirror in a new state directory, or a journal that was lost. Where
// there was a history and neither can be read, the new one is lost, see Lost.
func (s *Store) takeRefs(there bool, format int) error {
	s.ledger = s.newLedger()
	if was, err := exists(filepath.Join(s.opts.Dir, "lost")); err != nil || was && format == 1 {
		if err = cmp.Or(err, s.lose("an earlier version of the agent found it so, and nobody resumed")); err != nil {
			return err
		}
	}
	var v view
	var cut bool
	var why error
	if there {
		if v, cut, why = s.repo.tips(); fromDisk(why) {
			return why
		}
	}
	if v.head != nil {
		if v.head.Environment != s.opts.Environment || v.head.Instance != s.opts.Instance {
			s.ledger.Environment, s.ledger.Instance = v.head.Environment, v.head.Instance
			return s.checkIdentity()
		}
		if err := s.inherit(v); err != nil {
			return err
		}
		if format == storeFormat {
			s.repaired("the journal is missing", "it goes on from the refs of the repository: "+idOf(v.head), "")
		}
		if cut && format != 1 || format == storeFormat && s.lock.killed {
			return s.lose("the journal is missing, and newer records may be lost")
		}
		return nil
	}
	had := false
	if there {
		used, err := s.repo.isUsed()
		if err != nil {
			return err
		}
		had = used
	}
	if had {
		if err := s.setRepositoryAside("unreadable", fmt.Sprintf("no record can be read (%v)", why)); err != nil {
			return err
		}
		there = false
	}
	if had || format == storeFormat || format != 0 && !there {
		reason := "the repository is missing"
		if why != nil {
			reason = why.Error()
		} else if had {
			reason = "neither the head nor the applied ref is there"
		}
		if err := s.lose(reason); err != nil {
			return err
		}
		s.repaired("the history cannot be read", "a new one begins, and nothing is applied until agent resume", "")
	}
	if there {
		return s.mark()
	}
	return s.createRepository()
}

// isUsed reports whether anything was ever recorded in the repository, as far as
// one can see: it has a pack, one of our refs, or an object.
func (r *repo) isUsed() (bool, error) {
	packs, err := glob(r.packDir(), "*.pack")
	if err != nil || len(packs) > 0 {
		return len(packs) > 0, err
	}
	for _, ref := range []string{headRef(r.env), appliedRef(r.env)} {
		if h, err := r.readRef(ref); err != nil || !h.IsZero() {
			return true, nil
		}
	}
	loose, err := r.loosePaths()
	return len(loose) > 0, err
}

// inherit makes the ledger say what the repository does, durably: its objects may
// have been copied a moment ago.
func (s *Store) inherit(v view) error {
	if err := syncWhole(s.repo.dir); err != nil {
		return err
	}
	var begin plumbing.Hash
	var err error
	if s.ledger.First, begin, err = s.repo.oldest(v.head); err != nil {
		return err
	}
	if !begin.IsZero() {
		s.ledger.Begin = begin.String()
	}
	for _, rec := range []*record.Record{v.applied, v.head} {
		if rec == nil || s.ledger.Head == rec.Commit {
			continue
		}
		e, err := s.repo.entry(hashOf(rec))
		if err != nil {
			return err
		}
		s.ledger.add(e)
	}
	s.ledger.Packed = len(s.ledger.entries)
	if v.applied != nil {
		s.ledger.Applied = v.applied.Commit
	}
	if retried, err := s.repo.readRef(retriedRef(s.opts.Environment)); err == nil && retried == hashOf(v.head) {
		s.ledger.Retried = s.ledger.Head
	}
	if err := s.writeShallow(""); err != nil {
		return err
	}
	return s.mark()
}

// mark gives the repository a marker, durably.
func (s *Store) mark() error {
	s.ledger.Marker = rand.Text()
	return writeDurable(filepath.Join(s.repo.dir, markerFile), []byte(s.ledger.Marker), 0o644)
}

// takeOther takes another repository that lies in the place of the one that the
// journal is about, if its refs are whole.
func (s *Store) takeOther() (took bool, err error) {
	s.repo = newRepo(s.opts.Dir, s.opts.Environment)
	v, cut, err := s.repo.tips()
	if fromDisk(err) {
		return false, err
	}
	if v.head == nil || v.head.Environment != s.opts.Environment || v.head.Instance != s.opts.Instance {
		s.readFromJournal()
		return false, nil
	}
	facts, empty := s.ledger.Facts, s.ledger.Head == ""
	s.ledger = s.newLedger()
	if s.ledger.Facts = facts; empty { // the history is back that could not be read
		s.ledger.set(lostFact, nil)
	}
	s.repaired("another repository is in the place of this agent's", "taken as it is, from "+idOf(v.head)+" on", "")
	if cut {
		if err := s.lose("the head of the repository that was put back is missing"); err != nil {
			return false, err
		}
	}
	return true, s.inherit(v)
}

// baseAbsent reports whether a commit that the journal's records stand on is
// missing from the repository for certain. A disk that cannot be read, or a pack
// that cannot, proves nothing.
func (s *Store) baseAbsent() (bool, error) {
	for i := range s.ledger.entries {
		e := &s.ledger.entries[i]
		rec, err := s.repo.snapshot(e.commit)
		if err != nil {
			return false, err
		}
		if rec.Parent == "" || e.commit.String() == s.ledger.Begin || s.ledger.find(rec.Parent) != nil {
			continue
		}
		there, err := s.repo.has(plumbing.NewHash(rec.Parent))
		if err == nil && !there && s.repo.packsWhole() {
			return true, nil
		}
	}
	return false, nil
}

// rebuild begins the repository anew with the records that the journal has: those
// that lead to the head, and the applied one.
func (s *Store) rebuild() error {
	s.ledger.Packed, s.ledger.Packs = 0, nil
	s.ledger.First, s.ledger.Begin = 1, ""
	for i, e := range s.ledger.entries { // an applied record far below the others is not one of a run
		rec, err := s.repo.snapshot(e.commit)
		if err != nil {
			return err
		}
		if i+1 < len(s.ledger.entries) {
			next, err := s.repo.snapshot(s.ledger.entries[i+1].commit)
			if err != nil {
				return err
			}
			if next.Parent != rec.Commit {
				s.ledger.Packed = i + 1
			}
		}
	}
	var cuts []plumbing.Hash
	for _, e := range slices.Backward(s.ledger.entries) {
		rec, err := s.repo.snapshot(e.commit)
		if err != nil {
			return err
		}
		if rec.Parent == "" || s.ledger.find(rec.Parent) != nil {
			continue
		}
		cuts = append(cuts, e.commit)
		if s.ledger.Begin == "" { // the newest of them is where the history of the head begins
			s.ledger.First, s.ledger.Begin = rec.Index, rec.Commit
		}
	}
	if err := s.createRepository(); err != nil {
		return err
	}
	return s.repo.setShallow(cuts)
}

// takeNewer takes the history of the repository if it is newer than the journal's: a
// journal that was damaged or copied back, or a backup that was copied while the agent
// ran. A moved applied ref is believed only if the journal lost something.
func (s *Store) takeNewer(head *record.Record, doubtful bool) (took bool, err error) {
	ref, err := s.repo.readRef(headRef(s.opts.Environment))
	if fromDisk(err) {
		return false, err
	}
	if err != nil || ref.IsZero() || ref == hashOf(head) && !doubtful {
		return false, nil
	}
	v, _, err := s.repo.tips()
	if err != nil || v.head == nil || v.head.Environment != s.opts.Environment || v.head.Instance != s.opts.Instance {
		if fromDisk(err) {
			return false, err
		}
		return false, nil
	}
	applied, err := s.named(s.ledger.Applied)
	if err != nil && !errors.Is(err, errDamaged) {
		return false, err
	}
	indexOf := func(rec *record.Record) int {
		if rec == nil {
			return 0
		}
		return rec.Index
	}
	if indexOf(v.head) <= indexOf(head) && (v.head.Commit != s.ledger.Head || indexOf(v.applied) <= indexOf(applied)) {
		return false, nil
	}
	if applied != nil && indexOf(v.applied) < applied.Index && s.repo.inHistory(v, hashOf(applied)) {
		v.applied = applied
	}
	l := s.newLedger()
	l.Facts, l.Packs, l.Proven, l.Retried = s.ledger.Facts, s.ledger.Packs, s.ledger.Proven, s.ledger.Retried
	s.ledger = l
	s.repaired("the repository has newer records than the journal", "taken in: the head is "+idOf(v.head), "")
	return true, s.inherit(v)
}

// entry reads the four objects of a record.
func (r *repo) entry(h plumbing.Hash) (e entry, err error) {
	var contents [4][]byte
	if contents[3], err = r.object(plumbing.CommitObject, h); err != nil {
		return e, err
	}
	c, err := r.commit(h)
	if err != nil {
		return e, err
	}
	if contents[2], err = r.object(plumbing.TreeObject, c.TreeHash); err != nil {
		return e, err
	}
	files, err := r.files(c.TreeHash)
	if err != nil {
		return e, err
	}
	contents[0], contents[1] = files[0], files[1]
	return newEntry(contents), nil
}

// removeStale removes loose files of which a pack has the object: their removal was
// not synced, and a power cut brings them back, empty. What can be read neither here
// nor there is set aside, for git refuses to work beside it.
func (s *Store) removeStale() {
	paths, err := s.repo.loosePaths()
	for h, path := range paths {
		if _, perr := s.repo.packed(plumbing.AnyObject, h); perr == nil {
			err = errors.Join(err, os.Remove(path))
		} else if _, lerr := s.repo.loose(plumbing.AnyObject, h); errors.Is(lerr, errDamaged) {
			kept := filepath.Join(s.opts.Dir, setAsideDir, "object-"+h.String())
			err = errors.Join(err, os.MkdirAll(filepath.Dir(kept), 0o700), os.Rename(path, kept))
		}
	}
	if err != nil {
		s.log.Warn("removing old objects failed", "error", err)
	}
}
