package watcher

import (
	"container/heap"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/local"
	"dtesn-agent/watcher/remote"
	"dtesn-agent/watcher/signature"
	"dtesn-agent/watcher/smallfile"
)

// clock is the time by which keys are valid; tests replace it.
var clock = time.Now

// An origin is a local or remote repository.
type origin interface {
	location() string
	// list returns what the refs in names are; missing ones are left out.
	list(ctx context.Context, names []string) (map[string]plumbing.Hash, error)
	// open returns the objects of a commit or tag, until release.
	open(ctx context.Context, h plumbing.Hash) (o objects, release func(), err error)
	// descends returns nil if c descends from ancestor, *notDescendant if that can
	// be ruled out or not be shown.
	descends(ctx context.Context, o objects, c *commit, ancestor plumbing.Hash) error
	// hints returns a channel that is sent to when a ref may have moved, nil if
	// that cannot be seen, and its stop function; mode gets how it is seen.
	hints(ctx context.Context, names []string, mode func(string), log *slog.Logger) (<-chan struct{}, func())
	// rest ends what a look left open.
	rest()
}

// notDescendant says why c is not known to descend.
type notDescendant struct{ why string }

func (e *notDescendant) Error() string { return e.why }

var (
	errNotDescendant = &notDescendant{"does not descend from"}
	errUnproven      = &notDescendant{"could not be shown to descend from"}
)

// readSigners reads the file of allowed signers, and its digest.
func readSigners(path string) (*allowed, string, error) {
	if path == "" {
		return nil, "", problem.New("", errors.New("--verify needs --allowed-signers FILE"), "name a file of who may sign, as in ssh-keygen(1), ALLOWED SIGNERS")
	}
	text, err := smallfile.Read(path, 1<<20)
	if err != nil {
		return nil, "", fmt.Errorf("read the allowed signers in %s: %w", path, err)
	}
	s, err := signature.ParseSigners(text)
	if err != nil {
		return nil, "", fmt.Errorf("read the allowed signers in %s: %w", path, err)
	}
	sum := sha256.Sum256(text)
	return &allowed{s}, hex.EncodeToString(sum[:]), nil
}

// localOrigin is a repository of this machine, read in place.
type localOrigin struct{ path string }

func (l *localOrigin) location() string { return strings.TrimPrefix(l.path, "file://") }
func (l *localOrigin) rest()            {}

func (l *localOrigin) list(_ context.Context, names []string) (map[string]plumbing.Hash, error) {
	r, err := local.Find(l.path)
	if err != nil {
		return nil, err
	}
	return r.Resolve(names)
}

func (l *localOrigin) open(context.Context, plumbing.Hash) (objects, func(), error) {
	r, err := local.Find(l.path)
	if err != nil {
		return nil, nil, err
	}
	o := r.Objects()
	return o, func() { _ = o.Close() }, nil
}

// maxWalk bounds the commits that are looked at for one proof.
const maxWalk = 1_000_000

func (l *localOrigin) descends(ctx context.Context, o objects, c *commit, ancestor plumbing.Hash) error {
	return walk(ctx, o, c, ancestor, false)
}

// walk looks for ancestor among the ancestors of c, newest first, so that one
// that is found costs little more than what is newer. Where o lacks commits
// nothing is proven, unless o is known to have all that may lead to ancestor.
func walk(ctx context.Context, o objects, c *commit, ancestor plumbing.Hash, whole bool) error {
	verdict := errNotDescendant
	seen := map[plumbing.Hash]bool{c.hash: true}
	next := &newestFirst{c}
	for next.Len() > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, h := range heap.Pop(next).(*commit).parents {
			if h == ancestor {
				return nil
			}
			if seen[h] {
				continue
			}
			if seen[h] = true; len(seen) > maxWalk {
				return errUnproven
			}
			_, raw, err := readObject(o, plumbing.CommitObject, h, maxCommit)
			if errors.Is(err, plumbing.ErrObjectNotFound) {
				if !whole {
					verdict = errUnproven // the history is cut off here
				}
				continue
			}
			if err != nil {
				return err
			}
			parent, err := (&commit{}).decode(h, raw)
			if err != nil {
				return err
			}
			parent.raw = nil
			heap.Push(next, parent)
		}
	}
	return verdict
}

// newestFirst is a heap of commits by their committer's date.
type newestFirst []*commit

func (n newestFirst) Len() int           { return len(n) }
func (n newestFirst) Less(i, j int) bool { return n[i].when.After(n[j].when) }
func (n newestFirst) Swap(i, j int)      { n[i], n[j] = n[j], n[i] }
func (n *newestFirst) Push(c any)        { *n = append(*n, c.(*commit)) }
func (n *newestFirst) Pop() any {
	last := (*n)[len(*n)-1]
	*n = (*n)[:len(*n)-1]
	return last
}

func (l *localOrigin) hints(ctx context.Context, names []string, mode func(string), log *slog.Logger) (<-chan struct{}, func()) {
	if len(names) == 0 {
		return nil, func() {}
	}
	w := &refWatch{path: l.path, names: names, mode: mode, log: log, hints: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); w.run(ctx) }()
	return w.hints, func() { cancel(); <-done }
}

// remoteOrigin is a repository over the network.
type remoteOrigin struct {
	remote  *remote.Remote
	scratch string
}

func (r *remoteOrigin) location() string { return r.remote.Location() }
func (r *remoteOrigin) rest()            { r.remote.Rest() }

func (r *remoteOrigin) list(ctx context.Context, names []string) (map[string]plumbing.Hash, error) {
	return r.remote.List(ctx, names)
}

// blobFilter leaves out what no configuration file may be.
var blobFilter = fmt.Sprintf("blob:limit=%d", schema.MaxFileBytes+1)

func (r *remoteOrigin) open(ctx context.Context, h plumbing.Hash) (objects, func(), error) {
	o, err := r.remote.Fetch(ctx, remote.Want{Hash: h, Depth: 1, Filter: blobFilter}, r.scratch)
	if err != nil {
		return nil, nil, err
	}
	return o, func() { _ = o.Remove() }, nil
}

// descends fetches the commits that are reachable from c and not from ancestor.
func (r *remoteOrigin) descends(ctx context.Context, _ objects, c *commit, ancestor plumbing.Hash) error {
	o, err := r.remote.Fetch(ctx, remote.Want{Hash: c.hash, Filter: "tree:0", Have: ancestor}, r.scratch)
	if err != nil {
		return err
	}
	return errors.Join(walk(ctx, o, c, ancestor, o.Common), o.Remove())
}

func (r *remoteOrigin) hints(context.Context, []string, func(string), *slog.Logger) (<-chan struct{}, func()) {
	return nil, func() {}
}
