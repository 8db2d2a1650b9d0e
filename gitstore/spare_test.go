package gitstore

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Spare files change nothing that is read: also where one has another name in a
// backup, was filled, or is a link.
func TestSpareFiles(t *testing.T) {
	plainly(t)
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 512)
	backup := filepath.Join(t.TempDir(), "backup")
	for name, damage := range map[string]func(path string) error{
		"as made":     func(string) error { return nil },
		"missing":     os.Remove,
		"longer":      func(path string) error { return os.WriteFile(path, make([]byte, 1<<16), 0o644) },
		"two names":   func(path string) error { _ = os.Remove(backup); return os.Link(path, backup) },
		"a link":      func(path string) error { _ = os.Remove(path); return os.Symlink(backup, path) },
		"a directory": func(path string) error { _ = os.Remove(path); return os.MkdirAll(path, 0o755) },
		"not ours":    func(path string) error { return os.Chmod(path, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			s.Prepare(t.Context(), "")
			if err := os.WriteFile(backup, []byte("mine"), 0o644); err != nil {
				t.Fatal(err)
			}
			inodes := map[uint64]bool{}
			inode := func(path string) uint64 {
				var st syscall.Stat_t
				if err := syscall.Lstat(path, &st); err != nil {
					return 0
				}
				return st.Ino
			}
			if len(s.repo.spares) != spareFiles {
				t.Errorf("spare files: %v", s.repo.spares)
			}
			for _, path := range s.repo.spares {
				inodes[inode(path)] = true
				if err := damage(path); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(backup)
			if err != nil {
				t.Fatal(err)
			}
			rec := applied(t, s, s.Head().Index+600)
			branch, object := f.repo("refs", "heads", "production"), s.repo.objectPath(hashOf(rec))
			if name == "as made" && (!inodes[inode(branch)] || !inodes[inode(object)]) {
				t.Error("the spare files were not used")
			}
			if got, err := os.ReadFile(branch); err != nil || string(got) != rec.Commit+"\n" {
				t.Errorf("the branch is %q %v", got, err)
			}
			f.refsAgree(s)
			f.fsck()
			if got, err := os.ReadFile(backup); err != nil || string(got) != string(want) {
				t.Errorf("the backup was written to: %q %v", got, err)
			}
		})
	}
}
