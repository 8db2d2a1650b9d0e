// Package powercut takes the power away from a disk that an agent writes to,
// for real: the state directory lies on ext4 or xfs in an image behind a loop
// device, and FS_IOC_SHUTDOWN drops what was not synced. After each cut
// everything that the agent's log, status, answer or exit code called applied
// must be there. Disks that are full, fail, are slow, turn read-only or forget
// what they refused are here too.
//
//	make powercut                            240 cuts, 96 points of a full disk
//	go test ./test/powercut                  four cuts
//	go test ./test/powercut -args -cuts 50 -seed 7
//
// The engine, the configuration and the program lie elsewhere.
package powercut

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"dtesn-agent/cmd/agent/cli"
)

var (
	cuts  = flag.Int("cuts", 4, "how often the power is cut, over all disks")
	fills = flag.Int("fills", 4, "how many points of a disk that fills up are tried")
	seed  = flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the moments and the changes")
)

// TestMain lets this binary be the agent. The tests run as a process in a mount
// namespace of its own, or else whoever makes one at the same moment takes a
// copy of our mounts along and keeps the disks from being unmounted.
func TestMain(m *testing.M) {
	if os.Getuid() == 0 && strings.HasSuffix(os.Args[0], ".test") && os.Getenv("POWERCUT_ALONE") == "" {
		cmd := exec.Command(os.Args[0], os.Args[1:]...)
		cmd.Env = append(os.Environ(), "POWERCUT_ALONE=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err == nil { // else it may not; the disks will say so
			_ = cmd.Wait()
			os.Exit(cmd.ProcessState.ExitCode())
		}
	}
	if os.Getenv("GORACE") == "" {
		// else each agent that ends sleeps for a second, for races of its last moment
		_ = os.Setenv("GORACE", "atexit_sleep_ms=20")
	}
	testscript.Main(m, map[string]func(){"agent": func() { os.Exit(cli.Main()) }})
}

// The disks, each with what makes it lose other things than the first.
var series = []struct {
	name, kind, options string
	git                 bool
}{
	{name: "ext4", kind: "ext4"},
	{name: "xfs", kind: "xfs"},
	{name: "ext4, data=writeback", kind: "ext4", options: "data=writeback,noauto_da_alloc,commit=1"},
	{name: "xfs, a repository", kind: "xfs", git: true},
	{name: "ext4, data=journal", kind: "ext4", options: "data=journal"},
	{name: "ext4, a repository", kind: "ext4", git: true},
	{name: "ext4, nodelalloc", kind: "ext4", options: "nodelalloc,commit=1"},
	{name: "xfs, small log buffers", kind: "xfs", options: "logbsize=32k,logbufs=2"},
}

// TestPowerCut cuts, again and again, at a random moment or right behind the
// word that something is applied, and looks at what a start then finds.
func TestPowerCut(t *testing.T) {
	t.Logf("seed %d", *seed)
	var all tally
	old := &histories{t.TempDir(), map[string]map[string]string{}}
	for i, row := range series {
		n := *cuts / len(series)
		if i < *cuts%len(series) {
			n++
		}
		if n == 0 {
			continue
		}
		t.Run(row.name, func(t *testing.T) {
			p := newPower(newSite(t, newDisk(t, row.kind, row.options), row.git), uint64(i))
			p.old = old
			p.series(n)
			t.Log(p.tally.String())
			all.add(&p.tally)
		})
	}
	t.Logf("all: %s", all.String())
}

// TestPowerCutCanFail holds that the cuts find what they are there to find: an
// agent whose syncs do nothing, and say that they did, loses what it called
// applied.
func TestPowerCutCanFail(t *testing.T) {
	t.Parallel()
	needs(t, "strace")
	p := newPower(newSite(t, newDisk(t, "ext4", "commit=600"), false), 0)
	p.under = []string{
		"strace", "-f", "-qq", "-o", os.DevNull, "--seccomp-bpf", "-e", "trace=" + syncCalls,
		"-e", "inject=" + syncCalls + ":retval=0",
	}
	p.begin()
	for n := 1; ; n++ {
		p.work("log", logLost)
		p.turnOff()
		p.turnOn()
		if lost := p.lost(); len(lost) > 0 {
			t.Logf("cut %d, as it must be: %s", n, strings.Join(lost, "; "))
			return
		}
		if n == 5 {
			t.Fatal("five cuts of an agent that syncs nothing, and nothing was lost: the cuts prove nothing")
		}
	}
}

// A tally counts what was done and what was found.
type tally struct {
	cuts     map[string]int // by what they came behind
	kinds    map[string]int
	reported int // states called applied
	records  int
	packs    map[string]int // cuts by the number of packs afterwards
}

func (a *tally) add(b *tally) {
	for _, m := range []struct {
		to   *map[string]int
		from map[string]int
	}{{&a.cuts, b.cuts}, {&a.kinds, b.kinds}, {&a.packs, b.packs}} {
		for k, n := range m.from {
			count(m.to, k, n)
		}
	}
	a.reported, a.records = a.reported+b.reported, a.records+b.records
}

func count(m *map[string]int, key string, n int) {
	if *m == nil {
		*m = map[string]int{}
	}
	(*m)[key] += n
}

func (a *tally) String() string {
	total := 0
	for _, n := range a.cuts {
		total += n
	}
	return fmt.Sprintf("%d cuts %s %s; %d states called applied, all found, of %d records; packs %s",
		total, counts(a.cuts), counts(a.kinds), a.reported, a.records, counts(a.packs))
}

func counts(m map[string]int) string {
	var b []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b = append(b, fmt.Sprintf("%s: %d", k, m[k]))
	}
	return "(" + strings.Join(b, ", ") + ")"
}

func newPower(s *site, stream uint64) *power {
	return &power{site: s, random: rand.New(rand.NewPCG(*seed, stream))}
}
