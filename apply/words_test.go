package apply

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"dtesn-agent/schema"
)

// What is advised fits the fault.
func TestDiskHint(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{syscall.ENOSPC, "free space on /state"},
		{syscall.EDQUOT, "free space on /state"},
		{syscall.EROFS, "writable again"},
		{syscall.EACCES, "write into /state"},
		{syscall.EPERM, "write into /state"},
		{syscall.EMFILE, "open more files"},
		{syscall.EIO, "the kernel's log"},
		{errors.New("it was read anew"), "see who moved or changed it"},
	} {
		if got := diskHint(fmt.Errorf("commit: %w", c.err), "/state"); !strings.Contains(got, c.want) {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}

// A rollback is advised only where there is something to go back to.
func TestStopHint(t *testing.T) {
	for applied, want := range map[*schema.Snapshot]bool{
		nil:                   false,
		{}:                    false, // what the engine ran before anything was applied
		{RollbackPoint: true}: true,
	} {
		if got := stopHint(applied); strings.Contains(got, "agent rollback") != want || !strings.Contains(got, "declare something else") {
			t.Errorf("%+v: %q", applied, got)
		}
	}
}
