package remote

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/smallfile"
)

// httpTransport speaks git's smart HTTP: gitprotocol-http(5).
type httpTransport struct {
	at    address
	files Files

	client *http.Client
	sent   login
	// trust is the digest of the files that client was made of.
	trust [sha256.Size]byte
}

func (t *httpTransport) close() {
	if t.client != nil {
		t.client.CloseIdleConnections()
	}
}

func (t *httpTransport) open(b bounds, known bool) (exchange, error) {
	if err := t.renew(); err != nil {
		return nil, err
	}
	login, err := t.login()
	if err != nil {
		return nil, err
	}
	t.sent = login
	ex := &httpExchange{t: t, bounds: b, login: login}
	if known {
		return ex, nil
	}
	resp, err := ex.do(http.MethodGet, "/info/refs?service=git-upload-pack", nil)
	if err != nil {
		ex.close()
		return nil, err
	}
	if ct := resp.Header.Get("Content-Type"); ct != "application/x-git-upload-pack-advertisement" {
		ex.close()
		return nil, problem.New("", &notGitError{fmt.Sprintf("an answer of type %q", line([]byte(ct)))}, "is this the address that `git clone` takes?")
	}
	ex.first = ex.reader(resp, maxListing, "the list of refs")
	return ex, nil
}

// renew makes a client where a file of TLS has changed since.
func (t *httpTransport) renew() error {
	var all []byte
	pem := map[string][]byte{}
	for _, path := range []string{t.files.CA, t.files.Cert, t.files.Key} {
		if path == "" {
			continue
		}
		data, err := readSecret(path)
		if err != nil {
			return err
		}
		pem[path] = data
		all = append(append(all, data...), 0)
	}
	digest := sha256.Sum256(all)
	if t.client != nil && digest == t.trust {
		return nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.files.CA != "" {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem[t.files.CA]) {
			return problem.New("", errors.New(t.files.CA+" holds no certificate"), "--git-ca-file is PEM: -----BEGIN CERTIFICATE-----")
		}
	}
	if t.files.Cert != "" {
		pair, err := tls.X509KeyPair(pem[t.files.Cert], pem[t.files.Key])
		if err != nil {
			return &problem.Error{Op: "use", Place: t.files.Cert + " and " + t.files.Key, Err: err, Hint: "--git-cert-file and --git-key-file are PEM and belong together"}
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	t.close()
	t.trust = digest
	t.client = &http.Client{
		CheckRedirect: t.redirect,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf, ForceAttemptHTTP2: true,
			MaxIdleConns: 2, MaxIdleConnsPerHost: 2, IdleConnTimeout: 5 * time.Minute,
			TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: patient.silence,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
	return nil
}

// redirect follows only the first request, and only on the same host: a
// credential must not go elsewhere, nor a configuration come from there.
func (t *httpTransport) redirect(q *http.Request, via []*http.Request) error {
	from := via[0].URL
	to := q.URL
	same := strings.EqualFold(to.Hostname(), from.Hostname()) &&
		(to.Scheme == from.Scheme && to.Port() == from.Port() || from.Scheme == "http" && to.Scheme == "https")
	if !same || via[0].Method != http.MethodGet || len(via) > 3 {
		return &redirectError{(&url.URL{Scheme: to.Scheme, Host: to.Host, Path: strings.TrimSuffix(to.Path, "/info/refs")}).String()}
	}
	return nil
}

type redirectError struct{ to string }

func (e *redirectError) Error() string { return "it redirects to " + line([]byte(e.to)) }

func (t *httpTransport) secrets() []string {
	if t.sent.password == "" {
		return nil
	}
	basic := base64.StdEncoding.EncodeToString([]byte(t.sent.user + ":" + t.sent.password))
	return []string{t.sent.password, basic}
}

// A login is what a request says of who asks.
type login struct{ user, password string }

func (t *httpTransport) login() (login, error) {
	l := login{user: t.at.user}
	var err error
	read := func(path string) (s string) {
		if path == "" || err != nil {
			return ""
		}
		var b []byte
		b, err = readSecret(path)
		return strings.TrimRight(string(b), "\r\n")
	}
	if name := read(t.files.Username); name != "" {
		l.user = name
	}
	l.password = read(t.files.Password)
	if token := read(t.files.Token); token != "" {
		l.password = token
		if l.user == "" {
			l.user = "x-access-token" // GitHub's word; where only the token counts any will do
		}
	}
	return l, err
}

// readSecret reads a small file.
func readSecret(path string) ([]byte, error) {
	b, err := smallfile.Read(path, 1<<20)
	if err != nil {
		return nil, &problem.Error{Op: "read", Place: path, Err: err, Hint: "it must be a file that the agent's user can read"}
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, problem.New("", errors.New(path+" is empty"), "write it whole, by a rename")
	}
	return b, nil
}

type httpExchange struct {
	bounds
	t     *httpTransport
	login login
	first *pktReader
	body  io.ReadCloser // of the last answer
}

func (ex *httpExchange) advert() *pktReader { return ex.first }

func (ex *httpExchange) request(m message) (*pktReader, error) {
	resp, err := ex.do(http.MethodPost, "/git-upload-pack", m)
	if err != nil {
		return nil, err
	}
	return ex.reader(resp, maxListing+maxPack, "the answer"), nil
}

// reader reads an answer, bounded in bytes and in how long it may be silent.
func (ex *httpExchange) reader(resp *http.Response, limit int64, what string) *pktReader {
	return newPktReader(bound(&watched{bounds: ex.bounds, r: resp.Body}, limit, what))
}

func (ex *httpExchange) do(method, path string, body []byte) (*http.Response, error) {
	ex.close()
	base := url.URL{Scheme: ex.t.at.scheme, Host: ex.t.at.host, Path: ex.t.at.path}
	if ex.t.at.port != "" {
		base.Host += ":" + ex.t.at.port
	}
	q, err := http.NewRequestWithContext(ex.ctx, method, base.String()+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	q.Header.Set("User-Agent", agent)
	q.Header.Set("Git-Protocol", "version=2")
	if method == http.MethodPost {
		q.Header.Set("Content-Type", "application/x-git-upload-pack-request")
		q.Header.Set("Accept", "application/x-git-upload-pack-result")
	}
	if ex.login.password != "" {
		q.SetBasicAuth(ex.login.user, ex.login.password)
	}
	resp, err := ex.t.client.Do(q)
	if err != nil {
		var wrapped *url.Error // it repeats the address
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, err
	}
	ex.body = resp.Body
	if resp.StatusCode != http.StatusOK {
		return nil, &statusError{resp.StatusCode, ex.login.password != ""}
	}
	return resp, nil
}

// close ends the last answer. A body that was read to its end leaves the
// connection for the next request.
func (ex *httpExchange) close() {
	if ex.body != nil {
		timer := time.AfterFunc(goodbye, func() { ex.cancel(errSlow) })
		defer timer.Stop()
		_, _ = io.CopyN(io.Discard, ex.body, 4096)
		_ = ex.body.Close()
		ex.body = nil
	}
}

type statusError struct {
	code    int
	loginIn bool
}

func (e *statusError) Error() string {
	return fmt.Sprintf("the server answers %d %s", e.code, http.StatusText(e.code))
}

func (t *httpTransport) explain(err error) error {
	var status *statusError
	var redirect *redirectError
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	switch {
	case errors.As(err, &redirect):
		return problem.New("", redirect, "if that is where the repository is now, name it with --repo; it is not followed by itself")
	case errors.As(err, &unknown):
		return problem.New("", errors.New("the server's certificate is signed by nobody this machine trusts"), "name its authority with --git-ca-file")
	case errors.As(err, &host):
		return problem.New("", errors.New("the server's certificate is of another host"), "use the name that it bears in --repo")
	case !errors.As(err, &status):
		return nil
	}
	hint := ""
	switch {
	case status.code == http.StatusUnauthorized && !status.loginIn:
		hint = "it asks for a login: give --git-token-file, or --git-username-file and --git-password-file"
	case status.code == http.StatusUnauthorized || status.code == http.StatusForbidden:
		hint = "the login is wrong, expired, or may not read this repository; the files are read anew at the next try"
	case status.code == http.StatusNotFound:
		hint = "is the address right? hosts also say so to who may not read the repository"
	case status.code >= 500:
		hint = "the server has a fault; it is tried again"
	}
	return problem.New("", status, hint)
}
