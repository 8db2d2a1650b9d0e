// Package hooks tells others what happened: webhooks and commands, fed by the log of
// events. Each has a durable cursor, so that it is told every event at least once, in
// order, under an id that never changes. A receiver that is slow, dead or broken costs
// the transaction and the other receivers nothing.
package hooks

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"dtesn-agent/apply"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/smallfile"
)

// A Hook is one receiver, as the file of --hooks has it.
type Hook struct {
	Name string `yaml:"name"`
	// URL or Command is where events go: an address that takes a POST, or a program with
	// its arguments, which gets the event on standard input.
	URL     string   `yaml:"url"`
	Command []string `yaml:"command"`
	// SecretFile has the secret by which webhooks are signed, as "whsec_" and base64.
	SecretFile string            `yaml:"secret_file"`
	On         []apply.EventType `yaml:"on"`      // all if empty; none if it is required
	Timeout    time.Duration     `yaml:"timeout"` // of one attempt; 15 s if 0
	// Required has it asked whether it agrees to each change. Then Timeout is how long its
	// agreement is waited for; 30 s if 0.
	Required bool `yaml:"required"`
}

const (
	maxFile     = 1 << 20
	maxHooks    = 24 // their cursors are one fact, of 4 KiB
	leastWait   = 100 * time.Millisecond
	mostWait    = 10 * time.Minute
	usualWait   = 15 * time.Second
	askWait     = 30 * time.Second
	secretStart = "whsec_"
)

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`).MatchString

// Load reads a file of hooks. The error names file, line, value and rule.
func Load(path string) ([]Hook, error) {
	text, err := smallfile.ReadText(path, maxFile)
	if err != nil {
		return nil, &problem.Error{Op: "read hooks from", Place: path, Err: err, Hint: "a YAML list of {name, url or command, secret_file, on, timeout, required}"}
	}
	var nodes []yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&nodes); err != nil && !errors.Is(err, io.EOF) {
		return nil, &problem.Error{Op: "read hooks from", Place: path, Err: err, Hint: "a YAML list, each with - name: NAME"}
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, problem.New("read hooks from "+path, errors.New("it has more than one document"), "put all hooks into one list")
	}
	if len(nodes) > maxHooks {
		return nil, problem.New("read hooks from "+path, fmt.Errorf("%d hooks, at most %d", len(nodes), maxHooks), "")
	}
	hooks := make([]Hook, len(nodes))
	for i := range nodes {
		h := &hooks[i]
		place := fmt.Sprintf("%s:%d", path, nodes[i].Line)
		if err := decodeStrictly(&nodes[i], h); err != nil {
			return nil, &problem.Error{Op: "read hooks", Place: place, Err: err}
		}
		err := h.check(filepath.Dir(path))
		if err == nil && slices.ContainsFunc(hooks[:i], func(o Hook) bool { return o.Name == h.Name }) {
			err = fmt.Errorf("name %q is there twice", h.Name)
		}
		if err != nil {
			return nil, &problem.Error{Op: "read hooks", Place: place, Err: err, Hint: problem.Hint(err)}
		}
	}
	return hooks, nil
}

// decodeStrictly decodes a node, in which unknown keys are errors.
func decodeStrictly(node *yaml.Node, to *Hook) error {
	text, err := yaml.Marshal(node)
	if err != nil {
		return err
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	err = dec.Decode(to)
	var types *yaml.TypeError
	if errors.As(err, &types) { // with lines of the copy
		return errors.New(regexp.MustCompile(`^line \d+: `).ReplaceAllString(types.Errors[0], ""))
	}
	return err
}

// check completes a hook, or says what is wrong with it; dir is where relative paths begin.
func (h *Hook) check(dir string) error {
	if !validName(h.Name) {
		return problem.New("", fmt.Errorf("invalid name %q", h.Name), "use lower-case letters, digits and hyphens, at most 63")
	}
	if (h.URL == "") == (len(h.Command) == 0) {
		return problem.New("", fmt.Errorf("hook %s needs a url or a command, and not both", h.Name), "")
	}
	if h.URL != "" {
		u, err := url.Parse(h.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			return problem.New("", fmt.Errorf("hook %s: its url is not an http or https address", h.Name), "such as https://hooks.example.com/dtesn") // it may hold a secret
		}
	}
	if len(h.Command) > 0 && strings.TrimSpace(h.Command[0]) == "" {
		return fmt.Errorf("hook %s: the command is empty", h.Name)
	}
	if h.SecretFile != "" {
		if len(h.Command) > 0 {
			return fmt.Errorf("hook %s: secret_file is for a url", h.Name)
		}
		if !filepath.IsAbs(h.SecretFile) {
			h.SecretFile = filepath.Join(dir, h.SecretFile)
		}
		if _, err := h.secret(); err != nil {
			return err
		}
	}
	for _, t := range h.On {
		if !slices.Contains(apply.EventTypes(), t) {
			return problem.New("", fmt.Errorf("hook %s: unknown event %q", h.Name, t), fmt.Sprintf("one of %v", apply.EventTypes()))
		}
	}
	if h.Timeout == 0 && h.Required {
		h.Timeout = askWait
	} else if h.Timeout == 0 {
		h.Timeout = usualWait
	}
	if h.Timeout < leastWait || h.Timeout > mostWait {
		return fmt.Errorf("hook %s: timeout %s is out of range: %s to %s", h.Name, h.Timeout, leastWait, mostWait)
	}
	return nil
}

// secret reads the secret anew, so that a rotation needs no restart; nil without one.
func (h *Hook) secret() ([]byte, error) {
	if h.SecretFile == "" {
		return nil, nil
	}
	text, err := smallfile.ReadText(h.SecretFile, maxFile)
	if err != nil {
		return nil, &problem.Error{Op: "read", Place: h.SecretFile, Err: err}
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(strings.TrimSpace(string(text)), secretStart))
	if err != nil || len(key) < 24 || len(key) > 64 {
		return nil, problem.New("", fmt.Errorf("%s holds no secret", h.SecretFile), "whsec_ and 24 to 64 random bytes in base64: echo whsec_$(head -c 32 /dev/urandom | base64)")
	}
	return key, nil
}

// wants reports whether an event is for the hook.
func (h *Hook) wants(e *apply.Event) bool {
	return len(h.On) == 0 && !h.Required || slices.Contains(h.On, e.Type)
}
