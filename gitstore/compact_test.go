package gitstore

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// countFiles counts the files below dir and their bytes.
func countFiles(t testing.TB, dir string) (files int, bytes int64) {
	t.Helper()
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
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
	f := newFixture(t)
	s, _ := f.open()
	const records = 3000
	var ids []string
	for i := range records {
		snap := commit(t, s, benchChange(i))
		ids = append(ids, snap.Commit)
		confirm(t, s)
		s.Prepare()
	}
	s.settleCompaction()
	repo := filepath.Join(f.dir, repoDir)
	files, bytes := countFiles(t, repo)
	t.Logf("%d records: %d files, %d bytes a record", records, files, bytes/records)
	if files > 1000 {
		t.Errorf("%d files", files)
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
