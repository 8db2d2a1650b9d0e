package gitstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
)

// walkedFile remembers, from one start to the next, down from which commit the
// history was seen to be whole, all of it in packs, what those packs were, and at
// which commit it begins. A start then reads only what is newer. Who puts other files in place changes
// their inodes or the times that only the kernel sets, and the whole is walked.
const walkedFile = "walked"

// packsNow names the files that hold the packed history, as they are now.
func (r *repo) packsNow() (string, error) {
	paths, err := glob(filepath.Join(r.objects(), "pack"), "pack-*")
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, path := range append(paths, filepath.Join(r.dir, shallowFile)) {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintln(sum, filepath.Base(path), st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}

// walked is the commit down from which the history needs no walk, and the line of
// the shallow file at which it begins, zero if at none. Not known, all of it does.
func (r *repo) walked() (from, begin plumbing.Hash, known bool, err error) {
	data, err := readBounded(filepath.Join(r.state, walkedFile), maxRef)
	if err != nil {
		return from, begin, false, nil // it only saves time
	}
	words := strings.Fields(string(data))
	if len(words) != 3 {
		return from, begin, false, nil
	}
	h, ok := parseHash(words[0])
	now, err := r.packsNow()
	if err != nil || !ok || words[1] != now {
		return from, begin, false, err
	}
	return h, plumbing.NewHash(words[2]), true, nil
}

// noteWalked says that all from h down to begin is there, in the packs as they
// are. It only saves time, so what fails is left.
func (r *repo) noteWalked(h, begin plumbing.Hash) {
	packs, err := r.packsNow()
	if err != nil || h.IsZero() {
		return
	}
	path := filepath.Join(r.state, walkedFile)
	tmp, err := writeTemp(r.state, []byte(h.String()+" "+packs+" "+begin.String()+"\n"), 0o600)
	if err == nil && os.Rename(tmp, path) != nil {
		_ = os.Remove(tmp)
	}
}

// forgetWalked makes the next open walk all of the history, and read all packs.
func (r *repo) forgetWalked() { _ = os.Remove(filepath.Join(r.state, walkedFile)) }

// A gap is where the history cannot be followed: child is whole, and below it
// stands, at index, a commit that is not.
type gap struct {
	child, commit plumbing.Hash
	index         int
	why           error
}

// follow walks from the record h at index down to known, to a cut, or to the
// first record ever. packed is the newest commit from which on down everything
// was found in packs.
func (r *repo) follow(ctx context.Context, h plumbing.Hash, index int, known plumbing.Hash, c cuts) (packed plumbing.Hash, g *gap, err error) {
	packed = h
	for child := plumbing.ZeroHash; h != known; index-- {
		if err := ctx.Err(); err != nil {
			return packed, nil, err
		}
		parent, i, err := r.link(h)
		switch {
		case err == nil && i != index:
			err = fmt.Errorf("%w: commit %s is record %d", errForeign, h, i)
		case err == nil && parent.IsZero() && index != 1:
			err = fmt.Errorf("%w: record %d has no parent", errForeign, index)
		}
		if curable(err) {
			return packed, &gap{child, h, index, err}, nil
		}
		if err != nil {
			return packed, nil, err
		}
		if loose, err := exists(r.objectPath(h)); err != nil {
			return packed, nil, err
		} else if loose {
			packed = parent
		}
		if c[h] || index == 1 {
			if packed == parent {
				packed = plumbing.ZeroHash
			}
			break
		}
		child, h = h, parent
	}
	return packed, nil, nil
}

// settleAncestry walks the history below the head, as far as it was not walked
// before. Where a record's commit is missing or torn, and no pack has another
// copy of it, the history is cut: the record above it is its oldest one from
// now on. What is whole of the older ones stays, under a ref that says so.
func (s *Store) settleAncestry(ctx context.Context) error {
	c, err := s.repo.readCuts()
	if errors.Is(err, errTornRef) {
		kept, err := s.setAside(filepath.Join(s.repo.dir, shallowFile), "shallow-torn")
		if err != nil {
			return err
		}
		s.repaired("the file shallow, which says where the history begins, is torn", "the history is walked to find out", kept)
		c = cuts{}
	} else if err != nil {
		return err
	}
	s.first, s.begin = 1, plumbing.ZeroHash
	if s.head == nil {
		return nil
	}
	if err := s.dropNeedless(c); err != nil {
		return err
	}
	for {
		known, begin, _, err := s.repo.walked()
		if err != nil {
			return err
		}
		packed, g, err := s.repo.follow(ctx, plumbing.NewHash(s.head.Commit), s.head.Index, known, c)
		if err != nil {
			return err
		}
		if g == nil {
			b, _, err := s.repo.begins(s.head, c, begin)
			if s.first, s.begin = b.index, b.hash; err == nil && packed != known {
				s.repo.noteWalked(packed, s.begin)
			}
			return err
		}
		mended, err := s.mendPacks(true)
		if err == nil && !mended {
			mended, err = s.trimObjects()
		}
		if err == nil && !mended {
			err = s.cutAt(ctx, g, c)
		}
		if err != nil {
			return err
		}
	}
}

// dropNeedless takes lines out of the shallow file that would hide a part of the
// history which is there: from git, whose gc would throw it away. What a pruning
// that was killed has not removed yet is left to the next one.
func (s *Store) dropNeedless(c cuts) error {
	if len(c) == 0 || s.lock.killed && s.opts.KeepSnapshots > 0 {
		return nil
	}
	_, begin, _, err := s.repo.walked()
	if err != nil {
		return err
	}
	_, needless, err := s.repo.begins(s.head, c, begin)
	if err != nil || len(needless) == 0 {
		return err
	}
	for _, l := range needless {
		delete(c, l.hash)
	}
	if err := errors.Join(s.repo.dropGraph(), s.repo.writeCuts(c)); err != nil {
		return err
	}
	for _, l := range needless {
		s.repaired(fmt.Sprintf("the file shallow says that nothing is below record %d (%s), and the history is whole there", l.index, l.hash), "the line was removed", "")
	}
	return nil
}

// cutAt makes the record above a gap the oldest one. Refs for what is below
// come first: a crash in between only finds the gap again.
func (s *Store) cutAt(ctx context.Context, g *gap, c cuts) error {
	_, above, err := s.repo.link(g.child)
	if err != nil {
		return err
	}
	c[g.child] = true
	kept, err := s.keepBelow(ctx, g.index, c)
	if err != nil {
		return err
	}
	path := s.repo.objectPath(g.commit)
	if there, err := exists(path); err != nil {
		return err
	} else if there && errors.Is(g.why, errDamaged) {
		if err := s.setTornAside(path, "object-"+g.commit.String()+"-torn"); err != nil {
			return err
		}
	}
	if err := errors.Join(s.repo.dropGraph(), s.repo.writeCuts(c)); err != nil {
		return err
	}
	did := fmt.Sprintf("the history begins at record %d", above)
	if kept != "" {
		did += "; what is whole of the older ones is kept"
	}
	s.repaired(fmt.Sprintf("record %d of the history is lost (%v)", g.index, g.why), did, kept)
	return nil
}

// keepBelow gives the newest whole record below index a ref, so that neither
// git nor pruning takes it for rubbish; where its own history has gaps, those
// are cut too, and what is below them is kept in the same way. It returns the
// first ref, "" if nothing is left.
func (s *Store) keepBelow(ctx context.Context, index int, c cuts) (kept string, err error) {
	for n := 1; ; n++ {
		tip, err := s.newestRecord(ctx, func(snap *record.Record) bool { return snap.Index < index })
		if err != nil || tip == nil {
			return kept, err
		}
		h := plumbing.NewHash(tip.Commit)
		_, g, err := s.repo.follow(ctx, h, tip.Index, plumbing.ZeroHash, c)
		if err != nil {
			return kept, err
		}
		ref := fmt.Sprintf("%s/%s-before-%d", setAsideRefs, s.stamp(), index)
		if err := s.repo.writeRef(ref, h); err != nil {
			return kept, err
		}
		if n == 1 {
			kept = ref
		}
		if g == nil {
			return kept, nil
		}
		c[g.child] = true
		index = g.index
	}
}
