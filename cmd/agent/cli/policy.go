package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"dtesn-agent/cmd/agent/policy"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher"
)

const (
	policyFlag  = "policy"
	policyUsage = "the `directory` with the operators' policy (CUE), which says what changes are allowed"
)

// newEvaluatePolicy is the child of package policy.
func newEvaluatePolicy() *cobra.Command {
	return &cobra.Command{
		Use: policy.Command, Hidden: true, Short: "Evaluate a policy for the agent, which starts this itself",
		RunE: func(*cobra.Command, []string) error { return policy.Serve(os.Stdin, os.Stdout) },
	}
}

// watchedDirectories are those whose editors must not write the policy. A repository may
// come later than the agent, so that they are asked for at each reading.
func (s *settings) watchedDirectories() (dirs []string) {
	if s.git.repo == "" {
		return []string{s.config}
	}
	repo := strings.TrimPrefix(s.git.repo, "file://")
	dirs = []string{repo}
	if filepath.Base(repo) == ".git" {
		dirs = append(dirs, filepath.Dir(repo))
	}
	if top, err := watcher.WorkTree(repo); err == nil {
		dirs = append(dirs, top)
	}
	return dirs
}

// checkPolicy refuses a policy that the source could change. Whatever else is wrong with
// it does not keep the agent from starting.
func (s *settings) checkPolicy() error {
	if s.policy == "" || s.config+s.git.repo == "" {
		return nil
	}
	if in := policy.Inside(s.policy, s.watchedDirectories()); in != "" {
		return usageHint("put it where only operators write, such as /etc/dtesn/policy",
			"--policy: %s lies in %s, which the agent watches: whoever changes the configuration would change the policy too", s.policy, in)
	}
	return nil
}

// A policyCheck judges the changes of a command by a policy.
type policyCheck struct {
	dir, signer string
	evaluator   *policy.Evaluator
	loaded      policy.Loaded
}

func (j *policyCheck) flags(f *pflag.FlagSet) {
	f.StringVar(&j.dir, policyFlag, "", policyUsage)
	f.StringVar(&j.signer, "signer", "", "the `name` of who will sign the change, for the policy")
}

// open loads the policy that --policy or DTESN_AGENT_POLICY names; without one there is
// nothing to judge by. A policy that is wrong is a usage error, as a schema is.
func (j *policyCheck) open(cmd *cobra.Command, s *schema.Schema) (err error) {
	if err := checkGiven(cmd.Flags()); err != nil {
		return err
	}
	if j.dir = cmp.Or(j.dir, os.Getenv(envName(policyFlag))); j.dir == "" {
		if j.signer != "" {
			return usage("--signer is for a policy: name it with --policy")
		}
		return nil
	}
	defer waitFor(cmd, "loading the policy")()
	j.evaluator = policy.New(policy.Options{Dir: j.dir, Schema: s})
	if j.loaded, err = j.evaluator.Load(cmd.Context()); err != nil {
		return &failure{exitUsage, err} // it has no child
	}
	return nil
}

// noteSigner says that rules about the signer cannot be met without one.
func (j *policyCheck) noteSigner(cmd *cobra.Command) {
	if j.loaded.UsesSigner && j.signer == "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "note: the policy has rules about who signs; name the signer with --signer")
	}
}

// close ends the evaluator.
func (j *policyCheck) close() error {
	if j.evaluator == nil {
		return nil
	}
	return j.evaluator.Close()
}

// apply adds to a plan what the policy denies of it.
func (j *policyCheck) apply(ctx context.Context, p *schema.Plan) error {
	if j.evaluator == nil {
		return nil
	}
	for _, proposal := range p.Proposals() {
		proposal.Signer = j.signer
		denied, err := j.evaluator.Judge(ctx, proposal)
		if err != nil {
			return problem.New("", fmt.Errorf("%s: %w", p.Name, err), problem.Hint(err))
		}
		p.Deny(proposal, denied)
	}
	return nil
}
