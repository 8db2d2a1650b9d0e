package remote

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/test/gitserver"
)

// The tests here play hosts as they are met in the field.

// TestInsecure: a password or token does not go over plain HTTP unasked.
func TestInsecure(t *testing.T) {
	secret := put(t, t.TempDir(), "secret", canary)
	for _, files := range []Files{{Token: secret}, {Password: secret}} {
		if _, err := New(Options{URL: "http://127.0.0.1/x.git", Files: files}); err == nil || !strings.Contains(err.Error(), "unencrypted") {
			t.Errorf("%+v: %v", files, err)
		}
		if _, err := New(Options{URL: "https://127.0.0.1/x.git", Files: files}); err != nil {
			t.Errorf("%+v: %v", files, err)
		}
	}
}

// TestRedirect: a host that knows the repository under another path redirects
// both requests. Git follows the first, and sends the second there.
func TestRedirect(t *testing.T) {
	dir := t.TempDir()
	head := plumbing.NewHash(gitserver.Git(t, gitserver.NewRepository(t, dir, 1), "rev-parse", "main"))
	s := gitserver.HTTP(t, dir, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if rest, ok := strings.CutPrefix(q.URL.Path, "/config/"); ok {
				q.URL.Path = "/config.git/" + rest
				http.Redirect(w, q, q.URL.String(), http.StatusMovedPermanently)
				return
			}
			h.ServeHTTP(w, q)
		})
	})
	r := newRemote(t, Options{URL: s.URL + "/config"})
	success(t, r)
	if _, err := r.Fetch(t.Context(), Want{Hash: head, Depth: 1}, t.TempDir()); err != nil {
		t.Error(err)
	}
}

// TestRetryAfter: what a host asks for is known, in both of its forms.
func TestRetryAfter(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"120": 2 * time.Minute, "-3": 0, "soon": 0, "": 0, "99999999": time.Hour,
		time.Now().Add(10 * time.Minute).UTC().Format(http.TimeFormat): 10 * time.Minute,
	} {
		for _, code := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", value)
				http.Error(w, "slow down", code)
			}))
			r := newRemote(t, Options{URL: s.URL + "/x.git"})
			_, err := r.List(t.Context(), []string{"refs/heads/main"})
			if got := RetryAfter(err); got > want || got < want-5*time.Second || !strings.Contains(err.Error(), "slow down") || !Temporary(err) {
				t.Errorf("%d %q: %s of %v", code, value, got, err)
			}
			s.Close()
		}
	}
}

// TestConnections: each look has a connection of its own, which its requests
// share, and none is left at rest.
func TestConnections(t *testing.T) {
	dir := t.TempDir()
	head := plumbing.NewHash(gitserver.Git(t, gitserver.NewRepository(t, dir, 1), "rev-parse", "main"))
	var made, open atomic.Int32
	s := httptest.NewUnstartedServer(gitserver.HTTP(t, dir, nil).Config.Handler)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			made.Add(1)
			open.Add(1)
		case http.StateClosed:
			open.Add(-1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	r := newRemote(t, Options{URL: s.URL + "/config.git"})
	for i := range 3 {
		success(t, r)
		if _, err := r.Fetch(t.Context(), Want{Hash: head, Depth: 1}, t.TempDir()); err != nil {
			t.Fatal(err)
		}
		r.Rest()
		if n := made.Load(); n != int32(i+1) {
			t.Errorf("%d connections after %d looks", n, i+1)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); open.Load() > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections left open", open.Load())
		}
		<-time.After(time.Millisecond)
	}
}

// TestFewCapabilities: what a server does not offer is not used.
func TestFewCapabilities(t *testing.T) {
	dir := t.TempDir()
	repo := gitserver.NewRepository(t, dir, 3)
	head := plumbing.NewHash(gitserver.Git(t, repo, "rev-parse", "main"))
	for _, offered := range []string{"", "ofs-delta", "side-band", "side-band-64k no-progress"} {
		var asked bytes.Buffer
		s := gitserver.HTTP(t, dir, func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				q.Header.Del("Git-Protocol")
				if q.Method == http.MethodPost {
					content, _ := io.ReadAll(q.Body)
					asked.Write(content)
					q.Body = io.NopCloser(bytes.NewReader(content))
					h.ServeHTTP(w, q)
					return
				}
				line := fmt.Sprintf("%s refs/heads/main\x00%s\n", head, offered)
				advertised(fmt.Sprintf("001e# service=git-upload-pack\n0000%04x%s0000", len(line)+4, line))(w, q)
			})
		})
		r := newRemote(t, Options{URL: s.URL + "/config.git"})
		success(t, r)
		o, err := r.Fetch(t.Context(), Want{Hash: head, Depth: 1, Filter: "blob:none"}, t.TempDir())
		if err != nil {
			t.Fatalf("%q: %v", offered, err)
		}
		for _, word := range []string{"deepen", "filter", "shallow", "multi_ack"} {
			if strings.Contains(asked.String(), word) {
				t.Errorf("%q: asked for %s: %q", offered, word, asked.String())
			}
		}
		if o.Filtered || o.Common {
			t.Errorf("%q: %+v", offered, o.response)
		}
	}
}

// TestHave: of a history that is there already only what is new is fetched.
func TestHave(t *testing.T) {
	dir := t.TempDir()
	repo := gitserver.NewRepository(t, dir, 9)
	gitserver.Git(t, repo, "config", "uploadpack.allowFilter", "true")
	rev := func(name string) plumbing.Hash { return plumbing.NewHash(gitserver.Git(t, repo, "rev-parse", name)) }
	host := gitserver.SSH(t, repo, "")
	for _, opt := range []Options{
		{URL: gitserver.HTTP(t, dir, nil).URL + "/config.git"},
		{URL: host.URL, Files: Files{SSHKey: host.Key, KnownHosts: host.KnownHosts}},
	} {
		r := newRemote(t, opt)
		for have, want := range map[plumbing.Hash]int{rev("main~2"): 2, rev("main"): 0, plumbing.NewHash(strings.Repeat("ab", 20)): 9} {
			o, err := r.Fetch(t.Context(), Want{Hash: rev("main"), Filter: "tree:0", Have: have}, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for i := range 9 {
				if o.HasEncodedObject(rev(fmt.Sprintf("main~%d", i))) == nil {
					n++
				}
			}
			if n != want || o.Common != (want < 9) {
				t.Errorf("%s: %d commits, common %v; want %d", opt.URL, n, o.Common, want)
			}
		}
	}
}

// TestCertificates: what is wrong with a certificate is said.
func TestCertificates(t *testing.T) {
	for name, row := range map[string]struct {
		change func(*x509.Certificate)
		words  []string
	}{
		"no SAN": {func(c *x509.Certificate) { c.IPAddresses = nil }, []string{"no subject alternative name"}},
		"another host": {func(c *x509.Certificate) {
			c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)}
			c.DNSNames = []string{"git.example"}
		}, []string{"is for git.example, 10.0.0.1, not for 127.0.0.1"}},
		"expired": {func(c *x509.Certificate) { c.NotAfter = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC) }, []string{"expired at 2020-01-02T03:04:05Z", "renewed"}},
		"early": {func(c *x509.Certificate) {
			c.NotBefore = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
			c.NotAfter = c.NotBefore.Add(time.Hour)
		}, []string{"not valid before 2100", "clock"}},
	} {
		t.Run(name, func(t *testing.T) {
			pub, key, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			template := &x509.Certificate{
				SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotAfter: time.Now().Add(time.Hour),
				IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
			}
			row.change(template)
			der, err := x509.CreateCertificate(rand.Reader, template, template, pub, key)
			if err != nil {
				t.Fatal(err)
			}
			s := httptest.NewUnstartedServer(http.NotFoundHandler())
			s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.StartTLS()
			t.Cleanup(s.Close)
			ca := put(t, t.TempDir(), "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
			failure(t, newRemote(t, Options{URL: s.URL + "/x.git", Files: Files{CA: ca}}), row.words...)
		})
	}
}

// TestTextFiles: files that an editor wrote with a byte order mark, carriage
// returns or in UTF-16 are read, or it is said what they are.
func TestTextFiles(t *testing.T) {
	dir, secrets := t.TempDir(), t.TempDir()
	repo := gitserver.NewRepository(t, dir, 1)
	s := gitserver.HTTP(t, dir, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if _, password, _ := q.BasicAuth(); password != canary {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, q)
		})
	})
	web := func(text string) *Remote {
		return newRemote(t, Options{URL: s.URL + "/config.git", Files: Files{Token: put(t, secrets, "token", text)}, AllowInsecure: true})
	}
	success(t, web("\xef\xbb\xbf"+canary+"\r\n"))
	failure(t, web("\xff\xfes\x003\x00"), "UTF-16", "token")

	h := gitserver.SSH(t, repo, "")
	hosts, err := os.ReadFile(h.KnownHosts)
	if err != nil {
		t.Fatal(err)
	}
	for text, word := range map[string]string{"\xef\xbb\xbf": "byte order mark", "\xfe\xff": "UTF-16"} {
		failure(t, newRemote(t, Options{URL: h.URL, Files: Files{SSHKey: h.Key, KnownHosts: put(t, secrets, "hosts", text+string(hosts))}}), word, "hosts")
	}
	success(t, newRemote(t, Options{URL: h.URL, Files: Files{SSHKey: h.Key, KnownHosts: put(t, secrets, "hosts", strings.ReplaceAll(string(hosts), "\n", "\r\n"))}}))
}

// TestStalls: a response that stalls keeps its status, and one that ends late is
// waited for.
func TestStalls(t *testing.T) {
	stop := make(chan struct{})
	stalled := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Retry-After", "600")
		w.Header().Set("Content-Length", "3000")
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = w.Write([]byte("<html>"))
		w.(http.Flusher).Flush()
		select {
		case <-stop:
		case <-q.Context().Done():
		}
	}))
	t.Cleanup(stalled.Close)
	t.Cleanup(func() { close(stop) })
	_, err := newRemote(t, Options{URL: stalled.URL + "/x.git"}).List(t.Context(), []string{"refs/heads/main"})
	if RetryAfter(err) != 10*time.Minute || !strings.Contains(err.Error(), "429") {
		t.Errorf("%s of %v", RetryAfter(err), err)
	}

	dir := t.TempDir()
	head := plumbing.NewHash(gitserver.Git(t, gitserver.NewRepository(t, dir, 1), "rev-parse", "main"))
	late := gitserver.HTTP(t, dir, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			h.ServeHTTP(w, q)
			if q.Method == http.MethodGet {
				w.(http.Flusher).Flush()
				select {
				case <-time.After(2 * time.Second): // the server is late
				case <-q.Context().Done():
				}
			}
		})
	})
	r := newRemote(t, Options{URL: late.URL + "/config.git"})
	success(t, r)
	if _, err := r.Fetch(t.Context(), Want{Hash: head, Depth: 1}, t.TempDir()); err != nil {
		t.Error(err)
	}
}

// TestTemporary: what may be over at the next try is told from what only a person
// can mend.
func TestTemporary(t *testing.T) {
	for name, row := range map[string]struct {
		err  error
		want bool
	}{
		"a proxy whose host is down": {&statusError{who: "the proxy x", code: http.StatusServiceUnavailable}, true},
		"a proxy that wants a login": {&statusError{who: "the proxy x", code: http.StatusProxyAuthRequired}, false},
		"a timeout":                  {os.ErrDeadlineExceeded, true},
		"nothing":                    {func() error { _, err := readAdvertisement(strings.NewReader("")); return err }(), true},
		"a page":                     {&notGitError{"x"}, false},
	} {
		if isTemporary(row.err) != row.want {
			t.Errorf("%s: %v", name, row.err)
		}
	}
}

// TestShortSecret: a password that is in every text hides no error.
func TestShortSecret(t *testing.T) {
	secret := put(t, t.TempDir(), "secret", "server")
	_, err := newRemote(t, Options{URL: "http://127.0.0.1:1/dtesn/dtesn.git", Files: Files{Password: secret}, AllowInsecure: true}).List(t.Context(), []string{"refs/heads/main"})
	if err == nil || !strings.Contains(err.Error(), "connection refused") || !Temporary(err) {
		t.Error(err)
	}
}
