package apply_test

import (
	"flag"
	"os"
	"testing"
)

// TestMain leaves away, where DTESN_TEST_PLAIN is set, what the race detector takes
// nothing from: make test has played that with it.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("DTESN_TEST_PLAIN") != "" && flag.Lookup("test.run").Value.String() == "" {
		_ = flag.Set("test.run", "^(TestDownIsNoRejection|TestFaultTable|TestModel)$")
	}
	os.Exit(m.Run())
}
