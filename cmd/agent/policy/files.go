package policy

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
	"dtesn-agent/watcher/smallfile"
)

// Bounds of the directory.
const (
	maxEntries = 1000
	maxFiles   = 64
	maxBytes   = 64 << 10 // of a file
	maxTotal   = 256 << 10
)

// fileNames lists the files of a policy. It skips names that begin with a dot: a mounted
// ConfigMap has such entries.
func fileNames(dir string) (names []string, err error) {
	fail := func(hint, message string, args ...any) error {
		return &problem.Error{Op: "read policy", Place: dir, Err: fmt.Errorf(message, args...), Hint: hint}
	}
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0) // a pipe would wait for ever
	if err != nil {
		return nil, fail("name a directory with .cue files that the agent's user may read", "%w", problem.Bare(err))
	}
	defer f.Close()
	all, err := f.Readdirnames(maxEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fail("name a directory with .cue files", "%w", problem.Bare(errors.Unwrap(err)))
	}
	for _, name := range all {
		if strings.HasSuffix(name, ".cue") && !strings.HasPrefix(name, ".") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	switch {
	case len(all) > maxEntries:
		return nil, fail("give the policy a directory of its own", "more than %d entries", maxEntries)
	case len(names) > maxFiles:
		return nil, fail("merge files", "%d files, and at most %d are read", len(names), maxFiles)
	case len(names) == 0:
		return nil, fail("name the directory with the .cue files", "no .cue file")
	}
	return names, nil
}

// readFiles reads the files of a policy. It is an error if one lies in a watched directory.
func readFiles(dir string, watched []string) (files []schema.File, err error) {
	names, err := fileNames(dir)
	if err != nil {
		return nil, err
	}
	at, err := filepath.EvalSymlinks(dir) // before ".." is taken back, as the kernel does
	if err != nil {
		return nil, err
	}
	total := 0
	for _, name := range names {
		path := filepath.Join(at, name)
		text, err := smallfile.ReadText(path, maxBytes)
		if err == nil && Inside(path, watched) != "" {
			err = errors.New("it leads into what the agent watches")
		}
		if err != nil {
			return nil, &problem.Error{Op: "read policy", Place: path, Err: err, Hint: "put a regular file there that the agent's user may read, outside of what the agent watches"}
		}
		if total += len(text); total > maxTotal {
			return nil, &problem.Error{Op: "read policy", Place: dir, Err: fmt.Errorf("larger than %d KiB", maxTotal>>10), Hint: "make it smaller"}
		}
		files = append(files, schema.File{Path: name, Bytes: text})
	}
	return files, nil
}

// Inside returns the first of dirs that is path or contains it, with all links followed;
// "" if none does.
func Inside(path string, dirs []string) string {
	real := func(path string) string {
		if full, err := filepath.Abs(path); err == nil {
			path = full
		}
		if followed, err := filepath.EvalSymlinks(path); err == nil {
			path = followed
		}
		return path
	}
	at := real(path)
	for _, dir := range dirs {
		if in, err := filepath.Rel(real(dir), at); err == nil && filepath.IsLocal(in) {
			return dir
		}
	}
	return ""
}

// signature returns a text that changes when what readFiles returns does.
func signature(dir string, watched []string) string {
	files, err := readFiles(dir, watched)
	if err != nil {
		return err.Error()
	}
	return document.FilesRevision(files)
}
