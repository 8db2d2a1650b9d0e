package cli

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"dtesn-agent/schema/problem"
)

func newStatus() *cobra.Command {
	var state string
	var asJSON, ready, live, inSync bool
	cmd := &cobra.Command{
		Use:   "status --state DIR",
		Short: "Say what runs, why, since when, and what was tried",
		Long: `status asks the running agent how things stand. With --ready, --live or --in-sync
it prints nothing when the answer is yes and says why when it is no: exit code 0
or 1, for probes and scripts.`,
		Example: `  agent status --state /var/lib/dtesn-agent
  agent status --state /var/lib/dtesn-agent --json
  agent status --state /var/lib/dtesn-agent --ready`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var r report
			if err := ask(cmd.Context(), state, http.MethodGet, "/status", nil, &r, answerTime); err != nil {
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
	cmd.MarkFlagsMutuallyExclusive("json", "ready", "live", "in-sync")
	return cmd
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
