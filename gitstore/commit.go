package gitstore

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"

	"dtesn-agent/gitstore/record"
)

// Commit appends rec to the head. It gives rec its Format, Index, ID,
// Timestamp, Commit and Parent, makes foreign text one bounded line, and
// returns the whole, which is shared and must not be changed. A kill of the
// process after Commit returned cannot lose the record; a power cut cannot lose
// a revert or a note. After an error Head says what truly stands.
//
// The point of no return is the rename of the head ref. A crash before it
// leaves objects that nothing names; after it, the record stands.
//
// Syscalls: those of stillOurs; newfstatat of each object of the head, see
// lookAgain; those of objectWriter.put for two blobs, a tree
// and a commit; then openat, write, close of the
// ref's temporary file and renameat, which os.Rename begins with newfstatat. For
// a revert or a note the objects, their directories and the temporary file are
// synced before the rename, and the ref's directory after it; then newfstatat of
// each object, see lookAgain.
func (s *Store) Commit(ctx context.Context, rec record.Record) (*record.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	if err := s.stillOurs(ctx); err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	snap, err := s.prepare(rec)
	if err == nil {
		err = s.lookAtHead()
	}
	if err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	mark := len(s.objects.unsynced)
	durable := !snap.Kind.Candidate()
	mayUseReserve := snap.Kind == record.KindRevert || snap.Kind == record.KindRollback
	var dirs []string
	var files []looseFile
	err = s.withReserve(mayUseReserve, func() (err error) {
		if dirs, files, err = s.append(snap, durable); full(err) {
			s.objects.giveBack(mark)
		}
		if err != nil {
			s.objects.forget(mark)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", snap.ID, err)
	}
	s.repo.cache.put(plumbing.NewHash(snap.Commit), snap)
	s.head, s.headTime, s.headFiles = snap, s.commitTime, files
	if !durable {
		return snap, nil
	}
	err = s.withReserve(mayUseReserve, func() error {
		if err := syncPaths(dirs, nil); err != nil {
			return err
		}
		return s.settled()
	})
	if err != nil {
		s.objects.suspect = true // Confirm writes the ref again
		return nil, fmt.Errorf("commit %s: it is the head, but may not be on the disk: %w", snap.ID, err)
	}
	return snap, nil
}

// append writes the record's objects and moves the head ref to its commit. The
// directories it returns make the move durable when they are synced; the files
// are those of the objects.
func (s *Store) append(snap *record.Record, durable bool) (dirs []string, files []looseFile, err error) {
	mark := len(s.objects.unsynced)
	h, err := s.writeObjects(snap)
	if err != nil {
		return nil, nil, err
	}
	files = slices.Clone(s.objects.unsynced[mark:])
	snap.Commit = h.String()
	tmp, err := s.repo.tempRef(h)
	if err != nil {
		return nil, nil, err
	}
	if durable {
		if err := s.objects.sync(tmp); err != nil {
			_ = os.Remove(tmp)
			return nil, nil, err
		}
	}
	dirs, err = s.repo.placeRef(tmp, headRef(s.opts.Environment))
	return dirs, files, err
}

// prepare gives a record all that is the store's to give, and checks that it
// can follow the head.
func (s *Store) prepare(rec record.Record) (*record.Record, error) {
	snap := cleanse(rec)
	head := s.head
	switch {
	case snap.Environment != "" && snap.Environment != s.opts.Environment:
		return nil, fmt.Errorf("a record of environment %q into the history of %q", snap.Environment, s.opts.Environment)
	case snap.Instance != "" && snap.Instance != s.opts.Instance:
		return nil, fmt.Errorf("a record of instance %q into the history of %q", snap.Instance, s.opts.Instance)
	case !snap.Kind.Candidate() && (snap.Kind != record.KindRevert && snap.Kind != record.KindNote || head == nil):
		return nil, fmt.Errorf("a record of kind %q cannot follow %s", snap.Kind, idOf(head))
	case snap.OutcomeOf != nil && (head == nil || snap.OutcomeOf.ID != head.ID || !settles(snap.OutcomeOf.Outcome)):
		return nil, fmt.Errorf("the outcome %q of %q cannot be said by a child of %s", snap.OutcomeOf.Outcome, snap.OutcomeOf.ID, idOf(head))
	}
	now := s.opts.Now()
	if now.Unix() < 0 {
		now = time.Unix(0, 0)
	}
	snap.Format = record.FormatOf(snap.Config)
	snap.Environment, snap.Instance = s.opts.Environment, s.opts.Instance
	snap.Index, snap.Parent = 1, ""
	if head != nil {
		snap.Index, snap.Parent = head.Index+1, head.Commit
	}
	snap.ID, snap.Timestamp = formatID(now.Unix(), snap.Index), record.Unix(now)
	if snap.AgentVersion == "" {
		snap.AgentVersion = oneLine(s.opts.AgentVersion, maxLine)
	}
	if snap.Description == "" {
		snap.Description = subject(&snap, s.headSubject())
	}
	if o := snap.OutcomeOf; o != nil {
		snap.OutcomeOf = &record.Settlement{ID: o.ID, Outcome: o.Outcome}
	}
	if uid := snap.RequestedBy; uid != nil {
		u := *uid
		snap.RequestedBy = &u
	}
	return &snap, nil
}

func idOf(head *record.Record) string {
	if head == nil {
		return "an empty history"
	}
	return string(head.Kind) + " " + head.ID
}

func (s *Store) headSubject() string {
	if s.head == nil {
		return ""
	}
	return s.head.Description
}

// writeObjects writes the blobs, the tree and the commit of a record, in this
// order, so that nothing names what is not there.
func (s *Store) writeObjects(snap *record.Record) (plumbing.Hash, error) {
	text, err := encodeSnapshot(snap)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	parameters, err := s.objects.put(plumbing.BlobObject, snap.Config.YAML())
	if err != nil {
		return plumbing.ZeroHash, err
	}
	story, err := s.objects.put(plumbing.BlobObject, text)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	tree, err := s.putEncoded(&object.Tree{Entries: []object.TreeEntry{
		{Name: parametersFile, Mode: filemode.Regular, Hash: parameters},
		{Name: snapshotFile, Mode: filemode.Regular, Hash: story},
	}})
	if err != nil {
		return plumbing.ZeroHash, err
	}
	return s.putEncoded(s.commitObject(snap, tree))
}

// commitObject is the record's commit. Its times never go back behind the
// parent's, though the clock may: the id and snapshot.json keep the clock's.
func (s *Store) commitObject(snap *record.Record, tree plumbing.Hash) *object.Commit {
	when := time.Unix(int64(snap.Timestamp), 0).UTC()
	if s.head != nil && s.headTime.After(when) {
		when = s.headTime
	}
	s.commitTime = when
	committer := object.Signature{Name: agentName, Email: agentName + "@" + mailHost(snap.Instance), When: when}
	author := committer
	// A revert or a note is the agent's own doing, whoever wrote the state that
	// it repeats.
	if name, mail, ok := signature(snap.Source.Author); ok && snap.Kind == record.KindChange {
		author = object.Signature{Name: name, Email: mail, When: when}
	}
	c := &object.Commit{
		Author: author, Committer: committer, TreeHash: tree,
		Message: message(snap, subject(snap, s.headSubject())),
	}
	if snap.Parent != "" {
		c.ParentHashes = []plumbing.Hash{plumbing.NewHash(snap.Parent)}
	}
	return c
}

// mailHost makes an instance's name fit to stand behind the @.
func mailHost(instance string) string {
	host := strings.ReplaceAll(identText(instance), " ", "-")
	if host == "" {
		return "localhost"
	}
	return host
}

// encodeSnapshot is the content of snapshot.json.
func encodeSnapshot(snap *record.Record) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(snap); err != nil {
		return nil, fmt.Errorf("encode %s: %w", snapshotFile, err)
	}
	if b.Len() > maxObject {
		return nil, fmt.Errorf("encode %s: %d bytes, over %d", snapshotFile, b.Len(), maxObject)
	}
	return b.Bytes(), nil
}

// putEncoded encodes a tree or a commit with go-git and writes it.
func (s *Store) putEncoded(o interface {
	Encode(plumbing.EncodedObject) error
},
) (plumbing.Hash, error) {
	mem := new(plumbing.MemoryObject)
	if err := o.Encode(mem); err != nil {
		return plumbing.ZeroHash, fmt.Errorf("encode a git object: %w", err)
	}
	rd, err := mem.Reader()
	if err != nil {
		return plumbing.ZeroHash, err
	}
	content, err := io.ReadAll(rd)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	return s.objects.put(mem.Type(), content)
}

// Confirm makes everything up to the head durable and then moves the applied
// ref to it, durably. It is idempotent, and to be called again after an error.
//
// The point of no return is the rename of the applied ref: a crash before it
// leaves the head pending, after it applied. What it vouches for is on the
// disk by then.
//
// Syscalls: those of stillOurs; openat, write, close (the applied ref's temporary file); in
// parallel, openat, fsync, close of that file, of every object not yet synced,
// of the directories of those, of the head ref and of its directory; newfstatat,
// renameat (the applied ref), fsync (its directory); newfstatat of each object that
// was synced since the last Confirm, see lookAgain; those of writeNotes.
func (s *Store) Confirm(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("confirm: %w", err)
	}
	if s.head == nil {
		return fmt.Errorf("confirm: the history is empty")
	}
	if s.applied != nil && s.applied.Commit == s.head.Commit && len(s.objects.unsynced) == 0 {
		return nil
	}
	if err := s.stillOurs(ctx); err != nil {
		return fmt.Errorf("confirm: %w", err)
	}
	mayUseReserve := s.head.Kind == record.KindRevert || s.head.Kind == record.KindRollback
	if err := s.withReserve(mayUseReserve, s.confirm); err != nil {
		return fmt.Errorf("confirm %s: %w", s.head.ID, err)
	}
	s.renewReserve()
	return nil
}

func (s *Store) confirm() error {
	h := plumbing.NewHash(s.head.Commit)
	tmp, err := s.repo.tempRef(h)
	if err != nil {
		return err
	}
	if err := s.syncHead(tmp); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	dirs, err := s.repo.placeRef(tmp, appliedRef(s.opts.Environment))
	if err != nil {
		return err
	}
	if err := syncPaths(dirs, nil); err != nil {
		return fmt.Errorf("sync the applied ref: %w", err)
	}
	if err := s.settled(); err != nil {
		return err
	}
	fresh := s.objects.unsettled()
	for i := range fresh {
		fresh[i].settled = true
	}
	before := noteOf(s.applied)
	s.applied = s.head
	s.writeNotes(before)
	return nil
}

// syncHead makes the head durable: its objects, those of the records before it,
// and the ref. A person's `git pack-refs` may have taken the loose ref away,
// even at the moment it moved, or a sync of it may have failed: then it is
// written anew.
func (s *Store) syncHead(further ...string) error {
	name, h := headRef(s.opts.Environment), plumbing.NewHash(s.head.Commit)
	path := filepath.Join(s.repo.dir, name)
	loose, err := readBounded(path, maxRef)
	if err != nil || strings.TrimSpace(string(loose)) != h.String() || s.objects.suspect {
		if err := s.repo.writeRef(name, h); err != nil {
			return err
		}
	}
	return s.objects.sync(append(further, path, filepath.Dir(path))...)
}

// Retried reports whether refs/dtesn/retried/<env> names the head.
func (s *Store) Retried() bool {
	return s.head != nil && s.retried == plumbing.NewHash(s.head.Commit)
}

// SetRetried durably makes refs/dtesn/retried/<env> name the head, which is
// made durable with it, or removes the ref.
//
// Syscalls: those of Confirm, for another ref; or those of stillOurs and removeRef.
func (s *Store) SetRetried(ctx context.Context, retried bool) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("set retried: %w", err)
	}
	if err := s.stillOurs(ctx); err != nil {
		return fmt.Errorf("set retried: %w", err)
	}
	name := retriedRef(s.opts.Environment)
	if !retried {
		if s.retried.IsZero() {
			return nil
		}
		err := s.repo.removeRef(ctx, name)
		found, readErr := s.repo.readRef(name)
		if err == nil || readErr == nil {
			s.retried = found // gone, even if that may not be on the disk yet
		}
		return err
	}
	if s.head == nil {
		return fmt.Errorf("set retried: the history is empty")
	}
	h := plumbing.NewHash(s.head.Commit)
	err := s.withReserve(s.head.Kind == record.KindRollback, func() error {
		if err := s.syncHead(); err != nil {
			return err
		}
		return s.repo.writeRef(name, h)
	})
	if err != nil {
		return fmt.Errorf("set retried for %s: %w", s.head.ID, err)
	}
	s.retried = h
	return nil
}
