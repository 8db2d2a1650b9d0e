package gitstore

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/schema"
)

func paused(config schema.Parameters) schema.Snapshot {
	return schema.Snapshot{Kind: schema.KindNote, Config: config, Held: &schema.Hold{Paused: true, By: "operator", Reason: "freeze"}}
}

// pauseOnce is the child of TestGCWithinANote: it records a pause, says so, and
// is killed.
func pauseOnce(dir string) {
	s, _, err := Open(context.Background(), Options{Dir: dir, Environment: "production", Instance: "web-1"})
	if err == nil {
		_, err = s.Commit(context.Background(), paused(s.Head().Config))
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(s.Head().ID)
	for _, r := range s.Repairs() {
		fmt.Println(r)
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

// TestGCWithinANote runs `git gc --prune=now` between the sync of a note's
// objects and the move of the head ref, while no ref names them: who ordered the
// pause is answered only once they are there again.
func TestGCWithinANote(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("DTESN_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs strace")
	}
	f := newFixture(t)
	s, _ := f.open()
	a := applied(t, s, 512)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command("strace", "-f", "-qq", "-o", log, "-P", f.ref("heads/production"), "-e", "trace=renameat",
		"-e", "inject=renameat:delay_enter=600000000", os.Args[0])
	cmd.Env = append(os.Environ(), "GITSTORE_PAUSE_IN="+f.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) { // until the rename has begun
		data, _ := os.ReadFile(log)
		if strings.Contains(string(data), "renameat(") {
			break
		}
		if time.Since(begun) > time.Minute {
			t.Fatal("no rename within a minute")
		}
	}
	f.git("gc", "-q", "--prune=now")
	if got := f.git("rev-parse", "production"); got != a.Commit {
		t.Fatalf("the note was the head before the gc: %s", got)
	}
	if err := cmd.Process.Kill(); err != nil { // without its tracer, the child goes on at once
		t.Fatal(err)
	}
	<-ended
	id, said, _ := strings.Cut(out.String(), "\n")
	if !strings.HasPrefix(id, "snapshot_") || !strings.Contains(said, "had gone away") {
		t.Fatalf("the child says %s", &out)
	}
	s, repairs := f.open()
	noRepairs(t, repairs)
	if s.Head().ID != id || s.Head().Held == nil || s.Applied().Commit != a.Commit {
		t.Errorf("head %s, want note %s; applied %s", idOf(s.Head()), id, idOf(s.Applied()))
	}
	f.fsck()
}

// TestGoneAfterTheSync takes objects away after they were synced, as a gc does
// that began before a ref named them: a Confirm, and after it the next Probe,
// write them again.
func TestGoneAfterTheSync(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	first := applied(t, s, 512)
	for name, look := range map[string]func() error{
		"confirm": func() error { return s.Confirm(t.Context()) },
		"probe":   func() error { return s.Probe(t.Context()) },
	} {
		note := commit(t, s, paused(first.Config))
		if name == "probe" {
			confirm(t, s)
		}
		for _, expr := range []string{"production:snapshot.json", "production^{tree}", "production"} {
			f.remove(f.file(expr))
		}
		if err := look(); err != nil {
			t.Fatal(name, err)
		}
		said(t, s, "3 objects of the newest records had gone away", "written again")
		f.fsck()
		if got := f.git("rev-parse", "production"); got != note.Commit {
			t.Errorf("the head is %s", got)
		}
		confirm(t, s)
	}
	before := len(s.Repairs())
	for i := range 40 { // what is remembered is bounded, and let go
		applied(t, s, 600+i)
	}
	if n := len(s.objects.recent); n != recentMost {
		t.Errorf("%d files are remembered", n)
	}
	f.git("gc", "-q", "--prune=now")
	if err := s.Probe(t.Context()); err != nil || len(s.Repairs()) != before || len(s.objects.recent) > 0 {
		t.Errorf("%v, repairs %v, %d remembered", err, s.Repairs()[before:], len(s.objects.recent))
	}
}
