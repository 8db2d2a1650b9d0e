package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dtesn-agent/schema"
)

// A program writes $F from $NEW, which holds the whole text; $D is the
// configuration directory, $AWAY a directory on another file system.
type program struct {
	name, script string
	needs        []string
}

var programs = []program{
	{name: "cp", script: `cp "$NEW" "$F"`},
	{name: "cp, removing first", script: `cp --remove-destination "$NEW" "$F"`},
	{name: "mv", script: `cp "$NEW" "$D/.x"; mv "$D/.x" "$F"`},
	{name: "mv from another file system", script: `cp "$NEW" "$AWAY/x"; mv -f "$AWAY/x" "$F"`},
	{name: "install", script: `install -m 644 "$NEW" "$F"`},
	{name: "a hard link in its place", script: `cp "$NEW" "$D/.x"; ln -f "$D/.x" "$F"; rm "$D/.x"`},
	{name: "redirection", script: `cat "$NEW" > "$F"`},
	{name: "tee", script: `tee "$F" < "$NEW" > /dev/null`},
	{name: "dd", script: `dd if="$NEW" of="$F" bs=512 conv=fsync status=none`},
	{name: "truncate and append", script: `: > "$F"; split -b 10000 --filter='cat >> "$F"' "$NEW"`},
	{name: "delete and recreate", script: `rm "$F"; cp "$NEW" "$F"`},
	{name: "sed -i", script: `sed -i -e "1r $NEW" -e d "$F"`},
	{name: "sed -i with a backup", script: `sed -i.bak -e "1r $NEW" -e d "$F"`},
	{name: "perl -i", script: `perl -i -ne 'if ($. == 1) { open N, $ENV{NEW}; print while <N> }' "$F"`, needs: []string{"perl"}},
	{name: "python", script: `python3 -c 'import os; open(os.environ["F"], "w").write(open(os.environ["NEW"]).read())'`, needs: []string{"python3"}},
	{name: "ed", script: `printf '%s\n' '1,$d' "0r $NEW" w q | ed -s "$F"`, needs: []string{"ed"}},
	vim("vim, backupcopy auto", "backupcopy=auto writebackup"),
	vim("vim, backupcopy yes", "backupcopy=yes writebackup"),
	vim("vim, backupcopy no", "backupcopy=no writebackup"),
	withBackup(vim("vim, backup kept", "backupcopy=no backup")),
	vim("vim, no backup", "backupcopy=auto nowritebackup nobackup"),
	vim("vim, no backup, copy", "backupcopy=yes nowritebackup nobackup"),
	vim("vim, no backup, no sync", "nowritebackup nofsync"),
	withBackup(emacs("emacs, which renames to file~ first", "(setq make-backup-files t)")),
	withBackup(emacs("emacs, backup by copying", "(setq backup-by-copying t)")),
	emacs("emacs, no backup", "(setq make-backup-files nil)"),
	emacs("emacs, file-precious-flag", "(setq file-precious-flag t)"),
}

// Neither vim nor emacs makes backups of what lies below /tmp, as these files
// do, if it is not told to.
const (
	vimBackup   = `set backupskip=`
	emacsBackup = `(setq backup-enable-predicate (lambda (_) t))`
)

func vim(name, options string) program {
	return program{name: name, needs: []string{"vim"}, script: `rm -f "$F~"; vim -Nu NONE -i NONE -Es -c '` + vimBackup + `' -c 'set ` + options + `' -c '%delete _' -c "0read $NEW" -c wq "$F"`}
}

// withBackup makes sure that a program left the backup that it is there for.
func withBackup(p program) program {
	p.script += `; test -s "$F~"`
	return p
}

func emacs(name, lisp string) program {
	return program{name: name, needs: []string{"emacs"}, script: `rm -f "$F~"; emacs --batch -Q --eval '(progn ` + emacsBackup + lisp + ` (find-file (getenv "F")) (erase-buffer) (insert-file-contents (getenv "NEW")) (save-buffer))' 2>&1`}
}

// TestWritersPrograms has each program write the environment's file, a small
// text and one that takes many writes: each arrives by an event, and nothing
// else does. All write the same file below the same agent, so that each finds
// what another one left.
func TestWritersPrograms(t *testing.T) {
	t.Parallel()
	away, err := os.MkdirTemp("/dev/shm", "")
	if err != nil {
		away = t.TempDir() // then mv is a rename
	}
	t.Cleanup(func() { _ = os.RemoveAll(away) })
	s := newSite(t)
	s.start(0, nil)
	s.mode("inotify")
	n := 0
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			defer s.in(t)()
			needs(t, p.needs...)
			for _, padding := range []int{0, 40_000} {
				n++
				s.declare(n)
				staged := filepath.Join(s.state, "staged")
				s.put(staged, text(numbered(n), padding))
				sh(t, s.state, p.script, map[string]string{"F": filepath.Join(s.root, "production.yaml"), "D": s.root, "NEW": staged, "AWAY": away})
				t.Logf("%d bytes arrived %s after the program's end", len(text(numbered(n), padding)), s.await(n))
			}
		})
	}
	t.Run("renameat2 RENAME_EXCHANGE", func(t *testing.T) {
		defer s.in(t)()
		n++
		s.put("other.txt", s.declare(n))
		ok(t, unix.Renameat2(unix.AT_FDCWD, filepath.Join(s.root, "other.txt"), unix.AT_FDCWD, filepath.Join(s.root, "production.yaml"), unix.RENAME_EXCHANGE))
		s.await(n)
	})
	s.onlyWhole(n + 1)
	t.Logf("%d states, the slowest arrived after %s", n, s.worst)
}

// An editor is used by hand: it opens the file, and save is what is typed to
// set cache_ttl_seconds and save.
type editor struct {
	name  string
	start []string
	save  func(c *console, line string)
	quit  []string
	// backup is set if file~ is left.
	backup bool
}

const ttlLine = 4 // of production.yaml

var editors = []editor{
	{
		name: "vim", start: []string{"vim", "-Nu", "NONE", "-i", "NONE", "-c", vimBackup},
		save: func(c *console, line string) {
			c.write(":%s/ *cache_ttl_seconds: .*/" + line + "/")
			c.press("Enter")
			c.write(":w")
			c.press("Enter")
		},
		quit: []string{":", "q", "Enter"},
	},
	{
		name: "nano", start: []string{"nano", "--ignorercfiles", fmt.Sprintf("+%d,1", ttlLine)},
		save: func(c *console, line string) {
			c.press("C-k")
			c.write(line)
			c.press("Enter", "Up", "C-o", "Enter")
		},
		quit: []string{"C-x"},
	},
	{
		name: "nano with a backup", start: []string{"nano", "--ignorercfiles", "--backup", fmt.Sprintf("+%d,1", ttlLine)},
		save: func(c *console, line string) {
			c.press("C-k")
			c.write(line)
			c.press("Enter", "Up", "C-o", "Enter")
		},
		quit: []string{"C-x"}, backup: true,
	},
	{
		name: "emacs", start: []string{"emacs", "-nw", "-Q", "--eval", emacsBackup},
		save: func(c *console, line string) {
			c.press("M-:")
			c.awaitScreen("Eval:")
			c.write(`(progn (goto-char 1) (re-search-forward " *cache_ttl_seconds: .*") (replace-match "` + line + `"))`)
			c.press("Enter", "C-x", "C-s")
		},
		quit: []string{"C-x", "C-c"}, backup: true,
	},
}

// TestWritersEditors types into editors on a real terminal, and saves three
// times in each session: editors write otherwise the second time.
func TestWritersEditors(t *testing.T) {
	t.Parallel()
	needs(t, "tmux")
	s := newSite(t)
	s.start(0, nil)
	n := 0
	for _, e := range editors {
		t.Run(e.name, func(t *testing.T) {
			defer s.in(t)()
			needs(t, e.start[0])
			n++
			s.rename("production.yaml", s.declare(n))
			s.await(n)
			base := numbered(n)
			backup := filepath.Join(s.root, "production.yaml~")
			_ = os.Remove(backup)
			c := newConsole(t, append(e.start[:len(e.start):len(e.start)], filepath.Join(s.root, "production.yaml")))
			c.awaitScreen("environment: production")
			for range 3 {
				n++
				p := base.With(ttlName, schema.Int(20000+n))
				s.whole[p.Digest()] = true
				e.save(c, fmt.Sprintf("  %s: %d", ttlName, ttlOf(p)))
				t.Logf("arrived %s after it was typed", s.awaitState(p))
			}
			c.press(e.quit...)
			eventually(t, "the editor ends", func() bool { return c.tmux("has-session").Run() != nil })
			if _, err := os.Stat(backup); (err == nil) != e.backup {
				t.Errorf("a backup: %v, want %v: the editor did not write as this test wants it to", err == nil, e.backup)
			}
		})
	}
	s.onlyWhole(n + 1)
}

// A console is a program on a terminal of its own.
type console struct {
	t      *testing.T
	socket string
}

func newConsole(t *testing.T, program []string) *console {
	t.Helper()
	c := &console{t: t, socket: filepath.Join(t.TempDir(), "tmux")}
	c.run(append([]string{"-f", os.DevNull, "new-session", "-d", "-x", "100", "-y", "30", "--"}, program...)...)
	t.Cleanup(func() { _ = c.tmux("kill-server").Run() })
	return c
}

func (c *console) tmux(args ...string) *exec.Cmd {
	cmd := exec.Command("tmux", append([]string{"-u", "-S", c.socket}, args...)...)
	cmd.Env = append(os.Environ(), "TMUX=", "LC_ALL=C.UTF-8", "HOME="+filepath.Dir(c.socket))
	return cmd
}

func (c *console) run(args ...string) string {
	c.t.Helper()
	out, err := c.tmux(args...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("tmux %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// write types text, press types keys by tmux's names for them.
func (c *console) write(text string) { c.t.Helper(); c.run("send-keys", "-l", text) }

func (c *console) press(keys ...string) {
	c.t.Helper()
	c.run(append([]string{"send-keys"}, keys...)...)
}

func (c *console) awaitScreen(text string) {
	c.t.Helper()
	eventually(c.t, "the screen shows "+text, func() bool { return strings.Contains(c.run("capture-pane", "-p"), text) })
}
