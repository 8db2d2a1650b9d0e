package gitstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
)

// lostFile says that there was a history in this state directory of which
// nothing can be read, so that the empty one in its place is not taken for that
// of a new agent: what an operator held and paused is not known. The file is
// written durably before anything that would hide the loss, and stays until
// ClearLost, or until the history can be read again.
const lostFile = "lost"

// lossJSON is the content of lostFile.
type lossJSON struct {
	Reason string  `json:"reason"`
	Since  float64 `json:"since"`
	// Replaced: there is a history, and it is an older one, or another.
	Replaced bool `json:"replaced,omitempty"`
}

// firstObjects is the number of objects of one record.
const firstObjects = 4

// Lost returns a pause while the history that was there cannot be read and
// nobody called ClearLost; nil otherwise.
func (s *Store) Lost() *record.Hold { return s.lost }

// ClearLost ends what Lost returns, durably: the history begins with the next
// record.
//
// Syscalls: those of stillOurs; unlinkat of the files applied and lost, each with
// an fsync of the state directory after it.
func (s *Store) ClearLost(ctx context.Context) error {
	if s.lost == nil {
		return nil
	}
	if err := s.stillOurs(ctx); err != nil {
		return fmt.Errorf("begin a new history: %w", err)
	}
	names := []string{lostFile}
	if s.head == nil {
		names = []string{appliedFile, lostFile} // the notes are evidence of the lost one
	}
	for _, name := range names {
		if err := s.removeDurable(name); err != nil {
			return stateError("begin a new history in", s.opts.Dir, err)
		}
	}
	s.lost, s.replaced = nil, false
	return nil
}

// removeDurable removes a file of the state directory. What is no file is set
// aside.
func (s *Store) removeDurable(name string) error {
	path := filepath.Join(s.opts.Dir, name)
	if err := s.clearPlace(path, false); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return syncPath(s.opts.Dir)
}

// readLost reads lostFile. That it is there counts, whatever it says.
func (s *Store) readLost() error {
	s.lost, s.replaced = nil, false
	path := filepath.Join(s.opts.Dir, lostFile)
	there, err := exists(path)
	if err != nil || !there {
		return err
	}
	var loss lossJSON
	text, err := readBounded(path, maxRef)
	if err != nil || json.Unmarshal(text, &loss) != nil || loss.Reason == "" {
		loss = s.loss("the file " + path + " says so, and not why")
	}
	s.setLost(loss)
	return nil
}

func (s *Store) loss(why string) lossJSON {
	return lossJSON{
		Reason: fmt.Sprintf("the history in %s cannot be read: %s", s.repo.dir, oneLine(why, maxLine)),
		Since:  record.Unix(s.opts.Now()),
	}
}

func (s *Store) setLost(loss lossJSON) {
	s.replaced = loss.Replaced
	s.lost = &record.Hold{Paused: true, By: "agent", Reason: oneLine(loss.Reason, maxRef), Since: loss.Since}
}

// lose writes lostFile durably, for the reason why. The first reason stays.
//
// Syscalls: those of writeDurable.
func (s *Store) lose(why string) error {
	if s.lost != nil {
		return nil
	}
	return s.writeLoss(s.loss(why))
}

// loseHold writes lostFile durably where the history was replaced by one without
// the record that the agent stood at, and that had a hold or a pause, or may have
// had one. It stays although there is a head: what an operator held stays held.
func (s *Store) loseHold(stood note, held bool) error {
	if s.lost != nil || !held {
		return nil
	}
	return s.writeLoss(lossJSON{
		Reason: fmt.Sprintf("the history in %s was replaced by one without %s, which had a hold or a pause", s.repo.dir, stood.id),
		Since:  record.Unix(s.opts.Now()), Replaced: true,
	})
}

// mayHold reports whether a record that is not in the history has a hold, or
// cannot be read.
func (s *Store) mayHold(n note) bool {
	if snap, err := s.repo.snapshot(n.commit); err == nil {
		return snap.Held != nil
	}
	snap := new(record.Record)
	files := s.repo.spare(n.commit)
	if files == nil {
		return true
	}
	_, text, err := decodeObject(files[1].data)
	return err != nil || json.Unmarshal(text, snap) != nil || snap.Held != nil
}

func (s *Store) writeLoss(loss lossJSON) error {
	text, err := json.Marshal(loss)
	if err != nil {
		return err
	}
	if err := writeDurable(filepath.Join(s.opts.Dir, lostFile), append(text, '\n'), 0o600); err != nil {
		return err
	}
	s.setLost(loss)
	return nil
}

// found ends a loss when the history can be read after all. before is what stood
// in lostFile when the directory was opened.
func (s *Store) found(before *record.Hold) error {
	if s.lost == nil || s.head == nil || s.replaced {
		return nil
	}
	if err := s.removeDurable(lostFile); err != nil {
		return err
	}
	s.lost = nil
	if before != nil {
		s.repaired("the history could not be read before", "it goes on from "+idOf(s.head), "")
	}
	return nil
}

// begunAnew is what is done where no record can be read.
func (s *Store) begunAnew() string {
	if s.lost != nil {
		return "the history starts anew, and nothing is applied until agent resume"
	}
	return "the history starts anew"
}

// suspectLoss writes lostFile where neither ref names a record, before anything
// is repaired: if a record is found all the same, it ends. A repository is empty
// and nothing is lost if it is whole and has no record, or at most a first one
// that was not confirmed: a power cut may take that.
func (s *Store) suspectLoss(head, applied named) error {
	if head.snap != nil || applied.snap != nil {
		return nil
	}
	empty, err := s.neverConfirmed(head, applied)
	if err != nil || empty {
		return err
	}
	why := joined(head.bad, applied.bad)
	if why == nil {
		why = errors.New("neither head nor applied ref is there")
	}
	return s.lose(why.Error())
}

func (s *Store) neverConfirmed(head, applied named) (bool, error) {
	if !applied.absent() || s.repo.readNotes() != (notes{}) {
		return false, nil
	}
	for _, sub := range []string{"objects", "refs"} {
		if info, err := os.Stat(filepath.Join(s.repo.dir, sub)); err != nil || !info.IsDir() {
			return false, nil
		}
	}
	if head.absent() {
		if traces, err := s.repo.traces(); err != nil || !traces {
			return err == nil, err
		}
	}
	packs, err := glob(filepath.Join(s.repo.objects(), "pack"), "*.pack")
	if err != nil || len(packs) > 0 {
		return false, err
	}
	objects := 0
	err = s.repo.eachLoose(func(plumbing.Hash, string) error { objects++; return nil })
	return objects <= firstObjects, err
}
