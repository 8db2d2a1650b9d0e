package gitstore

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// leftRows are what kills, copies and other clocks leave.
func leftRows() []repairRow {
	idx := func(st *story) (path, name string) {
		paths, err := filepath.Glob(st.repo("objects", "pack", "*.idx"))
		if err != nil || len(paths) != 1 {
			st.t.Fatal(paths, err)
		}
		return paths[0], strings.TrimSuffix(filepath.Base(paths[0]), ".idx")
	}
	return []repairRow{
		{"leftover of a kill: in every place", func(st *story) {
			for _, dir := range []string{st.dir, st.repo(), st.repo("tmp"), st.repo("objects", "pack")} {
				st.write(filepath.Join(dir, "tmp-1-1"), "x")
			}
			st.write(filepath.Join(st.dir, setAsideDir, halfPrefix+repoDir, "HEAD"), "x")
		}, "d", "b", nil, false},
		{"pack half removed: by a kill", func(st *story) {
			st.git("repack", "-q") // the loose objects stay
			path, name := idx(st)
			st.move(path, st.repo("tmp", dropPrefix+name))
		}, "d", "b", nil, false},
		{"pack half removed: the pack is gone", func(st *story) {
			st.git("repack", "-q")
			path, name := idx(st)
			st.move(path, st.repo("tmp", dropPrefix+name))
			st.remove(strings.TrimSuffix(path, ".idx") + ".pack")
		}, "d", "b", nil, false},
		{"pack half removed: in a copy, with its index", func(st *story) {
			st.git("gc", "-q")
			path, name := idx(st)
			data, err := os.ReadFile(path)
			if err != nil {
				st.t.Fatal(err)
			}
			st.write(st.repo("tmp", dropPrefix+name), string(data))
		}, "d", "b", nil, false},
		{"pack half removed: in a copy, without what took its place", func(st *story) {
			st.git("gc", "-q")
			path, name := idx(st)
			st.move(path, st.repo("tmp", dropPrefix+name))
		}, "d", "b", nil, false},
		{"stale lock: of the future", func(st *story) {
			st.git("update-ref", "refs/dtesn/retried/production", st.c.Commit)
			st.git("pack-refs", "--all")
			st.write(st.repo("packed-refs.lock"), "")
			then := st.now.Add(2 * time.Hour)
			if err := os.Chtimes(st.repo("packed-refs.lock"), then, then); err != nil {
				st.t.Fatal(err)
			}
		}, "d", "b", []string{"a stale lock, packed-refs.lock"}, false},
		{"stale lock: a directory", func(st *story) {
			st.write(st.repo("packed-refs.lock", "x"), "")
			st.old(st.repo("packed-refs.lock"))
		}, "d", "b", []string{"a stale lock, packed-refs.lock: set aside"}, false},
		{"name set-aside taken: by a file", func(st *story) {
			st.write(filepath.Join(st.dir, setAsideDir), "x")
			st.write(st.repo(shallowFile), zeros)
		}, "d", "b", []string{"a file where the directory set-aside belongs", "the file shallow"}, false},
		{"name set-aside taken: by a link", func(st *story) {
			if err := os.Symlink("/nowhere/to/be/found", filepath.Join(st.dir, setAsideDir)); err != nil {
				st.t.Fatal(err)
			}
			st.write(st.repo(shallowFile), zeros)
		}, "d", "b", []string{"a file where the directory set-aside belongs", "the file shallow"}, false},
		{"name set-aside taken: by a ref", func(st *story) {
			st.git("update-ref", setAsideRefs, st.a.Commit)
			st.foreign("P", map[string][]byte{"note": []byte("x")})
		}, "d", "b", []string{"a ref refs/dtesn/set-aside, where only", "the branch production names "}, false},
		{"name set-aside taken: by a packed ref", func(st *story) {
			st.git("update-ref", setAsideRefs, st.a.Commit)
			st.git("pack-refs", "--all")
			st.foreign("P", map[string][]byte{"note": []byte("x")})
		}, "d", "b", []string{"a ref refs/dtesn/set-aside, where only", "the branch production names "}, false},
		{"name set-aside taken: by a torn ref", func(st *story) {
			st.foreign("P", map[string][]byte{"note": []byte("x")})
			st.write(st.repo(setAsideRefs), "")
		}, "d", "b", []string{"a file where refs/dtesn/set-aside belongs", "the branch production names "}, false},
	}
}

// largeRows put more into a file than is ever written there.
func largeRows() []repairRow {
	rows := []repairRow{}
	for _, row := range []struct {
		path    string
		size    int64
		head    string
		applied string
		found   []string
	}{
		{formatFile, maxRef + 1, "d", "b", nil},
		{identityFile, maxRef + 1, "d", "b", nil},
		{repoDir + "/HEAD", maxObject + 1, "d", "b", []string{"HEAD of the repository is missing"}},
		{repoDir + "/config", maxObject + 1, "d", "b", []string{"config of the repository is missing"}},
		{repoDir + "/shallow", maxPacked + 1, "d", "b", nil},
		{repoDir + "/packed-refs", maxPacked + 1, "d", "b", nil},
		{repoDir + "/refs/heads/production", maxRef + 1, "b", "b", []string{"the head ref is missing"}},
		{repoDir + "/refs/dtesn/applied/production", maxRef + 1, "d", "b", []string{noApplied}},
		{repoDir + "/refs/dtesn/retried/production", maxRef + 1, "d", "b", nil},
		{repoDir + "/refs/heads/.production.swp", 3 * maxRef, "d", "b", nil},
		{repoDir + "/refs/.DS_Store", maxRef + 1, "d", "b", nil},
	} {
		name := strings.TrimPrefix(row.path, repoDir+"/")
		found := append([]string{fmt.Sprintf("%s holds %d bytes", name, row.size)}, row.found...)
		rows = append(rows, repairRow{"file too large: " + name, func(st *story) {
			path := filepath.Join(st.dir, row.path)
			st.write(path, "garbage")
			if err := os.Truncate(path, row.size); err != nil {
				st.t.Fatal(err)
			}
		}, row.head, row.applied, found, false})
	}
	return rows
}

// borrowRows make the repository borrow its objects of a clone.
func borrowRows() []repairRow {
	const borrows = "the history borrows of another repository, by objects/info/alternates"
	return []repairRow{
		{"objects borrowed", func(st *story) { st.borrow() }, "d", "b", []string{borrows}, false},
		{"objects borrowed: by a relative path, of one that borrows", func(st *story) {
			st.borrow()
			further := filepath.Join(filepath.Dir(st.dir), "further")
			st.write(filepath.Join(further, "info", alternatesFile), "# of these\n../lender/objects\n../lender/objects\n../further\n")
			st.write(st.repo("objects", "info", alternatesFile), "../../../further\n")
		}, "d", "b", []string{borrows}, false},
		{"objects borrowed: none needed", func(st *story) {
			st.write(st.repo("objects", "info", alternatesFile), "/nowhere/to/be/found\n")
		}, "d", "b", []string{borrows + ": 0 objects were taken in"}, false},
	}
}

// lender is where the clone lies that borrow makes.
func (f *fixture) lender() string { return filepath.Join(filepath.Dir(f.dir), "lender") }

// borrow makes git take all objects out of the repository that a clone has.
func (f *fixture) borrow() {
	f.t.Helper()
	f.git("clone", "-q", "--mirror", f.repo(), f.lender())
	f.write(f.repo("objects", "info", alternatesFile), filepath.Join(f.lender(), "objects")+"\n")
	f.git("--git-dir", f.lender(), "repack", "-adq")
	f.git("repack", "-adlq")
	f.git("prune-packed", "-q")
	if _, err := os.Lstat(f.file("production")); err == nil {
		f.t.Fatal("git left the objects where they were")
	}
}

func (f *fixture) move(from, to string) {
	f.t.Helper()
	if err := os.Rename(from, to); err != nil {
		f.t.Fatal(err)
	}
}
