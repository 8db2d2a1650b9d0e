package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/hooks"
	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/dtesn"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher"
	"dtesn-agent/watcher/document"
	"dtesn-agent/watcher/remote"
)

func newDoctor() *cobra.Command {
	s := &settings{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor --state DIR [flags of agent run]",
		Short: "Look at everything an agent needs, and say what to do",
		Long: `doctor looks at the state directory and its volume, the history, the control
socket, the agent behind it and its hooks, the settings, the addresses to listen
on, the engine's socket and server, the source, the clock, the files with
secrets, and the versions. For each it says ok, or what is wrong and what to do;
a line that begins with - says what was not looked at, and why. It changes
nothing, and sends nothing to the server but GET.

It takes the flags, the environment variables and the settings file of agent
run: with all of them it can look at the server and the source although no agent
runs; with --state alone it takes the word of the running agent. What is given
and is not as the running agent has it is bad. That no agent runs is bad too,
but not with the settings of agent run before the first start, while nothing is
recorded.

Exit code 0 if all is ok, 1 if not.`,
		Example: `  agent doctor --state /var/lib/dtesn-agent
  agent doctor --settings /etc/dtesn/agent.yaml --json`,
		PreRunE: func(cmd *cobra.Command, _ []string) error { return settle(cmd.Flags(), settingNames()) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.state == "" {
				return usageHint("the directory that `agent run` was given; or set "+envName("state"), "--state is needed")
			}
			d := &doctor{settings: s}
			d.hasSettings = s.environment != "" || s.config != "" || s.git.repo != "" || s.engine != "" || s.embedded
			d.examine(cmd)
			return d.report(cmd, asJSON)
		},
	}
	s.flags(cmd.Flags())
	completeEnvironment(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, `print JSON: {"success", "findings": [{"check", "ok", "skipped", "text", "do"}]}`)
	return cmd
}

// A finding is what was found of one thing.
type finding struct {
	Check   string `json:"check"`
	OK      bool   `json:"ok"`
	Skipped bool   `json:"skipped,omitempty"` // it could not be looked at, which is no fault
	Text    string `json:"text"`
	Do      string `json:"do,omitempty"`
}

// A doctor looks at what an agent with these settings needs.
type doctor struct {
	settings    *settings
	hasSettings bool // and not --state alone
	findings    []finding
	rules       *schema.Rules // nil if the settings do not name them
	running     *report       // of the running agent, nil if none answers
}

func (d *doctor) add(check string, isOK bool, text, do string) {
	if isOK {
		do = ""
	}
	d.findings = append(d.findings, finding{Check: check, OK: isOK, Text: status.Plain(text), Do: status.Plain(do)})
}

// skip says why something was not looked at.
func (d *doctor) skip(check, why string) {
	d.findings = append(d.findings, finding{Check: check, OK: true, Skipped: true, Text: why})
}

// check adds an error as what is wrong, or text if there is none.
func (d *doctor) check(check string, err error, text string) {
	if err == nil {
		d.add(check, true, text, "")
		return
	}
	d.add(check, false, err.Error(), problem.Hint(err))
}

func (d *doctor) report(cmd *cobra.Command, asJSON bool) error {
	isOK := true
	for _, f := range d.findings {
		isOK = isOK && f.OK
	}
	if asJSON {
		if err := printJSON(cmd, map[string]any{"success": isOK, "findings": d.findings}); err != nil {
			return err
		}
	} else {
		for _, f := range d.findings {
			word := "ok"
			if f.Skipped {
				word = "-"
			} else if !f.OK {
				word = "bad"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%-6s%-12s%s\n", word, f.Check, f.Text)
			if f.Do != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "%-18sdo: %s\n", "", f.Do)
			}
		}
	}
	if !isOK {
		return quiet(exitFault)
	}
	return nil
}

func (d *doctor) examine(cmd *cobra.Command) {
	ctx := cmd.Context()
	isThere := d.checkState()
	var newest *record.Row
	isNew := !isThere && !exists(d.settings.state)
	if isThere {
		newest, isNew = d.checkHistory(ctx)
	}
	d.checkAgent(cmd, isThere, isNew)
	d.checkHooks()
	d.checkSettings(cmd)
	d.checkAddresses()
	d.checkSocket()
	d.checkServer(ctx)
	d.checkSource(ctx)
	d.checkClock(newest)
	d.checkFiles()
	d.checkPolicy(cmd)
	d.checkVersions(newest)
}

// checkSettings looks at all settings that are given, and compares them with those of the
// running agent.
func (d *doctor) checkSettings(cmd *cobra.Command) {
	s := d.settings
	if !d.hasSettings {
		d.skip("settings", "only --state is given; the rest is what the running agent says")
		return
	}
	found := append(s.problems(cmd.Context()), d.contradictions(cmd.Flags().Changed)...)
	d.rules = s.rules
	for _, err := range found {
		d.check("settings", err, "")
	}
	if len(found) == 0 {
		d.add("settings", true, "are those of an agent for "+s.environment, "")
	}
}

// contradictions returns which of the settings that are given the running agent has otherwise.
func (d *doctor) contradictions(isGiven func(flag string) bool) (found []error) {
	if d.running == nil {
		return nil
	}
	s, its := d.settings, d.running.Status
	compare := func(flag, given, running string, isSame bool) {
		if isGiven(flag) && !isSame {
			found = append(found, problem.New("", fmt.Errorf("--%s %s: the running agent has %s", flag, given, running), "correct --"+flag+", or restart the agent with it"))
		}
	}
	compare("environment", s.environment, string(its.Environment), s.environment == string(its.Environment))
	compare("instance", s.instance, its.Instance, s.instance == its.Instance)
	src := &its.Source
	location, err := remote.Location(s.git.repo) // without secrets
	switch {
	case err != nil: // the settings are wrong
	case s.git.repo != "" && src.Kind == "file":
		compare("repo", location, "the directory "+src.Location, false)
	case s.git.repo != "":
		compare("repo", location, src.Location, location == src.Location || remote.IsLocal(s.git.repo) && isSamePath(location, src.Location))
	case src.Kind == "git":
		compare("config", s.config, "the repository "+src.Location, false)
	default:
		compare("config", s.config, src.Location, isSamePath(s.config, src.Location))
	}
	compare("engine", s.engine, its.Engine.Socket, isSamePath(s.engine, its.Engine.Socket))
	compare("embedded-engine", fmt.Sprint(s.embedded), "the engine on "+its.Engine.Socket,
		s.embedded == isSamePath(filepath.Join(s.state, "engine.sock"), its.Engine.Socket))
	return found
}

// isSamePath reports whether a path is, or may be, the one that the running agent was given:
// that may be relative to the agent's directory, which is not known.
func isSamePath(given, running string) bool {
	if filepath.Clean(given) == filepath.Clean(running) {
		return true
	}
	a, errA := os.Stat(given)
	b, errB := os.Stat(running)
	if errA == nil && errB == nil && os.SameFile(a, b) {
		return true
	}
	full, err := filepath.Abs(given)
	running = filepath.Clean(running)
	return err == nil && !filepath.IsAbs(running) && (running == "." || strings.HasPrefix(running, "..") || strings.HasSuffix(full, "/"+running))
}

// checkHooks looks at how the hooks of the running agent are, and at what else it cannot use.
func (d *doctor) checkHooks() {
	if d.running == nil {
		return
	}
	its := d.running.Status
	for _, h := range its.Hooks {
		switch {
		case h.Off:
			d.add("hooks", false, h.String(), "bring its receiver back, or take it out of the file of --hooks")
		case h.FailingAt != 0:
			d.add("hooks", false, h.String(), "look at its receiver; what waits is told again by itself")
		}
	}
	for _, text := range its.HookErrors {
		d.add("hooks", false, text, "correct the file of --hooks, and send the agent SIGHUP")
	}
	for _, text := range its.AccessErrors {
		d.add("listen", false, text, "replace the file; the agent reads it again by itself")
	}
	if its.EventsError != "" {
		d.add("events", false, "cannot be recorded, and nobody is told any: "+its.EventsError, "look at the disk of --state")
	}
}

// checkAddresses holds that an agent could listen where the settings say.
func (d *doctor) checkAddresses() {
	if d.running != nil || !d.hasSettings || lockedBy(d.settings.state) != "" {
		return // its own addresses are in use
	}
	for _, f := range []struct{ flag, address string }{{"--listen", d.settings.listen}, {"--health-listen", d.settings.healthListen}} {
		if f.address == "" || status.CheckAddress(f.address) != nil {
			continue
		}
		l, err := status.Listen(f.flag, f.address)
		if err == nil {
			err = l.Close()
		}
		d.check("listen", err, f.address+" is free")
	}
}

// leastSpace is how much space a state directory should have.
const leastSpace = 64 << 20

// checkState looks at the state directory; it reports whether there is one.
func (d *doctor) checkState() bool {
	state := d.settings.state
	info, err := os.Stat(state)
	if errors.Is(err, fs.ErrNotExist) {
		parent := filepath.Dir(filepath.Clean(state))
		err = unix.Access(parent, unix.W_OK|unix.X_OK)
		if err != nil {
			err = problem.New("", fmt.Errorf("there is no %s, and it cannot be made in %s: %w", state, parent, err), "check --state, or make the directory for the agent's user, with mode 0700")
		}
		d.check("state", err, state+" does not exist yet; agent run makes it")
		return false
	}
	if err == nil && !info.IsDir() {
		err = errors.New("not a directory")
	}
	if err != nil {
		d.check("state", &problem.Error{Op: "look at", Place: state, Err: problem.Bare(err), Hint: "check --state, and run this as the user that runs the agent"}, "")
		return false
	}
	err = gitstore.CheckOwner(state)
	var disk unix.Statfs_t
	if err == nil {
		if err = unix.Access(state, unix.R_OK|unix.W_OK|unix.X_OK); err != nil {
			err = problem.New("", fmt.Errorf("%s cannot be written: %w", state, err), "run this as the user that runs the agent; else look at the mount and the mode")
		}
	}
	if err == nil {
		err = unix.Statfs(state, &disk)
	}
	free := disk.Bavail * uint64(max(0, disk.Bsize)) //nolint:gosec // it is not negative
	if err == nil && free < leastSpace {
		err = problem.New("", fmt.Errorf("%s has %d MiB of free space", state, free>>20), "make space: without it nothing new is applied")
	}
	d.check("state", err, fmt.Sprintf("%s, %d MiB free", state, free>>20))
	why := volatile(state)
	d.add("volume", why == "", cmp.Or(why, "outlives the agent, as far as its mount says"), "put --state on a persistent volume: holds and pauses end with this one")
	return true
}

// checkHistory returns the newest record; isNew reports that there is certainly none.
func (d *doctor) checkHistory(ctx context.Context) (newest *record.Row, isNew bool) {
	r, err := gitstore.OpenReader(d.settings.state)
	if err != nil {
		if entries, rerr := os.ReadDir(d.settings.state); rerr == nil && len(entries) == 0 {
			d.add("history", true, "nothing was recorded yet", "")
			return nil, true
		}
		d.check("history", err, "")
		return nil, false
	}
	defer func() { _ = r.Close() }()
	rows, err := r.List(ctx, "", 1)
	if err != nil || len(rows) == 0 {
		d.check("history", err, "nothing was recorded yet")
		return nil, err == nil
	}
	row := &rows[0]
	if row.IsDamaged() {
		err = problem.New("", fmt.Errorf("%s is damaged: %s", row.ID, strings.Join(row.Errors, "; ")), "run agent audit --verify, which reads all of it, and see Damaged history in docs/history.md")
	}
	d.check("history", err, fmt.Sprintf("the newest record is %s (%s) of %s", row.ID, row.Outcome, date(row.Timestamp)))
	return row, false
}

// checkAgent asks the running agent how things stand. Before the first start there is none.
func (d *doctor) checkAgent(cmd *cobra.Command, isThere, isNew bool) {
	state := d.settings.state
	switch {
	case isNew && d.hasSettings && lockedBy(state) == "" && !exists(filepath.Join(state, "agent.sock")):
		d.skip("socket", "no agent runs on "+state+", nor did one before")
		return
	case !isThere:
		d.add("socket", false, "no agent runs on "+state, "start `agent run`, or check --state")
		return
	}
	var r report
	err := ask(cmd, d.settings.state, http.MethodGet, "/status", nil, &r, answerTime)
	if err == nil && r.Status == nil {
		err = problem.New("", errors.New("the agent says nothing of how things stand"), "upgrade it to this version")
	}
	d.check("socket", err, filepath.Join(d.settings.state, "agent.sock")+" answers")
	if err != nil {
		return
	}
	d.running = &r
	s := r.Status
	switch {
	case !r.Live:
		d.add("agent", false, r.Why, "see whether the disk of --state hangs; restart the agent if it stays so")
	case s.State == apply.StateInSync || s.State == apply.StateApplying || s.State == apply.StateProbation || s.State == apply.StateObserving || s.State == apply.StateStarting:
		d.add("agent", true, strings.TrimSuffix(string(s.State)+": "+s.Reason, ": "), "")
	default:
		d.add("agent", false, string(s.State)+": "+s.Reason, cmp.Or(s.Hint, "agent status --state "+problem.ShellWord(d.settings.state)))
	}
}

// engineSocket is the path of the engine's socket, "" if it is unknown.
func (d *doctor) engineSocket() string {
	switch {
	case d.running != nil:
		return d.running.Status.Engine.Socket
	case d.settings.embedded:
		return "" // the agent makes it
	}
	return d.settings.engine
}

func (d *doctor) checkSocket() {
	path := d.engineSocket()
	if path == "" {
		return
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = problem.New("", fmt.Errorf("there is no socket %s", path), "start the server with it (uvicorn: --uds), or correct --engine")
	case err != nil:
	case info.Mode()&fs.ModeSocket == 0:
		err = problem.New("", fmt.Errorf("%s is not a socket", path), "correct --engine, or move what stands there away")
	case unix.Access(path, unix.W_OK) != nil:
		err = problem.New("", fmt.Errorf("%s cannot be written by uid %d (mode %04o)", path, os.Geteuid(), info.Mode().Perm()), "run server and agent as one user, or give them a group (mode 0660)")
	}
	d.check("engine", err, path+" is a socket that can be written")
}

// anyRules returns the rules, or where --environment is wrong those of another environment,
// nil if there is no schema either.
func (d *doctor) anyRules() *schema.Rules {
	if declared := d.settings.declared; d.rules == nil && declared != nil {
		return declared.For(declared.Environments()[0])
	}
	return d.rules
}

func (d *doctor) checkServer(ctx context.Context) {
	switch {
	case d.running != nil:
		e := &d.running.Status.Engine
		text := fmt.Sprintf("answers as %s, last read %s", e.Environment, date(e.LastRead))
		if !e.Reachable {
			d.add("server", false, cmp.Or(e.LastError, "was not read yet"), cmp.Or(e.Hint, "look at the server"))
		} else if len(e.Differences) > 0 {
			d.add("server", false, strings.Join(e.Differences, "; "), "upgrade the server, or give the agent the schema that fits it")
		} else {
			d.add("server", true, text, "")
		}
	case d.engineSocket() == "" || d.anyRules() == nil:
		d.skip("server", "not asked: no agent runs, and the settings of agent run are not given")
	default:
		rules := d.anyRules()
		opt := dtesn.Options{Socket: d.settings.engine, Rules: rules, Timeout: d.settings.engineTimeout, ReadOnly: true}
		if d.settings.engineUID >= 0 {
			uid := uint32(d.settings.engineUID) //nolint:gosec // it was checked
			opt.UID = &uid
		}
		client := dtesn.New(opt)
		reading, err := client.Read(ctx)
		_ = client.Close()
		text := fmt.Sprintf("answers as %s with %d parameters", reading.Environment, reading.Parameters.Len())
		for _, p := range rules.Parameters() {
			if err == nil && p.Required && !reading.Knows(p.Name) {
				err = problem.New("", fmt.Errorf("the engine does not know %s", p.Name), "upgrade the server, or take the parameter out of the schema")
			}
		}
		d.check("server", err, text)
	}
}

func (d *doctor) checkSource(ctx context.Context) {
	s := d.settings
	switch {
	case d.running != nil:
		src, checks := &d.running.Status.Source, &d.running.Checks
		text := fmt.Sprintf("%s %s, last read %s", src.Kind, src.Location, date(src.LastRead))
		if src.LastError != "" {
			d.add("source", false, src.LastError, cmp.Or(src.Hint, "see the agent's log"))
		} else {
			d.add("source", checks.SourceFresh, text, "see the agent's log: the source was not read for long")
		}
	case s.config == "" && s.git.repo == "" || d.anyRules() == nil:
		d.skip("source", "not read: no agent runs, and the settings of agent run are not given")
	case s.git.repo != "":
		d.checkRead(d.lookAtRepository(ctx), s.git.repo+" has a valid document at "+s.git.ref)
	default:
		d.checkRead(d.lookAtDirectory(), s.config+" is valid for "+s.environment)
	}
}

// checkRead adds how a source was read that no agent reads.
func (d *doctor) checkRead(err error, text string) {
	if err == nil && d.rules == nil {
		d.skip("source", "can be read; not checked without a valid --environment")
		return
	}
	d.check("source", err, text)
}

// lookAtDirectory reads the directory once, as the agent would.
func (d *doctor) lookAtDirectory() error {
	root, declared := d.settings.config, d.settings.declared
	if d.rules == nil && len((&review{schema: declared, root: root}).environmentsIn(root)) > 0 {
		return nil
	}
	w := &workspaceEdit{flags: &editFlags{root: root}, schema: declared}
	_, _, err := w.load(d.anyRules().Environment(), false)
	if found := (*schema.Violations)(nil); errors.As(err, &found) {
		err = problem.New("", found, configHint(declared, root, "agent validate "+problem.ShellWord(root)+" shows all of it"))
	}
	return err
}

// A firstLook is a watcher.Sink that takes one thing.
type firstLook struct {
	result chan error
	rules  *schema.Rules // nil if the document need not be valid
}

func (l *firstLook) Document(doc *document.Document) {
	if doc.Refused != nil {
		l.SourceError(problem.New("", errors.New(doc.Refused.Reason), doc.Refused.Hint))
		return
	}
	if l.rules == nil {
		l.SourceError(nil)
		return
	}
	_, violations := l.rules.Review(doc.Input(""))
	if violations != nil {
		l.SourceError(problem.New("", violations, "agent validate, in a clone, shows all of it"))
		return
	}
	l.SourceError(nil)
}

func (l *firstLook) SourceError(err error) {
	select {
	case l.result <- err:
	default:
	}
}

// lookTime is how long a look at a repository may take.
const lookTime = time.Minute

// lookAtRepository reads the repository once, as the agent would.
func (d *doctor) lookAtRepository(ctx context.Context) error {
	g := &d.settings.git
	scratch, err := os.MkdirTemp("", "agent-doctor-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	source, err := watcher.NewGit(watcher.GitOptions{
		Repo: g.repo, Ref: g.ref, Dir: d.settings.config, Environment: d.anyRules().Environment(), Poll: g.poll, Scratch: scratch,
		Access: g.access, AllowInsecure: g.insecure, Verify: watcher.VerifyMode(g.verify), Signers: g.signers, AllowRewind: true,
	})
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, lookTime)
	defer stop()
	look := &firstLook{make(chan error, 1), d.rules}
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx, look) }()
	select {
	case err = <-look.result:
	case err = <-done:
		if err == nil {
			err = problem.New("", fmt.Errorf("%s was not read within %s", g.repo, lookTime), "look at the network and the git server")
		}
		return err
	}
	stop()
	<-done
	return err
}

// checkClock compares the clock with the newest record.
func (d *doctor) checkClock(newest *record.Row) {
	now := time.Now()
	if newest != nil && newest.Timestamp > record.Unix(now.Add(time.Minute)) {
		d.add("clock", false, fmt.Sprintf("it is %s, and the newest record is of %s", now.UTC().Format(time.RFC3339), date(newest.Timestamp)), "set the clock: signatures, certificates and the history depend on it")
		return
	}
	text := now.UTC().Format(time.RFC3339)
	if state, err := unix.Adjtimex(&unix.Timex{}); err == nil && state == unix.TIME_ERROR {
		text += "; the kernel knows of no time server"
	}
	d.add("clock", true, text, "")
}

// checkFiles looks at the files that settings name: they must be readable, and those with
// secrets not by everybody.
func (d *doctor) checkFiles() {
	s := d.settings
	count, areGood := 0, true
	for _, f := range []struct {
		flag, path string
		isSecret   bool
	}{
		{"git-username-file", s.git.access.Username, false},
		{"git-password-file", s.git.access.Password, true},
		{"git-token-file", s.git.access.Token, true},
		{"git-ssh-key-file", s.git.access.SSHKey, true},
		{"git-ssh-passphrase-file", s.git.access.SSHPassphrase, true},
		{"git-known-hosts-file", s.git.access.KnownHosts, false},
		{"git-ca-file", s.git.access.CA, false},
		{"git-cert-file", s.git.access.Cert, false},
		{"git-key-file", s.git.access.Key, true},
		{"allowed-signers", s.git.signers, false},
		{"tls-cert-file", s.access.Cert, false},
		{"tls-key-file", s.access.Key, true},
		{"token-file", s.access.Token, true},
		{"client-ca-file", s.access.ClientCA, false},
	} {
		if f.path == "" {
			continue
		}
		count++
		info, err := os.Stat(f.path)
		if err == nil {
			err = unix.Access(f.path, unix.R_OK)
		}
		switch {
		case err != nil:
			d.add("permissions", false, fmt.Sprintf("--%s: %s cannot be read: %v", f.flag, f.path, problem.Bare(err)), "check the path, its owner and its mode")
		case f.isSecret && info.Mode().Perm()&0o004 != 0:
			d.add("permissions", false, fmt.Sprintf("--%s: everybody can read %s (mode %04o)", f.flag, f.path, info.Mode().Perm()), "chmod o-r "+problem.ShellWord(f.path))
		default:
			continue
		}
		areGood = false
	}
	if s.hooks != "" {
		if _, err := hooks.Load(s.hooks); err != nil {
			d.check("hooks", err, "")
		}
	}
	if areGood {
		d.add("permissions", true, fmt.Sprintf("%d files of the settings can be read", count), "")
	}
}

// checkPolicy loads the policy, as the agent does.
func (d *doctor) checkPolicy(cmd *cobra.Command) {
	j := policyCheck{dir: d.settings.policy}
	if j.dir == "" || d.rules == nil {
		return
	}
	err := j.open(cmd, d.rules.Schema())
	if err == nil {
		err = j.close()
	}
	d.check("policy", err, fmt.Sprintf("%s can be used, %d cases pass", j.dir, j.loaded.Cases))
}

// checkVersions compares this program with the running agent and the history.
func (d *doctor) checkVersions(newest *record.Row) {
	text := fmt.Sprintf("agent %s, snapshot format %d", version(), record.FormatByName)
	if newest != nil && newest.AgentVersion != "" && newest.AgentVersion != version() {
		text += "; the newest record is of agent " + newest.AgentVersion
	}
	if d.running != nil && d.rules != nil {
		if mine, its := d.rules.Schema().Digest(), d.running.Status.Schema.Digest; mine != its {
			d.add("versions", false, fmt.Sprintf("the running agent has the schema %.12s, these settings the schema %.12s", its, mine), "restart the agent, or give --schema as it has it")
			return
		}
	}
	d.add("versions", true, text, "")
}
