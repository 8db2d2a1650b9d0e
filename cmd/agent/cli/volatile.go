package cli

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// volatile returns why files in dir do not outlive the pod, the container or the
// machine, "" if nothing says so.
func volatile(dir string) string {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }()
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return ""
	}
	return volatileMount(file, dir)
}

var mountEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// volatileMount is volatile, of the mounts that it reads in the format of
// proc_pid_mountinfo(5): the mount point is the 5th field, the root in its file system
// the 4th, and the type the first behind " - ".
func volatileMount(mountinfo io.Reader, dir string) (why string) {
	longest := -1
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		mount, about, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(mount)
		if len(fields) < 5 {
			continue
		}
		root, point := mountEscapes.Replace(fields[3]), mountEscapes.Replace(fields[4])
		inside := dir == point || point == "/" || strings.HasPrefix(dir, point+"/")
		if !inside || len(point) < longest { // of two at one point the later one is on top
			continue
		}
		longest = len(point)
		kind, _, _ := strings.Cut(about, " ")
		switch why = ""; {
		case strings.Contains(root, "kubernetes.io~empty-dir"):
			why = "it is an emptyDir, which ends with the pod"
		case kind == "tmpfs" || kind == "ramfs":
			why = "it is in memory (" + kind + ")"
		case kind == "overlay":
			why = "it is in the container's own file system (overlay), which ends with the container"
		}
	}
	return why
}
