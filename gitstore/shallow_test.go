package gitstore

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"dtesn-agent/gitstore/record"
)

// records are the indexes that a Reader lists, newest first.
func (f *fixture) records() string {
	f.t.Helper()
	list, err := f.reader().List(f.t.Context(), "", 1000)
	if err != nil {
		f.t.Error(err)
	}
	var b strings.Builder
	for _, rec := range list {
		fmt.Fprintf(&b, "%d ", rec.Index)
	}
	return strings.TrimSpace(b.String())
}

// shallow is the content of the file shallow.
func (f *fixture) shallow() string {
	data, _ := os.ReadFile(f.repo(shallowFile))
	return string(data)
}

// TestForeignShallow fetches the newest records of another history, which has
// no more records than ours and may be ours to the last word but for its commits:
// git's note of where that one ends hides nothing of ours, whole or pruned.
func TestForeignShallow(t *testing.T) {
	often(t)
	for name, keep := range map[string]int{"whole": 0, "pruned": 10} {
		t.Run(name, func(t *testing.T) {
			other := newMemory(t)
			other.long(39)
			f := newMemory(t)
			s, _ := f.openKeeping(keep)
			for i := range 40 {
				applied(t, s, 64+i)
				s.Prepare()
				s.settleCompaction()
			}
			first := s.first
			if (first > 1) != (keep > 0) {
				t.Fatalf("the history begins at %d", first)
			}
			f.git("fetch", "-q", "--depth", "3", "file://"+other.repo(), "production:refs/heads/other")
			line := strings.TrimSpace(other.git("rev-parse", "production~2"))
			if !strings.Contains(f.shallow(), line) {
				t.Fatalf("shallow is %q", f.shallow())
			}
			f.beginsAt(s, s.Head(), first)
			head := applied(t, s, 4096)
			for range 2 {
				var repairs []Repair
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s, repairs = f.openKeeping(keep)
				noRepairs(t, repairs)
				f.beginsAt(s, head, first)
			}
			for i := range 30 { // what is packed and pruned since
				head = applied(t, s, 200+i)
				s.Prepare()
				s.settleCompaction()
			}
			f.beginsAt(s, head, s.first)
			if (s.first > first) != (keep > 0) || !strings.Contains(f.shallow(), line) {
				t.Errorf("the history begins at %d, shallow is %q", s.first, f.shallow())
			}
		})
	}
}

// TestNeedlessShallow writes a record of ours into shallow, as a fetch from a
// copy does: nothing is hidden, nor pruned, and the next Open says so and lets git
// see it all again. Below a line where something is missing the history ends.
func TestNeedlessShallow(t *testing.T) {
	f := newMemory(t)
	r := f.long(12)
	f.write(f.repo(shallowFile), r[7].Commit+"\n"+r[3].Commit+"\n")
	if got := f.records(); !strings.HasSuffix(got, "9 8 7 6 5 4 3 2 1") {
		t.Errorf("a Reader lists %s", got)
	}
	s, repairs := f.open()
	if len(repairs) != 2 || !strings.Contains(repairs[0].Found, "nothing is below record 8 ("+r[7].Commit) || !strings.Contains(repairs[1].Found, "record 4") {
		t.Errorf("repairs: %v", repairs)
	}
	f.beginsAt(s, r[11], 1)
	if f.shallow() != "" {
		t.Errorf("shallow is %q", f.shallow())
	}

	f.write(f.repo(shallowFile), r[7].Commit+"\n"+r[3].Commit+"\n")
	f.remove(f.file(r[1].Commit)) // as a gc would do
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, repairs = f.open()
	if len(repairs) != 1 || !strings.Contains(repairs[0].Found, "record 8") {
		t.Errorf("repairs: %v", repairs)
	}
	f.beginsAt(s, r[11], 4)
}

// TestPruneMindsNoNeedlessLine: a line of shallow that hides records which are to
// stay does not let pruning take them.
func TestPruneMindsNoNeedlessLine(t *testing.T) {
	often(t)
	f := newMemory(t)
	s, _ := f.openKeeping(10)
	var all []*record.Record
	for i := range 30 {
		all = append(all, applied(t, s, 64+i))
	}
	f.write(f.repo(shallowFile), all[27].Commit+"\n")
	s.Prepare()
	s.settleCompaction()
	if s.first < 15 || s.first > 21 {
		t.Errorf("the history begins at %d", s.first)
	}
	f.beginsAt(s, all[29], s.first)
}
