package gitstore

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
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

// A line is a commit of the shallow file that is a record.
type line struct {
	hash  plumbing.Hash
	index int
}

// first is the index of the oldest record in the history of head: 1 unless it
// was cut.
func (r *repo) first(head *record.Record) (int, error) {
	if head == nil {
		return 1, nil
	}
	c, err := r.readCuts()
	if errors.Is(err, errTornRef) || err == nil && len(c) == 0 {
		return 1, nil // a torn one is made anew by the next Open
	}
	if err != nil {
		return 0, err
	}
	_, begin, known, err := r.walked()
	if err != nil {
		return 0, err
	}
	if known && begin.IsZero() {
		return 1, nil
	}
	b, _, err := r.begins(head, c, begin)
	return b.index, err
}

// begins finds where the history of head begins: at a line of its own, below
// which it is not whole. Lines of other histories, which a `git fetch --depth`
// leaves, say nothing of it; needless are those of its own that would hide what is
// there. A line that is known to be the beginning spares the walk down to it.
func (r *repo) begins(head *record.Record, c cuts, known plumbing.Hash) (begin line, needless []line, err error) {
	lines, err := r.lines(c, head.Index)
	if err != nil {
		return begin, nil, err
	}
	v := view{head: head, first: 1}
	for _, l := range lines {
		if l.hash == known {
			return l, needless, nil
		}
		at, err := r.chain.at(r, v, l.index)
		if curable(err) {
			break
		}
		if err != nil {
			return begin, nil, err
		}
		if at != l.hash {
			continue
		}
		parent, _, err := r.link(l.hash)
		if err != nil {
			return begin, nil, err
		}
		// Pruning lists each old record that a ref keeps.
		if below, err := r.stillHas(parent); err != nil || !below || c[parent] {
			return l, needless, err
		}
		needless = append(needless, l)
	}
	if len(needless) == 0 {
		return line{index: 1}, nil, nil // a gap, the walk finds
	}
	_, err = r.chain.at(r, v, 1)
	if last := len(needless) - 1; curable(err) && last >= 0 {
		return needless[last], needless[:last], nil // a pruning was cut short
	}
	if curable(err) {
		err = nil // the next Open mends it
	}
	return line{index: 1}, needless, err
}

// lines are the records among the cuts up to an index, the newest first.
func (r *repo) lines(c cuts, top int) (lines []line, err error) {
	for h := range c {
		_, index, err := r.link(h)
		if curable(err) {
			continue // a person's, or gone
		}
		if err != nil {
			return nil, err
		}
		if index <= top {
			lines = append(lines, line{h, index})
		}
	}
	slices.SortFunc(lines, func(a, b line) int { return cmp.Compare(b.index, a.index) })
	return lines, nil
}

// stillHas is has for what may have gone since the packs were listed.
func (r *repo) stillHas(h plumbing.Hash) (bool, error) {
	r.mu.Lock()
	_, err := r.listPacks()
	r.mu.Unlock()
	if err != nil || h.IsZero() {
		return false, err
	}
	return r.has(h)
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
