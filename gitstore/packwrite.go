package gitstore

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1" // git's object format
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
)

// maxPackBytes keeps every offset in 31 bits, so that an index needs no table
// of large ones.
const maxPackBytes = 1 << 30

// A packEntry is where an object lies in a pack, and the checksum of its bytes
// there: gitformat-pack(5).
type packEntry struct {
	hash   plumbing.Hash
	offset int64
	crc    uint32
}

// A packWriter writes a pack, version 2, to a file. It is for one goroutine.
type packWriter struct {
	file    *os.File
	sum     hash.Hash
	offset  int64
	entries []packEntry
	buf     bytes.Buffer
	zw      *zlib.Writer
}

// newPackWriter begins a pack of count objects in a new file in dir.
func newPackWriter(dir string, count int) (*packWriter, error) {
	f, err := createTemp(dir, objectPerm)
	if err != nil {
		return nil, err
	}
	w := &packWriter{file: f, sum: sha1.New(), zw: zlib.NewWriter(nil)}
	head := binary.BigEndian.AppendUint32(append([]byte("PACK"), 0, 0, 0, 2), uint32(count))
	if err := w.write(head); err != nil {
		w.abandon()
		return nil, err
	}
	return w, nil
}

func (w *packWriter) write(b []byte) error {
	w.sum.Write(b)
	n, err := w.file.Write(b)
	w.offset += int64(n)
	return err
}

// add writes an object, as the difference to base if that is shorter. It
// returns whether base was used.
func (w *packWriter) add(t plumbing.ObjectType, h plumbing.Hash, content []byte, base *packedBase) (delta bool, err error) {
	w.buf.Reset()
	data := content
	if base != nil {
		if d := packfile.DiffDelta(base.content, content); len(d) < len(content)/2 {
			data, delta = d, true
		}
	}
	if delta {
		w.head(plumbing.OFSDeltaObject, len(data))
		w.distance(w.offset - base.offset)
	} else {
		w.head(t, len(data))
	}
	w.zw.Reset(&w.buf)
	_, err = w.zw.Write(data)
	if err = errors.Join(err, w.zw.Close()); err != nil {
		return false, err
	}
	w.entries = append(w.entries, packEntry{h, w.offset, crc32.ChecksumIEEE(w.buf.Bytes())})
	return delta, w.write(w.buf.Bytes())
}

// A packedBase is an object in the pack being written that others may differ
// from.
type packedBase struct {
	offset  int64
	content []byte
}

// head is type and size: 3 and 4 bits, then 7 bits a byte, little end first.
func (w *packWriter) head(t plumbing.ObjectType, size int) {
	b := byte(t)<<4 | byte(size&15)
	for size >>= 4; size > 0; size >>= 7 {
		w.buf.WriteByte(b | 128)
		b = byte(size & 127)
	}
	w.buf.WriteByte(b)
}

// distance is how far back a base lies: 7 bits a byte, big end first, each but
// the last counting one less.
func (w *packWriter) distance(n int64) {
	b := []byte{byte(n & 127)}
	for n >>= 7; n > 0; n >>= 7 {
		n--
		b = append(b, byte(n&127)|128)
	}
	slices.Reverse(b)
	w.buf.Write(b)
}

// join appends all objects of another pack as they are: a base lies in the same
// pack at the same distance as before.
func (w *packWriter) join(p *pack) error {
	shift := w.offset - packHead
	body := io.NewSectionReader(p.file, packHead, p.size-packHead-sha1.Size)
	n, err := io.Copy(io.MultiWriter(w.file, w.sum), body)
	w.offset += n
	if err != nil {
		return err
	}
	all, err := p.index.Entries()
	if err != nil {
		return err
	}
	for e, err := all.Next(); ; e, err = all.Next() {
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		w.entries = append(w.entries, packEntry{e.Hash, int64(e.Offset) + shift, e.CRC32})
	}
}

// packHead is the length of a pack's head: "PACK", version, count.
const packHead = 12

// finish ends the pack, writes its index, and makes both durable under their
// names, the index last: a pack without one is not used by anybody.
//
// Syscalls: write, close, fsync of the pack; openat, write, close, fsync of the
// index; renameat of the pack; fsync of objects/pack; renameat of the index;
// fsync of objects/pack.
func (w *packWriter) finish(packDir, tmpDir string) (name string, err error) {
	if w.offset > maxPackBytes {
		w.abandon()
		return "", fmt.Errorf("the pack is larger than %d bytes", maxPackBytes)
	}
	trailer := w.sum.Sum(nil)
	if err := w.write(trailer); err != nil {
		w.abandon()
		return "", err
	}
	tmpPack := w.file.Name()
	if err := errors.Join(w.file.Sync(), w.file.Close()); err != nil {
		return "", errors.Join(err, os.Remove(tmpPack))
	}
	tmpIndex, err := writeTemp(tmpDir, w.index(trailer), objectPerm)
	if err != nil {
		return "", errors.Join(err, os.Remove(tmpPack))
	}
	name = "pack-" + fmt.Sprintf("%x", trailer)
	base := filepath.Join(packDir, name)
	steps := []func() error{
		func() error { return syncPath(tmpIndex) },
		func() error { return os.Rename(tmpPack, base+".pack") },
		func() error { return syncPath(packDir) },
		func() error { return os.Rename(tmpIndex, base+".idx") },
		func() error { return syncPath(packDir) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			_, _ = os.Remove(tmpPack), os.Remove(tmpIndex) // what was renamed stays, and harms nobody
			return "", err
		}
	}
	return name, nil
}

func (w *packWriter) abandon() { _ = errors.Join(w.file.Close(), os.Remove(w.file.Name())) }

// index is a pack index, version 2: fan-out, names, checksums, offsets, the
// pack's trailer and its own.
func (w *packWriter) index(trailer []byte) []byte {
	slices.SortFunc(w.entries, func(a, b packEntry) int { return bytes.Compare(a.hash[:], b.hash[:]) })
	b := append([]byte("\xfftOc"), 0, 0, 0, idxfile.VersionSupported)
	n := 0
	for first := range 256 {
		for n < len(w.entries) && int(w.entries[n].hash[0]) <= first {
			n++
		}
		b = binary.BigEndian.AppendUint32(b, uint32(n))
	}
	for _, e := range w.entries {
		b = append(b, e.hash[:]...)
	}
	for _, e := range w.entries {
		b = binary.BigEndian.AppendUint32(b, e.crc)
	}
	for _, e := range w.entries {
		b = binary.BigEndian.AppendUint32(b, uint32(e.offset))
	}
	b = append(b, trailer...)
	sum := sha1.Sum(b)
	return append(b, sum[:]...)
}
