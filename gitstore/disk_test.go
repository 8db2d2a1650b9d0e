package gitstore

import (
	"errors"
	"fmt"
	"maps"
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

// On a full disk a change fails, and reverts and rollbacks go through, one after
// the other, by the reserve; whatever comes free in between is not for changes.
func TestFullDisk(t *testing.T) {
	f := newFixture(t)
	disk := smallDisk(t, 4<<20)
	f.dir = filepath.Join(disk, "state")
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
	refused(f.attempt(s, filepath.Join(disk, "filler")))
	expect(t, s, b, a)
	free0 := fillAgain(t, disk, -1)
	if err := s.Probe(t.Context()); !errors.Is(err, syscall.ENOSPC) || problem.Hint(err) != "free space on "+f.dir {
		t.Errorf("probe of a full disk: %v", err)
	}
	if n := f.reserved(); n != reserveSize {
		t.Errorf("%d bytes of the reserve are left after a change", n)
	}
	c := commit(t, s, revert(b, a, "no memory"))
	confirm(t, s)
	expect(t, s, c, c)
	if left, err := filepath.Glob(f.repo("tmp", "*")); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	f.fsck()
	last, frees := f.rollBackOnFull(s, disk)
	s, repairs := f.reopen(s) // it starts on a full disk too
	noRepairs(t, repairs)
	expect(t, s, last, last)
	free()
	free0()
	for _, free := range frees {
		free()
	}
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	if n := f.reserved(); n != reserveSize {
		t.Errorf("of the reserve %d bytes are there again", n)
	}
	d := applied(t, s, 2048)
	s, repairs = f.reopen(s)
	noRepairs(t, repairs)
	expect(t, s, d, d)
	f.fsck()
}

// attempt commits a change where there is space for the first of its files alone:
// nothing of it may stay.
func (f *fixture) attempt(s *Store, filler string) error {
	f.t.Helper()
	info, err := os.Stat(filler)
	if err == nil {
		err = os.Truncate(filler, info.Size()-4096)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	before := f.tree()
	_, err = s.Commit(f.t.Context(), change(2048))
	if left := f.tree(); !maps.Equal(left, before) {
		f.t.Errorf("an attempt leaves %d files, there were %d", len(left), len(before))
	}
	return err
}

// rollBackOnFull rolls back until the reserve is used up, and fills the disk each
// time before.
func (f *fixture) rollBackOnFull(s *Store, disk string) (last *record.Record, frees []func()) {
	f.t.Helper()
	for n := 0; ; n++ {
		frees = append(frees, fillAgain(f.t, disk, 2*n))
		last = s.Head()
		if _, err := s.Commit(f.t.Context(), change(4096)); !errors.Is(err, syscall.ENOSPC) {
			f.t.Fatalf("a change after %d rollbacks: %v", n, err)
		}
		_, err := s.Commit(f.t.Context(), record.Record{Kind: record.KindRollback, Config: sized(64 + n)})
		if err == nil {
			frees = append(frees, fillAgain(f.t, disk, 2*n+1))
			confirm(f.t, s)
			continue
		}
		if !errors.Is(err, syscall.ENOSPC) || !strings.HasSuffix(err.Error(), "; the space that is kept in reserve for reverts and rollbacks is used up too") || problem.Hint(err) != "free space on "+f.dir {
			f.t.Errorf("without a reserve: %v", err)
		}
		if n < 24 || f.reserved() >= reserveSlice/2 {
			f.t.Errorf("the reserve took %d rollbacks, and %d bytes are left", n, f.reserved())
		}
		f.t.Logf("%d rollbacks on a full disk", n)
		expect(f.t, s, last, last)
		return last, frees
	}
}

// reserved is the size of the reserve, all of which the disk must have.
func (f *fixture) reserved() int64 {
	f.t.Helper()
	info, err := os.Lstat(filepath.Join(f.dir, reserveFile))
	if err != nil {
		f.t.Fatal(err)
	}
	if has := info.Sys().(*syscall.Stat_t).Blocks * 512; has < info.Size() {
		f.t.Errorf("the reserve has holes: %d bytes of %d", has, info.Size())
	}
	return info.Size()
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
	if _, _, err := Open(t.Context(), f.options()); !errors.Is(err, syscall.EROFS) || problem.Hint(err) != "mount the file system writable, or choose another --state" {
		t.Errorf("opened read-only: %v", err)
	}
	if rec, err := f.reader().Lookup(t.Context(), "1"); err != nil || rec.ID != a.ID {
		t.Errorf("a Reader of a read-only history: %v", err)
	}
}

// fillAgain fills what came free under another name.
func fillAgain(t testing.TB, disk string, n int) (free func()) {
	t.Helper()
	dir := filepath.Join(disk, fmt.Sprint("more-", n))
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

// TestReserveWithHoles: a reserve that a backup brought back without its blocks,
// or a link in its place, is made one that the disk has.
func TestReserveWithHoles(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	path, elsewhere := filepath.Join(f.dir, reserveFile), filepath.Join(t.TempDir(), "elsewhere")
	f.write(elsewhere, "another's")
	for name, damage := range map[string]func() error{
		"holes":  func() error { return errors.Join(os.Truncate(path, 0), os.Truncate(path, reserveSize)) },
		"half":   func() error { return os.Truncate(path, reserveSize/2) },
		"larger": func() error { return os.Truncate(path, 2*reserveSize) },
		"a link": func() error { return errors.Join(os.Remove(path), os.Symlink(elsewhere, path)) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		s, _ = f.reopen(s)
		if n := f.reserved(); n != reserveSize {
			t.Errorf("%s: the reserve has %d bytes", name, n)
		}
	}
	if data, err := os.ReadFile(elsewhere); err != nil || string(data) != "another's" {
		t.Errorf("what the link led to is %q, %v", data, err)
	}
}
