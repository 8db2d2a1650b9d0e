package gitstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

// staleLock is how old a git lock file must be to be nobody's: git holds one
// for milliseconds.
const staleLock = time.Minute

// stale reports whether what was last written at when is so old that nobody is
// at work on it. What is dated as far in the future is as old: the clock went
// back.
func stale(now, when time.Time, after time.Duration) bool { return now.Sub(when).Abs() >= after }

// sweep removes what an earlier process had on its way to another place, before
// anything else needs the space or the names. What says that a pack is to go
// stays: settleDrops judges it.
func (s *Store) sweep() error {
	for _, left := range []struct{ dir, pattern string }{
		{s.opts.Dir, tempPrefix + "*"},
		{s.opts.Dir, newRepoGlob},
		{filepath.Join(s.opts.Dir, setAsideDir), halfPrefix + "*"},
		{s.repo.dir, tempPrefix + "*"},
		{filepath.Join(s.repo.objects(), "pack"), tempPrefix + "*"},
		{s.repo.tmp(), "*"},
	} {
		paths, err := glob(left.dir, left.pattern)
		if err != nil {
			return err
		}
		for _, path := range paths {
			if strings.HasPrefix(filepath.Base(path), dropPrefix) {
				continue
			}
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// settleDrops ends what a kill in dropPack left half-done. What looks like it
// may be no such thing: a backup that was copied while packs were joined holds
// the pack, and not what took its place. So a pack goes only if each of its
// objects reads back from elsewhere; else it gets its index back, and the next
// pruning takes it if it is not needed.
func (s *Store) settleDrops() error {
	drops, err := glob(s.repo.tmp(), dropPrefix+"*")
	if err != nil {
		return err
	}
	for _, drop := range drops {
		name := strings.TrimPrefix(filepath.Base(drop), dropPrefix)
		base := filepath.Join(s.repo.objects(), "pack", name)
		pack, err := exists(base + ".pack")
		if err != nil {
			return err
		}
		index, err := exists(base + ".idx")
		switch {
		case err != nil:
		case index || !strings.HasPrefix(name, "pack-"):
			err = os.Remove(drop) // dropPack takes the index first
		case !pack:
			err = s.repo.finishDrop(drop)
		default:
			if err = os.Rename(drop, base+".idx"); err == nil {
				err = s.dropAgain(name)
			}
		}
		if err != nil {
			return fmt.Errorf("settle %s: %w", filepath.Base(drop), err)
		}
	}
	return nil
}

// dropAgain drops a pack if all that is in it is elsewhere.
func (s *Store) dropAgain(name string) error {
	p, err := openPack(filepath.Join(s.repo.objects(), "pack", name))
	if err != nil {
		if fromDisk(err) {
			return err
		}
		return nil // its index is torn: mendPacks looks at it
	}
	entries := p.entries()
	if err := p.file.Close(); err != nil {
		return err
	}
	for _, e := range entries {
		if there, err := s.repo.readable(e.hash, name); err != nil || !there {
			return err
		}
	}
	s.repo.closePacks()
	return s.repo.dropPack(name)
}

// readable reports whether an object reads back from a loose file, or from
// another pack than the one named.
func (r *repo) readable(h plumbing.Hash, but string) (bool, error) {
	_, err := r.verify(h)
	if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDamaged) {
		return err == nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.packs) == 0 {
		if _, err := r.listPacks(); err != nil {
			return false, err
		}
	}
	for name, p := range r.packs {
		if ok, err := p.index.Contains(h); name == but || err != nil || !ok {
			continue
		}
		if _, err = p.read(plumbing.AnyObject, h); err == nil || fromDisk(err) {
			return err == nil, err
		}
	}
	return false, nil
}
