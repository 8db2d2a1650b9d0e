//go:build linux

package main

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestMain lets this binary be what is traced: with CRASH_MKDIR it makes three
// directories, one after another, each from a goroutine of its own.
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
	os.Exit(0)
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
		name string
		at   *point
		left int
	}{
		{"unharmed", nil, 3},
		{"before the first", &point{"mkdirat a", 1, false}, 0},
		{"after the first", &point{"mkdirat a", 1, true}, 1},
		{"before the second", &point{"mkdirat b", 1, false}, 1},
		{"after the third", &point{"mkdirat c", 1, true}, 3},
		{"never reached", &point{"mkdirat c", 2, true}, 3},
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
			made, err := os.ReadDir(dir)
			if err != nil || len(made) != c.left {
				t.Errorf("%d directories (%v), want %d", len(made), err, c.left)
			}
			reached := c.at != nil && c.at.N == 1
			if _, hit := p.dead(); hit != reached || reached != (p.status.Signaled() && p.status.Signal() == syscall.SIGKILL) {
				t.Errorf("hit %v, status %#x", hit, p.status)
			}
		})
	}
}
