package test

import (
	"os"
	"os/exec"
	"testing"
)

// needs skips a test on a machine without one of the programs, and fails it
// where `make test` has installed them all.
func needs(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			lacking(t, "needs "+p+": run test/packages, which installs it")
		}
	}
}

// needsRoot skips a test that mounts or changes users for others than root.
func needsRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

// lacking ends a test for what the machine does not have.
func lacking(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("DTESN_TEST_REQUIRE") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}
