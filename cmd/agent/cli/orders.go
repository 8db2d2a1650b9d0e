package cli

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"strings"
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
	o.User, o.Login = whoAsks()
	o.Deadline = record.Unix(time.Now()) + o.Timeout
	if err := ask(cmd, state, http.MethodPost, "/"+verb, o, &res, time.Duration(o.Timeout*float64(time.Second))+answerTime); err != nil {
		return err
	}
	if res.Error != "" {
		return problem.New("", errors.New(res.Error), res.Hint)
	}
	text := status.Plain(res.Text)
	switch res.Outcome {
	case record.Applied, "":
		if o.DryRun {
			for line := range strings.SplitSeq(res.Text, "\n") {
				fmt.Fprintln(cmd.OutOrStdout(), status.Plain(line))
			}
			return nil
		}
		if verb == "rollback" {
			text = "applied as " + res.SnapshotID + ": " + text
		}
		fmt.Fprintln(cmd.OutOrStdout(), text)
		return nil
	case record.Rejected:
		return &failure{exitRejected, problem.New("", fmt.Errorf("%s was rejected by the engine: %s", verb, text), "what runs now: agent status --state "+problem.ShellWord(state))}
	}
	return problem.New("", fmt.Errorf("%s is %s: %s", verb, res.Outcome, text), "how it stands: agent status --state "+problem.ShellWord(state))
}

// whoAsks returns the name of the user that gives an order, and of the login behind it:
// sudo's, or that of the session (the audit uid, which su and sudo leave as it was).
func whoAsks() (name, login string) {
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if login = os.Getenv("SUDO_USER"); login != "" {
		return name, login
	}
	const unset = "4294967295" // of a process that no login began (proc_pid_loginuid(5))
	if uid, err := os.ReadFile("/proc/self/loginuid"); err == nil && strings.TrimSpace(string(uid)) != unset {
		if u, err := user.LookupId(strings.TrimSpace(string(uid))); err == nil {
			login = u.Username
		}
	}
	return name, login
}

// needReason makes --reason a must: the next operator will want it.
func needReason(cmd *cobra.Command, reason *string) {
	cmd.Flags().StringVar(reason, "reason", "", "why, for who reads the history (needed)")
	settleState := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if err := settleState(cmd, args); err != nil {
			return err
		}
		if dry, _ := cmd.Flags().GetBool("dry-run"); *reason == "" && !dry {
			return usageHint("say why; it stands in the history for the next one who looks", "--reason is needed")
		}
		return nil
	}
}

const (
	orderTimeout    = 30 * time.Second
	maxOrderTimeout = 24 * time.Hour
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
		if *d < 100*time.Millisecond || *d > maxOrderTimeout {
			return usage("--timeout: %s is out of range: 100ms to 24h", *d)
		}
		return nil
	}
}
