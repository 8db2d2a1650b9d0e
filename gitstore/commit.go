package gitstore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"syscall"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"golang.org/x/sys/unix"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

// leastFree and leastFiles are how many bytes and files of the disk must be free for a
// change. Reverts, rollbacks and notes need none: the journal has its own.
const leastFree, leastFiles = 256 << 10, 16

// Commit appends rec to the head. It gives rec its Format, Index, ID, Timestamp, Commit
// and Parent, makes foreign text one bounded line, and returns the whole, which is
// shared and must not be changed, nor what rec points to. Once Commit returned, a kill
// cannot lose the record, nor a power cut a revert or a note. After an error Head
// returns what is on record. The repository gets the record beside the caller, once the
// journal has it durably.
func (s *Store) Commit(ctx context.Context, rec record.Record) (*record.Record, error) {
	if err := s.ready(ctx); err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	snap, e, err := s.prepare(rec)
	if err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	if snap.Kind == record.KindChange {
		err = s.checkSpace()
	}
	if err == nil {
		err = s.append(frameRecord, e.payload(), snap.Kind != record.KindChange)
	}
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", snap.ID, err)
	}
	s.add(snap, e)
	if !snap.Kind.Candidate() {
		if err := s.sync(); err != nil {
			s.setBehind(err)
			return nil, fmt.Errorf("commit %s: it is the head, but may not be on the disk: %w", snap.ID, err)
		}
	}
	s.project(e)
	return snap, nil
}

// add makes a record the head.
func (s *Store) add(snap *record.Record, e entry) {
	snap.Commit = e.commit.String()
	s.ledger.add(e)
	s.head = snap
	s.serveFromJournal()
}

// checkSpace refuses a change on a full disk, where the repository could not
// follow the journal.
func (s *Store) checkSpace() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.opts.Dir, &fs); err != nil || fs.Blocks == 0 { // some do not count
		return nil
	}
	if fs.Files > 0 && fs.Ffree < leastFiles {
		return fmt.Errorf("less than %d files can be made on %s: %w", leastFiles, s.opts.Dir, syscall.ENOSPC)
	}
	if fs.Bavail*uint64(fs.Bsize) < leastFree {
		return fmt.Errorf("less than %d KiB are free on %s: %w", leastFree>>10, s.opts.Dir, syscall.ENOSPC)
	}
	return nil
}

// append appends a frame to the journal, in a new segment if the live one failed or is
// full.
func (s *Store) append(kind frameKind, payload []byte, reserve bool) error {
	if err := s.mendJournal(); err != nil {
		return err
	}
	err := s.journal.append(kind, payload, reserve)
	if !errors.Is(err, errJournalFull) {
		return err
	}
	if err := s.join(); err != nil {
		return err
	}
	if !s.makeCheckpoint() { // without the marks and facts that were replaced
		if err := s.beginSegment(s.ledger); err != nil {
			return err
		}
	}
	return s.journal.append(kind, payload, reserve)
}

// mendJournal begins a new segment if the live one failed, or a person removed or cut a
// file of the journal.
func (s *Store) mendJournal() error {
	isTorn := s.journal.isTorn(false)
	if !s.journal.failed && !isTorn {
		return nil
	}
	if err := s.beginSegment(s.ledger); err != nil {
		return err
	}
	if isTorn {
		s.repaired("a file of the journal is missing or cut", "written again", "")
	}
	return nil
}

// sync makes what was appended durable. After a failed sync the kernel may call
// pages clean that the disk does not have, so everything goes to a new segment.
func (s *Store) sync() error {
	err := s.journal.sync()
	if err == nil {
		return nil
	}
	if berr := s.beginSegment(s.ledger); berr != nil {
		return errors.Join(err, berr)
	}
	s.log.Warn("journal segment replaced", "error", err)
	return nil
}

// beginSegment begins a segment with all that a ledger has.
func (s *Store) beginSegment(l *ledger) error {
	if !s.lock.stands() {
		return stateError("write into", s.opts.Dir, errAway)
	}
	state, err := l.payload()
	if err != nil {
		return err
	}
	return s.journal.begin(state)
}

var errAway = errors.New("it is not the directory that was opened")

// set appends a mark or a fact and makes it durable. After an error it is not set, but
// the next start may find it.
func (s *Store) set(kind frameKind, payload []byte, reserve bool) error {
	if err := s.append(kind, payload, reserve); err != nil {
		return err
	}
	before := *s.ledger
	before.Facts = maps.Clone(before.Facts)
	err := s.ledger.apply(frame{kind, payload})
	if err == nil {
		err = s.sync()
	}
	if err != nil {
		*s.ledger = before
	}
	return err
}

// Confirm makes everything up to the head durable and marks the head as applied,
// durably; after an error it can be called again. When it returns, the refs of the head
// and of the applied record are written too, unless Behind says why not.
func (s *Store) Confirm(ctx context.Context) error {
	var err error
	if p := s.projection; p != nil {
		if <-p.durable; p.synced != nil {
			err = s.join()
		}
	}
	if err == nil {
		err = s.stands(ctx)
	}
	switch {
	case err != nil:
	case s.head == nil:
		err = errors.New("the history is empty")
	case s.ledger.Applied != s.ledger.Head:
		err = s.set(frameMark, markPayload(markApplied, s.ledger.Head), true) // while the repository is written
		if err == nil {
			s.applied = s.head
			err = s.join()
		}
		if err == nil {
			err = s.write()
		}
	}
	if err != nil {
		return fmt.Errorf("confirm: %w", err)
	}
	return nil
}

// Retried reports whether the head is marked as being sent again.
func (s *Store) Retried() bool { return s.head != nil && s.ledger.Retried == s.ledger.Head }

// SetRetried durably marks the head as being sent again, or removes the mark.
func (s *Store) SetRetried(ctx context.Context, retried bool) error {
	err := s.ready(ctx)
	commit := ""
	if retried {
		commit = s.ledger.Head
	}
	if err == nil && s.ledger.Retried != commit {
		err = s.set(frameMark, markPayload(markRetried, commit), true)
	}
	if err != nil {
		return fmt.Errorf("set retried: %w", err)
	}
	return nil
}

// prepare gives a record all that is the store's to give, checks that it can follow the
// head, and encodes it.
func (s *Store) prepare(rec record.Record) (_ *record.Record, e entry, err error) {
	snap, parent := cleanse(rec), cmp.Or(s.head, new(record.Record))
	switch o := snap.OutcomeOf; {
	case snap.Environment != "" && snap.Environment != s.opts.Environment:
		return nil, e, fmt.Errorf("a record of environment %q into the history of %q", snap.Environment, s.opts.Environment)
	case snap.Instance != "" && snap.Instance != s.opts.Instance:
		return nil, e, fmt.Errorf("a record of instance %q into the history of %q", snap.Instance, s.opts.Instance)
	case !snap.Kind.Candidate() && (snap.Kind != record.KindRevert && snap.Kind != record.KindNote || s.head == nil):
		return nil, e, fmt.Errorf("a record of kind %q cannot follow %s", snap.Kind, idOf(s.head))
	case o != nil && (s.head == nil || o.ID != parent.ID || !settles(o.Outcome)):
		return nil, e, fmt.Errorf("a child of %s cannot say the outcome %q of %q", idOf(s.head), o.Outcome, o.ID)
	}
	now := s.opts.Now()
	if now.Unix() < 0 {
		now = time.Unix(0, 0)
	}
	snap.Format = record.FormatOf(snap.Config)
	snap.Environment, snap.Instance = s.opts.Environment, s.opts.Instance
	snap.Index, snap.Parent = parent.Index+1, parent.Commit
	snap.ID, snap.Timestamp = formatID(now.Unix(), snap.Index), record.Unix(now)
	snap.AgentVersion = cmp.Or(snap.AgentVersion, problem.Line(s.opts.AgentVersion, maxLine))
	snap.Subject = subject(&snap, parent.Subject)
	if snap.Description == "" && snap.Kind == record.KindChange {
		snap.Description = snap.Source.Subject
	}
	snap.Description = cmp.Or(snap.Description, snap.Subject)
	e, err = s.encode(&snap)
	return &snap, e, err
}

// encode returns the objects of a record. Times of commits never go back, though the
// clock may: the id and snapshot.json keep the clock's.
func (s *Store) encode(snap *record.Record) (e entry, err error) {
	text, err := encodeSnapshot(snap)
	if err != nil {
		return e, err
	}
	e.objects[0] = newObject(plumbing.BlobObject, snap.Config.YAML())
	e.objects[1] = newObject(plumbing.BlobObject, text)
	e.objects[2], err = encodeObject(&object.Tree{Entries: []object.TreeEntry{
		{Name: parametersFile, Mode: filemode.Regular, Hash: e.objects[0].hash},
		{Name: snapshotFile, Mode: filemode.Regular, Hash: e.objects[1].hash},
	}})
	if err != nil {
		return e, err
	}
	host := cmp.Or(strings.ReplaceAll(identText(snap.Instance), " ", "-"), "localhost")
	c := &object.Commit{
		Committer: object.Signature{Name: agentName, Email: agentName + "@" + host, When: time.Unix(int64(snap.Timestamp), 0).UTC()},
		TreeHash:  e.objects[2].hash,
		Message:   message(snap, snap.Subject),
	}
	if s.head != nil {
		parent, err := s.repo.commit(hashOf(s.head))
		if err != nil {
			return e, err
		}
		if c.ParentHashes = []plumbing.Hash{parent.Hash}; parent.Committer.When.After(c.Committer.When) {
			c.Committer.When = parent.Committer.When
		}
	}
	c.Author = c.Committer
	// A revert or a note is the agent's own, whoever wrote the state that it repeats.
	if name, mail, ok := signature(snap.Source.Author); ok && snap.Kind == record.KindChange {
		c.Author.Name, c.Author.Email = name, mail
	}
	if e.objects[3], err = encodeObject(c); err != nil {
		return e, err
	}
	e.commit = e.objects[3].hash
	size, most := len(e.payload()), maxEntry
	if snap.Kind == record.KindChange {
		size, most = size-sizeOfHold(snap.Held), maxChange
	}
	if size > most {
		err = problem.New("", fmt.Errorf("encode the record: %d bytes, over %d", size, most), "declare fewer parameters or experiments")
	}
	return e, err
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
	return b.Bytes(), nil
}

// encodeObject makes the object of a tree or a commit.
func encodeObject(o object.Object) (gitObject, error) {
	var mem plumbing.MemoryObject
	if err := o.Encode(&mem); err != nil {
		return gitObject{}, fmt.Errorf("encode a git object: %w", err)
	}
	content, err := contentOf(&mem)
	return newObject(mem.Type(), content), err
}

func contentOf(o plumbing.EncodedObject) ([]byte, error) {
	rd, err := o.Reader()
	if err != nil {
		return nil, err
	}
	defer func() { _ = rd.Close() }()
	return io.ReadAll(rd)
}
