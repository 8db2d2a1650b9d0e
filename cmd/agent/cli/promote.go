package cli

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

func newPromote() *cobra.Command {
	var from, to string
	var flags editFlags
	cmd := &cobra.Command{
		Use:   "promote --from E --to E",
		Short: "Write what one environment declares into the file of another",
		Long: `promote changes the file of --to so that it declares the values of --from, as
one change to be reviewed. What its templates and base.yaml say already is not
written, and is taken out of the file where it said something else. extends,
experiments, description and comments of --to stay; experiments of --from are
not promoted.

Everything is checked first, as by agent set; nothing is written if --to would
not be valid.`,
		Example: `  agent promote --from staging --to production --config config --dry-run
  agent promote --from staging --to production --config config --commit`,
	}
	flags.add(cmd)
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "the environment whose values are taken")
	f.StringVar(&to, "to", "", "the environment whose file is changed")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := flags.open()
		if err != nil {
			return err
		}
		source, err := neededEnvironment(s, "from", from)
		if err != nil {
			return err
		}
		target, err := neededEnvironment(s, "to", to)
		if err != nil {
			return err
		}
		if source == target {
			return usage("--from and --to are both %s", source)
		}
		w, err := newEdit(cmd.Context(), &flags, s, target.File())
		defer w.close()
		if err != nil {
			return err
		}
		edits, notes, err := w.promotion(cmd, source, target)
		if err != nil {
			return err
		}
		if err := w.edit(cmd, edits); err != nil {
			return err
		}
		list, err := w.consequences(cmd, target)
		if err != nil {
			return err
		}
		for _, n := range notes {
			fmt.Fprintln(cmd.ErrOrStderr(), "note: "+n)
		}
		return w.finish(cmd, list, promoteSubject(list, source, target))
	}
	return cmd
}

// promotion returns the edits of the target's file that give it the values of the source,
// and what is not promoted.
func (w *workspaceEdit) promotion(cmd *cobra.Command, source, target schema.Environment) (edits []schema.Edit, notes []string, err error) {
	valid := func(env schema.Environment) (*schema.Configuration, schema.Input) {
		config, in, lerr := w.load(env, false)
		if found := (*schema.Violations)(nil); err == nil && errors.As(lerr, &found) {
			w.printViolations(cmd, found)
			lerr = &failure{exitInvalid, problem.New("", fmt.Errorf("%s is not valid; nothing is written", env), "correct it first: agent validate --environment "+string(env))}
		}
		err = errors.Join(err, lerr)
		return config, in
	}
	have, in := valid(target)
	want, _ := valid(source)
	if err != nil {
		return nil, nil, err
	}
	rules := w.schema.For(target)
	below := rules.Complete(rules.Inherited(in))
	names := want.Parameters.Map()
	maps.Copy(names, have.Parameters.Map())
	for _, name := range slices.Sorted(maps.Keys(names)) {
		v, origin := want.Parameters.Get(name), have.Provenance[name]
		switch {
		case have.Parameters.Get(name).Equal(v):
		case below.Get(name).Equal(v):
			edits = append(edits, schema.Edit{Name: name})
		case v.IsZero(): // and a layer below sets it
			return nil, nil, problem.New("", fmt.Errorf("%s: %s has %s %v, and %s does not have it", origin.Position, target, name, have.Parameters.Get(name), source),
				"take it out of that file, or set it in "+source.File())
		default:
			edits = append(edits, schema.Edit{Name: name, Value: v})
		}
	}
	for _, of := range []struct {
		env    schema.Environment
		config *schema.Configuration
		fate   string
	}{{source, want, "are not promoted"}, {target, have, "stay as they are"}} {
		var list []string
		for _, e := range of.config.Experiments {
			list = append(list, fmt.Sprintf("%s (%d %%)", e.Name, e.Percent))
		}
		if len(list) > 0 {
			notes = append(notes, fmt.Sprintf("experiments of %s %s: %s", of.env, of.fate, strings.Join(list, ", ")))
		}
	}
	return edits, notes, nil
}

// promoteSubject is the subject of the commit.
func promoteSubject(list []consequence, source, target schema.Environment) string {
	subject := fmt.Sprintf("Promote %s to %s", source, target)
	for _, c := range list {
		if c.environment != target || len(c.changes) == 0 {
			continue
		}
		first := c.changes[0]
		subject += fmt.Sprintf(": %s %v -> %v", first.Parameter, first.Old, first.New)
		if n := len(c.changes) - 1; n > 0 {
			subject += fmt.Sprintf(" and %d more", n)
		}
	}
	return subject
}
