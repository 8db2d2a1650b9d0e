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
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"dtesn-agent/apply"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/smallfile"
)

// A Hook is one receiver, as the file of --hooks has it.
type Hook struct {
	Name string
	// URL or Command is where events go: an address that takes a POST, or a program with
	// its arguments, which gets the event on standard input.
	URL     string
	Command []string
	// SecretFile has the secret by which webhooks are signed, as "whsec_" and base64.
	SecretFile string
	On         []apply.EventType // all if empty; none if it is required
	Timeout    time.Duration     // of one attempt; 15 s if 0
	// Format is what a URL gets: a CloudEvent if empty, or FormatSlack or FormatTeams.
	Format string
	// Required has it asked whether it agrees to each change. Then Timeout is how long its
	// agreement is waited for; 30 s if 0.
	Required bool
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

// hookKeys are the keys of a hook.
var hookKeys = []string{"name", "url", "command", "secret_file", "format", "on", "timeout", "required"}

var (
	validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`).MatchString
	yamlLine  = regexp.MustCompile(`^yaml: line (\d+): `)
)

// Load reads a file of hooks. The error names file, line, value and rule. Paths in the file
// are relative to its directory; a command without a slash is looked for in PATH.
func Load(path string) ([]Hook, error) {
	text, err := smallfile.ReadText(path, maxFile)
	if err != nil {
		return nil, &problem.Error{Op: "read hooks from", Place: path, Err: err, Hint: "a YAML list of {" + strings.Join(hookKeys, ", ") + "}"}
	}
	mistake := func(line int, err error) error {
		return &problem.Error{Op: "read hooks", Place: fmt.Sprintf("%s:%d", path, line), Err: err, Hint: problem.Hint(err)}
	}
	// It may be half written, and a required hook must not be lost by that.
	empty := problem.New("", errors.New("it has no hooks"), "where none is meant, write []")
	var root, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&root); errors.Is(err, io.EOF) {
		return nil, mistake(1, empty)
	} else if err != nil {
		line := 1
		if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
			line, _ = strconv.Atoi(m[1])
			err = errors.New(strings.TrimPrefix(err.Error(), m[0]))
		}
		return nil, mistake(line, err)
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, mistake(second.Line, problem.New("", errors.New("it has more than one document"), "put all hooks into one list"))
	}
	list := root.Content[0]
	switch {
	case list.Tag == "!!null":
		return nil, mistake(1, empty)
	case list.Kind == yaml.MappingNode && list.Content[0].Value == "hooks":
		return nil, mistake(list.Line, problem.New("", errors.New("the file is a list"), `leave "hooks:" out`))
	case list.Kind != yaml.SequenceNode:
		return nil, mistake(list.Line, problem.New("", errors.New("the file is a list"), "begin each hook with - name: NAME"))
	case len(list.Content) > maxHooks:
		return nil, mistake(list.Content[maxHooks].Line, fmt.Errorf("%d hooks, at most %d", len(list.Content), maxHooks))
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	hooks := make([]Hook, 0, len(list.Content))
	for i, node := range list.Content {
		h := Hook{}
		e := entry{label: fmt.Sprintf("hook %d", i+1), values: map[string]*yaml.Node{}, line: node.Line}
		err := e.read(node)
		if err == nil {
			err = e.decode(&h)
		}
		if err == nil {
			err = h.check(&e, dir)
		}
		if err == nil && slices.ContainsFunc(hooks, func(o Hook) bool { return o.Name == h.Name }) {
			err = e.at("name", fmt.Errorf("name %q is there twice", h.Name))
		}
		if err != nil {
			return nil, mistake(e.line, err)
		}
		hooks = append(hooks, h)
	}
	return hooks, nil
}

// An entry is a hook as the file has it.
type entry struct {
	label  string
	values map[string]*yaml.Node
	line   int // of the entry, or of the mistake in it
}

// at returns err, which is about the value of key.
func (e *entry) at(key string, err error) error {
	if v := e.values[key]; v != nil {
		e.line = v.Line
	}
	return problem.New("", fmt.Errorf("%s: %w", e.label, err), problem.Hint(err))
}

// read takes the values, by their keys.
func (e *entry) read(node *yaml.Node) error {
	if node.Kind != yaml.MappingNode {
		return e.at("", problem.New("", errors.New("it is no mapping"), "begin it with - name: NAME"))
	}
	for i := 0; i < len(node.Content); i += 2 {
		if key, v := node.Content[i], node.Content[i+1]; key.Value == "name" && v.Kind == yaml.ScalarNode && validName(v.Value) {
			e.label = "hook " + v.Value
		}
	}
	for i := 0; i < len(node.Content); i += 2 {
		key, v := node.Content[i], node.Content[i+1]
		if v.Kind == yaml.AliasNode {
			v = v.Alias
		}
		e.line = key.Line
		if !slices.Contains(hookKeys, key.Value) {
			hint := "there are " + strings.Join(hookKeys, ", ")
			if near, ok := schema.Suggest(key.Value, hookKeys); ok {
				hint = "did you mean " + near + "?"
			}
			return e.at("", problem.New("", fmt.Errorf("there is no key %q", key.Value), hint))
		}
		if e.values[key.Value] != nil {
			return e.at("", fmt.Errorf("the key %s is there twice", key.Value))
		}
		e.values[key.Value] = v
	}
	e.line = node.Line
	return nil
}

// decode reads the values into a hook.
func (e *entry) decode(h *Hook) (err error) {
	texts := map[string]*string{"name": &h.Name, "url": &h.URL, "secret_file": &h.SecretFile, "format": &h.Format}
	for _, key := range hookKeys {
		v := e.values[key]
		if v == nil {
			continue
		}
		isText := v.Kind == yaml.ScalarNode
		if isText && v.Value == "" || v.Tag == "!!null" { // half written, or a variable that was empty
			return e.at(key, fmt.Errorf("%s has no value", key))
		}
		switch key {
		case "command", "on":
			var list []string
			if v.Kind != yaml.SequenceNode || v.Decode(&list) != nil {
				example := []string{"ticket", "--queue"}
				if key == "on" {
					example = []string{string(apply.EventRejected)}
				}
				if words := strings.Fields(v.Value); key == "on" && len(words) > 0 {
					example = words
				} else if len(words) > 1 { // the others may be secret
					example = []string{words[0], "…"}
				} else if len(words) == 1 {
					example = words
				}
				return e.at(key, fmt.Errorf("%s is a list: [%s]", key, strings.Join(example, ", ")))
			}
			if key == "command" {
				h.Command = list
				continue
			}
			for _, t := range list {
				h.On = append(h.On, apply.EventType(t))
			}
		case "timeout":
			if h.Timeout, err = time.ParseDuration(v.Value); err == nil {
				continue
			}
			if _, err := strconv.ParseFloat(v.Value, 64); err == nil && isText {
				return e.at(key, fmt.Errorf("timeout needs a unit: %ss", v.Value))
			}
			return e.at(key, problem.New("", fmt.Errorf("timeout %q is not a time", v.Value), "such as 30s or 2m"))
		case "required":
			if !isText || v.Decode(&h.Required) != nil {
				return e.at(key, errors.New("required is true or false"))
			}
		default:
			if *texts[key] = v.Value; !isText {
				return e.at(key, fmt.Errorf("%s is a text", key))
			}
		}
	}
	return nil
}

// check completes a hook, or says what is wrong with it; dir is where relative paths begin.
func (h *Hook) check(e *entry, dir string) error {
	if h.Name == "" {
		return e.at("name", errors.New("it has no name"))
	}
	if !validName(h.Name) {
		return e.at("name", problem.New("", fmt.Errorf("invalid name %q", h.Name), "use lower-case letters, digits and hyphens, at most 63"))
	}
	if (h.URL == "") == (len(h.Command) == 0) {
		return e.at("command", errors.New("it needs a url or a command, and not both"))
	}
	if h.URL != "" {
		u, err := url.Parse(h.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" { // it may hold a secret
			return e.at("url", problem.New("", errors.New("its url is not an http or https address"), "such as https://hooks.example.com/dtesn"))
		}
	} else if err := h.find(dir); err != nil {
		return e.at("command", err)
	}
	if h.SecretFile != "" {
		if len(h.Command) > 0 {
			return e.at("secret_file", errors.New("secret_file is for a url"))
		}
		if !filepath.IsAbs(h.SecretFile) {
			h.SecretFile = filepath.Join(dir, h.SecretFile)
		}
		if _, err := h.secret(); err != nil {
			return e.at("secret_file", err)
		}
	}
	if err := h.checkFormat(); err != nil {
		return e.at("format", err)
	}
	for i, t := range h.On {
		if !slices.Contains(apply.EventTypes(), t) {
			hint := fmt.Sprintf("one of %v", apply.EventTypes())
			if near, ok := schema.Suggest(string(t), eventNames()); ok {
				hint = "did you mean " + near + "?"
			}
			e.line = e.values["on"].Content[i].Line
			return e.at("", problem.New("", fmt.Errorf("unknown event %q", t), hint))
		}
	}
	if h.Timeout == 0 && h.Required {
		h.Timeout = askWait
	} else if h.Timeout == 0 {
		h.Timeout = usualWait
	}
	if h.Timeout < leastWait || h.Timeout > mostWait {
		return e.at("timeout", fmt.Errorf("timeout %s is out of range: %s to %s", h.Timeout, leastWait, mostWait))
	}
	return nil
}

// find looks for the program, as the kernel will when it is started.
func (h *Hook) find(dir string) error {
	program := h.Command[0]
	if strings.TrimSpace(program) == "" {
		return errors.New("the command is empty")
	}
	if strings.Contains(program, "/") && !filepath.IsAbs(program) {
		h.Command[0] = filepath.Join(dir, program)
	}
	_, err := exec.LookPath(h.Command[0])
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return problem.New("", fmt.Errorf("there is no command %q in PATH", program), "give its whole path")
	case err != nil:
		return problem.New("", fmt.Errorf("the command %s: %w", h.Command[0], problem.Bare(errors.Unwrap(err))), "give a file that the agent's user may execute")
	}
	return nil
}

func eventNames() (names []string) {
	for _, t := range apply.EventTypes() {
		names = append(names, string(t))
	}
	return names
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
