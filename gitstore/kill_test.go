package gitstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// openOnce is the child of TestRepairIsKilled: it opens, makes files ahead, and
// is gone without a word.
func openOnce(dir string) {
	s, _, err := Open(context.Background(), Options{Dir: dir, Environment: "production", Instance: "web-1"})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	s.Prepare()
	os.Exit(0)
}

// A ruin is a history that is damaged, and what a repair without a kill makes
// of it.
type ruin struct {
	damage func(f *fixture)
	dirty  bool // content of old records is lost
	remade bool // the newest record is made anew: each time another one
}

func ruins(lender string) map[string]ruin {
	file := func(name string) func(f *fixture) {
		return func(f *fixture) { f.write(f.repo(filepath.FromSlash(name)), "") }
	}
	pack := func(do func(f *fixture, base string)) func(f *fixture) {
		return func(f *fixture) { do(f, strings.TrimSuffix(f.packs()[0], ".pack")) }
	}
	return map[string]ruin{
		"nothing":          {damage: func(*fixture) {}},
		"HEAD torn":        {damage: file("HEAD")},
		"config torn":      {damage: file("config")},
		"shallow torn":     {damage: func(f *fixture) { f.write(f.repo(shallowFile), zeros) }},
		"head torn":        {damage: file("refs/heads/production")},
		"applied torn":     {damage: file("refs/dtesn/applied/production")},
		"refs lost":        {damage: func(f *fixture) { f.remove(f.repo("refs")) }},
		"head too large":   {damage: func(f *fixture) { f.write(f.ref("heads/production"), strings.Repeat("x", maxRef+1)) }},
		"marks torn":       {damage: func(f *fixture) { f.write(f.dir+"/format", ""); f.write(f.dir+"/identity", "") }},
		"index torn":       {damage: pack(func(f *fixture, base string) { f.overwrite(base+".idx", 1500, "XX") })},
		"index lost":       {damage: pack(func(f *fixture, base string) { f.remove(base + ".idx"); f.old(base + ".pack") })},
		"pack torn":        {pack(func(f *fixture, base string) { f.overwrite(base+".pack", f.size(base+".pack")/3, zeros) }), true, false},
		"end of pack torn": {damage: pack(func(f *fixture, base string) { f.overwrite(base+".pack", f.size(base+".pack")-2, "XX") })},
		"pack lost":        {damage: pack(func(f *fixture, base string) { f.remove(base + ".idx"); f.remove(base + ".pack") })},
		"set-aside taken":  {damage: func(f *fixture) { f.write(f.dir+"/set-aside", ""); f.write(f.repo(shallowFile), zeros) }},
		"applied damaged":  {damage: func(f *fixture) { f.halve(f.file("production:snapshot.json")); f.remove(f.file("production")) }},
		"applied lost": {remade: true, damage: func(f *fixture) {
			f.halve(f.file("production:snapshot.json"))
			f.remove(filepath.Join(f.dir, appliedFile))
		}},
		"repository lost": {damage: func(f *fixture) { f.remove(f.repo()); f.remove(f.dir + "/" + appliedFile) }},
		"repository a file": {damage: func(f *fixture) {
			f.remove(f.repo())
			f.write(f.repo(), "")
			f.remove(f.dir + "/" + appliedFile)
		}},
		"refs and objects lost": {damage: func(f *fixture) {
			f.remove(f.repo("refs"))
			f.remove(f.repo("objects"))
			f.remove(f.dir + "/" + appliedFile)
		}},
		"refs and objects torn": {damage: func(f *fixture) {
			for _, sub := range []string{"refs", "objects"} {
				f.eachFile(sub, func(path string) { f.write(path, "") })
			}
			f.remove(f.dir + "/" + appliedFile)
		}},
		"objects borrowed": {damage: func(f *fixture) {
			f.write(f.repo("objects", "info", alternatesFile), lender+"\n")
			f.remove(f.packs()[0])
			f.eachFile("objects/pack", func(path string) { f.remove(path) })
		}},
	}
}

// TestRepairIsKilled kills a process in its repairs, twice, at system calls by
// which it changes the disk; in a container, as it were, where each process has
// the pid of the one before. The third finds what the first would have made.
// DTESN_TEST_KILLS=all tries every call, not a sample, for the first kill.
func TestRepairIsKilled(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("DTESN_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs strace")
	}
	whole := newMemory(t)
	whole.long(16)
	whole.git("repack", "-q")
	whole.git("prune-packed", "-q")
	lender := filepath.Join(filepath.Dir(whole.dir), "lender")
	if err := os.CopyFS(lender, os.DirFS(whole.repo("objects"))); err != nil {
		t.Fatal(err)
	}
	whole.long(4)
	whole.openOnce(t) // what it made ahead bears the names of the next
	files, err := readAll(whole.dir)
	if err != nil {
		t.Fatal(err)
	}
	var kills atomic.Int64
	t.Run("all", func(t *testing.T) {
		for name, r := range ruins(lender) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				ruined := func() *fixture {
					f := newMemory(t)
					if err := os.CopyFS(f.dir, files); err != nil {
						t.Fatal(err)
					}
					r.damage(f)
					return f
				}
				want := ruined().outcome(t, r)
				for _, k := range killsAt() {
					f := ruined()
					for _, at := range [][]any{k, killsAt()[0]} {
						if f.openOnce(t, at...) {
							kills.Add(1)
						}
					}
					if got := f.outcome(t, r); got != want {
						t.Errorf("killed at %v, this is found: %s, want %s", k, got, want)
					}
					if t.Failed() {
						t.Fatalf("killed at %v", k)
					}
				}
			})
		}
	})
	if kills.Load() < 2 {
		t.Errorf("only %d kills", kills.Load())
	}
	t.Logf("%d kills", kills.Load())
}

// killsAt are some of the calls at which a child may be killed, in no order.
func killsAt() (list [][]any) {
	for call, most := range map[string]int{"renameat": 8, "fsync": 8, "unlinkat": 10, "write": 10, "openat": 80} {
		if os.Getenv("DTESN_TEST_KILLS") != "all" {
			list = append(list, []any{call, 1 + rand.IntN(most)})
			continue
		}
		for n := range most {
			list = append(list, []any{call, 1 + n})
		}
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	if os.Getenv("DTESN_TEST_KILLS") != "all" {
		list = list[:2]
	}
	return list
}

// openOnce runs the child, in a pid namespace of its own where that is to be
// had. It is killed at the n-th call of a kind if one is given, and reports
// whether it was.
func (f *fixture) openOnce(t *testing.T, at ...any) bool {
	t.Helper()
	args := []string{"-f", "-qq", "-o", os.DevNull, "-e", "trace=none"}
	if len(at) == 2 {
		args = []string{"-f", "-qq", "-o", os.DevNull, "-e", fmt.Sprint("trace=", at[0]), "-e", fmt.Sprintf("inject=%v:signal=SIGKILL:when=%d", at...)}
	}
	var out bytes.Buffer
	for _, flags := range []uintptr{syscall.CLONE_NEWPID, 0} {
		cmd := exec.Command("strace", append(args, os.Args[0])...)
		// A program built with the race detector sleeps a second before it exits.
		cmd.Env = append(os.Environ(), "GITSTORE_OPEN_IN="+f.dir, "GORACE=atexit_sleep_ms=0")
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: flags}
		err := cmd.Run()
		if flags != 0 && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL)) {
			continue // not root, or not allowed to
		}
		if out.Len() > 0 {
			t.Fatalf("killed at %v: %s", at, &out)
		}
		return err != nil
	}
	return false
}

// outcome opens what is there, and tells of it all that a kill must not change.
func (f *fixture) outcome(t *testing.T, r ruin) string {
	t.Helper()
	s, _ := f.open()
	story := fmt.Sprintf("head %s, applied %s, %d records, lost %v", commitOf(s.Head()), commitOf(s.Applied()), s.Total(), s.Lost() != nil)
	if r.remade { // between its two refs it is pending
		story = fmt.Sprintf("head %s %d of %d", s.Head().Kind, s.Head().Index, sizeOf(s.Head().Config))
	}
	for _, place := range []string{f.dir, f.repo(), f.repo("tmp"), f.repo("objects", "pack")} {
		if left, err := glob(place, "tmp-*"); err != nil || len(left) > 0 {
			t.Errorf("left over: %v, %v", left, err)
		}
	}
	if r.dirty {
		f.fsckButMissing()
	} else {
		f.fsck()
	}
	missing := 0
	list, err := s.List(t.Context(), "", 100)
	for _, rec := range list {
		if strings.HasPrefix(rec.Description, "(damaged) ") {
			missing++
		}
	}
	s, repairs := f.reopen(s)
	noRepairs(t, repairs)
	if err := errors.Join(err, s.Close()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(f.repo("objects", "info", alternatesFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the repository still borrows")
	}
	return fmt.Sprintf("%s, %d of them damaged", story, missing)
}
