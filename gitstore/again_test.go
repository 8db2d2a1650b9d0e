package gitstore

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

func paused(config schema.Parameters) record.Record {
	return record.Record{Kind: record.KindNote, Config: config, Held: &record.Hold{Paused: true, By: "operator", Reason: "freeze"}}
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
// that began before a ref named them, directory by directory and long after: each
// step that promises them, or builds on them, writes them again, and again.
func TestGoneAfterTheSync(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	first := applied(t, s, 512)
	for _, step := range []struct {
		name string
		look func() error
	}{
		{"confirm", func() error { return s.Confirm(t.Context()) }},
		{"probe", func() error { return s.Probe(t.Context()) }},
		{"probe, the second time", func() error { return s.Probe(t.Context()) }},
		{"prepare", func() error { s.Prepare(); return nil }},
		{"commit", func() error { _, err := s.Commit(t.Context(), paused(first.Config)); return err }},
		{"commit upon a candidate", func() error {
			_, err := s.Commit(t.Context(), revert(s.Head(), first, "refused"))
			return err
		}},
	} {
		note := s.Head()
		switch step.name {
		case "commit upon a candidate":
			note = commit(t, s, change(700))
		case "probe, the second time":
		default:
			note = commit(t, s, paused(first.Config))
		}
		if step.name != "confirm" && note.Kind == record.KindNote {
			confirm(t, s)
		}
		for _, expr := range []string{note.Commit + ":snapshot.json", note.Commit + "^{tree}", note.Commit} {
			f.remove(f.file(expr))
		}
		before := len(s.Repairs())
		if err := step.look(); err != nil {
			t.Fatal(step.name, err)
		}
		if r := s.Repairs()[before:]; len(r) != 1 || !strings.Contains(r[0].String(), "3 objects of the newest records had gone away") {
			t.Errorf("%s: %v", step.name, r)
		}
		f.fsck()
		if note.Kind == record.KindNote && len(s.objects.unsynced) > 0 {
			t.Errorf("%s: %d objects that were confirmed are not synced", step.name, len(s.objects.unsynced))
		}
		confirm(t, s)
	}
}

// What is remembered is bounded in number and bytes, let go once it is in a pack,
// or is old; but not while a gc is at work.
func TestForgetsWhatIsSafe(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	first := applied(t, s, 512)
	applied(t, s, 513)
	age := func(by time.Duration) {
		for i := range s.objects.recent {
			s.objects.recent[i].at = s.objects.recent[i].at.Add(-by)
		}
	}
	remembered := func(want int, when string) {
		t.Helper()
		if err := s.Probe(t.Context()); err != nil || len(s.objects.recent) != want {
			t.Errorf("%s: %d are remembered, want %d; %v", when, len(s.objects.recent), want, err)
		}
	}
	remembered(8, "young")
	age(recentFor)
	f.write(f.repo("gc.pid"), "1 host")
	remembered(8, "a gc runs")
	f.remove(f.repo("gc.pid"))
	s.objects.vanished = time.Now()
	remembered(8, "one went away")
	s.objects.vanished = time.Now().Add(-recentFor)
	remembered(0, "old")
	commit(t, s, paused(first.Config))
	confirm(t, s)
	remembered(4, "a note")
	f.git("repack", "-adq")
	f.git("prune-packed")
	remembered(0, "packed")
	file := looseFile{data: make([]byte, recentBytes/2)}
	for range 3 {
		s.objects.unsynced = []looseFile{file}
		s.objects.remember()
	}
	if n := len(s.objects.recent); n != 2 {
		t.Errorf("%d large files are remembered", n)
	}
	s.objects.unsynced = slices.Repeat([]looseFile{{data: []byte("x")}}, recentMost+9)
	s.objects.remember()
	if n := len(s.objects.recent); n > recentMost || n < recentMost/2 {
		t.Errorf("%d files are remembered", n)
	}
	s.objects.recent, s.objects.unsynced = nil, nil
}

// A packing that ends while Prepare looks has taken nothing away.
func TestPackingIsNoGC(t *testing.T) {
	often(t)
	f := newMemory(t)
	s, _ := f.open()
	for i := range 320 {
		applied(t, s, 64+i)
		if i%packEvery == 0 { // what was packed before is known to be, and then more is
			s.Prepare()
			s.settleCompaction()
		}
	}
	if r := s.Repairs(); len(r) > 0 {
		t.Error(r)
	}
}
