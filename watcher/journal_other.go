//go:build !linux

package watcher

import (
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// A journal needs inotify; elsewhere the directory is polled.
type journal struct{}

func newJournal() (*journal, error) {
	return nil, fmt.Errorf("start inotify: %w", errors.ErrUnsupported)
}

func (*journal) add(string, bool) error    { return errors.ErrUnsupported }
func (*journal) close()                    {}
func (*journal) take(func(string, bool))   {}
func trusted(string) error                 { return nil }
func pinned(string) bool                   { return false }
func changedAt(info fs.FileInfo) time.Time { return info.ModTime() }
