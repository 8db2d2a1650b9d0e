package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/gitstore"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher"
)

// exportFormats write the values of an export, one function a --format.
var exportFormats = map[string]func(*export) ([]byte, error){"yaml": exportYAML, "json": exportJSON, "env": exportEnv}

// An export is the effective values of one environment, and where they came from.
type export struct {
	Environment schema.Environment `json:"environment"`
	Snapshot    string             `json:"snapshot_id,omitempty"`
	Timestamp   float64            `json:"timestamp,omitempty"`
	Revision    string             `json:"revision,omitempty"`
	Parameters  schema.Parameters  `json:"parameters"`
	Provenance  schema.Provenance  `json:"provenance"`
}

func newExport() *cobra.Command {
	var state, environment, root, format string
	var isFiles bool
	cmd := &cobra.Command{
		Use:   "export [REV|ID] (--state DIR | --environment E --config DIR)",
		Short: "Print effective parameters, with where each came from",
		Long: `export prints the values of a record of the history (ID is as in agent show;
the applied record without it), or with --environment those that the files of
--config declare, or declared in the commit REV of their git repository.
Experiments are left out there.

  yaml  a file that can stand as a layer (base.yaml, a template); provenance in
        comments
  json  {"environment", "snapshot_id", "timestamp", "revision", "parameters",
        "provenance": {NAME: {"file", "line", "column", "layer", "commit"}}}
  env   NAME=VALUE lines, quoted for a shell; provenance in comments

Files of --config are named as from the current directory. agent set --from
takes each format back.`,
		Example: `  agent export --state /var/lib/dtesn-agent > running.yaml
  agent export 15 --state /var/lib/dtesn-agent --format json
  agent export v1.2 --environment production --config config --format env`,
		Args: cobra.MaximumNArgs(1),
	}
	open := schemaOf(cmd)
	f := cmd.Flags()
	stateFlag(cmd, &state)
	needState := cmd.PreRunE
	f.StringVar(&environment, "environment", "", "print what the files declare for this environment")
	f.StringVar(&root, "config", ".", "the `directory` with base.yaml and the environments' files")
	checkFormat := formatFlag(cmd, &format, "yaml, json or env", "yaml", "json", "env")
	completeEnvironment(cmd)
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if isFiles = f.Changed("environment") || f.Changed("config"); isFiles {
			return nil
		}
		return needState(cmd, args)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var e *export
		err := checkFormat()
		if err != nil {
			return err
		}
		if isFiles {
			e, err = exportFiles(cmd, open, environment, root, args)
		} else {
			e, err = exportRecord(cmd, state, args)
		}
		if err != nil {
			return err
		}
		text, err := exportFormats[format](e)
		if err == nil {
			_, err = cmd.OutOrStdout().Write(text)
		}
		return err
	}
	return cmd
}

func exportRecord(cmd *cobra.Command, state string, args []string) (*export, error) {
	r, err := gitstore.OpenReader(state)
	if err != nil {
		return nil, err
	}
	rec, err := recordNamed(cmd.Context(), r, args)
	if err != nil {
		return nil, err
	}
	return &export{rec.Environment, rec.ID, rec.Timestamp, rec.Source.Revision, rec.Config, rec.Provenance}, nil
}

func exportFiles(cmd *cobra.Command, open func() (*schema.Schema, error), environment, root string, args []string) (*export, error) {
	s, err := open()
	if err != nil {
		return nil, err
	}
	env, err := neededEnvironment(s, "environment", environment)
	if err != nil {
		return nil, err
	}
	w := &workspaceEdit{flags: &editFlags{root: root}, schema: s}
	in, err := schema.Input{}, error(nil)
	if len(args) == 0 {
		in, err = w.input(env, false)
	} else {
		in, err = inputAt(root, args[0], env)
	}
	if err != nil {
		return nil, err
	}
	if len(in.Files) == 0 {
		return nil, problem.New("", fmt.Errorf("%s has neither %s nor %s", root, schema.BaseFile, env.File()), configHint(s, root, "name the directory with "+schema.BaseFile))
	}
	config, violations := s.For(env).Review(in)
	if violations != nil {
		w.printViolations(cmd, violations)
		return nil, &failure{exitInvalid, fmt.Errorf("%s is not valid", env)}
	}
	for name, o := range config.Provenance {
		if o.File != "" {
			o.File = filepath.Join(root, o.File)
			config.Provenance[name] = o
		}
	}
	return &export{Environment: env, Revision: in.Commit, Parameters: config.Parameters, Provenance: config.Provenance}, nil
}

// inputAt reads the files of an environment in a commit of the repository around root.
func inputAt(root, rev string, env schema.Environment) (in schema.Input, err error) {
	repository, dir, err := watcher.OpenRepository(root)
	if err != nil {
		return in, err
	}
	defer func() { err = errors.Join(err, repository.Close()) }()
	revision, err := repository.Revision(rev)
	if err != nil {
		return in, err
	}
	files, err := revision.Directory(dir)
	if err != nil {
		return in, err
	}
	in, _, err = input(env, files.File)
	in.Commit = revision.Commit()
	return in, err
}

// title says what was exported, on one line.
func (e *export) title() string {
	text := string(e.Environment)
	if e.Snapshot != "" {
		text += ", " + e.Snapshot + " of " + date(e.Timestamp)
	}
	if e.Revision != "" {
		text += ", revision " + e.Revision
	}
	return status.Plain(text)
}

// place says where a value came from.
func (e *export) place(name string) string { return status.Plain(placeOfValue(e.Provenance[name])) }

func exportYAML(e *export) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s\nparameters:\n", e.title())
	for _, name := range e.Parameters.Names() {
		value, err := e.Parameters.Get(name).MarshalJSON()
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "  %s: %s # %s\n", name, value, e.place(name))
	}
	return b.Bytes(), nil
}

func exportJSON(e *export) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(e)
	return b.Bytes(), err
}

func exportEnv(e *export) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s\n", e.title())
	for _, name := range e.Parameters.Names() {
		fmt.Fprintf(&b, "# %s\n%s=%s\n", e.place(name), name, problem.ShellWord(e.Parameters.Get(name).String()))
	}
	return b.Bytes(), nil
}

var envLine = regexp.MustCompile(`^([a-z][a-z0-9_]*)=(.*)$`)

// parseValues reads what an export wrote, in whichever format. name is that of the file.
func parseValues(rules *schema.Rules, name string, text []byte) (values schema.Parameters, wrong []schema.Violation, err error) {
	given := map[string]schema.Value{}
	isEnv := true
	for i, line := range strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		m := envLine.FindStringSubmatch(line)
		if m == nil {
			isEnv = false
			break
		}
		v, violation := rules.ParseValue(m[1], shellUnquote(m[2]))
		if violation != nil {
			violation.Position = schema.Position{File: name, Line: i + 1, Column: 1}
			wrong = append(wrong, *violation)
		}
		given[m[1]] = v
	}
	if isEnv {
		return schema.NewParameters(given), wrong, nil
	}
	wrong = nil
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		e := struct{ Parameters map[string]schema.Value }{}
		if err := json.Unmarshal(text, &e); err != nil || e.Parameters == nil {
			return values, nil, usageHint("JSON as agent export --format json writes it", "--from: %s has no parameters: %v", name, err)
		}
		for _, parameter := range slices.Sorted(maps.Keys(e.Parameters)) {
			if violation := rules.CheckValue(parameter, e.Parameters[parameter]); violation != nil {
				violation.File = name
				wrong = append(wrong, *violation)
			}
		}
		return schema.NewParameters(e.Parameters), wrong, nil
	}
	values, found := rules.LoadLayer(schema.NewFile(filepath.ToSlash(name), text))
	if found != nil {
		wrong = found.List
	}
	return values, wrong, nil
}

// shellUnquote reads a word as problem.ShellWord wrote it.
func shellUnquote(word string) string {
	if len(word) < 2 || word[0] != '\'' || word[len(word)-1] != '\'' {
		return word
	}
	return strings.ReplaceAll(word[1:len(word)-1], `'\''`, "'")
}
