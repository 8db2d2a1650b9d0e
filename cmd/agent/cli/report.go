package cli

import (
	"fmt"
	"net/http"
	"os"

	"github.com/spf13/cobra"
)

func newReport() *cobra.Command {
	var state, file string
	cmd := &cobra.Command{
		Use:   "report --state DIR --html FILE",
		Short: "Write the status page as one HTML file",
		Long: `report writes the page of the running agent to a file, as it is now: what runs,
why and since when, what was tried, and the history. It needs nothing but a
browser to be read, and can be attached to a ticket.`,
		Example: `  agent report --state /var/lib/dtesn-agent --html report.html`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usageHint("a file to write, or - for standard output", "--html is needed")
			}
			var r struct{ HTML string }
			if err := ask(cmd, state, http.MethodGet, "/report", nil, &r, answerTime); err != nil {
				return err
			}
			if file == "-" {
				_, err := fmt.Fprint(cmd.OutOrStdout(), r.HTML)
				return err
			}
			return os.WriteFile(file, []byte(r.HTML), 0o644)
		},
	}
	stateFlag(cmd, &state)
	cmd.Flags().StringVar(&file, "html", "", "the `file` to write; - is standard output")
	_ = cmd.MarkFlagFilename("html", "html")
	return cmd
}
