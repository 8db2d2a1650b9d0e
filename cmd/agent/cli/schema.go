package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"dtesn-agent/schema"
)

func newSchema() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "schema [--format cue|jsonschema|markdown]",
		Short: "Print the rules that configurations are checked against",
		Long: `schema prints the rules: the CUE file that says them, a JSON Schema (draft 7) of
the configuration files for editors, or a table for people.

An editor with yaml-language-server (VS Code, Neovim, Helix, …) completes and
checks a file whose first line names the JSON Schema, relative to the file:

  # yaml-language-server: $schema=./dtesn.schema.json
  # yaml-language-server: $schema=../dtesn.schema.json      in templates/

It says types, ranges and keys. What spans files it cannot say: agent validate does.`,
		Example: `  agent schema --format markdown
  agent schema --format jsonschema > config/dtesn.schema.json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var text []byte
			var err error
			switch format {
			case "cue":
				text = schema.CUE()
			case "jsonschema":
				text, err = schema.JSONSchema()
			case "markdown":
				text = []byte(schema.Markdown())
			default:
				err = usage("--format: %q is none of cue, jsonschema, markdown", format)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s", text)
			return err
		},
	}
	cmd.Flags().StringVar(&format, "format", "markdown", "cue, jsonschema or markdown")
	complete(cmd, "format", "cue", "jsonschema", "markdown")
	return cmd
}
