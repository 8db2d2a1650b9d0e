package gitstore

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// tracedStore is the child of TestSyscalls: it commits and confirms a change and
// then a revert, and asks for a file that is not there between the steps.
func tracedStore(dir string) error {
	mark := func(step string) { _, _ = os.Readlink(filepath.Join("/mark", step)) }
	s, _, err := Open(context.Background(), Options{Dir: dir, Environment: "production", Instance: "web-1"})
	if err != nil {
		return err
	}
	first := s.Applied()
	s.Prepare()
	mark("Commit")
	_, err = s.Commit(context.Background(), benchChange(7))
	mark("Confirm")
	if err == nil {
		err = s.Confirm(context.Background())
	}
	mark("nothing")
	if err != nil {
		return err
	}
	s.Prepare()
	snap, err := s.Commit(context.Background(), benchChange(8))
	if err != nil {
		return err
	}
	s.Prepare()
	mark("Commit of a revert")
	_, err = s.Commit(context.Background(), revert(snap, first, "refused"))
	mark("nothing")
	return err
}

// A call is a system call that has ended, with its arguments as strace -y has
// them.
type call struct{ name, args string }

// path is the last path among the arguments: that of the descriptor, or the new
// one of a rename.
func (c call) path() string {
	all := regexp.MustCompile(`[<"](/[^>"]*)[>"]`).FindAllStringSubmatch(c.args, -1)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1][1]
}

// trace runs the child and returns what it did in each step, in the order in
// which the calls ended.
func (f *fixture) trace() map[string][]call {
	f.t.Helper()
	log := filepath.Join(f.t.TempDir(), "trace")
	cmd := exec.Command("strace", "-f", "-y", "-qq", "-s", "4096", "-o", log, "-e",
		"trace=openat,read,pread64,write,pwrite64,close,fsync,fdatasync,sync,syncfs,sync_file_range,rename,renameat,renameat2,mkdirat,unlinkat,linkat,fstat,newfstatat,utimensat,ftruncate,fallocate,readlinkat", os.Args[0])
	cmd.Env = append(os.Environ(), "GITSTORE_TRACE_IN="+f.dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		f.t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(log)
	if err != nil {
		f.t.Fatal(err)
	}
	line := regexp.MustCompile(`^(\d+) +(?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*)$`)
	begun, steps, step := map[string]string{}, map[string][]call{}, ""
	for _, text := range strings.Split(string(data), "\n") {
		m := line.FindStringSubmatch(text)
		if m == nil {
			continue
		}
		pid, c := m[1], call{m[2], begun[m[1]] + m[3]}
		if args, ok := strings.CutSuffix(m[3], "<unfinished ...>"); ok {
			begun[pid] = args
			continue
		}
		delete(begun, pid)
		if name, ok := strings.CutPrefix(c.path(), "/mark/"); ok {
			step = name
			continue
		}
		if path := c.path(); strings.HasPrefix(path, f.dir) {
			steps[step] = append(steps[step], c)
		}
	}
	return steps
}

// TestSyscalls holds what DESIGN's promise of durability rests on, by the system
// calls of the real thing: a change is committed without waiting for the disk,
// its ref last; before a ref says that a record is durable, each of its files is
// synced, and each directory that names them; the rename is synced after. And
// it holds the lists in the comments above Commit and Confirm to that.
func TestSyscalls(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("DTESN_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs strace")
	}
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 512)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	steps := f.trace()
	commit, confirm, back := steps["Commit"], steps["Confirm"], steps["Commit of a revert"]
	head, applied := f.ref("heads/production"), f.ref("dtesn/applied/production")

	placed := paths(commit, "renameat")
	if len(placed) != 5 || placed[4] != head {
		t.Errorf("a commit renames %q", placed)
	}
	if synced := paths(commit, "fsync"); len(synced) > 0 {
		t.Errorf("a commit waits for the disk: %q", synced)
	}
	for _, path := range placed[:4] {
		placed = append(placed, filepath.Dir(path))
	}
	f.durable(confirm, append(placed, filepath.Dir(head)), applied)

	placed = paths(back, "renameat")
	placed = placed[:max(0, len(placed)-1)]
	for _, path := range slices.Clone(placed) {
		placed = append(placed, filepath.Dir(path))
	}
	if len(placed) != 6 && len(placed) != 8 { // the parameters are those of another record
		t.Errorf("a revert renames %q", placed)
	}
	f.durable(back, placed, head)

	for name, calls := range map[string][]call{"Commit": append(commit, back...), "Confirm": confirm} {
		doc := syscallsOf(t, "commit.go", name) + syscallsOf(t, "objects.go", "put") + syscallsOf(t, "changed.go", "lookAround") + syscallsOf(t, "noted.go", "writeNotes") + syscallsOf(t, "hold.go", "hold") + syscallsOf(t, "files.go", "syncPaths")
		for _, c := range calls {
			if !regexp.MustCompile(`\b` + c.name + `\b`).MatchString(doc) {
				t.Errorf("%s does %s(%.200s, and the comments do not say so", name, c.name, c.args)
			}
		}
	}
}

// durable holds that calls sync all files before the one rename to ref, and its
// directory after it.
func (f *fixture) durable(calls []call, files []string, ref string) {
	f.t.Helper()
	at := slices.IndexFunc(calls, func(c call) bool { return c.name == "renameat" && c.path() == ref })
	if at < 0 {
		f.t.Fatalf("%s is not moved", ref)
	}
	before, after := paths(calls[:at], "fsync"), paths(calls[at:], "fsync")
	for _, path := range files {
		if !slices.Contains(before, path) {
			f.t.Errorf("%s is not synced before %s moves", path, ref)
		}
	}
	if !slices.ContainsFunc(before, func(p string) bool { return filepath.Dir(p) == f.repo("tmp") }) {
		f.t.Errorf("the new %s is not synced before it moves: %q", ref, before)
	}
	if !slices.Equal(after, []string{filepath.Dir(ref)}) {
		f.t.Errorf("after %s moved, %q are synced", ref, after)
	}
}

// paths are those of the calls of a name, in order.
func paths(calls []call, name string) (list []string) {
	for _, c := range calls {
		if c.name == name && !strings.HasSuffix(c.args, ")") && strings.Contains(c.args, "= 0") {
			list = append(list, c.path())
		}
	}
	return list
}

// syscallsOf is what the comment above a function says from "Syscalls" on.
func syscallsOf(t *testing.T, file, name string) string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range parsed.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == name {
			if _, list, ok := strings.Cut(fn.Doc.Text(), "Syscalls"); ok {
				return list
			}
		}
	}
	t.Fatal(fmt.Errorf("%s in %s lists no system calls", name, file))
	return ""
}
