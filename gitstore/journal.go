package gitstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// The journal is two files of fixed size, written with zeros when they are made, so
// that an append needs one fdatasync of data alone. A new segment begins in the file
// that is not live, under the next generation, with a frame of the whole state: the
// older file is whole until the newer one is durable.
//
// Every frame begins a block; the rest of a block and of the segment is zeros. A frame
// is appended once the one before is durable. So a bad frame is a write that was cut
// short if nothing follows it, and damage if something does.
const (
	segmentSize = 1 << 20
	blockSize   = 4 << 10
	// segmentReserve is the end of a segment that only reverts, rollbacks and
	// notes may use: a full disk cannot keep an operator from going back.
	segmentReserve = 256 << 10
	// markReserve is the end of that, which no record may use, but its marks.
	markReserve = 4 * blockSize
	// frameHead is the length of a frame's head: payload length, CRC-32C of all that
	// follows, generation, sequence, kind; integers are little-endian.
	frameHead = 4 + 4 + 4 + 4 + 1
)

type frameKind byte

const (
	frameState  frameKind = 's' // the whole state: the first frame of a segment
	frameRecord frameKind = 'r'
	frameMark   frameKind = 'm'
	frameSet    frameKind = 'v'
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errJournalFull says that a segment has no space left for what is to be appended.
var errJournalFull = errors.New("the journal is full")

// A frame is one entry of a segment.
type frame struct {
	kind    frameKind
	payload []byte
}

// A segment is what one file of the journal holds.
type segment struct {
	generation uint32
	frames     []frame // the first is the state
	end        int64   // where the next frame begins
	// torn: the last write was cut short. damaged: something before the last
	// whole frame is lost.
	torn, damaged bool
}

// encodeFrame returns the blocks of a frame.
func encodeFrame(generation, sequence uint32, kind frameKind, payload []byte) []byte {
	size := frameHead + len(payload)
	b := make([]byte, (size+blockSize-1)/blockSize*blockSize)
	binary.LittleEndian.PutUint32(b, uint32(len(payload)))
	binary.LittleEndian.PutUint32(b[8:], generation)
	binary.LittleEndian.PutUint32(b[12:], sequence)
	b[16] = byte(kind)
	copy(b[frameHead:], payload)
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:size], castagnoli))
	return b
}

// decodeFrame reads the frame at the beginning of b, and returns the length of its
// blocks, 0 if it is not whole.
func decodeFrame(b []byte) (f frame, generation, sequence uint32, blocks int64) {
	if len(b) < frameHead {
		return f, 0, 0, 0
	}
	size := frameHead + int64(binary.LittleEndian.Uint32(b))
	if size > int64(len(b)) || crc32.Checksum(b[8:size], castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return f, 0, 0, 0
	}
	f = frame{frameKind(b[16]), b[frameHead:size:size]}
	return f, binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:]), (size + blockSize - 1) / blockSize * blockSize
}

// parseSegment reads the content of a segment's file. It is not ok if the first frame,
// the state, is not whole; generation is then the newest of what is left.
func parseSegment(data []byte) (s segment, ok bool) {
	next := uint32(0) // sequence number
	for at := int64(0); at < int64(len(data)); {
		f, generation, sequence, blocks := decodeFrame(data[at:])
		switch {
		case blocks > 0 && at == 0 && f.kind == frameState && sequence == 0:
			s.generation, ok = generation, true
		case blocks > 0 && (!ok || generation == s.generation && sequence >= next):
			s.generation = max(s.generation, generation)
			s.damaged = s.damaged || s.torn || sequence > next
		default:
			s.torn = s.torn || !isZero(data[at:min(at+blockSize, int64(len(data)))])
			at += blockSize
			continue
		}
		s.frames, next = append(s.frames, f), sequence+1
		at += blocks
		s.end = at
	}
	s.torn = s.torn && !s.damaged
	return s, ok
}

var zeroBlock [blockSize]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeroBlock[:len(b)]) }

func segmentPath(dir string, i int) string {
	return filepath.Join(dir, "journal."+strconv.Itoa(i))
}

// readJournal reads both files and returns the live segment, and which file holds it,
// -1 for none. A newer one whose state is not whole makes the live one damaged.
func readJournal(dir string) (s segment, live int, err error) {
	live = -1
	var newest uint32
	unused := 0      // files that are missing, or empty
	isShort := false // one was cut: each is written from its end
	for i := range 2 {
		data, err := readFirst(segmentPath(dir, i), segmentSize)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return segment{}, -1, fmt.Errorf("read journal: %w", err)
		}
		seg, ok := parseSegment(data)
		newest = max(newest, seg.generation)
		isShort = isShort || len(data) > 0 && len(data) < segmentSize
		switch {
		case !ok:
			s.torn = s.torn || seg.torn
			if !seg.torn && len(seg.frames) == 0 {
				unused++
			}
		case live < 0 || seg.generation > s.generation:
			seg.torn = seg.torn || live < 0 && s.torn
			s, live = seg, i
		}
	}
	// Both files hold a segment from the first start on, where begin ended. (An earlier
	// version left file 0 empty in generation 1.)
	s.damaged = s.damaged || isShort || newest > s.generation || unused > 0 && (s.generation > 1 || live == 0)
	s.generation = max(s.generation, newest)
	return s, live, nil
}

// A journal appends to the live segment. It keeps no file open between an append
// and the next one, so that the disk can be unmounted or remounted.
type journal struct {
	dir        string
	live       int // which file the live segment is in; -1 before the first begin
	generation uint32
	sequence   uint32 // of the next frame
	end        int64  // where it begins
	// unsynced is the file of an append that is not durable yet.
	unsynced *os.File
	// failed: nothing goes to the live segment any more, for a write or a sync of it
	// failed, or the beginning of the next one. After a failed sync the kernel calls
	// pages clean that the disk does not have.
	failed bool
}

// append writes a frame behind the last one. A kill cannot lose it then, nor a power
// cut once sync returned. With reserve it may use the reserved end of the segment.
func (j *journal) append(kind frameKind, payload []byte, reserve bool) error {
	if j.failed || j.live < 0 || j.unsynced != nil {
		return errors.New("append to the journal: the segment failed")
	}
	b := encodeFrame(j.generation, j.sequence, kind, payload)
	end := j.end + int64(len(b))
	if end > segmentSize || kind == frameRecord && end > segmentSize-markReserve || end > segmentSize-segmentReserve && !reserve {
		return errJournalFull
	}
	f, err := os.OpenFile(segmentPath(j.dir, j.live), os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("append to the journal: %w", err) // nothing was written
	}
	if _, err := f.WriteAt(b, j.end); err != nil {
		j.failed = true
		return fmt.Errorf("append to the journal: %w", errors.Join(err, f.Close()))
	}
	j.unsynced, j.sequence, j.end = f, j.sequence+1, end
	return nil
}

func (j *journal) sync() error {
	if j.unsynced != nil {
		err := errors.Join(fdatasync(j.unsynced), j.unsynced.Close())
		j.unsynced = nil
		if err != nil {
			j.failed = true
			return fmt.Errorf("sync the journal: %w", err)
		}
	}
	if j.failed {
		return errors.New("sync the journal: the segment failed")
	}
	return nil
}

// adopt makes the journal go on at the end of a segment that was read and is durable.
func (j *journal) adopt(s segment, live int) {
	j.live, j.generation, j.sequence, j.end = live, s.generation, uint32(len(s.frames)), s.end
}

// begin makes a new segment of a state, durably, in the file that is not live.
func (j *journal) begin(state []byte) error {
	if frameHead+len(state) > segmentSize {
		return fmt.Errorf("begin a journal segment: %w: a state of %d bytes", errJournalFull, len(state))
	}
	if j.unsynced != nil {
		_ = j.unsynced.Close()
		j.unsynced = nil
	}
	j.failed = true
	files := []int{0, 1} // both, so that an empty file is damage, and a full disk keeps no segment from beginning
	if j.live == 0 {
		files = []int{1, 0}
	}
	if j.live >= 0 && !j.isTorn(true) {
		files = files[:1]
	}
	for _, file := range files {
		j.generation++ // even if it fails: the next attempt outranks what this one leaves
		b := encodeFrame(j.generation, 0, frameState, state)
		if err := writeSegment(j.dir, file, b); err != nil {
			return fmt.Errorf("begin a journal segment: %w", err)
		}
		j.live, j.sequence, j.end, j.failed = file, 1, int64(len(b)), false
	}
	return nil
}

// isTorn reports whether a file of the journal is not as large as begin makes it: a
// person removed or cut it. With holes it may also have some, as of a backup: a full disk
// would keep them from being written. (A file system that compresses has them, too.)
func (j *journal) isTorn(holes bool) bool {
	for i := range 2 {
		var st unix.Stat_t
		err := unix.Lstat(segmentPath(j.dir, i), &st)
		if errors.Is(err, fs.ErrNotExist) || err == nil && (st.Size != segmentSize || holes && st.Blocks*512 < segmentSize) {
			return true
		}
	}
	return false
}

// writeSegment writes a file of the journal whole, durably: b, and zeros.
func writeSegment(dir string, i int, b []byte) error {
	f, err := os.OpenFile(segmentPath(dir, i), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	isNew := err == nil && info.Size() < segmentSize
	// From the end, so that nothing old is behind a state that is whole. Block by block:
	// one large write makes the kernel keep large pages, and each later append is eight
	// times slower.
	for at := segmentSize - blockSize; err == nil && at >= 0; at -= blockSize {
		block := zeroBlock[:]
		if at < len(b) {
			block = b[at : at+blockSize]
		}
		_, err = f.WriteAt(block, int64(at))
	}
	if err == nil && info.Size() > segmentSize { // somebody appended to it
		err = f.Truncate(segmentSize)
	}
	if err == nil {
		err = fdatasync(f)
	}
	if err = errors.Join(err, f.Close()); err == nil && isNew {
		err = syncPath(dir)
	}
	return err
}

// fdatasync is fsync without what is not needed to read the data.
func fdatasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
