package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

const (
	schemaFlag  = "schema"
	schemaUsage = "CUE `file` with the parameters, rules and environments (default: the embedded ones)"
)

// maxEvaluation bounds the reading of a schema file: CUE may compute without end,
// and cannot be stopped.
const maxEvaluation = 10 * time.Second

// schemaOf adds --schema to a command that has no settings besides. The function
// that it returns opens the file that the flag or DTESN_AGENT_SCHEMA names.
func schemaOf(cmd *cobra.Command) func() (*schema.Schema, error) {
	path := cmd.Flags().String(schemaFlag, "", schemaUsage)
	return func() (*schema.Schema, error) {
		defer waitFor(cmd, "evaluating the schema")()
		return openSchema(cmd.Context(), cmp.Or(*path, os.Getenv(envName(schemaFlag))))
	}
}

// openSchema reads the schema file at path, the embedded schema if that is
// empty. A file that is wrong is a usage error. Reading ends with ctx and after
// maxEvaluation; then its goroutine is abandoned, and the command must end.
func openSchema(ctx context.Context, path string) (s *schema.Schema, err error) {
	if path == "" {
		return schema.Default(), nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, maxEvaluation, problem.New("", fmt.Errorf("not evaluated within %v", maxEvaluation),
		"simplify what the schema file computes"))
	defer cancel()
	done := make(chan func() (*schema.Schema, error), 1)
	go func() {
		s, err := schema.Open(path)
		done <- func() (*schema.Schema, error) { return s, err }
	}()
	select {
	case result := <-done:
		if s, err = result(); err != nil {
			err = &failure{exitUsage, err}
		}
		return s, err
	case <-ctx.Done():
		return nil, &problem.Error{Op: "read schema", Place: path, Err: context.Cause(ctx)}
	}
}

func environmentNames(s *schema.Schema) string {
	var names []string
	for _, e := range s.Environments() {
		names = append(names, string(e))
	}
	return strings.Join(names, ", ")
}

// completeEnvironment offers the environments of a command's schema to a shell.
func completeEnvironment(cmd *cobra.Command) {
	_ = cmd.RegisterFlagCompletionFunc("environment", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		path := ""
		if f := cmd.Flags().Lookup(schemaFlag); f != nil {
			path = cmp.Or(f.Value.String(), os.Getenv(envName(schemaFlag)))
		}
		s, err := openSchema(cmd.Context(), path)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return strings.Split(environmentNames(s), ", "), cobra.ShellCompDirectiveNoFileComp
	})
}

func newSchema() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "schema [--schema FILE.cue] [--format cue|jsonschema|markdown]",
		Short: "Print the rules that configurations are checked against",
		Long: `schema prints the rules: as one CUE file that --schema takes back, as a JSON
Schema (draft 7) of the configuration files for editors, or as a table for
people. It prints the schema of --schema, or of DTESN_AGENT_SCHEMA, or the
embedded one.

An editor with yaml-language-server (VS Code, Neovim, Helix, …) completes and
checks a file whose first line names the JSON Schema, relative to the file:

  # yaml-language-server: $schema=./dtesn.schema.json
  # yaml-language-server: $schema=../dtesn.schema.json      in templates/

It knows types, ranges and keys. For rules across files use agent validate.`,
		Example: `  agent schema --format markdown
  agent schema --format jsonschema > config/dtesn.schema.json
  agent schema --schema more.cue --format cue > whole.cue`,
	}
	open := schemaOf(cmd)
	checkFormat := formatFlag(cmd, &format, "markdown, cue or jsonschema", "markdown", "cue", "jsonschema")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkFormat(); err != nil {
			return err
		}
		s, err := open()
		if err != nil {
			return err
		}
		var text []byte
		switch format {
		case "cue":
			text = s.CUE()
		case "jsonschema":
			text, err = s.JSONSchema()
		default:
			text = []byte(schemaTable(s))
		}
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(text)
		return err
	}
	return cmd
}

// schemaTable returns the table of parameters, the rules between them and the
// environments, in Markdown. What holds in some environments only is said of them.
func schemaTable(s *schema.Schema) string {
	var b strings.Builder
	b.WriteString("| parameter | type | range | default | set | critical | description | impact |\n|---|---|---|---|---|---|---|---|\n")
	for _, p := range s.For(s.Environments()[0]).Parameters() {
		ranges, value, set, critical := p.Range, "none", "optional", "no"
		for _, env := range s.Environments() {
			if other := s.For(env).Parameter(p.Name).Range; other != p.Range {
				ranges += fmt.Sprintf(" (%s: %s)", env, other)
			}
		}
		if !p.Default.IsZero() {
			value = p.Default.String()
		}
		if p.Required {
			set = "required"
		} else if p.Managed {
			set = "managed"
		}
		if p.Critical {
			critical = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s | %s |\n",
			p.Name, p.Type, strings.ReplaceAll(ranges, "|", ", "), value, set, critical, p.Title(), p.Impact)
	}
	if rules := s.Relations("`%s`"); len(rules) > 0 {
		b.WriteString("\nRules between parameters:\n\n* " + strings.Join(rules, "\n* ") + "\n")
	}
	b.WriteString("\nEnvironments:\n\n")
	for _, env := range s.Environments() {
		fmt.Fprintf(&b, "* `%s`, to the server `%s`\n", env, s.Label(env))
	}
	return b.String()
}
