package watcher

import (
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

// clock is the time by which keys are valid; tests turn it.
var clock = time.Now

// An origin is a repository, near or far.
type origin interface {
	location() string
	// list says what the refs in names are; those that do not exist are left out.
	list(ctx context.Context, names []string) (map[string]plumbing.Hash, error)
	// open gives the objects of a commit or tag, until release.
	open(ctx context.Context, h plumbing.Hash) (o objects, release func(), err error)
	// descends is nil if c descends from ancestor, *notDescendant if that can be
	// ruled out or not be shown.
	descends(ctx context.Context, o objects, c *commit, ancestor string) error
	// hints says when a ref may have moved, nil if that cannot be seen, and by
	// mode how it is seen; until the function that it returns.
	hints(ctx context.Context, names []string, mode func(string), log *slog.Logger) (<-chan struct{}, func())
	// rest ends what a look left open.
	rest()
	close()
}

// notDescendant says why c is not known to descend.
type notDescendant struct{ why string }

func (e *notDescendant) Error() string { return e.why }

var (
	notBehind = &notDescendant{"does not descend from"}
	notShown  = &notDescendant{"could not be shown to descend from"}
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
func (l *localOrigin) close()           {}

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

// maxWalk bounds the commits of a local repository that are looked at.
const maxWalk = 1_000_000

func (l *localOrigin) descends(ctx context.Context, o objects, c *commit, ancestor string) error {
	found, complete, err := walk(ctx, o, c, ancestor, maxWalk)
	switch {
	case err != nil:
		return err
	case found:
		return nil
	case complete:
		return notBehind
	}
	return notShown
}

// walk looks for ancestor among the ancestors of c, as far as o has them.
func walk(ctx context.Context, o objects, c *commit, ancestor string, limit int) (found, complete bool, err error) {
	complete = true
	seen := map[plumbing.Hash]bool{}
	next := c.parents
	for len(next) > 0 {
		if err := ctx.Err(); err != nil {
			return false, false, err
		}
		h := next[0]
		next = next[1:]
		if seen[h] {
			continue
		}
		if h.String() == ancestor {
			return true, true, nil
		}
		if seen[h] = true; len(seen) > limit {
			return false, false, nil
		}
		_, raw, err := readObject(o, plumbing.CommitObject, h, maxCommit)
		if errors.Is(err, plumbing.ErrObjectNotFound) {
			complete = false // the history is cut off here
			continue
		}
		if err != nil {
			return false, false, err
		}
		behind, err := (&commit{}).decode(h, raw)
		if err != nil {
			return false, false, err
		}
		next = append(next, behind.parents...)
	}
	return false, complete, nil
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
func (r *remoteOrigin) close()           { r.remote.Close() }

func (r *remoteOrigin) list(ctx context.Context, names []string) (map[string]plumbing.Hash, error) {
	return r.remote.List(ctx, names)
}

// noLarge leaves out what no configuration file may be.
var noLarge = fmt.Sprintf("blob:limit=%d", schema.MaxFileBytes+1)

func (r *remoteOrigin) open(ctx context.Context, h plumbing.Hash) (objects, func(), error) {
	o, err := r.remote.Fetch(ctx, h, 1, noLarge, r.scratch)
	if err != nil {
		return nil, nil, err
	}
	return o, func() { _ = o.Remove() }, nil
}

// depths are how far back the history is fetched in turn.
var depths = []int{32, 512, 8192}

func (r *remoteOrigin) descends(ctx context.Context, _ objects, c *commit, ancestor string) error {
	for _, depth := range depths {
		o, err := r.remote.Fetch(ctx, c.hash, depth, "tree:0", r.scratch)
		if err != nil {
			return err
		}
		found, complete, err := walk(ctx, o, c, ancestor, maxWalk)
		if err = errors.Join(err, o.Remove()); err != nil {
			return err
		}
		if found {
			return nil
		}
		if complete {
			return notBehind
		}
	}
	return notShown
}

func (r *remoteOrigin) hints(context.Context, []string, func(string), *slog.Logger) (<-chan struct{}, func()) {
	return nil, func() {}
}
