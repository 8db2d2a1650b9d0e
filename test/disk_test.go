package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestFullDisk fills the disk under the state directory: the engine keeps what
// it has, status says so, a rollback still goes through, and with space the
// agent goes on by itself.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=4m,mode=0755"); err != nil {
		t.Skipf("a small disk cannot be mounted: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	k := &killed{t: t, dir: dir, config: filepath.Join(dir, "config"), state: filepath.Join(disk, "state"), socket: filepath.Join(dir, "e.sock")}
	k.serveEngine()
	if err := os.Mkdir(k.config, 0o755); err != nil {
		t.Fatal(err)
	}
	k.write("base.yaml", baseYAML)
	runs := func(n float64) func(*statusAnswer) bool {
		return func(s *statusAnswer) bool { return s.Status.InSync && s.Status.Current["cache_ttl_seconds"] == n }
	}
	k.declare(1, false)
	k.start()
	k.await("in sync", runs(1))
	k.declare(2, false)
	k.await("in sync", runs(2))

	filler := filepath.Join(disk, "filler")
	fill(t, filler)
	k.declare(3, false)
	k.await("degraded", func(s *statusAnswer) bool {
		return s.Status.State == "degraded" && s.Status.Current["cache_ttl_seconds"] == 2.0
	})
	if code, out := agent("status", "--state", k.state); code != 0 || !strings.Contains(out, "no space left") || !strings.Contains(out, "free space") {
		t.Errorf("status does not say what is wrong and what to do (exit %d):\n%s", code, out)
	}
	if code, out := agent("status", "--state", k.state, "--ready"); code != 0 {
		t.Errorf("not ready, though the engine runs what is applied: %s", out)
	}
	if code, out := agent("rollback", "--reason", "the disk is full", "--state", k.state); code != 0 {
		t.Errorf("rollback on a full disk: exit %d %s", code, out)
	}
	k.await("rolled back", func(s *statusAnswer) bool {
		return s.Status.State == "held" && s.Status.Current["cache_ttl_seconds"] == 1.0
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	k.declare(4, false)
	k.await("in sync again", runs(4))
	if out, err := exec.Command("git", "--git-dir", k.repo(), "fsck", "--strict").CombinedOutput(); err != nil {
		t.Errorf("git fsck: %v\n%s", err, out)
	}
}

// fill writes until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; size /= 2 {
		block := make([]byte, size)
		for err == nil {
			_, err = f.Write(block)
		}
		err = nil
	}
}
