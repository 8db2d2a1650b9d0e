package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/dtesn/bounded"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher"
)

// Settings are what `agent run` can be told. Each field's flag, environment
// variable (DTESN_AGENT_…) and key in agent.yaml are the same words; the help
// text of the flag is the documentation of the setting.
type settings struct {
	environment, config       string
	schema                    string
	declared                  *schema.Schema // of that file; see check
	rules                     *schema.Rules  // of the schema, for the environment; see check
	git                       gitSettings
	engine                    string
	embedded                  bool
	state, listen             string
	healthListen, instance    string
	allowedHosts              []string
	access                    status.AccessFiles
	sourceURL, hooks, policy  string
	settle, resync            time.Duration
	drift                     string
	driftInterval             time.Duration
	engineTimeout             time.Duration
	engineUID                 int
	probation                 time.Duration
	maxSnapshots, keep        int
	once, observe             bool
	onceTimeout               time.Duration
	logFormat, logLevel, file string
	dropped                   *atomic.Int64  // lines of the log; see logger
	level                     *slog.LevelVar // of the log
}

// flags defines the settings on a flag set.
func (s *settings) flags(f *pflag.FlagSet) {
	host, _ := os.Hostname() // without a name the setting is asked for
	f.SortFlags = false
	f.StringVar(&s.environment, "environment", "", "environment to run, one of the schema, such as production")
	f.StringVar(&s.instance, "instance", host, "the `name` of this instance; it chooses the cohorts of experiments")
	f.StringVar(&s.config, "config", "", "the `directory` with base.yaml and the environments' files; with --repo, the one within the repository")
	f.StringVar(&s.schema, schemaFlag, "", schemaUsage)
	f.StringVar(&s.policy, policyFlag, "", policyUsage+"; read again when it changes")
	f.DurationVar(&s.settle, "settle", 50*time.Millisecond, "how long files must be quiet before they are read; a rename is taken at once")
	f.DurationVar(&s.resync, "resync", 30*time.Second, "how often the files are read without an event")
	group(f, "Configuration")
	s.git.flags(f)
	group(f, "Git repository")
	f.StringVar(&s.engine, "engine", "", "the Unix `socket` of the DTESN server, such as /run/dtesn/engine.sock")
	f.BoolVar(&s.embedded, "embedded-engine", false, "run the reference engine in this process, on <state>/engine.sock")
	f.DurationVar(&s.engineTimeout, "engine-timeout", 10*time.Second, "how long the engine may take to answer")
	f.IntVar(&s.engineUID, "engine-uid", -1, "the `uid` that must have opened the engine's socket; nothing is asked of another's; -1 for any")
	f.StringVar(&s.drift, "drift", string(apply.DriftCorrect), "what to do when the engine was changed past the agent: correct or report")
	f.DurationVar(&s.driftInterval, "drift-interval", 30*time.Second, "how often the engine is asked what it runs")
	f.DurationVar(&s.probation, "probation", 0, "how long the engine must stay healthy on a change before it counts as applied; else it is rejected")
	group(f, "Engine")
	f.StringVar(&s.state, "state", "", "the `directory` for the snapshots and the control socket; one agent each")
	f.IntVar(&s.maxSnapshots, "max-snapshots", 50, "how many snapshots a listing shows by default")
	f.IntVar(&s.keep, "prune-history", 0, "keep the newest so many `records`, what is applied and where a rollback goes, and let older ones go by and by; 0 keeps all")
	group(f, "History")
	f.StringVar(&s.listen, "listen", "127.0.0.1:9310", "the `address` of the read-only HTTP endpoint; off loopback it needs TLS, and a token or client certificates")
	f.StringVar(&s.healthListen, "health-listen", "", "a second `address` that serves only /livez, /readyz and /metrics; may be off loopback")
	f.StringSliceVar(&s.allowedHosts, "allowed-hosts", nil, "`names` that --listen answers to besides loopback and its certificate's, separated by commas")
	f.StringVar(&s.access.Cert, "tls-cert-file", "", "a PEM `file` with the certificate of --listen, which then speaks HTTPS")
	f.StringVar(&s.access.Key, "tls-key-file", "", "a PEM `file` with its key")
	f.StringVar(&s.access.Token, "token-file", "", "a `file` with the tokens that --listen asks for, one a line")
	f.StringVar(&s.access.ClientCA, "client-ca-file", "", "a PEM `file` with the authorities whose client certificates --listen takes in place of a token")
	f.StringVar(&s.sourceURL, "source-url", "", sourceURLUsage+", for links on the page")
	group(f, "HTTP endpoint")
	f.StringVar(&s.file, "settings", "", "a YAML `file` with any of these settings, such as agent.yaml")
	f.StringVar(&s.hooks, "hooks", "", "a YAML `file` of webhooks and commands that are told what happens, or asked; SIGHUP reads it again")
	f.BoolVar(&s.once, "once", false, "bring the engine to what is declared, then exit: 0 applied or unchanged, 3 invalid or denied by the policy, 4 rejected now or held since then, 1 held by an operator or no outcome within --once-timeout")
	f.DurationVar(&s.onceTimeout, "once-timeout", time.Minute, "how long --once may take, waiting for an engine that is down included")
	f.BoolVar(&s.observe, "observe", false, "read, validate, compare and report, but never send or commit")
	f.StringVar(&s.logFormat, "log-format", "text", "log format: text (for people on a terminal, logfmt elsewhere), logfmt or json")
	f.StringVar(&s.logLevel, "log-level", "info", "the least level that is logged: debug, info, warn or error")
	group(f, "Running")
}

// settingNames are the names a setting may have, in whatever command.
func settingNames() []string {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(settings).flags(f)
	names := []string{}
	f.VisitAll(func(flag *pflag.Flag) { names = append(names, flag.Name) })
	return names
}

func newRun() *cobra.Command {
	s := &settings{}
	cmd := &cobra.Command{
		Use:   "run --environment NAME (--config DIR | --repo REPO [--config SUBDIR]) (--engine SOCKET | --embedded-engine) --state DIR",
		Short: "Watch the configuration and keep the engine on it",
		Long: `run watches a directory of YAML, or a git repository that holds one, checks
every change, applies it to the engine over its Unix socket, and records each
applied state in <state>/snapshots.git. It ends on SIGINT or SIGTERM, finishing
the change in flight; the engine keeps what it has. SIGHUP reads the source
now.

Each flag is also an environment variable (--drift-interval is
DTESN_AGENT_DRIFT_INTERVAL) and a key of the file given by --settings. A flag
beats the environment, which beats the file.`,
		Example: `  agent run --environment production --config ./config \
    --engine /run/dtesn/engine.sock --state /var/lib/dtesn-agent
  agent run --environment production --repo https://git.example.com/dtesn.git \
    --ref main --config config --engine /run/dtesn/engine.sock \
    --state /var/lib/dtesn-agent
  agent run --environment development --config examples/config \
    --embedded-engine --state .run/state`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := settle(cmd.Flags(), settingNames()); err != nil {
				return err
			}
			if err := checkGiven(cmd.Flags()); err != nil {
				return err
			}
			if err := s.check(cmd.Context()); err != nil {
				return err
			}
			return run(cmd.Context(), s, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	s.flags(cmd.Flags())
	completeEnvironment(cmd)
	complete(cmd, "drift", string(apply.DriftCorrect), string(apply.DriftReport))
	complete(cmd, "log-format", "text", "logfmt", "json")
	complete(cmd, "log-level", logLevels...)
	return cmd
}

// complete offers the values of a flag to a shell.
func complete(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

const sourceURLUsage = "the `address` of a line at your git host, with {commit}, {file} and {line}"

func checkSourceURL(template string) error {
	u, err := url.Parse(template)
	if template == "" || err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && strings.Contains(template, "{file}") && strings.Contains(template, "{commit}") {
		return nil
	}
	return usageHint("such as https://git.example.com/team/dtesn/blob/{commit}/config/{file}#L{line}", "--source-url: %q is not the address of a file", template)
}

// check finds what is wrong with the settings before anything is touched.
func (s *settings) check(ctx context.Context) error { return cmp.Or(s.problems(ctx)...) }

// problems returns all that is wrong with the settings. Without any, rules are set.
func (s *settings) problems(ctx context.Context) (found []error) {
	wrong := func(err error) {
		if err != nil {
			found = append(found, err)
		}
	}
	declared, err := openSchema(ctx, s.schema)
	wrong(err)
	names := "those of the schema"
	if err == nil {
		s.declared, names = declared, environmentNames(declared)
	}
	needs := []struct{ name, value, hint string }{
		{"environment", s.environment, "one of " + names},
		{"config", s.config + s.git.repo, "the directory with base.yaml, such as examples/config; or a git repository, with --repo"},
		{"state", s.state, "a directory that is this agent's alone, such as /var/lib/dtesn-agent"},
		{"instance", s.instance, "a name for this instance; this machine has no host name to take"},
	}
	for _, n := range needs {
		if n.value == "" {
			wrong(usageHint(n.hint, "--%s is needed", n.name))
		}
	}
	if declared != nil && s.environment != "" {
		if env, err := declared.ParseEnvironment(s.environment); err != nil {
			wrong(usage("--environment: %w", err))
		} else {
			s.rules = declared.For(env)
		}
	}
	wrong(s.git.check())
	if s.git.repo == "" && s.config != "" && inside(s.state, s.config) {
		wrong(usageHint("choose a directory outside: the configuration is watched and belongs to a repository of its own", "--state: %s lies in the configuration directory %s", s.state, s.config))
	}
	wrong(s.checkPolicy())
	switch {
	case s.embedded && s.engine != "":
		wrong(usageHint("choose the server's socket or the engine inside", "--engine and --embedded-engine exclude each other"))
	case !s.embedded && s.engine == "":
		wrong(usageHint("the server's socket, or --embedded-engine to try things out", "--engine is needed"))
	}
	if strings.Contains(s.engine, "://") {
		wrong(usageHint("start the server with a socket (uvicorn: --uds PATH) and name its path", "--engine: %q is an address, and the server is reached by a Unix socket", s.engine))
	}
	if s.once && s.observe {
		wrong(usage("--once and --observe exclude each other: one waits for an outcome that the other never brings"))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
		least time.Duration
	}{
		{"settle", s.settle, time.Millisecond},
		{"resync", s.resync, 100 * time.Millisecond},
		{"drift-interval", s.driftInterval, 100 * time.Millisecond},
		{"engine-timeout", s.engineTimeout, 10 * time.Millisecond},
		{"once-timeout", s.onceTimeout, 100 * time.Millisecond},
	} {
		if d.value < d.least || d.value > 24*time.Hour {
			wrong(usage("--%s: %s is out of range: %s to 24h", d.name, d.value, d.least))
		}
	}
	if s.probation < 0 || s.probation > 24*time.Hour {
		wrong(usage("--probation: %s is out of range: 0 (none) to 24h", s.probation))
	}
	if s.once && s.probation >= s.onceTimeout {
		wrong(usage("--once-timeout: %s leaves no time for --probation %s", s.onceTimeout, s.probation))
	}
	if int64(s.engineUID) > math.MaxUint32-1 || s.engineUID < -1 {
		wrong(usage("--engine-uid: %d is no uid; -1 is any", s.engineUID))
	}
	if s.maxSnapshots < 1 || s.maxSnapshots > 1000 {
		wrong(usage("--max-snapshots: %d is out of range: 1 to 1000", s.maxSnapshots))
	}
	if s.keep != 0 && s.keep < s.maxSnapshots {
		wrong(usageHint(fmt.Sprintf("use 0 (keep all), or at least --max-snapshots, %d", s.maxSnapshots), "--prune-history: %d would leave less than a listing shows", s.keep))
	}
	if d := apply.DriftMode(s.drift); d != apply.DriftCorrect && d != apply.DriftReport {
		wrong(usage("--drift: %q is neither correct nor report", s.drift))
	}
	if err := status.CheckAddress(s.listen); err != nil {
		wrong(usage("--listen: %w", err))
	} else if err := s.access.Check(s.listen); err != nil {
		wrong(usage("--listen: %w", err))
	}
	for _, name := range s.allowedHosts {
		if _, err := netip.ParseAddr(name); err != nil && (name == "" || strings.ContainsAny(name, ":/ *")) {
			wrong(usageHint("a name or an address, without scheme and port, such as status.example.com", "--allowed-hosts: invalid host %q", name))
		}
	}
	wrong(checkSourceURL(s.sourceURL))
	if s.healthListen != "" {
		if err := status.CheckAddress(s.healthListen); err != nil {
			wrong(usage("--health-listen: %w", err))
		}
	}
	_, err = s.logger(io.Discard)
	wrong(err)
	return found
}

// inside reports whether path is dir or lies below it.
func inside(path, dir string) bool {
	p, errP := filepath.Abs(path)
	d, errD := filepath.Abs(dir)
	return errP == nil && errD == nil && (p == d || strings.HasPrefix(p, d+string(filepath.Separator)))
}

// stopTime, besides --engine-timeout, is how long an agent takes to stop at the
// most: less than the managers of the examples wait before they kill it.
const stopTime = 20 * time.Second

// run is the life of an agent.
func run(ctx context.Context, s *settings, stdout, stderr io.Writer) error {
	line := &progress{w: stderr}
	logger, err := s.logger(line)
	if err != nil {
		return err
	}
	// Some libraries write to the log of the standard library, such as net/http's client.
	log.SetFlags(0)
	log.SetOutput(bounded.ErrorLog(logger, "library").Writer())
	a, err := assemble(ctx, s, logger)
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" { // a pod pays for memory: 5 MB less, and no slower, with so little garbage
		debug.SetGCPercent(50)
	}
	if s.once {
		defer line.show(func() string {
			now := a.reconciler.Status()
			return fmt.Sprintf("run --once: %s: %s", now.State, now.Reason)
		})()
	}
	if s.logFormat == "text" && !s.once {
		a.banner(stdout)
		if o, ok := stdout.(*output); ok {
			o.flush(flushTime / 10) // before the log says more
		}
	}
	err = runParts(ctx, stopTime+s.engineTimeout, a.stages(ctx)...)
	if stuck := (*stuckError)(nil); errors.As(err, &stuck) {
		return problem.New("", err, "see what hangs: the engine at "+a.socket+", or the disk or network file system under "+s.state+"; what is on record is finished at the next start")
	}
	defer a.close()
	if s.once && err == nil {
		return a.once.result(a.reconciler.Status())
	}
	if err == nil && s.embedded {
		logger.Info("stopped, and the embedded engine with it")
	} else if err == nil {
		logger.Info("stopped; the engine keeps what it has")
	}
	return err
}

// banner says in plain words what runs here and what to do with it.
func (a *agent) banner(w io.Writer) {
	s, self := a.settings, problem.ShellWord(os.Args[0])
	git := "git"
	if a.foreignOwner {
		git += " -c safe.directory=" + problem.ShellWord(a.repository)
	}
	engine, end := "the engine on "+a.socket, "the engine keeps what it has"
	if s.embedded {
		engine, end = "its embedded engine on "+a.socket, "the embedded engine ends with it"
	}
	what := fmt.Sprintf("keeps %s on what %s declares for %s", engine, a.location, s.environment)
	if s.observe {
		what = fmt.Sprintf("only observes: what %s declares for %s, beside %s", a.location, s.environment, engine)
	}
	edit := filepath.Join(s.config, s.environment+".yaml")
	switch {
	case s.git.repo != "" && watcher.IsCommit(s.git.ref):
		edit = fmt.Sprintf("nothing: --ref pins commit %s of %s", s.git.ref, a.location)
	case s.git.repo != "":
		edit = fmt.Sprintf("%s in a clone of %s; what the ref %s names counts", edit, a.location, s.git.ref)
	}
	records := fmt.Sprintf("  history   %s --git-dir %s log -p %s\n  go back   %s rollback --reason TEXT --state %s\n",
		git, problem.ShellWord(a.repository), s.environment, self, problem.ShellWord(s.state))
	if s.observe {
		records = ""
	}
	rules := ""
	if s.schema != "" {
		rules = fmt.Sprintf("  schema    %s, read once: restart the agent after a change\n", s.schema)
	}
	fmt.Fprintf(w, `agent %s (pid %d) %s.

  edit      %s
%s  status    %s/    or: %s status --state %s
%s  stop      Ctrl-C (%s)

`, version(), os.Getpid(), what, edit, rules,
		a.url, self, problem.ShellWord(s.state), records, end)
}
