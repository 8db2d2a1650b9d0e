package powercut

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDiskForgets has the disk refuse the bytes of files, and nothing else, at a
// real write-back: the image lies on a memory disk that is full, so that blocks
// which were never written cannot be. The kernel then calls the pages clean, and
// a second fsync of the same file succeeds without its bytes. An agent that only
// synced again would call applied what the next cut takes.
func TestDiskForgets(t *testing.T) {
	t.Parallel()
	below := newMemoryDisk(t, "size=64m")
	d := newDiskIn(t, below.dir, "ext4", "commit=600", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-J", "size=4")
	d.thin()
	p := newPower(newSite(t, d, false), 500)
	p.begin()
	ok(t, unix.Syncfs(int(d.root.Fd())))
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
