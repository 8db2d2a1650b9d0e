package remote

import (
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
	response
}

// Remove removes the directory.
func (o *Objects) Remove() error {
	return errors.Join(o.Storage.Close(), os.RemoveAll(o.dir))
}

// take stores a pack. go-git inflates each object whole, whatever size it
// declares, so the pack is checked first.
func (o *Objects) take(from io.Reader) (err error) {
	f, err := os.Create(filepath.Join(o.dir, "incoming"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	var n uint32
	if _, err = io.Copy(f, from); err == nil {
		n, err = measure(f)
	}
	if err == nil && n > 0 {
		if _, err = f.Seek(0, io.SeekStart); err == nil {
			err = packfile.UpdateObjectStorage(o.Storage, f)
		}
	}
	var large *tooLargeError
	var server *serverError
	var own *fs.PathError
	switch {
	case err == nil, errors.As(err, &large), errors.As(err, &server), errors.As(err, &own):
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the pack was cut short: %w", io.ErrUnexpectedEOF)
	}
	return problem.New("", fmt.Errorf("the pack is damaged: %w", err), "it is fetched again; if that goes on, run git fsck on the server")
}

// measure refuses a pack whose objects exceed the bounds, without holding any:
// gitformat-pack(5). A delta begins with the sizes of its base and its result.
// It returns the number of objects.
func measure(pack io.ReadSeeker) (n uint32, err error) {
	if _, err := pack.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	s := packfile.NewScanner(pack)
	if _, n, err = s.Header(); err != nil {
		return 0, err
	}
	if n > maxObjects {
		return 0, fmt.Errorf("the pack has %d objects, more than %d", n, maxObjects)
	}
	var all, bases int64
	for range n {
		h, err := s.NextObjectHeader()
		if err != nil {
			return 0, err
		}
		size := h.Length
		if size < 0 || size > maxObject {
			return 0, &tooLargeError{"an object in the pack", maxObject}
		}
		var head beginning
		if _, _, err := s.NextObject(&head); err != nil {
			return 0, err
		}
		if h.Type == plumbing.OFSDeltaObject || h.Type == plumbing.REFDeltaObject {
			base, target, err := head.sizes()
			if err != nil {
				return 0, err
			}
			if base > maxObject || target > maxObject {
				return 0, &tooLargeError{"an object in the pack", maxObject}
			}
			size += int64(target)
			if bases += int64(base); bases > maxBases { // go-git copies the base for each delta
				return 0, &tooLargeError{"what the deltas in the pack begin with", maxBases}
			}
		}
		if all += size; all > maxInflated {
			return 0, &tooLargeError{"the content of the pack", maxInflated}
		}
	}
	return n, nil
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

// sizes returns those of a delta's base and of its result.
func (k *beginning) sizes() (base, target uint64, err error) {
	base, at := binary.Uvarint(k.b[:k.n])
	target, n := binary.Uvarint(k.b[max(at, 0):k.n])
	if at <= 0 || n <= 0 {
		return 0, 0, errors.New("a delta without sizes")
	}
	return base, target, nil
}
