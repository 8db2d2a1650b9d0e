package gitstore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// countFiles counts the files below dir and their bytes; one that goes away
// meanwhile does not count.
func countFiles(t testing.TB, dir string) (files int, bytes int64) {
	t.Helper()
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && info.Mode().IsRegular() {
			files++
			bytes += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files, bytes
}

// TestPacking writes a long history: it stays small, sound, and whole to plain
// git and to a Reader.
func TestPacking(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	const records = 1200
	repo := filepath.Join(f.dir, repoDir)
	var ids []string
	most := 0
	for i := range records {
		snap := commit(t, s, benchChange(i))
		ids = append(ids, snap.Commit)
		confirm(t, s)
		s.Prepare()
		if i%50 == 0 { // also while it is packed
			files, _ := countFiles(t, repo)
			most = max(most, files)
		}
	}
	s.settleCompaction()
	files, bytes := countFiles(t, repo)
	t.Logf("%d records: %d files, at most %d, %d bytes a record", records, files, most, bytes/records)
	if files > 1000 || most > 1000 || bytes/records > 1024 {
		t.Error("over 1,000 files, or over 1 KB a record")
	}
	if out, err := exec.Command("git", "--git-dir", repo, "-c", "safe.directory=*", "fsck", "--strict", "--full").CombinedOutput(); err != nil || strings.Contains(string(out), "error") {
		t.Errorf("git fsck: %v\n%s", err, out)
	}
	out, err := exec.Command("git", "--git-dir", repo, "-c", "safe.directory=*", "log", "--format=%H", "production").Output()
	if err != nil {
		t.Fatal(err)
	}
	log := strings.Fields(string(out))
	if len(log) != records {
		t.Fatalf("git log has %d records", len(log))
	}
	for i, h := range log {
		if h != ids[records-1-i] {
			t.Fatalf("record %d is %s in git's log", records-i, h)
		}
	}
	r, err := OpenReader(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all, err := r.List(t.Context(), "", records)
	if err != nil || len(all) != records {
		t.Fatal(len(all), err)
	}
	for i, rec := range all {
		if rec.Commit != ids[records-1-i] {
			t.Fatal(i, rec.Commit)
		}
	}
}

// packAndWait is the child of TestPackingIsKilled: it commits without end, packs
// often, and prints each record that it was told is durable.
func packAndWait(dir string) {
	packEvery, looseWorth = 4, 8
	s, _, err := Open(context.Background(), Options{Dir: dir, Environment: "production", Instance: "web-1"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for i := s.Total(); ; i++ {
		snap, err := s.Commit(context.Background(), benchChange(i))
		if err == nil {
			err = s.Confirm(context.Background())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(snap.Commit)
		s.Prepare()
	}
}

// TestPackingIsKilled kills a process that packs all the time, at random
// moments: each record that was called durable is there, and git finds nothing
// amiss.
func TestPackingIsKilled(t *testing.T) {
	f := newMemory(t)
	kills := 20
	if testing.Short() {
		kills = 8
	}
	var durable []string
	for range kills {
		var complaints bytes.Buffer
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), "GITSTORE_PACK_IN="+f.dir)
		child.Stderr = &complaints
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(30*time.Second, func() { _ = child.Process.Kill() })
		// A moment that nobody chose, after so many records that some runs have
		// packed. What was not printed whole was not said.
		lines := bufio.NewReader(out)
		for left := 1 + rand.IntN(20); ; left-- {
			line, err := lines.ReadString('\n')
			if err != nil {
				break
			}
			if durable = append(durable, strings.TrimSpace(line)); left == 0 {
				time.AfterFunc(time.Duration(rand.IntN(20))*time.Millisecond, func() { _ = child.Process.Kill() })
			}
		}
		_ = child.Wait()
		if complaints.Len() > 0 {
			t.Fatal(complaints.String())
		}
		s, _ := f.open()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		f.fsck()
		all := strings.Fields(f.git("log", "--format=%H", "production"))
		have := map[string]bool{}
		for _, h := range all {
			have[h] = true
		}
		for _, h := range durable {
			if !have[h] {
				t.Fatalf("%s was durable and is gone", h)
			}
		}
	}
	packs, err := filepath.Glob(f.repo("objects", "pack", "*.pack"))
	if err != nil || len(packs) == 0 || len(durable) < kills {
		t.Fatalf("%d records, %d packs: nothing was tried", len(durable), len(packs))
	}
	t.Logf("%d kills, %d records, %d packs", kills, len(durable), len(packs))
}

// TestNewestHangOnNothing holds that the newest records of a pack are read without
// one another: neither is one the difference to another, nor another to one.
func TestNewestHangOnNothing(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	for i := range 3 * packEvery {
		commit(t, s, benchChange(i))
		confirm(t, s)
		s.Prepare()
	}
	s.settleCompaction()
	packs, err := filepath.Glob(f.repo("objects", "pack", "*.idx"))
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	alone, hanging, newest := 0, 0, true
	delta, base := map[string]bool{}, map[string]bool{}
	for _, path := range packs {
		for line := range strings.Lines(f.git("verify-pack", "-v", path)) {
			if words := strings.Fields(line); len(words) == 7 && words[1] == "blob" {
				delta[words[0]], base[words[6]] = true, true
			}
		}
	}
	for _, h := range strings.Fields(f.git("rev-list", "production")) {
		blob := f.git("rev-parse", h+":"+snapshotFile)
		if loose, err := exists(f.repo("objects", blob[:2], blob[2:])); err != nil || loose {
			continue
		}
		switch {
		case newest && (delta[blob] || base[blob]):
			newest = false
			hanging++
		case newest:
			alone++
		case delta[blob]:
			hanging++
		}
	}
	if alone < plainRecords || hanging < packEvery/2 {
		t.Errorf("%d of the newest packed records hang on nothing, and %d others do", alone, hanging)
	}
}
