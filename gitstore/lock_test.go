package gitstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema/problem"
)

// TestMain is the other process of TestLock too: it opens the directory that
// the environment names, says so, and holds it until it is killed.
func TestMain(m *testing.M) {
	dir := os.Getenv(holdLock)
	if dir == "" {
		os.Exit(m.Run())
	}
	s, _, err := Open(context.Background(), Options{Dir: dir, Environment: "production", Instance: "web-1"})
	if err == nil {
		_, err = s.Commit(context.Background(), change(512))
	}
	if err == nil {
		err = s.Confirm(context.Background())
	}
	if err == nil {
		_, err = s.Commit(context.Background(), change(1024))
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("holds it")
	_, _ = bufio.NewReader(os.Stdin).ReadByte() // for ever: nobody writes
}

// refusedLock opens the directory, which must fail after about a second.
func (f *fixture) refusedLock(pid int) {
	f.t.Helper()
	start := time.Now()
	s, _, err := Open(f.t.Context(), f.options())
	took := time.Since(start)
	if err == nil {
		_ = s.Close()
		f.t.Fatal("two have the lock")
	}
	for _, say := range []string{"is in use by another agent", fmt.Sprintf("(pid %d)", pid)} {
		if !strings.Contains(err.Error(), say) {
			f.t.Errorf("the error does not say %q: %v", say, err)
		}
	}
	if hint := problem.Hint(err); hint != "stop that one, or choose another --state" || !errors.Is(err, record.ErrInUse) {
		f.t.Errorf("the hint is %q, of %v", hint, err)
	}
	if took < lockWait || took > 4*lockWait {
		f.t.Errorf("refused after %v", took)
	}
}

func TestLockInThisProcess(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	s, _ := f.open()
	f.refusedLock(os.Getpid())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := Open(ctx, f.options()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for the lock goes on behind its deadline: %v", err)
	}
	applied(t, s, 64) // the holder is not disturbed
	_, repairs := f.reopen(s)
	noRepairs(t, repairs)
}

func TestLockOfAnotherProcess(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(slices.Clone(os.Environ()), holdLock+"="+f.dir)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "holds it\n" {
		t.Fatalf("%q, %v", line, err)
	}
	f.refusedLock(cmd.Process.Pid)
	if total, err := f.reader().Total(); total != 2 || err != nil { // no lock for readers
		t.Errorf("total %d, %v", total, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	s, repairs := f.open()
	noRepairs(t, repairs)
	if s.Total() != 2 || s.Applied() == nil || s.Applied().Index != 1 {
		t.Errorf("a kill lost records: %d, applied %s", s.Total(), idOf(s.Applied()))
	}
	confirm(t, s)
	f.fsck()
}
