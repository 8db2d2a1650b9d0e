package gitstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// leastFree is how much space the disk must have for a change, in bytes. Reverts,
// rollbacks and notes need none: the journal has its own.
const leastFree = 256 << 10

// Commit appends rec to the head. It gives rec its Format, Index, ID,
// Timestamp, Commit and Parent, makes foreign text one bounded line, and
// returns the whole, which is shared and must not be changed. A kill of the
// process after Commit returned cannot lose the record; a power cut cannot lose
// a revert or a note. After an error Head returns what is on record.
//
// The repository gets the record beside the caller, once the journal has it
// durably.
func (s *Store) Commit(ctx context.Context, rec record.Record) (*record.Record, error) {
	if err := s.ready(ctx); err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	snap, err := s.prepare(rec)
	if err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	e, when, err := s.encode(snap)
	if err == nil && snap.Kind == record.KindChange {
		err = s.checkSpace()
	}
	if err == nil {
		err = s.append(frameRecord, e.payload(), snap.Kind != record.KindChange)
	}
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", snap.ID, err)
	}
	snap.Commit = e.commit.String()
	s.ledger.add(e)
	s.head, s.headTime = snap, when
	s.unwritten = append(s.unwritten, e)
	s.readFromJournal()
	s.repo.cache.put(e.commit, snap)
	if !snap.Kind.Candidate() {
		if err := s.sync(); err != nil {
			return nil, fmt.Errorf("commit %s: it is the head, but may not be on the disk: %w", snap.ID, err)
		}
	}
	s.project()
	return snap, nil
}

// checkSpace refuses a change on a full disk, where the repository could not
// follow the journal.
func (s *Store) checkSpace() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.opts.Dir, &fs); err != nil || fs.Blocks == 0 { // some do not count
		return nil
	}
	if fs.Bavail*uint64(fs.Bsize) < leastFree {
		return fmt.Errorf("less than %d KiB are free on %s: %w", leastFree>>10, s.opts.Dir, syscall.ENOSPC)
	}
	return nil
}

// append appends a frame to the journal, which begins a new segment first if the
// live one failed or is full.
func (s *Store) append(kind frameKind, payload []byte, reserve bool) error {
	if s.journal.failed {
		if err := s.beginSegment(s.ledger); err != nil {
			return err
		}
	}
	err := s.journal.append(kind, payload, reserve)
	if errors.Is(err, errJournalFull) {
		if !s.finishCheckpoint(true) { // without the marks and facts that were replaced
			if err := s.beginSegment(s.ledger); err != nil {
				return err
			}
		}
		err = s.journal.append(kind, payload, reserve)
	}
	return err
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

// errAway says that the path does not lead to the directory that was locked.
var errAway = errors.New("it is not the directory that was opened")

// Confirm makes everything up to the head durable and marks the head as applied,
// durably. It is idempotent, and to be called again after an error.
//
// When it returns, the refs of the head and of the applied record are written too,
// unless Behind says why not.
func (s *Store) Confirm(ctx context.Context) error {
	if s.projection != nil {
		if <-s.projection.durable; s.projection.synced != nil {
			if err := s.join(); err != nil {
				return fmt.Errorf("confirm: %w", err)
			}
		}
	}
	if err := s.stands(ctx); err != nil {
		return fmt.Errorf("confirm: %w", err)
	}
	if s.head == nil {
		return errors.New("confirm: the history is empty")
	}
	if s.ledger.Applied == s.ledger.Head {
		return nil
	}
	if err := s.setMark(markApplied, s.ledger.Head); err != nil { // while the repository is written
		return fmt.Errorf("confirm %s: %w", s.head.ID, err)
	}
	s.applied = s.head
	err := s.join()
	if err == nil {
		err = s.write()
	}
	if err != nil {
		return fmt.Errorf("confirm %s: %w", s.head.ID, err)
	}
	return nil
}

// setMark appends a mark and makes it durable.
func (s *Store) setMark(name, commit string) error {
	if err := s.append(frameMark, markPayload(name, commit), true); err != nil {
		return err
	}
	field := s.ledger.mark(name)
	before := *field
	*field = commit
	if err := s.sync(); err != nil {
		*field = before
		return err
	}
	return nil
}

// Retried reports whether the head is marked as being sent again.
func (s *Store) Retried() bool { return s.head != nil && s.ledger.Retried == s.ledger.Head }

// SetRetried durably marks the head as being sent again, or removes the mark.
func (s *Store) SetRetried(ctx context.Context, retried bool) error {
	if err := s.ready(ctx); err != nil {
		return fmt.Errorf("set retried: %w", err)
	}
	commit := ""
	if retried {
		if s.head == nil {
			return errors.New("set retried: the history is empty")
		}
		commit = s.ledger.Head
	}
	if s.ledger.Retried == commit {
		return nil
	}
	if err := s.setMark(markRetried, commit); err != nil {
		return fmt.Errorf("set retried: %w", err)
	}
	return nil
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

func (s *Store) headSubject() string {
	if s.head == nil {
		return ""
	}
	return s.head.Description
}

// encode returns the objects of a record, and the time of its commit.
func (s *Store) encode(snap *record.Record) (e entry, when time.Time, err error) {
	var contents [4][]byte
	contents[0] = snap.Config.YAML()
	if contents[1], err = encodeSnapshot(snap); err != nil {
		return e, when, err
	}
	contents[2], err = encodeObject(&object.Tree{Entries: []object.TreeEntry{
		{Name: parametersFile, Mode: filemode.Regular, Hash: plumbing.ComputeHash(plumbing.BlobObject, contents[0])},
		{Name: snapshotFile, Mode: filemode.Regular, Hash: plumbing.ComputeHash(plumbing.BlobObject, contents[1])},
	}})
	if err != nil {
		return e, when, err
	}
	commit := s.commitObject(snap, plumbing.ComputeHash(plumbing.TreeObject, contents[2]))
	if contents[3], err = encodeObject(commit); err != nil {
		return e, when, err
	}
	e = newEntry(contents)
	size, most := len(e.payload()), maxEntry
	if snap.Kind == record.KindChange {
		size, most = size-sizeOfHold(snap.Held), maxChange
	}
	if size > most {
		return e, when, problem.New("", fmt.Errorf("encode the record: %d bytes, over %d", size, most), "declare fewer parameters or experiments")
	}
	return e, commit.Committer.When, nil
}

// commitObject is the record's commit. Its times never go back behind the
// parent's, though the clock may: the id and snapshot.json keep the clock's.
func (s *Store) commitObject(snap *record.Record, tree plumbing.Hash) *object.Commit {
	when := time.Unix(int64(snap.Timestamp), 0).UTC()
	if s.head != nil && s.headTime.After(when) {
		when = s.headTime
	}
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
	return b.Bytes(), nil
}

// encodeObject is the content of a tree or a commit, by go-git.
func encodeObject(o interface {
	Encode(plumbing.EncodedObject) error
},
) ([]byte, error) {
	mem := new(plumbing.MemoryObject)
	if err := o.Encode(mem); err != nil {
		return nil, fmt.Errorf("encode a git object: %w", err)
	}
	rd, err := mem.Reader()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(rd)
}
