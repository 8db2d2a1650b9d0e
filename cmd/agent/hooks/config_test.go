package hooks

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/schema/problem"
)

// TestRefused holds that each mistake in the file is named with its place, and what to do.
func TestRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hooks.yaml")
	for text, want := range map[string]string{
		"- {name: a, url: 'https://x', on: [nothing]}":                   `:1: hook a: unknown event "nothing"; one of [`,
		"- name: a\n  url: 'https://x'\n  on:\n  - applied\n  - rejectd": `:5: hook a: unknown event "rejectd"; did you mean rejected?`,
		"- name: a\n  url: 'https://x'\n- name: A\n  url: 'https://x'":   `:3: hook 2: invalid name "A"; use `,
		"- {url: 'https://x'}": ":1: hook 1: it has no name",
		"- {name: a}":          ":1: hook a: it needs a url or a command",
		"\n- {name: a, url: 'https://x', command: [x]}":                    ":2: hook a: it needs a url or a command",
		"- name: chat\n  urll: 'https://x'":                                `:2: hook chat: there is no key "urll"; did you mean url?`,
		"- {name: a, colour: red}":                                         `:1: hook a: there is no key "colour"; there are name, url, `,
		"- name: a\n  url: 'https://x'\n  url: 'https://y'":                ":3: hook a: the key url is there twice",
		"- name: a\n  url: 'ftp://x'":                                      ":2: hook a: its url is not an http or https address; such as",
		"- name: a\n  url: ['https://x']":                                  ":2: hook a: url is a text",
		"- name: a\n  url: 'https://x'\n  format: discord":                 `:3: hook a: unknown format "discord"; slack or teams`,
		"- name: a\n  command: [sh]\n  format: slack":                      `:3: hook a: format is for a url`,
		"- name: a\n  url: 'https://x'\n  required: true\n  format: slack": `:4: hook a: a chat cannot agree to a change`,
		"- name: a\n  url: 'https://x'\n  timeout: 1h":                     ":3: hook a: timeout 1h0m0s is out of range",
		"- name: a\n  url: 'https://x'\n  timeout: 30":                     ":3: hook a: timeout needs a unit: 30s",
		"- name: a\n  url: 'https://x'\n  timeout: soon":                   `:3: hook a: timeout "soon" is not a time; such as`,
		"- name: a\n  url: 'https://x'\n  required: perhaps":               ":3: hook a: required is true or false",
		"- name: a\n  url: 'https://x'\n  on: applied":                     ":3: hook a: on is a list: [applied]",
		"- name: a\n  command: ticket --queue":                             ":2: hook a: command is a list: [ticket, …]",
		"- name: a\n  command: [' ']":                                      ":2: hook a: the command is empty",
		"- name: a\n  command: [no-such-program]":                          `:2: hook a: there is no command "no-such-program" in PATH; give its whole path`,
		"- name: a\n  command: [./hooks.yaml]":                             "hooks.yaml: permission denied; give a file that",
		"- name: a\n  command: [/none/such]":                               ":2: hook a: the command /none/such: no such file or directory; give a file that",
		"- {name: a, command: [sh], secret_file: x}":                       ":1: hook a: secret_file is for a url",
		"- name: a\n  url: 'https://x'\n  secret_file: nowhere":            ":3: hook a: read " + filepath.Dir(file) + "/nowhere: no such file",
		"- {name: a, url: 'https://x'}\n- name: a\n  command: [sh]":        `:2: hook a: name "a" is there twice`,
		"- a":       ":1: hook 1: it is no mapping; begin it with - name: NAME",
		"\nname: a": ":2: the file is a list; begin each hook with - name: NAME",
		"- {name: a, url: 'https://x', secret_file: }": `:1: hook a: secret_file has no value`,
		"- name: a\n  url: https://x\n  required:":     `:3: hook a: required has no value`,
		"":                                      `:1: it has no hooks`,
		"---\n# nothing\n":                      `:1: it has no hooks`,
		"hooks:\n- {name: a, url: 'https://x'}": `:1: the file is a list; leave "hooks:" out`,
		"[]\n---\n[]":                           ":2: it has more than one document; put all",
		"- {name: a}\n- [":                      ":2: did not find expected node content",
	} {
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if hooks, err := Load(file); err == nil || !strings.HasPrefix(err.Error(), "read hooks "+file+":") || !strings.Contains(problem.Text(err), want) {
			t.Errorf("%s: %+v, %s, want %q", text, hooks, problem.Text(err), want)
		}
	}
}

// TestTaken holds what a file without a mistake means, and that its paths are relative to it.
func TestTaken(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile("ticket", []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string][]Hook{
		"[]": {},
		"- {name: a, url: 'https://x', on: [applied], timeout: 1m}\n- {name: b, command: [./ticket, 7], required: true}": {
			{Name: "a", URL: "https://x", On: []apply.EventType{apply.EventApplied}, Timeout: time.Minute},
			{Name: "b", Command: []string{dir + "/ticket", "7"}, Timeout: askWait, Required: true},
		},
	} {
		if err := os.WriteFile("hooks.yaml", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if hooks, err := Load("hooks.yaml"); err != nil || !reflect.DeepEqual(hooks, want) {
			t.Errorf("%s: %+v, %v", text, hooks, err)
		}
	}
}
