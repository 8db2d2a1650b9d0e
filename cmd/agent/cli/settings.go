package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"dtesn-agent/schema"
)

// envPrefix begins the name of every setting in the environment:
// --drift-interval is DTESN_AGENT_DRIFT_INTERVAL.
const envPrefix = "DTESN_AGENT_"

// A setting's value with the place it came from, for messages.
type origin struct{ value, place string }

// settle fills the flags that the command line left alone from the environment
// and then from the settings file, if the command has one: a flag beats the
// environment, which beats the file, which beats the default. Every name that
// is none is an error: a misspelt setting must not be a setting forgotten.
// known are all names a variable may have, for a variable may well be another
// command's.
func settle(flags *pflag.FlagSet, known []string) error {
	fromEnv, err := environment(os.Environ(), known)
	if err != nil {
		return err
	}
	fromFile := map[string]origin{}
	if f := flags.Lookup("settings"); f != nil {
		path := f.Value.String()
		if v, ok := fromEnv["settings"]; ok && !f.Changed {
			path = v.value
		}
		if path != "" {
			if fromFile, err = settingsFile(path, known); err != nil {
				return err
			}
		}
	}
	k := koanf.New("\x00") // names are flat
	for _, layer := range []map[string]origin{fromFile, fromEnv} {
		values := make(map[string]any, len(layer))
		for name, o := range layer {
			values[name] = o.value
		}
		if err := k.Load(confmap.Provider(values, ""), nil); err != nil {
			return fmt.Errorf("settings: %w", err)
		}
	}
	if err := k.Load(posflag.Provider(flags, "\x00", k), nil); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	var bad error
	flags.VisitAll(func(f *pflag.Flag) {
		from, ok := fromEnv[f.Name]
		if !ok {
			from, ok = fromFile[f.Name]
		}
		if !ok || f.Changed || bad != nil {
			return
		}
		if err := flags.Set(f.Name, k.String(f.Name)); err != nil {
			bad = usage("%s: %q is not a value for %s: %w", from.place, from.value, f.Name, unwrapFlag(err))
		}
	})
	return bad
}

// checkGiven reports a guard or a listener of changes that was asked for and not named: a
// variable that was empty must not switch it off.
func checkGiven(flags *pflag.FlagSet) error {
	for _, name := range []string{policyFlag, "hooks", schemaFlag} {
		if f := flags.Lookup(name); f != nil && f.Changed && f.Value.String() == "" {
			return usageHint("name it, or leave it out for none", "--%s is empty", name)
		}
	}
	return nil
}

func unwrapFlag(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}

// environment reads the settings among the variables.
func environment(environ, known []string) (map[string]origin, error) {
	k := koanf.New("\x00")
	err := k.Load(env.Provider("\x00", env.Opt{Prefix: envPrefix, EnvironFunc: func() []string { return environ }}), nil)
	if err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	values := map[string]origin{}
	for _, variable := range k.Keys() {
		if k.String(variable) == "" {
			continue // set to nothing is not set
		}
		name := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(variable, envPrefix)), "_", "-")
		if err := knownSetting(name, known, "environment variable "+variable, envName); err != nil {
			return nil, err
		}
		values[name] = origin{value: k.String(variable), place: "environment variable " + variable}
	}
	return values, nil
}

func envName(name string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// settingsFile reads agent.yaml: one level of names, the flags' own, with
// scalar values.
func settingsFile(path string, known []string) (map[string]origin, error) {
	text, err := readSmallFile(path)
	if err != nil {
		hint := "check --settings"
		if errors.Is(err, fs.ErrNotExist) {
			hint = "create it, or leave --settings away"
		}
		return nil, usageHint(hint, "read the settings: %w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, usage("%s: %w", path, err)
	}
	values := map[string]origin{}
	if len(doc.Content) == 0 {
		return values, nil
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return nil, usage("%s:%d: the settings must be names with values, such as `state: /var/lib/dtesn-agent`", path, top.Line)
	}
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		place := fmt.Sprintf("%s:%d", path, key.Line)
		if err := knownSetting(key.Value, known, place, func(s string) string { return s }); err != nil {
			return nil, err
		}
		if value.Kind != yaml.ScalarNode || value.Tag == "!!null" {
			return nil, usage("%s: %s must have one plain value", place, key.Value)
		}
		if _, twice := values[key.Value]; twice {
			return nil, usage("%s: %s is set twice", place, key.Value)
		}
		values[key.Value] = origin{value: value.Value, place: place}
	}
	return values, nil
}

// maxSettings is the most that a settings file may hold, in bytes.
const maxSettings = 1 << 20

// readSmallFile reads a regular file of a sensible size; a pipe or a device
// would keep the agent from starting, or take its memory.
func readSmallFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSettings {
		return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", path, maxSettings)
	}
	return io.ReadAll(io.LimitReader(f, maxSettings))
}

// readToken reads the token in the first line of the file that --token-file names.
func readToken(path string) (string, error) {
	text, err := readSmallFile(path)
	token, _, _ := strings.Cut(string(text), "\n")
	switch token = strings.TrimSpace(token); {
	case err != nil:
		return "", usageHint("name a file with the token in its first line", "--token-file: %w", err)
	case token == "":
		return "", usageHint("put the token into its first line", "--token-file: %s is empty", path)
	}
	return token, nil
}

func knownSetting(name string, known []string, place string, spell func(string) string) error {
	for _, k := range known {
		if k == name {
			return nil
		}
	}
	hint := "the settings are the flags of `agent run`: agent run --help"
	if near, ok := schema.Suggest(name, known); ok {
		hint = "did you mean " + spell(near) + "?"
	}
	return usageHint(hint, "%s: there is no setting %q", place, spell(name))
}
