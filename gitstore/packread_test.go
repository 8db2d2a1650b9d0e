package gitstore

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
)

// allocated is how many bytes a step takes of memory, in all.
func allocated(step func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	step()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// little is what looking at a large object, or at a large file, may take.
const little = 24 << 20

// withLarge makes a history with two large blobs in one pack, the second as a
// difference to the first.
func withLarge(t *testing.T) (f *fixture, blobs []string) {
	f = newFixture(t)
	s, _ := f.open()
	applied(t, s, 512)
	applied(t, s, 576)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("0123456789abcdef0123456789abcde\n"), 48<<20/32)
	path := filepath.Join(t.TempDir(), "large")
	for _, name := range []string{"a", "b"} {
		content[len(content)/2] = name[0]
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		blob := f.git("hash-object", "-w", path)
		f.git("tag", name, blob)
		blobs = append(blobs, blob)
	}
	f.git("gc", "-q")
	return f, blobs
}

// An object that is larger than ours is not read into memory to find that out,
// however small it is in its pack; what it is, is known all the same.
func TestLargeObjectsAreNotInflated(t *testing.T) {
	f, blobs := withLarge(t)
	repo := newRepo(f.dir, "production")
	defer repo.closePacks()
	for _, blob := range blobs {
		h := plumbing.NewHash(blob)
		var err error
		if n := allocated(func() { _, _, err = repo.objectAny(h) }); !errors.Is(err, errTooLarge) || n > little {
			t.Errorf("%d bytes of memory, %v", n, err)
		}
		if kind, err := repo.kind(h); err != nil || kind != plumbing.BlobObject {
			t.Errorf("it is a %s, %v", kind, err)
		}
	}
	for _, ref := range []string{"heads/production", "dtesn/applied/production"} {
		f.write(f.ref(ref), "")
	}
	f.remove(f.repo("packed-refs"))
	f.git("tag", "large", blobs[0])
	var s *Store
	if n := allocated(func() { s, _ = f.open() }); n > little || s.Head() == nil || s.Head().Index != 2 {
		t.Errorf("%d bytes of memory; the head is %s", n, idOf(s.Head()))
	}
	f.git("cat-file", "-e", blobs[1])
}

// A pack without an index is read by windows, whatever its size, and gets its index
// back with what is too large to be read at once.
func TestLargePacksAreReadByWindows(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	a := applied(t, s, 512)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(path, bytes.Repeat([]byte("0123456789abcdef"), 48<<20/16), 0o644); err != nil {
		t.Fatal(err)
	}
	blob := f.git("hash-object", "-w", path)
	f.git("tag", "large", blob)
	f.git("gc", "-q")
	indexes, err := filepath.Glob(f.repo("objects", "pack", "*.idx"))
	if err != nil || len(indexes) != 1 {
		t.Fatal(indexes, err)
	}
	f.remove(indexes[0])
	old := f.now.Add(-2 * staleLock)
	if err := os.Chtimes(strings.TrimSuffix(indexes[0], "idx")+"pack", old, old); err != nil {
		t.Fatal(err)
	}
	hole := f.repo("objects", "pack", "pack-"+strings.Repeat("f", 40)+".pack")
	f.write(hole, "")
	if err := errors.Join(os.Truncate(hole, 256<<20), os.Chtimes(hole, old, old)); err != nil {
		t.Fatal(err)
	}
	if n := allocated(func() { s, _ = f.open() }); n > little {
		t.Errorf("%d bytes of memory", n)
	}
	if index := s.Repairs()[0]; !strings.Contains(index.String(), "has no index: its index was made anew") {
		t.Error(index)
	}
	said(t, s, "is torn", "set aside; 0 objects were read")
	expect(t, s, a, a)
	f.git("cat-file", "blob", blob)
	f.fsck()
}

// A difference of a few bytes may make a large object of a small one.
func TestLargeObjectOfASmallBase(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 512)
	const part, times = 1 << 16, 48 << 20 >> 16
	base := bytes.Repeat([]byte("0123456789abcdef"), part/16)
	w, err := newPackWriter(s.repo.tmp(), 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.add(plumbing.BlobObject, plumbing.ComputeHash(plumbing.BlobObject, base), base, nil); err != nil {
		t.Fatal(err)
	}
	// Both sizes, and "64 KiB from the beginning" again and again.
	delta := binary.AppendUvarint(binary.AppendUvarint(nil, part), part*times)
	delta = append(delta, bytes.Repeat([]byte{0x80}, times)...)
	h := plumbing.ComputeHash(plumbing.BlobObject, bytes.Repeat(base, times))
	w.buf.Reset()
	w.head(plumbing.OFSDeltaObject, len(delta))
	w.distance(w.offset - packHead)
	zw := zlib.NewWriter(&w.buf)
	_, err = zw.Write(delta)
	w.entries = append(w.entries, packEntry{hash: h, offset: w.offset})
	if err = errors.Join(err, zw.Close(), w.write(w.buf.Bytes())); err != nil {
		t.Fatal(err)
	}
	if _, err := w.finish(f.repo("objects", "pack"), s.repo.tmp()); err != nil {
		t.Fatal(err)
	}
	if n := allocated(func() { _, _, err = s.repo.objectAny(h) }); !errors.Is(err, errTooLarge) || n > little {
		t.Errorf("%d bytes of memory, %v", n, err)
	}
	if kind, err := s.repo.kind(h); err != nil || kind != plumbing.BlobObject {
		t.Errorf("it is a %s, %v", kind, err)
	}
	f.git("cat-file", "-e", h.String())
}
