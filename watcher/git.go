package watcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/document"
	"dtesn-agent/watcher/remote"
)

// VerifyMode selects what must be signed.
type VerifyMode string

// The modes; the empty one asks for no signature.
const (
	VerifyCommit VerifyMode = "commit"
	VerifyTag    VerifyMode = "tag"
	VerifyBoth   VerifyMode = "both"
)

// GitOptions configures a Git source.
type GitOptions struct {
	// Repo is a path of this machine or the address of a remote repository.
	Repo string
	// Ref is a branch, a tag, refs/… or a full commit; main if empty.
	Ref string
	// Dir is the configuration directory within the repository; its root if
	// empty.
	Dir         string
	Environment schema.Environment
	// Poll is how often a remote repository is asked, give or take a tenth, and
	// a local one looked at without a hint; 30 s if 0.
	Poll time.Duration
	// Scratch is a directory for what is fetched, of this source alone. What is
	// in it is removed at the start.
	Scratch string
	// Access are the files of secrets and of what is trusted. AllowInsecure permits
	// to send secrets over plain HTTP.
	Access        remote.Files
	AllowInsecure bool
	// Verify and Signers (a path, read anew each time) say who must have signed.
	Verify  VerifyMode
	Signers string
	// AllowRewind lets the ref move to what does not descend from what runs or was
	// accepted last.
	AllowRewind bool
	// Accepted is the head that was accepted last, "" if unknown. OnAccept, if set,
	// is called with each later one, so that it can be given here at the next start;
	// it must return at once.
	Accepted string
	OnAccept func(commit string)
	// Running returns the source commit of the applied record, "" for none.
	Running func() string
	// OnRead, if set, is called after a look without a new Document; it must
	// return at once.
	OnRead func()
	Logger *slog.Logger
}

const (
	// maxBackoff bounds how long a source that fails is left alone, unless its
	// server asks for more.
	maxBackoff = time.Minute
	// maxEarly is how many looks after a failure may come sooner than Poll, before
	// as many periods have passed.
	maxEarly = 8
)

// Git is a git repository as a source of Documents. Make it with NewGit, start
// it with Run; the other methods are safe from any goroutine.
type Git struct {
	opt    GitOptions
	ref    refSpec
	origin origin
	sync   chan struct{}
	asked  atomic.Bool
	// maxLook is when a look that goes on counts as stuck.
	maxLook time.Duration
	sourceState

	// What follows belongs to the look that is under way.
	last     lastPoll
	accepted string       // the last head that was not refused
	begun    atomic.Int64 // when, in Unix nanoseconds; 0 between two
	sink     Sink
	fails    int
	reported string    // the error that the sink knows
	early    int       // looks sooner than Poll that Poll has not made up for yet
	counted  time.Time // up to when they were
}

// How long a look may take. The remote one is the sum of the bounds of its
// requests.
const (
	maxRemoteLook = 30 * time.Minute
	maxLocalLook  = 2 * time.Minute
)

// lastPoll has what was delivered last, and what it depended on.
type lastPoll struct {
	target   string // the hash that the ref named
	accepted string // the commit it led to, if that was not refused
	signers  string // digest of the allowed signers
	running  string // what ran
	// again is when to judge anew all the same, zero for never: what was short
	// of proof may be proven by what the server has later. wait doubles.
	again time.Time
	wait  time.Duration
}

// isCurrent reports whether a look that sees now would find what s did. A revision
// that became what runs is judged already.
func (s lastPoll) isCurrent(now lastPoll) bool {
	return s.target == now.target && s.signers == now.signers && (s.running == now.running || s.accepted != "" && s.accepted == now.running) &&
		(s.again.IsZero() || time.Now().Before(s.again))
}

// NewGit makes a source; it checks what can be checked without the network,
// and touches nothing until Run.
func NewGit(opt GitOptions) (*Git, error) {
	if opt.Poll <= 0 {
		opt.Poll = 30 * time.Second
	}
	if opt.Ref == "" {
		opt.Ref = "main"
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.Running == nil {
		opt.Running = func() string { return "" }
	}
	ref, err := parseRef(opt.Ref)
	if err != nil {
		return nil, err
	}
	if opt.Dir, err = cleanDir(opt.Dir); err != nil {
		return nil, err
	}
	if opt.Verify != "" {
		if _, _, err := readSigners(opt.Signers); err != nil {
			return nil, err
		}
	}
	g := &Git{opt: opt, ref: ref, sync: make(chan struct{}, 1), sourceState: sourceState{mode: ModePoll, stamp: time.Now()}, accepted: opt.Accepted, counted: time.Now()}
	if remote.IsLocal(opt.Repo) {
		g.origin, g.maxLook = &localOrigin{path: opt.Repo}, maxLocalLook
	} else {
		r, err := remote.New(remote.Options{URL: opt.Repo, Files: opt.Access, AllowInsecure: opt.AllowInsecure})
		if err != nil {
			return nil, err
		}
		if why := r.Unsafe(); why != "" && opt.Verify == "" {
			opt.Logger.Warn("source is not authenticated", "repo", r.Location(), "reason", why)
		}
		g.origin, g.maxLook = &remoteOrigin{remote: r, scratch: opt.Scratch}, maxRemoteLook
	}
	return g, nil
}

// Location returns where the repository is, without secrets.
func (g *Git) Location() string { return g.origin.location() }

// CheckSigner returns why a revision that was taken earlier, as its record has it, would
// not be trusted now, nil if it would. The error says that the signers cannot be read.
func (g *Git) CheckSigner(s document.Source) (*document.Refusal, error) {
	if g.opt.Verify == "" {
		return nil, nil
	}
	trust, _, err := readSigners(g.opt.Signers)
	if err != nil {
		return nil, err
	}
	if err := trust.Allows(s.Key, clock()); err != nil {
		return &document.Refusal{Reason: err.Error(), Hint: g.signHint(err)}, nil
	}
	return nil, nil
}

// signHint returns what to do about a revision whose signature is not accepted.
func (g *Git) signHint(err error) string {
	return cmp.Or(problem.Hint(err), "sign it with a key in "+g.opt.Signers+", or have the key put there")
}

// Sync makes the loop look now, and returns at once.
func (g *Git) Sync() {
	g.asked.Store(true)
	poke(g.sync)
}

// Run looks at the repository until ctx ends, then returns nil. It is called
// once.
func (g *Git) Run(ctx context.Context, sink Sink) error {
	g.sink = sink
	if err := g.sweep(); err != nil {
		return err
	}
	hints, stop := g.origin.hints(ctx, g.ref.names(), g.setMode, g.opt.Logger)
	defer stop()
	turn := time.NewTicker(pollEvery)
	defer turn.Stop()
	due := time.NewTimer(0)
	defer due.Stop()
	over := make(chan time.Duration, 1)
	looking, again := false, false
	defer func() {
		if looking {
			<-over
		}
	}()
	look := func() {
		if again = looking; looking {
			return
		}
		looking = true
		due.Stop()
		g.begun.Store(time.Now().UnixNano())
		go func() { over <- g.look(ctx) }()
	}
	for {
		if !looking || time.Since(time.Unix(0, g.begun.Load())) < g.maxLook {
			g.heartbeat()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-turn.C:
		case <-due.C:
			look()
		case <-g.sync:
			look()
		case <-hints:
			look()
		case wait := <-over:
			looking = false
			due.Reset(wait)
			if again {
				look()
			}
		}
	}
}

// sweep removes what an earlier process left half fetched.
func (g *Git) sweep() error {
	if g.opt.Scratch == "" {
		return nil
	}
	if err := errors.Join(os.RemoveAll(g.opt.Scratch), os.MkdirAll(g.opt.Scratch, 0o700)); err != nil {
		return fmt.Errorf("make %s for what is fetched: %w", g.opt.Scratch, err)
	}
	return nil
}

// look looks once, tells the sink, and says when to look next.
func (g *Git) look(ctx context.Context) time.Duration {
	bounded, cancel := context.WithTimeout(ctx, g.maxLook)
	doc, err := g.read(bounded)
	if bounded.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("look at %s: not done within %s", g.origin.location(), g.maxLook)
	}
	cancel()
	g.origin.rest()
	if ctx.Err() != nil {
		return time.Hour
	}
	g.recordRead(err)
	told := ""
	if g.fails++; err != nil {
		g.last, told = lastPoll{}, problem.Text(err)
	} else {
		g.fails = 0
	}
	switch {
	case doc != nil:
		g.sink.Document(doc)
	case told != "" && told != g.reported:
		g.sink.SourceError(err)
	case g.opt.OnRead != nil:
		g.opt.OnRead()
	}
	g.reported = told
	return g.wait(err)
}

// wait returns the time to the next look: Poll give or take a tenth, so that a
// fleet does not ask at once. After a failure it is a second, doubled each time,
// or what the server asks for. Early looks are bounded: a source that fails
// again and again is not asked more often than Poll in the long run.
func (g *Git) wait(err error) time.Duration {
	periods := int(time.Since(g.counted) / g.opt.Poll)
	g.counted = g.counted.Add(time.Duration(periods) * g.opt.Poll)
	g.early = max(0, g.early-periods)
	d := g.opt.Poll
	if g.fails > 0 {
		backoff := min(time.Second<<min(g.fails-1, 10), max(maxBackoff, g.opt.Poll))
		if backoff >= d || g.early < maxEarly {
			d = backoff
			g.early++
		}
	}
	d = time.Duration(float64(d) * (0.9 + 0.2*rand.Float64()))
	return max(d, remote.RetryAfter(err))
}

// read is one look: nil and no error if nothing is new.
func (g *Git) read(ctx context.Context) (*document.Document, error) {
	target, err := g.target(ctx)
	if err != nil {
		return nil, err
	}
	now := lastPoll{target: target.hash.String(), running: g.opt.Running()}
	if g.asked.Swap(false) && !g.last.again.IsZero() {
		g.last.again = time.Unix(1, 0)
	}
	var trust *allowed
	if g.opt.Verify != "" {
		if trust, now.signers, err = readSigners(g.opt.Signers); err != nil {
			return nil, err
		}
	}
	if g.last.isCurrent(now) {
		return nil, nil
	}
	if g.last.target == now.target && g.last.signers != now.signers {
		g.opt.Logger.Info("the allowed signers changed; the revision is verified again", "revision", now.target)
	}
	tree, release, err := g.origin.open(ctx, target.hash)
	if err != nil {
		return nil, err
	}
	defer release()
	doc, proven, err := g.document(ctx, tree, target, trust, now.running)
	if err != nil {
		return nil, err
	}
	doc.Follows = now.running
	if doc.Refused == nil {
		now.accepted = doc.Source.Revision
		if g.accepted != now.accepted && g.opt.OnAccept != nil {
			g.opt.OnAccept(now.accepted)
		}
		g.accepted = now.accepted
	}
	if !proven {
		now.wait = min(max(2*g.last.wait, g.opt.Poll, time.Second), time.Hour)
		now.again = time.Now().Add(now.wait)
	}
	g.last = now
	return doc, nil
}

// document makes the Document of the commit that target leads to. It is not
// proven if it is refused for what could not be found out.
func (g *Git) document(ctx context.Context, o objects, target target, trust *allowed, running string) (doc *document.Document, proven bool, err error) {
	c, err := readCommit(o, target.hash)
	if err != nil {
		return nil, false, err
	}
	doc = &document.Document{Environment: g.opt.Environment, Source: document.Source{
		Kind: "git", Location: g.origin.location(), Revision: c.hash.String(), Author: c.author, Subject: c.subject,
	}}
	for _, parent := range c.parents {
		doc.Parents = append(doc.Parents, parent.String())
	}
	if trust != nil {
		who, err := trust.judge(g.opt.Verify, c, target)
		if err != nil {
			doc.Refused = &document.Refusal{
				Reason: fmt.Sprintf("commit %s is not trusted: %s", c.hash.String()[:12], err),
				Hint:   g.signHint(err),
			}
			return doc, true, nil
		}
		doc.Source.Signer, doc.Source.Key = who.Name, who.Key
	}
	if doc.Refused, proven, err = g.checkDescent(ctx, o, c, running); err != nil || doc.Refused != nil {
		return doc, proven, err
	}
	doc.Files, err = treeFiles(o, c, g.opt.Dir, g.opt.Environment)
	return doc, true, err
}

// checkDescent returns why the ref must not move to c: it descends neither from what
// was accepted last, which proves it at the cost of what is new, nor from running.
func (g *Git) checkDescent(ctx context.Context, o objects, c *commit, running string) (why *document.Refusal, proven bool, err error) {
	if running == "" && g.accepted == "" {
		return nil, true, nil
	}
	for _, ancestor := range []string{running, g.accepted} {
		if ancestor == c.hash.String() || c.child(ancestor) {
			return nil, true, nil
		}
	}
	not := errNotDescendant
	for _, ancestor := range slices.Compact([]string{g.accepted, running}) {
		if ancestor == "" {
			continue
		}
		err := g.origin.descends(ctx, o, c, plumbing.NewHash(ancestor))
		var verdict *notDescendant
		switch {
		case err == nil:
			return nil, true, nil
		case !errors.As(err, &verdict):
			return nil, false, err
		case verdict == errUnproven: // of either is enough to look again
			not = verdict
		}
	}
	last, what := running, "runs"
	if last == "" {
		last, what = g.accepted, "was accepted last"
	}
	reason := fmt.Sprintf("%s %s, which %s", not.why, last[:min(12, len(last))], what)
	if g.opt.AllowRewind {
		g.opt.Logger.Warn("ref rewound, as --allow-rewind permits", "ref", g.opt.Ref, "revision", c.hash.String(), "reason", reason)
		return nil, true, nil
	}
	why = &document.Refusal{
		Reason: fmt.Sprintf("%s was moved to %s, which %s", g.opt.Ref, c.hash.String()[:12], reason),
		Hint:   "if the history was rewritten on purpose, run the agent with --allow-rewind until it is applied; else put the ref back",
	}
	if not == errUnproven {
		why.Hint = "the server's copy may be shallow; it is looked at again by itself; to take it unproven, run the agent with --allow-rewind until it is applied"
	}
	return why, not != errUnproven, nil
}

// target is what the ref names.
func (g *Git) target(ctx context.Context) (target, error) {
	if !g.ref.commit.IsZero() {
		return target{hash: g.ref.commit}, nil
	}
	found, err := g.origin.list(ctx, g.ref.names())
	if err != nil {
		return target{}, err
	}
	t, err := g.ref.choose(found)
	if err != nil {
		return target{}, fmt.Errorf("%s: %w", strings.TrimSuffix(g.origin.location(), "/"), err)
	}
	return t, nil
}
