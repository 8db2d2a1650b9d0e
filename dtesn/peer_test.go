package dtesn

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// socketAt is a socket that is left behind at its end.
func socketAt(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
}

// TestIdentity is about what makes another socket, and what does not, on the
// file systems at hand: ext4 gives a new socket the inode of the one before.
func TestIdentity(t *testing.T) {
	t.Parallel()
	for name, dir := range map[string]string{"disk": t.TempDir(), "memory": memory(t)} {
		path := filepath.Join(dir, "e.sock")
		if id := identity(path); id != "" {
			t.Errorf("%s: nothing is %q", name, id)
		}
		socketAt(t, path)
		for what, look := range map[string]func(string) string{"birth": identity, "modification": modified} {
			first := look(path)
			tick(t, dir)
			if err := errors.Join(os.Chmod(path, 0o660), os.Link(path, path+".link"), os.Chown(path, os.Getuid(), os.Getgid()), os.Remove(path+".link")); err != nil {
				t.Fatal(err)
			}
			if id := look(path); id != first || id == "" {
				t.Errorf("%s: by %s, one socket is %q and %q", name, what, first, id)
			}
			for range 5 {
				before := look(path)
				tick(t, dir)
				_ = os.Remove(path)
				socketAt(t, path)
				if id := look(path); id == before {
					t.Errorf("%s: by %s, two sockets are %q", name, what, id)
				}
			}
		}
	}
}

// memory is a directory on tmpfs, or another one where there is none.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "dtesn")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// tick waits until a file in dir would bear another time than one made now:
// the clock of file systems moves in steps.
func tick(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "tick")
	now := func() time.Time {
		if err := os.WriteFile(path, []byte{1}, 0o600); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.ModTime()
	}
	first := now()
	eventually(t, "the clock moves", func() bool { return !now().Equal(first) })
}
