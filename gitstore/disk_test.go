package gitstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"dtesn-agent/schema"
)

// smallDisk is a file system of size bytes.
func smallDisk(t *testing.T, size int, more ...string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, strings.Join(append(more, fmt.Sprintf("size=%d", size)), ",")); err != nil {
		t.Skipf("mounting a small tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillUp leaves no space in dir; what it returns gives it back.
func fillUp(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for page := make([]byte, 4096); err == nil; {
		_, err = file.Write(page)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// On a full disk a change fails and a revert goes through, by the reserve.
func TestFullDisk(t *testing.T) {
	f := newFixture(t)
	disk := smallDisk(t, 4<<20)
	f.dir = filepath.Join(disk, "state")
	reserve := filepath.Join(f.dir, reserveFile)
	s, _ := f.open()
	a := applied(t, s, 512)
	b := commit(t, s, change(1024))
	free := fillUp(t, disk)
	refused := func(err error) {
		t.Helper()
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("on a full disk: %v", err)
		}
	}
	refused(s.Confirm(t.Context()))
	expect(t, s, b, a)
	_, err := s.Commit(t.Context(), change(2048))
	refused(err)
	expect(t, s, b, a)
	if err := s.Probe(t.Context()); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "the disk is full: free some space there") {
		t.Errorf("probe of a full disk: %v", err)
	}
	if info, err := os.Stat(reserve); err != nil || info.Size() != reserveSize {
		t.Errorf("the reserve was given up for a change: %v, %v", info, err)
	}
	c := commit(t, s, revert(b, a, "no memory"))
	confirm(t, s)
	expect(t, s, c, c)
	if left, err := filepath.Glob(f.repo("tmp", "*")); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	f.fsck()
	free2 := fillAgain(t, disk)
	if _, err := s.Commit(t.Context(), schema.Snapshot{Kind: schema.KindRollback, Config: sized(64)}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("without the reserve: %v", err)
	}
	expect(t, s, c, c)
	s, repairs := f.reopen(s) // it starts on a full disk too
	noRepairs(t, repairs)
	expect(t, s, c, c)
	free()
	free2()
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(reserve); err != nil || info.Size() != reserveSize {
		t.Errorf("the reserve is not there again: %v", err)
	}
	d := applied(t, s, 2048)
	s, repairs = f.reopen(s)
	noRepairs(t, repairs)
	expect(t, s, d, d)
	f.fsck()
}

// A file system that is mounted read-only is said to be that.
func TestReadOnlyMount(t *testing.T) {
	f := newFixture(t)
	disk := smallDisk(t, 4<<20)
	f.dir = filepath.Join(disk, "state")
	s, _ := f.open()
	a := applied(t, s, 512)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Skipf("remounting a tmpfs: %v", err)
	}
	if _, _, err := Open(t.Context(), f.options()); !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "mount it writable, or choose another --state") {
		t.Errorf("opened read-only: %v", err)
	}
	if rec, err := f.reader().Lookup(t.Context(), "1"); err != nil || rec.ID != a.ID {
		t.Errorf("a Reader of a read-only history: %v", err)
	}
}

// fillAgain fills what came free under another name.
func fillAgain(t *testing.T, disk string) (free func()) {
	t.Helper()
	dir := filepath.Join(disk, "more")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return fillUp(t, dir)
}

// On a disk without an inode left, a change and what follows upon it go on record
// by the files made ahead.
func TestNoInodes(t *testing.T) {
	f := newFixture(t)
	disk := smallDisk(t, 8<<20, "nr_inodes=600")
	f.dir = filepath.Join(disk, "state")
	s, _ := f.open()
	a := applied(t, s, 512)
	for s.repo.fans < 256 {
		s.Prepare()
	}
	for n := 0; ; n++ {
		file, err := os.Create(filepath.Join(disk, fmt.Sprint("filler-", n)))
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b := commit(t, s, change(1024))
	s.Prepare()
	c := commit(t, s, revert(b, a, "no memory"))
	confirm(t, s)
	expect(t, s, c, c)
	for n := range 10 {
		if _, err := s.Commit(t.Context(), change(2048+n)); errors.Is(err, syscall.ENOSPC) {
			break
		} else if err != nil || n == 9 {
			t.Fatalf("no inode is left: %v", err)
		}
	}
	head := s.Head()
	s, repairs := f.reopen(s)
	noRepairs(t, repairs)
	expect(t, s, head, c)
	f.fsck()
}
