package test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const systemdUnits = "../examples/systemd"

// TestSystemdUnitExposure holds the figure that examples/systemd/README.md
// quotes. systemd-analyze wants it times ten.
func TestSystemdUnitExposure(t *testing.T) {
	needs(t, "systemd-analyze")
	out := outputOf(t, exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold=13", filepath.Join(systemdUnits, "dtesn-agent.service")))
	if !strings.Contains(out, "1.3 OK") {
		t.Errorf("the README says 1.3:\n%s", out[strings.LastIndex(out, "→"):])
	}
}

// A machine is a systemd of its own as process 1 of its own namespaces, with
// its own /run, /tmp, /var/lib, cgroups and loopback, above copies of /etc,
// /usr/local and /opt that are gone with it.
type machine struct {
	t    *testing.T
	init int // its pid, as seen from here
}

// boot prepares the namespaces and becomes systemd; $1 is a directory.
const boot = `set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/systemd /run/machine
mount --bind $1 /run/machine
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /var/tmp
mount -t tmpfs -o mode=755 tmpfs /var/lib
for d in /etc /usr/local /opt; do
  over=/run/over$d; mkdir -p $over/up $over/work
  mount -t overlay overlay -o lowerdir=$d,upperdir=$over/up,workdir=$over/work $d
done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo mounted
cd /run/machine
mkdir /etc/dtesn
cp -r config /etc/dtesn/config; cp agent /usr/local/bin/agent; cp server.py /opt/server.py
systemd-sysusers /run/machine/units/dtesn.sysusers.conf
echo prepared
export container=test SYSTEMD_UNIT_PATH=/run/machine/units
exec /usr/lib/systemd/systemd --system --unit=multi-user.target --log-target=console
`

// prepareMachine makes the directory that boot takes everything from.
func prepareMachine(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	must(t, os.CopyFS(filepath.Join(dir, "config"), os.DirFS("../examples/config")))
	must(t, os.CopyFS(filepath.Join(dir, "units"), os.DirFS(systemdUnits)))
	must(t, os.CopyFS(dir, os.DirFS("python")))
	copyShipped(t, filepath.Join(dir, "agent"))
	for name, text := range map[string]string{
		"sysinit.target": "[Unit]\n", "basic.target": "[Unit]\n", "shutdown.target": "[Unit]\n",
		"multi-user.target":  "[Unit]\nWants=dtesn-agent.service\n",
		"test-probe.service": "[Service]\nType=oneshot\nDynamicUser=yes\nSystemCallFilter=@system-service\nExecStart=/bin/true\n",
		// the sample's ExecStart is a place for the server of who copies it
		"dtesn-server.service.d/test.conf": "[Service]\nWorkingDirectory=\nExecStart=\n" +
			"ExecStart=/usr/bin/python3 -m uvicorn --app-dir /opt server:app --uds /run/dtesn/engine.sock --workers 1\n",
		"dtesn-agent.service.d/test.conf": "[Service]\nWatchdogSec=3\n",
	} {
		path := filepath.Join(dir, "units", name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), 0o644))
	}
	return dir
}

// bootMachine starts a machine with the units of examples/systemd, or skips
// the test where namespaces, overlays or cgroups are not to be had.
func bootMachine(t *testing.T) *machine {
	t.Helper()
	needsRoot(t)
	needs(t, "systemctl", "systemd-sysusers", "unshare", "nsenter")
	dir := prepareMachine(t)
	group := newGroup(t)
	cmd := exec.Command("unshare", "--kill-child", "--fork", "--pid", "--mount", "--ipc", "--uts", "--net", "--cgroup", "--mount-proc",
		"bash", "-c", boot, "boot", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd()), Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(dir, "log"))
	must(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Skipf("needs namespaces and a cgroup of its own: %v", err)
	}
	m := &machine{t: t}
	t.Cleanup(func() {
		if m.init > 0 {
			_ = syscall.Kill(m.init, syscall.SIGKILL) // and with it all that it runs
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		text, _ := os.ReadFile(log.Name())
		t.Logf("the machine's log:\n%s", text)
		_ = log.Close()
	})
	waitFor(t, func() string {
		if syscall.Kill(cmd.Process.Pid, 0) != nil || zombie(cmd.Process.Pid) {
			text, _ := os.ReadFile(log.Name())
			if strings.Contains(string(text), "mounted\n") && !strings.Contains(string(text), "prepared\n") {
				t.Fatalf("the machine was not prepared: %s", text)
			}
			t.Skipf("systemd cannot be run here: %s", text)
		}
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		m.init, _ = strconv.Atoi(strings.TrimSpace(string(children)))
		if m.init == 0 {
			return "no process 1"
		}
		if out, err := m.try("systemctl", "show", "-p", "Version"); err != nil {
			return out
		}
		return ""
	})
	if out, err := m.try("systemctl", "start", "test-probe.service"); err != nil {
		t.Skipf("systemd cannot confine services here: %s", out)
	}
	return m
}

// zombie reports whether a child ended and was not waited for.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(stat), ") ")
	return err != nil || strings.HasPrefix(after, "Z")
}

// newGroup makes a cgroup below this process's own, in the second version's
// tree wherever it is mounted, and takes it away after the test.
func newGroup(t *testing.T) *os.File {
	t.Helper()
	mounts, err := os.Open("/proc/self/mountinfo")
	must(t, err)
	defer mounts.Close()
	root := ""
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		if strings.HasPrefix(after, "cgroup2 ") {
			root = strings.Fields(before)[4]
		}
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	path := ""
	for line := range strings.Lines(string(own)) {
		if rest, ok := strings.CutPrefix(line, "0::"); ok {
			path = strings.TrimSpace(rest)
		}
	}
	if root == "" || path == "" {
		t.Skip("needs cgroup2")
	}
	dir := filepath.Join(root, path, fmt.Sprintf("dtesn-agent-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("needs a cgroup of its own: %v", err)
	}
	t.Cleanup(func() {
		waitFor(t, func() string { return removeGroups(dir) })
	})
	group, err := os.Open(dir)
	must(t, err)
	t.Cleanup(func() { _ = group.Close() })
	return group
}

// removeGroups removes a cgroup and those below it, once they are empty.
func removeGroups(dir string) string {
	below, _ := filepath.Glob(filepath.Join(dir, "*", "cgroup.procs"))
	for _, procs := range below {
		if wrong := removeGroups(filepath.Dir(procs)); wrong != "" {
			return wrong
		}
	}
	if err := syscall.Rmdir(dir); err != nil && err != syscall.ENOENT {
		return fmt.Sprintf("rmdir %s: %v", dir, err)
	}
	return ""
}

// try runs a program inside.
func (m *machine) try(args ...string) (string, error) {
	out, err := exec.Command("nsenter", append([]string{"--all", "--target", strconv.Itoa(m.init)}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// property is what systemd knows of the agent's unit.
func (m *machine) property(name string) string {
	m.t.Helper()
	return m.run("systemctl", "show", "--value", "-p", name, "dtesn-agent.service")
}

// awaitProperty waits until a property contains text.
func (m *machine) awaitProperty(name, text string) {
	m.t.Helper()
	waitFor(m.t, func() string {
		if got := m.property(name); !strings.Contains(got, text) {
			return fmt.Sprintf("%s is %q, not %q", name, got, text)
		}
		return ""
	})
}

// edit replaces text in a file inside, by a rename.
func (m *machine) edit(path, expression string) {
	m.t.Helper()
	m.run("sed", "-i", expression, path)
}

// TestSystemdUnits boots a real systemd with the units of examples/systemd, and
// a FastAPI server under uvicorn: the agent is a service that is up before its
// server, says how it is, reloads, is restarted when it is killed or hangs, and
// can do nothing that it need not.
func TestSystemdUnits(t *testing.T) {
	if exec.Command("/usr/bin/python3", "-c", "import fastapi, uvicorn").Run() != nil {
		lacking(t, "needs python3-fastapi and python3-uvicorn: run test/packages, which installs them")
	}
	t.Parallel()
	m := bootMachine(t)
	const file, state = "/etc/dtesn/config/production.yaml", "/var/lib/dtesn-agent"
	m.awaitProperty("ActiveState", "active") // with no server anywhere
	m.awaitProperty("StatusText", "waiting_for_engine: ")
	m.run("systemctl", "start", "dtesn-server.service")
	m.awaitProperty("StatusText", "in_sync: ")
	m.confined()

	m.edit(file, "s/max_membrane_depth: .*/max_membrane_depth: 99/")
	m.awaitProperty("StatusText", "invalid: ")
	m.run("systemctl", "reload", "dtesn-agent.service") // an invalid file fails no reload
	m.edit(file, "s/max_membrane_depth: .*/max_membrane_depth: 6/")
	m.run("systemctl", "reload", "dtesn-agent.service")
	m.awaitProperty("StatusText", "in_sync: ")
	m.run("agent", "rollback", "--reason", "as root", "--state", state)
	m.awaitProperty("StatusText", "held: ")

	m.run("systemctl", "restart", "dtesn-server.service") // it forgets all
	m.awaitProperty("StatusText", "held: ")
	m.run("agent", "status", "--ready", "--state", state)
	repo := "/var/lib/private/dtesn-agent/snapshots.git"
	if out := m.run("git", "-c", "safe.directory="+repo, "--git-dir", repo, "log", "-p", "production"); !strings.Contains(out, "+max_membrane_depth: 6") {
		t.Errorf("the history does not show the change:\n%s", out)
	}

	m.run("kill", "-KILL", m.property("MainPID"))
	m.awaitProperty("NRestarts", "1")
	m.awaitProperty("ActiveState", "active")
	m.awaitProperty("StatusText", "held: ")
	m.run("kill", "-STOP", m.property("MainPID")) // no loop turns any more
	m.awaitProperty("NRestarts", "2")
	m.awaitProperty("StatusText", "held: ")
	m.run("agent", "resume", "--state", state)
	m.awaitProperty("StatusText", "in_sync: ")

	m.run("systemctl", "stop", "dtesn-agent.service")
	for name, want := range map[string]string{"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"} {
		if got := m.property(name); got != want {
			t.Errorf("stopped, and %s is %s, not %s", name, got, want)
		}
	}
}

// confined holds what the unit promises of the running process.
func (m *machine) confined() {
	m.t.Helper()
	proc := m.run("cat", "/proc/"+m.property("MainPID")+"/status")
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(proc, want) {
			m.t.Errorf("the agent's process does not have %q:\n%s", want, proc)
		}
	}
	if strings.Contains(proc, "Uid:\t0") {
		m.t.Error("the agent runs as root")
	}
	if out, err := m.try("setpriv", "--reuid=nobody", "--clear-groups", "test", "-e", "/run/dtesn/engine.sock"); err == nil {
		m.t.Errorf("anybody gets to the server's socket %s", out)
	}
}
