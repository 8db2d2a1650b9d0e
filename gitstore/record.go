package gitstore

import (
	"encoding/json"
	"errors"
	"fmt"
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
	r.cache.mu.Lock()
	snap := r.cache.records[h]
	r.cache.mu.Unlock()
	if snap != nil {
		return snap, nil
	}
	c, err := r.commit(h)
	if err != nil {
		return nil, err
	}
	if snap, err = r.decode(c); err != nil {
		return nil, err
	}
	r.cache.mu.Lock()
	defer r.cache.mu.Unlock()
	if r.cache.records == nil || len(r.cache.records) >= cachedRecords {
		r.cache.records = map[plumbing.Hash]*record.Record{}
	}
	r.cache.records[h] = snap
	return snap, nil
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

// A recordCache keeps records that were read, by commit, and the parents of more.
type recordCache struct {
	mu      sync.Mutex
	records map[plumbing.Hash]*record.Record
	parents map[plumbing.Hash]plumbing.Hash
}

// parent returns the first parent of a commit.
func (r *repo) parent(h plumbing.Hash) (plumbing.Hash, error) {
	r.cache.mu.Lock()
	defer r.cache.mu.Unlock()
	if parent, ok := r.cache.parents[h]; ok {
		return parent, nil
	}
	c, err := r.commit(h)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	if len(c.ParentHashes) == 0 {
		return plumbing.ZeroHash, fmt.Errorf("%w: the history ends at commit %s, before its first record", errDamaged, h)
	}
	if r.cache.parents == nil || len(r.cache.parents) >= cachedParents {
		r.cache.parents = map[plumbing.Hash]plumbing.Hash{}
	}
	r.cache.parents[h] = c.ParentHashes[0]
	return c.ParentHashes[0], nil
}

// A place is where a record stands in the history: its index, its commit, and the
// commit of the next newer one, zero at the head.
type place struct {
	index         int
	commit, child plumbing.Hash
}

// walk visits the records of v from the head down, until visit returns false or the
// oldest record was visited. It reads commits alone, each once.
func (r *repo) walk(v view, visit func(place) bool) error {
	if v.head == nil {
		return nil
	}
	for p := (place{index: v.head.Index, commit: hashOf(v.head)}); visit(p) && p.index > v.first; p.index-- {
		parent, err := r.parent(p.commit)
		if err != nil {
			return fmt.Errorf("record %d: %w", p.index-1, err)
		}
		p.commit, p.child = parent, p.commit
	}
	return nil
}

var errNoSuchIndex = errors.New("no record has this index")

// at returns where the record with an index stands in the history of v.
func (r *repo) at(v view, index int) (found place, err error) {
	if v.head == nil || index < v.first || index > v.head.Index {
		return found, errNoSuchIndex
	}
	err = r.walk(v, func(p place) bool {
		found = p
		return p.index > index
	})
	return found, err
}
