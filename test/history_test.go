package test

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// TestHistoryIsLost removes the history of an agent whose operator had rolled
// back and paused. What was held is not known any more: the agent starts paused
// and ready, says why, and sends nothing until `agent resume`.
func TestHistoryIsLost(t *testing.T) {
	t.Parallel()
	gone := func(t *testing.T, repository string) { ok(t, os.RemoveAll(repository)) }
	for _, c := range []struct {
		name string
		lose func(t *testing.T, repository string)
		// by and reason are those of the pause; "" is any.
		by, reason string
	}{
		{"all is gone", func(t *testing.T, repository string) { loseHistory(t, filepath.Dir(repository)) }, "agent", ""},
		{"the repository is an empty directory, and all else is gone", func(t *testing.T, repository string) {
			loseHistory(t, filepath.Dir(repository))
			ok(t, os.Mkdir(repository, 0o700))
		}, "agent", ""},
		{"it is a file, and all else is gone", func(t *testing.T, repository string) {
			loseHistory(t, filepath.Dir(repository))
			ok(t, os.WriteFile(repository, []byte("no repository"), 0o600))
		}, "agent", ""},
		// What stands beside it may know of the pause.
		{"the repository is gone", gone, "", ""},
		{"its objects are gone", func(t *testing.T, repository string) { gone(t, filepath.Join(repository, "objects")) }, "operator", "night"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newBareRig(t)
			e := newImpostor(t, r.socket)
			r.declare(1024)
			r.agent()
			r.awaitApplied(1024)
			if v, err := r.view(); err != nil || v.Held != nil {
				t.Errorf("a new state directory holds %+v %v", v.Held, err)
			}
			r.declare(2048)
			r.awaitApplied(2048)
			r.order("rollback", "--reason", "night", "--pause")
			r.await("rolled back", func(v view) bool { return v.Held != nil && v.Held.Paused && v.size() == 1024 })
			r.stop()
			c.lose(t, filepath.Join(r.state, "snapshots.git"))

			sent := e.sent()
			r.agent("--drift-interval", "100ms")
			r.lostHistory("after the loss", c.by, c.reason)
			kill(r.running)
			r.agent("--drift-interval", "100ms")
			r.lostHistory("after a kill", c.by, c.reason)
			r.declare(3072)
			r.await("another document", func(v view) bool {
				return v.Attempted.Outcome == record.Held && v.Seen.Revision == v.Attempted.Revision
			})
			r.lostHistory("after an edit", c.by, c.reason)
			if n := e.sent(); n != sent {
				t.Errorf("%d batches were sent while it was paused", n-sent)
			}
			if runs := sizeOf(e.running()); runs != 1024 {
				t.Errorf("the engine runs %d", runs)
			}

			r.order("resume")
			r.awaitApplied(3072)
			r.stop()
			r.agent()
			r.awaitSync(3072)
			if v, err := r.view(); err != nil || v.Held != nil {
				t.Errorf("after a resume and a restart it holds %+v %v", v.Held, err)
			}
		})
	}
}

// loseHistory leaves of a state directory what says that an agent was here, and
// nothing of what it did.
func loseHistory(t *testing.T, state string) {
	t.Helper()
	there, err := os.ReadDir(state)
	ok(t, err)
	for _, e := range there {
		if !slices.Contains([]string{"format", "identity", "lock"}, e.Name()) {
			ok(t, os.RemoveAll(filepath.Join(state, e.Name())))
		}
	}
}

// awaitSync waits until size is applied, by this agent or by one before it.
func (r *rig) awaitSync(size int) {
	r.t.Helper()
	r.await(fmt.Sprintf("in sync on %d", size), func(v view) bool {
		return v.State == apply.StateInSync && v.InSync && v.Ready && v.size() == size
	})
}

// TestHistoryComesBack puts the repository back that was lost: what the operator
// said is in force again, and nothing else.
func TestHistoryComesBack(t *testing.T) {
	t.Parallel()
	needs(t, "git")
	r := newBareRig(t)
	e := newImpostor(t, r.socket)
	r.declare(1024)
	r.agent()
	r.awaitApplied(1024)
	r.declare(2048)
	r.awaitApplied(2048)
	r.order("rollback", "--reason", "night", "--pause")
	r.await("rolled back", func(v view) bool { return v.Held != nil && v.Held.Paused && v.size() == 1024 })
	r.stop()
	whole := func() (all string) {
		for _, args := range [][]string{{"snapshots", "--wide"}, {"export", "--format", "json"}, {"export", "1"}, {"export", "2"}, {"show", "3", "--json"}, {"show", "--values"}} {
			code, out := agent(append(args, "--state", r.state)...)
			if all += out; code != 0 {
				t.Errorf("agent %v: exit %d: %s", args, code, out)
			}
		}
		return all
	}
	before := whole()
	repository, mirror := filepath.Join(r.state, "snapshots.git"), filepath.Join(r.dir, "mirror.git")
	r.git("clone", "-q", "--mirror", repository, mirror)
	loseHistory(t, r.state)
	r.agent()
	r.lostHistory("lost", "agent", "")
	r.stop()
	ok(t, errors.Join(os.RemoveAll(repository), os.Rename(mirror, repository)))

	sent := e.sent()
	r.agent()
	r.lostHistory("there again", "operator", "night")
	r.whole("there again", 3)
	if now := whole(); now != before {
		t.Errorf("the history was\n%s\nand is there again as\n%s", before, now)
	}
	if n := e.sent(); n != sent {
		t.Errorf("%d batches were sent", n-sent)
	}
	r.order("resume")
	r.awaitApplied(2048)
}

// lostHistory holds that the agent is paused because it has no history, or that
// what it has besides says so; by and reason are any if "".
func (r *rig) lostHistory(what, by, reason string) {
	r.t.Helper()
	v := r.await(what+": paused", func(v view) bool {
		return v.State == apply.StateHeld && v.Held != nil && v.Held.Paused && v.Ready && v.Current != nil
	})
	if by != "" && v.Held.By != by || v.Held.Reason == "" || reason != "" && v.Held.Reason != reason || !strings.Contains(v.Reason, v.Held.Reason) || !strings.Contains(v.Hint, "agent resume") || v.InSync || v.Attempted.Outcome != record.Held {
		r.t.Errorf("%s: state %s, reason %q, hint %q, held %+v, attempted %+v", what, v.State, v.Reason, v.Hint, v.Held, v.Attempted)
	}
	if !strings.Contains(v.Text, v.Held.Reason) || !strings.Contains(v.Text, "agent resume") {
		r.t.Errorf("%s: agent status says\n%s", what, v.Text)
	}
	if code, err := r.httpSays("/readyz", nil); code != http.StatusOK || err != nil {
		r.t.Errorf("%s: /readyz is %d %v", what, code, err)
	}
}

// TestFirstStartIsKilled kills an agent in the course of its first start. There
// was no history, so nothing is paused. `make crash` does the same at each
// system call that writes.
func TestFirstStartIsKilled(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	newImpostor(t, r.socket)
	r.declare(1024)
	cut := 0
	for n := range 12 {
		r.state = filepath.Join(r.dir, "state"+string(rune('a'+n)))
		killed := r.agentOn(r.state)
		for begun := time.Now(); ; { // too soon is as good as at any moment; too late is not
			if _, err := os.Stat(r.state); err == nil {
				break
			}
			if time.Since(begun) > 30*time.Second {
				t.Fatal(r.evidence())
			}
		}
		<-time.After(time.Duration(n) * 2 * time.Millisecond)
		kill(killed)
		if _, err := os.Stat(filepath.Join(r.state, "format")); err != nil {
			cut++
		}
		r.agentOn(r.state)
		r.awaitSync(1024)
		if v, err := r.view(); err != nil || v.Held != nil {
			t.Errorf("killed %d ms after its start it holds %+v %v", 2*n, v.Held, err)
		}
		kill(r.running)
	}
	if cut == 0 {
		t.Error("no kill came before the state directory was whole")
	}
}

// unpack unpacks one directory of testdata/format1.tar.gz.
func unpack(t *testing.T, name, to string) {
	t.Helper()
	f, err := os.Open("testdata/format1.tar.gz")
	ok(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	ok(t, err)
	found := false
	for archive := tar.NewReader(z); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		ok(t, err)
		rest, ours := strings.CutPrefix(h.Name, name+"/")
		if !ours {
			continue
		}
		found = true
		path := filepath.Join(to, rest)
		if h.Typeflag == tar.TypeDir {
			ok(t, os.MkdirAll(path, os.FileMode(h.Mode)))
			continue
		}
		text, err := io.ReadAll(archive)
		ok(t, err)
		ok(t, os.WriteFile(path, text, os.FileMode(h.Mode)))
	}
	if !found {
		t.Fatalf("no %s in testdata/format1.tar.gz", name)
	}
}

// TestUpgrade starts the agent on what the release before it left: state
// directories with a hold by digests and with a pause (testdata/format1.sh).
// Both are in force, and nothing is set aside.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	needs(t, "git")
	for _, c := range []struct {
		name, reason string
		records      int
	}{{"held", "too slow", 3}, {"paused", "night", 2}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newBareRig(t)
			e := newImpostor(t, r.socket)
			unpack(t, c.name, r.state)
			before := r.git("rev-parse", "production")
			r.declare(2048)
			for _, when := range []string{"after the upgrade", "after a restart"} {
				r.agent("--instance", "fixture")
				v := r.await(when+": held", func(v view) bool {
					return v.State == apply.StateHeld && v.Attempted != nil && v.Attempted.Outcome == record.Held && v.Ready && v.size() == 1024
				})
				if v.Held.By != "operator" || v.Held.Reason != c.reason || v.Held.Paused != (c.name == "paused") || v.Held.Since == 0 {
					t.Errorf("%s: held %+v", when, v.Held)
				}
				var raw struct{ Status any }
				if _, err := r.httpSays("/v1/config/status", &raw); err != nil {
					t.Fatal(err)
				}
				held := heldIn(t, raw.Status)
				for _, member := range []string{"paused", "by", "reason", "since", "requester", "entries", "digests"} {
					if _, there := held[member]; !there {
						t.Errorf("%s: status.held has no %s: %v", when, member, held)
					}
				}
				digests := heldIn(t, decoded(t, r.git("show", "production:snapshot.json")))["digests"].([]any)
				if len(held["entries"].([]any)) != len(digests) || len(held["digests"].([]any)) != len(digests) || (c.name == "held") != (len(digests) == 1) {
					t.Errorf("%s: status.held is %v, in git are the digests %v", when, held, digests)
				}
				r.intact(when, c.records)
				if now := r.git("rev-parse", "production"); now != before {
					t.Errorf("%s: the head was %s and is %s", when, before, now)
				}
				if runs := sizeOf(e.running()); runs != 1024 {
					t.Errorf("%s: the engine runs %d", when, runs)
				}
				r.stop()
			}
			r.agent("--instance", "fixture")
			r.await("held", func(v view) bool { return v.State == apply.StateHeld && v.Ready })
			if c.name == "held" {
				r.declare(3072) // what is held is another
				r.awaitApplied(3072)
				if v, err := r.view(); err != nil || v.Held != nil {
					t.Errorf("after another document it holds %+v %v", v.Held, err)
				}
				r.order("rollback", "1", "--reason", "as it was")
				r.await("rolled back", func(v view) bool { return v.State == apply.StateHeld && v.size() == 1024 })
			}
			r.order("resume")
			r.awaitApplied(map[string]int{"held": 3072, "paused": 2048}[c.name])
		})
	}
}

// TestHoldOfANewerAgent starts the agent on a record whose hold says something
// that it does not know: nothing may be tried, so it counts as paused.
func TestHoldOfANewerAgent(t *testing.T) {
	needs(t, "git")
	r := newBareRig(t)
	e := newImpostor(t, r.socket)
	unpack(t, "held", r.state)
	old := strings.TrimSpace(r.git("show", "production:snapshot.json"))
	text := strings.Replace(old, `"paused": false`, `"paused": false, "unless": "Sunday"`, 1)
	if text == old {
		t.Fatal("the fixture holds nothing")
	}
	ok(t, os.WriteFile(filepath.Join(r.dir, "snapshot.json"), []byte(text+"\n"), 0o644))
	blob := strings.TrimSpace(r.git("hash-object", "-w", filepath.Join(r.dir, "snapshot.json")))
	index := filepath.Join(r.dir, "index")
	t.Setenv("GIT_INDEX_FILE", index)
	r.git("read-tree", "production")
	r.git("update-index", "--cacheinfo", "100644,"+blob+",snapshot.json")
	tree := strings.TrimSpace(r.git("write-tree"))
	commit := strings.Replace(r.git("cat-file", "commit", "production"), "tree "+strings.TrimSpace(r.git("rev-parse", "production^{tree}")), "tree "+tree, 1)
	ok(t, os.WriteFile(filepath.Join(r.dir, "commit"), []byte(commit), 0o644))
	head := strings.TrimSpace(r.git("hash-object", "-w", "-t", "commit", filepath.Join(r.dir, "commit")))
	for _, ref := range []string{"refs/heads/production", "refs/dtesn/applied/production"} {
		r.git("update-ref", ref, head)
	}
	ok(t, os.Remove(filepath.Join(r.state, "applied"))) // a copy of what was there

	r.declare(3072) // nobody holds it
	r.agent("--instance", "fixture")
	v := r.await("paused", func(v view) bool {
		return v.State == apply.StateHeld && v.Attempted != nil && v.Attempted.Outcome == record.Held && v.Ready && v.size() == 1024
	})
	if !v.Held.Paused || v.Held.By != "operator" || !strings.Contains(v.Held.Reason, "too slow") || !strings.Contains(v.Held.Reason, "unless") {
		t.Errorf("held %+v", v.Held)
	}
	if sizeOf(e.running()) != 1024 {
		t.Errorf("the engine runs %v", e.running())
	}
	r.intact("a hold of a newer agent", 3)
	r.order("resume")
	r.awaitApplied(3072)
}
