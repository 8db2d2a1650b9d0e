package status

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

//go:embed page.html page.css page.js assets/idiomorph.min.js
var assets embed.FS

var (
	pageTemplate = template.Must(template.ParseFS(assets, "page.html"))
	pageStyle    = mustRead("page.css")
	pageScript   = mustRead("assets/idiomorph.min.js") + mustRead("page.js")
	// pagePolicy allows the page its own style and script, its stream and its form.
	pagePolicy = fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
		hashOf(pageStyle), hashOf(pageScript))
)

func mustRead(name string) string {
	text, err := assets.ReadFile(name)
	if err != nil {
		panic(err) // it is embedded
	}
	return string(text)
}

// hashOf returns the source expression of a style or script: CSP 3, hash-source.
func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

const (
	// pageHistory is how many records the page knows: those in the timelines.
	pageHistory = 200
	// pageRecords is how many it lists at a time.
	pageRecords  = 30
	pageAttempts = 5
	// pageEvery is the least time between two pages of a stream.
	pageEvery = 250 * time.Millisecond
)

// A pageQuery is what a reader of the page asks for.
type pageQuery struct {
	before   string // records behind this one
	from, to string // records to compare
}

func queryOf(q *http.Request) pageQuery {
	v := q.URL.Query()
	return pageQuery{v.Get("before"), v.Get("from"), v.Get("to")}
}

// A pageData is what page.html shows. Tones are the classes ok, busy, warn and bad.
type pageData struct {
	Style  template.CSS
	Script template.JS // "" in a report
	Live   bool

	State, Tone, Environment, Instance, Stuck, Why, Do, Now string
	Checks                                                  []pageFact
	Commands                                                []pageFact
	Held                                                    *pageHold
	Drift                                                   *pageDrift
	RunsTitle, RunsNote                                     string
	Parameters                                              []pageParameter
	Attempts                                                []pageAttempt
	Timelines                                               []timeline
	History                                                 []pageRecord
	HistoryError, Before                                    string
	Diff                                                    *pageDiff
	Hooks, Facts                                            []pageFact
}

type pageFact struct{ Name, Text, Tone string }

type pageHold struct {
	Title, By string
	Entries   []struct{ Text, Command string }
}

type pageDrift struct {
	Title   string
	Changes []string
}

type pagePlace struct{ Text, URL string }

type pageParameter struct {
	Name, Description, Value, Unit, Wants, Since, By string
	Place                                            pagePlace
}

type pageAttempt struct {
	Outcome, Tone, When, Record, Reason string
	Changes                             []string
	Violations                          []pageViolation
	More                                int
}

type pageViolation struct {
	Place               pagePlace
	Message, Hint, Text string
}

type pageRecord struct {
	ID, Tone, When, Kind, Outcome, Description, By string
	Changes                                        []string
	IsActive, IsFrom, IsTo                         bool
}

type pageDiff struct {
	From, To, Error string
	Changes         []schema.Change
}

// Page returns the page as things stand: HTML without a request to anywhere; with isLive
// it follows what happens.
func (s *Server) Page(ctx context.Context, q pageQuery, isLive bool) []byte {
	data := s.pageData(ctx, q)
	data.Style, data.Live = template.CSS(pageStyle), isLive //nolint:gosec // it is ours
	if isLive {
		data.Script = template.JS(pageScript) //nolint:gosec // it is ours
	}
	return execute("page.html", data)
}

func execute(name string, data *pageData) []byte {
	var b bytes.Buffer
	if err := pageTemplate.ExecuteTemplate(&b, name, data); err != nil {
		panic(err) // guarded answers and logs it
	}
	return b.Bytes()
}

// Report returns the page as one file, without a script.
func (s *Server) Report(ctx context.Context) []byte { return s.Page(ctx, pageQuery{}, false) }

func (s *Server) page(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Vary", "Accept")
	if !strings.Contains(q.Header.Get("Accept"), "text/html") {
		text(w, http.StatusOK, s.Text())
		return
	}
	w.Header().Set("Content-Security-Policy", pagePolicy)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(s.Page(q.Context(), queryOf(q), true))
}

// live answers with the main part of the page each time it changes, as server-sent events.
func (s *Server) live(w http.ResponseWriter, q *http.Request) {
	stream := s.newStream(w, q)
	defer stream.end()
	for stream != nil {
		update := s.opt.Source.Latest()
		var b strings.Builder
		b.WriteString("event: page\n")
		for line := range strings.Lines(string(s.mainPart(q.Context(), update, queryOf(q)))) {
			b.WriteString("data: " + strings.TrimRight(line, "\r\n") + "\n")
		}
		if stream.send(b.String()+"\n") != nil || !stream.wait(q.Context(), update.Replaced()) {
			return
		}
		select { // a burst is one page
		case <-q.Context().Done():
			return
		case <-time.After(pageEvery):
		}
	}
}

// A rendering is the main part of the page for one status. All who listen get the same.
type rendering struct {
	mu     sync.Mutex
	update *apply.Update
	text   []byte
}

func (s *Server) mainPart(ctx context.Context, update *apply.Update, q pageQuery) []byte {
	render := func() []byte {
		data := s.pageData(ctx, q)
		data.Live = true
		return execute("main", data)
	}
	r := &s.rendering
	r.mu.Lock() // listeners are many, and each page reads the history
	defer r.mu.Unlock()
	if q != (pageQuery{}) {
		return render()
	}
	if r.update != update {
		r.update, r.text = update, render()
	}
	return r.text
}

func toneOf(state apply.Condition) string {
	switch state {
	case apply.StateInSync:
		return "ok"
	case apply.StateHeld, apply.StateInvalid, apply.StateRefused:
		return "warn"
	case apply.StateWaiting, apply.StateDegraded, apply.StateDrifted:
		return "bad"
	}
	return "busy"
}

func outcomeTone(o record.Outcome) string {
	switch o {
	case record.Applied, record.Unchanged:
		return "ok"
	case record.Rejected, record.Refused, record.Invalid:
		return "bad"
	case record.Held:
		return "warn"
	}
	return "busy"
}

// moment is a time as the page has it.
func moment(unix float64) string {
	if unix == 0 {
		return "never"
	}
	return record.FromUnix(unix).UTC().Format("2006-01-02 15:04:05Z")
}

func (s *Server) pageData(ctx context.Context, q pageQuery) *pageData {
	st, now := s.opt.Source.Status(), time.Now()
	rows, err := s.opt.History.List(ctx, "", pageHistory)
	d := &pageData{
		State: string(st.State), Tone: toneOf(st.State), Environment: string(st.Environment), Instance: st.Instance,
		Stuck: s.Stuck(), Why: Plain(st.Reason), Do: Plain(st.Hint), Now: now.UTC().Format("2006-01-02 15:04:05Z"),
	}
	if err != nil {
		d.HistoryError = Plain(err.Error())
	}
	checks := st.Checks(now)
	for _, c := range []struct {
		name, text string
		ok         bool
	}{{"in sync", yesNo(st.InSync, ""), st.InSync}, {"ready", yesNo(st.Ready, st.Unready), st.Ready}, {"healthy", health(checks), checks.Healthy()}} {
		tone := "ok"
		if !c.ok {
			tone = "bad"
		}
		d.Checks = append(d.Checks, pageFact{c.name, Plain(c.text), tone})
	}
	d.commands(st)
	d.holds(st)
	d.drift(st)
	s.pageParameters(d, st, rows)
	s.pageAttempts(d, st, rows)
	d.Timelines = timelines(s.opt.Rules, rows, now)
	s.pageRecords(ctx, d, rows, q)
	if st.Seen.Revision != "" {
		d.Facts = append(d.Facts, pageFact{Name: "seen", Text: Plain(who(st.Seen.Revision, st.Source.Origin) + ", " + moment(st.Seen.At))})
	}
	d.Facts = append(d.Facts, surroundings(st, moment)...)
	full := s.Full()
	for _, text := range full.HookErrors {
		d.Hooks = append(d.Hooks, pageFact{Text: Plain(text), Tone: "bad"})
	}
	for _, h := range full.Hooks {
		tone := ""
		if h.Off || h.FailingAt != 0 {
			tone = "bad"
		}
		d.Hooks = append(d.Hooks, pageFact{Text: Plain(h.String()), Tone: tone})
	}
	if full.EventsError != "" {
		d.Facts = append(d.Facts, pageFact{Name: "events", Text: "cannot be recorded, and nobody is told any: " + Plain(full.EventsError)})
	}
	for _, text := range full.AccessErrors {
		d.Facts = append(d.Facts, pageFact{Name: "listen", Text: Plain(text)})
	}
	return d
}

// command is a command of the agent, to be copied.
func command(st *apply.Status, words ...string) string {
	return "agent " + strings.Join(words, " ") + " --state " + problem.ShellWord(st.BackupDirectory)
}

func (d *pageData) commands(st *apply.Status) {
	add := func(name string, words ...string) {
		d.Commands = append(d.Commands, pageFact{Name: name, Text: command(st, words...)})
	}
	if h := st.Held; h != nil {
		add("resume", "resume")
	}
	if st.Running.RollbackSnapshot != "" {
		add("go back", "rollback", "--reason", "TEXT")
	}
	if st.Held == nil || !st.Held.Paused {
		add("pause", "pause", "--reason", "TEXT")
	}
	if st.Source.LastError != "" || st.Drift != nil {
		add("look now", "sync")
	}
}

func (d *pageData) holds(st *apply.Status) {
	h := st.Held
	if h == nil {
		return
	}
	lines := HoldLines(h, st.Applied, moment)
	d.Held = &pageHold{Title: "Held", By: Plain(lines[0])}
	if h.Paused {
		d.Held.Title = "Paused: nothing is applied until it is resumed"
	}
	for i, line := range lines[1:] {
		entry := struct{ Text, Command string }{Text: Plain(line)}
		if names := h.Entries[i].Names; len(h.Entries[i].Values) == 1 {
			for name := range h.Entries[i].Values {
				names = []string{name}
			}
			entry.Command = command(st, "resume", names[0])
		}
		d.Held.Entries = append(d.Held.Entries, entry)
	}
}

func (d *pageData) drift(st *apply.Status) {
	var changes []schema.Change
	switch {
	case st.Drift != nil:
		d.Drift, changes = &pageDrift{Title: "Drift since " + moment(st.Drift.Since)}, st.Drift.Differences
	case st.LastDrift != nil:
		end := ", not seen to end"
		if st.LastDrift.Until != 0 {
			end = ", over at " + moment(st.LastDrift.Until)
		}
		d.Drift, changes = &pageDrift{Title: "Last drift " + moment(st.LastDrift.At) + end}, st.LastDrift.Differences
	}
	for _, c := range changes {
		d.Drift.Changes = append(d.Drift.Changes, Plain(c.String()))
	}
}

// place is a position in a file of a commit, with its address at the team's git host.
func (s *Server) place(at schema.Position, commit string) pagePlace {
	if at.File == "" {
		return pagePlace{}
	}
	p := pagePlace{Text: Plain(at.String())}
	if commit != "" {
		p.Text += "@" + short(commit)
		p.URL = SourceLink(s.opt.SourceURL, at, commit)
	}
	return p
}

// SourceLink returns the address of a line at the team's git host, by the template of
// --source-url; "" without a template or a commit.
func SourceLink(template string, at schema.Position, commit string) string {
	if template == "" || commit == "" || at.File == "" {
		return ""
	}
	file := (&url.URL{Path: at.File}).EscapedPath()
	return strings.NewReplacer("{commit}", url.PathEscape(commit), "{file}", file, "{line}", fmt.Sprint(at.Line)).Replace(template)
}

// The paths of a file at a commit, and of its editor on a branch.
var editors = []struct{ view, edit string }{
	{"/blob/{commit}/", "/edit/{ref}/"},        // GitHub and GitLab
	{"/src/commit/{commit}/", "/_edit/{ref}/"}, // Gitea and Forgejo
}

// EditLink returns the address of the editor of a file on a branch, by the template of
// --source-url; "" where the template is not that of a host whose editor is known.
func EditLink(template string, at schema.Position, ref string) string {
	for _, e := range editors {
		if before, after, ok := strings.Cut(template, e.view); ok && ref != "" {
			branch := (&url.URL{Path: ref}).EscapedPath()
			return SourceLink(before+strings.ReplaceAll(e.edit, "{ref}", branch)+after, at, ref)
		}
	}
	return ""
}

// pageParameters adds what runs, with where it was declared and since when.
func (s *Server) pageParameters(d *pageData, st *apply.Status, rows []record.Row) {
	r := st.Running
	runs, recorded := schema.Parameters{}, applied(st)
	switch {
	case st.Current == nil:
		d.RunsTitle, d.RunsNote, runs = "On record as applied", "The engine was not read since the agent started.", recorded
	case !st.Engine.Reachable:
		d.RunsTitle, d.RunsNote, runs = "What ran", fmt.Sprintf("When last read, %s; now the engine %s.", moment(st.Engine.LastRead), how(st)), *st.Current
	case r.SnapshotID == "":
		d.RunsTitle, d.RunsNote, runs = "What runs", "No record says this.", *st.Current
	default:
		d.RunsTitle, runs = "What runs", *st.Current
		d.RunsNote = r.SnapshotID + ", since " + moment(r.Since) + "."
		if !r.Confirmed {
			d.RunsNote = r.SnapshotID + ", not yet confirmed."
		}
	}
	names := append(recorded.Names(), runs.Names()...)
	slices.Sort(names)
	begun := Since(rows, recorded)
	for _, name := range slices.Compact(names) {
		p := pageParameter{Name: name, Value: Plain(runs.Get(name).String())}
		if runs.Get(name).IsZero() {
			p.Value = "not read"
		}
		if info := s.opt.Rules.Parameter(name); info != nil {
			p.Description, p.Unit = info.Description, info.Unit
		}
		if st.Applied != nil && !recorded.Get(name).IsZero() {
			if o, ok := st.Applied.Provenance[name]; ok {
				p.Place = s.place(o.Position, o.Commit)
				p.Place.Text = cmp.Or(p.Place.Text, o.Layer)
			}
			if !recorded.Get(name).Equal(runs.Get(name)) {
				p.Wants = Plain(recorded.Get(name).String())
			}
			if row := begun[name]; row != nil {
				p.Since, p.By = moment(row.Timestamp), Plain(Doer(row))
			} else if n := len(rows); n > 0 && rows[n-1].Index > 1 {
				p.Since = "before " + moment(rows[n-1].Timestamp)
			}
		}
		d.Parameters = append(d.Parameters, p)
	}
}

// Since returns for each value of p the applied record that began it; rows are records,
// newest first, from one with p on. A value whose beginning is not among the rows is left
// out, unless they go back to the first record.
func Since(rows []record.Row, p schema.Parameters) map[string]*record.Row {
	begun, over := map[string]*record.Row{}, map[string]bool{}
	names := p.Names()
	for i := range rows {
		row := &rows[i]
		for _, name := range names {
			if row.Outcome != record.Applied || over[name] {
				continue
			}
			if row.Config.Get(name).Equal(p.Get(name)) {
				begun[name] = row
			} else {
				over[name] = true
			}
		}
	}
	if n := len(rows); n > 0 && rows[n-1].Index > 1 {
		maps.DeleteFunc(begun, func(name string, _ *record.Row) bool { return !over[name] })
	}
	return begun
}

func (s *Server) pageAttempts(d *pageData, st *apply.Status, rows []record.Row) {
	for _, a := range st.Attempts {
		if len(d.Attempts) == pageAttempts {
			break
		}
		if a.Outcome == record.Applied || a.Outcome == record.Unchanged {
			if len(d.Attempts) == 0 {
				break // the last one was good
			}
			continue
		}
		p := pageAttempt{Outcome: string(a.Outcome), Tone: outcomeTone(a.Outcome), When: moment(a.At), Reason: Plain(a.Reason)}
		for _, c := range a.Changes {
			p.Changes = append(p.Changes, Plain(c.String()))
		}
		p.Record = a.SnapshotID
		if i := slices.IndexFunc(rows, func(row record.Row) bool { return row.ID == a.SnapshotID }); i >= 0 {
			p.Record = string(rows[i].Kind) + " " + a.SnapshotID
			if by := Plain(Doer(&rows[i])); by != "" {
				p.Record += " by " + by
			}
		}
		commit := ""
		if st.Source.Kind == "git" {
			commit = a.Revision
		}
		for i, v := range a.Violations {
			if i == shownViolations {
				break
			}
			message := v.Message
			if v.Parameter != "" && !strings.Contains(message, v.Parameter) {
				message = v.Parameter + ": " + message
			}
			p.Violations = append(p.Violations, pageViolation{s.place(v.Position, commit), Plain(message), Plain(v.Hint), Plain(v.Text)})
		}
		if p.More = a.ViolationsTotal - len(p.Violations); len(p.Violations) > 0 {
			p.Reason = ""
		}
		d.Attempts = append(d.Attempts, p)
	}
}

// Doer returns who brought a record about: who gave the order, or the author and the
// signer of the source's commit.
func Doer(rec *record.Row) string {
	switch {
	case rec.Requester == nil && rec.RequestedBy != nil:
		return fmt.Sprintf("uid %d", *rec.RequestedBy)
	case rec.Requester == nil && rec.Kind != record.KindChange:
		return ""
	}
	e := apply.RecordEvent(apply.EventApplied, &rec.Record)
	return e.Doer()
}

// pageRecords adds a page of the history, and the comparison of two records.
func (s *Server) pageRecords(ctx context.Context, d *pageData, rows []record.Row, q pageQuery) {
	var err error
	if q.before != "" {
		if rows, err = s.opt.History.List(ctx, q.before, pageRecords+1); err != nil {
			d.HistoryError = Plain(err.Error())
		}
	}
	from, to := q.from, q.to
	if from == "" && to == "" && len(rows) > 1 { // marked, and not shown
		to = rows[0].ID
		from = rows[1].ID
	}
	for i := range rows {
		if i == pageRecords {
			d.Before = rows[i-1].ID
			break
		}
		row := &rows[i]
		p := pageRecord{
			ID: row.ID, Tone: outcomeTone(row.Outcome), When: moment(row.Timestamp), Kind: string(row.Kind), Outcome: string(row.Outcome), IsActive: row.IsActive,
			Description: Plain(row.Description), By: Plain(Doer(row)), IsFrom: row.ID == from, IsTo: row.ID == to,
		}
		for _, c := range row.Changes {
			p.Changes = append(p.Changes, Plain(c.String()))
		}
		d.History = append(d.History, p)
	}
	if q.from == "" && q.to == "" {
		return
	}
	d.Diff = &pageDiff{From: Plain(q.from), To: Plain(q.to)}
	a, err := s.opt.History.Lookup(ctx, q.from)
	var b record.Row
	if err == nil {
		b, err = s.opt.History.Lookup(ctx, q.to)
	}
	if err != nil {
		d.Diff.Error = Plain(err.Error())
		return
	}
	d.Diff.From, d.Diff.To, d.Diff.Changes = a.ID, b.ID, b.Config.Diff(a.Config)
}
