package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"dtesn-agent/schema/problem"
)

// httpTransport speaks git's smart HTTP: gitprotocol-http(5).
type httpTransport struct {
	at    address
	files Files

	client *http.Client // nil at rest
	sent   credentials
}

func newHTTP(at address, opt Options) (*httpTransport, error) {
	if f := opt.Files; at.scheme == "http" && !opt.AllowInsecure && (f.Password != "" || f.Token != "") {
		return nil, problem.New("--repo", errors.New("http:// would send the password or token unencrypted"), "use https://, or permit it with --allow-insecure-git")
	}
	return &httpTransport{at: at, files: opt.Files}, checkProxyVariable(at.scheme)
}

// checkProxyVariable refuses a proxy that cannot be parsed: net/http would take
// any text for a host. The error does not repeat a password.
func checkProxyVariable(scheme string) error {
	for _, name := range []string{strings.ToUpper(scheme) + "_PROXY", scheme + "_proxy"} {
		value := os.Getenv(name)
		if value == "" {
			continue
		}
		if !strings.Contains(value, "://") {
			value = "http://" + value
		}
		if u, err := url.Parse(value); err != nil || u.Hostname() == "" {
			return problem.New("", errors.New("the proxy in "+name+" cannot be parsed"), "write it as http://HOST:PORT, or unset the variable")
		}
	}
	return nil
}

// url returns the repository's URL with suffix.
func (t *httpTransport) url(suffix string) *url.URL {
	u := &url.URL{Scheme: t.at.scheme, Host: t.at.host, Path: t.at.path + suffix}
	if t.at.port != "" {
		u.Host += ":" + t.at.port
	}
	return u
}

func (t *httpTransport) rest() {
	if t.client != nil {
		t.client.CloseIdleConnections()
		t.client = nil
	}
}

// secrets returns what was sent to the server, and what is sent to a proxy.
func (t *httpTransport) secrets() []string {
	secrets := t.sent.secrets()
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: t.url("")}); err == nil && proxy != nil && proxy.User != nil {
		password, _ := proxy.User.Password()
		secrets = append(secrets, credentials{proxy.User.Username(), password}.secrets()...)
	}
	return secrets
}

func (t *httpTransport) list(c *call, names []string) (Refs, error) {
	t.rest()
	base, body, err := t.discover(c, "version=2")
	if err != nil {
		return nil, err
	}
	head, _ := body.Peek(64)
	if !isVersion2(head) {
		adv, err := readAdvertisement(body)
		_ = body.Close()
		return choose(adv, names), err
	}
	err = checkVersion2(body)
	_ = body.Close() // before the next request, which then has the same connection
	if err != nil {
		return nil, err
	}
	q, err := lsRefs(names)
	if err != nil {
		return nil, err
	}
	resp, err := t.post(c, base, q, "version=2", maxListing)
	if err != nil {
		return nil, err
	}
	defer resp.Close()
	return readRefs(resp, names)
}

func (t *httpTransport) fetch(c *call, w Want, take func(io.Reader) error) (response, error) {
	base, body, err := t.discover(c, "")
	if err != nil {
		return response{}, err
	}
	caps, err := readCapabilities(body)
	_ = body.Close()
	if err != nil {
		return response{}, err
	}
	q, err := newRequest(caps, w)
	if err != nil {
		return response{}, err
	}
	resp, err := t.post(c, base, q.body, "", maxPack)
	if err != nil {
		return response{}, err
	}
	defer resp.Close()
	return q.read(resp, take)
}

// A body is what a response holds, bounded and buffered.
type body struct {
	*bufio.Reader
	inner io.Closer
}

// Close leaves the connection for the next request if little is left to read.
func (b *body) Close() error {
	timer := time.AfterFunc(time.Second, func() { _ = b.inner.Close() })
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, b.Reader, 4096)
	return b.inner.Close()
}

// discover begins an exchange. It returns the base of the exchange's other URLs,
// which a redirect may have moved, as it does for git.
func (t *httpTransport) discover(c *call, protocol string) (base *url.URL, adv *body, err error) {
	if t.client == nil {
		if err := t.newClient(); err != nil {
			return nil, nil, err
		}
	}
	u := t.url("/info/refs")
	u.RawQuery = "service=git-upload-pack"
	limit := int64(maxListing)
	if protocol == "" {
		limit = maxSkipped
	}
	resp, adv, err := t.do(c, http.MethodGet, u, nil, protocol, limit)
	if err != nil {
		return nil, nil, err
	}
	base = resp.Request.URL
	base.Path, base.RawPath, base.RawQuery = strings.TrimSuffix(base.Path, "/info/refs"), strings.TrimSuffix(base.RawPath, "/info/refs"), ""
	ct := resp.Header.Get("Content-Type")
	if kind, _, _ := mime.ParseMediaType(ct); kind != "application/x-git-upload-pack-advertisement" {
		_ = adv.Close()
		return nil, nil, problem.New("", &notGitError{fmt.Sprintf("a response of type %q", line(ct))}, "use the address that `git clone` takes")
	}
	return base, adv, nil
}

func (t *httpTransport) post(c *call, base *url.URL, content []byte, protocol string, limit int64) (*body, error) {
	_, b, err := t.do(c, http.MethodPost, base.JoinPath("git-upload-pack"), content, protocol, limit)
	return b, err
}

func (t *httpTransport) do(c *call, method string, u *url.URL, content []byte, protocol string, limit int64) (*http.Response, *body, error) {
	q, err := http.NewRequestWithContext(c.ctx, method, u.String(), bytes.NewReader(content))
	if err != nil {
		return nil, nil, err
	}
	q.Header.Set("User-Agent", agent)
	if protocol != "" {
		q.Header.Set("Git-Protocol", protocol)
	}
	if method == http.MethodPost {
		q.Header.Set("Content-Type", "application/x-git-upload-pack-request")
		q.Header.Set("Accept", "application/x-git-upload-pack-result")
	}
	if t.sent, err = t.files.readCredentials(t.at.user); err != nil {
		return nil, nil, err
	}
	if t.sent.password != "" {
		q.SetBasicAuth(t.sent.user, t.sent.password)
	}
	resp, err := t.client.Do(q)
	if err != nil {
		var wrapped *url.Error // it repeats the address
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, nil, err
	}
	b := &body{Reader: bufio.NewReader(c.reader(resp.Body, limit, "the response")), inner: resp.Body}
	if resp.StatusCode != http.StatusOK {
		defer b.Close()
		return nil, nil, newStatusError(resp, t.sent.password != "", t.secrets(), b)
	}
	return resp, b, nil
}

// newClient makes the client of a look. It resumes no TLS session, so that the
// server proves its identity each time.
func (t *httpTransport) newClient() error {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.files.CA != "" {
		pem, err := readSecret(t.files.CA)
		if err != nil {
			return err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return problem.New("", errors.New(t.files.CA+" holds no certificate"), "--git-ca-file is PEM: -----BEGIN CERTIFICATE-----")
		}
	}
	if t.files.Cert != "" {
		cert, errCert := readSecret(t.files.Cert)
		key, errKey := readSecret(t.files.Key)
		if err := errors.Join(errCert, errKey); err != nil {
			return err
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return &problem.Error{Op: "use", Place: t.files.Cert + " and " + t.files.Key, Err: err, Hint: "--git-cert-file and --git-key-file are PEM and belong together"}
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	t.client = &http.Client{
		CheckRedirect: checkRedirect,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, OnProxyConnectResponse: checkProxy, TLSClientConfig: conf, ForceAttemptHTTP2: true,
			DisableCompression:  true, // packs are compressed, and gzip could be endless without a byte
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: defaultTimeouts.silence,
			IdleConnTimeout:        10 * time.Second, // of HTTP/2 connections that were busy at rest
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
	return nil
}

// checkRedirect follows only the first request of an exchange, and only on the
// same host: credentials must not go elsewhere, nor a configuration come from
// there.
func checkRedirect(q *http.Request, via []*http.Request) error {
	from, to := via[0].URL, q.URL
	same := strings.EqualFold(to.Hostname(), from.Hostname()) &&
		(to.Scheme == from.Scheme && to.Port() == from.Port() || from.Scheme == "http" && to.Scheme == "https")
	if !same || via[0].Method != http.MethodGet || len(via) > 3 || !strings.HasSuffix(to.Path, "/info/refs") {
		base := url.URL{Scheme: to.Scheme, Host: to.Host, Path: strings.TrimSuffix(to.Path, "/info/refs")}
		return problem.New("", &redirectError{line(base.String())}, "if the repository moved there, name that address with --repo")
	}
	return nil
}

type redirectError struct{ to string }

func (e *redirectError) Error() string { return "it redirects to " + e.to }

// checkProxy returns an error that names the proxy.
func checkProxy(_ context.Context, proxy *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return &statusError{who: "the proxy " + proxy.Host, code: resp.StatusCode}
}

// A statusError is a response that is not 200.
type statusError struct {
	who        string // the server or a proxy
	code       int
	loggedIn   bool
	said       string
	retryAfter time.Duration
}

// maxRetryAfter bounds how long a server can keep the agent away.
const maxRetryAfter = time.Hour

func newStatusError(resp *http.Response, loggedIn bool, secrets []string, body io.Reader) *statusError {
	e := &statusError{who: "the server", code: resp.StatusCode, loggedIn: loggedIn}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		text, _ := io.ReadAll(io.LimitReader(body, 200))
		if e.said = line(strings.TrimSpace(string(text))); leaks(e.said, secrets) {
			e.said = ""
		}
	}
	if value := resp.Header.Get("Retry-After"); e.code == http.StatusTooManyRequests || e.code == http.StatusServiceUnavailable {
		if seconds, err := strconv.Atoi(value); err == nil || errors.Is(err, strconv.ErrRange) {
			e.retryAfter = time.Duration(min(max(seconds, 0), int(maxRetryAfter.Seconds()))) * time.Second
		} else if at, err := http.ParseTime(value); err == nil {
			e.retryAfter = min(max(time.Until(at), 0), maxRetryAfter)
		}
	}
	return e
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%s responds %d %s", e.who, e.code, http.StatusText(e.code))
	if e.said != "" {
		text += fmt.Sprintf(" (%q)", e.said)
	}
	if e.retryAfter > 0 {
		text += ", and asks to wait"
	}
	return text
}

func (t *httpTransport) explain(err error) error {
	var status *statusError
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "proxyconnect":
		return problem.New("", errors.New(cause(err)), "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY")
	case errors.As(err, &status):
		return problem.New("", status, status.hint())
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) && t.files.CA != "" {
		return problem.New("", errUnknownCA, "--git-ca-file "+t.files.CA+" does not have its authority")
	}
	if strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") { // net/http has no type for it
		return problem.New("", errors.New("the server speaks plain HTTP on this port"), "check the port in --repo")
	}
	return explainTLS(err)
}

var errUnknownCA = errors.New("the server's certificate is signed by an unknown authority")

func (e *statusError) hint() string {
	switch {
	case e.code == http.StatusUnauthorized && !e.loggedIn:
		return "give --git-token-file, or --git-username-file and --git-password-file"
	case e.code == http.StatusUnauthorized || e.code == http.StatusForbidden:
		return "the login is wrong, expired, or may not read this repository"
	case e.code == http.StatusNotFound:
		return "check the address; hosts also return 404 to a login without access"
	case e.code == http.StatusProxyAuthRequired:
		return "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY, and the login in the proxy's URL"
	case e.code == http.StatusTooManyRequests:
		return "ask less often with --poll, if this goes on"
	case e.code >= 500:
		return "see whether the host reports a problem"
	}
	return ""
}

// explainTLS returns what is wrong with a server's certificate, nil for other
// errors.
func explainTLS(err error) error {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return problem.New("", errUnknownCA, "name its authority with --git-ca-file")
	case errors.As(err, &host) && len(host.Certificate.DNSNames)+len(host.Certificate.IPAddresses) == 0:
		return problem.New("", errors.New("the server's certificate has no subject alternative name (SAN), only a common name"), "have a certificate issued with the host as SAN")
	case errors.As(err, &host):
		names := append([]string(nil), host.Certificate.DNSNames...)
		for _, ip := range host.Certificate.IPAddresses {
			names = append(names, ip.String())
		}
		return problem.New("", fmt.Errorf("the server's certificate is for %s, not for %s", line(strings.Join(names, ", ")), host.Host), "use a name of the certificate in --repo")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		if now := time.Now(); now.Before(invalid.Cert.NotBefore) {
			return problem.New("", fmt.Errorf("the server's certificate is not valid before %s", invalid.Cert.NotBefore.UTC().Format(time.RFC3339)), "check this machine's clock")
		}
		return problem.New("", fmt.Errorf("the server's certificate expired at %s", invalid.Cert.NotAfter.UTC().Format(time.RFC3339)), "have the server's certificate renewed")
	}
	return nil
}
