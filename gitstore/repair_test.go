package gitstore

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

func TestRepair(t *testing.T) {
	for _, row := range repairRows() {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			st := newStory(t)
			row.damage(st)
			records := map[string]*record.Record{"a": st.a, "b": st.b, "c": st.c, "d": st.d}
			s, repairs := st.open()
			expect(t, s, records[row.head], records[row.applied])
			checkRepairs(t, st.fixture, repairs, row)
			if !row.dirty {
				st.fsck()
			}
			checkRefs(t, st.fixture, s)
			lost := row.head == ""
			st.lost(s, lost)
			s, repairs = st.reopen(s) // what was repaired stays so
			st.lost(s, lost)
			if len(repairs) > 0 && (s.Head() != nil || !strings.HasPrefix(repairs[0].Found, replaced)) {
				t.Errorf("repaired twice: %v", repairs)
			}
			expect(t, s, records[row.head], records[row.applied])
			total := s.Total()
			next := 1
			if s.Head() != nil {
				next = s.Head().Index + 1
			}
			st.clearLost(s)
			further := applied(t, s, 4096) // what was lost is written again
			s, repairs = st.reopen(s)
			noRepairs(t, repairs)
			st.lost(s, false)
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
	maps.DeleteFunc(got, func(ref, _ string) bool {
		return strings.HasPrefix(ref, setAsideRefs) || strings.HasPrefix(ref, "refs/tags/") || ref == "refs/heads/mine"
	})
	if !maps.Equal(got, want) {
		t.Errorf("refs are %v, the store says %v", got, want)
	}
	for _, pattern := range []string{
		f.repo("tmp", "*"), f.repo("tmp-*"), f.repo("objects", "pack", "tmp-*"),
		filepath.Join(f.dir, "tmp-*"), filepath.Join(f.dir, newRepoGlob), filepath.Join(f.dir, setAsideDir, halfPrefix+"*"),
	} {
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
	if rec := list[3]; rec.ID != st.a.ID || rec.Outcome != record.Applied || rec.RollbackPoint || !strings.HasPrefix(rec.Description, "(damaged) ") || len(rec.Errors) != 1 {
		t.Errorf("the damaged record is listed as %+v", rec)
	}
	if _, err := s.Lookup(t.Context(), st.a.ID); err == nil || !strings.HasPrefix(err.Error(), "read snapshot "+st.a.ID+": ") || !strings.Contains(problem.Hint(err), "agent snapshots --state "+st.dir) {
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
		if err != nil || len(list) != 2*i+2 || list[0].ID != snap.ID || list[0].Outcome != record.Applied {
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
		if err != nil || d.IsDir() || d.Type() == os.ModeSymlink || path == filepath.Join(f.dir, lockFile) {
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

type refusal struct {
	damage  func(st *story)
	options func(o *Options)
	says    []string
}

func refusals() map[string]refusal {
	return map[string]refusal{
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
		"objects borrowed: of what is away": {damage: func(st *story) {
			st.borrow()
			st.remove(st.lender())
		}, says: []string{"objects/info/alternates: 2 objects", "can be read neither here nor where it points", "repack -a -d && rm "}},
		"format newer": {
			damage: func(st *story) { st.write(filepath.Join(st.dir, formatFile), "2\n") },
			says:   []string{"written by a newer agent (format 2, this agent knows 1)", "upgrade the agent"},
		},
		"options: no directory":            {options: func(o *Options) { o.Dir = "" }, says: []string{"--state DIR"}},
		"options: no environment":          {options: func(o *Options) { o.Environment = "../x" }, says: []string{`"../x" is no environment`}},
		"options: no instance":             {options: func(o *Options) { o.Instance = "a\nb" }, says: []string{"no instance name"}},
		"state directory a file":           {options: func(o *Options) { o.Dir = filepath.Join(o.Dir, formatFile) }, says: []string{"not a directory", "remove the file that stands where a directory must be"}},
		"state directory a file: a parent": {options: func(o *Options) { o.Dir = filepath.Join(o.Dir, formatFile, "x") }, says: []string{"not a directory", "choose another --state"}},
		"options: a context that is over":  {options: nil, says: []string{"context canceled"}},
		"repository a link to nothing": {damage: func(st *story) {
			st.remove(st.repo())
			if err := os.Symlink("/nowhere/to/be/found", st.repo()); err != nil {
				st.t.Fatal(err)
			}
		}, says: []string{"is a link to /nowhere/to/be/found", "mount or restore it"}},
	}
}

// What is not ours is refused with a hint, and not touched.
func TestRefused(t *testing.T) {
	for name, row := range refusals() {
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
				if !strings.Contains(problem.Text(err), say) {
					t.Errorf("the error does not say %q: %v", say, problem.Text(err))
				}
			}
			if hint := problem.Hint(err); (hint == "") != errors.Is(err, context.Canceled) || hint != "" && strings.Contains(err.Error(), hint) {
				t.Errorf("%v, with the hint %q", err, hint)
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
				} else if !strings.Contains(err.Error(), "permission denied") || !strings.Contains(err.Error(), st.dir) || !strings.HasPrefix(problem.Hint(err), "chown it, so that uid ") {
					t.Errorf("the error is: %v", problem.Text(err))
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
	st.remove(filepath.Join(st.dir, appliedFile))
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
