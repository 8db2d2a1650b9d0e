package cli

import (
	"errors"

	"github.com/spf13/cobra"
)

const (
	templatesDir  = "templates"
	yamlExtension = ".yaml"
)

const validateHelp = `validate checks what the agent would check, offline, with the agent's own
loader and for every instance of a fleet: every environment that has a file in
the directory (the current one if none is named), and the templates that none
of them extends. Every violation is shown with file, line, column, rule and
what to do. The rules are those of --schema, or of DTESN_AGENT_SCHEMA, or the
embedded ones. With --instance it is what one instance would get, in its
experiments.
With --policy the operators' policy is loaded and its cases are run, and with
--base the change from that revision is judged by it: a denial is shown like a
violation. Without DIR, and where there is none here, only the policy is
checked.

A file that is almost named as an environment that has none (prod.yaml,
production.yml) is an error, and so is, with --base, an environment that the
revision has and the directory has not any more; --allow-missing allows both.
Another file that was probably meant to be read and is not is a note. Of
templates that no environment extends 1,000 are checked; more are an error.

Output, with --format
  text    a line a violation, as compilers write it, and a line an environment
  json    {"success", "results": [{"root", "environment" or "template", "valid",
          "parameters", "provenance", "experiments": [{"name", "percent",
          "parameters", "member" with --instance}], "violations": [{"file",
          "line", "column", "path", "parameter", "value", "rule", "message",
          "hint", "related", "fix": {"file", "line", "old", "new"}}],
          "violations_total"}], "notes": [{"file", "message", "hint"}],
          "errors": ["…"], "policy": {"directory", "cases"} with --policy};
          a violation's files are relative to its root, and a
          fix is the line as it is and as it surely should be
  github  an ::error command a violation, which GitHub shows at its line of the
          pull request; from the eleventh on, which GitHub does not show, a line
          of standard error; paths are relative to $GITHUB_WORKSPACE or else to
          the current directory. A summary goes to standard error.
  gitlab  a Code Quality report for artifacts:reports:codequality; paths are
          relative to $CI_PROJECT_DIR or else to the current directory

Exit codes: 0 all valid, 3 not valid or denied, 2 wrong usage, schema or policy,
1 something could not be checked.`

func newValidate() *cobra.Command {
	var environment, format string
	r := &review{root: ".", read: map[string]reading{}}
	cmd := &cobra.Command{
		Use:   "validate [DIR]",
		Short: "Check a configuration directory without an engine",
		Long:  validateHelp,
		Example: `  agent validate examples/config
  agent validate config --environment production --format json
  agent validate config --base origin/main
  agent validate config --schema schema.cue
  agent validate --policy policy
  agent validate config --policy ../policy --base origin/main`,
		Args: cobra.MaximumNArgs(1),
	}
	open := schemaOf(cmd)
	checkFormat := formatFlag(cmd, &format, "text, json, github (annotations of a pull request) or gitlab (Code Quality report)", "text", "json", "github", "gitlab")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkFormat(); err != nil {
			return err
		}
		write := reviewFormats[format]
		s, err := open()
		if err != nil {
			return err
		}
		r.schema = s
		if environment != "" {
			if r.only, err = s.ParseEnvironment(environment); err != nil {
				return usage("--environment: %w", err)
			}
		}
		if err := r.policy.open(cmd, s); err != nil {
			return err
		}
		defer r.policy.close()
		if r.base != "" {
			r.policy.noteSigner(cmd)
		}
		if len(args) == 0 && r.policy.dir != "" && r.base == "" && len(r.environmentsIn(r.root)) == 0 {
			return r.report(cmd, write, nil)
		}
		if len(args) > 0 {
			r.root, err = directory(s, args[0])
		}
		if wrong := (*failure)(nil); errors.As(err, &wrong) {
			return err
		}
		if err == nil {
			err = r.run(cmd.Context())
		}
		return r.report(cmd, write, err)
	}
	f := cmd.Flags()
	f.StringVar(&environment, "environment", "", "check only this environment")
	f.StringVar(&r.instance, "instance", "", "check what the instance of this `name` gets (default: all that any can get)")
	f.StringVar(&r.base, "base", "", "a `revision` of DIR's repository whose environments must still be there; with --policy the change from it is judged")
	r.policy.flags(f)
	f.BoolVar(&r.allowMissing, "allow-missing", false, "an environment may be gone, or its file have another name")
	completeEnvironment(cmd)
	return cmd
}
