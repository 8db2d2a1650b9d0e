package status

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"dtesn-agent/test/gitserver"
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

// TestAging holds that a certificate is said to expire a week before it does, and to have
// expired, once each in the log; and that a new one ends that.
func TestAging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, log := t.TempDir(), &strings.Builder{}
		cert := gitserver.NewCert(t, dir, "server") // for 30 days
		a, err := OpenAccess(AccessFiles{Cert: cert.CertFile, Key: cert.KeyFile}, slog.New(slog.NewTextHandler(log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		registry := prometheus.NewRegistry()
		a.register(registry)
		end := cert.X509.NotAfter.UTC().Format(time.RFC3339)
		for i, c := range []struct {
			after time.Duration // the one before
			says  string
		}{{22 * 24 * time.Hour, ""}, {48 * time.Hour, "expires at " + end}, {time.Hour, "expires at " + end}, {7 * 24 * time.Hour, "expired at " + end}} {
			time.Sleep(c.after)
			if text := strings.Join(a.Problems(), "\n"); (c.says == "") != (text == "") || !strings.Contains(text, c.says) {
				t.Errorf("%d: %q, want %q", i, text, c.says)
			}
		}
		problems, err := testutil.GatherAndLint(registry)
		if n, _ := testutil.GatherAndCount(registry); err != nil || len(problems) > 0 || n != 1 {
			t.Errorf("%d series, %v, %v", n, problems, err)
		}
		gitserver.NewCert(t, dir, "server")
		if list := a.Problems(); len(list) > 0 || strings.Count(log.String(), "certificate of --listen exp") != 2 {
			t.Errorf("%q, %s", list, log)
		}
	})
}
