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
	return &ledger{identity: s.identity(), First: 1, Facts: map[string][]byte{}}
}

// isOther reports whether the repository is not the one that the journal is about:
// a mirror that was put in its place.
func (r *repo) isOther(l *ledger) bool {
	marker, err := readBounded(filepath.Join(r.dir, markerFile), maxRef)
	return (err == nil || errors.Is(err, fs.ErrNotExist)) && string(marker) != l.Marker
}

// tips reads the records that the refs of the repository name; where the history
// begins is not looked for. A head that is not whole counts as missing if the applied
// one is whole; cut is true then, for newer records may be lost.
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
	if fromDisk(herr) || fromDisk(aerr) {
		return v, false, errors.Join(herr, aerr)
	}
	if applied != nil && (head == nil || !r.inHistory(view{head: head, first: 1}, hashOf(applied))) {
		cut, head = head == nil, applied
	}
	if head == nil {
		return v, false, cmp.Or(herr, aerr)
	}
	return view{head, applied, 1}, cut, nil
}

// oldest walks down from head to the record that git's file shallow cuts off from the
// older ones. Where it cannot be followed, it is not known to begin later than at 1.
func (r *repo) oldest(head *record.Record) (first place, err error) {
	cuts, err := r.readShallow()
	if err != nil || len(cuts) == 0 || head == nil {
		return place{index: 1}, err
	}
	for first, err = range r.walk(view{head: head, first: 1}) {
		if err != nil || cuts[first.commit] {
			break
		}
	}
	if err != nil && !fromDisk(err) {
		return place{index: 1}, nil
	}
	return first, err
}

// beginLedger makes a ledger where the journal has none: of what the refs say, which is
// an upgrade from format 1, a mirror in a new state directory, or a journal that was
// lost; else of a new history, which is lost if there was one that cannot be read.
func (s *Store) beginLedger(there bool, format int) error {
	s.ledger = s.newLedger()
	was, err := exists(filepath.Join(s.opts.Dir, "lost"))
	if err != nil {
		return err
	}
	if was && format == 1 {
		s.lose("an earlier version of the agent found it so, and nobody resumed")
	}
	v, cut, why := view{}, false, errors.New("the repository is missing")
	if there {
		if v, cut, why = s.repo.tips(); fromDisk(why) {
			return why
		}
		why = cmp.Or(why, errors.New("neither the head nor the applied ref is there"))
	}
	if v.head != nil {
		return s.beginFrom(v, cut, format)
	}
	used, err := s.repo.isUsed()
	if used && format == 0 { // so that a kill behind the next step does not make it a new directory
		err = s.writeFormat()
	}
	if err == nil && used {
		err = s.setRepositoryAside("unreadable", fmt.Sprintf("no record can be read (%v)", why))
	}
	if err == nil && (used || format == storeFormat || format != 0 && !there) {
		s.repaired("the history cannot be read", "a new one begins, and nothing is applied until agent resume", "")
		s.lose(why.Error())
	}
	switch {
	case err != nil:
		return err
	case there && !used:
		return s.mark()
	}
	return s.createRepository("")
}

// beginFrom makes the ledger of what the refs say; cut is as of tips.
func (s *Store) beginFrom(v view, cut bool, format int) error {
	if !s.isOwn(v.head) {
		s.ledger.identity = identity{v.head.Environment, v.head.Instance}
		return s.checkIdentity()
	}
	if format == storeFormat {
		s.repaired("the journal is missing", "it goes on from the refs of the repository: "+idOf(v.head), "")
		cut = cut || s.lock.killed || s.lock.head != "" && s.lock.head != v.head.Commit
	}
	if cut && format != 1 {
		s.lose("the journal is missing, and newer records may be lost")
	}
	return s.inherit(v)
}

func (s *Store) isOwn(rec *record.Record) bool {
	return rec != nil && s.identity() == identity{rec.Environment, rec.Instance}
}

// isUsed reports whether anything was ever recorded in the repository, as far as
// one can see: it has a pack, an object, or one of our refs.
func (r *repo) isUsed() (bool, error) {
	packs, err := glob(r.packDir(), "*.pack")
	loose, lerr := r.loosePaths()
	used := len(packs) > 0 || len(loose) > 0
	for _, ref := range []string{headRef(r.env), appliedRef(r.env)} {
		h, rerr := r.readRef(ref)
		used = used || rerr != nil || !h.IsZero()
	}
	return used, errors.Join(err, lerr)
}

// inherit makes the ledger say what the repository does, durably: its objects may
// have been copied a moment ago.
func (s *Store) inherit(v view) error {
	if err := syncWhole(s.repo.dir); err != nil {
		return err
	}
	oldest, err := s.repo.oldest(v.head)
	if err != nil {
		return err
	}
	if s.ledger.First = oldest.index; oldest.index > 1 {
		s.ledger.Begin = oldest.commit.String()
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
	if v.applied != nil {
		s.ledger.Applied = v.applied.Commit
	}
	if retried, err := s.repo.readRef(retriedRef(s.opts.Environment)); err == nil && retried == hashOf(v.head) { // of format 1
		s.ledger.Retried = s.ledger.Head
	}
	if err := s.writeShallow(s.ledger.Begin); err != nil {
		return err
	}
	return s.mark()
}

// mark gives the repository a marker, durably.
func (s *Store) mark() error {
	s.ledger.Marker = rand.Text()
	return writeDurable(filepath.Join(s.repo.dir, markerFile), []byte(s.ledger.Marker), 0o644)
}

// takeRefs takes the history that the refs name in place of the journal's, if it is
// that of another repository, or newer: the journal was damaged or copied back, or a
// backup was copied while the agent ran.
func (s *Store) takeRefs(head *record.Record, doubtful bool) (took bool, err error) {
	other := s.repo.isOther(s.ledger)
	ref, err := s.repo.readRef(headRef(s.opts.Environment))
	if fromDisk(err) {
		return false, err
	}
	if isMoved := err == nil && !ref.IsZero() && ref != hashOf(head); !other && !doubtful && !isMoved {
		return false, nil
	}
	repo := newRepo(s.opts.Dir, s.opts.Environment) // without the journal
	v, cut, err := repo.tips()
	if fromDisk(err) {
		return false, err
	}
	if !s.isOwn(v.head) {
		return false, nil
	}
	was := s.ledger
	if other {
		s.repo = repo
		s.repaired("another repository is in the place of this agent's", "taken as it is, from "+idOf(v.head)+" on", "")
	} else {
		applied, err := s.repo.named(was.Applied)
		isNewer := number(v.head) > number(head) || v.head.Commit == was.Head && number(v.applied) > number(applied)
		if fromDisk(err) {
			return false, err
		}
		if !isNewer {
			return false, nil
		}
		if number(v.applied) < number(applied) && s.repo.inHistory(v, hashOf(applied)) {
			v.applied = applied
		}
		s.repaired("the repository has newer records than the journal", "taken in: the head is "+idOf(v.head), "")
	}
	s.ledger = s.newLedger()
	s.ledger.Facts, s.ledger.Packs, s.ledger.Retried = was.Facts, was.Packs, was.Retried
	if other && was.Head == "" { // the history is back that could not be read
		s.ledger.set(lostFact, nil)
	}
	if other && cut {
		s.lose("the head of the repository that was put back is missing")
	}
	return true, s.inherit(v)
}

// number is the index of a record, 0 if there is none.
func number(rec *record.Record) int {
	if rec == nil {
		return 0
	}
	return rec.Index
}

// lowest lists the records of the journal that stand on one which it does not have, the
// newest first.
func (s *Store) lowest() (records []*record.Record, err error) {
	objects := s.ledger.objects()
	for _, e := range slices.Backward(s.ledger.entries) {
		rec, err := s.repo.snapshot(e.commit)
		if err != nil {
			return nil, err
		}
		if _, there := objects[plumbing.NewHash(rec.Parent)]; rec.Parent != "" && !there {
			records = append(records, rec)
		}
	}
	return records, nil
}

// baseAbsent reports whether a commit that the journal's records stand on is
// missing from the repository for certain. A disk that cannot be read, or a pack
// that cannot, proves nothing.
func (s *Store) baseAbsent() (bool, error) {
	records, err := s.lowest()
	for _, rec := range records {
		_, serr := s.repo.stored(plumbing.CommitObject, plumbing.NewHash(rec.Parent))
		if rec.Index > s.ledger.First && errors.Is(serr, errMissing) && s.repo.packsWhole() {
			return true, nil
		}
	}
	return false, err
}

// rebuild begins the repository anew with the records that the journal has: those
// that lead to the head, and the applied one.
func (s *Store) rebuild() error {
	s.ledger.Packed, s.ledger.Packs = 0, nil
	s.ledger.First, s.ledger.Begin = 1, ""
	records, err := s.lowest()
	if err != nil {
		return err
	}
	shallow := ""
	for i, rec := range records {
		if shallow += rec.Commit + "\n"; i == 0 { // where the history of the head begins
			s.ledger.First, s.ledger.Begin = rec.Index, rec.Commit
		}
	}
	return s.createRepository(shallow)
}

// carryHold gives the ledger a note with what the record before held, where another
// history took the place of the one with that record: what an operator holds is not
// forgotten by putting back a backup. Of an applied change this is also what ended with
// it: which of that did, the schema knows, and not the store.
func (s *Store) carryHold(before *record.Record) error {
	if before == nil || hashOf(before) == hashOf(s.head) || s.repo.inHistory(view{head: s.head, first: 1}, hashOf(before)) {
		return nil
	}
	s.repaired(fmt.Sprintf("another history is in the place of the one at %s", idOf(before)), "it goes on from "+idOf(s.head), "")
	switch {
	case s.head == nil:
		s.lose(fmt.Sprintf("it was replaced by an empty one; it stood at %s", idOf(before)))
		return nil
	case before.Held == nil:
		return nil
	case s.applied == nil:
		s.lose("it was replaced by one without " + idOf(before) + ", which had a hold or a pause")
		return nil
	}
	held, base := *before.Held, s.applied
	held.Entries = slices.Clone(held.Entries)
	if own := s.head.Held; own != nil { // it stays in force, too
		if own.Paused && !held.Paused {
			held.Paused, held.By, held.Reason, held.Since, held.Requester = true, own.By, own.Reason, own.Since, own.Requester
		}
		for _, e := range own.Entries {
			if !slices.ContainsFunc(held.Entries, func(h record.Entry) bool { return h.String() == e.String() }) {
				held.Entries = append(held.Entries, e)
			}
		}
	}
	note := record.Record{
		Kind: record.KindNote, Description: "Carry over the hold of another history", Held: &held, Config: base.Config,
		Source: base.Source, Provenance: base.Provenance, Experiments: base.Experiments, RollbackPoint: base.RollbackPoint,
	}
	if hashOf(s.head) != hashOf(base) {
		note.OutcomeOf = &record.Settlement{ID: s.head.ID, Outcome: record.Superseded}
	}
	snap, e, err := s.prepare(note)
	if err != nil {
		return fmt.Errorf("carry over a hold: %w", err)
	}
	s.add(snap, e)
	return nil
}

// removeStale removes loose files of which a pack has the object: their removal was
// not synced, and a power cut brings them back, empty. What can be read neither here
// nor there is set aside, for git refuses to work beside it.
func (s *Store) removeStale() {
	objects := s.ledger.objects()
	paths, err := s.repo.loosePaths()
	s.repo.mu.Lock()
	defer s.repo.mu.Unlock()
	err = errors.Join(err, s.repo.packs.list(s.repo.packDir()))
	for h, path := range paths {
		if _, perr := s.repo.searchPacks(plumbing.AnyObject, h); perr == nil { // once: most are in none
			err = errors.Join(err, os.Remove(path))
		} else if _, lerr := s.repo.loose(plumbing.AnyObject, h); !errors.Is(lerr, errDamaged) {
			continue
		} else if _, ours := objects[h]; ours { // it is written again
			err = errors.Join(err, os.Remove(path))
		} else {
			if lerr = s.setTornAside(path); lerr == nil {
				lerr = os.Remove(path)
			}
			err = errors.Join(err, lerr)
		}
	}
	if err != nil {
		s.log.Warn("removing old objects failed", "error", err)
	}
}
