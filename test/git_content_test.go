package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/test/gitserver"
)

// file writes a file below config/.
func (f *follower) file(name, text string) {
	f.t.Helper()
	path := filepath.Join(f.work, "config", name)
	ok(f.t, os.MkdirAll(filepath.Dir(path), 0o755))
	ok(f.t, os.WriteFile(path, []byte(text), 0o644))
}

func (f *follower) link(to, name string) {
	f.t.Helper()
	path := filepath.Join(f.work, name)
	ok(f.t, os.RemoveAll(path))
	ok(f.t, os.Symlink(to, path))
}

// submodule puts one at path, in the index only.
func (f *follower) submodule(path string) {
	f.t.Helper()
	f.git("rm", "-r", "-f", "-q", path)
	f.git("update-index", "--add", "--cacheinfo", "160000,"+f.git("rev-parse", "HEAD")+","+path)
}

// A content is what a commit holds in place of plain files.
type content struct {
	name   string
	remote bool // by HTTP too
	change func(f *follower)
	say    []string // of the violations; none: it is as good as plain
}

const (
	contentHead = "environment: testing\nextends: [low-memory]\n"
	contentGood = contentHead + "parameters:\n  cache_ttl_seconds: 2\n"
)

var contents = []content{
	{"a link in place of the file", true, func(f *follower) { f.link("base.yaml", "config/testing.yaml") }, []string{"testing.yaml: the file is a symbolic link in the repository", "commit a regular file"}},
	{"a link in place of the base", false, func(f *follower) { f.link("/etc/passwd", "config/base.yaml") }, []string{"base.yaml: the file is a symbolic link"}},
	{"a link in place of the directory", false, func(f *follower) { f.link("elsewhere", "config") }, []string{"in commit HEAD config is a symbolic link, not a directory", "name another with --config"}},
	{"a link in place of templates", false, func(f *follower) { f.link("../t", "config/templates") }, []string{"templates/low-memory.yaml: the file is not to be had: templates is a symbolic link", "[see testing.yaml:2:11]"}},
	{"a submodule in place of the directory", true, func(f *follower) { f.submodule("config") }, []string{"config is a submodule, which is not followed", "--repo"}},
	{"a submodule in place of the file", false, func(f *follower) { f.submodule("config/testing.yaml") }, []string{"testing.yaml: the file is a submodule in the repository"}},
	{"no directory", true, func(f *follower) { f.git("rm", "-r", "-f", "-q", "config") }, []string{"in commit HEAD config does not exist"}},
	{"no file", false, func(f *follower) { f.git("rm", "-f", "-q", "config/testing.yaml") }, []string{"testing.yaml: the file does not exist"}},
	{"a pointer of LFS", false, func(f *follower) {
		f.file("testing.yaml", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
	}, []string{"testing.yaml: the file is a pointer of Git LFS", "git lfs untrack"}},
	{"a byte too large", true, func(f *follower) { f.file("testing.yaml", strings.Repeat("#", schema.MaxFileBytes+1)) }, []string{"testing.yaml: the file is larger than 64 KiB"}},
	{"huge", true, func(f *follower) { f.file("base.yaml", strings.Repeat("# much of the same\n", 1<<18)) }, []string{"base.yaml: the file is larger than 64 KiB"}},
	{"names that differ in case", false, func(f *follower) { f.file("BASE.yaml", contentGood) }, []string{`base.yaml: the file stands beside "BASE.yaml": names that differ only in case are one file elsewhere`, "rename one"}},
	{"no UTF-8", false, func(f *follower) { f.file("testing.yaml", contentGood+"# \xff\n") }, []string{"testing.yaml:5:3", "UTF-8"}},
	{"only a BOM", false, func(f *follower) { f.file("testing.yaml", "\ufeff") }, []string{"testing.yaml", "empty"}},
	{"a value out of range", false, func(f *follower) { f.file("testing.yaml", contentHead+"parameters:\n  bseries_max_order: 99\n") }, []string{"testing.yaml:4:22", "1-32"}},
	{"escape codes", false, func(f *follower) { f.file("testing.yaml", "environment: testing\nextends: [\"\\e[31m\"]\n") }, []string{"testing.yaml:2:11", `\x1b[31m`}},
	{"another environment", false, func(f *follower) { f.file("testing.yaml", strings.Replace(contentGood, "testing", "staging", 1)) }, []string{"testing.yaml:1:14"}},
	{"a path out of the templates", false, func(f *follower) { f.file("testing.yaml", "environment: testing\nextends: [../../x]\n") }, []string{"testing.yaml:2:11"}},

	{"CRLF and BOM", false, func(f *follower) { f.file("testing.yaml", "\ufeff"+strings.ReplaceAll(contentGood, "\n", "\r\n")) }, nil},
	{"an executable file", false, func(f *follower) { ok(f.t, os.Chmod(filepath.Join(f.work, "config", "testing.yaml"), 0o755)) }, nil},
	{"as large as may be", true, func(f *follower) {
		f.file("testing.yaml", contentGood+strings.Repeat("#", schema.MaxFileBytes-len(contentGood)-1)+"\n")
	}, nil},
	{"odd names beside", true, func(f *follower) {
		for _, name := range []string{"a\nb.yaml", "\x1b[2J.yaml", "\xff\xfe", "-rf", "ünïcödé.yaml", "templates/.hidden", "con\\..\\x"} {
			f.file(name, "x")
		}
	}, nil},
}

// TestGitContent: one agent is led through what a commit can hold in place of
// plain files. Each is handled, or invalid with the file, the place and the way
// out; the engine keeps what it has. Where the server can, what is too large is
// not even fetched.
func TestGitContent(t *testing.T) {
	t.Parallel()
	needs(t, "git")
	for _, way := range []string{"a path", "http"} {
		t.Run(way, func(t *testing.T) {
			f := newFollower(t)
			f.git("config", "core.autocrlf", "false")
			f.file("testing.yaml", contentGood)
			f.git("commit", "-q", "-a", "-m", "good")
			f.push()
			plain := f.git("rev-parse", "HEAD")
			repo, flags := f.bare, []string(nil)
			if way == "http" {
				gitserver.Git(t, f.bare, "config", "uploadpack.allowFilter", "true")
				repo, flags = gitserver.HTTP(t, f.dir, nil).URL+"/config.git", []string{"--poll", "100ms"}
			}
			f.start(repo, flags...)
			f.runs(2)
			for _, row := range contents {
				if way == "a path" || row.remote {
					f.meets(row, plain)
				}
			}
			f.git("read-tree", "--reset", "-u", plain)
			f.declare(3)
			f.runs(3)
		})
	}
}

// meets pushes c over the commit plain, and holds what the agent makes of it.
func (f *follower) meets(row content, plain string) {
	t := f.t
	t.Helper()
	f.git("read-tree", "--reset", "-u", plain)
	row.change(f)
	if !strings.HasPrefix(row.name, "a submodule") {
		f.git("add", "-A")
	}
	f.git("commit", "-q", "--allow-empty", "-m", row.name)
	f.push()
	head := f.git("rev-parse", "HEAD")
	v := f.await(row.name, func(v view) bool {
		return v.Attempted != nil && v.Attempted.Revision == head && v.Seen.Revision == head
	})
	if v.ttl() != 2 || !v.Ready {
		t.Errorf("%s: the engine runs %+v, ready %v", row.name, v.Current, v.Ready)
	}
	if row.say == nil {
		if v.Attempted.Outcome != record.Unchanged {
			t.Errorf("%s: %+v", row.name, v.Attempted)
		}
		return
	}
	var said strings.Builder
	for _, violation := range v.Attempted.Violations {
		fmt.Fprintln(&said, violation)
	}
	for _, words := range row.say {
		if words = strings.ReplaceAll(words, "HEAD", head[:12]); !strings.Contains(said.String(), words) {
			t.Errorf("%s: %q is not said:\n%s", row.name, words, &said)
		}
	}
	if v.State != apply.StateInvalid || v.Attempted.Outcome != record.Invalid || v.InSync || strings.Contains(v.Text, "\x1b") {
		t.Errorf("%s: %s, %s, in sync %v\n%s", row.name, v.State, v.Attempted.Outcome, v.InSync, v.Text)
	}
	eventually(t, row.name+": a line of the log names the commit", func() bool {
		log, err := os.ReadFile(f.log)
		ok(t, err)
		return bytes.Contains(log, []byte("revision="+head+" violations="))
	})
}

// TestGitHostileHeader: whatever stands in a commit's header and message, the
// history stays sound, a listing one line a record, and a terminal unharmed.
func TestGitHostileHeader(t *testing.T) {
	t.Parallel()
	needs(t, "git")
	f := newFollower(t)
	f.start(f.bare)
	f.runs(1)
	long := strings.Repeat("so much to say ", 700)
	rows := []struct{ author, message string }{
		{"Eve \x1b[31m\x07", "\x1b]0;owned\x07 subject\r\n"},
		{"Eve\u202egnp.exe", "\u2028\u2066turned\n"},
		{"\xff\xfe", "\xc3\x28 no UTF-8\n"},
		{strings.Repeat("long name ", 1100), long + "\n\n" + long},
		{"Kind: rollback", "Kind: rollback\n\nSnapshot-Id: snapshot_1_0001\nKind: note\nOutcome-Of: snapshot_1_0001 rejected\n"},
		{"", ""},
		{"Eve", "\n\n  \n"},
	}
	for i, row := range rows {
		n := i + 2
		f.commit(n)
		raw := fmt.Sprintf("tree %s\nparent %s\nauthor %s <e@example.org> 1700000000 +0000\ncommitter %s <e@example.org> 1700000000 +0000\n\n%s",
			f.git("rev-parse", "HEAD^{tree}"), f.git("rev-parse", "HEAD~1"), row.author, row.author, row.message)
		cmd := exec.Command("git", "-C", f.work, "hash-object", "-t", "commit", "-w", "--stdin", "--literally")
		cmd.Stdin = strings.NewReader(raw)
		hash, err := cmd.Output()
		ok(t, err)
		f.git("reset", "-q", "--hard", strings.TrimSpace(string(hash)))
		f.push()
		v := f.runs(n)
		_, show := agent("show", fmt.Sprint(n), "--state", f.state)
		_, list := agent("snapshots", "--state", f.state, "--wide")
		_, narrow := agent("snapshots", "--state", f.state)
		if lines := strings.Count(list, "\n"); lines != n+1 {
			t.Errorf("%q: %d lines list %d records:\n%s", row.author, lines, n, list)
		}
		status := f.get("/v1/config/status")
		record := gitserver.Git(t, f.dir, "--git-dir", filepath.Join(f.state, "snapshots.git"), "show", "testing:snapshot.json")
		for where, text := range map[string]string{"agent status": v.Text, "agent show": show, "agent snapshots --wide": list, "agent snapshots": narrow, "HTTP": status, "snapshot.json": record} {
			if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' }) {
				t.Errorf("%s: %s is not safe to print: %q", row.author, where, text)
			}
			if len(text) > 64<<10 {
				t.Errorf("%.20q: %s is %d bytes", row.author, where, len(text))
			}
		}
		if row.author == "Eve \x1b[31m\x07" && (!strings.Contains(list, "Eve") || !strings.Contains(list, "subject (")) {
			t.Errorf("who changed what is not listed:\n%s", list)
		}
		if want := "testing.yaml:4:22@" + strings.TrimSpace(string(hash))[:12]; !strings.Contains(show, want) {
			t.Errorf("no %s in\n%s", want, show)
		}
	}
	kinds := gitserver.Git(t, f.dir, "--git-dir", filepath.Join(f.state, "snapshots.git"), "log", "--format=%(trailers:key=Kind,valueonly,separator=%x2C)", "testing")
	if kinds != strings.TrimSpace(strings.Repeat("change\n", len(rows)+1)) {
		t.Errorf("the records' kinds are\n%s", kinds)
	}
	gitserver.Git(t, f.dir, "--git-dir", filepath.Join(f.state, "snapshots.git"), "fsck", "--strict", "--no-dangling")
}
