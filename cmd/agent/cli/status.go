package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dtesn-agent/schema/problem"
)

func newStatus() *cobra.Command {
	var state string
	var asJSON, ready, live, inSync, watch bool
	cmd := &cobra.Command{
		Use:   "status --state DIR",
		Short: "Say what runs, why, since when, and what was tried",
		Long: `status asks the running agent how things stand. With --ready, --live or
--in-sync it prints nothing when the answer is yes and says why when it is no:
exit code 0 or 1, for probes and scripts.

With --watch it goes on until it is interrupted: a terminal always shows how
things stand now; elsewhere, and with --json, each change is printed.`,
		Example: `  agent status --state /var/lib/dtesn-agent
  agent status --state /var/lib/dtesn-agent --watch
  agent status --state /var/lib/dtesn-agent --json
  agent status --state /var/lib/dtesn-agent --ready`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return watchStatus(cmd, state, asJSON)
			}
			var r report
			if err := ask(cmd, state, http.MethodGet, "/status", nil, &r, answerTime); err != nil {
				return err
			}
			switch {
			case ready:
				return answer(r.Ready, "not ready", r.Why, r.Status.Hint)
			case live:
				return answer(r.Live, "not live", r.Why, "")
			case inSync:
				return answer(r.Status.InSync, "not in sync", string(r.Status.State)+": "+r.Status.Reason, r.Status.Hint)
			case asJSON:
				return printJSON(cmd, map[string]any{"success": true, "status": r.Status})
			}
			_, err := fmt.Fprint(cmd.OutOrStdout(), r.Text)
			return err
		},
	}
	stateFlag(cmd, &state)
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print JSON, as GET /v1/config/status")
	f.BoolVar(&ready, "ready", false, "exit 0 if the engine runs the applied set, 1 if not")
	f.BoolVar(&live, "live", false, "exit 0 if every loop turns, 1 if not")
	f.BoolVar(&inSync, "in-sync", false, "exit 0 if the engine runs what the source declares, 1 if not")
	f.BoolVarP(&watch, "watch", "w", false, "go on and show each change, until interrupted")
	exclusive(cmd, "json", "ready", "live", "in-sync")
	for _, probe := range []string{"ready", "live", "in-sync"} {
		exclusive(cmd, "watch", probe)
	}
	return cmd
}

// watchEvery is how often the agent is asked.
const watchEvery = 500 * time.Millisecond

// watchStatus shows the status until the command is interrupted. An agent that does not
// answer is part of it: it may be restarted.
func watchStatus(cmd *cobra.Command, state string, asJSON bool) error {
	w := cmd.OutOrStdout()
	const home, clear = "\x1b[H", "\x1b[J" // ECMA-48: CUP, ED
	for last := ""; ; {
		var r report
		text, now := "", ""
		if err := ask(cmd, state, http.MethodGet, "/status", nil, &r, answerTime); err != nil {
			text = err.Error() + "\n"
			now = text
		} else {
			s := r.Status
			text, now = r.Text, fmt.Sprint(s.State, s.Reason, s.Running.SnapshotID, s.Running.Confirmed, s.Seen.Revision, s.TotalSnapshots, s.Held != nil, s.Ready)
		}
		var err error
		switch {
		case cmd.Context().Err() != nil:
			return nil
		case terminal(w) != nil && !asJSON:
			_, err = fmt.Fprint(w, home+clear+text)
		case now == last:
		case asJSON && r.Status == nil:
			err = json.NewEncoder(w).Encode(map[string]any{"success": false, "message": strings.TrimSpace(text)})
		case asJSON:
			err = json.NewEncoder(w).Encode(map[string]any{"success": true, "status": r.Status})
		default:
			_, err = fmt.Fprintf(w, "%s\n%s\n", time.Now().UTC().Format(time.RFC3339), text)
		}
		if err != nil {
			return err
		}
		last = now
		select {
		case <-cmd.Context().Done():
			return nil
		case <-time.After(watchEvery):
		}
	}
}

func answer(yes bool, no, why, hint string) error {
	if yes {
		return nil
	}
	return problem.New("", fmt.Errorf("%s: %s", no, why), hint)
}

func printJSON(cmd *cobra.Command, v any) error {
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
