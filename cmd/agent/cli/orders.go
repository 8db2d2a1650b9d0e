package cli

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

// stateFlag adds --state to a command and has it settled from the environment.
func stateFlag(cmd *cobra.Command, state *string) {
	cmd.Flags().StringVar(state, "state", "", "the state `directory` that the agent was given")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := settle(cmd.Flags(), settingNames()); err != nil {
			return err
		}
		if *state == "" {
			return usageHint("the directory that `agent run` was given; or set "+envName("state"), "--state is needed")
		}
		return nil
	}
}

// give sends an order to the running agent and prints its result.
func give(cmd *cobra.Command, state, verb string, o order) error {
	var res orderResult
	if err := ask(cmd.Context(), state, http.MethodPost, "/"+verb, o, &res, time.Duration(o.Timeout*float64(time.Second))+answerTime); err != nil {
		return err
	}
	if res.Error != "" {
		return problem.New("", errors.New(res.Error), res.Hint)
	}
	text := status.Plain(res.Text)
	switch res.Outcome {
	case record.Applied, "":
		if verb == "rollback" {
			text = "applied as " + res.SnapshotID + ": " + text
		}
		fmt.Fprintln(cmd.OutOrStdout(), text)
		return nil
	case record.Rejected:
		return &failure{exitRejected, problem.New("", fmt.Errorf("%s was rejected by the engine: %s", verb, text), "what runs now: agent status --state "+shellWord(state))}
	}
	return problem.New("", fmt.Errorf("%s is %s: %s", verb, res.Outcome, text), "how it stands: agent status --state "+shellWord(state))
}

// needReason makes --reason a must: the next operator will want it.
func needReason(cmd *cobra.Command, reason *string) {
	cmd.Flags().StringVar(reason, "reason", "", "why, for who reads the history (needed)")
	settleState := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if err := settleState(cmd, args); err != nil {
			return err
		}
		if *reason == "" {
			return usageHint("say why; it stands in the history for the next one who looks", "--reason is needed")
		}
		return nil
	}
}

const (
	orderTimeout = 30 * time.Second
	// answerTime is how long an agent may take to answer what it need not wait
	// for.
	answerTime = 5 * time.Second
)

// timeoutFlag adds --timeout to a command that waits.
func timeoutFlag(cmd *cobra.Command, d *time.Duration) {
	cmd.Flags().DurationVar(d, "timeout", orderTimeout, "how long to wait for the outcome")
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if err := before(cmd, args); err != nil {
			return err
		}
		if *d < 100*time.Millisecond || *d > 24*time.Hour {
			return usage("--timeout: %s is out of range: 100ms to 24h", *d)
		}
		return nil
	}
}
