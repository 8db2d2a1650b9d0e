package gitstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"

	"dtesn-agent/gitstore/record"
)

// stamp is the time in the name of what is set aside.
func (s *Store) stamp() string { return s.opts.Now().UTC().Format("20060102T150405.000000Z") }

// setAside moves a file or directory into <state>/set-aside under name, and
// returns where it is now.
func (s *Store) setAside(path, name string) (string, error) {
	kept, err := s.asidePath(name)
	if err == nil {
		err = moveAway(path, kept)
	}
	if err != nil {
		return "", fmt.Errorf("set %s aside: %w", path, err)
	}
	return kept, nil
}

// asidePath is a path below <state>/set-aside at which nothing lies.
func (s *Store) asidePath(name string) (string, error) {
	dir, err := s.makeSetAside()
	if err != nil {
		return "", err
	}
	kept := filepath.Join(dir, name)
	for n := 2; ; n++ {
		if there, err := exists(kept); err != nil || !there {
			return kept, err
		}
		kept = filepath.Join(dir, fmt.Sprintf("%s-%d", name, n))
	}
}

// setTornAside sets the file of a torn object aside.
func (s *Store) setTornAside(path, name string) error {
	kept, err := s.setAside(path, name)
	if err == nil {
		s.repaired("a torn object, "+filepath.Base(filepath.Dir(path))+filepath.Base(path), "set aside", kept)
	}
	return err
}

// setLostAside sets the commit of a lost candidate aside, if its file is there:
// it names what is not.
func (s *Store) setLostAside(h plumbing.Hash) error {
	path := s.repo.objectPath(h)
	if there, err := exists(path); err != nil || !there {
		return err
	}
	_, err := s.setAside(path, "object-"+h.String()+"-lost-candidate")
	return err
}

// setRefAside sets the loose file of a ref aside, if there is one; why is a word
// for its name.
func (s *Store) setRefAside(ref, why string) error {
	path := filepath.Join(s.repo.dir, ref)
	if there, err := exists(path); err != nil || !there {
		return err
	}
	kept, err := s.setAside(path, "ref-"+strings.ReplaceAll(ref, "/", "-")+"-"+why)
	if err == nil {
		s.repaired("the ref "+ref+" is "+why, "set aside", kept)
	}
	return err
}

// clearPlaces moves away what is a file where a directory belongs, and the
// other way round.
func (s *Store) clearPlaces() error {
	env := s.opts.Environment
	for _, sub := range skeletonDirs() {
		if err := s.clearPlace(filepath.Join(s.repo.dir, sub), true); err != nil {
			return err
		}
	}
	if err := s.clearFans(); err != nil {
		return err
	}
	for _, file := range []struct {
		name  string
		limit int64
	}{
		{"HEAD", maxObject},
		{"config", maxObject},
		{packedRefs, maxPacked},
		{shallowFile, maxPacked},
		{headRef(env), maxRef},
		{appliedRef(env), maxRef},
		{retriedRef(env), maxRef},
		{"objects/info/" + alternatesFile, maxObject},
	} {
		path := filepath.Join(s.repo.dir, file.name)
		if err := s.clearPlace(path, false); err != nil {
			return err
		}
		if err := s.clearLarge(path, file.limit); err != nil {
			return err
		}
	}
	packs := filepath.Join(s.repo.objects(), "pack")
	entries, err := os.ReadDir(packs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			continue
		}
		if err := s.clearPlace(filepath.Join(packs, e.Name()), false); err != nil {
			return err
		}
	}
	return nil
}

// clearFans is clearPlace for the directories of the loose objects.
func (s *Store) clearFans() error {
	entries, err := os.ReadDir(s.repo.objects())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if fan, _ := filepath.Match("[0-9a-f][0-9a-f]", e.Name()); fan && !e.IsDir() {
			if err := s.clearPlace(filepath.Join(s.repo.objects(), e.Name()), true); err != nil {
				return err
			}
		}
	}
	return nil
}

// kindOf says what is there.
func kindOf(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	case mode&fs.ModeSymlink != 0:
		return "a link to nothing"
	}
	return "a file"
}

// dashed is a phrase as a part of a file's name.
func dashed(words string) string { return strings.ReplaceAll(words, " ", "-") }

// clearPlace sets aside what is at path if it is of the wrong kind. A link
// counts as what it leads to. One that leads nowhere is a disk that is not mounted,
// where the history itself would be; it is set aside where nothing is lost by that.
func (s *Store) clearPlace(path string, wantDir bool) error {
	info, err := os.Stat(path)
	name := s.placeName(path)
	disk := name == "objects" || name == "objects/pack" || name == "refs"
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENAMETOOLONG) || errors.Is(err, syscall.ENOTDIR) && !disk || errors.Is(err, fs.ErrNotExist) && wantDir && !disk {
		info, err = os.Lstat(path)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil || wantDir && info.IsDir() || !wantDir && info.Mode().IsRegular() {
		return err
	}
	is := kindOf(info.Mode())
	kept, err := s.setAside(path, strings.ReplaceAll(name, "/", "-")+"-is-"+dashed(is))
	if err == nil {
		s.repaired(is+" where "+name+" belongs", "set aside", kept)
	}
	return err
}

// makeSkeleton makes the directories of the repository that are missing.
func (s *Store) makeSkeleton() error {
	for _, sub := range skeletonDirs() {
		// Packing removes the empty ones below, never these two.
		if there, err := exists(filepath.Join(s.repo.dir, sub)); err == nil && !there && (sub == "objects" || sub == "refs") {
			s.repaired(sub+" of the repository is missing", "made anew, empty", "")
		}
		if err := os.MkdirAll(filepath.Join(s.repo.dir, sub), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// tidy makes the skeleton whole and removes locks that nobody holds.
func (s *Store) tidy() error {
	for _, mend := range []func() error{s.makeSkeleton, s.mendHead, s.mendConfig, s.mendPackedRefs, s.mendCaches} {
		if err := mend(); err != nil {
			return err
		}
	}
	return s.removeStaleLocks()
}

// removeStaleLocks removes the lock files that a killed git left: they keep
// people's git from working. This package neither makes nor heeds them, but for
// packed-refs.lock.
func (s *Store) removeStaleLocks() error {
	var locks []string
	for _, dir := range []string{".", "objects", "objects/info"} {
		found, err := glob(filepath.Join(s.repo.dir, dir), "*.lock")
		if err != nil {
			return err
		}
		locks = append(locks, found...)
	}
	locks = append(locks, filepath.Join(s.repo.dir, packedRefs+".new")) // git makes no other while it is there
	err := filepath.WalkDir(filepath.Join(s.repo.dir, "refs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".lock") {
			locks = append(locks, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, path := range locks {
		info, err := os.Lstat(path)
		if err != nil || !stale(s.opts.Now(), info.ModTime(), staleLock) {
			continue // gone by itself, or in use
		}
		name, did, kept := s.placeName(path), "removed", ""
		if info.IsDir() { // git never makes one
			did = "set aside"
			kept, err = s.setAside(path, strings.ReplaceAll(name, "/", "-")+"-is-a-directory")
		} else {
			err = os.Remove(path)
		}
		if err != nil {
			return err
		}
		s.repaired("a stale lock, "+name, did, kept)
	}
	return nil
}

// eachLoose calls do for every loose object's file.
func (r *repo) eachLoose(do func(h plumbing.Hash, path string) error) error {
	dirs, err := glob(r.objects(), "[0-9a-f][0-9a-f]")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			h, ok := parseHash(filepath.Base(dir) + e.Name())
			if !ok {
				continue // git's own temporary file
			}
			if err := do(h, filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepObjects sets torn loose objects aside: those that do not read back, but for
// large ones, which are not ours, from more than an hour before the applied record.
// A date alone says little: the clock may have been set back since.
func (s *Store) sweepObjects(applied *record.Record) error {
	var since time.Time
	if applied != nil {
		since = applied.Time().Add(-time.Hour)
	}
	return s.repo.eachLoose(func(h plumbing.Hash, path string) error {
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if _, serr := os.Stat(path); (errors.Is(serr, fs.ErrNotExist) || errors.Is(serr, syscall.ELOOP)) && info.Mode()&fs.ModeSymlink != 0 {
			return s.setTornAside(path, "object-"+h.String()+"-is-a-link-to-nothing")
		}
		if info.Size() > 2*maxObject && info.ModTime().Before(since) && !info.IsDir() {
			return nil
		}
		if trimmed, err := s.trim(h, path); trimmed || err != nil {
			return err
		}
		if _, err = s.repo.verify(h); errors.Is(err, errDamaged) {
			return s.setTornAside(path, "object-"+h.String()+"-torn")
		}
		return err
	})
}

// sweepRefs sets aside every ref that names nothing, or an object that is not
// there: one such breaks commands of people's git.
func (s *Store) sweepRefs(ctx context.Context) error {
	root := filepath.Join(s.repo.dir, "refs")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".lock") {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		if !d.Type().IsRegular() {
			return s.clearPlace(path, false) // git would wait for a pipe
		}
		data, err := readBounded(path, maxRef)
		if errors.Is(err, errTooLarge) {
			return s.clearLarge(path, maxRef)
		}
		if err != nil {
			return err
		}
		ref, err := filepath.Rel(s.repo.dir, path)
		if err != nil {
			return err
		}
		text := strings.TrimSpace(string(data))
		h, ok := anyHash(text)
		switch {
		case strings.HasPrefix(text, "ref: "):
			return nil // it names another ref
		case !ok:
			return s.setRefAside(ref, "torn")
		}
		if there, err := s.repo.has(h); err != nil || there {
			return err
		}
		return s.setRefAside(ref, "lost")
	})
	if err != nil {
		return err
	}
	return s.sweepPackedRefs(ctx)
}

// sweepPackedRefs does what sweepRefs does, for the refs in packed-refs. Those
// that a loose file stands before are looked at too: git fsck does.
func (s *Store) sweepPackedRefs(ctx context.Context) error {
	data, err := readBounded(filepath.Join(s.repo.dir, packedRefs), maxPacked)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		hex, ref, _ := strings.Cut(strings.TrimSpace(line), " ")
		h, ok := parseHash(hex)
		if !ok || ref == "" {
			continue
		}
		if there, err := s.repo.has(h); err != nil {
			return err
		} else if there {
			continue
		}
		if err := s.repo.unpackRef(ctx, ref); err != nil {
			return s.leaveLocked(ref, err)
		}
		s.repaired("the packed ref "+ref+" names "+hex+", which is lost", "removed", "")
	}
	return nil
}

// has reports whether there is an object of this name, whatever it holds.
func (r *repo) has(h plumbing.Hash) (bool, error) {
	if there, err := exists(r.objectPath(h)); there || err != nil {
		return there, err
	}
	return r.inPacks(h, nil)
}

// objectsOf lists the objects of a record: commit, tree, blobs.
func (r *repo) objectsOf(h plumbing.Hash) ([]plumbing.Hash, error) {
	c, err := r.commit(h)
	if err != nil {
		return nil, err
	}
	content, err := r.object(plumbing.TreeObject, c.TreeHash)
	if err != nil {
		return nil, err
	}
	tree := new(object.Tree)
	if err := tree.Decode(memoryObject(plumbing.TreeObject, content)); err != nil {
		return nil, err
	}
	hashes := []plumbing.Hash{h, c.TreeHash}
	for _, e := range tree.Entries {
		hashes = append(hashes, e.Hash)
	}
	return hashes, nil
}
