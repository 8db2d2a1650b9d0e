// Package remote reads a git repository over the network: what its refs name,
// and the objects of one commit. It speaks git's wire protocol, version 2 where
// the server does and else 0 or 1, over HTTP, SSH and git's own port.
//
// go-git's transports are not used: they speak only the old versions, which
// list every ref at every poll, make a new connection each time, and bound
// neither bytes nor time. What they encode in objects, packs and indexes is.
//
// Nothing that a server sends is trusted: an advertisement, a pack and each
// step of time are bounded, a redirect may not leave the host, and foreign
// text is one short line. Secrets are read from files at each use and stand in
// no error.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"dtesn-agent/schema/problem"
)

const agent = "dtesn-agent"

// The bounds. A listing of a host with 100,000 refs is about 8 MiB.
const (
	maxListing  = 64 << 20  // bytes of an advertisement
	maxPack     = 128 << 20 // bytes of a pack
	maxObject   = 32 << 20  // bytes of one object in it
	maxInflated = 256 << 20 // bytes of all objects in it
)

// patience is how long things may take.
type patience struct {
	list, fetch time.Duration // the whole of it
	silence     time.Duration // without a byte
}

var patient = patience{list: 30 * time.Second, fetch: 5 * time.Minute, silence: 30 * time.Second}

// Options say which repository, and how to be let in.
type Options struct {
	URL   string
	Files Files
	// Progress, if set, gets the server's words on how a fetch goes.
	Progress io.Writer
	Logger   *slog.Logger
}

// Files are the paths of secrets and of what is trusted. Each is read anew
// when it is used, so that a rotation needs no restart; empty ones are not
// used.
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
	patience  patience
	// known is what the server said of itself when it was last asked; over
	// HTTP it need not be asked again.
	known *advert
	// session is what is open; nil at rest.
	session *session
}

// A transport brings messages to a server.
type transport interface {
	// open begins an exchange, which b bounds. known says that the
	// advertisement need not be sent again, where that can be.
	open(b bounds, known bool) (exchange, error)
	// explain returns a *problem.Error for what it knows more about, nil for
	// anything else.
	explain(err error) error
	// secrets are what was last sent to be let in.
	secrets() []string
	close()
}

// An exchange is one advertisement and at most two requests with their answers.
type exchange interface {
	// advert is the advertisement, nil if it was not asked for.
	advert() *pktReader
	request(m message) (*pktReader, error)
	close()
}

// New checks the address and what can be checked without the network.
func New(opt Options) (*Remote, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	at, err := parse(opt.URL)
	if err != nil {
		return nil, err
	}
	r := &Remote{opt: opt, at: at, patience: patient}
	switch at.scheme {
	case "http", "https":
		r.transport = &httpTransport{at: at, files: opt.Files}
	case "ssh":
		if opt.Files.KnownHosts == "" {
			return nil, problem.New("", errors.New("host keys of "+at.host+" cannot be checked without --git-known-hosts-file"), "`"+at.keyscan()+"` prints them; compare them with what the host's administrator says")
		}
		if opt.Files.SSHKey == "" {
			return nil, problem.New("", errors.New("--git-ssh-key-file is needed for "+at.String()), "give the private key that may read the repository")
		}
		r.transport = &sshTransport{at: at, files: opt.Files}
	case "git":
		r.transport = &tcpTransport{at: at}
	}
	return r, nil
}

// Location is the address, without secrets.
func (r *Remote) Location() string { return r.at.String() }

// Unsafe says why what this address brings could be anybody's; empty if the
// server proves who it is.
func (r *Remote) Unsafe() string {
	if s := r.at.scheme; s == "http" || s == "git" {
		return s + ":// is neither encrypted nor authenticated: whoever is on the way can change the configuration; use https:// or ssh://, or signed commits"
	}
	return ""
}

// Close gives the connection back.
func (r *Remote) Close() {
	r.Rest()
	r.transport.close()
}

// Rest ends what List left open for a Fetch. The connection is kept.
func (r *Remote) Rest() {
	if r.session != nil {
		r.session.end()
		r.session = nil
	}
}

// List asks what the refs in names are. Those that do not exist are not in the
// answer.
func (r *Remote) List(ctx context.Context, names []string) (found Refs, err error) {
	list := func(s *session) (err error) {
		if s.said.version != 2 {
			found = s.said.refs
			return nil
		}
		p, err := s.request(lsRefs(names))
		if err == nil {
			found, err = readRefs(p, names)
		}
		return err
	}
	r.Rest()
	relied := r.known != nil
	err = r.within(ctx, r.patience.list, names, list)
	if err != nil && relied {
		// what was known may be of another server by now
		err = r.within(ctx, r.patience.list, names, list)
	}
	if err != nil {
		return nil, r.fail("list the refs of", err)
	}
	return found, nil
}

// Refs are what refs name, by full name; the commit of an annotated tag stands
// under the name with "^{}" behind.
type Refs = refs

// Fetch brings a commit, or a tag, with depth generations of its history into
// a new directory below parent. filter, such as "blob:limit=1048577", leaves
// objects out where the server can.
func (r *Remote) Fetch(ctx context.Context, hash plumbing.Hash, depth int, filter, parent string) (*Objects, error) {
	dir, err := os.MkdirTemp(parent, fetchPrefix)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", hash, err)
	}
	o := &Objects{Storage: filesystem.NewStorage(osfs.New(dir), cache.NewObjectLRU(4<<20)), dir: dir}
	err = r.within(ctx, r.patience.fetch, nil, func(s *session) error {
		return r.fetch(s, want{hash, depth, filter}, o)
	})
	if err != nil {
		return nil, r.fail("fetch "+hash.String()[:12]+" from", errors.Join(err, o.Remove()))
	}
	return o, nil
}

func (r *Remote) fetch(s *session, w want, o *Objects) error {
	p, err := s.request(s.said.fetchRequest(w, r.opt.Progress != nil))
	if err != nil {
		return err
	}
	if err := s.said.readToPack(p); err != nil {
		return err
	}
	if err := o.take(&packReader{p: p, progress: r.progress()}); err != nil {
		return err
	}
	if err := o.HasEncodedObject(w.hash); err != nil {
		return &notGitError{"the pack does not hold what was asked for"}
	}
	o.Filtered = w.filter != "" && s.said.canFilter()
	r.Rest() // in one process git upload-pack mixes up the depths of two fetches
	return nil
}

// fail makes the error that List and Fetch return, whose text is one line. A
// server may have repeated what it was sent; the error never does.
func (r *Remote) fail(attempt string, err error) error {
	hint, cause := r.explain(err)
	e := &problem.Error{Op: attempt, Place: r.at.String(), Err: &fault{cause, passes(err)}, Hint: hint}
	if leaks(problem.Text(e), r.transport.secrets()) {
		e.Err, e.Hint = errors.New("the server repeats the login that it was sent"), ""
	}
	return e
}

// explain returns what to do about an error, and what of it is reported.
func (r *Remote) explain(err error) (hint string, cause error) {
	var large *tooLargeError
	var server *serverError
	switch {
	case errors.As(err, &large):
		return "keep the configuration in a repository of its own", large
	case errors.As(err, &server):
		return "look at --repo and --ref", server
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

// A bounded reader fails, rather than ends, where too much comes.
type bounded struct {
	r           io.Reader
	left, limit int64
	what        string
	err         error
}

func bound(r io.Reader, limit int64, what string) *bounded {
	return &bounded{r: r, left: limit, limit: limit, what: what}
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 && b.err == nil {
		b.err = &tooLargeError{b.what, b.limit}
	}
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

// Sweep removes what fetches that were cut short left below parent.
func Sweep(parent string) error {
	left, err := os.ReadDir(parent)
	for _, dir := range left {
		if strings.HasPrefix(dir.Name(), fetchPrefix) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(parent, dir.Name())))
		}
	}
	return err
}

const fetchPrefix = "fetch-"

// progress is where a server's words on a fetch go, unless they repeat the login.
func (r *Remote) progress() io.Writer {
	if r.opt.Progress == nil {
		return nil
	}
	return discreet{r.opt.Progress, r.transport.secrets()}
}

type discreet struct {
	w       io.Writer
	secrets []string
}

func (d discreet) Write(b []byte) (int, error) {
	if leaks(string(b), d.secrets) {
		return len(b), nil
	}
	return d.w.Write(b)
}
