package gitstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/schema/problem"
)

// A person may have made the repository borrow objects of another one, by the
// file objects/info/alternates: gitrepository-layout(5). Then a gc removes what
// that one has as well, and the history lives as long as somebody else's
// directory does. So what it needs of there is taken in.

const alternatesFile = "alternates"

// takeIn puts what the refs name, and another repository alone has, into a pack
// of our own, durably, and sets the file aside that says where to borrow. Where
// something is in neither, nothing is done: it may be on a disk that is not
// mounted, and a new history must not be begun for that.
func (s *Store) takeIn(ctx context.Context) error {
	path := filepath.Join(s.repo.objects(), "info", alternatesFile)
	if there, err := exists(path); err != nil || !there {
		return err
	}
	lenders, err := s.repo.lenders()
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range lenders {
			l.closePacks()
		}
	}()
	list, missing, err := s.borrowed(ctx, lenders)
	if err == nil && missing > 0 {
		err = fmt.Errorf("%d objects that the history names can be read neither here nor where it points", missing)
	}
	if err == nil {
		err = s.copyIn(lenders, list)
	}
	if err != nil {
		return &problem.Error{Op: "follow", Place: path, Err: err, Hint: fmt.Sprintf(
			"mount or restore what it names; or, if git can read all, end the borrowing: git --git-dir %s repack -a -d && rm %s; or remove the file to go on with what is left", s.repo.dir, path)}
	}
	kept, err := s.setAside(path, "objects-info-alternates")
	if err == nil {
		s.repaired("the history borrows of another repository, by objects/info/alternates", fmt.Sprintf("%d objects were taken in", len(list)), kept)
	}
	return err
}

// lenders are the repositories that this one borrows of, and those that they do.
func (r *repo) lenders() (list []*repo, err error) {
	seen := map[string]bool{r.objects(): true}
	for from := []*repo{r}; len(from) > 0; from = from[1:] {
		objects := from[0].objects()
		data, err := readBounded(filepath.Join(objects, "info", alternatesFile), maxObject)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for line := range strings.Lines(string(data)) {
			dir := strings.TrimRight(line, "\r\n")
			if dir == "" || strings.HasPrefix(dir, "#") || strings.Contains(dir, "\x00") { // the last is torn
				continue
			}
			if !filepath.IsAbs(dir) {
				dir = filepath.Join(objects, dir)
			}
			if seen[dir] {
				continue
			}
			seen[dir] = true
			l := &repo{dir: r.dir, state: r.state, env: r.env, lent: dir, packs: map[string]*pack{}}
			list, from = append(list, l), append(from, l)
		}
	}
	return list, nil
}

// borrowed walks from all refs, and lists what only a lender has; what nobody
// has is counted.
func (s *Store) borrowed(ctx context.Context, lenders []*repo) (list []plumbing.Hash, missing int, err error) {
	refs, err := s.repo.refs()
	if err != nil {
		return nil, 0, err
	}
	cut, err := s.repo.readCuts()
	if err != nil && !errors.Is(err, errTornRef) {
		return nil, 0, err
	}
	next := slices.Collect(maps.Values(refs))
	for seen := map[plumbing.Hash]bool{}; len(next) > 0; {
		h := next[len(next)-1]
		next = next[:len(next)-1]
		if seen[h] {
			continue
		}
		if seen[h] = true; ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
		t, content, err := s.repo.objectAny(h)
		if err != nil && !fromDisk(err) {
			if t, content, err = lent(lenders, h); err == nil {
				list = append(list, h)
			}
		}
		if fromDisk(err) {
			return nil, 0, err
		}
		if err != nil {
			if there, err := s.repo.has(h); err != nil {
				return nil, 0, err
			} else if !there { // else it is large, or damaged: not for here
				missing++
			}
			continue
		}
		further, parents, err := names(t, content)
		if err != nil {
			return nil, 0, fmt.Errorf("read %s %s: %w", t, h, err)
		}
		next = append(append(next, further.blobs...), further.others...)
		if !cut[h] {
			next = append(next, parents...)
		}
	}
	return list, missing, nil
}

// lent reads an object of the first lender that has it.
func lent(lenders []*repo, h plumbing.Hash) (t plumbing.ObjectType, content []byte, err error) {
	err = plumbing.ErrObjectNotFound
	for _, l := range lenders {
		if t, content, err = l.objectAny(h); err == nil || fromDisk(err) {
			break
		}
	}
	return t, content, err
}

// copyIn writes objects of the lenders into a pack of our own.
func (s *Store) copyIn(lenders []*repo, list []plumbing.Hash) error {
	if len(list) == 0 {
		return nil
	}
	w, err := newPackWriter(s.repo.tmp(), len(list))
	if err != nil {
		return err
	}
	for _, h := range list {
		t, content, err := lent(lenders, h)
		if err == nil {
			_, err = w.add(t, h, content, nil)
		}
		if err != nil {
			w.abandon()
			return err
		}
	}
	_, err = w.finish(filepath.Join(s.repo.objects(), "pack"), s.repo.tmp())
	return err
}
