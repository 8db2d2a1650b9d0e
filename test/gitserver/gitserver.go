// Package gitserver runs real git servers for tests, on loopback: git
// http-backend behind net/http, and OpenSSH's sshd. Each ends with
// its test.
package gitserver

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// Git runs the git program in dir, as Ada, and returns what it prints.
func Git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_SYSTEM="+os.DevNull,
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.org", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.org")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// NewRepository makes a bare repository NAME.git below dir with n commits on
// main and an annotated tag v1 on the newest, and returns its path.
func NewRepository(t testing.TB, dir string, n int) string {
	t.Helper()
	work := filepath.Join(dir, "work")
	bare := filepath.Join(dir, "config.git")
	Git(t, dir, "init", "-q", "-b", "main", work)
	for i := range n {
		if err := os.WriteFile(filepath.Join(work, "base.yaml"), fmt.Appendf(nil, "n: %d\n", i), 0o644); err != nil {
			t.Fatal(err)
		}
		Git(t, work, "add", "-A")
		Git(t, work, "commit", "-q", "-m", "change "+strconv.Itoa(i))
	}
	Git(t, work, "tag", "-a", "v1", "-m", "one")
	Git(t, dir, "clone", "-q", "--bare", work, bare)
	return bare
}

// HTTP serves the repositories below dir by git http-backend; wrap, if set, is
// put around it.
func HTTP(t testing.TB, dir string, wrap func(http.Handler) http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(handler(t, dir, wrap))
	t.Cleanup(s.Close)
	return s
}

func handler(t testing.TB, dir string, wrap func(http.Handler) http.Handler) http.Handler {
	t.Helper()
	core := strings.TrimSpace(Git(t, dir, "--exec-path"))
	var h http.Handler = &cgi.Handler{
		Path: filepath.Join(core, "git-http-backend"), Root: "/", Dir: dir,
		Env:    []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=" + os.DevNull},
		Stderr: io.Discard, // what it says of repositories that a test takes away
	}
	h = protocolHeader(h)
	if wrap != nil {
		h = wrap(h)
	}
	return h
}

// protocolHeader is what a web server's configuration does for git: net/http/cgi
// passes every header as HTTP_…, of which http-backend knows GIT_PROTOCOL.
func protocolHeader(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if v := q.Header.Get("Git-Protocol"); v != "" {
			c := *h.(*cgi.Handler)
			c.Env = append(c.Env[:len(c.Env):len(c.Env)], "GIT_PROTOCOL="+v)
			c.ServeHTTP(w, q)
			return
		}
		h.ServeHTTP(w, q)
	})
}

// start runs a server until the test ends, and waits until it takes
// connections.
func start(t testing.TB, port, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull)
	// a group with its children; and a test that is killed leaves no server
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() })
	deadline := time.Now().Add(10 * time.Second)
	for {
		conn, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen: %v", name, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// An SSHHost is OpenSSH's sshd with one user, who may log in by one key: the
// repository's URL, the paths of the private key and of known_hosts, the
// directory with sshd's files (authorized is its authorized_keys), the port.
type SSHHost struct{ URL, Key, KnownHosts, Dir, Port string }

// NewKey writes a private key in OpenSSH's format and returns its public line.
func NewKey(t testing.TB, path, passphrase string) string {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(priv, "test")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(priv, "test", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// findSSHD returns the path of OpenSSH's sshd, "" if it is missing.
func findSSHD() string {
	for _, name := range []string{"sshd", "/usr/sbin/sshd", "/usr/local/lib/dtesn-agent-test/sshd"} { // test/packages unpacks the last
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// SSH serves the repository at the path repo by sshd, whose configuration gets
// extra.
func SSH(t testing.TB, repo, extra string) SSHHost {
	t.Helper()
	sshd := findSSHD()
	if sshd == "" {
		why := "needs sshd: run test/packages, which installs it"
		if os.Getenv("DTESN_TEST_REQUIRE") == "1" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	h := SSHHost{Key: filepath.Join(dir, "id"), KnownHosts: filepath.Join(dir, "known_hosts"), Dir: dir, Port: freePort(t)}
	hostKey := NewKey(t, filepath.Join(dir, "host"), "")
	authorized := NewKey(t, h.Key, "")
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("authorized", authorized+"\n")
	write("known_hosts", fmt.Sprintf("[127.0.0.1]:%s %s\n", h.Port, hostKey))
	// sshd of OpenSSH 9.8 and newer is several programs; test/packages unpacks them next to each other
	if session := filepath.Join(filepath.Dir(sshd), "sshd-session"); exec.Command("test", "-x", session).Run() == nil {
		extra += fmt.Sprintf("\nSshdSessionPath %s\nSshdAuthPath %s", session, filepath.Join(filepath.Dir(sshd), "sshd-auth"))
	}
	write("sshd_config", fmt.Sprintf("Port %s\nListenAddress 127.0.0.1\nHostKey %s\nAuthorizedKeysFile %s\nPasswordAuthentication no\nUsePAM no\nPidFile none\nStrictModes no\n%s\n",
		h.Port, filepath.Join(dir, "host"), filepath.Join(dir, "authorized"), extra))
	_ = os.MkdirAll("/run/sshd", 0o755) // sshd wants it where it runs as root
	start(t, h.Port, sshd, "-D", "-e", "-q", "-f", filepath.Join(dir, "sshd_config"))
	h.URL = fmt.Sprintf("ssh://%s@127.0.0.1:%s%s", me.Username, h.Port, repo)
	return h
}
