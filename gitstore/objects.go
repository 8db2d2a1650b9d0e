package gitstore

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

// A looseFile is an object's file that is written and not yet known to be on
// the disk. Its bytes are kept until then: after a failed sync the kernel may
// call the pages clean, so that only writing them again makes a later sync
// mean something.
type looseFile struct {
	hash plumbing.Hash
	data []byte // nil where an earlier process wrote it
	made bool   // the file was not there before
}

// An objectWriter writes loose objects and remembers which of them are not
// synced. It is for one goroutine.
type objectWriter struct {
	repo     *repo
	unsynced []looseFile
	// recent are the files that were synced lately, see again.go; vanished is when
	// one of them was last seen to be gone.
	recent   []recentFile
	vanished time.Time
	// newDirs: directories were made under objects/ since the last sync, or it
	// is not known.
	newDirs bool
	// suspect: a sync failed, or may have; what is unsynced must be written again
	// first.
	suspect bool
	// doubtful are files that were given up after a failed sync: they read well,
	// and nothing says that the disk has them.
	doubtful map[plumbing.Hash]bool
	// setAside keeps a damaged file and tells of it.
	setAside func(path, name string) error
	// clear sets aside what stands where a directory belongs.
	clear func(path string, wantDir bool) error

	buf bytes.Buffer
	zw  *zlib.Writer
}

// encode gives the name of an object and the bytes of its loose file. The
// least compression: the files are small, and packing compresses them again.
func (w *objectWriter) encode(t plumbing.ObjectType, content []byte) (looseFile, error) {
	w.buf.Reset()
	if w.zw == nil {
		zw, err := zlib.NewWriterLevel(&w.buf, zlib.BestSpeed)
		if err != nil {
			return looseFile{}, err
		}
		w.zw = zw
	}
	w.zw.Reset(&w.buf)
	header := append(strconv.AppendInt(append(t.Bytes(), ' '), int64(len(content)), 10), 0)
	_, err := w.zw.Write(header)
	if err == nil {
		_, err = w.zw.Write(content)
	}
	if err = errors.Join(err, w.zw.Close()); err != nil {
		return looseFile{}, fmt.Errorf("compress a %s: %w", t, err)
	}
	return looseFile{hash: plumbing.ComputeHash(t, content), data: bytes.Clone(w.buf.Bytes())}, nil
}

// put writes an object, unsynced. A file that is there under its name is used
// only if it reads back as the object; a torn one is set aside first.
//
// Syscalls: openat of the object (ENOENT as a rule); in tmp/ openat(O_CREAT|O_EXCL)
// or, for a file made ahead, openat and fchmod; write, close, newfstatat, renameat; where
// the object's directory is new, mkdirat and renameat again. For an object that
// is there: read, utimensat.
func (w *objectWriter) put(t plumbing.ObjectType, content []byte) (plumbing.Hash, error) {
	file, err := w.encode(t, content)
	if err != nil {
		return file.hash, err
	}
	path := w.repo.objectPath(file.hash)
	_, err = w.repo.loose(t, file.hash)
	switch {
	case err == nil:
		// As git does: a young object is not pruned by a gc that runs beside us.
		now := time.Now()
		_ = os.Chtimes(path, now, now)
		w.suspect = w.suspect || w.doubtful[file.hash]
		w.unsynced = append(w.unsynced, file)
		return file.hash, nil
	case errors.Is(err, errDamaged):
		if err := w.setAside(path, "object-"+file.hash.String()+"-torn"); err != nil {
			return file.hash, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return file.hash, fmt.Errorf("look for %s %s: %w", t, file.hash, err)
	}
	if err := w.place(file, path); err != nil {
		return file.hash, fmt.Errorf("write %s %s: %w", t, file.hash, err)
	}
	file.made = true
	w.unsynced = append(w.unsynced, file)
	return file.hash, nil
}

// place writes the file of an object beside and renames it into place.
func (w *objectWriter) place(file looseFile, path string) error {
	tmp, err := w.repo.temp(file.data, objectPerm)
	if err != nil {
		return err
	}
	return w.move(tmp, path)
}

// move renames tmp to the path of an object.
func (w *objectWriter) move(tmp, path string) error {
	err := os.Rename(tmp, path)
	if errors.Is(err, fs.ErrNotExist) {
		w.newDirs = true
		if err = os.Mkdir(filepath.Dir(path), 0o755); err == nil {
			err = os.Rename(tmp, path)
		}
	}
	if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ELOOP) {
		if err = w.clear(filepath.Dir(path), true); err == nil {
			w.newDirs = true
			err = errors.Join(os.Mkdir(filepath.Dir(path), 0o755), os.Rename(tmp, path))
		}
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

// sync makes all objects written so far durable, with the further files and
// directories given, side by side. What it syncs, it syncs whole: objects, the
// directories they lie in, and objects/ where one of those is new.
//
// Syscalls, in parallel, for each object and each distinct directory:
// openat(O_RDONLY), fsync, close.
func (w *objectWriter) sync(further ...string) error {
	if w.suspect {
		if err := w.rewrite(); err != nil {
			return err
		}
	}
	paths := slices.Clone(further)
	dirs := make(map[string]bool, len(w.unsynced))
	for _, file := range w.unsynced {
		path := w.repo.objectPath(file.hash)
		paths = append(paths, path)
		dirs[filepath.Dir(path)] = true
	}
	if w.newDirs {
		dirs[w.repo.objects()] = true
	}
	paths = slices.AppendSeq(paths, maps.Keys(dirs))
	gone := false
	err := syncPaths(paths, func(string) { gone = true })
	if err == nil && gone {
		err = w.syncPacked()
	}
	if err != nil {
		w.suspect = true
		return fmt.Errorf("sync the snapshot: %w", err)
	}
	w.remember()
	w.unsynced, w.newDirs = w.unsynced[:0], false
	return nil
}

// rewrite writes the unsynced objects again after a sync failed. The new file is
// synced before it takes the place of the old one, which an applied record may
// name as well.
//
// Syscalls, for each: openat, read, close where the bytes are not in memory;
// openat(O_CREAT|O_EXCL), write, close, openat, fsync, close; renameat.
func (w *objectWriter) rewrite() error {
	for i, file := range w.unsynced {
		path := w.repo.objectPath(file.hash)
		if file.data == nil {
			data, err := w.readAgain(file.hash)
			if errors.Is(err, errDamaged) {
				if _, perr := w.repo.packed(plumbing.AnyObject, file.hash); perr == nil { // and that is what is read
					if err = w.setAside(path, "object-"+file.hash.String()+"-torn"); err == nil {
						continue
					}
				}
			}
			if errors.Is(err, fs.ErrNotExist) {
				continue // packed by now; sync looks after it
			}
			if err != nil {
				return fmt.Errorf("read object %s again: %w", file.hash, err)
			}
			w.unsynced[i].data, file.data = data, data
		}
		tmp, err := w.repo.temp(file.data, objectPerm)
		if err == nil {
			if err = syncPath(tmp); err != nil {
				_ = os.Remove(tmp)
			} else {
				err = w.move(tmp, path)
			}
		}
		if err != nil {
			return fmt.Errorf("write object %s again: %w", file.hash, err)
		}
		delete(w.doubtful, file.hash)
	}
	w.newDirs, w.suspect = true, false
	return nil
}

// readAgain reads the file of an object. It must be the object still: what a
// failed sync left may be forgotten by the kernel and read anew from the disk.
func (w *objectWriter) readAgain(h plumbing.Hash) ([]byte, error) {
	data, err := readBounded(w.repo.objectPath(h), 2*maxObject)
	if err != nil {
		return nil, err
	}
	t, content, err := decodeObject(data)
	if err != nil {
		return nil, fmt.Errorf("%w: it is torn: %w", errDamaged, err)
	}
	return data, checkObject(t, t, h, content)
}

// syncPacked is for objects whose loose files went away since they were
// written: a person's gc put them into a pack. They must be there, and the
// packs are synced with their directory.
func (w *objectWriter) syncPacked() error {
	for _, file := range w.unsynced {
		if _, err := w.repo.object(plumbing.AnyObject, file.hash); err != nil {
			if file.data == nil || !errors.Is(err, errDamaged) {
				return err
			}
			if err := w.place(file, w.repo.objectPath(file.hash)); err != nil {
				return err
			}
			w.newDirs = true
			return fmt.Errorf("object %s had gone away and was written again", file.hash)
		}
	}
	dir := filepath.Join(w.repo.objects(), "pack")
	packs, err := glob(dir, "pack-*")
	if err != nil {
		return err
	}
	return syncPaths(append(packs, dir, w.repo.objects()), nil)
}

// forget drops what was written since mark, for a commit that failed. The
// files stay: they are whole, and nothing names them.
func (w *objectWriter) forget(mark int) {
	mark = min(mark, len(w.unsynced))
	for _, file := range w.unsynced[mark:] {
		if w.suspect {
			if w.doubtful == nil {
				w.doubtful = map[plumbing.Hash]bool{}
			}
			w.doubtful[file.hash] = true
		}
	}
	w.unsynced = w.unsynced[:mark]
}

// giveBack removes what was written since mark for a commit that the disk has no
// space for: each further attempt would leave a little more, and nothing names it.
func (w *objectWriter) giveBack(mark int) {
	for _, file := range w.unsynced[min(mark, len(w.unsynced)):] {
		if file.made {
			_ = os.Remove(w.repo.objectPath(file.hash))
		}
	}
}
