package watcher

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
)

// ReadFile reads one file of the configuration directory root, whether or not
// an environment's Document has it. What a Document refuses it refuses too; a file
// that does not exist is an error that is fs.ErrNotExist.
func ReadFile(root, path string) (schema.File, error) {
	dir, err := openDirectory(root)
	if err != nil {
		return schema.File{}, err
	}
	defer dir.Close()
	file, _, err := readFile(dir, path)
	if err != nil {
		return schema.File{}, fileError(root, path, err)
	}
	return file, nil
}

// A reading is one pass over the files: a Document and what the loop must know
// about it.
type reading struct {
	doc *document.Document
	// times are when each file last changed, as the file system says; around
	// is when the youngest of their directories did.
	times  map[string]time.Time
	around time.Time
	wanted []string // the paths that were looked for, found or not
	pass   statPass // made before the reading
}

// old reports whether nothing was changed within settle before now. An empty
// file is never old: it may have been truncated this very moment, of which its
// time does not tell yet.
func (r *reading) old(now time.Time, settle time.Duration) bool {
	return now.Sub(r.around) > settle+clockGrain &&
		!slices.ContainsFunc(r.doc.Files, func(f schema.File) bool { return !r.oldFile(f, now, settle) })
}

func (r *reading) oldFile(f schema.File, now time.Time, settle time.Duration) bool {
	return len(f.Bytes) > 0 && now.Sub(r.times[f.Path]) > settle+clockGrain
}

const (
	opDirectory = "read configuration directory"
	hintRename  = "write them once, by a rename"
)

// readDocument reads the files of a document, sorted, and returns the paths that
// it looked for. It ends early once they exceed the limits of a document, which
// Load refuses in any case. read returns nil for a file that does not exist.
func readDocument(env schema.Environment, read func(path string) (*schema.File, error)) (files []schema.File, wanted []string, err error) {
	wanted = []string{env.File(), schema.BaseFile}
	for i, size := 0, 0; i < len(wanted) && size <= schema.MaxDocumentBytes && len(files) <= schema.MaxDocumentFiles; i++ {
		f, err := read(wanted[i])
		if err != nil {
			return nil, nil, err
		}
		if f == nil || slices.Contains(wanted[:i], wanted[i]) {
			continue
		}
		if i == 0 {
			wanted = append(wanted, schema.Extends(*f)...)
		}
		files, size = append(files, *f), size+len(f.Bytes)
	}
	slices.SortFunc(files, func(a, b schema.File) int { return strings.Compare(a.Path, b.Path) })
	return files, wanted, nil
}

// readPass reads the files once. It holds the directory open meanwhile, so that
// one pass never mixes the files of two directories. A file that is as in known
// is taken from there, with its parse.
func readPass(root string, env schema.Environment, known []schema.File) (*reading, error) {
	dir, err := openDirectory(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()

	r := &reading{times: map[string]time.Time{}}
	for _, name := range []string{".", templatesDir} {
		if info, err := dir.Stat(name); err == nil && changedAt(info).After(r.around) {
			r.around = changedAt(info)
		}
	}
	r.doc = &document.Document{Environment: env}
	r.doc.Files, r.wanted, err = readDocument(env, func(path string) (*schema.File, error) { return r.read(dir, path, known) })
	if err != nil {
		return nil, err
	}
	r.doc.Source = document.Source{Kind: "file", Location: root, Revision: document.FilesRevision(r.doc.Files)}
	return r, nil
}

// openDirectory opens root, a link or not. It is looked at first: opening a
// named pipe would wait for a writer.
func openDirectory(root string) (*os.Root, error) {
	info, err := os.Stat(root)
	e := &problem.Error{Op: opDirectory, Place: root}
	if err == nil && !info.IsDir() {
		e.Err = errors.New("it is not a directory")
		e.Hint = fmt.Sprintf("name the directory that holds %s with --config", schema.BaseFile)
		return nil, e
	}
	var dir *os.Root
	if err == nil {
		dir, err = os.OpenRoot(root)
	}
	if err == nil {
		return dir, nil
	}
	e.Err = problem.Bare(err)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Err = fmt.Errorf("it does not exist: %w", e.Err)
		e.Hint = "put it back, or name another with --config"
	case errors.Is(err, fs.ErrPermission):
		e.Hint = fmt.Sprintf("give the agent's user (uid %d) the right to read and search it, for instance chmod o+rx", os.Getuid())
	}
	return nil, e
}

// read reads the file at path; it returns nil for one that does not exist.
func (r *reading) read(dir *os.Root, path string, known []schema.File) (*schema.File, error) {
	file, info, err := readFile(dir, path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		return nil, nil
	case err != nil:
		return nil, fileError(dir.Name(), path, err)
	}
	if i := slices.IndexFunc(known, func(f schema.File) bool { return sameFile(f, file) }); i >= 0 {
		file = known[i]
	}
	if info != nil {
		r.times[path] = changedAt(info)
	}
	return &file, nil
}

// fileError returns the error for a file that cannot be read.
func fileError(root, path string, err error) error {
	e := &problem.Error{Op: "read configuration file", Place: path + " in " + root, Err: problem.Bare(err)}
	if errors.Is(err, fs.ErrPermission) {
		e.Hint = fmt.Sprintf("give the agent's user (uid %d) the right to read it, for instance chmod o+r", os.Getuid())
	}
	return e
}

// readFile reads one regular file, one byte more than it may hold at most.
// What is none is refused without being opened, because opening alone has
// effects on pipes and devices; what becomes none in between is opened without
// waiting, and then refused.
func readFile(dir *os.Root, path string) (file schema.File, info fs.FileInfo, err error) {
	file.Path = path
	info, err = dir.Stat(path)
	if err != nil {
		return refuseLink(file, err)
	}
	if file.Refused = irregular(info.Mode()); file.Refused != "" {
		return file, info, nil
	}
	f, err := dir.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return refuseLink(file, err)
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return file, nil, err
	}
	if file.Refused = irregular(info.Mode()); file.Refused != "" {
		return file, info, nil
	}
	buf := bytes.NewBuffer(make([]byte, 0, min(info.Size(), schema.MaxFileBytes)+bytes.MinRead))
	if _, err := buf.ReadFrom(io.LimitReader(f, schema.MaxFileBytes+1)); err != nil {
		return file, nil, err
	}
	return schema.NewFile(path, buf.Bytes()), info, nil
}

// refuseLink turns the errors that only a link can cause into a refusal. That
// a path leaves the directory is the one error of os.Root that is no system
// call's.
func refuseLink(file schema.File, err error) (schema.File, fs.FileInfo, error) {
	var errno syscall.Errno
	switch {
	case errors.Is(err, syscall.ELOOP):
		file.Refused = "is a link that leads to itself"
	case errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.EINVAL):
		file.Refused = "has a name that no file can have"
	case !errors.As(err, &errno):
		file.Refused = "is a link that leaves the configuration directory"
	default:
		return file, nil, err
	}
	return file, nil, nil
}

// irregular says what a file is that is not a regular one.
func irregular(mode fs.FileMode) string {
	switch {
	case mode.IsRegular():
		return ""
	case mode.IsDir():
		return "is a directory, not a regular file"
	case mode&fs.ModeNamedPipe != 0:
		return "is a named pipe, not a regular file"
	case mode&fs.ModeSocket != 0:
		return "is a socket, not a regular file"
	case mode&fs.ModeDevice != 0:
		return "is a device, not a regular file"
	}
	return "is not a regular file"
}

// sameFiles reports whether two Documents hold the same: the revision alone
// does not tell an empty file from a refused one.
func sameFiles(a, b []schema.File) bool {
	return slices.EqualFunc(a, b, sameFile)
}

func sameFile(a, b schema.File) bool {
	return a.Path == b.Path && a.Refused == b.Refused && bytes.Equal(a.Bytes, b.Bytes)
}

// changedAt returns when a file or its entry last changed. Nobody can set that,
// unlike the time of the last write.
func changedAt(info fs.FileInfo) time.Time {
	ctime := info.Sys().(*syscall.Stat_t).Ctim
	return time.Unix(ctime.Unix())
}
