package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// helpWidth is the width of a help text, that of a terminal by default.
const helpWidth = 80

// groupKey is the annotation of a flag with the title of its group.
const groupKey = "group"

// group puts the flags without a group into one.
func group(f *pflag.FlagSet, title string) {
	f.VisitAll(func(flag *pflag.Flag) {
		if flag.Annotations[groupKey] == nil {
			flag.Annotations = map[string][]string{groupKey: {title}}
		}
	})
}

// usageText returns the usage of a command. Unlike cobra's it fits helpWidth, groups the
// flags, and has the sentence of a flag below its name.
func usageText(cmd *cobra.Command) string {
	var b strings.Builder
	if cmd.Runnable() && !cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "Usage:\n%s\n", wrap("  ", "      ", cmd.UseLine()))
	} else {
		fmt.Fprintf(&b, "Usage:\n  %s COMMAND [flags]\n", cmd.CommandPath())
	}
	if cmd.Example != "" {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", cmd.Example)
	}
	if cmd.HasAvailableSubCommands() {
		b.WriteString("\nCommands:\n")
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() || sub.Name() == "help" {
				b.WriteString(wrap(fmt.Sprintf("  %-11s ", sub.Name()), strings.Repeat(" ", 14), sub.Short) + "\n")
			}
		}
	}
	const rest = "Flags"
	var groups []string
	flags := map[string]string{}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		group := rest
		if title := f.Annotations[groupKey]; title != nil {
			group = title[0]
		}
		if group != rest && !slices.Contains(groups, group) {
			groups = append(groups, group)
		}
		if !f.Hidden {
			flags[group] += flagText(f)
		}
	})
	for _, group := range append(groups, rest) {
		if flags[group] != "" {
			fmt.Fprintf(&b, "\n%s:\n%s", group, flags[group])
		}
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "\nHelp about a command: %s COMMAND --help\n", cmd.CommandPath())
	}
	return b.String()
}

// flagParts returns the name of a flag with its value, its default as people write it, and
// its sentence.
func flagParts(f *pflag.Flag) (name, value, sentence string) {
	kind, sentence := pflag.UnquoteUsage(f)
	name = "--" + f.Name
	if f.Shorthand != "" {
		name = "-" + f.Shorthand + ", --" + f.Name
	}
	switch {
	case f.Value.Type() == "bool":
	case kind == "string" || kind == "int" || kind == "":
		name += " " + strings.ToUpper(f.Name[strings.LastIndexByte(f.Name, '-')+1:])
	default:
		name += " " + strings.ToUpper(kind)
	}
	switch f.DefValue {
	case "", "false", "[]", "0", "0s":
	default:
		value = f.DefValue
		if f.Value.Type() == "duration" && strings.HasSuffix(value, "m0s") {
			value = strings.TrimSuffix(value, "0s")
		}
	}
	return name, value, sentence
}

// flagText returns a flag with its sentence.
func flagText(f *pflag.Flag) string {
	name, value, sentence := flagParts(f)
	if value != "" {
		sentence += " (default " + value + ")"
	}
	return "  " + name + "\n" + wrap("        ", "        ", sentence) + "\n"
}

// wrap breaks text into lines of at most helpWidth. The first line begins with first, the
// others with next.
func wrap(first, next, text string) string {
	var lines []string
	line := first
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
			line += word
		case len([]rune(line))+1+len([]rune(word)) > helpWidth:
			lines = append(lines, line)
			line = next + word
		default:
			line += " " + word
		}
	}
	return strings.Join(append(lines, line), "\n")
}

// formatFlag adds --format, whose default is the first name. check returns an error for an
// unknown name.
func formatFlag(cmd *cobra.Command, format *string, sentence string, names ...string) (check func() error) {
	cmd.Flags().StringVar(format, "format", names[0], sentence)
	complete(cmd, "format", names...)
	return func() error {
		if !slices.Contains(names, *format) {
			return usage("--format: %q is none of %s", *format, strings.Join(names, ", "))
		}
		return nil
	}
}
