package test

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// TestInitWorkflow holds that the workflow of a new repository is one.
func TestInitWorkflow(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	if code, out := agent("init", dir); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	if out, err := exec.Command("go", "run", actionlint, "-version").CombinedOutput(); err != nil {
		lacking(t, "needs actionlint, and cannot build it: "+string(out))
	}
	lint := exec.Command("go", "run", actionlint, "-no-color", filepath.Join(dir, ".github/workflows/dtesn-config.yaml"))
	if out, err := lint.CombinedOutput(); err != nil {
		t.Errorf("actionlint: %v\n%s", err, out)
	}
}
