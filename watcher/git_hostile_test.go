package watcher

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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

// TestGitLyingSize: a loose object that inflates to more than it declares, or that has no
// header, takes no memory.
func TestGitLyingSize(t *testing.T) {
	for name, header := range map[string]string{"a small size": "commit 200\x00", "no header": "", "an endless size": "commit 1" + strings.Repeat("1", 1<<20)} {
		s := newGitSite(t)
		first := s.git("rev-parse", "HEAD")
		g, sink := runGit(t, GitOptions{Repo: s.bare})
		sink.revision(t, first)
		var z bytes.Buffer
		w := zlib.NewWriter(&z)
		_, _ = w.Write([]byte(header))
		zeros := make([]byte, 1<<20)
		for range 64 {
			_, _ = w.Write(zeros)
		}
		_ = w.Close()
		hash := strings.Repeat("cd", 20)
		must(t, os.MkdirAll(filepath.Join(s.bare, "objects", "cd"), 0o755))
		must(t, os.WriteFile(filepath.Join(s.bare, "objects", "cd", hash[2:]), z.Bytes(), 0o644))
		rename(t, s.bare, "refs/heads/main", hash+"\n")
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		g.Sync()
		sink.failure(t, hash)
		runtime.ReadMemStats(&after)
		if grown := (after.TotalAlloc - before.TotalAlloc) >> 20; grown > 30 {
			t.Errorf("%s: it allocated %d MiB", name, grown)
		}
	}
}

// TestGitRefsAsGitReadsThem: what git takes for a ref is one.
func TestGitRefsAsGitReadsThem(t *testing.T) {
	s := newGitSite(t)
	head := s.git("rev-parse", "HEAD")
	main := filepath.Join(s.bare, "refs", "heads", "main")
	must(t, os.WriteFile(filepath.Join(s.bare, "refs", "heads", "other"), []byte(head+"\n"), 0o644))
	for _, text := range []string{head + "\t\n", head + " \n", "ref:refs/heads/other\n", "ref:\t refs/heads/other \n"} {
		must(t, os.WriteFile(main, []byte(text), 0o644))
		if got := s.git("--git-dir", s.bare, "rev-parse", "main"); got != head {
			t.Errorf("git reads %q as %s", text, got)
		}
		_, sink := runGit(t, GitOptions{Repo: s.bare})
		sink.revision(t, head)
	}
	must(t, os.Remove(main))
	packed := strings.Repeat("e", 40) + " refs/heads/x refs/heads/main\n" + head + " refs/heads/main\n"
	must(t, os.WriteFile(filepath.Join(s.bare, "packed-refs"), []byte(packed), 0o644))
	_, sink := runGit(t, GitOptions{Repo: s.bare})
	sink.revision(t, head)
}

// TestGitBorrowedInACircle: object directories that lend to each other in a
// circle are read once each, as git does.
func TestGitBorrowedInACircle(t *testing.T) {
	s := newGitSite(t)
	other := filepath.Join(filepath.Dir(s.bare), "other.git")
	s.git("clone", "-q", "--bare", "--shared", s.bare, other)
	must(t, os.WriteFile(filepath.Join(s.bare, "objects", "info", "alternates"), []byte("../objects\n"+other+"/objects/\n"), 0o644))
	for _, repo := range []string{s.bare, other} {
		_, sink := runGit(t, GitOptions{Repo: repo})
		sink.revision(t, s.git("rev-parse", "HEAD"))
		_, sink = runGit(t, GitOptions{Repo: repo, Ref: strings.Repeat("a", 40)})
		sink.failure(t, "object not found")
	}
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

// TestGitSymbolicRefs: a symbolic ref that leads out of refs/, or round in a
// circle, is an error, and nothing above the repository is watched for it.
func TestGitSymbolicRefs(t *testing.T) {
	for _, to := range []string{"refs/..", "refs/../../x", "/etc/passwd", "refs/heads/main", "refs/heads//other", "HEAD"} {
		s := newGitSite(t)
		head := s.git("rev-parse", "HEAD")
		must(t, os.WriteFile(filepath.Join(s.bare, "refs", "heads", "main"), []byte("ref: "+to+"\n"), 0o644))
		g, sink := runGit(t, GitOptions{Repo: s.bare})
		sink.failure(t, "refs/heads/main", "it leads nowhere")
		rename(t, s.bare, "refs/heads/main", head+"\n")
		g.Sync()
		sink.revision(t, head)
	}
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
			if got := <-sink; got.err != nil || got.doc.Revision() != far || got.doc.Refused != nil { // the race detector makes it slow
				t.Fatalf("%+v, %v", got.doc, got.err)
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

// TestGitAsGitReadsIt: what git reads is read, wherever its parts are.
func TestGitAsGitReadsIt(t *testing.T) {
	for name, change := range map[string]func(s *gitSite) error{
		"a pack without an index": func(s *gitSite) error {
			s.git("-C", s.bare, "repack", "-q", "-a", "-d")
			return os.WriteFile(filepath.Join(s.bare, "objects", "pack", "pack-"+strings.Repeat("0a", 20)+".pack"), []byte("PACK"), 0o644)
		},
		"objects elsewhere": func(s *gitSite) error {
			away := filepath.Join(filepath.Dir(s.bare), "away")
			return errors.Join(os.Rename(filepath.Join(s.bare, "objects"), away), os.Symlink(away, filepath.Join(s.bare, "objects")))
		},
		"packs elsewhere": func(s *gitSite) error {
			s.git("-C", s.bare, "repack", "-q", "-a", "-d")
			away := filepath.Join(filepath.Dir(s.bare), "away")
			return errors.Join(os.Rename(filepath.Join(s.bare, "objects", "pack"), away), os.Symlink(away, filepath.Join(s.bare, "objects", "pack")))
		},
		"refs and config elsewhere": func(s *gitSite) error {
			away := filepath.Join(filepath.Dir(s.bare), "away")
			return errors.Join(os.Mkdir(away, 0o755), os.Rename(filepath.Join(s.bare, "refs"), filepath.Join(away, "refs")),
				os.Symlink("../away/refs", filepath.Join(s.bare, "refs")), os.Rename(filepath.Join(s.bare, "config"), filepath.Join(away, "config")),
				os.Symlink("../away/config", filepath.Join(s.bare, "config")))
		},
		"objects that are lent from a directory of another name": func(s *gitSite) error {
			lender := filepath.Join(filepath.Dir(s.bare), "lender")
			return errors.Join(os.Rename(filepath.Join(s.bare, "objects"), lender), os.MkdirAll(filepath.Join(s.bare, "objects", "info"), 0o755),
				os.WriteFile(filepath.Join(s.bare, "objects", "info", "alternates"), []byte(lender+"\n"), 0o644))
		},
		"a comment": func(s *gitSite) error {
			return add(filepath.Join(s.bare, "config"), "[extensions]\n\t# objectFormat = sha256\n\tworktreeConfig = true ; refStorage = reftable\n")
		},
		"a format that is the usual one": func(s *gitSite) error {
			return add(filepath.Join(s.bare, "config"), "[core]\n\trepositoryFormatVersion = 1\n[extensions]\n\tobjectFormat = \"sha1\"\n")
		},
		"bytes that are no UTF-8": func(s *gitSite) error {
			return add(filepath.Join(s.bare, "config"), "[user]\n\tname = Andr\xe9\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newGitSite(t)
			must(t, change(s))
			_, sink := runGit(t, GitOptions{Repo: s.bare})
			sink.revision(t, s.git("-C", s.bare, "rev-parse", "main"))
		})
	}
}

// add adds text to the end of a file.
func add(path, text string) error {
	old, err := os.ReadFile(path)
	return errors.Join(err, os.WriteFile(path, append(old, text...), 0o644))
}

// TestGitFormats: a format that cannot be read is named.
func TestGitFormats(t *testing.T) {
	s := newGitSite(t)
	other := filepath.Join(t.TempDir(), "sha256.git")
	s.git("init", "-q", "--bare", "-b", "main", "--object-format=sha256", other)
	_, sink := runGit(t, GitOptions{Repo: other})
	sink.failure(t, "extensions.objectformat sha256 is not supported", "sha1, files")
	must(t, add(filepath.Join(s.bare, "config"), "[EXTENSIONS] refStorage = reftable\n"))
	_, sink = runGit(t, GitOptions{Repo: s.bare})
	sink.failure(t, "extensions.refstorage reftable is not supported")
}

// TestGitPipeForAnObject: a named pipe in the place of an object, a pack or an
// index is an error, not a reader that waits.
func TestGitPipeForAnObject(t *testing.T) {
	for _, suffix := range []string{"", ".pack", ".idx"} {
		t.Run("object"+suffix, func(t *testing.T) {
			t.Parallel()
			s := newGitSite(t)
			head := s.git("rev-parse", "HEAD")
			path := filepath.Join(s.bare, "objects", head[:2], head[2:])
			if suffix != "" {
				s.git("-C", s.bare, "repack", "-q", "-a", "-d")
				found, err := filepath.Glob(filepath.Join(s.bare, "objects", "pack", "*"+suffix))
				must(t, err)
				path = found[0]
			}
			must(t, os.Rename(path, path+".away"))
			must(t, syscall.Mkfifo(path, 0o600))
			g, sink := runGit(t, GitOptions{Repo: s.bare})
			sink.failure(t, "no regular file", filepath.Base(path))
			if _, _, err := g.Status(); err == nil {
				t.Error("the status has no error")
			}
			must(t, os.Rename(path+".away", path))
			g.Sync()
			sink.revision(t, head)
		})
	}
}

// TestGitBranchBelowATag: a branch whose name goes on where a tag's ends is read.
func TestGitBranchBelowATag(t *testing.T) {
	s := newGitSite(t)
	s.git("-C", s.bare, "tag", "release", "main")
	s.git("-C", s.bare, "branch", "release/1.0", "main")
	_, sink := runGit(t, GitOptions{Repo: s.bare, Ref: "release/1.0"})
	sink.revision(t, s.git("rev-parse", "HEAD"))
}

// TestGitRewoundBeforeItRuns: what was accepted last counts also where nothing of the
// repository runs.
func TestGitRewoundBeforeItRuns(t *testing.T) {
	s := newGitSite(t)
	first := s.git("rev-parse", "HEAD")
	s.git("checkout", "-q", "--orphan", "other")
	orphan := s.commit("orphan")
	s.git("push", "-q", "-f", s.bare, "other:main")
	_, sink := runGit(t, GitOptions{Repo: s.bare, Accepted: first})
	sink.refused(t, orphan, "does not descend from "+first[:12]+", which was accepted last")
}

// TestGitUnprovenByAShallowCopy: a server whose copy has what was accepted, and a gap
// behind its newest commit, proves nothing: it is looked at again.
func TestGitUnprovenByAShallowCopy(t *testing.T) {
	s := newGitSite(t)
	first := s.git("rev-parse", "HEAD")
	g, sink := runGit(t, GitOptions{Repo: s.serve(), Running: func() string { return first }})
	sink.revision(t, first)
	s.commit("second")
	third := s.commit("third")
	s.git("-C", s.bare, "fetch", "-q", "--depth", "1", "file://"+s.work, "+main:main")
	g.Sync()
	sink.refused(t, third, "could not be shown to descend", "looked at again")
	s.git("-C", s.bare, "fetch", "-q", "--unshallow", "file://"+s.work, "+main:main")
	g.Sync()
	if doc := sink.revision(t, third); doc.Refused != nil {
		t.Error(doc.Refused)
	}
}

// TestGitLargeTree: a tree of some MiB is read from a pack as well.
func TestGitLargeTree(t *testing.T) {
	s := newGitSite(t)
	blob := s.git("hash-object", "-w", "config/base.yaml")
	var index strings.Builder
	for i := range 110000 {
		fmt.Fprintf(&index, "100644 %s\t%060d\n", blob, i)
	}
	cmd := exec.Command("git", "update-index", "--index-info")
	cmd.Dir, cmd.Stdin = s.work, strings.NewReader(index.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.git("commit", "-q", "-m", "large")
	s.push()
	s.git("-C", s.bare, "gc", "-q", "--prune=now")
	_, sink := runGit(t, GitOptions{Repo: s.bare, Running: func() string { return s.git("rev-parse", "HEAD~1") }})
	sink.revision(t, s.git("rev-parse", "HEAD"))
}
