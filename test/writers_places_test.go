package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A place is a directory that is not just a directory: how it is laid out, and
// how those who own it change it. Each step declares the state of its number,
// which must arrive; a step without a text changes nothing.
type place struct {
	name string
	// make lays out state 0 below s.root, which it may set anew.
	make  func(s *site)
	steps []step
}

type step struct {
	name string
	do   func(s *site, text string)
}

var places = []place{
	{
		name: "a linked file",
		make: func(s *site) {
			s.put("sets/blue.yaml", text(numbered(0), 0))
			s.relink("sets/blue.yaml", "production.yaml")
		},
		steps: []step{
			{"target rewritten", func(s *site, text string) { s.put("sets/blue.yaml", text) }},
			{"target replaced by a rename", func(s *site, text string) { s.rename("sets/blue.yaml", text) }},
			{"link swapped", func(s *site, text string) {
				s.put("sets/green.yaml", text)
				s.relink("sets/green.yaml", "production.yaml")
			}},
			{"new target rewritten", func(s *site, text string) { s.put("sets/green.yaml", text) }},
			{"link removed and made again", func(s *site, text string) {
				s.put("sets/red.yaml", text)
				s.sh(`ln -sf sets/red.yaml production.yaml`)
			}},
			{"target removed and made again", func(s *site, text string) {
				s.sh(`rm sets/red.yaml`)
				s.put("sets/red.yaml", text)
			}},
			{"folder of the target replaced", func(s *site, text string) {
				s.put("sets.new/red.yaml", text)
				s.sh(`mv sets sets.old; mv sets.new sets`)
			}},
			{"a file again", func(s *site, text string) { s.rename("production.yaml", text) }},
			{"written in place", func(s *site, text string) { s.put("production.yaml", text) }},
		},
	},
	{
		name: "a ConfigMap volume",
		make: func(s *site) {
			s.sh(`rm -r "$PWD"/*`)
			s.kubelet(map[string]string{"base.yaml": baseText, "production.yaml": text(numbered(0), 0)})
		},
		steps: []step{
			{"a new version", func(s *site, text string) {
				s.kubelet(map[string]string{"base.yaml": baseText, "production.yaml": text})
			}},
			{"and another", func(s *site, text string) {
				s.kubelet(map[string]string{"base.yaml": baseText, "production.yaml": text})
			}},
			{"with a folder that is new", func(s *site, text string) {
				s.kubelet(map[string]string{"base.yaml": baseText, "production.yaml": extending(text), "templates/wide.yaml": "parameters:\n  cache_ttl_seconds: 99\n"})
			}},
			{"only the folder's file changes", func(s *site, text string) {
				first, last, _ := strings.Cut(extending(text), "  cache_ttl_seconds")
				ttl, last, _ := strings.Cut(last, "\n")
				s.kubelet(map[string]string{"base.yaml": baseText, "production.yaml": first + last, "templates/wide.yaml": "parameters:\n  cache_ttl_seconds" + ttl + "\n"})
			}},
			{"and without it", func(s *site, text string) {
				s.kubelet(map[string]string{"base.yaml": baseText, "production.yaml": text})
			}},
		},
	},
	{
		name: "git-sync",
		make: func(s *site) {
			s.sh(`git init -q -b main ../repo`)
			s.commit(text(numbered(0), 0))
			s.sh(`git clone -q --bare ../repo ../git`)
			s.root = filepath.Join(filepath.Dir(s.root), "git", "current", "config")
			s.gitSync()
		},
		steps: []step{
			{"a commit", func(s *site, text string) { s.commit(text); s.gitSync() }},
			{"and another", func(s *site, text string) { s.commit(text); s.gitSync() }},
			{"written in place", func(s *site, text string) { s.put("production.yaml", text) }},
			{"and a third", func(s *site, text string) { s.commit(text); s.gitSync() }},
		},
	},
	{
		name: "a git work tree",
		make: func(s *site) {
			s.put("templates/wide.yaml", "parameters:\n  max_membrane_depth: 2\n")
			s.sh(`git init -q -b blue; git add .; git -c user.name=a -c user.email=a@b commit -qm 0`)
		},
		steps: []step{
			{"checkout of a branch", func(s *site, text string) { s.branch("green", extending(text)) }},
			{"and of another, without a template", func(s *site, text string) {
				s.sh(`git rm -q -r --cached templates`)
				s.branch("red", text)
			}},
			{"reset --hard", func(s *site, text string) {
				s.branch("grey", text)
				s.sh(`git checkout -q red; git reset -q --hard grey`)
			}},
			{"stash and pop", func(s *site, text string) {
				s.put("production.yaml", text)
				s.sh(`git -c user.name=a -c user.email=a@b stash -q; git stash pop -q`)
			}},
		},
	},
	{
		name: "a directory that is replaced",
		make: func(*site) {},
		steps: []step{
			{"renamed away, a new one in", func(s *site, text string) {
				s.copyAs("config.new", text)
				s.sh(`cd ..; mv config config.old; mv config.new config`)
			}},
			{"written in place", func(s *site, text string) { s.put("production.yaml", text) }},
			{"removed and made again", func(s *site, text string) {
				s.copyAs("config.new", text)
				s.sh(`cd ..; rm -rf config; cp -r config.new config`)
			}},
			{"gone for a while", func(s *site, text string) {
				s.sh(`cd ..; rm -rf config`)
				s.until("the error is told", arrival, func(now *siteStatus) bool { return strings.Contains(now.Source.LastError, "does not exist") })
				s.put("base.yaml", baseText)
				s.put("production.yaml", text)
			}},
			{"becomes a link", func(s *site, text string) {
				s.copyAs("elsewhere", text)
				s.sh(`cd ..; mv config config.older; ln -s elsewhere config`)
			}},
			{"written in place behind the link", func(s *site, text string) { s.put("production.yaml", text) }},
			{"link swapped", func(s *site, text string) {
				s.copyAs("elsewhere2", text)
				s.sh(`cd ..; ln -s elsewhere2 link; mv -T link config`)
			}},
		},
	},
	{
		name: "a directory above that is replaced",
		make: func(s *site) {
			s.sh(`mkdir -p ../a/b; mv ../config ../a/b/config`)
			s.root = filepath.Join(filepath.Dir(s.root), "a", "b", "config")
		},
		steps: []step{
			{"renamed away, a new one in", func(s *site, text string) {
				s.put(filepath.Join(s.root, "../../../a2/b/config/base.yaml"), baseText)
				s.put(filepath.Join(s.root, "../../../a2/b/config/production.yaml"), text)
				s.sh(`cd ../../..; mv a a1; mv a2 a`)
			}},
			{"written in place", func(s *site, text string) { s.put("production.yaml", text) }},
			{"removed and made again", func(s *site, text string) {
				s.sh(`cd ../../..; rm -rf a`)
				s.put("base.yaml", baseText)
				s.put("production.yaml", text)
			}},
			{"written in place again", func(s *site, text string) { s.put("production.yaml", text) }},
		},
	},
	{
		name: "a file that comes and goes",
		make: func(*site) {},
		steps: []step{
			{"removed, noticed, made again", func(s *site, text string) {
				s.sh(`rm production.yaml`)
				s.until("the missing file is told", arrival, func(now *siteStatus) bool { return now.State == "invalid" })
				s.put("production.yaml", text)
			}},
			{"renamed away, noticed, renamed back", func(s *site, text string) {
				s.sh(`mv base.yaml ..`)
				s.put("production.yaml", strings.Replace(text, "bseries_max_order", "#", 1))
				s.until("the missing value is told", arrival, func(now *siteStatus) bool { return now.State == "invalid" })
				s.put("production.yaml", text) // first: base.yaml with the file before would be a valid state
				s.sh(`mv ../base.yaml .`)
			}},
			{"a link that leaves, noticed, a file again", func(s *site, text string) {
				s.put("../outside.yaml", text)
				s.sh(`ln -sf ../outside.yaml production.yaml`)
				s.until("the link is told", arrival, func(now *siteStatus) bool { return now.State == "invalid" })
				s.rename("production.yaml", text)
			}},
		},
	},
	{
		name: "a directory mounted elsewhere too",
		make: func(s *site) {
			s.sh(`mkdir ../other`)
			s.mount(s.root, filepath.Join(s.root, "../other"), "", syscall.MS_BIND)
		},
		steps: []step{
			{"written there", func(s *site, text string) { s.put("../other/production.yaml", text) }},
			{"renamed there", func(s *site, text string) {
				s.put("../other/.x", text)
				s.sh(`cd ../other; mv .x production.yaml`)
			}},
		},
	},
	{
		name: "a volume that is mounted anew",
		make: func(s *site) {
			s.sh(`rm *`)
			s.volume(text(numbered(0), 0))
		},
		steps: []step{
			{"unmounted, noticed, mounted again", func(s *site, text string) {
				ok(s.t, syscall.Unmount(s.root, 0))
				s.until("the empty mount point is told", arrival, func(now *siteStatus) bool { return now.State == "invalid" })
				s.volume(text)
			}},
			{"written in place", func(s *site, text string) { s.put("production.yaml", text) }},
			{"another mounted over it", func(s *site, text string) { s.volume(text) }},
			{"written in place there", func(s *site, text string) { s.put("production.yaml", text) }},
			{"that one unmounted lazily, and the one below written", func(s *site, text string) {
				ok(s.t, syscall.Unmount(s.root, syscall.MNT_DETACH))
				s.put("production.yaml", text)
			}},
			{"templates mounted", func(s *site, text string) {
				s.sh(`mkdir templates`)
				s.rename("production.yaml", strings.Replace(extending(text), "  max_membrane_depth: 2\n", "", 1))
				s.until("the missing template is told", arrival, func(now *siteStatus) bool { return now.State == "invalid" })
				s.mount("tmpfs", filepath.Join(s.root, "templates"), "tmpfs", 0)
				s.put("templates/wide.yaml", "parameters:\n  max_membrane_depth: 2\n")
			}},
		},
	},
}

// TestWritersPlaces does to each place what its owners do. Once a second is
// often enough for what inotify does not tell of, mounts among it.
func TestWritersPlaces(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	defer all.Wait()
	for _, p := range places {
		atOnce(&all, t, p.name, func(t *testing.T) {
			s := newSite(t)
			p.make(s)
			s.start(0, nil)
			s.mode("inotify")
			for n, step := range p.steps {
				text := s.declare(n + 1)
				step.do(s, text)
				s.t.Logf("%s: arrived after %s", step.name, s.await(n+1))
			}
			s.onlyWhole(len(p.steps) + 1)
		})
	}
}

// extending is text with a template.
func extending(text string) string {
	return strings.Replace(text, "parameters:", "extends: [wide]\nparameters:", 1)
}

// sh runs a script in the site's directory.
func (s *site) sh(script string) {
	s.t.Helper()
	sh(s.t, s.root, script, nil)
}

// relink makes or swaps a link at once.
func (s *site) relink(target, path string) {
	s.t.Helper()
	ok(s.t, os.Symlink(target, filepath.Join(s.root, path+"_tmp")))
	ok(s.t, os.Rename(filepath.Join(s.root, path+"_tmp"), filepath.Join(s.root, path)))
}

// copyAs makes a whole directory beside the site's that declares text.
func (s *site) copyAs(name, text string) {
	s.t.Helper()
	s.put("../"+name+"/base.yaml", baseText)
	s.put("../"+name+"/production.yaml", text)
}

// kubelet writes a version of a ConfigMap volume in the order of the kubelet's
// AtomicWriter (kubernetes/pkg/volume/util/atomic_writer.go): the files into a
// folder with the time in its name, a link to it renamed over ..data, links for
// names that are new, those that are gone removed, and the old folder.
func (s *site) kubelet(files map[string]string) {
	s.t.Helper()
	old, _ := os.Readlink(filepath.Join(s.root, "..data"))
	dir, err := os.MkdirTemp(s.root, time.Now().UTC().Format("..2006_01_02_15_04_05."))
	ok(s.t, err)
	ok(s.t, os.Chmod(dir, 0o755))
	visible := map[string]bool{}
	for path, text := range files {
		s.put(filepath.Join(dir, path), text)
		name, _, _ := strings.Cut(path, "/")
		visible[name] = true
	}
	s.relink(filepath.Base(dir), "..data")
	for name := range visible {
		if _, err := os.Readlink(filepath.Join(s.root, name)); err != nil {
			ok(s.t, os.Symlink("..data/"+name, filepath.Join(s.root, name)))
		}
	}
	entries, err := os.ReadDir(s.root)
	ok(s.t, err)
	for _, e := range entries {
		if !visible[e.Name()] && !strings.HasPrefix(e.Name(), "..") {
			ok(s.t, os.Remove(filepath.Join(s.root, e.Name())))
		}
	}
	if old != "" {
		ok(s.t, os.RemoveAll(filepath.Join(s.root, old)))
	}
}

// commit commits text to the repository that gitSync syncs from.
func (s *site) commit(text string) {
	s.t.Helper()
	repo := filepath.Join(filepath.Dir(s.state), "repo")
	s.put(filepath.Join(repo, "config/base.yaml"), baseText)
	s.put(filepath.Join(repo, "config/production.yaml"), text)
	sh(s.t, repo, `git add .; git -c user.name=a -c user.email=a@b commit -qm change`, nil)
}

// gitSync does what git-sync does: fetch, a work tree with the commit as its
// name, a relative link renamed over the published one, the old tree removed.
func (s *site) gitSync() {
	s.t.Helper()
	sh(s.t, filepath.Join(filepath.Dir(s.state), "git"), `
		git fetch -q origin main
		hash=$(git rev-parse FETCH_HEAD)
		old=$(readlink current || true)
		git worktree add -q --force --detach --no-checkout .worktrees/$hash $hash
		git -C .worktrees/$hash reset -q --hard $hash
		ln -s .worktrees/$hash tmp-link
		mv -T tmp-link current
		[ -z "$old" ] || rm -rf "$old"
		git worktree prune`, nil)
}

// branch commits text on a new branch without touching the work tree, and
// checks it out.
func (s *site) branch(name, text string) {
	s.t.Helper()
	s.put("../blob", text)
	s.sh(fmt.Sprintf(`
		blob=$(git hash-object -w ../blob)
		git update-index --cacheinfo 100644,$blob,production.yaml
		commit=$(git -c user.name=a -c user.email=a@b commit-tree -p HEAD -m %[1]s $(git write-tree))
		git branch %[1]s $commit
		git read-tree HEAD
		git checkout -q -f %[1]s`, name))
}

// mount mounts until the test ends; volume mounts a file system in memory over
// the site's directory, with a configuration in it.
func (s *site) mount(source, target, kind string, flags uintptr, options ...string) {
	s.t.Helper()
	needsRoot(s.t)
	if err := syscall.Mount(source, target, kind, flags, strings.Join(options, ",")); err != nil {
		s.t.Skipf("nothing can be mounted: %v", err)
	}
	s.t.Cleanup(func() { _ = syscall.Unmount(target, syscall.MNT_DETACH) })
}

func (s *site) volume(text string) {
	s.t.Helper()
	s.mount("tmpfs", s.root, "tmpfs", 0)
	s.put("base.yaml", baseText)
	s.put("production.yaml", text)
}
