package gitstore

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/go-git/go-git/v5/plumbing"
)

// trim writes the file of an object anew behind whose end something stands, without
// that, and reports whether it did. The old file is kept.
func (s *Store) trim(h plumbing.Hash, path string) (bool, error) {
	data, err := readBounded(path, 2*maxObject)
	if err != nil {
		return false, nil // whoever needs it says so
	}
	t, content, err := decodeObject(data)
	if !errors.Is(err, errTail) || plumbing.ComputeHash(t, content) != h {
		return false, nil
	}
	why := err
	file, err := s.objects.encode(t, content)
	if err != nil {
		return false, err
	}
	kept, err := s.setAside(path, "object-"+h.String()+"-and-more")
	if err == nil {
		err = s.objects.place(file, path)
	}
	if err == nil {
		err = errors.Join(syncPath(path), syncPath(filepath.Dir(path)))
	}
	if err != nil {
		return false, fmt.Errorf("write object %s anew: %w", h, err)
	}
	s.repaired(fmt.Sprintf("the file of the object %s has %v", h, why), "written anew without them", kept)
	return true, nil
}

// trimObjects is trim for all loose objects.
func (s *Store) trimObjects() (trimmed bool, err error) {
	err = s.repo.eachLoose(func(h plumbing.Hash, path string) error {
		one, err := s.trim(h, path)
		trimmed = trimmed || one
		return err
	})
	return trimmed, err
}
