package gitstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
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
	if snap := r.cache.get(h); snap != nil {
		return snap, nil
	}
	c, err := r.commit(h)
	if err != nil {
		return nil, err
	}
	snap, err := r.decode(c)
	if err != nil {
		return nil, err
	}
	r.cache.put(h, snap)
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
		return nil, foreign("snapshot_id %q does not go with index %d", cut(snap.ID, 80), snap.Index)
	case (index == 1) != (len(c.ParentHashes) == 0):
		return nil, foreign("record %d with %d parents", index, len(c.ParentHashes))
	}
	if err := readTrailers(snap, c.Message); err != nil {
		return nil, foreign("%w", err)
	}
	snap.Commit = c.Hash.String()
	if len(c.ParentHashes) == 1 {
		snap.Parent = c.ParentHashes[0].String()
	}
	snap.Held.Cover(snap.Config.Names())
	return snap, nil
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

// inHistory reports whether a commit is a record of the history of v.
func (r *repo) inHistory(v view, h plumbing.Hash) bool {
	_, index, err := r.link(h)
	if err != nil {
		return false
	}
	at, err := r.chain.at(r, v, index)
	return err == nil && at == h
}

// files reads parameters.yaml and snapshot.json of a tree that holds these two
// and nothing else.
func (r *repo) files(h plumbing.Hash) ([2][]byte, error) {
	var files [2][]byte
	content, err := r.object(plumbing.TreeObject, h)
	if err != nil {
		return files, err
	}
	tree := new(object.Tree)
	if err := tree.Decode(memoryObject(plumbing.TreeObject, content)); err != nil {
		return files, fmt.Errorf("%w: tree %s: %w", errForeign, h, err)
	}
	names := [2]string{parametersFile, snapshotFile}
	if len(tree.Entries) != len(names) {
		return files, fmt.Errorf("%w: tree %s has %d entries, not %d", errForeign, h, len(tree.Entries), len(names))
	}
	for i, e := range tree.Entries {
		if e.Name != names[i] || e.Mode != filemode.Regular {
			return files, fmt.Errorf("%w: tree %s holds %q, not %s", errForeign, h, cut(e.Name, 80), names[i])
		}
		if files[i], err = r.object(plumbing.BlobObject, e.Hash); err != nil {
			return files, fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return files, nil
}

// A recordCache keeps records that were read, by commit.
type recordCache struct {
	mu      sync.Mutex
	records map[plumbing.Hash]*record.Record
}

func (c *recordCache) get(h plumbing.Hash) *record.Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.records[h]
}

func (c *recordCache) put(h plumbing.Hash, rec *record.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.records == nil || len(c.records) >= cachedRecords {
		c.records = map[plumbing.Hash]*record.Record{}
	}
	c.records[h] = rec
}

// A chain remembers which commit bears which index, so that a record is found
// without a walk from the head each time. Indexes low to top are known.
type chain struct {
	mu       sync.Mutex
	hashes   []plumbing.Hash // by index; [0] is not used
	low, top int
}

var errNoSuchIndex = errors.New("no record has this index")

// at returns the commit of the record with the given index in the history of
// the view's head. It walks only where it has not been yet, and reads commits
// alone.
func (c *chain) at(r *repo, v view, index int) (plumbing.Hash, error) {
	head := v.head
	if head == nil || index < v.first || index > head.Index {
		return plumbing.ZeroHash, errNoSuchIndex
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.reach(r, plumbing.NewHash(head.Commit), head.Index, v.first); err != nil {
		return plumbing.ZeroHash, err
	}
	for c.low > index {
		parent, err := r.parent(c.hashes[c.low])
		if err != nil {
			return plumbing.ZeroHash, err
		}
		c.low--
		c.hashes[c.low] = parent
	}
	return c.hashes[index], nil
}

// reach makes the chain end in head: it walks down from head until it meets
// what it knows, or the end of it, or the first record.
func (c *chain) reach(r *repo, head plumbing.Hash, index, first int) error {
	var fresh []plumbing.Hash // from index downwards
	h := head
	for i := index; ; i-- {
		if i >= c.low && i <= c.top && i > 0 && c.hashes[i] == h {
			break // met
		}
		fresh = append(fresh, h)
		if i <= c.low || i <= first || c.top == 0 {
			c.low = i // another history, or none was known
			break
		}
		var err error
		if h, err = r.parent(h); err != nil {
			return err
		}
	}
	if c.hashes = c.hashes[:min(len(c.hashes), index+1)]; len(c.hashes) < index+1 {
		c.hashes = append(c.hashes, make([]plumbing.Hash, index+1-len(c.hashes))...)
	}
	for k, h := range fresh {
		c.hashes[index-k] = h
	}
	c.top = index
	return nil
}

// parent returns the first parent of a commit.
func (r *repo) parent(h plumbing.Hash) (plumbing.Hash, error) {
	if snap := r.cache.get(h); snap != nil {
		return plumbing.NewHash(snap.Parent), nil
	}
	c, err := r.commit(h)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	if len(c.ParentHashes) == 0 {
		return plumbing.ZeroHash, fmt.Errorf("%w: the history ends at commit %s, before its first record", errDamaged, h)
	}
	return c.ParentHashes[0], nil
}
