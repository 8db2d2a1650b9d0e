package status

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// shownViolations is how many violations the page shows; --json has them all.
const shownViolations = 10

// Text is the page of `agent status`, as things stand now. A loop that does not
// turn is said first, for the rest is from before.
func (s *Server) Text() string {
	page := Text(s.opt.Source.Status(), time.Now())
	full := s.Full()
	for _, h := range full.Hooks {
		page += fmt.Sprintf("%-10s %s\n", "hook", Plain(h.String()))
	}
	if full.EventsError != "" {
		page += fmt.Sprintf("%-10s cannot be recorded, and nobody is told any: %s\n", "events", Plain(full.EventsError))
	}
	for _, text := range full.HookErrors {
		page += fmt.Sprintf("%-10s %s\n", "hooks", Plain(text))
	}
	for _, text := range full.AccessErrors {
		page += fmt.Sprintf("%-10s %s\n", "listen", Plain(text))
	}
	if stuck := s.Stuck(); stuck != "" {
		page = fmt.Sprintf("%-10s %s; what follows is from before\n%-10s see whether the disk of --state hangs (the kernel's log), and end the agent if it stays so: the engine keeps what it runs\n\n", "stuck", stuck, "do") + page
	}
	return page
}

// Text is for an operator at night: the one word first, with why and what to
// do, then what runs, what was seen, what was tried, and what is in the way.
func Text(s *apply.Status, now time.Time) string {
	p := &page{now: now}
	p.line("state", string(s.State))
	if s.State == apply.StateInvalid {
		why := "the document is not valid, see attempted"
		if s.Source.LastError != "" {
			why += "; now the source cannot be read"
		}
		p.line("why", why)
	} else {
		p.line("why", s.Reason)
	}
	p.line("do", s.Hint)
	p.line("since", p.when(s.Since))
	if s.Source.LastError != "" {
		last := ""
		if s.Seen.Revision != "" {
			last = "; what it declared last still counts"
		}
		p.line("but", "the source cannot be read since "+p.when(s.Source.FailingSince)+last)
	}
	p.line("ready", yesNo(s.Ready, s.Unready))
	p.line("healthy", health(s.Checks(now)))
	p.line("in sync", yesNo(s.InSync, ""))
	p.gap()
	p.running(s)
	p.declared(s)
	p.obstacles(s)
	for _, f := range surroundings(s, p.when) {
		p.line(f.Name, f.Text)
	}
	return p.b.String()
}

type page struct {
	b   strings.Builder
	now time.Time
}

func (p *page) gap() { p.b.WriteByte('\n') }

func (p *page) line(name, value string) {
	if value != "" {
		fmt.Fprintf(&p.b, "%-10s %s\n", name, Plain(value))
	}
}

func (p *page) more(value string) { fmt.Fprintf(&p.b, "%-10s %s\n", "", Plain(value)) }

// short is enough of a revision to tell it from others.
func short(revision string) string { return revision[:min(12, len(revision))] }

// who is a revision and who stands behind it.
func who(revision string, by apply.Origin) string {
	text := short(revision)
	if by.Author != "" {
		text += fmt.Sprintf(", %s: %s", by.Author, by.Subject)
	}
	if by.Signer != "" {
		text += fmt.Sprintf(", signed by %s (%s)", by.Signer, by.Key)
	}
	return text
}

// when is a time as a date and as an age.
func (p *page) when(unix float64) string {
	if unix == 0 {
		return "never"
	}
	t := record.FromUnix(unix)
	return t.UTC().Format(time.RFC3339) + " (" + age(p.now.Sub(t)) + " ago)"
}

func age(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func (p *page) running(s *apply.Status) {
	if s.Current == nil {
		p.line("runs", "not known: the engine was not read since the agent started")
		if a := s.Applied; a != nil {
			p.more("applied last: " + a.ID + ", on record since " + p.when(a.Timestamp))
			p.parameters(a.Config, a.Config)
		}
		p.gap()
		return
	}
	r := s.Running
	switch {
	case !s.Engine.Reachable:
		p.line("ran", "when last read, "+p.when(s.Engine.LastRead)+"; now the engine "+how(s))
	case r.SnapshotID == "":
		p.line("runs", "something that no record says")
	case r.Confirmed:
		p.line("runs", r.SnapshotID+", since "+p.when(r.Since))
	default:
		p.line("runs", r.SnapshotID+", not yet confirmed")
	}
	p.parameters(*s.Current, applied(s))
	if r.SourceRevision != "" {
		p.more("declared by " + who(r.SourceRevision, r.Origin))
	}
	if r.RollbackSnapshot != "" {
		p.more("`agent rollback` goes back to " + r.RollbackSnapshot)
	}
	p.gap()
}

func applied(s *apply.Status) (p schema.Parameters) {
	if s.Applied != nil {
		p = s.Applied.Config
	}
	return p
}

// parameters lists what runs, and what is on record but the engine does not have.
func (p *page) parameters(runs, recorded schema.Parameters) {
	all := recorded.Map()
	maps.Copy(all, runs.Map())
	for _, name := range slices.Sorted(maps.Keys(all)) {
		value := runs.Get(name).String()
		if runs.Get(name).IsZero() {
			value = "not read: unknown to the engine, or to the schema"
		}
		p.more(fmt.Sprintf("%-30s %s", name, value))
	}
}

// how says how the engine is, to follow "the engine".
func how(s *apply.Status) string {
	switch {
	case s.Engine.Reachable:
		return "answers as " + s.Engine.Environment
	case s.Engine.Word == "":
		return "was not asked yet"
	}
	return s.Engine.Word
}

func (p *page) declared(s *apply.Status) {
	if s.Seen.Revision != "" {
		p.line("seen", short(s.Seen.Revision)+", "+p.when(s.Seen.At))
		if s.Seen.Revision == s.Source.Revision && s.Seen.Revision != s.Running.SourceRevision && s.Source.Author != "" {
			p.more("declared by " + who(s.Seen.Revision, s.Source.Origin))
		}
	}
	a := s.Attempted
	if a == nil {
		p.line("attempted", "nothing since the agent started")
		p.gap()
		return
	}
	which := short(a.Revision)
	if a.Revision == s.Seen.Revision {
		which = "what is seen"
	}
	outcome := string(a.Outcome)
	if a.Outcome == record.Applied && s.Applied != nil && slices.ContainsFunc(a.Changes, func(c schema.Change) bool { return !s.Applied.Config.Get(c.Parameter).Equal(c.New) }) {
		outcome += ", and then rolled back from"
	}
	p.line("attempted", fmt.Sprintf("%s: %s, %s", which, outcome, p.when(a.At)))
	if a.Outcome != record.Invalid && a.Outcome != record.Unchanged {
		p.line("", a.Reason)
	}
	for i, v := range a.Violations {
		if i == shownViolations {
			break
		}
		p.more(v.String())
	}
	if n := a.ViolationsTotal - shownViolations; n > 0 {
		p.more(fmt.Sprintf("and %d more: agent validate shows them", n))
	}
	p.gap()
}

func (p *page) obstacles(s *apply.Status) {
	if h := s.Held; h != nil {
		what := "held"
		if h.Paused {
			what = "paused"
		}
		for _, text := range HoldLines(h, s.Applied, p.when) {
			p.line(what, text)
			what = ""
		}
		p.more("ends with: agent resume" + map[bool]string{false: " [NAME], or once other values are applied"}[h.Paused])
		p.gap()
	}
	if d := s.Drift; d != nil {
		p.line("drift", "since "+p.when(d.Since))
		for _, c := range d.Differences {
			p.more(c.String())
		}
		p.gap()
	} else if d := s.LastDrift; d != nil {
		over := "not seen to end"
		if d.Until != 0 {
			over = "over " + p.when(d.Until)
		}
		p.line("last drift", p.when(d.At)+", "+over)
		for _, c := range d.Differences {
			p.more(c.String())
		}
		p.gap()
	}
}

// surroundings lists how the engine, the source and the agent itself are, for the text and
// the page; when formats a time. A fact without a name goes on with the one before.
func surroundings(s *apply.Status, when func(unix float64) string) (facts []pageFact) {
	line := func(name, text string) {
		if text != "" {
			facts = append(facts, pageFact{Name: name, Text: Plain(text)})
		}
	}
	engine := s.Engine.Socket + ", " + how(s)
	if s.Engine.FailingSince != 0 {
		engine += " since " + when(s.Engine.FailingSince)
	}
	line("engine", engine+", last read "+when(s.Engine.LastRead))
	if s.Engine.LastError != "" {
		line("", s.Engine.LastError)
		if !strings.HasPrefix(s.Hint, s.Engine.Hint) { // the line "do" has it
			line("", s.Engine.Hint)
		}
	}
	for _, d := range s.Engine.Differences {
		line("", "engine schema  "+d)
	}
	line("source", fmt.Sprintf("%s %s by %s, last read %s", s.Source.Kind, s.Source.Location, s.Source.Mode, when(s.Source.LastRead)))
	if s.Source.LastError != "" {
		line("", "cannot be read since "+when(s.Source.FailingSince)+": "+s.Source.LastError)
		if !strings.HasPrefix(s.Hint, s.Source.Hint) { // the line "do" has it
			line("", s.Source.Hint)
		}
	}
	line("agent", fmt.Sprintf("environment %s, instance %s, pid %d", s.Environment, s.Instance, os.Getpid()))
	line("schema", fmt.Sprintf("%s, digest %.12s", s.Schema.File, s.Schema.Digest))
	if p := s.Policy; p != nil {
		switch {
		case p.Error != "":
			line("policy", p.Directory+" cannot be used, every change is refused: "+p.Error)
			if !strings.HasPrefix(s.Hint, p.Hint) { // the line "do" has it
				line("", p.Hint)
			}
		case p.Usable:
			line("policy", fmt.Sprintf("%s, digest %.12s, %d cases pass", p.Directory, p.Digest, p.Cases))
		default:
			line("policy", p.Directory+", not loaded yet")
		}
	}
	line("records", fmt.Sprintf("%d in %s", s.TotalSnapshots, s.BackupDirectory))
	if s.StateVolatile != "" {
		line("", "holds and pauses do not outlive it: "+s.StateVolatile)
	}
	for _, r := range s.Repairs {
		line("repaired", r.Found+": "+r.Did)
		if r.Kept != "" {
			line("", "kept as "+r.Kept)
		}
	}
	for _, e := range s.Experiments {
		member := "not in it"
		if e.Member {
			member = "in it"
		}
		line("experiment", fmt.Sprintf("%s (%d %%): %s", e.Name, e.Percent, member))
	}
	return facts
}

func yesNo(yes bool, why string) string {
	switch {
	case yes:
		return "yes"
	case why == "":
		return "no"
	}
	return "no: " + why
}

// health names the checks that do not hold.
func health(c apply.Checks) string {
	checks := []struct {
		name string
		ok   bool
	}{
		{"config_manager_initialized", c.ConfigManagerInitialized},
		{"config_loaded", c.ConfigLoaded},
		{"snapshots_available", c.SnapshotsAvailable},
		{"backup_directory_writable", c.BackupDirectoryWritable},
		{"engine_reachable", c.EngineReachable},
		{"engine_environment", c.EngineEnvironment},
		{"source_fresh", c.SourceFresh},
	}
	var bad []string
	for _, check := range checks {
		if !check.ok {
			bad = append(bad, check.name)
		}
	}
	slices.Sort(bad)
	return yesNo(len(bad) == 0, strings.Join(bad, ", "))
}

// Plain makes foreign text safe for a terminal: one line, without control
// characters or those that turn the direction of writing.
func Plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) { // control characters, and those that turn the writing round
			return ' '
		}
		return r
	}, s)
}
