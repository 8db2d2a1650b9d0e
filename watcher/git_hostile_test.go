package watcher

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestGitForgedObject: a loose object that is not what its name says proves no
// descent.
func TestGitForgedObject(t *testing.T) {
	s := newGitSite(t)
	first := s.git("rev-parse", "HEAD")
	g, sink := runGit(t, GitOptions{Repo: s.bare, Running: func() string { return first }})
	sink.revision(t, first)

	forged := strings.Repeat("ab", 20) // claims to descend from what runs
	tree := s.git("rev-parse", "HEAD^{tree}")
	who := "Eve <eve@example.org> 1700000000 +0000"
	body := fmt.Sprintf("tree %s\nparent %s\nauthor %s\ncommitter %s\n\nforged\n", tree, first, who, who)
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	fmt.Fprintf(w, "commit %d\x00%s", len(body), body)
	_ = w.Close()
	path := filepath.Join(s.bare, "objects", forged[:2], forged[2:])
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, z.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	child := filepath.Join(s.work, "child")
	if err := os.WriteFile(child, fmt.Appendf(nil, "tree %s\nparent %s\nauthor %s\ncommitter %s\n\nchild\n", tree, forged, who, who), 0o644); err != nil {
		t.Fatal(err)
	}
	hash := s.git("--git-dir", s.bare, "hash-object", "-t", "commit", "-w", "--literally", child)
	ref := filepath.Join(s.bare, "refs", "heads", "main")
	if err := os.WriteFile(ref+".lock", []byte(hash+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(ref+".lock", ref); err != nil {
		t.Fatal(err)
	}
	g.Sync()
	sink.failure(t, forged, "damaged")
}

// TestGitBorrowedInACircle: object directories that lend to each other in a
// circle are refused, and do not keep the source busy for ever.
func TestGitBorrowedInACircle(t *testing.T) {
	s := newGitSite(t)
	objects := filepath.Join(s.bare, "objects")
	alternates := filepath.Join(objects, "info", "alternates")
	if err := os.WriteFile(alternates, []byte(objects+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	g, sink := runGit(t, GitOptions{Repo: s.bare})
	sink.failure(t, "borrows objects in a circle", "alternates")
	if err := os.Remove(alternates); err != nil {
		t.Fatal(err)
	}
	g.Sync()
	sink.revision(t, s.git("rev-parse", "HEAD"))
}

// TestGitBorrowedFromAbove: a repository within another one borrows its objects
// by a relative path, of which go-git would make the repository's own objects.
func TestGitBorrowedFromAbove(t *testing.T) {
	s := newGitSite(t)
	inner := filepath.Join(s.bare, "modules", "inner.git")
	s.git("clone", "-q", "--bare", "--shared", s.bare, inner)
	if err := os.WriteFile(filepath.Join(inner, "objects", "info", "alternates"), []byte("../../../objects\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, sink := runGit(t, GitOptions{Repo: inner})
	sink.revision(t, s.git("rev-parse", "HEAD"))
	_, sink = runGit(t, GitOptions{Repo: inner, Ref: strings.Repeat("a", 40)})
	sink.failure(t, "object not found")
}

// TestGitPipeForARef: a named pipe in the place of a ref is an error, not a
// reader that waits.
func TestGitPipeForARef(t *testing.T) {
	s := newGitSite(t)
	ref := filepath.Join(s.bare, "refs", "heads", "main")
	if err := os.Rename(ref, ref+".away"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(ref, 0o600); err != nil {
		t.Fatal(err)
	}
	g, sink := runGit(t, GitOptions{Repo: s.bare})
	sink.failure(t, "no regular file")
	if err := os.Rename(ref+".away", ref); err != nil {
		t.Fatal(err)
	}
	g.Sync()
	sink.revision(t, s.git("rev-parse", "HEAD"))
}

// TestGitUnproven: what could not be shown to descend, because the server had a
// shallow copy, is looked at again, and taken once it is shown.
func TestGitUnproven(t *testing.T) {
	s := newGitSite(t)
	first := s.git("rev-parse", "HEAD")
	url := s.serve()
	g, sink := runGit(t, GitOptions{Repo: url, Running: func() string { return first }})
	sink.revision(t, first)
	s.commit("second")
	third := s.commit("third")
	s.push()
	away := s.bare + ".away"
	if err := os.Rename(s.bare, away); err != nil {
		t.Fatal(err)
	}
	s.git("clone", "-q", "--bare", "--depth", "1", "file://"+away, s.bare)
	g.Sync()
	sink.refused(t, third, "could not be shown to descend", "looked at again")
	if err := os.RemoveAll(s.bare); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, s.bare); err != nil {
		t.Fatal(err)
	}
	g.Sync()
	if doc := sink.revision(t, third); doc.Refused != nil {
		t.Error(doc.Refused)
	}
}

// TestGitJudgedAgain: a revision says what ran when it was judged, and is judged
// again when something else came to run. It may descend from that, or from the
// last head that was accepted.
func TestGitJudgedAgain(t *testing.T) {
	s := newGitSite(t)
	first := s.git("rev-parse", "HEAD")
	var running atomic.Value
	running.Store(first)
	g, sink := runGit(t, GitOptions{Repo: s.bare, Running: func() string { return running.Load().(string) }})
	sink.revision(t, first)
	s.git("checkout", "-q", "-b", "side")
	side := s.commit("side")
	s.git("checkout", "-q", "main")
	second := s.commit("second")
	s.push()
	for _, follows := range []string{first, side} {
		running.Store(follows)
		g.Sync()
		if doc := sink.revision(t, second); doc.Refused != nil || doc.Follows != follows {
			t.Fatalf("%+v, follows %s", doc.Refused, doc.Follows)
		}
	}
	running.Store(side)
	s.git("reset", "-q", "--hard", first)
	third := s.commit("third")
	s.push()
	sink.refused(t, third, "does not descend from")
}

// TestGitAcceptedHead: a head is proven from the one that was accepted last, at
// the cost of what is new; the proof is not asked for again at the next start.
func TestGitAcceptedHead(t *testing.T) {
	for _, way := range []string{"local", "http"} {
		t.Run(way, func(t *testing.T) {
			s := newGitSite(t)
			first := s.git("rev-parse", "HEAD")
			repo := s.bare
			if way == "http" {
				repo = s.serve()
			}
			accepted := make(chan string, 10)
			opt := GitOptions{Repo: repo, Running: func() string { return first }, OnAccept: func(commit string) { accepted <- commit }}
			g, sink := runGit(t, opt)
			sink.revision(t, first)
			s.commits(9000)
			s.push()
			g.Sync()
			far := s.git("rev-parse", "HEAD")
			if doc := sink.revision(t, far); doc.Refused != nil {
				t.Fatal(doc.Refused)
			}
			if one, two := <-accepted, <-accepted; one != first || two != far {
				t.Errorf("accepted %s and %s", one, two)
			}
			s.commits(2)
			s.push()
			opt.Accepted = far
			start := time.Now()
			_, sink = runGit(t, opt)
			if doc := sink.revision(t, s.git("rev-parse", "HEAD")); doc.Refused != nil {
				t.Fatal(doc.Refused)
			}
			t.Log("proven in", time.Since(start))
		})
	}
}

// commits makes n empty commits.
func (s *gitSite) commits(n int) {
	s.t.Helper()
	var in strings.Builder
	for i := range n {
		fmt.Fprintf(&in, "commit refs/heads/main\ncommitter Ada <ada@example.org> %d +0000\ndata 1\nx\n", 1800000000+i)
		if i == 0 {
			fmt.Fprintf(&in, "from %s\n", s.git("rev-parse", "HEAD"))
		}
	}
	cmd := exec.Command("git", "fast-import", "--quiet", "--force")
	cmd.Dir, cmd.Stdin = s.work, strings.NewReader(in.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("git fast-import: %v\n%s", err, out)
	}
	s.git("reset", "-q", "--hard")
}
