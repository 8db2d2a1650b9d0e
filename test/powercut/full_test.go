package powercut

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dtesn-agent/apply"
)

// TestDiskFull leaves so many KiB on the disk, from none on, and then changes,
// rolls back, is refused by the engine, or starts: the engine stays on its last
// good configuration, a rollback goes through, the agent goes on by itself once
// there is space, and nothing that was called applied is gone.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	d := newMemoryDisk(t, "size=6m")
	p := newPower(newSite(t, d, false), 100)
	p.old = &histories{t.TempDir(), map[string]map[string]string{}}
	p.begin()
	acts := []string{"rollback", "wait", "rejected", "start"}
	first := p.random.IntN(len(acts))
	stopped := 0
	for i := range *fills {
		// Half of the points are below 96 KiB, where a commit or what comes after it
		// may not fit any more, and a store refuses changes before that.
		left := int64(i*i*384 / *fills / *fills) << 10 &^ 4095
		act := acts[(first+i)%len(acts)]
		if p.full(act, left) {
			stopped++
		}
		p.look(ptr(p.status()), fmt.Sprintf("%s with %d KiB left", act, left>>10))
	}
	t.Logf("%d points of 0 to 384 KiB left, the change did not fit at %d; %d states called applied, all found", *fills, stopped, p.tally.reported)
}

func ptr(st apply.Status, _ error) *apply.Status { return &st }

// newMemoryDisk mounts a small tmpfs, which no cut can touch.
func newMemoryDisk(t testing.TB, options string) *disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a file system")
	}
	d := &disk{t: t, dir: filepath.Join(t.TempDir(), "mnt")}
	ok(t, os.Mkdir(d.dir, 0o755))
	if err := unix.Mount("tmpfs", d.dir, "tmpfs", 0, options); err != nil {
		t.Skipf("a small disk cannot be mounted: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(d.dir, unix.MNT_DETACH) })
	var err error
	d.root, err = os.Open(d.dir)
	ok(t, err)
	t.Cleanup(func() { _ = d.root.Close() })
	return d
}

// fill leaves so many bytes on the disk, and returns how to free the rest.
func (d *disk) fill(left int64) (free func()) {
	d.t.Helper()
	path := filepath.Join(d.dir, "ballast")
	ok(d.t, os.WriteFile(path, nil, 0o600))
	for {
		var st unix.Statfs_t
		ok(d.t, unix.Statfs(d.dir, &st))
		more := int64(st.Bavail)*st.Bsize - left
		if more <= 0 {
			return func() { d.t.Helper(); ok(d.t, os.Remove(path)) }
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		ok(d.t, err)
		_, err = f.Write(make([]byte, more))
		_ = f.Close()
		ok(d.t, err)
	}
}

// full does one thing on a disk with so many bytes left, and reports whether
// the disk stopped it.
func (p *power) full(act string, left int64) (stopped bool) {
	p.t.Helper()
	good := p.n
	if act == "start" {
		if p.kill(); *fills >= 24 {
			p.prepared("packing") // which takes its time to make
		}
		p.startEngine()
	}
	free := p.disk.fill(left)
	if act == "start" {
		p.start()
	}
	p.next(act == "rejected")
	st := p.await("an outcome or a word about the disk", func(st *apply.Status) bool {
		return st.InSync && ttlOf(*st.Current) == p.n || st.State == apply.StateHeld || p.diskRefuses(st)
	})
	stopped = p.diskRefuses(&st)
	if stopped && act != "start" && ttlOf(*st.Current) != good && ttlOf(*st.Current) != p.n {
		p.t.Errorf("the disk is full, and the engine runs %+v", st.Current)
	}
	p.alive()
	if act == "rollback" {
		if code, out := p.order("rollback", "--reason", "the disk is full"); code != 0 {
			p.t.Errorf("rollback with %d bytes left: exit %d %s", left, code, out)
		}
	}
	free()
	if act == "wait" || act == "start" {
		p.synced() // by itself
	}
	p.next(false)
	p.synced()
	return stopped
}

// diskRefuses reports whether the status says that the disk is in the way, with
// a reason and a hint.
func (p *power) diskRefuses(st *apply.Status) bool {
	return st.State == apply.StateDegraded && st.Reason != "" && strings.Contains(st.Hint, p.state())
}

// alive holds that the agent answers as one that lives.
func (p *power) alive() {
	p.t.Helper()
	resp, err := http.Get(strings.TrimSuffix(p.url, "/v1/config/status") + "/livez")
	ok(p.t, err)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		p.t.Errorf("/livez answers %s", resp.Status)
	}
}
