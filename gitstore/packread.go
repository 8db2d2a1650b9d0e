package gitstore

import (
	"bufio"
	"bytes"
	"crypto/sha1" // git's object format
	"errors"
	"fmt"
	"io"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	gitsync "github.com/go-git/go-git/v5/utils/sync"
)

// A packSource reads the objects of a pack's file: gitformat-pack(5). What an
// object takes in memory is known from its head, or from that of a difference,
// before any of it is inflated.
type packSource struct {
	file io.ReaderAt
	size int64
	most int64                             // bytes of the largest object that is read
	find func(plumbing.Hash) (int64, bool) // where an object begins
}

const (
	maxChain = 4096 // differences to one object: git's own bound
	// maxPackedHead bounds the head of an object: type and size, and a base.
	maxPackedHead = 64
)

var errPackTorn = errors.New("the pack is torn here")

// A packedHead is what stands before an object's data.
type packedHead struct {
	t    plumbing.ObjectType
	size int64 // of the object, or of the difference
	base int64 // where that lies to which the object is the difference, 0 if to none
	data int64 // where the data begins
}

// head reads what stands at an offset.
func (s *packSource) head(at int64) (h packedHead, err error) {
	limit := s.size - sha1.Size
	if at < packHead || at >= limit {
		return h, errPackTorn
	}
	var buf [maxPackedHead]byte
	n, err := s.file.ReadAt(buf[:min(int64(len(buf)), limit-at)], at)
	if err != nil && !errors.Is(err, io.EOF) {
		return h, err
	}
	rd := bytes.NewReader(buf[:n])
	b, _ := rd.ReadByte()
	h.t, h.size = plumbing.ObjectType(b>>4&7), int64(b&15)
	for shift := 4; b&128 != 0 && shift < 60; shift += 7 {
		b, _ = rd.ReadByte()
		h.size |= int64(b&127) << shift
	}
	switch h.t {
	case plumbing.OFSDeltaObject:
		b, _ = rd.ReadByte()
		back := int64(b & 127)
		for b&128 != 0 && back < 1<<55 {
			b, _ = rd.ReadByte()
			back = (back+1)<<7 | int64(b&127)
		}
		h.base = at - back
	case plumbing.REFDeltaObject:
		var name plumbing.Hash
		_, _ = io.ReadFull(rd, name[:])
		h.base, _ = s.find(name)
	case plumbing.CommitObject, plumbing.TreeObject, plumbing.BlobObject, plumbing.TagObject:
	default:
		return h, errPackTorn
	}
	if h.t.IsDelta() && (h.base < packHead || h.base == at) || h.size < 0 {
		return h, errPackTorn
	}
	h.data = at + int64(n-rd.Len())
	return h, nil
}

func tooLarge(size, most int64) error {
	return fmt.Errorf("%w: %w: %d bytes, over %d", errForeign, errTooLarge, size, most)
}

// inflate gives what is stored at h to do, and returns where the next object
// begins.
func (s *packSource) inflate(h packedHead, do func(io.Reader) error) (end int64, err error) {
	section := io.NewSectionReader(s.file, h.data, s.size-sha1.Size-h.data)
	rd := bufio.NewReader(section) // a ByteReader, of which no more is taken than is needed
	zr, err := gitsync.GetZlibReader(rd)
	if err != nil {
		return 0, err
	}
	defer gitsync.PutZlibReader(zr)
	if err := do(io.LimitReader(zr.Reader, h.size)); err != nil {
		return 0, err
	}
	// To the end, where the checksum is.
	if n, err := zr.Reader.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return 0, errors.Join(errPackTorn, err)
	}
	read, err := section.Seek(0, io.SeekCurrent)
	return h.data + read - int64(rd.Buffered()), err
}

// raw reads what is stored at h.
func (s *packSource) raw(h packedHead) (data []byte, end int64, err error) {
	if h.size > s.most {
		return nil, 0, tooLarge(h.size, s.most)
	}
	data = make([]byte, h.size)
	end, err = s.inflate(h, func(rd io.Reader) error {
		_, err := io.ReadFull(rd, data)
		return err
	})
	return data, end, err
}

// object reads the object at an offset, through its bases.
func (s *packSource) object(at int64, depth int) (plumbing.ObjectType, []byte, error) {
	h, err := s.head(at)
	if err != nil {
		return 0, nil, err
	}
	data, _, err := s.raw(h)
	if err != nil || h.base == 0 {
		return h.t, data, err
	}
	if size := deltaSize(data); size > s.most {
		return 0, nil, tooLarge(size, s.most)
	}
	if depth > maxChain {
		return 0, nil, errPackTorn
	}
	t, content, err := s.object(h.base, depth+1)
	if err != nil {
		return 0, nil, err
	}
	content, err = packfile.PatchDelta(content, data)
	return t, content, err
}

// deltaSize is the size of what a difference makes: the second number in it.
func deltaSize(delta []byte) (size int64) {
	for range 2 {
		size = 0
		for shift := 0; len(delta) > 0 && shift < 60; shift += 7 {
			b := delta[0]
			delta = delta[1:]
			size |= int64(b&127) << shift
			if b&128 == 0 {
				break
			}
		}
	}
	return size
}

// kind is the type of the object at an offset, of whatever size.
func (s *packSource) kind(at int64) (plumbing.ObjectType, error) {
	for range maxChain {
		h, err := s.head(at)
		if err != nil || h.base == 0 {
			return h.t, err
		}
		at = h.base
	}
	return 0, errPackTorn
}

// name is the name of the object at an offset, and where the next begins. One
// that is no difference may be of any size.
func (s *packSource) name(at int64) (name plumbing.Hash, end int64, err error) {
	h, err := s.head(at)
	if err != nil {
		return name, 0, err
	}
	if h.base == 0 {
		sum := plumbing.NewHasher(h.t, h.size)
		end, err = s.inflate(h, func(rd io.Reader) error {
			n, err := io.Copy(sum, rd)
			if err == nil && n != h.size {
				err = io.ErrUnexpectedEOF
			}
			return err
		})
		return sum.Sum(), end, err
	}
	t, content, err := s.object(at, 0)
	if err != nil {
		return name, 0, err
	}
	_, end, err = s.raw(h)
	return plumbing.ComputeHash(t, content), end, err
}
