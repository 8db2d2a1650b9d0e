package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/test/gitserver"
)

// A signer is somebody with an SSH key made by ssh-keygen.
type signer struct{ name, path, public, id string }

func (f *follower) signer(name string) signer {
	f.t.Helper()
	s := signer{name: name, path: filepath.Join(f.dir, name+".key")}
	out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", s.path).CombinedOutput()
	if err != nil {
		f.t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	public, err := os.ReadFile(s.path + ".pub")
	ok(f.t, err)
	fingerprint, err := exec.Command("ssh-keygen", "-l", "-f", s.path+".pub").Output()
	ok(f.t, err)
	s.public, s.id = strings.TrimSpace(string(public)), strings.Fields(string(fingerprint))[1]
	return s
}

// signed is what git is told so that s signs.
func (s signer) signed(args ...string) []string {
	return append([]string{"-c", "gpg.format=ssh", "-c", "user.signingKey=" + s.path}, args...)
}

// commitSigned commits a state with a signature.
func (f *follower) commitSigned(n int, by signer) {
	f.t.Helper()
	f.write(n)
	f.git("add", "-A")
	f.git(by.signed("commit", "-q", "-S", "-m", fmt.Sprintf("state %d by %s", n, by.name))...)
}

// beside is another agent on the same repository.
func (f *follower) beside(name string) *follower {
	other := *f
	other.state, other.log = filepath.Join(f.dir, name), filepath.Join(f.dir, name+".log")
	return &other
}

// refuses waits until what is seen is refused for a reason with these words,
// and holds that the engine keeps state n.
func (f *follower) refuses(n int, words ...string) view {
	f.t.Helper()
	v := f.await(fmt.Sprintf("refused: %q", words), func(v view) bool {
		for _, w := range words {
			if !strings.Contains(v.Reason, w) {
				return false
			}
		}
		return v.State == apply.StateRefused && v.Attempted.Outcome == record.Refused && v.Attempted.Revision == v.Seen.Revision
	})
	if n > 0 && (v.ttl() != n || !v.Ready || v.InSync || v.Hint == "") {
		f.t.Errorf("refused, but state %d does not run, or is not told so:\n%s", n, v.Text)
	}
	return v
}

// TestGitSigners: two agents on one repository, each with its own allowed
// signers; keys come and go while they run.
func TestGitSigners(t *testing.T) {
	t.Parallel()
	needs(t, "git", "ssh-keygen")
	staging := newFollower(t)
	production := staging.beside("production")
	ada, eve := staging.signer("ada"), staging.signer("eve")
	both, one := filepath.Join(staging.dir, "allow-both"), filepath.Join(staging.dir, "allow-one")
	line := func(s signer, options string) string { return s.name + "@example.org " + options + s.public + "\n" }
	rotate(t, both, line(ada, "")+line(eve, `namespaces="git,file" `))
	rotate(t, one, line(ada, ""))
	follow := func(f *follower, env, signers string) {
		f.start(f.bare, "--environment", env, "--verify", "commit", "--allowed-signers", signers)
	}
	follow(staging, "staging", both)
	follow(production, "production", one)
	staging.refuses(0, "not signed")
	production.refuses(0, "not signed")
	declare := func(n int, by signer) { staging.commitSigned(n, by); staging.push() }

	declare(2, ada)
	staging.runs(2)
	production.runs(2)
	declare(3, eve)
	v := staging.runs(3)
	if v.Running.Signer != "eve@example.org" || v.Running.Key != eve.id || !strings.Contains(v.Text, "signed by eve@example.org ("+eve.id+")") {
		t.Errorf("who signed is not in the status: %+v\n%s", v.Running, v.Text)
	}
	v = production.refuses(2, "belongs to no allowed signer", eve.id, staging.git("rev-parse", "--short=12", "HEAD"))
	if !strings.Contains(v.Hint, one) {
		t.Errorf("the hint names no file: %s", v.Hint)
	}
	var answer struct{ Status apply.Status }
	ok(t, json.Unmarshal([]byte(production.get("/v1/config/status")), &answer))
	if s := answer.Status; s.State != apply.StateRefused || s.Running.Signer != "ada@example.org" || s.Running.Key != ada.id {
		t.Errorf("over HTTP: %s, %+v", s.State, s.Running)
	}
	_, show := agent("show", "2", "--state", staging.state)
	record := gitserver.Git(t, staging.dir, "--git-dir", filepath.Join(staging.state, "snapshots.git"), "show", "staging:snapshot.json")
	for where, text := range map[string]string{"agent show": show, "snapshot.json": record} {
		if !strings.Contains(text, "eve@example.org") || !strings.Contains(text, eve.id) {
			t.Errorf("who signed is not in %s:\n%s", where, text)
		}
	}
	declare(4, ada)
	staging.runs(4)
	production.runs(4)

	// what runs is judged again when the keys change, also by a new process
	for words, options := range map[string]string{
		"is not valid any more since 2020-01-02T00:00:00Z": `valid-before="20200102Z" `,
		"is not valid before 2099-01-02T03:04:00Z":         `valid-after="209901020304Z" `,
		"may not sign for git":                             `namespaces="file" `,
	} {
		rotate(t, one, line(ada, options))
		production.sync()
		production.refuses(4, words, ada.id)
	}
	rotate(t, one, line(eve, ""))
	production.sync()
	production.refuses(4, "belongs to no allowed signer")
	kill(production.cmd)
	follow(production, "production", one)
	production.refuses(4, "belongs to no allowed signer")
	rotate(t, one, line(ada, "tricky=1 "))
	production.says("line 1", "is not understood")
	rotate(t, one, line(ada, `valid-after="20200101" `))
	production.runs(4)
	log, err := os.ReadFile(production.log)
	ok(t, err)
	for _, want := range []string{"the allowed signers changed; the revision is verified again", "the source is not trusted with this revision; the engine keeps what it has"} {
		if !strings.Contains(string(log), want) {
			t.Errorf("the log does not say %q", want)
		}
	}
}

// TestGitSignedTags: commit, tag or both are asked for, and are there or not.
func TestGitSignedTags(t *testing.T) {
	t.Parallel()
	needs(t, "git", "ssh-keygen")
	f := newFollower(t)
	ada, eve := f.signer("ada"), f.signer("eve")
	signers := filepath.Join(f.dir, "allowed")
	rotate(t, signers, "ada "+ada.public+"\n")
	f.git("tag", "plain")
	f.git(ada.signed("tag", "-s", "-m", "x", "tag-only")...)
	f.commitSigned(2, ada)
	f.git("tag", "-a", "-m", "x", "commit-only")
	f.git(ada.signed("tag", "-s", "-m", "x", "full")...)
	f.git(eve.signed("tag", "-s", "-m", "x", "by-eve")...)
	f.git("update-ref", "refs/tags/renamed", "refs/tags/full")
	f.git("push", "-q", f.bare, "refs/*:refs/*")
	rows := []struct{ verify, ref, refused string }{
		{"commit", "commit-only", ""},
		{"commit", "full", ""},
		{"commit", "by-eve", ""}, // the commit is Ada's
		{"tag", "tag-only", ""},
		{"tag", "refs/tags/full", ""},
		{"both", "full", ""},
		{"commit", "tag-only", "it is not signed"},
		{"tag", "commit-only", "tag commit-only: it is not signed"},
		{"tag", "plain", "the ref is not an annotated tag"},
		{"tag", "main", "the ref is not an annotated tag"},
		{"tag", "by-eve", "belongs to no allowed signer"},
		{"tag", "renamed", `it was made under the name "full" and stands under "renamed"`},
		{"both", "tag-only", "it is not signed"},
		{"both", "commit-only", "tag commit-only: it is not signed"},
		{"both", "by-eve", "tag by-eve: the key " + eve.id},
	}
	for _, row := range rows {
		t.Run(row.verify+" "+row.ref, func(t *testing.T) {
			code, said, records := f.once(f.bare, "--config", "config", "--ref", row.ref, "--verify", row.verify, "--allowed-signers", signers)
			switch {
			case row.refused == "":
				if code != 0 || len(records) != 1 || records[0].Source.Signer != "ada" || records[0].Source.Key != ada.id {
					t.Errorf("exit %d, %+v\n%s", code, records, said)
				}
			case code != 1 || len(records) > 0 || !strings.Contains(said, "refused: ") || !strings.Contains(said, row.refused):
				t.Errorf("exit %d, %d records, want %q\n%s", code, len(records), row.refused, said)
			}
		})
	}
}

// TestGitNoWayBack: over a repository that others push to with force, the
// agent goes only forward, however far, and after a restart too.
func TestGitNoWayBack(t *testing.T) {
	t.Parallel()
	needs(t, "git")
	f := newFollower(t)
	url := gitserver.HTTP(t, f.dir, nil).URL + "/config.git"
	f.declare(2)
	f.start(url)
	f.runs(2)

	f.git("reset", "-q", "--hard", "HEAD~1")
	f.push()
	f.sync()
	v := f.refuses(2, "main was moved to", "does not descend from", "which runs")
	if !strings.Contains(v.Hint, "--allow-rewind") || !strings.Contains(v.Hint, "put the ref back") {
		t.Errorf("no way out in %q", v.Hint)
	}
	f.git("reset", "-q", "--hard", "HEAD@{1}")
	f.push()
	f.sync()
	f.runs(2)

	// farther than one fetch shows
	var stream strings.Builder
	for range 600 {
		fmt.Fprintf(&stream, "commit refs/heads/main\ncommitter Ada <ada@example.org> 1700000000 +0000\ndata 2\non\n%s\n", map[bool]string{true: "from refs/heads/main^0"}[stream.Len() == 0])
	}
	cmd := exec.Command("git", "-C", f.work, "fast-import", "--quiet")
	cmd.Stdin = strings.NewReader(stream.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f.git("reset", "-q", "--hard")
	f.declare(3)
	f.sync()
	f.runs(3)

	f.git("checkout", "-q", "--orphan", "other")
	f.commit(4)
	f.git("push", "-q", "-f", f.bare, "other:main")
	f.sync()
	f.refuses(3, "does not descend from")
	ok(t, f.cmd.Process.Signal(syscall.SIGTERM))
	ok(t, f.cmd.Wait())
	f.start(url)
	f.refuses(3, "does not descend from")
	ok(t, f.cmd.Process.Signal(syscall.SIGTERM))
	ok(t, f.cmd.Wait())
	f.start(url, "--allow-rewind")
	f.runs(4)
	log, err := os.ReadFile(f.log)
	ok(t, err)
	if !strings.Contains(string(log), "as --allow-rewind permits") {
		t.Error("the log does not say that the ref was let back")
	}
	kill(f.cmd)
	f.start(url) // from here on the other history is the one
	f.runs(4)
}
