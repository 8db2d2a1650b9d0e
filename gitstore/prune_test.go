package gitstore

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// often makes packing and pruning come often, for the time of a test.
func often(t testing.TB) {
	every, worth := packEvery, looseWorth
	packEvery, looseWorth = 4, 8
	t.Cleanup(func() { packEvery, looseWorth = every, worth })
}

// openKeeping opens the store with --prune-history.
func (f *fixture) openKeeping(n int) (*Store, []Repair) {
	f.t.Helper()
	o := f.options()
	o.KeepSnapshots = n
	s, repairs, err := Open(context.Background(), o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = s.Close() })
	return s, repairs
}

// A long history that is pruned stays short, sound to git, and numbered on; the
// objects of what went are gone.
func TestPrune(t *testing.T) {
	often(t)
	f := newMemory(t)
	s, _ := f.openKeeping(20)
	var all []*record.Record
	for i := range 120 {
		all = append(all, applied(t, s, 64+i))
		s.Prepare()
		if i%30 == 7 {
			s.settleCompaction()
			f.beginsAt(s, all[i], s.first)
		}
	}
	s.settleCompaction()
	if n := s.Total(); n < 20 || n > 20+4*packEvery {
		t.Errorf("%d records are left, at least 20 were to be kept", n)
	}
	first := s.first
	if f.beginsAt(s, all[119], first); first < 80 {
		t.Errorf("the history begins at record %d", first)
	}
	if out := f.gitMay("cat-file", "-t", all[3].Commit); strings.Contains(out, "commit") {
		t.Error("record 4 is still there")
	}
	if n := strings.Count(f.git("cat-file", "--batch-all-objects", "--batch-check"), "commit"); n > s.Total()+4*packEvery {
		t.Errorf("%d commits are still there, and %d records", n, s.Total())
	}
	s, repairs := f.reopen(s)
	noRepairs(t, repairs)
	f.beginsAt(s, all[119], first)
	if next := applied(t, s, 9000); next.Index != 121 {
		t.Errorf("the next record is %d", next.Index)
	}
}

// Whatever is old stays as long as it is applied, or as a rollback may go there.
func TestPruneKeepsWhatARollbackNeeds(t *testing.T) {
	often(t)
	for name, row := range map[string]struct {
		tell func(s *Store)
		last int // the first record may not be above this one
	}{
		"applied, with candidates that end unapplied above": {func(s *Store) {
			for i := range 40 {
				rec := change(2000 + i)
				if i > 0 {
					rec.OutcomeOf = &record.Settlement{ID: s.Head().ID, Outcome: record.Superseded}
				}
				commit(t, s, rec)
				s.objects.unsynced = nil // as after a restart that synced them
				s.Prepare()
				s.settleCompaction()
			}
		}, 29},
		"the state before, with notes above": {func(s *Store) {
			for i := range 40 {
				commit(t, s, record.Record{Kind: record.KindNote, Config: s.Head().Config, Held: &record.Hold{Paused: i%2 == 0, By: "operator"}})
				confirm(t, s)
				s.Prepare()
				s.settleCompaction()
			}
		}, 29},
		"the state before the one that is held, by what the schema knows": {func(s *Store) {
			held := holding(sized(64+28).With("unknown", schema.Int(1)))
			for range 40 {
				commit(t, s, record.Record{Kind: record.KindNote, Config: s.Head().Config, Held: held})
				confirm(t, s)
				s.Prepare()
				s.settleCompaction()
			}
		}, 28},
	} {
		t.Run(name, func(t *testing.T) {
			f := newMemory(t)
			s, _ := f.openKeeping(10)
			s.opts.Known = func(name string) bool { return name != "unknown" }
			for i := range 30 {
				applied(t, s, 64+i)
			}
			row.tell(s)
			if s.first > row.last || s.first <= row.last-packEvery {
				t.Errorf("the history begins at record %d, want at most %d, or a few less", s.first, row.last)
			}
			f.fsck()
		})
	}
}

// What a person's refs name stays; of the records, the ones they stand on.
func TestPruneKeepsOtherRefs(t *testing.T) {
	often(t)
	f := newMemory(t)
	s, _ := f.openKeeping(10)
	var all []*record.Record
	for i := range 20 {
		all = append(all, applied(t, s, 64+i))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f.git("-c", "user.name=P", "-c", "user.email=p@example.org", "tag", "-am", "good", "good", all[4].Commit)
	f.foreign("P", map[string][]byte{"note": []byte("by hand")})
	f.git("gc", "-q") // with a commit-graph
	s, repairs := f.openKeeping(10)
	if len(repairs) != 1 || !strings.HasPrefix(repairs[0].Kept, setAsideRefs) {
		t.Fatal(repairs)
	}
	for i := range 40 {
		all = append(all, applied(t, s, 500+i))
		s.Prepare()
	}
	s.settleCompaction()
	if s.first < 30 {
		t.Errorf("the history begins at %d", s.first)
	}
	f.beginsAt(s, all[59], s.first)
	if got := f.git("show", "-s", "--format=%H", "good^{commit}"); got != all[4].Commit {
		t.Errorf("the tag names %s", got)
	}
	if got := f.git("show", "--format=", repairs[0].Kept+":note"); got != "by hand" {
		t.Errorf("the foreign commit holds %q", got)
	}
	if n := f.git("rev-list", "--count", "good"); n != "1" {
		t.Errorf("the tag keeps %s records", n)
	}
	s, repairs = f.reopen(s)
	noRepairs(t, repairs)
	f.beginsAt(s, all[59], s.first)
}

// A ref that appears between the plan and the cut keeps what it names, and the
// history is pruned around it all the same.
func TestPruneMeetsANewRef(t *testing.T) {
	often(t)
	for name, row := range map[string]struct {
		args func(commit string) []string
		kept string
	}{
		"a tag": {func(c string) []string { return []string{"tag", "mine", c} }, "refs/tags/mine"},
		"an annotated tag": {func(c string) []string {
			return []string{"-c", "user.name=P", "-c", "user.email=p@example.org", "tag", "-am", "good", "mine", c}
		}, "refs/tags/mine^{commit}"},
		"a branch": {func(c string) []string { return []string{"branch", "mine", c} }, "refs/heads/mine"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newMemory(t)
			s, _ := f.openKeeping(10)
			var all []*record.Record
			for i := range 30 {
				all = append(all, applied(t, s, 64+i))
			}
			s.Prepare()
			<-s.compaction.over
			if s.compaction.plan == nil {
				t.Fatal("nothing is to be pruned")
			}
			want := all[4].Commit
			f.git(row.args(want)...)
			all = append(all, applied(t, s, 500))
			for range 3 { // it is planned again, and cut
				s.Prepare()
				s.settleCompaction()
			}
			if s.first < 15 {
				t.Errorf("the history begins at %d", s.first)
			}
			if got := f.git("show", "-s", "--format=%H", row.kept); got != want {
				t.Errorf("%s names %s", row.kept, got)
			}
			if got := f.git("show", row.kept+":parameters.yaml") + "\n"; got != string(all[4].Config.YAML()) {
				t.Errorf("the record holds %q", got)
			}
			f.beginsAt(s, all[30], s.first)
		})
	}
}

// A repository that was replaced between the plan and the cut is not cut by what
// was planned for another.
func TestPruneMeetsAnotherHistory(t *testing.T) {
	often(t)
	f := newMemory(t)
	s, _ := f.openKeeping(10)
	for i := range 26 {
		applied(t, s, 64+i)
	}
	backup := f.backup()
	for i := range 4 {
		applied(t, s, 164+i)
	}
	s.Prepare()
	<-s.compaction.over
	f.replace(backup)
	s.settleCompaction()
	if got := f.git("rev-list", "--count", "production"); got != "26" {
		t.Errorf("%s records are left of the backup", got)
	}
	f.fsck()
}

// Readers go on reading while the history is pruned under them.
func TestPruneUnderReaders(t *testing.T) {
	often(t)
	f := newMemory(t)
	s, _ := f.openKeeping(8)
	applied(t, s, 64)
	r := f.reader()
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			list, err := r.List(context.Background(), "", 1000)
			if err != nil || len(list) == 0 {
				done <- fmt.Errorf("%d listed, %w", len(list), err)
				return
			}
		}
	}()
	for i := range 60 {
		applied(t, s, 65+i)
		s.Prepare()
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	s.settleCompaction()
	if s.first < 25 {
		t.Errorf("the history begins at %d", s.first)
	}
}

// pruneOnce is the child of TestPruneIsKilled: one start of an agent, which
// packs and prunes, and ends.
func pruneOnce(dir string) {
	packEvery, looseWorth = 4, 8
	s, _, err := Open(context.Background(), Options{Dir: dir, Environment: "production", Instance: "web-1", KeepSnapshots: 6})
	if err == nil {
		s.Prepare()
		err = s.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestPruneIsKilled kills a process at every system call by which pruning
// changes the disk: what is found afterwards is the history as it was, or cut at
// the boundary; no record that was to stay is gone, git finds nothing amiss, and
// the next start brings it to its end. DTESN_TEST_KILLS=all tries all calls, not
// a sample.
func TestPruneIsKilled(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("DTESN_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs strace")
	}
	often(t)
	f := newMemory(t)
	records := f.long(30)
	files, err := readAll(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	kills := 0
	for call, step := range map[string]int{"renameat": 5, "unlinkat": 29, "fsync": 9, "write": 31} {
		if os.Getenv("DTESN_TEST_KILLS") == "all" {
			step = 1
		}
		for n := 1 + rand.IntN(step); ; n += step { // in time, every call is met
			f := newMemory(t)
			if err := os.CopyFS(f.dir, files); err != nil {
				t.Fatal(err)
			}
			if !f.killAt(call, n) {
				break
			}
			kills++
			f.pruned(t, records, fmt.Sprintf("%s %d", call, n))
			if t.Failed() {
				t.Fatalf("killed at %s %d", call, n)
			}
		}
	}
	if kills < 4 {
		t.Errorf("only %d kills", kills)
	}
	t.Logf("%d kills", kills)
}

// killAt runs a child that is killed at its n-th call of a kind; false if it
// made fewer.
func (f *fixture) killAt(call string, n int) bool {
	f.t.Helper()
	cmd := exec.Command("strace", "-f", "-qq", "-o", os.DevNull, "-e", "trace="+call,
		"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", call, n), os.Args[0])
	cmd.Env = append(os.Environ(), "GITSTORE_PRUNE_IN="+f.dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if out.Len() > 0 {
		f.t.Fatalf("%s %d: %s", call, n, &out)
	}
	return err != nil
}

// pruned looks at what a kill left, and lets the next start go on.
func (f *fixture) pruned(t *testing.T, records []*record.Record, when string) {
	t.Helper()
	head := records[len(records)-1]
	s, repairs := f.openKeeping(6)
	for _, r := range repairs {
		t.Errorf("%s: a kill of our own is no damage: %s", when, r)
	}
	expect(t, s, head, head)
	if s.first != 1 && s.first != 25 {
		t.Errorf("%s: the history begins at %d", when, s.first)
	}
	f.fsck()
	s.Prepare()
	s.settleCompaction()
	s, repairs = f.reopen(s)
	noRepairs(t, repairs)
	f.beginsAt(s, head, 25)
	if packs, err := filepath.Glob(f.repo("objects", "pack", "*.pack")); err != nil || len(packs) > 3 {
		t.Errorf("%s: %d packs are left, %v", when, len(packs), err)
	}
}
