package gitstore

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

// A `git gc --prune=now` of a person's removes what no ref named when it began to
// look, whenever it comes to it, directory by directory: objects that were synced
// since, even long after a ref named them. So the bytes of those that were synced
// lately are kept until they are in a pack, and looked at again and again: the
// head's before a Commit builds on them, those that a Confirm vouches for once its
// ref names them, the newest by each Prepare, all by each Probe.

const (
	// recentFor is for how long a file is remembered after its sync, and after
	// the last time that one had gone away.
	recentFor = 5 * time.Minute
	// recentMost and recentBytes bound what is remembered; a record is four
	// files of a few hundred bytes.
	recentMost  = 2048
	recentBytes = 8 << 20
	// recentFew is how many files a Prepare looks at: those of eight records.
	recentFew = 32
	// gcAge is how old a file gc.pid is that git itself takes for a leftover.
	gcAge = 12 * time.Hour
)

// A recentFile is a file that was synced at a time of the running clock; settled,
// once a Confirm looked at it after its ref named it.
type recentFile struct {
	looseFile
	at      time.Time
	settled bool
}

// remember keeps what was synced, to be looked at again. Of what an earlier
// process wrote there are no bytes to keep.
func (w *objectWriter) remember() {
	now := time.Now()
	for _, file := range w.unsynced {
		if file.data != nil {
			w.recent = append(w.recent, recentFile{file, now, false})
		}
	}
	over, size := 0, 0
	if len(w.recent) > recentMost {
		over = len(w.recent) - recentMost*3/4 // not a few each time
	}
	for i := len(w.recent) - 1; i >= over; i-- {
		if size += len(w.recent[i].data); size > recentBytes {
			over = i + 1
		}
	}
	w.recent = slices.Delete(w.recent, 0, over)
}

// forgetRecent forgets what was synced so long ago that a gc which did not know of
// it has ended, or is gone for good.
func (s *Store) forgetRecent() {
	w := &s.objects
	info, err := os.Lstat(filepath.Join(s.repo.dir, "gc.pid"))
	if time.Since(w.vanished) < recentFor || err == nil && !stale(time.Now(), info.ModTime(), gcAge) {
		return
	}
	w.recent = slices.DeleteFunc(w.recent, func(f recentFile) bool { return f.settled && time.Since(f.at) >= recentFor })
}

// lookAgain writes those of the files again that are gone since they were written,
// and returns how many. What had been synced is unsynced then; what is in a pack is
// forgotten.
//
// Syscalls: newfstatat of each; those of stillHas for the first that is not loose,
// and for each that is in no pack known; those of place for one that is gone.
func (s *Store) lookAgain(files []looseFile) (written int, err error) {
	w := &s.objects
	gone, packed := map[plumbing.Hash]bool{}, map[plumbing.Hash]bool{}
	listed := false
	for _, file := range files {
		there, err := exists(s.repo.objectPath(file.hash))
		if err == nil && !there {
			if listed { // most are in one pack
				there, err = s.repo.has(file.hash)
			}
			if err == nil && !there { // a packing may have ended since
				there, err = s.repo.stillHas(file.hash)
			}
			packed[file.hash], listed = there, true
		}
		if err != nil {
			return len(gone), fmt.Errorf("look for object %s: %w", file.hash, err)
		}
		if there || file.data == nil {
			continue
		}
		if err := w.place(file, s.repo.objectPath(file.hash)); err != nil {
			return len(gone), fmt.Errorf("write object %s again: %w", file.hash, err)
		}
		if !slices.ContainsFunc(w.unsynced, func(f looseFile) bool { return f.hash == file.hash }) {
			w.unsynced = append(w.unsynced, file)
		}
		gone[file.hash], w.newDirs, w.vanished = true, true, time.Now()
	}
	if len(gone)+len(packed) > 0 {
		w.recent = slices.DeleteFunc(w.recent, func(f recentFile) bool { return gone[f.hash] || packed[f.hash] })
	}
	if len(gone) > 0 {
		s.repaired(fmt.Sprintf("%d objects of the newest records had gone away: a git gc --prune=now, perhaps", len(gone)), "written again", "")
	}
	return len(gone), nil
}

// lookDurably is lookAgain for files that were synced: those written again are
// synced again, with all that is not.
func (s *Store) lookDurably(files []looseFile) error {
	if written, err := s.lookAgain(files); err != nil || written == 0 {
		return err
	}
	return s.objects.sync()
}

// lookAtHead looks at what the next record is to stand on.
func (s *Store) lookAtHead() error {
	if len(s.objects.unsynced) > 0 {
		_, err := s.lookAgain(s.headFiles) // the next Confirm syncs them
		return err
	}
	return s.lookDurably(s.headFiles)
}

// settled looks again at what was synced since the last Confirm, for one who says
// that it is on the disk.
func (s *Store) settled() error { return s.lookDurably(looseFiles(s.objects.unsettled())) }

// unsettled are the newest of the recent files, which no Confirm looked at.
func (w *objectWriter) unsettled() []recentFile {
	i := len(w.recent)
	for i > 0 && !w.recent[i-1].settled {
		i--
	}
	return w.recent[i:]
}

// probeObjects looks at all that is remembered, and forgets what is old.
func (s *Store) probeObjects() error {
	if err := s.lookDurably(looseFiles(s.objects.recent)); err != nil {
		return err
	}
	s.forgetRecent()
	return nil
}

// lookBeside looks at the newest files while nobody waits; at all, while a gc is
// seen to be at work. What fails shows at the Commit or the Probe.
func (s *Store) lookBeside() {
	w := &s.objects
	since := max(0, len(w.recent)-recentFew)
	if time.Since(w.vanished) < recentFor {
		since = 0
	}
	if err := s.lookDurably(looseFiles(w.recent[since:])); err != nil {
		s.log.Warn("what a git gc took of the history could not be written again; it is tried again", "error", err)
	}
}

func looseFiles(list []recentFile) (files []looseFile) {
	for _, f := range list {
		files = append(files, f.looseFile)
	}
	return files
}
