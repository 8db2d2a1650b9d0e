package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestInitWorkflow holds that the workflow of a new repository is one.
func TestInitWorkflow(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	if code, out := agent("init", dir); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, ".github/workflows/dtesn-config.yaml"))
	for _, want := range []string{"# token: ${{ secrets.AGENT_SOURCE_TOKEN }} # <--", "--allow-missing", "is required"} {
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("the workflow does not have %q (%v)", want, err)
		}
	}
	if out, err := exec.Command("go", "run", actionlint, "-version").CombinedOutput(); err != nil {
		lacking(t, "needs actionlint, and cannot build it: "+string(out))
	}
	lint := exec.Command("go", "run", actionlint, "-no-color", filepath.Join(dir, ".github/workflows/dtesn-config.yaml"))
	if out, err := lint.CombinedOutput(); err != nil {
		t.Errorf("actionlint: %v\n%s", err, out)
	}
}
