package status

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestRereadHangs holds that a file that cannot be read in time leaves what was in force,
// and keeps nobody waiting but the first.
func TestRereadHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var errs []error
		write("old")
		r := newReread("words", func(texts [][]byte) (string, error) {
			if string(texts[0]) == "new" {
				<-release // as a disk that hangs
			}
			return string(texts[0]), nil
		}, slog.New(slog.DiscardHandler), &errs, path)
		if len(errs) > 0 || r.get() != "old" {
			t.Fatal(errs)
		}
		write("new")
		for i, most := range []time.Duration{readWait, 0, 0} {
			begun := time.Now()
			if got := r.get(); got != "old" || time.Since(begun) != most {
				t.Errorf("%d: %s after %s", i, got, time.Since(begun))
			}
		}
		if err := r.problem(); err == nil || !strings.Contains(err.Error(), "takes longer than 1s") {
			t.Error(err)
		}
		close(release)
		synctest.Wait()
		if got := r.get(); got != "new" || r.problem() != nil {
			t.Errorf("%s, %v", got, r.problem())
		}
	})
}
