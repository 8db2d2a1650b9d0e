package gitstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

// agentName is the committer of every record.
const agentName = "dtesn-agent"

var snapshotID = regexp.MustCompile(`^snapshot_[0-9]+_([0-9]{4,})$`)

// formatID is "snapshot_<unix seconds>_<index, at least 4 digits>".
func formatID(unix int64, index int) string { return fmt.Sprintf("snapshot_%d_%04d", unix, index) }

// indexOf reads the index out of a snapshot id.
func indexOf(id string) (int, bool) {
	m := snapshotID.FindStringSubmatch(id)
	if m == nil {
		return 0, false
	}
	n, err := strconv.Atoi(m[1])
	return n, err == nil
}

// commit reads a commit object.
func (r *repo) commit(h plumbing.Hash) (*object.Commit, error) {
	content, err := r.object(plumbing.CommitObject, h)
	if err != nil {
		return nil, err
	}
	c := new(object.Commit)
	if err := c.Decode(memoryObject(plumbing.CommitObject, content)); err != nil {
		return nil, fmt.Errorf("%w: commit %s: %w", errForeign, h, err)
	}
	c.Hash = h
	return c, nil
}

func memoryObject(t plumbing.ObjectType, content []byte) *plumbing.MemoryObject {
	o := new(plumbing.MemoryObject)
	o.SetType(t)
	_, _ = o.Write(content) // it cannot fail
	return o
}

// snapshot reads the record that a commit is. It is immutable and shared. The
// error is errDamaged, errForeign, or that of a disk that cannot be read.
func (r *repo) snapshot(h plumbing.Hash) (*record.Record, error) {
	return r.records.get(h, cachedRecords, func() (*record.Record, error) {
		c, err := r.commit(h)
		if err != nil {
			return nil, err
		}
		return r.decode(c)
	})
}

// decode reads the tree of a commit and checks that all of it is ours: the
// committer, the two files, and that files and trailers tell the same story.
func (r *repo) decode(c *object.Commit) (*record.Record, error) {
	foreign := func(format string, args ...any) error {
		return fmt.Errorf("%w: commit %s: "+format, append([]any{errForeign, c.Hash}, args...)...)
	}
	if c.Committer.Name != agentName || len(c.ParentHashes) > 1 {
		return nil, foreign("committed by %q with %d parents", c.Committer.String(), len(c.ParentHashes))
	}
	files, err := r.files(c.TreeHash)
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", c.Hash, err)
	}
	snap := new(record.Record)
	if err := json.Unmarshal(files[1], snap); err != nil {
		return nil, foreign("%s: %w", snapshotFile, err)
	}
	index, ok := indexOf(snap.ID)
	switch {
	case snap.Format > record.FormatByName:
		return nil, problem.New("", fmt.Errorf("commit %s was written by a newer agent (format %d)", c.Hash, snap.Format), upgradeIt)
	case !ok || index != snap.Index || index < 1:
		return nil, foreign("snapshot_id %q does not go with index %d", problem.Cut(snap.ID, 80), snap.Index)
	case (index == 1) != (len(c.ParentHashes) == 0):
		return nil, foreign("record %d with %d parents", index, len(c.ParentHashes))
	}
	if err := readTrailers(snap, c.Message); err != nil {
		return nil, foreign("%w", err)
	}
	snap.Commit = c.Hash.String()
	snap.Subject, _, _ = strings.Cut(c.Message, "\n")
	if len(c.ParentHashes) == 1 {
		snap.Parent = c.ParentHashes[0].String()
	}
	snap.Held.Cover(snap.Config.Names())
	return snap, nil
}

// inHistory reports whether a commit is a record of the history of v.
func (r *repo) inHistory(v view, h plumbing.Hash) bool {
	rec, err := r.snapshot(h)
	if err != nil {
		return false
	}
	at, err := r.at(v, rec.Index)
	return err == nil && at.commit == h
}

// files reads parameters.yaml, snapshot.json and the tree, which must hold these two
// and nothing else.
func (r *repo) files(h plumbing.Hash) (contents [3][]byte, err error) {
	if contents[2], err = r.object(plumbing.TreeObject, h); err != nil {
		return contents, err
	}
	tree := new(object.Tree)
	if err := tree.Decode(memoryObject(plumbing.TreeObject, contents[2])); err != nil {
		return contents, fmt.Errorf("%w: tree %s: %w", errForeign, h, err)
	}
	names := [2]string{parametersFile, snapshotFile}
	if len(tree.Entries) != len(names) {
		return contents, fmt.Errorf("%w: tree %s has %d entries, not %d", errForeign, h, len(tree.Entries), len(names))
	}
	for i, e := range tree.Entries {
		if e.Name != names[i] || e.Mode != filemode.Regular {
			return contents, fmt.Errorf("%w: tree %s holds %q, not %s", errForeign, h, problem.Cut(e.Name, 80), names[i])
		}
		if contents[i], err = r.object(plumbing.BlobObject, e.Hash); err != nil {
			return contents, fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return contents, nil
}

// entry reads the four objects of a record.
func (r *repo) entry(h plumbing.Hash) (entry, error) {
	c, err := r.commit(h)
	if err != nil {
		return entry{}, err
	}
	files, err := r.files(c.TreeHash)
	if err != nil {
		return entry{}, err
	}
	content, err := r.object(plumbing.CommitObject, h)
	return newEntry([4][]byte{files[0], files[1], files[2], content}), err
}

// A commitCache keeps what was read of up to limit commits.
type commitCache[V any] struct {
	mu     sync.Mutex
	values map[plumbing.Hash]V
}

// get returns what read returned for a commit when it was asked last.
func (c *commitCache[V]) get(h plumbing.Hash, limit int, read func() (V, error)) (V, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, known := c.values[h]
	if known {
		return v, nil
	}
	v, err := read()
	if err == nil {
		if c.values == nil || len(c.values) >= limit {
			c.values = map[plumbing.Hash]V{}
		}
		c.values[h] = v
	}
	return v, err
}

// parent returns the first parent of a commit.
func (r *repo) parent(h plumbing.Hash) (plumbing.Hash, error) {
	return r.parents.get(h, cachedParents, func() (plumbing.Hash, error) {
		c, err := r.commit(h)
		if err != nil {
			return h, err
		}
		if len(c.ParentHashes) == 0 {
			return h, fmt.Errorf("%w: the history ends at commit %s, before its first record", errDamaged, h)
		}
		return c.ParentHashes[0], nil
	})
}

// A place is where a record stands in the history: its index, its commit, and the
// commit of the next newer one, zero at the head.
type place struct {
	index         int
	commit, child plumbing.Hash
}

// walk goes through the records of v from the head down to the oldest, or to the first
// error. It reads commits alone, each once.
func (r *repo) walk(v view) iter.Seq2[place, error] {
	return func(yield func(place, error) bool) {
		p := place{index: number(v.head), commit: hashOf(v.head)}
		for v.head != nil && yield(p, nil) && p.index > v.first {
			parent, err := r.parent(p.commit)
			if err != nil {
				yield(place{}, fmt.Errorf("record %d: %w", p.index-1, err))
				return
			}
			p = place{p.index - 1, parent, p.commit}
		}
	}
}

var errNoSuchIndex = errors.New("no record has this index")

// at returns where the record with an index stands in the history of v.
func (r *repo) at(v view, index int) (found place, err error) {
	if v.head == nil || index < v.first || index > v.head.Index {
		return found, errNoSuchIndex
	}
	for found, err = range r.walk(v) {
		if err != nil || found.index == index {
			break
		}
	}
	return found, err
}
