package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// limited runs a program in a user namespace of its own, in which there may be
// so many inotify "instances" or "watches".
func limited(what string, n int) []string {
	return []string{
		"unshare", "--user", "--map-root-user", "sh", "-euc",
		fmt.Sprintf(`echo %d > /proc/sys/user/max_inotify_%s; exec "$@"`, n, what), "sh",
	}
}

func needsUserNamespaces(t testing.TB) {
	t.Helper()
	needs(t, "unshare", "nsenter")
	command := append(limited("instances", 0), "true")
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Skipf("needs user namespaces: %v: %s", err, out)
	}
}

// TestWritersInotifyLimit: without inotify the files are polled, status says
// so, and inotify is used as soon as it can be had. It is
// lost again when a directory is replaced and no new watch can be made.
func TestWritersInotifyLimit(t *testing.T) {
	t.Parallel()
	needsUserNamespaces(t)
	s := newSite(t)
	s.program = "agent" // with the race detector, if the test has it
	limit := func(n int) {
		t.Helper()
		sh(t, s.root, `nsenter --user --preserve-credentials -t $PID sh -c "echo $N > /proc/sys/user/max_inotify_instances"`,
			map[string]string{"PID": strconv.Itoa(s.cmd.Process.Pid), "N": strconv.Itoa(n)})
	}
	s.start(0, limited("instances", 0))
	s.mode("poll")
	if log := s.log.String(); !strings.Contains(log, "polling") || !strings.Contains(log, "too many open files") {
		t.Errorf("the log does not say why it polls:\n%s", log)
	}
	s.put("production.yaml", s.declare(1))
	t.Logf("in place, polled: arrived after %s", s.await(1))
	s.rename("production.yaml", s.declare(2))
	t.Logf("renamed, polled: arrived after %s", s.await(2))

	limit(16)
	s.mode("inotify")
	s.rename("production.yaml", s.declare(3))
	t.Logf("renamed, with inotify: arrived after %s", s.await(3))

	limit(0)
	s.copyAs("config.new", s.declare(4))
	s.sh(`cd ..; mv config config.old; mv config.new config`)
	t.Logf("replaced, without inotify again: arrived after %s", s.await(4))
	s.mode("poll")
	s.put("production.yaml", s.declare(5))
	t.Logf("in place, polled: arrived after %s", s.await(5))
	limit(16)
	s.mode("inotify")
	s.onlyWhole(6)
}

// TestWritersWatchLimit: when only some of the directories can be watched, all
// are polled, and not called watched.
func TestWritersWatchLimit(t *testing.T) {
	t.Parallel()
	needsUserNamespaces(t)
	s := newSite(t)
	template := func(n int) string {
		s.declare(n)
		return strings.Replace(text(numbered(n), 0), "environment: production\n", "", 1)
	}
	s.put("templates/wide.yaml", template(1))
	s.put("production.yaml", "environment: production\nextends: [wide]\n")
	s.start(1, limited("watches", 1)) // of two directories
	s.mode("poll")
	s.put("templates/wide.yaml", template(2))
	t.Logf("arrived after %s", s.await(2))
	s.onlyWhole(2)
}

// TestWritersFileLimit takes all descriptors from a running agent: it says so,
// and goes on by itself once it gets some.
func TestWritersFileLimit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start(0, nil)
	pid := s.cmd.Process.Pid
	var before unix.Rlimit
	ok(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before))
	ok(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: before.Max}, nil))
	s.put("production.yaml", s.declare(1))
	eventually(t, "the agent says what it lacks", func() bool { return strings.Contains(s.log.String(), "too many open files") })
	s.rename("production.yaml", s.declare(2))
	ok(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil))
	t.Logf("arrived %s after there were descriptors again", s.await(2))
	s.mode("inotify")
	s.put("production.yaml", s.declare(3))
	s.await(3)
	s.onlyWhole(3)
}

// TestWritersPinnedFile binds one file into the directory, as a Kubernetes
// subPath does: the agent warns at start, with the file and the way out, takes
// what is written into that very file, and sees the directory's own file again
// once the mount is gone.
func TestWritersPinnedFile(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source := filepath.Join(filepath.Dir(s.root), "source.yaml")
	s.put(source, s.declare(1))
	pinned := filepath.Join(s.root, "production.yaml")
	s.mount(source, pinned, "", syscall.MS_BIND)
	s.start(1, nil)
	s.mode("poll")
	if log := s.log.String(); !strings.Contains(log, "level=WARN") || !strings.Contains(log, pinned) || !strings.Contains(log, "mount the directory instead") {
		t.Errorf("no warning that names the file and the way out:\n%s", log)
	}
	s.put(source, s.declare(2))
	t.Logf("written into the file: arrived after %s", s.await(2))

	s.put(source+".new", text(numbered(99), 0))
	ok(t, os.Rename(source+".new", source)) // the mount keeps the file that was
	ok(t, syscall.Unmount(pinned, syscall.MNT_DETACH))
	s.put("production.yaml", s.declare(3))
	s.await(3)
	s.mode("inotify")
	s.onlyWhole(3)
}

// TestWritersFUSE watches a file system that makes no events of what changes
// behind it.
func TestWritersFUSE(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	needs(t, "fuse-overlayfs")
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	s := newSite(t)
	behind := s.root
	s.root = filepath.Join(filepath.Dir(s.root), "fuse")
	sh(t, behind, `mkdir ../fuse; fuse-overlayfs -o lowerdir=$PWD,timeout=0 ../fuse`, nil)
	t.Cleanup(func() { _ = syscall.Unmount(s.root, syscall.MNT_DETACH) })
	s.start(0, nil)
	s.mode("poll")
	if log := s.log.String(); !strings.Contains(log, "FUSE") {
		t.Errorf("the log does not say why it polls:\n%s", log)
	}
	for n := 1; n <= 2; n++ {
		s.put(filepath.Join(behind, "production.yaml"), s.declare(n))
		t.Logf("arrived after %s", s.await(n))
	}
	s.onlyWhole(3)
}

// TestWritersWithoutEvents changes files in ways that inotify tells nobody of:
// the regular reading finds them.
func TestWritersWithoutEvents(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	defer all.Wait()
	for _, c := range []struct {
		name string
		make func(s *site) (write string)
	}{
		{"under another name", func(s *site) string {
			s.sh(`ln production.yaml ../alias.yaml`)
			return filepath.Join(s.root, "../alias.yaml")
		}},
		{"a lower layer", func(s *site) string {
			lower := s.root
			s.root = filepath.Join(filepath.Dir(s.root), "merged")
			sh(s.t, lower, `mkdir ../merged ../empty`, nil)
			s.mount("overlay", s.root, "overlay", 0, fmt.Sprintf("lowerdir=%s:%s", lower, filepath.Join(filepath.Dir(lower), "empty")))
			return filepath.Join(lower, "production.yaml")
		}},
		{"mapped into memory", func(s *site) string {
			s.put("production.yaml", text(numbered(0), 0)+strings.Repeat("\n", 100))
			return ""
		}},
	} {
		atOnce(&all, t, c.name, func(t *testing.T) {
			s := newSite(t)
			path := c.make(s)
			s.start(0, nil, "--resync", "500ms")
			s.mode("inotify")
			for n := 1; n <= 2; n++ {
				if path == "" {
					s.poke("production.yaml", s.declare(n))
				} else {
					s.put(path, s.declare(n))
				}
				t.Logf("arrived after %s", s.await(n))
			}
			s.onlyWhole(3)
		})
	}
}

// poke writes a file through a mapping, in two halves; it keeps its length.
func (s *site) poke(path, text string) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.root, path), os.O_RDWR, 0)
	ok(s.t, err)
	defer f.Close()
	info, err := f.Stat()
	ok(s.t, err)
	m, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	ok(s.t, err)
	text += strings.Repeat("\n", len(m)-len(text))
	half := copy(m, text[:len(text)/2])
	<-time.After(25 * time.Millisecond)
	copy(m[half:], text[half:])
	ok(s.t, unix.Munmap(m))
}
