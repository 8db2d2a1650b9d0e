package watcher

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asNobody calls f without the privileges of root: file access is judged by
// the user id of the thread, and a locked thread ends with its goroutine.
func asNobody(t *testing.T, f func()) {
	if os.Getuid() != 0 {
		f()
		return
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		_, err := unix.SetfsuidRetUid(65534)
		if err == nil {
			f()
		}
		done <- err
	}()
	must(t, <-done)
}

// searchable lets every user into a test's directory.
func searchable(t *testing.T, root string) {
	for dir := root; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
}

func TestUnreadable(t *testing.T) {
	for _, path := range []string{".", "base.yaml"} {
		root := config(t)
		searchable(t, root)
		must(t, os.Chmod(filepath.Join(root, path), 0))
		var err error
		asNobody(t, func() { _, err = readOnce(root, "production") })
		must(t, os.Chmod(filepath.Join(root, path), 0o755))
		if !errors.Is(err, fs.ErrPermission) {
			t.Fatalf("%s without permissions: %v", path, err)
		}
		checkError(t, err, filepath.Base(filepath.Join(root, path)), "chmod")
	}
}

func TestFileThatBecomesUnreadable(t *testing.T) {
	root := config(t)
	searchable(t, root)
	f, sink := NewFiles(FilesOptions{Root: root, Environment: "production", Resync: time.Hour}), make(chanSink, 10)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go asNobody(t, func() {
		defer close(ended)
		if err := f.Run(ctx, sink); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	defer func() { cancel(); <-ended }()
	sink.document(t, "production.yaml", "env 1\n")

	must(t, os.Chmod(filepath.Join(root, "base.yaml"), 0))
	sink.failure(t, "base.yaml", "permission denied", "chmod")
	if _, _, err := f.Status(); err == nil {
		t.Error("status has no error")
	}
	must(t, os.Chmod(filepath.Join(root, "base.yaml"), 0o644))
	sink.document(t, "base.yaml", "base 1\n")
	if mode, read, err := f.Status(); mode != ModeInotify || time.Since(read) > patience || err != nil {
		t.Errorf("status %s, %s, %v", mode, read, err)
	}
}
