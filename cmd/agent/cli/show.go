package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

func newShow() *cobra.Command {
	var state string
	var asJSON, values bool
	var host gitHost
	cmd := &cobra.Command{
		Use:   "show [ID] --state DIR",
		Short: "Show one record whole, or where each of its values came from",
		Long: `show prints one record: its parameters and what set each, what it changed, where
it came from and what came of it. ID is a snapshot id, its number, or the first
digits of its commit or of a commit of the source: then it is the newest record
that this commit brought. It needs no running agent.

With --values it prints for each parameter its value, the file, line and commit
that declare it, the record that began it, when, and who did it; ID is then the
applied record if it is left away. With --source-url, which is the one of agent
run, come the addresses of the line, and of the editor on the branch --ref where
the host is GitHub, GitLab, Gitea or Forgejo.`,
		Example: `  agent show snapshot_1699123456_0015 --state /var/lib/dtesn-agent
  agent show 15 --state /var/lib/dtesn-agent --json
  agent show --values --state /var/lib/dtesn-agent`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && !values {
				return usageHint("agent snapshots lists them", "which record? give its ID")
			}
			if err := checkSourceURL(host.template); err != nil {
				return err
			}
			r, err := gitstore.OpenReader(state)
			if err != nil {
				return err
			}
			end := waitFor(cmd, "reading the history")
			rec, err := recordNamed(cmd.Context(), r, args)
			end()
			if err != nil {
				return err
			}
			if values {
				return showValues(cmd, r, &rec, host, asJSON)
			}
			if asJSON {
				text, err := status.RecordJSON(rec)
				if err != nil {
					return err
				}
				return printJSON(cmd, map[string]any{"success": true, "snapshot": text})
			}
			return recordText(cmd.OutOrStdout(), &rec)
		},
	}
	stateFlag(cmd, &state)
	cmd.ValidArgsFunction = completeID(&state)
	f := cmd.Flags()
	f.BoolVar(&values, "values", false, "show where each value came from, when and by whom")
	f.StringVar(&host.template, "source-url", "", sourceURLUsage)
	f.StringVar(&host.ref, "ref", defaultRef, "the branch that the addresses of editors are for")
	f.BoolVar(&asJSON, "json", false, "print JSON, as GET /v1/config/snapshots/{id}")
	return cmd
}

// recordNamed finds a record by what people have of it; the applied one without a name.
func recordNamed(ctx context.Context, r *gitstore.Reader, args []string) (record.Row, error) {
	if len(args) == 0 {
		applied, err := r.Applied()
		if err == nil && applied == nil {
			err = problem.New("", errors.New("nothing was applied yet"), "agent snapshots lists what was tried")
		}
		if err != nil {
			return record.Row{}, err
		}
		return record.Row{Record: *applied, Outcome: record.Applied, IsActive: true}, nil
	}
	rec, err := r.Lookup(ctx, args[0])
	if errors.Is(err, fs.ErrNotExist) {
		if brought, serr := r.LookupSource(ctx, args[0]); serr == nil || !errors.Is(serr, fs.ErrNotExist) {
			return brought, serr
		}
	}
	return rec, err
}

// A gitHost is where a team reads and edits its configuration.
type gitHost struct{ template, ref string }

// A shownValue is what `show --values` says of a parameter.
type shownValue struct {
	Name  string       `json:"-"`
	Value schema.Value `json:"value"`
	schema.Origin
	URL     string  `json:"url,omitempty"`
	EditURL string  `json:"edit_url,omitempty"`
	Since   string  `json:"since,omitempty"` // the id of a record
	When    float64 `json:"when,omitempty"`
	By      string  `json:"by,omitempty"`
	Subject string  `json:"subject,omitempty"`
}

// showValues prints where the values of a record came from.
func showValues(cmd *cobra.Command, r *gitstore.Reader, rec *record.Row, host gitHost, asJSON bool) error {
	begun, damage := beginnings(cmd.Context(), r, rec) // the values are shown all the same
	byName := map[string]shownValue{}
	var list []shownValue
	for _, name := range rec.Config.Names() {
		v := shownValue{Name: name, Value: rec.Config.Get(name), Origin: rec.Provenance[name]}
		if v.Commit != "" {
			v.URL = status.SourceLink(host.template, v.Position, v.Commit)
			v.EditURL = status.EditLink(host.template, v.Position, host.ref)
		}
		if row := begun[name]; row != nil {
			v.Since, v.When, v.By, v.Subject = row.ID, row.Timestamp, status.Doer(row), row.Subject
		}
		byName[name] = v
		list = append(list, v)
	}
	if asJSON {
		err := printJSON(cmd, map[string]any{"success": damage == nil, "snapshot_id": rec.ID, "values": byName})
		return cmp.Or(err, damage)
	}
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "  %-6s %s\n", name, status.Plain(value))
		}
	}
	for _, v := range list {
		b.WriteString(status.Plain(fmt.Sprintf("%s: %v", v.Name, v.Value)) + "\n")
		line("set", placeOfValue(v.Origin))
		line("view", v.URL)
		line("edit", v.EditURL)
		if v.Since == "" {
			line("since", "a record that is not kept any more")
			continue
		}
		line("since", v.Since+", "+date(v.When))
		line("by", v.By)
		line("what", v.Subject)
	}
	_, err := io.WriteString(cmd.OutOrStdout(), b.String())
	return cmp.Or(err, damage)
}

// beginnings finds the record that began each value of rec.
func beginnings(ctx context.Context, r *gitstore.Reader, rec *record.Row) (map[string]*record.Row, error) {
	const page, most = 200, 5000
	first := *rec
	first.Outcome = record.Applied // what is asked about has its values, whatever came of it
	rows := []record.Row{first}
	for {
		older, err := r.List(ctx, rows[len(rows)-1].ID, page)
		rows = append(rows, older...)
		begun := status.Since(rows, rec.Config)
		if err != nil || len(begun) == rec.Config.Len() || len(older) < page || len(rows) > most {
			return begun, err
		}
	}
}

// placeOfValue returns file:line:column@commit, or the layer of a value that no file has.
func placeOfValue(o schema.Origin) string {
	if o.Line == 0 {
		return o.Layer
	}
	place := o.Position.String()
	if o.Commit != "" {
		place += "@" + o.Commit[:min(12, len(o.Commit))]
	}
	return place
}

// date formats the time of a record.
func date(unix float64) string { return record.FromUnix(unix).UTC().Format(time.RFC3339) }

func recordText(w io.Writer, rec *record.Row) error {
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-12s %s\n", name, status.Plain(value))
		}
	}
	line("snapshot", rec.ID)
	line("commit", rec.Commit)
	line("when", date(rec.Timestamp))
	line("kind", string(rec.Kind))
	line("outcome", string(rec.Outcome))
	line("why", strings.Join(rec.ValidationErrors, "; "))
	line("description", rec.Description)
	line("environment", string(rec.Environment))
	line("instance", rec.Instance)
	line("source", strings.TrimSpace(rec.Source.Kind+" "+rec.Source.Location))
	line("revision", rec.Source.Revision)
	line("author", rec.Source.Author)
	line("subject", rec.Source.Subject)
	if rec.Source.Signer != "" {
		line("signed by", rec.Source.Signer+" ("+rec.Source.Key+")")
	}
	if rec.Requester != nil {
		line("ordered by", rec.Requester.String())
	}
	if rec.Held != nil {
		name := "hold"
		if rec.Held.Paused {
			name = "pause"
		}
		for _, text := range status.HoldLines(rec.Held, &rec.Record, date) {
			line(name, text)
			name = ""
		}
	}
	b.WriteString("parameters\n")
	for _, name := range rec.Config.Names() {
		b.WriteString(status.Plain(fmt.Sprintf("  %-30s %-8v %s", name, rec.Config.Get(name), placeOfValue(rec.Provenance[name]))) + "\n")
	}
	if len(rec.Changes) > 0 {
		b.WriteString("changes\n")
		for _, c := range rec.Changes {
			b.WriteString(status.Plain("  "+c.String()) + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
