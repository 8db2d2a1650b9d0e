package gitstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

// A foundRow is one thing that a start may find, and what it makes of it. The
// story is as a kill left it.
type foundRow struct {
	damage        func(st *story)
	head, applied string // letters of the story; "" for none
	lost          bool
	says          string // of a repair; "" if there is nothing to say
}

func (st *story) letter(name string) *record.Record {
	return map[string]*record.Record{"a": st.a, "b": st.b, "c": st.c, "d": st.d}[name]
}

// flip changes a bit of the live segment, at an offset.
func (st *story) flip(at int64) {
	st.t.Helper()
	path := st.live()
	data, err := os.ReadFile(path)
	if err != nil {
		st.t.Fatal(err)
	}
	data[at] ^= 0x10
	if err := os.WriteFile(path, data, 0o600); err != nil {
		st.t.Fatal(err)
	}
}

// cut shortens a file.
func (st *story) cut(path string, size int64) {
	st.t.Helper()
	if err := os.Truncate(path, size); err != nil {
		st.t.Fatal(err)
	}
}

// live is the file that the live segment of the journal is in.
func (st *story) live() string {
	st.t.Helper()
	_, live, err := readJournal(st.dir)
	if err != nil || live < 0 {
		st.t.Fatal(live, err)
	}
	return segmentPath(st.dir, live)
}

// lastFrame is the offset of the last frame of the live segment.
func (st *story) lastFrame() int64 {
	seg, _, err := readJournal(st.dir)
	if err != nil {
		st.t.Fatal(err)
	}
	return seg.end - blockSize
}

// mirror copies the repository as `git clone --mirror` does.
func (f *fixture) mirror() string {
	f.t.Helper()
	dir := filepath.Join(f.t.TempDir(), "mirror")
	f.git("clone", "-q", "--mirror", f.repo(), dir)
	return dir
}

// putBack puts a mirror in the place of the repository.
func (f *fixture) putBack(mirror string) {
	f.t.Helper()
	f.remove(f.repo())
	if err := os.CopyFS(f.repo(), os.DirFS(mirror)); err != nil {
		f.t.Fatal(err)
	}
}

func bothRefs(st *story, content string) {
	for _, ref := range []string{"heads/production", "dtesn/applied/production"} {
		st.write(st.ref(ref), content)
	}
}

func foundRows() map[string]foundRow {
	rows := map[string]foundRow{
		"nothing amiss":          {func(*story) {}, "d", "b", false, ""},
		"head ref missing":       {func(st *story) { st.remove(st.ref("heads/production")) }, "d", "b", false, ""},
		"head ref torn":          {func(st *story) { st.write(st.ref("heads/production"), "") }, "d", "b", false, ""},
		"head ref names nothing": {func(st *story) { bothRefs(st, strings.Repeat("5", 40)+"\n") }, "d", "b", false, ""},
		"head ref behind":        {func(st *story) { st.git("update-ref", "refs/heads/production", st.a.Commit) }, "d", "b", false, ""},
		"foreign commit":         {func(st *story) { st.foreign("P", map[string][]byte{"note": nil}) }, "d", "b", false, "somebody else's commit"},
		"foreign branch":         {func(st *story) { st.git("branch", "mine", st.commitTree("production^{tree}")) }, "d", "b", false, ""},
		"applied ref missing":    {func(st *story) { st.remove(st.ref("dtesn/applied/production")) }, "d", "b", false, ""},
		"applied ref torn":       {func(st *story) { st.write(st.ref("dtesn/applied/production"), "\x00\x00") }, "d", "b", false, ""},
		"applied ref behind":     {func(st *story) { st.git("update-ref", "refs/dtesn/applied/production", st.a.Commit) }, "d", "b", false, ""},
		"all refs gone":          {func(st *story) { st.remove(st.repo("refs")) }, "d", "b", false, ""},
		"every object empty":     {func(st *story) { st.eachFile("objects", func(path string) { st.write(path, "") }) }, "d", "b", false, ""},
		"every object gone":      {func(st *story) { st.remove(st.repo("objects")) }, "d", "b", false, ""},
		"HEAD and config empty":  {func(st *story) { st.write(st.repo("HEAD"), ""); st.write(st.repo("config"), "") }, "d", "b", false, ""},
		"packed-refs torn": {func(st *story) {
			st.git("pack-refs", "--all")
			st.write(st.repo("packed-refs"), "\x00\x00\x00")
		}, "d", "b", false, "packed-refs of the repository is torn"},
		"shallow torn":       {func(st *story) { st.write(st.repo("shallow"), "garbage\n") }, "d", "b", false, "shallow of the repository is torn"},
		"config torn":        {func(st *story) { st.write(st.repo("config"), "[core]\n\tbare = t") }, "d", "b", false, "config of the repository is torn"},
		"live journal short": {func(st *story) { st.cut(st.live(), 2*blockSize) }, "d", "b", true, "the journal is damaged"},
		"journal missing after a clean stop, mirror older": {func(st *story) {
			s, _ := st.open()
			m := st.mirror()
			commit(st.t, s, revert(s.Head(), s.Applied(), "no"))
			confirm(st.t, s)
			if err := s.Close(); err != nil {
				st.t.Fatal(err)
			}
			st.dropJournal()
			st.putBack(m)
		}, "d", "b", true, "the journal is missing"},
		"left by a kill": {func(st *story) {
			st.write(filepath.Join(st.dir, "tmp-1-1"), "x")
			st.write(st.repo(tempPrefix+strings.Repeat("A", 26)), "y")
		}, "d", "b", false, ""},
		"packed by git gc":          {func(st *story) { st.git("gc", "-q") }, "d", "b", false, ""},
		"packed, loose files empty": {packedAndEmpty, "d", "b", false, ""},
		"repository missing":        {func(st *story) { st.remove(st.repo()) }, "d", "b", false, "begun anew from the journal"},
		"repository a file":         {func(st *story) { st.remove(st.repo()); st.write(st.repo(), "x") }, "d", "b", false, "a file in the place of the repository"},
		"identity torn":             {func(st *story) { st.write(filepath.Join(st.dir, identityFile), "") }, "d", "b", false, ""},
		"format torn":               {func(st *story) { st.write(filepath.Join(st.dir, formatFile), "") }, "d", "b", false, ""},
		"journal missing":           {func(st *story) { st.dropJournal() }, "d", "b", true, "the journal is missing"},
		"journal missing, head torn": {func(st *story) {
			st.dropJournal()
			st.write(st.file("production"), "")
		}, "b", "b", true, "the journal is missing"},
		"last frame flipped":               {func(st *story) { st.flip(st.lastFrame() + 100) }, "d", "b", false, "newer records than the journal"},
		"last frame gone":                  {func(st *story) { st.flip(st.lastFrame() + 9) }, "d", "b", false, "newer records than the journal"},
		"a frame before flipped":           {func(st *story) { st.flip(blockSize + 100) }, "d", "b", true, "the journal is damaged"},
		"first frame flipped":              {func(st *story) { st.flip(100) }, "d", "b", true, "the journal is damaged"},
		"first frame and a ref":            {func(st *story) { st.flip(100); st.write(st.ref("heads/production"), "") }, "b", "b", true, "the journal is damaged"},
		"live file of the journal missing": {func(st *story) { st.remove(st.live()) }, "d", "b", true, "the journal is damaged"},
		"live file of the journal empty":   {func(st *story) { st.write(st.live(), "") }, "d", "b", true, "the journal is damaged"},
		"journal and refs missing":         {func(st *story) { st.dropJournal(); st.remove(st.repo("refs")) }, "", "", true, "a new one begins"},
		"journal and objects gone":         {func(st *story) { st.dropJournal(); st.remove(st.repo("objects")) }, "", "", true, "a new one begins"},
		"journal and repository":           {func(st *story) { st.dropJournal(); st.remove(st.repo()) }, "", "", true, "a new one begins"},
		"mirror in place":                  {func(st *story) { st.putBack(st.mirror()) }, "d", "b", false, "another repository"},
		"mirror in a new directory": {func(st *story) {
			m := st.mirror()
			st.remove(st.dir)
			st.putMirror(m)
		}, "d", "b", false, ""},
		"torn mirror in place": {func(st *story) {
			m := st.mirror()
			st.putBack(m)
			st.remove(st.repo("packed-refs"))
		}, "d", "b", false, "begun anew from the journal"},
		"refs of an older state": {func(st *story) {
			st.git("update-ref", "refs/heads/production", st.a.Commit)
			st.git("update-ref", "refs/dtesn/applied/production", st.a.Commit)
			st.git("update-ref", "-d", "refs/heads/mine")
		}, "d", "b", false, ""},
	}
	return rows
}

func (f *fixture) putMirror(m string) {
	f.t.Helper()
	if err := errors.Join(os.MkdirAll(f.dir, 0o700), os.CopyFS(f.repo(), os.DirFS(m))); err != nil {
		f.t.Fatal(err)
	}
}

// packedAndEmpty is what a power cut leaves of a checkpoint: the objects are in a
// pack, and loose files whose removal was not synced came back empty.
func packedAndEmpty(st *story) {
	var paths []string
	st.eachFile("objects", func(path string) { paths = append(paths, path) })
	st.git("gc", "-q")
	for _, path := range paths {
		st.write(path, "")
	}
}

func TestFound(t *testing.T) {
	plainly(t)
	for name, row := range foundRows() {
		t.Run(name, func(t *testing.T) {
			st := newStory(t)
			row.damage(st)
			s, repairs := st.open()
			expect(t, s, st.letter(row.head), st.letter(row.applied))
			st.lost(s, row.lost)
			said := ""
			for _, r := range repairs {
				said += r.String() + "\n"
			}
			if !strings.Contains(said, row.says) || row.says == "" && said != "" {
				t.Errorf("repairs %q, want %q", said, row.says)
			}
			if s.Behind() != nil {
				t.Error(s.Behind())
			}
			st.fsck()
			st.refsAgree(s)
			// It goes on, and the next start has nothing to say.
			last := applied(t, s, 777)
			s, repairs = st.reopen(s)
			noRepairs(t, repairs)
			expect(t, s, last, last)
			st.lost(s, row.lost)
			st.fsck()
			st.refsAgree(s)
		})
	}
}

// refsAgree holds that plain git and a Reader see what the Store has.
func (f *fixture) refsAgree(s *Store) {
	f.t.Helper()
	for ref, want := range map[string]*record.Record{"refs/heads/production": s.Head(), "refs/dtesn/applied/production": s.Applied()} {
		if got := f.gitMay("rev-parse", "--verify", "-q", ref); strings.TrimSpace(got) != commitOf(want) {
			f.t.Errorf("%s is %q, want %s", ref, got, commitOf(want))
		}
	}
	r, err := OpenReader(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Close()
	head, herr := r.Head()
	applied, aerr := r.Applied()
	total, terr := r.Total()
	if err := errors.Join(herr, aerr, terr); err != nil || commitOf(head) != commitOf(s.Head()) || commitOf(applied) != commitOf(s.Applied()) || total != s.Total() {
		f.t.Errorf("a Reader has %s, %s, %d records, %v; the Store %s, %s, %d", idOf(head), idOf(applied), total, err, idOf(s.Head()), idOf(s.Applied()), s.Total())
	}
	if list, err := s.List(context.Background(), "", 1000); err != nil || len(list) != s.Total() {
		f.t.Errorf("the list has %d records of %d, %v", len(list), s.Total(), err)
	}
}

// Whatever bit of the journal flips, nothing that was confirmed is lost, and a
// hold holds, or the next start pauses.
func TestFlippedBits(t *testing.T) {
	plainly(t)
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 30 {
		st := newStory(t)
		s, _ := st.open()
		a := s.Applied()
		commit(t, s, revert(s.Head(), a, "no"))
		confirm(t, s)
		want := s.Head()
		if err := errors.Join(s.join(), s.letGo(rng.IntN(2) == 0)); err != nil {
			t.Fatal(err)
		}
		seg, live, err := readJournal(st.dir)
		if err != nil {
			t.Fatal(err)
		}
		at := rng.Int64N(seg.end)
		st.flip(at)
		if rng.IntN(3) == 0 { // and git has not caught up
			st.write(st.ref("heads/production"), "")
		}
		s, repairs := st.open()
		held := s.Head() != nil && s.Head().Held != nil && len(s.Head().Held.Entries) > 0
		if !held && s.Lost() == nil {
			t.Errorf("seed %d, byte %d of file %d: the head is %s, nothing is held, want %s; %v", seed, at, live, idOf(s.Head()), idOf(want), repairs)
		}
		st.fsck()
		_ = s.Close()
	}
}

// A journal that was lost is told once: after a kill the next start finds a sound one.
func TestALostJournalIsToldOnce(t *testing.T) {
	st := newStory(t)
	st.flip(100) // of the first frame of the one segment there is
	s, _ := st.open()
	st.lost(s, true)
	if err := s.ClearLost(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.join(), s.letGo(false)); err != nil { // a kill
		t.Fatal(err)
	}
	s, repairs := st.open()
	noRepairs(t, repairs)
	st.lost(s, false)
	expect(t, s, st.d, st.b)
}

type refusal struct {
	damage  func(st *story)
	options func(o *Options)
	says    []string
}

func refusals() map[string]refusal {
	return map[string]refusal{
		"environment": {options: func(o *Options) { o.Environment = "staging" }, says: []string{`belongs to environment "production"`, "choose another --state"}},
		"instance":    {options: func(o *Options) { o.Instance = "web 2" }, says: []string{`instance "web 2"`, `--environment production --instance "web-1"`}},
		"environment, identity torn": {
			damage:  func(st *story) { st.write(filepath.Join(st.dir, identityFile), "") },
			options: func(o *Options) { o.Environment = "staging" }, says: []string{`belongs to environment "production"`},
		},
		"environment, identity and journal gone": {
			damage:  func(st *story) { st.remove(filepath.Join(st.dir, identityFile)); st.dropJournal() },
			options: func(o *Options) { o.Instance = "web-2" }, says: []string{`instance "web-1"`},
		},
		"format newer": {
			damage: func(st *story) { st.write(filepath.Join(st.dir, formatFile), "3\n") },
			says:   []string{"written by a newer agent (format 3, this agent knows 2)", "upgrade the agent"},
		},
		"no directory":           {options: func(o *Options) { o.Dir = "" }, says: []string{"--state DIR"}},
		"no environment":         {options: func(o *Options) { o.Environment = "../x" }, says: []string{`"../x" is no environment`}},
		"no instance":            {options: func(o *Options) { o.Instance = "a\nb" }, says: []string{"no instance name"}},
		"a file":                 {options: func(o *Options) { o.Dir = filepath.Join(o.Dir, formatFile) }, says: []string{"not a directory", "remove the file that stands where a directory must be"}},
		"a file as parent":       {options: func(o *Options) { o.Dir = filepath.Join(o.Dir, formatFile, "x") }, says: []string{"not a directory", "choose another --state"}},
		"a context that is over": {},
		"repository a link to nowhere": {damage: func(st *story) {
			st.remove(st.repo())
			if err := os.Symlink("/nowhere/to/be/found", st.repo()); err != nil {
				st.t.Fatal(err)
			}
		}, says: []string{"is a link to /nowhere/to/be/found", "mount or restore it"}},
		"journal a link": {damage: func(st *story) {
			moved := filepath.Join(st.t.TempDir(), "journal")
			if err := errors.Join(os.Remove(segmentPath(st.dir, 0)), os.Symlink(moved, segmentPath(st.dir, 0))); err != nil {
				st.t.Fatal(err)
			}
		}, says: []string{"journal.0: not a regular file", "remove what stands where a file belongs"}},
		"a directory that others can write": {damage: func(st *story) {
			if err := os.Chmod(st.dir, 0o770); err != nil {
				st.t.Fatal(err)
			}
		}, says: []string{"others than its owner can write into it (mode 0770)", "which the agent makes with mode 0700"}},
		"journal of another user": {damage: func(st *story) {
			if os.Geteuid() != 0 {
				st.t.Skip("only root can give files away")
			}
			if err := os.Chown(segmentPath(st.dir, 0), 12345, -1); err != nil {
				st.t.Fatal(err)
			}
		}, says: []string{"belongs to uid 12345", "chown it"}},
	}
}

// What is not ours is refused with a hint, and not touched.
func TestRefused(t *testing.T) {
	plainly(t)
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
			if row.options != nil {
				row.options(&o)
			} else if row.damage == nil {
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
			if hint := problem.Hint(err); (hint == "") != errors.Is(err, context.Canceled) || hint != "" && strings.Contains(err.Error(), hint) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, with the hint %q", err, hint)
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
