// Package powercut takes the power away from a disk that an agent writes to,
// for real: the state directory lies on ext4 or xfs in an image behind a loop
// device, and FS_IOC_SHUTDOWN drops all that was not synced. After each cut
// everything that the agent's log, status or exit code called applied must be
// there.
//
//	make powercut                   200 cuts, and the check of the check
//	go test ./test/powercut         four cuts
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
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/cli"
	"dtesn-agent/schema"
)

var (
	cuts = flag.Int("cuts", 4, "how often the power is cut, over all disks")
	seed = flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the moments and the changes")
)

// TestMain lets this binary be the agent.
func TestMain(m *testing.M) {
	if os.Getenv("GORACE") == "" {
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
	for i, row := range series {
		n := *cuts / len(series)
		if i < *cuts%len(series) {
			n++
		}
		if n == 0 {
			continue
		}
		t.Run(row.name, func(t *testing.T) {
			p := &power{site: newSite(t, newDisk(t, row.kind, row.options), row.git), random: rand.New(rand.NewPCG(*seed, uint64(i)))}
			p.series(n)
			t.Log(p.tally.String())
			all.add(p.tally)
		})
	}
	t.Logf("all: %s", all.String())
}

// A tally counts what was done and what was found.
type tally struct {
	cuts     map[string]int // by what they came behind
	reported int            // states called applied
	records  int
	packs    int            // cuts after which there were packs
	found    map[string]int // what a start repaired
	lost     int            // cuts that took a candidate nobody was told of
}

func (a *tally) add(b tally) {
	if a.cuts == nil {
		a.cuts, a.found = map[string]int{}, map[string]int{}
	}
	for k, n := range b.cuts {
		a.cuts[k] += n
	}
	for k, n := range b.found {
		a.found[k] += n
	}
	a.reported, a.records, a.packs, a.lost = a.reported+b.reported, a.records+b.records, a.packs+b.packs, a.lost+b.lost
}

func (a *tally) String() string {
	total := 0
	for _, n := range a.cuts {
		total += n
	}
	return fmt.Sprintf("%d cuts %s; %d states reported applied, all found; %d records, %d cuts with packs; found at start: %s",
		total, counts(a.cuts), a.reported, a.records, a.packs, counts(a.found))
}

func counts(m map[string]int) string {
	var b []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b = append(b, fmt.Sprintf("%s %d", k, m[k]))
	}
	return "(" + strings.Join(b, ", ") + ")"
}

// A power is a site whose disk is cut off again and again.
type power struct {
	*site
	random *rand.Rand
	tally  tally
	n      int // the state declared last
	tooBig bool
	told   string // what an order was told just before the cut: "", rollback, pause
}

func (p *power) series(cuts int) {
	p.t.Helper()
	p.tally.cuts, p.tally.found = map[string]int{}, map[string]int{}
	p.next(false)
	p.start()
	p.synced()
	p.next(false)
	p.synced() // now there is a state to go back to
	modes := []string{"log", "anywhere", "status", "rollback", "anywhere", "pause", "rejected"}
	first := p.random.IntN(len(modes))
	for i := range cuts {
		p.once(modes[(first+i)%len(modes)])
	}
}

func (p *power) next(tooBig bool) {
	p.n++
	p.tooBig = tooBig
	p.declare(p.n, tooBig)
}

// synced waits until the agent runs what is declared.
func (p *power) synced() {
	p.t.Helper()
	p.await(fmt.Sprintf("state %d runs", p.n), func(st *apply.Status) bool {
		return st.InSync && st.Current != nil && st.Current.CacheTTLSeconds == p.n
	})
}

// once cuts once, and looks at what is left.
func (p *power) once(mode string) {
	p.t.Helper()
	kind := logLost
	if p.random.IntN(3) == 0 {
		kind = logFlushed
	}
	p.tally.cuts[mode]++
	p.work(mode, kind)
	p.kill()
	p.disk.unmount()
	if p.random.IntN(2) == 0 {
		p.startEngine() // it shared the mains
	}
	p.disk.mount()
	p.start()
	st := p.await("settled", func(st *apply.Status) bool {
		switch {
		case st.InSync:
			return st.Current != nil && st.Current.CacheTTLSeconds == p.n && !p.tooBig
		case st.State == apply.StateHeld:
			return st.Running.Confirmed && (p.tooBig || p.told != "" || mode == "rollback" || mode == "pause")
		}
		return false
	})
	p.look(&st)
	p.told = ""
	if st.Held != nil && st.Held.Paused {
		if code, out := p.order("resume"); code != 0 {
			p.t.Fatalf("resume: exit %d %s", code, out)
		}
	}
	p.next(false)
	p.synced()
}

// work changes things until the power is cut.
func (p *power) work(mode string, kind cutKind) {
	p.t.Helper()
	over := make(chan error, 1)
	cut := func() {
		select {
		case over <- p.disk.cut(kind):
		default: // it is over
		}
	}
	switch mode {
	case "rollback", "pause":
		args := []string{mode, "--reason", "a try"}
		p.next(p.random.IntN(3) == 0) // it may still be on its way
		code, out := p.order(args...)
		cut()
		if code == 0 {
			p.told = mode
		} else if code != 1 || !strings.Contains(out, "state") {
			p.t.Fatalf("%s: exit %d %s", mode, code, out)
		}
		if id := snapshotID(out); code == 0 && id != "" {
			p.said.note("exit code", id, "")
		}
	case "anywhere", "rejected":
		p.next(mode == "rejected")
		moment := time.NewTimer(time.Duration(p.random.IntN(30_000)) * time.Microsecond)
		again := time.NewTicker(time.Duration(2+p.random.IntN(10)) * time.Millisecond)
		defer again.Stop()
		for done := false; !done; {
			select {
			case <-moment.C:
				cut()
				done = true
			case <-again.C:
				p.next(p.random.IntN(3) == 0)
			}
		}
	default:
		after := 1 + p.random.IntN(3)
		p.said.when(func(by string) {
			if after--; after <= 0 && by == mode {
				cut()
			}
		})
		deadline := time.After(40 * time.Second)
		for done := false; !done; {
			p.next(false)
			again := time.NewTicker(time.Millisecond)
			for waiting := true; waiting && !done; {
				select {
				case err := <-over:
					over <- err
					done = true
				case <-deadline:
					p.t.Fatalf("nothing was applied within 40 s\n%s", p.said.tail())
				case <-again.C:
					if mode == "status" {
						_, _ = p.status()
					}
					waiting = !p.toldOf(p.n)
				}
			}
			again.Stop()
		}
		p.said.when(nil)
	}
	ok(p.t, <-over)
}

// toldOf reports whether state n was called applied.
func (p *power) toldOf(n int) bool {
	for _, ttl := range p.said.told() {
		if ttl == strconv.Itoa(n) {
			return true
		}
	}
	return false
}

func snapshotID(text string) string {
	i := strings.Index(text, "snapshot_")
	if i < 0 {
		return ""
	}
	id, _, _ := strings.Cut(text[i:], ":")
	return id
}

// look holds what the start found against what was said before the cut.
func (p *power) look(st *apply.Status) {
	p.t.Helper()
	for _, r := range p.said.take() {
		p.tally.found[repairWord(r)]++
		if strings.Contains(r, "anew") {
			p.t.Errorf("history was given up: %s", r)
		}
	}
	all := p.records()
	told := p.said.told()
	for id, ttl := range told {
		r, there := all[id]
		switch {
		case !there || r.Outcome != string(schema.Applied):
			p.t.Errorf("%s was said to be applied, and after the cut it is %+v", id, r)
		case ttl != "" && strconv.Itoa(r.Config.CacheTTLSeconds) != ttl:
			p.t.Errorf("%s was said to be applied with %s s, and now it says %+v", id, ttl, r)
		}
	}
	if held := st.Held != nil && (p.told == "rollback" || st.Held.Paused); p.told != "" && !held {
		p.t.Errorf("the %s was said to be done, and after the cut the agent holds %+v", p.told, st.Held)
	}
	if st.Current.ESNReservoirSize == 16384 {
		p.t.Error("a rejected state runs")
	}
	repo := filepath.Join(p.state(), "snapshots.git")
	if out, err := exec.Command("git", "--git-dir", repo, "fsck", "--strict", "--full").CombinedOutput(); err != nil {
		p.t.Errorf("git fsck: %v\n%s", err, out)
	}
	refs := map[string]string{}
	for _, ref := range []string{"refs/heads/production", "refs/dtesn/applied/production"} {
		out, err := exec.Command("git", "--git-dir", repo, "rev-parse", ref).CombinedOutput()
		if err != nil {
			p.t.Errorf("git rev-parse %s: %v %s", ref, err, out)
		}
		refs[string(out)] = ref
	}
	if len(refs) != 1 {
		p.t.Errorf("head and applied are apart in %s: %v", st.State, refs)
	}
	p.tally.reported, p.tally.records = len(told), len(all)
	if packs, _ := filepath.Glob(filepath.Join(repo, "objects", "pack", "*.pack")); len(packs) > 0 {
		p.tally.packs++
	}
	if p.t.Failed() {
		p.t.Fatalf("cut %v, seed %d\n%s", p.tally.cuts, *seed, p.said.tail())
	}
}

// repairWord is a repair in a word, for counting.
func repairWord(line string) string {
	for _, word := range []string{"head ref is torn", "head was lost", "torn object", "applied ref", "retried ref", "stale lock", "names nothing"} {
		if strings.Contains(line, word) {
			return word
		}
	}
	return line
}
