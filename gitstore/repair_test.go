package gitstore

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/schema"
)

// story is the history that the rows of TestRepair damage: a and b are applied,
// c and d are candidates, c superseded by d.
type story struct {
	*fixture
	a, b, c, d *schema.Snapshot
}

// newStory copies the one story that is told, for telling it takes a while.
func newStory(t *testing.T) *story {
	t.Helper()
	told := tell()
	if told.err != nil {
		t.Fatal(told.err)
	}
	st := told.story
	st.fixture = newFixture(t)
	st.now = told.now
	if err := os.CopyFS(st.dir, told.files); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(st.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return &st
}

// A template is the story, and the files it left.
type template struct {
	story
	files fstest.MapFS
	err   error
}

var tell = sync.OnceValue(func() (told template) {
	var dir string
	if dir, told.err = os.MkdirTemp("", "gitstore-story-"); told.err != nil {
		return told
	}
	defer func() { told.err = errors.Join(told.err, os.RemoveAll(dir)) }()
	told.fixture = &fixture{dir: dir, now: time.Now()}
	var s *Store
	if s, _, told.err = Open(context.Background(), told.options()); told.err != nil {
		return told
	}
	record := func(rec schema.Snapshot, confirm bool) *schema.Snapshot {
		snap, err := s.Commit(context.Background(), rec)
		if err == nil && confirm {
			err = s.Confirm(context.Background())
		}
		told.err = errors.Join(told.err, err)
		return snap
	}
	told.a, told.b, told.c = record(change(512), true), record(change(1024), true), record(change(2048), false)
	if told.err == nil {
		rec := change(4096)
		rec.OutcomeOf = &schema.Settlement{ID: told.c.ID, Outcome: schema.Superseded}
		told.d = record(rec, false)
	}
	if told.err = errors.Join(told.err, s.Close(), os.Remove(filepath.Join(dir, reserveFile))); told.err == nil {
		told.files, told.err = readAll(dir)
	}
	return told
})

// readAll reads a directory into memory.
func readAll(dir string) (fstest.MapFS, error) {
	files := fstest.MapFS{}
	root := os.DirFS(dir)
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		file := &fstest.MapFile{Mode: info.Mode(), ModTime: info.ModTime()}
		if !d.IsDir() {
			file.Data, err = fs.ReadFile(root, path)
		}
		files[path] = file
		return err
	})
	return files, err
}

// file is the loose file of what a git expression names.
func (f *fixture) file(expr string) string {
	f.t.Helper()
	hex := f.git("rev-parse", "--verify", expr)
	return f.repo("objects", hex[:2], hex[2:])
}

func (f *fixture) remove(path string) {
	f.t.Helper()
	if _, err := os.Lstat(path); err != nil {
		f.t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		f.t.Fatal(err)
	}
}

// halve leaves the first half of a file.
func (f *fixture) halve(path string) {
	f.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(path, string(data[:len(data)/2]))
}

// old makes a file two hours old.
func (f *fixture) old(path string) {
	f.t.Helper()
	then := f.now.Add(-2 * time.Hour)
	if err := os.Chtimes(path, then, then); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) ref(name string) string { return f.repo("refs", filepath.FromSlash(name)) }

// eachFile calls do for every regular file below a directory of the repository.
func (f *fixture) eachFile(sub string, do func(path string)) {
	f.t.Helper()
	err := filepath.WalkDir(f.repo(sub), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			do(path)
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// foreign puts a commit with the files on the branch, as a person's clone does.
func (f *fixture) foreign(committer string, files map[string][]byte) {
	f.t.Helper()
	work := filepath.Join(f.t.TempDir(), "work")
	f.git("clone", "-q", f.repo(), work)
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(work, name), data, 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"add", "."}, {"-c", "user.name=P", "-c", "user.email=p@example.org", "commit", "-qm", "by hand"}, {"push", "-q"}} {
		cmd := exec.Command("git", append([]string{"-C", work}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_NAME="+committer)
		if out, err := cmd.CombinedOutput(); err != nil {
			f.t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
}

// commitTree makes a commit of what lies in a tree of the repository.
func (f *fixture) commitTree(tree string) string {
	f.t.Helper()
	return f.git("-c", "user.name=P", "-c", "user.email=p@example.org", "commit-tree", "-m", "by hand", tree)
}

const zeros = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

const (
	lostHead  = "the head was lost to a power cut"
	tornHead  = "the head ref is torn: a candidate was lost to a power cut"
	noApplied = "the applied ref is missing"
	noTrust   = "the applied ref cannot be trusted"
	setAside  = "a torn object"
	neither   = "neither head nor applied ref"
	tornRef   = "is torn"
	thePack   = "the pack pack-"
	isLost    = " of the history is lost"
)

// A repairRow is one kind of damage. head and applied are the letters of the
// records that stand after it, "" for none.
type repairRow struct {
	name          string
	damage        func(st *story)
	head, applied string
	found         []string // what each Repair begins with or says, in order
	dirty         bool     // git fsck misses what no repair can bring back
}

func repairRows() []repairRow {
	ref := func(name, content string) func(*story) {
		return func(st *story) { st.write(st.ref(name), content) }
	}
	rm := func(expr string) func(*story) { return func(st *story) { st.remove(st.file(expr)) } }
	empty := func(expr string) func(*story) { return func(st *story) { st.write(st.file(expr), "") } }
	half := func(expr string) func(*story) { return func(st *story) { st.halve(st.file(expr)) } }
	rows := []repairRow{
		{"nothing amiss", func(*story) {}, "d", "b", nil, false},
		{"head ref torn: empty", ref("heads/production", ""), "b", "b", []string{tornHead}, false},
		{"file or directory in a wrong place: head ref", func(st *story) { toDir(st.t, st.ref("heads/production")) }, "b", "b", []string{"a directory where refs/heads/production belongs", "the head ref is missing"}, false},
		{"head ref torn: NULs", ref("heads/production", zeros+zeros), "b", "b", []string{tornHead}, false},
		{"head ref torn: cut short", ref("heads/production", "0123456789abcdef"), "b", "b", []string{tornHead}, false},
		{"head ref missing", func(st *story) { st.remove(st.ref("heads/production")) }, "b", "b", []string{"the head ref is missing"}, false},
		{"head ref names nothing", ref("heads/production", strings.Repeat("5", 40)+"\n"), "b", "b", []string{lostHead}, false},
		{"record above the applied one damaged: torn", half("production~1"), "b", "b", []string{setAside, lostHead}, false},
		{"record above the applied one damaged: missing", rm("production~1"), "b", "b", []string{lostHead}, false},
		{"record above the applied one damaged: tree missing", rm("production~1^{tree}"), "b", "b", []string{lostHead}, false},
		{"record above the applied one damaged: content torn", empty("production~1:snapshot.json"), "b", "b", []string{setAside, lostHead}, false},
		{"record above the applied one damaged: two", func(st *story) {
			head := st.file("production")
			st.remove(st.file("production~1:parameters.yaml"))
			st.write(head, zeros)
		}, "b", "b", []string{setAside, lostHead}, false},
		{"content of an old record damaged: snapshot.json missing", rm("production~3:snapshot.json"), "d", "b", nil, true},
		{"applied ref torn: empty", ref("dtesn/applied/production", ""), "d", "b", []string{noTrust}, false},
		{"applied ref torn: NULs", ref("dtesn/applied/production", zeros), "d", "b", []string{noTrust}, false},
		{"applied ref missing", func(st *story) { st.remove(st.ref("dtesn/applied/production")) }, "d", "b", []string{noApplied}, false},
		{"applied ref names nothing", ref("dtesn/applied/production", strings.Repeat("5", 40)+"\n"), "d", "b", []string{noTrust}, false},
		{"both refs lost: empty", func(st *story) {
			st.write(st.ref("heads/production"), "")
			st.write(st.ref("dtesn/applied/production"), "")
		}, "d", "b", []string{neither, noTrust}, false},
		{"both refs lost: no refs at all", func(st *story) { st.remove(st.repo("refs")) }, "d", "b", []string{"refs of the repository", neither, noApplied}, false},
		{"both refs lost: the newest record torn", func(st *story) {
			st.halve(st.file("production:snapshot.json"))
			st.write(st.ref("heads/production"), "")
			st.remove(st.ref("dtesn/applied/production"))
		}, "c", "b", []string{setAside, neither, noApplied}, false},
		{"both refs lost: applied record damaged", func(st *story) {
			st.remove(st.file("production~2:snapshot.json"))
			st.write(st.ref("heads/production"), "")
		}, "d", "a", []string{neither, noTrust}, true},
		{"retried ref torn", ref("dtesn/retried/production", ""), "d", "b", []string{"the retried ref is torn"}, false},
		{"other ref torn", ref("tags/mine", ""), "d", "b", []string{"the ref refs/tags/mine " + tornRef}, false},
	}
	for _, object := range []struct{ name, expr string }{
		{"commit", "production"}, {"tree", "production^{tree}"}, {"snapshot.json", "production:snapshot.json"}, {"parameters.yaml", "production:parameters.yaml"},
	} {
		rows = append(rows,
			repairRow{"object of the head missing: " + object.name, rm(object.expr), "b", "b", []string{lostHead}, false},
			repairRow{"object of the head torn: " + object.name + " empty", empty(object.expr), "b", "b", []string{setAside, lostHead}, false},
			repairRow{"object of the head torn: " + object.name + " cut short", half(object.expr), "b", "b", []string{setAside, lostHead}, false},
			repairRow{"object of the head torn: " + object.name + " another", func(st *story) {
				data, err := os.ReadFile(st.file("production~3:snapshot.json"))
				if err != nil {
					st.t.Fatal(err)
				}
				st.write(st.file(object.expr), string(data))
			}, "b", "b", []string{setAside, lostHead}, false},
		)
	}
	return slices.Concat(rows, fileRows(), personRows(), packRows())
}

// fileRows damage the files around refs and objects.
func fileRows() []repairRow {
	file := func(name, content string) func(*story) {
		return func(st *story) { st.write(st.repo(name), content) }
	}
	return []repairRow{
		{"HEAD torn: empty", file("HEAD", ""), "d", "b", []string{`HEAD of the repository says ""`}, false},
		{"HEAD torn: missing", func(st *story) { st.remove(st.repo("HEAD")) }, "d", "b", []string{"HEAD of the repository is missing"}, false},
		{"HEAD torn: another branch", file("HEAD", "ref: refs/heads/master\n"), "d", "b", []string{"HEAD of the repository says"}, false},
		{"config torn: empty", file("config", ""), "d", "b", []string{`config of the repository says ""`}, false},
		{"config torn: NULs", file("config", zeros), "d", "b", []string{"config of the repository says"}, false},
		{"config torn: missing", func(st *story) { st.remove(st.repo("config")) }, "d", "b", []string{"config of the repository is missing"}, false},
		{"nothing amiss: config a person's", file("config", configText+"[user]\n\tname = P\n"), "d", "b", nil, false},
		{"stale lock", func(st *story) {
			for _, path := range []string{st.repo("HEAD.lock"), st.repo("packed-refs.lock"), st.ref("heads/production.lock"), st.repo("objects", "info", "commit-graph.lock")} {
				st.write(path, "")
				st.old(path)
			}
		}, "d", "b", []string{"a stale lock, HEAD.lock", "a stale lock, packed-refs.lock", "a stale lock, objects/info/commit-graph.lock", "a stale lock, refs/heads/production.lock"}, false},
		{"leftover of a kill: files on their way", func(st *story) {
			st.write(st.repo("tmp", "tmp-1-1"), "x")
			st.write(filepath.Join(st.dir, "tmp-1-2"), "x")
			st.write(filepath.Join(st.dir, repoDir+".new-1", "HEAD"), "x")
			st.write(st.repo("objects", "aa", "tmp_obj_x"), "x")
		}, "d", "b", nil, false},
		{"format or identity torn", func(st *story) {
			st.write(filepath.Join(st.dir, formatFile), "")
			st.write(filepath.Join(st.dir, identityFile), "")
		}, "d", "b", []string{`the file format says "": written anew`, "the file identity is torn: written anew"}, false},
		{"torn object that nothing names: after a power cut", func(st *story) {
			st.write(st.repo("objects", "12", strings.Repeat("3", 38)), "")
			st.write(filepath.Join(st.dir, lockFile), "1 another-boot\n")
		}, "d", "b", []string{setAside}, false},
		{"torn object that nothing names: half a commit", func(st *story) {
			st.write(st.ref("heads/production"), st.c.Commit+"\n")
			st.remove(st.file(st.d.Commit + ":snapshot.json"))
			st.write(filepath.Join(st.dir, lockFile), "1 another-boot\n")
		}, "c", "b", nil, false},
		{"no record readable: every object empty", func(st *story) {
			st.eachFile("objects", func(path string) { st.write(path, "") })
		}, "", "", nil, false},
		{"no record readable: every object gone", func(st *story) { st.remove(st.repo("objects")) }, "", "", nil, false},
		{"no record readable: refs gone too", func(st *story) {
			st.eachFile("objects", func(path string) { st.write(path, "") })
			st.remove(st.repo("refs"))
		}, "", "", nil, false},
		{"no record readable: objects and refs gone", func(st *story) {
			st.remove(st.repo("objects"))
			st.remove(st.repo("refs"))
		}, "", "", []string{"objects of the repository", "refs of the repository"}, false},
		{"repository missing", func(st *story) { st.remove(st.repo()) }, "", "", []string{"the snapshot repository is gone from the state directory: the history starts anew"}, false},
		{"repository missing: identity torn", func(st *story) {
			st.remove(st.repo())
			st.write(filepath.Join(st.dir, identityFile), "")
		}, "", "", []string{"the snapshot repository is gone from the state directory: the history starts anew", "the file identity is torn"}, false},
	}
}

// personRows are what people do to a branch with git.
func personRows() []repairRow {
	const foreign = "the branch production names "
	return []repairRow{
		{"foreign commit on the branch", func(st *story) { st.foreign("P", map[string][]byte{"note": []byte("x")}) }, "d", "b", []string{foreign}, false},
		{"foreign commit on the branch: large files", func(st *story) {
			st.foreign("P", map[string][]byte{"zeros": make([]byte, maxObject+1), "noise": noise(2*maxObject + 999)})
		}, "d", "b", []string{foreign}, false},
		{"foreign commit on the branch: in the agent's name", func(st *story) { st.foreign(agentName, map[string][]byte{snapshotFile: []byte("{}\n")}) }, "d", "b", []string{foreign}, false},
		{"foreign commit on the branch: large, in the agent's name", func(st *story) {
			st.foreign(agentName, map[string][]byte{snapshotFile: noise(2*maxObject + 999), parametersFile: make([]byte, maxObject+1)})
		}, "d", "b", []string{foreign}, false},
		{"foreign commit on the branch: large, packed", func(st *story) {
			st.foreign(agentName, map[string][]byte{snapshotFile: noise(2*maxObject + 999)})
			st.git("gc", "-q")
		}, "d", "b", []string{foreign}, false},
		{"head ref behind applied", func(st *story) { st.git("update-ref", "refs/heads/production", st.a.Commit) }, "b", "b", []string{foreign}, false},
		{"nothing amiss: branch rewound to applied", func(st *story) { st.git("update-ref", "refs/heads/production", st.b.Commit) }, "b", "b", nil, false},
		{"head ref unrelated to applied", func(st *story) {
			st.git("update-ref", "refs/heads/production", st.commitTree("production^{tree}"))
		}, "b", "b", []string{foreign}, false},
		{"applied ref unrelated to head", func(st *story) {
			st.git("update-ref", "refs/dtesn/applied/production", st.commitTree("production^{tree}"))
		}, "d", "b", []string{noTrust}, false},
		{"refs packed", func(st *story) { st.git("pack-refs", "--all") }, "d", "b", nil, false},
		{"head ref torn: packed before", func(st *story) {
			st.git("pack-refs", "--all")
			st.write(st.ref("heads/production"), "")
		}, "b", "b", []string{tornHead}, false},
		{"packed-refs torn", func(st *story) {
			st.git("pack-refs", "--all")
			st.write(st.repo(packedRefs), "")
		}, "d", "b", []string{neither, noApplied}, false},
		{"refs packed: an old retried one", func(st *story) {
			st.git("update-ref", "refs/dtesn/retried/production", st.c.Commit)
			st.git("pack-refs", "--all")
		}, "d", "b", nil, false},
	}
}

// packRows damage a repository that a gc packed.
func packRows() []repairRow {
	gc := func(then func(*story)) func(*story) {
		return func(st *story) {
			st.git("gc", "-q")
			then(st)
		}
	}
	glob := func(st *story, pattern string) string {
		paths, err := filepath.Glob(st.repo("objects", "pack", pattern))
		if err != nil || len(paths) != 1 {
			st.t.Fatal(paths, err)
		}
		return paths[0]
	}
	garbage := func(st *story, pattern string) {
		path := glob(st, pattern)
		data, err := os.ReadFile(path)
		if err != nil {
			st.t.Fatal(err)
		}
		st.write(path, string(data[:8])+strings.Repeat("\xfe", len(data)-8))
	}
	return []repairRow{
		{"gc by a person", gc(func(*story) {}), "d", "b", nil, false},
		{"both refs lost: packed", gc(func(st *story) { st.remove(st.repo(packedRefs)) }), "d", "b", []string{neither, noApplied}, false},
		{"leftover of a kill: tmp_pack, fresh", gc(func(st *story) { st.write(st.repo("objects", "pack", "tmp_pack_x"), "x") }), "d", "b", nil, false},
		{"head ref names nothing: packed", gc(func(st *story) { st.write(st.ref("heads/production"), strings.Repeat("5", 40)+"\n") }), "b", "b", []string{lostHead}, false},
		{"pack torn: halved", gc(func(st *story) { st.halve(glob(st, "*.pack")) }), "", "", nil, false},
		{"pack torn: garbage", gc(func(st *story) { garbage(st, "*.pack") }), "", "", nil, false},
		{"index torn: halved", gc(func(st *story) { st.halve(glob(st, "*.idx")) }), "d", "b", []string{thePack}, false},
		{"index torn: garbage", gc(func(st *story) { garbage(st, "*.idx") }), "d", "b", []string{thePack}, false},
		{"pack without index", gc(func(st *story) { st.old(glob(st, "*.pack")); st.remove(glob(st, "*.idx")) }), "d", "b", []string{thePack}, false},
	}
}

// noise is n bytes that do not compress.
func noise(n int) []byte {
	b := make([]byte, n)
	x := uint64(88172645463325252)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

func TestRepair(t *testing.T) {
	for _, row := range repairRows() {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			st := newStory(t)
			row.damage(st)
			records := map[string]*schema.Snapshot{"a": st.a, "b": st.b, "c": st.c, "d": st.d}
			s, repairs := st.open()
			expect(t, s, records[row.head], records[row.applied])
			checkRepairs(t, st.fixture, repairs, row)
			if !row.dirty {
				st.fsck()
			}
			checkRefs(t, st.fixture, s)
			total := s.Total()
			next := 1
			if s.Head() != nil {
				next = s.Head().Index + 1
			}
			further := applied(t, s, 4096) // what was lost is written again
			s, repairs = st.reopen(s)
			noRepairs(t, repairs)
			expect(t, s, further, further)
			list, err := s.List(t.Context(), "", 0)
			if err != nil || s.Total() != total+1 || len(list) != total+1 || further.Index != next {
				t.Errorf("%d records, %d listed, want %d and one, number %d: %v", s.Total(), len(list), total, next, err)
			}
		})
	}
}

// checkRepairs compares what Open said with what it should have said; where
// nothing could be saved it must say that, and where the old repository is.
func checkRepairs(t *testing.T, f *fixture, repairs []Repair, row repairRow) {
	t.Helper()
	for _, r := range repairs {
		if r.Found == "" || r.Did == "" || strings.ContainsAny(r.String(), "\n\r\x00") {
			t.Errorf("a repair that says too little or is no line: %q", r)
		}
		if r.Kept == "" {
			continue
		}
		if strings.HasPrefix(r.Kept, "refs/") {
			f.git("rev-parse", "--verify", r.Kept+"^{commit}")
		} else if _, err := os.Lstat(r.Kept); err != nil || !strings.HasPrefix(r.Kept, filepath.Join(f.dir, setAsideDir)) {
			t.Errorf("%s: %v", r, err)
		}
	}
	if row.head == "" && row.found == nil {
		last := repairs[max(len(repairs)-1, 0):]
		if len(last) != 1 || !strings.Contains(last[0].Found, "no record is whole") || !strings.Contains(last[0].Kept, repoDir+"-no-record-readable-") {
			t.Errorf("an empty history, and only this is said: %v", repairs)
		}
		return
	}
	said := make([]string, 0, len(repairs))
	for _, r := range repairs {
		said = append(said, r.String())
	}
	ok := len(said) == len(row.found)
	for i := 0; ok && i < len(said); i++ {
		ok = strings.HasPrefix(said[i], row.found[i])
	}
	if !ok {
		t.Errorf("repairs:\n%s\nwant:\n%s", strings.Join(said, "\n"), strings.Join(row.found, "\n"))
	}
}

// checkRefs asks git for what the Store says.
func checkRefs(t *testing.T, f *fixture, s *Store) {
	t.Helper()
	got := map[string]string{}
	for line := range strings.Lines(f.git("for-each-ref", "--format=%(refname) %(objectname)%(HEAD)")) {
		ref, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[ref] = rest
	}
	want := map[string]string{}
	if s.Head() != nil {
		want["refs/heads/production"] = s.Head().Commit + "*"
	}
	if s.Applied() != nil {
		want["refs/dtesn/applied/production"] = s.Applied().Commit
	}
	maps.DeleteFunc(got, func(ref, _ string) bool { return strings.HasPrefix(ref, setAsideRefs) })
	if !maps.Equal(got, want) {
		t.Errorf("refs are %v, the store says %v", got, want)
	}
	for _, pattern := range []string{f.repo("tmp", "*"), filepath.Join(f.dir, "tmp-*"), filepath.Join(f.dir, newRepoGlob)} {
		if left, err := filepath.Glob(pattern); err != nil || len(left) != 0 {
			t.Errorf("left over: %v, %v", left, err)
		}
	}
}

// A damaged record below the applied one stays in the history as what is known
// of it; those beside it are not touched.
func TestDamagedRecordIsListed(t *testing.T) {
	st := newStory(t)
	st.remove(st.file("production~3:snapshot.json"))
	s, repairs := st.open()
	noRepairs(t, repairs)
	list, err := s.List(t.Context(), "", 0)
	if err != nil || len(list) != 4 {
		t.Fatal(list, err)
	}
	if rec := list[3]; rec.ID != st.a.ID || rec.Outcome != schema.Applied || rec.RollbackPoint || !strings.HasPrefix(rec.Description, "(damaged) ") || len(rec.Errors) != 1 {
		t.Errorf("the damaged record is listed as %+v", rec)
	}
	if _, err := s.Lookup(t.Context(), st.a.ID); err == nil || !strings.Contains(err.Error(), "cannot be read") || !strings.Contains(err.Error(), "agent snapshots --state") {
		t.Errorf("lookup of a damaged record: %v", err)
	}
	if _, err := s.Lookup(t.Context(), st.b.ID); err != nil {
		t.Error(err)
	}
	st.remove(st.file("production~3"))
	s, repairs = st.reopen(s)
	if len(repairs) != 1 || !strings.HasPrefix(repairs[0].String(), "record 1"+isLost) {
		t.Errorf("repairs of a history without its first record: %v", repairs)
	}
	if list, err = s.List(t.Context(), "", 0); err != nil || len(list) != 3 || s.Total() != 3 {
		t.Errorf("a cut history lists %d of %d, %v", len(list), s.Total(), err)
	}
}

// A fresh lock is somebody's, and stays.
func TestFreshLocksStay(t *testing.T) {
	st := newStory(t)
	lock := st.ref("heads/production.lock")
	st.write(lock, "")
	st.now = time.Now()
	s, repairs := st.open()
	noRepairs(t, repairs)
	if _, err := os.Lstat(lock); err != nil {
		t.Error(err)
	}
	applied(t, s, 64)
}

// People's git works beside an open store.
func TestGitBesideAnOpenStore(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	var want []string
	for i, args := range [][]string{{"pack-refs", "--all"}, {"gc", "-q"}, {"gc", "-q", "--prune=now"}, {"repack", "-adq"}, {"pack-refs", "--all", "--prune"}, {"fsck"}} {
		applied(t, s, 64+2*i)
		f.git(args...)
		snap := commit(t, s, change(65+2*i))
		f.git(args...) // between Commit and Confirm
		confirm(t, s)
		f.fsck()
		list, err := s.List(t.Context(), "", 100)
		if err != nil || len(list) != 2*i+2 || list[0].ID != snap.ID || list[0].Outcome != schema.Applied {
			t.Fatalf("after git %v: %d records, %v", args, len(list), err)
		}
		if got := f.git("rev-parse", "production", "refs/dtesn/applied/production"); got != snap.Commit+"\n"+snap.Commit {
			t.Errorf("after git %v the refs are\n%s", args, got)
		}
		want = append(want, snap.ID)
		if i%2 == 1 {
			var repairs []Repair
			s, repairs = f.reopen(s)
			noRepairs(t, repairs)
		}
	}
	for _, id := range want {
		if _, err := s.Lookup(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

// tree is every file below the state directory but the lock, with its content.
func (f *fixture) tree() map[string]string {
	f.t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(f.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || path == filepath.Join(f.dir, lockFile) {
			return err
		}
		data, err := os.ReadFile(path)
		files[path] = string(data)
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return files
}

// What is not ours is refused with the way out, and not touched.
func TestRefused(t *testing.T) {
	for name, row := range map[string]struct {
		damage  func(st *story)
		options func(o *Options)
		says    []string
	}{
		"another environment or instance: environment": {options: func(o *Options) { o.Environment = "staging" }, says: []string{`belongs to environment "production"`, "choose another --state"}},
		"another environment or instance: instance":    {options: func(o *Options) { o.Instance = "web 2" }, says: []string{`instance "web 2"`, "--environment production --instance web-1"}},
		"another environment or instance: environment, identity torn": {
			damage:  func(st *story) { st.write(filepath.Join(st.dir, identityFile), zeros) },
			options: func(o *Options) { o.Environment = "staging" }, says: []string{`belongs to environment "production"`},
		},
		"another environment or instance: instance, identity torn": {
			damage:  func(st *story) { st.write(filepath.Join(st.dir, identityFile), "") },
			options: func(o *Options) { o.Instance = "web-2" }, says: []string{`instance "web-1"`},
		},
		"format newer": {
			damage: func(st *story) { st.write(filepath.Join(st.dir, formatFile), "2\n") },
			says:   []string{"written by a newer agent (format 2, this agent knows 1)", "upgrade the agent"},
		},
		"no directory":                     {options: func(o *Options) { o.Dir = "" }, says: []string{"--state DIR"}},
		"no environment":                   {options: func(o *Options) { o.Environment = "../x" }, says: []string{`"../x" is no environment`}},
		"no instance":                      {options: func(o *Options) { o.Instance = "a\nb" }, says: []string{"no instance name"}},
		"state directory a file":           {options: func(o *Options) { o.Dir = filepath.Join(o.Dir, formatFile) }, says: []string{"not a directory", "a file stands where a directory must be"}},
		"state directory a file: a parent": {options: func(o *Options) { o.Dir = filepath.Join(o.Dir, formatFile, "x") }, says: []string{"not a directory", "choose another --state"}},
		"a context that is over":           {options: nil, says: []string{"context canceled"}},
	} {
		t.Run(name, func(t *testing.T) {
			st := newStory(t)
			if row.damage != nil {
				row.damage(st)
			}
			before := st.tree()
			o := st.options()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			switch {
			case row.options != nil:
				row.options(&o)
			case row.damage == nil:
				cancel()
			}
			s, repairs, err := Open(ctx, o)
			if err == nil {
				_ = s.Close()
				t.Fatalf("opened, with repairs %v", repairs)
			}
			for _, say := range row.says {
				if !strings.Contains(err.Error(), say) {
					t.Errorf("the error does not say %q: %v", say, err)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %v", err)
			}
			after := st.tree()
			for path, content := range before {
				if after[path] != content {
					t.Errorf("%s was changed", path)
				}
			}
			if len(after) != len(before) {
				t.Errorf("%d files became %d", len(before), len(after))
			}
		})
	}
}

func toDir(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

// A directory that may not be written, or not be read, is an error with the way
// out, and no history is given up for it.
func TestPermissions(t *testing.T) {
	for name, protect := range map[string]func(st *story){
		"state read-only": func(st *story) {
			chmod(st, filepath.Join(st.dir, lockFile), 0o444)
			chmod(st, st.dir, 0o555)
		},
		"state closed":         func(st *story) { chmod(st, st.dir, 0) },
		"repository read-only": func(st *story) { st.write(st.repo("HEAD"), ""); chmod(st, st.repo(), 0o555) },
		"repository closed":    func(st *story) { chmod(st, st.repo(), 0) },
		"an object closed":     func(st *story) { chmod(st, st.file("production"), 0) },
		"a pack closed": func(st *story) {
			st.git("gc", "-q")
			st.eachFile("objects/pack", func(path string) { chmod(st, path, 0) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			st := newStory(t)
			unprivileged(t, st.dir, func() { protect(st) }, func() {
				s, repairs, err := Open(context.Background(), st.options())
				if err == nil {
					_ = s.Close()
					t.Errorf("opened, with repairs %v", repairs)
				} else if !strings.Contains(err.Error(), "permission denied") || !strings.Contains(err.Error(), st.dir) || !strings.Contains(err.Error(), "chown it, or choose another --state") {
					t.Errorf("the error is: %v", err)
				}
			})
			st.eachMode()
			if err := os.RemoveAll(filepath.Join(st.dir, lockFile)); err != nil {
				t.Fatal(err)
			}
			s, _ := st.open()
			expect(t, s, st.d, st.b)
		})
	}
}

func chmod(st *story, path string, mode os.FileMode) {
	st.t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		st.t.Fatal(err)
	}
}

// eachMode gives back what chmod took.
func (f *fixture) eachMode() {
	f.t.Helper()
	for _, dir := range []string{f.dir, f.repo()} {
		if err := os.Chmod(dir, 0o700); err != nil {
			f.t.Fatal(err)
		}
	}
	f.eachFile("objects", func(path string) {
		if err := os.Chmod(path, 0o600); err != nil {
			f.t.Fatal(err)
		}
	})
}

// unprivileged does prepare, and then do with permissions in force: root gives
// dir to nobody and becomes nobody, in a thread that ends with it.
func unprivileged(t *testing.T, dir string, prepare, do func()) {
	t.Helper()
	if os.Getuid() != 0 {
		prepare()
		do()
		return
	}
	const nobody = 65534
	give := func() {
		err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err == nil {
				err = os.Lchown(path, nobody, nobody)
			}
			return err
		})
		if err != nil {
			t.Skipf("root without the right to give files away: %v", err)
		}
	}
	if err := os.Chmod(filepath.Dir(filepath.Dir(dir)), 0o755); err != nil { // t.TempDir is for its owner alone
		t.Fatal(err)
	}
	prepare()
	give()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread is not used again
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			t.Errorf("become nobody: %v", errno)
			return
		}
		do()
	}()
	<-done
}

// A repository set aside is a whole one: nothing in it is lost.
func TestSetAsideIsKeptWhole(t *testing.T) {
	st := newStory(t)
	st.eachFile("objects", func(path string) { st.write(path, "") })
	before := 0
	st.eachFile("objects", func(string) { before++ })
	_, repairs := st.open()
	kept := repairs[len(repairs)-1].Kept
	after := 0
	for _, dir := range []string{filepath.Join(kept, "objects"), filepath.Join(st.dir, setAsideDir)} {
		entries, err := filepath.Glob(filepath.Join(dir, "object-*-torn"))
		if err != nil {
			t.Fatal(err)
		}
		after += len(entries)
	}
	if after != before {
		t.Errorf("%d objects lay there, %d are set aside", before, after)
	}
	head, err := os.ReadFile(filepath.Join(kept, "refs", "heads", "production"))
	if err != nil || !bytes.Contains(head, []byte(st.d.Commit)) {
		t.Errorf("the head in what was set aside: %q, %v", head, err)
	}
}
