package remote

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/test/gitserver"
)

// packed is a pack of one small blob and of an object of the type and the size
// given, which it need not have.
func packed(kind byte, size uint64, content []byte) []byte {
	return packedOften(1, kind, size, content)
}

// packedOften is packed with n objects of the type and the size given.
func packedOften(n int, kind byte, size uint64, content []byte) []byte {
	var b bytes.Buffer
	b.WriteString("PACK\x00\x00\x00\x02")
	_ = binary.Write(&b, binary.BigEndian, uint32(n+1))
	object := func(kind byte, size uint64, between string, content []byte) {
		first := kind<<4 | byte(size&15)
		for size >>= 4; size > 0; size >>= 7 {
			b.WriteByte(first | 0x80)
			first = byte(size & 0x7f)
		}
		b.WriteByte(first)
		b.WriteString(between)
		z := zlib.NewWriter(&b)
		_, _ = z.Write(content)
		_ = z.Close()
	}
	object(3, 1, "", []byte("x"))
	between := ""
	if kind == 6 {
		between = string([]byte{byte(b.Len() - 12)}) // back to the first
	}
	if kind == 7 {
		between = strings.Repeat("a", 20)
	}
	for range n {
		object(kind, size, between, content)
	}
	return b.Bytes()
}

// TestBombs: what would take more memory than bytes came is refused before it
// does.
func TestBombs(t *testing.T) {
	delta := binary.AppendUvarint(binary.AppendUvarint(nil, 1), 3<<30)
	wide := binary.AppendUvarint(binary.AppendUvarint(nil, maxObject), 1)
	for name, pack := range map[string][]byte{
		"a large blob":     packed(3, 3<<30, []byte("x")),
		"a large delta":    packed(6, uint64(len(delta)), delta),
		"a commit, larger": packed(1, maxObject+1, []byte("x")),
		"a wide delta":     packed(7, uint64(len(delta)), binary.AppendUvarint(binary.AppendUvarint(nil, maxObject+1), 1)),
		"many wide deltas": packedOften(maxBases/maxObject+1, 7, uint64(len(wide)), wide),
	} {
		var large *tooLargeError
		if _, err := measure(bytes.NewReader(pack)); !errors.As(err, &large) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, pack := range map[string][]byte{
		"more than it says":     packed(3, 1, bytes.Repeat([]byte("x"), 1<<20)),
		"a size that overflows": packed(3, 1<<63, []byte("x")),
		"a delta without sizes": packed(6, 1, []byte{0x80}),
		"cut short":             packed(3, 4, []byte("abcd"))[:30],
	} {
		if _, err := measure(bytes.NewReader(pack)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := measure(bytes.NewReader(packed(3, 4, []byte("abcd")))); err != nil {
		t.Errorf("a good pack: %v", err)
	}
}

// ends fails the test if do takes longer than a hung server may cost.
func ends(t *testing.T, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); do() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal(what + " does not come to an end")
	}
}

// TestUnendedAnswer: a whole list of refs in an answer that never ends is a
// list, and does not keep anybody.
func TestUnendedAnswer(t *testing.T) {
	dir := t.TempDir()
	gitserver.NewRepository(t, dir, 1)
	stop := make(chan struct{})
	s := gitserver.HTTP(t, dir, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if q.Method == http.MethodGet {
				h.ServeHTTP(w, q)
				return
			}
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, q)
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			_, _ = w.Write(rec.Body.Bytes())
			w.(http.Flusher).Flush()
			select {
			case <-q.Context().Done():
			case <-stop:
			}
		})
	})
	t.Cleanup(func() { close(stop) })
	r := newRemote(t, Options{URL: s.URL + "/config.git"})
	ends(t, "listing", func() {
		for range 3 {
			success(t, r)
			r.Rest()
		}
	})
}

// TestHungHost: a host that falls silent on a kept connection, and one whose
// program neither speaks nor ends, are given up; then a new connection is made.
func TestHungHost(t *testing.T) {
	repo := gitserver.NewRepository(t, t.TempDir(), 1)
	h := gitserver.SSH(t, repo, "AcceptEnv GIT_PROTOCOL")
	port, hang := between(t, "127.0.0.1:"+h.Port)
	hosts, err := os.ReadFile(h.KnownHosts)
	if err != nil {
		t.Fatal(err)
	}
	known := put(t, t.TempDir(), "known", strings.Replace(string(hosts), h.Port, port, 1))
	soon := timeouts{list: 2 * time.Second, fetch: 2 * time.Second, silence: time.Second}
	r := newRemote(t, Options{URL: strings.Replace(h.URL, h.Port, port, 1), Files: Files{SSHKey: h.Key, KnownHosts: known}})
	success(t, r)
	r.Rest()
	r.timeouts = soon
	hang(true)
	ends(t, "listing on a connection that hangs", func() { failure(t, r, "list the refs") })
	hang(false)
	r.timeouts.list, r.timeouts.silence = time.Minute, time.Minute
	ends(t, "listing once the host is back", func() { success(t, r) })

	mute := gitserver.SSH(t, repo, "ForceCommand exec 1>&- 2>&-; exec sleep 1000")
	m := newRemote(t, Options{URL: mute.URL, Files: Files{SSHKey: mute.Key, KnownHosts: mute.KnownHosts}})
	m.timeouts = soon
	ends(t, "listing by a host that is mute", func() { failure(t, m, "list the refs") })
	ends(t, "leaving it", m.Rest)
}

// between is a port that leads to address, and stops passing anything on while
// it hangs.
func between(t *testing.T, address string) (port string, hang func(bool)) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var hung atomic.Bool
	pass := func(to, from net.Conn) {
		defer to.Close()
		defer from.Close()
		b := make([]byte, 4096)
		for {
			n, err := from.Read(b)
			if err != nil {
				return
			}
			if hung.Load() {
				continue
			}
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", address)
			if err != nil {
				_ = near.Close()
				continue
			}
			go pass(near, far)
			go pass(far, near)
		}
	}()
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port, hung.Store
}

// TestPipes: what is no regular file is refused, and does not stop the reader.
func TestPipes(t *testing.T) {
	dir := t.TempDir()
	pipe := put(t, dir, "gone", "x") + ".pipe"
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRemote(t, Options{URL: "http://127.0.0.1:1/x.git", Files: Files{Token: pipe}, AllowInsecure: true})
	ends(t, "reading a pipe", func() { failure(t, r, pipe, "no regular file") })
}

// TestLeaks: a part of a secret is one, in whatever spelling it comes back.
func TestLeaks(t *testing.T) {
	long := strings.Repeat("eyJhbGciOi", 40)
	for _, text := range []string{
		"redirects to http://evil.example/" + long[:100], fmt.Sprintf("an answer of type %q", `pa"ss\word-`+canary), "http://x/pa%22ss%5Cword-" + canary,
	} {
		if !leaks(text, []string{long, `pa"ss\word-` + canary}) {
			t.Errorf("%s leaks", text)
		}
	}
	if leaks("the server answers 401 Unauthorized", []string{long, "", canary}) {
		t.Error("nothing leaks")
	}
}

// TestFullDisk: a fault of this machine is not called one of the server's.
func TestFullDisk(t *testing.T) {
	o := &Objects{dir: filepath.Join(t.TempDir(), "gone")}
	if err := o.take(bytes.NewReader(packed(3, 4, []byte("abcd")))); err == nil || strings.Contains(err.Error(), "damaged") {
		t.Error(err)
	}
}
