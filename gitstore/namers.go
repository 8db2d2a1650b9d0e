package gitstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/go-git/go-git/v5/plumbing"
)

// Not refs alone keep objects: git has further roots in files beside them, such as
// the HEAD, the index and the reflogs of each worktree, the stash, or MERGE_HEAD.
// All name objects by 40 hex digits, or, an index, by 20 bytes. So what any file of
// the repository names is kept, whatever the file is for: see gitrepository-layout(5).

// notNamers are the files and directories of a repository that hold objects, are
// read as refs, or name what a history begins with.
var notNamers = map[string]bool{"objects": true, "refs": true, packedRefs: true, shallowFile: true, "tmp": true, "hooks": true}

// namers lists the files that may name objects, and says in which state they are.
func (r *repo) namers() (state string, paths []string, err error) {
	sum := sha256.New()
	err = filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(r.dir, path)
		switch {
		case err != nil:
			return err
		case notNamers[rel] && d.IsDir():
			return filepath.SkipDir
		case notNamers[rel] || !d.Type().IsRegular():
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintln(sum, rel, st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
		paths = append(paths, path)
		return nil
	})
	if err != nil {
		return "", nil, fmt.Errorf("look what names objects: %w", err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), paths, nil
}

// namedIn lists what a file names: by words of 40 hex digits, and, of what is
// known, by 20 bytes anywhere.
func namedIn(path string, known map[plumbing.Hash]bool) (list []plumbing.Hash, err error) {
	const window, overlap = 1 << 20, 42 // a word of 40 with what is before and behind
	f, _, err := openRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	buf, have := make([]byte, window), 0
	for {
		n, err := io.ReadFull(f, buf[have:])
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !ended {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		data := buf[:have+n]
		list = append(list, namedBy(data, known)...)
		if ended {
			return list, nil
		}
		have = copy(buf, data[len(data)-overlap:])
	}
}

func namedBy(data []byte, known map[plumbing.Hash]bool) (list []plumbing.Hash) {
	run := 0 // hex digits up to here
	for i := 0; i <= len(data); i++ {
		if i < len(data) && strings.IndexByte("0123456789abcdef", data[i]) >= 0 {
			run++
		} else {
			if run == 40 {
				list = append(list, plumbing.NewHash(string(data[i-run:i])))
			}
			run = 0
		}
		if i+20 <= len(data) {
			if h := plumbing.Hash(data[i : i+20]); known[h] {
				list = append(list, h)
			}
		}
	}
	return list
}

// unpackOld takes the lines out of packed-refs that a loose ref stands before and
// that name what goes: git fsck reads them all the same.
//
// Syscalls: openat, fstat, read, close; for each such line those of unpackRef.
func (r *repo) unpackOld(goes map[plumbing.Hash]bool) error {
	data, err := readBounded(filepath.Join(r.dir, packedRefs), maxPacked)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		hex, ref, _ := strings.Cut(strings.TrimSpace(line), " ")
		if h, ok := parseHash(hex); ok && ref != "" && goes[h] {
			if err := r.unpackLine(context.Background(), ref, h); err != nil { // a second, at most
				return fmt.Errorf("remove the old value of %s from packed-refs: %w", ref, err)
			}
		}
	}
	return nil
}
