package status

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dtesn-agent/schema/problem"
	"dtesn-agent/watcher/smallfile"
)

// AccessFiles are the files that say who may ask on --listen; "" is none.
type AccessFiles struct {
	Cert, Key string // PEM, of the server
	Token     string // one token a line
	ClientCA  string // PEM, of the authorities of client certificates
}

// Check reports what an address lacks to be listened on. Off loopback it needs TLS, and a
// token or client certificates.
func (f *AccessFiles) Check(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	var lacks []string
	if f.Cert == "" {
		lacks = append(lacks, "--tls-cert-file")
	}
	if f.Key == "" {
		lacks = append(lacks, "--tls-key-file")
	}
	ip, err := netip.ParseAddr(host)
	if isLoopback := host == "localhost" || err == nil && ip.IsLoopback(); isLoopback {
		if len(lacks) == 1 || len(lacks) > 0 && f.ClientCA != "" {
			return problem.New("", fmt.Errorf("TLS lacks %s", strings.Join(lacks, " and ")), "give both files, of the certificate and of its key")
		}
		return nil
	}
	if f.Token == "" && f.ClientCA == "" {
		lacks = append(lacks, "--token-file (or --client-ca-file)")
	}
	if len(lacks) > 0 {
		return problem.New("", fmt.Errorf("%s is not a loopback address, and lacks %s", addr, strings.Join(lacks, ", ")),
			fmt.Sprintf("give these files; or listen on 127.0.0.1:%s, and use --health-listen for probes and metrics from outside", port))
	}
	return nil
}

// An Access decides who may ask. The files are read at each handshake and each request; one
// that cannot be used leaves what it held before in force. The zero value, and nil, let
// everybody ask.
type Access struct {
	cert    *reread[tls.Certificate]
	tokens  *reread[[][sha256.Size]byte]
	clients *reread[*x509.CertPool]

	log     *slog.Logger
	refused prometheus.Counter
	mu      sync.Mutex
	warned  string // of the certificate
}

// OpenAccess reads the files.
func OpenAccess(f AccessFiles, logger *slog.Logger) (*Access, error) {
	a := &Access{log: logger, refused: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "dtesn_agent_refused_credentials_total", Help: "Requests to --listen without good credentials.",
	})}
	var errs []error
	if f.Cert != "" {
		a.cert = newReread("the certificate", parsePair, logger, &errs, f.Cert, f.Key)
	}
	if f.Token != "" {
		a.tokens = newReread("tokens", parseTokens, logger, &errs, f.Token)
	}
	if f.ClientCA != "" {
		a.clients = newReread("client authorities", parseAuthorities, logger, &errs, f.ClientCA)
	}
	if len(errs) > 0 {
		return nil, errs[0]
	}
	a.aging()
	return a, nil
}

// register adds the series about what there is.
func (a *Access) register(r *prometheus.Registry) {
	if a.HasTLS() {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "dtesn_agent_certificate_not_after_timestamp_seconds", Help: "When the certificate of --listen expires, in Unix seconds.",
		}, func() float64 { return float64(a.cert.get().Leaf.NotAfter.Unix()) }))
	}
	if a != nil && (a.tokens != nil || a.clients != nil) {
		r.MustRegister(a.refused)
	}
}

// agingTime is how long before its end a certificate is said to expire.
const agingTime = 7 * 24 * time.Hour

// aging returns what is to be said of the certificate's age, "" for nothing. What is news is
// logged.
func (a *Access) aging() (text string) {
	if !a.HasTLS() {
		return ""
	}
	end, word := a.cert.get().Leaf.NotAfter, ""
	if left := time.Until(end); left <= 0 {
		word = "expired"
	} else if left < agingTime {
		word = "expires"
	}
	if word != "" {
		text = "the certificate of --listen " + word + " at " + end.UTC().Format(time.RFC3339)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.warned != text && text != "" {
		a.log.Warn("certificate of --listen "+word, "not_after", end.UTC(), "hint", agingHint)
	}
	a.warned = text
	return text
}

const agingHint = "put a new one into --tls-cert-file and --tls-key-file; no restart is needed"

// HasTLS reports whether clients speak TLS.
func (a *Access) HasTLS() bool { return a != nil && a.cert != nil }

// Problems returns which files cannot be used, though what they held before is in force, and
// whether the certificate is out of date, or soon will be.
func (a *Access) Problems() []string {
	list := []string{}
	if a == nil {
		return list
	}
	for _, err := range []error{a.cert.problem(), a.tokens.problem(), a.clients.problem()} {
		if err != nil {
			list = append(list, inForce(err))
		}
	}
	if text := a.aging(); text != "" {
		list = append(list, text+"; "+agingHint)
	}
	return list
}

// inForce is err about a file that is read again.
func inForce(err error) string { return problem.Text(err) + "; what was read before is in force" }

// Listener returns l, with TLS if there is a certificate.
func (a *Access) Listener(l net.Listener) net.Listener {
	if !a.HasTLS() {
		return l
	}
	return tls.NewListener(l, &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		a.aging()
		c := &tls.Config{
			Certificates: []tls.Certificate{a.cert.get()},
			NextProtos:   []string{"http/1.1"}, // a bounded.Server counts connections, and HTTP/2 has many requests in one
			// A resumed session would keep the decision of its first handshake.
			SessionTicketsDisabled: true,
		}
		if a.clients != nil {
			c.ClientAuth, c.ClientCAs = tls.VerifyClientCertIfGiven, a.clients.get()
		}
		return c, nil
	}})
}

// allows reports whether the credentials of a request are good, by the files of now.
func (a *Access) allows(q *http.Request) bool {
	if a == nil || a.tokens == nil && a.clients == nil {
		return true
	}
	if a.clients != nil && q.TLS != nil && len(q.TLS.PeerCertificates) > 0 {
		opt := x509.VerifyOptions{Roots: a.clients.get(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		for _, c := range q.TLS.PeerCertificates[1:] {
			opt.Intermediates.AddCert(c)
		}
		if _, err := q.TLS.PeerCertificates[0].Verify(opt); err == nil {
			return true
		}
	}
	if a.tokens == nil {
		return false
	}
	_, token, _ := q.BasicAuth()
	if scheme, rest, _ := strings.Cut(q.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "Bearer") {
		token = strings.TrimSpace(rest)
	}
	sum, found := sha256.Sum256([]byte(token)), 0
	for _, known := range a.tokens.get() {
		found |= subtle.ConstantTimeCompare(sum[:], known[:])
	}
	return found == 1
}

// deny answers a request without good credentials.
func (a *Access) deny(w http.ResponseWriter, q *http.Request) {
	a.refused.Inc()
	a.log.Debug("credentials refused", "method", q.Method, "path", q.URL.Path, "remote", q.RemoteAddr)
	if a.tokens == nil {
		fail(w, http.StatusForbidden, "a client certificate is needed, of an authority in --client-ca-file")
		return
	}
	w.Header().Add("WWW-Authenticate", `Bearer realm="dtesn-agent"`)
	w.Header().Add("WWW-Authenticate", `Basic realm="dtesn-agent", charset="UTF-8"`)
	message := "a token of --token-file is needed: Authorization: Bearer TOKEN, or Basic with the token as password and any user"
	if a.clients != nil {
		message += "; or a client certificate of an authority in --client-ca-file"
	}
	fail(w, http.StatusUnauthorized, message)
}

// isNamed reports whether the certificate of the server is for host.
func (a *Access) isNamed(host string) bool {
	return a.HasTLS() && a.cert.get().Leaf.VerifyHostname(host) == nil
}

func parsePair(texts [][]byte) (tls.Certificate, error) { return tls.X509KeyPair(texts[0], texts[1]) }

const leastToken = 16

// parseTokens returns the digests of tokens, so that comparing takes the same time whatever
// their length.
func parseTokens(texts [][]byte) (sums [][sha256.Size]byte, err error) {
	for n, line := range strings.Split(string(texts[0]), "\n") {
		token := strings.TrimSpace(line)
		if token == "" {
			continue
		}
		if token[0] == '#' { // whoever reads a file of comments would guess it
			return nil, problem.New("", fmt.Errorf("line %d begins with #: the file has tokens alone, no comments", n+1), "remove the line")
		}
		if len(token) < leastToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, problem.New("", fmt.Errorf("line %d is not a token: %d printable ASCII characters at least", n+1, leastToken), "make one with: openssl rand -hex 32")
		}
		sums = append(sums, sha256.Sum256([]byte(token)))
	}
	if len(sums) == 0 {
		return nil, problem.New("", errors.New("it has no token"), "make one with: openssl rand -hex 32")
	}
	return sums, nil
}

func parseAuthorities(texts [][]byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(texts[0]) {
		return nil, problem.New("", errors.New("it has no certificate"), "give a PEM file with BEGIN CERTIFICATE")
	}
	return pool, nil
}

// A reread is what files hold now, or what they last held that could be used.
type reread[T any] struct {
	what  string
	paths []string
	parse func([][]byte) (T, error)
	log   *slog.Logger

	reading sync.Mutex // held while the files are read, which a disk may make last
	texts   [][]byte   // that value is of

	mu    sync.Mutex
	value T
	err   error
}

func newReread[T any](what string, parse func([][]byte) (T, error), logger *slog.Logger, errs *[]error, paths ...string) *reread[T] {
	r := &reread[T]{what: what, paths: paths, parse: parse, log: slog.New(slog.DiscardHandler)}
	if err := r.problem(); err != nil {
		*errs = append(*errs, err)
	}
	r.log = logger
	return r
}

const (
	maxAccessFile = 1 << 20
	// readWait is how long files may take to be read; what was read before counts meanwhile.
	readWait = time.Second
)

// get reads the files again, unless somebody does, and returns what is in force.
func (r *reread[T]) get() T {
	if r.reading.TryLock() {
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer r.reading.Unlock()
			r.refresh()
		}()
		select {
		case <-done:
		case <-time.After(readWait):
			r.note(r.failure(r.paths[0], fmt.Errorf("it takes longer than %s", readWait), "look at the disk or the network file system that has it"))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.value
}

func (r *reread[T]) failure(place string, err error, hint string) error {
	return &problem.Error{Op: "read " + r.what + " from", Place: place, Err: err, Hint: hint}
}

func (r *reread[T]) refresh() {
	texts := make([][]byte, len(r.paths))
	for i, path := range r.paths {
		text, err := smallfile.ReadText(path, maxAccessFile)
		if err != nil {
			r.note(r.failure(path, err, "check that the file exists and that the agent's user may read it"))
			return
		}
		texts[i] = text
	}
	if r.texts == nil || !slices.EqualFunc(texts, r.texts, bytes.Equal) {
		value, err := r.parse(texts)
		if err != nil {
			r.note(r.failure(strings.Join(r.paths, " and "), err, problem.Hint(err)))
			return
		}
		if r.texts != nil {
			r.log.Info("file of --listen read again", "file", strings.Join(r.paths, " "))
		}
		r.texts = texts
		r.mu.Lock()
		r.value = value
		r.mu.Unlock()
	}
	r.note(nil)
}

// note keeps how the last reading ended, and logs it if that is news.
func (r *reread[T]) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil && (r.err == nil || r.err.Error() != err.Error()):
		r.log.Warn("file of --listen unusable", "error", err, "hint", problem.Hint(err), "in_force", r.what+" of before")
	case err == nil && r.err != nil:
		r.log.Info("file of --listen usable again", "file", strings.Join(r.paths, " "))
	}
	r.err = err
}

// problem reads the files again and returns why they cannot be used; nil for no files.
func (r *reread[T]) problem() error {
	if r == nil {
		return nil
	}
	r.get()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}
