package gitstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/gitstore/record"
)

// packs are the packs that lie in the repository.
func (f *fixture) packs() []string {
	f.t.Helper()
	paths, err := filepath.Glob(f.repo("objects", "pack", "*.pack"))
	if err != nil {
		f.t.Fatal(err)
	}
	return paths
}

// overwrite writes over a part of a file, in place.
func (f *fixture) overwrite(path string, at int64, with string) {
	f.t.Helper()
	err := os.Chmod(path, 0o600)
	file, oerr := os.OpenFile(path, os.O_WRONLY, 0)
	if err = errors.Join(err, oerr); err == nil {
		_, err = file.WriteAt([]byte(with), at)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) size(path string) int64 {
	f.t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		f.t.Fatal(err)
	}
	return info.Size()
}

// TestTwoTornPacks damages two packs that hold the same objects at different
// places: nothing is lost, for each object is whole in one of them.
func TestTwoTornPacks(t *testing.T) {
	f := newMemory(t)
	r := f.long(40)
	for _, compression := range []string{"1", "9"} { // two packs, and no differences within
		f.git("-c", "pack.window=0", "-c", "pack.compression="+compression, "repack", "-aqF")
	}
	f.git("prune-packed", "-q")
	packs := f.packs()
	if len(packs) != 2 {
		t.Fatal(packs)
	}
	for i, path := range packs {
		f.overwrite(path, f.size(path)*int64(30+40*i)/100, strings.Repeat("\xfe", 64))
	}
	s, repairs := f.open()
	expect(t, s, r[39], r[39])
	if len(repairs) != 2 || !strings.HasSuffix(repairs[0].Found, tornRef) || !strings.HasSuffix(repairs[1].Found, tornRef) {
		t.Errorf("repairs: %v", repairs)
	}
	f.beginsAt(s, r[39], 1)
	_, repairs = f.reopen(s)
	noRepairs(t, repairs)
}

// TestTornEnd damages nothing but the checksum at the end of a pack, without
// which git refuses it.
func TestTornEnd(t *testing.T) {
	often(t)
	for _, row := range []struct {
		name    string
		records int
		pack    func(f *fixture, s *Store)
	}{
		{"a pack of git's", 40, func(f *fixture, _ *Store) { f.git("gc", "-q") }},
		{"a pack of ours", 40, func(_ *fixture, s *Store) { s.Prepare(); s.settleCompaction() }},
		{"a pack of ours that is written the same again", 1, func(_ *fixture, s *Store) { looseWorth = 1; s.Prepare(); s.settleCompaction() }},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := newMemory(t)
			r := f.long(row.records)
			head := r[row.records-1]
			s, _ := f.open()
			row.pack(f, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			packs := f.packs()
			if len(packs) != 1 {
				t.Fatal(packs)
			}
			f.overwrite(packs[0], f.size(packs[0])-2, "XX")
			s, repairs := f.open()
			expect(t, s, head, head)
			if len(repairs) != 1 || !strings.HasSuffix(repairs[0].Found, tornRef) {
				t.Errorf("repairs: %v", repairs)
			}
			f.beginsAt(s, head, 1)
			s, repairs = f.reopen(s)
			noRepairs(t, repairs)
			f.beginsAt(s, head, 1)
		})
	}
}

// TestDamageIsNotPackedAnew damages a commit in a pack while the store is open:
// whatever is packed or joined meanwhile, the next open finds it, and git finds
// nothing amiss after that.
func TestDamageIsNotPackedAnew(t *testing.T) {
	often(t)
	for name, joined := range map[string]bool{"packs are joined": true, "one more is made": false} {
		t.Run(name, func(t *testing.T) {
			f := newMemory(t)
			s, _ := f.open()
			var records []*record.Record
			pack := func() {
				for range packEvery {
					records = append(records, applied(t, s, 64+len(records)))
				}
				s.Prepare()
				s.settleCompaction()
			}
			first := 3
			if joined {
				first = packFan - 1
			}
			for len(f.packs()) < first {
				pack()
			}
			const lost = 10
			f.overwriteObject(records[lost-1].Commit)
			before := len(f.packs())
			pack()
			if joined {
				pack()
			}
			if after := len(f.packs()); joined && after > before-2 || !joined && after < before {
				t.Fatalf("%d packs became %d", before, after)
			}
			head := records[len(records)-1]
			s, repairs := f.reopen(s)
			expect(t, s, head, head)
			if len(repairs) != 2 || !strings.HasSuffix(repairs[0].Found, tornRef) || !strings.HasPrefix(repairs[1].Found, fmt.Sprintf("record %d%s", lost, isLost)) {
				t.Errorf("repairs: %v", repairs)
			}
			f.beginsAt(s, head, lost+1)
			_, repairs = f.reopen(s)
			noRepairs(t, repairs)
		})
	}
}

// overwriteObject damages two bytes of an object in the pack that has it.
func (f *fixture) overwriteObject(hex string) {
	f.t.Helper()
	for _, path := range f.packs() {
		for line := range strings.Lines(f.git("verify-pack", "-v", path)) {
			// name, type, size, size in the pack, offset: git-verify-pack(1)
			if col := strings.Fields(line); len(col) >= 5 && col[0] == hex {
				size, serr := strconv.ParseInt(col[3], 10, 64)
				at, err := strconv.ParseInt(col[4], 10, 64)
				if err = errors.Join(err, serr); err != nil {
					f.t.Fatal(err)
				}
				f.overwrite(path, at+size/2, "\xff\xff")
				return
			}
		}
	}
	f.t.Fatal("no pack has " + hex)
}

// TestHeldLock opens while another git holds packed-refs.lock: a ref that was to
// be removed stays until the next open; and a lock that has become old since is
// in nobody's way.
func TestHeldLock(t *testing.T) {
	st := newStory(t)
	st.now = time.Now()
	st.git("update-ref", "refs/dtesn/retried/production", st.c.Commit)
	st.git("pack-refs", "--all")
	st.write(st.repo(packedRefs+".lock"), "")
	s, repairs := st.open()
	expect(t, s, st.d, st.b)
	if len(repairs) != 1 || !strings.HasPrefix(repairs[0].String(), "packed-refs is locked by another git: the ref refs/dtesn/retried/production is left in it") || s.Retried() {
		t.Errorf("repairs: %v", repairs)
	}
	if err := s.SetRetried(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if err := s.SetRetried(t.Context(), false); !errors.Is(err, errRefsLocked) {
		t.Errorf("a locked ref was removed: %v", err)
	}
	st.old(st.repo(packedRefs + ".lock"))
	if err := s.SetRetried(t.Context(), false); err != nil {
		t.Error(err)
	}
	if refs := st.git("for-each-ref"); strings.Contains(refs, "retried") {
		t.Error(refs)
	}
	_, repairs = st.reopen(s)
	noRepairs(t, repairs)
	st.fsck()
}

// TestTakenNames holds that a name which an earlier life left is passed over.
func TestTakenNames(t *testing.T) {
	dir := t.TempDir()
	next := int(tempSerial.Load()) + 1
	for n := range 3 { // other tests may take some of them
		path := filepath.Join(dir, fmt.Sprintf("tmp-%d-%d", os.Getpid(), next+n))
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path, err := writeTemp(dir, []byte("y"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "tmp-*"))
	if err != nil || len(left) != 4 || !slices.Contains(left, path) {
		t.Errorf("%s of %v, %v", path, left, err)
	}
}

// TestSetAsideAcrossLayers sets a repository aside that lies in the lower layer
// of an overlayfs, where no directory can be renamed, and a file on another file
// system.
func TestSetAsideAcrossLayers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting an overlayfs needs root")
	}
	st := newStory(t)
	layers := newMemory(t).dir
	st.remove(filepath.Join(st.dir, appliedFile))
	st.eachFile("objects", func(path string) { st.write(path, "") })
	if err := errors.Join(os.MkdirAll(layers, 0o700), os.CopyFS(filepath.Join(layers, "low"), os.DirFS(st.dir)),
		os.Mkdir(filepath.Join(layers, "up"), 0o700), os.Mkdir(filepath.Join(layers, "work"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("overlay", st.dir, "overlay", 0, "lowerdir="+layers+"/low,upperdir="+layers+"/up,workdir="+layers+"/work"); err != nil {
		t.Skipf("mounting an overlayfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(st.dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s, repairs := st.open()
	expect(t, s, nil, nil)
	last := repairs[max(0, len(repairs)-1):]
	if len(last) != 1 || !strings.Contains(last[0].Kept, repoDir+"-no-record-readable-") {
		t.Fatalf("repairs: %v", repairs)
	}
	head, err := os.ReadFile(filepath.Join(last[0].Kept, "refs", "heads", "production"))
	if err != nil || strings.TrimSpace(string(head)) != st.d.Commit {
		t.Errorf("the head in what was set aside: %q, %v", head, err)
	}
	st.lost(s, true)
	st.clearLost(s)
	next := applied(t, s, 512)
	s, repairs = st.reopen(s)
	noRepairs(t, repairs)
	expect(t, s, next, next)
	st.fsck()

	from, to := filepath.Join(st.dir, identityFile), filepath.Join(layers, "identity")
	want, err := os.ReadFile(from)
	if err = errors.Join(err, moveAway(from, to)); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(to); err != nil || string(got) != string(want) {
		t.Errorf("a file on another file system: %q, %v", got, err)
	}
	if there, err := exists(from); err != nil || there {
		t.Errorf("it is still there: %v", err)
	}
}

// TestLooseBesideDamage packs a record of which a pack has a damaged copy: the
// loose one goes into a pack of its own, and the next open finds nothing lost.
func TestLooseBesideDamage(t *testing.T) {
	often(t)
	f := newMemory(t)
	r := f.long(4)
	f.git("repack", "-q") // the loose objects stay
	s, _ := f.open()
	f.overwriteObject(r[1].Commit)
	s.Prepare()
	s.settleCompaction()
	if len(f.packs()) != 2 {
		t.Error("nothing was packed")
	}
	if left, err := exists(f.repo("objects", r[1].Commit[:2], r[1].Commit[2:])); err != nil || left {
		t.Errorf("the loose commit is still there: %v", err)
	}
	s, repairs := f.reopen(s)
	expect(t, s, r[3], r[3])
	if len(repairs) != 1 || !strings.HasSuffix(repairs[0].Found, tornRef) {
		t.Errorf("repairs: %v", repairs)
	}
	f.beginsAt(s, r[3], 1)
	_, repairs = f.reopen(s)
	noRepairs(t, repairs)
}

// TestTornIndexIsNotBelieved holds that no room is made for as many objects as
// a torn index says there are.
func TestTornIndexIsNotBelieved(t *testing.T) {
	f := newMemory(t)
	r := f.long(3)
	f.git("gc", "-q")
	index := strings.TrimSuffix(f.packs()[0], ".pack") + ".idx"
	f.overwrite(index, 8, strings.Repeat("\xfe", 4*256)) // how many objects begin with each byte
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	rd, err := OpenReader(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = rd.List(t.Context(), "", 10)
	if err := errors.Join(rd.Close(), err); err == nil {
		t.Error("a history without its pack was listed")
	}
	s, _ := f.open()
	expect(t, s, r[2], r[2])
	runtime.ReadMemStats(&after)
	if took := (after.TotalAlloc - before.TotalAlloc) >> 20; took > 256 {
		t.Errorf("%d MB were allocated for a history of three records", took)
	}
}
