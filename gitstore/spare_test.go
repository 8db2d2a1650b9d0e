package gitstore

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Spare files change nothing that is read: also where one has another name in a
// backup, was filled, is a link, or the file system cannot let two change places.
func TestSpareFiles(t *testing.T) {
	plainly(t)
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 512)
	ref, object := s.repo.spare(spareRef), s.repo.spare("0")
	backup := filepath.Join(t.TempDir(), "backup")
	for name, damage := range map[string]func(path string) error{
		"as made":      func(string) error { return nil },
		"missing":      os.Remove,
		"other length": func(path string) error { return os.WriteFile(path, []byte("x"), 0o644) },
		"two names":    func(path string) error { _ = os.Remove(backup); return os.Link(path, backup) },
		"a link":       func(path string) error { _ = os.Remove(path); return os.Symlink(backup, path) },
		"a directory":  func(path string) error { _ = os.Remove(path); return os.MkdirAll(path, 0o755) },
		"not ours":     func(path string) error { return os.Chmod(path, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			s.Prepare(t.Context(), "")
			if err := os.WriteFile(backup, make([]byte, refLength), 0o644); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{ref, object} {
				if err := damage(path); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(backup)
			if err != nil {
				t.Fatal(err)
			}
			inode := func(path string) uint64 {
				var st syscall.Stat_t
				if err := syscall.Lstat(path, &st); err != nil {
					return 0
				}
				return st.Ino
			}
			before, branch := inode(ref), f.repo("refs", "heads", "production")
			rec := applied(t, s, s.Head().Index+600)
			if name == "as made" && (inode(branch) != before || inode(object) != 0) {
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
			_, _ = os.RemoveAll(ref), os.RemoveAll(object)
		})
	}
}
