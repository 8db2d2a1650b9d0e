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
	entries         []entry       // what is written
	// found says what the branch named in place of ours; kept is the ref that keeps it now.
	found, kept string
}

// project begins a projection of entries, or of all that the repository lacks if it is
// behind, and of the refs.
func (s *Store) project(entries ...entry) {
	if s.behind != nil {
		entries = s.repo.lacking(s.ledger.entries)
	}
	p := &projection{durable: make(chan struct{}), done: make(chan struct{}), entries: entries}
	s.projection = p
	repo, journal, lock, v, aside, all := s.repo, &s.journal, s.lock, s.view(), setAsideRefs+"/"+s.stamp(), s.ledger.entries
	go func() {
		defer close(p.done)
		p.synced = journal.sync()
		close(p.durable)
		switch {
		case p.synced != nil:
			p.written = p.synced
		case !lock.stands():
			p.written = errAway
		default:
			if p.written = repo.writeEntries(entries); p.written == nil {
				p.written = p.moveRefs(repo, v, all, aside)
			}
		}
	}()
}

// join waits for the projection. The error is the journal's: what the repository lacks
// is written later.
func (s *Store) join() error {
	if p := s.projection; p != nil {
		<-p.done
		s.projection = nil
		s.projected(p)
	}
	if !s.journal.failed || s.lock == nil || s.reload {
		return nil
	}
	if err := s.sync(); err != nil { // in a new segment
		return err
	}
	return s.write()
}

func (s *Store) projected(p *projection) {
	if p.written != nil {
		s.setBehind(p.written)
		return
	}
	if p.kept != "" || p.found != "" && !s.reload && s.behind == nil {
		s.repaired(p.found, "it names "+idOf(s.head)+" again", p.kept)
	}
	if s.behind != nil {
		s.log.Info("git repository caught up")
	}
	s.behind, s.unsynced = nil, append(s.unsynced, p.entries...)
}

func (s *Store) setBehind(err error) {
	if s.behind == nil {
		s.log.Warn("git repository behind the journal", "error", err)
	}
	s.behind = err
}

// write projects entries and waits for it.
func (s *Store) write(entries ...entry) error {
	s.project(entries...)
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
	return r.place(path, b.Bytes(), objectPerm)
}

// moveRefs makes the refs name the records of v. If the branch does not name the record
// before the head, somebody else moved it: then git gets what it lacks of all.
func (p *projection) moveRefs(r *repo, v view, all []entry, aside string) error {
	if v.head == nil {
		return nil
	}
	h, err := r.readRef(headRef(r.env))
	if fromDisk(err) {
		return err
	}
	if err != nil || h != hashOf(v.head) {
		if err != nil || h.String() != v.head.Parent {
			if err := p.displace(r, v, h, all, aside); err != nil {
				return err
			}
		}
		if err := r.writeRef(headRef(r.env), hashOf(v.head)); err != nil {
			return err
		}
	}
	h, err = r.readRef(appliedRef(r.env))
	if v.applied == nil || err == nil && h == hashOf(v.applied) {
		return nil
	}
	return r.writeRef(appliedRef(r.env), hashOf(v.applied))
}

// displace prepares for the branch to be moved away from h, which gets the ref aside if
// it is no record of the history.
func (p *projection) displace(r *repo, v view, h plumbing.Hash, all []entry, aside string) error {
	if err := r.writeEntries(r.lacking(all)); err != nil {
		return err
	}
	_, err := r.stored(plumbing.AnyObject, h)
	if errors.Is(err, errDamaged) { // it names nothing
		return nil
	}
	if fromDisk(err) {
		return err
	}
	if r.inHistory(v, h) {
		p.found = "the branch was moved to " + h.String()
		return nil
	}
	p.found, p.kept = "somebody else's commit "+h.String()+" on the branch", aside
	refs, _ := r.foreignRefs()
	for ref, named := range refs {
		if named == h && strings.HasPrefix(ref, setAsideRefs+"/") {
			p.kept = ref
			return nil
		}
	}
	if err := r.writeRef(aside, h); err != nil {
		return err
	}
	path := filepath.Join(r.dir, aside)
	return syncPaths([]string{path, filepath.Dir(path)})
}

// lacking returns those of the entries of which git does not have all objects, whole: a
// person's `git gc --prune=now` removes what no ref named when it began.
func (r *repo) lacking(entries []entry) []entry {
	return slices.DeleteFunc(slices.Clone(entries), func(e entry) bool {
		return !slices.ContainsFunc(e.objects[:], func(o gitObject) bool {
			_, err := r.stored(o.t, o.hash)
			return err != nil
		})
	})
}

// Prepare does what can be done while nobody waits: a checkpoint, pruning, and a look
// whether the repository still has the newest records. target is the record that a
// rollback without an id goes to, which pruning keeps; without one nothing is pruned.
func (s *Store) Prepare(ctx context.Context, target string) {
	if !s.Holding() || s.join() != nil || s.repo.isOther(s.ledger) {
		return
	}
	s.advanceCheckpoint()
	if err := s.prune(ctx, target); err != nil {
		s.log.Warn("pruning failed", "error", err)
	}
	list := s.ledger.unpacked()
	if missing := s.repo.lacking(list[max(0, len(list)-8):]); len(missing) > 0 || s.behind != nil {
		if err := s.write(missing...); err != nil {
			s.log.Warn("journal cannot be written", "error", err)
		}
	}
	s.repo.makeSpares()
}

// Probe tries to write into the state directory, reads one that was away or was replaced
// anew, so that Head and Applied may be others, and brings git up to date and onto disk.
func (s *Store) Probe(ctx context.Context) error {
	if _, err := s.reacquire(ctx); err != nil {
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
		s.advanceCheckpoint()
		err = s.write(s.repo.lacking(s.ledger.unpacked())...)
	}
	if err != nil {
		return stateError("write into", s.opts.Dir, err)
	}
	if err := s.syncProjection(); err != nil {
		s.setBehind(err)
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
	anew, err := s.reacquire(ctx)
	if err == nil && anew {
		err = problem.New("", fmt.Errorf("the history in %s was replaced while the agent ran; it was read anew, from %s on", s.repo.dir, idOf(s.head)), "")
	}
	return err
}
