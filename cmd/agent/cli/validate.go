package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"dtesn-agent/schema"
	"dtesn-agent/watcher"
)

// A verdict is what validate says of one environment of one directory.
type verdict struct {
	Root        string             `json:"root"`
	Environment schema.Environment `json:"environment"`
	Valid       bool               `json:"valid"`
	Parameters  *schema.Parameters `json:"parameters,omitempty"`
	Provenance  schema.Provenance  `json:"provenance,omitempty"`
	Violations  []schema.Violation `json:"violations"`
	Total       int                `json:"violations_total"`
}

func newValidate() *cobra.Command {
	var environment, format string
	cmd := &cobra.Command{
		Use:   "validate [DIR|FILE…]",
		Short: "Check configuration files without an engine",
		Long: `validate checks what the agent would check, with the agent's own loader, offline:
every environment that a directory has a file for (the current directory if none
is given), or those that a file belongs to, for every instance of a fleet. Every violation is shown with file,
line, column, rule and what to do.

Exit codes: 0 valid, 3 not valid, 1 if a directory cannot be read.`,
		Example: `  agent validate examples/config
  agent validate config/production.yaml
  agent validate config --environment production --format json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			var write func(io.Writer, []verdict) error
			switch format {
			case "text":
				write = verdictsText
			case "json":
				write = func(_ io.Writer, vs []verdict) error {
					return printJSON(cmd, map[string]any{"success": allValid(vs), "results": vs})
				}
			case "github":
				write = verdictsGitHub
			default:
				return usage("--format: %q is none of text, json, github", format)
			}
			if environment != "" {
				if _, err := schema.ParseEnvironment(environment); err != nil {
					return usage("--environment: %w", err)
				}
			}
			if len(args) == 0 {
				args = []string{"."}
			}
			verdicts, err := validate(args, schema.Environment(environment))
			if err != nil {
				return err
			}
			if err := write(cmd.OutOrStdout(), verdicts); err != nil {
				return err
			}
			if !allValid(verdicts) {
				return quiet(exitInvalid)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&environment, "environment", "", "check only this environment; all that have a file if not given")
	f.StringVar(&format, "format", "text", "text, json or github (annotations of a pull request)")
	completeEnvironment(cmd)
	complete(cmd, "format", "text", "json", "github")
	return cmd
}

func allValid(vs []verdict) bool {
	for _, v := range vs {
		if !v.Valid {
			return false
		}
	}
	return true
}

// validate checks each target once.
func validate(args []string, only schema.Environment) ([]verdict, error) {
	var verdicts []verdict
	seen := map[string]bool{}
	for _, arg := range args {
		root, envs, err := target(arg, only)
		if err != nil {
			return nil, err
		}
		for _, env := range envs {
			if key := root + "\x00" + string(env); seen[key] {
				continue
			} else {
				seen[key] = true
			}
			doc, err := watcher.Read(root, env)
			if err != nil {
				return nil, fault(err, "")
			}
			v := verdict{Root: root, Environment: env, Violations: []schema.Violation{}}
			if config, violations := schema.Load(doc, schema.Everywhere); violations != nil {
				v.Violations, v.Total = violations.List, violations.Total
			} else {
				v.Valid, v.Parameters, v.Provenance = true, &config.Parameters, config.Provenance
			}
			verdicts = append(verdicts, v)
		}
	}
	return verdicts, nil
}

// target finds the configuration root and the environments an argument stands
// for: a directory all it has files for, an environment's file that one, any
// other file all of its root.
func target(arg string, only schema.Environment) (root string, envs []schema.Environment, err error) {
	info, err := os.Stat(arg)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil, fault(fmt.Errorf("there is no %s", arg), "name a directory with base.yaml, or a file in one")
		}
		return "", nil, fault(err, "")
	}
	root = arg
	if !info.IsDir() {
		root = filepath.Dir(arg)
		if filepath.Base(root) == "templates" {
			root = filepath.Dir(root)
		}
		name := schema.Environment(strings.TrimSuffix(filepath.Base(arg), ".yaml"))
		if _, err := schema.ParseEnvironment(string(name)); err == nil && only == "" {
			return root, []schema.Environment{name}, nil
		}
		if filepath.Ext(arg) != ".yaml" {
			return "", nil, fault(fmt.Errorf("%s is no configuration file", arg), "name base.yaml, an environment's file, a template, or their directory")
		}
	}
	if only != "" {
		return root, []schema.Environment{only}, nil
	}
	for _, env := range schema.Environments() {
		if _, err := os.Lstat(filepath.Join(root, string(env)+".yaml")); err == nil {
			envs = append(envs, env)
		}
	}
	if len(envs) == 0 {
		return "", nil, fault(fmt.Errorf("%s has no environment's file (development.yaml, testing.yaml, staging.yaml, production.yaml)", root),
			"name the configuration directory, the one with base.yaml")
	}
	return root, envs, nil
}

// in places a violation's file under the root that was named.
func (v verdict) in(file string) string { return filepath.Join(v.Root, file) }

func verdictsText(w io.Writer, vs []verdict) error {
	for _, v := range vs {
		if v.Valid {
			if _, err := fmt.Fprintf(w, "%s: %s is valid\n", v.Root, v.Environment); err != nil {
				return err
			}
			continue
		}
		for _, violation := range v.Violations {
			violation.File = v.in(violation.File)
			for i := range violation.Related {
				violation.Related[i].File = v.in(violation.Related[i].File)
			}
			if _, err := fmt.Fprintln(w, violation); err != nil {
				return err
			}
		}
		more := ""
		if n := v.Total - len(v.Violations); n > 0 {
			more = fmt.Sprintf(", %d of them not shown", n)
		}
		if _, err := fmt.Fprintf(w, "%s: %s is not valid: %d violation(s)%s\n", v.Root, v.Environment, v.Total, more); err != nil {
			return err
		}
	}
	return nil
}

// verdictsGitHub writes workflow commands, which GitHub shows at the lines of
// a pull request.
// https://docs.github.com/actions/reference/workflow-commands-for-github-actions
func verdictsGitHub(w io.Writer, vs []verdict) error {
	data := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	property := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
	for _, v := range vs {
		for _, violation := range v.Violations {
			place := "file=" + property.Replace(v.in(violation.File))
			if violation.Line > 0 {
				place += fmt.Sprintf(",line=%d,col=%d", violation.Line, violation.Column)
			}
			text := violation.Message
			if violation.Hint != "" {
				text += "; " + violation.Hint
			}
			title := property.Replace(string(v.Environment) + ": " + violation.Rule)
			if _, err := fmt.Fprintf(w, "::error %s,title=%s::%s\n", place, title, data.Replace(text)); err != nil {
				return err
			}
		}
	}
	return nil
}
