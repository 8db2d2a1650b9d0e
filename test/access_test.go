package test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dtesn-agent/test/gitserver"
)

const (
	firstToken  = "first-0123456789abcdef"
	secondToken = "second-0123456789abcdef"
)

// guarded is an agent whose --listen is off loopback, with a certificate, tokens and client
// certificates.
type guarded struct {
	*besieged
	addr, token          string // the file of tokens
	server, client, evil gitserver.Cert
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	dir := t.TempDir()
	port, err := freePort()
	ok(t, err)
	g := &guarded{
		addr: "127.0.0.1:" + port, token: filepath.Join(dir, "token"),
		server: gitserver.NewCert(t, dir, "server"), client: gitserver.NewCert(t, dir, "client"), evil: gitserver.NewCert(t, dir, "evil"),
	}
	ok(t, os.WriteFile(g.token, []byte(firstToken+"\n"+secondToken+"\n"), 0o600))
	g.besieged = newBesieged(t, 0, "--listen", "0.0.0.0:"+port, "--tls-cert-file", g.server.CertFile, "--tls-key-file", g.server.KeyFile,
		"--token-file", g.token, "--client-ca-file", g.client.CertFile)
	return g
}

// put replaces a file as a rotation does.
func (g *guarded) put(path, text string) {
	ok(g.t, os.WriteFile(path+".new", []byte(text), 0o600))
	ok(g.t, os.Rename(path+".new", path))
}

// trusting returns a client that trusts the server's certificate, and shows one of its own
// whether the server knows its authority or not.
func trusting(server *x509.Certificate, own ...tls.Certificate) *http.Client {
	conf := &tls.Config{RootCAs: x509.NewCertPool()}
	conf.RootCAs.AddCert(server)
	if len(own) > 0 {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own[0], nil }
	}
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: conf}}
}

// ask requests path, with headers in pairs.
func (g *guarded) ask(c *http.Client, method, path string, headers ...string) (*http.Response, error) {
	q, err := http.NewRequestWithContext(g.t.Context(), method, "https://"+g.addr+path, http.NoBody)
	ok(g.t, err)
	for i := 0; i < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	q.Host = q.Header.Get("Host")
	resp, err := c.Do(q)
	if err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	return resp, err
}

// wants holds that a bearer of token gets an answer with this status.
func (g *guarded) wants(what string, want int, token string) {
	g.t.Helper()
	if resp, err := g.ask(trusting(g.server.X509), http.MethodGet, "/v1/config/status", "Authorization", "Bearer "+token); err != nil || resp.StatusCode != want {
		g.t.Errorf("%s: %v %v, want %d", what, resp, err, want)
	}
}

// TestAccess holds who is answered off loopback, and with which headers.
func TestAccess(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	plain := trusting(g.server.X509)
	known := trusting(g.server.X509, g.client.Pair)
	basic := func(user, password string) string {
		q := http.Request{Header: http.Header{}}
		q.SetBasicAuth(user, password)
		return q.Header.Get("Authorization")
	}
	for _, c := range []struct {
		what    string
		want    int
		client  *http.Client
		headers []string
	}{
		{"no token", 401, plain, nil},
		{"an empty token", 401, plain, []string{"Authorization", "Bearer "}},
		{"an empty password", 401, plain, []string{"Authorization", basic("ada", "")}},
		{"a wrong token", 401, plain, []string{"Authorization", "Bearer " + firstToken + "0"}},
		{"a part of a token", 401, plain, []string{"Authorization", "Bearer " + firstToken[:20]}},
		{"two tokens as one", 401, plain, []string{"Authorization", "Bearer " + firstToken + " " + secondToken}},
		{"the token without a scheme", 401, plain, []string{"Authorization", firstToken}},
		{"the token as user", 401, plain, []string{"Authorization", basic(firstToken, "")}},
		{"the token", 200, plain, []string{"Authorization", "Bearer " + firstToken}},
		{"the other token", 200, plain, []string{"Authorization", "bearer " + secondToken}},
		{"the token as password", 200, plain, []string{"Authorization", basic("", firstToken)}},
		{"a user and the token as password", 200, plain, []string{"Authorization", basic("ada", secondToken)}},
		{"a client certificate", 200, known, nil},
		{"a client certificate and a wrong token", 200, known, []string{"Authorization", "Bearer x"}},
		{"another host", 421, plain, []string{"Authorization", "Bearer " + firstToken, "Host", "evil.example"}},
		{"another host without a token", 421, plain, []string{"Host", "evil.example"}},
		{"a name of the certificate", 200, plain, []string{"Authorization", "Bearer " + firstToken, "Host", "host.test:9310"}},
		{"another site, with what a browser remembers", 403, plain, []string{"Authorization", basic("ada", firstToken), "Origin", "https://evil.example"}},
	} {
		for _, path := range []string{"/", "/v1/config/status", "/metrics", "/livez", "/v1/config/validate", "/v1/config/events/no"} {
			resp, err := g.ask(c.client, http.MethodGet, path, c.headers...)
			ok(t, err)
			want := c.want
			if want == 200 && path == "/v1/config/validate" {
				want = 405
			} else if want == 200 && strings.HasSuffix(path, "/no") {
				want = 404
			}
			h := resp.Header
			if resp.StatusCode != want || resp.ProtoMajor != 1 {
				t.Errorf("%s, %s: %s %s, want %d", c.what, path, resp.Proto, resp.Status, want)
			}
			if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("X-Frame-Options") != "DENY" || h.Get("Cache-Control") != "no-store" || h.Get("Referrer-Policy") != "no-referrer" ||
				!strings.Contains(h.Get("Content-Security-Policy"), "frame-ancestors 'none'") {
				t.Errorf("%s, %s: %v", c.what, path, h)
			}
			if asked := strings.Join(h.Values("WWW-Authenticate"), "; "); (want == 401) != (strings.Contains(asked, "Bearer ") && strings.Contains(asked, "Basic ")) {
				t.Errorf("%s, %s: WWW-Authenticate %s", c.what, path, asked)
			}
			// not for loopback, whose other ports speak plain HTTP
			if named := len(c.headers) > 2 && c.headers[3] == "host.test:9310"; named != (h.Get("Strict-Transport-Security") != "") {
				t.Errorf("%s, %s: HSTS %q", c.what, path, h.Get("Strict-Transport-Security"))
			}
		}
	}
	if resp, err := g.ask(trusting(g.server.X509, g.evil.Pair), http.MethodGet, "/", "Authorization", "Bearer "+firstToken); err == nil {
		t.Errorf("with the certificate of another authority: %s", resp.Status)
	}
	if resp, err := http.Get("http://" + g.addr + "/"); err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("without TLS: %v %v", resp, err)
	}
	if resp, err := http.Get("http://" + g.health + "/metrics"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("--health-listen: %v %v", resp, err)
	}
	conn := g.dial()
	fmt.Fprint(conn, "POST /v1/config/validate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
	_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
	if text, err := io.ReadAll(conn); !strings.Contains(string(text), " 401 ") || !strings.Contains(string(text), "or a client certificate of") {
		t.Errorf("a body that never comes: %q, %v", text, err)
	}
	if _, text := get(t, "http://"+g.health+"/metrics", "*/*"); !strings.Contains(text, "\ndtesn_agent_refused_credentials_total ") || strings.Contains(text, "\ndtesn_agent_refused_credentials_total 0\n") {
		t.Errorf("requests that were refused are not counted:\n%s", text)
	}

	needs(t, "curl")
	curl := exec.CommandContext(t.Context(), "sh", "-c", `printf 'Authorization: Bearer %s' "$(head -n 1 "$1")" | curl -sS --cacert "$2" -H @- "https://$3/"`, "sh", g.token, g.server.CertFile, g.addr)
	if out, err := curl.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "state      in_sync") {
		t.Errorf("curl as in docs/deployment.md: %v\n%s", err, out)
	}
}

// dial connects by TLS.
func (g *guarded) dial() *tls.Conn {
	g.t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", g.addr, &tls.Config{InsecureSkipVerify: true})
	ok(g.t, err)
	g.t.Cleanup(func() { _ = conn.NetConn().Close() })
	return conn
}

// TestAccessRotation holds that certificates and tokens are exchanged without a restart, that
// broken files leave what was in force, and that a stream ends with its token.
func TestAccessRotation(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	shows := func(want string) {
		t.Helper()
		_, out := agent("status", "--state", g.state)
		if has := strings.Contains(out, "\nlisten "); has != (want != "") || !strings.Contains(out, want) {
			t.Errorf("the status does not say %q:\n%s", want, out)
		}
	}
	stream, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+g.addr+"/v1/config/events", http.NoBody)
	ok(t, err)
	stream.Header.Set("Authorization", "Bearer "+firstToken)
	client := trusting(g.server.X509)
	client.Timeout = 0
	resp, err := client.Do(stream)
	ok(t, err)
	defer resp.Body.Close()
	events := bufio.NewScanner(resp.Body)
	next := func() bool {
		for events.Scan() {
			if strings.HasPrefix(events.Text(), "event: paused") {
				return true
			}
		}
		return false
	}
	if resp.StatusCode != http.StatusOK || !events.Scan() {
		t.Fatalf("the stream: %s", resp.Status)
	}
	g.order("pause", "--reason", "a test")
	if !next() {
		t.Fatal("the stream does not show the pause")
	}
	shows("")

	const thirdToken = "third-0123456789abcdef"
	g.put(g.token, secondToken+"\n"+thirdToken)
	g.wants("a token that was removed", 401, firstToken)
	g.wants("a token that was kept", 200, secondToken)
	g.wants("a token that was added", 200, thirdToken)
	g.order("resume")
	g.order("pause", "--reason", "another")
	if next() {
		t.Error("the stream goes on without its token")
	}
	for name, text := range map[string]string{"empty": "\n", "short": "abc\n", "binary": "\x00\x01" + thirdToken, "gone": ""} {
		g.put(g.token, text)
		if name == "gone" {
			ok(t, os.Remove(g.token))
		}
		g.wants(name+": the token of before", 200, thirdToken)
		g.wants(name+": no token", 401, "")
		shows("tokens from " + g.token)
	}
	g.put(g.token, firstToken)
	g.wants("the token that came back", 200, firstToken)
	g.wants("a token that is gone", 401, thirdToken)
	shows("")

	old, fresh := g.server, gitserver.NewCert(t, t.TempDir(), "fresh")
	g.put(old.CertFile, string(fresh.CertBytes)) // whose key is still the old one
	g.wants("the pair of before", 200, firstToken)
	shows("the certificate from " + old.CertFile + " and " + old.KeyFile + ": tls: private key does not match public key")
	g.put(old.KeyFile, string(fresh.KeyText))
	g.server = fresh
	g.wants("the new pair", 200, firstToken)
	if resp, err := g.ask(trusting(old.X509), http.MethodGet, "/"); err == nil {
		t.Errorf("the old certificate is still shown: %s", resp.Status)
	}
	g.put(old.KeyFile, "nothing")
	g.wants("the pair of before", 200, firstToken)
	g.put(old.KeyFile, string(fresh.KeyText))

	known := trusting(fresh.X509, g.client.Pair)
	kept := trusting(fresh.X509, g.client.Pair)
	kept.Transport.(*http.Transport).DisableKeepAlives = false
	for _, c := range []*http.Client{known, kept} {
		if resp, err := g.ask(c, http.MethodGet, "/v1/config/status"); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("a client certificate: %v %v", resp, err)
		}
	}
	g.put(g.client.CertFile, "broken")
	if resp, err := g.ask(known, http.MethodGet, "/v1/config/status"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the authorities of before: %v %v", resp, err)
	}
	shows("client authorities from " + g.client.CertFile)
	g.put(g.client.CertFile, string(g.evil.CertBytes))
	if resp, err := g.ask(known, http.MethodGet, "/v1/config/status"); err == nil {
		t.Errorf("a certificate of an authority that is gone: %s", resp.Status)
	}
	if resp, err := g.ask(kept, http.MethodGet, "/v1/config/status"); err == nil && resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("on a kept connection: %s", resp.Status)
	}

	log, err := os.ReadFile(g.log)
	ok(t, err)
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", g.running.Process.Pid))
	ok(t, err)
	_, status := agent("status", "--state", g.state, "--json")
	for _, token := range []string{firstToken, secondToken, thirdToken} {
		if bytes.Contains(log, []byte(token)) || bytes.Contains(command, []byte(token)) || strings.Contains(status, token) {
			t.Errorf("%s is shown", token)
		}
	}
	for _, line := range []string{"file of --listen unusable", "file of --listen read again", "file of --listen usable again"} {
		if !bytes.Contains(log, []byte(line)) {
			t.Errorf("the log has no %q:\n%s", line, log)
		}
	}
}

// TestIdleTLSClients holds that clients that do not end their handshake, their request or
// their reading keep nobody else from being answered, and the work from nothing.
func TestIdleTLSClients(t *testing.T) {
	t.Parallel()
	authorized := "Authorization: Bearer " + firstToken + "\r\n"
	for name, text := range map[string]string{
		"no handshake":              "",
		"half a handshake":          "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"nothing after a handshake": "tls:",
		"half a header":             "tls:GET / HTTP/1.1\r\nHost: localhost\r\n" + authorized + "X-",
		"a body that never comes":   "tls:POST /v1/config/validate HTTP/1.1\r\nHost: localhost\r\n" + authorized + "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n",
		"answers that are not read": "tls:" + strings.Repeat("GET /v1/config/schema HTTP/1.1\r\nHost: localhost\r\n"+authorized+"\r\n", 500),
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t)
			text, isTLS := strings.CutPrefix(text, "tls:")
			for round := range 2 {
				if isTLS {
					for range 100 {
						conn := g.dial()
						_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
						_, _ = io.WriteString(conn, text)
					}
				} else {
					g.clients(1100, "tcp", g.addr, text)
				}
				if got := g.descriptors(); got > 300 {
					t.Errorf("%d descriptors", got)
				}
				begun := time.Now()
				g.wants("another client", 200, firstToken)
				if took := time.Since(begun); took > 5*time.Second {
					t.Errorf("it was answered after %s", took)
				}
				g.works(800 + 100*round)
			}
		})
	}
}

// TestAccessAtStart holds that what is missing or broken ends the start, and is named.
func TestAccessAtStart(t *testing.T) {
	t.Parallel()
	r := newBareRig(t)
	r.declare(700)
	cert := gitserver.NewCert(t, r.dir, "server")
	file := func(name, text string) string {
		path := filepath.Join(r.dir, name)
		ok(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	token, broken := file("token", firstToken), file("broken", "nothing")
	pair := []string{"--tls-cert-file", cert.CertFile, "--tls-key-file", cert.KeyFile}
	off := []string{"--listen", "0.0.0.0:0"}
	with := func(lists ...[]string) (all []string) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	for _, c := range []struct {
		says  string
		code  int
		flags []string
	}{
		{"--listen: 0.0.0.0:0 is not a loopback address, and lacks --tls-cert-file, --tls-key-file, --token-file (or --client-ca-file)\nhint: ", 2, off},
		{":9310 is not a loopback address, and lacks", 2, []string{"--listen", ":9310"}},
		{"[::]:9310 is not a loopback address, and lacks", 2, []string{"--listen", "[::]:9310"}},
		{"host.example:9310 is not a loopback address, and lacks", 2, []string{"--listen", "host.example:9310"}},
		{"lacks --tls-cert-file, --tls-key-file\n", 2, with(off, []string{"--token-file", token})},
		{"lacks --token-file (or --client-ca-file)\n", 2, with(off, pair)},
		{"lacks --tls-key-file\n", 2, with(off, pair[:2], []string{"--token-file", token})},
		{"TLS lacks --tls-cert-file\n", 2, pair[2:]},
		{"TLS lacks --tls-cert-file and --tls-key-file\n", 2, []string{"--client-ca-file", cert.CertFile}},
		{"read tokens from " + broken + ": line 1 is not a token: 16 printable ASCII characters at least\nhint: make one with: openssl rand -hex 32", 1, with(off, pair, []string{"--token-file", broken})},
		{"read tokens from /none/such: no such file or directory\nhint: ", 1, with(off, pair, []string{"--token-file", "/none/such"})},
		{"read client authorities from " + broken + ": it has no certificate\nhint: ", 1, with(off, pair, []string{"--client-ca-file", broken})},
		{"read the certificate from " + broken + " and " + cert.KeyFile + ": tls: failed to find any PEM data", 1, with(off, []string{"--token-file", token, "--tls-cert-file", broken}, pair[2:])},
	} {
		args := append([]string{"run", "--environment", "production", "--config", r.config, "--embedded-engine", "--state", r.state}, c.flags...)
		if code, out := agent(args...); code != c.code || !strings.Contains(out, c.says) || strings.Contains(out, "nothing") {
			t.Errorf("%v: exit %d, want %d and %q:\n%s", c.flags, code, c.code, c.says, out)
		}
	}
	if _, err := os.Stat(r.state); !os.IsNotExist(err) {
		t.Errorf("something was touched: %v", err)
	}
}
