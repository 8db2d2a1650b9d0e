package hooks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRefused holds that each mistake in the file is named with its place.
func TestRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hooks.yaml")
	for text, want := range map[string]string{
		"- {name: a, url: 'https://x', on: [nothing]}":             "hooks.yaml:1: hook a: unknown event \"nothing\"",
		"- {name: A, url: 'https://x'}":                            "hooks.yaml:1: invalid name \"A\"",
		"- {name: a}":                                              "hooks.yaml:1: hook a needs a url or a command",
		"\n- {name: a, url: 'https://x', command: [x]}":            "hooks.yaml:2: hook a needs a url or a command",
		"- {name: a, url: 'https://x', secret: y}":                 "field secret not found",
		"- {name: a, url: 'ftp://x'}":                              "its url is not an http or https address",
		"- {name: a, url: 'https://x', timeout: 1h}":               "timeout 1h0m0s is out of range",
		"- {name: a, url: 'https://x', timeout: soon}":             "cannot unmarshal",
		"- {name: a, url: 'https://x', required: perhaps}":         "cannot unmarshal",
		"- {name: a, url: 'https://x', secret_file: nowhere}":      "no such file",
		"- {name: a, url: 'https://x'}\n- {name: a, command: [x]}": "hooks.yaml:2: name \"a\" is there twice",
		"name: a": "cannot unmarshal",
		"- [":     "hooks.yaml",
	} {
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if hooks, err := Load(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v, want %q", text, hooks, err, want)
		}
	}
}
