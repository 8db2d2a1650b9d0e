package powercut

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A disk is a file system of its own in an image file, behind a loop device,
// that can lose its power.
type disk struct {
	t       testing.TB
	image   string
	dir     string // where it is mounted
	options string
	root    *os.File // open while it is mounted, for the cut
}

// FS_IOC_SHUTDOWN is _IOR('X', 125, __u32): ext4(5) and xfs_io(8), shutdown.
const fsIocShutdown = 0x8004587d

// How much of what is in memory a cut leaves: see EXT4_IOC_SHUTDOWN in
// fs/ext4/ext4.h; the values of xfs are the same.
type cutKind uint32

const (
	// logFlushed: the names that were given are on the disk, the bytes of files
	// that were not synced are not, as after a journal commit at the wrong
	// moment.
	logFlushed cutKind = 1
	// logLost: nothing that was not synced is on the disk.
	logLost cutKind = 2
)

// newDisk makes a file system of kind ext4 or xfs and mounts it. It skips the
// test where that cannot be done.
func newDisk(t testing.TB, kind, options string) *disk {
	t.Helper()
	return newDiskIn(t, t.TempDir(), kind, options)
}

// newDiskIn is newDisk with its image in dir, made with further flags of mkfs.
func newDiskIn(t testing.TB, dir, kind, options string, flags ...string) *disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a file system")
	}
	for _, program := range []string{"mkfs." + kind, "losetup", "mount", "umount"} {
		needs(t, program)
	}
	d := &disk{t: t, image: filepath.Join(dir, kind+".img"), dir: filepath.Join(t.TempDir(), "mnt"), options: options}
	size, args := int64(48<<20), []string{"-q", "-F", d.image}
	if kind == "xfs" {
		size, args = 320<<20, []string{"-q", "-f", d.image} // it makes none below 300 MiB
	}
	ok(t, os.Mkdir(d.dir, 0o755))
	ok(t, os.WriteFile(d.image, nil, 0o600))
	ok(t, os.Truncate(d.image, size))
	if out, err := exec.Command("mkfs."+kind, append(flags, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v\n%s", kind, err, out)
	}
	// A container may have no loop devices, or not let them be used.
	if err := d.tryMount(); err != nil {
		t.Skipf("needs a loop device with %s on it: %v", kind, err)
	}
	t.Cleanup(func() {
		if d.root != nil {
			_ = d.root.Close()
		}
		_ = unix.Unmount(d.dir, unix.MNT_DETACH)
	})
	return d
}

func (d *disk) tryMount() error {
	options := "loop"
	if d.options != "" {
		options += "," + d.options
	}
	out, err := exec.Command("mount", "-o", options, d.image, d.dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mount -o %s: %w: %s", options, err, out)
	}
	d.root, err = os.Open(d.dir)
	return err
}

func (d *disk) mount() {
	d.t.Helper()
	ok(d.t, d.tryMount())
}

// cut takes the power away: nothing is written any more, and every call that
// would write fails.
func (d *disk) cut(kind cutKind) error {
	return unix.IoctlSetPointerInt(int(d.root.Fd()), fsIocShutdown, int(kind))
}

// unmount forgets all that was only in memory. Nobody may use the disk.
func (d *disk) unmount() {
	d.t.Helper()
	_ = d.root.Close()
	d.root = nil
	deadline := time.After(20 * time.Second)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		err := unix.Unmount(d.dir, 0)
		if err == nil {
			break
		}
		select {
		case <-again.C:
		case <-deadline:
			d.t.Fatalf("unmount %s: %v", d.dir, err)
		}
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// needs skips a test on a machine without a program, and fails it where
// test/packages has installed all.
func needs(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); errors.Is(err, exec.ErrNotFound) {
		why := "needs " + program + ": run test/packages, which installs it"
		if os.Getenv("DTESN_TEST_REQUIRE") == "1" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
}
