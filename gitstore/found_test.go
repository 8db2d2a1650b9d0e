package gitstore

import (
	"context"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

// foundAlone are the lines of the table that have a test of their own.
var foundAlone = map[string]func(*testing.T){
	"gap in the history":       TestGap,
	"lock that another holds":  TestHeldLock,
	"not readable or writable": TestPermissions,
	"read-only file system":    TestReadOnly,
	"disk full":                TestFullAtOpen,
	"reserve missing":          TestReserveIsMadeAgain,

	"shallow hides what is there": TestNeedlessShallow,

	"no second copy of the applied record": TestRemade,
	"settlement at the head damaged":       TestRemade,
}

// TestFound compares the table in the package doc with the tests: each line has
// one, and each test of what is found has a line.
func TestFound(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments|parser.PackageClauseOnly)
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(f.Doc.Text(), "# What is found at open")
	table, _, more := strings.Cut(table, "\n# ")
	if !ok || !more {
		t.Fatal("doc.go has no table")
	}
	lines := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\t(\S.*?) {2,}\S`).FindAllStringSubmatch(table, -1) {
		if lines[m[1]] {
			t.Errorf("%q stands twice", m[1])
		}
		lines[m[1]] = true
	}
	tests := map[string]bool{}
	names := slices.Sorted(maps.Keys(refusals()))
	for _, row := range repairRows() {
		names = append(names, row.name)
	}
	for _, name := range names {
		if key, _, _ := strings.Cut(name, ": "); key != "options" {
			tests[key] = true
		}
	}
	for key := range foundAlone {
		tests[key] = true
	}
	for key := range lines {
		if !tests[key] {
			t.Errorf("no test is called %q", key)
		}
	}
	for key := range tests {
		if !lines[key] {
			t.Errorf("the table has no line %q", key)
		}
	}
	if len(lines) < 40 {
		t.Errorf("%d lines read", len(lines))
	}
}

// long tells a history of n applied records and closes the store; a closed
// history may be packed by git.
func (f *fixture) long(n int) (records []*record.Record) {
	f.t.Helper()
	s, _ := f.open()
	for i := range n {
		records = append(records, applied(f.t, s, 64+i))
	}
	if err := s.Close(); err != nil {
		f.t.Fatal(err)
	}
	return records
}

// TestGap takes records out of the middle of the history: it begins above the
// gap from now on, for us and for git; what is whole below is kept; numbers go
// on; and a rollback across the gap is refused with the reason.
func TestGap(t *testing.T) {
	const n = 12
	for name, row := range map[string]struct {
		damage func(f *fixture, r []*record.Record)
		first  int
		kept   []int // records at the tips that were set aside, newest first
	}{
		"a commit missing": {func(f *fixture, r []*record.Record) { f.remove(f.file(r[4].Commit)) }, 6, []int{4}},
		"a commit torn":    {func(f *fixture, r []*record.Record) { f.halve(f.file(r[4].Commit)) }, 6, []int{4}},
		"a commit missing that only its children name": {func(f *fixture, r []*record.Record) {
			f.git("gc", "-q")
			f.explode()
			f.remove(f.file(r[4].Commit))
		}, 6, []int{4}},
		"two gaps": {func(f *fixture, r []*record.Record) {
			f.remove(f.file(r[7].Commit))
			f.remove(f.file(r[3].Commit))
		}, 9, []int{7, 3}},
		"the first is gone":    {func(f *fixture, r []*record.Record) { f.remove(f.file(r[0].Commit)) }, 2, nil},
		"applied's own parent": {func(f *fixture, r []*record.Record) { f.remove(f.file(r[10].Commit)) }, 12, []int{10}},
		"all but the newest": {func(f *fixture, r []*record.Record) {
			for _, rec := range r[:11] {
				f.remove(f.file(rec.Commit))
			}
		}, 12, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newMemory(t)
			r := f.long(n)
			row.damage(f, r)
			s, repairs := f.open()
			expect(t, s, r[n-1], r[n-1])
			said := repairs[max(0, len(repairs)-1):]
			if len(said) != 1 || !strings.HasPrefix(said[0].Found, fmt.Sprintf("record %d%s", row.first-1, isLost)) || !strings.Contains(said[0].Did, fmt.Sprintf("begins at record %d", row.first)) {
				t.Errorf("repairs: %v", repairs)
			}
			f.beginsAt(s, r[n-1], row.first)
			tips := strings.Fields(f.git("for-each-ref", "--sort=-refname", "--format=%(objectname)", setAsideRefs))
			if len(tips) != len(row.kept) {
				t.Errorf("%d tips kept, want %d", len(tips), len(row.kept))
			}
			for _, k := range row.kept {
				if !slices.Contains(tips, r[k-1].Commit) {
					t.Errorf("record %d is not kept: %v", k, tips)
				}
			}
			next := applied(t, s, 4096)
			if next.Index != n+1 {
				t.Errorf("the next record is %d", next.Index)
			}
			s, repairs = f.reopen(s)
			noRepairs(t, repairs)
			f.beginsAt(s, next, row.first)
		})
	}
}

// explode puts every packed object into a loose file.
func (f *fixture) explode() {
	f.t.Helper()
	packs, err := filepath.Glob(f.repo("objects", "pack", "*.pack"))
	if err != nil || len(packs) == 0 {
		f.t.Fatal(packs, err)
	}
	for _, path := range packs {
		away := filepath.Join(filepath.Dir(f.dir), "pack")
		if err := os.Rename(path, away); err != nil {
			f.t.Fatal(err)
		}
		f.remove(strings.TrimSuffix(path, ".pack") + ".idx")
		f.gitFrom(away, "unpack-objects", "-q")
	}
}

// beginsAt holds that the history of head begins at record first, for the Store,
// for a Reader and for git, and that what is before is refused with the reason.
func (f *fixture) beginsAt(s *Store, head *record.Record, first int) {
	f.t.Helper()
	want := head.Index - first + 1
	f.fsck()
	if got := f.git("rev-list", "--count", "production"); got != fmt.Sprint(want) {
		f.t.Errorf("git counts %s records, want %d", got, want)
	}
	r := f.reader()
	if n, err := r.First(); n != first || err != nil {
		f.t.Errorf("a Reader says that the first is %d, %v", n, err)
	}
	for who, list := range map[string]func(context.Context, string, int) ([]record.Row, error){"store": s.List, "reader": r.List} {
		records, err := list(f.t.Context(), "", 1000)
		if err != nil || len(records) != want || records[want-1].Index != first {
			f.t.Errorf("the %s lists %d records, %v", who, len(records), err)
		}
		page, err := list(f.t.Context(), records[len(records)-1].ID, 10)
		if err != nil || len(page) != 0 {
			f.t.Errorf("the %s lists %d before the first, %v", who, len(page), err)
		}
	}
	if n, err := r.Total(); n != want || err != nil || s.Total() != want {
		f.t.Errorf("%d and %d records in total, %v, want %d", s.Total(), n, err, want)
	}
	if first > 1 {
		for _, id := range []string{fmt.Sprint(first - 1), formatID(1699123456, first-1)} {
			_, err := s.Lookup(f.t.Context(), id)
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("the history begins at record %d", first)) {
				f.t.Errorf("lookup of %s: %v", id, err)
			}
		}
	}
	clone := filepath.Join(f.t.TempDir(), "clone")
	f.git("clone", "-q", "file://"+f.repo(), clone)
}

// TestTornPack damages a pack that holds most of a history, at many places:
// what can be read of it is saved, and the history is sound to git afterwards.
func TestTornPack(t *testing.T) {
	f := newMemory(t)
	r := f.long(40)
	f.git("gc", "-q")
	files, err := readAll(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	saved := 0
	for _, percent := range []int{3, 30, 60, 85, 97} {
		for _, indexed := range []bool{true, false} {
			for _, cut := range []bool{true, false} {
				t.Run(fmt.Sprintf("at %d %%, index %v, cut %v", percent, indexed, cut), func(t *testing.T) {
					f := newMemory(t)
					if err := os.CopyFS(f.dir, files); err != nil {
						t.Fatal(err)
					}
					tear(f, percent, indexed, cut)
					s, repairs := f.open()
					if len(repairs) == 0 {
						t.Fatal("nothing was found")
					}
					f.fsckButMissing()
					if s.Head() != nil {
						saved++
						if i := s.Head().Index; s.Head().Commit != r[i-1].Commit {
							t.Errorf("the head is another record %d", i)
						}
					} else if percent > 60 && indexed {
						t.Errorf("nothing was saved of a pack torn at %d %%: %v", percent, repairs)
					}
					f.lost(s, s.Head() == nil)
					f.clearLost(s)
					applied(t, s, 8192)
					_, repairs = f.reopen(s)
					noRepairs(t, repairs)
				})
			}
		}
	}
	if saved < 8 {
		t.Errorf("a history was saved %d times", saved)
	}
}

// tear cuts the one pack short, or writes over 64 bytes of it.
func tear(f *fixture, percent int, indexed, cut bool) {
	f.t.Helper()
	packs, err := filepath.Glob(f.repo("objects", "pack", "*.pack"))
	if err != nil || len(packs) != 1 {
		f.t.Fatal(packs, err)
	}
	data, err := os.ReadFile(packs[0])
	if err != nil {
		f.t.Fatal(err)
	}
	at := len(data) * percent / 100
	if cut {
		data = data[:at]
	} else {
		copy(data[at:], strings.Repeat("\xfe", 64))
	}
	f.write(packs[0], string(data))
	f.old(packs[0])
	if !indexed {
		f.remove(strings.TrimSuffix(packs[0], ".pack") + ".idx")
	}
}

// fsckButMissing is fsck where content of old records may be missing, and
// nothing else may be amiss.
func (f *fixture) fsckButMissing() {
	f.t.Helper()
	out := f.gitMay("fsck", "--strict")
	for line := range strings.Lines(out) {
		known := false
		for _, prefix := range []string{"dangling ", "notice: ", "missing blob", "missing tree", "broken link", "              to "} {
			known = known || strings.HasPrefix(line, prefix)
		}
		if !known {
			f.t.Errorf("git fsck: %s", line)
		}
	}
}

// TestReadOnly opens a state directory on a file system that is mounted
// read-only: the message says so, and nothing is given up.
func TestReadOnly(t *testing.T) {
	st := newStory(t)
	if err := syscall.Mount(st.dir, st.dir, "", syscall.MS_BIND, ""); err != nil {
		t.Skipf("a mount is not to be had: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(st.dir, syscall.MNT_DETACH) })
	if err := syscall.Mount("", st.dir, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(t.Context(), st.options()); err == nil || !strings.HasPrefix(problem.Hint(err), "mount the file system writable") || !errors.Is(err, syscall.EROFS) {
		t.Errorf("a read-only state directory: %v", err)
	}
	if err := syscall.Unmount(st.dir, 0); err != nil {
		t.Fatal(err)
	}
	s, repairs := st.open()
	noRepairs(t, repairs)
	expect(t, s, st.d, st.b)
}

// TestFullAtOpen opens on a full disk: a sound history as ever, a damaged one
// with the space that is kept in reserve.
func TestFullAtOpen(t *testing.T) {
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("a small disk cannot be mounted: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	st := newStory(t)
	if err := os.CopyFS(filepath.Join(disk, "state"), os.DirFS(st.dir)); err != nil {
		t.Fatal(err)
	}
	st.dir = filepath.Join(disk, "state")
	s, _ := st.open() // makes the reserve
	filler := filepath.Join(disk, "filler")
	fillDisk(t, filler)
	s, repairs := st.reopen(s)
	noRepairs(t, repairs)
	expect(t, s, st.d, st.b)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	st.write(st.ref("heads/production"), "") // its block is taken by nobody else
	fillDisk(t, filler+"2")
	s, repairs = st.open()
	expect(t, s, st.b, st.b)
	if len(repairs) == 0 || !strings.HasPrefix(repairs[0].String(), tornHead) {
		t.Errorf("repairs: %v", repairs)
	}
	if err := errors.Join(os.Remove(filler), os.Remove(filler+"2")); err != nil {
		t.Fatal(err)
	}
	applied(t, s, 512)
	st.fsck()
}

// fillDisk writes until there is no space left.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	if !full(err) {
		t.Fatal(err)
	}
}

// TestReserveIsMadeAgain holds that a reserve that was given up, or is a torn
// one, is there after the next open.
func TestReserveIsMadeAgain(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	path := filepath.Join(f.dir, reserveFile)
	for _, damage := range []func(){func() { f.remove(path) }, func() { f.write(path, "x") }, func() { f.remove(path); f.write(filepath.Join(path, "x"), "") }} {
		damage()
		s, _ = f.reopen(s)
		if info, err := os.Lstat(path); err != nil || info.Size() != reserveSize {
			t.Errorf("the reserve: %v, %v", info, err)
		}
	}
}
