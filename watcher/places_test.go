package watcher

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// The kubelet writes each version of a ConfigMap into a folder of its own and
// swaps the link ..data; what it replaced it then removes.
func TestConfigMapSwap(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "config")
	version := func(name, env string) {
		put(t, root, name+"/base.yaml", "base\n")
		put(t, root, name+"/production.yaml", env)
		link(t, name, filepath.Join(root, "..data"))
	}
	version("..2024_1", "env 1\n")
	for _, file := range []string{"base.yaml", "production.yaml"} {
		must(t, os.Symlink("..data/"+file, filepath.Join(root, file)))
	}
	_, sink := start(t, FilesOptions{Root: root, Settle: short})
	sink.document(t, "production.yaml", "env 1\n")
	for i, name := range []string{"..2024_2", "..2024_3", "..2024_4"} {
		env := "env " + name + "\n"
		version(name, env)
		old := filepath.Join(root, "..2024_"+string(rune('1'+i)))
		must(t, os.RemoveAll(old))
		sink.document(t, "production.yaml", env)
	}
}

// git-sync swaps a link above the directory: /git/current -> worktrees/HASH.
func TestAncestorSwap(t *testing.T) {
	t.Parallel()
	for _, absolute := range []bool{false, true} {
		git := t.TempDir()
		version := func(hash string) {
			put(t, git, "worktrees/"+hash+"/config/base.yaml", "base\n")
			put(t, git, "worktrees/"+hash+"/config/production.yaml", hash)
			target := "worktrees/" + hash
			if absolute {
				target = filepath.Join(git, target)
			}
			link(t, target, filepath.Join(git, "current"))
		}
		version("aaa")
		_, sink := start(t, FilesOptions{Root: filepath.Join(git, "current/config"), Settle: short})
		sink.document(t, "production.yaml", "aaa")
		for _, hash := range []string{"bbb", "ccc"} {
			version(hash)
			sink.document(t, "production.yaml", hash)
		}
		must(t, os.RemoveAll(filepath.Join(git, "worktrees/bbb")))
		put(t, git, "worktrees/ccc/config/production.yaml", "in place\n")
		sink.document(t, "production.yaml", "in place\n")
	}
}

func TestDirectoryReplaced(t *testing.T) {
	t.Parallel()
	root := config(t)
	_, sink := start(t, FilesOptions{Root: root, Settle: short})
	sink.document(t, "production.yaml", "env 1\n")

	put(t, root+".2", "production.yaml", "env 2\n")
	must(t, os.Rename(root, root+".1"))
	must(t, os.Rename(root+".2", root))
	sink.document(t, "production.yaml", "env 2\n")

	must(t, os.RemoveAll(root)) // the file system may give the number again
	put(t, root, "production.yaml", "env 3\n")
	sink.document(t, "production.yaml", "env 3\n")
	put(t, root, "production.yaml", "env 4\n")
	sink.document(t, "production.yaml", "env 4\n")
}

func TestDirectoryVanishesAndComesBack(t *testing.T) {
	t.Parallel()
	for _, inotify := range []bool{true, false} {
		root := config(t)
		away := filepath.Join(filepath.Dir(root), "away")
		f, sink := start(t, FilesOptions{Root: root, Settle: short}, func(f *Files) {
			if !inotify {
				f.newWatch = noInotify
			}
		})
		sink.document(t, "production.yaml", "env 1\n")
		must(t, os.Rename(root, away))
		sink.failure(t, root, "does not exist")
		mode, _, err := f.Status()
		if mode != ModePoll || err == nil {
			t.Errorf("status %s, %v", mode, err)
		}
		stamp := f.Stamp()
		await(t, "two polls without a word", func() bool { return f.Stamp().Sub(stamp) > 2*pollEvery })
		must(t, os.Rename(away, root))
		sink.document(t, "production.yaml", "env 1\n") // the sink is told that all is well
		rename(t, root, "production.yaml", "env 2\n")
		sink.document(t, "production.yaml", "env 2\n")
		if mode, _, err := f.Status(); err != nil || (mode == ModeInotify) != inotify {
			t.Errorf("status %s, %v", mode, err)
		}
	}
}

func TestDirectoryThatComesLate(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "later", "config")
	_, sink := start(t, FilesOptions{Root: root, Settle: short})
	sink.failure(t, root, "does not exist", "--config")
	put(t, root, "production.yaml", "env 1\n")
	sink.document(t, "production.yaml", "env 1\n")
}

func TestLinkToAFileElsewhereInside(t *testing.T) {
	t.Parallel()
	root := config(t)
	put(t, root, "shared/wide.yaml", "wide 1\n")
	put(t, root, "production.yaml", "extends: [wide]\n")
	must(t, os.Mkdir(filepath.Join(root, "templates"), 0o755))
	must(t, os.Symlink("../shared/wide.yaml", filepath.Join(root, "templates/wide.yaml")))
	_, sink := start(t, FilesOptions{Root: root, Settle: short})
	sink.document(t, "templates/wide.yaml", "wide 1\n")
	put(t, root, "shared/wide.yaml", "wide 2\n")
	sink.document(t, "templates/wide.yaml", "wide 2\n")
}

func TestFileBecomesRefusedAndRegularAgain(t *testing.T) {
	t.Parallel()
	root := config(t)
	put(t, root, "base.yaml", "")
	_, sink := start(t, FilesOptions{Root: root, Settle: short})
	sink.document(t, "base.yaml", "")
	must(t, os.Remove(filepath.Join(root, "base.yaml")))
	must(t, os.Symlink("/etc/hostname", filepath.Join(root, "base.yaml")))
	if got := sink.next(t); got.doc.Files[0].Refused == "" {
		t.Errorf("base.yaml %+v, want it refused", got.doc.Files[0])
	}
	link(t, "production.yaml", filepath.Join(root, "base.yaml"))
	sink.document(t, "base.yaml", "env 1\n")
}

// A template that is a mount of its own is polled, whether it was mounted before
// the start or later.
func TestMountedTemplate(t *testing.T) {
	for _, later := range []bool{false, true} {
		root := config(t)
		put(t, root, "production.yaml", "extends: [wide]\n")
		put(t, root, "templates/wide.yaml", "wide 1\n")
		put(t, root, "../source.yaml", "wide 2\n")
		template := filepath.Join(root, "templates", "wide.yaml")
		mount := func() {
			if err := syscall.Mount(filepath.Join(root, "../source.yaml"), template, "", syscall.MS_BIND, ""); err != nil {
				t.Skipf("nothing can be mounted: %v", err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(template, syscall.MNT_DETACH) })
		}
		if !later {
			mount()
		}
		f, sink := start(t, FilesOptions{Root: root, Settle: short})
		first := sink.next(t)
		if later {
			if mode, _, _ := f.Status(); mode != ModeInotify {
				t.Errorf("mode %s before the mount", mode)
			}
			mount()
			first = sink.next(t)
		}
		if text, _ := first.doc.File("templates/wide.yaml"); string(text) != "wide 2\n" {
			t.Errorf("template %q", text)
		}
		await(t, "the template is polled", func() bool { mode, _, _ := f.Status(); return mode == ModePoll })
		must(t, syscall.Unmount(template, syscall.MNT_DETACH))
		sink.document(t, "templates/wide.yaml", "wide 1\n")
		await(t, "the template is watched", func() bool { mode, _, _ := f.Status(); return mode == ModeInotify })
	}
}
