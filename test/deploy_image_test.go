package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// anyUID is a user that no passwd file knows, as platforms choose them.
const anyUID = 1000730017

// A jail runs programs as a container runtime does: the root directory is
// read-only but for volumes, the user is any, and there are no capabilities.
type jail struct {
	t    *testing.T
	root string
}

// newJail makes a jail of the files below image, which it does not change.
func newJail(t *testing.T, image string) *jail {
	t.Helper()
	needsRoot(t)
	root := filepath.Join(t.TempDir(), "root")
	must(t, os.Mkdir(root, 0o755))
	must(t, exec.Command("cp", "-a", image+"/.", root).Run())
	j := &jail{t: t, root: root}
	must(t, os.Chmod(root, 0o755))
	j.bind(root, root)
	return j
}

// bind mounts a directory, or skips the test where that is not to be had.
func (j *jail) bind(from, to string) {
	j.t.Helper()
	if err := syscall.Mount(from, to, "", syscall.MS_BIND, ""); err != nil {
		j.t.Skipf("needs mounts: %v", err)
	}
	j.t.Cleanup(func() { _ = syscall.Unmount(to, syscall.MNT_DETACH) })
}

// volume mounts a directory of the host at path.
func (j *jail) volume(from, path string, readOnly bool) {
	j.t.Helper()
	to := filepath.Join(j.root, path)
	must(j.t, os.MkdirAll(to, 0o755))
	j.bind(from, to)
	if readOnly {
		must(j.t, syscall.Mount("", to, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	}
}

// lock makes the root read-only; volumes stay as they are.
func (j *jail) lock() {
	j.t.Helper()
	must(j.t, syscall.Mount("", j.root, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
}

// command is a program inside, with nothing in its environment but env.
func (j *jail) command(env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = "/", append([]string{"PATH=/"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot: j.root, Credential: &syscall.Credential{Uid: anyUID, Gid: anyUID}, Pdeathsig: syscall.SIGKILL,
	}
	return cmd
}

// confined checks that a process inside has no capabilities, and no root.
func (j *jail) confined(pid int) {
	j.t.Helper()
	proc, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(j.t, err)
	for _, want := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d", anyUID)} {
		if !strings.Contains(string(proc), want) {
			j.t.Errorf("not confined: no %q in\n%s", want, proc)
		}
	}
}

// TestImage builds the image with `make image`, looks at what is in it, and
// runs it under any user with a read-only root.
func TestImage(t *testing.T) {
	needsRoot(t)
	needs(t, "buildah", "make")
	t.Parallel()
	dir := t.TempDir()
	(&jail{t: t}).bind(dir, dir) // a builder needs mounts as well
	storage := filepath.Join(dir, "storage.conf")
	must(t, os.WriteFile(storage, fmt.Appendf(nil, "[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n", dir+"/graph", dir+"/run"), 0o644))
	buildah := func(args ...string) *exec.Cmd {
		cmd := exec.Command("buildah", args...)
		cmd.Env = append(os.Environ(), "CONTAINERS_STORAGE_CONF="+storage, "BUILDAH_ISOLATION=chroot")
		return cmd
	}
	build := exec.Command("make", "-C", "..", "image", "IMAGE=dtesn-agent:test", "IMAGE_REVISION=0123abc", "IMAGE_VERSION=v1.2.3")
	build.Env = buildah().Env
	outputOf(t, build)

	var image struct {
		OCIv1 struct {
			Config struct {
				User       string
				Entrypoint []string
				Labels     map[string]string
			} `json:"config"`
		}
	}
	must(t, json.Unmarshal([]byte(outputOf(t, buildah("inspect", "--type", "image", "dtesn-agent:test"))), &image))
	c := image.OCIv1.Config
	if c.User != "65532:65532" || len(c.Entrypoint) != 1 || c.Entrypoint[0] != "/agent" {
		t.Errorf("the image runs %v as %q", c.Entrypoint, c.User)
	}
	for label, want := range map[string]string{"title": "dtesn-agent", "licenses": "Apache-2.0", "revision": "0123abc", "version": "v1.2.3"} {
		if got := c.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("label %s is %q, not %q", label, got, want)
		}
	}

	container := strings.TrimSpace(outputOf(t, buildah("from", "dtesn-agent:test")))
	root := strings.TrimSpace(outputOf(t, buildah("mount", container)))
	t.Cleanup(func() { _ = buildah("umount", container).Run() })
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 1 || entries[0].Name() != "agent" {
		t.Errorf("the image holds %v (%v), not the binary alone", entries, err)
	}
	runImage(t, newJail(t, root))
}

// runImage runs what a user would run first.
func runImage(t *testing.T, j *jail) {
	state := filepath.Join(t.TempDir(), "state")
	must(t, os.Mkdir(state, 0o755))
	must(t, os.Chown(state, anyUID, anyUID))
	config, err := filepath.Abs("../examples/config")
	must(t, err)
	j.volume(config, "/config", true)
	j.volume(state, "/state", false)
	j.lock()
	if out := outputOf(t, j.command(nil, "/agent", "version")); !strings.HasPrefix(out, "agent ") {
		t.Errorf("agent version says %q", out)
	}
	if out := outputOf(t, j.command(nil, "/agent", "validate", "/config")); !strings.Contains(out, "production is valid") {
		t.Errorf("agent validate says %q", out)
	}
	once := []string{"/agent", "run", "--once", "--embedded-engine", "--environment=production", "--config=/config", "--state=/state", "--listen=127.0.0.1:0", "--instance=i"}
	outputOf(t, j.command(nil, once...))
	if out := outputOf(t, j.command(nil, "/agent", "snapshots", "--state=/state")); !strings.Contains(out, "applied") {
		t.Errorf("agent snapshots says %q", out)
	}
	once[6] = "--state=/elsewhere"
	if out, err := j.command(nil, once...).CombinedOutput(); err == nil || !strings.Contains(string(out), "read-only file system") {
		t.Errorf("a state in the image itself: %v %s", err, out)
	}
}
