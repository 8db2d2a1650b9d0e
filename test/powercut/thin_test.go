package powercut

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestDiskForgets has the disk refuse the bytes of files, and nothing else, at a
// real write-back: the image lies on a memory disk that is full, so that blocks
// which hold nothing yet cannot be written, be they free or allocated ahead. The
// kernel then calls the pages clean, and a second sync of the same file succeeds
// without its bytes. An agent that only synced again would call applied what the
// next cut takes.
func TestDiskForgets(t *testing.T) {
	t.Parallel()
	below := newMemoryDisk(t, "size=64m")
	// A memory disk keeps pages: blocks are as large, or they could not be given back.
	d := newDiskIn(t, below.dir, "ext4", "commit=600", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-J", "size=4", "-b", "4096")
	d.thin()
	p := newPower(newSite(t, d, false), 500)
	p.begin()
	ok(t, unix.Syncfs(int(d.root.Fd())))
	t.Logf("%d KiB of the store's files held nothing yet", d.hollow(p.state())>>10)
	free := below.fill(0)
	p.next(false)
	st := p.await("the disk refuses the bytes", p.diskRefuses)
	t.Log(st.Reason)
	if p.toldOf(p.n) {
		t.Errorf("state %d was called applied", p.n)
	}
	p.alive()
	free()
	p.synced() // by itself
	ok(t, d.cut(logLost))
	p.turnOff()
	st = p.turnOn()
	p.look(&st, "bytes that the disk refused")
}

// thin gives all blocks of the image that hold no file back to where it lies;
// those of the journal, bitmaps and inodes are there to stay.
func (d *disk) thin() {
	d.t.Helper()
	image, err := os.OpenFile(d.image, os.O_RDWR, 0)
	ok(d.t, err)
	defer image.Close()
	info, err := image.Stat()
	ok(d.t, err)
	ok(d.t, unix.Fallocate(int(image.Fd()), 0, 0, info.Size()))
	if out, err := exec.Command("fstrim", d.dir).CombinedOutput(); err != nil {
		d.t.Skipf("the loop device gives no blocks back: %v: %s", err, out)
	}
}

// hollow gives the blocks of files below dir that hold zeros alone back to where
// the image lies, and returns how many bytes they have. The files do not change:
// what is not there is read as zeros.
func (d *disk) hollow(dir string) (given int64) {
	d.t.Helper()
	image, err := os.OpenFile(d.image, os.O_RDWR, 0)
	ok(d.t, err)
	defer image.Close()
	var st unix.Statfs_t
	ok(d.t, unix.Statfs(dir, &st))
	block, zeros := make([]byte, st.Bsize), make([]byte, st.Bsize)
	ok(d.t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		for n := int64(0); err == nil && n*st.Bsize < info.Size(); n++ {
			at := int32(n) // ioctl_fibmap: the block of the file, and then that of the disk
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fibmap, uintptr(unsafe.Pointer(&at))); errno != 0 {
				return errno
			}
			if _, err = image.ReadAt(block, int64(at)*st.Bsize); err == nil && at != 0 && bytes.Equal(block, zeros) {
				given += st.Bsize
				err = unix.Fallocate(int(image.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(at)*st.Bsize, st.Bsize)
			}
		}
		return err
	}))
	return given
}

// fibmap is FIBMAP of linux/fs.h.
const fibmap = 1
