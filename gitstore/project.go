package gitstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/objfile"

	"dtesn-agent/schema/problem"
)

// A projection makes the last append durable and then writes what the repository lacks,
// beside the caller: git never gets what the journal does not have durably.
type projection struct {
	durable, done   chan struct{} // closed when the journal is synced, and at the end
	synced, written error         // of the journal, of the repository
	entries         []entry       // what is to be written
	found           foreignTip
}

// A foreignTip is what somebody else made the branch name, and the ref that keeps it;
// "" for a record.
type foreignTip struct {
	hash plumbing.Hash
	kept string
}

// project begins a projection of all that is unwritten, and of the refs.
func (s *Store) project() {
	p := &projection{durable: make(chan struct{}), done: make(chan struct{}), entries: s.unwritten}
	s.projection = p
	repo, journal, lock, v, stamp, all := s.repo, &s.journal, s.lock, s.view(), s.stamp(), s.ledger.entries
	go func() {
		defer close(p.done)
		p.synced = journal.sync()
		close(p.durable)
		switch {
		case p.synced != nil:
			return
		case !lock.stands():
			p.written = errAway
			return
		}
		if p.written = repo.writeEntries(p.entries); p.written == nil {
			p.found, p.written = repo.moveRefs(v, all, stamp)
		}
	}()
}

// join waits for the projection. The error is the journal's: what the repository lacks
// is written later.
func (s *Store) join() error {
	if p := s.projection; p != nil {
		<-p.done
		s.projection = nil
		if p.synced == nil {
			s.projected(p.entries, p.written, p.found)
		}
	}
	if !s.journal.failed || s.lock == nil || s.reload {
		return nil
	}
	if err := s.sync(); err != nil { // in a new segment
		return err
	}
	return s.write()
}

func (s *Store) projected(entries []entry, err error, found foreignTip) {
	if err != nil {
		if s.behind == nil {
			s.log.Warn("git repository behind the journal", "error", err)
		}
		s.behind = err
		return
	}
	switch again := "it names " + idOf(s.head) + " again"; {
	case found.kept != "":
		s.repaired(fmt.Sprintf("somebody else's commit %s on the branch", found.hash), again, found.kept)
	case !found.hash.IsZero() && s.opened && !s.reload && s.behind == nil:
		s.repaired(fmt.Sprintf("the branch was moved to %s", found.hash), again, "")
	}
	if s.behind != nil {
		s.log.Info("git repository caught up", "records", len(entries))
	}
	s.behind = nil
	s.unsynced = append(s.unsynced, entries...)
	s.unwritten = s.unwritten[len(entries):]
}

// write projects all that the repository lacks, and waits for it.
func (s *Store) write() error {
	s.project()
	return s.join()
}

// writeEntries writes those objects of records that are not whole, as loose files.
func (r *repo) writeEntries(entries []entry) error {
	for i := range entries {
		for _, o := range entries[i].objects {
			if err := r.writeLoose(o); err != nil {
				return fmt.Errorf("write %s %s: %w", o.t, o.hash, err)
			}
		}
	}
	return nil
}

func (r *repo) writeLoose(o gitObject) error {
	path := r.objectPath(o.hash)
	_, err := r.loose(o.t, o.hash)
	switch {
	case err == nil:
		now := time.Now() // as git does: a young object is not pruned
		_ = os.Chtimes(path, now, now)
		return nil
	case fromDisk(err):
		return err
	}
	var b bytes.Buffer
	w := objfile.NewWriter(&b)
	err = w.WriteHeader(o.t, int64(len(o.content)))
	if err == nil {
		_, err = w.Write(o.content)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	return replace(r.dir, path, b.Bytes(), objectPerm, false)
}

// moveRefs makes the refs name the records of v. If the branch does not name the record
// before the head, somebody else moved it: then git gets what it lacks of all.
func (r *repo) moveRefs(v view, all []entry, stamp string) (tip foreignTip, err error) {
	if v.head == nil {
		return tip, nil
	}
	found, err := r.readRef(headRef(r.env))
	if fromDisk(err) {
		return tip, err
	}
	if head := hashOf(v.head); err != nil || found != head {
		if err != nil || found.String() != v.head.Parent {
			if tip, err = r.displace(v, found, all, stamp); err != nil {
				return tip, err
			}
		}
		if err := r.writeRef(headRef(r.env), head); err != nil {
			return tip, err
		}
	}
	if v.applied == nil {
		return tip, nil
	}
	if found, err := r.readRef(appliedRef(r.env)); err == nil && found == hashOf(v.applied) {
		return tip, nil
	}
	return tip, r.writeRef(appliedRef(r.env), hashOf(v.applied))
}

// displace prepares for the branch to be moved away from found, which gets a ref below
// refs/dtesn/set-aside if it is no record of the history.
func (r *repo) displace(v view, found plumbing.Hash, all []entry, stamp string) (tip foreignTip, err error) {
	missing := slices.DeleteFunc(slices.Clone(all), func(e entry) bool { return r.hasEntry(&e) })
	if err := r.writeEntries(missing); err != nil {
		return tip, err
	}
	if _, err := r.stored(plumbing.AnyObject, found); errors.Is(err, errDamaged) { // it names nothing
		return tip, nil
	} else if fromDisk(err) {
		return tip, err
	}
	if r.inHistory(v, found) {
		return foreignTip{hash: found}, nil
	}
	refs, _ := r.foreignRefs()
	for kept, h := range refs {
		if h == found && strings.HasPrefix(kept, setAsideRefs+"/") {
			return foreignTip{found, kept}, nil
		}
	}
	kept := setAsideRefs + "/" + stamp
	if err := r.writeRef(kept, found); err != nil {
		return tip, err
	}
	path := filepath.Join(r.dir, kept)
	return foreignTip{found, kept}, syncPaths([]string{path, filepath.Dir(path)})
}

// hasEntry reports whether git has all objects of an entry, whole.
func (r *repo) hasEntry(e *entry) bool {
	for _, o := range e.objects {
		if _, err := r.stored(o.t, o.hash); err != nil {
			return false
		}
	}
	return true
}

// writeMissing writes those of the entries again that git lacks: a person's
// `git gc --prune=now` removes what no ref named when it began.
func (s *Store) writeMissing(entries []entry) error {
	for _, e := range entries {
		isPending := slices.ContainsFunc(s.unwritten, func(u entry) bool { return u.commit == e.commit })
		if !isPending && !s.repo.hasEntry(&e) {
			s.unwritten = append(s.unwritten, e)
		}
	}
	if s.behind == nil && len(s.unwritten) == 0 {
		return nil
	}
	return s.write()
}

// Prepare does what can be done while nobody waits: a checkpoint, pruning, and a look
// whether the repository still has the newest records. target is the record that a
// rollback without an id goes to, which pruning keeps; without one nothing is pruned.
func (s *Store) Prepare(ctx context.Context, target string) {
	if !s.Holding() || s.join() != nil || s.repo.isOther(s.ledger) {
		return
	}
	s.checkpointIfDue()
	if err := s.prune(ctx, target); err != nil {
		s.log.Warn("pruning failed", "error", err)
	}
	list := s.ledger.unpacked()
	if err := s.writeMissing(list[max(0, len(list)-8):]); err != nil {
		s.log.Warn("journal cannot be written", "error", err)
	}
}

// Probe tries to write into the state directory, reads one that was away or was replaced
// anew, so that Head and Applied may be others, and brings git up to date and onto disk.
func (s *Store) Probe(ctx context.Context) error {
	if _, err := s.hold(ctx); err != nil {
		return err
	}
	err := s.join()
	if err == nil {
		var tmp string
		if tmp, err = writeTemp(s.opts.Dir, []byte("probe\n"), 0o600, false); err == nil {
			err = os.Remove(tmp)
		}
	}
	if err == nil {
		err = s.mendJournal()
	}
	if err == nil {
		if s.mendError != nil {
			s.mend()
		}
		s.checkpointIfDue()
		err = s.writeMissing(s.ledger.unpacked())
	}
	if err == nil {
		err = s.write() // the refs, too
	}
	if err != nil {
		return stateError("write into", s.opts.Dir, err)
	}
	if err := s.syncProjection(); err != nil {
		s.projected(nil, err, foreignTip{})
	}
	return nil
}

// syncProjection makes what was written to git durable, unless git is behind.
func (s *Store) syncProjection() error {
	if len(s.unsynced) == 0 || s.behind != nil {
		return nil
	}
	paths := map[string]bool{s.repo.objects(): true}
	for _, e := range s.unsynced {
		for _, o := range e.objects {
			path := s.repo.objectPath(o.hash)
			paths[path], paths[filepath.Dir(path)] = true, true
		}
	}
	if err := syncPaths(slices.AppendSeq(s.repo.refPaths(), maps.Keys(paths))); err != nil {
		s.torn = true
		return fmt.Errorf("sync the repository: %w", err)
	}
	s.unsynced = nil
	return nil
}

// stamp is the time as names of set-aside files and refs have it: no two are equal.
func (s *Store) stamp() string { return s.opts.Now().UTC().Format("20060102T150405.000000000Z") }

// ready makes sure that the caller may write: as stands, and no projection runs.
func (s *Store) ready(ctx context.Context) error {
	if err := s.stands(ctx); err != nil {
		return err
	}
	return s.join()
}

// stands makes sure that the state directory is the one that was locked.
func (s *Store) stands(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	anew, err := s.hold(ctx)
	if err == nil && anew {
		err = problem.New("", fmt.Errorf("the history in %s was replaced while the agent ran; it was read anew, from %s on", s.repo.dir, idOf(s.head)), "")
	}
	return err
}
