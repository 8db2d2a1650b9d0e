package powercut

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// A power is a site whose disk is cut off again and again.
type power struct {
	*site
	random *rand.Rand
	tally  tally
	n      int // the state declared last
	tooBig bool
	told   string // what an order was told to have done just before the cut
	// candidate was pending at the cut, by its id.
	candidate string
	old       *histories
	before    struct{ told, records int } // counted so far, on this history
}

// What a cut comes behind; see work.
var modes = []string{"log", "anywhere", "pending", "killed", "status", "rollback", "packing", "revert", "pause", "anywhere", "exit code", "joining"}

func (p *power) series(cuts int) {
	p.t.Helper()
	p.begin()
	first := p.random.IntN(len(modes))
	for i := range cuts {
		mode := modes[(first+i)%len(modes)]
		if cuts < 6 && (mode == "packing" || mode == "joining") {
			mode = "anywhere" // those histories take their time to make
		}
		p.once(mode)
	}
}

// begin starts the agent, with a state to go back to.
func (p *power) begin() {
	p.t.Helper()
	p.next(false)
	p.start()
	p.synced()
	p.next(false)
	p.synced()
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
		return st.InSync && ttlOf(*st.Current) == p.n
	})
}

// once cuts once, and looks at what is left.
func (p *power) once(mode string) {
	p.t.Helper()
	kind, word := logLost, "log lost"
	if mode == "pending" || p.random.IntN(3) == 0 {
		kind, word = logFlushed, "log flushed"
	}
	count(&p.tally.cuts, mode, 1)
	count(&p.tally.kinds, word, 1)
	p.told = ""
	p.work(mode, kind)
	p.turnOff()
	if p.random.IntN(2) == 0 {
		p.startEngine() // it hung on the same mains
	}
	st := p.turnOn()
	p.look(&st, mode)
	if st.Held != nil && st.Held.Paused {
		if code, out := p.order("resume"); code != 0 {
			p.t.Fatalf("resume: exit %d %s", code, out)
		}
	}
	p.next(false)
	p.synced()
}

// turnOff is what is left of the agent and its disk after the cut: nothing.
func (p *power) turnOff() {
	p.t.Helper()
	p.kill()
	p.disk.unmount()
}

// turnOn starts the agent again and waits until it has settled by itself.
func (p *power) turnOn() apply.Status {
	p.t.Helper()
	p.disk.mount()
	p.reboot()
	p.start()
	return p.await("settled", func(st *apply.Status) bool {
		if st.InSync {
			return ttlOf(*st.Current) == p.n && !p.tooBig
		}
		return st.State == apply.StateHeld && st.Running.Confirmed
	})
}

// reboot is what a power cut is besides: the machine that the last agent ran on,
// if the disk still knows that one ran, was started again since.
func (p *power) reboot() {
	p.t.Helper()
	path := filepath.Join(p.state(), "lock")
	held, _ := os.ReadFile(path) // there is none left of an agent that syncs nothing
	if pid, _, found := strings.Cut(string(held), " "); found {
		ok(p.t, os.WriteFile(path, []byte(pid+" an-earlier-boot\n"), 0o600))
	}
}

// work changes things until the power is cut.
func (p *power) work(mode string, kind cutKind) {
	p.t.Helper()
	switch mode {
	case "rollback", "pause", "exit code":
		p.cutBehindAnswer(mode, kind)
	case "pending":
		p.cutWhilePending(kind)
	case "anywhere":
		p.cutAnywhere(kind, 30*time.Millisecond)
	case "killed":
		p.cutAfterKill(kind)
	case "packing", "joining":
		p.prepared(mode)
		p.start()
		p.next(false)
		p.synced()
		p.cutAnywhere(kind, 80*time.Millisecond)
	default:
		p.cutBehindWord(mode, kind)
	}
}

// cutBehindAnswer cuts when an operator was told that the order was carried
// out.
func (p *power) cutBehindAnswer(mode string, kind cutKind) {
	p.t.Helper()
	p.next(p.random.IntN(3) == 0) // it may still be on its way
	var done bool
	var id string
	var err error
	if mode == "exit code" {
		code, out := p.order("rollback", "--reason", "a try")
		done = code == 0
		if _, after, found := strings.Cut(out, "applied as "); found {
			id, _, _ = strings.Cut(after, ":")
		}
	} else {
		done, id, err = p.ask(mode)
	}
	ok(p.t, p.disk.cut(kind))
	ok(p.t, err)
	if done {
		p.told = mode
		p.said.note(mode, id, "")
	}
}

// cutWhilePending cuts while a candidate is on record that the engine does not
// answer for.
func (p *power) cutWhilePending(kind cutKind) {
	p.t.Helper()
	pid := p.engine.Process.Pid
	ok(p.t, syscall.Kill(pid, syscall.SIGSTOP))
	p.next(false)
	st := p.await("pending", func(st *apply.Status) bool {
		return st.Attempted != nil && st.Attempted.Outcome == record.Pending
	})
	p.candidate = st.Attempted.SnapshotID
	ok(p.t, p.disk.cut(kind))
	ok(p.t, syscall.Kill(pid, syscall.SIGCONT))
}

// cutAfterKill kills the agent while it syncs, so that something is written and
// not synced, and cuts when the next agent, which finds it in memory, has said
// what is applied. Each sync takes a while, so that most moments are in one; the
// last ones of a change, whose end is not known yet, are hit most often.
func (p *power) cutAfterKill(kind cutKind) {
	p.t.Helper()
	end := p.inject(slowCalls + ":delay_enter=30000")
	p.next(false)
	p.sent()
	begun := time.Now()
	p.synced()
	takes := time.Since(begun)
	p.next(false)
	p.sent()
	early := p.random.Float64()
	<-time.After(time.Duration(float64(takes) * (1 - early*early)))
	p.kill()
	end()
	p.start()
	p.await("applied", func(st *apply.Status) bool { return st.Running.Confirmed })
	ok(p.t, p.disk.cut(kind))
}

// cutAnywhere cuts within a time while changes, good and bad, follow another.
func (p *power) cutAnywhere(kind cutKind, within time.Duration) {
	p.t.Helper()
	moment := time.NewTimer(time.Duration(p.random.Int64N(int64(within))))
	again := time.NewTicker(time.Duration(2+p.random.IntN(10)) * time.Millisecond)
	defer again.Stop()
	for {
		p.next(p.random.IntN(3) == 0)
		select {
		case <-moment.C:
			ok(p.t, p.disk.cut(kind))
			return
		case <-again.C:
		}
	}
}

// cutBehindWord cuts when the log ("log", "revert") or the status ("status")
// says that something is applied, on the goroutine that heard it.
func (p *power) cutBehindWord(by string, kind cutKind) {
	p.t.Helper()
	over := make(chan error, 1)
	words := 1 + p.random.IntN(3)
	p.said.when(func(way string) {
		if way != by {
			return
		}
		if words--; words == 0 {
			over <- p.disk.cut(kind)
		}
	})
	defer p.said.when(nil)
	deadline, again := time.After(40*time.Second), time.NewTicker(time.Millisecond)
	defer again.Stop()
	declared := time.Time{}
	for {
		// a rejected state makes no word of its own; the next comes by the clock
		if p.toldOf(p.n) || time.Since(declared) > 50*time.Millisecond {
			p.next(by == "revert" && !p.tooBig)
			declared = time.Now()
		}
		if by == "status" {
			_, _ = p.status() // it fails for a moment, while the agent starts
		}
		select {
		case err := <-over:
			ok(p.t, err)
			return
		case <-deadline:
			p.t.Fatalf("no word within 40 s\n%s", p.said.tail())
		case <-again.C:
		}
	}
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

// prepared puts a history onto the disk that the next start will pack.
func (p *power) prepared(mode string) {
	p.t.Helper()
	p.kill()
	kept, applied := p.old.get(p.t, mode)
	ok(p.t, os.RemoveAll(p.state()))
	ok(p.t, os.CopyFS(p.state(), os.DirFS(kept)))
	ok(p.t, unix.Syncfs(int(p.disk.root.Fd())))
	p.said.forget(maps.Clone(applied))
	p.before.told, p.before.records = len(applied), len(applied)
}

// Histories are state directories that were made once, for all disks.
type histories struct {
	dir     string
	applied map[string]map[string]string // what is applied in each
}

// get makes the history that mode needs: enough records for a checkpoint that were
// never packed; for "joining" seven packs besides, so that the eighth makes one of
// all.
func (h *histories) get(t testing.TB, mode string) (dir string, applied map[string]string) {
	t.Helper()
	dir = filepath.Join(h.dir, mode)
	if h.applied[mode] == nil {
		packs := 0
		if mode == "joining" {
			packs = 7
		}
		h.applied[mode] = history(t, dir, packs)
	}
	return dir, h.applied[mode]
}

// history makes a state directory of applied records with so many packs and 80
// records that are not packed. It is copied while the store is open: what Close
// would pack stays unpacked.
func history(t testing.TB, dir string, packs int) map[string]string {
	t.Helper()
	const unpacked = 80
	made := dir + ".made"
	ok(t, os.Mkdir(made, 0o700))
	store, _, err := gitstore.Open(t.Context(), gitstore.Options{Dir: made, Environment: "production", Instance: "i"})
	ok(t, err)
	applied := map[string]string{}
	for n, left := 0, unpacked; left > 0; n++ {
		config := production.Defaults().With(ttlName, schema.Int(10_000+n))
		snap, err := store.Commit(t.Context(), record.Record{Kind: record.KindChange, Config: config, RollbackPoint: true, Description: fmt.Sprintf("state %d", 10_000+n)})
		ok(t, err)
		ok(t, store.Confirm(t.Context()))
		applied[snap.ID] = strconv.Itoa(10_000 + n)
		if there, _ := filepath.Glob(filepath.Join(made, "snapshots.git/objects/pack/*.pack")); len(there) < packs {
			store.Prepare(t.Context(), "")
		} else {
			left--
		}
	}
	ok(t, os.CopyFS(dir, os.DirFS(made)))
	ok(t, os.Chmod(dir, 0o700))
	ok(t, store.Close())
	return applied
}
