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
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/schema/problem"
	"dtesn-agent/test/gitserver"
)

const canary = "s3cr3t-canary"

func put(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// failure lists and wants an error whose text and hint have all of words, and
// never the secret.
func failure(t testing.TB, r *Remote, words ...string) {
	t.Helper()
	found, err := r.List(t.Context(), []string{"refs/heads/main"})
	if err == nil {
		t.Fatalf("listed %v, want an error with %q", found, words)
	}
	for _, w := range words {
		if !strings.Contains(problem.Text(err), w) {
			t.Errorf("%q does not say %q", problem.Text(err), w)
		}
	}
	if strings.Contains(problem.Text(err), canary) {
		t.Errorf("the secret is in %q", problem.Text(err))
	}
	if hint := problem.Hint(err); hint != "" && strings.Contains(err.Error(), hint) {
		t.Errorf("the text of %q has its hint %q", err, hint)
	}
}

func success(t testing.TB, r *Remote) {
	t.Helper()
	if found, err := r.List(t.Context(), []string{"refs/heads/main"}); err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
}

func newRemote(t testing.TB, opt Options) *Remote {
	t.Helper()
	r, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Rest)
	return r
}

// TestLogin: a wrong login is said; a right one after a rotation is taken
// without a restart.
func TestLogin(t *testing.T) {
	dir, secrets := t.TempDir(), t.TempDir()
	gitserver.NewRepository(t, dir, 1)
	server := gitserver.HTTP(t, dir, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if user, password, _ := q.BasicAuth(); user != "ada" || password != canary {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, q)
		})
	})
	url := server.URL + "/config.git"
	failure(t, newRemote(t, Options{URL: url}), "401", "--git-token-file")
	files := Files{Username: put(t, secrets, "user", "ada\n"), Password: put(t, secrets, "password", canary+"-wrong\n")}
	r := newRemote(t, Options{URL: url, Files: files, AllowInsecure: true})
	failure(t, r, "401", "wrong, expired")
	put(t, secrets, "password", canary+"\n")
	success(t, r)
	put(t, secrets, "password", "")
	failure(t, r, "is empty")
	put(t, secrets, "password", canary+"\nand a note\n")
	failure(t, r, "has more than one line")
	if err := os.Remove(files.Password); err != nil {
		t.Fatal(err)
	}
	failure(t, r, files.Password, "no such file")
	put(t, secrets, "password", canary)
	success(t, r)
	named := newRemote(t, Options{URL: strings.Replace(url, "://", "://ada@", 1), Files: Files{Token: files.Password}, AllowInsecure: true})
	success(t, named)
}

// TestTLS: only the named authority is trusted, and a client certificate is
// shown where it is asked for.
func TestTLS(t *testing.T) {
	dir, pki := t.TempDir(), t.TempDir()
	gitserver.NewRepository(t, dir, 1)
	plain := gitserver.HTTP(t, dir, nil)
	issue := func(name string) (cert tls.Certificate, certPEM, keyPEM string) {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
		if err != nil {
			t.Fatal(err)
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		certText := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, put(t, pki, name+".crt", string(certText)),
			put(t, pki, name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
	}
	serverCert, ca, _ := issue("server")
	_, clientPEM, clientKey := issue("client")
	_, otherCA, _ := issue("other")
	clients := x509.NewCertPool()
	b, err := os.ReadFile(clientPEM)
	if err != nil || !clients.AppendCertsFromPEM(b) {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(plain.Config.Handler)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{serverCert}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert}
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	url := s.URL + "/config.git"
	failure(t, newRemote(t, Options{URL: url}), "unknown authority", "--git-ca-file")
	failure(t, newRemote(t, Options{URL: url, Files: Files{CA: otherCA}}), "unknown authority", otherCA+" does not have its authority")
	failure(t, newRemote(t, Options{URL: strings.Replace(plain.URL, "http:", "https:", 1) + "/config.git"}), "speaks plain HTTP", "check the port")
	failure(t, newRemote(t, Options{URL: url, Files: Files{CA: ca}}), "certificate")
	failure(t, newRemote(t, Options{URL: url, Files: Files{CA: clientKey}}), "holds no certificate")
	failure(t, newRemote(t, Options{URL: url, Files: Files{CA: ca, Cert: clientPEM, Key: ca}}), "--git-key-file")
	success(t, newRemote(t, Options{URL: url, Files: Files{CA: ca, Cert: clientPEM, Key: clientKey}}))

	// a new authority is taken without a restart
	trusted := put(t, pki, "trusted.crt", string(must(os.ReadFile(otherCA))))
	r := newRemote(t, Options{URL: url, Files: Files{CA: trusted, Cert: clientPEM, Key: clientKey}})
	failure(t, r, "unknown authority")
	put(t, pki, "trusted.crt", string(must(os.ReadFile(ca))))
	success(t, r)
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// TestSSHTrouble: keys and host keys that are wrong, and right after.
func TestSSHTrouble(t *testing.T) {
	dir := t.TempDir()
	h := gitserver.SSH(t, gitserver.NewRepository(t, dir, 1), "")
	good := Files{SSHKey: h.Key, KnownHosts: h.KnownHosts}
	secrets := t.TempDir()
	other := filepath.Join(secrets, "other")
	otherPublic := gitserver.NewKey(t, other, "")

	for want, files := range map[string]Files{
		"--git-known-hosts-file": {SSHKey: h.Key},
		"--git-ssh-key-file":     {KnownHosts: h.KnownHosts},
	} {
		if _, err := New(Options{URL: h.URL, Files: files}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %s", err, want)
		}
	}
	success(t, newRemote(t, Options{URL: h.URL, Files: good}))
	failure(t, newRemote(t, Options{URL: h.URL + "x", Files: good}), "does not appear to be a git repository")

	key := filepath.Join(secrets, "key")
	put(t, secrets, "key", string(must(os.ReadFile(other))))
	r := newRemote(t, Options{URL: h.URL, Files: Files{SSHKey: key, KnownHosts: h.KnownHosts}})
	failure(t, r, "SSH authentication failed for user", "with key")
	put(t, secrets, "key", string(must(os.ReadFile(h.Key))))
	success(t, r)

	hosts := put(t, secrets, "hosts", "")
	r = newRemote(t, Options{URL: h.URL, Files: Files{SSHKey: h.Key, KnownHosts: hosts}})
	failure(t, r, "is empty")
	put(t, secrets, "hosts", "example.org "+otherPublic+"\n")
	failure(t, r, "has no key of 127.0.0.1", "ssh-keyscan")
	put(t, secrets, "hosts", fmt.Sprintf("[127.0.0.1]:%s %s\n", h.Port, otherPublic))
	failure(t, r, "host key differs")
	put(t, secrets, "hosts", string(must(os.ReadFile(h.KnownHosts))))
	success(t, r)
}

func TestSSHPassphrase(t *testing.T) {
	dir := t.TempDir()
	h := gitserver.SSH(t, gitserver.NewRepository(t, dir, 1), "")
	locked := filepath.Join(t.TempDir(), "locked")
	public := gitserver.NewKey(t, locked, canary)
	put(t, h.Dir, "authorized", public+"\n")
	failure(t, newRemote(t, Options{URL: h.URL, Files: Files{SSHKey: locked, KnownHosts: h.KnownHosts}}), "locked by a passphrase", "--git-ssh-passphrase-file")
	phrase := put(t, t.TempDir(), "phrase", "wrong\n")
	r := newRemote(t, Options{URL: h.URL, Files: Files{SSHKey: locked, SSHPassphrase: phrase, KnownHosts: h.KnownHosts}})
	failure(t, r, "does not open")
	if err := os.WriteFile(phrase, []byte(canary+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	success(t, r)
}

// TestMisbehaving: servers that break the rules, each in a way of its own. The
// fault is said, and nothing is left behind.
func TestMisbehaving(t *testing.T) {
	dir := t.TempDir()
	repo := gitserver.NewRepository(t, dir, 3)
	head := plumbing.NewHash(gitserver.Git(t, repo, "rev-parse", "main"))
	good := gitserver.HTTP(t, dir, nil)
	elsewhere := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(elsewhere.Close)
	rows := map[string]struct {
		serve http.HandlerFunc
		want  string
		fetch bool // the listing works
	}{
		"500": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, "reports a problem", false},
		"404": {http.NotFound, "check the address", false},
		"compressed": {func(w http.ResponseWriter, q *http.Request) {
			http.Error(w, "asked for "+strconv.Quote(q.Header.Get("Accept-Encoding")), http.StatusTeapot)
		}, `asked for \"\"`, false},
		"a web page": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, "git clone", false},
		"garbage":    {advertised("PACK"), "does not speak git", false},
		"nothing":    {advertised(""), "without a response", false},
		"an error":   {advertised("000fERR go away"), `"go away"`, false},
		"cut short":  {advertised("0200abc"), "cut short", false},
		"sha256":     {advertised("000eversion 2\n0019object-format=sha256\n0000"), "sha256", false},
		"a bad hash": {advertised("001a" + "zz refs/heads/main\x00 ca"), "does not speak git", false},
		"redirect away": {func(w http.ResponseWriter, q *http.Request) {
			http.Redirect(w, q, elsewhere.URL+q.URL.String(), http.StatusFound)
		}, "redirects to " + elsewhere.URL, false},
		"a redirect loop": {func(w http.ResponseWriter, q *http.Request) { http.Redirect(w, q, q.URL.String(), http.StatusFound) }, "redirects", false},
		"half a pack":     {passOn(good, func(b []byte) []byte { return b[:len(b)/2] }), "cut short", true},
		"a broken pack":   {passOn(good, func(b []byte) []byte { return bytes.Replace(b, []byte("PACK"), []byte("KCAP"), 1) }), "the pack is damaged", true},
		"a flipped bit":   {passOn(good, func(b []byte) []byte { b[len(b)-60] ^= 1; return b }), "the pack is damaged", true},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(row.serve)
			t.Cleanup(s.Close)
			r := newRemote(t, Options{URL: s.URL + "/config.git"})
			if !row.fetch {
				failure(t, r, row.want)
				return
			}
			success(t, r)
			parent := t.TempDir()
			_, err := r.Fetch(t.Context(), Want{Hash: head, Depth: 1}, parent)
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want an error with %q", err, row.want)
			}
			if left, _ := os.ReadDir(parent); len(left) > 0 {
				t.Error("left behind", left)
			}
		})
	}
}

// advertised answers with raw bytes as an advertisement.
func advertised(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		_, _ = w.Write([]byte(text))
	}
}

// passOn is the good server, whose answers with a pack are spoiled.
func passOn(good *httptest.Server, spoil func([]byte) []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		rec := httptest.NewRecorder()
		good.Config.Handler.ServeHTTP(rec, q)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		body := rec.Body.Bytes()
		if bytes.Contains(body, []byte("PACK")) {
			body = spoil(body)
			w.Header().Del("Content-Length")
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body)
	}
}

// TestBounds: what is over a bound is refused while it comes.
func TestBounds(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		line := fmt.Appendf(nil, "%04x%040x refs/heads/%0900d\n", 4+41+11+900+1, 1, 1)
		_, _ = fmt.Fprintf(w, "%04x%040x refs/heads/a\x00agent=x\n", 4+40+1+12+1+7+1, 1)
		for {
			if _, err := w.Write(line); err != nil {
				return
			}
		}
	}))
	t.Cleanup(s.Close)
	failure(t, newRemote(t, Options{URL: s.URL + "/x.git"}), "exceeds 16 MiB", "repository of its own")
}

// TestSlow: a server that goes on and on, byte by byte, is given up in the end;
// one that says nothing sooner.
func TestSlow(t *testing.T) {
	trickle := func(every time.Duration) *Remote {
		stop := make(chan struct{})
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
			line := fmt.Appendf(nil, "%04x%040x refs/heads/x\n", 4+41+13, 1)
			for i := 0; ; i++ {
				_, _ = w.Write(line[i%len(line):][:1])
				w.(http.Flusher).Flush()
				select {
				case <-time.After(every):
				case <-q.Context().Done():
					return
				case <-stop:
					return
				}
			}
		}))
		t.Cleanup(s.Close)
		t.Cleanup(func() { close(stop) })
		r := newRemote(t, Options{URL: s.URL + "/x.git"})
		r.timeouts = timeouts{list: time.Second, fetch: time.Second, silence: 300 * time.Millisecond}
		return r
	}
	failure(t, trickle(time.Millisecond), "it took too long", "too slow")
	failure(t, trickle(time.Hour), "was silent for 300ms")
	_, err := trickle(time.Hour).List(t.Context(), []string{"refs/heads/main"})
	if !Temporary(err) || !Temporary(fmt.Errorf("look: %w", err)) {
		t.Errorf("%v is temporary", err)
	}
	r := newRemote(t, Options{URL: httptest.NewServer(http.NotFoundHandler()).URL + "/x.git"})
	if _, err := r.List(t.Context(), []string{"refs/heads/main"}); err == nil || Temporary(err) {
		t.Errorf("%v is not temporary", err)
	}
}

// TestEchoedLogin: a server that repeats what it was sent gets no word of it
// into an error.
func TestEchoedLogin(t *testing.T) {
	dir := t.TempDir()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, password, _ := q.BasicAuth()
		said := "ERR no " + password + " " + q.Header.Get("Authorization")
		advertised(fmt.Sprintf("%04x%s", len(said)+4, said))(w, q)
	}))
	t.Cleanup(s.Close)
	failure(t, newRemote(t, Options{URL: s.URL + "/x.git", Files: Files{Token: put(t, dir, "token", canary)}, AllowInsecure: true}), "repeats the credentials")
}

// TestAddresses: what is taken for an address, and what is refused without a
// word of the secret in it.
func TestAddresses(t *testing.T) {
	for _, repo := range []string{"/srv/config.git", "./config", "../x:y", "config", "file:///srv/config.git"} {
		if !IsLocal(repo) {
			t.Errorf("%s is a path", repo)
		}
	}
	for repo, want := range map[string]string{
		"https://example.org/a/b.git":      "https://example.org/a/b.git",
		"https://ada@example.org:8443/a/":  "https://example.org:8443/a",
		"ssh://git@example.org:2222/a.git": "ssh://git@example.org:2222/a.git",
		"git@example.org:a/b.git":          "git@example.org:a/b.git",
		"http://[::1]:80/a":                "http://[::1]:80/a",
		"git@[::1]:r.git":                  "git@[::1]:r.git",
		"[::1]:r.git":                      "[::1]:r.git",
		"[example.org:2222]:r.git":         "[example.org:2222]:r.git",
		"git@[example.org]:r.git":          "git@example.org:r.git",
		"ssh://h/~/r.git":                  "h:~/r.git",
		"ssh://ada@h:22/~bob/r.git":        "[ada@h:22]:~bob/r.git",
	} {
		at, err := parse(repo)
		if err != nil || at.String() != want || IsLocal(repo) {
			t.Errorf("%s: %v %v", repo, at, err)
		}
	}
	if text, err := Location("https://" + canary + "@example.org/a.git"); err != nil || text != "https://example.org/a.git" {
		t.Errorf("a token for a user: %s %v", text, err)
	}
	for _, repo := range []string{
		"https://ada:" + canary + "@example.org/a", "ada:" + canary + "@example.org:a", "ftp://example.org/a", "https:///a", "https://example.org", "https://example.org/a?token=" + canary,
		"https://example.org/a b", "ext::sh -c id", "git://example.org/a", "[::1]", "[::1]:", "git@[::1]r.git", "-oProxyCommand=id:x", "git@-oProxyCommand=id:x", "ssh://-oProxyCommand=id/x", "https://%zz" + canary + "/a",
	} {
		if at, err := parse(repo); err == nil {
			t.Errorf("%s was taken for %v", repo, at)
		} else if strings.Contains(problem.Text(err), canary) {
			t.Errorf("the secret is in %q", problem.Text(err))
		}
	}
}
