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

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
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
func fillUp(t testing.TB, dir string) (free func()) {
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

// On a full disk a change fails, and an open one is reverted; reverts and rollbacks
// go through, for the journal has space of its own, and git catches up later.
func TestFullDisk(t *testing.T) {
	f := newFixture(t)
	disk := smallDisk(t, 6<<20)
	f.dir = filepath.Join(disk, "state")
	s, _ := f.open()
	a := applied(t, s, 512)
	b := commit(t, s, change(1024))
	if err := s.join(); err != nil { // what it could not write, it would give back
		t.Fatal(err)
	}
	free := fillUp(t, disk)
	refused := func() {
		t.Helper()
		if _, err := s.Commit(t.Context(), change(2048)); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a change on a full disk: %v", err)
		}
	}
	refused()
	expect(t, s, b, a)
	if err := s.Probe(t.Context()); !errors.Is(err, syscall.ENOSPC) || problem.Hint(err) != "free space on "+f.dir {
		t.Errorf("probe of a full disk: %v", err)
	}
	last := commit(t, s, revert(b, a, "no memory"))
	confirm(t, s)
	for n := range 24 {
		refused()
		last = commit(t, s, record.Record{Kind: record.KindRollback, Config: sized(64 + n), Held: holding(sized(2048))})
		confirm(t, s)
		s.Prepare(t.Context(), "")
	}
	if s.Behind() == nil {
		t.Error("git is not said to be behind")
	}
	if head, err := f.reader().Head(); err != nil || head.Commit != last.Commit {
		t.Errorf("a Reader has %s, %v", idOf(head), err)
	}
	s, repairs := f.reopen(s) // it starts on a full disk too
	noRepairs(t, repairs)
	expect(t, s, last, last)
	free()
	if err := s.Probe(t.Context()); err != nil || s.Behind() != nil {
		t.Error(err, s.Behind())
	}
	f.refsAgree(s)
	f.fsck()
	if left, err := filepath.Glob(f.repo("tmp-*")); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	d := applied(t, s, 2048)
	s, repairs = f.reopen(s)
	noRepairs(t, repairs)
	expect(t, s, d, d)
}

// A file system that is mounted read-only is said to be that.
func TestReadOnlyMount(t *testing.T) {
	f := newFixture(t)
	disk := smallDisk(t, 6<<20)
	f.dir = filepath.Join(disk, "state")
	s, _ := f.open()
	a := applied(t, s, 512)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Skipf("remounting a tmpfs: %v", err)
	}
	if _, _, err := Open(t.Context(), f.options()); !errors.Is(err, syscall.EROFS) || problem.Hint(err) != "mount the file system writable, or choose another --state" {
		t.Errorf("opened read-only: %v", err)
	}
	if rec, err := f.reader().Lookup(t.Context(), "1"); err != nil || rec.ID != a.ID {
		t.Errorf("a Reader of a read-only history: %v", err)
	}
}
