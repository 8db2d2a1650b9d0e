package gitstore

import (
	"fmt"
	"slices"
)

// A `git gc --prune=now` of a person's removes what no ref named when it began to
// look, whenever it comes to it: objects that were synced since, even after the
// ref was moved. So the bytes of those that were synced last are kept, and whoever
// promises that they are on the disk looks at them again once the ref names them.

// recentMost is how many files are remembered: those of eight records.
const recentMost = 32

// remember keeps what was synced, to be looked at again.
func (w *objectWriter) remember() {
	w.recent = append(w.recent, w.unsynced...)
	if over := len(w.recent) - recentMost; over > 0 {
		w.recent = slices.Delete(w.recent, 0, over)
		w.looked = max(0, w.looked-over)
	}
}

// lookAgain writes those of the files again, durably, that are gone since they
// were synced.
//
// Syscalls: newfstatat of each; those of stillHas for one that is not loose; those
// of place and sync for one that is gone.
func (s *Store) lookAgain(files []looseFile) error {
	w, gone := &s.objects, 0
	for _, file := range slices.Clone(files) {
		there, err := exists(s.repo.objectPath(file.hash))
		if err == nil && !there {
			there, err = s.repo.stillHas(file.hash)
		}
		if err != nil {
			return fmt.Errorf("look for object %s: %w", file.hash, err)
		}
		if there || file.data == nil {
			continue
		}
		if err := w.place(file, s.repo.objectPath(file.hash)); err != nil {
			return fmt.Errorf("write object %s again: %w", file.hash, err)
		}
		w.unsynced, w.newDirs = append(w.unsynced, file), true
		gone++
	}
	if gone > 0 {
		s.repaired(fmt.Sprintf("%d objects of the newest records had gone away: a git gc --prune=now, perhaps", gone), "written again", "")
	}
	return nil
}

// settled looks again at what was synced since the last Confirm, for one who says
// that it is on the disk.
func (s *Store) settled() error {
	if err := s.lookAgain(s.objects.recent[s.objects.looked:]); err != nil || len(s.objects.unsynced) == 0 {
		return err
	}
	return s.objects.sync()
}

// probeObjects looks a last time at what was synced and confirmed: a gc of a long
// history takes seconds.
func (s *Store) probeObjects() error {
	w, before := &s.objects, len(s.objects.unsynced)
	err := s.lookAgain(w.recent[:w.looked])
	if err == nil && len(w.unsynced) > before {
		err = w.sync()
	}
	if err != nil {
		return err
	}
	w.recent, w.looked = slices.Delete(w.recent, 0, w.looked), 0
	return nil
}
