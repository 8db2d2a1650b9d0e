package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
)

func newShow() *cobra.Command {
	var state string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show ID --state DIR",
		Short: "Show one record whole",
		Long: `show prints one record: its parameters and what set each, what it changed, where
it came from and what came of it. ID is a snapshot id, its number, or the first
digits of its commit. It needs no running agent.`,
		Example: `  agent show snapshot_1699123456_0015 --state /var/lib/dtesn-agent
  agent show 15 --state /var/lib/dtesn-agent --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := gitstore.OpenReader(state)
			if err != nil {
				return err
			}
			end := waitFor(cmd, "reading the history")
			rec, err := r.Lookup(cmd.Context(), args[0])
			end()
			if err != nil {
				return err
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
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, as GET /v1/config/snapshots/{id}")
	return cmd
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
		place := ""
		if o, ok := rec.Provenance[name]; ok {
			place = o.Layer
			if o.Line > 0 {
				place = fmt.Sprintf("%s:%d:%d", o.File, o.Line, o.Column)
				if o.Commit != "" {
					place += "@" + o.Commit[:min(12, len(o.Commit))]
				}
			}
		}
		b.WriteString(status.Plain(fmt.Sprintf("  %-30s %-8v %s", name, rec.Config.Get(name), place)) + "\n")
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
