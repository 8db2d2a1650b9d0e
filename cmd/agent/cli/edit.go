package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher"
)

// editFlags are those of the commands that edit a configuration directory.
type editFlags struct {
	root, message  string
	dryRun, commit bool
	open           func() (*schema.Schema, error)
}

func (e *editFlags) add(cmd *cobra.Command) {
	e.open = schemaOf(cmd)
	f := cmd.Flags()
	f.StringVar(&e.root, "config", ".", "the `directory` with base.yaml and the environments' files")
	f.BoolVar(&e.dryRun, "dry-run", false, "print the difference as a patch, and write nothing")
	f.BoolVar(&e.commit, "commit", false, "commit the file with your git: its hooks and its signing; nothing else is committed")
	f.StringVarP(&e.message, "message", "m", "", "the `subject` of the commit; the changes stand below it")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "commit")
	_ = cmd.MarkFlagDirname("config")
}

// A workspaceEdit is an edit of one file of a configuration directory, which is written
// once every environment was found to be valid with it.
type workspaceEdit struct {
	flags  *editFlags
	schema *schema.Schema
	path   string // of the file, in the directory
	file   string // where it is, behind links
	lock   *os.File
	before schema.File
	after  schema.File
}

// newEdit reads the file at path of the directory that the flags name. It waits for another
// edit in that directory; close lets the next one begin.
func newEdit(ctx context.Context, flags *editFlags, s *schema.Schema, path string) (*workspaceEdit, error) {
	w := &workspaceEdit{flags: flags, schema: s, path: path}
	var err error
	if dir, oerr := os.Open(flags.root); oerr == nil { // what is wrong with it, reading the file says
		w.lock = dir
		for unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return w, ctx.Err()
			}
		}
	}
	w.file = resolved(filepath.Join(flags.root, path))
	if w.before, err = watcher.ReadFile(flags.root, path); errors.Is(err, fs.ErrNotExist) {
		err = problem.New("", fmt.Errorf("there is no %s", filepath.Join(flags.root, path)),
			configHint(s, flags.root, "name the configuration directory with --config, and a file that is there with --layer"))
	}
	w.after = w.before
	return w, err
}

func (w *workspaceEdit) close() { _ = w.lock.Close() }

// input returns the files of an environment, with the edit if isEdited.
func (w *workspaceEdit) input(env schema.Environment, isEdited bool) (schema.Input, error) {
	in, _, err := input(env, func(path string) (schema.File, error) {
		if isEdited && resolved(filepath.Join(w.flags.root, path)) == w.file { // a link to it as well
			return schema.NewFile(path, w.after.Bytes), nil
		}
		return watcher.ReadFile(w.flags.root, path)
	})
	return in, err
}

// load reads an environment; the violations are an error.
func (w *workspaceEdit) load(env schema.Environment, isEdited bool) (*schema.Configuration, schema.Input, error) {
	in, err := w.input(env, isEdited)
	if err != nil {
		return nil, in, err
	}
	config, violations := w.schema.For(env).Review(in)
	if violations != nil {
		return nil, in, violations
	}
	return config, in, nil
}

// A consequence is what an edit does to one environment.
type consequence struct {
	environment   schema.Environment
	before, after *schema.Configuration // before is nil if it was not valid
	changes       []schema.Change
}

// consequences checks all environments of the directory with the edit. It is an error if
// one has a violation that it did not have, or the edited one has as many as before.
func (w *workspaceEdit) consequences(cmd *cobra.Command, edited schema.Environment) (list []consequence, err error) {
	for _, env := range w.schema.Environments() {
		if _, err := os.Lstat(filepath.Join(w.flags.root, env.File())); err != nil && env != edited {
			continue
		}
		before, _, wasInvalid := w.load(env, false)
		after, _, invalid := w.load(env, true)
		found := (*schema.Violations)(nil)
		switch {
		case errors.As(invalid, &found) && isBetter(wasInvalid, found):
			fmt.Fprintf(cmd.ErrOrStderr(), "note: %s is not valid yet: agent validate %s\n", env, problem.ShellWord(w.flags.root))
			continue
		case found != nil && (env == edited || !isNoWorse(wasInvalid, found)):
			w.printViolations(cmd, found)
			return nil, &failure{exitInvalid, problem.New("", fmt.Errorf("%s would not be valid; nothing is written", env), "correct the values, or set several at once")}
		case invalid != nil && found == nil:
			return nil, invalid
		case invalid != nil:
			continue
		}
		c := consequence{environment: env, before: before, after: after}
		if before != nil {
			c.changes = w.schema.For(env).Diff(before.Parameters, after.Parameters)
		}
		list = append(list, c)
	}
	return list, nil
}

// isNoWorse reports whether the violations are all among those that were there before.
func isNoWorse(before error, now *schema.Violations) bool {
	old := (*schema.Violations)(nil)
	return errors.As(before, &old) && !slices.ContainsFunc(now.List, func(v schema.Violation) bool { return !slices.ContainsFunc(old.List, v.SameAs) })
}

// isBetter reports whether the violations are some of those that were there before, and
// not all.
func isBetter(before error, now *schema.Violations) bool {
	old := (*schema.Violations)(nil)
	return isNoWorse(before, now) && errors.As(before, &old) && now.Total < old.Total
}

// printViolations prints violations as agent validate does.
func (w *workspaceEdit) printViolations(cmd *cobra.Command, found *schema.Violations) {
	for _, v := range found.List {
		v = verdict{Root: w.flags.root}.placed(v, filepath.Join)
		fmt.Fprintln(cmd.ErrOrStderr(), status.Plain(v.String()))
	}
}

// edit applies edits. What the format refuses is printed as agent validate prints it.
func (w *workspaceEdit) edit(cmd *cobra.Command, edits []schema.Edit) (err error) {
	found := (*schema.Violations)(nil)
	if w.after, err = schema.EditFile(w.before, edits...); errors.As(err, &found) {
		w.printViolations(cmd, found)
		err = &failure{exitInvalid, problem.New("", fmt.Errorf("%s cannot be edited as it is; nothing is written", w.path), "correct the file by hand, and then set the values")}
	}
	return err
}

func (w *workspaceEdit) isChanged() bool { return !bytes.Equal(w.before.Bytes, w.after.Bytes) }

// lines returns what the edit does, one line a change of each environment.
func lines(list []consequence) (all []string) {
	for _, c := range list {
		for _, change := range c.changes {
			line := fmt.Sprintf("%s: %s", c.environment, change)
			if o := c.after.Provenance[change.Parameter]; o.Line > 0 {
				line += fmt.Sprintf(" [%s:%d]", o.File, o.Line)
			}
			all = append(all, line)
		}
	}
	return all
}

// finish prints the patch, or writes the file and commits it. subject is that of the
// commit without --message.
func (w *workspaceEdit) finish(cmd *cobra.Command, list []consequence, subject string) error {
	name := filepath.Join(w.flags.root, w.path)
	if w.flags.dryRun {
		below := strings.TrimPrefix(name, "/")
		patch := diff.Diff("a/"+below, w.before.Bytes, "b/"+below, w.after.Bytes)
		if _, rest, ok := bytes.Cut(patch, []byte("\n")); ok { // the line above the patch
			patch = rest
		}
		_, err := cmd.OutOrStdout().Write(patch)
		return err
	}
	if !w.isChanged() {
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s has these values already\n", name)
		return err
	}
	g := userGit{cmd: cmd, file: w.file}
	if w.flags.commit {
		if err := g.check(); err != nil {
			return err
		}
	}
	if err := w.write(); err != nil {
		hint := cmp.Or(problem.Hint(err), "check who owns the file and its directory, and the disk")
		return &problem.Error{Op: "write", Place: name, Err: problem.Bare(err), Hint: hint}
	}
	changes := lines(list)
	for _, line := range changes {
		fmt.Fprintln(cmd.OutOrStdout(), status.Plain(line))
	}
	mended := false
	for _, c := range list {
		if c.before == nil {
			mended = true
			fmt.Fprintf(cmd.OutOrStdout(), "%s is valid now\n", c.environment)
		}
	}
	if len(changes) == 0 && !mended {
		fmt.Fprintf(cmd.OutOrStdout(), "%s is changed, and no environment's values are\n", name)
	}
	if !w.flags.commit {
		return nil
	}
	return g.commit(cmp.Or(w.flags.message, subject), strings.Join(changes, "\n"))
}

// write replaces the file at once, with its mode and owner.
func (w *workspaceEdit) write() error {
	file := w.file
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	now, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !bytes.Equal(now, w.before.Bytes) {
		return problem.New("", errors.New("it was changed by somebody else meanwhile"), "run the command again")
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".agent-*.tmp")) // of an edit that was killed
	for _, name := range left {
		_ = os.Remove(name)
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".agent-*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(w.after.Bytes)
	err = errors.Join(err, f.Chmod(info.Mode().Perm()))
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(owner.Uid), int(owner.Gid)) // only root may
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	return err
}

// userGit commits one file with the git of whoever runs the command.
type userGit struct {
	cmd  *cobra.Command
	file string
	// isNew: git does not know the file yet.
	isNew bool
}

func (g *userGit) run(args ...string) (string, error) {
	c := exec.CommandContext(g.cmd.Context(), "git", append([]string{"-C", filepath.Dir(g.file)}, args...)...)
	var out, errs bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, &out, &errs // a signing program may ask
	err := c.Run()
	if err != nil {
		text := strings.TrimSpace(errs.String() + out.String())
		err = fmt.Errorf("git %s: %w", args[0], err)
		if text != "" {
			err = fmt.Errorf("git %s: %s", args[0], strings.ReplaceAll(text, "\n", "; "))
		}
	}
	return strings.TrimSpace(out.String()), err
}

// check reports whether the file can be committed without taking anything else along.
func (g *userGit) check() error {
	name := filepath.Base(g.file)
	state, err := g.run("status", "--porcelain", "--ignored", "--untracked-files=all", "--", name)
	if err == nil && state == "" {
		var tag string
		if tag, err = g.run("ls-files", "-v", "--", name); err == nil && !strings.HasPrefix(tag, "H") {
			return problem.New("", fmt.Errorf("git does not look at %s (%s)", g.file, cmp.Or(tag, "not in the index")), "git update-index --no-assume-unchanged --no-skip-worktree, or leave --commit away")
		}
	}
	if _, merr := g.run("rev-parse", "--quiet", "--verify", "MERGE_HEAD"); err == nil && merr == nil {
		return problem.New("", errors.New("a merge is not finished, and git commits no single file then"), "finish it, or leave --commit away")
	}
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return problem.New("", errors.New("--commit needs git, which is not installed"), "leave --commit away")
	case err != nil:
		return problem.New("", err, "leave --commit away where there is no git repository")
	case strings.HasPrefix(state, "!!"):
		return problem.New("", fmt.Errorf("git ignores %s", g.file), "see git check-ignore -v, or leave --commit away")
	case strings.HasPrefix(state, "??"):
		g.isNew = true
	case state != "":
		return problem.New("", fmt.Errorf("%s has changes that are not committed", g.file), "commit or stash them first, or leave --commit away")
	}
	return nil
}

func (g *userGit) commit(subject, body string) error {
	if g.isNew {
		if _, err := g.run("add", "--", filepath.Base(g.file)); err != nil {
			return err
		}
	}
	message := []string{"-m", subject}
	if body != "" {
		message = append(message, "-m", body)
	}
	if _, err := g.run(slices.Concat([]string{"commit", "-q", "--only"}, message, []string{"--", filepath.Base(g.file)})...); err != nil {
		hint := "commit it yourself, or put it back with git checkout"
		if g.isNew {
			hint = "commit it yourself: it is staged"
		}
		return problem.New("", fmt.Errorf("%s is changed and not committed: %w", g.file, err), hint)
	}
	done, err := g.run("log", "-1", "--format=committed %h %s")
	if err == nil {
		_, err = fmt.Fprintln(g.cmd.OutOrStdout(), status.Plain(done))
	}
	return err
}
