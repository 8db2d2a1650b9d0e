// Package remote reads a git repository over HTTP or SSH: what its refs name,
// and the objects of one commit.
//
// The protocol's messages, packs and indexes are go-git's. The connections are
// this package's own, because go-git's transports bound neither bytes nor time,
// keep connections without a limit and drop the reason of an error. Over HTTP
// refs are listed by protocol 2, which names those that are asked for instead
// of all.
//
// Each look makes a new connection: a kept one outlives a dead peer and a name
// that moved. Nothing that a server sends is trusted: responses, packs and times
// are bounded, a redirect may not leave the host, and foreign text is one short
// line. Secrets are read from files at each use and appear in no error.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"dtesn-agent/schema/problem"
)

const agent = "dtesn-agent"

// The bounds of what is read.
const (
	maxListing  = 16 << 20 // bytes of a list of refs that is kept, about 200,000
	maxSkipped  = 64 << 20 // bytes of one that is passed over
	maxPack     = 64 << 20 // bytes of a pack
	maxObject   = 16 << 20 // bytes of one object in it
	maxInflated = 64 << 20 // bytes of all objects in it
	maxBases    = 16 << 30 // bytes of the bases of all deltas in it, each time they are used
	maxObjects  = 100_000  // in a pack
)

// timeouts bound how long things may take.
type timeouts struct {
	list, fetch time.Duration // the whole of it
	silence     time.Duration // without a byte
}

var defaultTimeouts = timeouts{list: 30 * time.Second, fetch: 5 * time.Minute, silence: 30 * time.Second}

// Options name a repository and the files with its credentials.
type Options struct {
	URL   string
	Files Files
	// AllowInsecure permits to send a password or token over plain HTTP.
	AllowInsecure bool
}

// Files are the paths of secrets and of what is trusted. Each is read at each
// use, so that a rotation needs no restart; empty ones are not used.
type Files struct {
	Username, Password, Token         string // HTTP
	CA, Cert, Key                     string // TLS, PEM
	SSHKey, SSHPassphrase, KnownHosts string // SSH
}

// A Remote is one repository. Its methods are called from one goroutine at a
// time.
type Remote struct {
	opt       Options
	at        address
	transport transport
	timeouts  timeouts
}

// Refs are what refs name, by full name.
type Refs map[string]plumbing.Hash

// A transport speaks to the upload-pack service of one repository.
type transport interface {
	// list returns the refs in names that exist.
	list(c *call, names []string) (Refs, error)
	// fetch requests a pack and passes it to take.
	fetch(c *call, w Want, take func(io.Reader) error) (response, error)
	// explain returns an error with a hint for what it knows more about, or nil.
	explain(err error) error
	// secrets returns the credentials that were sent last.
	secrets() []string
	// rest closes the connection.
	rest()
}

// A Want is what Fetch fetches: a commit or tag, with Depth generations of its
// history (0: all), without the objects that Filter leaves out, such as
// "blob:limit=1048577", and without what is reachable from the commit Have.
// Depth and Filter are ignored where the server does not offer them.
type Want struct {
	Hash   plumbing.Hash
	Depth  int
	Filter string
	Have   plumbing.Hash
}

// New checks the address and what can be checked without the network.
func New(opt Options) (*Remote, error) {
	at, err := parse(opt.URL)
	if err != nil {
		return nil, err
	}
	r := &Remote{opt: opt, at: at, timeouts: defaultTimeouts}
	if at.scheme == "ssh" {
		r.transport, err = newSSH(at, opt.Files)
	} else {
		r.transport, err = newHTTP(at, opt)
	}
	return r, err
}

// Location returns the address, without secrets.
func (r *Remote) Location() string { return r.at.String() }

// Unsafe returns why the configuration could come from somebody else, or "" if
// the server authenticates itself.
func (r *Remote) Unsafe() string {
	if r.at.scheme == "http" {
		return "http:// is neither encrypted nor authenticated; use https:// or ssh://, or signed commits"
	}
	return ""
}

// Rest ends the connection of a look.
func (r *Remote) Rest() { r.transport.rest() }

// List returns what the refs in names are. Missing refs are not in it.
func (r *Remote) List(ctx context.Context, names []string) (found Refs, err error) {
	err = r.within(ctx, r.timeouts.list, func(c *call) (err error) {
		if found, err = r.transport.list(c, names); err == nil && slices.Contains(slices.Collect(maps.Values(found)), plumbing.ZeroHash) {
			err = &notGitError{"a ref without a hash"}
		}
		return err
	})
	if err != nil {
		return nil, r.fail("list the refs of", err)
	}
	return found, nil
}

// Fetch fetches into a new directory below parent.
func (r *Remote) Fetch(ctx context.Context, w Want, parent string) (*Objects, error) {
	dir, err := os.MkdirTemp(parent, "fetch-")
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", w.Hash, err)
	}
	o := &Objects{Storage: filesystem.NewStorage(osfs.New(dir), cache.NewObjectLRU(4<<20)), dir: dir}
	err = r.within(ctx, r.timeouts.fetch, func(c *call) (err error) {
		o.response, err = r.transport.fetch(c, w, o.take)
		if err == nil && w.Have.IsZero() && o.HasEncodedObject(w.Hash) != nil {
			err = &notGitError{"the pack lacks the requested object"}
		}
		return err
	})
	if err != nil {
		return nil, r.fail("fetch "+w.Hash.String()[:12]+" from", errors.Join(err, o.Remove()))
	}
	return o, nil
}

// within runs do for at most limit. After a failure the connection is not used
// again.
func (r *Remote) within(ctx context.Context, limit time.Duration, do func(*call) error) error {
	c := &call{silence: r.timeouts.silence}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	defer c.cancel(nil)
	timer := time.AfterFunc(limit, func() { c.cancel(errSlow) })
	defer timer.Stop()
	err := do(c)
	if err != nil {
		var status *statusError
		if cause := context.Cause(c.ctx); cause != nil && !errors.As(err, &status) {
			err = cause // the error of the cut connection says less
		}
		r.Rest()
	}
	return err
}

// fail makes the error that List and Fetch return, whose text is one line. A
// server may have repeated what it was sent; the error never does.
func (r *Remote) fail(attempt string, err error) error {
	hint, cause := r.explain(err)
	failed := &remoteError{cause, isTemporary(err)}
	if leaks(serverText(cause), r.transport.secrets()) {
		failed.err, hint = errors.New("the server repeats the credentials that it was sent"), ""
	}
	return &problem.Error{Op: attempt, Place: r.at.String(), Err: failed, Hint: hint}
}

// explain returns a hint for an error, and what of it is reported.
func (r *Remote) explain(err error) (hint string, cause error) {
	var large *tooLargeError
	var server *serverError
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "dial":
		return "check the host and port in --repo, and the network and the firewalls on the way", op
	case errors.As(err, &large):
		return "keep the configuration in a repository of its own", large
	case errors.As(err, &server):
		return "check --repo and --ref", server
	case errors.Is(err, errSlow), errors.Is(err, context.DeadlineExceeded):
		return "the server is too slow, or the repository too large", errSlow
	}
	if e := r.transport.explain(err); e != nil {
		err = e
	}
	var own *problem.Error
	if errors.As(err, &own) {
		return own.Hint, own
	}
	return "", err
}
