package cli

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

func newSet() *cobra.Command {
	var environment, layer, from string
	var flags editFlags
	cmd := &cobra.Command{
		Use:   "set NAME=VALUE… [NAME-…] --environment E",
		Short: "Change parameters in a configuration directory",
		Long: `set writes values into the file of an environment, or into the one that --layer
names (base.yaml, templates/NAME.yaml). Only the bytes of a value differ, or
the line of a parameter: comments, order, blank lines and line ends stay. NAME-
takes a parameter out of the file. --from sets what a file says that agent
export wrote (yaml, json or env), as far as the environment has other values; -
is standard input.

All environments are checked first. What would not be valid is shown in the
words of agent validate, and nothing is written. A file with anchors, aliases,
tags or values of several lines is not touched where that would not be safe;
the place is named. The file is replaced at once, with its mode; a link is
followed.

Exit codes: 0 done or nothing to do, 3 not valid, 2 wrong usage, 1 anything
else.`,
		Example: `  agent set NAME=4096 --environment production --config config --dry-run
  agent set NAME- --environment staging --config config --commit
  agent set --from values.yaml --environment staging --config config \
    -m "Values of the load test" --commit`,
		Args: cobra.ArbitraryArgs,
	}
	flags.add(cmd)
	f := cmd.Flags()
	f.StringVar(&environment, "environment", "", "the environment to change")
	f.StringVar(&layer, "layer", "", "the `file` to change: base.yaml or templates/NAME.yaml (default the environment's)")
	f.StringVar(&from, "from", "", "a `file` of values, as agent export writes it; - for standard input")
	completeEnvironment(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := flags.open()
		if err != nil {
			return err
		}
		env, err := neededEnvironment(s, "environment", environment)
		if err != nil {
			return err
		}
		if len(args) == 0 && from == "" {
			return usageHint("agent set NAME=VALUE --environment "+string(env), "nothing to set")
		}
		path, err := layerPath(&flags, env, layer)
		if err != nil {
			return err
		}
		w, err := newEdit(cmd.Context(), &flags, s, path)
		defer w.close()
		if err != nil {
			return err
		}
		edits, err := readEdits(cmd, w, env, args, from)
		if err != nil {
			return err
		}
		if err := w.edit(cmd, edits); err != nil {
			return err
		}
		list, err := w.consequences(cmd, env)
		if err != nil {
			return err
		}
		if err := w.checkLayer(cmd, env, list, edits); err != nil {
			return err
		}
		return w.finish(cmd, list, setSubject(edits, cmp.Or(layer, string(env))))
	}
	return cmd
}

// neededEnvironment returns the environment that a flag names.
func neededEnvironment(s *schema.Schema, flag, name string) (schema.Environment, error) {
	if name == "" {
		return "", usageHint("one of "+environmentNames(s), "--%s is needed", flag)
	}
	env, err := s.ParseEnvironment(name)
	if err != nil {
		return "", usage("--%s: %w", flag, err)
	}
	return env, nil
}

// layerPath returns the file that --layer names, in the directory.
func layerPath(flags *editFlags, env schema.Environment, layer string) (string, error) {
	if layer == "" {
		return env.File(), nil
	}
	path := filepath.ToSlash(layer)
	if inside, err := filepath.Rel(flags.root, layer); err == nil && strings.HasPrefix(filepath.Clean(layer), filepath.Clean(flags.root)+"/") {
		path = filepath.ToSlash(inside)
	}
	_, isTemplate := schema.ParseTemplatePath(path)
	if path != env.File() && path != schema.BaseFile && !isTemplate {
		return "", usageHint("one of "+env.File()+", "+schema.BaseFile+" and templates/NAME.yaml", "--layer: %q is no file that %s is made of", layer, env)
	}
	return path, nil
}

// readEdits reads what is to be set. All values that cannot be are printed.
func readEdits(cmd *cobra.Command, w *workspaceEdit, env schema.Environment, args []string, from string) (edits []schema.Edit, err error) {
	rules := w.schema.For(env)
	var wrong []schema.Violation
	if from != "" {
		values, found, err := readValues(cmd, rules, from)
		if err != nil {
			return nil, err
		}
		wrong = found
		config, _, _ := w.load(env, false)
		for _, name := range values.Names() {
			if v := values.Get(name); config == nil || !config.Parameters.Get(name).Equal(v) {
				edits = append(edits, schema.Edit{Name: name, Value: v})
			}
		}
	}
	named := map[string]bool{}
	for _, arg := range args {
		name, text, isSet := strings.Cut(arg, "=")
		name, isUnset := strings.CutSuffix(name, "-")
		if isSet == isUnset {
			return nil, usageHint("NAME=VALUE sets a parameter, NAME- takes it out of the file", "%q is neither NAME=VALUE nor NAME-", arg)
		}
		if named[name] {
			return nil, usage("%s is given twice", name)
		}
		named[name] = true
		edit := schema.Edit{Name: name}
		var violation *schema.Violation
		if isSet {
			edit.Value, violation = rules.ParseValue(name, text)
		} else if after, err := schema.EditFile(w.before, edit); err == nil && bytes.Equal(after.Bytes, w.before.Bytes) {
			violation = rules.CheckValue(name, schema.Value{}) // a misspelled one that is there can be taken out
		}
		if violation != nil {
			wrong = append(wrong, *violation)
		}
		edits = append(slices.DeleteFunc(edits, func(e schema.Edit) bool { return e.Name == name }), edit)
	}
	if len(wrong) == 0 {
		return renames(w, rules, edits), nil
	}
	for _, v := range wrong {
		fmt.Fprintln(cmd.ErrOrStderr(), status.Plain(v.String()))
	}
	return nil, &failure{exitInvalid, problem.New("", errors.New("not all values can be set; nothing is written"), "`agent schema` lists the parameters and their ranges")}
}

// renames makes one edit of "NAME=VALUE MISSPELLED-", which keeps the line and its comment.
func renames(w *workspaceEdit, rules *schema.Rules, edits []schema.Edit) []schema.Edit {
	for i, unset := range edits {
		meant, ok := schema.Suggest(unset.Name, rules.Names())
		j := slices.IndexFunc(edits, func(e schema.Edit) bool { return e.Name == meant && !e.Value.IsZero() })
		if !unset.Value.IsZero() || rules.Parameter(unset.Name) != nil || !ok || j < 0 {
			continue
		}
		renamed := edits[j]
		renamed.From = unset.Name
		if _, err := schema.EditFile(w.before, renamed); err == nil {
			edits[j] = renamed
			return renames(w, rules, slices.Delete(edits, i, i+1))
		}
	}
	return edits
}

// maxValues is the most that a file of values may hold, in bytes.
const maxValues = schema.MaxFileBytes

// readValues reads a file of values in one of the formats of agent export.
func readValues(cmd *cobra.Command, rules *schema.Rules, from string) (values schema.Parameters, wrong []schema.Violation, err error) {
	in := io.Reader(cmd.InOrStdin())
	if from != "-" {
		f, err := os.Open(from)
		if err != nil {
			return values, nil, usageHint("a file that agent export wrote", "--from: %w", err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxValues+1))
	if err == nil && len(text) > maxValues {
		err = fmt.Errorf("%s has more than %d bytes", from, maxValues)
	}
	if err != nil {
		return values, nil, usageHint("a file that agent export wrote", "--from: %w", err)
	}
	return parseValues(rules, from, text)
}

// checkLayer says where the values do not come to count: another layer has others, or
// nothing reads the file.
func (w *workspaceEdit) checkLayer(cmd *cobra.Command, env schema.Environment, list []consequence, edits []schema.Edit) error {
	_, isTemplate := schema.ParseTemplatePath(w.path)
	in, err := w.input(env, true)
	if err != nil {
		return err
	}
	if isTemplate && !slices.ContainsFunc(in.Files, func(f schema.File) bool { return f.Path == w.path }) {
		return usageHint("add it to extends: in "+env.File()+", or leave --layer away", "--layer: %s does not extend %s", env, w.path)
	}
	for _, c := range list {
		for _, e := range edits {
			if o := c.after.Provenance[e.Name]; c.environment == env && !e.Value.IsZero() && o.File != w.path {
				fmt.Fprintf(cmd.ErrOrStderr(), "note: %s keeps %s %v, from %s\n", env, e.Name, c.after.Parameters.Get(e.Name), status.Plain(o.Position.String()))
			}
		}
	}
	return nil
}

// setSubject is the subject of a commit that sets values in a place.
func setSubject(edits []schema.Edit, place string) string {
	if len(edits) == 0 {
		return "Set nothing in " + place
	}
	text := "Unset " + edits[0].Name
	if v := edits[0].Value; !v.IsZero() {
		text = fmt.Sprintf("Set %s to %v", edits[0].Name, v)
	}
	if n := len(edits) - 1; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text + " in " + place
}
