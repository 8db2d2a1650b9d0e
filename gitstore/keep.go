package gitstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
)

// keep gives a commit a ref below refs/dtesn/set-aside, so that neither git nor
// pruning takes it for rubbish, and returns the ref. One that has such a ref
// keeps it: a crash between this and what follows finds the same again.
func (s *Store) keep(h plumbing.Hash) (string, error) {
	refs, err := s.repo.refs()
	if err != nil {
		return "", err
	}
	for name, named := range refs {
		if named == h && strings.HasPrefix(name, setAsideRefs+"/") {
			return name, nil
		}
	}
	kept := setAsideRefs + "/" + s.stamp()
	for n := 2; !refs[kept].IsZero(); n++ {
		kept = fmt.Sprintf("%s/%s-%d", setAsideRefs, s.stamp(), n)
	}
	if err := s.cutOff(h); err != nil {
		return "", err
	}
	return kept, s.repo.writeRef(kept, h)
}

// cutOff cuts what a person put upon records that are lost off from them, so that
// git does not ask for those: see shallowFile.
func (s *Store) cutOff(tip plumbing.Hash) error {
	const enough = 1_000 // commits; what is lost is near
	c, err := s.repo.readCuts()
	if err != nil {
		return unlessCurable(err)
	}
	cut, h := tip, tip
	for range enough {
		commit, err := s.repo.commit(h)
		switch {
		case errors.Is(err, errDamaged) && h != tip:
			c[cut] = true
			return s.repo.writeCuts(c)
		case err != nil || len(commit.ParentHashes) == 0 || c[h]:
			return unlessCurable(err)
		}
		if _, _, err := s.repo.link(h); foreign(err) {
			cut = h
		}
		h = commit.ParentHashes[0]
	}
	return nil
}

// keepNamed keeps what a ref named that is to name something else, or nothing,
// from now on: a person's commit, or a record that stands upon the history and
// not in it. It returns the ref, "" if there is nothing to keep.
func (s *Store) keepNamed(ctx context.Context, n named) (string, error) {
	if foreign(n.bad) || n.snap != nil && !s.inHistory(noteOf(n.snap)) && s.joins(ctx, n.snap) {
		return s.keep(n.hash)
	}
	return "", nil
}
