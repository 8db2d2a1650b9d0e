package watcher

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// refused is the next word, which must be a Document that is refused for what
// says all of words.
func (s chanSink) refused(t testing.TB, revision string, words ...string) {
	t.Helper()
	doc := s.revision(t, revision)
	if doc.Refused == nil {
		t.Fatalf("%s was not refused", revision)
	}
	if len(doc.Files) > 0 {
		t.Error("a refused Document has files")
	}
	for _, w := range words {
		if !strings.Contains(doc.Refused.Reason+" / "+doc.Refused.Hint, w) {
			t.Errorf("%+v does not say %q", doc.Refused, w)
		}
	}
}

// TestGitRewind: the ref may move only to what descends from what runs, however
// far, and whichever way the repository is reached.
func TestGitRewind(t *testing.T) {
	for _, way := range []string{"bare", "http"} {
		t.Run(way, func(t *testing.T) {
			s := newGitSite(t)
			first := s.git("rev-parse", "HEAD")
			repo := s.bare
			if way == "http" {
				repo = s.serve()
			}
			var running atomic.Value
			running.Store(first)
			g, sink := runGit(t, GitOptions{Repo: repo, Running: func() string { return running.Load().(string) }})
			sink.revision(t, first)
			move := func() { s.push(); g.Sync() }

			for range 40 { // more than one fetch shows
				s.commit("on")
			}
			far := s.commit("far")
			move()
			if doc := sink.revision(t, far); doc.Refused != nil {
				t.Fatal(doc.Refused)
			}
			running.Store(far)

			s.git("checkout", "-q", "-b", "side", first)
			side := s.commit("side")
			s.git("checkout", "-q", "main")
			s.git("reset", "-q", "--hard", side)
			move()
			sink.refused(t, side, "does not descend from", far[:12], "--allow-rewind")

			s.git("reset", "-q", "--hard", first)
			move()
			sink.refused(t, first, "does not descend from")

			s.git("reset", "-q", "--hard", far)
			s.git("merge", "-q", "--no-ff", "-m", "merge", "side")
			merged := s.git("rev-parse", "HEAD")
			move()
			if doc := sink.revision(t, merged); doc.Refused != nil {
				t.Error("a merge that descends is refused", doc.Refused)
			}
		})
	}
}

func TestGitRewindAllowed(t *testing.T) {
	s := newGitSite(t)
	first := s.git("rev-parse", "HEAD")
	later := s.commit("later")
	s.push()
	_, sink := runGit(t, GitOptions{Repo: s.bare, AllowRewind: true, Running: func() string { return later }})
	sink.revision(t, later)
	s.git("reset", "-q", "--hard", first)
	s.push()
	if doc := sink.revision(t, first); doc.Refused != nil {
		t.Error(doc.Refused)
	}
}

// TestGitVerify signs with the real ssh-keygen, and changes who may sign.
func TestGitVerify(t *testing.T) {
	s := newGitSite(t)
	dir := t.TempDir()
	signers := filepath.Join(dir, "allowed")
	key := func(name string) (path, public string) {
		path = filepath.Join(dir, name)
		keygen(t, "-q", "-t", "ed25519", "-N", "", "-f", path)
		b, err := os.ReadFile(path + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		return path, strings.TrimSpace(string(b))
	}
	ada, adaPublic := key("ada")
	eve, evePublic := key("eve")
	allow := func(text string) {
		if err := os.WriteFile(signers+".new", []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(signers+".new", signers); err != nil {
			t.Fatal(err)
		}
	}
	signed := func(by, subject string) string {
		s.git("-c", "gpg.format=ssh", "-c", "user.signingKey="+by, "commit", "-q", "-S", "--allow-empty", "-m", subject)
		s.push()
		return s.git("rev-parse", "HEAD")
	}
	allow("ada@example.org " + adaPublic)
	g, sink := runGit(t, GitOptions{Repo: s.bare, Verify: VerifyCommit, Signers: signers})
	sink.refused(t, s.git("rev-parse", "HEAD"), "not signed", "sign it with a key in "+signers)

	good := signed(ada, "by Ada")
	doc := sink.revision(t, good)
	if doc.Refused != nil || doc.Source.Signer != "ada@example.org" || !strings.HasPrefix(doc.Source.Key, "SHA256:") {
		t.Fatalf("%+v %+v", doc.Refused, doc.Source)
	}
	sink.refused(t, signed(eve, "by Eve"), "belongs to no allowed signer")

	allow("eve@example.org " + evePublic)
	g.Sync()
	if doc := sink.next(t).doc; doc == nil || doc.Refused != nil || doc.Source.Signer != "eve@example.org" {
		t.Fatalf("not verified again: %+v", doc)
	}
	allow("nobody")
	g.Sync()
	sink.failure(t, "line 1", "no key")
	allow("ada@example.org " + adaPublic)
	g.Sync()
	sink.refused(t, s.git("rev-parse", "HEAD"), "no allowed signer")
}

// TestGitVerifyTag asks for a signed tag, under its own name.
func TestGitVerifyTag(t *testing.T) {
	s := newGitSite(t)
	dir := t.TempDir()
	key := filepath.Join(dir, "ada")
	keygen(t, "-q", "-t", "ed25519", "-N", "", "-f", key)
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	signers := filepath.Join(dir, "allowed")
	if err := os.WriteFile(signers, append([]byte("ada "), public...), 0o644); err != nil {
		t.Fatal(err)
	}
	tag := func(name string) {
		s.git("-c", "gpg.format=ssh", "-c", "user.signingKey="+key, "tag", "-f", "-s", "-m", "release", name)
		s.git("push", "-q", "-f", "--tags", s.bare)
	}
	tag("release")
	head := s.git("rev-parse", "HEAD")
	_, sink := runGit(t, GitOptions{Repo: s.serve(), Ref: "release", Verify: VerifyTag, Signers: signers, Poll: 50 * time.Millisecond})
	if doc := sink.revision(t, head); doc.Refused != nil || doc.Source.Signer != "ada" {
		t.Fatalf("%+v", doc)
	}
	next := s.commit("next")
	tag("other")
	s.git("update-ref", "refs/tags/release", "refs/tags/other")
	s.git("push", "-q", "-f", "--tags", s.bare)
	sink.refused(t, next, `made under the name "other"`)
	s.git("tag", "-f", "release", "main")
	s.git("push", "-q", "-f", "--tags", s.bare)
	sink.refused(t, next, "not an annotated tag", "use --verify commit")
}
