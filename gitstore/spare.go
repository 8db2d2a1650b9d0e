package gitstore

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"

	"dtesn-agent/gitstore/record"
)

// The applied record is what the engine runs and the hold in force, and there is
// one of it. So its four objects stand in appliedFile once more, as their loose
// files have them, one after another. They need no checksum of their own: the
// first line names the commit, the commit the tree, the tree the files, each by
// the hash of its content. What is behind the last one is of an older record.

// maxNotes bounds appliedFile, in bytes. A record that does not fit is not in it.
const maxNotes = 64 << 10

// spare is the second copy of the objects of a record, in the order in which they
// are written; nil if appliedFile has no whole one.
func (r *repo) spare(commit plumbing.Hash) []looseFile {
	data, err := readBounded(filepath.Join(r.state, appliedFile), maxNotes)
	if err != nil {
		return nil
	}
	parts := bytes.SplitN(data, []byte{'\n'}, 4)
	copies := map[plumbing.Hash]looseFile{}
	contents := map[plumbing.Hash][]byte{}
	for rest := parts[len(parts)-1]; len(copies) < recordObjects; {
		rd := bytes.NewReader(rest)
		t, content, err := readObject(rd)
		if err != nil {
			return nil
		}
		h := plumbing.ComputeHash(t, content)
		copies[h] = looseFile{hash: h, data: rest[:len(rest)-rd.Len()]}
		contents[h] = content
		rest = rest[len(rest)-rd.Len():]
	}
	var files []looseFile
	for _, h := range partsOf(commit, func(_ plumbing.ObjectType, h plumbing.Hash) ([]byte, error) { return contents[h], nil }) {
		if contents[h] == nil {
			return nil
		}
		files = append(files, copies[h])
	}
	return files
}

// recordObjects is how many objects a record has.
const recordObjects = 4

// partsOf lists the objects of a record, its commit last; nil if commit or tree
// cannot be read.
func partsOf(commit plumbing.Hash, read func(plumbing.ObjectType, plumbing.Hash) ([]byte, error)) []plumbing.Hash {
	c, tree := new(object.Commit), new(object.Tree)
	content, err := read(plumbing.CommitObject, commit)
	if err != nil || content == nil || c.Decode(memoryObject(plumbing.CommitObject, content)) != nil {
		return nil
	}
	content, err = read(plumbing.TreeObject, c.TreeHash)
	if err != nil || content == nil || tree.Decode(memoryObject(plumbing.TreeObject, content)) != nil || len(tree.Entries) != recordObjects-2 {
		return nil
	}
	return []plumbing.Hash{tree.Entries[0].Hash, tree.Entries[1].Hash, c.TreeHash, commit}
}

// spareOf is what spare reads: the objects of a record; nil if they cannot be had.
//
// Syscalls: none for the head that this process wrote; else those of
// repo.object.
func (s *Store) spareOf(snap *record.Record) (all []byte) {
	recent := map[plumbing.Hash][]byte{}
	for _, file := range s.headFiles {
		recent[file.hash] = file.data
	}
	read := func(t plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
		if data := recent[h]; data != nil {
			_, content, err := decodeObject(data)
			return content, err
		}
		content, err := s.repo.object(t, h)
		if err != nil {
			return nil, err
		}
		file, err := s.objects.encode(t, content)
		recent[h] = file.data
		return content, err
	}
	for i, h := range partsOf(hashOf(snap), read) {
		if i < recordObjects-2 && recent[h] == nil {
			if _, err := read(plumbing.BlobObject, h); err != nil {
				return nil
			}
		}
		all = append(all, recent[h]...)
	}
	return all
}

// restore makes the record whole again that was noted as applied, bit for bit,
// where an object of it is damaged and the history is still the one in which it
// stands: a ref names it, or what is left of it, or of the record below, is there.
func (s *Store) restore(refs ...named) (restored bool, err error) {
	noted := s.repo.readNotes().applied
	files := s.repo.spare(noted.commit)
	if files == nil {
		return false, nil
	}
	if _, err = s.repo.snapshot(noted.commit); err == nil || !errors.Is(err, errDamaged) {
		return false, unlessCurable(err)
	}
	why := err
	if stands, err := s.stoodHere(noted.commit, files, refs); err != nil || !stands {
		return false, err
	}
	if err := s.makeSkeleton(); err != nil {
		return false, err
	}
	n := 0
	for _, file := range files {
		wrote, err := s.restoreObject(file)
		if err != nil {
			return false, fmt.Errorf("restore object %s: %w", file.hash, err)
		}
		if wrote {
			n++
		}
	}
	if err := s.objects.sync(); err != nil {
		return false, err
	}
	s.repaired(fmt.Sprintf("the applied record %s is damaged (%v)", noted.id, why), fmt.Sprintf("made whole again: %d of its objects were written anew from the file %s", n, appliedFile), "")
	return true, nil
}

// restoreObject writes an object of the spare copy, where the one that is there
// cannot be read.
func (s *Store) restoreObject(file looseFile) (wrote bool, err error) {
	_, err = s.repo.object(plumbing.AnyObject, file.hash)
	if err == nil || !errors.Is(err, errDamaged) {
		return false, err
	}
	path := s.repo.objectPath(file.hash)
	if there, err := exists(path); err != nil {
		return false, err
	} else if there {
		if err := s.setTornAside(path, "object-"+file.hash.String()+"-torn"); err != nil {
			return false, err
		}
	}
	if err := s.objects.place(file, path); err != nil {
		return false, err
	}
	s.objects.unsynced, s.objects.newDirs = append(s.objects.unsynced, file), true
	return true, nil
}

// stoodHere reports whether the repository is the one in which a record stood that
// is damaged.
func (s *Store) stoodHere(commit plumbing.Hash, files []looseFile, refs []named) (bool, error) {
	for _, n := range refs {
		if n.hash == commit {
			return true, nil
		}
	}
	last := files[len(files)-1]
	_, content, err := decodeObject(last.data)
	if err != nil {
		return false, err
	}
	c := new(object.Commit)
	if err := c.Decode(memoryObject(plumbing.CommitObject, content)); err != nil {
		return false, err
	}
	for _, h := range append([]plumbing.Hash{commit, c.TreeHash}, c.ParentHashes...) {
		if there, err := s.repo.has(h); err != nil || there {
			return there, err
		}
	}
	return false, nil
}
