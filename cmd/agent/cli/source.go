package cli

import (
	"context"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"dtesn-agent/apply"
	"dtesn-agent/watcher"
	"dtesn-agent/watcher/remote"
)

// A source is where Documents come from: watcher.Files or watcher.Git.
type source interface {
	apply.Source
	Run(ctx context.Context, sink watcher.Sink) error
	Stamp() time.Time
}

// gitSettings are the settings of a git repository as the source.
type gitSettings struct {
	repo, ref   string
	poll        time.Duration
	access      remote.Files
	verify      string
	signers     string
	allowRewind bool
	// insecure permits to send secrets over plain HTTP.
	insecure bool
}

const (
	defaultRef  = "main"
	defaultPoll = 30 * time.Second
)

func (g *gitSettings) flags(f *pflag.FlagSet) {
	f.StringVar(&g.repo, "repo", "", "take the configuration from the commits of this git `repository`: a path, https://, ssh://, user@host:path or http://")
	f.StringVar(&g.ref, "ref", defaultRef, "the branch, tag, refs/… or full commit to follow")
	f.DurationVar(&g.poll, "poll", defaultPoll, "how often a remote repository is asked, give or take a tenth; a local one is watched")
	f.StringVar(&g.access.Username, "git-username-file", "", "a `file` with the user's name, for HTTP")
	f.StringVar(&g.access.Password, "git-password-file", "", "a `file` with the password, for HTTP")
	f.StringVar(&g.access.Token, "git-token-file", "", "a `file` with an access token, for HTTP")
	f.BoolVar(&g.insecure, "allow-insecure-git", false, "send the password or token also over http://, unencrypted")
	f.StringVar(&g.access.SSHKey, "git-ssh-key-file", "", "a `file` with the private key, for SSH")
	f.StringVar(&g.access.SSHPassphrase, "git-ssh-passphrase-file", "", "a `file` with the passphrase of that key")
	f.StringVar(&g.access.KnownHosts, "git-known-hosts-file", "", "a `file` with the host's key, as ssh-keyscan prints it; SSH needs it")
	f.StringVar(&g.access.CA, "git-ca-file", "", "a PEM `file` with the certificates to trust instead of the system's")
	f.StringVar(&g.access.Cert, "git-cert-file", "", "a PEM `file` with a client certificate")
	f.StringVar(&g.access.Key, "git-key-file", "", "a PEM `file` with its key")
	f.StringVar(&g.verify, "verify", "", "what must be signed by an allowed signer, with SSH: commit, tag or both")
	f.StringVar(&g.signers, "allowed-signers", "", "the `file` that names who may sign, as in ssh-keygen(1), ALLOWED SIGNERS")
	f.BoolVar(&g.allowRewind, "allow-rewind", false, "let the ref move to a commit that does not descend from what runs")
}

// check finds what does not go together.
func (g *gitSettings) check() error {
	if g.repo == "" {
		for _, needless := range []struct {
			name string
			set  bool
		}{
			{"verify", g.verify != ""},
			{"allowed-signers", g.signers != ""},
			{"allow-rewind", g.allowRewind},
			{"allow-insecure-git", g.insecure},
			{"git-…-file", g.access != remote.Files{}},
			{"ref", g.ref != defaultRef},
			{"poll", g.poll != defaultPoll},
		} {
			if needless.set {
				return usage("--%s is for a git repository: name it with --repo", needless.name)
			}
		}
		return nil
	}
	switch watcher.VerifyMode(g.verify) {
	case "", watcher.VerifyCommit, watcher.VerifyTag, watcher.VerifyBoth:
	default:
		return usage("--verify: %q is none of commit, tag, both", g.verify)
	}
	if g.verify == "" && g.signers != "" {
		return usage("--allowed-signers has no effect without --verify commit, tag or both")
	}
	if (g.access.Cert == "") != (g.access.Key == "") {
		return usage("--git-cert-file and --git-key-file belong together")
	}
	if g.poll < 100*time.Millisecond || g.poll > 24*time.Hour {
		return usage("--poll: %s is out of range: 100ms to 24h", g.poll)
	}
	return nil
}

// openSource makes the source, and returns its kind, and after how long without a good
// read it is stale.
func (a *agent) openSource() (kind string, stale time.Duration, err error) {
	s := a.settings
	env := s.rules.Environment()
	read := func() { a.reconciler.SourceRead() }
	if s.git.repo == "" {
		a.source = watcher.NewFiles(watcher.FilesOptions{
			Root: s.config, Environment: env, Settle: s.settle, Resync: s.resync, Logger: a.log, OnRead: read,
		})
		a.location = s.config
		return "file", 3 * s.resync, nil
	}
	opt := watcher.GitOptions{
		Repo: s.git.repo, Ref: s.git.ref, Dir: s.config, Environment: env, Poll: s.git.poll,
		Scratch: filepath.Join(s.state, "source"), Access: s.git.access, AllowInsecure: s.git.insecure,
		Verify: watcher.VerifyMode(s.git.verify), Signers: s.git.signers, AllowRewind: s.git.allowRewind,
		Running: func() string { return a.reconciler.AppliedCommit() },
		OnRead:  read, Logger: a.log,
	}
	location, err := remote.Location(s.git.repo)
	if err != nil {
		return "", 0, usage("%w", err)
	}
	fact := "accepted-head " + s.git.ref + " " + location // the user in an address may be a token
	opt.Accepted = string(a.store.Fact(fact))
	if !s.observe {
		opt.OnAccept = func(commit string) { a.reconciler.Keep(fact, []byte(commit)) }
	}
	git, err := watcher.NewGit(opt)
	if err != nil {
		return "", 0, usage("%w", err)
	}
	a.source, a.location = git, git.Location()
	return "git", 3 * s.git.poll, nil
}
