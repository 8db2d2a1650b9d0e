package cli

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var updateReference = flag.Bool("update", false, "write the generated tables of docs/reference.md")

// TestReadmeReference fails unless the generated tables of docs/reference.md match the flags.
func TestReadmeReference(t *testing.T) {
	const path = "../../../docs/reference.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for name, table := range map[string]string{"settings": settingsTable(), "flags": flagsTables(newRoot())} {
		begin := "<!-- begin: " + name + " -->\n"
		before, rest, found := strings.Cut(page, begin)
		_, after, ended := strings.Cut(rest, "<!-- end -->")
		if !found || !ended {
			t.Fatalf("%s has no part %q", path, name)
		}
		page = before + begin + table + "\n<!-- end -->" + after
	}
	switch {
	case page == string(text):
	case *updateReference:
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Error("docs/reference.md is stale: run make docs")
	}
}

// settingsTable returns the tables of the settings of agent run, one a group.
func settingsTable() string {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(settings).flags(f)
	f.Lookup("instance").DefValue = "host name"
	var b strings.Builder
	title := ""
	f.VisitAll(func(flag *pflag.Flag) {
		if next := flag.Annotations[groupKey][0]; next != title {
			title = next
			fmt.Fprintf(&b, "\n### %s\n\n| flag | variable | default | |\n|---|---|---|---|\n", title)
		}
		b.WriteString(flagRow(flag, " `"+envName(flag.Name)+"` |"))
	})
	return b.String()
}

// flagsTables returns a section for each command but run and doctor, which have the settings.
func flagsTables(root *cobra.Command) string {
	var b strings.Builder
	for _, cmd := range root.Commands() {
		if cmd.Hidden || cmd.Name() == "run" || cmd.Name() == "doctor" || !cmd.HasFlags() {
			continue
		}
		fmt.Fprintf(&b, "\n### %s\n\n    %s\n\n| flag | default | |\n|---|---|---|\n", cmd.CommandPath(), strings.TrimSuffix(cmd.UseLine(), " [flags]"))
		cmd.LocalFlags().VisitAll(func(flag *pflag.Flag) { b.WriteString(flagRow(flag, "")) })
	}
	return b.String()
}

// flagRow returns a flag as a row of a table, with a cell between its name and its default.
func flagRow(f *pflag.Flag, cell string) string {
	name, value, sentence := flagParts(f)
	return fmt.Sprintf("| `%s` |%s %s | %s |\n", name, cell, value, strings.NewReplacer("|", `\|`, "<", `\<`).Replace(sentence))
}
