package cli

import (
	"strings"
	"testing"
)

func TestVolatileMount(t *testing.T) {
	const mounts = `22 1 0:20 / / rw - overlay overlay rw
23 22 8:1 /var/lib/kubelet/pods/7/volumes/kubernetes.io~empty-dir/state /var/lib/dtesn-agent rw - ext4 /dev/sda1 rw
24 22 8:16 / /var/lib/kept rw - ext4 /dev/sdb rw
25 22 0:30 / /run rw - tmpfs tmpfs rw
26 22 8:17 / /run/my\040disk rw - xfs /dev/sdc rw
broken
`
	for dir, want := range map[string]string{
		"/srv/state":                  "overlay",
		"/var/lib/dtesn-agent":        "emptyDir",
		"/var/lib/dtesn-agent/state":  "emptyDir",
		"/var/lib/dtesn-agent2/state": "overlay",
		"/var/lib/kept/state":         "",
		"/run/state":                  "tmpfs",
		"/run/my disk/state":          "",
	} {
		got := volatileMount(strings.NewReader(mounts), dir)
		if (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", dir, got, want)
		}
	}
	if why := volatile(t.TempDir()); strings.Contains(why, "emptyDir") {
		t.Error(why)
	}
	if why := volatile("/dev/shm"); !strings.Contains(why, "tmpfs") {
		t.Errorf("/dev/shm: %q", why)
	}
}
