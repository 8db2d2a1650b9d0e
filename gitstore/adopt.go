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
// journal. A head that is not whole counts as missing if the applied one is.
func (r *repo) tips() (v view, err error) {
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
			return v, err
		}
	}
	if applied != nil && (head == nil || head.Index < applied.Index || !r.inHistory(view{head: head, first: 1}, hashOf(applied))) {
		head = applied
	}
	if head == nil {
		return v, cmp.Or(herr, aerr)
	}
	v = view{head: head, applied: applied}
	v.first, _, err = r.oldest(head)
	return v, err
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
	var why error
	if there {
		if v, why = s.repo.tips(); fromDisk(why) {
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
			if s.lock.killed {
				return s.lose("the journal is missing after a stop that was not clean, and newer records may be lost")
			}
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
// one can see: it has a pack, a ref, or more objects than a first record has.
func (r *repo) isUsed() (bool, error) {
	packs, err := glob(filepath.Join(r.objects(), "pack"), "*.pack")
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
	v, err := s.repo.tips()
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

// takeNewer takes whole records that the refs name and the journal does not have:
// a journal that was damaged, or a backup that was copied while the agent ran.
func (s *Store) takeNewer() (took bool, err error) {
	ref, err := s.repo.readRef(headRef(s.opts.Environment))
	if fromDisk(err) {
		return false, err
	}
	if err == nil && !ref.IsZero() && ref.String() != s.ledger.Head {
		newer, err := s.above(ref)
		if err != nil {
			return false, err
		}
		for _, e := range newer {
			s.ledger.add(e)
			took = true
		}
	}
	s.readFromJournal()
	head, err := s.named(s.ledger.Head)
	if err != nil || head == nil {
		return took, err
	}
	applied, err := s.named(s.ledger.Applied)
	if err != nil {
		return took, err
	}
	ref, err = s.repo.readRef(appliedRef(s.opts.Environment))
	if err == nil && !ref.IsZero() && ref != hashOf(applied) {
		if _, index, lerr := s.repo.link(ref); lerr == nil && (applied == nil || index > applied.Index) && s.repo.inHistory(view{head: head, first: 1}, ref) {
			e, eerr := s.repo.entry(ref)
			if eerr == nil {
				if s.ledger.find(ref.String()) == nil {
					s.ledger.entries = slices.Insert(s.ledger.entries, 0, e)
					s.ledger.Packed++
				}
				s.ledger.Applied, took = ref.String(), true
			}
		}
	}
	if took {
		s.repaired("the repository has newer records than the journal", "taken in: the head is "+idOf(head), "")
	}
	return took, nil
}

// above returns the records from the journal's head, which is not one of them, up
// to a commit; none if that does not stand on the head or is not whole.
func (s *Store) above(tip plumbing.Hash) (newer []entry, err error) {
	const most = 1_000
	for h := tip; len(newer) < most; {
		rec, err := s.repo.snapshot(h)
		if err != nil {
			if fromDisk(err) {
				return nil, err
			}
			return nil, nil
		}
		e, err := s.repo.entry(h)
		if err != nil || rec.Environment != s.opts.Environment || rec.Instance != s.opts.Instance {
			return nil, err
		}
		newer = append(newer, e)
		if rec.Parent == s.ledger.Head {
			slices.Reverse(newer)
			return newer, nil
		}
		if rec.Parent == "" {
			return nil, nil
		}
		h = plumbing.NewHash(rec.Parent)
	}
	return nil, nil
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
