package gitstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/sys/unix"

	"dtesn-agent/gitstore/record"
)

// appliedFile says once more, beside the repository, what the applied ref names;
// what it named before; and, until a start has told of it, where the agent stood
// when the history was replaced under it. Each is a line, "<commit> <snapshot
// id>", or an empty one. Behind them stand the objects of the applied record, see
// spare. The file is written after the ref, in place, and is not
// synced, so it may be older, and a power cut may take it. It counts only where
// the ref or the record is lost, or the history is another.
const appliedFile = "applied"

// notes are what appliedFile says; the zero note says nothing.
type notes struct{ applied, before, left note }

type note struct {
	commit plumbing.Hash
	id     string
	index  int
}

func noteOf(snap *record.Record) note {
	if snap == nil {
		return note{}
	}
	return note{hashOf(snap), snap.ID, snap.Index}
}

func (n note) String() string {
	if n.index == 0 {
		return ""
	}
	return n.commit.String() + " " + n.id
}

// readNotes reads appliedFile. Whatever is wrong with it, it says nothing.
func (r *repo) readNotes() (n notes) {
	data, err := readBounded(filepath.Join(r.state, appliedFile), maxNotes)
	if err != nil {
		return n
	}
	lines := strings.SplitN(string(data), "\n", 4)
	for i, to := range []*note{&n.applied, &n.before, &n.left} {
		if i+1 >= len(lines) { // it has no end
			break
		}
		hex, id, _ := strings.Cut(lines[i], " ")
		h, ok := parseHash(hex)
		if index, numbered := indexOf(id); ok && numbered {
			*to = note{h, id, index}
		}
	}
	return n
}

// writeNotes writes appliedFile. It is no more than evidence, so what fails is
// left.
//
// Syscalls: those of spareOf; openat(O_CREAT), write, close.
func (s *Store) writeNotes(before note) {
	text := fmt.Appendf(nil, "%s\n%s\n%s\n", noteOf(s.applied), before, s.left)
	if spare := s.spareOf(s.applied); len(text)+len(spare) <= maxNotes {
		text = append(text, spare...) // in one write, with what it belongs to
	}
	f, err := os.OpenFile(filepath.Join(s.opts.Dir, appliedFile), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return
	}
	_, _ = f.Write(text)
	_ = f.Close()
}

// wasApplied reports whether it was noted that the record was applied.
func (s *Store) wasApplied(snap *record.Record) bool {
	n := s.repo.readNotes()
	return n.applied.commit == hashOf(snap) || n.before.commit == hashOf(snap)
}

// notedBelow is the record that was noted to be applied, if it is whole, and what
// is damaged between it and head keeps anybody from telling; nil if not.
func (s *Store) notedBelow(head *record.Record) (*record.Record, error) {
	last, err := s.repo.snapshot(s.repo.readNotes().applied.commit)
	if err != nil {
		return nil, unlessCurable(err)
	}
	if _, err = s.between(head, last); errors.Is(err, errDamaged) {
		return last, nil
	}
	return nil, unlessCurable(err)
}

// outdated takes a ref for lost whose loose file is gone, while packed-refs has an
// older value than was noted, and the record that was noted is there.
func (s *Store) outdated(refs ...*named) error {
	noted := s.repo.readNotes().applied
	last, err := s.repo.snapshot(noted.commit)
	if err != nil {
		return unlessCurable(err)
	}
	for _, n := range refs {
		if n.snap == nil || n.snap.Index >= last.Index {
			continue
		}
		loose, err := exists(filepath.Join(s.repo.dir, n.ref))
		if err == nil && !loose {
			if _, err = s.between(last, n.snap); err == nil {
				*n = named{ref: n.ref, bad: fmt.Errorf("%w: %s, only packed-refs has an older value", errTornRef, n.ref)}
			}
		}
		if unlessCurable(err) != nil {
			return err
		}
	}
	return nil
}

// settleNotes tells when the history is not the one in which the agent stood:
// somebody replaced it while no agent ran, or while one ran that may have ended
// before anybody looked.
func (s *Store) settleNotes() error {
	n := s.repo.readNotes()
	stood := n.applied
	if n.left.index > 0 {
		stood = n.left
	}
	if stood.index >= s.first && !s.opened && !s.explained && !s.inHistory(stood) {
		if err := s.loseHold(stood, stood == n.applied && s.mayHold(stood)); err != nil {
			return err
		}
		did := s.begunAnew()
		if s.head != nil {
			did = "the history goes on from " + idOf(s.head)
		}
		s.repaired(fmt.Sprintf("the agent stood at %s, which is not in the history: that was replaced, or begun anew", stood.id), did, "")
	}
	if s.applied == nil || n == (notes{noteOf(s.applied), n.before, s.left}) && s.repo.spare(n.applied.commit) != nil {
		return nil
	}
	before := note{}
	for _, older := range []note{n.before, n.applied} {
		if older.index < s.applied.Index && s.inHistory(older) {
			before = older
		}
	}
	s.writeNotes(before)
	return nil
}

// inHistory reports whether a record is the one of its number below, or at, the
// head.
func (s *Store) inHistory(n note) bool {
	if s.head == nil {
		return false
	}
	at, err := s.repo.chain.at(s.repo, s.view(), n.index)
	return err == nil && at == n.commit
}
