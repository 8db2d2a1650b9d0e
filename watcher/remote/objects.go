package remote

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"dtesn-agent/schema/problem"
)

// Objects are what one fetch brought, in a directory of their own.
type Objects struct {
	*filesystem.Storage
	dir string
	// Filtered says that the server left out what the filter names.
	Filtered bool
}

// Remove gives the directory back.
func (o *Objects) Remove() error {
	return errors.Join(o.Storage.Close(), os.RemoveAll(o.dir))
}

// take takes a pack. go-git inflates each object whole, however large it says
// that it is, so the pack is first read through.
func (o *Objects) take(from io.Reader) (err error) {
	f, err := os.Create(filepath.Join(o.dir, "incoming"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if _, err := io.Copy(f, bound(from, maxPack, "the pack")); err != nil {
		return err
	}
	if err = measure(f); err == nil {
		if _, err = f.Seek(0, io.SeekStart); err == nil {
			err = packfile.UpdateObjectStorage(o.Storage, f)
		}
	}
	var large *tooLargeError
	var own *fs.PathError
	if err == nil || errors.As(err, &large) || errors.As(err, &own) {
		return err
	}
	return problem.New("", fmt.Errorf("the pack that came is damaged: %w", err), "it is fetched anew; if that goes on, see whether the repository is sound: git fsck")
}

// measure refuses a pack whose objects are larger than the bounds, without
// holding any: gitformat-pack(5). A delta says in its first bytes how large its
// base and what comes of it are.
func measure(pack io.ReadSeeker) error {
	if _, err := pack.Seek(0, io.SeekStart); err != nil {
		return err
	}
	s := packfile.NewScanner(pack)
	_, n, err := s.Header()
	if err != nil {
		return err
	}
	var all int64
	for range n {
		h, err := s.NextObjectHeader()
		if err != nil {
			return err
		}
		size := h.Length
		if size < 0 || size > maxObject {
			return &tooLargeError{"an object in the pack", maxObject}
		}
		var head beginning
		if _, _, err := s.NextObject(&head); err != nil {
			return err
		}
		if h.Type == plumbing.OFSDeltaObject || h.Type == plumbing.REFDeltaObject {
			target, err := head.target()
			if err != nil {
				return err
			}
			if target > maxObject {
				return &tooLargeError{"an object in the pack", maxObject}
			}
			size += int64(target)
		}
		if all += size; all > maxInflated {
			return &tooLargeError{"what the pack holds", maxInflated}
		}
	}
	return nil
}

// A beginning keeps the first bytes of what is written to it.
type beginning struct {
	b [2 * binary.MaxVarintLen64]byte
	n int
}

func (k *beginning) Write(p []byte) (int, error) {
	k.n += copy(k.b[k.n:], p)
	return len(p), nil
}

// target is the size of what a delta makes; its base's size comes before it.
func (k *beginning) target() (uint64, error) {
	r := bytes.NewReader(k.b[:k.n])
	_, errBase := binary.ReadUvarint(r)
	target, err := binary.ReadUvarint(r)
	if err = errors.Join(errBase, err); err != nil {
		return 0, fmt.Errorf("a delta without sizes: %w", err)
	}
	return target, nil
}
