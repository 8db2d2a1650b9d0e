//go:build linux

package main

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets this binary be what is traced: with CRASH_MKDIR it makes three
// directories, one after another, each from a goroutine of its own. Then it writes
// blocks into one file, and syncs each.
func TestMain(m *testing.M) {
	dir := os.Getenv("CRASH_MKDIR")
	if dir == "" {
		os.Exit(m.Run())
	}
	for _, name := range []string{"a", "b", "c"} {
		made := make(chan error)
		go func() { made <- os.Mkdir(filepath.Join(dir, name), 0o700) }()
		if err := <-made; err != nil {
			os.Exit(1)
		}
	}
	if write(filepath.Join(dir, "f")) != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

func write(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	for i, sync := range []func() error{
		func() error { return unix.Fdatasync(fd) },
		func() error { return unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE) },
		func() error { return unix.Fsync(fd) },
		func() error { return unix.Fdatasync(fd) },
	} {
		if _, err := f.WriteAt([]byte("block"), 5*int64(i)); err != nil {
			return err
		}
		if err := sync(); err != nil {
			return err
		}
	}
	return nil
}

// TestBeforeAndAfter holds what a point promises: a call that the process is
// killed before has no effect, one that it is killed after has all of it, and
// the calls of all threads are counted together.
func TestBeforeAndAfter(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		at     *point
		left   int
		blocks int
	}{
		{"unharmed", nil, 3, 4},
		{"before the first", &point{"mkdirat a", 1, false}, 0, 0},
		{"after the first", &point{"mkdirat a", 1, true}, 1, 0},
		{"before the second", &point{"mkdirat b", 1, false}, 1, 0},
		{"after the third", &point{"mkdirat c", 1, true}, 3, 0},
		{"never reached", &point{"mkdirat c", 2, true}, 3, 4},
		{"before a block", &point{"pwrite64 f", 2, false}, 3, 1},
		{"after a block", &point{"pwrite64 f", 2, true}, 3, 2},
		{"before a sync of data", &point{"fdatasync f", 1, false}, 3, 1},
		{"after a sync of data", &point{"fdatasync f", 2, true}, 3, 4},
		{"before a sync of a range", &point{"sync_file_range f", 1, false}, 3, 2},
		{"after a sync", &point{"fsync f", 1, true}, 3, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("CRASH_MKDIR", dir)
			p, err := trace(dir, os.Stderr, c.at, self)
			if errors.Is(err, errNoTrace) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-p.done:
			case <-time.After(30 * time.Second):
				p.end()
				t.Fatal("it does not end")
			}
			made, _ := filepath.Glob(filepath.Join(dir, "[abc]"))
			if len(made) != c.left {
				t.Errorf("%d directories, want %d", len(made), c.left)
			}
			if text, _ := os.ReadFile(filepath.Join(dir, "f")); len(text) != 5*c.blocks {
				t.Errorf("%q is written, want %d blocks", text, c.blocks)
			}
			reached := c.at != nil && c.name != "never reached"
			if _, hit := p.dead(); hit != reached || reached != (p.status.Signaled() && p.status.Signal() == syscall.SIGKILL) {
				t.Errorf("hit %v, status %#x", hit, p.status)
			}
		})
	}
}
