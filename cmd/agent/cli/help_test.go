package cli

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestHelp holds that the help of every command is as wide as a terminal, names each flag
// once, and says what it is for.
func TestHelp(t *testing.T) {
	root := newRoot()
	root.InitDefaultHelpCmd()
	commands := 0
	for _, cmd := range append(root.Commands(), root) {
		if cmd.Hidden || cmd.Name() == "completion" || cmd.Name() == "help" { // cobra's
			continue
		}
		commands++
		cmd.InitDefaultHelpFlag()
		text := cmd.Long + "\n\n" + usageText(cmd)
		for line := range strings.SplitSeq(text, "\n") {
			if n := len([]rune(line)); n > helpWidth {
				t.Errorf("%s --help: %d columns: %s", cmd.CommandPath(), n, line)
			}
		}
		if cmd.Short == "" || cmd != root && cmd.Example == "" && cmd.Name() != "version" {
			t.Errorf("%s: no sentence, or no example", cmd.CommandPath())
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if n := strings.Count(text, "\n"+strings.SplitN(flagText(f), "\n", 2)[0]+"\n"); n != 1 || f.Usage == "" {
				t.Errorf("%s: --%s is there %d times", cmd.CommandPath(), f.Name, n)
			}
		})
	}
	if commands < 20 {
		t.Errorf("%d commands", commands)
	}
	var help strings.Builder
	run := &cobra.Command{}
	for _, cmd := range root.Commands() {
		if cmd.Name() == "run" {
			run = cmd
		}
	}
	run.SetOut(&help)
	if err := run.Help(); err != nil || strings.Index(help.String(), "\nConfiguration:\n  --environment ") > strings.Index(help.String(), "\nGit repository:\n  --repo ") {
		t.Errorf("%v\n%s", err, help.String())
	}
}
