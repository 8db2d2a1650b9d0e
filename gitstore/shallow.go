package gitstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/schema"
)

// shallowFile is git's own: one commit a line, whose parents count as absent
// (gitrepository-layout(5)). Where the history was cut, by --prune-history or
// because older records are lost, its oldest record stands there, so that
// `git log` ends at it and `git fsck` asks for nothing before it.
const shallowFile = "shallow"

// A cuts are the commits of the shallow file.
type cuts map[plumbing.Hash]bool

// readCuts reads the shallow file. One that is torn is errTornRef.
func (r *repo) readCuts() (cuts, error) {
	data, err := readBounded(filepath.Join(r.dir, shallowFile), maxPacked)
	if errors.Is(err, fs.ErrNotExist) {
		return cuts{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", shallowFile, err)
	}
	c := cuts{}
	for line := range strings.Lines(string(data)) {
		h, ok := parseHash(strings.TrimSpace(line))
		if !ok {
			return nil, fmt.Errorf("%s: %w", shallowFile, errTornRef)
		}
		c[h] = true
	}
	return c, nil
}

// writeCuts makes c the shallow file, durably; without any commit there is no
// such file.
//
// Syscalls: those of writeDurable; or unlinkat, fsync (the repository).
func (r *repo) writeCuts(c cuts) error {
	path := filepath.Join(r.dir, shallowFile)
	if len(c) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return syncPath(r.dir)
	}
	var b bytes.Buffer
	for _, h := range slices.SortedFunc(maps.Keys(c), func(a, b plumbing.Hash) int { return bytes.Compare(a[:], b[:]) }) {
		fmt.Fprintln(&b, h)
	}
	if err := writeDurable(path, b.Bytes(), refPerm); err != nil {
		return fmt.Errorf("write %s: %w", shallowFile, err)
	}
	return nil
}

// first is the index of the oldest record in the history of head: 1 unless it
// was cut. It needs no walk: of the commits in the shallow file it is the one
// with the highest index, for those that other refs keep are older.
func (r *repo) first(head *schema.Snapshot) (int, error) {
	if head == nil {
		return 1, nil
	}
	c, err := r.readCuts()
	if errors.Is(err, errTornRef) {
		return 1, nil // the next Open makes it anew
	}
	first := 1
	for h := range c {
		_, index, err := r.link(h)
		if curable(err) {
			continue // a person's, or gone
		}
		if err != nil {
			return 0, err
		}
		if index <= head.Index {
			first = max(first, index)
		}
	}
	return first, err
}

// link reads of a record's commit what joins it to the others: its first parent
// (zero if it has none) and its index.
func (r *repo) link(h plumbing.Hash) (parent plumbing.Hash, index int, err error) {
	if snap := r.cache.get(h); snap != nil {
		return plumbing.NewHash(snap.Parent), snap.Index, nil
	}
	c, err := r.commit(h)
	if err != nil {
		return parent, 0, err
	}
	t, err := parseTrailers(c.Message)
	if err != nil {
		return parent, 0, fmt.Errorf("%w: commit %s: %w", errForeign, h, err)
	}
	index, ok := indexOf(t[keyID])
	if !ok {
		return parent, 0, fmt.Errorf("%w: commit %s bears no snapshot id", errForeign, h)
	}
	if len(c.ParentHashes) > 0 {
		parent = c.ParentHashes[0]
	}
	return parent, index, nil
}
